//! The rules of the dispatcher, by example and by property.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use uuid::Uuid;

use super::{Core, Effect, Event, Limits};
use crate::{
    chat::{Room, SurfaceKind},
    dispatch::SessionKey,
    people::Role,
};

const LIMITS: Limits =
    Limits { window: Duration::from_millis(1500), max_window: Duration::from_secs(8), max_queue: 100, max_turns: 4 };

fn session(project: u8, room: u8) -> SessionKey {
    SessionKey {
        project: Uuid::from_u128(u128::from(project)),
        room: Room { surface: SurfaceKind::Console, id: format!("room{room}") },
        thread: None,
    }
}

/// A core with a short way to say and see things.
struct Check {
    core: Core<u32, u32>,
    now: Duration,
    running: Vec<(SessionKey, Uuid)>,
}

impl Check {
    fn new(limits: Limits) -> Self {
        Self { core: Core::new(limits, Uuid::now_v7), now: Duration::ZERO, running: Vec::new() }
    }

    /// Feeds one event, and tells the effects as short words.
    fn on(&mut self, event: Event<u32, u32>) -> Vec<String> {
        let effects = self.core.on(self.now, event);
        effects
            .into_iter()
            .map(|effect| match effect {
                Effect::Start(batch) => {
                    self.running.push((batch.session, batch.id));
                    format!("start {:?}", batch.messages)
                }
                Effect::Cancel { batch, everywhere } => {
                    assert!(self.running.iter().any(|(_, running)| *running == batch), "only what runs is cancelled");
                    if everywhere { "cancel everywhere".to_owned() } else { "cancel".to_owned() }
                }
                Effect::Full(message) => format!("full {message}"),
                Effect::Stopped { request, ran, dropped } => {
                    format!("stopped {request} ran {} dropped {dropped:?}", ran.len())
                }
            })
            .collect()
    }

    fn say(&mut self, key: &SessionKey, message: u32) -> Vec<String> {
        self.on(Event::Message { session: key.clone(), rights: Role::Admin, message })
    }

    fn wait(&mut self, ms: u64) -> Vec<String> {
        self.now += Duration::from_millis(ms);
        self.on(Event::Tick)
    }

    fn stop(&mut self, key: &SessionKey, request: u32) -> Vec<String> {
        self.on(Event::Stop { room: Some(key.room.clone()), project: key.project, request })
    }

    fn stop_everywhere(&mut self, key: &SessionKey, request: u32) -> Vec<String> {
        self.on(Event::Stop { room: None, project: key.project, request })
    }

    fn resume(&mut self, key: &SessionKey) -> Vec<String> {
        let batch = Uuid::now_v7();
        self.running.push((key.clone(), batch));
        self.on(Event::Resumed { session: key.clone(), batch })
    }

    fn end(&mut self, key: &SessionKey) -> Vec<String> {
        let at = self.running.iter().position(|(running, _)| running == key).expect("a turn runs in this session");
        let (_, batch) = self.running.remove(at);
        self.on(Event::Ended { batch })
    }
}

#[test]
fn a_batch_closes_a_window_after_its_latest_message() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    assert!(check.say(&key, 1).is_empty());
    assert!(check.wait(1400).is_empty());
    assert!(check.say(&key, 2).is_empty());
    assert!(check.wait(1499).is_empty());
    assert_eq!(check.wait(1), ["start [1, 2]"]);
}

#[test]
fn a_steady_typist_is_answered() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    let mut started = Vec::new();
    for message in 0..9 {
        started.extend(check.say(&key, message));
        started.extend(check.wait(1000));
    }
    assert_eq!(started, ["start [0, 1, 2, 3, 4, 5, 6, 7]"], "closed 8 s after its first message");
}

#[test]
fn what_comes_during_a_turn_is_one_batch_without_a_window() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say(&key, 1);
    assert_eq!(check.wait(1500), ["start [1]"]);
    assert!(check.say(&key, 2).is_empty());
    assert!(check.wait(60_000).is_empty());
    assert!(check.say(&key, 3).is_empty());
    assert_eq!(check.end(&key), ["start [2, 3]"]);
    assert!(check.end(&key).is_empty());
    assert!(check.core.is_idle(), "an idle room costs nothing");
}

#[test]
fn rights_are_never_merged_and_order_is_kept() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say(&key, 1);
    assert_eq!(
        check.on(Event::Message { session: key.clone(), rights: Role::Member, message: 2 }),
        ["start [1]"],
        "the first batch cannot grow any more"
    );
    check.say(&key, 3);
    assert_eq!(check.end(&key), ["start [2]"]);
    assert_eq!(check.end(&key), ["start [3]"]);
}

