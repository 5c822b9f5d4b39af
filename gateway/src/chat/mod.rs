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
    /// The plain text, a leading mention of the bot and a reply's fallback stripped.
    pub text: String,
    /// The plain text of the message that this one replies to, where the surface knows it.
    pub quoted: Option<String>,
    /// Root of the thread it belongs to.
    pub thread: Option<String>,
    /// Whether it is meant for the bot: a mention, a reply to the bot, a direct room, an ambient room.
    pub addressed: bool,
    /// Held by everything that still works for this message; when the last clone is dropped, it has
    /// been answered in full. A surface that does not care gives `None`.
    pub pending: Option<TaskTrackerToken>,
}

/// Takes what surfaces receive.
pub trait Inbox: Send + Sync + 'static {
    /// Takes a message over. Only after this has returned `Ok` may the surface's position move past it.
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>>;

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
    /// Fixed id under which the surface recognises a repeated send of the same message.
    pub transaction: String,
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

/// A place where people talk.
pub trait Surface: Send + Sync + 'static {
    /// Which one.
    fn kind(&self) -> SurfaceKind;

    /// Sends a message; gives the event id that the surface assigned: from then on it is delivered.
    fn send<'a>(&'a self, room: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>>;

    /// Puts a new text in the place of an earlier message of ours.
    fn edit<'a>(
        &'a self,
        room: &'a Room,
        event_id: &'a str,
        message: &'a Outbound,
    ) -> BoxFuture<'a, Result<(), SendError>>;

    /// Shows or ends the sign that an answer is being written. The surface keeps a shown sign alive by itself.
    fn typing<'a>(&'a self, room: &'a Room, on: bool) -> BoxFuture<'a, ()>;

    /// The shortest time between two edits of one message that this surface stands for long.
    fn edit_interval(&self) -> Duration;

    /// Whether messages are being received; `Err` says in one fragment why not.
    fn health(&self) -> Result<(), String>;
}

/// A surface, shared.
pub type SharedSurface = Arc<dyn Surface>;
