//! What projects use of the model (SLED-6): counted here, at the gateway, because a container's word of it is not worth
//! anything; journaled, summed, and held against the day's budget.
//!
//! [`tally`] is what is journaled and folded, [`budget`] what it costs and may cost, [`report`] what people read. This
//! file keeps them at work. It must not decide what waits: it says which projects rest, and the dispatcher does the rest.

pub mod budget;
pub mod report;
pub mod tally;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use journal::{Actor, Append, Cause, Clock, Expected, Loaded, NewEvent, StreamId};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

pub use budget::{Budget, Limit, Pause, pause_text};
pub use tally::{Tally, Tokens, UsageEvent, Used};

use crate::{chat::Room, metrics::Metrics, refusal::Refusal, store::Journal, tasks::Tasks};

/// The longest sleep until a pause is looked at again: timers stand still while a machine is suspended, days do not.
const LOOK: Duration = Duration::from_mins(1);

/// After so many events of a project its sums are kept, so that the next start need not fold all of them.
const SNAPSHOT_EVERY: u64 = 64;

/// The use of all projects. Cheap to clone; all clones speak of the same.
#[derive(Clone)]
pub struct Usage {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    budget: Budget,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    metrics: Metrics,
    ledgers: Mutex<HashMap<Uuid, Arc<Ledger>>>,
    /// The turn that runs in each project.
    running: Mutex<HashMap<Uuid, Running>>,
    pauses: watch::Sender<BTreeMap<Uuid, Pause>>,
}

#[derive(Debug, Clone)]
struct Running {
    turn: Uuid,
    room: Room,
    /// What it follows from.
    cause: Cause,
}

#[derive(Default)]
struct Ledger {
    tally: Mutex<Loaded<Tally>>,
    /// Held from an append until it is folded, so that events are folded in their order.
    writing: tokio::sync::Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Usage {
    /// Folds all projects' use from the journal; what rests is known when this returns. `clock` is the journal's.
    pub async fn open(
        journal: Journal,
        budget: Budget,
        clock: Arc<dyn Clock>,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Result<Self, Refusal> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Refusal::internal("the use of the model cannot be read from the journal", error.to_string())
        };
        let loaded = journal.load_all_snapshots::<Tally>(tally::STREAM).await.map_err(|error| unreadable(&error))?;
        let mut ledgers = HashMap::new();
        for (stream, tally) in loaded {
            let project: Uuid = stream.id.parse().map_err(|error| unreadable(&error))?;
            ledgers
                .insert(project, Arc::new(Ledger { tally: Mutex::new(tally), writing: tokio::sync::Mutex::default() }));
        }
        let (running, pauses) = (Mutex::default(), watch::Sender::default());
        let ledgers = Mutex::new(ledgers);
        let inner = Inner { journal, budget, clock, tasks: tasks.clone(), metrics, ledgers, running, pauses };
        let this = Self { inner: Arc::new(inner) };
        this.judge_all();
        tasks.spawn("budget days", this.clone().follow_days());
        Ok(this)
    }

    /// A turn of this project runs from here on: what the project asks of the model is the turn's. At most one runs. A
    /// turn that is taken up at start is told before its sled's link opens: while a project rests, only what a turn asks
    /// is passed on.
    pub fn begin(&self, project: Uuid, room: &Room, turn: Uuid, cause: Cause) {
        locked(&self.inner.running).insert(project, Running { turn, room: room.clone(), cause });
    }

    /// What the turn follows from that runs in this project; nothing when none does.
    pub fn cause(&self, project: Uuid) -> Cause {
        locked(&self.inner.running).get(&project).map_or(Cause::None, |running| running.cause.clone())
    }

    /// What is to be journaled together with a turn's end: that it took this long. Nothing for a turn that is counted
    /// already, or did not begin. [`Usage::end`] takes it in.
    ///
    /// # Errors
    /// When it cannot be given its stored form.
    pub fn ending(&self, project: Uuid, turn: Uuid, took: Duration) -> Result<Option<Append>, Refusal> {
        let running = locked(&self.inner.running).get(&project).cloned();
        let Some(Running { room, cause, .. }) = running.filter(|running| running.turn == turn) else { return Ok(None) };
        if self.read(project, |tally| tally.turn(turn).is_some_and(|turn| turn.used.turns > 0)) {
            return Ok(None);
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        append_of(project, &UsageEvent::TurnEnded { turn, room, millis }, cause).map(Some)
    }

    /// The turn is over, and that is journaled. From this call on the project's requests are not the turn's; what is
    /// returned takes the turn's count in.
    ///
    /// # Errors
    /// When it cannot be read; whatever is counted next takes it in.
    pub fn end(&self, project: Uuid, turn: Uuid) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        {
            let mut running = locked(&self.inner.running);
            if running.get(&project).is_some_and(|known| known.turn == turn) {
                running.remove(&project);
            }
        }
        let this = self.clone();
        async move {
            let ledger = this.ledger(project);
            let _writing = ledger.writing.lock().await;
            this.take_in(project, &ledger).await
        }
    }

