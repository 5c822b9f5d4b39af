//! Turns: a batch becomes a prompt, goes to its project's sled, and comes back as an answer.
//!
//! A turn belongs to its sled and outlives the gateway. Its end is journaled before people read its answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use link::{
    CallError, SledClient,
    requests::{Agent, GitIdentity, Outcome, RefusalKind, TurnEvent, TurnRequest},
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    chat::Weight,
    dispatch::{
        Batch, SessionKey,
        actor::{Carrier, Ended},
    },
    nodes::Nodes,
    outbox::{Address, Outbox, Progress},
    prompt::{self, Words},
    refusal::{Kind, Refusal},
    sessions::{Answered, Sessions, Unfinished},
    tasks::Tasks,
    text,
};

mod told;

use told::Told;

/// Beyond the grace that a sled has for stopping a turn, how long it may take to say so; also how long reaching it may take.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How long ending a turn's container is tried, when its sled does not end the turn.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How often the node is tried again without any progress: the waits between come to about two minutes.
const RETRIES: u32 = 30;
/// The first wait between two tries; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a surface may hold up the end of a turn.
const SURFACE_PATIENCE: Duration = Duration::from_secs(2);
/// Lines of tool calls that the progress message shows.
const TOOL_LINES: usize = 20;

/// How turns are run.
#[derive(Debug, Clone)]
pub struct TurnSettings {
    /// The agent.
    pub agent: Agent,
    /// The author of its commits.
    pub identity: Option<GitIdentity>,
    /// How long a stopped turn has until it is killed.
    pub stop_grace: Duration,
}

/// Where turns run.
pub trait Sleds: Send + Sync + 'static {
    /// The project's sled, reached anew if need be.
    fn sled(&self, project: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>>;
    /// Kills the project's container, and everything in it.
    fn kill(&self, project: Uuid) -> BoxFuture<'_, Result<(), Refusal>>;
}

impl Sleds for Nodes {
    fn sled(&self, project: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>> {
        Nodes::sled(self, project).boxed()
    }

    fn kill(&self, project: Uuid) -> BoxFuture<'_, Result<(), Refusal>> {
        Nodes::kill(self, project).boxed()
    }
}

/// Runs turns; carries out what the dispatcher decides.
#[derive(Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

struct Inner {
    settings: TurnSettings,
    nodes: Box<dyn Sleds>,
    sessions: Sessions,
    outbox: Outbox,
    tasks: Tasks,
    running: Mutex<HashMap<Uuid, Running>>,
    /// What a stop did to turns, as long as it is still to be told.
    stopped: Mutex<HashMap<Uuid, String>>,
}

struct Running {
    cancel: CancellationToken,
    /// Whether it is ended because its project is deleted.
    deleted: bool,
}

/// Who asked to stop, and what they get.
#[derive(Debug)]
pub enum StopRequest {
    /// A person asked, and gets the report here.
    Told(Address),
    /// The project is being deleted. Nobody gets a report; fired when nothing of the project runs or waits any more.
    /// Each room is told what became of its own turn and messages.
    Silent(oneshot::Sender<()>),
}

/// A turn that is followed.
struct Turn {
    id: Uuid,
    session: SessionKey,
    to: Address,
    activity: Progress,
    cancel: CancellationToken,
}

/// What a turn came to.
struct End {
    /// A refusal, when the turn could not be carried out or followed.
    outcome: Result<Outcome, Refusal>,
    agent_ran: bool,
    /// Whether it was ended because somebody asked for it.
    asked: bool,
}

