use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// m1 at 10 s, m2 at 20 s and so on, all in room 0, as events `$1`, `$2`, ….
fn said(count: u32) -> Ledger {
    let said = (1..=count).map(|n| Said { number: n, room: 0, event: format!("${n}"), at: secs(u64::from(n) * 10) });
    Ledger { said: said.collect(), ..Ledger::default() }
}

/// The bot says so at that second, and names these events.
fn heard(at: u64, body: &str, answers: &[&str]) -> Heard {
    let answers = answers.iter().map(|&event| event.to_owned()).collect();
    Heard { at: secs(at), text: true, body: body.into(), answers, ..Heard::default() }
}

fn asked(at: u64, prompts: &[&str]) -> Asked {
    Asked { at: secs(at), prompts: prompts.iter().map(|&prompt| prompt.to_owned()).collect(), after_tool: false }
}

/// At that second, and over at once.
fn killed(what: Target, at: u64) -> Outage {
    Outage { what, from: secs(at), to: secs(at) }
}

/// The faults that are counted, each as often as it is.
fn faults(ledger: &Ledger) -> Vec<Fault> {
    let verdict = ledger.judge();
    let many = |(fault, count): (&Fault, &usize)| vec![*fault; *count];
    let faults: Vec<Fault> = verdict.counts.iter().flat_map(many).collect();
    assert_eq!(verdict.is_clean(), faults.is_empty());
    assert_eq!(verdict.stories.len(), faults.len());
    faults
}

#[test]
fn one_answer_for_a_batch_and_one_failure_that_is_said_are_clean() {
    let mut ledger = said(3);
    ledger.heard = vec![heard(21, "answer: m1 m2", &["$1", "$2"]), heard(31, "⚠ The agent ended twice.", &["$3"])];
    ledger.asked = vec![asked(20, &["m1 please answer\nm2 please answer"]), asked(30, &["m3 please answer"])];
    ledger.outages = vec![killed(Target::Sled(0), 30), killed(Target::Container(0), 31)];
    assert_eq!(faults(&ledger), []);
    assert!(ledger.open().is_empty());
    let table = ledger.judge().to_string();
    assert!(table.contains("3 messages: 2 answered, 1 visibly failed"), "{table}");
}

#[test]
fn what_has_no_answer_is_lost_and_its_surroundings_are_told() {
    let mut ledger = said(2);
    ledger.heard = vec![heard(11, "answer: m1", &["$1"])];
    ledger.outages = vec![Outage { what: Target::Gateway, from: secs(21), to: secs(23) }];
    assert_eq!(ledger.open(), [2]);
    assert_eq!(faults(&ledger), [Fault::Lost]);
    let told = ledger.judge().to_string();
    for part in ["m2 in room 0 has no answer", "20.00 s  person: m2", "21.00 s  killed: gateway (back at 23.00 s)"] {
        assert!(told.contains(part), "`{part}` is not in\n{told}");
    }
}

#[test]
fn an_edit_or_a_notice_is_no_answer_and_a_notice_that_warns_is_a_failure() {
    let mut ledger = said(1);
    ledger.heard = vec![Heard { edit: true, ..heard(11, "answer: m1", &["$1"]) }];
    assert_eq!(faults(&ledger), [Fault::Lost]);
    ledger.heard = vec![Heard { text: false, ..heard(11, "It runs.", &["$1"]) }];
    assert_eq!(faults(&ledger), [Fault::Lost]);
    ledger.heard = vec![Heard { text: false, ..heard(11, "⚠ It failed.", &["$1"]) }];
    ledger.outages = vec![killed(Target::Agent(0), 10)];
    assert_eq!(faults(&ledger), []);
}

#[test]
fn a_warning_before_the_answer_does_not_settle() {
    let mut ledger = said(1);
    ledger.heard =
        vec![Heard { text: false, ..heard(11, "⚠ Interrupted.", &["$1"]) }, heard(12, "answer: m1", &["$1"])];
    assert_eq!(faults(&ledger), []);
    ledger.heard = vec![heard(11, "⚠ Interrupted.", &["$1"]), heard(12, "answer: m1", &["$1"])];
    ledger.outages = vec![killed(Target::Agent(0), 10)];
    assert_eq!(faults(&ledger), [Fault::Twice], "an m.text does");
}

