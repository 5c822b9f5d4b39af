//! The file: its schema, the connections to it, and the statements that read it.
//! The statements that write it are the writer's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{OpenError, ReadError, Recorded, StreamId};

/// "Musj", in the file's header: that the file is one of ours.
const APPLICATION_ID: i64 = 0x4d75_736a;

/// The version of [`SCHEMA`], in the file's header.
const SCHEMA_VERSION: i64 = 1;

/// How long a connection waits for another process, such as a backup, to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// To what the write-ahead log is cut after a checkpoint, in bytes.
const LOG_SIZE_LIMIT: i64 = 64 * 1024 * 1024;

const SCHEMA: &str = "
    CREATE TABLE streams (
        stream INTEGER PRIMARY KEY,
        kind   TEXT NOT NULL,
        id     TEXT NOT NULL,
        UNIQUE (kind, id)
    ) STRICT;

    CREATE TABLE events (
        position     INTEGER PRIMARY KEY,
        stream       INTEGER NOT NULL REFERENCES streams,
        version      INTEGER NOT NULL,
        event_id     BLOB NOT NULL,
        time_us      INTEGER NOT NULL, -- microseconds since 1970
        actor        TEXT NOT NULL,    -- JSON
        cause        TEXT NOT NULL,    -- JSON
        kind         TEXT NOT NULL,
        kind_version INTEGER NOT NULL,
        skippable    INTEGER NOT NULL,
        data         TEXT NOT NULL,    -- JSON, byte for byte
        UNIQUE (stream, version)
    ) STRICT;

    CREATE TRIGGER events_stay BEFORE DELETE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
    CREATE TRIGGER events_stand BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;

    -- The transaction that a key was used in, by the positions of its events.
    CREATE TABLE keys (
        key            TEXT PRIMARY KEY,
        first_position INTEGER NOT NULL REFERENCES events,
        last_position  INTEGER NOT NULL REFERENCES events
    ) STRICT, WITHOUT ROWID;
";

/// Opens the one connection that writes. Makes the file when there is none.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let storage = |source: rusqlite::Error| OpenError::Storage { path: path.to_owned(), source: source.into() };
    create(path).map_err(io)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(storage)?;
    let empty = is_empty(&connection).map_err(storage)?;
    if !empty {
        check_identity(&connection, path, storage)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(storage)?;
    if mode != "wal" {
        return Err(OpenError::NoWriteAheadLog { path: path.to_owned(), mode });
    }
    configure(&mut connection, empty).map_err(storage)?;
    Ok(connection)
}

/// Opens a connection that cannot write.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Makes the file readable for its owner alone before `SQLite` writes into it; the log beside it
/// takes over the mode. A new name is made durable in its folder.
fn create(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The path is a path: without `SQLITE_OPEN_URI` it is never taken for a URI.
fn connect(path: &Path, access: OpenFlags) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn is_empty(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", (), |row| row.get(0))
}

/// Refuses what is not ours and what is newer, before anything in the file is touched.
fn check_identity(
    connection: &Connection,
    path: &Path,
    storage: impl Fn(rusqlite::Error) -> OpenError,
) -> Result<(), OpenError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if pragma("application_id").map_err(&storage)? != APPLICATION_ID {
        return Err(OpenError::NotAJournal { path: path.to_owned() });
    }
    let found = pragma("user_version").map_err(&storage)?;
    if found > SCHEMA_VERSION {
        let (path, supported) = (path.to_owned(), SCHEMA_VERSION);
        return Err(OpenError::Newer { path, found, supported });
    }
    Ok(())
}

fn configure(connection: &mut Connection, empty: bool) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE_LIMIT, |_| Ok(()))?;
    if empty {
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Position of the last event; 0 when there is none.
pub(crate) fn position(connection: &Connection) -> Result<u64, rusqlite::Error> {
    connection.query_row("SELECT coalesce(max(position), 0) FROM events", (), |row| row.get(0))
}

/// The stream's row, if it exists, and its version.
pub(crate) fn head(connection: &Connection, stream: &StreamId) -> Result<Option<(i64, u64)>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT stream, (SELECT coalesce(max(version), 0) FROM events e WHERE e.stream = s.stream)
             FROM streams s WHERE kind = ?1 AND id = ?2",
        )?
        .query_row((&stream.kind, &stream.id), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

macro_rules! select_events {
    ($which:literal) => {
        concat!(
            "SELECT s.kind, s.id, e.version, e.position, e.event_id, e.time_us, e.actor, e.cause,
                    e.kind, e.kind_version, e.skippable, e.data
             FROM streams s JOIN events e ON e.stream = s.stream ",
            $which
        )
    };
}

/// Shows `visit` the events of one stream after a version, in order, until it breaks off.
pub(crate) fn visit_stream(
    connection: &Connection,
    stream: &StreamId,
    after_version: u64,
    visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    // No event has a version beyond what SQLite can hold.
    let after_version = i64::try_from(after_version).unwrap_or(i64::MAX);
    let sql = select_events!("WHERE s.kind = ?1 AND s.id = ?2 AND e.version > ?3 ORDER BY e.version");
    visit_events(connection, sql, (&stream.kind, &stream.id, after_version), visit)
}

/// Shows `visit` the events of all streams of a kind: by the stream's id, then in order.
pub(crate) fn visit_kind(
    connection: &Connection,
    kind: &str,
    visit: impl FnMut(Recorded) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    visit_events(connection, select_events!("WHERE s.kind = ?1 ORDER BY s.id, e.version"), (kind,), visit)
}

/// The events of a transaction, by their positions.
pub(crate) fn events_between(
    connection: &Connection,
    first_position: u64,
    last_position: u64,
) -> Result<Vec<Recorded>, ReadError> {
    let mut events = Vec::new();
    let sql = select_events!("WHERE e.position BETWEEN ?1 AND ?2 ORDER BY e.position");
    visit_events(connection, sql, (first_position, last_position), |event| {
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
        if visit(recorded(row)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// An event from a row of [`select_events`].
fn recorded(row: &Row<'_>) -> Result<Recorded, ReadError> {
    let position = row.get("position")?;
    let time = Timestamp::from_microsecond(row.get("time_us")?).map_err(|error| corrupt(position, "time_us", error))?;
    Ok(Recorded {
        stream: StreamId { kind: row.get(0)?, id: row.get(1)? },
        version: row.get("version")?,
        position,
        id: Uuid::from_bytes(row.get("event_id")?),
        time,
        actor: json(row, position, "actor")?,
        cause: json(row, position, "cause")?,
        kind: row.get(8)?,
        kind_version: row.get("kind_version")?,
        skippable: row.get("skippable")?,
        data: RawValue::from_string(row.get("data")?).map_err(|error| corrupt(position, "data", error))?,
    })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, position: u64, column: &'static str) -> Result<T, ReadError> {
    serde_json::from_str(row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?)
        .map_err(|error| corrupt(position, column, error))
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
        let mode = writer.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        assert_eq!(mode.unwrap(), "wal");
        let reader = open_reader(&path).unwrap();
        assert_eq!(position(&reader).unwrap(), 0);
        let refused = reader.execute("INSERT INTO streams (kind, id) VALUES ('a', 'b')", ());
        let code = refused.unwrap_err().sqlite_error_code();
        assert_eq!(code, Some(rusqlite::ErrorCode::ReadOnly));
    }
}
