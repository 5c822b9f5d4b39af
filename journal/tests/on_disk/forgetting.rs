//! JRNL-8: texts come and go with no trace, and the events that name them stay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use journal::{AppendError, Clock, Expected, Journal, NewEvent};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::fixture::{Counter, OnDisk, added, append, append_raw, counter, keyed, marked, marks_on_disk, noon};

fn event(texts: &[(Uuid, &str)]) -> NewEvent {
    let event = NewEvent::encode(&added(1)).unwrap();
    texts.iter().fold(event, |event, (id, body)| event.with_text(*id, *body))
}

async fn say(journal: &Journal, id: Uuid, body: &str) {
    journal.append(append_raw(&counter("a"), Expected::Any, vec![event(&[(id, body)])])).await.unwrap();
}

/// A clock that a test moves on.
#[derive(Clone)]
struct Wound(Arc<Mutex<Timestamp>>);

impl Clock for Wound {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

impl Wound {
    fn on(&self, seconds: i64) -> Timestamp {
        let mut now = self.0.lock().unwrap();
        *now += SignedDuration::from_secs(seconds);
        *now
    }
}

#[tokio::test]
async fn texts_are_there_until_they_are_erased() {
    let mut disk = OnDisk::new();
    let [one, two, three, never] = [1, 2, 3, 4].map(Uuid::from_u128);
    let asked = append_raw(
        &counter("a"),
        Expected::Any,
        vec![event(&[(one, "uno\u{0}"), (two, "")]), event(&[(three, "tre")])],
    );
    disk.journal.append(asked).await.unwrap();
    let texts =
        |ids: &[(Uuid, &str)]| ids.iter().map(|(id, body)| (*id, (*body).to_owned())).collect::<HashMap<_, _>>();
    let all = || vec![one, two, three, never];
    let seen = disk.journal.texts(all()).await.unwrap();
    assert_eq!(seen, texts(&[(one, "uno\u{0}"), (two, ""), (three, "tre")]));

    assert_eq!(disk.journal.erase(vec![one, never, one]).await.unwrap(), 1);
    assert_eq!(disk.journal.erase(all()).await.unwrap(), 2, "those that were still there");
    assert_eq!(disk.journal.erase(Vec::new()).await.unwrap(), 0);
    assert!(disk.journal.texts(all()).await.unwrap().is_empty());

    disk.journal.close().await;
    assert!(matches!(disk.journal.erase(all()).await, Err(AppendError::Closed)));
    disk.journal = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
    assert!(disk.journal.texts(all()).await.unwrap().is_empty());
    assert_eq!(disk.journal.load::<Counter>(&counter("a")).await.unwrap().state.total, 2, "the events stay");
}

#[tokio::test]
async fn a_repeat_stores_no_text_and_needs_none() {
    let disk = OnDisk::new();
    let [first, second] = [1, 2].map(Uuid::from_u128);
    let ask = |texts: &[(Uuid, &str)]| keyed("k", append_raw(&counter("a"), Expected::Any, vec![event(texts)]));
    assert!(!disk.journal.append(ask(&[(first, "said")])).await.unwrap().repeated);
    for texts in [&[(first, "said")][..], &[(first, "otherwise")], &[(second, "new")], &[]] {
        assert!(disk.journal.append(ask(texts)).await.unwrap().repeated);
    }
    let stored = disk.journal.texts(vec![first, second]).await.unwrap();
    assert_eq!(stored, HashMap::from([(first, "said".to_owned())]));
    // Nor does it bring back what was erased.
    disk.journal.erase(vec![first]).await.unwrap();
    assert!(disk.journal.append(ask(&[(first, "said")])).await.unwrap().repeated);
    assert!(disk.journal.texts(vec![first]).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_id_of_a_text_is_used_once() {
    let disk = OnDisk::new();
    let [used, erased, free] = [1, 2, 3].map(Uuid::from_u128);
    say(&disk.journal, used, "one").await;
    say(&disk.journal, erased, "two").await;
    disk.journal.erase(vec![erased]).await.unwrap();
    for texts in [&[(used, "again")][..], &[(erased, "again")], &[(free, "x"), (free, "y")]] {
        let asked = keyed("k", append_raw(&counter("b"), Expected::Any, vec![event(texts)]));
        let refused = disk.journal.append(asked).await.unwrap_err();
        assert!(matches!(refused, AppendError::TextExists { .. }), "{refused}");
        if texts[0].0 == used {
            insta::assert_snapshot!(refused, @"text 00000000-0000-0000-0000-000000000001 for stream counter/b exists already or was erased");
        }
    }
    assert!(disk.journal.read(&counter("b"), 0).await.unwrap().is_empty());
    // An append that is refused for another reason leaves neither text nor key behind.
    let late = append_raw(&counter("b"), Expected::Version(7), vec![event(&[(free, "x")])]);
    disk.journal.append(keyed("k", late)).await.unwrap_err();
    assert!(disk.journal.texts(vec![free]).await.unwrap().is_empty());
    let asked = append_raw(&counter("b"), Expected::Any, vec![event(&[(free, "x")])]);
    assert!(!disk.journal.append(keyed("k", asked)).await.unwrap().repeated);
    assert_eq!(disk.journal.texts(vec![free]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn texts_are_neither_changed_nor_deleted_nor_brought_back() {
    let disk = OnDisk::new();
    let [there, erased] = [1, 2].map(Uuid::from_u128);
    say(&disk.journal, there, "one").await;
    say(&disk.journal, erased, "two").await;
    disk.journal.erase(vec![erased]).await.unwrap();
    for statement in [
        "UPDATE texts SET body = 'other'",
        "UPDATE texts SET body = 'again' WHERE body IS NULL",
        "UPDATE texts SET body = NULL, time_us = 0",
        "UPDATE texts SET body = NULL, id = x'00'",
        "DELETE FROM texts",
    ] {
        disk.stranger().execute_batch(statement).unwrap_err();
    }
    let texts = disk.journal.texts(vec![there, erased]).await.unwrap();
    assert_eq!(texts, HashMap::from([(there, "one".to_owned())]));
}

#[tokio::test]
async fn retention_erases_what_is_older_and_nothing_else() {
    let clock = Wound(Arc::new(Mutex::new(noon())));
    let disk = OnDisk::with_clock(clock.clone());
    let ids: Vec<_> = (0..700).map(Uuid::from_u128).collect();
    let (old, new) = ids.split_at(600);
    for ids in old.chunks(200) {
        let events = ids.iter().map(|id| event(&[(*id, &marked(*id, 3))])).collect();
        disk.journal.append(append_raw(&counter("a"), Expected::Any, events)).await.unwrap();
    }
    let boundary = clock.on(60);
    for id in new {
        say(&disk.journal, *id, &marked(*id, 3)).await;
    }
    assert_eq!(disk.journal.erase_before(noon()).await.unwrap(), 0, "not those of that very moment");
    assert_eq!(disk.journal.erase_before(boundary).await.unwrap(), 600);
    assert_eq!(disk.journal.erase_before(boundary).await.unwrap(), 0);
    let left: BTreeSet<_> = disk.journal.texts(ids.clone()).await.unwrap().into_keys().collect();
    assert_eq!(left, new.iter().copied().collect());
    assert_eq!(marks_on_disk(&disk.path()), new.iter().copied().collect());
    assert_eq!(disk.journal.load::<Counter>(&counter("a")).await.unwrap().version, 700);
}

#[tokio::test]
async fn retention_lets_appends_in_between() {
    let disk = OnDisk::new();
    let events = (0..5000_u128).map(|id| event(&[(Uuid::from_u128(id), "x")])).collect();
    disk.journal.append(append_raw(&counter("a"), Expected::Any, events)).await.unwrap();
    let erasing = disk.journal.erase_before(Timestamp::MAX);
    tokio::pin!(erasing);
    let mut appended = 0;
    loop {
        tokio::select! {
            biased;
            erased = &mut erasing => { assert_eq!(erased.unwrap(), 5000); break }
            done = disk.journal.append(append(&counter("b"), Expected::Any, &[added(1)])) => {
                done.unwrap();
                appended += 1;
            }
        }
    }
    assert!(appended > 1, "{appended} appends while 5,000 texts were erased");
}

#[tokio::test]
async fn a_reader_of_the_log_delays_the_zeros_and_prevents_nothing() {
    let disk = OnDisk::new();
    let id = Uuid::from_u128(1);
    say(&disk.journal, id, &marked(id, 1)).await;
    let reader = disk.stranger();
    reader.execute_batch("BEGIN; SELECT * FROM texts").unwrap();
    assert_eq!(disk.journal.erase(vec![id]).await.unwrap(), 1);
    assert!(disk.journal.texts(vec![id]).await.unwrap().is_empty());
    assert!(marks_on_disk(&disk.path()).contains(&id), "somebody still sees it");
    reader.execute_batch("COMMIT").unwrap();
    disk.journal.append(append(&counter("a"), Expected::Any, &[added(1)])).await.unwrap();
    assert!(marks_on_disk(&disk.path()).is_empty(), "the next commit cleans up");
}

/// Anybody in a room can withdraw what is not there: the log that all appends share is not emptied for it.
#[tokio::test]
async fn what_erases_nothing_empties_no_log() {
    let disk = OnDisk::new();
    let [there, never] = [1, 2].map(Uuid::from_u128);
    say(&disk.journal, there, "one").await;
    let log = || std::fs::metadata(disk.path().with_extension("db-wal")).unwrap().len();
    assert!(log() > 0);
    assert_eq!(disk.journal.erase(vec![never]).await.unwrap(), 0);
    assert_eq!(disk.journal.erase_before(Timestamp::UNIX_EPOCH).await.unwrap(), 0);
    assert!(log() > 0);
    assert_eq!(disk.journal.erase(vec![there]).await.unwrap(), 1);
    assert_eq!(log(), 0);
}

/// Short texts share pages. Were their rows deleted, some of the rest would be moved from page to
/// page and leave copies behind, which no later erasure would find.
#[tokio::test]
async fn texts_that_share_pages_leave_no_copies() {
    let disk = OnDisk::new();
    let ids: Vec<_> = (0..997).map(Uuid::from_u128).collect();
    let texts = ids.iter().map(|id| event(&[(*id, &marked(*id, 1))]));
    disk.journal.append(append_raw(&counter("a"), Expected::Any, texts.collect())).await.unwrap();
    // In an order that thins all pages out at the same time.
    let scattered: Vec<_> = (0..ids.len()).map(|n| ids[n * 7 % ids.len()]).collect();
    let (erased, kept) = scattered.split_at(900);
    for ids in erased.chunks(30) {
        disk.journal.erase(ids.to_vec()).await.unwrap();
    }
    assert_eq!(marks_on_disk(&disk.path()), kept.iter().copied().collect());
    assert_eq!(disk.journal.texts(ids).await.unwrap().len(), kept.len());
}

/// What a history does with texts: says some of a length, or erases one of those said so far.
#[derive(Clone, Debug)]
enum Step {
    Say(Vec<usize>),
    Erase(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![4 => 1..12_usize, 2 => 12..60_usize, 1 => 60..400_usize];
    prop_oneof![
        1 => vec(length, 1..12).prop_map(Step::Say),
        2 => any::<prop::sample::Index>().prop_map(Step::Erase),
    ]
}

async fn check_history(steps: Vec<Step>) {
    let disk = OnDisk::new();
    let mut there: BTreeMap<Uuid, String> = BTreeMap::new();
    let mut said = Vec::new();
    for step in steps {
        match step {
            Step::Say(lengths) => {
                let mut events = Vec::new();
                for length in lengths {
                    let id = Uuid::now_v7();
                    let body = marked(id, length);
                    events.push(event(&[(id, &body)]));
                    there.insert(id, body);
                    said.push(id);
                }
                disk.journal.append(append_raw(&counter("a"), Expected::Any, events)).await.unwrap();
            }
            Step::Erase(which) if !said.is_empty() => {
                let id = said[which.index(said.len())];
                let expected = u64::from(there.remove(&id).is_some());
                assert_eq!(disk.journal.erase(vec![id]).await.unwrap(), expected);
            }
            Step::Erase(_) => {}
        }
    }
    let texts: BTreeMap<_, _> = disk.journal.texts(said).await.unwrap().into_iter().collect();
    assert_eq!(texts, there);
    assert_eq!(marks_on_disk(&disk.path()), there.keys().copied().collect());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn of_an_erased_text_no_byte_is_left(steps in vec(step(), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check_history(steps));
    }
}
