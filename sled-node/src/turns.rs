//! The project's turns: one at a time, each known by its id, each readable from any event, now and later (SLED-4).
//!
//! A turn outlives the gateway that asked for it. What a turn is lies in the journal alone; memory holds only the one that runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use journal::{Actor, Journal, Loaded, ReadError};
use link::requests::{
    Accepted, LINE_LIMIT, Outcome, Refusal, RefusalKind, RunningTurn, TurnEvent, TurnRecord, TurnRequest,
};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent::Surroundings;
use crate::record::{self, Ended, Recorder, Turn};
use crate::running::{self, Stop, StopReason};
use crate::supervised::Supervision;

/// What a request must leave of the link's line for the rest of its record, in bytes.
const LINE_ROOM: usize = 1024;

/// Waits between tries to store a turn's end: it is tried until it goes in, because until then the turn has not ended.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Where turns run.
#[derive(Debug, Clone)]
pub struct Site {
    /// The agent's working directory.
    pub workspace: PathBuf,
    /// What agents find around them.
    pub surroundings: Surroundings,
    /// How they are run.
    pub supervision: Supervision,
}

/// The project's turns. Clones are handles of the same.
#[derive(Clone)]
pub struct Turns {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    actor: Actor,
    site: Site,
    /// The turn that runs. Held while a turn begins or its end is stored, so that nobody sees it half-way.
    now: Mutex<Now>,
    tasks: TaskTracker,
}

enum Now {
    Idle,
    Running(Running),
    ShuttingDown,
}

