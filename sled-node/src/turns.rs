//! The project's turns: one at a time, each known by its id, each readable from any event, now and later (SLED-4).
//!
//! A turn outlives the gateway that asked for it. What a turn is lies in the journal alone; memory holds only the one that runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;
use journal::{Actor, Journal, Loaded, ReadError};
use link::requests::{
    Accepted, Agent, Decision, DiffAnswer, Erased, LINE_LIMIT, Outcome, Refusal, RefusalKind, RunningTurn, TurnEvent,
    TurnRecord, TurnRequest, UndoAnswer,
};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent::Surroundings;
use crate::attempt::{Answer, Stop, StopReason, Wishes};
use crate::forgetting;
use crate::forward::Gate;
use crate::record::{self, Recorder, Turn};
use crate::running::{self, Verdict};
use crate::snapshots::{self, Snapshots};
use crate::stored::{Apart, for_reader};
use crate::supervised::Supervision;
use crate::warm::Warm;

/// What a request must leave of the link's line for the rest of its record, in bytes.
const LINE_ROOM: usize = 1024;

/// Waits between tries to store a turn's end: it is tried until it goes in, because until then the turn has not ended.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long after a turn's end its people's words are erased, together with those of others that ended meanwhile.
const PROMPTS_STAY: Duration = Duration::from_secs(10);

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
        for last in journal.last_events(record::STREAM).await? {
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

    /// Ends a turn and says how it ended, when its processes are gone; one that had ended before is only told of.
    pub async fn stop(&self, id: Uuid, grace: Duration) -> Result<Outcome, Refusal> {
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
        match self.shared.load(&now, id).await?.state {
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

    /// What the last turn that has ended and changed files changed (SLED-9).
    pub async fn diff(&self, paths: Vec<String>) -> Result<DiffAnswer, Refusal> {
        let shared = self.shared.clone();
        let held = shared.site.snapshots.hold().await;
        let runs = self.running().await.is_some();
        held.diff(paths, runs).await.map_err(internal)
    }

    /// Puts back what the last turn changed, or takes that back; refused while one runs.
    pub async fn undo(&self) -> Result<UndoAnswer, Refusal> {
        let this = self.clone();
        // A task of its own: who asked may go away at any moment, and what was begun is brought to its end.
        let undone = self.shared.tasks.spawn(async move {
            this.shared.idle().await?;
            // A turn that begins from here on waits for this, before its agent starts.
            let held = this.shared.site.snapshots.hold().await;
            this.shared.idle().await?;
            held.undo().await.map_err(internal)
        });
        undone.await.map_err(internal)?
    }

    /// Completes what is on record of a turn that an earlier sled did not see the end of.
    pub async fn settle_snapshots(&self) {
        let held = self.shared.site.snapshots.hold().await;
        if self.running().await.is_none() {
            held.settle().await;
        }
    }

    /// Sees to it that agents that wait do not take the memory that others need, for as long as it is polled.
    pub async fn watch_memory(&self) {
        self.shared.site.warm.watch_memory().await;
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
            Turn { request: Some(before), outcome: Some(Apart { rest: Outcome::Interrupted, .. }), .. }
                if before.rest.attempt.checked_add(1) == Some(request.attempt) => {}
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
        let recorder = Recorder::accept(journal, actor, id, known.version, request.clone()).await.map_err(internal)?;
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

    /// Refuses what must not be done while a turn runs.
    async fn idle(&self) -> Result<(), Refusal> {
        match &*self.now.lock().await {
            Now::Idle => Ok(()),
            Now::Running(_) => Err(refusal(RefusalKind::Busy, "a turn runs, and its end must come first")),
            Now::ShuttingDown => Err(refusal(RefusalKind::Busy, "the sled is shutting down")),
        }
    }

    /// Records the files before a turn, unless it is to end meanwhile: then how it ended.
    async fn record_before(&self, id: Uuid, wishes: &mut Wishes) -> Option<Outcome> {
        let recording = async { self.site.snapshots.hold().await.before(id).await };
        tokio::select! {
            () = recording => None,
            Some(stop) = wishes.stops.recv() => Some(stop.reason.without_agent()),
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
        let verdict = match &request.agent {
            // It changes no files.
            Agent::Echo { .. } => running::run(&request, &self.site, &mut recorder, &mut wishes).await,
            Agent::Claude { .. } => Box::pin(self.run_beside_record(id, &request, &mut recorder, &mut wishes)).await,
            Agent::Command { .. } => match self.record_before(id, &mut wishes).await {
                Some(outcome) => Verdict { outcome, usage: None },
                None => running::run(&request, &self.site, &mut recorder, &mut wishes).await,
            },
        };
        // From here on until the files are recorded nobody looks at what the turn changed, and no further turn's agent goes on;
        // but people need not wait for it to have their answer.
        let held = self.site.snapshots.hold().await;
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
        if !matches!(request.agent, Agent::Echo { .. }) {
            held.after(id, limit).await;
        }
    }

    /// Runs an attempt whose agent does nothing before the model has answered: its start and the recording of the files go on
    /// side by side, and its first request waits for the record.
    async fn run_beside_record(
        &self,
        id: Uuid,
        request: &TurnRequest,
        recorder: &mut Recorder,
        wishes: &mut Wishes,
    ) -> Verdict {
        let closed = self.model_gate.clone().write_owned().await;
        let recording = async {
            self.site.snapshots.hold().await.before(id).await;
            drop(closed);
        };
        let running = running::run(request, &self.site, recorder, wishes);
        tokio::pin!(recording, running);
        tokio::select! {
            verdict = &mut running => verdict,
            () = &mut recording => running.await,
        }
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
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use link::requests::{Agent, AgentSession, Permissions};

    use super::*;
    use crate::memory::Memory;
    use crate::workspace::Workspace;

    /// Turns of a sled that finds no program to supervise by, so that each fails at its start.
    async fn turns(folder: &std::path::Path) -> Turns {
        let journal = Journal::open(&folder.join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
        let sled = folder.join("no-such-sled");
        let surroundings = Surroundings {
            sled: sled.clone(),
            home: folder.to_owned(),
            environment: std::iter::empty::<(&str, &str)>().collect(),
            model_port: 1,
        };
        let supervision = Supervision { sled, run_dir: folder.to_owned() };
        let warm = Warm::new(Memory { cgroups: folder.join("cgroup"), proc: folder.join("proc") });
        let (workspace, limit_backoff) = (folder.to_owned(), Duration::ZERO);
        let environment = surroundings.environment.clone();
        let files = Workspace { directory: workspace.clone(), environment, supervision: supervision.clone() };
        let snapshots = Snapshots::new(files);
        let site = Site { workspace, surroundings, supervision, warm, limit_backoff, snapshots };
        Turns::open(journal, "p".to_owned(), site).await.unwrap()
    }

    fn request() -> TurnRequest {
        let session = AgentSession { id: Uuid::nil(), resumed: false };
        let agent = Agent::Echo { notice: None };
        TurnRequest {
            session,
            agent,
            prompt: "hi".to_owned(),
            identity: None,
            attempt: 1,
            permissions: Permissions::Bypass,
            keep_warm_secs: 60,
            afresh: None,
        }
    }

    /// How a turn ended, by its events.
    async fn end(turns: &Turns, id: Uuid) -> Outcome {
        let events = turns.events(id, 0).await.unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let events = tokio::time::timeout(Duration::from_secs(20), events).await.expect("a turn's events do not end");
        match &events.last().unwrap().event {
            TurnEvent::Finished { outcome, .. } => outcome.clone(),
            other => panic!("{other:?} is no end"),
        }
    }

    #[tokio::test]
    async fn a_turn_runs_though_who_asked_for_it_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let turns = turns(folder.path()).await;
        for polls in 1..10 {
            let id = Uuid::from_u128(polls);
            {
                let mut left = polls;
                let mut put = std::pin::pin!(turns.put(id, request()));
                // It is dropped at whatever it awaits then.
                poll_fn(|context| {
                    left -= 1;
                    let ended = put.as_mut().poll(context).is_ready();
                    if ended || left == 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
            assert!(turns.put(id, request()).await.unwrap().already);
            let end = end(&turns, id).await;
            assert!(matches!(end, Outcome::Failed { .. }), "dropped after {polls}: {end:?}");
            assert_eq!(turns.stop(id, Duration::ZERO).await.unwrap(), end);
            assert_eq!(turns.running().await, None);
        }
    }

    #[tokio::test]
    async fn a_turn_that_was_accepted_and_does_not_run_is_interrupted_whoever_asks() {
        let folder = tempfile::tempdir().unwrap();
        let turns = turns(folder.path()).await;
        let accepted = async |id: u128| {
            let (journal, actor) = (turns.shared.journal.clone(), turns.shared.actor.clone());
            Recorder::accept(journal, actor, Uuid::from_u128(id), 0, request()).await.unwrap();
            Uuid::from_u128(id)
        };
        assert_eq!(end(&turns, accepted(1).await).await, Outcome::Interrupted);

        assert_eq!(turns.stop(accepted(2).await, Duration::ZERO).await.unwrap(), Outcome::Interrupted);

        let id = accepted(3).await;
        assert!(turns.put(id, request()).await.unwrap().already);
        assert_eq!(end(&turns, id).await, Outcome::Interrupted);

        let id = accepted(4).await;
        let again = TurnRequest { attempt: 2, ..request() };
        assert!(!turns.put(id, again).await.unwrap().already);
        assert_eq!(end(&turns, id).await, Outcome::Interrupted);
        // Of the second attempt, to its end.
        assert!(turns.events(id, 2).await.unwrap().all(async |record| record.is_ok()).await);
        assert!(matches!(turns.stop(id, Duration::ZERO).await.unwrap(), Outcome::Failed { .. }));
    }

    #[tokio::test]
    async fn what_people_said_is_forgotten_soon_after() {
        let folder = tempfile::tempdir().unwrap();
        let turns = turns(folder.path()).await;
        let prompt = async |id: Uuid| {
            let accepted = turns.events(id, 0).await.unwrap().boxed().next().await.unwrap().unwrap().event;
            let TurnEvent::Accepted(request) = accepted else { panic!("{accepted:?}") };
            request.prompt
        };
        let forgetting = turns.clone();
        let forgetting = tokio::spawn(async move { forgetting.forget_prompts().await });
        for id in [1, 2].map(Uuid::from_u128) {
            turns.put(id, request()).await.unwrap();
            assert!(matches!(end(&turns, id).await, Outcome::Failed { .. }));
            assert_eq!(prompt(id).await, "hi");
            tokio::time::pause();
            while prompt(id).await != crate::stored::FORGOTTEN {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tokio::time::resume();
            assert!(turns.put(id, request()).await.unwrap().already);
        }
        forgetting.abort();
    }
}
