//! Snapshots: states that are kept so that a long stream need not be folded from its beginning.
//! They save time and nothing else: one that is missing, outdated or spoilt is passed over, and
//! the stream is folded in full.

use std::any;
use std::future::Future;
use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{AppendError, EncodeError, Expected, Fold, Journal, Loaded, ReadError, StreamId, store};

/// A state that can be kept. It must come back from JSON as it went, and it must not hold texts of
/// people or agents, only their ids: what is erased would live on in it.
pub trait Snapshot: Fold + Serialize + DeserializeOwned {
    /// The version of its form and of the meaning of its fold: raise it with every change of
    /// either. A snapshot of another version is not used.
    const VERSION: u32;

    /// What tells the snapshots of this state from those of other states of the same streams. By
    /// default the type's path; a type that is moved loses its snapshots and nothing else.
    fn name() -> &'static str {
        any::type_name::<Self>()
    }
}

impl Journal {
    /// As [`Journal::load`], but from the stream's snapshot on when there is a usable one: events
    /// before it are not read.
    ///
    /// # Errors
    /// As [`Journal::load`], for the events after the snapshot.
    pub async fn load_snapshot<F: Snapshot>(&self, stream: &StreamId) -> Result<Loaded<F>, ReadError> {
        let stream = stream.clone();
        self.run(move |connection| {
            // Snapshot and events as of one moment.
            let _moment = connection.unchecked_transaction()?;
            let kept = one(connection, &stream, F::name())?;
            let (mut loaded, unused) = restore::<F>(&stream, kept);
            unused.log::<F>(&stream.kind);
            store::visit_stream(connection, &stream, loaded.version, |event| {
                loaded.advance(&event)?;
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(loaded)
        })
        .await
    }

    /// As [`Journal::load_all`], but each stream from its snapshot on when there is a usable one.
    ///
    /// # Errors
    /// As [`Journal::load_snapshot`], for any of the streams.
    pub async fn load_all_snapshots<F: Snapshot>(&self, kind: &str) -> Result<Vec<(StreamId, Loaded<F>)>, ReadError> {
        let kind = kind.to_owned();
        self.run(move |connection| {
            let _moment = connection.unchecked_transaction()?;
            let mut outdated = Unused::default();
            let mut statement = connection.prepare_cached(
                "SELECT k.fold_version, k.version, k.state, k.fold IS NOT NULL,
                        k.version BETWEEN 1 AND s.version, s.id, s.stream, s.version, s.last
                 FROM streams s LEFT JOIN snapshots k ON k.stream = s.stream AND k.fold = ?2
                 WHERE s.kind = ?1 ORDER BY s.id",
            )?;
            let mut rows = statement.query((&kind, F::name()))?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                let stream = StreamId { kind: kind.clone().into(), id: row.get(5)? };
                let kept = if row.get(3)? { Some(Kept::from_row(row)?) } else { None };
                let (mut loaded, unused) = restore::<F>(&stream, kept);
                outdated.count += unused.count;
                let end = store::end_from(row, 6)?;
                store::visit_until(connection, &stream, end, loaded.version, |event| {
                    loaded.advance(&event)?;
                    Ok(ControlFlow::Continue(()))
                })?;
                all.push((stream, loaded));
            }
            outdated.log::<F>(&kind);
            Ok(all)
        })
        .await
    }

    /// Keeps a state as the stream's snapshot. One of a later event, or of a newer
    /// [`Snapshot::VERSION`], that is there already stays; a state without events is not kept.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the stream has not got as far as the state,
    /// [`AppendError::Encode`] when the state does not serialise; otherwise as [`Journal::append`].
    pub fn snapshot<F: Snapshot>(
        &self,
        stream: &StreamId,
        loaded: &Loaded<F>,
    ) -> impl Future<Output = Result<(), AppendError>> + Send + use<F> {
        let encoded = serde_json::to_string(&loaded.state).map(|state| Encoded {
            stream: stream.clone(),
            fold: F::name(),
            fold_version: F::VERSION,
            version: loaded.version,
            state,
        });
        let journal = self.clone();
        async move {
            let encoded = encoded.map_err(EncodeError::Json)?;
            if encoded.version == 0 { Ok(()) } else { journal.keep(encoded).await }
        }
    }
}

/// A state in its stored form.
pub(crate) struct Encoded {
    stream: StreamId,
    fold: &'static str,
    fold_version: u32,
    version: u64,
    state: String,
}

/// Puts a snapshot into the file unless one that is there goes before it.
pub(crate) fn keep(connection: &Connection, snapshot: &Encoded) -> Result<(), AppendError> {
    let Encoded { stream, fold, fold_version, version, state } = snapshot;
    let end = store::end(connection, stream)?;
    let Some(end) = end.filter(|end| *version <= end.last.version) else {
        let (stream, expected) = (stream.clone(), Expected::Version(*version));
        return Err(AppendError::Conflict { stream, expected, actual: end.map_or(0, |end| end.last.version) });
    };
    connection
        .prepare_cached(
            "INSERT INTO snapshots (stream, fold, fold_version, version, state) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET fold_version = ?3, version = ?4, state = ?5
             WHERE (fold_version, version) < (?3, ?4)",
        )?
        .execute((end.row, fold, fold_version, version, state))?;
    Ok(())
}

/// A snapshot as it stands in the file.
pub(crate) struct Kept {
    fold_version: u32,
    pub(crate) version: u64,
    state: String,
    /// Its stream has got that far.
    reached: bool,
}

impl Kept {
    fn from_row(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self { fold_version: row.get(0)?, version: row.get(1)?, state: row.get(2)?, reached: row.get(4)? })
    }

