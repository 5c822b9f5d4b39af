//! Looking for a message of ours in a room: the homeserver forgets transaction ids, the room does not.

use jiff::Timestamp;
use matrix_sdk::{Room as SdkRoom, deserialized_responses::TimelineEvent};
use serde::Deserialize;

use super::{
    MatrixSurface, Room, SendError,
    failure::Failure,
    send::send_error,
    sync::{earlier, own},
    walk::{is_older, page},
};

/// What a message of ours may be sent as.
const TYPES: [&str; 2] = ["m.room.message", "m.room.encrypted"];

impl MatrixSurface {
    /// The event that was sent under this transaction at `since` or later, the edits of others left aside.
    pub(super) async fn find_sent(
        &self,
        room: &Room,
        transaction: &str,
        since: Timestamp,
    ) -> Result<Option<String>, SendError> {
        // An earlier try may have been made before the room was replaced by another.
        for there in self.rooms_of(room)? {
            if let Some(found) = find_in(&there, transaction, earlier(since)).await.map_err(send_error)? {
                // It is edited, or taken out, where it stands.
                self.remember(&there, &found, &own(&there).await);
                return Ok(found.event_id().map(|id| id.to_string()));
            }
        }
        Ok(None)
    }
}

async fn find_in(room: &SdkRoom, transaction: &str, since: Timestamp) -> Result<Option<TimelineEvent>, Failure> {
    let us = room.own_user_id();
    let mut from: Option<String> = None;
    loop {
        let page = page(room, from.as_deref(), None, &TYPES, Some(vec![us.to_owned()])).await?;
        // Of ours alone: anybody else's may bear any time.
        let ours = || page.chunk.iter().filter(|event| event.sender().is_some_and(|sender| sender == us));
        if let Some(found) = ours().find(|event| was_sent_under(event, transaction)) {
            return Ok(Some(found.clone()));
        }
        let older = ours().any(|event| is_older(event, since));
        match page.end {
            Some(end) if !older && from.as_ref() != Some(&end) => from = Some(end),
            _ => return Ok(None),
        }
    }
}

/// The parts of an event that say under which transaction it was sent.
#[derive(Deserialize)]
struct Sent {
    content: Content,
    #[serde(default)]
    unsigned: Unsigned,
}

#[derive(Deserialize)]
struct Content {
    /// Lost when the event was taken back.
    #[serde(rename = "dev.musher")]
    musher: Option<Musher>,
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Relation>,
}

/// What the homeserver adds, also to what was taken back.
#[derive(Default, Deserialize)]
struct Unsigned {
    /// As long as it knows it, and to the session that has sent the event.
    transaction_id: Option<String>,
}

#[derive(Deserialize)]
struct Musher {
    transaction: String,
}

#[derive(Deserialize)]
struct Relation {
    rel_type: Option<String>,
}

fn was_sent_under(event: &TimelineEvent, transaction: &str) -> bool {
    let Ok(Sent { content, unsigned }) = serde_json::from_str::<Sent>(event.raw().json().get()) else { return false };
    let edit = content.relates_to.and_then(|relation| relation.rel_type).is_some_and(|kind| kind == "m.replace");
    let under = [content.musher.map(|musher| musher.transaction), unsigned.transaction_id];
    !edit && under.into_iter().flatten().any(|under| under == transaction)
}
