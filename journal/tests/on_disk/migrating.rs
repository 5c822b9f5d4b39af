//! DUR-10: what an older version has written is brought up to date, after a backup or not at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal::{Actor, Cause, Expected, Journal, NewEvent, OpenError};
use rusqlite::types::Value;
use rusqlite::{Connection, Row};
use tempfile::TempDir;
use uuid::Uuid;

use crate::fixture::{Counter, OnDisk, added, append, append_raw, counter, keyed, noon, versions};

/// The schema as version 1 made it.
const VERSION_1: &str = "
    PRAGMA journal_mode = WAL;
    BEGIN;
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
        time_us      INTEGER NOT NULL,
        actor        TEXT NOT NULL,
        cause        TEXT NOT NULL,
        kind         TEXT NOT NULL,
        kind_version INTEGER NOT NULL,
        skippable    INTEGER NOT NULL,
        data         TEXT NOT NULL,
        UNIQUE (stream, version)
    ) STRICT;
    CREATE TRIGGER events_stay BEFORE DELETE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
    CREATE TRIGGER events_stand BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TABLE keys (
        key            TEXT PRIMARY KEY,
        first_position INTEGER NOT NULL REFERENCES events,
        last_position  INTEGER NOT NULL REFERENCES events
    ) STRICT, WITHOUT ROWID;
    INSERT INTO streams VALUES (1, 'counter', 'a');
    INSERT INTO events VALUES (1, 1, 1, x'0102030405060708090a0b0c0d0e0f10', 0, '{\"type\":\"gateway\"}',
        '{\"type\":\"none\"}', 'counter.added', 1, 0, '{\"amount\":40}');
    INSERT INTO events VALUES (2, 1, 2, x'0102030405060708090a0b0c0d0e0f11', 0, '{\"type\":\"gateway\"}',
        '{\"type\":\"none\"}', 'counter.added', 1, 0, '{\"amount\":2}');
    INSERT INTO keys VALUES ('k', 1, 2);
    PRAGMA application_id = 1299542890;
    PRAGMA user_version = 1;
    COMMIT;
";

/// What version 2 added, and a thousand events, in turns of two streams.
const VERSION_2: &str = "
    BEGIN;
    CREATE TABLE texts (
        text    INTEGER PRIMARY KEY,
        id      BLOB NOT NULL UNIQUE,
        time_us INTEGER NOT NULL,
        body    TEXT
    ) STRICT;
    CREATE INDEX texts_by_time ON texts (time_us) WHERE body IS NOT NULL;
    CREATE TRIGGER texts_stay BEFORE DELETE ON texts
        BEGIN SELECT RAISE(ABORT, 'texts are erased, not deleted'); END;
    CREATE TRIGGER texts_stand BEFORE UPDATE ON texts
        WHEN NEW.body IS NOT NULL OR NEW.text IS NOT OLD.text OR NEW.id IS NOT OLD.id
            OR NEW.time_us IS NOT OLD.time_us
        BEGIN SELECT RAISE(ABORT, 'texts are never changed'); END;
    CREATE TABLE snapshots (
        stream       INTEGER NOT NULL REFERENCES streams,
        fold         TEXT NOT NULL,
        fold_version INTEGER NOT NULL,
        version      INTEGER NOT NULL,
        state        TEXT NOT NULL,
        PRIMARY KEY (stream, fold)
    ) STRICT;
    INSERT INTO streams VALUES (2, 'counter', 'b');
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999)
    INSERT INTO events
        SELECT n + 3, 1 + n % 2, n / 2 + iif(n % 2 = 0, 3, 1), randomblob(16), n, '{\"type\":\"gateway\"}',
            '{\"type\":\"none\"}', 'counter.added', 1, 0, '{\"amount\": ' || n || ' }'
        FROM numbers;
    INSERT INTO texts VALUES (1, x'00000000000000000000000000000007', 0, 'said');
    PRAGMA user_version = 2;
    COMMIT;
";

