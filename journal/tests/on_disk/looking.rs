//! Looking at a journal from outside, beside its owner or without one.

use std::fs;

use journal::{Expected, Journal, Loaded, NewEvent, OpenError, StreamId};
use uuid::Uuid;

use crate::fixture::{Counter, OnDisk, added, append, append_raw, counter, keyed, versions};

/// A journal that has something of everything.
async fn lived_in() -> OnDisk {
    let disk = OnDisk::new();
    let text = |id| NewEvent::encode(&added(1)).unwrap().with_text(Uuid::from_u128(id), "said");
    for stream in ["a", "b"] {
        let asked = append(&counter(stream), Expected::Any, &[added(1), added(2)]);
        disk.journal.append(keyed(stream, asked)).await.unwrap();
    }
    disk.journal.append(append_raw(&counter("a"), Expected::Any, vec![text(1), text(2)])).await.unwrap();
    disk.journal.erase(vec![Uuid::from_u128(2)]).await.unwrap();
    for (stream, loaded) in disk.journal.load_all::<Counter>("counter").await.unwrap() {
        disk.journal.snapshot(&stream, &loaded).await.unwrap();
    }
    disk.journal.append(append(&counter("b"), Expected::Any, &[added(9)])).await.unwrap();
    disk.journal.append(append(&StreamId::new("door", "x"), Expected::Any, &[added(9)])).await.unwrap();
    disk
}

#[tokio::test]
async fn a_reader_sees_what_the_owner_writes() {
    let disk = lived_in().await;
    let reader = Journal::open_read_only(&disk.path()).unwrap();
    assert_eq!(reader.streams().unwrap(), [counter("a"), counter("b"), StreamId::new("door", "x")]);
    assert_eq!(versions(&reader.read(&counter("a"), 1).unwrap()), [2, 3, 4]);
    assert!(reader.read(&counter("%"), 0).unwrap().is_empty());
    let texts = reader.texts([1, 2, 3].map(Uuid::from_u128)).unwrap();
    assert_eq!(texts.into_iter().collect::<Vec<_>>(), [(Uuid::from_u128(1), "said".to_owned())]);

    let (mut seen, mut after) = (Vec::new(), 0);
    for round in 0..3 {
        loop {
            let next = reader.read_all(after, 3).unwrap();
            assert!(next.len() <= 3);
            let Some(last) = next.last() else { break };
            after = last.position;
            seen.extend(next.into_iter().map(|event| event.position));
        }
        assert_eq!(seen, (1..=8 + round).collect::<Vec<_>>());
        assert_eq!(reader.position().unwrap(), after);
        disk.journal.append(append(&counter("c"), Expected::Any, &[added(9)])).await.unwrap();
    }
    assert!(reader.read_all(0, 0).unwrap().is_empty());
    assert!(reader.read_all(u64::MAX, 9).unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_writes_nothing() {
    let disk = lived_in().await;
    disk.journal.close().await;
    let before = fs::read(disk.path()).unwrap();
    let reader = Journal::open_read_only(&disk.path()).unwrap();
    assert_eq!(reader.verify().unwrap().events, 8);
    assert!(reader.verify_snapshots::<Counter>("counter").unwrap().is_empty());
    drop(reader);
    assert_eq!(fs::read(disk.path()).unwrap(), before);
    for absent in ["absent.db", "absent/journal.db"].map(|name| disk.folder.path().join(name)) {
        let refused = Journal::open_read_only(&absent).unwrap_err();
        assert!(matches!(refused, OpenError::Storage { .. }), "{refused:?}");
        assert!(!absent.exists());
    }
    let empty = disk.folder.path().join("empty.db");
    fs::write(&empty, "").unwrap();
    assert!(matches!(Journal::open_read_only(&empty), Err(OpenError::NotAJournal { .. })));
    disk.stranger().pragma_update(None, "user_version", 9).unwrap();
    let refused = Journal::open_read_only(&disk.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 9, supported: 4, .. }), "{refused:?}");
}