impl Turns {
    /// Nothing runs yet.
    pub fn new(settings: TurnSettings, nodes: impl Sleds, sessions: Sessions, outbox: Outbox, tasks: Tasks) -> Self {
        let nodes = Box::new(nodes);
        let inner =
            Inner { settings, nodes, sessions, outbox, tasks, running: Mutex::default(), stopped: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    #[cfg(test)]
    fn running(&self) -> usize {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Goes on with a turn that was under way when the gateway ended.
    pub fn resume(&self, unfinished: Unfinished, ended: Ended<Words, StopRequest>) {
        let Unfinished { session, turn, answers } = unfinished;
        let this = self.clone();
        let cancel = self.register(turn);
        self.inner.tasks.spawn("turn", async move {
            let to = address(&session, answers.last(), None);
            let turn = this.turn(turn, session, to, cancel);
            this.typing(&turn.session, true).await;
            let end = Box::pin(this.follow(&turn, None)).await;
            this.conclude(turn, end, (ended, Vec::new()));
        });
    }

    fn turn(&self, id: Uuid, session: SessionKey, to: Address, cancel: CancellationToken) -> Turn {
        let activity = Progress::new(&self.inner.outbox, Address { reply_to: None, mention: None, ..to.clone() });
        Turn { id, session, to, activity, cancel }
    }

    fn register(&self, turn: Uuid) -> CancellationToken {
        let cancel = CancellationToken::new();
        let running = Running { cancel: cancel.clone(), deleted: false };
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, running);
        cancel
    }

    fn unregister(&self, turn: Uuid) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn);
    }

