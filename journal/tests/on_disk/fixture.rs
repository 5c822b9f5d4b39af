//! What the tests write: a counter that is added to, labelled and reset.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal::{
    Actor, Append, Cause, Clock, DomainEvent, Expected, Fold, Journal, NewEvent, Recorded, Snapshot, StreamId,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tempfile::TempDir;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum CounterEvent {
    #[serde(rename = "counter.added")]
    Added { amount: u64 },
    #[serde(rename = "counter.labelled")]
    Labelled(String),
    #[serde(rename = "counter.reset")]
    Reset,
}

impl DomainEvent for CounterEvent {
    const KINDS: &'static [&'static str] = &["counter.added", "counter.labelled", "counter.reset"];
}

/// It also keeps what only the journal knows of an event, to see that a live state has it too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    pub total: u64,
    pub label: Option<String>,
    pub last_event: Option<Uuid>,
}

impl Fold for Counter {
    type Event = CounterEvent;
    type Error = Infallible;

    fn apply(&mut self, event: &CounterEvent, recorded: &Recorded) -> Result<(), Infallible> {
        match event {
            CounterEvent::Added { amount } => self.total += amount,
            CounterEvent::Labelled(label) => self.label = Some(label.clone()),
            CounterEvent::Reset => self.total = 0,
        }
        self.last_event = Some(recorded.id);
        Ok(())
    }
}

impl Snapshot for Counter {
    const VERSION: u32 = 3;
}

/// A journal in a folder of its own.
pub struct OnDisk {
    pub folder: TempDir,
    pub journal: Journal,
}

impl OnDisk {
    pub fn new() -> Self {
        Self::with_clock(noon())
    }

    pub fn with_clock(clock: impl Clock + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(clock)).unwrap();
        Self { folder, journal }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("journal.db")
    }

    /// A connection that the journal knows nothing of.
    pub fn stranger(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).unwrap()
    }
}

/// A text that is made of its own id, so that no piece of it goes unnoticed.
pub fn marked(id: Uuid, times: usize) -> String {
    format!("[{id}]").repeat(times)
}

/// The ids of all [`marked`] texts of which a piece is in the file or in its log.
pub fn marks_on_disk(path: &Path) -> BTreeSet<Uuid> {
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let bytes = [fs::read(path).unwrap(), fs::read(log).unwrap_or_default()].concat();
    let pieces = bytes.split(|byte| *byte == b'[').filter_map(|piece| Uuid::try_parse_ascii(piece.get(..36)?).ok());
    pieces.collect()
}

pub fn noon() -> jiff::Timestamp {
    "2026-01-02T12:00:00.123456Z".parse().unwrap()
}

pub fn counter(id: &str) -> StreamId {
    StreamId::new("counter", id)
}

pub fn added(amount: u64) -> CounterEvent {
    CounterEvent::Added { amount }
}

pub fn append(stream: &StreamId, expected: Expected, events: &[CounterEvent]) -> Append {
    append_raw(stream, expected, NewEvent::encode_all(events).unwrap())
}

pub fn append_raw(stream: &StreamId, expected: Expected, events: Vec<NewEvent>) -> Append {
    Append { stream: stream.clone(), expected, events, key: None, actor: Actor::Gateway, cause: Cause::None }
}

pub fn keyed(key: &str, append: Append) -> Append {
    Append { key: Some(key.to_owned()), ..append }
}

/// An event as a program of another version may write it.
pub fn raw(kind: &str, kind_version: u32, skippable: bool, data: &str) -> NewEvent {
    let data = RawValue::from_string(data.to_owned()).unwrap();
    NewEvent::raw(kind.to_owned(), kind_version, skippable, data).unwrap()
}

pub fn versions(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.version).collect()
}
