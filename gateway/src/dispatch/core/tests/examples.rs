//! Each rule by an example.

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::{LIMITS, session};
use crate::{
    dispatch::{
        Common, SessionKey,
        core::{Core, Effect, Event, Limits, Scope, Why},
    },
    people::Role,
};

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
        let mut words = Vec::new();
        for effect in effects {
            words.push(match effect {
                Effect::Start(batch) => {
                    self.running.push((batch.session, batch.id));
                    format!("start {:?}", batch.messages)
                }
                Effect::Cancel { batch, why } => {
                    assert!(self.running.iter().any(|(_, running)| *running == batch), "only what runs is cancelled");
                    match why {
                        Why::Superseded => "supersede",
                        Why::Stopped => "cancel",
                        Why::Deleted => "cancel everywhere",
                    }
                    .to_owned()
                }
                Effect::Full { message, .. } => format!("full {message}"),
                Effect::Stopped { request, ran, dropped } => {
                    format!("stopped {request} ran {} dropped {dropped:?}", ran.len())
                }
                // Comes with the end of every turn.
                Effect::Over { .. } => continue,
            });
        }
        words
    }

    fn tell(&mut self, key: &SessionKey, rights: Role, interrupts: bool, message: u32) -> Vec<String> {
        let common = Common { rights, thread: None };
        self.on(Event::Message { session: key.clone(), common, interrupts, message })
    }

    /// Says something in a thread.
    fn say_in(&mut self, key: &SessionKey, thread: &str, interrupts: bool, message: u32) -> Vec<String> {
        let common = Common { rights: Role::Admin, thread: Some(thread.into()) };
        self.on(Event::Message { session: key.clone(), common, interrupts, message })
    }

    fn say(&mut self, key: &SessionKey, message: u32) -> Vec<String> {
        self.tell(key, Role::Admin, false, message)
    }

    fn interrupt(&mut self, key: &SessionKey, message: u32) -> Vec<String> {
        self.tell(key, Role::Admin, true, message)
    }

    /// Says something, and lets its turn begin.
    fn begin(&mut self, key: &SessionKey, message: u32) {
        self.say(key, message);
        assert_eq!(self.wait(1500), [format!("start [{message}]")]);
    }

    /// Says something more, and lets the turn begin.
    fn begin_more(&mut self, key: &SessionKey, message: u32) {
        self.say(key, message);
        let started = self.wait(1500);
        assert!(matches!(&started[..], [start] if start.ends_with(&format!(" {message}]"))), "{started:?}");
    }

    fn wait(&mut self, ms: u64) -> Vec<String> {
        self.now += Duration::from_millis(ms);
        self.on(Event::Tick)
    }

    fn stop(&mut self, key: &SessionKey, request: u32) -> Vec<String> {
        self.stop_all(&[key], request)
    }

    /// Stops the projects of these sessions, in the room of the first.
    fn stop_all(&mut self, keys: &[&SessionKey], request: u32) -> Vec<String> {
        let projects = keys.iter().map(|key| key.project).collect();
        self.on(Event::Stop { scope: Scope::Room { room: keys[0].room.clone(), projects }, request })
    }

    fn stop_everywhere(&mut self, key: &SessionKey, request: u32) -> Vec<String> {
        self.on(Event::Stop { scope: Scope::Project(key.project), request })
    }

    fn resume(&mut self, key: &SessionKey, messages: &[u32]) -> Vec<String> {
        let batch = Uuid::now_v7();
        self.running.push((key.clone(), batch));
        let messages = messages.to_vec();
        let common = Common { rights: Role::Admin, thread: None };
        self.on(Event::Resumed { session: key.clone(), batch, common, messages })
    }

    fn over(&mut self, key: &SessionKey, requeued: bool) -> Vec<String> {
        let at = self.running.iter().position(|(running, _)| running == key).expect("a turn runs in this session");
        let (_, batch) = self.running.remove(at);
        self.on(Event::Ended { batch, requeued })
    }

    fn end(&mut self, key: &SessionKey) -> Vec<String> {
        self.over(key, false)
    }

    fn requeue(&mut self, key: &SessionKey) -> Vec<String> {
        self.over(key, true)
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
fn a_batch_that_waits_for_its_place_takes_messages_without_a_new_window() {
    let mut check = Check::new(LIMITS);
    let (one, other) = (session(1, 1), session(1, 2));
    check.begin(&one, 0);
    check.say(&other, 1);
    check.wait(1500);
    check.say(&other, 2);
    assert_eq!(check.end(&one), ["start [1, 2]"]);
}

#[test]
fn rights_are_never_merged_and_order_is_kept() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say(&key, 1);
    assert_eq!(check.tell(&key, Role::Member, false, 2), ["start [1]"], "the first batch cannot grow any more");
    check.say(&key, 3);
    assert_eq!(check.end(&key), ["start [2]"]);
    assert_eq!(check.end(&key), ["start [3]"]);
}

