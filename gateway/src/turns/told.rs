//! What people hear of turns and stops. Pure: words only.

use link::requests::{FailureReason, Outcome};

use super::End;
use crate::{outbox::Address, prompt::Words, sessions::Ending, text};

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
    /// How `end` ends, and who hears what. `deleted`: its project is being deleted, which the room is told in the place of what the end looks like.
    pub fn of(end: &End, deleted: bool) -> Self {
        let (ending, answer, report) = match &end.outcome {
            Ok(Outcome::Answered { text }) => (Ending::Answered, Some(said(text)), None),
            Ok(Outcome::Failed { reason, last_lines }) => (Ending::Failed, Some(failure(reason, last_lines)), None),
            Ok(Outcome::Stopped { processes, killed }) => {
                let unasked = (!end.asked).then(|| "⚠ The turn was stopped.".to_owned());
                (Ending::Stopped, unasked, end.asked.then(|| stopped(*processes, *killed, end.agent_ran)))
            }
            Ok(Outcome::Interrupted) => {
                let told = "⚠ The agent was interrupted before it answered.\nWrite again to go on; it remembers what came before.";
                (Ending::Interrupted, Some(told.to_owned()), None)
            }
            Err(refusal) if end.asked => (Ending::Failed, None, Some(refusal.to_markdown())),
            Err(refusal) => (Ending::Failed, Some(refusal.to_markdown()), None),
        };
        let answer = match ending {
            Ending::Stopped | Ending::Interrupted if deleted => {
                Some("Stopped, because the project was deleted.".to_owned())
            }
            Ending::Failed if deleted && answer.is_none() => report.clone(),
            _ => answer,
        };
        Self { ending, answer, report }
    }
}

/// What a person is told who asked to stop.
pub fn report(ran: usize, hows: &[&str], dropped: usize) -> String {
    let what = match (ran, hows) {
        (0, _) => "Nothing was running.".to_owned(),
        (_, []) => "The turn had just ended by itself.".to_owned(),
        (_, hows) => hows.join(" "),
    };
    if dropped == 0 { what } else { format!("{what} {}.", were_dropped(dropped)) }
}

/// The fragment that tells of messages that waited.
pub fn were_dropped(count: usize) -> String {
    format!("{} that waited {} dropped", text::count(count, "message"), if count == 1 { "was" } else { "were" })
}

/// How many messages of each room there are, and where the room is told of them.
pub fn by_room(messages: Vec<Words>) -> Vec<(Address, usize)> {
    let mut rooms: Vec<(Address, usize)> = Vec::new();
    for Words { room, thread, event_id, pending, .. } in messages {
        let count = rooms.extract_if(.., |(to, _)| to.room == room).map(|(_, count)| count).sum::<usize>();
        rooms.push((Address { room, thread, reply_to: Some(event_id), mention: None, pending }, count + 1));
    }
    rooms
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
    use jiff::Timestamp;

    use super::*;
    use crate::{
        chat::{Person, Room, SurfaceKind},
        refusal::Refusal,
    };

    fn stopped_end(processes: u32, agent_ran: bool, asked: bool) -> End {
        End { outcome: Ok(Outcome::Stopped { processes, killed: false }), agent_ran, asked }
    }

    #[test]
    fn a_stop_says_what_it_did_and_does_not_contradict_itself() {
        let of = |end: &End| Told::of(end, false).report.expect("somebody asked");
        assert_eq!(of(&stopped_end(0, false, true)), "Stopped before the agent began.");
        assert_eq!(of(&stopped_end(2, true, true)), "Stopped the running turn: 2 processes ended by request.");
        let killed = End { outcome: Ok(Outcome::Stopped { processes: 0, killed: true }), agent_ran: true, asked: true };
        assert_eq!(of(&killed), "Stopped the running turn: its container was killed.");

        assert_eq!(report(0, &[], 0), "Nothing was running.");
        assert_eq!(report(0, &[], 1), "Nothing was running. 1 message that waited was dropped.");
        assert_eq!(
            report(1, &["Stopped before the agent began."], 2),
            "Stopped before the agent began. 2 messages that waited were dropped."
        );
        assert_eq!(report(1, &[], 0), "The turn had just ended by itself.");
    }

    #[test]
    fn every_end_is_told_somebody() {
        let unasked = Told::of(&stopped_end(1, true, false), false);
        assert_eq!(unasked.answer.as_deref(), Some("⚠ The turn was stopped."));
        assert_eq!(unasked.report, None, "nobody waits for a report");

        let asked = Told::of(&stopped_end(1, true, true), false);
        assert_eq!(asked.answer, None, "the report tells it");

        let deleted = Told::of(&stopped_end(1, true, true), true);
        assert_eq!(deleted.answer.as_deref(), Some("Stopped, because the project was deleted."));

        let refused = |asked| End { outcome: Err(Refusal::unavailable("it may still run")), agent_ran: true, asked };
        assert_eq!(Told::of(&refused(false), false).answer.as_deref(), Some("⚠ It may still run."));
        assert_eq!(Told::of(&refused(true), false).report.as_deref(), Some("⚠ It may still run."));
        assert_eq!(Told::of(&refused(true), true).answer.as_deref(), Some("⚠ It may still run."));

        let answered = End { outcome: Ok(Outcome::Answered { text: " ".into() }), agent_ran: true, asked: true };
        let told = Told::of(&answered, true);
        assert_eq!(told.answer.as_deref(), Some("(The agent ended without a word.)"), "it was faster than the stop");
        assert_eq!(told.report, None);
    }

    #[test]
    fn each_room_is_told_once_of_its_dropped_messages() {
        let words = |room: &str, event: &str| Words {
            room: Room { surface: SurfaceKind::Console, id: room.into() },
            thread: None,
            event_id: event.into(),
            sender: Person { surface: SurfaceKind::Console, id: "ann".into() },
            at: Timestamp::UNIX_EPOCH,
            text: String::new(),
            quoted: None,
            pending: None,
        };
        let rooms = by_room(vec![words("a", "1"), words("b", "2"), words("a", "3")]);
        let told: Vec<_> =
            rooms.iter().map(|(to, count)| (to.room.id.as_str(), to.reply_to.as_deref(), *count)).collect();
        assert_eq!(told, [("b", Some("2"), 1), ("a", Some("3"), 2)]);
        assert_eq!(were_dropped(1), "1 message that waited was dropped");
    }
}
