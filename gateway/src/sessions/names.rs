//! What a session and what is said in it are called in the journal: names that follow from what they name.

use journal::StreamId;
use uuid::Uuid;

use super::STREAM;
use crate::{chat::Room, dispatch::SessionKey};

/// What an event of a surface is journaled under, whatever becomes of it: so that it is handled once (DUR-1).
pub fn seen_key(room: &Room, event_id: &str) -> String {
    format!("said {} {event_id}", room.surface)
}

/// Which text of an event's.
#[derive(Debug, Clone, Copy)]
pub enum TextOf {
    /// What a message says, after so many edits.
    Words(u64),
    /// What a message quotes.
    Quote,
    /// What a command says.
    Command,
}

/// The id of a text: it follows from the event, so that a redaction finds it without a search.
pub fn text_id(room: &Room, event_id: &str, of: TextOf) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{room} {event_id} {of:?}").as_bytes())
}

/// The stream of a session.
pub(super) fn stream(key: &SessionKey) -> StreamId {
    let SessionKey { project, room, thread } = key;
    match thread {
        Some(thread) => StreamId::new(STREAM, format_args!("{project} {room} {thread}")),
        None => StreamId::new(STREAM, format_args!("{project} {room}")),
    }
}
