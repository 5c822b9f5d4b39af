//! JRNL-5: everything from a cursor on, in order, once; a slow reader holds nobody up.

use std::iter;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use journal::{Expected, ReadError};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fixture::{CounterEvent, OnDisk, added, append, counter, versions};

#[tokio::test]
async fn a_slow_reader_holds_nobody_up_and_misses_nothing() {
    let disk = OnDisk::new();
    let stream = counter("output");
    let mut slow = disk.journal.subscribe(&stream, 0);
    // Written to the end while the reader takes nothing: more than it ever reads ahead.
    for round in 0..20_u64 {
        let events: Vec<_> = (0..50).map(|n| added(round * 50 + n)).collect();
        disk.journal.append(append(&stream, Expected::Any, &events)).await.unwrap();
        let noise = append(&counter("noise"), Expected::Any, &events);
        disk.journal.append(noise).await.unwrap();
        if round == 3 {
            assert_eq!(slow.next().await.unwrap().unwrap().version, 1);
        }
    }
    let rest: Vec<_> = slow.by_ref().take(999).try_collect().await.unwrap();
    assert_eq!(versions(&rest), (2..=1000).collect::<Vec<_>>());
    assert!(rest.iter().all(|event| event.stream == stream));
    // The next one is the next one to be written: none came twice.
    disk.journal.append(append(&stream, Expected::Any, &[added(7)])).await.unwrap();
    assert_eq!(slow.next().await.unwrap().unwrap().version, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_beside_64_appenders_see_everything_once() {
    const TASKS: u64 = 64;
    const EACH: u64 = 6;
    let disk = OnDisk::new();
    let stream = counter("busy");
    let mut readers = JoinSet::new();
    for after in [0, 0, 1, 100, TASKS * EACH - 1] {
        let events = disk.journal.subscribe(&stream, after);
        readers.spawn(async move {
            let wanted = usize::try_from(TASKS * EACH - after).unwrap();
            let seen: Vec<_> = events.take(wanted).try_collect().await.unwrap();
            assert_eq!(versions(&seen), (after + 1..=TASKS * EACH).collect::<Vec<_>>());
        });
    }
    let mut writers = JoinSet::new();
    for task in 0..TASKS {
        let (journal, stream) = (disk.journal.clone(), stream.clone());
        writers.spawn(async move {
            for _ in 0..EACH {
                journal.append(append(&stream, Expected::Any, &[added(task)])).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    readers.join_all().await;
}

/// The event is committed after the subscription has looked, in vain, and before it begins to wait.
#[test]
fn a_commit_between_looking_and_waiting_wakes_the_reader() {
    // The blocking thread is one only: what it was given first it has done first.
    let runtime = Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let disk = OnDisk::new();
        let stream = counter("a");
        let mut waiting = disk.journal.subscribe(&stream, 0);
        assert!(waiting.next().now_or_never().is_none(), "it has sent for events, and the answer is not looked at");
        assert!(disk.journal.read(&stream, 0).await.unwrap().is_empty());
        disk.journal.append(append(&stream, Expected::Any, &[added(1)])).await.unwrap();
        let woken = timeout(Duration::from_secs(30), waiting.next()).await.unwrap();
        assert_eq!(woken.unwrap().unwrap().version, 1);
    });
}

#[tokio::test]
async fn large_events_come_too() {
    let disk = OnDisk::new();
    let stream = counter("large");
    let text: String = iter::repeat_n('x', 700 * 1024).collect();
    let events = vec![CounterEvent::Labelled(text); 5];
    disk.journal.append(append(&stream, Expected::Any, &events)).await.unwrap();
    let seen: Vec<_> = disk.journal.subscribe(&stream, 0).take(5).try_collect().await.unwrap();
    assert_eq!(versions(&seen), [1, 2, 3, 4, 5]);
    assert!(seen.iter().all(|event| event.data.get().len() == 700 * 1024 + 2));
}

#[tokio::test]
async fn a_cursor_beyond_the_end_waits_for_what_comes_after_it() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let mut ahead = disk.journal.subscribe(&stream, 2);
    let three = [added(1), added(2), added(3)];
    disk.journal.append(append(&stream, Expected::Any, &three)).await.unwrap();
    assert_eq!(ahead.next().await.unwrap().unwrap().version, 3);
}

#[tokio::test]
async fn closing_ends_a_subscription_with_an_error() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let mut waiting = disk.journal.subscribe(&stream, 0);
    disk.journal.append(append(&stream, Expected::Any, &[added(1)])).await.unwrap();
    assert_eq!(waiting.next().await.unwrap().unwrap().version, 1);
    let (end, ()) = tokio::join!(waiting.next(), disk.journal.close());
    assert!(matches!(end, Some(Err(ReadError::Closed))));
    assert!(waiting.next().await.is_none());
}