#[test]
fn two_rooms_of_one_project_take_turns_and_two_projects_do_not_wait() {
    let mut check = Check::new(LIMITS);
    let (one, other, elsewhere) = (session(1, 1), session(1, 2), session(2, 3));
    check.say(&one, 1);
    check.say(&other, 2);
    check.say(&elsewhere, 3);
    assert_eq!(check.wait(1500), ["start [1]", "start [3]"]);
    assert_eq!(check.end(&one), ["start [2]"]);
}

#[test]
fn turns_beyond_the_limit_wait_in_order() {
    let mut check = Check::new(Limits { max_turns: 2, ..LIMITS });
    let keys: Vec<_> = (0..4).map(|n| session(n, n)).collect();
    for (message, key) in [0, 1, 2, 3].into_iter().zip(&keys).rev() {
        check.say(key, message);
        check.wait(10);
    }
    assert_eq!(check.wait(1500), ["start [3]", "start [2]"]);
    assert_eq!(check.end(&keys[3]), ["start [1]"]);
    assert_eq!(check.end(&keys[2]), ["start [0]"]);
}

#[test]
fn stop_says_what_it_did() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    assert_eq!(check.stop(&key, 10), ["stopped 10 ran 0 dropped []"], "idle");
    check.say(&key, 1);
    assert_eq!(check.stop(&key, 11), ["stopped 11 ran 0 dropped [1]"], "during coalescing");
    assert!(check.wait(10_000).is_empty());
    check.say(&key, 2);
    check.wait(1500);
    check.say(&key, 3);
    assert_eq!(check.stop(&key, 12), ["cancel"]);
    assert!(check.stop(&key, 13).is_empty(), "the turn is asked once");
    assert!(check.say(&key, 4).is_empty(), "what is said after the stop is kept");
    assert_eq!(check.end(&key), ["stopped 12 ran 1 dropped [3]", "stopped 13 ran 1 dropped []", "start [4]"]);
}

#[test]
fn a_project_is_stopped_in_all_rooms_and_nothing_of_it_is_left() {
    let mut check = Check::new(LIMITS);
    let (one, other, elsewhere) = (session(1, 1), session(1, 2), session(2, 1));
    check.say(&one, 1);
    assert_eq!(check.wait(1500), ["start [1]"]);
    check.say(&other, 2);
    check.say(&elsewhere, 3);
    assert_eq!(check.stop_everywhere(&one, 10), ["cancel everywhere"]);
    check.say(&other, 4);
    check.say(&one, 5);
    assert_eq!(check.wait(1500), ["start [3]"], "another project is let alone");
    assert_eq!(check.end(&one), ["stopped 10 ran 1 dropped [2, 5, 4]"]);
    assert_eq!(check.stop_everywhere(&one, 11), ["stopped 11 ran 0 dropped []"]);
    assert!(check.end(&elsewhere).is_empty());
    assert!(check.core.is_idle());
}

#[test]
fn a_turn_of_an_earlier_gateway_holds_its_place() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    assert!(check.resume(&key).is_empty());
    check.say(&key, 1);
    assert!(check.wait(5000).is_empty());
    assert_eq!(check.end(&key), ["start [1]"]);
}

#[test]
fn two_turns_of_an_earlier_gateway_in_one_project_hold_it_until_both_have_ended() {
    let mut check = Check::new(Limits { max_turns: 2, ..LIMITS });
    let (one, other, third, elsewhere) = (session(1, 1), session(1, 2), session(1, 3), session(2, 1));
    check.resume(&one);
    check.resume(&other);
    check.say(&third, 1);
    check.say(&elsewhere, 2);
    assert!(check.wait(1500).is_empty(), "both count against the limit");
    assert_eq!(check.end(&one), ["start [2]"], "the project is still busy");
    assert_eq!(check.end(&other), ["start [1]"]);
}

#[test]
fn a_stop_of_two_turns_is_done_when_both_have_ended() {
    let mut check = Check::new(LIMITS);
    let (one, other) = (session(1, 1), session(1, 2));
    check.resume(&one);
    check.resume(&other);
    assert_eq!(check.stop(&one, 10), ["cancel"]);
    assert_eq!(check.stop_everywhere(&one, 11), ["cancel everywhere"], "one of them is asked already");
    assert!(check.end(&other).is_empty());
    assert_eq!(check.end(&one), ["stopped 10 ran 1 dropped []", "stopped 11 ran 2 dropped []"]);
}

#[test]
fn a_full_queue_says_so() {
    let (mut check, key) = (Check::new(Limits { max_queue: 2, ..LIMITS }), session(1, 1));
    check.say(&key, 1);
    check.say(&key, 2);
    assert_eq!(check.say(&key, 3), ["full 3"]);
}

#[test]
fn the_next_deadline_is_the_first_window_that_closes() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    assert_eq!(check.core.next_deadline(), None);
    check.say(&key, 1);
    assert_eq!(check.core.next_deadline(), Some(LIMITS.window));
    check.wait(1500);
    assert_eq!(check.core.next_deadline(), None, "a running turn ends by an event, not by time");
}

