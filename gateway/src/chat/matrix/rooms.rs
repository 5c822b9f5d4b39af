//! Coming into rooms: invites and the configured rooms (MTX-5).
//!
//! Each room is handled in a task of its own beside the sync loop, one at a time per room, with a bounded
//! number of attempts. What is not settled then is taken up again at the next start.

use matrix_sdk::{
    Client, RoomState,
    ruma::{OwnedRoomId, RoomId, RoomOrAliasId, api::client::membership::leave_room},
};
use tracing::{info, warn};

use super::{
    MatrixSurface,
    failure::{Backoff, Failure},
    lock,
};

/// How often joining or declining is tried.
const ATTEMPTS: usize = 6;

impl MatrixSurface {
    /// Joins the configured rooms that the bot is not in.
    pub(super) fn join_configured(&self) {
        for room in &self.settings.room_ids {
            let Ok(room) = RoomOrAliasId::parse(room) else { continue };
            let client = self.client();
            let known = <&RoomId>::try_from(&*room).ok().and_then(|id| client.get_room(id));
            if known.is_some_and(|room| room.state() == RoomState::Joined) {
                continue;
            }
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move { shutdown.run_until_cancelled(join_configured(&client, &room)).await });
        }
    }

    /// Joins or declines a room that the bot is invited to.
    pub(super) fn answer_invite(&self, room: OwnedRoomId) {
        let Some(surface) = self.this.upgrade() else { return };
        if !lock(&self.rooms_in_hand).insert(room.clone()) {
            return;
        }
        self.tasks.spawn(async move {
            surface.shutdown.run_until_cancelled(surface.settle_invite(&room)).await;
            lock(&surface.rooms_in_hand).remove(&room);
        });
    }

    async fn settle_invite(&self, room_id: &RoomId) {
        let client = self.client();
        let mut backoff = Backoff::new();
        for attempt in 1..=ATTEMPTS {
            let Some(room) = client.get_room(room_id).filter(|room| room.state() == RoomState::Invited) else { return };
            let outcome = match room.invite_details().await {
                Ok(invite) if self.welcomes(room_id, invite.inviter_id.as_str()) => {
                    info!(room = %room_id, inviter = %invite.inviter_id, attempt, "joining");
                    client.join_room_by_id(room_id).await.map(drop)
                }
                Ok(invite) => {
                    info!(room = %room_id, inviter = %invite.inviter_id, attempt, "declining the invite of somebody who may not invite");
                    decline(&client, room_id).await
                }
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { return };
            // Also after a refusal: an invite over federation may be known here before it is valid everywhere.
            let failure = Failure::from(error);
            warn!(room = %room_id, attempt, "the invite could not be answered: {}", failure.reason());
            backoff.wait(failure.retry_after()).await;
        }
    }

    fn welcomes(&self, room: &RoomId, inviter: &str) -> bool {
        self.settings.room_ids.iter().any(|id| id == room.as_str()) || self.listens_to(inviter)
    }
}

/// Declines by the plain request: the SDK's own way leaves also the rooms that the invite names as
/// predecessors, and an invite may name any room.
async fn decline(client: &Client, room: &RoomId) -> matrix_sdk::Result<()> {
    client.send(leave_room::v3::Request::new(room.to_owned())).await?;
    Ok(())
}

async fn join_configured(client: &Client, room: &RoomOrAliasId) {
    let mut backoff = Backoff::new();
    for attempt in 1..=ATTEMPTS {
        let Err(error) = client.join_room_by_id_or_alias(room, &[]).await else {
            info!(%room, "joined");
            return;
        };
        let failure = Failure::from(error);
        warn!(%room, attempt, "the configured room could not be joined: {}", failure.reason());
        if let Failure::Permanent { .. } = failure {
            return;
        }
        backoff.wait(failure.retry_after()).await;
    }
}
