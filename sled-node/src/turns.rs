//! The project's turns: one at a time, each known by its id, each readable from any event, now and later (SLED-4).
//!
//! A turn outlives the gateway that asked for it. What a turn is lies in the journal alone; memory holds only the one that runs.

mod recorded;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;
use journal::{Actor, Journal, Loaded, ReadError};
use link::requests::{
    Accepted, Agent, Decision, Erased, LINE_LIMIT, Outcome, Refusal, RefusalKind, RunningTurn, TurnEvent, TurnRecord,
    TurnRequest,
};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent::Surroundings;
use crate::attempt::{Answer, Stop, StopReason, Wishes};
use crate::forgetting;
use crate::forward::Gate;
use crate::record::{self, Recorder, Turn};
use crate::snapshots::{self, Snapshots};
use crate::stored::{Apart, for_reader};
use crate::supervised::Supervision;
use crate::warm::Warm;

/// What a request must leave of the link's line for the rest of its record, in bytes.
const LINE_ROOM: usize = 1024;

/// Waits between tries to store a turn's end: it is tried until it goes in, because until then the turn has not ended.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a turn's end waits for who works on the records of the files, before it is stored.
const HOLD_LIMIT: Duration = Duration::from_secs(1);

/// How long after a turn's end its people's words are erased, together with those of others that ended meanwhile.
const PROMPTS_STAY: Duration = Duration::from_secs(10);

/// Of how many attempts that are to be stopped before they come the sled remembers that: a hand-over that its stop has overtaken
/// comes soon after it, or never.
const OVERTAKEN_MAX: usize = 64;