#[test]
fn answers_in_two_messages_are_counted() {
    let mut ledger = said(1);
    ledger.heard = vec![heard(11, "answer: m1", &["$1"]), heard(12, "answer: m1", &["$1"])];
    assert_eq!(faults(&ledger), [Fault::Twice]);
}

#[test]
fn answers_keep_the_order_of_their_room_alone() {
    let mut ledger = said(2);
    ledger.heard = vec![heard(21, "answer: m2", &["$2"]), heard(22, "answer: m1", &["$1"])];
    assert_eq!(faults(&ledger), [Fault::Disordered]);
    ledger.said[1].room = 1;
    ledger.heard[0].room = 1;
    assert_eq!(faults(&ledger), []);
}

#[test]
fn an_answer_names_what_it_is_about() {
    let mut ledger = said(2);
    ledger.heard = vec![heard(21, "answer: m1 m2", &["$2"])];
    assert_eq!(faults(&ledger), [Fault::Misattributed], "m1 is not named");
    ledger.heard = vec![heard(21, "answer: m2", &["$1", "$2"])];
    assert_eq!(faults(&ledger), [Fault::Misattributed], "it is not about m1");
}

#[test]
fn prompts_of_a_batch_are_its_attempts() {
    let mut ledger = said(2);
    ledger.heard = vec![heard(15, "answer: m1", &["$1"]), heard(25, "answer: m2", &["$2"])];
    ledger.outages = vec![Outage { what: Target::Sled(0), from: secs(0), to: secs(100) }];
    let words = "m1 please answer";
    ledger.asked = vec![
        asked(11, &[words]),
        asked(12, &[words, "You were interrupted."]),
        asked(21, &[words, "You were interrupted.", "m2 please answer"]),
    ];
    assert_eq!(faults(&ledger), []);
    ledger.asked.push(asked(22, &[words, "You were interrupted.", words]));
    assert_eq!(faults(&ledger), [Fault::Attempts]);
}

#[test]
fn an_attempt_after_the_answer_is_one() {
    let mut ledger = said(1);
    ledger.heard = vec![heard(30, "answer: m1", &["$1"])];
    // So it is written down also where its answer stands between the two.
    ledger.asked = vec![asked(11, &["m1 please answer"]), asked(21, &["m1 please answer", "You were interrupted."])];
    assert_eq!(faults(&ledger), [Fault::Attempts, Fault::Requests]);
    ledger.outages = vec![killed(Target::Container(0), 20)];
    assert_eq!(faults(&ledger), []);
}

#[test]
fn only_an_interruption_allows_a_second_attempt() {
    let mut ledger = said(1);
    ledger.heard = vec![heard(30, "answer: m1", &["$1"])];
    let words = "m1 please answer";
    ledger.asked = vec![asked(11, &[words]), asked(21, &[words, "You were interrupted."])];
    for (what, faulty) in [
        (Target::Gateway, true),
        (Target::Homeserver, true),
        (Target::Agent(0), true),
        (Target::Sled(1), true),
        (Target::Sled(0), false),
        (Target::Container(0), false),
        (Target::Engine, false),
        (Target::Start(0), true),
        (Target::Start(1), false),
    ] {
        ledger.outages = vec![killed(what, 20)];
        assert_eq!(faults(&ledger), if faulty { vec![Fault::Attempts] } else { vec![] }, "{what}");
    }
}

#[test]
fn what_was_answered_is_not_answered_again_beside_another_message() {
    let mut ledger = said(2);
    ledger.heard = vec![heard(15, "answer: m1", &["$1"]), heard(25, "answer: m1 m2", &["$2"])];
    assert_eq!(faults(&ledger), [Fault::Twice]);
    ledger.outages = vec![killed(Target::Agent(0), 16)];
    assert_eq!(faults(&ledger), [], "it had not put it away");
    ledger.outages = vec![killed(Target::Agent(0), 17)];
    assert_eq!(faults(&ledger), [Fault::Twice]);
    ledger.heard[1].answers.clear();
    ledger.heard[1].body = "answer: m1".into();
    ledger.heard.push(heard(26, "answer: m2", &["$2"]));
    assert_eq!(faults(&ledger), [Fault::Twice], "it names nobody");
    // An agent may remember what it could not answer.
    ledger.outages = vec![killed(Target::Agent(0), 12)];
    ledger.heard = vec![heard(15, "⚠ It failed.", &["$1"]), heard(25, "answer: m1 m2", &["$2"])];
    assert_eq!(faults(&ledger), []);
}

