//! Going over a whole file: does it keep what the crate promises of it?

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use crate::links::{Place, Spine, jump_version};
use crate::store::Numbered;
use crate::{Fold, Loaded, ReadError, Reader, Snapshot, StreamId, snapshot, store};

/// How many lines of `SQLite`'s own findings are passed on.
const DAMAGES: u32 = 20;

/// What [`Reader::verify`] has seen.
#[derive(Debug, Default)]
pub struct Verification {
    /// How many events there are.
    pub events: u64,
    /// How many streams they are in.
    pub streams: u64,
    /// How many idempotency keys were used.
    pub keys: u64,
    /// How many texts there are.
    pub texts: u64,
    /// How many texts were erased.
    pub erased: u64,
    /// How many snapshots are kept.
    pub snapshots: u64,
    /// What is not as it should be. Empty when all is well.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Verification {
    /// What there is, a line for each problem, and whether all is well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, streams, keys, texts, erased, snapshots, problems } = self;
        writeln!(
            f,
            "{events} events in {streams} streams, {keys} keys, {texts} texts ({erased} erased), {snapshots} snapshots"
        )?;
        problems.iter().try_for_each(|problem| writeln!(f, "- {problem}"))?;
        f.write_str(if problems.is_empty() { "all is well" } else { "something is wrong" })
    }
}

/// Something in a journal's file that is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// `SQLite` finds the file itself damaged.
    #[error("file is damaged: {0}")]
    Damaged(String),
    /// An event does not read, or does not follow from the one before it in its stream or in the
    /// journal, or a stream does not fold.
    #[error(transparent)]
    Unreadable(ReadError),
    /// A key does not stand for events that are there.
    #[error("key {key:?} stands for positions {first} to {last}, which are no transaction of this journal")]
    Key {
        /// The key.
        key: String,
        /// The first position that it names.
        first: u64,
        /// The last position that it names.
        last: u64,
    },
    /// A stream's row says that it ends where it does not.
    #[error("stream {stream} is said to end at version {said}, its last event has version {found}")]
    WrongEnd {
        /// The stream.
        stream: StreamId,
        /// The version at which it is said to end.
        said: u64,
        /// The version of its last event.
        found: u64,
    },
    /// Events that are of no stream.
    #[error("events that are of no stream: {count}")]
    Stray {
        /// How many there are.
        count: u64,
    },
    /// A stream has no events.
    #[error("stream {stream} has no events")]
    EmptyStream {
        /// The stream.
        stream: StreamId,
    },
    /// A snapshot cannot be used although it is of the present version.
    #[error("snapshot of stream {stream} cannot be used: {reason}")]
    SpoiltSnapshot {
        /// The stream.
        stream: StreamId,
        /// Why not.
        reason: String,
    },
    /// A snapshot is not what the events up to it come to.
    #[error("snapshot of stream {stream} at version {version} differs from the fold of its events")]
    SnapshotDiffers {
        /// The stream.
        stream: StreamId,
        /// The version of the last event in the snapshot.
        version: u64,
    },
}

/// A stream, as far as one has gone over it.
#[derive(Default)]
struct Seen {
    last: Place,
    /// What its next event is linked to.
    spine: Spine,
    /// A version was missing: what it says of links is not looked at any more.
    broken: bool,
}

impl Seen {
    /// Goes on to the next event. Returns what is wrong with its place in the stream.
    fn pass(&mut self, event: &Numbered) -> Vec<ReadError> {
        let Numbered { stream, place, links, .. } = event;
        let (expected, found) = (self.last.version + 1, place.version);
        self.last = *place;
        if found != expected {
            self.broken = true;
            return vec![ReadError::Gap { stream: stream.clone(), expected, found }];
        }
        if self.broken {
            return Vec::new();
        }
        let due = self.spine.next();
        self.spine.grow(place.position);
        let unlinked = |version, position| ReadError::Unlinked { stream: stream.clone(), version, position };
        let before = (links.before != due.before).then(|| unlinked(found - 1, links.before));
        let jump = (links.jump != due.jump).then(|| unlinked(jump_version(found), links.jump));
        before.into_iter().chain(jump).collect()
    }
}

