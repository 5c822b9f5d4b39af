//! JRNL-6: a snapshot and its tail are what a full fold is, and snapshots never go back.

use std::convert::Infallible;

use journal::{AppendError, Expected, Fold, Loaded, ReadError, Recorded, Snapshot};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::fixture::{Counter, CounterEvent, OnDisk, added, append, counter, keyed};

/// What a history does to one of a few streams.
#[derive(Clone, Debug)]
enum Step {
    Append(u8, Vec<CounterEvent>),
    /// Keep the state as it was after so many of the stream's events.
    Keep(u8, prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let event = prop_oneof![
        (0..1000_u64).prop_map(added),
        any::<String>().prop_map(CounterEvent::Labelled),
        Just(CounterEvent::Reset),
    ];
    prop_oneof![
        2 => (0..3_u8, vec(event, 1..6)).prop_map(|(stream, events)| Step::Append(stream, events)),
        1 => (0..3_u8, any::<prop::sample::Index>()).prop_map(|(stream, at)| Step::Keep(stream, at)),
    ]
}

async fn folded_to(disk: &OnDisk, stream: &str, version: u64) -> Loaded<Counter> {
    let mut loaded = Loaded::default();
    for event in disk.journal.read(&counter(stream), 0).await.unwrap() {
        if event.version <= version {
            loaded.advance(&event).unwrap();
        }
    }
    loaded
}

async fn check_history(steps: Vec<Step>) {
    let disk = OnDisk::new();
    for step in steps {
        match step {
            Step::Append(stream, events) => {
                disk.journal.append(append(&counter(&stream.to_string()), Expected::Any, &events)).await.unwrap();
            }
            Step::Keep(stream, at) => {
                let stream = stream.to_string();
                let events = disk.journal.read(&counter(&stream), 0).await.unwrap().len();
                let loaded = folded_to(&disk, &stream, at.index(events + 1) as u64).await;
                disk.journal.snapshot(&counter(&stream), &loaded).await.unwrap();
            }
        }
        let full = disk.journal.load_all::<Counter>("counter").await.unwrap();
        assert_eq!(disk.journal.load_all_snapshots::<Counter>("counter").await.unwrap(), full);
        for (stream, full) in full {
            assert_eq!(disk.journal.load_snapshot::<Counter>(&stream).await.unwrap(), full);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn a_snapshot_and_its_tail_are_a_full_fold(steps in vec(step(), 0..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check_history(steps));
    }
}

fn kept(disk: &OnDisk) -> Vec<(u32, u64)> {
    let stranger = disk.stranger();
    let mut rows = stranger.prepare("SELECT fold_version, version FROM snapshots ORDER BY fold, stream").unwrap();
    let rows = rows.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// [`Counter`] as another version of the program has it.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Other<const VERSION: u32>(Counter);

impl<const VERSION: u32> Fold for Other<VERSION> {
    type Event = CounterEvent;
    type Error = Infallible;

    fn apply(&mut self, event: &CounterEvent, recorded: &Recorded) -> Result<(), Infallible> {
        self.0.apply(event, recorded)
    }
}

impl<const V: u32> Snapshot for Other<V> {
    const VERSION: u32 = V;

    fn name() -> &'static str {
        Counter::name()
    }
}

#[tokio::test]
async fn an_older_snapshot_never_replaces_a_newer_one() {
    let disk = OnDisk::new();
    let stream = counter("a");
    disk.journal.append(append(&stream, Expected::Any, &[added(1), added(2), added(3)])).await.unwrap();
    let state = |total, version| Loaded { state: Counter { total, ..Counter::default() }, version };
    for (version, expected) in [(0, vec![]), (2, vec![(3, 2)]), (1, vec![(3, 2)]), (3, vec![(3, 3)]), (2, vec![(3, 3)])]
    {
        disk.journal.snapshot(&stream, &state(version, version)).await.unwrap();
        assert_eq!(kept(&disk), expected);
    }
    // Nor another state of the same version: the first one stands.
    disk.journal.snapshot(&stream, &state(99, 3)).await.unwrap();
    assert_eq!(disk.journal.load_snapshot::<Counter>(&stream).await.unwrap().state.total, 3);
    // A newer program's snapshot replaces an older one's, and not the other way.
    disk.journal.snapshot(&stream, &Loaded::<Other<4>> { version: 1, ..Loaded::default() }).await.unwrap();
    assert_eq!(kept(&disk), [(4, 1)]);
    disk.journal.snapshot(&stream, &state(6, 3)).await.unwrap();
    assert_eq!(kept(&disk), [(4, 1)]);
}

#[tokio::test]
async fn events_before_a_snapshot_are_not_read() {
    let disk = OnDisk::new();
    let stream = counter("a");
    disk.journal.append(append(&stream, Expected::Any, &[added(1), added(2)])).await.unwrap();
    let loaded = disk.journal.load::<Counter>(&stream).await.unwrap();
    disk.journal.snapshot(&stream, &loaded).await.unwrap();
    disk.journal.append(append(&stream, Expected::Any, &[added(4)])).await.unwrap();
    disk.stranger().execute_batch("DROP TRIGGER events_stand; UPDATE events SET data = '7' WHERE version < 3").unwrap();
    assert!(matches!(disk.journal.load::<Counter>(&stream).await, Err(ReadError::Decode { version: 1, .. })));
    let one = disk.journal.load_snapshot::<Counter>(&stream).await.unwrap();
    assert_eq!((one.state.total, one.version), (7, 3));
    assert_eq!(disk.journal.load_all_snapshots::<Counter>("counter").await.unwrap(), [(stream, one)]);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_passed_over() {
    let spoil = [
        "UPDATE snapshots SET state = '{\"total\":\"many\"}'",
        "UPDATE snapshots SET state = 'no JSON'",
        "UPDATE snapshots SET version = 9",
        "UPDATE snapshots SET fold_version = 2",
        "UPDATE snapshots SET fold_version = 4",
        "UPDATE snapshots SET fold = 'another'",
    ];
    for statement in spoil {
        let disk = OnDisk::new();
        let stream = counter("a");
        disk.journal.append(append(&stream, Expected::Any, &[added(1), added(2)])).await.unwrap();
        let wrong = Loaded { state: Counter { total: 50, ..Counter::default() }, version: 1 };
        disk.journal.snapshot(&stream, &wrong).await.unwrap();
        assert_eq!(disk.journal.load_snapshot::<Counter>(&stream).await.unwrap().state.total, 52, "it is used");
        disk.stranger().execute_batch(statement).unwrap();
        let full = disk.journal.load::<Counter>(&stream).await.unwrap();
        assert_eq!(disk.journal.load_snapshot::<Counter>(&stream).await.unwrap(), full, "{statement}");
        assert_eq!(disk.journal.load_all_snapshots::<Counter>("counter").await.unwrap(), [(stream, full)]);
    }
}

#[tokio::test]
async fn a_state_that_no_event_has_led_to_is_refused() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let ahead = Loaded { state: Counter::default(), version: 2 };
    let refused = disk.journal.snapshot(&stream, &ahead).await.unwrap_err();
    insta::assert_snapshot!(refused, @"stream counter/a is at version 0, expected version 2");
    disk.journal.append(append(&stream, Expected::Any, &[added(1)])).await.unwrap();
    let refused = disk.journal.snapshot(&stream, &ahead).await.unwrap_err();
    assert!(matches!(refused, AppendError::Conflict { expected: Expected::Version(2), actual: 1, .. }), "{refused}");
    assert!(kept(&disk).is_empty());
    let nothing = disk.journal.load_snapshot::<Counter>(&counter("none")).await.unwrap();
    assert_eq!(nothing, Loaded::default());
}

#[tokio::test]
async fn the_last_event_of_each_stream_of_a_kind() {
    let disk = OnDisk::new();
    assert!(disk.journal.last_events("counter").await.unwrap().is_empty());
    for (stream, events) in [("b", 3), ("a", 1), ("c", 2), ("a", 4)] {
        let events: Vec<_> = (0..events).map(added).collect();
        disk.journal.append(append(&counter(stream), Expected::Any, &events)).await.unwrap();
    }
    let other = journal::StreamId::new("counters", "a");
    disk.journal.append(append(&other, Expected::Any, &[added(1)])).await.unwrap();
    let last: Vec<_> = disk
        .journal
        .last_events("counter")
        .await
        .unwrap()
        .into_iter()
        .map(|event| (event.stream.id, event.version, event.position))
        .collect();
    let expected = [("a", 5, 10), ("b", 3, 3), ("c", 2, 6)];
    assert_eq!(last, expected.map(|(id, version, position)| (id.to_owned(), version, position)));
}

#[tokio::test]
async fn the_last_event_of_each_stream_that_has_a_new_one() {
    let disk = OnDisk::new();
    for (stream, events) in [("b", 3), ("a", 1), ("c", 2), ("a", 4)] {
        let events: Vec<_> = (0..events).map(added).collect();
        disk.journal.append(append(&counter(stream), Expected::Any, &events)).await.unwrap();
    }
    let other = journal::StreamId::new("counters", "a");
    disk.journal.append(append(&other, Expected::Any, &[added(1)])).await.unwrap();
    let last = async |after| {
        let last = disk.journal.last_events_after("counter", after).await.unwrap();
        last.into_iter().map(|event| (event.stream.id, event.version, event.position)).collect::<Vec<_>>()
    };
    let expected = [("b", 3, 3), ("c", 2, 6), ("a", 5, 10)].map(|(id, version, at)| (id.to_owned(), version, at));
    assert_eq!(last(0).await, expected);
    assert_eq!(last(2).await, expected);
    assert_eq!(last(3).await, expected[1..]);
    assert_eq!(last(9).await, expected[2..]);
    assert!(last(10).await.is_empty());
    assert!(last(u64::MAX).await.is_empty());
}

#[tokio::test]
async fn the_events_of_a_keys_transaction() {
    let disk = OnDisk::new();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
    let one = keyed("one", append(&counter("a"), Expected::Any, &[added(2), added(3)]));
    let more = append(&counter("b"), Expected::Any, &[added(4)]);
    disk.journal.append_all(vec![one, more]).await.unwrap();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(5)])).await.unwrap();
    let of_key = disk.journal.events_of_key("one").await.unwrap();
    assert_eq!(of_key.iter().map(|event| event.position).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(disk.journal.events_of_key("another").await.unwrap().is_empty());
}
