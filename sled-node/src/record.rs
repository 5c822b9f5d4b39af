//! A turn in the sled's journal: one stream per turn, whose versions are the reader's cursor (SLED-4).
//!
//! It bounds what a turn may store. It must not decide how a turn goes.

use std::collections::BTreeMap;

use journal::{
    Actor, Append, AppendError, Appended, Cause, Decoded, EncodeError, Expected, Fold, Journal, NewEvent, Recorded,
    StreamId,
};
use link::requests::{Decision, FailureReason, LINE_LIMIT, Outcome, TurnEvent, TurnRequest, Usage};
use uuid::Uuid;

use crate::agent::stream_json::MAX_TEXT;
use crate::lines::Tail;
use crate::stored::{Apart, Journaled};
use crate::text::{MAX_ERROR, one_line, paragraphs};

/// The kind of a turn's stream.
pub const STREAM: &str = "turn";

/// How many events a turn may store, its end not counted.
const MAX_EVENTS: u64 = 10_000;

/// How many bytes of text they may hold in all, its end not counted.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What a turn's end must leave of the link's line for the rest of its record, in bytes.
const LINE_ROOM: usize = 1024;

/// What readers see in place of what a turn says beyond its bounds.
const OVER: &str = "… this turn has said more than is kept; what else it says before its end is not shown.";

/// What a turn's stream says of it.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// The request of the latest attempt.
    pub request: Option<Apart<TurnRequest>>,
    /// The event that said so.
    pub accepted: Option<Uuid>,
    /// How the latest attempt ended.
    pub outcome: Option<Apart<Outcome>>,
    /// How each permission question of all attempts was settled; `None` while it is open.
    pub questions: BTreeMap<String, Option<Decision>>,
}

impl Turn {
    /// The questions that are open.
    pub fn open_questions(&self) -> impl Iterator<Item = &String> {
        self.questions.iter().filter(|(_, decision)| decision.is_none()).map(|(request, _)| request)
    }
}

impl Fold for Turn {
    type Event = Journaled;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &Journaled, recorded: &Recorded) -> Result<(), Self::Error> {
        let texts = || event.texts.clone();
        match &event.rest {
            TurnEvent::Accepted(request) => {
                self.request = Some(Apart { rest: request.clone(), texts: texts() });
                self.accepted = Some(recorded.id);
                self.outcome = None;
            }
            TurnEvent::Finished { outcome, .. } => {
                self.outcome = Some(Apart { rest: outcome.clone(), texts: texts() });
                // Whoever asked is gone, though it could not be stored of each question.
                for decision in self.questions.values_mut() {
                    decision.get_or_insert(Decision::Denied);
                }
            }
            TurnEvent::PermissionAsked { request, .. } => {
                self.questions.insert(request.clone(), None);
            }
            TurnEvent::PermissionSettled { request, decision } => {
                self.questions.insert(request.clone(), Some(*decision));
            }
            TurnEvent::Started { .. }
            | TurnEvent::Heard
            | TurnEvent::Spoke { .. }
            | TurnEvent::ToolCalled { .. }
            | TurnEvent::RateLimited { .. } => {}
        }
        Ok(())
    }
}

/// Whether a turn whose stream's last event this is has ended.
pub fn has_ended(last: &Recorded) -> Result<bool, journal::DecodeError> {
    Ok(matches!(last.decode()?, Decoded::Known(Journaled { rest: TurnEvent::Finished { .. }, .. })))
}

/// The stream of the turn with that id.
pub fn stream(id: Uuid) -> StreamId {
    StreamId::new(STREAM, id)
}

/// Writes one attempt of a turn.
pub struct Recorder {
    journal: Journal,
    stream: StreamId,
    actor: Actor,
    cause: Cause,
    version: u64,
    /// Names this attempt: the last event before it.
    begun_after: u64,
    /// How many texts were given ids. One whose append seemed to fail may be stored: its id is not given again.
    texts: u64,
    events: u64,
    bytes: usize,
}

