//! What is erased of what people said, and how an edit is found that is taken back.

use journal::Decoded;
use uuid::Uuid;

use super::{MAX_EDITS, STREAM, SessionEvent, Sessions, TextOf, seen_key, text_id, unreadable};
use crate::{chat::Room, refusal::Refusal};

/// An edit that gave a message its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The message: the event as it was first sent.
    pub of: String,
    /// The id of the text that it has by this edit.
    pub text: Uuid,
}

impl Sessions {
    /// The edit that an event was, if it gave a message of this room its words.
    pub async fn edit_by(&self, room: &Room, event_id: &str) -> Result<Option<Edit>, Refusal> {
        let events = self.inner.journal.events_of_key(&seen_key(room, event_id)).await;
        for event in events.map_err(|error| unreadable(&error))?.iter().filter(|event| event.stream.kind == STREAM) {
            let decoded = event.decode().map_err(|error| unreadable(&error))?;
            let Decoded::Known(SessionEvent::Edited { event_id: of, text }) = decoded else { continue };
            // Its surface relates any two events as somebody says, also of two rooms.
            if (1..=MAX_EDITS).any(|edits| text_id(room, &of, TextOf::Words(edits)) == text) {
                return Ok(Some(Edit { of, text }));
            }
        }
        Ok(None)
    }

    /// Erases what was said by an event, whatever became of it.
    pub async fn erase_said(&self, room: &Room, event_id: &str) -> Result<(), Refusal> {
        let words = (0..=MAX_EDITS).map(TextOf::Words);
        let texts = words.chain([TextOf::Quote, TextOf::Command]).map(|of| text_id(room, event_id, of)).collect();
        self.erase(texts).await
    }

    /// Erases the words that a message has by an edit.
    pub async fn erase_edit(&self, edit: &Edit) -> Result<(), Refusal> {
        self.erase(vec![edit.text]).await
    }

    /// Erases what a message said before its edit of this number.
    pub(super) async fn erase_before_edit(&self, room: &Room, event_id: &str, edits: u64) -> Result<(), Refusal> {
        let outdated = (0..edits).map(|before| text_id(room, event_id, TextOf::Words(before)));
        self.erase(outdated.collect()).await
    }

    async fn erase(&self, texts: Vec<Uuid>) -> Result<(), Refusal> {
        let erased = self.inner.journal.erase(texts).await;
        erased.map(drop).map_err(|error| Refusal::internal("a text could not be erased", error))
    }
}