#[test]
fn a_turn_that_nothing_disturbed_asks_once() {
    let mut ledger = said(1);
    ledger.heard = vec![heard(12, "answer: m1", &["$1"])];
    ledger.asked = vec![asked(10, &["m1 please answer"]), asked(11, &["m1 please answer"])];
    assert_eq!(faults(&ledger), [Fault::Requests]);
    ledger.asked[1].after_tool = true;
    assert_eq!(faults(&ledger), [], "a tool's result is the same turn");
    ledger.asked[1].after_tool = false;
    ledger.outages = vec![Outage { what: Target::Gateway, from: secs(11), to: secs(30) }];
    assert_eq!(faults(&ledger), [], "the agent may ask again when the way to the model broke");
    ledger.outages = vec![Outage { what: Target::Gateway, from: secs(1), to: secs(9) }];
    assert_eq!(faults(&ledger), [Fault::Requests], "it was over by then");
}

/// A project's interruption without which nothing that failed in [`failed_at_40`] is explained.
const ONE: Target = Target::Container(0);

/// m1, of project 0, comes later than anything needs to recover and 30 s before it fails; m2 belongs to the other project.
fn failed_at_40() -> Ledger {
    let mut ledger = said(2);
    ledger.said[1].room = 1;
    ledger.heard = vec![heard(40, "⚠ It failed.", &["$1"]), Heard { room: 1, ..heard(21, "answer: m2", &["$2"]) }];
    ledger.said[0].at = RECOVERY + secs(1);
    ledger
}

#[test]
fn a_failure_needs_an_agent_that_is_killed_or_two_interruptions_in_its_life() {
    let mut ledger = failed_at_40();
    assert_eq!(faults(&ledger), [Fault::Needless], "nothing was killed");
    let long_before = |what| Outage { what, from: secs(0), to: secs(0) };
    for (outage, needless) in [
        (killed(Target::Agent(0), 30), false),
        (killed(Target::Agent(0), 41), true),
        (killed(Target::Agent(1), 30), true),
        (long_before(Target::Agent(0)), true),
        // It may not have recovered yet when the message came.
        (Outage { to: secs(1), ..long_before(Target::Agent(0)) }, false),
        // One interruption is made good.
        (killed(Target::Gateway, 30), true),
        (killed(Target::Homeserver, 30), true),
        (killed(Target::Sled(0), 30), true),
        (killed(Target::Container(0), 30), true),
        (killed(Target::Engine, 30), true),
        (killed(Target::Start(1), 30), true),
    ] {
        ledger.outages = vec![outage.clone()];
        let wanted = if needless { vec![Fault::Needless] } else { vec![] };
        assert_eq!(faults(&ledger), wanted, "{outage:?}");
    }
    for (outage, needless) in [
        (killed(Target::Sled(0), 30), false),
        (killed(Target::Container(0), 30), false),
        (killed(Target::Engine, 30), false),
        (killed(Target::Engine, 40), false),
        (killed(Target::Start(1), 30), false),
        (Outage { to: secs(1), ..long_before(Target::Sled(0)) }, false),
        (Outage { to: Duration::MAX, ..long_before(Target::Engine) }, false),
        // Before the hand-over.
        (killed(Target::Gateway, 30), false),
        (killed(Target::Gateway, 20), true),
        (killed(Target::Gateway, 41), true),
        // Its container is killed for it, and counts.
        (killed(Target::Start(0), 30), true),
        (killed(Target::Homeserver, 30), true),
        (killed(Target::Sled(1), 30), true),
        (killed(Target::Container(1), 30), true),
        (killed(Target::Sled(0), 41), true),
        (long_before(Target::Sled(0)), true),
    ] {
        ledger.outages = vec![killed(ONE, 35), outage.clone()];
        let wanted = if needless { vec![Fault::Needless] } else { vec![] };
        assert_eq!(faults(&ledger), wanted, "{outage:?} beside another");
    }
    let told = Ledger { outages: vec![], ..ledger }.judge().to_string();
    for part in
        ["m1 in room 0 failed though neither interrupted twice", "    1  failed though neither interrupted twice"]
    {
        assert!(told.contains(part), "`{part}` is not in\n{told}");
    }
}

