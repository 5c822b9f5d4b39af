//! Rooms that are set aside while the homeserver does not give their history, so that they hold no other room up.
//!
//! The sync loop waits for a room's history a bounded time. What it did not get by then is *parked*: from where on the room is
//! not heard is stored before the position moves past it, and from then on the sync loop leaves the room out. A task of its own
//! walks it back, as often and as long as that takes, from where the sync loop has got to. When nothing was left out since,
//! the room is the sync loop's again. So its events come in their order and without a gap, over restarts too; what was handed over
//! by then may come again, and the inbox knows it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use matrix_sdk::{
    Client, RoomState,
    ruma::{OwnedRoomId, RoomId},
};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    MatrixSurface,
    answered::Answered,
    failure::{Backoff, Failure},
    handover::Handed,
    lock, login,
    sync::{Halt, Hearing, ROOMS_AT_ONCE, Whose, own},
    walk::Until,
};

/// From where on rooms are not heard, as it is stored beside the position.
pub(super) type Places = BTreeMap<OwnedRoomId, Until>;

/// The rooms that are set aside.
#[derive(Debug)]
pub(super) struct Parked {
    rooms: Mutex<HashMap<OwnedRoomId, Place>>,
    /// What the client's store has of them; nothing before it was looked at. Held while it is written.
    stored: AsyncMutex<Option<Places>>,
    /// Turns of those that are walked back.
    turns: Semaphore,
}

impl Default for Parked {
    fn default() -> Self {
        Self { rooms: Mutex::default(), stored: AsyncMutex::default(), turns: Semaphore::new(ROOMS_AT_ONCE) }
    }
}

/// What is known of one of them.
#[derive(Debug)]
struct Place {
    /// Up to there the inbox has everything of the room.
    until: Until,
    /// Up to there the sync loop has left the room out; nothing before it has got anywhere since the room is known from an earlier
    /// life.
    left_out: Option<String>,
    /// Whether an earlier life has set it aside.
    restored: bool,
    /// Whether its task runs.
    in_hand: bool,
    /// What its task waits for.
    trouble: String,
    /// Cancelled when the room is set aside no more: then nothing waits for it.
    halted: CancellationToken,
}

impl Parked {
    /// Sets a room aside that is not heard from `until` to `next_batch`.
    pub(super) fn park(&self, room: &RoomId, until: Until, next_batch: &str, trouble: &str) {
        warn!(%room, "the room is set aside: {trouble}");
        let place = Place::new(until, Some(next_batch.to_owned()), false, trouble.to_owned());
        lock(&self.rooms).insert(room.to_owned(), place);
    }

    /// Whether the sync loop is to leave out what a sync up to `next_batch` tells of the room.
    pub(super) fn leaves_out(&self, room: &RoomId, next_batch: &str) -> bool {
        let mut rooms = lock(&self.rooms);
        let Some(place) = rooms.get_mut(room) else { return false };
        place.left_out = Some(next_batch.to_owned());
        true
    }

    /// What is wrong, if a room is set aside.
    pub(super) fn trouble(&self) -> Option<String> {
        let rooms = lock(&self.rooms);
        let first = rooms.iter().min_by_key(|(room, _)| *room).map(|(_, place)| &place.trouble)?;
        let others = match rooms.len() - 1 {
            0 => String::new(),
            1 => ", nor in one other room".to_owned(),
            others => format!(", nor in {others} other rooms"),
        };
        Some(format!("{first}; until that is over nothing is heard that is said there{others}"))
    }

    /// Notes what the task of a room waits for.
    pub(super) fn explain(&self, room: &RoomId, trouble: String) {
        if let Some(place) = lock(&self.rooms).get_mut(room) {
            place.trouble = trouble;
        }
    }

    /// The rooms whose tasks are to begin, now that the sync loop has got to `reached`.
    fn begin(&self, reached: &str) -> Vec<Begun> {
        let mut begun = Vec::new();
        for (room, place) in lock(&self.rooms).iter_mut().filter(|(_, place)| !place.in_hand) {
            place.in_hand = true;
            place.left_out.get_or_insert_with(|| reached.to_owned());
            begun.push(Begun { room: room.clone(), restored: place.restored, halted: place.halted.clone() });
        }
        begun
    }

    /// From where to where the room is to be walked back.
    fn gap(&self, room: &RoomId) -> Option<(String, Until)> {
        let rooms = lock(&self.rooms);
        let place = rooms.get(room)?;
        Some((place.left_out.clone()?, place.until.clone()))
    }

