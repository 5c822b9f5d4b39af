//! The dispatcher's pure core: events in, effects out. No clock, no I/O, no tasks.
//!
//! The rules are CHAT-1 to CHAT-5, CHAT-8 and CHAT-13. A session is here only while it has something
//! waiting or running.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use uuid::Uuid;

use super::{Batch, SessionKey};
use crate::{chat::Room, people::Role};

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

/// What happened. `M` is a message, `S` a request to stop that wants a report.
#[derive(Debug)]
pub enum Event<M, S> {
    /// Somebody said something to the agent.
    Message {
        /// Whose memory it goes to.
        session: SessionKey,
        /// What its sender may do; messages of different rights are never merged (CHAT-4).
        rights: Role,
        /// The message.
        message: M,
    },
    /// Time went by.
    Tick,
    /// Somebody wants the agent to stop on a project.
    Stop {
        /// In which room; `None` in every room, also for what comes until the last turn has ended.
        room: Option<Room>,
        /// On what.
        project: Uuid,
        /// Comes back in the report.
        request: S,
    },
    /// A turn that began under an earlier gateway still runs.
    Resumed {
        /// Whose turn it is.
        session: SessionKey,
        /// Its id.
        batch: Uuid,
    },
    /// A turn is over, and everything of it is gone.
    Ended {
        /// Its id.
        batch: Uuid,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<M, S> {
    /// Run a turn; [`Event::Ended`] must follow, whatever becomes of it.
    Start(Batch<M>),
    /// End a turn that runs; its [`Event::Ended`] is still to come.
    Cancel {
        /// The turn's id.
        batch: Uuid,
        /// Whether the whole project is stopped, not one room of it.
        everywhere: bool,
    },
    /// The queue is full and the message was not taken.
    Full(M),
    /// A request to stop is done.
    Stopped {
        /// Who wanted it.
        request: S,
        /// The turns that ran, over now.
        ran: Vec<Uuid>,
        /// What waited and was dropped.
        dropped: Vec<M>,
    },
}

/// Messages that wait to become a batch.
#[derive(Debug)]
struct Waiting<M> {
    rights: Role,
    messages: Vec<M>,
    opened: Moment,
    closes: Moment,
}

#[derive(Debug)]
struct Running {
    batch: Uuid,
    /// Whether it was asked to end; that is done once.
    cancelled: bool,
}

#[derive(Debug)]
struct Session<M> {
    waiting: VecDeque<Waiting<M>>,
    running: Option<Running>,
}

/// A stop that waits for turns to end.
#[derive(Debug)]
struct Stop<M, S> {
    request: S,
    /// The project, when all of it is stopped.
    everywhere: Option<Uuid>,
    left: BTreeSet<Uuid>,
    ran: Vec<Uuid>,
    dropped: Vec<M>,
}

/// The state of all sessions that have something to do.
#[derive(Debug)]
pub struct Core<M, S> {
    limits: Limits,
    mint: fn() -> Uuid,
    sessions: BTreeMap<SessionKey, Session<M>>,
    /// Sessions whose first batch has closed and has no place yet, in the order in which they closed.
    ready: VecDeque<SessionKey>,
    /// Stops whose turns have not all ended.
    stops: Vec<Stop<M, S>>,
}

impl<M, S> Core<M, S> {
    /// Nothing to do yet. `mint` makes the ids of batches.
    pub fn new(limits: Limits, mint: fn() -> Uuid) -> Self {
        Self { limits, mint, sessions: BTreeMap::new(), ready: VecDeque::new(), stops: Vec::new() }
    }

    /// Takes one event and says what is to be done, in this order.
    pub fn on(&mut self, now: Moment, event: Event<M, S>) -> Vec<Effect<M, S>> {
        let mut effects = Vec::new();
        match event {
            Event::Message { session, rights, message } => self.message(now, session, rights, message, &mut effects),
            Event::Tick => {}
            Event::Stop { room, project, request } => self.stop(room.as_ref(), project, request, &mut effects),
            Event::Resumed { session, batch } => {
                let session =
                    self.sessions.entry(session).or_insert_with(|| Session { waiting: VecDeque::new(), running: None });
                session.running = Some(Running { batch, cancelled: false });
            }
            Event::Ended { batch } => self.ended(batch, &mut effects),
        }
        self.settle(now, &mut effects);
        effects
    }

    /// When the next [`Event::Tick`] is due; `None` while nothing waits for its window to close.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.sessions
            .iter()
            .filter(|(key, session)| session.running.is_none() && !self.ready.contains(key))
            .filter_map(|(_, session)| session.waiting.front())
            .map(|waiting| waiting.closes)
            .min()
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many messages wait on a project, in any room.
    pub fn waiting_on(&self, project: Uuid) -> usize {
        self.sessions
            .iter()
            .filter(|(key, _)| key.project == project)
            .flat_map(|(_, session)| &session.waiting)
            .map(|waiting| waiting.messages.len())
            .sum()
    }

    fn message(&mut self, now: Moment, key: SessionKey, rights: Role, message: M, effects: &mut Vec<Effect<M, S>>) {
        let Limits { window, max_window, max_queue, .. } = self.limits;
        let session = self.sessions.entry(key).or_insert_with(|| Session { waiting: VecDeque::new(), running: None });
        if session.waiting.iter().map(|waiting| waiting.messages.len()).sum::<usize>() >= max_queue {
            effects.push(Effect::Full(message));
            return;
        }
        // What comes during a turn has had its window already: it starts when the turn ends (CHAT-3).
        let closes = if session.running.is_some() { now } else { now + window };
        match session.waiting.back_mut() {
            Some(last) if last.rights == rights => {
                // A batch that has closed and waits for its place still takes messages; its window is over.
                if last.closes > now {
                    last.closes = closes.min(last.opened + max_window);
                }
                last.messages.push(message);
            }
            last => {
                if let Some(last) = last {
                    last.closes = last.closes.min(now);
                }
                let closes = closes.min(now + max_window);
                session.waiting.push_back(Waiting { rights, messages: vec![message], opened: now, closes });
            }
        }
    }

    fn stop(&mut self, room: Option<&Room>, project: Uuid, request: S, effects: &mut Vec<Effect<M, S>>) {
        let everywhere = room.is_none();
        let mut dropped = Vec::new();
        let mut left = BTreeSet::new();
        for (key, session) in &mut self.sessions {
            if key.project != project || room.is_some_and(|room| key.room != *room) {
                continue;
            }
            dropped.extend(session.waiting.drain(..).flat_map(|waiting| waiting.messages));
            if let Some(Running { batch, cancelled }) = &mut session.running {
                left.insert(*batch);
                if !std::mem::replace(cancelled, true) {
                    effects.push(Effect::Cancel { batch: *batch, everywhere });
                }
            }
        }
        if left.is_empty() {
            effects.push(Effect::Stopped { request, ran: Vec::new(), dropped });
        } else {
            let everywhere = everywhere.then_some(project);
            self.stops.push(Stop { request, everywhere, left, ran: Vec::new(), dropped });
        }
    }

    fn ended(&mut self, batch: Uuid, effects: &mut Vec<Effect<M, S>>) {
        for session in self.sessions.values_mut() {
            session.running.take_if(|running| running.batch == batch);
        }
        for stop in &mut self.stops {
            if stop.left.remove(&batch) {
                stop.ran.push(batch);
            }
        }
        let Self { sessions, stops, .. } = self;
        for Stop { request, everywhere, ran, mut dropped, .. } in stops.extract_if(.., |stop| stop.left.is_empty()) {
            // A project that is stopped as a whole has nothing left when its stop is done.
            for (_, session) in sessions.iter_mut().filter(|(key, _)| everywhere == Some(key.project)) {
                dropped.extend(session.waiting.drain(..).flat_map(|waiting| waiting.messages));
            }
            effects.push(Effect::Stopped { request, ran, dropped });
        }
    }

    /// Starts what may start, and forgets the sessions that have nothing left.
    fn settle(&mut self, now: Moment, effects: &mut Vec<Effect<M, S>>) {
        self.sessions.retain(|_, session| session.running.is_some() || !session.waiting.is_empty());
        let Self { sessions, ready, .. } = self;
        ready.retain(|key| sessions.get(key).is_some_and(|session| session.running.is_none()));

        let mut closed: Vec<_> = sessions
            .iter()
            .filter(|(key, session)| session.running.is_none() && !ready.contains(key))
            .filter_map(|(key, session)| Some((session.waiting.front()?.closes, key)))
            .filter(|(closes, _)| *closes <= now)
            .collect();
        closed.sort_unstable();
        let closed: Vec<_> = closed.into_iter().map(|(_, key)| key.clone()).collect();
        ready.extend(closed);

        let running = sessions.iter().filter(|(_, session)| session.running.is_some());
        // Turns that were found running at start may share a project: they are counted one by one.
        let mut turns = running.clone().count();
        let mut busy: BTreeSet<Uuid> = running.map(|(key, _)| key.project).collect();
        let mut still_ready = VecDeque::new();
        while let Some(key) = self.ready.pop_front() {
            if turns >= self.limits.max_turns || busy.contains(&key.project) {
                still_ready.push_back(key);
                continue;
            }
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let Some(first) = session.waiting.pop_front() else { continue };
            let id = (self.mint)();
            session.running = Some(Running { batch: id, cancelled: false });
            turns += 1;
            busy.insert(key.project);
            effects.push(Effect::Start(Batch { id, session: key, messages: first.messages }));
        }
        self.ready = still_ready;
    }
}

#[cfg(test)]
mod tests;
