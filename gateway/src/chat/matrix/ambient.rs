//! Ambient rooms: every message in them is meant for the bot, without a mention (MTX-4).
//!
//! A room named by alias is looked for before the first message is handed over, so that what was said
//! while the bot was away counts as well. The wait is bounded; what is not found then is looked for beside
//! the sync loop, however long that takes.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use futures_util::future::join_all;
use matrix_sdk::{
    Client,
    config::RequestConfig,
    ruma::{OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, api::client::alias::get_alias},
};
use tracing::{info, warn};

use super::{
    MatrixSurface,
    failure::{Backoff, Failure},
    sync::LOOK_UP_PATIENCE,
};

/// How often an alias is asked for before messages go on without it.
const ATTEMPTS: usize = 3;

/// The ambient rooms that are known by id.
#[derive(Debug, Default)]
pub(super) struct Ambient(Mutex<HashSet<OwnedRoomId>>);

impl Ambient {
    /// Those of the configured rooms that are named by id.
    pub(super) fn named(rooms: &[String]) -> Self {
        Self(Mutex::new(rooms.iter().filter_map(|room| RoomId::parse(room).ok()).collect()))
    }

    /// Whether every message in this room is for the bot.
    pub(super) fn contains(&self, room: &RoomId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(room)
    }

    fn insert(&self, room: OwnedRoomId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(room);
    }
}

impl MatrixSurface {
    /// Finds the ambient rooms that are named by alias. The only error is a session that the homeserver
    /// does not know.
    pub(super) async fn find_ambient(&self, client: &Client) -> Result<(), Failure> {
        let aliases = self.settings.ambient.iter().filter_map(|room| RoomAliasId::parse(room).ok());
        let found = join_all(aliases.map(|alias| async {
            let found = find(client, &alias).await;
            (alias, found)
        }));
        for (alias, found) in found.await {
            match found {
                Ok(room) => self.ambient.insert(room),
                Err(failure @ Failure::UnknownToken { .. }) => return Err(failure),
                Err(failure) => {
                    warn!(%alias, "an ambient room is not found yet: {}", failure.reason());
                    self.go_on_looking(alias);
                }
            }
        }
        Ok(())
    }

    fn go_on_looking(&self, alias: OwnedRoomAliasId) {
        let Some(surface) = self.this.upgrade() else { return };
        self.tasks.spawn(async move {
            let looking = async {
                let mut backoff = Backoff::new();
                loop {
                    backoff.wait(None).await;
                    if let Ok(room) = ask(&surface.client(), &alias).await {
                        info!(%alias, %room, "an ambient room is found");
                        return surface.ambient.insert(room);
                    }
                }
            };
            surface.shutdown.run_until_cancelled(looking).await;
        });
    }
}

/// The room of an alias, as the homeserver knows it; where it cannot say, as a room calls itself.
async fn find(client: &Client, alias: &RoomAliasId) -> Result<OwnedRoomId, Failure> {
    let mut backoff = Backoff::new();
    let mut attempt = 1;
    loop {
        match ask(client, alias).await {
            Err(failure @ (Failure::Transient { .. } | Failure::Local { .. })) if attempt < ATTEMPTS => {
                attempt += 1;
                backoff.wait(failure.retry_after()).await;
            }
            Err(failure @ (Failure::Transient { .. } | Failure::Local { .. })) => {
                return client
                    .joined_rooms()
                    .iter()
                    .find(|room| {
                        room.canonical_alias().is_some_and(|own| own == alias)
                            || room.alt_aliases().iter().any(|own| own == alias)
                    })
                    .map(|room| room.room_id().to_owned())
                    .ok_or(failure);
            }
            settled => return settled,
        }
    }
}

async fn ask(client: &Client, alias: &RoomAliasId) -> Result<OwnedRoomId, Failure> {
    let config = RequestConfig::new().disable_retry().timeout(LOOK_UP_PATIENCE);
    let request = get_alias::v3::Request::new(alias.to_owned());
    Ok(client.send(request).with_request_config(config).await?.room_id)
}
