//! Turns: a batch becomes a prompt, goes to its project's sled, and comes back as an answer.
//!
//! A turn belongs to its sled and outlives the gateway. Its end is journaled before people read its answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use link::{
    CallError, SledClient,
    requests::{Agent, FailureReason, GitIdentity, Outcome, RefusalKind, TurnEvent, TurnRequest},
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tracing::{info, warn};
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
    refusal::Refusal,
    sessions::{Answered, Ending, Sessions, Unfinished},
    tasks::Tasks,
    text,
};

/// Beyond the grace that a sled has for stopping a turn, how long it may take to say so.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How often a broken link is opened again within one turn.
const RELINKS: u32 = 10;
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

/// Runs turns; carries out what the dispatcher decides.
#[derive(Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

struct Inner {
    settings: TurnSettings,
    nodes: Nodes,
    sessions: Sessions,
    outbox: Outbox,
    tasks: Tasks,
    running: Mutex<HashMap<Uuid, Running>>,
    /// How turns ended that a stop still has to tell of.
    stopped: Mutex<HashMap<Uuid, String>>,
}

struct Running {
    cancel: CancellationToken,
}

/// Who asked to stop, and where the report goes.
pub type StopRequest = Address;

/// What a turn came to.
struct End {
    outcome: Outcome,
    agent_ran: bool,
}

impl Turns {
    /// Nothing runs yet.
    pub fn new(settings: TurnSettings, nodes: Nodes, sessions: Sessions, outbox: Outbox, tasks: Tasks) -> Self {
        let inner =
            Inner { settings, nodes, sessions, outbox, tasks, running: Mutex::default(), stopped: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// How many turns run.
    pub fn running(&self) -> usize {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Goes on with a turn that was under way when the gateway ended.
    pub fn resume(&self, unfinished: Unfinished, ended: Ended<Words, StopRequest>) {
        let Unfinished { session, turn, answers } = unfinished;
        let this = self.clone();
        let cancel = self.register(turn);
        self.inner.tasks.spawn("turn", async move {
            let to = address(&session, answers.last(), None);
            let activity = Progress::new(&this.inner.outbox, Address { reply_to: None, mention: None, ..to.clone() });
            let end = Box::pin(this.follow(&session, turn, None, &cancel, &to, &activity)).await;
            this.conclude(session, turn, to, end, activity, (ended, Vec::new()));
        });
    }

    fn register(&self, turn: Uuid) -> CancellationToken {
        let cancel = CancellationToken::new();
        let running = Running { cancel: cancel.clone() };
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, running);
        cancel
    }

    fn unregister(&self, turn: Uuid) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn);
    }

    async fn run(&self, batch: Batch<Words>, cancel: CancellationToken, ended: Ended<Words, StopRequest>) {
        let Batch { id, session, messages } = batch;
        let answers: Vec<_> = messages
            .iter()
            .map(|words| Answered { event_id: words.event_id.clone(), sender: words.sender.clone() })
            .collect();
        let pending = messages.iter().rev().find_map(|words| words.pending.clone());
        let to = address(&session, answers.last(), pending);
        let typing = self.inner.outbox.surface(session.room.surface);
        if let Some(surface) = &typing {
            surface.typing(&session.room, true).await;
        }
        let activity = Progress::new(&self.inner.outbox, Address { reply_to: None, mention: None, ..to.clone() });
        let end = match self.inner.sessions.begin(&session, id, answers).await {
            Ok(memory) => {
                let Inner { settings, .. } = &*self.inner;
                let request = TurnRequest {
                    session: memory,
                    agent: settings.agent.clone(),
                    prompt: prompt::render(&messages),
                    identity: settings.identity.clone(),
                    attempt: 1,
                };
                Box::pin(self.follow(&session, id, Some(request), &cancel, &to, &activity)).await
            }
            Err(refusal) => Err(refusal),
        };
        if let Some(surface) = &typing {
            surface.typing(&session.room, false).await;
        }
        self.conclude(session, id, to, end, activity, (ended, messages));
    }

