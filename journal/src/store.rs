//! The connections to the file and the statements that read events. The statements that write
//! are the writer's.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, Transaction};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::links::{self, End, Links, Place};
use crate::origin::Unreadable;
use crate::schema::{self, SCHEMA_VERSION};
use crate::{Actor, Cause, OpenError, ReadError, Recorded, StreamId};

/// How long a connection waits for another process, such as a backup, to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// To what the write-ahead log is cut after a checkpoint, in bytes.
const LOG_SIZE_LIMIT: i64 = 64 * 1024 * 1024;

/// How many prepared statements a connection keeps: all that there are.
const STATEMENTS: usize = 32;

/// Opens the one connection that writes. Makes the file when there is none; brings it up to date
/// when it is older, after a backup.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let storage = |source: rusqlite::Error| OpenError::Storage { path: path.to_owned(), source: source.into() };
    create(path).map_err(io)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(storage)?;
    let found = schema::version(&connection, path)?;
    if let Some(found) = found.filter(|found| *found < SCHEMA_VERSION) {
        schema::back_up(&connection, path, found)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(storage)?;
    if mode != "wal" {
        return Err(OpenError::NoWriteAheadLog { path: path.to_owned(), mode });
    }
    if found != Some(SCHEMA_VERSION) {
        schema::migrate(&mut connection, found.unwrap_or(0)).map_err(storage)?;
    }
    configure(&connection).map_err(storage)?;
    // What was erased before a crash may still stand in the log.
    empty_log(&connection, Duration::ZERO).map_err(storage)?;
    Ok(connection)
}

/// Opens a file that another process may own, to read it and nothing else.
pub(crate) fn open_foreign(path: &Path) -> Result<Connection, OpenError> {
    let storage = |source: rusqlite::Error| OpenError::Storage { path: path.to_owned(), source: source.into() };
    let connection = open_reader(path).map_err(storage)?;
    match schema::version(&connection, path)? {
        Some(SCHEMA_VERSION) => Ok(connection),
        Some(found) => Err(OpenError::Older { path: path.to_owned(), found, supported: SCHEMA_VERSION }),
        None => Err(OpenError::NotAJournal { path: path.to_owned() }),
    }
}

/// Moves the log into the file and cuts it to nothing, waiting so long at most for readers that
/// still need it. Returns whether it is empty.
pub(crate) fn empty_log(connection: &Connection, patience: Duration) -> Result<bool, rusqlite::Error> {
    connection.busy_timeout(patience)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(!busy?)
}

/// Opens a connection that cannot write.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Makes the file readable for its owner alone before `SQLite` writes into it; the log beside it
/// takes over the mode. A new name is made durable in its folder.
fn create(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => schema::sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The path is a path: without `SQLITE_OPEN_URI` it is never taken for a URI.
fn connect(path: &Path, access: OpenFlags) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Erased bytes are overwritten with zeros, in pages that stay and in pages that become free.
    connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    // What a statement that is undone half way needs, old pages with texts in them, stays in memory.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE_LIMIT, |_| Ok(()))
}

/// Position of the last event; 0 when there is none.
pub(crate) fn position(connection: &Connection) -> Result<u64, rusqlite::Error> {
    connection.query_row("SELECT coalesce(max(position), 0) FROM events", (), |row| row.get(0))
}

/// Where a stream ends, if it exists.
pub(crate) fn end(connection: &Connection, stream: &StreamId) -> Result<Option<End>, rusqlite::Error> {
    connection.prepare_cached(STREAM_END)?.query_row((&stream.kind, &stream.id), |row| end_from(row, 0)).optional()
}

const STREAM_END: &str = "SELECT stream, version, last FROM streams WHERE kind = ?1 AND id = ?2";

/// A stream's end from the columns stream, version and last, of which the first has this index.
pub(crate) fn end_from(row: &Row<'_>, first: usize) -> Result<End, rusqlite::Error> {
    let last = Place { version: version_of(row, first + 1)?, position: position_of(row, first + 2)? };
    Ok(End { row: row.get(first)?, last })
}

/// A version. One that cannot be is one that is never reached, so that its event is missed and not the whole file.
pub(crate) fn version_of(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(i64::MAX.unsigned_abs()))
}

/// A position. One that cannot be is none.
pub(crate) fn position_of(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// The columns of an event, the first of a row, and of what tells its stream, the last.
macro_rules! select_events {
    ($stream:literal FROM $tables:literal $which:literal) => {
        concat!(
            "SELECT e.version, e.position, e.event_id, e.time_us, e.actor, e.cause, e.kind, e.kind_version,
                    e.skippable, e.data, e.before, e.jump, ",
            $stream,
            " FROM ",
            $tables,
            $which
        )
    };
    ($which:literal) => {
        select_events!("s.kind, s.id" FROM "streams s JOIN events e ON e.stream = s.stream " $which)
    };
}

const ONE_EVENT: &str = select_events!("e.stream" FROM "events e " "WHERE e.position = ?1");

/// The `+` keeps `SQLite` from going through the streams of the kind: there may be many, and little that is new.
const LAST_EVENTS_AFTER: &str =
    select_events!("WHERE e.position > ?2 AND +s.kind = ?1 AND +s.last = e.position ORDER BY e.position");

const ALL_EVENTS: &str = select_events!("WHERE e.position > ?1 ORDER BY e.position");

/// A transaction to read in, unless there is one: each statement outside of it would lock the file anew.
fn moment(connection: &Connection) -> Result<Option<Transaction<'_>>, rusqlite::Error> {
    connection.is_autocommit().then(|| connection.unchecked_transaction()).transpose()
}

