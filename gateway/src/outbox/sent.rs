//! What was delivered, found again in the journal, and erased when it is taken back.

use jiff::Timestamp;
use journal::Recorded;

use super::{
    Outbox,
    events::{self, Undelivered},
    unreadable,
};
use crate::{chat::Room, refusal::Refusal};

/// How many events of a room are looked through, the latest: anybody may redact and react as often as they like, and a room's
/// history may be years.
const LOOKED_THROUGH: u64 = 10_000;

impl Outbox {
    /// The event under which a message, or the last of its parts, was delivered to a room, if it was.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn event_of(&self, room: &Room, transaction: &str) -> Result<Option<String>, Refusal> {
        let events = self.since_queued(room, transaction, u64::MAX).await?;
        Ok(events.iter().find_map(|event| events::delivered(event, transaction)))
    }

    /// When a message to a room was delivered, or given up, and whether it was delivered; nothing while it is on its way, and
    /// where a lot was sent there since.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn settled_at(&self, room: &Room, transaction: &str) -> Result<Option<(Timestamp, bool)>, Refusal> {
        let events = self.since_queued(room, transaction, LOOKED_THROUGH).await?;
        Ok(events.iter().find_map(|event| Some((event.time, events::settled(event, transaction)?))))
    }

    /// What happened in a room's outbox since a message was queued; nothing if that is more than `most`.
    async fn since_queued(&self, room: &Room, transaction: &str, most: u64) -> Result<Vec<Recorded>, Refusal> {
        let (journal, stream) = (&self.inner.journal, events::stream(room));
        let queued = journal.events_of_key(&events::key(room, transaction)).await.map_err(unreadable)?;
        let Some(first) = queued.iter().find(|event| event.stream == stream) else { return Ok(Vec::new()) };
        let known = journal.load_snapshot::<Undelivered>(&stream).await.map_err(unreadable)?;
        if known.version.saturating_sub(first.version) > most {
            return Ok(Vec::new());
        }
        // What was sent there before it was queued may be years of a room.
        journal.read(&stream, first.version).await.map_err(unreadable)
    }

    /// The transaction of the message that was delivered to a room under this event, or of whose parts one was, if any was.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn transaction_of(&self, room: &Room, event_id: &str) -> Result<Option<String>, Refusal> {
        let events = self.latest(room).await?;
        Ok(events.iter().rev().find_map(|event| events::delivered_as(event, event_id)))
    }

    async fn latest(&self, room: &Room) -> Result<Vec<Recorded>, Refusal> {
        let (journal, stream) = (&self.inner.journal, events::stream(room));
        let known = journal.load_snapshot::<Undelivered>(&stream).await.map_err(unreadable)?;
        journal.read(&stream, known.version.saturating_sub(LOOKED_THROUGH)).await.map_err(unreadable)
    }

    /// Erases all that a message of ours said that was delivered to a room under this event, or of whose parts one was;
    /// whether there is one. A message of which a part is still on its way is not found yet.
    ///
    /// # Errors
    /// When the journal cannot be read, or does not take the erasure.
    pub async fn erase_sent(&self, room: &Room, event_id: &str) -> Result<bool, Refusal> {
        let journal = &self.inner.journal;
        let latest = self.latest(room).await?;
        let delivered = latest.iter().rev().find_map(|event| events::delivered_as(event, event_id));
        let Some(transaction) = delivered else { return Ok(false) };
        let queued = journal.events_of_key(&events::key(room, &transaction)).await.map_err(unreadable)?;
        // What tells of a message that was given up has no key.
        let texts = queued.iter().chain(&latest).filter_map(|event| events::text_of(event, &transaction)).collect();
        let erased = journal.erase(texts).await;
        erased.map(|_| true).map_err(|error| Refusal::internal("a text could not be erased", error))
    }
}
