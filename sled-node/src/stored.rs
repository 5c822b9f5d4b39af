//! How the sled's journal keeps what a turn tells (JRNL-8): the texts of people and agents lie in the journal's erasable
//! table, and the event names them. Sleds before this one stored them in the event itself; those are still read.
//!
//! It must not let a text stay in an event, and it must not fail because one was erased.

use jiff::Timestamp;
use journal::{Decoded, DomainEvent, EncodeError, Journal, NewEvent, ReadError, Recorded, UpcastError};
use link::requests::{FailureReason, Outcome, TurnEvent, TurnRecord, TurnRequest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Value, json};
use uuid::Uuid;

/// What is read in place of a text that was erased.
pub const FORGOTTEN: &str = "(forgotten)";

/// Something that holds texts of people or agents. Names of tools, sessions and settings are none.
pub trait Said {
    /// The texts. Their order is a part of the stored form: it does not change without a new version of the events.
    fn texts(&mut self) -> Vec<&mut String>;
}

impl Said for TurnRequest {
    fn texts(&mut self) -> Vec<&mut String> {
        std::iter::once(&mut self.prompt).chain(&mut self.afresh).collect()
    }
}

impl Said for Outcome {
    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::Answered { text } => vec![text],
            Self::Failed { reason, last_lines } => {
                let why = match reason {
                    FailureReason::NotStarted { error: text }
                    | FailureReason::Protocol { error: text }
                    | FailureReason::Reported { text } => Some(text),
                    FailureReason::Exited { .. } => None,
                };
                why.into_iter().chain(last_lines).collect()
            }
            Self::Stopped { .. } | Self::Interrupted => Vec::new(),
        }
    }
}

impl Said for TurnEvent {
    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::Accepted(request) => request.texts(),
            Self::Spoke { text } => vec![text],
            Self::ToolCalled { summary, .. } | Self::PermissionAsked { summary, .. } => vec![summary],
            Self::Finished { outcome, .. } => outcome.texts(),
            Self::Started { .. } | Self::Heard | Self::PermissionSettled { .. } | Self::RateLimited { .. } => {
                Vec::new()
            }
        }
    }
}

/// Something and the texts that lie apart from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Apart<T> {
    /// The rest: empty where a text was taken out.
    pub rest: T,
    /// The ids of the texts, in the order of [`Said::texts`]; none where they are in `rest`, as earlier sleds stored them.
    pub texts: Vec<Uuid>,
}

/// An event of a turn as the journal keeps it.
pub type Journaled = Apart<TurnEvent>;

impl<T: Said + Clone + PartialEq> Apart<T> {
    /// The whole again. A text that was erased reads [`FORGOTTEN`].
    pub async fn whole(self, journal: &Journal) -> Result<T, ReadError> {
        let Self { mut rest, texts } = self;
        if !texts.is_empty() {
            let mut bodies = journal.texts(texts.clone()).await?;
            for (place, id) in rest.texts().into_iter().zip(&texts) {
                *place = bodies.remove(id).unwrap_or_else(|| FORGOTTEN.to_owned());
            }
        }
        Ok(rest)
    }

    /// Whether this is `other`, as far as its texts are not erased.
    pub async fn is(&self, other: &T, journal: &Journal) -> Result<bool, ReadError> {
        if self.texts.is_empty() {
            return Ok(self.rest == *other);
        }
        let mut other = other.clone();
        let said = take_texts(&mut other);
        if other != self.rest || said.len() != self.texts.len() {
            return Ok(false);
        }
        let bodies = journal.texts(self.texts.clone()).await?;
        Ok(self.texts.iter().zip(&said).all(|(id, said)| bodies.get(id).is_none_or(|body| body == said)))
    }
}

impl Journaled {
    /// The stored form of `event`, its texts beside it, each under another `id`.
    pub fn encode(mut event: TurnEvent, mut id: impl FnMut() -> Uuid) -> Result<NewEvent, EncodeError> {
        let bodies = take_texts(&mut event);
        let texts: Vec<_> = bodies.iter().map(|_| id()).collect();
        let new = NewEvent::encode(&Self { rest: event, texts: texts.clone() })?;
        Ok(texts.into_iter().zip(bodies).fold(new, |new, (id, body)| new.with_text(id, body)))
    }
}

fn take_texts(said: &mut impl Said) -> Vec<String> {
    said.texts().into_iter().map(std::mem::take).collect()
}

/// A stored event as readers get it; `None` for a kind that a later sled wrote.
pub async fn for_reader(recorded: &Recorded, journal: &Journal) -> Result<Option<TurnRecord>, ReadError> {
    let decoded = recorded.decode::<Journaled>().map_err(|source| {
        let (stream, version) = (recorded.stream.clone(), recorded.version);
        ReadError::Decode { stream, version, source }
    })?;
    let (seq, at): (u64, Timestamp) = (recorded.version, recorded.time);
    Ok(match decoded {
        Decoded::Known(event) => Some(TurnRecord { seq, at, event: event.whole(journal).await? }),
        Decoded::Unknown => None,
    })
}