    /// Takes in that the inbox has everything of the room up to `from`. Whether nothing was left out since: then the room is not
    /// set aside any more.
    fn heard(&self, room: &RoomId, from: String) -> bool {
        let mut rooms = lock(&self.rooms);
        let Some(place) = rooms.get_mut(room) else { return true };
        if place.left_out.as_ref() == Some(&from) {
            rooms.remove(room);
            return true;
        }
        place.until = Until::Token(from);
        false
    }

    /// The bot has left the room.
    pub(super) fn forget(&self, room: &RoomId) {
        if let Some(place) = lock(&self.rooms).remove(room) {
            info!(%room, "the bot has left a room that was set aside");
            place.halted.cancel();
        }
    }

    fn places(&self) -> Places {
        lock(&self.rooms).iter().map(|(room, place)| (room.clone(), place.until.clone())).collect()
    }

    fn restore(&self, places: &Places) {
        let restored = |(room, until): (&OwnedRoomId, &Until)| {
            let trouble = format!("the history of {room} is not there yet");
            (room.clone(), Place::new(until.clone(), None, true, trouble))
        };
        lock(&self.rooms).extend(places.iter().map(restored));
    }
}

impl Place {
    fn new(until: Until, left_out: Option<String>, restored: bool, trouble: String) -> Self {
        Self { until, left_out, restored, in_hand: false, trouble, halted: CancellationToken::new() }
    }
}

/// A room whose task begins.
#[derive(Debug)]
struct Begun {
    room: OwnedRoomId,
    /// Whether an earlier life has set it aside: the homeserver may give its history at once now.
    restored: bool,
    /// Ends the task.
    halted: CancellationToken,
}

impl MatrixSurface {
    /// Takes over what an earlier life has set aside. With a later client of this life: learns what its store has of it.
    pub(super) async fn open_parked(&self, client: &Client) -> Result<(), Failure> {
        let mut stored = self.parked.stored.lock().await;
        let places = login::parked(client).await?;
        if stored.is_none() {
            self.parked.restore(&places);
        }
        *stored = Some(places);
        Ok(())
    }

    /// Stores which rooms are set aside, however long that takes.
    pub(super) async fn store_parked(&self) {
        let mut stored = self.parked.stored.lock().await;
        let mut backoff = Backoff::new();
        loop {
            let places = self.parked.places();
            if stored.as_ref() == Some(&places) {
                return;
            }
            match login::set_parked(&self.client(), &places).await {
                Ok(()) => {
                    *stored = Some(places);
                    return;
                }
                Err(failure) => {
                    self.report(&failure);
                    backoff.wait(None).await;
                }
            }
        }
    }

    /// Has every room that is set aside heard by a task, now that the sync loop has got to `reached`.
    pub(super) fn hear_parked(&self, reached: &str) {
        for begun in self.parked.begin(reached) {
            let Some(surface) = self.this.upgrade() else { return };
            self.tasks.spawn(async move {
                surface.shutdown.run_until_cancelled(Box::pin(surface.hear_out(begun))).await;
            });
        }
    }

    /// Hands over what was left out of a room until nothing is left out any more.
    async fn hear_out(&self, Begun { room, restored, halted }: Begun) {
        let (room, handed) = (&*room, Handed::default());
        let _in_hand = InHand { parked: &self.parked, room, halted: halted.clone() };
        let mut hearing = Hearing { handed: &handed, halted, whose: Whose::Parked { room, told: false } };
        let mut backoff = Backoff::new();
        let mut is_to_be_told = !restored;
        while let Some((from, until)) = self.parked.gap(room) {
            if is_to_be_told {
                if self.tell_awaited(room, until.name(), &hearing).await.is_err() {
                    return;
                }
                hearing.whose = Whose::Parked { room, told: true };
                is_to_be_told = false;
            }
            match self.hear_gap(room, from.clone(), until, &hearing).await {
                Ok(Heard::All) => {
                    let over = self.parked.heard(room, from);
                    self.store_parked().await;
                    handed.clear();
                    backoff = Backoff::new();
                    if over {
                        info!(%room, "the room is heard again");
                        return;
                    }
                }
                Ok(Heard::NotThere) => {
                    self.parked.forget(room);
                    return self.store_parked().await;
                }
                Ok(Heard::NotYet) => backoff.wait(None).await,
                Err(Halt::Stopping | Halt::Elsewhere) => return,
                // A session that the homeserver does not know is made anew by the sync loop.
                Err(Halt::Failed(failure)) => {
                    is_to_be_told = matches!(hearing.whose, Whose::Parked { told: false, .. })
                        && !matches!(failure, Failure::UnknownToken { .. });
                    self.parked.explain(room, format!("the history of {room}: {}", failure.reason()));
                    backoff.wait(failure.retry_after()).await;
                }
            }
        }
    }

