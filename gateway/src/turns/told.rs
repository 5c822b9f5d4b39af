//! What people hear of turns and stops. Pure: words only.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use journal::Cause;
use link::requests::{FailureReason, Outcome};
use uuid::Uuid;

use super::{
    End, address,
    stops::{Meant, Spared},
};
use crate::{
    chat::Weight,
    commands::grammar::Command,
    dispatch::{SessionKey, core::Why},
    outbox::Post,
    sessions::{Ending, Message},
    text,
};

/// What people hear of a turn's end.
pub struct Told {
    /// How it ended, for the journal.
    pub ending: Ending,
    /// What its room is told.
    pub answer: Option<String>,
    /// What a person is told who asked to stop it, when it ended by that.
    pub report: Option<String>,
}

impl Told {
    /// How `end` ends, and who hears what. `why` is what is wanted by now: its project may be deleted since, which the room
    /// is told in the place of what the end looks like.
    pub fn of(end: &End, why: Option<Why>) -> Self {
        let deleted = why == Some(Why::Deleted);
        let asked = end.why.is_some();
        if why == Some(Why::Superseded)
            && asked
            && matches!(end.outcome, Ok(Outcome::Stopped { .. } | Outcome::Interrupted))
        {
            return Self { ending: Ending::Superseded, answer: None, report: None };
        }
        let (ending, answer, report) = match &end.outcome {
            Ok(Outcome::Answered { text }) => (Ending::Answered, Some(said(text)), None),
            Ok(Outcome::Failed { reason, last_lines }) => (Ending::Failed, Some(failure(reason, last_lines)), None),
            Ok(Outcome::Stopped { processes, killed }) => {
                let told = if asked { "Stopped." } else { "⚠ The turn was stopped." };
                let report = asked.then(|| stopped(*processes, *killed, end.agent_ran));
                (Ending::Stopped, Some(told.to_owned()), report)
            }
            Ok(Outcome::Interrupted) => {
                let told = "⚠ The agent was interrupted before it answered.\nWrite again to go on; it remembers what came before.";
                (Ending::Interrupted, Some(told.to_owned()), None)
            }
            Err(refusal) => (Ending::Failed, Some(refusal.to_markdown()), asked.then(|| refusal.to_markdown())),
        };
        let answer = match ending {
            Ending::Stopped | Ending::Interrupted if deleted => {
                Some("Stopped, because the project was deleted.".to_owned())
            }
            _ => answer,
        };
        Self { ending, answer, report }
    }
}

/// What a stop did to one project.
#[derive(Debug, Clone, Default)]
pub struct Did {
    /// How many turns ran.
    pub ran: usize,
    /// How those of them ended that ended by it.
    pub hows: Vec<String>,
    /// How many messages waited and were dropped.
    pub dropped: usize,
}

impl Did {
    fn told(&self) -> String {
        let what = match (self.ran, &self.hows[..]) {
            (0, _) => "Nothing was running.".to_owned(),
            (_, []) => "The turn had just ended by itself.".to_owned(),
            (_, hows) => hows.join(" "),
        };
        if self.dropped == 0 { what } else { format!("{what} {}.", were_dropped(self.dropped)) }
    }
}

/// What a person is told who asked to stop. Of what they had not chosen the project is named.
pub fn report(meant: &Meant, did: &BTreeMap<Uuid, Did>, spared: &Spared) -> String {
    let mut lines: Vec<_> = did
        .iter()
        .map(|(project, did)| match meant {
            Meant::Chosen => did.told(),
            Meant::All(names) => {
                let name = names.get(project).map_or("", String::as_str);
                format!("**{name}**: {}", did.told())
            }
        })
        .collect();
    if lines.is_empty() {
        lines.push(Did::default().told());
    }
    if did.values().all(|did| did.ran == 0) {
        lines.extend(spared.used.iter().map(|name| {
            let (switch, stop) = (Command::Switch { project: name.clone() }, Command::Stop);
            format!("**{name}** has work here: `{switch}`, then `{stop}`, ends it.")
        }));
        if spared.foreign {
            lines.push("A project has work here that is for its members alone.".to_owned());
        }
    }
    lines.join("\n")
}

/// The fragment that tells of messages that waited.
pub fn were_dropped(count: usize) -> String {
    format!("{} that waited {} dropped", text::count(count, "message"), if count == 1 { "was" } else { "were" })
}

