//! The agent's memory (CHAT-11): which session id is pinned for a conversation, and which turn runs in it.
//!
//! Stream `session/<project> <room> <thread>`. A turn is journaled before its sled hears of it, and its end
//! before people read its answer; what was begun and not finished is found again at start.

use std::fmt::Display;

use journal::{
    Actor, Append, AppendError, Cause, DomainEvent, Expected, Fold, Journal, Loaded, NewEvent, Recorded, StreamId,
};
use link::requests::AgentSession;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    chat::{Person, Room},
    dispatch::SessionKey,
    refusal::Refusal,
};

const STREAM: &str = "session";
/// How often a change is decided anew because another one came before it.
const TRIES: u32 = 16;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// With an answer.
    Answered,
    /// With an error, which was told.
    Failed,
    /// By a person.
    Stopped,
    /// With its sled or container.
    Interrupted,
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
    /// A turn is handed to its sled.
    #[serde(rename = "session.turn_begun")]
    TurnBegun {
        /// The batch's id.
        turn: Uuid,
        /// The messages that it answers, in order.
        answers: Vec<Answered>,
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
    const KINDS: &'static [&'static str] = &["session.opened", "session.turn_begun", "session.turn_finished"];
}

/// A session as its events tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    key: Option<SessionKey>,
    agent: Uuid,
    used: bool,
    running: Option<Running>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    turn: Uuid,
    /// The agent's session that it began in; a `reset` may have pinned another since.
    agent: Uuid,
    answers: Vec<Answered>,
}

/// An event that cannot follow.
#[derive(Debug, thiserror::Error)]
#[error("turn {0} ended and did not run")]
pub struct NotRunning(Uuid);

impl Fold for Session {
    type Event = SessionEvent;
    type Error = NotRunning;

    fn apply(&mut self, event: &SessionEvent, _: &Recorded) -> Result<(), NotRunning> {
        match event {
            SessionEvent::Opened { project, room, thread, agent_session } => {
                self.key = Some(SessionKey { project: *project, room: room.clone(), thread: thread.clone() });
                self.agent = *agent_session;
                self.used = false;
            }
            SessionEvent::TurnBegun { turn, answers } => {
                self.running = Some(Running { turn: *turn, agent: self.agent, answers: answers.clone() });
            }
            SessionEvent::TurnFinished { turn, agent_ran, .. } => {
                let ended = self.running.take_if(|running| running.turn == *turn).ok_or(NotRunning(*turn))?;
                self.used |= *agent_ran && ended.agent == self.agent;
            }
        }
        Ok(())
    }
}

/// A turn that was begun and not finished when the gateway ended.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// The session.
    pub session: SessionKey,
    /// The turn.
    pub turn: Uuid,
    /// Whom it answers.
    pub answers: Vec<Answered>,
}

/// All sessions. Loaded when they are needed: an idle one costs nothing.
#[derive(Clone)]
pub struct Sessions {
    journal: Journal,
}

impl Sessions {
    /// Sessions in this journal.
    pub fn new(journal: Journal) -> Self {
        Self { journal }
    }

    /// Pins the session of a conversation where it has none yet, and journals that a turn of it begins.
    pub async fn begin(&self, key: &SessionKey, turn: Uuid, answers: Vec<Answered>) -> Result<AgentSession, Refusal> {
        let cause = answers.last().map_or(Cause::None, |answered| Cause::Command(answered.event_id.clone()));
        let fresh = Uuid::new_v4();
        self.change(key, &Actor::Gateway, &cause, |session| {
            let begun = SessionEvent::TurnBegun { turn, answers: answers.clone() };
            if session.key.is_some() {
                (vec![begun], AgentSession { id: session.agent, resumed: session.used })
            } else {
                (vec![opened(key, fresh), begun], AgentSession { id: fresh, resumed: false })
            }
        })
        .await
    }

    /// Journals that a turn is over; one that does not run is over already.
    pub async fn finish(&self, key: &SessionKey, turn: Uuid, ending: Ending, agent_ran: bool) -> Result<(), Refusal> {
        self.change(key, &Actor::Sled(key.project.to_string()), &Cause::None, |session| {
            let runs = session.running.as_ref().is_some_and(|running| running.turn == turn);
            (if runs { vec![SessionEvent::TurnFinished { turn, ending, agent_ran }] } else { Vec::new() }, ())
        })
        .await
    }

    /// Pins a fresh session; the agent remembers nothing of before.
    pub async fn reset(&self, key: &SessionKey, by: &Person, cause: Cause) -> Result<(), Refusal> {
        let fresh = Uuid::new_v4();
        self.change(key, &Actor::Person(by.to_string()), &cause, |_| (vec![opened(key, fresh)], ())).await
    }