    async fn hear_gap(&self, room: &RoomId, from: String, until: Until, hearing: &Hearing<'_>) -> Result<Heard, Halt> {
        let Some(client) = self.knowing_client() else { return Ok(Heard::NotYet) };
        let Some(room) = client.get_room(room).filter(|room| room.state() == RoomState::Joined) else {
            return Ok(Heard::NotThere);
        };
        let mut answered = Answered::default();
        let own = own(&room).await;
        // As many at a time as of a sync: each may hold pages of history.
        let _turn = self.parked.turns.acquire().await;
        Box::pin(self.take_gap(&room, from, until, &own, &mut answered, hearing)).await?;
        Ok(Heard::All)
    }
}

/// A task sees to the room. However it ends, the next sync begins another if the room is still set aside.
struct InHand<'a> {
    parked: &'a Parked,
    room: &'a RoomId,
    halted: CancellationToken,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        // A room that was left and set aside anew has another task.
        if !self.halted.is_cancelled()
            && let Some(place) = lock(&self.parked.rooms).get_mut(self.room)
        {
            place.in_hand = false;
        }
    }
}

/// What has become of a try to hear a room that is set aside.
enum Heard {
    /// It is heard up to where the walk began.
    All,
    /// The client does not know its rooms yet.
    NotYet,
    /// The bot has left it.
    NotThere,
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::room_id;

    use super::*;

    #[test]
    fn a_room_is_set_aside_until_nothing_was_left_out_since_it_was_heard() {
        let (room, other) = (room_id!("!room:example.org"), room_id!("!other:example.org"));
        let token = |token: &str| Until::Token(token.to_owned());
        let parked = Parked::default();
        assert!(!parked.leaves_out(room, "s2"));
        assert_eq!(parked.trouble(), None);
        parked.park(room, token("s1"), "s2", "the history of !room:example.org: no answer in time");
        assert!(!parked.leaves_out(other, "s3"), "the others are heard");
        let begun = parked.begin("s3");
        assert_eq!(begun.iter().map(|begun| (&*begun.room, begun.restored)).collect::<Vec<_>>(), [(room, false)]);
        assert_eq!(parked.begin("s3").len(), 0, "one task hears it");
        assert_eq!(parked.gap(room), Some(("s2".to_owned(), token("s1"))));

        // While it was walked back, more was said.
        assert!(parked.leaves_out(room, "s4"));
        assert!(!parked.heard(room, "s2".to_owned()));
        assert_eq!(parked.gap(room), Some(("s4".to_owned(), token("s2"))));
        assert_eq!(parked.places(), Places::from([(room.to_owned(), token("s2"))]));
        assert!(parked.heard(room, "s4".to_owned()));
        assert_eq!((parked.gap(room), parked.trouble()), (None, None));
        assert!(!parked.leaves_out(room, "s5"));
    }

    #[test]
    fn what_an_earlier_life_has_set_aside_is_left_out_and_walked_back_from_where_the_first_sync_gets_to() {
        let (room, other) = (room_id!("!a:example.org"), room_id!("!b:example.org"));
        let places = Places::from([room, other].map(|room| (room.to_owned(), Until::Token("s1".to_owned()))));
        let parked = Parked::default();
        parked.restore(&places);
        assert_eq!(parked.places(), places);
        assert_eq!(parked.gap(room), None, "no sync has got anywhere");
        assert!(parked.leaves_out(room, "s8"));
        let begun = parked.begin("s9");
        assert_eq!(begun.iter().filter(|begun| begun.restored).count(), 2);
        let from = |room| parked.gap(room).map(|(from, _)| from);
        assert_eq!((from(room).as_deref(), from(other).as_deref()), (Some("s8"), Some("s9")));
        assert_eq!(
            parked.trouble().as_deref(),
            Some(
                "the history of !a:example.org is not there yet; until that is over nothing is heard that is said there, \
                 nor in one other room"
            )
        );
        parked.forget(room);
        assert!(!parked.leaves_out(room, "s9"));
        assert!(begun.iter().all(|begun| begun.halted.is_cancelled() == (begun.room == room)), "nothing waits for it");
    }
}
