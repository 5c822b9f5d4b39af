//! Encrypted rooms: nothing in them is taken, and that is said once (MTX-4).

use matrix_sdk::{
    Room as SdkRoom,
    deserialized_responses::{TimelineEvent, TimelineEventKind},
    ruma::{OwnedUserId, RoomId},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    MatrixSurface, Outbound, Room, SendError, SurfaceKind,
    failure::Backoff,
    intake::{self, Own, Reading},
    lock,
};
use crate::chat::Weight;

/// What people are told.
const REFUSAL: &str = "This version works in unencrypted rooms only; invite me to one without encryption.";

/// Whether an event was said under encryption, or where it should have been.
pub(super) fn concerns(room: &SdkRoom, event: &TimelineEvent) -> bool {
    !matches!(event.kind, TimelineEventKind::PlainText { .. }) || room.encryption_state().is_encrypted()
}

impl MatrixSurface {
    /// Takes nothing of what was said, and tells people who may speak so, once per room.
    pub(super) fn refuse_encrypted(&self, room: &SdkRoom, event: &TimelineEvent, own: &Own<'_>) {
        let Some(sender) = speaker(event, own).filter(|sender| self.listens_to(sender.as_str())) else { return };
        debug!(room = %room.room_id(), event = ?event.event_id(), %sender, "ignoring a message in an encrypted room");
        if !lock(&self.refused).insert(room.room_id().to_owned()) {
            return;
        }
        let Some(surface) = self.this.upgrade() else { return };
        let room = room.room_id().to_owned();
        self.tasks.spawn(async move { surface.shutdown.run_until_cancelled(surface.tell_refusal(&room)).await });
    }

    /// As long as trying again may help.
    async fn send_refusal(&self, room_id: &RoomId) -> Result<(), SendError> {
        let room = Room { surface: SurfaceKind::Matrix, id: room_id.to_string() };
        let notice = Outbound {
            weight: Weight::Notice,
            markdown: REFUSAL.to_owned(),
            reply_to: None,
            mention: None,
            thread: None,
            answers: Vec::new(),
            transaction: Uuid::new_v4().to_string(),
        };
        let mut backoff = Backoff::new();
        loop {
            match self.put(&room, &notice, None).await {
                Ok(_) => return Ok(()),
                Err(refusal @ SendError::Refused { .. }) => return Err(refusal),
                Err(SendError::Transient { message, retry_after, .. }) => {
                    warn!(room = %room_id, "people are not told yet: {message}");
                    backoff.wait(retry_after).await;
                }
            }
        }
    }

    async fn tell_refusal(&self, room: &RoomId) {
        // The SDK encrypts it; where it cannot, it sends nothing.
        match self.send_refusal(room).await {
            Ok(()) => info!(%room, "messages in an encrypted room are not taken, and people were told"),
            Err(refusal) => {
                warn!(%room, %refusal, "messages in an encrypted room are not taken, and people could not be told");
            }
        }
    }
}

/// Who said something by this event, other than the bot.
fn speaker(event: &TimelineEvent, own: &Own<'_>) -> Option<OwnedUserId> {
    if event.kind.is_utd() {
        return event.sender().filter(|sender| sender != own.user);
    }
    match intake::read(event.raw().deserialize().ok()?, own) {
        Reading::Message { said, .. } => Some(said?.sender),
        _ => None,
    }
}