impl DomainEvent for Journaled {
    const KINDS: &'static [&'static str] = &[
        "turn.accepted",
        "turn.started",
        "turn.heard",
        "turn.spoke",
        "turn.tool_called",
        "turn.permission_asked",
        "turn.permission_settled",
        "turn.rate_limited",
        "turn.finished",
    ];

    /// Version 1 was the wire's own form, its texts in it.
    fn version(_: &str) -> u32 {
        2
    }

    fn skippable(kind: &str) -> bool {
        !matches!(kind, "turn.accepted" | "turn.finished")
    }

    fn upcast(kind: &str, version: u32, data: Value) -> Result<Value, UpcastError> {
        match version {
            1 => Ok(json!({ "event": data })),
            _ => Err(format!("nothing lifts {kind} from version {version}").into()),
        }
    }
}

/// An event with its tag.
#[derive(Serialize, Deserialize)]
struct Tagged<D> {
    kind: String,
    data: D,
}

/// What is stored of an event.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    /// The data of the wire's event, without its texts; null where that has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    event: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    texts: Vec<Uuid>,
}

impl Serialize for Journaled {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = serde_json::to_value(&self.rest).map_err(ser::Error::custom)?;
        let Tagged { kind, data } = Tagged::<Option<Value>>::deserialize(wire).map_err(ser::Error::custom)?;
        let data = Data { event: data.unwrap_or_default(), texts: self.texts.clone() };
        Tagged { kind, data }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Journaled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Tagged { kind, data: Data { event, texts } } = Tagged::deserialize(deserializer)?;
        let wire = json!({ "kind": kind, "data": event });
        let mut rest = TurnEvent::deserialize(wire).map_err(de::Error::custom)?;
        let places = rest.texts().len();
        if !texts.is_empty() && texts.len() != places {
            return Err(de::Error::custom(format!("{} texts for {places} places", texts.len())));
        }
        Ok(Self { rest, texts })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use journal::{Actor, Append, Cause, Expected, StreamId};
    use link::requests::{Agent, AgentSession, Decision, Permissions, Usage};
    use serde_json::value::RawValue;

    use super::*;
    use crate::record::{Turn, stream};

    fn journal(folder: &tempfile::TempDir) -> Journal {
        Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap()
    }

    async fn append(journal: &Journal, stream: &StreamId, event: NewEvent) -> Recorded {
        let (events, actor) = (vec![event], Actor::Sled("p".to_owned()));
        let append =
            Append { stream: stream.clone(), expected: Expected::Any, events, key: None, actor, cause: Cause::None };
        journal.append(append).await.unwrap().events.remove(0)
    }

    fn request(prompt: &str) -> TurnRequest {
        TurnRequest {
            session: AgentSession { id: Uuid::from_u128(7), resumed: true },
            agent: Agent::Echo { notice: None },
            prompt: prompt.to_owned(),
            identity: None,
            attempt: 1,
            permissions: Permissions::Bypass,
            keep_warm_secs: 0,
            afresh: Some("secret afresh".to_owned()),
        }
    }

    fn failed(reason: FailureReason) -> TurnEvent {
        let last_lines = vec!["secret line 1".to_owned(), "secret line 2".to_owned()];
        TurnEvent::Finished { outcome: Outcome::Failed { reason, last_lines }, usage: None }
    }

    /// One of each, and what is left of it when its texts are forgotten.
    fn events() -> Vec<TurnEvent> {
        let secret = || "secret words".to_owned();
        let (name, asked) = ("Bash".to_owned(), "1-1".to_owned());
        let usage = Usage { input_tokens: 1, output_tokens: 2, cost_usd: Some(0.5) };
        vec![
            TurnEvent::Accepted(request("secret prompt")),
            TurnEvent::Started { session_found: true },
            TurnEvent::Heard,
            TurnEvent::Spoke { text: secret() },
            TurnEvent::ToolCalled { name: name.clone(), summary: secret() },
            TurnEvent::PermissionAsked {
                request: asked.clone(),
                tool: name,
                summary: secret(),
                deadline: Timestamp::UNIX_EPOCH,
            },
            TurnEvent::PermissionSettled { request: asked, decision: Decision::Denied },
            TurnEvent::RateLimited { retry_after_secs: Some(3) },
            TurnEvent::Finished { outcome: Outcome::Answered { text: secret() }, usage: Some(usage) },
            failed(FailureReason::NotStarted { error: secret() }),
            failed(FailureReason::Protocol { error: secret() }),
            failed(FailureReason::Reported { text: secret() }),
            failed(FailureReason::Exited { code: Some(1), signal: None }),
            TurnEvent::Finished { outcome: Outcome::Interrupted, usage: None },
        ]
    }