#[test]
fn threads_are_never_merged_and_each_is_answered_in_order() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 0);
    check.say_in(&key, "one", false, 1);
    check.say_in(&key, "two", false, 2);
    check.say_in(&key, "two", false, 3);
    check.say(&key, 4);
    assert_eq!(check.end(&key), ["start [1]"]);
    assert_eq!(check.end(&key), ["start [2, 3]"]);
    assert_eq!(check.end(&key), ["start [4]"]);
}

#[test]
fn only_a_message_of_its_own_thread_interrupts_a_turn() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say_in(&key, "one", false, 1);
    assert_eq!(check.wait(1500), ["start [1]"]);
    assert!(check.say_in(&key, "two", true, 2).is_empty(), "it could not be answered together with that");
    assert!(check.say_in(&key, "one", true, 3).is_empty(), "nor could this, after that");
    assert_eq!(check.end(&key), ["start [2]"]);
    assert_eq!(check.end(&key), ["start [3]"]);
    assert_eq!(check.say_in(&key, "one", true, 4), ["supersede"]);
    check.say_in(&key, "two", true, 5);
    assert_eq!(check.requeue(&key), ["start [3, 4]"]);
    check.end(&key);
    assert_eq!(check.wait(1500), ["start [5]"]);
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
    assert!(check.resume(&key, &[]).is_empty());
    check.say(&key, 1);
    assert!(check.wait(5000).is_empty());
    assert_eq!(check.end(&key), ["start [1]"]);
}

#[test]
fn two_turns_of_an_earlier_gateway_in_one_project_hold_it_until_both_have_ended() {
    let mut check = Check::new(Limits { max_turns: 2, ..LIMITS });
    let (one, other, third, elsewhere) = (session(1, 1), session(1, 2), session(1, 3), session(2, 1));
    check.resume(&one, &[]);
    check.resume(&other, &[]);
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
    check.resume(&one, &[]);
    check.resume(&other, &[]);
    assert_eq!(check.stop(&one, 10), ["cancel"]);
    assert_eq!(
        check.stop_everywhere(&one, 11),
        ["cancel everywhere", "cancel everywhere"],
        "the one that is asked already is told the stronger reason"
    );
    assert!(check.end(&other).is_empty());
    assert_eq!(check.end(&one), ["stopped 10 ran 1 dropped []", "stopped 11 ran 2 dropped []"]);
}

#[test]
fn a_stop_of_several_projects_ends_what_they_do_in_its_room_and_is_reported_once() {
    let mut check = Check::new(LIMITS);
    let (one, two, three) = (session(1, 1), session(2, 1), session(3, 1));
    let (spared, elsewhere) = (session(4, 1), session(3, 2));
    check.begin(&one, 1);
    check.begin(&two, 2);
    check.begin(&spared, 3);
    check.say(&three, 4);
    check.say(&elsewhere, 5);
    assert_eq!(check.stop_all(&[&one, &two, &three], 10), ["cancel", "cancel"]);
    assert!(check.end(&one).is_empty(), "not before all have ended");
    check.say(&one, 6);
    assert_eq!(check.wait(1500), ["start [5]"], "another room is let alone, and nothing begins that is being stopped");
    let batch = check.running.iter().find(|(key, _)| *key == two).expect("it runs").1;
    let told = check.core.on(check.now, Event::Ended { batch, requeued: false });
    let Effect::Stopped { ran, dropped, .. } = &told[0] else { panic!("{told:?}") };
    let projects: Vec<_> = ran.iter().map(|ran| ran.project).collect();
    assert_eq!((projects, dropped), (vec![one.project, two.project], &vec![4]));
    let [Effect::Over { .. }, Effect::Over { .. }, Effect::Start(batch)] = &told[1..] else { panic!("{told:?}") };
    assert_eq!(batch.messages, [6]);
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

#[test]
fn a_message_interrupts_the_turn_and_is_answered_with_what_that_turn_did_not() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 1);
    check.say(&key, 2);
    assert_eq!(check.interrupt(&key, 3), ["supersede"]);
    check.wait(1000);
    assert!(check.interrupt(&key, 4).is_empty(), "it was asked already");
    assert!(check.requeue(&key).is_empty(), "the window of the newest message is open");
    assert!(check.wait(1499).is_empty());
    assert_eq!(check.wait(1), ["start [1, 2, 3, 4]"]);
    assert!(check.end(&key).is_empty());
    assert!(check.core.is_idle());
}

