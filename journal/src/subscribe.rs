//! Following a stream. A subscriber is only told that something was committed and reads it from
//! the file when it is ready for it: nothing is buffered for it that could be lost, and nobody
//! waits for it.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use futures_util::stream::{self, Stream};
use rusqlite::Connection;
use tokio::sync::watch;

use crate::{Journal, ReadError, Recorded, StreamId, store};

/// How many events a subscription reads ahead at most.
const BATCH_EVENTS: usize = 256;

/// How much data it reads ahead, in bytes, not counting the event that goes beyond.
const BATCH_BYTES: usize = 1024 * 1024;

impl Journal {
    /// Every event of a stream after a version, in order, once: those that are there and then those
    /// that come, also when the stream does not exist yet. It does not end by itself.
    ///
    /// # Errors
    /// As its last item: [`ReadError::Closed`] when the journal is closed, otherwise as
    /// [`Journal::read`].
    pub fn subscribe(
        &self,
        stream: &StreamId,
        after_version: u64,
    ) -> impl Stream<Item = Result<Recorded, ReadError>> + Send + Unpin + use<> {
        let subscription = Subscription {
            journal: self.clone(),
            committed: self.position(),
            cursor: Cursor { stream: stream.clone(), after_version },
            ahead: VecDeque::new(),
            caught_up: false,
        };
        Box::pin(stream::try_unfold(subscription, Subscription::next))
    }
}

/// What is followed, and up to where it was handed out.
#[derive(Clone)]
struct Cursor {
    stream: StreamId,
    after_version: u64,
}

impl Cursor {
    /// Moves on to the next event, which must follow without a gap.
    fn pass(&mut self, event: &Recorded) -> Result<(), ReadError> {
        let (expected, found) = (self.after_version + 1, event.version);
        if found != expected {
            return Err(ReadError::Gap { stream: self.stream.clone(), expected, found });
        }
        self.after_version = found;
        Ok(())
    }

    /// The next events, as many as a subscription reads ahead, and whether these are all.
    fn read(&self, connection: &Connection) -> Result<(VecDeque<Recorded>, bool), ReadError> {
        let (mut events, mut bytes, mut all) = (VecDeque::new(), 0, true);
        let visit = |event: Recorded| {
            bytes += event.data.get().len();
            events.push_back(event);
            all = events.len() < BATCH_EVENTS && bytes < BATCH_BYTES;
            Ok(if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        store::visit_stream(connection, &self.stream, self.after_version, visit)?;
        Ok((events, all))
    }
}

struct Subscription {
    journal: Journal,
    committed: watch::Receiver<u64>,
    cursor: Cursor,
    ahead: VecDeque<Recorded>,
    /// The last read found the end.
    caught_up: bool,
}

impl Subscription {
    async fn next(mut self) -> Result<Option<(Recorded, Self)>, ReadError> {
        loop {
            if let Some(event) = self.ahead.pop_front() {
                self.cursor.pass(&event)?;
                return Ok(Some((event, self)));
            }
            if self.caught_up {
                self.committed.changed().await.map_err(|_| ReadError::Closed)?;
            }
            // Before the read: a commit that it does not see wakes the next wait.
            self.committed.mark_unchanged();
            let cursor = self.cursor.clone();
            (self.ahead, self.caught_up) = self.journal.run(move |connection| cursor.read(connection)).await?;
        }
    }
}
