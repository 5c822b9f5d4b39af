//! JRNL-1, JRNL-4: versions, conflicts, keys, several streams at once, who and why and when.

use std::collections::BTreeSet;

use journal::{Actor, Append, AppendError, Cause, Expected, StreamId};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::fixture::{CounterEvent, OnDisk, added, append, append_raw, counter, keyed, noon, versions};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_are_contiguous_under_64_appenders() {
    const TASKS: u64 = 64;
    const EACH: u64 = 10;
    let disk = OnDisk::new();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let journal = disk.journal.clone();
        tasks.spawn(async move {
            let shared = counter("shared");
            let mut acknowledged = Vec::new();
            for n in 0..EACH {
                let events = [added(task * EACH + n)];
                let done = journal.append(append(&shared, Expected::Any, &events)).await.unwrap();
                assert_eq!(done.first_version, done.last_version);
                acknowledged.push((done.last_version, done.position, task * EACH + n));
            }
            assert!(acknowledged.is_sorted(), "a task's appends keep their order");
            acknowledged
        });
    }
    let acknowledged: BTreeSet<_> = tasks.join_all().await.into_iter().flatten().collect();
    let stored = disk.journal.read(&counter("shared"), 0).await.unwrap();
    assert_eq!(versions(&stored), (1..=TASKS * EACH).collect::<Vec<_>>());
    let stored: BTreeSet<_> = stored
        .into_iter()
        .map(|event| {
            assert_eq!(event.position, event.version, "there is one stream only");
            let amount: serde_json::Value = serde_json::from_str(event.data.get()).unwrap();
            (event.version, event.position, amount["amount"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(stored, acknowledged, "each append was told its own version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_those_who_expect_the_same_version_one_wins() {
    let disk = OnDisk::new();
    for round in 0..8 {
        let mut tasks = JoinSet::new();
        for task in 0..64 {
            let journal = disk.journal.clone();
            tasks.spawn(async move {
                journal.append(append(&counter("raced"), Expected::Version(round), &[added(task)])).await
            });
        }
        let (won, lost): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 63));
        for error in lost.into_iter().map(Result::unwrap_err) {
            let AppendError::Conflict { stream, expected, actual } = error else {
                panic!("not a conflict: {error}");
            };
            assert_eq!(stream, counter("raced"));
            assert_eq!((expected, actual), (Expected::Version(round), round + 1));
        }
    }
    assert_eq!(disk.journal.read(&counter("raced"), 0).await.unwrap().len(), 8);
}

#[tokio::test]
async fn expectations() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let cases = [
        (Expected::Version(1), None),
        (Expected::NoStream, Some(1)),
        (Expected::NoStream, None),
        (Expected::Version(0), None),
        (Expected::Version(1), Some(2)),
        (Expected::Any, Some(3)),
        (Expected::Version(u64::MAX), None),
        (Expected::Version(3), Some(4)),
    ];
    for (expected, version) in cases {
        let outcome = disk.journal.append(append(&stream, expected, &[added(1)])).await;
        assert_eq!(outcome.ok().map(|done| done.last_version), version, "{expected}");
    }
    // Kind and id are two things: neither a prefix nor a pattern reaches another stream.
    for other in [StreamId::new("counter", "%"), StreamId::new("count", "er/a"), StreamId::new("counter/a", "")] {
        assert!(disk.journal.read(&other, 0).await.unwrap().is_empty());
        disk.journal.append(append(&other, Expected::NoStream, &[added(1)])).await.unwrap();
    }
    assert_eq!(disk.journal.read(&stream, 0).await.unwrap().len(), 4);
}

#[tokio::test]
async fn refusals_say_what_is_the_matter() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let one = append(&stream, Expected::NoStream, &[added(1)]);
    disk.journal.append(keyed("order-7", one.clone())).await.unwrap();
    let conflict = disk.journal.append(one).await.unwrap_err();
    insta::assert_snapshot!(conflict, @"stream counter/a is at version 1, expected no stream");
    let late = append(&stream, Expected::Version(9), &[added(1)]);
    let conflict = disk.journal.append(late).await.unwrap_err();
    insta::assert_snapshot!(conflict, @"stream counter/a is at version 1, expected version 9");
    let other = keyed("order-7", append(&stream, Expected::Any, &[added(2)]));
    let reused = disk.journal.append(other).await.unwrap_err();
    insta::assert_snapshot!(reused, @r#"key "order-7" for stream counter/a was used for other events at position 1"#);
    let nothing = disk.journal.append(append(&stream, Expected::Any, &[])).await.unwrap_err();
    insta::assert_snapshot!(nothing, @"append to stream counter/a has no events");
}

#[tokio::test]
async fn a_repeated_key_has_the_first_outcome() {
    let mut disk = OnDisk::new();
    let stream = counter("a");
    let asked = keyed("k", append(&stream, Expected::NoStream, &[added(1), CounterEvent::Reset]));
    let first = disk.journal.append(asked.clone()).await.unwrap();
    assert!(!first.repeated);
    disk.journal.append(append(&stream, Expected::Any, &[added(5)])).await.unwrap();
    // Also for the next program that opens the file, whatever it expects.
    disk.journal.close().await;
    disk.journal = journal::Journal::open(&disk.path(), std::sync::Arc::new(journal::SystemClock)).unwrap();
    for expected in [Expected::NoStream, Expected::Version(3), Expected::Any] {
        let again = Append { expected, actor: Actor::System, ..asked.clone() };
        let again = disk.journal.append(again).await.unwrap();
        assert!(again.repeated);
        assert_eq!((again.first_version, again.last_version, again.position), (1, 2, 2));
        let ids = |events: &[journal::Recorded]| events.iter().map(|e| e.id).collect::<Vec<_>>();
        assert_eq!(ids(&again.events), ids(&first.events));
        assert_eq!(again.events[0].actor, Actor::Gateway);
        assert_eq!(again.events[0].time, noon());
    }
    assert_eq!(disk.journal.read(&stream, 0).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_key_with_other_events_is_an_error() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let first = keyed("k", append(&stream, Expected::Any, &[added(1), added(2)]));
    disk.journal.append(first).await.unwrap();
    let raw = |skippable, data| {
        let second = crate::fixture::raw("counter.added", 1, false, r#"{"amount":2}"#);
        vec![crate::fixture::raw("counter.added", 1, skippable, data), second]
    };
    let others = [
        append(&stream, Expected::Any, &[added(2), added(1)]),
        append(&stream, Expected::Any, &[added(1)]),
        append(&stream, Expected::Any, &[added(1), added(2), added(3)]),
        append(&stream, Expected::Any, &[added(1), CounterEvent::Reset]),
        append(&counter("b"), Expected::Any, &[added(1), added(2)]),
        append_raw(&stream, Expected::Any, raw(true, r#"{"amount":1}"#)),
    ];
    for other in others {
        let refused = disk.journal.append(keyed("k", other)).await.unwrap_err();
        assert!(matches!(refused, AppendError::KeyReused { position: 1, .. }), "{refused}");
    }
    // The same data in other bytes is the same.
    let spaced = append_raw(&stream, Expected::Any, raw(false, r#" { "amount" : 1 } "#));
    assert!(disk.journal.append(keyed("k", spaced)).await.unwrap().repeated);
    assert_eq!(disk.journal.read(&stream, 0).await.unwrap().len(), 2);
    assert!(disk.journal.read(&counter("b"), 0).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_repeats_one_appends() {
    let disk = OnDisk::new();
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let journal = disk.journal.clone();
        tasks.spawn(async move {
            let asked = append(&counter("a"), Expected::NoStream, &[added(1)]);
            journal.append(keyed("once", asked)).await.unwrap()
        });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|done| !done.repeated).count(), 1);
    assert!(outcomes.iter().all(|done| done.events[0].id == outcomes[0].events[0].id));
    assert_eq!(disk.journal.read(&counter("a"), 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn several_streams_all_or_nothing() {
    let disk = OnDisk::new();
    let (a, b) = (counter("a"), counter("b"));
    disk.journal.append(append(&b, Expected::NoStream, &[added(1)])).await.unwrap();

    let refused = disk
        .journal
        .append_all(vec![
            keyed("both", append(&a, Expected::NoStream, &[added(1), added(2)])),
            append(&counter("c"), Expected::Any, &[added(1)]),
            append(&b, Expected::NoStream, &[added(3)]),
        ])
        .await
        .unwrap_err();
    assert!(matches!(&refused, AppendError::Conflict { stream, actual: 1, .. } if *stream == b), "{refused}");
    assert!(disk.journal.read(&a, 0).await.unwrap().is_empty());
    assert!(disk.journal.read(&counter("c"), 0).await.unwrap().is_empty());

    // The key of what did not happen is free, and what did happen repeats as a whole.
    let both = vec![
        keyed("both", append(&a, Expected::NoStream, &[added(1), added(2)])),
        append(&b, Expected::Version(1), &[added(3)]),
        append(&a, Expected::Version(2), &[added(4)]),
    ];
    for repeated in [false, true] {
        let done = disk.journal.append_all(both.clone()).await.unwrap();
        let seen: Vec<_> =
            done.iter().map(|one| (one.first_version, one.last_version, one.position, one.repeated)).collect();
        assert_eq!(seen, [(1, 2, 3, repeated), (2, 2, 4, repeated), (3, 3, 5, repeated)]);
    }
    // A part of it, or it with something more, is something else.
    for other in [both[..1].to_vec(), [both.clone(), both[1..2].to_vec()].concat()] {
        let refused = disk.journal.append_all(other).await.unwrap_err();
        assert!(matches!(refused, AppendError::KeyReused { position: 2, .. }), "{refused}");
    }
    assert_eq!(versions(&disk.journal.read(&a, 0).await.unwrap()), [1, 2, 3]);
    assert_eq!(versions(&disk.journal.read(&b, 0).await.unwrap()), [1, 2]);
}

#[tokio::test]
async fn one_key_twice_in_a_transaction_is_an_error() {
    let disk = OnDisk::new();
    let twice = || keyed("k", append(&counter("a"), Expected::Any, &[added(1)]));
    let refused = disk.journal.append_all(vec![twice(), twice()]).await.unwrap_err();
    assert!(matches!(refused, AppendError::KeyReused { .. }), "{refused}");
    assert!(disk.journal.read(&counter("a"), 0).await.unwrap().is_empty());
    assert!(disk.journal.append_all(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn every_event_has_actor_cause_time_and_id() {
    let disk = OnDisk::new();
    let before = Uuid::now_v7();
    let by = [
        (Actor::Gateway, Cause::None),
        (Actor::System, Cause::Event(before)),
        (Actor::Person("matrix:@ada:example.org".to_owned()), Cause::Command("$e:x".to_owned())),
        (Actor::Sled("0198".to_owned()), Cause::Command("\"\u{0}'".to_owned())),
    ];
    for (actor, cause) in by.clone() {
        let asked = append(&counter("a"), Expected::Any, &[added(1), added(1)]);
        let done = disk.journal.append(Append { actor, cause, ..asked }).await.unwrap();
        let stored = disk.journal.read(&counter("a"), done.first_version - 1).await.unwrap();
        assert_eq!(format!("{stored:?}"), format!("{:?}", done.events), "what was told is stored");
    }
    let stored = disk.journal.read(&counter("a"), 0).await.unwrap();
    for (events, (actor, cause)) in stored.chunks(2).zip(by) {
        for event in events {
            assert_eq!((&event.actor, &event.cause, event.time), (&actor, &cause, noon()));
        }
    }
    let ids: Vec<_> = stored.iter().map(|event| event.id).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "ids ascend");
    assert!(ids.iter().all(|id| id.get_version_num() == 7));
}
