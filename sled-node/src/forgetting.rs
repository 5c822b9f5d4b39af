//! What the sled's journal forgets, and when (JRNL-8): the people's words of a turn soon after its end, because nobody reads
//! them again and its gateway keeps them as long as they are wanted; everything else when the gateway says so.
//!
//! It must not touch a turn that is not over.

use anyhow::Context;
use jiff::Timestamp;
use journal::{Actor, Append, Cause, Decoded, DomainEvent, Expected, Journal, NewEvent, StreamId};
use link::requests::TurnEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record;
use crate::stored::Journaled;

/// The kind of the stream that says how far people's words were erased; there is one.
const STREAM: &str = "prompts";

/// What happens to the words of turns that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum Forgotten {
    /// Those of all turns that ended at or before a position of the journal are erased.
    #[serde(rename = "prompts.erased")]
    Prompts {
        /// The position.
        up_to: u64,
    },
}

impl DomainEvent for Forgotten {
    const KINDS: &'static [&'static str] = &["prompts.erased"];

    fn skippable(_: &str) -> bool {
        true
    }
}

/// Up to which position of the journal people's words were erased, also by earlier sleds. Every turn whose last event lies there is over.
pub async fn erased_up_to(journal: &Journal) -> anyhow::Result<u64> {
    let mut erased_up_to = 0;
    for last in journal.last_events(STREAM).await? {
        if let Decoded::Known(Forgotten::Prompts { up_to }) = last.decode()? {
            erased_up_to = up_to;
        }
    }
    Ok(erased_up_to)
}

/// Erases what people said in turns that have ended since this was last done, also under an earlier sled. Returns how many texts.
///
/// Reads what is new alone: it is done after every turn, and journals grow for years.
pub async fn erase_prompts(journal: &Journal, actor: &Actor) -> anyhow::Result<u64> {
    let erased_up_to = erased_up_to(journal).await?;
    let (mut prompts, mut up_to, mut cause, mut lives) = (Vec::new(), erased_up_to, Cause::None, false);
    for last in journal.last_events_after(record::STREAM, erased_up_to).await? {
        if !record::has_ended(&last)? {
            // What follows is looked at again, so that this turn is not passed over when it ends without a further word.
            lives = true;
            continue;
        }
        if !lives {
            (up_to, cause) = (last.position, Cause::Event(last.id));
        }
        let events = journal.read(&last.stream, 0).await?;
        // What follows is of an attempt that has begun since.
        for recorded in events.into_iter().take_while(|recorded| recorded.version <= last.version) {
            if let Decoded::Known(Journaled { rest: TurnEvent::Accepted(_), texts }) = recorded.decode()? {
                prompts.extend(texts);
            }
        }
    }
    let erased = if prompts.is_empty() { 0 } else { journal.erase(prompts).await? };
    if up_to > erased_up_to {
        let events = vec![NewEvent::encode(&Forgotten::Prompts { up_to })?];
        let (stream, actor) = (StreamId::new(STREAM, "erased"), actor.clone());
        journal.append(Append { stream, expected: Expected::Any, events, key: None, actor, cause }).await?;
    }
    Ok(erased)
}

