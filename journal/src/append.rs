//! What an append does inside the writer's transaction.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::Connection;
use uuid::{ContextV7, Uuid};

use crate::heads::{Head, Heads};
use crate::{Append, AppendError, Appended, Recorded, StreamId, store, texts};

/// The transaction that is open, and what its next events are stamped with.
pub(crate) struct Stamped<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) now: Timestamp,
    pub(crate) ids: &'a ContextV7,
    /// As of this transaction; to be cleared when it is rolled back.
    pub(crate) heads: &'a mut Heads,
}

impl Stamped<'_> {
    /// Appends all or nothing. Refuses before it writes anything: an error other than of `SQLite`
    /// leaves the transaction as it was.
    pub(crate) fn append_all(&mut self, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        let connection = self.connection;
        if let Some(first_outcome) = repeated(connection, &appends)? {
            return Ok(first_outcome);
        }
        let places = self.places(&appends)?;
        check_once(connection, &appends)?;
        // From here on nothing is refused any more: what fails now fails the transaction.
        let mut rows = Vec::with_capacity(appends.len());
        let mut keys = Vec::new();
        let mut outcomes = Vec::with_capacity(appends.len());
        for (mut append, Placed { place, version }) in appends.into_iter().zip(places) {
            let row = match place {
                Place::Row(row) => row,
                Place::SameAs(earlier) => rows[earlier],
                Place::New => insert_stream(connection, &append.stream)?,
            };
            rows.push(row);
            keys.extend(append.key.take());
            outcomes.push(self.append_one(append, row, version)?);
        }
        let positions = || outcomes.iter().flat_map(|new| &new.events).map(|event| event.position);
        if let (Some(first), Some(last)) = (positions().min(), positions().max()) {
            let mut insert = connection.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3)")?;
            for key in keys {
                insert.execute((key, first, last))?;
            }
        }
        Ok(outcomes)
    }

    /// Finds each append's place, or refuses.
    fn places(&self, appends: &[Append]) -> Result<Vec<Placed>, AppendError> {
        let mut places: Vec<Placed> = Vec::with_capacity(appends.len());
        for (index, append) in appends.iter().enumerate() {
            let earlier = appends[..index].iter().rposition(|earlier| earlier.stream == append.stream);
            let placed = match earlier {
                Some(earlier) => {
                    let version = places[earlier].version + appends[earlier].events.len() as u64;
                    Placed { place: Place::SameAs(earlier), version }
                }
                None => match self.heads.of(self.connection, &append.stream)? {
                    Some(Head { row, version }) => Placed { place: Place::Row(row), version },
                    None => Placed { place: Place::New, version: 0 },
                },
            };
            if !append.expected.admits(placed.version) {
                let (stream, expected, actual) = (append.stream.clone(), append.expected, placed.version);
                return Err(AppendError::Conflict { stream, expected, actual });
            }
            places.push(placed);
        }
        Ok(places)
    }

    /// Adds events to the stream with this row after its last version.
    fn append_one(&mut self, append: Append, row: i64, version: u64) -> Result<Appended, rusqlite::Error> {
        let Append { stream, events, actor, cause, .. } = append;
        // What is handed back is what a reader will find.
        let time_us = self.now.as_microsecond();
        let time = Timestamp::from_microsecond(time_us).map_err(unstorable)?;
        let (actor_text, cause_text) = (json(&actor)?, json(&cause)?);
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO events (stream, version, event_id, time_us, actor, cause, kind, kind_version, skippable, data)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let mut recorded = Vec::with_capacity(events.len());
        for (version, event) in (version + 1..).zip(events) {
            let id = event_id(self.ids, self.now);
            let position = insert.insert((
                row,
                version,
                id.as_bytes(),
                time_us,
                &actor_text,
                &cause_text,
                &event.kind,
                event.kind_version,
                event.skippable,
                event.data.get(),
            ))?;
            for (id, body) in &event.texts {
                texts::insert(self.connection, *id, time_us, body)?;
            }
            recorded.push(Recorded {
                stream: stream.clone(),
                version,
                position: position.unsigned_abs(),
                id,
                time,
                actor: actor.clone(),
                cause: cause.clone(),
                kind: event.kind,
                kind_version: event.kind_version,
                skippable: event.skippable,
                data: event.data,
            });
        }
        self.heads.advance(stream, Head { row, version: version + recorded.len() as u64 });
        Ok(Appended::new(recorded, false))
    }
}

/// The first outcome, if one of the keys was used before.
fn repeated(connection: &Connection, appends: &[Append]) -> Result<Option<Vec<Appended>>, AppendError> {
    for append in appends {
        let Some(key) = &append.key else { continue };
        let Some(stored) = store::events_of_key(connection, key)? else { continue };
        let first = stored.first().map_or(0, |event| event.position);
        return match split_as(appends, stored) {
            Some(outcomes) => Ok(Some(outcomes)),
            None => Err(AppendError::KeyReused { key: key.clone(), stream: append.stream.clone(), position: first }),
        };
    }
    Ok(None)
}

/// The outcomes of `appends`, if `stored` are their events.
fn split_as(appends: &[Append], stored: Vec<Recorded>) -> Option<Vec<Appended>> {
    let asked = || appends.iter().flat_map(|append| append.events.iter().map(|event| (&append.stream, event)));
    let same = asked().count() == stored.len()
        && asked().zip(&stored).all(|((stream, new), old)| *stream == old.stream && new.is(old));
    if !same {
        return None;
    }
    let mut stored = stored.into_iter();
    let mut take = |count| Appended::new(stored.by_ref().take(count).collect(), true);
    Some(appends.iter().map(|append| take(append.events.len())).collect())
}

/// Where an append goes.
struct Placed {
    place: Place,
    /// The version of its stream before it.
    version: u64,
}

enum Place {
    /// To a stream that exists.
    Row(i64),
    /// To the stream of an earlier append of the same request.
    SameAs(usize),
    /// To a stream that it makes.
    New,
}

/// Refuses a key that stands twice in one request, and a text whose id is not new.
fn check_once(connection: &Connection, appends: &[Append]) -> Result<(), AppendError> {
    let (mut keys, mut ids) = (HashSet::new(), HashSet::new());
    for append in appends {
        if let Some(key) = append.key.as_deref()
            && !keys.insert(key)
        {
            let (key, stream) = (key.to_owned(), append.stream.clone());
            return Err(AppendError::KeyReused { key, stream, position: store::position(connection)? + 1 });
        }
        for (id, _) in append.events.iter().flat_map(|event| &event.texts) {
            if !ids.insert(id) || texts::exists(connection, *id)? {
                return Err(AppendError::TextExists { id: *id, stream: append.stream.clone() });
            }
        }
    }
    Ok(())
}

fn insert_stream(connection: &Connection, stream: &StreamId) -> Result<i64, rusqlite::Error> {
    connection.prepare_cached("INSERT INTO streams (kind, id) VALUES (?1, ?2)")?.insert((&stream.kind, &stream.id))
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

fn json(value: &impl serde::Serialize) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(unstorable)
}

fn unstorable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}