fn problems(disk: &OnDisk) -> Vec<String> {
    let reader = Journal::open_read_only(&disk.path()).unwrap();
    let mut problems = reader.verify().unwrap().problems;
    problems.extend(reader.verify_snapshots::<Counter>("counter").unwrap());
    problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_journal_that_is_as_it_should_be() {
    let disk = lived_in().await;
    let seen = Journal::open_read_only(&disk.path()).unwrap().verify().unwrap();
    let counts = (seen.events, seen.streams, seen.keys, seen.texts, seen.erased, seen.snapshots);
    assert_eq!(counts, (8, 3, 2, 1, 1, 2));
    assert!(problems(&disk).is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_found() {
    let free = "DROP TRIGGER events_stay; DROP TRIGGER events_stand; PRAGMA foreign_keys = OFF;";
    let mut seen = Vec::new();
    for spoil in [
        "DELETE FROM events WHERE position = 2",
        "UPDATE events SET actor = 'nobody' WHERE position = 3",
        "UPDATE events SET cause = 'command' WHERE position = 8",
        "UPDATE events SET data = '{\"amount\":\"many\"}' WHERE position = 6",
        "UPDATE events SET data = '{\"amount\":5}' WHERE position = 6",
        "UPDATE events SET before = 4 WHERE position = 6",
        "UPDATE events SET jump = 2 WHERE position = 6",
        "UPDATE streams SET version = 3, last = 5 WHERE stream = 1",
        "UPDATE streams SET last = 2 WHERE stream = 2",
        "UPDATE events SET before = -1 WHERE position = 6",
        "UPDATE streams SET version = -1 WHERE stream = 1",
        "UPDATE streams SET last = -1 WHERE stream = 3",
        "DROP TRIGGER streams_stay; DELETE FROM streams WHERE kind = 'door'",
        "INSERT INTO streams (kind, id) VALUES ('counter', 'empty')",
        "INSERT INTO keys VALUES ('beyond', 8, 9), ('crossed', 3, 2)",
        "UPDATE snapshots SET state = 'x' WHERE stream = 1",
        "UPDATE snapshots SET version = 9 WHERE stream = 1",
        "UPDATE snapshots SET version = 0 WHERE stream = 1",
        "UPDATE snapshots SET version = 3 WHERE stream = 1",
        "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'texts_by_time'",
    ] {
        let disk = lived_in().await;
        disk.journal.close().await;
        disk.stranger().execute_batch(&format!("{free} {spoil}")).unwrap();
        seen.push(format!("{spoil}\n  {}", problems(&disk).join("\n  ")));
    }
    insta::assert_snapshot!(seen.join("\n"), @r#"
    DELETE FROM events WHERE position = 2
      journal goes on at position 3, expected position 2
      stream counter/a goes on at version 3, expected version 2
      event 2 of stream counter/a does not stand at position 2, where it is looked for
    UPDATE events SET actor = 'nobody' WHERE position = 3
      event at position 3 has an unreadable actor
      event at position 3 has an unreadable actor
    UPDATE events SET cause = 'command' WHERE position = 8
      event at position 8 has an unreadable cause
    UPDATE events SET data = '{"amount":"many"}' WHERE position = 6
      event 4 of stream counter/a does not decode
    UPDATE events SET data = '{"amount":5}' WHERE position = 6
      snapshot of stream counter/a at version 4 differs from the fold of its events
    UPDATE events SET before = 4 WHERE position = 6
      event 3 of stream counter/a does not stand at position 4, where it is looked for
      event 3 of stream counter/a does not stand at position 4, where it is looked for
    UPDATE events SET jump = 2 WHERE position = 6
      event 3 of stream counter/a does not stand at position 2, where it is looked for
    UPDATE streams SET version = 3, last = 5 WHERE stream = 1
      stream counter/a is said to end at version 3, its last event has version 4
      snapshot of stream counter/a cannot be used: it is of version 4, which its stream has not got to
    UPDATE streams SET last = 2 WHERE stream = 2
      event 3 of stream counter/b does not stand at position 2, where it is looked for
      event 3 of stream counter/b does not stand at position 2, where it is looked for
    UPDATE events SET before = -1 WHERE position = 6
      event 3 of stream counter/a does not stand at position 0, where it is looked for
      event 3 of stream counter/a does not stand at position 0, where it is looked for
    UPDATE streams SET version = -1 WHERE stream = 1
      stream counter/a is said to end at version 9223372036854775807, its last event has version 4
      event 9223372036854775807 of stream counter/a does not stand at position 6, where it is looked for
      snapshot of stream counter/a cannot be used: it is of version 4, which its stream has not got to
    UPDATE streams SET last = -1 WHERE stream = 3
      event 1 of stream door/x does not stand at position 0, where it is looked for
    DROP TRIGGER streams_stay; DELETE FROM streams WHERE kind = 'door'
      events that are of no stream: 1
    INSERT INTO streams (kind, id) VALUES ('counter', 'empty')
      stream counter/empty has no events
    INSERT INTO keys VALUES ('beyond', 8, 9), ('crossed', 3, 2)
      key "beyond" stands for positions 8 to 9, which are no transaction of this journal
      key "crossed" stands for positions 3 to 2, which are no transaction of this journal
    UPDATE snapshots SET state = 'x' WHERE stream = 1
      snapshot of stream counter/a cannot be used: it does not decode: expected value at line 1 column 1
    UPDATE snapshots SET version = 9 WHERE stream = 1
      snapshot of stream counter/a cannot be used: it is of version 9, which its stream has not got to
    UPDATE snapshots SET version = 0 WHERE stream = 1
      snapshot of stream counter/a cannot be used: it is of version 0, which its stream has not got to
    UPDATE snapshots SET version = 3 WHERE stream = 1
      snapshot of stream counter/a at version 3 differs from the fold of its events
    PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'texts_by_time'
      file is damaged: *** in database main ***
    Page 9: never used
    "#);
}

#[tokio::test]
async fn a_fold_without_snapshots_is_checked_too() {
    let disk = lived_in().await;
    let reader = Journal::open_read_only(&disk.path()).unwrap();
    assert!(reader.verify_fold::<Counter>("counter").unwrap().is_empty());
    let unknown = crate::fixture::raw("counter.painted", 1, false, "null");
    disk.journal.append(append_raw(&counter("b"), Expected::Any, vec![unknown])).await.unwrap();
    let problems = reader.verify_fold::<Counter>("counter").unwrap();
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(texts.join("\n"), @r#"event 4 of stream counter/b is of unknown kind "counter.painted""#);
    let whole = disk.journal.load::<Counter>(&counter("a")).await.unwrap();
    assert_eq!(whole, Loaded { state: whole.state.clone(), version: 4 });
}
