//! What a conversation is, folded from its stream: what waits, what runs, and under which id the agent remembers it.
//!
//! Pure. Texts are not in here: they lie in the journal's erasable table, under the ids that stand in the events.

use jiff::Timestamp;
use journal::{Cause, DomainEvent, Fold, Recorded, Snapshot};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    chat::{Person, Room},
    dispatch::SessionKey,
    people::Role,
};

/// A message that somebody said to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its event on its surface.
    pub event_id: String,
    /// Its number in the session, from 1: what `queue` shows and `cancel` takes.
    pub number: u64,
    /// Who said it.
    pub sender: Person,
    /// With which rights (CHAT-4).
    pub rights: Role,
    /// When, by the surface's clock.
    pub at: Timestamp,
    /// In which thread.
    pub thread: Option<String>,
    /// The id of its text.
    pub text: Uuid,
    /// The id of the text that it quotes.
    pub quoted: Option<Uuid>,
    /// Whether it ends a turn that runs in its session (CHAT-7), as its room wanted it when it was accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupts: bool,
    /// How often it was edited.
    #[serde(default, skip_serializing_if = "is_none")]
    pub edits: u64,
    /// Where in the journal it was accepted: the order over all sessions. Not part of the event itself.
    #[serde(default, skip_serializing_if = "is_none")]
    pub position: u64,
    /// When it was accepted, by the journal's clock. Not part of the event itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
    /// Whether a turn had begun with it that was superseded. Not part of the event itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own way to ask")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Whom a turn answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The message's event.
    pub event_id: String,
    /// Who wrote it.
    pub sender: Person,
    /// The thread that it was asked in, where its answer goes.
    #[serde(default)]
    pub thread: Option<String>,
}

/// How a turn ended, as far as a fold needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// With an answer.
    Answered,
    /// With an error, which was told.
    Failed,
    /// By a person.
    Stopped,
    /// With its sled or container, as often as it is tried.
    Interrupted,
    /// By a message that came during it (CHAT-7); its messages wait again.
    Superseded,
}

/// Why a message that waited was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// By `cancel`.
    Cancelled,
    /// Its writer or a moderator redacted it.
    Redacted,
    /// By `stop`.
    Stopped,
    /// Its project is deleted.
    Deleted,
    /// The queue was full (CHAT-8).
    Refused,
}

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum SessionEvent {
    /// A session id is pinned: at the first message, and by `reset`.
    #[serde(rename = "session.opened")]
    Opened {
        /// Of which project.
        project: Uuid,
        /// Where people talk.
        room: Room,
        /// In which thread.
        thread: Option<String>,
        /// The id under which the agent keeps its memory.
        agent_session: Uuid,
    },
    /// Somebody said something to the agent; it waits.
    #[serde(rename = "message.accepted")]
    Accepted(Message),
    /// A message that waits has another text now.
    #[serde(rename = "message.edited")]
    Edited {
        /// The message.
        event_id: String,
        /// The id of its new text.
        text: Uuid,
    },
    /// Messages were taken out that waited, or that would wait again if their turn were superseded.
    #[serde(rename = "message.removed")]
    Removed {
        /// The messages.
        event_ids: Vec<String>,
        /// Why.
        why: Removal,
    },
    /// A turn is handed to its sled.
    #[serde(rename = "session.turn_begun")]
    TurnBegun {
        /// The batch's id.
        turn: Uuid,
        /// The messages that it answers, in order.
        answers: Vec<Answered>,
    },
    /// An interrupted turn is tried again.
    #[serde(rename = "session.turn_resumed")]
    TurnResumed {
        /// Which one.
        turn: Uuid,
        /// The number of the attempt that begins.
        attempt: u32,
    },
    /// A person decided a question of the agent's (MTX-11).
    #[serde(rename = "session.permission_decided")]
    PermissionDecided {
        /// In which turn.
        turn: Uuid,
        /// Which question, by the sled's id of it.
        request: String,
        /// Whether it may.
        allow: bool,
        /// Who decided.
        by: Person,
    },
    /// A turn is over.
    #[serde(rename = "session.turn_finished")]
    TurnFinished {
        /// Which one.
        turn: Uuid,
        /// How.
        ending: Ending,
        /// Whether the agent ran, so that its memory is there now.
        agent_ran: bool,
    },
}

impl DomainEvent for SessionEvent {
    const KINDS: &'static [&'static str] = &[
        "session.opened",
        "message.accepted",
        "message.edited",
        "message.removed",
        "session.turn_begun",
        "session.turn_resumed",
        "session.permission_decided",
        "session.turn_finished",
    ];
}

/// A session as its events tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose it is, once something happened in it.
    pub key: Option<SessionKey>,
    /// The agent's session id and whether the agent ever ran under it, once one is pinned.
    pub agent: Option<Memory>,
    /// The messages that wait, in order.
    pub waiting: Vec<Message>,
    /// The turn that runs.
    pub running: Option<Running>,
    /// How many messages there were.
    pub said: u64,
    /// When the newest of them was said, by its surface's clock.
    pub newest: Option<Timestamp>,
}