struct Running {
    id: Uuid,
    since: Instant,
    stops: mpsc::Sender<Stop>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Turns {
    /// The turns of `journal`. Those that an earlier sled did not finish are stored as interrupted (DUR-6): nothing of them lives any more.
    pub async fn open(journal: Journal, project: String, site: Site) -> anyhow::Result<Self> {
        let actor = Actor::Sled(project);
        for (stream, turn) in journal.load_all::<Ended>(record::STREAM).await? {
            if turn.state.0 {
                continue;
            }
            tracing::warn!(turn = %stream.id, "interrupted: an earlier sled ended under it");
            Recorder::take_up(journal.clone(), actor.clone(), stream, turn.version)
                .finish(Outcome::Interrupted, None)
                .await?;
        }
        let now = Mutex::new(Now::Idle);
        Ok(Self { shared: Arc::new(Shared { journal, actor, site, now, tasks: TaskTracker::new() }) })
    }

    /// Begins a turn, once: the same request again finds what is there. A further attempt follows one that was interrupted.
    pub async fn put(&self, id: Uuid, request: TurnRequest) -> Result<Accepted, Refusal> {
        let size = serde_json::to_string(&request).map_err(internal)?.len();
        if size + LINE_ROOM > LINE_LIMIT {
            return Err(refusal(
                RefusalKind::Invalid,
                "the turn's words are too long; put them into a file of the project",
            ));
        }
        let mut now = self.shared.now.lock().await;
        let known: Loaded<Turn> = self.shared.journal.load(&record::stream(id)).await.map_err(internal)?;
        match &known.state {
            Turn { request: Some(before), .. } if *before == request => return Ok(Accepted { already: true }),
            Turn { request: Some(before), outcome: Some(Outcome::Interrupted) }
                if before.attempt.checked_add(1) == Some(request.attempt) => {}
            Turn { request: Some(_), .. } => {
                return Err(refusal(RefusalKind::Mismatch, "this turn was handed over before with another request"));
            }
            Turn { request: None, .. } => {}
        }
        match &*now {
            Now::Idle => {}
            Now::Running(running) => {
                return Err(refusal(
                    RefusalKind::Busy,
                    &format!("turn {} runs in this project; one at a time", running.id),
                ));
            }
            Now::ShuttingDown => return Err(refusal(RefusalKind::Busy, "the sled is shutting down")),
        }
        let (journal, actor) = (self.shared.journal.clone(), self.shared.actor.clone());
        let recorder = Recorder::accept(journal, actor, id, known.version, request.clone()).await.map_err(internal)?;
        let (stops, stopped) = mpsc::channel(4);
        let (ended, outcome) = watch::channel(None);
        *now = Now::Running(Running { id, since: Instant::now(), stops, outcome });
        self.shared.tasks.spawn(self.shared.clone().run(id, request, recorder, stopped, ended));
        Ok(Accepted { already: false })
    }

    /// Ends a turn and says how it ended, when its processes are gone; one that had ended before is only told of.
    pub async fn stop(&self, id: Uuid, grace: Duration) -> Result<Outcome, Refusal> {
        let running = match &*self.shared.now.lock().await {
            Now::Running(running) if running.id == id => Some((running.stops.clone(), running.outcome.clone())),
            _ => None,
        };
        if let Some((stops, mut outcome)) = running {
            // A full queue holds wishes of the same kind; a closed one means that the turn is just ending.
            stops.try_send(Stop { grace, reason: StopReason::Person }).ok();
            let ended = outcome.wait_for(Option::is_some).await.map_err(internal)?;
            return ended.clone().ok_or_else(|| internal("a turn ended without an outcome"));
        }
        let turn: Turn = self.shared.journal.load(&record::stream(id)).await.map_err(internal)?.state;
        match turn {
            Turn { outcome: Some(outcome), .. } => Ok(outcome),
            Turn { request: None, .. } => Err(unknown(id)),
            Turn { .. } => Err(internal("the turn neither runs nor has ended")),
        }
    }

    /// A turn's events after `after`, those that are there and those that come, up to the next end of an attempt.
    pub async fn events(
        &self,
        id: Uuid,
        after: u64,
    ) -> Result<impl Stream<Item = Result<TurnRecord, ReadError>> + Send + use<>, Refusal> {
        let stream = record::stream(id);
        let turn: Loaded<Turn> = self.shared.journal.load(&stream).await.map_err(internal)?;
        if turn.version == 0 {
            return Err(unknown(id));
        }
        if after > turn.version {
            return Err(refusal(RefusalKind::Invalid, &format!("turn {id} has no event {after} yet")));
        }
        if turn.state.outcome.is_some() && after == turn.version {
            return Ok(stream::empty().left_stream());
        }
        let events = self.shared.journal.subscribe(&stream, after).filter_map(move |recorded| {
            let record = match recorded {
                Ok(recorded) => record::for_reader(&recorded)
                    .map_err(|source| ReadError::Decode { stream: recorded.stream, version: recorded.version, source })
                    .transpose(),
                Err(error) => Some(Err(error)),
            };
            std::future::ready(record)
        });
        Ok(stream::unfold(Some(events), |events| async {
            let mut events = events?;
            let record = events.next().await?;
            let last = matches!(record, Ok(TurnRecord { event: TurnEvent::Finished { .. }, .. }) | Err(_));
            Some((record, (!last).then_some(events)))
        })
        .right_stream())
    }

    /// The turn that runs.
    pub async fn running(&self) -> Option<RunningTurn> {
        match &*self.shared.now.lock().await {
            Now::Running(running) => {
                Some(RunningTurn { id: running.id, running_secs: running.since.elapsed().as_secs() })
            }
            Now::Idle | Now::ShuttingDown => None,
        }
    }

    /// Takes no more turns and interrupts the one that runs; returns when its end is stored.
    pub async fn shut_down(&self, grace: Duration) {
        let before = std::mem::replace(&mut *self.shared.now.lock().await, Now::ShuttingDown);
        if let Now::Running(running) = before {
            running.stops.try_send(Stop { grace, reason: StopReason::Shutdown }).ok();
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    async fn run(
        self: Arc<Self>,
        id: Uuid,
        request: TurnRequest,
        mut recorder: Recorder,
        mut stops: mpsc::Receiver<Stop>,
        ended: watch::Sender<Option<Outcome>>,
    ) {
        tracing::info!(turn = %id, attempt = request.attempt, "turn begins");
        let verdict = running::run(request, &self.site, &mut recorder, &mut stops).await;
        let mut wait = FIRST_WAIT;
        loop {
            let mut now = self.now.lock().await;
            match recorder.finish(verdict.outcome.clone(), verdict.usage.clone()).await {
                Ok(()) => {
                    if let Now::Running(_) = *now {
                        *now = Now::Idle;
                    }
                    break;
                }
                Err(error) => {
                    tracing::error!(turn = %id, error = &error as &dyn std::error::Error, "the end of a turn cannot be stored; it is tried again");
                }
            }
            drop(now);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        tracing::info!(turn = %id, outcome = told(&verdict.outcome), "turn ended");
        ended.send_replace(Some(verdict.outcome));
    }
}

/// An outcome in a word, without what was said.
fn told(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Answered { .. } => "answered",
        Outcome::Failed { .. } => "failed",
        Outcome::Stopped { .. } => "stopped",
        Outcome::Interrupted => "interrupted",
    }
}

fn refusal(kind: RefusalKind, message: &str) -> Refusal {
    Refusal { kind, message: message.to_owned() }
}

fn unknown(id: Uuid) -> Refusal {
    refusal(RefusalKind::UnknownTurn, &format!("this sled has no turn {id}"))
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    refusal(RefusalKind::Internal, &error.to_string())
}