    /// Hands the turn over, where that is still to be done, and follows it to its end, over broken links.
    async fn follow(
        &self,
        session: &SessionKey,
        turn: Uuid,
        mut request: Option<TurnRequest>,
        cancel: &CancellationToken,
        to: &Address,
        activity: &Progress,
    ) -> Result<End, Refusal> {
        let mut reading = Reading { seen: 0, agent_ran: false, lines: Vec::new() };
        for _ in 0..=RELINKS {
            let sled = match cancel.run_until_cancelled(self.inner.nodes.sled(session.project)).await {
                Some(sled) => sled?,
                None if request.is_some() => {
                    return Ok(End { outcome: Outcome::Stopped { processes: 0, killed: false }, agent_ran: false });
                }
                None => return self.stop_hard(session, reading.agent_ran).await,
            };
            if let Some(wanted) = &request {
                match sled.put_turn(turn, wanted).await {
                    Ok(_) => request = None,
                    Err(error @ (CallError::Closed(_) | CallError::Dropped)) => {
                        warn!(%turn, %error, "the hand-over broke off, and is repeated");
                        continue;
                    }
                    Err(CallError::Refused(refused)) if refused.kind == RefusalKind::Busy => {
                        return Err(Refusal::unavailable(
                            "another turn runs in this project that this gateway does not know",
                        )
                        .hint("Wait for its end, or write again after `stop`."));
                    }
                    Err(error) => return Err(Refusal::internal("the node did not take the message", error)),
                }
            }
            match self.read(&sled, session, turn, cancel, to, activity, &mut reading).await {
                Ok(end) => return Ok(end),
                Err(CallError::Closed(_) | CallError::Dropped) => info!(%turn, "the link broke, and is opened again"),
                Err(CallError::Refused(refused)) if refused.kind == RefusalKind::UnknownTurn => {
                    return Ok(End { outcome: Outcome::Interrupted, agent_ran: reading.agent_ran });
                }
                Err(error) => return Err(Refusal::internal("the node's answer cannot be used", error)),
            }
        }
        Err(Refusal::unavailable("the link to the node broke again and again")
            .hint("`logs` and `doctor` may tell why."))
    }