/// A folder with a journal of version 1, which was closed.
fn old() -> (TempDir, PathBuf) {
    made_by(VERSION_1)
}

fn made_by(statements: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    Connection::open(&path).unwrap().execute_batch(statements).unwrap();
    (folder, path)
}

fn version(path: &Path) -> i64 {
    Connection::open(path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_older_file_is_backed_up_and_brought_up_to_date() {
    let (folder, path) = old();
    let backup = folder.path().join("journal.db.backup-v1");
    // Cut off in the middle of a backup, long ago.
    fs::write(folder.path().join("journal.db.backup-v1.partial"), "half of it").unwrap();
    let journal = Journal::open(&path, Arc::new(noon())).unwrap();

    assert_eq!(journal.load::<Counter>(&counter("a")).await.unwrap().state.total, 42);
    let again = keyed("k", append(&counter("a"), Expected::NoStream, &[added(40), added(2)]));
    assert!(journal.append(again).await.unwrap().repeated);
    let id = Uuid::from_u128(1);
    let event = NewEvent::encode(&added(1)).unwrap().with_text(id, "new");
    let done = journal.append(append_raw(&counter("a"), Expected::Version(2), vec![event])).await.unwrap();
    assert_eq!(done.position, 3);
    assert_eq!(journal.texts(vec![id]).await.unwrap().len(), 1);
    let loaded = journal.load::<Counter>(&counter("a")).await.unwrap();
    journal.snapshot(&counter("a"), &loaded).await.unwrap();
    journal.close().await;
    assert_eq!(version(&path), 4);

    assert_eq!(names(&folder), ["journal.db", "journal.db.backup-v1"]);
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(version(&backup), 1);
    let kept = Connection::open(&backup).unwrap();
    let sum = "SELECT sum(json_extract(data, '$.amount')) FROM events";
    assert_eq!(kept.query_row(sum, (), |row| row.get::<_, i64>(0)).unwrap(), 42);

    // The backup is a journal that can be gone back to, and the next opening makes no other.
    let bytes = fs::read(&backup).unwrap();
    drop(Journal::open(&path, Arc::new(noon())).unwrap());
    assert_eq!(fs::read(&backup).unwrap(), bytes);
    let restored = Journal::open(&backup, Arc::new(noon())).unwrap();
    assert_eq!(restored.load::<Counter>(&counter("a")).await.unwrap().state.total, 42);
}

#[tokio::test]
async fn events_are_linked_and_stay_what_they_were() {
    let (folder, path) = made_by(&format!("{VERSION_1} {VERSION_2}"));
    let columns = "position, stream, version, event_id, time_us, kind, kind_version, skippable, data";
    let rows = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        let mut events = connection.prepare(&format!("SELECT {columns} FROM events ORDER BY position")).unwrap();
        let row = |row: &Row<'_>| (0..9).map(|column| row.get::<_, Value>(column)).collect::<Result<Vec<_>, _>>();
        events.query_map((), row).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let before = rows(&path);
    let journal = Journal::open(&path, Arc::new(noon())).unwrap();
    let backup = folder.path().join("journal.db.backup-v2");
    assert_eq!((rows(&path), rows(&backup)), (before.clone(), before));

    for (stream, length) in [("a", 502), ("b", 500)] {
        for after in [0, 1, 255, 256, 300, 499, length, length + 1] {
            let read = journal.read(&counter(stream), after).await.unwrap();
            assert_eq!(versions(&read), (after + 1..=length).collect::<Vec<_>>());
        }
        let next = append(&counter(stream), Expected::Version(length), &[added(1)]);
        assert_eq!(journal.append(next).await.unwrap().last_version, length + 1);
    }
    let even: u64 = (0..1000).step_by(2).sum();
    assert_eq!(journal.load::<Counter>(&counter("a")).await.unwrap().state.total, 42 + even + 1);
    assert_eq!(journal.texts(vec![Uuid::from_u128(7)]).await.unwrap().len(), 1);
    let again = keyed("k", append(&counter("a"), Expected::NoStream, &[added(40), added(2)]));
    assert!(journal.append(again).await.unwrap().repeated);
    let seen = Journal::open_read_only(&path).unwrap().verify().unwrap();
    assert_eq!((seen.events, seen.streams, seen.keys, seen.problems.len()), (1004, 2, 1, 0));
    for statement in ["DELETE FROM events", "UPDATE events SET data = '{}'"] {
        Connection::open(&path).unwrap().execute(statement, ()).unwrap_err();
    }
}

/// Actors and causes as version 3 wrote them, and what they are.
fn origins() -> [(&'static str, &'static str, Actor, Cause); 5] {
    let event = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0007);
    let person = |id: &str| Actor::Person(id.to_owned());
    let command = |id: &str| Cause::Command(id.to_owned());
    [
        (r#"{"type":"gateway"}"#, r#"{"type":"none"}"#, Actor::Gateway, Cause::None),
        (r#"{"type":"system"}"#, r#"{"type":"command","id":""}"#, Actor::System, command("")),
        (
            r#"{"type":"person","id":"matrix:@a b:\u00e9 \"x\""}"#,
            r#"{"type":"command","id":"$1\n\\ 2"}"#,
            person("matrix:@a b:é \"x\""),
            command("$1\n\\ 2"),
        ),
        (
            r#"{"type":"sled","id":"7"}"#,
            r#"{"type":"event","id":"01900000-0000-7000-8000-000000000007"}"#,
            Actor::Sled("7".to_owned()),
            Cause::Event(event),
        ),
        (r#"{"type":"person","id":"\u0000 "}"#, r#"{"type":"none"}"#, person("\0 "), Cause::None),
    ]
}

/// Changes the events of a file, which is of that version then: one of version 3 is one of version 4
/// but for its actors and causes.
fn change_events(path: &Path, version: i64, change: impl FnOnce(&Connection)) {
    let file = Connection::open(path).unwrap();
    file.execute_batch("DROP TRIGGER events_stand").unwrap();
    change(&file);
    let trigger = "CREATE TRIGGER events_stand BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'stands'); END";
    file.execute_batch(trigger).unwrap();
    file.pragma_update(None, "user_version", version).unwrap();
}

/// Has the events of a file tell these origins in turns.
fn tell_in_json(path: &Path, version: i64) {
    change_events(path, version, |file| {
        let mut change = file.prepare("UPDATE events SET actor = ?1, cause = ?2 WHERE version % 5 = ?3").unwrap();
        for (at, (actor, cause, ..)) in origins().iter().enumerate() {
            change.execute((actor, cause, at)).unwrap();
        }
    });
}

async fn assert_told(journal: &Journal) {
    let events = journal.read(&counter("a"), 0).await.unwrap();
    assert!(events.len() >= origins().len());
    for event in events {
        let (_, _, actor, cause) = &origins()[usize::try_from(event.version % 5).unwrap()];
        assert_eq!((&event.actor, &event.cause), (actor, cause), "at {}", event.position);
    }
}

#[tokio::test]
async fn who_did_it_and_why_is_still_told() {
    let (_folder, path) = made_by(&format!("{VERSION_1} {VERSION_2}"));
    tell_in_json(&path, 2);
    assert_told(&Journal::open(&path, Arc::new(noon())).unwrap()).await;

    let disk = OnDisk::new();
    let six = [added(1), added(2), added(3), added(4), added(5), added(6)];
    disk.journal.append(append(&counter("a"), Expected::NoStream, &six)).await.unwrap();
    disk.journal.close().await;
    tell_in_json(&disk.path(), 3);
    let journal = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
    assert_told(&journal).await;
    assert_eq!(version(&disk.folder.path().join("journal.db.backup-v3")), 3);
    let next = append(&counter("a"), Expected::Version(6), &[added(1)]);
    assert_eq!(journal.append(next).await.unwrap().position, 7);
    let stands = disk.stranger().execute("UPDATE events SET actor = 'system'", ()).unwrap_err();
    assert_eq!(stands.to_string(), "events are never changed");
}

#[tokio::test]
async fn what_told_of_nobody_still_does() {
    let disk = OnDisk::new();
    disk.journal.append(append(&counter("a"), Expected::NoStream, &[added(1)])).await.unwrap();
    disk.journal.close().await;
    for nobody in
        ["nobody", "5", "{}", r#"{"type":"sled 7"}"#, r#"{"type":"person","id":5}"#, r#"{"type":"sled","id":"\ud800"}"#]
    {
        change_events(&disk.path(), 3, |file| {
            file.execute("UPDATE events SET actor = ?1", (nobody,)).unwrap();
        });
        let journal = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
        let error = journal.read(&counter("a"), 0).await.unwrap_err();
        assert_eq!(error.to_string(), "event at position 1 has an unreadable actor", "of {nobody}");
        journal.close().await;
        let kept = disk.stranger().query_row("SELECT actor FROM events", (), |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(kept, nobody);
    }
}

#[tokio::test]
async fn what_still_stands_in_the_log_is_backed_up_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    // Not closed when the journal opens it: nothing of it is in the file yet.
    let killed = Connection::open(&path).unwrap();
    killed.execute_batch(VERSION_1).unwrap();
    let journal = Journal::open(&path, Arc::new(noon())).unwrap();
    assert_eq!(journal.load::<Counter>(&counter("a")).await.unwrap().state.total, 42);
    let backup = Connection::open(folder.path().join("journal.db.backup-v1")).unwrap();
    let count: i64 = backup.query_row("SELECT count(*) FROM events", (), |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
    drop(killed);
}

#[test]
fn without_a_backup_nothing_is_migrated() {
    let (folder, path) = old();
    let backup = folder.path().join("journal.db.backup-v1");
    let before = fs::read(&path).unwrap();
    for in_the_way in ["journal.db.backup-v1", "journal.db.backup-v1.partial"].map(|name| folder.path().join(name)) {
        fs::create_dir(&in_the_way).unwrap();
        fs::write(in_the_way.join("something"), "of somebody's").unwrap();
        let refused = Journal::open(&path, Arc::new(noon())).unwrap_err();
        assert!(matches!(&refused, OpenError::Backup { found: 1, backup: at, .. } if *at == backup), "{refused:?}");
        let text = refused.to_string().replace(folder.path().to_str().unwrap(), "FOLDER");
        insta::allow_duplicates!(
            insta::assert_snapshot!(text, @"journal FOLDER/journal.db of schema version 1 was not migrated, its backup FOLDER/journal.db.backup-v1 could not be made")
        );
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(version(&path), 1);
        fs::remove_dir_all(in_the_way).unwrap();
        assert_eq!(names(&folder), ["journal.db"]);
    }
    drop(Journal::open(&path, Arc::new(noon())).unwrap());
    assert_eq!(version(&path), 4);
}

#[test]
fn a_damaged_file_is_not_migrated() {
    let (folder, path) = old();
    let before = {
        // A page in the middle that is not what it says it is.
        let mut bytes = fs::read(&path).unwrap();
        let page = 4096 * 3;
        bytes[page..page + 4096].fill(0x5a);
        fs::write(&path, &bytes).unwrap();
        bytes
    };
    let refused = Journal::open(&path, Arc::new(noon())).unwrap_err();
    assert!(matches!(&refused, OpenError::Backup { .. }), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(&folder), ["journal.db"]);
}

#[test]
fn who_only_looks_does_not_migrate() {
    let (folder, path) = old();
    let before = fs::read(&path).unwrap();
    let refused = Journal::open_read_only(&path).unwrap_err();
    assert!(matches!(refused, OpenError::Older { found: 1, supported: 4, .. }));
    let text = refused.to_string().replace(folder.path().to_str().unwrap(), "FOLDER");
    insta::assert_snapshot!(text, @"journal FOLDER/journal.db has schema version 1, this program reads version 4");
    assert_eq!(fs::read(&path).unwrap(), before);
}
