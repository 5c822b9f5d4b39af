//! Turns: a batch becomes a prompt, goes to its project's sled, and comes back as an answer.
//!
//! A turn belongs to its sled and outlives the gateway. Its end and its answer are journaled in one transaction, before
//! people read either. [`attempts`] carries a turn to its end; [`following`] hands one attempt over and reads it;
//! [`questions`] are what an agent asks permission for; [`stops`] report what a stop did; [`told`] is what people hear.

mod attempts;
mod following;
mod questions;
mod stops;
mod told;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use journal::{Actor, Append, Cause, Clock};
use link::{
    SledClient,
    requests::{Agent, AgentSession, Outcome, Permissions},
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tracing::{debug, error, warn};
use uuid::Uuid;

use self::{questions::Questions, told::Told};
pub use self::{
    questions::{Verdict, Word},
    stops::{Meant, Spared, StopRequest},
};
use crate::{
    author::Author,
    chat::{Mark, Person, Room, SharedSurface, Weight},
    dispatch::{
        Batch, SessionKey,
        actor::{Carrier, Ended},
        core::{Ran, Why},
    },
    nodes::Nodes,
    outbox::{Address, Outbox, Post, Progress},
    refusal::Refusal,
    rooms::Rooms,
    sessions::{Begun, Ending, Message, Removal, Sessions, Unfinished},
    tasks::Tasks,
};

/// How long a surface may hold up the end of a turn.
const SURFACE_PATIENCE: Duration = Duration::from_secs(2);
/// The first wait between two tries of something that the journal did not take; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest of these waits.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How turns are run.
#[derive(Debug, Clone)]
pub struct TurnSettings {
    /// The agent.
    pub agent: Agent,
    /// The author of its commits.
    pub author: Author,
    /// How long a stopped turn has until it is killed.
    pub stop_grace: Duration,
    /// Whether the agent asks before it uses a tool that needs leave.
    pub permissions: Permissions,
    /// How long its process is kept for the session's next turn.
    pub keep_warm: Duration,
}

/// Where turns run.
pub trait Sleds: Send + Sync + 'static {
    /// The project's sled, reached anew if need be.
    fn sled(&self, project: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>>;
    /// Kills the project's container, and everything in it.
    fn kill(&self, project: Uuid) -> BoxFuture<'_, Result<(), Refusal>>;
    /// Notes that the project's sled has answered, or told something.
    fn heard(&self, project: Uuid);
}

impl Sleds for Nodes {
    fn sled(&self, project: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>> {
        Nodes::sled(self, project).boxed()
    }

    fn kill(&self, project: Uuid) -> BoxFuture<'_, Result<(), Refusal>> {
        Nodes::kill(self, project).boxed()
    }

    fn heard(&self, project: Uuid) {
        Nodes::heard(self, project);
    }
}

/// A message on its way through the dispatcher. What it says lies in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// The session that it waits in.
    pub session: Arc<SessionKey>,
    /// Its event.
    pub event_id: Arc<str>,
}

/// What turns work with.
pub struct Parts {
    /// How they are run.
    pub settings: TurnSettings,
    /// Where they run.
    pub nodes: Box<dyn Sleds>,
    /// Whose they are.
    pub sessions: Sessions,
    /// Where commands are answered, `stop` among them.
    pub rooms: Arc<Rooms>,
    /// Where people hear of them.
    pub outbox: Outbox,
    /// What runs them.
    pub tasks: Tasks,
    /// Tells how long those ran that are taken up: the journal's.
    pub clock: Arc<dyn Clock>,
    /// What counts them.
    pub watch: Arc<dyn Watch>,
}

