//! The dispatcher's pure core: events in, effects out. No clock, no I/O, no tasks, no text of anybody.
//!
//! The rules are CHAT-1 to CHAT-8 and CHAT-13. A session is here only while it has something waiting or running, and
//! whatever is here can be rebuilt from the journal: [`Event::Pause`] for what is paused, [`Event::Resumed`] for each turn
//! that runs, then what waits ([`Event::Recovered`]) and the stops that were not reported, in the order in which they came.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use uuid::Uuid;

use self::queue::{Due, During, Queue};
use super::{Batch, Common, SessionKey};
use crate::chat::Room;

mod queue;

/// A point on the caller's monotonic clock.
pub type Moment = Duration;

/// The settings that the rules need.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A batch closes this long after its latest message …
    pub window: Duration,
    /// … and at most this long after its first.
    pub max_window: Duration,
    /// Messages that may wait in one session.
    pub max_queue: usize,
    /// Turns that may run at the same time.
    pub max_turns: usize,
}

/// What happened. `M` is a light handle of a message, whose text lies in the journal; `S` is a request to stop that wants a
/// report.
#[derive(Debug, Clone)]
pub enum Event<M, S> {
    /// Somebody said something to the agent.
    Message {
        /// Whose memory it goes to.
        session: SessionKey,
        /// What it must share with those that it is answered with.
        common: Common,
        /// Whether it ends a turn that runs in its session, to be answered together with that turn's messages (CHAT-7): what
        /// can not, because of another thread or other rights, does not.
        interrupts: bool,
        /// The message.
        message: M,
    },
    /// A message that was taken under an earlier gateway and still waits. As [`Event::Message`], but never refused.
    Recovered {
        /// Whose memory it goes to.
        session: SessionKey,
        /// What it must share with those that it is answered with.
        common: Common,
        /// Whether it ends a turn that runs in its session, as when it was taken: a turn that was not to end for it goes on.
        interrupts: bool,
        /// The message.
        message: M,
    },
    /// A message was cancelled or redacted, and the journal says so. It waits no longer, and does not come back with a turn
    /// that is superseded. Nothing happens to a turn that has it.
    Removed {
        /// The message.
        message: M,
    },
    /// Nothing of a project starts from now on. What runs goes on, also when somebody writes in a room that interrupts.
    Pause {
        /// The project.
        project: Uuid,
    },
    /// A project goes on.
    Unpause {
        /// The project.
        project: Uuid,
    },
    /// Somebody wants agents to stop.
    Stop {
        /// Where, and on what.
        scope: Scope,
        /// Comes back in the report.
        request: S,
    },
    /// A turn that began under an earlier gateway still runs.
    Resumed {
        /// Whose turn it is.
        session: SessionKey,
        /// Its id.
        batch: Uuid,
        /// What holds for all its messages.
        common: Common,
        /// What it answers, without what was removed since it began.
        messages: Vec<M>,
    },
    /// A turn is over, and everything of it is gone.
    Ended {
        /// Its id.
        batch: Uuid,
        /// Whether it was superseded: its messages are unanswered and, in the journal, wait again.
        requeued: bool,
    },
    /// Time went by.
    Tick,
}

/// What a stop is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// What runs and waits of these projects in a room.
    Room {
        /// The room.
        room: Room,
        /// The projects.
        projects: BTreeSet<Uuid>,
    },
    /// All of a project, because it is being deleted: in every room, also what comes until its last turn has ended.
    Project(Uuid),
}

impl Scope {
    /// Whether the stop is for what runs and waits in this session.
    pub fn covers(&self, session: &SessionKey) -> bool {
        match self {
            Self::Room { room, projects } => session.room == *room && projects.contains(&session.project),
            Self::Project(project) => session.project == *project,
        }
    }

    /// Why turns end by it.
    pub fn why(&self) -> Why {
        match self {
            Self::Room { .. } => Why::Stopped,
            Self::Project(_) => Why::Deleted,
        }
    }
}

