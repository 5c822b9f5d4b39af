//! The one thread that writes. Everything that waits goes into one transaction, each request under
//! a savepoint of its own, and nothing is acknowledged before COMMIT has come back: one wait for
//! the disk serves them all.

use std::sync::Arc;
use std::{io, mem, thread};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::{ContextV7, Uuid};

use crate::{Append, AppendError, Appended, Clock, Recorded, StorageError, StreamId, store};

/// At most so many requests in one transaction.
const GROUP_LIMIT: usize = 256;

/// What one request came to: an outcome for each of its appends, or nothing done.
type Outcome = Result<Vec<Appended>, AppendError>;

pub(crate) enum Message {
    /// Appends that succeed or fail together. None of them is without events.
    Append { appends: Vec<Append>, reply: oneshot::Sender<Outcome> },
    /// Take no more; what is already waiting is still written.
    Close,
}

/// Dropped field by field: when `position` goes, and with it its receivers learn of the end, the
/// file is closed.
pub(crate) struct Writer {
    connection: Connection,
    clock: Arc<dyn Clock>,
    ids: ContextV7,
    position: watch::Sender<u64>,
}

impl Writer {
    pub(crate) fn new(connection: Connection, clock: Arc<dyn Clock>, position: watch::Sender<u64>) -> Self {
        Self { connection, clock, ids: ContextV7::new(), position }
    }

    pub(crate) fn spawn(self, messages: mpsc::Receiver<Message>) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name("journal".to_owned()).spawn(move || self.run(messages))
    }

    fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut group = Vec::new();
        let mut replies = Vec::new();
        while let Some(first) = messages.blocking_recv() {
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Append { appends, reply } => {
                        group.push(appends);
                        replies.push(reply);
                    }
                    Message::Close => messages.close(),
                }
                next = if group.len() < GROUP_LIMIT { messages.try_recv().ok() } else { None };
            }
            let outcomes = self.commit(mem::take(&mut group));
            for (reply, outcome) in replies.drain(..).zip(outcomes) {
                // A caller that no longer waits has given up hearing of it, nothing else.
                drop(reply.send(outcome));
            }
        }
    }

    /// Writes a group and wakes the subscribers. There is an outcome for each request, in order.
    fn commit(&mut self, group: Vec<Vec<Append>>) -> Vec<Outcome> {
        if group.is_empty() {
            return Vec::new();
        }
        let requests = group.len();
        match self.write(group) {
            Ok(outcomes) => {
                let appended = outcomes.iter().flatten().flatten().filter(|new| !new.repeated);
                if let Some(position) = appended.map(|new| new.position).max() {
                    self.position.send_replace(position);
                }
                outcomes
            }
            Err(error) => {
                tracing::error!(%error, requests, "appends failed and were rolled back");
                (0..requests).map(|_| Err(AppendError::Storage(error.clone()))).collect()
            }
        }
    }

    /// One transaction. A request that is refused leaves the others alone; an error of `SQLite`
    /// fails them all, since it does not always say how much of the transaction it took with it.
    fn write(&mut self, group: Vec<Vec<Append>>) -> Result<Vec<Outcome>, StorageError> {
        let mut outcomes = Vec::with_capacity(group.len());
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for appends in group {
            let savepoint = transaction.savepoint()?;
            let outcome = append_all(&savepoint, appends, self.clock.now(), &self.ids);
            match outcome {
                Ok(_) => savepoint.commit()?,
                Err(AppendError::Storage(error)) => return Err(error),
                Err(_) => savepoint.finish()?,
            }
            outcomes.push(outcome);
        }
        transaction.commit()?;
        Ok(outcomes)
    }
}

fn append_all(connection: &Connection, appends: Vec<Append>, now: Timestamp, ids: &ContextV7) -> Outcome {
    if let Some(first_outcome) = repeated(connection, &appends)? {
        return Ok(first_outcome);
    }
    let mut keys = Vec::new();
    let mut outcomes = Vec::with_capacity(appends.len());
    for mut append in appends {
        if let Some(key) = append.key.take() {
            keys.push((key, append.stream.clone()));
        }
        outcomes.push(append_one(connection, append, now, ids)?);
    }
    let positions = || outcomes.iter().flat_map(|new| &new.events).map(|event| event.position);
    let (Some(first), Some(last)) = (positions().min(), positions().max()) else {
        return Ok(outcomes);
    };
    let mut insert = connection.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?;
    for (key, stream) in keys {
        // No key of these was there before: it stands twice in this very request.
        if insert.execute((&key, first, last))? == 0 {
            return Err(AppendError::KeyReused { key, stream, position: first });
        }
    }
    Ok(outcomes)
}