/// Is told of turns, to count them.
pub trait Watch: Send + Sync + 'static {
    /// A turn begins, or is taken up again; `cause` is what it follows from. `accepted` is when its messages were, of one that
    /// begins: those that no turn had begun with before.
    fn began(&self, project: Uuid, room: &Room, turn: Uuid, cause: Cause, accepted: &[Timestamp]);
    /// A turn ends, `lasted` after it began, under whichever gateway that was: what is journaled together with its end.
    /// Asked again when the journal did not take that.
    fn ending(&self, project: Uuid, turn: Uuid, lasted: Duration) -> Result<Option<Append>, Refusal>;
    /// A turn is journaled as over, `lasted` after it began.
    fn ended(&self, project: Uuid, turn: Uuid, ending: Ending, lasted: Duration);
}

/// Runs turns; carries out what the dispatcher decides.
#[derive(Clone)]
pub struct Turns {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    running: Mutex<HashMap<Uuid, Running>>,
    /// What a stop did to turns, and to whose messages, as long as it is still to be told.
    stopped: Mutex<HashMap<Uuid, (String, Vec<String>)>>,
    questions: Questions,
    /// Stops whose reports are not journaled yet; a turn that is started after one begins after its report.
    reports: Mutex<Vec<CancellationToken>>,
    /// Who waits for a message to be answered in full, by its event.
    pending: Mutex<HashMap<Arc<str>, TaskTrackerToken>>,
}

struct Running {
    cancel: CancellationToken,
    /// Why it is ended, where somebody wants that.
    why: Option<Why>,
    /// The room of a turn that began under an earlier gateway.
    taken_up: Option<Room>,
}

/// A turn that is followed.
struct Turn {
    id: Uuid,
    session: SessionKey,
    to: Address,
    messages: Vec<Message>,
    /// The number of the attempt that was journaled last.
    attempt: u32,
    memory: AgentSession,
    activity: Progress,
    /// Whether the sign that its answer is being written was shown.
    signed: AtomicBool,
    cancel: CancellationToken,
    /// Held while the turn is being handed over: a stop that overtakes that finds nothing to end.
    handing: Arc<tokio::sync::Mutex<()>>,
    /// Since when this gateway follows it.
    followed: Instant,
    /// How long it had run until then.
    before: Duration,
}

impl Turn {
    /// What it follows from, as its beginning does: the last message that it answers.
    fn cause(&self) -> Cause {
        self.to.reply_to.clone().map_or(Cause::None, Cause::Command)
    }
}

/// What a turn came to.
struct End {
    /// A refusal, when the turn could not be carried out or followed.
    outcome: Result<Outcome, Refusal>,
    agent_ran: bool,
    /// Why it was ended, where somebody wanted that.
    why: Option<Why>,
}

impl Turns {
    /// Nothing runs yet.
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            running: Mutex::default(),
            stopped: Mutex::default(),
            questions: Questions::default(),
            reports: Mutex::default(),
            pending: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How many turns run.
    pub fn running(&self) -> usize {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Holds `token` until the message of this event is answered in full, or taken out.
    pub fn hold(&self, event_id: &Arc<str>, token: TaskTrackerToken) {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(event_id), token);
    }

    /// Nobody waits for this message any more: it was taken out.
    pub fn let_go(&self, event_id: &str) -> Option<TaskTrackerToken> {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(event_id)
    }

    /// Goes on with a turn that was under way when the gateway ended.
    pub fn resume(&self, unfinished: Unfinished, ended: Ended<Handle, StopRequest>) {
        let Unfinished { session, running } = unfinished;
        let this = self.clone();
        let followed = Instant::now();
        // By the journal's clock, which may have been set back since.
        let before = self.inner.parts.clock.now().duration_since(running.began).try_into().unwrap_or_default();
        let cancel = self.register(running.turn, Some(session.room.clone()));
        // Before its link is there: what the project asks of the model is the turn's.
        let cause = running.cause().unwrap_or(Cause::None);
        self.inner.parts.watch.began(session.project, &session.room, running.turn, cause, &[]);
        self.inner.parts.tasks.spawn("turn", async move {
            let to = address(&session, running.answers.last().map(|last| (&last.event_id, &last.sender, &last.thread)));
            let reading =
                this.until_journaled("a turn is taken up", || this.inner.parts.sessions.memory(&session, running.turn));
            let Some(memory) = reading.await else { return this.unregister(running.turn) };
            let since = running.messages.iter().find_map(|first| first.accepted).unwrap_or(Timestamp::UNIX_EPOCH);
            let activity = Progress::resume(&this.inner.parts.outbox, quiet(&to), transaction(running.turn), since);
            let turn = Turn {
                id: running.turn,
                session,
                to,
                messages: running.messages,
                attempt: running.attempt,
                memory,
                activity,
                signed: AtomicBool::default(),
                cancel,
                handing: Arc::default(),
                followed,
                before,
            };
            this.questions_decided(&turn, &running.decided);
            let end = this.carry_signed(&turn, true).await;
            this.conclude(turn, end, ended);
        });
    }

