//! What an append does inside the writer's transaction.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection};
use uuid::{ContextV7, Uuid};

use crate::heads::Heads;
use crate::{Append, AppendError, Appended, Clock, Expected, NewEvent, Recorded, StorageError, StreamId, store, texts};

/// An append on its way to the writer and back. The caller makes of it what it can, since there is
/// one writer, and gets back what it made: memory that changes hands is slow to come by and to be
/// rid of.
pub(crate) struct Prepared {
    expected: Expected,
    key: Option<String>,
    /// Of one stream, and never empty. Version, position, id and time are the writer's to give.
    events: Vec<Recorded>,
    texts: Vec<(Uuid, String)>,
    /// The writer found its key and put the events of then in the place of these.
    repeated: bool,
}

impl Prepared {
    /// Refuses an append without events.
    pub(crate) fn new(append: Append) -> Result<Self, AppendError> {
        let Append { stream, expected, events, key, actor, cause } = append;
        if events.is_empty() {
            return Err(AppendError::NoEvents { stream });
        }
        let mut texts = Vec::new();
        let event = |event: NewEvent| {
            texts.extend(event.texts);
            Recorded {
                stream: stream.clone(),
                version: 0,
                position: 0,
                id: Uuid::nil(),
                time: Timestamp::UNIX_EPOCH,
                actor: actor.clone(),
                cause: cause.clone(),
                kind: event.kind,
                kind_version: event.kind_version,
                skippable: event.skippable,
                data: event.data,
            }
        };
        let events = events.into_iter().map(event).collect();
        Ok(Self { expected, key, events, texts, repeated: false })
    }

    fn stream(&self) -> &StreamId {
        &self.events[0].stream
    }

    /// Position of its last event, if the writer has added it.
    pub(crate) fn added(&self) -> Option<u64> {
        self.events.last().filter(|_| !self.repeated).map(|event| event.position)
    }

    /// What it came to, once the writer has given it back.
    pub(crate) fn outcome(self) -> Appended {
        Appended::new(self.events, self.repeated)
    }
}

/// The transaction that is open, and what its next events are stamped with.
pub(crate) struct Stamped<'a> {
    pub(crate) connection: &'a Connection,
    clock: &'a dyn Clock,
    ids: &'a ContextV7,
    /// As of this transaction; to be cleared when it is rolled back.
    heads: &'a mut Heads,
    /// The heads of a request's streams, one for each of its appends.
    found: Vec<usize>,
    insert_event: CachedStatement<'a>,
    move_end: CachedStatement<'a>,
}