/// A turn that ran when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Its id.
    pub batch: Uuid,
    /// On what.
    pub project: Uuid,
}

/// Why a running turn is to end; a later one is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// A message interrupted it; its messages wait again unless it is answered first.
    Superseded,
    /// Somebody asked to stop.
    Stopped,
    /// Its project is being deleted.
    Deleted,
}

/// What is to be done. The order counts: a stop is reported before anything starts that came after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<M, S> {
    /// Run a turn with those of the messages that, by the journal, still wait; [`Event::Ended`] must follow, whatever
    /// becomes of it.
    Start(Batch<M>),
    /// End a turn that runs; its [`Event::Ended`] is still to come. Told once for each reason, and never a weaker one after
    /// a stronger one.
    Cancel {
        /// The turn's id.
        batch: Uuid,
        /// Why.
        why: Why,
    },
    /// The queue is full and the message was not taken.
    Full {
        /// Whose memory it would have gone to.
        session: SessionKey,
        /// The message.
        message: M,
    },
    /// A request to stop is done.
    Stopped {
        /// Who wanted it.
        request: S,
        /// The turns that ran, over now.
        ran: Vec<Ran>,
        /// What waited and was dropped; in each session in the order in which it came.
        dropped: Vec<M>,
    },
    /// A turn is over, and no stop that is still to be told names it.
    Over {
        /// The turn's id.
        batch: Uuid,
    },
}

/// A message on its way into a queue.
struct Said<M> {
    session: SessionKey,
    common: Common,
    interrupts: bool,
    message: M,
    /// Whether it is new; what was taken once is not refused any more.
    refusable: bool,
}

/// A turn that runs.
#[derive(Debug)]
struct Turn<M> {
    session: SessionKey,
    common: Common,
    /// What waits again if the turn is superseded.
    messages: Vec<M>,
    /// The strongest reason for which it was asked to end.
    cancelled: Option<Why>,
}

impl<M> Turn<M> {
    /// Asks the turn to end, if that is news.
    fn cancel<S>(&mut self, batch: Uuid, why: Why, effects: &mut Vec<Effect<M, S>>) {
        if self.cancelled < Some(why) {
            self.cancelled = Some(why);
            effects.push(Effect::Cancel { batch, why });
        }
    }
}

/// A stop that waits for turns to end.
#[derive(Debug)]
struct Stop<M, S> {
    request: S,
    scope: Scope,
    left: BTreeSet<Uuid>,
    ran: Vec<Ran>,
    dropped: Vec<M>,
}

/// The state of all sessions that have something to do.
#[derive(Debug)]
pub struct Core<M, S> {
    limits: Limits,
    mint: fn() -> Uuid,
    now: Moment,
    /// What waits, where anything does.
    queues: BTreeMap<SessionKey, Queue<M>>,
    turns: BTreeMap<Uuid, Turn<M>>,
    /// The queues of sessions without a turn, by when their first batch closes or has closed: what is past now waits for a
    /// place only, and gets one in this order.
    line: BTreeMap<Due, SessionKey>,
    /// Tells apart what closes at the same moment.
    arrivals: u64,
    paused: BTreeSet<Uuid>,
    /// Stops whose turns have not all ended.
    stops: Vec<Stop<M, S>>,
}

impl<M: Clone + Eq, S> Core<M, S> {
    /// Nothing to do yet. `mint` makes the ids of batches.
    pub fn new(limits: Limits, mint: fn() -> Uuid) -> Self {
        Self {
            limits,
            mint,
            now: Moment::ZERO,
            queues: BTreeMap::new(),
            turns: BTreeMap::new(),
            line: BTreeMap::new(),
            arrivals: 0,
            paused: BTreeSet::new(),
            stops: Vec::new(),
        }
    }