    /// Turns that were under way when the gateway ended.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, Refusal> {
        let all = self.journal.load_all::<Session>(STREAM).await.map_err(|error| unreadable(&error))?;
        let running = all.into_iter().filter_map(|(_, loaded)| {
            let Running { turn, answers, .. } = loaded.state.running?;
            Some(Unfinished { session: loaded.state.key?, turn, answers })
        });
        Ok(running.collect())
    }

    /// Appends what `decide` makes of the session as it is now; decides again when another change came between.
    async fn change<T>(
        &self,
        key: &SessionKey,
        actor: &Actor,
        cause: &Cause,
        decide: impl Fn(&Session) -> (Vec<SessionEvent>, T),
    ) -> Result<T, Refusal> {
        let failed = |error: &dyn Display| Refusal::internal("the session could not be journaled", error.to_string());
        let stream = stream(key);
        for _ in 0..TRIES {
            let Loaded { state, version, .. } =
                self.journal.load::<Session>(&stream).await.map_err(|error| unreadable(&error))?;
            let (events, decided) = decide(&state);
            if events.is_empty() {
                return Ok(decided);
            }
            let events = NewEvent::encode_all(&events).map_err(|error| failed(&error))?;
            let expected = Expected::Version(version);
            let (stream, actor, cause) = (stream.clone(), actor.clone(), cause.clone());
            match self.journal.append(Append { stream, expected, events, key: None, actor, cause }).await {
                Ok(_) => return Ok(decided),
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(failed(&"other changes of it came before this one again and again"))
    }
}

fn stream(key: &SessionKey) -> StreamId {
    let SessionKey { project, room, thread } = key;
    match thread {
        Some(thread) => StreamId::new(STREAM, format_args!("{project} {room} {thread}")),
        None => StreamId::new(STREAM, format_args!("{project} {room}")),
    }
}

fn opened(key: &SessionKey, agent_session: Uuid) -> SessionEvent {
    let SessionKey { project, room, thread } = key.clone();
    SessionEvent::Opened { project, room, thread, agent_session }
}

fn unreadable(error: &dyn Display) -> Refusal {
    Refusal::internal("the session cannot be read from the journal", error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use journal::SystemClock;

    use super::*;
    use crate::chat::SurfaceKind;

    #[tokio::test]
    async fn a_session_is_pinned_resumed_reset_and_found_unfinished() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let sessions = Sessions::new(journal);
        let room = Room { surface: SurfaceKind::Matrix, id: "!a:example.org".into() };
        let key = SessionKey { project: Uuid::now_v7(), room, thread: None };
        let (one, two, three) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());

        let first = sessions.begin(&key, one, Vec::new()).await.expect("it begins");
        assert!(!first.resumed);
        assert_eq!(sessions.unfinished().await.expect("it is readable").len(), 1);
        sessions.finish(&key, one, Ending::Failed, false).await.expect("it ends");
        let second = sessions.begin(&key, two, Vec::new()).await.expect("it begins");
        assert_eq!(second, first, "the agent never ran");
        sessions.finish(&key, two, Ending::Answered, true).await.expect("it ends");
        assert!(sessions.unfinished().await.expect("it is readable").is_empty());
        let third = sessions.begin(&key, three, Vec::new()).await.expect("it begins");
        assert_eq!(third, AgentSession { resumed: true, ..first });
        sessions.finish(&key, three, Ending::Stopped, true).await.expect("it ends");

        let by = Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() };
        sessions.reset(&key, &by, Cause::None).await.expect("it resets");
        let fresh = sessions.begin(&key, Uuid::now_v7(), Vec::new()).await.expect("it begins");
        assert!(!fresh.resumed && fresh.id != first.id);
    }

    fn setting() -> (tempfile::TempDir, Sessions, SessionKey, Person) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let room = Room { surface: SurfaceKind::Matrix, id: "!a:example.org".into() };
        let key = SessionKey { project: Uuid::now_v7(), room, thread: None };
        let by = Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() };
        (folder, Sessions::new(journal), key, by)
    }

    #[tokio::test]
    async fn the_end_of_a_turn_that_never_began_leaves_the_session_readable() {
        let (_folder, sessions, key, _) = setting();
        let (never, one) = (Uuid::now_v7(), Uuid::now_v7());
        sessions.finish(&key, never, Ending::Failed, false).await.expect("it is over already");
        sessions.begin(&key, one, Vec::new()).await.expect("it begins");
        sessions.finish(&key, never, Ending::Failed, false).await.expect("it is over already");
        assert_eq!(sessions.unfinished().await.expect("it is readable")[0].turn, one, "the other turn still runs");
        for _ in 0..2 {
            sessions.finish(&key, one, Ending::Answered, true).await.expect("it ends, once");
        }
        assert!(sessions.unfinished().await.expect("it is readable").is_empty());
    }

    #[tokio::test]
    async fn a_reset_during_a_turn_leaves_the_new_session_unused() {
        let (_folder, sessions, key, by) = setting();
        let turn = Uuid::now_v7();
        let old = sessions.begin(&key, turn, Vec::new()).await.expect("it begins");
        sessions.reset(&key, &by, Cause::None).await.expect("it resets");
        sessions.finish(&key, turn, Ending::Answered, true).await.expect("it ends");
        let new = sessions.begin(&key, Uuid::now_v7(), Vec::new()).await.expect("it begins");
        assert!(new.id != old.id && !new.resumed, "the agent ran under the old id alone");
    }

    #[tokio::test]
    async fn resets_between_the_steps_of_a_turn_are_in_nobodys_way() {
        let (_folder, sessions, key, by) = setting();
        for _ in 0..20 {
            let turn = Uuid::now_v7();
            let (begun, reset) =
                tokio::join!(sessions.begin(&key, turn, Vec::new()), sessions.reset(&key, &by, Cause::None));
            begun.expect("it begins");
            reset.expect("it resets");
            let (reset, finished) = tokio::join!(
                sessions.reset(&key, &by, Cause::None),
                sessions.finish(&key, turn, Ending::Answered, true)
            );
            reset.expect("it resets");
            finished.expect("it ends");
            assert!(sessions.unfinished().await.expect("it is readable").is_empty());
        }
    }
}
