//! The file: its mode, its making and closing, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use journal::{AppendError, Expected, Journal, OpenError, ReadError};

use crate::fixture::{Counter, CounterEvent, OnDisk, added, append, counter, noon};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn open(path: &Path) -> Result<Journal, OpenError> {
    Journal::open(path, Arc::new(noon()))
}

/// What an error says, its sources included, without the folder of this run.
fn story(error: &dyn std::error::Error, folder: &Path) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace(folder.to_str().unwrap(), "FOLDER")
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let disk = OnDisk::new();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
    let files: Vec<_> = fs::read_dir(disk.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "file, log and its index: {files:?}");
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    disk.journal.close().await;
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let reopened = open(&disk.path()).unwrap();
    assert_eq!(mode(&disk.path()), 0o600);
    assert_eq!(reopened.load::<Counter>(&counter("a")).await.unwrap().state.total, 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let disk = OnDisk::new();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
    disk.journal.close().await;
    disk.stranger().pragma_update(None, "user_version", 5).unwrap();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read(disk.path()).unwrap();
    let refused = open(&disk.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 5, supported: 4, .. }));
    insta::assert_snapshot!(story(&refused, disk.folder.path()), @"journal FOLDER/journal.db has schema version 5, this program reads up to version 4");
    assert_eq!(fs::read(disk.path()).unwrap(), before);
    assert_eq!(mode(&disk.path()), 0o640);
}

#[test]
fn what_is_not_a_journal_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let text = folder.path().join("text");
    fs::write(
        &text,
        "no database at all, but long enough to have a header of a hundred bytes, \
        which is where a reader of such files looks first",
    )
    .unwrap();
    let absent = folder.path().join("absent/journal.db");
    let stories: Vec<_> = [&other, &text, &absent, &folder.path().to_owned()]
        .into_iter()
        .map(|path| {
            let before = fs::read(path).ok();
            let refused = open(path).unwrap_err();
            assert_eq!(fs::read(path).ok(), before);
            story(&refused, folder.path())
        })
        .collect();
    insta::assert_snapshot!(stories.join("\n"), @"
    FOLDER/other.db is not a journal
    journal FOLDER/text cannot be opened: file is not a database: Error code 26: File opened that is not a database file
    journal FOLDER/absent/journal.db cannot be opened: No such file or directory (os error 2)
    journal FOLDER cannot be opened: unable to open database file: FOLDER: Error code 14: Unable to open the database file
    ");
}

#[tokio::test]
async fn events_are_neither_changed_nor_deleted() {
    let disk = OnDisk::new();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
    for statement in ["DELETE FROM events", "UPDATE events SET data = '{}'", "DELETE FROM streams"] {
        disk.stranger().execute_batch(statement).unwrap_err();
    }
    assert_eq!(disk.journal.load::<Counter>(&counter("a")).await.unwrap().state.total, 1);
}

#[tokio::test]
async fn closing_writes_what_waits_and_refuses_the_rest() {
    let disk = OnDisk::new();
    let (journal, stream) = (disk.journal.clone(), counter("a"));
    // Polled in this order: the appends are in the queue before the closing is.
    let one = || journal.append(append(&stream, Expected::Any, &[added(1)]));
    let (first, second, (), ()) = tokio::join!(one(), one(), journal.close(), disk.journal.close());
    assert_eq!((first.unwrap().last_version, second.unwrap().last_version), (1, 2));
    assert!(matches!(one().await, Err(AppendError::Closed)));
    assert!(matches!(journal.read(&stream, 0).await, Err(ReadError::Closed)));
    assert!(!disk.folder.path().join("journal.db-wal").exists(), "the log is in the file");
    let reopened = open(&disk.path()).unwrap();
    assert_eq!(reopened.load::<Counter>(&stream).await.unwrap().version, 2);
}

#[tokio::test]
async fn the_last_handle_closes_the_file() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let (path, log) = (disk.path(), disk.folder.path().join("journal.db-wal"));
    let OnDisk { folder: _folder, journal } = disk;
    let subscription = journal.subscribe(&stream, 0);
    journal.append(append(&stream, Expected::Any, &[added(1)])).await.unwrap();
    journal.read(&stream, 0).await.unwrap();
    drop(journal);
    assert!(log.exists(), "a subscription is a handle");
    drop(subscription);
    assert!(!log.exists());
    let reopened = open(&path).unwrap();
    assert_eq!(reopened.load::<Counter>(&stream).await.unwrap().version, 1);
}

#[tokio::test]
async fn the_log_does_not_grow_with_the_journal() {
    let disk = OnDisk::new();
    let megabyte = CounterEvent::Labelled("x".repeat(1024 * 1024));
    let size = |name: &str| fs::metadata(disk.folder.path().join(name)).unwrap().len();
    for n in 0..64 {
        disk.journal
            .append(append(&counter("a"), Expected::Version(n), std::slice::from_ref(&megabyte)))
            .await
            .unwrap();
        assert!(size("journal.db-wal") < 24 * 1024 * 1024, "after {n} MiB: {}", size("journal.db-wal"));
    }
    assert!(size("journal.db") > 48 * 1024 * 1024);
}