    /// Takes one event and says what is to be done, in this order.
    pub fn on(&mut self, now: Moment, event: Event<M, S>) -> Vec<Effect<M, S>> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        match event {
            Event::Message { session, common, interrupts, message } => {
                self.take(Said { session, common, interrupts, message, refusable: true }, &mut effects);
            }
            Event::Recovered { session, common, interrupts, message } => {
                self.take(Said { session, common, interrupts, message, refusable: false }, &mut effects);
            }
            Event::Removed { message } => self.remove(&message),
            Event::Pause { project } => {
                self.paused.insert(project);
            }
            Event::Unpause { project } => {
                self.paused.remove(&project);
            }
            Event::Stop { scope, request } => self.stop(scope, request, &mut effects),
            Event::Resumed { session, batch, common, messages } => {
                self.turns.insert(batch, Turn { session: session.clone(), common, messages, cancelled: None });
                self.arrange(&session);
            }
            Event::Ended { batch, requeued } => self.ended(batch, requeued, &mut effects),
            Event::Tick => {}
        }
        self.start(&mut effects);
        effects
    }

    /// When the next [`Event::Tick`] is due; `None` while no window is open.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.line.range(Due::after(self.now)..).next().map(|(due, _)| due.at)
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.turns.is_empty()
    }

    fn take(&mut self, said: Said<M>, effects: &mut Vec<Effect<M, S>>) {
        let Said { session, common, interrupts, message, refusable } = said;
        let Self { limits, now, queues, turns, paused, .. } = self;
        // What waits with something else in common is answered before it: then it could not be answered with the turn's.
        let follows = |queue: &Queue<M>| queue.is_of(&common);
        let interrupts = interrupts && !paused.contains(&session.project) && queues.get(&session).is_none_or(follows);
        let turn = turns.iter_mut().find(|(_, turn)| turn.session == session);
        let (during, back) = match &turn {
            None => (During::Nothing, 0),
            Some((_, Turn { cancelled, messages, common: of_turn, .. })) => match cancelled {
                Some(Why::Superseded) => (During::Superseded, messages.len()),
                None if interrupts && *of_turn == common => (During::Superseded, messages.len()),
                _ => (During::Turn, 0),
            },
        };
        // What comes back from a superseded turn counts, so that interruptions cannot grow a queue past its bound.
        let waiting = queues.get(&session).map_or(0, Queue::len);
        if refusable && waiting + back >= limits.max_queue {
            effects.push(Effect::Full { session, message });
            return;
        }
        let queue = queues.entry(session.clone()).or_insert_with(|| Queue::new(*now));
        if let (During::Superseded, Some((batch, turn))) = (during, turn)
            && turn.cancelled.is_none()
        {
            turn.cancel(*batch, Why::Superseded, effects);
            queue.reopen(*now, limits);
        }
        queue.push(*now, limits, during, common, message);
        self.arrange(&session);
    }

    fn remove(&mut self, message: &M) {
        for turn in self.turns.values_mut() {
            turn.messages.retain(|has| has != message);
        }
        let now = self.now;
        let had =
            self.queues.iter_mut().find_map(|(session, queue)| queue.remove(now, message).then(|| session.clone()));
        if let Some(session) = had {
            self.arrange(&session);
        }
    }

    fn stop(&mut self, scope: Scope, request: S, effects: &mut Vec<Effect<M, S>>) {
        let dropped = self.drop_waiting(|key| scope.covers(key));
        let mut left = BTreeSet::new();
        for (batch, turn) in self.turns.iter_mut().filter(|(_, turn)| scope.covers(&turn.session)) {
            left.insert(*batch);
            turn.cancel(*batch, scope.why(), effects);
        }
        if left.is_empty() {
            effects.push(Effect::Stopped { request, ran: Vec::new(), dropped });
        } else {
            self.stops.push(Stop { request, scope, left, ran: Vec::new(), dropped });
        }
    }

    fn ended(&mut self, batch: Uuid, requeued: bool, effects: &mut Vec<Effect<M, S>>) {
        let Some(Turn { session, common, messages, .. }) = self.turns.remove(&batch) else { return };
        let mut back = if requeued { messages } else { Vec::new() };
        for stop in &mut self.stops {
            if stop.left.remove(&batch) {
                stop.ran.push(Ran { batch, project: session.project });
                // What a stop covers does not begin anew. It came before anything that the stop found waiting.
                stop.dropped.splice(0..0, back.drain(..));
            }
        }
        if !back.is_empty() {
            self.queues.entry(session.clone()).or_insert_with(|| Queue::new(self.now)).requeue(self.now, &common, back);
        }
        self.arrange(&session);
        let done: Vec<_> = self.stops.extract_if(.., |stop| stop.left.is_empty()).collect();
        let mut over = BTreeSet::from([batch]);
        for Stop { request, scope, ran, mut dropped, .. } in done {
            // A project that is stopped as a whole has nothing left when its stop is done.
            if let Scope::Project(_) = scope {
                dropped.extend(self.drop_waiting(|key| scope.covers(key)));
            }
            over.extend(ran.iter().map(|ran| ran.batch));
            effects.push(Effect::Stopped { request, ran, dropped });
        }
        over.retain(|batch| self.stops.iter().flat_map(|stop| &stop.ran).all(|ran| ran.batch != *batch));
        effects.extend(over.into_iter().map(|batch| Effect::Over { batch }));
    }

    fn drop_waiting(&mut self, covers: impl Fn(&SessionKey) -> bool) -> Vec<M> {
        let mut dropped = Vec::new();
        for (_, queue) in self.queues.extract_if(.., |key, _| covers(key)) {
            if let Some(due) = queue.due {
                self.line.remove(&due);
            }
            dropped.extend(queue.into_messages());
        }
        dropped
    }

    /// Puts a session's queue where it belongs in the line after a change of it or of its turn, or forgets it when it is
    /// empty. A batch that has closed keeps its place.
    fn arrange(&mut self, session: &SessionKey) {
        let held = self.turns.values().any(|turn| turn.session == *session);
        let Some(queue) = self.queues.get_mut(session) else { return };
        let at = if held || queue.is_empty() {
            None
        } else if queue.is_closed(self.now) {
            Some(queue.due.map_or(self.now, |due| due.at.min(self.now)))
        } else {
            Some(queue.closes())
        };
        if at != queue.due.map(|due| due.at) {
            if let Some(due) = queue.due.take() {
                self.line.remove(&due);
            }
            if let Some(at) = at {
                self.arrivals += 1;
                let due = Due { at, arrival: self.arrivals };
                self.line.insert(due, session.clone());
                queue.due = Some(due);
            }
        }
        if queue.is_empty() {
            self.queues.remove(session);
        }
    }

    /// Gives free places to the batches that have closed. Whose project is busy or paused is passed over and keeps its
    /// place in the line; so is what a stop is for that has not ended all its turns: one that is told again after a crash
    /// must not find a turn that began after it.
    fn start(&mut self, effects: &mut Vec<Effect<M, S>>) {
        while self.turns.len() < self.limits.max_turns {
            let may_start = |session: &SessionKey| {
                !self.paused.contains(&session.project)
                    && !self.stops.iter().any(|stop| stop.scope.covers(session))
                    && self.turns.values().all(|turn| turn.session.project != session.project)
            };
            let mut closed = self.line.range(..Due::after(self.now)).map(|(_, session)| session);
            let Some(session) = closed.find(|session| may_start(session)).cloned() else { return };
            let Some((common, messages)) = self.queues.get_mut(&session).and_then(Queue::pop) else { return };
            let id = (self.mint)();
            let (key, of_turn) = (session.clone(), common.clone());
            let turn = Turn { session: key, common: of_turn, messages: messages.clone(), cancelled: None };
            self.turns.insert(id, turn);
            self.arrange(&session);
            effects.push(Effect::Start(Batch { id, session, common, messages }));
        }
    }
}

#[cfg(test)]
mod tests;