/// Where turns run.
#[derive(Clone)]
pub struct Site {
    /// The agent's working directory.
    pub workspace: PathBuf,
    /// What agents find around them.
    pub surroundings: Surroundings,
    /// How they are run.
    pub supervision: Supervision,
    /// Those that wait for their session's next turn.
    pub warm: Warm,
    /// How long a turn waits when the model's service limits the rate and does not say until when.
    pub limit_backoff: Duration,
    /// What turns did to the files.
    pub snapshots: Snapshots,
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
    /// Attempts that were stopped before they were handed over, oldest first. Whoever stopped them has told so, and nobody waits
    /// for what they would do.
    overtaken: std::sync::Mutex<VecDeque<(Uuid, u32)>>,
    /// Held for writing while the files are recorded before a turn whose agent can do nothing without the model.
    model_gate: Gate,
    /// Told when a turn has ended.
    ended: Notify,
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
    answers: mpsc::Sender<Answer>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Turns {
    /// The turns of `journal`. Those that an earlier sled did not finish are stored as interrupted (DUR-6): nothing of them lives any more.
    pub async fn open(journal: Journal, project: String, site: Site) -> anyhow::Result<Self> {
        let actor = Actor::Sled(project);
        // Those before are over, and a journal may hold years of them. One that was written otherwise is found when it is asked for.
        let over_up_to = forgetting::erased_up_to(&journal).await?;
        for last in journal.last_events_after(record::STREAM, over_up_to).await? {
            let stream = last.stream.clone();
            if record::has_ended(&last).with_context(|| format!("cannot read the end of {stream}"))? {
                continue;
            }
            tracing::warn!(turn = %stream.id, "interrupted: an earlier sled ended under it");
            let turn: Loaded<Turn> = journal.load(&stream).await?;
            Recorder::take_up(journal.clone(), actor.clone(), stream, turn.version).interrupt(&turn.state).await?;
        }
        let (now, ended) = (Mutex::new(Now::Idle), Notify::new());
        Ok(Self {
            shared: Arc::new(Shared {
                journal,
                actor,
                site,
                now,
                overtaken: std::sync::Mutex::default(),
                model_gate: Gate::default(),
                ended,
                tasks: TaskTracker::new(),
            }),
        })
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
        // A task of its own: who asked may go away at any moment, and a turn that was stored must run all the same.
        self.shared.tasks.spawn(self.shared.clone().begin(id, request)).await.map_err(internal)?
    }

    /// Ends a turn and says how it ended, when its processes are gone; one that had ended before is only told of. The hand-over of
    /// `attempt`, or without one of the turn's next, may be on its way yet, and is ended when it comes.
    pub async fn stop(&self, id: Uuid, attempt: Option<u32>, grace: Duration) -> Result<Outcome, Refusal> {
        let now = self.shared.now.lock().await;
        if let Now::Running(running) = &*now
            && running.id == id
        {
            let (stops, mut outcome) = (running.stops.clone(), running.outcome.clone());
            drop(now);
            // A full queue holds wishes of the same kind; a closed one means that the turn is just ending.
            stops.try_send(Stop { grace, reason: StopReason::Person }).ok();
            let ended = outcome.wait_for(Option::is_some).await.map_err(internal)?;
            return ended.clone().ok_or_else(|| internal("a turn ended without an outcome"));
        }
        let turn = self.shared.load(&now, id).await?.state;
        // Of a turn that a sled never knew, whoever hands it over may be further than its first attempt.
        if let Some(next) = next_attempt(&turn)
            && let attempt = attempt.unwrap_or(next)
            && attempt >= next
        {
            self.shared.expect_overtaken(id, attempt);
        }
        match turn {
            Turn { outcome: Some(outcome), .. } => outcome.whole(&self.shared.journal).await.map_err(internal),
            Turn { request: None, .. } => Err(unknown(id)),
            Turn { .. } => Err(internal("the sled is shutting down and ends this turn itself")),
        }
    }

    /// Answers a permission question of a turn, and says what holds: the first answer, or that nobody gave one in time.
    pub async fn answer(&self, id: Uuid, request: String, allow: bool) -> Result<Decision, Refusal> {
        let now = self.shared.now.lock().await;
        if let Now::Running(running) = &*now
            && running.id == id
        {
            let (answers, mut outcome) = (running.answers.clone(), running.outcome.clone());
            drop(now);
            let (reply, replied) = oneshot::channel();
            answers.send(Answer { request: request.clone(), allow, reply }).await.ok();
            match replied.await {
                Ok(Some(decision)) => return Ok(decision),
                // It may be a question of an attempt before this one.
                Ok(None) => {}
                // The turn is just ending, and what was open with it.
                Err(_) => drop(outcome.wait_for(Option::is_some).await.map_err(internal)?),
            }
        } else {
            drop(now);
        }
        self.settled(id, &request).await
    }

    /// How a question that is no longer open was settled, by the journal.
    async fn settled(&self, id: Uuid, request: &str) -> Result<Decision, Refusal> {
        let turn = {
            let now = self.shared.now.lock().await;
            self.shared.load(&now, id).await?
        };
        if turn.version == 0 {
            return Err(unknown(id));
        }
        match turn.state.questions.get(request) {
            Some(Some(decision)) => Ok(*decision),
            Some(None) => Err(internal("the turn's end is not stored yet")),
            None => Err(refusal(RefusalKind::UnknownPermission, &format!("turn {id} has asked no such question"))),
        }
    }

    /// A turn's events after `after`, those that are there and those that come, up to the next end of an attempt.
    pub async fn events(
        &self,
        id: Uuid,
        after: u64,
    ) -> Result<impl Stream<Item = Result<TurnRecord, ReadError>> + Send + use<>, Refusal> {
        let turn = {
            let now = self.shared.now.lock().await;
            self.shared.load(&now, id).await?
        };
        if turn.version == 0 {
            return Err(unknown(id));
        }
        if after > turn.version {
            return Err(refusal(RefusalKind::Invalid, &format!("turn {id} has no event {after} yet")));
        }
        if turn.state.outcome.is_some() && after == turn.version {
            return Ok(stream::empty().left_stream());
        }
        let journal = self.shared.journal.clone();
        let events = journal.subscribe(&record::stream(id), after).filter_map(move |recorded| {
            let journal = journal.clone();
            async move {
                match recorded {
                    Ok(recorded) => for_reader(&recorded, &journal).await.transpose(),
                    Err(error) => Some(Err(error)),
                }
            }
        });
        let events = events.boxed();
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

    /// What the model's endpoint waits for before it passes a request on.
    pub fn model_gate(&self) -> Gate {
        self.shared.model_gate.clone()
    }

    /// Sees to it that agents that wait do not take the room that others need, for as long as it is polled.
    pub async fn watch_room(&self) {
        self.shared.site.warm.watch_room().await;
    }

    /// Erases the texts of turns that are over, as far as they were stored before `before`; the gateway has no more need of them.
    /// Some may stay that are younger than the turn that runs.
    pub async fn erase(&self, before: Timestamp) -> Result<Erased, Refusal> {
        let before = {
            let now = self.shared.now.lock().await;
            // A turn that begins from here on has younger texts.
            let before = before.min(Timestamp::now());
            match &*now {
                Now::Idle => before,
                Now::Running(running) => {
                    before.min(forgetting::begun(&self.shared.journal, running.id).await.map_err(internal)?)
                }
                Now::ShuttingDown => return Err(refusal(RefusalKind::Busy, "the sled is shutting down")),
            }
        };
        let texts = self.shared.journal.erase_before(before).await.map_err(internal)?;
        Ok(Erased { texts })
    }

    /// Erases what people said in turns that have ended, for as long as it is polled; first what an earlier sled did not come to.
    pub async fn forget_prompts(&self) {
        let Shared { journal, actor, ended, .. } = &*self.shared;
        loop {
            if let Err(error) = forgetting::erase_prompts(journal, actor).await {
                tracing::error!(error = format!("{error:#}"), "what people said cannot be erased; it is tried again");
                ended.notify_one();
            }
            ended.notified().await;
            tokio::time::sleep(PROMPTS_STAY).await;
        }
    }

    /// Takes no more turns, interrupts the one that runs, and ends the agents that wait; returns when its end is stored and they are dead.
    pub async fn shut_down(&self, grace: Duration) {
        let before = std::mem::replace(&mut *self.shared.now.lock().await, Now::ShuttingDown);
        if let Now::Running(running) = before {
            running.stops.try_send(Stop { grace, reason: StopReason::Shutdown }).ok();
        }
        self.shared.tasks.close();
        tokio::join!(self.shared.tasks.wait(), self.shared.site.warm.shut_down());
    }
}

impl Shared {
    /// Begins a turn, or says why not.
    async fn begin(self: Arc<Self>, id: Uuid, request: TurnRequest) -> Result<Accepted, Refusal> {
        let mut now = self.now.lock().await;
        let known = self.load(&now, id).await?;
        if let Some(before) = &known.state.request
            && before.is(&request, &self.journal).await.map_err(internal)?
        {
            return Ok(Accepted { already: true });
        }
        match &known.state {
            Turn { request: Some(_), .. } if next_attempt(&known.state) == Some(request.attempt) => {}
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
        let (journal, actor) = (self.journal.clone(), self.actor.clone());
        let accepting = Recorder::accept(journal, actor, id, known.version, request.clone());
        let mut recorder = accepting.await.map_err(internal)?;
        if self.was_overtaken(id, request.attempt) {
            tracing::info!(turn = %id, "a turn is not begun: its stop came before it");
            let stopped = Outcome::Stopped { processes: 0, killed: false };
            // If it cannot be stored, whoever asks for the turn next stores it as interrupted.
            recorder.finish(stopped, None).await.map_err(internal)?;
            self.ended.notify_one();
            return Ok(Accepted { already: false });
        }
        let ((stops, stopped), (answers, answered)) = (mpsc::channel(4), mpsc::channel(4));
        let (ended, outcome) = watch::channel(None);
        *now = Now::Running(Running { id, since: Instant::now(), stops, answers, outcome });
        let wishes = Wishes { stops: stopped, answers: answered };
        self.tasks.spawn(self.clone().run(id, request, recorder, wishes, ended));
        Ok(Accepted { already: false })
    }

    /// A turn as it is `now`. One that was accepted and neither runs nor has ended, such as an append leaves that took place and
    /// yet failed, is stored as interrupted first, so that nobody waits for its end. While the sled shuts down that is left to the next one.
    async fn load(&self, now: &Now, id: Uuid) -> Result<Loaded<Turn>, Refusal> {
        let stream = record::stream(id);
        let turn: Loaded<Turn> = self.journal.load(&stream).await.map_err(internal)?;
        let lives = match now {
            Now::Idle => false,
            Now::Running(running) => running.id == id,
            // The turn that is being ended is known by its task alone.
            Now::ShuttingDown => true,
        };
        if lives || turn.state.request.is_none() || turn.state.outcome.is_some() {
            return Ok(turn);
        }
        tracing::warn!(turn = %id, "interrupted: it was accepted and does not run");
        Recorder::take_up(self.journal.clone(), self.actor.clone(), stream.clone(), turn.version)
            .interrupt(&turn.state)
            .await
            .map_err(internal)?;
        self.ended.notify_one();
        self.journal.load(&stream).await.map_err(internal)
    }

    /// Notes that an attempt is to end when it comes. Held with `now`, as its counterpart, so that neither misses the other.
    fn expect_overtaken(&self, id: Uuid, attempt: u32) {
        let mut overtaken = self.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        overtaken.retain(|known| *known != (id, attempt));
        overtaken.push_back((id, attempt));
        let over = overtaken.len().saturating_sub(OVERTAKEN_MAX);
        overtaken.drain(..over);
    }

    /// Whether an attempt was stopped before it came.
    fn was_overtaken(&self, id: Uuid, attempt: u32) -> bool {
        let overtaken = self.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        overtaken.contains(&(id, attempt))
    }

    /// Refuses what must not be done while a turn runs.
    async fn idle(&self) -> Result<(), Refusal> {
        match &*self.now.lock().await {
            Now::Idle => Ok(()),
            Now::Running(_) => Err(refusal(RefusalKind::Busy, "a turn runs, and its end must come first")),
            Now::ShuttingDown => Err(refusal(RefusalKind::Busy, "the sled is shutting down")),
        }
    }

    async fn run(
        self: Arc<Self>,
        id: Uuid,
        request: TurnRequest,
        mut recorder: Recorder,
        mut wishes: Wishes,
        ended: watch::Sender<Option<Outcome>>,
    ) {
        tracing::info!(turn = %id, attempt = request.attempt, "turn begins");
        let verdict = recorded::survived(Box::pin(self.run_recorded(id, &request, &mut recorder, &mut wishes))).await;
        let recorded = !matches!(request.agent, Agent::Echo { .. });
        // From here on until the files are recorded nobody looks at what the turn changed, and no further turn's agent goes on;
        // but people need not wait for it to have their answer, nor for somebody who works on the records.
        let held = if recorded { timeout(HOLD_LIMIT, self.site.snapshots.hold()).await.ok() } else { None };
        // Who still waits for an answer finds it in the journal.
        drop(wishes);
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
        self.ended.notify_one();
        let limit = match verdict.outcome {
            Outcome::Interrupted => snapshots::SHUTDOWN_LIMIT,
            _ => snapshots::TURN_LIMIT,
        };
        ended.send_replace(Some(verdict.outcome));
        if recorded {
            let held = match held {
                Some(held) => held,
                // Whoever works on the records next, be it for another turn, completes this one's, if we do not come first.
                None => self.site.snapshots.hold().await,
            };
            held.after(id, limit).await;
        }
    }
}

/// The number of the attempt that may follow; `None` where none may.
fn next_attempt(turn: &Turn) -> Option<u32> {
    match turn {
        Turn { request: None, .. } => Some(1),
        Turn { request: Some(last), outcome: Some(Apart { rest: Outcome::Interrupted, .. }), .. } => {
            last.rest.attempt.checked_add(1)
        }
        Turn { request: Some(_), .. } => None,
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

#[cfg(test)]
mod tests;
