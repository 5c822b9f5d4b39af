//! What happens to messages on their way, and the fold of it: which are still undelivered, in order.
//!
//! Stream `outbox/<surface>:<room id>`. Texts lie in the journal's table of texts; events have their ids.

use jiff::Timestamp;
use journal::{
    Actor, Append, Cause, Decoded, DomainEvent, EncodeError, Expected, Fold, NewEvent, Recorded, Snapshot, StreamId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Post;
use crate::{
    chat::{Outbound, Person, Room, Weight},
    text,
};

/// The kind of the streams.
pub(super) const STREAM: &str = "outbox";

/// What happens to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub(super) enum OutboxEvent {
    /// It is to be sent.
    #[serde(rename = "send.queued")]
    Queued(Queued),
    /// The surface has it.
    #[serde(rename = "send.delivered")]
    Delivered {
        transaction: String,
        /// The surface's id of it, or of its last part.
        event_id: String,
        /// The surface's ids of the parts before the last.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parts: Vec<String>,
    },
    /// It will not be sent.
    #[serde(rename = "send.given_up")]
    GivenUp {
        transaction: String,
        /// Why, for people.
        reason: String,
        /// The surface's ids of the parts that it has.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parts: Vec<String>,
    },
}

impl DomainEvent for OutboxEvent {
    const KINDS: &'static [&'static str] = &["send.queued", "send.delivered", "send.given_up"];
}

/// The surface's id of a message, where `event` tells of its delivery.
pub(super) fn delivered(event: &Recorded, transaction: &str) -> Option<String> {
    match event.decode() {
        Ok(Decoded::Known(OutboxEvent::Delivered { transaction: of, event_id, .. })) if of == transaction => {
            Some(event_id)
        }
        _ => None,
    }
}

/// Whether a message was delivered, where `event` tells what it has come to.
pub(super) fn settled(event: &Recorded, transaction: &str) -> Option<bool> {
    match event.decode() {
        Ok(Decoded::Known(OutboxEvent::Delivered { transaction: of, .. })) if of == transaction => Some(true),
        Ok(Decoded::Known(OutboxEvent::GivenUp { transaction: of, .. })) if of == transaction => Some(false),
        _ => None,
    }
}

/// The transaction of a message, where `event` tells that it was delivered, or a part of it, under the surface's id.
pub(super) fn delivered_as(event: &Recorded, event_id: &str) -> Option<String> {
    match event.decode() {
        Ok(Decoded::Known(OutboxEvent::Delivered { transaction, event_id: of, parts }))
            if of == event_id || parts.iter().any(|part| part == event_id) =>
        {
            Some(transaction)
        }
        Ok(Decoded::Known(OutboxEvent::GivenUp { transaction, parts, .. }))
            if parts.iter().any(|part| part == event_id) =>
        {
            Some(transaction)
        }
        _ => None,
    }
}

/// The id of a message's text, where `event` queues it.
pub(super) fn text_of(event: &Recorded, transaction: &str) -> Option<Uuid> {
    match event.decode() {
        Ok(Decoded::Known(OutboxEvent::Queued(send))) if send.transaction == transaction => Some(send.text),
        _ => None,
    }
}

/// A message without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queued {
    /// Its id in its room.
    pub transaction: String,
    #[serde(with = "WeightForm")]
    pub weight: Weight,
    /// Its text's id.
    pub text: Uuid,
    pub reply_to: Option<String>,
    pub mention: Option<Person>,
    pub thread: Option<String>,
    /// The events that it answers.
    pub answers: Vec<String>,
    /// Whether it tells that they failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// The transaction of the message that was refused, where this tells of one.
    pub refused: Option<String>,
    /// The message that is to be taken out of the room, where this is no message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_back: Option<TakenBack>,
}

/// A message that is taken out of its room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenBack {
    /// The surface's id of it.
    pub event_id: String,
    /// What people see in its place.
    pub why: String,
}

/// The stored form of a [`Weight`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Weight", rename_all = "kebab-case")]
enum WeightForm {
    Answer,
    Notice,
}