    /// The project asks the model; whatever comes of it belongs to the turn that runs now.
    pub fn request(&self, project: Uuid) -> Request {
        let running = locked(&self.inner.running).get(&project).cloned();
        Request { usage: self.clone(), project, running }
    }

    /// What the project has used today.
    pub fn today(&self, project: Uuid) -> Used {
        let today = tally::day(self.inner.clock.now());
        self.read(project, |tally| tally.sum(today..=today))
    }

    /// What the command `cost` says, in Markdown: of one project, or of all. `name` gives the name of a project that is
    /// there; what others have used is summed as that of deleted projects. What is not `shown` counts for nothing.
    pub fn report(
        &self,
        project: Option<Uuid>,
        shown: impl Fn(Uuid) -> bool,
        name: impl Fn(Uuid) -> Option<String>,
    ) -> String {
        let now = self.inner.clock.now();
        if let Some(project) = project {
            let name = name(project).unwrap_or_else(|| project.to_string());
            return self.read(project, |tally| report::project(&name, tally, &self.inner.budget, now));
        }
        let ledgers = locked(&self.inner.ledgers).clone();
        let all = ledgers.len();
        let ledgers = ledgers.iter().filter(|(project, _)| shown(**project));
        let tallies: Vec<_> =
            ledgers.map(|(project, ledger)| (name(*project), locked(&ledger.tally).state.clone())).collect();
        report::all(&tallies, tallies.len() == all, &self.inner.budget, now)
    }

    /// Whether the project's budget is used up.
    pub fn paused(&self, project: Uuid) -> Option<Pause> {
        self.inner.pauses.borrow().get(&project).copied()
    }

    /// How many projects rest, of those that are `there`: the budget of one that was deleted stays used up until the day ends.
    pub fn paused_projects(&self, there: impl Fn(Uuid) -> bool) -> usize {
        self.inner.pauses.borrow().keys().filter(|project| there(**project)).count()
    }

    /// Follows the pauses; those that are there already come first.
    pub fn changes(&self) -> Changes {
        Changes { pauses: self.inner.pauses.subscribe(), known: BTreeMap::new(), next: VecDeque::new(), first: true }
    }

    fn ledger(&self, project: Uuid) -> Arc<Ledger> {
        Arc::clone(locked(&self.inner.ledgers).entry(project).or_default())
    }

    fn read<T>(&self, project: Uuid, look: impl FnOnce(&Tally) -> T) -> T {
        let ledger = locked(&self.inner.ledgers).get(&project).cloned();
        match ledger {
            Some(ledger) => look(&locked(&ledger.tally).state),
            None => look(&Tally::default()),
        }
    }

    /// Journals an event, folds it, and looks at the budget. It happens whether or not the caller waits for it.
    fn write(
        &self,
        project: Uuid,
        event: UsageEvent,
        cause: Cause,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let (sender, written) = oneshot::channel();
        let this = self.clone();
        self.inner.tasks.spawn_to_end("counting", async move {
            let result = this.append(project, &event, cause).await;
            if let Err(refusal) = &result {
                tracing::error!(%project, %refusal, ?event, "what was used is not counted");
            }
            // The caller may have gone.
            drop(sender.send(result));
        });
        async move { written.await.unwrap_or_else(|_| Err(Refusal::unavailable("the gateway is stopping"))) }
    }

    async fn append(&self, project: Uuid, event: &UsageEvent, cause: Cause) -> Result<(), Refusal> {
        let append = append_of(project, event, cause)?;
        let ledger = self.ledger(project);
        let _writing = ledger.writing.lock().await;
        self.inner.journal.append(append).await.map_err(|error| failed(&error))?;
        if let UsageEvent::Counted { tokens, .. } = event {
            self.inner.metrics.tokens_counted(*tokens);
        }
        self.take_in(project, &ledger).await
    }

