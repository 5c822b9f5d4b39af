//! Places where people talk, seen from the gateway: what comes in, what goes out.
//!
//! A surface carries messages and knows nothing of projects, turns or commands. The gateway never
//! looks behind [`Surface`]: everything that is special to one place stays in its module.

pub mod console;
pub mod matrix;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Which kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SurfaceKind {
    /// The built-in prompt of `musher up`.
    Console,
    /// A Matrix homeserver.
    Matrix,
}

impl fmt::Display for SurfaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "console",
            Self::Matrix => "matrix",
        })
    }
}

/// A conversation, qualified by its surface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Room {
    /// The place it is in.
    pub surface: SurfaceKind,
    /// The surface's own id of it, such as `!abc:example.org`.
    pub id: String,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.surface, self.id)
    }
}

impl Room {
    /// The room that `text` displays.
    pub fn parse(text: &str) -> Option<Self> {
        let (surface, id) = text.split_once(':')?;
        let surface =
            [SurfaceKind::Console, SurfaceKind::Matrix].into_iter().find(|kind| kind.to_string() == surface)?;
        Some(Self { surface, id: id.to_owned() })
    }
}

/// Somebody who talks, qualified by the surface (SEC-4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Person {
    /// The place where this id holds.
    pub surface: SurfaceKind,
    /// The surface's own id, such as `@ann:example.org`.
    pub id: String,
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.surface, self.id)
    }
}

/// A message that a surface has received.
///
/// The surface has already seen to it that the room is known, and that it is neither our own
/// message nor a notice (MTX-4, first three steps). Whether the sender may speak is decided by the inbox.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where it was said.
    pub room: Room,
    /// The surface's id of the event; with the surface's kind the key of the message.
    pub event_id: String,
    /// Who said it.
    pub sender: Person,
    /// When, by the surface's clock.
    pub at: Timestamp,
    /// The plain text, a leading mention of the bot and a reply's fallback stripped. Of a file its caption.
    pub text: String,
    /// The plain text of the message that this one replies to, where the surface knows it; read like its own.
    pub quoted: Option<String>,
    /// Root of the thread it belongs to.
    pub thread: Option<String>,
    /// Whether it is meant for the bot: a mention, a reply to the bot, a direct room, an ambient room.
    pub addressed: bool,
    /// Whether a file came with it: a picture, a recording or any other. It stays on the surface.
    pub with_file: bool,
    /// Held by everything that still works for this message; when the last clone is dropped, it has
    /// been answered in full. A surface that does not care gives `None`.
    pub pending: Option<TaskTrackerToken>,
}

/// A person has put a new text in the place of a message of theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// Where.
    pub room: Room,
    /// The message: the event as it was first sent, however often it was edited since.
    pub event_id: String,
    /// The edit's own event.
    pub edit_id: String,
    /// Who edited it. The surface has seen to it that the same person sent the message.
    pub sender: Person,
    /// The new text, read like a message's: a leading mention of the bot and a reply's fallback stripped.
    pub text: String,
}

/// An event was taken back, by its sender or by somebody who may do that in the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// Where.
    pub room: Room,
    /// What was taken back: a message, but also anything else, such as a reaction.
    pub event_id: String,
    /// The event that took it back.
    pub redaction_id: String,
    /// Who took it back, which need not be somebody whom the inbox listens to: it is gone for everybody.
    pub by: Person,
}

/// A person whom the inbox listens to has put a sign on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reacted {
    /// Where.
    pub room: Room,
    /// What the sign was put on.
    pub event_id: String,
    /// The reaction's own event.
    pub reaction_id: String,
    /// Who reacted.
    pub sender: Person,
    /// The sign, mostly one emoji, without the variation selectors in which clients differ.
    pub key: String,
    /// Whether the room is encrypted: reactions travel in clear even there, and anybody on the way could make one.
    pub encrypted: bool,
}

/// Some of what was said in a room is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Where.
    pub room: Room,
    /// The surface's name for the gap, of any form: the same when the same gap is met again.
    pub gap: String,
    /// Whether it is only late: the surface goes on asking for it, and gives nothing of the room until it has it. Otherwise
    /// it will never be given.
    pub awaited: bool,
}

/// Takes what surfaces receive.
///
/// What is said in one room comes in the order of its timeline, one after the other; rooms come side by side. The
/// surface's position moves past an event only after its method has returned `Ok`; after [`InboxError::Journal`] the
/// same is given again. After a crash an event may be given again that was taken before. While the gateway is not
/// stopping, a call that was begun is always awaited to its end.
pub trait Inbox: Send + Sync + 'static {
    /// Takes a message over.
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>>;

    /// Takes a message's new text over. The message need not be one that was accepted.
    fn edited(&self, edit: Edited) -> BoxFuture<'_, Result<(), InboxError>>;

    /// Takes over that an event was taken back. It need not be one that was accepted.
    fn redacted(&self, redaction: Redacted) -> BoxFuture<'_, Result<(), InboxError>>;

    /// Takes a reaction over. What it was put on need not be ours, where the surface does not know whose it is.
    fn reacted(&self, reaction: Reacted) -> BoxFuture<'_, Result<(), InboxError>>;

    /// Takes over that something was missed, or is late; people in the room are told either once per gap.
    fn missed(&self, missed: Missed) -> BoxFuture<'_, Result<(), InboxError>>;

    /// When the newest message that was ever accepted from this surface was said; `None` when there is none. A surface
    /// that has lost its own position goes back to there, so that only a wholly lost state directory makes
    /// what was said meanwhile history.
    fn newest(&self, surface: SurfaceKind) -> BoxFuture<'_, Result<Option<Timestamp>, InboxError>>;

    /// Whether this person may speak to the bot, and so invite it into rooms (MTX-4, MTX-5). A surface
    /// does no work for anybody else.
    fn listens_to(&self, person: &Person) -> bool;
}