/// What a room is told of a limit that was met at `at`. It may be told hours later, so it names the moment at which the turn
/// goes on, with its day where that is another one.
pub fn limited(at: Timestamp, retry_after_secs: Option<u64>) -> String {
    let wait = retry_after_secs.and_then(|secs| i64::try_from(secs).ok()).map(SignedDuration::from_secs);
    let until = wait.and_then(|wait| at.checked_add(wait).ok()).map(|until| {
        let day = |time: Timestamp| time.to_zoned(TimeZone::UTC).date();
        let format = if day(at) == day(until) { "%H:%M:%S UTC" } else { "%Y-%m-%d %H:%M:%S UTC" };
        format!(" until {}", until.strftime(format))
    });
    let until = until.unwrap_or_default();
    format!("The model's service limits the rate{until}; the agent waits and goes on by itself.")
}

/// What a room is told of messages that were dropped because their project is deleted.
pub fn dropped(session: &SessionKey, messages: &[Message]) -> Vec<Post> {
    let Some(last) = messages.last() else { return Vec::new() };
    vec![Post {
        to: address(session, Some((&last.event_id, &last.sender, &last.thread))),
        weight: Weight::Answer,
        markdown: format!("{}, because the project was deleted.", were_dropped(messages.len())),
        transaction: format!("dropped-{}", last.event_id),
        answers: messages.iter().map(|message| message.event_id.clone()).collect(),
        failed: true,
        takes_back: None,
        cause: Cause::None,
    }]
}

/// What a stop did to the turn that ran.
fn stopped(processes: u32, killed: bool, agent_ran: bool) -> String {
    let how = match (processes, killed) {
        (0, false) if !agent_ran => return "Stopped before the agent began.".to_owned(),
        (0, false) => "nothing of it was left".to_owned(),
        (0, true) => "its container was killed".to_owned(),
        (n, false) => format!("{} ended by request", processes_of(n)),
        (n, true) => format!("{} ended, some killed after the time to end was over", processes_of(n)),
    };
    format!("Stopped the running turn: {how}.")
}

fn processes_of(n: u32) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

fn said(answer: &str) -> String {
    if answer.trim().is_empty() { "(The agent ended without a word.)".to_owned() } else { answer.to_owned() }
}

