//! What an append does inside the writer's transaction.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection};
use serde::Serialize;
use uuid::{ContextV7, Uuid};

use crate::heads::Heads;
use crate::{
    Append, AppendError, Appended, Clock, Expected, NewEvent, ReadError, Recorded, StorageError, StreamId, store, texts,
};

/// An append as the writer takes it. The caller makes of it what it can, since there is one writer,
/// and gets back what it made: memory that changes hands is slow to come by and to be rid of.
pub(crate) struct Prepared {
    expected: Expected,
    key: Option<String>,
    /// Of one stream, and never empty. Version, position, id and time are the writer's to give.
    events: Vec<Recorded>,
    texts: Vec<(Uuid, String)>,
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
        Ok(Self { expected, key, events, texts })
    }

    fn stream(&self) -> &StreamId {
        &self.events[0].stream
    }
}

/// The transaction that is open, and what its next events are stamped with.
pub(crate) struct Stamped<'a> {
    pub(crate) connection: &'a Connection,
    clock: &'a dyn Clock,
    ids: &'a ContextV7,
    /// As of this transaction; to be cleared when it is rolled back.
    heads: &'a mut Heads,
    insert_event: CachedStatement<'a>,
    move_end: CachedStatement<'a>,
    /// For JSON, used again and again.
    actor: Vec<u8>,
    cause: Vec<u8>,
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
        Ok(Self { connection, clock, ids, heads, insert_event, move_end, actor: Vec::new(), cause: Vec::new() })
    }

    /// Appends all or nothing. Refuses before it writes anything: an error other than of `SQLite`
    /// leaves the transaction as it was.
    pub(crate) fn append_all(&mut self, appends: Vec<Prepared>) -> Result<Vec<Appended>, AppendError> {
        let connection = self.connection;
        if let Some(first_outcome) = repeated(connection, &appends)? {
            return Ok(first_outcome);
        }
        self.check_versions(&appends)?;
        check_once(connection, &appends)?;
        // From here on nothing is refused any more: what fails now fails the transaction.
        let now = self.clock.now();
        let mut keys = Vec::new();
        let mut outcomes = Vec::with_capacity(appends.len());
        for mut append in appends {
            keys.extend(append.key.take());
            outcomes.push(self.append_one(append, now)?);
        }
        if !keys.is_empty() {
            let positions = || outcomes.iter().flat_map(|new| &new.events).map(|event| event.position);
            let (first, last) = (positions().min(), positions().max());
            let mut insert = connection.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3)")?;
            for key in keys {
                insert.execute((key, first, last))?;
            }
        }
        Ok(outcomes)
    }

    /// Refuses if a stream has another version than expected.
    fn check_versions(&mut self, appends: &[Prepared]) -> Result<(), AppendError> {
        for (index, append) in appends.iter().enumerate() {
            let same = appends[..index].iter().filter(|earlier| earlier.stream() == append.stream());
            let earlier: usize = same.map(|earlier| earlier.events.len()).sum();
            let head = self.heads.of(self.connection, append.stream())?;
            let actual = head.map_or(0, |head| head.spine.last().version) + earlier as u64;
            if !append.expected.admits(actual) {
                let (stream, expected) = (append.stream().clone(), append.expected);
                return Err(AppendError::Conflict { stream, expected, actual });
            }
        }
        Ok(())
    }

    /// Adds events to their stream, after its last one.
    fn append_one(&mut self, append: Prepared, now: Timestamp) -> Result<Appended, StorageError> {
        let head = self.heads.of_new(self.connection, append.stream()).map_err(|error| match error {
            ReadError::Storage(error) => error,
            other => unstorable(other).into(),
        })?;
        // What is handed back is what a reader will find.
        let time_us = now.as_microsecond();
        let time = Timestamp::from_microsecond(time_us).map_err(unstorable)?;
        let mut events = append.events;
        let actor = json(&mut self.actor, &events[0].actor)?;
        let cause = json(&mut self.cause, &events[0].cause)?;
        for event in &mut events {
            let links = head.spine.next();
            event.id = event_id(self.ids, now);
            event.time = time;
            event.version = head.spine.last().version + 1;
            let position = self.insert_event.insert((
                head.row,
                event.version,
                links.before,
                links.jump,
                event.id.as_bytes(),
                time_us,
                actor,
                cause,
                &event.kind,
                event.kind_version,
                event.skippable,
                event.data.get(),
            ))?;
            event.position = position.unsigned_abs();
            head.spine.grow(event.position);
        }
        let last = head.spine.last();
        self.move_end.execute((head.row, last.version, last.position))?;
        for (id, body) in &append.texts {
            texts::insert(self.connection, *id, time_us, body)?;
        }
        Ok(Appended::new(events, false))
    }
}

/// The first outcome, if one of the keys was used before.
fn repeated(connection: &Connection, appends: &[Prepared]) -> Result<Option<Vec<Appended>>, AppendError> {
    for append in appends {
        let Some(key) = &append.key else { continue };
        let Some(stored) = store::events_of_key(connection, key)? else { continue };
        let first = stored.first().map_or(0, |event| event.position);
        return match split_as(appends, stored) {
            Some(outcomes) => Ok(Some(outcomes)),
            None => Err(AppendError::KeyReused { key: key.clone(), stream: append.stream().clone(), position: first }),
        };
    }
    Ok(None)
}

/// The outcomes of `appends`, if `stored` are their events.
fn split_as(appends: &[Prepared], stored: Vec<Recorded>) -> Option<Vec<Appended>> {
    let asked = || appends.iter().flat_map(|append| &append.events);
    if asked().count() != stored.len() || !asked().zip(&stored).all(|(new, old)| new.says_the_same(old)) {
        return None;
    }
    let mut stored = stored.into_iter();
    let mut take = |count| Appended::new(stored.by_ref().take(count).collect(), true);
    Some(appends.iter().map(|append| take(append.events.len())).collect())
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

/// A value as JSON, in a buffer.
fn json<'a>(buffer: &'a mut Vec<u8>, value: &impl Serialize) -> Result<&'a str, rusqlite::Error> {
    buffer.clear();
    serde_json::to_writer(&mut *buffer, value).map_err(unstorable)?;
    str::from_utf8(buffer).map_err(unstorable)
}

fn unstorable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
