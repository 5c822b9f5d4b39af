//! JRNL-1, JRNL-3: a stream's events are found by their links, from any version on, however they
//! lie among those of others and whoever appended them.

use std::sync::Arc;

use journal::{Expected, Journal, ReadError};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fixture::{Counter, OnDisk, added, append, counter, noon, versions};

/// What is done to the journal.
#[derive(Clone, Debug)]
enum Step {
    /// So many events to each of these streams, in one transaction.
    Append(Vec<(u8, usize)>),
    /// The writer forgets where streams end.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec((0..4_u8, 1..40_usize), 1..4).prop_map(Step::Append),
        1 => Just(Step::Reopen),
    ]
}

fn name(stream: u8) -> String {
    format!("s{stream}")
}

async fn check(steps: Vec<Step>) {
    let mut disk = OnDisk::new();
    let mut lengths = [0_u64; 4];
    for step in steps {
        match step {
            Step::Append(parts) => {
                let part = |(stream, count): (u8, usize)| {
                    let stream_length = &mut lengths[usize::from(stream)];
                    let expected = Expected::Version(*stream_length);
                    *stream_length += count as u64;
                    append(&counter(&name(stream)), expected, &vec![added(1); count])
                };
                disk.journal.append_all(parts.into_iter().map(part).collect()).await.unwrap();
            }
            Step::Reopen => {
                disk.journal.close().await;
                disk.journal = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
            }
        }
    }
    let reader = Journal::open_read_only(&disk.path()).unwrap();
    assert!(reader.verify().unwrap().problems.is_empty());
    for (stream, length) in (0..).zip(lengths) {
        let stream = counter(&name(stream));
        for after in [0, 1, length / 3, length / 2, length.saturating_sub(1), length, length + 1, u64::MAX] {
            let expected: Vec<_> = (after.saturating_add(1)..=length).collect();
            let read = disk.journal.read(&stream, after).await.unwrap();
            assert_eq!(versions(&read), expected, "of {stream} after {after}");
            assert!(read.iter().all(|event| event.stream == stream));
            assert!(read.is_sorted_by(|one, other| one.position < other.position));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn every_event_is_found_from_any_version_on(steps in vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check(steps));
    }
}

/// A link that is wrong is not followed to another event: neither by one who reads nor by one who appends.
#[tokio::test]
async fn a_wrong_link_is_not_followed() {
    let disk = OnDisk::new();
    for _ in 0..3 {
        disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
        disk.journal.append(append(&counter("b"), Expected::Any, &[added(9)])).await.unwrap();
    }
    disk.journal.close().await;
    let spoil = |statements: &str| {
        let stranger = disk.stranger();
        stranger.execute_batch(&format!("DROP TRIGGER IF EXISTS events_stand; {statements}")).unwrap();
    };
    let story = async || {
        let journal = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
        let read = journal.read(&counter("a"), 0).await.map(|events| versions(&events));
        let loaded = journal.load::<Counter>(&counter("a")).await.map(|loaded| loaded.version);
        let appended = journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await;
        journal.close().await;
        let told = |error: &dyn std::error::Error| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        assert!(matches!(read, Ok(_) | Err(ReadError::Unlinked { .. })));
        [
            read.map_or_else(|error| told(&error), |versions| format!("{versions:?}")),
            loaded.map_or_else(|error| told(&error), |version| version.to_string()),
            appended.map_or_else(|error| told(&error), |new| new.last_version.to_string()),
        ]
        .join("\n")
    };

    // To an event of another stream, to none, to one of another version; what an append needs not, it does not look at.
    let mut seen = Vec::new();
    for (last, before) in [(6, 3), (9, 3), (5, 5), (5, 2)] {
        spoil(&format!(
            "UPDATE streams SET version = 3, last = {last} WHERE id = 'a';
             UPDATE events SET before = {before} WHERE position = 5"
        ));
        seen.push(format!("last {last}, before {before}\n{}", story().await));
    }
    insta::assert_snapshot!(seen.join("\n\n"), @"
    last 6, before 3
    event 3 of stream counter/a does not stand at position 6, where it is looked for
    event 3 of stream counter/a does not stand at position 6, where it is looked for
    events that the append builds on cannot be read: event 3 of stream counter/a does not stand at position 6, where it is looked for

    last 9, before 3
    event 3 of stream counter/a does not stand at position 9, where it is looked for
    event 3 of stream counter/a does not stand at position 9, where it is looked for
    events that the append builds on cannot be read: event 3 of stream counter/a does not stand at position 9, where it is looked for

    last 5, before 5
    event 2 of stream counter/a does not stand at position 5, where it is looked for
    event 2 of stream counter/a does not stand at position 5, where it is looked for
    4

    last 5, before 2
    event 2 of stream counter/a does not stand at position 2, where it is looked for
    event 2 of stream counter/a does not stand at position 2, where it is looked for
    4
    ");
}