impl Recorder {
    /// Begins an attempt after `version`, the last event of the attempts before it.
    pub async fn accept(
        journal: Journal,
        actor: Actor,
        id: Uuid,
        version: u64,
        request: TurnRequest,
    ) -> Result<Self, AppendError> {
        let mut recorder = Self::take_up(journal, actor, stream(id), version);
        recorder.cause = Cause::Command(format!("{id}#{}", request.attempt));
        let accepted = recorder.append(vec![TurnEvent::Accepted(request)]).await?;
        if let Some(event) = accepted.events.first() {
            recorder.cause = Cause::Event(event.id);
        }
        Ok(recorder)
    }

    /// The turn's id.
    pub fn turn(&self) -> &str {
        &self.stream.id
    }

    /// Goes on after `version`: for an attempt whose sled died, to say so.
    pub fn take_up(journal: Journal, actor: Actor, stream: StreamId, version: u64) -> Self {
        let (cause, begun_after) = (Cause::None, version);
        Self { journal, stream, actor, cause, version, begun_after, texts: 0, events: 0, bytes: 0 }
    }

    /// Stores what happened, as far as the bounds allow.
    pub async fn record(&mut self, events: Vec<TurnEvent>) -> Result<(), AppendError> {
        let mut kept = Vec::new();
        for event in events {
            if is_bounded_elsewhere(&event) {
                kept.push(event);
                continue;
            }
            if self.events >= MAX_EVENTS || self.bytes >= MAX_BYTES {
                continue;
            }
            self.events += 1;
            self.bytes += match &event {
                TurnEvent::Spoke { text } => text.len(),
                TurnEvent::ToolCalled { name, summary } => name.len() + summary.len(),
                _ => 0,
            };
            kept.push(event);
            if self.events >= MAX_EVENTS || self.bytes >= MAX_BYTES {
                kept.push(TurnEvent::Spoke { text: OVER.to_owned() });
            }
        }
        if kept.is_empty() { Ok(()) } else { self.append(kept).await.map(drop) }
    }

    /// Stores the end of a turn that did not live to see it: what it had asked is denied, and then it is interrupted.
    pub async fn interrupt(mut self, turn: &Turn) -> Result<(), AppendError> {
        self.cause = turn.accepted.map_or(Cause::None, Cause::Event);
        let denied = turn
            .open_questions()
            .map(|request| TurnEvent::PermissionSettled { request: request.clone(), decision: Decision::Denied });
        let events = denied.chain([TurnEvent::Finished { outcome: Outcome::Interrupted, usage: None }]).collect();
        self.end(events).await
    }

    /// Stores the end, whatever was stored before. May be repeated until it succeeds.
    pub async fn finish(&mut self, outcome: Outcome, usage: Option<Usage>) -> Result<(), AppendError> {
        let mut end = TurnEvent::Finished { outcome, usage };
        if serde_json::to_string(&end).is_ok_and(|line| line.len() + LINE_ROOM > LINE_LIMIT)
            && let TurnEvent::Finished { outcome, .. } = &mut end
        {
            cut(outcome);
        }
        self.end(vec![end]).await
    }

    async fn end(&mut self, events: Vec<TurnEvent>) -> Result<(), AppendError> {
        let key = format!("end of turn {}, begun after event {}", self.stream.id, self.begun_after);
        let mut texts = 0;
        // However often it is tried, it has the same ids.
        let events = encode(events, || {
            texts += 1;
            self.text_id(format_args!("end {texts}"))
        })?;
        // An append before this one that seemed to fail may have taken place all the same.
        let append = Append { key: Some(key), ..self.after(Expected::Any, events) };
        self.journal.append(append).await.map(drop)
    }

    async fn append(&mut self, events: Vec<TurnEvent>) -> Result<Appended, AppendError> {
        let mut texts = self.texts;
        let events = encode(events, || {
            texts += 1;
            self.text_id(format_args!("{texts}"))
        })?;
        self.texts = texts;
        let appended = self.journal.append(self.after(Expected::Version(self.version), events)).await?;
        self.version = appended.last_version;
        Ok(appended)
    }

    /// The id of a text of this attempt.
    fn text_id(&self, which: std::fmt::Arguments) -> Uuid {
        let name = format!("{} after {}: {which}", self.stream, self.begun_after);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
    }