/// Why the inbox could not take a message.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
    /// The journal refused.
    #[error("the message could not be journaled")]
    Journal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What weight a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// An answer: people are notified (`m.text`).
    Answer,
    /// Progress and asides: nobody is notified (`m.notice`).
    Notice,
}

/// A message to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Its weight.
    pub weight: Weight,
    /// Its text, Markdown. Raw HTML in it is shown as text (MTX-9).
    pub markdown: String,
    /// The event that it answers.
    pub reply_to: Option<String>,
    /// Whom it mentions.
    pub mention: Option<Person>,
    /// The thread it goes to.
    pub thread: Option<String>,
    /// The events that it answers, kept with it: what a turn answered can be read from the room (`dev.musher`).
    pub answers: Vec<String>,
    /// Fixed id under which the surface recognises a repeated send of the same message, and by which
    /// [`Surface::find`] finds it.
    pub transaction: String,
}

/// What has become of a person's message, as the surface may show it on the message (CHAT-9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// It is journaled.
    Accepted,
    /// It waits for a turn that runs, or for a place.
    Waiting,
    /// Its turn runs.
    Running,
    /// Its answer is delivered; also when it was cancelled or taken back: nothing more is to be shown.
    Delivered,
    /// It will not be answered, and people were told why.
    Failed,
}

/// Why a surface did not send.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The surface cannot be reached or asks to wait; trying again may help.
    #[error("{surface} did not take the message: {message}")]
    Transient {
        /// Which one.
        surface: SurfaceKind,
        /// Its own word.
        message: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// The surface refuses this message for good.
    #[error("{surface} refuses the message: {message}")]
    Refused {
        /// Which one.
        surface: SurfaceKind,
        /// Its own word.
        message: String,
    },
}

/// A place where people talk. Requests to it end by themselves, also where the other side does not answer.
pub trait Surface: Send + Sync + 'static {
    /// Which one.
    fn kind(&self) -> SurfaceKind;

    /// Sends a message; gives the event id that the surface assigned: from then on it is delivered.
    fn send<'a>(&'a self, room: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>>;

    /// How long the text of one message may be, in bytes, at least 64; what is longer comes in parts.
    fn longest(&self) -> usize {
        usize::MAX
    }

    /// Puts a new text in the place of an earlier message of ours.
    fn edit<'a>(
        &'a self,
        room: &'a Room,
        event_id: &'a str,
        message: &'a Outbound,
    ) -> BoxFuture<'a, Result<(), SendError>>;

    /// Looks in the room for a message of ours that was sent under this transaction, at `since` or later by the
    /// gateway's clock (differing clocks are allowed for); gives its event id. Before an uncertain resend: a server
    /// forgets transaction ids. Edits are not found. `Ok(None)` is certain, but for a message that was taken back
    /// meanwhile: that one is found only where the surface still knows under which transaction it was sent.
    fn find<'a>(
        &'a self,
        room: &'a Room,
        transaction: &'a str,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Option<String>, SendError>>;

    /// Shows what has become of a person's message. Returns at once: it is shown beside everything else, later than
    /// what is sent, and perhaps never; the newest mark of a message counts. After a restart the marks of messages
    /// that wait, run or were just answered should be given again: what an earlier run has shown is found and taken
    /// back. `Err` only for ids that the surface cannot have.
    fn mark(&self, room: &Room, event_id: &str, mark: Mark);

    /// Takes a message out of the room, a person's or ours, and shows `why` in its place; gives the surface's id of that.
    /// Again under the same transaction it is the same. Where messages stay what they are, nothing happens, and `event_id`
    /// is given back.
    fn take_back<'a>(
        &'a self,
        room: &'a Room,
        event_id: &'a str,
        transaction: &'a str,
        why: &'a str,
    ) -> BoxFuture<'a, Result<String, SendError>> {
        let _ = (room, transaction, why);
        Box::pin(std::future::ready(Ok(event_id.to_owned())))
    }

    /// Shows or ends the sign that an answer is being written. The surface keeps a shown sign alive by itself.
    fn typing<'a>(&'a self, room: &'a Room, on: bool) -> BoxFuture<'a, ()>;

    /// The shortest time between two edits of one message that this surface stands for long.
    fn edit_interval(&self) -> Duration;

    /// Whether what is sent is there at once. Then the last of a draft is shown before the message that ends it, which it
    /// does not hold up.
    fn is_instant(&self) -> bool {
        false
    }

    /// Whether messages are being received; `Err` says in one fragment why not.
    fn health(&self) -> Result<(), String>;
}

/// A surface, shared.
pub type SharedSurface = Arc<dyn Surface>;

#[cfg(test)]
pub mod hall;
