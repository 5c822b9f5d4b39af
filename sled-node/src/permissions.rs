//! An agent's permission questions in one attempt of a turn: which are open, until when, and how each was settled (MTX-11).
//!
//! It decides and keeps no time, reads and writes nothing: every step says what is to be stored first and what the agent is told then.
//! Nothing here is a fence: whoever answers, the agent could do it otherwise (DESIGN, invariant 9).

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use link::requests::{Decision, Permissions, TurnEvent};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::agent::stream_json;

/// How many questions may be open at once.
const MAX_OPEN: usize = 16;

/// How large what they are about may be in all, in bytes: it is handed back to the agent that is allowed to do it.
const MAX_OPEN_BYTES: usize = 16 * 1024 * 1024;

/// How many questions of one attempt are asked of people.
const MAX_ASKED: u32 = 1000;

/// The longest that a question waits.
const LONGEST: Duration = Duration::from_hours(7 * 24);

/// A question as the agent puts it.
#[derive(Debug, Clone)]
pub struct Question {
    /// The agent's own name for it.
    pub agents_id: String,
    /// The tool's name, bounded.
    pub tool: String,
    /// What it is to be used on, in one bounded line.
    pub summary: String,
    /// What it is to be used with.
    pub input: Box<RawValue>,
}

impl PartialEq for Question {
    fn eq(&self, other: &Self) -> bool {
        let parts = |question: &Self| (question.agents_id.clone(), question.tool.clone(), question.summary.clone());
        parts(self) == parts(other) && self.input.get() == other.input.get()
    }
}

/// What follows from something that happened: `events` are to be stored, and then the agent is told `line`.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// What to store.
    pub events: Vec<TurnEvent>,
    /// What to tell the agent.
    pub line: Option<Vec<u8>>,
}

/// The questions of one attempt.
#[derive(Debug)]
pub struct Questions {
    attempt: u32,
    /// How long each waits; `None` where the agent need not ask.
    patience: Option<Duration>,
    asked: u32,
    open: Vec<Open>,
    settled: HashMap<String, Decision>,
}

#[derive(Debug)]
struct Open {
    id: String,
    agents_id: String,
    input: Box<RawValue>,
    deadline: Instant,
}

impl Questions {
    /// No questions yet.
    pub fn new(attempt: u32, permissions: Permissions) -> Self {
        let patience = match permissions {
            Permissions::Bypass => None,
            Permissions::Ask { timeout_secs } => Some(Duration::from_secs(timeout_secs).min(LONGEST)),
        };
        Self { attempt, patience, asked: 0, open: Vec::new(), settled: HashMap::new() }
    }

