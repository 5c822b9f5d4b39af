//! What the surface itself has to tell a room: of what it does not take, and of what it could not read.

use std::collections::BTreeSet;

use matrix_sdk::ruma::{OwnedRoomId, RoomId};
use sha2::{Digest, Sha256};
use tracing::{error, warn};

use super::{MatrixSurface, Outbound, Room, SendError, SurfaceKind, failure::Backoff, lock};
use crate::chat::Weight;

/// What people are told when their words were not to be had.
const GAP: &str = "Some of what was said here while I was away could not be read: the homeserver does not give it to me. \
    Please say again what I have not answered.";

/// Rooms with messages that were not to be had, and that are not told yet.
pub(super) type Gaps = BTreeSet<OwnedRoomId>;

impl MatrixSurface {
    /// Tells people of a gap that cannot be closed, once per gap. Until then health tells of it.
    pub(super) fn tell_gap(&self, room: &RoomId, gap: &str) {
        error!(%room, "messages were not read: the homeserver refuses the room's history");
        lock(&self.gaps).insert(room.to_owned());
        let Some(surface) = self.this.upgrade() else { return };
        let room = room.to_owned();
        // The same gap is met again when the position was not stored.
        let transaction = format!("gap-{}", hex::encode(&Sha256::digest(format!("{room} {gap}"))[..16]));
        self.tasks.spawn(async move {
            let told = surface.shutdown.run_until_cancelled(surface.tell(&room, GAP, transaction)).await;
            if let Some(Err(refusal)) = &told {
                error!(%room, %refusal, "people could not be told that messages were not read");
            }
            lock(&surface.gaps).remove(&room);
        });
    }

    /// Sends a notice, as long as trying again may help.
    pub(super) async fn tell(&self, room_id: &RoomId, markdown: &str, transaction: String) -> Result<(), SendError> {
        let room = Room { surface: SurfaceKind::Matrix, id: room_id.to_string() };
        let notice = Outbound {
            weight: Weight::Notice,
            markdown: markdown.to_owned(),
            reply_to: None,
            mention: None,
            thread: None,
            answers: Vec::new(),
            transaction,
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
}