    /// The state, `None` when it was written in another version of its type.
    pub(crate) fn decode<F: Snapshot>(&self) -> Result<Option<F>, Spoilt> {
        if self.fold_version != F::VERSION {
            return Ok(None);
        }
        if !self.reached {
            return Err(Spoilt::Ahead { version: self.version });
        }
        Ok(Some(serde_json::from_str(&self.state)?))
    }
}

/// Why a snapshot of the right version cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Spoilt {
    #[error("it is of version {version}, which its stream has not got to")]
    Ahead { version: u64 },
    #[error("it does not decode: {0}")]
    Undecodable(#[from] serde_json::Error),
}

pub(crate) fn one(connection: &Connection, stream: &StreamId, fold: &str) -> Result<Option<Kept>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT k.fold_version, k.version, k.state, 1, k.version BETWEEN 1 AND s.version
             FROM streams s JOIN snapshots k ON k.stream = s.stream
             WHERE s.kind = ?1 AND s.id = ?2 AND k.fold = ?3",
        )?
        .query_row((&stream.kind, &stream.id, fold), Kept::from_row)
        .optional()
}

/// Snapshots that were of another version.
#[derive(Default)]
struct Unused {
    count: u64,
}

impl Unused {
    fn log<F: Snapshot>(&self, kind: &str) {
        if self.count > 0 {
            let (fold, count, version) = (F::name(), self.count, F::VERSION);
            tracing::info!(kind, fold, count, version, "snapshots of another version are not used: folding in full");
        }
    }
}

/// The state to go on from: the snapshot's, or the beginning.
fn restore<F: Snapshot>(stream: &StreamId, kept: Option<Kept>) -> (Loaded<F>, Unused) {
    let Some(kept) = kept else { return (Loaded::default(), Unused::default()) };
    match kept.decode() {
        Ok(Some(state)) => (Loaded { state, version: kept.version }, Unused::default()),
        Ok(None) => (Loaded::default(), Unused { count: 1 }),
        Err(spoilt) => {
            tracing::warn!(%stream, fold = F::name(), %spoilt, "a snapshot is not used: folding in full");
            (Loaded::default(), Unused::default())
        }
    }
}
