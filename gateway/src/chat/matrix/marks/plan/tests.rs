use matrix_sdk::ruma::{EventId, room_id};

use super::*;

fn key(event: &str) -> Key {
    (room_id!("!a:b.c").to_owned(), id(event))
}

fn id(event: &str) -> OwnedEventId {
    EventId::parse(event).expect("an event id")
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Marks, a moment, and what came in this run.
fn marks(live: &[&str]) -> (Marks, Instant) {
    let start = Instant::now();
    let mut marks = Marks::new(start);
    for event in live {
        marks.live(key(event).0, id(event));
    }
    (marks, start)
}

impl Marks {
    /// Does everything that is due; gives what was done, a reaction to `$x` being `$x-r`.
    fn drain(&mut self, now: Instant) -> Vec<Action> {
        let mut done = Vec::new();
        while let Next::Do(action) = self.next(now) {
            let outcome = match &action {
                Action::Show((_, event), _) => Outcome::Shown(id(&format!("{event}-r"))),
                Action::Ask(_) => Outcome::Found(Vec::new()),
                Action::Read(_) | Action::TakeBack(..) => Outcome::Done,
            };
            done.push(action.clone());
            self.done(now, action, outcome);
        }
        done
    }
}

fn show(event: &str, sign: Sign) -> Action {
    Action::Show(key(event), sign)
}

fn take_back(event: &str, sign: Sign) -> Action {
    Action::TakeBack(key(event), sign, id(&format!("{event}-r")))
}

#[test]
fn an_ordinary_message_gets_a_receipt_and_no_reaction() {
    let (mut marks, now) = marks(&["$a", "$b"]);
    for event in ["$a", "$b"] {
        marks.want(now, key(event), Mark::Accepted);
    }
    // Only the newest of a room.
    assert_eq!(marks.drain(now), [Action::Read(key("$b"))]);
    marks.want(now, key("$a"), Mark::Waiting);
    assert_eq!(marks.next(now + seconds(1) / 2), Next::Wait(Some(now + seconds(1))));
    marks.want(now + seconds(1) / 2, key("$a"), Mark::Running);
    marks.want(now + seconds(3), key("$a"), Mark::Delivered);
    assert_eq!(marks.drain(now + seconds(3)), []);
    assert_eq!((marks.entries.len(), marks.order.len()), (0, 0), "nothing is kept");
}

#[test]
fn what_waits_is_shown_and_taken_back_and_what_failed_stays() {
    let (mut marks, now) = marks(&["$a", "$b"]);
    marks.want(now, key("$a"), Mark::Waiting);
    marks.want(now, key("$b"), Mark::Failed);
    // A repeated wish does not begin to wait anew.
    marks.want(now + seconds(1), key("$a"), Mark::Waiting);
    let later = now + seconds(1);
    assert_eq!(marks.drain(later), [show("$a", Sign::Waits), show("$b", Sign::Failed)]);
    assert_eq!(marks.next(later), Next::Wait(None));
    marks.want(later, key("$a"), Mark::Running);
    assert_eq!(marks.drain(later), [take_back("$a", Sign::Waits)]);
    assert_eq!(marks.entries.len(), 0);

    marks.want(later, key("$a"), Mark::Waiting);
    let much_later = later + seconds(60);
    let shown = marks.drain(much_later);
    assert_eq!(shown, [Action::Ask(key("$a")), show("$a", Sign::Waits)], "what was marked once is asked for");
    marks.want(much_later, key("$a"), Mark::Failed);
    let failed = marks.drain(much_later);
    assert_eq!(failed, [take_back("$a", Sign::Waits), show("$a", Sign::Failed)], "at most one at a time");
}

#[test]
fn a_message_whose_turn_begins_while_its_sign_is_on_the_way_loses_it_again() {
    let (mut marks, now) = marks(&["$a"]);
    marks.want(now, key("$a"), Mark::Failed);
    let on_the_way = Next::Do(show("$a", Sign::Failed));
    assert_eq!(marks.next(now), on_the_way);
    marks.want(now, key("$a"), Mark::Running);
    marks.done(now, show("$a", Sign::Failed), Outcome::Shown(id("$a-r")));
    assert_eq!(marks.drain(now), [take_back("$a", Sign::Failed)]);

    let (mut marks, now) = self::marks(&["$a"]);
    marks.want(now, key("$a"), Mark::Failed);
    assert_eq!(marks.next(now), on_the_way);
    marks.want(now, key("$a"), Mark::Running);
    // It may have come through; the homeserver knows.
    marks.done(now, show("$a", Sign::Failed), Outcome::Later(None));
    let later = now + seconds(5);
    assert_eq!(marks.next(later), Next::Do(Action::Ask(key("$a"))));
    marks.done(later, Action::Ask(key("$a")), Outcome::Found(vec![(Sign::Failed, id("$a-r"))]));
    assert_eq!(marks.drain(later), [take_back("$a", Sign::Failed)]);
}

#[test]
fn an_earlier_runs_reactions_are_asked_for() {
    let (mut marks, now) = marks(&[]);
    marks.want(now, key("$a"), Mark::Accepted);
    assert_eq!(marks.drain(now), [Action::Read(key("$a"))]);
    for (mark, found, then) in [
        (Mark::Running, vec![], None),
        (Mark::Running, vec![(Sign::Waits, id("$r"))], Some(Action::TakeBack(key("$a"), Sign::Waits, id("$r")))),
        (Mark::Waiting, vec![], Some(show("$a", Sign::Waits))),
        (Mark::Waiting, vec![(Sign::Waits, id("$r"))], None),
        (Mark::Failed, vec![(Sign::Failed, id("$r"))], None),
        (Mark::Failed, vec![(Sign::Waits, id("$r"))], Some(Action::TakeBack(key("$a"), Sign::Waits, id("$r")))),
    ] {
        let mut marks = Marks::new(now);
        marks.want(now, key("$a"), mark);
        let now = now + seconds(1);
        assert_eq!(marks.next(now), Next::Do(Action::Ask(key("$a"))), "{mark:?}");
        let case = format!("{mark:?} {found:?}");
        marks.done(now, Action::Ask(key("$a")), Outcome::Found(found));
        match then {
            Some(action) => assert_eq!(marks.next(now), Next::Do(action), "{case}"),
            None => assert_eq!(marks.next(now), Next::Wait(None), "{case}"),
        }
    }
}

#[test]
fn reactions_keep_a_pace_that_leaves_room_and_taking_back_does_not_wait() {
    let events = ["$a", "$b", "$c", "$d", "$e"];
    let (mut marks, start) = marks(&events);
    for event in events {
        marks.want(start, key(event), Mark::Waiting);
    }
    let now = start + seconds(1);
    assert_eq!(marks.drain(now).len(), 3, "a burst");
    assert_eq!(marks.next(now), Next::Wait(Some(now + seconds(20))));
    marks.want(now, key("$a"), Mark::Running);
    // No longer worth it.
    marks.want(now, key("$d"), Mark::Running);
    assert_eq!(marks.drain(now), [take_back("$a", Sign::Waits)]);
    assert_eq!(marks.drain(now + seconds(19)), []);
    assert_eq!(marks.drain(now + seconds(20)), [show("$e", Sign::Waits)]);
}

#[test]
fn marks_stay_back_while_messages_are_not_wanted() {
    let (mut marks, start) = marks(&["$a"]);
    marks.want(start, key("$a"), Mark::Waiting);
    marks.yield_to_messages(start, Some(seconds(7)));
    let now = start + seconds(11);
    assert_eq!(marks.next(now), Next::Wait(Some(start + seconds(12))));
    marks.yield_to_messages(now, None);
    assert_eq!(marks.next(now + seconds(4)), Next::Wait(Some(now + seconds(5))));
    assert_eq!(marks.next(now + seconds(5)), Next::Do(show("$a", Sign::Waits)));
}

#[test]
fn what_fails_for_now_is_tried_later_and_lets_others_go_first() {
    let (mut marks, now) = marks(&["$a", "$b"]);
    for event in ["$a", "$b"] {
        marks.want(now, key(event), Mark::Failed);
    }
    assert_eq!(marks.next(now), Next::Do(show("$a", Sign::Failed)));
    marks.done(now, show("$a", Sign::Failed), Outcome::Later(Some(seconds(30))));
    assert_eq!(marks.next(now), Next::Wait(Some(now + seconds(30))));
    let now = now + seconds(30);
    assert_eq!(marks.next(now), Next::Do(show("$b", Sign::Failed)));
    marks.done(now, show("$b", Sign::Failed), Outcome::Later(None));
    assert_eq!(marks.next(now), Next::Wait(Some(now + seconds(10))), "the pause grows");
    let now = now + seconds(60);
    let without_an_answer = Action::Ask(key("$b"));
    assert_eq!(marks.drain(now), [show("$a", Sign::Failed), without_an_answer, show("$b", Sign::Failed)]);
}

#[test]
fn a_receipt_is_not_tried_for_ever_and_a_newer_one_takes_its_place() {
    let (mut marks, mut now) = marks(&[]);
    marks.want(now, key("$a"), Mark::Accepted);
    for _ in 0..RECEIPT_TRIES {
        assert_eq!(marks.next(now), Next::Do(Action::Read(key("$a"))));
        marks.done(now, Action::Read(key("$a")), Outcome::Later(None));
        now += LONGEST_PAUSE;
    }
    assert_eq!(marks.next(now), Next::Wait(None));

    marks.want(now, key("$a"), Mark::Accepted);
    marks.want(now, key("$b"), Mark::Accepted);
    marks.done(now, Action::Read(key("$a")), Outcome::Done);
    assert_eq!(marks.next(now), Next::Do(Action::Read(key("$b"))), "told while the older one was");
}

#[test]
fn a_refused_reaction_is_looked_for_once() {
    let (mut marks, now) = marks(&["$a", "$b"]);
    for event in ["$a", "$b"] {
        marks.want(now, key(event), Mark::Failed);
        assert_eq!(marks.next(now), Next::Do(show(event, Sign::Failed)));
        marks.done(now, show(event, Sign::Failed), Outcome::Never);
        assert_eq!(marks.next(now), Next::Do(Action::Ask(key(event))));
        // The same reaction is refused when it is there already.
        let found = if event == "$a" { vec![(Sign::Failed, id("$r"))] } else { vec![] };
        marks.done(now, Action::Ask(key(event)), Outcome::Found(found));
        assert_eq!((marks.next(now), marks.entries.len()), (Next::Wait(None), 0), "{event}");
    }
}

#[test]
fn memory_is_bounded() {
    let (mut marks, now) = marks(&[]);
    for n in 0..=LIVE.max(CAPACITY) {
        let event = format!("$e{n}");
        marks.live(key(&event).0, id(&event));
        marks.want(now, key(&event), Mark::Waiting);
    }
    assert_eq!((marks.entries.len(), marks.order.len()), (CAPACITY, CAPACITY));
    assert_eq!((marks.live.len(), marks.live_order.len()), (LIVE, LIVE));
}
