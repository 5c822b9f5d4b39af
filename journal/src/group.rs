//! Which requests share a transaction, and with it a wait for the disk. They are taken while the
//! writer writes those before them: who was answered last has the time to ask again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use std::{mem, thread};

use futures_util::FutureExt;
use tokio::sync::mpsc;

use crate::writer::{Message, Request};

/// At most so many requests in one transaction.
const LIMIT: usize = 256;

/// How many requests a group is likely to have, and how long it may wait for them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hope {
    /// Those that waited and those that were answered when the last group was written.
    pub(crate) requests: usize,
    /// In all, not counting the time in which others of the group are written.
    pub(crate) patience: Duration,
}

/// What waits for the writer. It leaves the channel several at a time: the writer and its callers,
/// on processors of their own, take the channel's memory from each other each time.
pub(crate) struct Queue {
    messages: mpsc::Receiver<Message>,
    /// Out of the channel, in order.
    ahead: VecDeque<Message>,
}

impl Queue {
    pub(crate) fn new(messages: mpsc::Receiver<Message>) -> Self {
        Self { messages, ahead: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ahead.len() + self.messages.len()
    }

    /// Waits for the next message; `None` when there will be none.
    pub(crate) fn wait(&mut self) -> Option<Message> {
        self.ahead.pop_front().or_else(|| self.messages.blocking_recv())
    }

    /// The next message, if there is one.
    fn next(&mut self) -> Option<Message> {
        if self.ahead.is_empty() && !self.messages.is_empty() {
            let mut ahead = mem::take(&mut self.ahead).into();
            self.messages.recv_many(&mut ahead, LIMIT).now_or_never();
            self.ahead = ahead.into();
        }
        self.ahead.pop_front()
    }

    /// Nobody is known to send any more.
    fn has_ended(&self) -> bool {
        self.len() == 0 && self.messages.is_closed()
    }
}

/// The requests of one transaction, in order.
pub(crate) struct Group<'a> {
    first: Option<Message>,
    queue: &'a mut Queue,
    hope: Hope,
    /// How many requests were there when it began.
    early: usize,
    /// How many requests it has had.
    pub(crate) taken: usize,
    /// How long it has waited for them.
    pub(crate) waited: Duration,
}

impl<'a> Group<'a> {
    pub(crate) fn new(first: Option<Message>, queue: &'a mut Queue, hope: Hope) -> Self {
        let early = queue.len() + usize::from(first.is_some());
        Self { first, queue, hope, early, taken: 0, waited: Duration::ZERO }
    }

    /// The requests that were there when the group began; the others stay for the next.
    pub(crate) fn early(&mut self) -> impl Iterator<Item = Request> {
        let early = self.early;
        self.take(early)
    }

    /// The next message. Waits a moment for those who were answered last, since they are likely to
    /// ask again at once: otherwise they and those who ask now would take turns, and each would
    /// wait for the disk twice. One who asks alone is not kept waiting.
    fn message(&mut self) -> Option<Message> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut since = None;
        loop {
            if let Some(message) = self.queue.next() {
                self.waited += since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                return Some(message);
            }
            if self.taken >= self.hope.requests || self.queue.has_ended() {
                return None;
            }
            let waiting = self.waited + since.get_or_insert_with(Instant::now).elapsed();
            if waiting >= self.hope.patience {
                self.waited = waiting;
                return None;
            }
            thread::yield_now();
        }
    }
}

impl Iterator for Group<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        while self.taken < LIMIT {
            match self.message()? {
                Message::Request(request) => {
                    self.taken += 1;
                    return Some(request);
                }
                Message::Close => self.queue.messages.close(),
            }
        }
        None
    }
}