    /// Whether a turn runs that began under an earlier gateway, in such a room.
    pub fn takes_up(&self, of: impl Fn(&Room) -> bool) -> bool {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().any(|running| running.taken_up.as_ref().is_some_and(&of))
    }

    fn register(&self, turn: Uuid, taken_up: Option<Room>) -> CancellationToken {
        let cancel = CancellationToken::new();
        let running = Running { cancel: cancel.clone(), why: None, taken_up };
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, running);
        cancel
    }

    fn unregister(&self, turn: Uuid) {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn);
    }

    /// Whether the turn began under an earlier gateway.
    fn is_taken_up(&self, turn: Uuid) -> bool {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&turn).is_some_and(|running| running.taken_up.is_some())
    }

    /// Why a turn is ended, as it is wanted now.
    fn why(&self, turn: Uuid) -> Option<Why> {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&turn).and_then(|running| running.why)
    }

    /// Does `change` until the journal takes it: what happened is not passed over because a disk was full for a while
    /// (invariant 3). `None` when the gateway stops before.
    async fn until_journaled<T, F: Future<Output = Result<T, Refusal>>>(
        &self,
        what: &'static str,
        change: impl Fn() -> F,
    ) -> Option<T> {
        let (stopping, mut wait) = (self.inner.parts.tasks.stopping(), FIRST_WAIT);
        loop {
            match change().await {
                Ok(done) => return Some(done),
                Err(refusal) => error!(what, %refusal, ?wait, "not journaled; it is tried again"),
            }
            stopping.run_until_cancelled(tokio::time::sleep(wait)).await?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Carries a turn to its end, under the sign that its answer is being written as soon as its surface is there.
    async fn carry_signed(&self, turn: &Turn, taken_up: bool) -> End {
        let mut carrying = Box::pin(self.carry_to_end(turn, taken_up));
        let signing = async {
            let surface = self.inner.parts.outbox.arrival(turn.session.room.surface).await;
            turn.signed.store(true, Ordering::Relaxed);
            typing(&surface, &turn.session.room, true).await;
        };
        tokio::select! {
            biased;
            () = signing => carrying.await,
            end = &mut carrying => end,
        }
    }

    /// Shows what became of messages.
    fn mark(&self, room: &Room, messages: &[Message], mark: Mark) {
        for message in messages {
            self.inner.parts.outbox.mark(room, &message.event_id, mark);
        }
    }

    async fn run(&self, batch: Batch<Handle>, cancel: CancellationToken, ended: Ended<Handle, StopRequest>) {
        let Batch { id, session, messages, .. } = batch;
        let closed = Instant::now();
        let event_ids: Vec<&str> = messages.iter().map(|handle| &*handle.event_id).collect();
        // Not broken off, whoever wants the turn ended by now: a beginning that is journaled has an end.
        let beginning =
            self.until_journaled("a turn begins", || self.inner.parts.sessions.begin(&session, id, &event_ids));
        let Some(Some(Begun { memory, messages })) = beginning.await else {
            // All of it was taken out at the last moment; or the gateway stops, and the messages wait for the next start.
            self.unregister(id);
            return;
        };
        let to = address(&session, messages.last().map(|last| (&last.event_id, &last.sender, &last.thread)));
        self.mark(&session.room, &messages, Mark::Running);
        let activity = Progress::new(&self.inner.parts.outbox, quiet(&to), transaction(id));
        let (signed, handing) = Default::default();
        let turn = Turn {
            id,
            session,
            to,
            messages,
            attempt: 1,
            memory,
            activity,
            signed,
            cancel,
            handing,
            followed: closed,
            before: Duration::ZERO,
        };
        // How long those waited that wait again is known.
        let new = turn.messages.iter().filter(|message| !message.begun);
        let accepted: Vec<_> = new.filter_map(|message| message.accepted).collect();
        self.inner.parts.watch.began(turn.session.project, &turn.session.room, id, turn.cause(), &accepted);
        let end = self.carry_signed(&turn, false).await;
        self.conclude(turn, end, ended);
    }

    /// Journals the end together with its answer; both happen even when the gateway stops meanwhile. If it stops before,
    /// the next start finds the turn unfinished. `ended` goes when all is done: the turn's place.
    fn conclude(&self, turn: Turn, end: End, ended: Ended<Handle, StopRequest>) {
        let this = self.clone();
        self.inner.parts.tasks.spawn_to_end("end of a turn", async move {
            let Turn { id, session, to, messages, activity, signed, followed, before, .. } = turn;
            let told = Told::of(&end, this.why(id));
            let superseded = told.ending == Ending::Superseded;
            // Who waits for one of the messages waits for the answer, or for the turn that they are given to next.
            let mut tokens: Vec<_> = Vec::new();
            if !superseded {
                tokens.extend(messages.iter().filter_map(|message| this.let_go(&message.event_id)));
            }
            let answers: Vec<_> = messages.iter().map(|message| message.event_id.clone()).collect();
            if let Some(how) = told.report {
                let mut stopped = this.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner);
                stopped.insert(id, (how, answers.clone()));
            }
            let posts = told.answer.map(|markdown| Post {
                to: Address { pending: tokens.pop(), ..to },
                // Of a stop, its own report is what calls people.
                weight: if told.ending == Ending::Stopped { Weight::Notice } else { Weight::Answer },
                markdown,
                transaction: transaction(id),
                answers,
                failed: matches!(told.ending, Ending::Failed | Ending::Interrupted),
                takes_back: None,
                cause: Cause::None,
            });
            let posts: Vec<_> = posts.into_iter().collect();
            let Parts { sessions, watch, .. } = &this.inner.parts;
            let (posts, lasted) = (&posts, before + followed.elapsed());
            let surface = this.inner.parts.outbox.surface(session.room.surface);
            let mut activity = Some(activity);
            if surface.as_ref().is_some_and(|surface| surface.is_instant())
                && let Some(activity) = activity.take()
            {
                activity.close().await;
            }
            let finished = this
                .until_journaled("a turn ends", async || {
                    let count = watch.ending(session.project, id, lasted)?.into_iter().collect();
                    sessions.finish(&session, id, told.ending, end.agent_ran, posts.clone(), count).await
                })
                .await;
            if finished.is_some() {
                watch.ended(session.project, id, told.ending, lasted);
            }
            this.inner.questions.forget(id);
            let close = async {
                if let Some(activity) = activity {
                    activity.close().await;
                }
            };
            let closing = tokio::time::timeout(SURFACE_PATIENCE, close);
            // Another turn's sign in the room is not this one's to end.
            let sign_ending = async {
                if let Some(surface) = surface.filter(|_| signed.into_inner()) {
                    typing(&surface, &session.room, false).await;
                }
            };
            if tokio::join!(closing, sign_ending).0.is_err() {
                debug!(turn = %id, "the progress of a turn is shown later than its end");
            }
            this.unregister(id);
            drop(tokens);
            // Where the gateway stops before it could be journaled, the next start finds the turn unfinished.
            if superseded && let Some(again) = finished {
                this.mark(&session.room, &again, Mark::Waiting);
                ended.requeue();
            }
        });
    }
}