/// The agent's memory of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The id under which the agent keeps it.
    pub id: Uuid,
    /// Whether the agent ever ran under it.
    pub used: bool,
}

/// A turn under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The batch's id.
    pub turn: Uuid,
    /// The agent's session that it began in; a `reset` may have pinned another since.
    pub agent: Uuid,
    /// The number of the present attempt, from 1.
    pub attempt: u32,
    /// Where in the journal it began.
    pub position: u64,
    /// When it began, by the journal's clock.
    pub began: Timestamp,
    /// Whom it answers, in order.
    pub answers: Vec<Answered>,
    /// What they said, as it was when the turn began.
    pub messages: Vec<Message>,
    /// What people decided on the agent's questions.
    pub decided: Vec<(String, bool)>,
}

impl Running {
    /// What the turn follows from, as its beginning does: the last message that it answers.
    pub fn cause(&self) -> Option<Cause> {
        self.answers.last().map(|last| Cause::Command(last.event_id.clone()))
    }
}

/// An event that cannot follow from those before it.
#[derive(Debug, thiserror::Error)]
pub enum Impossible {
    /// A turn ended that did not run.
    #[error("turn {0} goes on or ends and does not run")]
    UnknownTurn(Uuid),
    /// A turn began in a session that has no id.
    #[error("turn {0} began before the session was opened")]
    NotOpened(Uuid),
    /// A message was edited or removed that did not wait.
    #[error("message {0} does not wait")]
    GoneMessage(String),
}

impl Session {
    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none()
    }

    fn running(&mut self, turn: Uuid) -> Result<&mut Running, Impossible> {
        self.running.as_mut().filter(|running| running.turn == turn).ok_or(Impossible::UnknownTurn(turn))
    }
}

impl Fold for Session {
    type Event = SessionEvent;
    type Error = Impossible;

    fn apply(&mut self, event: &SessionEvent, recorded: &Recorded) -> Result<(), Impossible> {
        match event {
            SessionEvent::Opened { project, room, thread, agent_session } => {
                self.key = Some(SessionKey { project: *project, room: room.clone(), thread: thread.clone() });
                self.agent = Some(Memory { id: *agent_session, used: false });
            }
            SessionEvent::Accepted(message) => {
                self.said = self.said.max(message.number);
                // Its surface may say any time.
                self.newest = self.newest.max(Some(message.at.min(recorded.time)));
                let (position, accepted) = (recorded.position, Some(recorded.time));
                self.waiting.push(Message { position, accepted, ..message.clone() });
            }
            SessionEvent::Edited { event_id, text } => {
                let waiting = self.waiting.iter_mut().find(|message| message.event_id == *event_id);
                let message = waiting.ok_or_else(|| Impossible::GoneMessage(event_id.clone()))?;
                message.text = *text;
                message.edits += 1;
            }
            SessionEvent::Removed { event_ids, .. } => {
                for event_id in event_ids {
                    let running = self.running.as_mut().map(|running| &mut running.messages);
                    let taken = take_out(&mut self.waiting, event_id)
                        .or_else(|| running.and_then(|messages| take_out(messages, event_id)));
                    taken.ok_or_else(|| Impossible::GoneMessage(event_id.clone()))?;
                }
            }
            SessionEvent::TurnBegun { turn, answers } => {
                let agent = self.agent.ok_or(Impossible::NotOpened(*turn))?.id;
                let of_turn = |message: &mut Message| answers.iter().any(|one| one.event_id == message.event_id);
                self.running = Some(Running {
                    turn: *turn,
                    agent,
                    attempt: 1,
                    position: recorded.position,
                    began: recorded.time,
                    answers: answers.clone(),
                    messages: self.waiting.extract_if(.., of_turn).collect(),
                    decided: Vec::new(),
                });
            }
            SessionEvent::TurnResumed { turn, attempt } => self.running(*turn)?.attempt = *attempt,
            SessionEvent::PermissionDecided { turn, request, allow, .. } => {
                self.running(*turn)?.decided.push((request.clone(), *allow));
            }
            SessionEvent::TurnFinished { turn, ending, agent_ran } => {
                self.running(*turn)?;
                let Some(ended) = self.running.take() else { return Err(Impossible::UnknownTurn(*turn)) };
                if let Some(memory) = &mut self.agent {
                    memory.used |= *agent_ran && ended.agent == memory.id;
                }
                if *ending == Ending::Superseded {
                    let again = ended.messages.into_iter().map(|message| Message { begun: true, ..message });
                    self.waiting.splice(..0, again);
                }
            }
        }
        Ok(())
    }
}

fn take_out(messages: &mut Vec<Message>, event_id: &str) -> Option<Message> {
    let at = messages.iter().position(|message| message.event_id == event_id)?;
    Some(messages.remove(at))
}

impl Snapshot for Session {
    const VERSION: u32 = 2;
}
