//! The sign that an answer is being written: shown at once, kept alive, and ended for certain.
//!
//! One task per room that shows it. The task alone speaks of typing for its room, so that an end never
//! overtakes the next beginning.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use matrix_sdk::{
    Client,
    config::RequestConfig,
    ruma::{
        OwnedRoomId, RoomId,
        api::client::typing::create_typing_event::v3::{Request, Typing as State, TypingInfo},
    },
};
use tokio::sync::watch;
use tracing::debug;

use super::{MatrixSurface, Room, lock};

/// How often the sign is renewed.
const RENEW: Duration = Duration::from_secs(3);
/// How long the homeserver shows it after the last renewal: soon over if the gateway dies.
const SHOWN: Duration = Duration::from_secs(8);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The rooms that show it, each with how many still write in it: projects may share a room.
#[derive(Debug, Default)]
pub(super) struct Typing(Mutex<HashMap<OwnedRoomId, watch::Sender<usize>>>);

impl MatrixSurface {
    /// Shows the sign for one more, or for one less; with the last it ends. Returns at once.
    pub(super) fn show_typing(&self, room: &Room, on: bool) {
        let Ok(room_id) = RoomId::parse(&room.id) else { return };
        let mut rooms = lock(&self.typing.0);
        if let Some(wanted) = rooms.get(&room_id) {
            wanted.send_if_modified(|writing| {
                let before = *writing > 0;
                *writing = if on { writing.saturating_add(1) } else { writing.saturating_sub(1) };
                before != (*writing > 0)
            });
        } else if on && !self.shutdown.is_cancelled() {
            let (sender, wanted) = watch::channel(1);
            rooms.insert(room_id.clone(), sender);
            drop(rooms);
            if let Some(surface) = self.this.upgrade() {
                self.tasks.spawn(async move { surface.keep_typing(room_id, wanted).await });
            }
        }
    }

    async fn keep_typing(&self, room: OwnedRoomId, mut wanted: watch::Receiver<usize>) {
        loop {
            if *wanted.borrow_and_update() > 0 && !self.shutdown.is_cancelled() {
                say(&self.client(), &room, true).await;
                tokio::select! {
                    _changed = wanted.changed() => {}
                    () = tokio::time::sleep(RENEW) => {}
                    () = self.shutdown.cancelled() => {}
                }
            } else {
                say(&self.client(), &room, false).await;
                let mut rooms = lock(&self.typing.0);
                // Wanted again meanwhile? Senders change it under this lock.
                if *wanted.borrow() == 0 || self.shutdown.is_cancelled() {
                    rooms.remove(&room);
                    return;
                }
            }
        }
    }
}

async fn say(client: &Client, room: &RoomId, on: bool) {
    let Some(user) = client.user_id() else { return };
    let state = if on { State::Yes(TypingInfo::new(SHOWN)) } else { State::No };
    let request = Request::new(user.to_owned(), room.to_owned(), state);
    let config = RequestConfig::new().disable_retry().timeout(PATIENCE);
    if let Err(error) = client.send(request).with_request_config(config).await {
        debug!(%room, on, error = &error as &dyn std::error::Error, "typing could not be shown");
    }
}