/// The first outcome, if one of the keys was used before.
fn repeated(connection: &Connection, appends: &[Append]) -> Result<Option<Vec<Appended>>, AppendError> {
    for append in appends {
        let Some(key) = &append.key else { continue };
        let used: Option<(u64, u64)> = connection
            .prepare_cached("SELECT first_position, last_position FROM keys WHERE key = ?1")?
            .query_row((key,), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((first, last)) = used else { continue };
        let stored = store::events_between(connection, first, last)?;
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

fn append_one(
    connection: &Connection,
    append: Append,
    now: Timestamp,
    ids: &ContextV7,
) -> Result<Appended, AppendError> {
    let Append { stream, expected, events, key: _, actor, cause } = append;
    let head = store::head(connection, &stream)?;
    let actual = head.map_or(0, |(_, version)| version);
    if !expected.admits(actual) {
        return Err(AppendError::Conflict { stream, expected, actual });
    }
    let row = match head {
        Some((row, _)) => row,
        None => insert_stream(connection, &stream)?,
    };
    // What is handed back is what a reader will find.
    let time_us = now.as_microsecond();
    let time = Timestamp::from_microsecond(time_us).map_err(unstorable)?;
    let (actor_text, cause_text) = (json(&actor)?, json(&cause)?);
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (stream, version, event_id, time_us, actor, cause, kind, kind_version, skippable, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    let mut recorded = Vec::with_capacity(events.len());
    for (version, event) in (actual + 1..).zip(events) {
        let id = event_id(ids, now);
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
    Ok(Appended::new(recorded, false))
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

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use tempfile::TempDir;

    use super::*;
    use crate::{Actor, Cause, Expected, NewEvent};

    fn writer() -> (TempDir, Writer, watch::Receiver<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let connection = store::open_writer(&folder.path().join("journal.db")).unwrap();
        let (committed, position) = watch::channel(0);
        let writer = Writer::new(connection, Arc::new(Timestamp::UNIX_EPOCH), committed);
        (folder, writer, position)
    }

    fn one(stream: &str, expected: Expected, key: Option<&str>, data: &str) -> Vec<Append> {
        let data = RawValue::from_string(data.to_owned()).unwrap();
        vec![Append {
            stream: StreamId::new("s", stream),
            expected,
            events: vec![NewEvent::raw("thing.happened", 1, false, data).unwrap()],
            key: key.map(str::to_owned),
            actor: Actor::System,
            cause: Cause::None,
        }]
    }

    #[test]
    fn one_request_that_is_refused_leaves_its_group_alone() {
        let (_folder, mut writer, position) = writer();
        let mut half_refused = one("d", Expected::Any, Some("free"), "4");
        half_refused.extend(one("a", Expected::NoStream, None, "4"));
        let outcomes = writer.commit(vec![
            one("a", Expected::NoStream, None, "1"),
            one("a", Expected::NoStream, None, "2"),
            one("b", Expected::Any, Some("k"), "3"),
            one("b", Expected::Any, Some("k"), "3"),
            one("b", Expected::Any, Some("k"), "9"),
            half_refused,
            one("d", Expected::NoStream, Some("free"), "5"),
            one("a", Expected::Version(1), None, "6"),
        ]);
        let seen: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome.as_deref() {
                Ok([new]) => format!("{} at {} {}", new.last_version, new.position, new.repeated),
                Ok(_) => panic!("one append each"),
                Err(refused) => refused.to_string(),
            })
            .collect();
        insta::assert_snapshot!(seen.join("\n"), @r#"
        1 at 1 false
        stream s/a is at version 1, expected no stream
        1 at 2 false
        1 at 2 true
        key "k" for stream s/b was used for other events at position 2
        stream s/a is at version 1, expected no stream
        1 at 3 false
        2 at 4 false
        "#);
        assert_eq!(*position.borrow(), 4);
    }

    #[test]
    fn an_error_in_the_commit_fails_the_whole_group() {
        let (_folder, mut writer, position) = writer();
        writer.commit(vec![one("a", Expected::NoStream, None, "1")]);
        // A violation that SQLite looks for at COMMIT and not before.
        writer
            .connection
            .execute_batch(
                "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER spoil AFTER INSERT ON events WHEN NEW.data = '\"bad\"'
                    BEGIN INSERT INTO child VALUES (1); END;",
            )
            .unwrap();
        let outcomes = writer.commit(vec![
            one("b", Expected::NoStream, None, "2"),
            one("b", Expected::NoStream, None, "3"),
            one("c", Expected::NoStream, Some("k"), "\"bad\""),
            one("d", Expected::NoStream, None, "4"),
        ]);
        assert_eq!(outcomes.len(), 4);
        for outcome in outcomes {
            assert!(matches!(outcome, Err(AppendError::Storage(_))));
        }
        assert_eq!((store::position(&writer.connection).unwrap(), *position.borrow()), (1, 1));
        // The writer goes on, and nothing of the failed group is left.
        let outcomes =
            writer.commit(vec![one("c", Expected::NoStream, Some("k"), "5"), one("b", Expected::NoStream, None, "6")]);
        let positions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap()[0].position).collect();
        assert_eq!((positions, *position.borrow()), (vec![2, 3], 3));
    }

    #[test]
    fn a_full_disk_fails_the_whole_group() {
        let (_folder, mut writer, position) = writer();
        let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |writer: &Writer, pages: i64| {
            writer.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        limit(&writer, pages + 4);
        let large = format!("\"{}\"", "x".repeat(100_000));
        let group = || {
            vec![
                one("a", Expected::NoStream, None, "1"),
                one("b", Expected::NoStream, None, &large),
                one("c", Expected::NoStream, None, "3"),
            ]
        };
        assert!(writer.commit(group()).iter().all(|o| matches!(o, Err(AppendError::Storage(_)))));
        assert_eq!((store::position(&writer.connection).unwrap(), *position.borrow()), (0, 0));
        limit(&writer, 1_000_000);
        assert!(writer.commit(group()).iter().all(Result::is_ok));
        assert_eq!(*position.borrow(), 3);
    }
}