#[derive(Debug, Clone)]
enum Step {
    Say { project: u8, room: u8, admin: bool },
    Wait(u16),
    Stop { project: u8, room: Option<u8> },
    End(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3u8, 0..3u8, any::<bool>()).prop_map(|(project, room, admin)| Step::Say { project, room, admin }),
        2 => (0..3000u16).prop_map(Step::Wait),
        1 => (0..3u8, prop::option::of(0..3u8)).prop_map(|(project, room)| Step::Stop { project, room }),
        2 => any::<u8>().prop_map(Step::End),
    ]
}

proptest! {
    /// Whatever happens: every message ends started once, dropped once or refused once; order is kept within
    /// a session; one turn runs at a time per session and per project; never more than the limit. Turns that were
    /// found running at start are the exception: those may be more, and nothing starts beside them. When a whole
    /// project is stopped, nothing of it runs or waits.
    #[test]
    fn every_message_ends_once(
        found in prop::collection::btree_set((0..3u8, 0..3u8), 0..4),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits = Limits { max_queue: 5, max_turns: 2, ..LIMITS };
        let mut core: Core<(SessionKey, u32), u32> = Core::new(limits, Uuid::now_v7);
        let mut now = Duration::ZERO;
        let mut said = 0u32;
        let mut ended = BTreeMap::new();
        let mut last_started: BTreeMap<SessionKey, u32> = BTreeMap::new();
        let mut running: BTreeMap<Uuid, SessionKey> = BTreeMap::new();
        let (mut asked, mut reported) = (0u32, 0u32);
        let mut everywhere: BTreeMap<u32, Uuid> = BTreeMap::new();
        for (project, room) in found {
            let (key, batch) = (session(project, room), Uuid::now_v7());
            let effects = core.on(now, Event::Resumed { session: key.clone(), batch });
            prop_assert!(effects.is_empty());
            running.insert(batch, key);
        }
        let found: BTreeSet<Uuid> = running.keys().copied().collect();

        let drain = (0..400).flat_map(|_| [Step::Wait(9000), Step::End(0)]);
        for step in steps.into_iter().chain(drain) {
            let event = match step {
                Step::Say { project, room, admin } => {
                    said += 1;
                    let key = session(project, room);
                    let rights = if admin { Role::Admin } else { Role::Member };
                    Event::Message { session: key.clone(), rights, message: (key, said) }
                }
                Step::Wait(ms) => {
                    now += Duration::from_millis(ms.into());
                    Event::Tick
                }
                Step::Stop { project, room } => {
                    asked += 1;
                    let project = session(project, 0).project;
                    if room.is_none() {
                        everywhere.insert(asked, project);
                    }
                    Event::Stop { room: room.map(|room| session(0, room).room), project, request: asked }
                }
                Step::End(which) => {
                    let Some(batch) = running.keys().nth(usize::from(which) % running.len().max(1)).copied() else { continue };
                    running.remove(&batch);
                    Event::Ended { batch }
                }
            };
            for effect in core.on(now, event) {
                match effect {
                    Effect::Start(batch) => {
                        for (key, n) in &batch.messages {
                            prop_assert_eq!(key, &batch.session);
                            prop_assert!(last_started.insert(key.clone(), *n).is_none_or(|before| before < *n), "order");
                            prop_assert!(ended.insert(*n, "started").is_none());
                        }
                        prop_assert!(running.values().all(|key| key.project != batch.session.project), "one per project");
                        running.insert(batch.id, batch.session);
                        prop_assert!(running.len() <= limits.max_turns);
                    }
                    Effect::Full((_, n)) => prop_assert!(ended.insert(n, "full").is_none()),
                    Effect::Stopped { request, ran, dropped } => {
                        reported += 1;
                        prop_assert!(ran.iter().all(|batch| !running.contains_key(batch)), "what was stopped is over");
                        if let Some(project) = everywhere.get(&request) {
                            prop_assert!(running.values().all(|key| key.project != *project), "nothing of it runs");
                            prop_assert_eq!(core.waiting_on(*project), 0, "nothing of it waits");
                        }
                        for (_, n) in dropped {
                            prop_assert!(ended.insert(n, "dropped").is_none());
                        }
                    }
                    Effect::Cancel { batch, .. } => prop_assert!(running.contains_key(&batch)),
                }
            }
            let begun = running.iter().filter(|(batch, _)| !found.contains(batch)).map(|(_, key)| key.project);
            let projects: BTreeSet<_> = begun.clone().collect();
            prop_assert_eq!(projects.len(), begun.count(), "one turn at a time per project");
        }
        prop_assert_eq!(ended.len(), usize::try_from(said).expect("it fits"), "nothing is lost");
        prop_assert_eq!(asked, reported, "every stop is answered");
        prop_assert!(core.is_idle());
    }
}