    /// Folds what is journaled and not yet in the ledger, which also others do who end turns, and looks at the budget.
    /// `writing` is held.
    async fn take_in(&self, project: Uuid, ledger: &Ledger) -> Result<(), Refusal> {
        let stream = stream(project);
        let before = locked(&ledger.tally).version;
        let new = self.inner.journal.read(&stream, before).await.map_err(|error| failed(&error))?;
        let folded = {
            let mut tally = locked(&ledger.tally);
            new.iter().try_for_each(|recorded| tally.advance(recorded))
        };
        folded.map_err(|error| failed(&error))?;
        self.judge(project);
        let due = {
            let tally = locked(&ledger.tally);
            let due = tally.version / SNAPSHOT_EVERY > before / SNAPSHOT_EVERY;
            due.then(|| self.inner.journal.snapshot(&stream, &tally))
        };
        // Worth nothing but time at the next start.
        if let Some(snapshot) = due
            && let Err(error) = snapshot.await
        {
            tracing::warn!(%stream, %error, "no snapshot could be stored");
        }
        Ok(())
    }

    fn judge(&self, project: Uuid) {
        let pause = self.inner.budget.pause(&self.today(project), self.inner.clock.now());
        self.inner.pauses.send_if_modified(|pauses| match pause {
            Some(pause) => pauses.insert(project, pause) != Some(pause),
            None => pauses.remove(&project).is_some(),
        });
    }

    fn judge_all(&self) {
        let projects: Vec<Uuid> = locked(&self.inner.ledgers).keys().copied().collect();
        for project in projects {
            self.judge(project);
        }
    }

    /// Ends pauses with their day. While nothing rests it sleeps.
    async fn follow_days(self) {
        let mut pauses = self.inner.pauses.subscribe();
        loop {
            let until = match pauses.wait_for(|pauses| !pauses.is_empty()).await {
                Ok(pauses) => pauses.values().map(|pause| pause.until).min(),
                Err(_) => return,
            };
            let left = until.map(|until| until.duration_since(self.inner.clock.now()));
            match left.and_then(|left| Duration::try_from(left).ok()).filter(|left| !left.is_zero()) {
                Some(left) => tokio::time::sleep(left.min(LOOK)).await,
                None => self.judge_all(),
            }
        }
    }
}

fn stream(project: Uuid) -> StreamId {
    StreamId::new(tally::STREAM, project)
}

/// An event as the journal takes it.
fn append_of(project: Uuid, event: &UsageEvent, cause: Cause) -> Result<Append, Refusal> {
    let events = vec![NewEvent::encode(event).map_err(|error| failed(&error))?];
    let (expected, actor) = (Expected::Any, Actor::Gateway);
    Ok(Append { stream: stream(project), expected, events, key: None, actor, cause })
}

fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::internal("the use of the model could not be journaled", error.to_string())
}

/// One request to the model, under way.
#[must_use]
pub struct Request {
    usage: Usage,
    project: Uuid,
    running: Option<Running>,
}

impl Request {
    /// Why it must not be made: the project rests, and this is not of a turn. A turn that runs goes on to its end; what
    /// else a container asks of the model would go on all day.
    pub fn barred(&self) -> Option<Pause> {
        self.usage.paused(self.project).filter(|_| self.running.is_none())
    }

    /// Journals what the model has counted. It happens whether or not the caller waits for it.
    pub fn count(self, model: String, tokens: Tokens) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let cause = self.running.as_ref().map_or(Cause::None, |running| running.cause.clone());
        let (turn, room) = self.running.map(|running| (running.turn, running.room)).unzip();
        self.usage.write(self.project, UsageEvent::Counted { turn, room, model, tokens, requests: 1 }, cause)
    }
}

/// A project has begun to rest, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub project: Uuid,
    /// Its pause; nothing when it goes on.
    pub pause: Option<Pause>,
}

/// The changes of the pauses, in order. A change that was undone before it was looked at is not told.
pub struct Changes {
    pauses: watch::Receiver<BTreeMap<Uuid, Pause>>,
    known: BTreeMap<Uuid, Pause>,
    next: VecDeque<Change>,
    first: bool,
}

impl Changes {
    /// The next change, once there is one; nothing when [`Usage`] is gone.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.next.pop_front() {
                return Some(change);
            }
            if !std::mem::take(&mut self.first) {
                self.pauses.changed().await.ok()?;
            }
            let now = self.pauses.borrow_and_update().clone();
            let over = self.known.keys().filter(|project| !now.contains_key(project));
            self.next.extend(over.map(|project| Change { project: *project, pause: None }));
            let new = now.iter().filter(|(project, pause)| self.known.get(project) != Some(pause));
            self.next.extend(new.map(|(project, pause)| Change { project: *project, pause: Some(*pause) }));
            self.known = now;
        }
    }
}
