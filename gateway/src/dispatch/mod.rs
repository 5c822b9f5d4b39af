//! From messages to turns: coalescing, order, stop and queue.
//!
//! [`core`] decides and does nothing; [`actor`] does and decides nothing. Every rule about when a turn
//! starts is in the core and is tested there, without a clock, a task, a chat or an engine.

pub mod actor;
pub mod core;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{chat::Room, people::Role};

/// What an agent's memory belongs to: one conversation on one project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// The project; at most one turn runs in it at a time.
    pub project: Uuid,
    /// Where people talk.
    pub room: Room,
    /// The thread, where threads are sessions of their own.
    pub thread: Option<String>,
}

/// What messages have in common that are answered together: neighbours that differ in it are never one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// What their senders may do, and their turn no more (CHAT-4).
    pub rights: Role,
    /// The thread that they were written in, where their answer goes (MTX-7).
    pub thread: Option<Arc<str>>,
}

/// Messages that the agent answers together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<M> {
    /// Minted when the batch closed; also the id of its turn.
    pub id: Uuid,
    /// Whose memory it goes to.
    pub session: SessionKey,
    /// What holds for all of them.
    pub common: Common,
    /// The messages, in the order in which they came; at least one.
    pub messages: Vec<M>,
}
