//! What was delivered, found again in the journal, and erased when it is taken back.

use super::{Outbox, events, unreadable};
use crate::{chat::Room, refusal::Refusal};

impl Outbox {
    /// The event under which a message, or the last of its parts, was delivered to a room, if it was.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn event_of(&self, room: &Room, transaction: &str) -> Result<Option<String>, Refusal> {
        let (journal, stream) = (&self.inner.journal, events::stream(room));
        let queued = journal.events_of_key(&events::key(room, transaction)).await.map_err(unreadable)?;
        let Some(first) = queued.iter().find(|event| event.stream == stream) else { return Ok(None) };
        // What was sent there before it was queued may be years of a room.
        let events = journal.read(&stream, first.version).await.map_err(unreadable)?;
        Ok(events.iter().find_map(|event| events::delivered(event, transaction)))
    }

    /// The transaction of the message that was delivered to a room under this event, or of whose parts one was, if any was.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn transaction_of(&self, room: &Room, event_id: &str) -> Result<Option<String>, Refusal> {
        let events = self.inner.journal.read(&events::stream(room), 0).await.map_err(unreadable)?;
        Ok(events.iter().rev().find_map(|event| events::delivered_as(event, event_id)))
    }

    /// Erases all that a message of ours said that was delivered to a room under this event, or of whose parts one was;
    /// whether there is one. What is still on its way is nowhere yet that it could be taken back from.
    ///
    /// # Errors
    /// When the journal cannot be read, or does not take the erasure.
    pub async fn erase_sent(&self, room: &Room, event_id: &str) -> Result<bool, Refusal> {
        let journal = &self.inner.journal;
        let events = journal.read(&events::stream(room), 0).await.map_err(unreadable)?;
        let Some(transaction) = events.iter().rev().find_map(|event| events::delivered_as(event, event_id)) else {
            return Ok(false);
        };
        let texts = events.iter().filter_map(|event| events::text_of(event, &transaction)).collect();
        let erased = journal.erase(texts).await;
        erased.map(|_| true).map_err(|error| Refusal::internal("a text could not be erased", error))
    }
}
