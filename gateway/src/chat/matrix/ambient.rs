//! Ambient rooms: every message in them is meant for the bot, without a mention (MTX-4).
//!
//! A room named by alias is looked for before the first message is handed over, so that what was said
//! while the bot was away counts as well. The wait is bounded; what is not found then is looked for beside
//! the sync loop, however long that takes. As long as the homeserver cannot say whose an alias is, a room counts as
//! what it calls itself.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use futures_util::future::join_all;
use matrix_sdk::{
    Client, Room as SdkRoom,
    config::RequestConfig,
    ruma::{OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, api::client::alias::get_alias},
};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    MatrixSurface,
    failure::{Backoff, Failure},
    lock,
    sync::LOOK_UP_PATIENCE,
};

/// How often an alias is asked for before messages go on without it.
const ATTEMPTS: usize = 3;
/// How long that may take, whatever waits the homeserver asks for: meanwhile nothing is handed over of any room.
const PATIENCE: Duration = Duration::from_secs(15);

/// The ambient rooms.
#[derive(Debug, Default)]
pub(super) struct Ambient {
    /// Those that are known by id.
    known: Mutex<HashSet<OwnedRoomId>>,
    /// Aliases that the homeserver could not be asked for.
    unanswered: Mutex<HashSet<OwnedRoomAliasId>>,
    /// Aliases that are looked for beside the sync loop.
    sought: Mutex<HashSet<OwnedRoomAliasId>>,
}

impl Ambient {
    /// Those of the configured rooms that are named by id.
    pub(super) fn named(rooms: &[String]) -> Self {
        let known = rooms.iter().filter_map(|room| RoomId::parse(room).ok()).collect();
        Self { known: Mutex::new(known), ..Self::default() }
    }

    /// Whether every message in this room is for the bot.
    pub(super) fn contains(&self, room: &SdkRoom) -> bool {
        if lock(&self.known).contains(room.room_id()) {
            return true;
        }
        let unanswered = lock(&self.unanswered);
        !unanswered.is_empty()
            && room.canonical_alias().into_iter().chain(room.alt_aliases()).any(|own| unanswered.contains(&own))
    }

    /// Takes in what the homeserver says of an alias, or that it does not.
    fn learn(&self, alias: &OwnedRoomAliasId, answer: Result<OwnedRoomId, &Failure>) {
        match answer {
            Ok(room) => {
                lock(&self.known).insert(room);
                lock(&self.unanswered).remove(alias);
            }
            Err(failure) if is_unanswered(failure) => {
                lock(&self.unanswered).insert(alias.clone());
            }
            // It is nobody's, whatever a room calls itself.
            Err(_) => {
                lock(&self.unanswered).remove(alias);
            }
        }
    }
}

/// Whether the homeserver has not said whose an alias is.
fn is_unanswered(failure: &Failure) -> bool {
    matches!(failure, Failure::Transient { .. } | Failure::Local { .. })
}

impl MatrixSurface {
    /// Finds the ambient rooms that are named by alias. The only error is a session that the homeserver
    /// does not know.
    pub(super) async fn find_ambient(&self, client: &Client) -> Result<(), Failure> {
        let found = join_all(self.ambient_aliases().map(|alias| async {
            let no_answer = || Failure::Transient { reason: "no answer in time".to_owned(), retry_after: None };
            let found = timeout(PATIENCE.min(self.patience), find(client, &alias)).await;
            (alias, found.unwrap_or_else(|_| Err(no_answer())))
        }));
        for (alias, found) in found.await {
            match found {
                Ok(room) => self.ambient.learn(&alias, Ok(room)),
                Err(failure @ Failure::UnknownToken { .. }) => return Err(failure),
                Err(failure) => {
                    self.ambient.learn(&alias, Err(&failure));
                    warn!(%alias, "an ambient room is not found yet: {}", failure.reason());
                    self.go_on_looking(alias);
                }
            }
        }
        Ok(())
    }

    /// Looks again for the ambient rooms that are named by alias, now that the bot has come into a room: an alias goes with its
    /// room's people when another room takes its place.
    pub(super) fn find_ambient_again(&self) {
        self.ambient_aliases().for_each(|alias| self.go_on_looking(alias));
    }

    fn ambient_aliases(&self) -> impl Iterator<Item = OwnedRoomAliasId> {
        self.settings.ambient.iter().filter_map(|room| RoomAliasId::parse(room).ok())
    }

    fn go_on_looking(&self, alias: OwnedRoomAliasId) {
        let Some(surface) = self.this.upgrade() else { return };
        if !lock(&self.ambient.sought).insert(alias.clone()) {
            return;
        }
        self.tasks.spawn(async move {
            let looking = async {
                let mut backoff = Backoff::new();
                loop {
                    match ask(&surface.client(), &alias).await {
                        Ok(room) => {
                            info!(%alias, %room, "an ambient room is found");
                            return surface.ambient.learn(&alias, Ok(room));
                        }
                        // The session is made anew beside.
                        Err(Failure::UnknownToken { .. }) => {}
                        Err(failure) => surface.ambient.learn(&alias, Err(&failure)),
                    }
                    backoff.wait(None).await;
                }
            };
            surface.shutdown.run_until_cancelled(looking).await;
            lock(&surface.ambient.sought).remove(&alias);
        });
    }
}

/// The room of an alias, as the homeserver knows it.
async fn find(client: &Client, alias: &RoomAliasId) -> Result<OwnedRoomId, Failure> {
    let mut backoff = Backoff::new();
    let mut attempt = 1;
    loop {
        match ask(client, alias).await {
            Err(failure) if is_unanswered(&failure) && attempt < ATTEMPTS => {
                attempt += 1;
                backoff.wait(failure.retry_after()).await;
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