impl Reader {
    /// Goes over the whole file, as of one moment: the file's own structure, positions and versions
    /// without a gap, the links by which a stream's events are found, every column of every event,
    /// keys. What events mean is for [`Reader::verify_fold`].
    ///
    /// # Errors
    /// When the file cannot be read at all; what is wrong with its content is in
    /// [`Verification::problems`].
    pub fn verify(&self) -> Result<Verification, ReadError> {
        let moment = self.connection.unchecked_transaction()?;
        let count = |sql| moment.query_row(sql, (), |row| row.get::<_, u64>(0));
        let mut seen = Verification {
            events: count("SELECT count(*) FROM events")?,
            streams: count("SELECT count(*) FROM streams")?,
            keys: count("SELECT count(*) FROM keys")?,
            texts: count("SELECT count(*) FROM texts WHERE body IS NOT NULL")?,
            erased: count("SELECT count(*) FROM texts WHERE body IS NULL")?,
            snapshots: count("SELECT count(*) FROM snapshots")?,
            problems: Vec::new(),
        };
        let mut check = moment.prepare(&format!("PRAGMA integrity_check({DAMAGES})"))?;
        for damage in check.query_map((), |row| row.get::<_, String>(0))? {
            let damage = damage?;
            if damage != "ok" {
                seen.problems.push(Problem::Damaged(damage));
            }
        }
        drop(check);
        let (mut position, mut visited) = (0, 0);
        let mut streams = HashMap::<StreamId, Seen>::new();
        store::visit_numbered(&moment, |event| {
            let (expected, found) = (position + 1, event.place.position);
            if found != expected {
                seen.problems.push(Problem::Unreadable(ReadError::PositionGap { expected, found }));
            }
            position = found;
            visited += 1;
            let stream = streams.entry(event.stream.clone()).or_default();
            seen.problems.extend(stream.pass(&event).into_iter().chain(event.unreadable).map(Problem::Unreadable));
        })?;
        for (stream, end) in store::ends(&moment)? {
            let Some(Seen { last, .. }) = streams.get(&stream) else {
                seen.problems.push(Problem::EmptyStream { stream });
                continue;
            };
            let (said, found) = (end.last.version, last.version);
            if said != found {
                seen.problems.push(Problem::WrongEnd { stream, said, found });
            } else if end.last.position != last.position {
                let (version, position) = (said, end.last.position);
                seen.problems.push(Problem::Unreadable(ReadError::Unlinked { stream, version, position }));
            }
        }
        if visited < seen.events {
            seen.problems.push(Problem::Stray { count: seen.events - visited });
        }
        let mut keys = moment.prepare(
            "SELECT key, first_position, last_position FROM keys
             WHERE first_position > last_position OR first_position < 1
                OR last_position > (SELECT coalesce(max(position), 0) FROM events)",
        )?;
        for key in keys.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))? {
            let (key, first, last) = key?;
            seen.problems.push(Problem::Key { key, first, last });
        }
        Ok(seen)
    }

    /// Folds every stream of a kind from its beginning.
    ///
    /// # Errors
    /// As [`Reader::verify`].
    pub fn verify_fold<F: Fold>(&self, kind: &str) -> Result<Vec<Problem>, ReadError> {
        let mut problems = Vec::new();
        for stream in self.streams_of(kind)? {
            problems.extend(self.refold::<F>(&stream, |_| {})?);
        }
        Ok(problems)
    }

    /// As [`Reader::verify_fold`], and compares each snapshot of the present [`Snapshot::VERSION`]
    /// with the state at its version.
    ///
    /// # Errors
    /// As [`Reader::verify`].
    pub fn verify_snapshots<F: Snapshot + PartialEq>(&self, kind: &str) -> Result<Vec<Problem>, ReadError> {
        let mut problems = Vec::new();
        for stream in self.streams_of(kind)? {
            let snapshot = snapshot::one(&self.connection, &stream, F::name())?
                .map(|kept| (kept.version, kept.decode::<F>()))
                .and_then(|(version, state)| Some((version, state.transpose()?)));
            let mut differs = false;
            let unfolded = self.refold::<F>(&stream, |loaded| {
                if let Some((version, Ok(state))) = &snapshot
                    && *version == loaded.version
                {
                    differs = *state != loaded.state;
                }
            })?;
            problems.extend(unfolded);
            match snapshot {
                Some((_, Err(spoilt))) => {
                    problems.push(Problem::SpoiltSnapshot { stream, reason: spoilt.to_string() });
                }
                Some((version, Ok(_))) if differs => problems.push(Problem::SnapshotDiffers { stream, version }),
                _ => {}
            }
        }
        Ok(problems)
    }

    fn streams_of(&self, kind: &str) -> Result<Vec<StreamId>, ReadError> {
        let mut streams = self.streams()?;
        streams.retain(|stream| stream.kind == kind);
        Ok(streams)
    }

    /// Folds a stream and shows `each` the state after every event. Returns what kept it from the
    /// end.
    fn refold<F: Fold>(
        &self,
        stream: &StreamId,
        mut each: impl FnMut(&Loaded<F>),
    ) -> Result<Option<Problem>, ReadError> {
        let mut loaded = Loaded::<F>::default();
        let folded = store::visit_stream(&self.connection, stream, 0, |event| {
            loaded.advance(&event)?;
            each(&loaded);
            Ok(ControlFlow::Continue(()))
        });
        match folded {
            Ok(()) => Ok(None),
            Err(error @ ReadError::Storage(_)) => Err(error),
            Err(content) => Ok(Some(Problem::Unreadable(content))),
        }
    }
}