impl<'a> Stamped<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        clock: &'a dyn Clock,
        ids: &'a ContextV7,
        heads: &'a mut Heads,
    ) -> Result<Self, rusqlite::Error> {
        let insert_event = connection.prepare_cached(
            "INSERT INTO events
                (stream, version, before, jump, event_id, time_us, actor, cause, kind, kind_version, skippable, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?;
        let move_end = connection.prepare_cached("UPDATE streams SET version = ?2, last = ?3 WHERE stream = ?1")?;
        Ok(Self { connection, clock, ids, heads, found: Vec::new(), insert_event, move_end })
    }

    /// Appends all or nothing. Refuses before it writes anything: an error other than of `SQLite`
    /// leaves the transaction as it was.
    pub(crate) fn append_all(&mut self, appends: &mut [Prepared]) -> Result<(), AppendError> {
        let connection = self.connection;
        if repeated(connection, appends)? {
            return Ok(());
        }
        self.find_heads(appends)?;
        check_once(connection, appends)?;
        // From here on nothing is refused any more: what fails now fails the transaction.
        let now = self.clock.now();
        for (index, append) in appends.iter_mut().enumerate() {
            self.append_one(append, self.found[index], now)?;
        }
        let first = appends.first().and_then(|append| append.events.first()).map(|event| event.position);
        let last = appends.last().and_then(Prepared::added);
        for key in appends.iter().filter_map(|append| append.key.as_ref()) {
            let mut insert = connection.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3)")?;
            insert.execute((key, first, last))?;
        }
        Ok(())
    }

    /// Finds the heads of the appends' streams. Refuses if one has another version than expected.
    fn find_heads(&mut self, appends: &[Prepared]) -> Result<(), AppendError> {
        self.heads.make_room();
        self.found.clear();
        for append in appends {
            let found = self.heads.find(self.connection, append.stream())?;
            let same = self.found.iter().zip(appends).filter(|(earlier, _)| **earlier == found);
            let earlier: usize = same.map(|(_, earlier)| earlier.events.len()).sum();
            let actual = self.heads[found].spine.last().version + earlier as u64;
            if !append.expected.admits(actual) {
                let (stream, expected) = (append.stream().clone(), append.expected);
                return Err(AppendError::Conflict { stream, expected, actual });
            }
            self.found.push(found);
        }
        Ok(())
    }

    /// Adds events to their stream, after its last one.
    fn append_one(&mut self, append: &mut Prepared, head: usize, now: Timestamp) -> Result<(), StorageError> {
        let head = &mut self.heads[head];
        let row = head.row(self.connection, append.stream())?;
        // What is handed back is what a reader will find.
        let time_us = now.as_microsecond();
        let time = Timestamp::from_microsecond(time_us).map_err(unstorable)?;
        let (actor, cause) = (append.events[0].actor.stored(), append.events[0].cause.stored());
        for event in &mut append.events {
            let links = head.spine.next();
            event.id = event_id(self.ids, now);
            event.time = time;
            event.version = head.spine.last().version + 1;
            let position = self.insert_event.insert((
                row,
                event.version,
                links.before,
                links.jump,
                event.id.as_bytes(),
                time_us,
                &actor,
                &cause,
                &event.kind,
                event.kind_version,
                event.skippable,
                event.data.get(),
            ))?;
            event.position = position.unsigned_abs();
            head.spine.grow(event.position);
        }
        let last = head.spine.last();
        self.move_end.execute((row, last.version, last.position))?;
        for (id, body) in &append.texts {
            texts::insert(self.connection, *id, time_us, body)?;
        }
        Ok(())
    }
}

/// Whether one of the keys was used before. If so, the appends get the events of then.
fn repeated(connection: &Connection, appends: &mut [Prepared]) -> Result<bool, AppendError> {
    for append in &*appends {
        let Some(key) = &append.key else { continue };
        let Some(stored) = store::events_of_key(connection, key)? else { continue };
        let asked = || appends.iter().flat_map(|append| &append.events);
        if asked().count() != stored.len() || !asked().zip(&stored).all(|(new, old)| new.says_the_same(old)) {
            let (key, stream) = (key.clone(), append.stream().clone());
            return Err(AppendError::KeyReused {
                key,
                stream,
                position: stored.first().map_or(0, |event| event.position),
            });
        }
        let mut stored = stored.into_iter();
        for append in appends {
            append.events = stored.by_ref().take(append.events.len()).collect();
            append.repeated = true;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Refuses a key that stands twice in one request, and a text whose id is not new.
fn check_once(connection: &Connection, appends: &[Prepared]) -> Result<(), AppendError> {
    let (mut keys, mut ids) = (HashSet::new(), HashSet::new());
    for append in appends {
        if let Some(key) = append.key.as_deref()
            && !keys.insert(key)
        {
            let (key, stream) = (key.to_owned(), append.stream().clone());
            return Err(AppendError::KeyReused { key, stream, position: store::position(connection)? + 1 });
        }
        for (id, _) in &append.texts {
            if !ids.insert(id) || texts::exists(connection, *id)? {
                return Err(AppendError::TextExists { id: *id, stream: append.stream().clone() });
            }
        }
    }
    Ok(())
}

/// Ids of one writer ascend, also within a millisecond. A `UUIDv7` cannot tell of a time before 1970.
fn event_id(ids: &ContextV7, now: Timestamp) -> Uuid {
    let since_1970 = now.max(Timestamp::UNIX_EPOCH);
    Uuid::new_v7(uuid::Timestamp::from_unix(
        ids,
        since_1970.as_second().unsigned_abs(),
        since_1970.subsec_nanosecond().unsigned_abs(),
    ))
}

fn unstorable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
