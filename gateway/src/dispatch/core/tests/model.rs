//! The gateway around the core, as far as the core can tell: a journal that outlives it, a carrier that begins and ends
//! turns, and deaths at any instant. Checks every effect against what the journal says.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use proptest::{prelude::*, sample::Index, test_runner::TestCaseResult};
use uuid::Uuid;

use crate::dispatch::{
    Batch, Common, SessionKey,
    core::{Core, Effect, Event, Limits, Moment, Ran, Scope, Why},
};

/// Where a record stands in the journal; the handle of a message, and of a stop.
pub type Position = usize;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Answered,
    Failed,
    /// Its turn was stopped.
    Stopped,
    /// It waited, and a stop dropped it.
    Dropped,
    /// It was cancelled or redacted.
    Removed,
    /// The queue was full.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running(Uuid),
    Over(Ending),
}

#[derive(Debug, Clone)]
pub struct Message {
    session: SessionKey,
    common: Common,
    interrupts: bool,
    state: State,
    /// Redacted while a turn has it: it does not wait again.
    redacted: bool,
    /// How often it was edited, and how often when its last turn began.
    edits: u32,
    asked_with: Option<u32>,
}

#[derive(Debug, Clone)]
struct Stop {
    scope: Scope,
    reported: bool,
}

/// What is told in order of position after a restart.
#[derive(Debug)]
enum Record {
    Message(Message),
    Stop(Stop),
}

#[derive(Debug)]
struct Turn {
    session: SessionKey,
    common: Common,
    messages: Vec<Position>,
}

/// What outlives the gateway.
#[derive(Debug, Default)]
struct Journal {
    records: Vec<Record>,
    /// The turns that have begun and not ended.
    turns: BTreeMap<Uuid, Turn>,
    paused: BTreeSet<Uuid>,
}

impl Journal {
    fn message(&mut self, at: Position) -> &mut Message {
        match &mut self.records[at] {
            Record::Message(message) => message,
            Record::Stop(_) => panic!("{at} is a stop"),
        }
    }

    fn stop(&mut self, at: Position) -> &mut Stop {
        match &mut self.records[at] {
            Record::Stop(stop) => stop,
            Record::Message(_) => panic!("{at} is a message"),
        }
    }

    fn messages(&self) -> impl Iterator<Item = (Position, &Message)> {
        self.records.iter().enumerate().filter_map(|(at, record)| match record {
            Record::Message(message) => Some((at, message)),
            Record::Stop(_) => None,
        })
    }

    fn waiting(&self) -> impl Iterator<Item = (Position, &Message)> {
        self.messages().filter(|(_, message)| message.state == State::Waiting)
    }

    fn append(&mut self, record: Record) -> Position {
        self.records.push(record);
        self.records.len() - 1
    }

    /// Ends a message that waits; each only once.
    fn end_waiting(&mut self, at: Position, ending: Ending) -> TestCaseResult {
        let message = self.message(at);
        prop_assert_eq!(message.state, State::Waiting, "{} ends as {:?}", at, ending);
        message.state = State::Over(ending);
        Ok(())
    }
}

/// What happens to the gateway.
#[derive(Debug, Clone)]
pub enum Step {
    Wait(Duration),
    Say {
        session: SessionKey,
        common: Common,
        interrupts: bool,
    },
    End {
        which: Index,
        how: Index,
    },
    Edit(Index),
    /// Cancels or redacts; the core is told at once or after the next step.
    Remove {
        which: Index,
        late: bool,
    },
    Stop(Scope),
    Pause(Uuid),
    Unpause(Uuid),
    /// The gateway dies after it has told or carried out this much more, and starts again.
    Die {
        after: u8,
    },
}

/// A gateway, what it does and what it should have done.
#[derive(Debug)]
pub struct Model {
    limits: Limits,
    now: Moment,
    journal: Journal,
    dies_after: Option<u8>,
    life: Life,
}

/// What a gateway forgets when it dies.
#[derive(Debug)]
struct Life {
    core: Core<Position, Position>,
    /// What is journaled and still to be told.
    untold: VecDeque<Event<Position, Position>>,
    late: Vec<Event<Position, Position>>,
    /// What the core knows of, since when.
    told: BTreeMap<Position, Moment>,
    /// When the last message of a session was told.
    latest: BTreeMap<SessionKey, Moment>,
    /// Turns that have been started and whose end is not told.
    running: BTreeMap<Uuid, SessionKey>,
    cancelled: BTreeMap<Uuid, Why>,
    /// Turns of which no stop tells any more.
    over: BTreeSet<Uuid>,
    superseded: BTreeSet<Uuid>,
    /// When a turn of the session was last superseded.
    superseded_at: BTreeMap<SessionKey, Moment>,
}