    #[expect(clippy::too_many_arguments, reason = "one reading of one turn, split off for its size alone")]
    async fn read(
        &self,
        sled: &SledClient,
        session: &SessionKey,
        turn: Uuid,
        cancel: &CancellationToken,
        to: &Address,
        activity: &Progress,
        reading: &mut Reading,
    ) -> Result<End, CallError> {
        let mut events = sled.turn_events(turn, reading.seen);
        loop {
            let record = tokio::select! {
                biased;
                () = cancel.cancelled() => return self.stop(sled, session, turn, reading.agent_ran).await,
                record = events.next() => record.ok_or(CallError::Dropped)??,
            };
            reading.seen = record.seq;
            match record.event {
                TurnEvent::Accepted(_) => {}
                TurnEvent::Started { session_found } => {
                    reading.agent_ran = true;
                    if !session_found {
                        drop(self.inner.outbox.post(
                            to,
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
                TurnEvent::Finished { outcome, .. } => return Ok(End { outcome, agent_ran: reading.agent_ran }),
            }
        }
    }

    /// Asks the sled to end the turn. When it does not say so in time, its container is killed: a turn cannot hold a stop up.
    async fn stop(
        &self,
        sled: &SledClient,
        session: &SessionKey,
        turn: Uuid,
        agent_ran: bool,
    ) -> Result<End, CallError> {
        let grace = self.inner.settings.stop_grace;
        let asked = sled
            .clone()
            .patience(STOP_MARGIN)
            .stop_turn(turn, u64::try_from(grace.as_millis()).unwrap_or(u64::MAX))
            .await;
        match asked {
            Ok(outcome) => Ok(End { outcome, agent_ran }),
            Err(error) => {
                warn!(%turn, %error, "the sled does not stop the turn; its container is killed");
                match self.stop_hard(session, agent_ran).await {
                    Ok(end) => Ok(end),
                    Err(refusal) => Err(CallError::Malformed(refusal.to_string())),
                }
            }
        }
    }

    async fn stop_hard(&self, session: &SessionKey, agent_ran: bool) -> Result<End, Refusal> {
        self.inner.nodes.kill(session.project).await?;
        Ok(End { outcome: Outcome::Stopped { processes: 0, killed: true }, agent_ran })
    }

    /// Journals the end, then tells it; both happen even when the gateway stops meanwhile. If it stops before, the
    /// next start finds the turn unfinished. `held` goes when all is done: the turn's place, and the people's messages.
    fn conclude(
        &self,
        session: SessionKey,
        turn: Uuid,
        to: Address,
        end: Result<End, Refusal>,
        activity: Progress,
        held: (Ended<Words, StopRequest>, Vec<Words>),
    ) {
        let this = self.clone();
        self.inner.tasks.spawn_to_end("end of a turn", async move {
            activity.close().await;
            this.tell_end(&session, turn, &to, &end).await;
            this.unregister(turn);
            drop(held);
        });
    }

    async fn tell_end(&self, session: &SessionKey, turn: Uuid, to: &Address, end: &Result<End, Refusal>) {
        let (ending, agent_ran, told) = match end {
            Ok(End { outcome: Outcome::Answered { text }, agent_ran }) => {
                (Ending::Answered, *agent_ran, Some(answer(text)))
            }
            Ok(End { outcome: Outcome::Failed { reason, last_lines }, agent_ran }) => {
                (Ending::Failed, *agent_ran, Some(failure(reason, last_lines)))
            }
            Ok(End { outcome: Outcome::Stopped { processes, killed }, agent_ran }) => {
                let how = match (processes, killed) {
                    (0, false) => "it had not begun yet".to_owned(),
                    (0, true) => "its container was killed".to_owned(),
                    (n, false) => format!("{} ended by request", processes_of(*n)),
                    (n, true) => format!("{} ended, some killed after the time to end was over", processes_of(*n)),
                };
                self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, how);
                (Ending::Stopped, *agent_ran, None)
            }
            Ok(End { outcome: Outcome::Interrupted, agent_ran }) => {
                let told = "⚠ The agent was interrupted, because its container ended.\nWrite again to go on; it remembers what came before.";
                (Ending::Interrupted, *agent_ran, Some(told.to_owned()))
            }
            Err(refusal) => (Ending::Failed, false, Some(refusal.to_markdown())),
        };
        let journaled = self.inner.sessions.finish(session, turn, ending, agent_ran).await;
        if let Err(refusal) = &journaled {
            // Invariant 3: it is not passed over. The answer is shown all the same, with what is wrong.
            warn!(%turn, %refusal, "the end of a turn is not journaled");
            drop(self.inner.outbox.post(to, Weight::Answer, refusal.to_markdown()));
        }
        if let Some(told) = told {
            drop(self.inner.outbox.post(to, Weight::Answer, told));
        }
    }
}

/// What has been read of a turn.
struct Reading {
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

    fn cancel(&self, batch: Uuid) {
        if let Some(running) = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).get(&batch) {
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

    fn stopped(&self, request: StopRequest, ran: Option<Uuid>, dropped: Vec<Words>) {
        let how = ran.and_then(|turn| self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn));
        let waiting = match dropped.len() {
            0 => String::new(),
            n => format!(" {} that waited {} dropped.", text::count(n, "message"), if n == 1 { "was" } else { "were" }),
        };
        let report = match (ran, how) {
            (Some(_), Some(how)) => format!("Stopped the running turn: {how}.{waiting}"),
            (Some(_), None) => format!("The turn had just ended by itself.{waiting}"),
            (None, _) if dropped.is_empty() => "Nothing was running.".to_owned(),
            (None, _) => format!("Nothing was running.{waiting}"),
        };
        drop(self.inner.outbox.post(&request, Weight::Answer, report));
    }
}

fn address(session: &SessionKey, last: Option<&Answered>, pending: Option<TaskTrackerToken>) -> Address {
    Address {
        room: session.room.clone(),
        thread: session.thread.clone(),
        reply_to: last.map(|answered| answered.event_id.clone()),
        mention: last.map(|answered| answered.sender.clone()),
        pending,
    }
}

fn processes_of(n: u32) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

fn answer(said: &str) -> String {
    if said.trim().is_empty() { "(The agent ended without a word.)".to_owned() } else { said.to_owned() }
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