#[test]
fn gateways_interrupt_a_turn_once_however_often_they_end() {
    let mut ledger = failed_at_40();
    ledger.outages = vec![killed(Target::Gateway, 30), killed(Target::Gateway, 33)];
    ledger.ended = vec![secs(35)];
    assert_eq!(faults(&ledger), [Fault::Needless]);
    ledger.outages.push(killed(ONE, 36));
    assert_eq!(faults(&ledger), []);
    // One that ends by itself may have done so a while before that is noticed.
    ledger.outages = vec![killed(ONE, 36)];
    for (noticed, needless) in [(20, true), (35, false), (41, false), (42, true)] {
        ledger.ended = vec![secs(noticed)];
        let wanted = if needless { vec![Fault::Needless] } else { vec![] };
        assert_eq!(faults(&ledger), wanted, "noticed at {noticed} s");
    }
}

#[test]
fn a_project_has_recovered_with_the_first_answer_that_was_asked_for_since() {
    let mut ledger = said(3);
    // m1 is at 10 s, m2 at 20 s, m3 at 30 s.
    ledger.outages = vec![Outage { what: Target::Engine, from: secs(11), to: secs(14) }, killed(ONE, 31)];
    ledger.heard =
        vec![heard(15, "answer: m1", &["$1"]), heard(25, "answer: m2", &["$2"]), heard(33, "⚠ It failed.", &["$3"])];
    ledger.asked = vec![asked(10, &["m1 please answer"]), asked(21, &["m2 please answer"])];
    assert_eq!(faults(&ledger), [Fault::Needless]);
    // That it was answered tells nothing where the agent had been asked before.
    ledger.asked[1].at = secs(13);
    assert_eq!(faults(&ledger), []);
}

/// A turn for m1 that began at 20 s and ended so at 40 s, tried again at 30 s.
fn turn(ending: &str) -> Turn {
    let (answers, begun) = (vec!["$1".to_owned()], secs(20));
    Turn { answers, begun, again: Some((2, secs(30))), end: Some((ending.to_owned(), secs(40))) }
}

/// The fault of a turn while these were killed.
fn unexplained(turn: &Turn, outages: &[Outage]) -> Option<Fault> {
    Ledger { outages: outages.to_vec(), ..said(1) }.unexplained(turn).map(|(fault, _)| fault)
}

#[test]
fn a_turn_is_tried_again_once_and_only_after_an_interruption() {
    let answered = turn("answered");
    for (what, at, fault) in [
        (Target::Sled(0), 25, None),
        (Target::Container(0), 25, None),
        (Target::Engine, 25, None),
        (Target::Start(1), 25, None),
        (Target::Gateway, 25, None),
        (Target::Agent(0), 25, Some(Fault::Attempts)),
        (Target::Homeserver, 25, Some(Fault::Attempts)),
        (Target::Start(0), 25, Some(Fault::Attempts)),
        (Target::Sled(1), 25, Some(Fault::Attempts)),
        (Target::Sled(0), 19, Some(Fault::Attempts)),
        (Target::Sled(0), 31, Some(Fault::Attempts)),
        (Target::Gateway, 19, Some(Fault::Attempts)),
        (Target::Gateway, 31, Some(Fault::Attempts)),
    ] {
        assert_eq!(unexplained(&answered, &[killed(what, at)]), fault, "{what} at {at} s");
    }
    // An engine interrupts when it is back; a gateway that was killed before does not.
    let away = |what| Outage { what, from: secs(15), to: secs(25) };
    assert_eq!(unexplained(&answered, &[away(Target::Engine)]), None);
    assert_eq!(unexplained(&answered, &[away(Target::Gateway)]), Some(Fault::Attempts));
    let ended = Ledger { ended: vec![secs(25)], ..said(1) };
    assert_eq!(ended.unexplained(&answered), None);

    assert_eq!(unexplained(&Turn { again: None, ..turn("answered") }, &[]), None);
    let often = Turn { again: Some((3, secs(30))), ..turn("answered") };
    assert_eq!(unexplained(&often, &[killed(Target::Sled(0), 25)]), Some(Fault::Attempts));
    let strange = Turn { answers: vec!["$9".to_owned()], ..turn("answered") };
    assert_eq!(unexplained(&strange, &[killed(Target::Sled(0), 25)]), Some(Fault::Misattributed));
}