/// One line, and the last lines of its output (CHAT-10).
fn failure(reason: &FailureReason, last_lines: &[String]) -> String {
    let why = match reason {
        FailureReason::NotStarted { error } => {
            format!("the agent could not be started: {}", text::one_line(error, 300))
        }
        FailureReason::Exited { code: Some(code), .. } => {
            format!("the agent ended without an answer (exit code {code})")
        }
        FailureReason::Exited { signal: Some(signal), .. } => format!("the agent was ended by signal {signal}"),
        FailureReason::Exited { .. } => "the agent ended without an answer".to_owned(),
        FailureReason::Reported { text: said } => format!("the agent reports: {}", text::one_line(said, 500)),
        FailureReason::Protocol { error } => {
            format!("the agent's output cannot be used: {}", text::one_line(error, 300))
        }
    };
    let mut told = format!("⚠ That failed: {why}");
    if !told.ends_with(['.', '!', '?']) {
        told.push('.');
    }
    if !last_lines.is_empty() {
        told.push('\n');
        told.push_str(&text::code_block(&last_lines.join("\n")));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    const STOPPED: Option<Why> = Some(Why::Stopped);
    const DELETED: Option<Why> = Some(Why::Deleted);

    fn stopped_end(processes: u32, agent_ran: bool, why: Option<Why>) -> End {
        End { outcome: Ok(Outcome::Stopped { processes, killed: false }), agent_ran, why }
    }

    #[test]
    fn a_stop_says_what_it_did_and_does_not_contradict_itself() {
        let of = |end: &End| Told::of(end, STOPPED).report.expect("somebody asked");
        assert_eq!(of(&stopped_end(0, false, STOPPED)), "Stopped before the agent began.");
        assert_eq!(of(&stopped_end(2, true, STOPPED)), "Stopped the running turn: 2 processes ended by request.");
        let killed =
            End { outcome: Ok(Outcome::Stopped { processes: 0, killed: true }), agent_ran: true, why: STOPPED };
        assert_eq!(of(&killed), "Stopped the running turn: its container was killed.");

        let check = |ran, hows: &[&str], dropped, told: &str| {
            let hows = hows.iter().map(|how| (*how).to_owned()).collect();
            assert_eq!(Did { ran, hows, dropped }.told(), told);
        };
        check(0, &[], 0, "Nothing was running.");
        check(0, &[], 1, "Nothing was running. 1 message that waited was dropped.");
        let before = "Stopped before the agent began.";
        check(1, &[before], 2, "Stopped before the agent began. 2 messages that waited were dropped.");
        check(1, &[], 0, "The turn had just ended by itself.");
    }

    #[test]
    fn a_stop_names_what_was_not_chosen_and_what_it_left() {
        let (app, lib) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let ended = || Did { ran: 1, hows: vec!["Stopped before the agent began.".to_owned()], dropped: 0 };
        let dropped = || Did { dropped: 1, ..Did::default() };
        let names = || Meant::All([(app, "app".to_owned()), (lib, "lib".to_owned())].into());
        let other = || Spared { used: vec!["lib".to_owned()], foreign: false };
        let foreign = || Spared { used: Vec::new(), foreign: true };
        let check = |meant: Meant, did: Vec<(Uuid, Did)>, spared: Spared, told: &str| {
            assert_eq!(report(&meant, &did.into_iter().collect(), &spared), told);
        };
        let (nothing, lib_works) =
            ("Nothing was running.", "**lib** has work here: `switch lib`, then `stop`, ends it.");
        check(Meant::Chosen, vec![], Spared::default(), nothing);
        check(Meant::Chosen, vec![(app, ended())], other(), "Stopped before the agent began.");
        check(Meant::Chosen, vec![], other(), &format!("{nothing}\n{lib_works}"));
        let one = format!("{nothing} 1 message that waited was dropped.");
        check(Meant::Chosen, vec![(app, dropped())], other(), &format!("{one}\n{lib_works}"));
        check(names(), vec![], Spared::default(), nothing);
        let both = format!("**app**: Stopped before the agent began.\n**lib**: {one}");
        check(names(), vec![(app, ended()), (lib, dropped())], foreign(), &both);
        let left = format!("{nothing}\nA project has work here that is for its members alone.");
        check(names(), vec![], foreign(), &left);
    }

    #[test]
    fn a_limit_is_told_with_the_moment_at_which_it_lifts() {
        let check = |secs, until: &str| {
            let at = "2026-01-02T12:04:59Z".parse().expect("it is a time");
            let told = format!("The model's service limits the rate{until}; the agent waits and goes on by itself.");
            assert_eq!(limited(at, secs), told);
        };
        check(None, "");
        check(Some(0), " until 12:04:59 UTC");
        check(Some(7201), " until 14:05:00 UTC");
        check(Some(86_400), " until 2026-01-03 12:04:59 UTC");
        for nonsense in [u64::MAX, i64::MAX as u64, 1 << 40] {
            check(Some(nonsense), "");
        }
    }

    #[test]
    fn every_end_is_told_somebody() {
        let unasked = Told::of(&stopped_end(1, true, None), None);
        assert_eq!(unasked.answer.as_deref(), Some("⚠ The turn was stopped."));
        assert_eq!(unasked.report, None, "nobody waits for a report");

        let asked = Told::of(&stopped_end(1, true, STOPPED), STOPPED);
        assert_eq!(asked.answer.as_deref(), Some("Stopped."), "whoever asked sees it too, and the report tells more");

        let deleted = Told::of(&stopped_end(1, true, DELETED), DELETED);
        assert_eq!(deleted.answer.as_deref(), Some("Stopped, because the project was deleted."));

        let refused = |why| End { outcome: Err(Refusal::unavailable("it may still run")), agent_ran: true, why };
        assert_eq!(Told::of(&refused(None), None).answer.as_deref(), Some("⚠ It may still run."));
        assert_eq!(Told::of(&refused(STOPPED), STOPPED).report.as_deref(), Some("⚠ It may still run."));
        assert_eq!(Told::of(&refused(DELETED), DELETED).answer.as_deref(), Some("⚠ It may still run."));

        let answered = End { outcome: Ok(Outcome::Answered { text: " ".into() }), agent_ran: true, why: STOPPED };
        let told = Told::of(&answered, DELETED);
        assert_eq!(told.answer.as_deref(), Some("(The agent ended without a word.)"), "it was faster than the stop");
        assert_eq!(told.report, None);
    }

    #[test]
    fn what_is_superseded_is_told_nobody_unless_it_was_faster() {
        let superseded = Some(Why::Superseded);
        let told = Told::of(&stopped_end(1, true, superseded), superseded);
        assert_eq!((told.ending, told.answer, told.report), (Ending::Superseded, None, None));
        let told = Told::of(&stopped_end(1, true, superseded), STOPPED);
        assert_eq!(told.ending, Ending::Stopped, "a stop came on top");
        let stuck = End { outcome: Err(Refusal::unavailable("it may still run")), agent_ran: true, why: superseded };
        assert_eq!(Told::of(&stuck, superseded).answer.as_deref(), Some("⚠ It may still run."), "nobody else tells it");
        let answered = End { outcome: Ok(Outcome::Answered { text: "yes".into() }), agent_ran: true, why: superseded };
        assert_eq!(Told::of(&answered, superseded).answer.as_deref(), Some("yes"));
        assert_eq!(were_dropped(1), "1 message that waited was dropped");
    }
}