impl Carrier<Handle, StopRequest> for Turns {
    fn start(&self, batch: Batch<Handle>, ended: Ended<Handle, StopRequest>) {
        let this = self.clone();
        let turn = batch.id;
        let cancel = self.register(turn, None);
        let reports = self.inner.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.inner.parts.tasks.spawn("turn", async move {
            // A stop that is told again after a crash must not find what was said after it.
            for reported in reports {
                reported.cancelled().await;
            }
            Box::pin(this.run(batch, cancel, ended)).await;
        });
    }

    fn cancel(&self, batch: Uuid, why: Why) {
        if let Some(running) = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&batch) {
            running.why = running.why.max(Some(why));
            running.cancel.cancel();
        }
    }

    fn full(&self, session: SessionKey, message: Handle) {
        warn!(room = %session.room, "the queue is full");
        let this = self.clone();
        self.inner.parts.tasks.spawn_to_end("a full queue", async move {
            let pending = this.let_go(&message.event_id);
            let told = |removed: &[Message]| {
                let last = removed.last().map(|last| (&last.event_id, &last.sender, &last.thread));
                let refusal = Refusal::unavailable("too many messages wait already, so this one was not taken")
                    .hint("Wait, or `stop` and write again.");
                vec![Post {
                    to: Address { pending: pending.clone(), ..address(&session, last) },
                    weight: Weight::Answer,
                    markdown: refusal.to_markdown(),
                    transaction: format!("full-{}", message.event_id),
                    answers: vec![message.event_id.to_string()],
                    failed: true,
                    takes_back: None,
                    cause: Cause::None,
                }]
            };
            let ids = [&*message.event_id];
            let removing = this.until_journaled("a message is not taken", || {
                let origin = (Actor::Gateway, Cause::Command(message.event_id.to_string()));
                this.inner.parts.sessions.remove(&session, &ids, Removal::Refused, origin, told, Vec::new())
            });
            drop(removing.await);
        });
    }

    fn stopped(&self, request: StopRequest, ran: Vec<Ran>, dropped: Vec<Handle>) {
        let ends = self.ends_of(&ran);
        let this = self.clone();
        let reported = CancellationToken::new();
        self.inner.reports.lock().unwrap_or_else(PoisonError::into_inner).push(reported.clone());
        self.inner.parts.tasks.spawn_to_end("a stop", async move {
            let over = reported.clone().drop_guard();
            this.report(request, ends, dropped).await;
            drop(over);
            let mut reports = this.inner.reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.retain(|report| !report.is_cancelled());
        });
    }

    fn over(&self, batch: Uuid) {
        self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner).remove(&batch);
    }
}

/// Shows or ends the sign that an answer is being written. It is not worth a wait.
async fn typing(surface: &SharedSurface, room: &Room, on: bool) {
    let shown = tokio::time::timeout(SURFACE_PATIENCE, surface.typing(room, on)).await;
    shown.unwrap_or_else(|_| debug!(%room, on, "the sign of writing was not taken in time"));
}

/// Where a turn's answer goes: to whom it answers last.
fn address(session: &SessionKey, last: Option<(&String, &Person, &Option<String>)>) -> Address {
    Address {
        room: session.room.clone(),
        thread: last.and_then(|(_, _, thread)| thread.clone()),
        reply_to: last.map(|(event_id, _, _)| event_id.clone()),
        mention: last.map(|(_, sender, _)| sender.clone()),
        pending: None,
    }
}

/// The same place, for what nobody needs to be called for.
fn quiet(to: &Address) -> Address {
    Address { reply_to: None, mention: None, pending: None, ..to.clone() }
}

/// The id of a turn's answer.
pub fn transaction(turn: Uuid) -> String {
    format!("turn-{turn}")
}

#[cfg(test)]
mod tests;