#[test]
fn the_window_of_an_interruption_is_bounded_from_the_interruption_on() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 0);
    check.say(&key, 1);
    check.wait(60_000);
    let mut started = Vec::new();
    assert_eq!(check.interrupt(&key, 2), ["supersede"]);
    assert!(check.requeue(&key).is_empty());
    for message in 3..10 {
        started.extend(check.wait(1000));
        started.extend(check.interrupt(&key, message));
    }
    started.extend(check.wait(1000));
    assert_eq!(started, ["start [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"], "8 s after the interruption");
}

#[test]
fn a_turn_that_ends_after_the_window_makes_room_at_once() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 1);
    assert_eq!(check.interrupt(&key, 2), ["supersede"]);
    assert!(check.wait(1500).is_empty());
    assert_eq!(check.requeue(&key), ["start [1, 2]"]);
}

#[test]
fn a_superseded_turn_that_was_answered_first_is_done() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 1);
    assert_eq!(check.interrupt(&key, 2), ["supersede"]);
    assert!(check.end(&key).is_empty());
    assert_eq!(check.wait(1500), ["start [2]"]);
}

#[test]
fn a_message_of_somebody_with_other_rights_interrupts_nothing() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 1);
    assert!(check.tell(&key, Role::Member, true, 2).is_empty(), "it could not be answered together with that");
    assert!(check.interrupt(&key, 3).is_empty(), "nor could this, after that");
    assert_eq!(check.end(&key), ["start [2]"]);
    assert!(check.interrupt(&key, 4).is_empty());
    assert_eq!(check.end(&key), ["start [3, 4]"]);
}

/// How a turn ended is kept until every stop that names it is told.
#[test]
fn a_turn_is_over_when_no_stop_names_it_any_more() {
    let mut check = Check::new(LIMITS);
    let (one, two) = (session(1, 1), session(2, 1));
    check.begin(&one, 1);
    check.begin(&two, 2);
    check.stop_all(&[&one, &two], 10);
    check.stop_everywhere(&two, 11);
    let [first, second] = [&one, &two].map(|key| check.running.iter().find(|(of, _)| of == key).expect("it runs").1);
    assert!(check.core.on(check.now, Event::Ended { batch: first, requeued: false }).is_empty(), "one still runs");
    let told = check.core.on(check.now, Event::Ended { batch: second, requeued: false });
    let [Effect::Stopped { request: 10, .. }, Effect::Stopped { request: 11, .. }, over @ ..] = &told[..] else {
        panic!("{told:?}")
    };
    let wanted = BTreeSet::from([first, second]).into_iter().map(|batch| Effect::Over { batch });
    assert_eq!(over, wanted.collect::<Vec<_>>());
}

#[test]
fn only_a_turn_of_its_own_session_is_interrupted() {
    let mut check = Check::new(LIMITS);
    let (one, other) = (session(1, 1), session(1, 2));
    check.begin(&one, 1);
    assert!(check.interrupt(&other, 2).is_empty());
    assert!(check.wait(9000).is_empty());
    assert_eq!(check.end(&one), ["start [2]"]);
}

#[test]
fn a_stop_of_a_superseded_turn_drops_what_comes_back() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.begin(&key, 1);
    assert_eq!(check.interrupt(&key, 2), ["supersede"]);
    assert_eq!(check.stop(&key, 10), ["cancel"], "the stronger reason is told");
    assert_eq!(check.stop_everywhere(&key, 11), ["cancel everywhere"]);
    assert!(check.stop(&key, 12).is_empty(), "a weaker one is not");
    assert!(check.interrupt(&key, 3).is_empty());
    assert_eq!(
        check.requeue(&key),
        ["stopped 10 ran 1 dropped [1, 2]", "stopped 11 ran 1 dropped [3]", "stopped 12 ran 1 dropped []"],
        "each message is named once"
    );
    assert!(check.core.is_idle());
}

#[test]
fn a_turn_found_running_is_superseded_like_any_other() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.resume(&key, &[1, 2]);
    assert_eq!(check.interrupt(&key, 3), ["supersede"]);
    assert!(check.requeue(&key).is_empty());
    assert_eq!(check.wait(1500), ["start [1, 2, 3]"]);
}

