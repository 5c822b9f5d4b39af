//! What is done because something else has happened: turns are counted, budgets pause projects, people see what became
//! of their messages, old texts are erased.
//!
//! It decides nothing about turns and sends nothing that is waited for.

mod sleds;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use journal::{Append, Cause, Clock};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{error, info, warn};
use uuid::Uuid;

pub use self::sleds::Sleds;
use crate::{
    chat::{Mark, Room},
    containers::SharedContainers,
    dispatch::{actor::Dispatcher, core::Event},
    metrics::{self, Metrics, Now},
    nodes::Nodes,
    outbox::{Address, Outbox, Outcome, Post, Settled},
    projects::Registry,
    refusal::Refusal,
    rooms::Rooms,
    sessions::{Ending, Sessions},
    store::Journal,
    tasks::Tasks,
    turns::{Handle, StopRequest, Turns, Watch},
    usage::{Limit, Pause, Usage, pause_text, tally::day},
};

/// How often old texts are looked for.
const RETENTION_ROUND: Duration = Duration::from_hours(1);
/// How soon again when not everybody could forget.
const RETENTION_RETRY: Duration = Duration::from_mins(5);

/// Counts turns.
pub struct Counting {
    /// By project, room and day.
    pub usage: Usage,
    /// For whoever scrapes.
    pub metrics: Metrics,
    /// Tells how long messages waited: the journal's.
    pub clock: Arc<dyn Clock>,
    /// Runs what takes a moment.
    pub tasks: Tasks,
}

impl Watch for Counting {
    fn began(&self, project: Uuid, room: &Room, turn: Uuid, cause: Cause, accepted: &[Timestamp]) {
        self.usage.begin(project, room, turn, cause);
        let now = self.clock.now();
        for at in accepted {
            self.metrics.waited(Duration::try_from(now.duration_since(*at)).unwrap_or_default());
        }
    }

    fn ending(&self, project: Uuid, turn: Uuid, lasted: Duration) -> Result<Option<Append>, Refusal> {
        self.usage.ending(project, turn, lasted)
    }

    fn ended(&self, project: Uuid, turn: Uuid, ending: Ending, lasted: Duration) {
        self.metrics.turn_ended(ending, lasted);
        let taking_in = self.usage.end(project, turn);
        self.tasks.spawn_to_end("counting a turn", async move {
            if let Err(refusal) = taking_in.await {
                error!(%turn, %refusal, "a turn's count is not known yet");
            }
        });
    }
}

/// Shows on people's messages what became of them, and notes under which event a question was told.
pub async fn show_outcomes(mut outcomes: UnboundedReceiver<Settled>, outbox: Outbox, turns: Turns) {
    while let Some(Settled { room, transaction, answers, failed, outcome }) = outcomes.recv().await {
        if let Outcome::Delivered(event_id) = &outcome {
            turns.question_told(&transaction, event_id);
        }
        let mark = if failed || outcome == Outcome::GivenUp { Mark::Failed } else { Mark::Delivered };
        for event_id in answers {
            outbox.mark(&room, &event_id, mark);
        }
    }
}

/// Where the budget's pauses go.
pub struct Budgets {
    /// What is used.
    pub usage: Usage,
    /// What waits for it.
    pub dispatcher: Dispatcher<Handle, StopRequest>,
    /// Whose messages wait.
    pub sessions: Sessions,
    /// What projects are called.
    pub registry: Arc<Registry>,
    /// Where people hear of it.
    pub outbox: Outbox,
}

impl Budgets {
    /// Lets projects rest whose budget is used up, and go on when a new day has one.
    pub async fn follow(self) {
        let mut changes = self.usage.changes();
        // A pause that the dispatcher was told of at start may have ended since.
        for (project, _) in self.registry.all() {
            if self.usage.paused(project).is_none() && !self.dispatcher.tell(Event::Unpause { project }) {
                return;
            }
        }
        while let Some(change) = changes.next().await {
            let project = change.project;
            let event = if change.pause.is_some() { Event::Pause { project } } else { Event::Unpause { project } };
            info!(%project, paused = change.pause.is_some(), "the day's budget");
            if !self.dispatcher.tell(event) {
                return;
            }
            let Some(pause) = change.pause else { continue };
            for (key, session) in self.sessions.busy(|key| key.project == project).await {
                let waiting = session.waiting.len();
                if waiting > 0
                    && let Err(refusal) =
                        tell_pause(&self.outbox, &self.registry, project, &key.room, &pause, waiting).await
                {
                    warn!(%refusal, "a pause is not told");
                }
            }
        }
    }
}