impl Life {
    fn new(limits: Limits) -> Self {
        Self {
            core: Core::new(limits, Uuid::now_v7),
            untold: VecDeque::new(),
            late: Vec::new(),
            told: BTreeMap::new(),
            latest: BTreeMap::new(),
            running: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            over: BTreeSet::new(),
            superseded: BTreeSet::new(),
            superseded_at: BTreeMap::new(),
        }
    }
}

impl Model {
    pub fn new(limits: Limits) -> Self {
        let life = Life::new(limits);
        Self { limits, now: Moment::ZERO, journal: Journal::default(), dies_after: None, life }
    }

    /// One step, and whatever follows from it at once.
    pub fn step(&mut self, step: Step) -> TestCaseResult {
        let late = std::mem::take(&mut self.life.late);
        match step {
            Step::Wait(time) => {
                self.now += time;
                self.life.untold.push_back(Event::Tick);
            }
            Step::Say { session, common, interrupts } => {
                let message = Message {
                    session: session.clone(),
                    common: common.clone(),
                    interrupts,
                    state: State::Waiting,
                    redacted: false,
                    edits: 0,
                    asked_with: None,
                };
                let message = self.journal.append(Record::Message(message));
                self.life.untold.push_back(Event::Message { session, common, interrupts, message });
            }
            Step::End { which, how } => self.end(which, how),
            Step::Edit(which) => {
                if let Some(at) = self.pick(which, |message| message.state == State::Waiting) {
                    self.journal.message(at).edits += 1;
                }
            }
            Step::Remove { which, late } => self.remove(which, late),
            Step::Stop(scope) => {
                let stop = Stop { scope: scope.clone(), reported: false };
                let request = self.journal.append(Record::Stop(stop));
                self.life.untold.push_back(Event::Stop { scope, request });
            }
            Step::Pause(project) => {
                self.journal.paused.insert(project);
                self.life.untold.push_back(Event::Pause { project });
            }
            Step::Unpause(project) => {
                self.journal.paused.remove(&project);
                self.life.untold.push_back(Event::Unpause { project });
            }
            Step::Die { after } => self.dies_after = Some(after),
        }
        self.life.untold.extend(late);
        self.tell()
    }

    /// Lets time go on and turns end until nothing is left to do; then everything has ended.
    pub fn drain(mut self) -> TestCaseResult {
        self.dies_after = None;
        for project in self.journal.paused.clone() {
            self.step(Step::Unpause(project))?;
        }
        for _ in 0..=self.journal.records.len() {
            self.step(Step::Wait(self.limits.max_window))?;
            while let Some(batch) = self.journal.turns.keys().next().copied() {
                self.finish(batch, Some(Ending::Answered));
                self.tell()?;
            }
        }
        prop_assert!(self.life.core.is_idle(), "an idle gateway holds nothing: {:?}", self.life.core);
        prop_assert_eq!(self.life.core.next_deadline(), None);
        for (at, record) in self.journal.records.iter().enumerate() {
            match record {
                Record::Stop(stop) => prop_assert!(stop.reported, "stop {} is not reported", at),
                Record::Message(message) => match message.state {
                    State::Over(Ending::Answered) => {
                        prop_assert_eq!(message.asked_with, Some(message.edits), "{} was asked as last edited", at);
                    }
                    State::Over(_) => {}
                    State::Waiting | State::Running(_) => {
                        return Err(TestCaseError::fail(format!("{at} never ends: {message:?}")));
                    }
                },
            }
        }
        Ok(())
    }

    fn pick(&self, which: Index, from: impl Fn(&Message) -> bool) -> Option<Position> {
        let may: Vec<_> = self.journal.messages().filter(|(_, message)| from(message)).map(|(at, _)| at).collect();
        (!may.is_empty()).then(|| *which.get(&may))
    }

    /// A turn ends, in the journal first; as it may after what it was asked.
    fn end(&mut self, which: Index, how: Index) {
        let running: Vec<_> = self.journal.turns.keys().copied().collect();
        if running.is_empty() {
            return;
        }
        let batch = *which.get(&running);
        let mut endings = vec![Some(Ending::Answered), Some(Ending::Failed)];
        if self.life.cancelled.get(&batch) > Some(&Why::Superseded) {
            endings.push(Some(Ending::Stopped));
        }
        if self.life.superseded.contains(&batch) {
            endings.push(None);
        }
        self.finish(batch, *how.get(&endings));
    }

