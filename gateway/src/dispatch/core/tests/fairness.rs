//! Who gets a free place: a reference for the order, and that nobody waits for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use uuid::Uuid;

use super::{LIMITS, session};
use crate::{
    dispatch::{
        Common, SessionKey,
        core::{Core, Effect, Event, Limits},
    },
    people::Role,
};

const MEMBERS: Common = Common { rights: Role::Member, thread: None };

#[derive(Debug, Clone)]
enum Step {
    Say { project: u8, room: u8 },
    End(prop::sample::Index),
    Pause(u8),
    Unpause(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4u8, 0..3u8).prop_map(|(project, room)| Step::Say { project, room }),
        4 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => (0..4u8).prop_map(Step::Pause),
        1 => (0..4u8).prop_map(Step::Unpause),
    ]
}

/// What should be: batches close at once, and stand in a line.
#[derive(Default)]
struct Reference {
    line: Vec<SessionKey>,
    /// Whether something waits behind a session's turn.
    behind: BTreeSet<SessionKey>,
    running: BTreeMap<Uuid, SessionKey>,
    paused: BTreeSet<Uuid>,
}

impl Reference {
    fn may_start(&self, key: &SessionKey) -> bool {
        !self.paused.contains(&key.project) && self.running.values().all(|running| running.project != key.project)
    }

    fn said(&mut self, key: SessionKey) {
        if self.running.values().any(|running| *running == key) {
            self.behind.insert(key);
        } else if !self.line.contains(&key) {
            self.line.push(key);
        }
    }

    fn ended(&mut self, batch: Uuid) {
        let key = self.running.remove(&batch).expect("it runs");
        if self.behind.remove(&key) {
            self.line.push(key);
        }
    }

    /// Takes the effects of one event: exactly the earliest that could start have started.
    fn follow(&mut self, effects: Vec<Effect<u32, ()>>, max_turns: usize) -> TestCaseResult {
        for effect in effects.into_iter().filter(|effect| !matches!(effect, Effect::Over { .. })) {
            let Effect::Start(batch) = effect else {
                return Err(TestCaseError::fail(format!("nothing but starts was to be done: {effect:?}")));
            };
            let first = self.line.iter().position(|key| self.may_start(key));
            prop_assert_eq!(first.map(|at| self.line.remove(at)), Some(batch.session.clone()));
            self.running.insert(batch.id, batch.session);
        }
        prop_assert!(self.running.len() <= max_turns);
        let left = self.line.iter().find(|key| self.may_start(key));
        prop_assert!(self.running.len() == max_turns || left.is_none(), "a place is free, and {left:?} waits");
        Ok(())
    }
}

proptest! {
    /// A free place goes to the batch that closed first among those whose project is neither busy nor paused, and
    /// none stays free while there is one.
    #[test]
    fn places_are_given_in_the_order_of_closing(max_turns in 1..4usize, steps in vec(step(), 1..150)) {
        let limits = Limits { window: Duration::ZERO, max_turns, ..LIMITS };
        let mut core: Core<u32, ()> = Core::new(limits, Uuid::now_v7);
        let mut reference = Reference::default();
        for (message, step) in (0..).zip(steps) {
            let event = match step {
                Step::Say { project, room } => {
                    let session = session(project, room);
                    reference.said(session.clone());
                    Event::Message { session, common: MEMBERS, interrupts: false, message }
                }
                Step::End(which) => {
                    let running: Vec<_> = reference.running.keys().copied().collect();
                    if running.is_empty() {
                        continue;
                    }
                    let batch = *which.get(&running);
                    reference.ended(batch);
                    Event::Ended { batch, requeued: false }
                }
                Step::Pause(project) => {
                    let project = session(project, 0).project;
                    reference.paused.insert(project);
                    Event::Pause { project }
                }
                Step::Unpause(project) => {
                    let project = session(project, 0).project;
                    reference.paused.remove(&project);
                    Event::Unpause { project }
                }
            };
            let now = Duration::from_millis(u64::from(message));
            reference.follow(core.on(now, event), max_turns)?;
        }
    }

    /// Everybody writes again the moment their turn ends, and turns end in any order: still, while a session waits, no
    /// other has more than one turn ahead of it but those that pass it because its own project is busy.
    #[test]
    fn nobody_starves_where_everybody_always_writes(
        max_turns in 1..4usize,
        projects in 1..5u8,
        rooms in 1..4u8,
        ends in vec(any::<prop::sample::Index>(), 1..200),
    ) {
        let limits = Limits { window: Duration::ZERO, max_turns, ..LIMITS };
        let mut core: Core<u32, ()> = Core::new(limits, Uuid::now_v7);
        let mut running: BTreeMap<Uuid, SessionKey> = BTreeMap::new();
        let mut overtaken: BTreeMap<SessionKey, BTreeMap<SessionKey, u32>> = BTreeMap::new();
        let keys = (0..projects).flat_map(|project| (0..rooms).map(move |room| session(project, room)));
        let write = |session: SessionKey, message| {
            Event::Message { session, common: MEMBERS, interrupts: false, message }
        };
        let mut events: Vec<Event<u32, ()>> = keys.map(|session| write(session, 0)).collect();
        for end in ends {
            for event in events.drain(..) {
                if let Event::Message { session, .. } = &event {
                    overtaken.entry(session.clone()).or_default();
                }
                let effects = core.on(Duration::ZERO, event).into_iter();
                for effect in effects.filter(|effect| !matches!(effect, Effect::Over { .. })) {
                    let Effect::Start(batch) = effect else { panic!("nothing but starts was to be done: {effect:?}") };
                    overtaken.remove(&batch.session);
                    for (waits, by) in &mut overtaken {
                        if running.values().all(|key| key.project != waits.project) {
                            *by.entry(batch.session.clone()).or_default() += 1;
                        }
                    }
                    running.insert(batch.id, batch.session);
                }
            }
            for (waits, by) in &overtaken {
                prop_assert!(by.values().all(|times| *times <= 1), "{waits:?} is overtaken: {by:?}");
            }
            let ids: Vec<_> = running.keys().copied().collect();
            let batch = *end.get(&ids);
            let session = running.remove(&batch).expect("it runs");
            events = vec![Event::Ended { batch, requeued: false }, write(session, 0)];
        }
    }
}