/// Tells a room, once for each pause, that its project rests.
pub async fn tell_pause(
    outbox: &Outbox,
    registry: &Registry,
    project: Uuid,
    room: &Room,
    pause: &Pause,
    waiting: usize,
) -> Result<(), Refusal> {
    let name = registry.get(project).and_then(|known| known.spec).map(|spec| spec.name).unwrap_or_default();
    let to = Address { room: room.clone(), thread: None, reply_to: None, mention: None, pending: None };
    // Whoever raises a budget that is used up has another one.
    let limit = match pause.limit {
        Limit::Tokens(tokens) => format!("{tokens}-tokens"),
        Limit::Usd(usd) => format!("{usd}-usd"),
    };
    let transaction = format!("budget-{project}-{}-{limit}", day(pause.until));
    let post = Post::notice(to, transaction, pause_text(&name, pause, waiting));
    outbox.post(post).await
}

/// Erases texts that are older than people want them kept (JRNL-8), as far as they are not needed any more.
pub struct Forgetting {
    /// Where they lie.
    pub journal: Journal,
    /// Tells the time: the journal's.
    pub clock: Arc<dyn Clock>,
    /// For how long they are kept.
    pub keep: SignedDuration,
    /// What waits for agents.
    pub sessions: Sessions,
    /// Commands without an answer.
    pub rooms: Arc<Rooms>,
    /// What is on its way to people.
    pub outbox: Outbox,
    /// Who forgets with it.
    pub sleds: Sleds,
}

impl Forgetting {
    /// Goes its rounds.
    pub async fn go(mut self) {
        loop {
            let done = match self.round().await {
                Ok(before) => self.sleds.erase(before).await,
                Err(refusal) => {
                    error!(%refusal, "old texts could not be erased; it is tried again");
                    false
                }
            };
            tokio::time::sleep(if done { RETENTION_ROUND } else { RETENTION_RETRY }).await;
        }
    }

    /// Erases what is old in the gateway's own journal; from when on texts are kept.
    async fn round(&self) -> Result<Timestamp, Refusal> {
        let before = self.clock.now().checked_sub(self.keep).unwrap_or(Timestamp::MIN);
        let before = erasable_before(before, &self.sessions, &self.rooms, &self.outbox).await?;
        let erased = self.journal.erase_before(before).await;
        let erased = erased.map_err(|error| Refusal::internal("old texts could not be erased", error))?;
        if erased > 0 {
            info!(erased, "old texts are erased");
        }
        Ok(before)
    }
}

/// `before`, or when the oldest message came that waits, is being answered or is on its way, if that was earlier.
async fn erasable_before(
    before: Timestamp,
    sessions: &Sessions,
    rooms: &Rooms,
    outbox: &Outbox,
) -> Result<Timestamp, Refusal> {
    let needed = [sessions.oldest().await?, rooms.oldest(), outbox.oldest().await?];
    Ok(needed.into_iter().flatten().fold(before, Timestamp::min))
}

/// What is true at the moment of a scrape.
pub fn sources(
    turns: Turns,
    sessions: Sessions,
    outbox: Outbox,
    nodes: Nodes,
    containers: SharedContainers,
    usage: Usage,
    journal: Journal,
) -> metrics::Sources {
    Arc::new(move || {
        let (turns, sessions, outbox) = (turns.clone(), sessions.clone(), outbox.clone());
        let (nodes, containers, usage) = (nodes.clone(), Arc::clone(&containers), usage.clone());
        let append_failures = journal.append_failures();
        async move {
            let waiting = sessions.busy(|_| true).await;
            Now {
                turns_running: turns.running(),
                messages_waiting: waiting.iter().map(|(_, session)| session.waiting.len()).sum(),
                sends: outbox.counts(),
                projects: nodes.projects(),
                links_open: nodes.open_links(),
                sleds_unreachable: nodes.unreachable(),
                engine_reachable: containers.is_engine_there().await,
                projects_paused: usage.paused_projects(|project| nodes.is_registered(project)),
                append_failures,
            }
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests;