    /// The agent asks. `now` is for the deadline that holds, `wall` for the one that people read.
    pub fn ask(&mut self, question: Question, now: Instant, wall: Timestamp) -> Step {
        let Some(patience) = self.patience else {
            let line = stream_json::control_error(&question.agents_id, "nobody need be asked in this session");
            return Step { events: Vec::new(), line: Some(line) };
        };
        if self.open.iter().any(|open| open.agents_id == question.agents_id) {
            // It is open and will be answered.
            return Step::default();
        }
        if self.asked >= MAX_ASKED {
            let line = stream_json::deny(&question.agents_id, "Too many questions were asked in this turn.");
            return Step { events: Vec::new(), line: Some(line) };
        }
        self.asked += 1;
        let id = format!("{}-{}", self.attempt, self.asked);
        let wait = SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX);
        let asked = TurnEvent::PermissionAsked {
            request: id.clone(),
            tool: question.tool,
            summary: question.summary,
            deadline: wall.saturating_add(wait).unwrap_or(Timestamp::MAX),
        };
        let waiting: usize = self.open.iter().map(|open| open.input.get().len()).sum();
        if self.open.len() >= MAX_OPEN || waiting + question.input.get().len() > MAX_OPEN_BYTES {
            let settled = self.settle(&id, Decision::Denied);
            let line = stream_json::deny(&question.agents_id, "Too many questions are open at once; ask again later.");
            return Step { events: vec![asked, settled], line: Some(line) };
        }
        let deadline = now + patience;
        self.open.push(Open { id, agents_id: question.agents_id, input: question.input, deadline });
        Step { events: vec![asked], line: None }
    }

    /// A person answers: the decision that holds, and what follows if it is this one; `None` if there is no such question.
    pub fn answer(&mut self, id: &str, allow: bool) -> Option<(Decision, Step)> {
        if let Some(decision) = self.settled.get(id) {
            return Some((*decision, Step::default()));
        }
        let open = self.open.remove(self.open.iter().position(|open| open.id == id)?);
        let decision = if allow { Decision::Allowed } else { Decision::Denied };
        Some((decision, self.close(&open, decision)))
    }

    /// The agent no longer wants to know.
    pub fn withdraw(&mut self, agents_id: &str) -> Step {
        let Some(place) = self.open.iter().position(|open| open.agents_id == agents_id) else {
            return Step::default();
        };
        let open = self.open.remove(place);
        Step { events: vec![self.settle(&open.id, Decision::Denied)], line: None }
    }

    /// When the next question times out.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.deadline).min()
    }

    /// Denies those whose time is up.
    pub fn time_out(&mut self, now: Instant) -> Vec<Step> {
        let (over, open) =
            std::mem::take(&mut self.open).into_iter().partition::<Vec<_>, _>(|open| open.deadline <= now);
        self.open = open;
        over.iter().map(|over| self.close(over, Decision::TimedOut)).collect()
    }

    /// The agent is gone, or its turn over: what is open is denied.
    pub fn close_all(&mut self) -> Vec<TurnEvent> {
        let open = std::mem::take(&mut self.open);
        open.iter().map(|open| self.settle(&open.id, Decision::Denied)).collect()
    }

    fn close(&mut self, open: &Open, decision: Decision) -> Step {
        let line = match decision {
            Decision::Allowed => stream_json::allow(&open.agents_id, &open.input),
            Decision::Denied => stream_json::deny(&open.agents_id, "A person has denied this."),
            Decision::TimedOut => stream_json::deny(&open.agents_id, "Nobody has answered in time, so this is denied."),
        };
        Step { events: vec![self.settle(&open.id, decision)], line: Some(line) }
    }

    fn settle(&mut self, id: &str, decision: Decision) -> TurnEvent {
        self.settled.insert(id.to_owned(), decision);
        TurnEvent::PermissionSettled { request: id.to_owned(), decision }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn questions() -> Questions {
        Questions::new(2, Permissions::Ask { timeout_secs: 60 })
    }

    fn question(name: &str) -> Question {
        let input = RawValue::from_string(r#"{"command":"ls"}"#.to_owned()).unwrap();
        Question { agents_id: name.to_owned(), tool: "Bash".to_owned(), summary: "ls".to_owned(), input }
    }

    fn asked(questions: &mut Questions, name: &str, now: Instant) -> String {
        match questions.ask(question(name), now, Timestamp::UNIX_EPOCH).events.as_slice() {
            [TurnEvent::PermissionAsked { request, .. }] => request.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn line(step: &Step) -> serde_json::Value {
        serde_json::from_slice(step.line.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn the_first_answer_holds_and_is_told_again() {
        let (mut questions, now) = (questions(), Instant::now());
        let (one, two) = (asked(&mut questions, "a", now), asked(&mut questions, "b", now));
        assert_eq!((one.as_str(), two.as_str()), ("2-1", "2-2"));

        let (decision, step) = questions.answer(&two, true).unwrap();
        assert_eq!(decision, Decision::Allowed);
        assert_eq!(step.events, [TurnEvent::PermissionSettled { request: two.clone(), decision }]);
        assert_eq!(
            line(&step)["response"],
            serde_json::json!({"subtype": "success", "request_id": "b", "response": {"behavior": "allow", "updatedInput": {"command": "ls"}}})
        );
        assert_eq!(questions.answer(&two, false), Some((Decision::Allowed, Step::default())));

        let (decision, step) = questions.answer(&one, false).unwrap();
        assert_eq!((decision, &line(&step)["response"]["response"]["behavior"]), (Decision::Denied, &"deny".into()));
        assert_eq!(questions.answer(&one, true), Some((Decision::Denied, Step::default())));
        assert_eq!(questions.answer("2-3", true), None);
        assert_eq!(questions.answer("a", true), None);
    }

    #[test]
    fn who_is_not_answered_in_time_is_denied() {
        let (mut questions, now) = (questions(), Instant::now());
        let early = asked(&mut questions, "a", now);
        let late = asked(&mut questions, "b", now + Duration::from_secs(1));
        assert_eq!(questions.next_deadline(), Some(now + Duration::from_mins(1)));
        assert_eq!(questions.time_out(now + Duration::from_secs(59)), []);
        let steps = questions.time_out(now + Duration::from_mins(1));
        let decision = Decision::TimedOut;
        assert_eq!(steps[0].events, [TurnEvent::PermissionSettled { request: early.clone(), decision }]);
        assert_eq!(line(&steps[0])["response"]["response"]["behavior"], "deny");
        assert_eq!(steps.len(), 1);
        assert_eq!(questions.answer(&early, true), Some((decision, Step::default())));
        assert!(questions.answer(&late, true).is_some());
        assert_eq!(questions.next_deadline(), None);
    }

    #[test]
    fn people_read_the_deadline_as_a_time() {
        let step = questions().ask(question("a"), Instant::now(), Timestamp::from_second(1000).unwrap());
        let [TurnEvent::PermissionAsked { deadline, .. }] = step.events.as_slice() else { panic!("{step:?}") };
        assert_eq!(deadline.as_second(), 1060);
    }

    #[test]
    fn too_many_at_once_are_denied_and_said() {
        let (mut questions, now) = (questions(), Instant::now());
        for n in 0..MAX_OPEN {
            asked(&mut questions, &n.to_string(), now);
        }
        let step = questions.ask(question("more"), now, Timestamp::UNIX_EPOCH);
        let [TurnEvent::PermissionAsked { request, .. }, settled] = step.events.as_slice() else { panic!("{step:?}") };
        assert_eq!(*settled, TurnEvent::PermissionSettled { request: request.clone(), decision: Decision::Denied });
        assert_eq!(line(&step)["response"]["response"]["behavior"], "deny");
        // What is open is not asked twice.
        assert_eq!(questions.ask(question("0"), now, Timestamp::UNIX_EPOCH), Step::default());
        // The turn ends.
        assert_eq!(questions.close_all().len(), MAX_OPEN);
        assert_eq!(questions.close_all(), []);
        assert_eq!(questions.answer("2-1", true), Some((Decision::Denied, Step::default())));
    }

    #[test]
    fn who_need_not_ask_is_not_left_hanging() {
        let mut questions = Questions::new(1, Permissions::Bypass);
        let step = questions.ask(question("a"), Instant::now(), Timestamp::UNIX_EPOCH);
        assert_eq!((step.events.len(), &line(&step)["response"]["subtype"]), (0, &"error".into()));
    }

    proptest! {
        /// Whatever happens, each question that is told is settled once.
        #[test]
        fn each_question_is_settled_once(steps in proptest::collection::vec((0_u8..5, 0_u32..40), 0..200)) {
            let (mut questions, start) = (questions(), Instant::now());
            let mut told: HashMap<String, u32> = HashMap::new();
            let mut now = start;
            let mut note = |events: Vec<TurnEvent>| {
                for event in events {
                    match event {
                        TurnEvent::PermissionAsked { request, .. } => assert!(told.insert(request, 0).is_none()),
                        TurnEvent::PermissionSettled { request, .. } => *told.get_mut(&request).unwrap() += 1,
                        other => panic!("{other:?}"),
                    }
                }
            };
            for (kind, n) in steps {
                match kind {
                    0 => note(questions.ask(question(&n.to_string()), now, Timestamp::UNIX_EPOCH).events),
                    1 => note(questions.answer(&format!("2-{n}"), n % 2 == 0).map(|(_, step)| step.events).unwrap_or_default()),
                    2 => note(questions.withdraw(&n.to_string()).events),
                    3 => {
                        now += Duration::from_secs(u64::from(n));
                        questions.time_out(now).into_iter().for_each(|step| note(step.events));
                    }
                    _ => {}
                }
            }
            note(questions.close_all());
            prop_assert!(told.values().all(|settled| *settled == 1));
        }
    }
}
