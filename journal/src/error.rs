//! Everything that can go wrong, by what the caller was doing.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use crate::{Expected, StreamId, UpcastError};

/// An error of `SQLite`. Cheap to clone: all members of a group commit get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct StorageError(Arc<rusqlite::Error>);

impl From<rusqlite::Error> for StorageError {
    fn from(error: rusqlite::Error) -> Self {
        Self(Arc::new(error))
    }
}

/// Why a journal could not be opened. Nothing in an existing file has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A newer version of this program has written the file.
    #[error("journal {path} has schema version {found}, this program reads up to version {supported}", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema version that it has.
        found: i64,
        /// The newest schema version that this program knows.
        supported: i64,
    },
    /// The file is something else.
    #[error("{path} is not a journal", path = path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// The file system cannot hold a write-ahead log.
    #[error("journal {path} cannot use a write-ahead log, SQLite fell back to mode {mode}", path = path.display())]
    NoWriteAheadLog {
        /// The file.
        path: PathBuf,
        /// The journal mode that `SQLite` chose instead.
        mode: String,
    },
    /// The file is older than this program and the program may not change it: it was opened to be
    /// read only. The owner brings it up to date when it opens it.
    #[error("journal {path} has schema version {found}, this program reads version {supported}", path = path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// The schema version that it has.
        found: i64,
        /// The schema version that this program reads.
        supported: i64,
    },
    /// The file is older than this program, and the backup that must precede its migration failed.
    #[error(
        "journal {path} of schema version {found} was not migrated, its backup {backup} could not be made",
        path = path.display(),
        backup = backup.display()
    )]
    Backup {
        /// The file.
        path: PathBuf,
        /// The schema version that it has and keeps.
        found: i64,
        /// Where the backup was to stand.
        backup: PathBuf,
        /// Why it could not be made.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file could not be made or given its mode, or the writer's thread not be started.
    #[error("journal {path} cannot be opened", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// `SQLite` refused the file.
    #[error("journal {path} cannot be opened", path = path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What `SQLite` said.
        source: StorageError,
    },
}

/// Why an append was not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The stream has another version than the caller thought: somebody was faster.
    #[error("stream {stream} is at version {actual}, expected {expected}")]
    Conflict {
        /// The stream.
        stream: StreamId,
        /// What the caller expected.
        expected: Expected,
        /// The version that the stream has; 0 when it does not exist.
        actual: u64,
    },
    /// The idempotency key stands for other events than these.
    #[error("key {key:?} for stream {stream} was used for other events at position {position}")]
    KeyReused {
        /// The key.
        key: String,
        /// The stream of the append that was refused.
        stream: StreamId,
        /// Position of the first event of the transaction that the key stands for.
        position: u64,
    },
    /// A text was given an id that another text has or had.
    #[error("text {id} for stream {stream} exists already or was erased")]
    TextExists {
        /// The text's id.
        id: Uuid,
        /// The stream of the append that was refused.
        stream: StreamId,
    },
    /// An append without events.
    #[error("append to stream {stream} has no events")]
    NoEvents {
        /// The stream.
        stream: StreamId,
    },
    /// An event could not be given its stored form.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// What the idempotency key stands for, or where the stream ends, could not be read back.
    #[error("events that the append builds on cannot be read")]
    Unreadable(#[source] Box<ReadError>),
    /// `SQLite` failed and the transaction was rolled back. When it was the commit itself that
    /// failed, a power cut right after may still leave the events on the disk: repeat with a key.
    #[error("events could not be stored")]
    Storage(#[from] StorageError),
    /// The journal was closed, or its writer ended, before the append was acknowledged.
    #[error("journal is closed")]
    Closed,
}

impl From<rusqlite::Error> for AppendError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error.into())
    }
}

impl From<ReadError> for AppendError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Storage(error) => Self::Storage(error),
            other => Self::Unreadable(Box::new(other)),
        }
    }
}

/// Why events could not be read or folded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A column does not hold what this program writes there.
    #[error("event at position {position} has an unreadable {column}")]
    Corrupt {
        /// The event's position.
        position: u64,
        /// The column's name.
        column: &'static str,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A position is missing between two events.
    #[error("journal goes on at position {found}, expected position {expected}")]
    PositionGap {
        /// The position that should have come.
        expected: u64,
        /// The position that came.
        found: u64,
    },
    /// A version is missing between two events.
    #[error("stream {stream} goes on at version {found}, expected version {expected}")]
    Gap {
        /// The stream.
        stream: StreamId,
        /// The version that should have come.
        expected: u64,
        /// The version that came.
        found: u64,
    },
    /// An event does not stand where the stream's other events, or its row, say.
    #[error("event {version} of stream {stream} does not stand at position {position}, where it is looked for")]
    Unlinked {
        /// The stream.
        stream: StreamId,
        /// The event's version in it.
        version: u64,
        /// Where it was to stand.
        position: u64,
    },
    /// An event of a known kind does not decode.
    #[error("event {version} of stream {stream} does not decode")]
    Decode {
        /// The stream.
        stream: StreamId,
        /// The event's version in it.
        version: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A fold met an event whose kind it does not know and whose writer did not let it be skipped.
    #[error("event {version} of stream {stream} is of unknown kind {kind:?}")]
    UnknownKind {
        /// The stream.
        stream: StreamId,
        /// The event's version in it.
        version: u64,
        /// The kind.
        kind: String,
    },
    /// A fold refused an event.
    #[error("event {version} of stream {stream} does not follow from those before it")]
    Apply {
        /// The stream.
        stream: StreamId,
        /// The event's version in it.
        version: u64,
        /// What the fold said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `SQLite` failed.
    #[error("events could not be read")]
    Storage(#[from] StorageError),
    /// The journal is closed.
    #[error("journal is closed")]
    Closed,
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error.into())
    }
}

/// Why a typed event has no stored form: a mistake in its type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The event does not serialise to JSON.
    #[error("event does not serialise")]
    Json(#[source] serde_json::Error),
    /// The event is not adjacently tagged with `kind` and `data`.
    #[error("event is not tagged with kind and data")]
    NotTagged(#[source] serde_json::Error),
    /// The event's kind is missing from its type's list.
    #[error("kind {kind:?} is not in its type's list of kinds")]
    UnlistedKind {
        /// The kind.
        kind: String,
    },
    /// The kind is not of the form `noun.past_tense`.
    #[error("kind {kind:?} is not of the form noun.past_tense")]
    KindName {
        /// The kind.
        kind: String,
    },
}

/// Why a stored event of a known kind is not one of its type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The data is not what the kind promises.
    #[error("data of {kind} version {version} is not of its type")]
    Malformed {
        /// The kind.
        kind: String,
        /// The version that the data was written in.
        version: u32,
        /// What serde said.
        source: serde_json::Error,
    },
    /// A newer version of this program has written the event.
    #[error("{kind} is of version {found}, this program reads up to version {known}")]
    Newer {
        /// The kind.
        kind: String,
        /// The version that the data was written in.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// The data could not be lifted to the next version.
    #[error("data of {kind} cannot be lifted from version {version}")]
    Upcast {
        /// The kind.
        kind: String,
        /// The version from which the step failed.
        version: u32,
        /// What the type said.
        source: UpcastError,
    },
}
