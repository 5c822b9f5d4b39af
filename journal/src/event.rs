//! What goes into the journal and what comes out of it, untyped: streams, events, who and why.
//! The meaning of an event's data is the business of [`crate::DomainEvent`].

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The exact address of a stream. There is no other way to name one: no prefix, no pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    /// What sort of thing the stream tells of, such as `project`.
    pub kind: Cow<'static, str>,
    /// Which one, unique within its kind.
    pub id: String,
}

impl StreamId {
    /// The stream of `kind` with the id that `id` displays.
    pub fn new(kind: impl Into<Cow<'static, str>>, id: impl fmt::Display) -> Self {
        Self { kind: kind.into(), id: id.to_string() }
    }
}

/// For people: `kind/id`. Not to be parsed back.
impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}

/// Who made an event happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The gateway on its own account: recovery, timers, reconciliation.
    Gateway,
    /// The machine beneath: the container engine or the operating system.
    System,
    /// A person, by the surface-qualified id, such as `matrix:@ada:example.org`.
    Person(String),
    /// The sled of the project with this id, and so whatever runs in that project's container.
    Sled(String),
}

/// What an event came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Nothing before it: the actor's own doing.
    None,
    /// A command, by the id that its surface or caller gave it.
    Command(String),
    /// An event of a journal, by [`Recorded::id`].
    Event(Uuid),
}

/// The version that a stream must have for an append to take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any version, and a stream that does not exist.
    Any,
    /// The stream must not exist yet. The same as `Version(0)`.
    NoStream,
    /// The stream's last event has exactly this version.
    Version(u64),
}

impl Expected {
    pub(crate) fn admits(self, actual: u64) -> bool {
        match self {
            Self::Any => true,
            Self::NoStream => actual == 0,
            Self::Version(version) => actual == version,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any version"),
            Self::NoStream => f.write_str("no stream"),
            Self::Version(version) => write!(f, "version {version}"),
        }
    }
}

/// An event that is not in the journal yet. Made from a typed one by [`NewEvent::encode`].
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub(crate) kind: Cow<'static, str>,
    pub(crate) kind_version: u32,
    pub(crate) skippable: bool,
    pub(crate) data: Box<RawValue>,
    pub(crate) texts: Vec<(Uuid, String)>,
}

impl NewEvent {
    /// Its kind, `noun.past_tense`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Stores a text with the event, in the same transaction: words of a person or an agent that
    /// must be erasable. The event's data names the text by `id`, which is new, or the append is
    /// refused ([`crate::AppendError::TextExists`]); the text itself belongs nowhere else, neither in
    /// an event nor in a [`crate::Snapshot`].
    ///
    /// Texts are not part of what an idempotency key stands for: a repeated append stores none.
    #[must_use]
    pub fn with_text(mut self, id: Uuid, body: impl Into<String>) -> Self {
        self.texts.push((id, body.into()));
        self
    }
}

/// Events for one stream, added together or not at all.
#[derive(Clone, Debug)]
pub struct Append {
    /// The stream, which comes into being with its first event.
    pub stream: StreamId,
    /// What the stream's version must be. Not looked at when `key` was used before.
    pub expected: Expected,
    /// At least one event.
    pub events: Vec<NewEvent>,
    /// The idempotency key, unique over the whole journal: start it with what it is for. It names
    /// the transaction that it was used in. The same transaction again (the same streams, kinds
    /// and data, in order) has the first outcome; anything else under that key is an error.
    pub key: Option<String>,
    /// Who made the events happen. A repeat keeps the first actor.
    pub actor: Actor,
    /// What they came from. A repeat keeps the first cause.
    pub cause: Cause,
}

/// What an acknowledged [`Append`] came to.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Version of the first event of this append.
    pub first_version: u64,
    /// Version of the last event of this append: the stream's version at that moment.
    pub last_version: u64,
    /// Position of the last event in the whole journal.
    pub position: u64,
    /// The key had been used before for the same events; nothing was added now.
    pub repeated: bool,
    /// The events as they stand in the journal, to fold ([`crate::Loaded::advance`]) and to name
    /// as a [`Cause`].
    pub events: Vec<Recorded>,
}

impl Appended {
    /// `events` is what one append put into the journal: never empty.
    pub(crate) fn new(events: Vec<Recorded>, repeated: bool) -> Self {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            unreachable!("an append without events is refused before it gets to the writer");
        };
        Self { first_version: first.version, last_version: last.version, position: last.position, repeated, events }
    }
}

/// An event as it stands in the journal.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its stream.
    pub stream: StreamId,
    /// Its number in the stream, contiguous from 1.
    pub version: u64,
    /// Its number in the whole journal, contiguous from 1.
    pub position: u64,
    /// Its own id, a `UUIDv7` made by the journal.
    pub id: Uuid,
    /// When it was appended, by the journal's clock, in whole microseconds.
    pub time: Timestamp,
    /// Who made it happen.
    pub actor: Actor,
    /// What it came from.
    pub cause: Cause,
    /// Its kind, `noun.past_tense`.
    pub kind: Cow<'static, str>,
    /// The version of the kind that its data is written in.
    pub kind_version: u32,
    /// Its writer's word that a fold may pass over it without knowing its kind.
    pub skippable: bool,
    /// Its data as JSON, byte for byte as it was written.
    pub data: Box<RawValue>,
}