    fn is_deleted(&self, turn: Uuid) -> bool {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&turn).is_some_and(|running| running.deleted)
    }

    /// Shows or ends the sign that an answer is being written. It is not worth a wait.
    async fn typing(&self, session: &SessionKey, on: bool) {
        if let Some(surface) = self.inner.outbox.surface(session.room.surface) {
            let shown = tokio::time::timeout(SURFACE_PATIENCE, surface.typing(&session.room, on)).await;
            shown.unwrap_or_else(|_| debug!(room = %session.room, on, "the sign of writing was not taken in time"));
        }
    }

    async fn run(&self, batch: Batch<Words>, cancel: CancellationToken, ended: Ended<Words, StopRequest>) {
        let Batch { id, session, messages } = batch;
        let answers: Vec<_> = messages
            .iter()
            .map(|words| Answered {
                event_id: words.event_id.clone(),
                sender: words.sender.clone(),
                thread: words.thread.clone(),
            })
            .collect();
        let pending = messages.iter().rev().find_map(|words| words.pending.clone());
        let to = address(&session, answers.last(), pending);
        let memory = match self.inner.sessions.begin(&session, id, answers).await {
            Ok(memory) => memory,
            Err(refusal) => {
                // Nothing has begun, so nothing ends.
                self.unregister(id);
                drop(self.inner.outbox.post_once(&to, Weight::Answer, refusal.to_markdown(), transaction(id)));
                return;
            }
        };
        let turn = self.turn(id, session, to, cancel);
        self.typing(&turn.session, true).await;
        let settings = &self.inner.settings;
        let request = TurnRequest {
            session: memory,
            agent: settings.agent.clone(),
            prompt: prompt::render(&messages),
            identity: settings.identity.clone(),
            attempt: 1,
        };
        let end = Box::pin(self.follow(&turn, Some(request))).await;
        self.conclude(turn, end, (ended, messages));
    }

    /// Hands the turn over, where that is still to be done, and follows it to its end. Whatever goes wrong: when this
    /// returns, the turn is over, as far as the engine can be made to end it.
    async fn follow(&self, turn: &Turn, request: Option<TurnRequest>) -> End {
        let mut reading = Reading { handed: request.is_none(), ..Reading::default() };
        let went = turn.cancel.run_until_cancelled(Box::pin(self.go_on(turn, request, &mut reading))).await;
        let (outcome, asked) = match went {
            Some(Err(refusal)) if reading.handed => {
                warn!(turn = %turn.id, %refusal, "a turn is given up, and ended");
                let outcome = match self.stop(turn, reading.handed).await {
                    // It had ended already, and this is its end.
                    Ok(outcome @ (Outcome::Answered { .. } | Outcome::Failed { .. })) => Ok(outcome),
                    Ok(Outcome::Stopped { .. } | Outcome::Interrupted) => Err(refusal),
                    Err(unstopped) => Err(unstopped),
                };
                (outcome, false)
            }
            Some(outcome) => (outcome, false),
            None => (self.stop(turn, reading.handed).await, true),
        };
        // An end that came before its beginning was read tells as well.
        let seen = matches!(
            outcome,
            Ok(Outcome::Answered { .. }
                | Outcome::Stopped { processes: 1.., .. }
                | Outcome::Stopped { killed: true, .. })
        );
        End { outcome, agent_ran: reading.agent_ran || seen, asked }
    }

    /// Hands over and follows over broken links and a node that is away, as long as it may come back.
    async fn go_on(
        &self,
        turn: &Turn,
        mut request: Option<TurnRequest>,
        reading: &mut Reading,
    ) -> Result<Outcome, Refusal> {
        loop {
            let trouble = match self.inner.nodes.sled(turn.session.project).await {
                Ok(sled) => match self.advance(&sled, turn, &mut request, reading).await {
                    Ok(outcome) => return Ok(outcome),
                    Err(error @ (CallError::Closed(_) | CallError::Dropped | CallError::Timeout(_))) => {
                        Refusal::unavailable(format!("the link to the node broke again and again: {error}"))
                            .hint("`logs` and `doctor` may tell why.")
                    }
                    Err(CallError::Refused(refused))
                        if refused.kind == RefusalKind::UnknownTurn && request.is_none() =>
                    {
                        return Ok(Outcome::Interrupted);
                    }
                    Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Busy => {
                        return Err(Refusal::unavailable("the node works on something else and does not stop it")
                            .hint("Write again in a while; `doctor` may tell more."));
                    }
                    Err(error) if request.is_some() => {
                        return Err(Refusal::internal("the node did not take the message", error));
                    }
                    Err(error) => return Err(Refusal::internal("the node's answer cannot be used", error)),
                },
                // Before the hand-over the person can write again; after it the answer may wait in the sled.
                Err(refusal) if !reading.handed || refusal.kind == Kind::Usage => return Err(refusal),
                Err(refusal) => refusal,
            };
            let Some(wait) = reading.backoff.next() else { return Err(trouble) };
            info!(turn = %turn.id, %trouble, ?wait, "the node is tried again");
            tokio::time::sleep(wait).await;
        }
    }

    /// One link's worth of a turn.
    async fn advance(
        &self,
        sled: &SledClient,
        turn: &Turn,
        request: &mut Option<TurnRequest>,
        reading: &mut Reading,
    ) -> Result<Outcome, CallError> {
        if let Some(wanted) = request {
            // From the first try on it may run, whatever the answer is.
            reading.handed = true;
            match sled.put_turn(turn.id, wanted).await {
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Busy => {
                    self.make_room(sled).await?;
                    sled.put_turn(turn.id, wanted).await?
                }
                taken => taken?,
            };
            *request = None;
            reading.backoff = Backoff::default();
        }
        self.read(sled, turn, reading).await
    }

    /// Ends the turn that a sled works on and this gateway does not know: nobody waits for its answer.
    async fn make_room(&self, sled: &SledClient) -> Result<(), CallError> {
        let Some(stranger) = sled.status().await?.turn else { return Ok(()) };
        let known = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&stranger.id);
        if !known {
            warn!(turn = %stranger.id, "a turn that nobody knows is stopped");
            match sled.stop_turn(stranger.id, self.grace_ms()).await {
                // It may have ended meanwhile; whether there is room now, the next hand-over tells.
                Ok(_) | Err(CallError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&self, sled: &SledClient, turn: &Turn, reading: &mut Reading) -> Result<Outcome, CallError> {
        let activity = &turn.activity;
        let mut events = sled.turn_events(turn.id, reading.seen);
        loop {
            let record = events.next().await.ok_or(CallError::Dropped)??;
            reading.seen = record.seq;
            reading.backoff = Backoff::default();
            match record.event {
                TurnEvent::Accepted(_) => {}
                TurnEvent::Started { session_found } => {
                    reading.agent_ran = true;
                    if !session_found {
                        drop(self.inner.outbox.post(
                            &turn.to,
                            Weight::Notice,
                            "The agent has lost its memory of this conversation; it begins afresh.",
                        ));
                    }
                }
                TurnEvent::Spoke { text } => reading.show(activity, &text::one_line(&text, 300)),
                TurnEvent::ToolCalled { name, summary } => {
                    reading.show(activity, &format!("· {} {}", text::one_line(&name, 40), text::code(&summary)));
                }
                TurnEvent::RateLimited { retry_after_secs } => {
                    let until = retry_after_secs
                        .map(|secs| format!(" for {}", text::span(Duration::from_secs(secs))))
                        .unwrap_or_default();
                    reading.show(activity, &format!("The model's service limits the rate{until}."));
                }
                TurnEvent::Finished { outcome, .. } => return Ok(outcome),
            }
        }
    }

    /// Ends a turn. A sled that does not do it in time loses its container: a turn cannot hold a stop up. What was never
    /// `handed` over needs no end.
    async fn stop(&self, turn: &Turn, handed: bool) -> Result<Outcome, Refusal> {
        let not_begun = Outcome::Stopped { processes: 0, killed: false };
        if !handed {
            return Ok(not_begun);
        }
        let project = turn.session.project;
        let why = match tokio::time::timeout(STOP_MARGIN, self.inner.nodes.sled(project)).await {
            Ok(Ok(sled)) => match sled.patience(STOP_MARGIN).stop_turn(turn.id, self.grace_ms()).await {
                Ok(outcome) => return Ok(outcome),
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::UnknownTurn => return Ok(not_begun),
                Err(error) => error.to_string(),
            },
            Ok(Err(refusal)) => refusal.sentence(),
            Err(elapsed) => elapsed.to_string(),
        };
        warn!(turn = %turn.id, why, "the sled does not stop the turn; its container is killed");
        self.kill(project).await
    }

    async fn kill(&self, project: Uuid) -> Result<Outcome, Refusal> {
        let mut why = "the engine does not answer".to_owned();
        let killing = async {
            for wait in Backoff::default() {
                match self.inner.nodes.kill(project).await {
                    Ok(()) => return true,
                    Err(refusal) => why = refusal.sentence(),
                }
                tokio::time::sleep(wait).await;
            }
            false
        };
        if tokio::time::timeout(KILL_PATIENCE, killing).await == Ok(true) {
            return Ok(Outcome::Stopped { processes: 0, killed: true });
        }
        Err(Refusal::internal("the turn could not be ended, and may still run", why)
            .hint("The next message ends it first; `doctor` checks the engine."))
    }

    fn grace_ms(&self) -> u64 {
        u64::try_from(self.inner.settings.stop_grace.as_millis()).unwrap_or(u64::MAX)
    }

    /// Journals the end, then tells it; both happen even when the gateway stops meanwhile. If it stops before, the
    /// next start finds the turn unfinished. `held` goes when all is done: the turn's place, and the people's messages.
    fn conclude(&self, turn: Turn, end: End, held: (Ended<Words, StopRequest>, Vec<Words>)) {
        let this = self.clone();
        self.inner.tasks.spawn_to_end("end of a turn", async move {
            let Turn { id, session, to, activity, .. } = turn;
            let told = Told::of(&end, this.is_deleted(id));
            let journaled = this.inner.sessions.finish(&session, id, told.ending, end.agent_ran).await;
            let closing = tokio::time::timeout(SURFACE_PATIENCE, activity.close());
            if tokio::join!(closing, this.typing(&session, false)).0.is_err() {
                debug!(turn = %id, "the progress of a turn is shown later than its end");
            }
            if let Err(refusal) = &journaled {
                // Invariant 3: it is not passed over. The answer is shown all the same, with what is wrong.
                warn!(turn = %id, %refusal, "the end of a turn is not journaled");
                drop(this.inner.outbox.post(&to, Weight::Answer, refusal.to_markdown()));
            }
            if let Some(how) = told.report {
                this.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner).insert(id, how);
            }
            if let Some(answer) = told.answer {
                drop(this.inner.outbox.post_once(&to, Weight::Answer, answer, transaction(id)));
            }
            this.unregister(id);
            drop(held);
        });
    }
}

