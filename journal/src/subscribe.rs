//! Following a stream. A subscriber is only told that something was committed and reads it from
//! the file when it is ready for it: nothing is buffered for it that could be lost, and nobody
//! waits for it.

use std::collections::VecDeque;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use crate::{Journal, ReadError, Recorded, StreamId};

/// How many events a subscription reads ahead at most.
const BATCH_EVENTS: usize = 256;

/// How much data it reads ahead, in bytes, not counting the event that goes beyond.
const BATCH_BYTES: usize = 1024 * 1024;

impl Journal {
    /// Every event of a stream after a version, in order, once: those that are there and then those
    /// that come, also when the stream does not exist yet. It does not end by itself: after an
    /// error, [`ReadError::Closed`] being one, nothing follows.
    pub fn subscribe(
        &self,
        stream: &StreamId,
        after_version: u64,
    ) -> impl Stream<Item = Result<Recorded, ReadError>> + Send + Unpin + use<> {
        let subscription = Subscription {
            journal: self.clone(),
            committed: self.position(),
            stream: stream.clone(),
            after_version,
            ahead: VecDeque::new(),
            caught_up: false,
        };
        Box::pin(stream::try_unfold(subscription, Subscription::next))
    }
}

struct Subscription {
    journal: Journal,
    committed: watch::Receiver<u64>,
    stream: StreamId,
    /// The version of the event that was handed out last.
    after_version: u64,
    ahead: VecDeque<Recorded>,
    /// The last read found the stream's end.
    caught_up: bool,
}

impl Subscription {
    async fn next(mut self) -> Result<Option<(Recorded, Self)>, ReadError> {
        loop {
            if let Some(event) = self.ahead.pop_front() {
                let (expected, found) = (self.after_version + 1, event.version);
                if found != expected {
                    return Err(ReadError::Gap { stream: self.stream, expected, found });
                }
                self.after_version = found;
                return Ok(Some((event, self)));
            }
            if self.caught_up {
                self.committed.changed().await.map_err(|_| ReadError::Closed)?;
            }
            // Before the read: a commit that it does not see wakes the next wait.
            self.committed.mark_unchanged();
            (self.ahead, self.caught_up) =
                self.journal.read_batch(&self.stream, self.after_version, BATCH_EVENTS, BATCH_BYTES).await?;
        }
    }
}