#[test]
fn a_turn_fails_with_its_agent_or_when_its_second_attempt_is_interrupted() {
    let interrupted = turn("interrupted");
    let first = killed(Target::Sled(0), 25);
    for (second, fault) in [
        (killed(Target::Container(0), 35), None),
        (killed(Target::Engine, 35), None),
        (killed(Target::Gateway, 35), Some(Fault::Needless)),
        (killed(Target::Agent(0), 35), Some(Fault::Needless)),
        (killed(Target::Container(0), 27), Some(Fault::Needless)),
        (killed(Target::Container(0), 41), Some(Fault::Needless)),
        (killed(Target::Container(1), 35), Some(Fault::Needless)),
    ] {
        assert_eq!(unexplained(&interrupted, &[first.clone(), second.clone()]), fault, "{second:?}");
    }
    // The same one is not both.
    let long = Outage { what: Target::Engine, from: secs(25), to: secs(35) };
    assert_eq!(unexplained(&interrupted, std::slice::from_ref(&long)), Some(Fault::Needless));
    assert_eq!(unexplained(&interrupted, &[killed(Target::Gateway, 21), long]), None);
    let once = Turn { again: None, ..turn("interrupted") };
    assert_eq!(unexplained(&once, &[first.clone(), killed(Target::Container(0), 35)]), Some(Fault::Needless));

    let failed = Turn { again: None, ..turn("failed") };
    for (what, at, fault) in [
        (Target::Agent(0), 35, None),
        (Target::Agent(0), 19, Some(Fault::Needless)),
        (Target::Agent(0), 41, Some(Fault::Needless)),
        (Target::Agent(1), 35, Some(Fault::Needless)),
        (Target::Sled(0), 35, Some(Fault::Needless)),
    ] {
        assert_eq!(unexplained(&failed, &[killed(what, at)]), fault, "{what} at {at} s");
    }
}

#[test]
fn kinds_of_which_nothing_was_killed_are_named_once() {
    let mut ledger = said(1);
    let drawn = [Target::Gateway, Target::Sled(0), Target::Agent(0), Target::Agent(1), Target::Start(0)];
    let spared = |ledger: &Ledger| ledger.spared(drawn.into_iter());
    assert_eq!(spared(&ledger), [Target::Gateway, Target::Sled(0), Target::Agent(0)]);
    // Which project's it was does not matter.
    ledger.outages = vec![killed(Target::Gateway, 1), killed(Target::Sled(1), 2), killed(Target::Agent(1), 3)];
    assert_eq!(spared(&ledger), []);
}

#[test]
fn a_part_is_away_until_it_is_back() {
    let mut ledger = said(1);
    ledger.outages = vec![Outage { what: Target::Engine, from: secs(11), to: Duration::MAX }];
    let away = |ledger: &Ledger, at| ledger.is_away(secs(at), |what| what == Target::Engine);
    assert_eq!([10, 12, 20].map(|at| away(&ledger, at)), [false, true, true]);
    ledger.outages[0].to = secs(13);
    assert_eq!([12, 20].map(|at| away(&ledger, at)), [true, false]);
}

#[test]
fn calm_is_when_everything_has_recovered() {
    let mut ledger = said(1);
    assert_eq!(ledger.calm_from(), Duration::ZERO);
    ledger.outages = vec![Outage { what: Target::Engine, from: secs(1), to: secs(9) }, killed(Target::Sled(0), 5)];
    assert_eq!(ledger.calm_from(), secs(9) + RECOVERY);
}

#[test]
fn numbers_are_whole_words_and_wanted_ones_are_asked_for() {
    assert_eq!(numbers("answer: m17 m18, not x19 or m2x"), [17, 18]);
    let prompt =
        "<message from=\"@ann:x\">\nm17 please answer\n</message>\n<message>\nm18 please answer\n</message> m19";
    assert_eq!(wanted(prompt), [17, 18]);
}