/// Since when `turn` has had texts, which runs: from its first attempt's beginning.
pub async fn begun(journal: &Journal, turn: Uuid) -> anyhow::Result<Timestamp> {
    let events = journal.read(&record::stream(turn), 0).await?;
    events.first().map(|first| first.time).context("a turn runs that is not journaled")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use link::requests::{Agent, AgentSession, Outcome, Permissions, TurnRequest};

    use super::*;
    use crate::record::Recorder;
    use crate::stored::{FORGOTTEN, for_reader};

    struct Turns {
        journal: Journal,
        actor: Actor,
        _folder: tempfile::TempDir,
    }

    impl Turns {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
            Self { journal, actor: Actor::Sled("p".to_owned()), _folder: folder }
        }

        async fn begin(&self, turn: u128, attempt: u32, after: u64) -> Recorder {
            let request = TurnRequest {
                session: AgentSession { id: Uuid::nil(), resumed: false },
                agent: Agent::Echo { notice: None },
                prompt: format!("prompt of attempt {attempt}"),
                identity: None,
                attempt,
                permissions: Permissions::Bypass,
                keep_warm_secs: 0,
                afresh: None,
            };
            let (journal, actor) = (self.journal.clone(), self.actor.clone());
            Recorder::accept(journal, actor, Uuid::from_u128(turn), after, request).await.unwrap()
        }

        async fn forget(&self) -> u64 {
            erase_prompts(&self.journal, &self.actor).await.unwrap()
        }

        /// The latest event of a kind of streams.
        async fn last(&self, kind: &str) -> journal::Recorded {
            let last = self.journal.last_events(kind).await.unwrap();
            last.into_iter().max_by_key(|event| event.position).unwrap()
        }

        /// What can be read of a turn's prompts, its answer last.
        async fn read(&self, turn: u128) -> Vec<String> {
            let mut read = Vec::new();
            for recorded in self.journal.read(&record::stream(Uuid::from_u128(turn)), 0).await.unwrap() {
                match for_reader(&recorded, &self.journal).await.unwrap().unwrap().event {
                    TurnEvent::Accepted(request) => read.push(request.prompt),
                    TurnEvent::Finished { outcome: Outcome::Answered { text }, .. } => read.push(text),
                    _ => {}
                }
            }
            read
        }
    }

    fn answered() -> Outcome {
        Outcome::Answered { text: "answer".to_owned() }
    }

    #[tokio::test]
    async fn what_people_said_is_forgotten_when_its_turn_is_over_and_nothing_else() {
        let turns = Turns::new();
        assert_eq!(turns.forget().await, 0);
        let mut first = turns.begin(1, 1, 0).await;
        assert_eq!(turns.forget().await, 0);
        first.finish(answered(), None).await.unwrap();
        let mut interrupted = turns.begin(2, 1, 0).await;
        interrupted.finish(Outcome::Interrupted, None).await.unwrap();
        assert_eq!(turns.forget().await, 2);
        assert_eq!(turns.read(1).await, [FORGOTTEN, "answer"]);
        let (end, said) = (turns.last(record::STREAM).await, turns.last(STREAM).await);
        assert_eq!(said.cause, Cause::Event(end.id));
        assert_eq!(turns.forget().await, 0);

        let mut again = turns.begin(2, 2, 2).await;
        assert_eq!(turns.forget().await, 0);
        assert_eq!(turns.read(2).await, [FORGOTTEN, "prompt of attempt 2"]);
        again.finish(answered(), None).await.unwrap();
        // A try to store the end that seemed to fail is repeated.
        again.finish(answered(), None).await.unwrap();
        assert_eq!(turns.forget().await, 1);
        assert_eq!(turns.read(2).await, [FORGOTTEN, FORGOTTEN, "answer"]);
    }

    #[tokio::test]
    async fn what_was_forgotten_is_not_read_again_and_a_turn_that_lives_is_not_passed_over() {
        let turns = Turns::new();
        let up_to = async || erased_up_to(&turns.journal).await.unwrap();
        turns.begin(1, 1, 0).await.finish(answered(), None).await.unwrap();
        assert_eq!((turns.forget().await, up_to().await), (1, 2));
        // It lives as long as nobody asks for it: its beginning seemed to fail.
        let mut left = turns.begin(2, 1, 0).await;
        turns.begin(3, 1, 0).await.finish(answered(), None).await.unwrap();
        assert_eq!((turns.forget().await, up_to().await), (1, 2));
        assert_eq!(
            (turns.read(2).await, turns.read(3).await.remove(0)),
            (vec!["prompt of attempt 1".to_owned()], FORGOTTEN.to_owned())
        );
        assert_eq!(turns.forget().await, 0);
        left.finish(answered(), None).await.unwrap();
        assert_eq!((turns.forget().await, up_to().await), (1, 7));
        assert_eq!(turns.read(2).await, [FORGOTTEN, "answer"]);
        assert_eq!(turns.forget().await, 0);
    }
}
