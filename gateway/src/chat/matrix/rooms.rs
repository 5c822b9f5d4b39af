//! Coming into rooms: invites and the configured rooms (MTX-5).
//!
//! Each room is handled in a task of its own beside the sync loop, one at a time per room: an invite as long as it stands, a
//! configured room with a bounded number of attempts, taken up again at the next start.

use matrix_sdk::{
    Client, RoomState,
    ruma::{OwnedRoomId, RoomId, RoomOrAliasId, UserId, api::client::membership::leave_room},
};
use tracing::{info, warn};

use super::{
    MatrixSurface,
    failure::{Backoff, Failure},
    lock,
};

/// How often joining a configured room is tried, and declining an invite, and how often the log is told of the same invite.
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
            let Some(surface) = self.this.upgrade() else { return };
            self.tasks.spawn(async move {
                surface.shutdown.run_until_cancelled(surface.settle_configured(&client, &room)).await;
            });
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

    async fn settle_configured(&self, client: &Client, room: &RoomOrAliasId) {
        if join_configured(client, room).await {
            self.find_ambient_again();
        }
    }

    async fn settle_invite(&self, room_id: &RoomId) {
        let mut backoff = Backoff::new();
        for attempt in 1_usize.. {
            // It is another one when the bot has logged in anew meanwhile.
            let client = self.client();
            let Some(room) = client.get_room(room_id).filter(|room| room.state() == RoomState::Invited) else { return };
            let (welcome, outcome) = match room.invite_details().await {
                Ok(invite) => {
                    let welcome = self.welcomes(room_id, invite.inviter_id.as_str());
                    (welcome, self.answer(&client, room_id, &invite.inviter_id, welcome).await)
                }
                Err(error) => (true, Err(error)),
            };
            let Err(error) = outcome else { return };
            // Also after a refusal: an invite over federation may be known here before it is valid everywhere.
            let failure = Failure::from(error);
            if attempt <= ATTEMPTS {
                warn!(room = %room_id, attempt, "the invite could not be answered: {}", failure.reason());
            }
            // Whoever may not invite does not keep the bot busy: it stands, and the next start sees to it.
            if !welcome && attempt >= ATTEMPTS {
                return;
            }
            backoff.wait(failure.retry_after()).await;
        }
    }

    async fn answer(&self, client: &Client, room: &RoomId, inviter: &UserId, welcome: bool) -> matrix_sdk::Result<()> {
        if welcome {
            client.join_room_by_id(room).await?;
            info!(%room, %inviter, "joined");
            self.find_ambient_again();
        } else {
            decline(client, room).await?;
            info!(%room, %inviter, "declined the invite of somebody who may not invite");
        }
        Ok(())
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

/// Whether the bot is in the room now.
async fn join_configured(client: &Client, room: &RoomOrAliasId) -> bool {
    let mut backoff = Backoff::new();
    for attempt in 1..=ATTEMPTS {
        let Err(error) = client.join_room_by_id_or_alias(room, &[]).await else {
            info!(%room, "joined");
            return true;
        };
        let failure = Failure::from(error);
        warn!(%room, attempt, "the configured room could not be joined: {}", failure.reason());
        if let Failure::Permanent { .. } = failure {
            return false;
        }
        backoff.wait(failure.retry_after()).await;
    }
    false
}