/// The waits between tries of a node that is away, as long as it is worth it.
#[derive(Debug, Default)]
struct Backoff {
    tries: u32,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.tries)).min(LONGEST_WAIT);
        self.tries += 1;
        (self.tries <= RETRIES).then_some(wait)
    }
}

/// How far a turn has got.
#[derive(Default)]
struct Reading {
    /// Whether the sled may have it.
    handed: bool,
    backoff: Backoff,
    /// The last event that was read.
    seen: u64,
    agent_ran: bool,
    lines: Vec<String>,
}

impl Reading {
    fn show(&mut self, activity: &Progress, line: &str) {
        self.lines.push(line.to_owned());
        let from = self.lines.len().saturating_sub(TOOL_LINES);
        self.lines.drain(..from);
        activity.show(self.lines.join("\n"));
    }
}

impl Carrier<Words, StopRequest> for Turns {
    fn start(&self, batch: Batch<Words>, ended: Ended<Words, StopRequest>) {
        let this = self.clone();
        let turn = batch.id;
        let cancel = self.register(turn);
        self.inner.tasks.spawn("turn", async move {
            Box::pin(this.run(batch, cancel, ended)).await;
        });
    }

    fn cancel(&self, batch: Uuid, everywhere: bool) {
        if let Some(running) = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&batch) {
            running.deleted |= everywhere;
            running.cancel.cancel();
        }
    }

    fn full(&self, message: Words) {
        warn!(sender = %message.sender, room = %message.room, "the queue is full");
        let to = Address {
            room: message.room,
            thread: message.thread,
            reply_to: Some(message.event_id),
            mention: Some(message.sender),
            pending: message.pending,
        };
        let told = Refusal::unavailable("too many messages wait already, so this one was not taken")
            .hint("Wait, or `stop` and write again.");
        drop(self.inner.outbox.post(&to, Weight::Answer, told.to_markdown()));
    }

    fn stopped(&self, request: StopRequest, ran: Vec<Uuid>, dropped: Vec<Words>) {
        match request {
            StopRequest::Told(to) => {
                let stopped = self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                let hows: Vec<_> = ran.iter().filter_map(|turn| stopped.get(turn)).map(String::as_str).collect();
                drop(self.inner.outbox.post(&to, Weight::Answer, told::report(ran.len(), &hows, dropped.len())));
            }
            StopRequest::Silent(done) => {
                for (to, count) in told::by_room(dropped) {
                    let told = format!("{}, because the project was deleted.", told::were_dropped(count));
                    drop(self.inner.outbox.post(&to, Weight::Answer, told));
                }
                // Whoever gave up waiting has dropped the receiver.
                done.send(()).ok();
            }
        }
    }

    fn over(&self, batch: Uuid) {
        self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner).remove(&batch);
    }
}

fn address(session: &SessionKey, last: Option<&Answered>, pending: Option<TaskTrackerToken>) -> Address {
    Address {
        room: session.room.clone(),
        thread: last.and_then(|answered| answered.thread.clone()),
        reply_to: last.map(|answered| answered.event_id.clone()),
        mention: last.map(|answered| answered.sender.clone()),
        pending,
    }
}

/// Fixed for a turn, so that the surface recognises its answer when it is sent again.
fn transaction(turn: Uuid) -> String {
    format!("turn-{turn}")
}

#[cfg(test)]
mod tests;
