//! The file's tables and how they came to be: making them, telling whose file it is, and bringing
//! an older one up to date. A migration runs only after a backup that `SQLite` itself has made.

use std::collections::HashMap;
use std::ffi::{OsString, c_int};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{error, io};

use rusqlite::backup::Backup;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use serde::Deserialize;

use crate::OpenError;
use crate::links::{Links, Place, Spine};

/// "Musj", in the file's header: that the file is one of ours.
const APPLICATION_ID: i64 = 0x4d75_736a;

/// The version that the last of [`VERSIONS`] makes, in the file's header.
#[expect(clippy::cast_possible_wrap, reason = "there are few")]
pub(crate) const SCHEMA_VERSION: i64 = VERSIONS.len() as i64;

/// A part of what brings a file from one version to the next.
enum Step {
    Statements(&'static str),
    /// Copies all events, linked, into the table that takes the place of theirs.
    LinkEvents,
    /// Puts words in the place of the JSON that actors and causes were.
    WordOrigins,
}

/// What each version of the schema adds to the one before it. A new file runs through them all, an
/// older one through those that it has not seen; a step that was released is never changed.
const VERSIONS: [&[Step]; 4] = [
    &[Step::Statements(
        "
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
    ",
    )],
    &[Step::Statements(
        "
    -- What people and agents said. To erase a text is to empty its row, never to delete it: with
    -- secure_delete a row that is emptied in its place leaves no byte behind, while deleting rows
    -- makes SQLite move their neighbours between pages and forget copies of them there.
    CREATE TABLE texts (
        text    INTEGER PRIMARY KEY,
        id      BLOB NOT NULL UNIQUE,
        time_us INTEGER NOT NULL, -- microseconds since 1970
        body    TEXT              -- NULL once it is erased
    ) STRICT;
    CREATE INDEX texts_by_time ON texts (time_us) WHERE body IS NOT NULL;

    CREATE TRIGGER texts_stay BEFORE DELETE ON texts
        BEGIN SELECT RAISE(ABORT, 'texts are erased, not deleted'); END;
    CREATE TRIGGER texts_stand BEFORE UPDATE ON texts
        WHEN NEW.body IS NOT NULL OR NEW.text IS NOT OLD.text OR NEW.id IS NOT OLD.id
            OR NEW.time_us IS NOT OLD.time_us
        BEGIN SELECT RAISE(ABORT, 'texts are never changed'); END;

    -- States of streams, to be folded on from. Can be thrown away: the events are the truth.
    CREATE TABLE snapshots (
        stream       INTEGER NOT NULL REFERENCES streams,
        fold         TEXT NOT NULL,    -- which state
        fold_version INTEGER NOT NULL, -- in which form
        version      INTEGER NOT NULL, -- of the last event in it
        state        TEXT NOT NULL,    -- JSON
        PRIMARY KEY (stream, fold)
    ) STRICT;
    ",
    )],
    // Events that are linked with each other and need no index from streams to them.
    &[
        Step::Statements(
            "
    ALTER TABLE streams ADD COLUMN version INTEGER NOT NULL DEFAULT 0; -- of the last event
    ALTER TABLE streams ADD COLUMN last    INTEGER NOT NULL DEFAULT 0; -- its position

    CREATE TABLE linked (
        position     INTEGER PRIMARY KEY,
        stream       INTEGER NOT NULL,
        version      INTEGER NOT NULL,
        before       INTEGER NOT NULL, -- position of the stream's event before it, or 0
        jump         INTEGER NOT NULL, -- position of one further before it, or 0
        event_id     BLOB NOT NULL,
        time_us      INTEGER NOT NULL, -- microseconds since 1970
        actor        TEXT NOT NULL,    -- JSON
        cause        TEXT NOT NULL,    -- JSON
        kind         TEXT NOT NULL,
        kind_version INTEGER NOT NULL,
        skippable    INTEGER NOT NULL,
        data         TEXT NOT NULL     -- JSON, byte for byte
    ) STRICT;
    ",
        ),
        Step::LinkEvents,
        Step::Statements(
            "
    DROP TABLE events;
    ALTER TABLE linked RENAME TO events;
    CREATE TRIGGER events_stay BEFORE DELETE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
    CREATE TRIGGER events_stand BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TRIGGER streams_stay BEFORE DELETE ON streams
        BEGIN SELECT RAISE(ABORT, 'streams are never deleted'); END;
    ",
        ),
    ],
    // Actors and causes in words: `{"type":"sled","id":"7"}` is `sled 7`, `{"type":"none"}` is `none`.
    &[
        Step::Statements("DROP TRIGGER events_stand;"),
        Step::WordOrigins,
        Step::Statements(
            "
    CREATE TRIGGER events_stand BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    ",
        ),
    ],
];

/// The schema version of a file that is one of ours; `None` of one that has nothing in it yet.
pub(crate) fn version(connection: &Connection, path: &Path) -> Result<Option<i64>, OpenError> {
    let storage = |source: rusqlite::Error| OpenError::Storage { path: path.to_owned(), source: source.into() };
    let empty = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)";
    if connection.query_row(empty, (), |row| row.get(0)).map_err(storage)? {
        return Ok(None);
    }
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if pragma("application_id").map_err(storage)? != APPLICATION_ID {
        return Err(OpenError::NotAJournal { path: path.to_owned() });
    }
    let found = pragma("user_version").map_err(storage)?;
    if found > SCHEMA_VERSION {
        let (path, supported) = (path.to_owned(), SCHEMA_VERSION);
        return Err(OpenError::Newer { path, found, supported });
    }
    Ok(Some(found))
}

