//! Rooms that were replaced by another, as homeservers do it when a room is upgraded: nobody may write in the old one any more, and
//! what is on its way there goes to where its people have gone on.
//!
//! Both rooms must say so: the old one, whom it is replaced by, which not everybody may write there; and the new one, whom
//! it replaces.

use std::time::Duration;

use matrix_sdk::{
    Room as SdkRoom, RoomState,
    ruma::{EventId, RoomId},
};
use tokio::time::Instant;

use super::{
    MatrixSurface, Room, SendError, lock,
    send::{refused, transient},
};

/// How many rooms are gone through, one in the place of the other.
const MOST: usize = 16;
/// How long what is on its way to a room waits for the bot to come where its people have gone on, from the first that does.
const PATIENCE: Duration = Duration::from_hours(24);

impl MatrixSurface {
    /// Those that the bot is in of a room and of what has taken its place, the room itself first; there is one at least.
    pub(super) fn rooms_of(&self, room: &Room) -> Result<Vec<SdkRoom>, SendError> {
        let Ok(room_id) = RoomId::parse(&room.id) else {
            return Err(refused(format!("`{}` is not a room id", room.id)));
        };
        // Before, the store may not know that the bot is in a room, or that the room has become encrypted.
        let Some(client) = self.knowing_client() else {
            return Err(transient("the first sync is not done".to_owned(), None));
        };
        let replaced_by = |room: &SdkRoom| {
            let next = client.get_room(&room.successor_room()?.room_id)?;
            next.predecessor_room().is_some_and(|before| before.room_id == room.room_id()).then_some(next)
        };
        let all = std::iter::successors(client.get_room(&room_id), replaced_by).take(MOST);
        let rooms: Vec<_> = all.filter(|room| room.state() == RoomState::Joined).collect();
        if rooms.is_empty() {
            return Err(refused("the bot is not in that room".to_owned()));
        }
        Ok(rooms)
    }

    /// In which of these a message stands: in the first, if that is not known.
    pub(super) fn where_stands<'r>(&self, rooms: &'r [SdkRoom], event_id: &EventId) -> &'r SdkRoom {
        let seen = lock(&self.seen);
        let stands = |room: &&SdkRoom| seen.get(room.room_id().to_owned(), event_id.to_owned()).is_some();
        rooms.iter().find(stands).unwrap_or(&rooms[0])
    }

    /// Whether the bot may still be invited to `next`, which has taken the place of a room where it may not write.
    pub(super) fn may_follow(&self, room: &SdkRoom, next: &RoomId) -> bool {
        if self.client().get_room(next).is_some_and(|next| next.state() == RoomState::Joined) {
            return false;
        }
        let mut left_behind = lock(&self.left_behind);
        left_behind.entry(room.room_id().to_owned()).or_insert_with(Instant::now).elapsed() < PATIENCE
    }
}