    fn after(&self, expected: Expected, events: Vec<NewEvent>) -> Append {
        let (stream, actor, cause) = (self.stream.clone(), self.actor.clone(), self.cause.clone());
        Append { stream, expected, events, key: None, actor, cause }
    }
}

/// The stored forms of events, whose texts `id` names.
fn encode(events: Vec<TurnEvent>, mut id: impl FnMut() -> Uuid) -> Result<Vec<NewEvent>, EncodeError> {
    events.into_iter().map(|event| Journaled::encode(event, &mut id)).collect()
}

/// What must be stored whatever else a turn says, and comes so many times and no more.
fn is_bounded_elsewhere(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::Heard | TurnEvent::PermissionAsked { .. } | TurnEvent::PermissionSettled { .. })
}

/// Cuts every text of an outcome, so that it fits the link's line: an end that no reader can be told of would be none.
fn cut(outcome: &mut Outcome) {
    match outcome {
        Outcome::Answered { text } => *text = paragraphs(text, MAX_TEXT),
        Outcome::Failed { reason, last_lines } => {
            match reason {
                FailureReason::NotStarted { error: text }
                | FailureReason::Protocol { error: text }
                | FailureReason::Reported { text } => *text = paragraphs(text, MAX_ERROR),
                FailureReason::Exited { .. } => {}
            }
            last_lines.truncate(Tail::LINES);
            for line in last_lines {
                *line = one_line(line, Tail::CHARS);
            }
        }
        Outcome::Stopped { .. } | Outcome::Interrupted => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use link::requests::{Agent, AgentSession, Permissions};

    use link::requests::TurnRecord;

    use super::*;
    use crate::stored::for_reader;

    fn request() -> TurnRequest {
        let session = AgentSession { id: Uuid::nil(), resumed: false };
        TurnRequest {
            session,
            agent: Agent::Echo { notice: None },
            prompt: "hi".to_owned(),
            identity: None,
            attempt: 1,
            permissions: Permissions::Bypass,
            keep_warm_secs: 0,
            afresh: None,
        }
    }

    /// A turn that says `events`, 100 at a time, and then ends: what is stored of it.
    async fn stored(events: Vec<TurnEvent>) -> Vec<TurnRecord> {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
        let actor = Actor::Sled("p".to_owned());
        let mut recorder = Recorder::accept(journal.clone(), actor, Uuid::nil(), 0, request()).await.unwrap();
        for some in events.chunks(100) {
            recorder.record(some.to_vec()).await.unwrap();
        }
        recorder.finish(Outcome::Interrupted, None).await.unwrap();
        let turn = journal.load::<Turn>(&stream(Uuid::nil())).await.unwrap().state;
        assert_eq!(turn.outcome, Some(Apart { rest: Outcome::Interrupted, texts: Vec::new() }));
        assert_eq!(turn.request.unwrap().whole(&journal).await.unwrap(), request());
        read(&journal, Uuid::nil()).await
    }

    /// What is stored of a turn.
    async fn read(journal: &Journal, id: Uuid) -> Vec<TurnRecord> {
        let mut records = Vec::new();
        for recorded in journal.read(&stream(id), 0).await.unwrap() {
            records.push(for_reader(&recorded, journal).await.unwrap().unwrap());
        }
        records
    }

    #[tokio::test]
    async fn a_talkative_turn_is_cut_visibly_and_its_end_always_fits() {
        let called = TurnEvent::ToolCalled { name: "Bash".to_owned(), summary: "ls".to_owned() };
        let records = stored(vec![called; 10_500]).await;
        assert_eq!(records.len(), 1 + 10_000 + 1 + 1);
        assert_eq!(records[10_001].event, TurnEvent::Spoke { text: OVER.to_owned() });
        assert!(matches!(records[10_002].event, TurnEvent::Finished { .. }));
        assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq));
    }

    fn asked(request: &str) -> TurnEvent {
        let (tool, summary) = ("Bash".to_owned(), "ls".to_owned());
        TurnEvent::PermissionAsked { request: request.to_owned(), tool, summary, deadline: Timestamp::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn a_question_is_stored_however_much_was_said_before() {
        let mut events = vec![TurnEvent::ToolCalled { name: "Bash".to_owned(), summary: "ls".to_owned() }; 10_500];
        events.push(asked("1-1"));
        let records = stored(events).await;
        assert_eq!(records[records.len() - 2].event, asked("1-1"));
    }

    #[tokio::test]
    async fn what_an_interrupted_turn_had_asked_is_denied() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
        let actor = Actor::Sled("p".to_owned());
        let mut recorder = Recorder::accept(journal.clone(), actor.clone(), Uuid::nil(), 0, request()).await.unwrap();
        let settled = |request: &str, decision| TurnEvent::PermissionSettled { request: request.to_owned(), decision };
        recorder.record(vec![asked("1-1"), asked("1-2"), settled("1-1", Decision::Allowed)]).await.unwrap();
        let stream = stream(Uuid::nil());
        let before = journal.load::<Turn>(&stream).await.unwrap();
        for _ in 0..2 {
            let again = Recorder::take_up(journal.clone(), actor.clone(), stream.clone(), before.version);
            again.interrupt(&before.state).await.unwrap();
        }
        let after = journal.load::<Turn>(&stream).await.unwrap();
        assert_eq!((after.version, after.state.outcome.unwrap().rest), (6, Outcome::Interrupted));
        let wanted = [("1-1".to_owned(), Some(Decision::Allowed)), ("1-2".to_owned(), Some(Decision::Denied))];
        assert_eq!(after.state.questions, BTreeMap::from(wanted));
        let events = journal.read(&stream, 0).await.unwrap();
        assert_eq!(events[0].cause, Cause::Command(format!("{}#1", Uuid::nil())));
        assert!(events[1..].iter().all(|event| event.cause == Cause::Event(events[0].id)), "{events:?}");
    }

    #[tokio::test]
    async fn long_texts_are_cut_too() {
        let records = stored(vec![TurnEvent::Spoke { text: "x".repeat(400 * 1024) }; 60]).await;
        assert_eq!(records.len(), 1 + 41 + 1 + 1);
    }

    #[tokio::test]
    async fn an_end_fits_the_links_line_whatever_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
        let long = || "\"\u{1}".repeat(1024 * 1024 / 2);
        let failed = |reason| Outcome::Failed { reason, last_lines: vec![long()] };
        let outcomes = [
            Outcome::Answered { text: long() },
            failed(FailureReason::NotStarted { error: long() }),
            failed(FailureReason::Protocol { error: long() }),
            failed(FailureReason::Reported { text: long() }),
            failed(FailureReason::Exited { code: Some(1), signal: None }),
        ];
        for (outcome, id) in outcomes.into_iter().zip(1..) {
            let (id, actor) = (Uuid::from_u128(id), Actor::Sled("p".to_owned()));
            let mut recorder = Recorder::accept(journal.clone(), actor, id, 0, request()).await.unwrap();
            recorder.finish(outcome.clone(), None).await.unwrap();
            let record = read(&journal, id).await.remove(1);
            assert!(serde_json::to_string(&record).unwrap().len() < LINE_LIMIT);
            let TurnEvent::Finished { outcome: told, .. } = record.event else { panic!("{:?}", record.event) };
            assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&outcome));
        }
    }

    #[test]
    fn every_event_of_the_wire_has_its_kind() {
        for event in [
            TurnEvent::Accepted(request()),
            TurnEvent::Started { session_found: true },
            TurnEvent::Spoke { text: String::new() },
            TurnEvent::ToolCalled { name: String::new(), summary: String::new() },
            TurnEvent::RateLimited { retry_after_secs: None },
            TurnEvent::Heard,
            asked("1-1"),
            TurnEvent::PermissionSettled { request: "1-1".to_owned(), decision: Decision::Denied },
            TurnEvent::Finished { outcome: Outcome::Interrupted, usage: None },
        ] {
            Journaled::encode(event, Uuid::new_v4).unwrap();
        }
    }
}