/// Takes the file from version `found` to the present one, in one transaction.
pub(crate) fn migrate(connection: &mut Connection, found: i64) -> Result<(), rusqlite::Error> {
    // A table that others refer to is replaced.
    connection.pragma_update(None, "foreign_keys", false)?;
    // No text is erased. Events would be, one table of them, at the price of all its pages in memory.
    connection.pragma_update_and_check(None, "secure_delete", false, |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (_, steps) in (1..).zip(VERSIONS).filter(|(version, _)| *version > found) {
        for step in steps {
            match step {
                Step::Statements(statements) => transaction.execute_batch(statements)?,
                Step::LinkEvents => link_events(&transaction)?,
                Step::WordOrigins => word_origins(&transaction)?,
            }
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

/// Events stay byte for byte what they were; a version that is missing stays missing.
fn link_events(transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
    let mut copy = transaction.prepare(
        "INSERT INTO linked
         SELECT position, stream, version, ?2, ?3, event_id, time_us, actor, cause, kind, kind_version, skippable, data
         FROM events WHERE position = ?1",
    )?;
    let mut spines = HashMap::<i64, Spine>::new();
    let mut events = transaction.prepare("SELECT position, stream FROM events ORDER BY position")?;
    let mut rows = events.query(())?;
    while let Some(row) = rows.next()? {
        let position: u64 = row.get(0)?;
        let spine = spines.entry(row.get(1)?).or_default();
        let Links { before, jump } = spine.next();
        copy.execute((position, before, jump))?;
        spine.grow(position);
    }
    let mut end = transaction.prepare("UPDATE streams SET version = ?2, last = ?3 WHERE stream = ?1")?;
    for (stream, spine) in spines {
        let Place { version, position } = spine.last();
        end.execute((stream, version, position))?;
    }
    Ok(())
}

/// What is not of the old form stays what it is, to be found by who reads it.
fn word_origins(transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
    let mut next = transaction
        .prepare("SELECT position, actor, cause FROM events WHERE position > ?1 ORDER BY position LIMIT 1")?;
    let mut change = transaction.prepare("UPDATE events SET actor = ?2, cause = ?3 WHERE position = ?1")?;
    let mut done = i64::MIN;
    loop {
        let found = next.query_row((done,), |row| Ok((row.get(0)?, words(row.get_ref(1)?), words(row.get_ref(2)?))));
        let found = found.optional()?;
        let Some((position, actor, cause)) = found else { return Ok(()) };
        if let (Some(actor), Some(cause)) = (actor, cause) {
            change.execute((position, actor, cause))?;
        }
        done = position;
    }
}

/// The words for an actor or a cause as version 3 wrote it.
fn words(json: ValueRef<'_>) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Origin {
        r#type: String,
        id: Option<String>,
    }
    match serde_json::from_str(json.as_str().ok()?).ok()? {
        Origin { r#type: word, .. } if word.contains(' ') => None,
        Origin { r#type: word, id: None } => Some(word),
        Origin { r#type: word, id: Some(id) } => Some(format!("{word} {id}")),
    }
}

/// Copies the file of version `found` to `<file>.backup-v<found>`, mode 0600, by `SQLite`'s own
/// means; once this returns the copy is whole, checked, and on the disk.
pub(crate) fn back_up(connection: &Connection, path: &Path, found: i64) -> Result<(), OpenError> {
    let backup = beside(path, &format!(".backup-v{found}"));
    let partial = beside(path, &format!(".backup-v{found}.partial"));
    copy(connection, &partial, &backup).map_err(|source| {
        // What cannot be removed now is overwritten by the next attempt.
        drop(fs::remove_file(&partial));
        OpenError::Backup { path: path.to_owned(), found, backup, source }
    })
}

/// Until it is whole the copy has another name, so that one that was cut off is not taken for one.
fn copy(connection: &Connection, partial: &Path, backup: &Path) -> Result<(), Box<dyn error::Error + Send + Sync>> {
    match fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
    let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(partial, access)?;
    Backup::new(connection, &mut copy)?.run_to_completion(c_int::MAX, Duration::ZERO, None)?;
    // One file and no log beside it.
    copy.query_row("PRAGMA journal_mode = DELETE", (), |_| Ok(()))?;
    let verdict: String = copy.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))?;
    if verdict != "ok" {
        return Err(format!("the copy is damaged: {verdict}").into());
    }
    copy.close().map_err(|(_, error)| error)?;
    File::open(partial)?.sync_all()?;
    fs::rename(partial, backup)?;
    sync_folder_of(backup)?;
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a new name in the folder of `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