    #[tokio::test]
    async fn texts_lie_apart_and_can_be_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(&folder);
        for (event, turn) in events().into_iter().zip(1..) {
            let stream = stream(Uuid::from_u128(turn));
            let recorded = append(&journal, &stream, Journaled::encode(event.clone(), Uuid::new_v4).unwrap()).await;
            assert!(!recorded.data.get().contains("secret"), "{}", recorded.data.get());
            assert_eq!(for_reader(&recorded, &journal).await.unwrap().unwrap().event, event);

            let Decoded::Known(stored) = recorded.decode::<Journaled>().unwrap() else { panic!("{recorded:?}") };
            journal.erase(stored.texts).await.unwrap();
            let mut forgotten = event.clone();
            for text in forgotten.texts() {
                assert!(text.contains("secret"), "{text}");
                FORGOTTEN.clone_into(text);
            }
            assert_eq!(for_reader(&recorded, &journal).await.unwrap().unwrap().event, forgotten);
            journal.load::<Turn>(&stream).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_request_is_told_from_another_as_long_as_it_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(&folder);
        let stream = stream(Uuid::nil());
        let accepted = Journaled::encode(TurnEvent::Accepted(request("one")), Uuid::new_v4).unwrap();
        append(&journal, &stream, accepted).await;
        let stored = journal.load::<Turn>(&stream).await.unwrap().state.request.unwrap();
        let is = async |other: &TurnRequest| stored.is(other, &journal).await.unwrap();
        assert!(is(&request("one")).await);
        assert!(!is(&request("another")).await);
        assert!(!is(&TurnRequest { afresh: None, ..request("one") }).await);
        journal.erase(stored.texts.clone()).await.unwrap();
        assert!(is(&request("one")).await);
        assert!(!is(&TurnRequest { attempt: 2, ..request("one") }).await);
    }

    /// Word for word what sleds of version 0.1 wrote before texts lay apart.
    const OLD: [(&str, &str); 6] = [
        (
            "turn.accepted",
            r#"{"session":{"id":"00000000-0000-0000-0000-000000000007","resumed":true},"agent":{"runtime":"echo","notice":null},"prompt":"old words","identity":null,"attempt":1,"permissions":{"mode":"bypass"},"keep_warm_secs":0,"afresh":"secret afresh"}"#,
        ),
        ("turn.started", r#"{"session_found":true}"#),
        ("turn.heard", "null"),
        ("turn.spoke", r#"{"text":"looking"}"#),
        ("turn.tool_called", r#"{"name":"Bash","summary":"ls"}"#),
        (
            "turn.finished",
            r#"{"outcome":{"outcome":"failed","reason":{"reason":"reported","text":"no credit"},"last_lines":["a","b"]},"usage":null}"#,
        ),
    ];

    #[tokio::test]
    async fn what_an_earlier_sled_stored_is_read_with_its_texts() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(&folder);
        let stream = stream(Uuid::nil());
        let mut told = Vec::new();
        for (kind, data) in OLD {
            let data = RawValue::from_string(data.to_owned()).unwrap();
            let recorded = append(&journal, &stream, NewEvent::raw(kind, 1, true, data).unwrap()).await;
            told.push(for_reader(&recorded, &journal).await.unwrap().unwrap().event);
        }
        let outcome = Outcome::Failed {
            reason: FailureReason::Reported { text: "no credit".to_owned() },
            last_lines: vec!["a".to_owned(), "b".to_owned()],
        };
        let wanted = [
            TurnEvent::Accepted(request("old words")),
            TurnEvent::Started { session_found: true },
            TurnEvent::Heard,
            TurnEvent::Spoke { text: "looking".to_owned() },
            TurnEvent::ToolCalled { name: "Bash".to_owned(), summary: "ls".to_owned() },
            TurnEvent::Finished { outcome: outcome.clone(), usage: None },
        ];
        assert_eq!(told, wanted);
        let turn = journal.load::<Turn>(&stream).await.unwrap().state;
        let before = turn.request.unwrap();
        assert!(before.is(&request("old words"), &journal).await.unwrap());
        assert!(!before.is(&request("other words"), &journal).await.unwrap());
        assert_eq!(turn.outcome.unwrap().whole(&journal).await.unwrap(), outcome);
    }

    #[tokio::test]
    async fn texts_for_places_that_are_not_there_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(&folder);
        let data = json!({ "event": { "text": "" }, "texts": [Uuid::nil(), Uuid::nil()] }).to_string();
        let event = NewEvent::raw("turn.spoke", 2, true, RawValue::from_string(data).unwrap()).unwrap();
        let recorded = append(&journal, &stream(Uuid::nil()), event).await;
        assert!(matches!(for_reader(&recorded, &journal).await, Err(ReadError::Decode { .. })));
    }
}
