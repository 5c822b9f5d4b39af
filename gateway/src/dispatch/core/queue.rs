//! What waits in one session, and when its first batch closes. Knows nothing of turns but whether one runs.

use std::collections::VecDeque;

use super::{Limits, Moment};
use crate::dispatch::Common;

/// What is going on in a session while a message comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum During {
    /// Nothing runs: the ordinary window counts.
    Nothing,
    /// A turn ends so that its messages can be answered together with this one: the ordinary window counts, also
    /// when it was over already.
    Superseded,
    /// A turn runs: what comes now has had its window when the turn ends (CHAT-3).
    Turn,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    /// When the batch closes or has closed.
    pub at: Moment,
    /// Tells apart what closes at the same moment.
    pub arrival: u64,
}

impl Due {
    /// The first place that is not due at `now`.
    pub fn after(now: Moment) -> Self {
        Self { at: now + Moment::from_nanos(1), arrival: 0 }
    }
}

/// The messages that wait in one session. Neighbours that have all in common that they must are one batch; one that is
/// followed by another has closed, so there is a single window: that of the last.
#[derive(Debug)]
pub(super) struct Queue<M> {
    waiting: VecDeque<(Common, M)>,
    /// When the last batch closes …
    closes: Moment,
    /// … and when it closes whatever comes.
    latest: Moment,
    /// Its place in the line; `None` while a turn of its session runs. Kept by the core.
    pub due: Option<Due>,
}

impl<M: Eq> Queue<M> {
    /// Nothing waits.
    pub fn new(now: Moment) -> Self {
        Self { waiting: VecDeque::new(), closes: now, latest: now, due: None }
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nothing waits but messages that have this in common.
    pub fn is_of(&self, common: &Common) -> bool {
        self.waiting.iter().all(|(of, _)| of == common)
    }

    /// When the last batch closes, unless something changes that.
    pub fn closes(&self) -> Moment {
        self.closes
    }

    /// Whether the first batch waits for nothing but a place.
    pub fn is_closed(&self, now: Moment) -> bool {
        self.closes <= now || self.is_followed()
    }

    /// Whether the first batch can grow no more, because what follows has other rights or another thread.
    fn is_followed(&self) -> bool {
        self.first_batch() < self.waiting.len()
    }

    fn first_batch(&self) -> usize {
        let first = self.waiting.front().map(|(common, _)| common);
        self.waiting.iter().take_while(|(common, _)| Some(common) == first).count()
    }

    /// The longest window counts from now on, because a turn is superseded now.
    pub fn reopen(&mut self, now: Moment, limits: &Limits) {
        self.latest = now + limits.max_window;
    }

    /// Takes one message.
    pub fn push(&mut self, now: Moment, limits: &Limits, during: During, common: Common, message: M) {
        let joins = self.waiting.back().is_some_and(|(last, _)| *last == common);
        if !joins {
            self.latest = now + limits.max_window;
        }
        let window = (now + limits.window).min(self.latest);
        self.closes = match during {
            // A batch that has closed and waits for its place still takes messages; its window is over.
            During::Nothing if joins && self.closes <= now => self.closes,
            During::Nothing | During::Superseded => window,
            During::Turn if joins => self.closes.min(now),
            During::Turn => now,
        };
        self.waiting.push_back((common, message));
    }

    /// Puts what comes back from a superseded turn in front. The window is that of what waits already; alone, it has
    /// had its window.
    pub fn requeue(&mut self, now: Moment, common: &Common, messages: Vec<M>) {
        if self.waiting.is_empty() {
            self.close(now);
        }
        for message in messages.into_iter().rev() {
            self.waiting.push_front((common.clone(), message));
        }
    }

    /// Takes one message out; `false` when it does not wait here.
    pub fn remove(&mut self, now: Moment, message: &M) -> bool {
        let Some(at) = self.waiting.iter().position(|(_, waits)| waits == message) else { return false };
        let had_closed = self.is_followed();
        self.waiting.remove(at);
        if had_closed && !self.is_followed() {
            self.close(now);
        }
        true
    }

    /// The last batch has closed, if it had not before.
    fn close(&mut self, now: Moment) {
        self.closes = self.closes.min(now);
        self.latest = self.latest.min(now);
    }

    /// Takes the first batch out.
    pub fn pop(&mut self) -> Option<(Common, Vec<M>)> {
        let common = self.waiting.front()?.0.clone();
        let batch = self.first_batch();
        Some((common, self.waiting.drain(..batch).map(|(_, message)| message).collect()))
    }

    /// All of it, in order.
    pub fn into_messages(self) -> impl Iterator<Item = M> {
        self.waiting.into_iter().map(|(_, message)| message)
    }
}