impl Queued {
    /// A part of it, counted from 1. The first one calls people and says what is answered; with the last one it is
    /// answered.
    pub fn part(&self, markdown: String, number: usize, is_last: bool) -> Outbound {
        let Self { transaction, weight, reply_to, mention, thread, answers, .. } = self.clone();
        let is_first = number == 1;
        Outbound {
            weight,
            markdown,
            reply_to: reply_to.filter(|_| is_first),
            mention: mention.filter(|_| is_first),
            thread,
            answers: if is_last { answers } else { Vec::new() },
            transaction: if is_first { transaction } else { format!("{transaction}-part-{number}") },
        }
    }

    /// The event, with the text in its form for the journal.
    pub fn encode(self, markdown: &str) -> Result<NewEvent, EncodeError> {
        let text = self.text;
        Ok(NewEvent::encode(&OutboxEvent::Queued(self))?.with_text(text, text::masked(markdown)))
    }
}

/// The stream of a room.
pub(super) fn stream(room: &Room) -> StreamId {
    StreamId::new(STREAM, room)
}

/// The key under which the journal takes a message once.
pub(super) fn key(room: &Room, transaction: &str) -> String {
    format!("send {room} {transaction}")
}

/// A post as the journal takes it, once under its key.
pub(super) fn queue(post: Post) -> Result<Append, EncodeError> {
    let Post { to, weight, markdown, transaction, answers, failed, takes_back, cause } = post;
    let key = key(&to.room, &transaction);
    // The same for a post that is made again, which is then the same append, whatever its text.
    let text = Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes());
    let follows = answers.last().or(takes_back.as_ref().map(|taken| &taken.event_id));
    let cause = follows.map_or(cause, |event| Cause::Command(event.clone()));
    let (reply_to, mention, thread) = (to.reply_to, to.mention, to.thread);
    let send =
        Queued { transaction, weight, text, reply_to, mention, thread, answers, failed, refused: None, takes_back };
    Ok(Append {
        stream: stream(&to.room),
        expected: Expected::Any,
        events: vec![send.encode(&markdown)?],
        key: Some(key),
        actor: Actor::Gateway,
        cause,
    })
}

/// A message that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub send: Queued,
    /// The version at which it was queued.
    pub version: u64,
    /// When it was queued.
    pub at: Timestamp,
    /// The event that queued it.
    pub event: Uuid,
}

/// What is on its way to a room, oldest first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Undelivered {
    entries: Vec<Entry>,
    /// Events since the snapshot that this state began with.
    #[serde(skip)]
    pub tail: u64,
}

/// The same is on its way, wherever the reading began.
impl PartialEq for Undelivered {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

/// An event that cannot follow.
#[derive(Debug, thiserror::Error)]
#[error("message {0} is settled and was not on its way")]
pub(super) struct NotQueued(String);

impl Undelivered {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Those that are messages, oldest first: what is to be taken out of the room is none.
    pub fn messages(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.send.takes_back.is_none())
    }

    /// The oldest.
    pub fn first(&self) -> Option<&Entry> {
        self.entries.first()
    }

    /// What is to be sent next: the oldest, but what is to be taken out of the room first of all.
    pub fn due(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.send.takes_back.is_some()).or(self.entries.first())
    }

    /// Whether the message is on its way.
    pub fn has(&self, transaction: &str) -> bool {
        self.entries.iter().any(|entry| entry.send.transaction == transaction)
    }

    fn remove(&mut self, transaction: &str) -> Result<(), NotQueued> {
        let found = self.entries.iter().position(|entry| entry.send.transaction == transaction);
        self.entries.remove(found.ok_or_else(|| NotQueued(transaction.to_owned()))?);
        Ok(())
    }
}

impl Fold for Undelivered {
    type Event = OutboxEvent;
    type Error = NotQueued;

    fn apply(&mut self, event: &OutboxEvent, recorded: &Recorded) -> Result<(), NotQueued> {
        self.tail += 1;
        match event {
            OutboxEvent::Queued(send) => {
                let Recorded { version, time, id, .. } = *recorded;
                self.entries.push(Entry { send: send.clone(), version, at: time, event: id });
                Ok(())
            }
            OutboxEvent::Delivered { transaction, .. } | OutboxEvent::GivenUp { transaction, .. } => {
                self.remove(transaction)
            }
        }
    }
}

impl Snapshot for Undelivered {
    const VERSION: u32 = 2;

    fn name() -> &'static str {
        "outbox::Undelivered"
    }
}
