//! Append-only streams of typed events on bundled `SQLite`: the only truth of the process that owns
//! the file. All other state is folded from it.
//!
//! A [`Journal`] is one file with one writer. [`Journal::append`] adds events to a stream under an
//! expected version and returns once they are on the disk; [`Journal::load`] folds a stream into a
//! state; [`Journal::subscribe`] follows one from a cursor. What an event means is the business of
//! the types that implement [`DomainEvent`] and [`Fold`].
//!
//! ```
//! # use std::sync::Arc;
//! # use journal::{Actor, Append, Cause, DomainEvent, Expected, Fold, Journal, NewEvent, Recorded, StreamId, SystemClock};
//! # use serde::{Deserialize, Serialize};
//! #[derive(Serialize, Deserialize)]
//! #[serde(tag = "kind", content = "data")]
//! enum DoorEvent {
//!     #[serde(rename = "door.opened")]
//!     Opened { by: String },
//!     #[serde(rename = "door.closed")]
//!     Closed,
//! }
//!
//! impl DomainEvent for DoorEvent {
//!     const KINDS: &'static [&'static str] = &["door.opened", "door.closed"];
//! }
//!
//! #[derive(Default)]
//! struct Door {
//!     open: bool,
//! }
//!
//! impl Fold for Door {
//!     type Event = DoorEvent;
//!     type Error = std::convert::Infallible;
//!
//!     fn apply(&mut self, event: &DoorEvent, _: &Recorded) -> Result<(), Self::Error> {
//!         self.open = matches!(event, DoorEvent::Opened { .. });
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("journal.db");
//! let journal = Journal::open(&path, Arc::new(SystemClock))?;
//! let front = StreamId::new("door", "front");
//! journal
//!     .append(Append {
//!         stream: front.clone(),
//!         expected: Expected::NoStream,
//!         events: vec![NewEvent::encode(&DoorEvent::Opened { by: "ada".to_owned() })?],
//!         key: None,
//!         actor: Actor::Person("console:ada".to_owned()),
//!         cause: Cause::None,
//!     })
//!     .await?;
//! let door = journal.load::<Door>(&front).await?;
//! assert!(door.state.open);
//! assert_eq!(door.version, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! - An append is acknowledged after its transaction is committed with `synchronous = FULL`, never
//!   before. A failed append fails its caller.
//! - Versions of a stream are contiguous from 1, positions are contiguous over all streams.
//! - An event is never changed or deleted; the file itself refuses it. What must be erasable is not
//!   in an event but in a text beside it ([`NewEvent::with_text`]), that can be erased
//!   ([`Journal::erase`], [`Journal::erase_before`]) and never changed or brought back. No fold
//!   needs a text, so none breaks.
//! - A [`Snapshot`] and the events after it make the state that all events make. One that cannot be
//!   used is passed over; an older one never replaces a newer one.
//! - A read never writes: readers have read-only connections.
//! - A stored event of a known kind that does not decode is an error, never a default.
//! - A file of a newer version is refused. One of an older version is brought up to date when its
//!   owner opens it, after a backup beside it (`<file>.backup-v<version>`), or not at all.
//!
//! # Crashes and power cuts
//! What was acknowledged is there after `kill -9` at any instant. It is there after a power cut if
//! the disk keeps what it says it has kept: every commit waits for `fsync` of the log, and the
//! making of the file for that of its folder. What was not acknowledged is there as a whole or not
//! at all; a caller that was not answered does not know which, and repeats with the same key. An
//! erasure is committed like an append. A disk that lies about `fsync`, or that loses what it had,
//! is beyond this: [`Reader::verify`] finds what it can.
//!
//! # What it costs
//! Appends that wait at the same time share one wait for the disk. The log beside the file (`-wal`)
//! is moved into it every 4 MB, and emptied after an erasure, at opening and at closing. An
//! erased text leaves a row of some thirty bytes, without which its neighbours would leave copies.
//!
//! An append changes the end of the table of events and its stream's row, and the tables of keys and
//! texts if it has any. There is no index from
//! streams to events: each event is linked to those before it, and any is found from its stream's
//! end in a logarithmic number of steps. A stream that is read from its beginning costs two searches
//! an event for that, by position.
//!
//! # What it must not do
//! Know any other crate of the workspace or what a stream is about, read the wall clock other than
//! through its [`Clock`], look streams up by a pattern, or keep state of its own that is not in the
//! file. One process owns a file: a second writer would be safe, but subscribers hear of the
//! appends of their own process alone. Others look at it through a [`Reader`].

mod append;
mod clock;
mod domain;
mod error;
mod event;
mod fold;
mod group;
mod handle;
mod heads;
mod links;
mod origin;
mod reader;
mod readers;
mod schema;
mod snapshot;
mod store;
mod subscribe;
mod tagged;
mod texts;
mod verify;
mod writer;

pub use clock::{Clock, SystemClock};
pub use domain::{Decoded, DomainEvent, UpcastError};
pub use error::{AppendError, DecodeError, EncodeError, OpenError, ReadError, StorageError};
pub use event::{Actor, Append, Appended, Cause, Expected, NewEvent, Recorded, StreamId};
pub use fold::{Fold, Loaded};
pub use handle::Journal;
pub use reader::Reader;
pub use snapshot::Snapshot;
pub use verify::{Problem, Verification};