    /// Ends a turn; without an ending its messages wait again.
    fn finish(&mut self, batch: Uuid, ending: Option<Ending>) {
        let turn = self.journal.turns.remove(&batch).expect("it was picked from them");
        for at in turn.messages {
            let message = self.journal.message(at);
            message.state = match ending {
                Some(ending) => State::Over(ending),
                None if message.redacted => State::Over(Ending::Removed),
                None => State::Waiting,
            };
        }
        self.life.untold.push_back(Event::Ended { batch, requeued: ending.is_none() });
    }

    fn remove(&mut self, which: Index, late: bool) {
        let Some(at) = self.pick(which, |message| !matches!(message.state, State::Over(_))) else { return };
        let message = self.journal.message(at);
        if message.state == State::Waiting {
            message.state = State::Over(Ending::Removed);
        } else {
            message.redacted = true;
        }
        let removed = Event::Removed { message: at };
        if late {
            self.life.late.push(removed);
        } else {
            self.life.untold.push_back(removed);
        }
    }

    fn dies(&mut self) -> bool {
        match &mut self.dies_after {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// A new gateway, with what its predecessor has journaled.
    fn restart(&mut self) {
        self.dies_after = None;
        self.life = Life::new(self.limits);
        let Self { journal, life, .. } = self;
        life.untold.extend(journal.paused.iter().map(|project| Event::Pause { project: *project }));
        for (batch, Turn { session, common, messages }) in &journal.turns {
            let redacted = |at: &Position| journal.messages().any(|(has, message)| has == *at && message.redacted);
            let messages = messages.iter().copied().filter(|at| !redacted(at)).collect();
            let (session, common) = (session.clone(), common.clone());
            life.untold.push_back(Event::Resumed { session, batch: *batch, common, messages });
        }
        for (at, record) in journal.records.iter().enumerate() {
            match record {
                Record::Message(Message { session, common, interrupts, state: State::Waiting, .. }) => {
                    let (session, common, interrupts) = (session.clone(), common.clone(), *interrupts);
                    life.untold.push_back(Event::Recovered { session, common, interrupts, message: at });
                }
                Record::Stop(Stop { scope, reported: false }) => {
                    life.untold.push_back(Event::Stop { scope: scope.clone(), request: at });
                }
                Record::Message(_) | Record::Stop(_) => {}
            }
        }
    }

    /// Tells the core what it does not know, and carries out what it decides, as long as the gateway lives.
    fn tell(&mut self) -> TestCaseResult {
        while let Some(event) = self.life.untold.pop_front() {
            if self.dies() || !self.one(event)? {
                self.restart();
                continue;
            }
            self.check()?;
        }
        Ok(())
    }

    /// One event and its effects; `false` when the gateway dies over it.
    fn one(&mut self, event: Event<Position, Position>) -> Result<bool, TestCaseError> {
        let mut interrupts = None;
        let mut refusable = None;
        match &event {
            Event::Message { session, common, message, interrupts: by }
            | Event::Recovered { session, common, message, interrupts: by } => {
                if matches!(event, Event::Message { .. }) {
                    refusable = Some(*message);
                }
                self.life.told.insert(*message, self.now);
                self.life.latest.insert(session.clone(), self.now);
                let turn = self.life.running.iter().find(|(_, running)| *running == session).map(|(batch, _)| *batch);
                let together = |batch| {
                    let mut others = self.common_with(batch, session);
                    self.untold_removals() == 0 && others.all(|other| other == common)
                };
                interrupts = turn.filter(|batch| {
                    let paused = self.journal.paused.contains(&session.project);
                    let ends = self.life.cancelled.contains_key(batch) || !self.journal.turns.contains_key(batch);
                    *by && !ends && !paused && together(*batch)
                });
            }
            Event::Stop { request, .. } => {
                self.life.told.insert(*request, self.now);
            }
            Event::Resumed { session, batch, .. } => {
                self.life.running.insert(*batch, session.clone());
            }
            Event::Ended { batch, .. } => {
                self.life.running.remove(batch);
            }
            _ => {}
        }
        let effects = self.life.core.on(self.now, event);
        if let Some(batch) = interrupts {
            let done = |effect: &Effect<_, _>| match effect {
                Effect::Cancel { batch: ended, .. } => *ended == batch,
                Effect::Full { .. } => true,
                _ => false,
            };
            prop_assert!(effects.iter().any(done), "the message interrupts or is refused: {effects:?}");
        }
        for effect in effects {
            if self.dies() {
                return Ok(false);
            }
            match effect {
                Effect::Start(batch) => self.start(batch)?,
                Effect::Cancel { batch, why } => self.cancel(batch, why)?,
                Effect::Full { session, message } => {
                    prop_assert_eq!(Some(message), refusable, "only what is new is refused");
                    prop_assert_eq!(&self.journal.message(message).session, &session);
                    self.full(message)?;
                }
                Effect::Stopped { request, ran, dropped } => self.stopped(request, &ran, dropped)?,
                Effect::Over { batch } => {
                    prop_assert!(!self.life.running.contains_key(&batch), "it is not over");
                    prop_assert!(self.life.over.insert(batch), "said once");
                }
            }
        }
        Ok(true)
    }

    /// The session's stream decides what is in the batch: what still waits.
    fn start(&mut self, batch: Batch<Position>) -> TestCaseResult {
        let Batch { id, session, common, messages } = batch;
        prop_assert!(!self.journal.paused.contains(&session.project), "its project is paused");
        prop_assert!(!self.open_stops().any(|(_, stop)| stop.scope.covers(&session)), "it is being stopped");
        prop_assert!(self.life.running.values().all(|key| key.project != session.project), "one turn per project");
        self.life.running.insert(id, session.clone());
        prop_assert!(self.life.running.len() <= self.limits.max_turns, "too many turns");
        for at in &messages {
            let message = self.journal.message(*at);
            prop_assert_eq!(&message.session, &session);
            prop_assert_eq!(&message.common, &common, "rights or threads are merged");
        }
        let waits = |at: &Position| self.journal.waiting().any(|(waits, _)| waits == *at);
        let content: Vec<_> = messages.into_iter().filter(waits).collect();
        let queue: Vec<_> = self.journal.waiting().filter(|(_, message)| message.session == session).collect();
        let positions: Vec<_> = queue.iter().take(content.len()).map(|(at, _)| *at).collect();
        prop_assert_eq!(&positions, &content, "the order is kept");
        if self.untold_removals() == 0 {
            let next = queue.get(content.len()).filter(|(at, _)| self.life.told.contains_key(at));
            prop_assert!(next.is_none_or(|(_, message)| message.common != common), "{next:?} was left behind");
        }
        if content.is_empty() {
            self.life.untold.push_back(Event::Ended { batch: id, requeued: false });
            return Ok(());
        }
        for at in &content {
            let message = self.journal.message(*at);
            message.state = State::Running(id);
            message.asked_with = Some(message.edits);
        }
        self.journal.turns.insert(id, Turn { session, common, messages: content });
        Ok(())
    }

    /// What a turn's messages have in common, and each of those that the core knows to wait in its session.
    fn common_with(&self, batch: Uuid, session: &SessionKey) -> impl Iterator<Item = &Common> {
        let known = move |(at, _): &(Position, &Message)| self.life.told.contains_key(at);
        let here = self.journal.waiting().filter(known).filter(move |(_, message)| message.session == *session);
        here.map(|(_, message)| &message.common).chain(self.journal.turns.get(&batch).map(|turn| &turn.common))
    }

    /// Messages that are gone, though the core does not know it.
    fn untold_removals(&self) -> usize {
        let untold = self.life.untold.iter().chain(&self.life.late);
        untold.filter(|event| matches!(event, Event::Removed { .. })).count()
    }

    fn cancel(&mut self, batch: Uuid, why: Why) -> TestCaseResult {
        let session = self.life.running.get(&batch).cloned();
        let Some(session) = session else { return Err(TestCaseError::fail("what does not run is cancelled")) };
        prop_assert!(self.life.cancelled.insert(batch, why) < Some(why), "told again, or weaker");
        let wanted = match why {
            Why::Superseded => {
                self.life.superseded.insert(batch);
                self.life.superseded_at.insert(session.clone(), self.now);
                let told = |(at, message): (Position, &Message)| {
                    message.interrupts && message.session == session && self.life.told.contains_key(&at)
                };
                let mut all = self.common_with(batch, &session);
                let first = all.next();
                let one = all.all(|other| Some(other) == first);
                prop_assert!(one || self.untold_removals() > 0, "it cannot be answered together");
                !self.journal.paused.contains(&session.project) && self.journal.waiting().any(told)
            }
            _ => self.open_stops().any(|(_, stop)| stop.scope.why() == why && stop.scope.covers(&session)),
        };
        prop_assert!(wanted, "nobody asked for {why:?}");
        Ok(())
    }

    fn full(&mut self, message: Position) -> TestCaseResult {
        let session = self.journal.message(message).session.clone();
        let others = self.journal.waiting().filter(|(at, other)| *at != message && other.session == session).count();
        let back: usize =
            self.journal.turns.values().filter(|turn| turn.session == session).map(|t| t.messages.len()).sum();
        prop_assert!(others + back + self.untold_removals() >= self.limits.max_queue, "there is room");
        self.journal.end_waiting(message, Ending::Refused)
    }

    fn stopped(&mut self, request: Position, ran: &[Ran], dropped: Vec<Position>) -> TestCaseResult {
        let stop = self.journal.stop(request).clone();
        prop_assert!(!stop.reported, "a stop is reported once");
        self.journal.stop(request).reported = true;
        prop_assert!(ran.iter().all(|ran| !self.life.running.contains_key(&ran.batch)), "what was stopped is over");
        prop_assert!(ran.iter().all(|ran| !self.life.over.contains(&ran.batch)), "how it ended is not told yet");
        let mut last: BTreeMap<SessionKey, Position> = BTreeMap::new();
        for at in dropped {
            let session = self.journal.message(at).session.clone();
            prop_assert!(stop.scope.covers(&session), "{at} is none of its business");
            prop_assert!(last.insert(session, at).is_none_or(|before| before < at), "named in order");
            // Removed already, though the core had not heard of it.
            if self.journal.message(at).state != State::Over(Ending::Removed) {
                self.journal.end_waiting(at, Ending::Dropped)?;
            }
        }
        let everywhere = stop.scope.why() == Why::Deleted;
        if everywhere {
            prop_assert!(!self.life.running.values().any(|key| stop.scope.covers(key)), "nothing of it runs");
        }
        // What an earlier stop has dropped and not reported yet is that one's to name.
        let spared = |at: Position, session: &SessionKey| {
            self.open_stops().any(|(other, stop)| other > at && other != request && stop.scope.covers(session))
        };
        for (at, message) in self.journal.waiting() {
            let told = if everywhere { self.life.told.contains_key(&at) } else { at < request };
            let left = told && stop.scope.covers(&message.session) && !spared(at, &message.session);
            prop_assert!(!left, "{at} was left by the stop {request}");
        }
        Ok(())
    }

    /// The stops that the core knows of and has not reported.
    fn open_stops(&self) -> impl Iterator<Item = (Position, &Stop)> {
        self.journal.records.iter().enumerate().filter_map(|(at, record)| match record {
            Record::Stop(stop) if !stop.reported && self.life.told.contains_key(&at) => Some((at, stop)),
            Record::Stop(_) | Record::Message(_) => None,
        })
    }

    /// What holds whenever the core has nothing to do: nothing that could go on stands still.
    fn check(&self) -> TestCaseResult {
        let Self { limits, now, journal, life, .. } = self;
        for (at, stop) in self.open_stops() {
            let mut ending = life.running.iter().filter(|(_, key)| stop.scope.covers(key)).peekable();
            prop_assert!(ending.peek().is_some(), "stop {at} waits for nothing");
            let asked = ending.all(|(batch, _)| life.cancelled.get(batch) >= Some(&stop.scope.why()));
            prop_assert!(asked, "what stop {at} waits for is not asked to end");
        }
        if let Some(deadline) = life.core.next_deadline() {
            prop_assert!(deadline > *now && deadline <= *now + limits.max_window, "{deadline:?} at {now:?}");
        }
        let mut oldest: BTreeMap<&SessionKey, Moment> = BTreeMap::new();
        for (at, message) in journal.waiting() {
            if let Some(told) = life.told.get(&at) {
                oldest.entry(&message.session).or_insert(*told);
            }
        }
        prop_assert!(!life.core.is_idle() || (oldest.is_empty() && life.running.is_empty()), "it is not idle");
        for (session, oldest) in oldest {
            let busy = life.running.values().any(|key| key.project == session.project);
            let held = self.open_stops().any(|(_, stop)| stop.scope.covers(session));
            if busy || held || life.running.len() >= limits.max_turns || journal.paused.contains(&session.project) {
                continue;
            }
            let opened = life.superseded_at.get(session).map_or(oldest, |at| oldest.max(*at));
            let closes = (life.latest[session] + limits.window).min(opened + limits.max_window);
            prop_assert!(*now < closes, "{session:?} may start since {closes:?}, at {now:?}");
        }
        Ok(())
    }
}