/// Of so many events the positions are looked up before they are read.
const STRIDE: u64 = 256;

/// Shows `visit` the events of one stream after a version, in order, until it breaks off.
pub(crate) fn visit_stream(
    connection: &Connection,
    stream: &StreamId,
    after_version: u64,
    visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let Some(end) = end(connection, stream)? else { return Ok(()) };
    visit_until(connection, stream, end, after_version, visit)
}

/// As [`visit_stream`], for a stream whose end is known.
pub(crate) fn visit_until(
    connection: &Connection,
    stream: &StreamId,
    end: End,
    after_version: u64,
    mut visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let _moment = moment(connection)?;
    let mut version = after_version;
    while version < end.last.version {
        let stride = (version + 1, end.last.version.min(version + STRIDE));
        let mut statement = connection.prepare_cached(ONE_EVENT)?;
        for position in links::positions(connection, stream, end, stride)? {
            version += 1;
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(12)?, recorded(row, stream.clone())));
            let Some((row, event)) = statement.query_row((position,), read).optional()? else {
                return Err(ReadError::Unlinked { stream: stream.clone(), version, position });
            };
            let event = event?;
            if (row, event.version) != (end.row, version) {
                return Err(ReadError::Unlinked { stream: stream.clone(), version, position });
            }
            if visit(event)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The last event of each stream of a kind, sorted by the streams' ids.
pub(crate) fn last_events(connection: &Connection, kind: &str) -> Result<Vec<Recorded>, ReadError> {
    let _moment = moment(connection)?;
    let mut events = Vec::new();
    for (stream, end) in ends_of(connection, kind)? {
        visit_until(connection, &stream, end, end.last.version.saturating_sub(1), |event| {
            events.push(event);
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(events)
}

/// The last event of each stream of a kind that has one after a position, in order.
pub(crate) fn last_events_after(
    connection: &Connection,
    kind: &str,
    after_position: u64,
) -> Result<Vec<Recorded>, ReadError> {
    let after_position = i64::try_from(after_position).unwrap_or(i64::MAX);
    gather(connection, LAST_EVENTS_AFTER, (kind, after_position))
}

/// Shows `visit` the events of all streams after a position, in order, until it breaks off.
pub(crate) fn visit_all(
    connection: &Connection,
    after_position: u64,
    visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let after_position = i64::try_from(after_position).unwrap_or(i64::MAX);
    visit_events(connection, ALL_EVENTS, (after_position,), visit)
}

/// The events of a transaction, by their positions.
pub(crate) fn events_between(
    connection: &Connection,
    first_position: u64,
    last_position: u64,
) -> Result<Vec<Recorded>, ReadError> {
    let sql = select_events!("WHERE e.position BETWEEN ?1 AND ?2 ORDER BY e.position");
    gather(connection, sql, (first_position, last_position))
}

/// The events of the transaction that a key was used in, if it was.
pub(crate) fn events_of_key(connection: &Connection, key: &str) -> Result<Option<Vec<Recorded>>, ReadError> {
    let used: Option<(u64, u64)> = connection
        .prepare_cached("SELECT first_position, last_position FROM keys WHERE key = ?1")?
        .query_row((key,), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    used.map(|(first, last)| events_between(connection, first, last)).transpose()
}

fn gather(connection: &Connection, sql: &str, params: impl Params) -> Result<Vec<Recorded>, ReadError> {
    let mut events = Vec::new();
    visit_events(connection, sql, params, |event| {
        events.push(event);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(events)
}

fn visit_events(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    mut visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        if visit(recorded(row, stream_of(row)?)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// An event's place among the others, as it stands in the file.
pub(crate) struct Numbered {
    pub(crate) stream: StreamId,
    pub(crate) place: Place,
    pub(crate) links: Links,
    /// What is wrong with its other columns.
    pub(crate) unreadable: Option<ReadError>,
}

/// Shows `visit` every event there is, in order.
pub(crate) fn visit_numbered(connection: &Connection, mut visit: impl FnMut(Numbered)) -> Result<(), rusqlite::Error> {
    let mut statement = connection.prepare(select_events!("ORDER BY e.position"))?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let stream = stream_of(row)?;
        visit(Numbered {
            place: Place { version: version_of(row, 0)?, position: position_of(row, 1)? },
            links: Links { before: position_of(row, 10)?, jump: position_of(row, 11)? },
            unreadable: recorded(row, stream.clone()).err(),
            stream,
        });
    }
    Ok(())
}

/// All streams, sorted by kind and id.
pub(crate) fn streams(connection: &Connection) -> Result<Vec<StreamId>, rusqlite::Error> {
    Ok(ends(connection)?.into_iter().map(|(stream, _)| stream).collect())
}

/// All streams and where they end, sorted by kind and id.
pub(crate) fn ends(connection: &Connection) -> Result<Vec<(StreamId, End)>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT kind, id, stream, version, last FROM streams ORDER BY kind, id")?;
    let ends = statement.query_map((), |row| {
        let stream = StreamId { kind: row.get(0)?, id: row.get(1)? };
        Ok((stream, end_from(row, 2)?))
    })?;
    ends.collect()
}

const ENDS_OF: &str = "SELECT id, stream, version, last FROM streams WHERE kind = ?1 ORDER BY id";

/// The streams of a kind and where they end, sorted by their ids.
pub(crate) fn ends_of(connection: &Connection, kind: &str) -> Result<Vec<(StreamId, End)>, rusqlite::Error> {
    let mut statement = connection.prepare_cached(ENDS_OF)?;
    let ends = statement.query_map((kind,), |row| {
        let stream = StreamId { kind: kind.to_owned().into(), id: row.get(0)? };
        Ok((stream, end_from(row, 1)?))
    })?;
    ends.collect()
}

/// The stream of an event, from a row of [`select_events`] that tells it by name.
fn stream_of(row: &Row<'_>) -> Result<StreamId, rusqlite::Error> {
    Ok(StreamId { kind: row.get(12)?, id: row.get(13)? })
}

/// An event of a stream, from a row of [`select_events`].
fn recorded(row: &Row<'_>, stream: StreamId) -> Result<Recorded, ReadError> {
    let position = row.get(1)?;
    let time = Timestamp::from_microsecond(row.get(3)?).map_err(|error| corrupt(position, "time_us", error))?;
    Ok(Recorded {
        stream,
        version: row.get(0)?,
        position,
        id: Uuid::from_bytes(row.get(2)?),
        time,
        actor: origin(row, position, (4, "actor"), Actor::from_stored)?,
        cause: origin(row, position, (5, "cause"), Cause::from_stored)?,
        kind: row.get(6)?,
        kind_version: row.get(7)?,
        skippable: row.get(8)?,
        data: RawValue::from_string(row.get(9)?).map_err(|error| corrupt(position, "data", error))?,
    })
}

fn origin<T>(
    row: &Row<'_>,
    position: u64,
    (index, column): (usize, &'static str),
    from_stored: impl FnOnce(&str) -> Result<T, Unreadable>,
) -> Result<T, ReadError> {
    let text = row.get_ref(index)?.as_str().map_err(|error| corrupt(position, column, error))?;
    from_stored(text).map_err(|error| corrupt(position, column, error))
}

fn corrupt(position: u64, column: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> ReadError {
    ReadError::Corrupt { position, column, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_waits_for_the_disk_and_a_reader_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let writer = open_writer(&path).unwrap();
        let pragma = |name| writer.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        assert_eq!(pragma("synchronous").unwrap(), 2, "FULL");
        assert_eq!(pragma("foreign_keys").unwrap(), 1);
        assert_eq!(pragma("secure_delete").unwrap(), 1, "ON, not FAST");
        assert_eq!(pragma("temp_store").unwrap(), 2, "MEMORY");
        let mode = writer.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        assert_eq!(mode.unwrap(), "wal");
        let reader = open_reader(&path).unwrap();
        assert_eq!(position(&reader).unwrap(), 0);
        let refused = reader.execute("INSERT INTO streams (kind, id) VALUES ('a', 'b')", ());
        let code = refused.unwrap_err().sqlite_error_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::ReadOnly));
    }

    /// How `SQLite` means to find what a statement asks for.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let (unbound, mut steps) = (statement.parameter_count(), Vec::new());
        (1..=unbound).for_each(|index| statement.raw_bind_parameter(index, 1).unwrap());
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            steps.push(row.get::<_, String>(3).unwrap());
        }
        steps.join("\n")
    }

    #[test]
    fn nothing_is_searched_that_grows_with_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open_writer(&folder.path().join("journal.db")).unwrap();
        let all = [LAST_EVENTS_AFTER, ALL_EVENTS, ONE_EVENT, STREAM_END, ENDS_OF];
        let plans = all.map(|sql| plan(&writer, sql));
        insta::assert_snapshot!(plans.join("\n\n"), @"
        SEARCH e USING INTEGER PRIMARY KEY (rowid>?)
        SEARCH s USING INTEGER PRIMARY KEY (rowid=?)

        SEARCH e USING INTEGER PRIMARY KEY (rowid>?)
        SEARCH s USING INTEGER PRIMARY KEY (rowid=?)

        SEARCH e USING INTEGER PRIMARY KEY (rowid=?)

        SEARCH streams USING INDEX sqlite_autoindex_streams_1 (kind=? AND id=?)

        SEARCH streams USING INDEX sqlite_autoindex_streams_1 (kind=?)
        ");
    }
}
