//! JRNL-2: for any history, the state that is folded from the log is the state that was kept live.

use std::collections::BTreeMap;
use std::sync::Arc;

use journal::{AppendError, Expected, Fold, Journal, Loaded, NewEvent, ReadError, Recorded};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fixture::{Counter, CounterEvent, OnDisk, added, append, append_raw, counter, keyed, noon, raw};

/// One append of a history: to which stream, what it expects, with which key.
#[derive(Clone, Debug)]
struct Step {
    stream: u8,
    expects: Expects,
    key: Option<u8>,
    events: Vec<CounterEvent>,
}

#[derive(Clone, Debug)]
enum Expects {
    Anything,
    WhatIs,
    Something(u64),
}

fn event() -> impl Strategy<Value = CounterEvent> {
    prop_oneof![
        (0..1000_u64).prop_map(added),
        any::<String>().prop_map(CounterEvent::Labelled),
        Just(CounterEvent::Reset),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let expects = prop_oneof![
        1 => Just(Expects::Anything),
        3 => Just(Expects::WhatIs),
        1 => (0..6_u64).prop_map(Expects::Something),
    ];
    // Few streams, keys and lengths, so that histories meet themselves again.
    let key = prop::option::weighted(0.3, 0..4_u8);
    (0..3_u8, expects, key, vec(event(), 1..4)).prop_map(|(stream, expects, key, events)| Step {
        stream,
        expects,
        key,
        events,
    })
}

/// What a history comes to, worked out without the journal.
#[derive(Default)]
struct Model {
    streams: BTreeMap<String, Vec<CounterEvent>>,
    keys: BTreeMap<u8, (String, Vec<CounterEvent>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Appended(u64),
    Repeated,
    Conflict,
    KeyReused,
}

impl Model {
    fn step(&mut self, id: &str, expected: Expected, step: &Step) -> Outcome {
        let payload = (id.to_owned(), step.events.clone());
        if let Some(used) = step.key.and_then(|key| self.keys.get(&key)) {
            return if *used == payload { Outcome::Repeated } else { Outcome::KeyReused };
        }
        let version = self.version(id);
        if !matches!(expected, Expected::Any) && expected != Expected::Version(version) {
            return Outcome::Conflict;
        }
        self.streams.entry(id.to_owned()).or_default().extend(step.events.clone());
        self.keys.extend(step.key.map(|key| (key, payload)));
        Outcome::Appended(self.version(id))
    }

    fn version(&self, id: &str) -> u64 {
        self.streams.get(id).map_or(0, |events| events.len() as u64)
    }

    /// Total and label after the stream's events.
    fn state(&self, id: &str) -> (u64, Option<String>) {
        self.streams[id].iter().fold((0, None), |(total, label), event| match event {
            CounterEvent::Added { amount } => (total + amount, label),
            CounterEvent::Labelled(label) => (total, Some(label.clone())),
            CounterEvent::Reset => (0, label),
        })
    }
}

async fn check_history(steps: Vec<Step>) {
    let disk = OnDisk::new();
    let mut model = Model::default();
    let mut live: BTreeMap<String, Loaded<Counter>> = BTreeMap::new();
    for step in steps {
        let id = format!("s{}", step.stream);
        let expected = match step.expects {
            Expects::Anything => Expected::Any,
            Expects::WhatIs => Expected::Version(model.version(&id)),
            Expects::Something(version) => Expected::Version(version),
        };
        let mut asked = append(&counter(&id), expected, &step.events);
        if let Some(key) = step.key {
            asked = keyed(&key.to_string(), asked);
        }
        let outcome = match disk.journal.append(asked).await {
            Ok(done) => {
                // A repeat may be older than the state: taking it in again must change nothing.
                let state = live.entry(id.clone()).or_default();
                done.events.iter().for_each(|event| state.advance(event).unwrap());
                if done.repeated { Outcome::Repeated } else { Outcome::Appended(done.last_version) }
            }
            Err(AppendError::Conflict { actual, .. }) => {
                assert_eq!(actual, model.version(&id));
                Outcome::Conflict
            }
            Err(AppendError::KeyReused { .. }) => Outcome::KeyReused,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(outcome, model.step(&id, expected, &step));
    }
    let again = disk.journal.clone();
    disk.journal.close().await;
    assert!(matches!(again.load::<Counter>(&counter("s0")).await, Err(ReadError::Closed)));
    let reopened = Journal::open(&disk.path(), Arc::new(noon())).unwrap();
    for (id, live) in &live {
        let folded = reopened.load::<Counter>(&counter(id)).await.unwrap();
        assert_eq!(folded, *live);
        assert_eq!((folded.state.total, folded.state.label), model.state(id));
        assert_eq!(folded.version, model.version(id));
    }
    let all = reopened.load_all::<Counter>("counter").await.unwrap();
    let expected: Vec<_> = live.into_iter().map(|(id, live)| (counter(&id), live)).collect();
    assert_eq!(all, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn folding_the_log_equals_the_live_state(steps in vec(step(), 0..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check_history(steps));
    }
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_at_its_beginning() {
    let disk = OnDisk::new();
    let loaded = disk.journal.load::<Counter>(&counter("none")).await.unwrap();
    assert_eq!(loaded, Loaded::default());
    assert_eq!(loaded.version, 0);
    assert!(disk.journal.load_all::<Counter>("counter").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_state_takes_no_event_out_of_turn() {
    let disk = OnDisk::new();
    let asked = append(&counter("a"), Expected::Any, &[added(1), added(2), added(3)]);
    let events = disk.journal.append(asked).await.unwrap().events;
    let mut live = Loaded::<Counter>::default();
    live.advance(&events[0]).unwrap();
    let refused = live.advance(&events[2]).unwrap_err();
    assert!(matches!(refused, ReadError::Gap { expected: 2, found: 3, .. }), "{refused}");
    assert_eq!((live.state.total, live.version), (1, 1));
}

#[tokio::test]
async fn unknown_kinds_stop_a_fold_unless_their_writer_lets_them_be_skipped() {
    let disk = OnDisk::new();
    let (strict, lenient) = (counter("strict"), counter("lenient"));
    for (stream, skippable) in [(&strict, false), (&lenient, true)] {
        let unknown = raw("counter.painted", 1, skippable, r#"{"colour":"red"}"#);
        let events = vec![NewEvent::encode(&added(1)).unwrap(), unknown];
        disk.journal.append(append_raw(stream, Expected::Any, events)).await.unwrap();
        let more = append(stream, Expected::Version(2), &[added(2)]);
        disk.journal.append(more).await.unwrap();
    }
    let loaded = disk.journal.load::<Counter>(&lenient).await.unwrap();
    assert_eq!((loaded.state.total, loaded.version), (3, 3));
    let refused = disk.journal.load::<Counter>(&strict).await.unwrap_err();
    insta::assert_snapshot!(refused, @r#"event 2 of stream counter/strict is of unknown kind "counter.painted""#);
    let refused = disk.journal.load_all::<Counter>("counter").await.unwrap_err();
    assert!(matches!(refused, ReadError::UnknownKind { version: 2, .. }), "{refused}");
}

/// A fold that minds what follows what.
#[derive(Debug, Default)]
struct NeverResetTwice {
    reset: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("reset twice")]
struct ResetTwice;

impl Fold for NeverResetTwice {
    type Event = CounterEvent;
    type Error = ResetTwice;

    fn apply(&mut self, event: &CounterEvent, _: &Recorded) -> Result<(), ResetTwice> {
        let again = std::mem::replace(&mut self.reset, *event == CounterEvent::Reset);
        if again && self.reset { Err(ResetTwice) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_fold_may_refuse_an_event() {
    let disk = OnDisk::new();
    let stream = counter("a");
    let resets = [CounterEvent::Reset, added(1), CounterEvent::Reset];
    disk.journal.append(append(&stream, Expected::Any, &resets)).await.unwrap();
    assert!(disk.journal.load::<NeverResetTwice>(&stream).await.unwrap().state.reset);
    disk.journal.append(append(&stream, Expected::Any, &resets)).await.unwrap();
    let refused = disk.journal.load::<NeverResetTwice>(&stream).await.unwrap_err();
    insta::assert_snapshot!(refused, @"event 4 of stream counter/a does not follow from those before it");
    let ReadError::Apply { source, .. } = refused else { panic!("{refused}") };
    assert!(source.is::<ResetTwice>());
}