#[test]
fn interruptions_cannot_grow_a_queue_past_its_bound() {
    let (mut check, key) = (Check::new(Limits { max_queue: 3, ..LIMITS }), session(1, 1));
    check.say(&key, 1);
    check.begin_more(&key, 2);
    assert_eq!(check.interrupt(&key, 3), ["supersede"]);
    assert_eq!(check.interrupt(&key, 4), ["full 4"], "two come back");
    assert!(check.requeue(&key).is_empty());
    assert_eq!(check.say(&key, 5), ["full 5"]);
    assert_eq!(check.wait(1500), ["start [1, 2, 3]"]);
    assert_eq!(check.interrupt(&key, 6), ["full 6"], "and the turn goes on");
    assert!(check.say(&key, 7).is_empty());
}

#[test]
fn what_was_taken_by_an_earlier_gateway_is_not_refused() {
    let (mut check, key) = (Check::new(Limits { max_queue: 1, ..LIMITS }), session(1, 1));
    for message in [1, 2] {
        let (session, common) = (key.clone(), Common { rights: Role::Admin, thread: None });
        assert!(
            check.on(Event::Recovered { session, common, interrupts: false, message }).is_empty(),
            "whatever the limit is now"
        );
    }
    assert_eq!(check.say(&key, 3), ["full 3"]);
    assert_eq!(check.wait(1500), ["start [1, 2]"]);
}

#[test]
fn a_removed_message_waits_no_longer() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say(&key, 1);
    check.say(&key, 2);
    assert!(check.on(Event::Removed { message: 1 }).is_empty());
    assert_eq!(check.wait(1500), ["start [2]"]);
    check.say(&key, 3);
    assert!(check.on(Event::Removed { message: 3 }).is_empty());
    assert!(check.on(Event::Removed { message: 2 }).is_empty(), "a turn that has it goes on");
    assert!(check.end(&key).is_empty());
    assert!(check.core.is_idle());
}

#[test]
fn a_message_removed_from_a_superseded_turn_does_not_come_back() {
    let (mut check, key) = (Check::new(LIMITS), session(1, 1));
    check.say(&key, 1);
    check.begin_more(&key, 2);
    assert_eq!(check.interrupt(&key, 3), ["supersede"]);
    check.on(Event::Removed { message: 1 });
    check.requeue(&key);
    assert_eq!(check.wait(1500), ["start [2, 3]"]);
}

#[test]
fn a_batch_that_has_closed_stays_closed_when_what_followed_it_is_removed() {
    let mut check = Check::new(LIMITS);
    let (key, other) = (session(1, 1), session(1, 2));
    check.begin(&other, 0);
    check.say(&key, 1);
    check.tell(&key, Role::Member, false, 2);
    check.say(&key, 3);
    check.on(Event::Removed { message: 2 });
    assert_eq!(check.end(&other), ["start [1, 3]"], "neighbours of equal rights are one batch");
}

#[test]
fn a_paused_project_starts_nothing_and_loses_nothing() {
    let mut check = Check::new(LIMITS);
    let (key, elsewhere) = (session(1, 1), session(2, 2));
    let project = key.project;
    check.begin(&key, 1);
    assert!(check.on(Event::Pause { project }).is_empty(), "what runs goes on");
    assert!(check.interrupt(&key, 2).is_empty(), "and is not ended for something that cannot start");
    check.say(&elsewhere, 3);
    assert_eq!(check.wait(9000), ["start [3]"], "another project is let alone");
    assert!(check.end(&key).is_empty());
    assert!(check.wait(9000).is_empty());
    assert_eq!(check.core.next_deadline(), None, "time changes nothing");
    assert_eq!(check.on(Event::Unpause { project }), ["start [2]"]);
    check.on(Event::Pause { project });
    check.say(&key, 4);
    assert_eq!(check.stop(&key, 10), ["cancel"], "a stop needs no budget");
    assert_eq!(check.end(&key), ["stopped 10 ran 1 dropped [4]"]);
}

#[test]
fn a_paused_project_keeps_its_place_in_the_line() {
    let mut check = Check::new(Limits { max_turns: 1, ..LIMITS });
    let (busy, first, second) = (session(0, 0), session(1, 1), session(2, 2));
    check.begin(&busy, 0);
    check.say(&first, 1);
    check.wait(10);
    check.say(&second, 2);
    check.on(Event::Pause { project: first.project });
    check.wait(9000);
    check.on(Event::Unpause { project: first.project });
    assert_eq!(check.end(&busy), ["start [1]"]);
    assert_eq!(check.end(&first), ["start [2]"]);
}

#[test]
fn the_end_of_an_unknown_turn_is_nothing() {
    let mut check = Check::new(LIMITS);
    assert!(check.on(Event::Ended { batch: Uuid::nil(), requeued: true }).is_empty());
    assert!(check.core.is_idle());
}
