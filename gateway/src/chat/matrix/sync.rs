//! Receiving: a sync loop whose position moves only past what the inbox has taken.
//!
//! matrix-sdk stores its own sync token before anybody has seen the events. So the position is kept
//! apart, and written after the inbox has taken everything up to it.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use matrix_sdk::{
    Client, Room as SdkRoom, RoomMemberships,
    config::{RequestConfig, SyncSettings, SyncToken},
    deserialized_responses::TimelineEvent,
    room::{Messages, MessagesOptions},
    ruma::{
        EventId, OwnedEventId, OwnedRoomId, UInt,
        api::client::{
            filter::{Filter as PresenceFilter, FilterDefinition, RoomEventFilter},
            sync::sync_events::v3::Filter,
        },
        assign,
    },
    sync::{JoinedRoomUpdate, SyncResponse},
};
use tracing::{debug, error, warn};

use super::{
    MatrixSurface, SurfaceKind, encrypted,
    failure::{Backoff, Failure},
    intake::{self, Own, Reading, Said},
    lock,
    login::{self, Position},
    seen::{Known, Memory},
};
use crate::chat::{Inbound, InboxError, Person, Room};

/// How long the homeserver may hold a sync back when nothing happens.
const LONG_POLL: Duration = Duration::from_secs(30);
/// How long is waited for a message that somebody replied to, or for the room of an alias.
pub(super) const LOOK_UP_PATIENCE: Duration = Duration::from_secs(5);
/// How many events a room gives in one sync; what is missing before them is walked back to.
const TIMELINE_LIMIT: u32 = 50;
/// How many events a page of a walk has.
const PAGE: u32 = 100;
/// How many pages a walk has at most, per room.
const MAX_PAGES: usize = 50;
/// How many events are remembered as handed over before the position is stored past them.
const MAX_HANDED: usize = 50_000;
/// What a walk looks at.
const WALKED_TYPES: [&str; 3] = ["m.room.message", "m.room.encrypted", "m.room.member"];

/// Why receiving cannot go on.
enum Halt {
    /// The inbox takes nothing any more.
    Stopping,
    /// Something failed; what to do about it.
    Failed(Failure),
}

/// What receiving knows beyond one client.
struct Receiving {
    backoff: Backoff,
    /// What the inbox took after the stored position: it must not get it again when a sync is repeated.
    handed: HashSet<(OwnedRoomId, OwnedEventId)>,
    /// Whether the ambient rooms were looked for.
    ambient_sought: bool,
}

impl MatrixSurface {
    /// Receives until the shutdown, then waits for everything that the surface runs.
    pub(super) async fn run(self: Arc<Self>) {
        self.shutdown.run_until_cancelled(Box::pin(self.receive())).await;
        self.trouble.send_replace(Some("the gateway is stopping".to_owned()));
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn receive(&self) {
        let mut receiving = Receiving { backoff: Backoff::new(), handed: HashSet::new(), ambient_sought: false };
        loop {
            let client = self.client();
            let failure = match self.receive_from(&client, &mut receiving).await {
                Halt::Stopping => return,
                Halt::Failed(failure) => failure,
            };
            self.report(&failure);
            let backoff = &mut receiving.backoff;
            let reopened = match failure {
                Failure::UnknownToken { soft } => {
                    // A homeserver that forgets fresh sessions must not be given a device per round.
                    if !self.synced.load(Ordering::Acquire) {
                        backoff.wait(None).await;
                    }
                    login::renew(&self.settings, soft).await
                }
                // Its store may be further than what was seen of it; a fresh start puts it back.
                Failure::Local { .. } => {
                    backoff.wait(None).await;
                    login::connect(&self.settings).await
                }
                Failure::Transient { .. } | Failure::Permanent { .. } => {
                    backoff.wait(failure.retry_after()).await;
                    continue;
                }
            };
            match reopened {
                Ok(client) => {
                    self.synced.store(false, Ordering::Release);
                    self.client.send_replace(client);
                }
                Err(error) => {
                    error!("the bot is not logged in: {error}. {}", error.hint());
                    self.trouble.send_replace(Some(error.to_string()));
                    backoff.wait(error.retry_after()).await;
                }
            }
        }
    }

    /// Syncs as long as it works.
    async fn receive_from(&self, client: &Client, receiving: &mut Receiving) -> Halt {
        let mut position = match login::position(client).await {
            Ok(position) => position,
            Err(failure) => return Halt::Failed(failure),
        };
        loop {
            let first = !self.synced.load(Ordering::Acquire);
            let since = position.as_ref().filter(|position| !position.store_is_new);
            let settings = SyncSettings::new()
                .filter(filter())
                .timeout(if first { Duration::ZERO } else { LONG_POLL })
                .token(since.map_or(SyncToken::NoToken, |position| SyncToken::Specific(position.token.clone())));
            let response = match client.sync_once(settings).await {
                Ok(response) => response,
                Err(error) => return Halt::Failed(Failure::from(error)),
            };
            // From here on nothing may lead to a second sync from the same position: the SDK would drop
            // an answer that it has seen. What fails is tried again in place.
            if !receiving.ambient_sought {
                if let Err(failure) = self.find_ambient(client).await {
                    return Halt::Failed(failure);
                }
                receiving.ambient_sought = true;
            }
            if let Err(halt) = self.take(client, position.as_ref(), &response, &mut receiving.handed).await {
                return halt;
            }
            let reached = Position { token: response.next_batch, store_is_new: false };
            if position.as_ref() != Some(&reached) {
                self.store_position(client, &reached).await;
                position = Some(reached);
            }
            receiving.handed.clear();
            receiving.backoff = Backoff::new();
            self.trouble.send_replace(None);
            self.synced.store(true, Ordering::Release);
            if first {
                self.join_configured();
                client.invited_rooms().iter().for_each(|room| self.answer_invite(room.room_id().to_owned()));
            }
            response.rooms.invited.into_keys().for_each(|room| self.answer_invite(room));
        }
    }

    /// Stores the position, however long that takes: a sync from the old one would give everything again.
    async fn store_position(&self, client: &Client, reached: &Position) {
        let mut backoff = Backoff::new();
        while let Err(failure) = login::set_position(client, reached).await {
            self.report(&failure);
            backoff.wait(None).await;
        }
    }

    /// Hands everything that was said since `since` to the inbox, except what is in `handed` already.
    async fn take(
        &self,
        client: &Client,
        since: Option<&Position>,
        response: &SyncResponse,
        handed: &mut HashSet<(OwnedRoomId, OwnedEventId)>,
    ) -> Result<(), Halt> {
        for (room_id, update) in &response.rooms.joined {
            let Some(room) = client.get_room(room_id) else { continue };
            let names = own_names(&room).await;
            let own = Own { user: room.own_user_id(), names };
            // The very first sync: what was said before the bot came is history.
            let Some(since) = since else {
                for event in &update.timeline.events {
                    self.understand(&room, event, &own);
                }
                continue;
            };
            for event in self.events_since(&room, since, update, &response.next_batch, &own).await? {
                if encrypted::concerns(&room, &event) {
                    self.refuse_encrypted(&room, &event, &own);
                    continue;
                }
                let Some((event_id, said)) = self.understand(&room, &event, &own) else { continue };
                // Before anything is fetched for it: nobody holds up people who may speak (invariant 12).
                if !self.listens_to(said.sender.as_str()) {
                    debug!(room = %room_id, event = %event_id, sender = %said.sender, "not listened to");
                    continue;
                }
                let key = (room_id.clone(), event_id);
                if handed.contains(&key) {
                    continue;
                }
                let message = self.inbound(&room, &key.1, said).await;
                self.hand_over(message).await?;
                if handed.len() < MAX_HANDED {
                    handed.insert(key);
                }
            }
        }
        Ok(())
    }

    /// The events of a room after `since`, oldest first, none from before the bot came into the room.
    async fn events_since(
        &self,
        room: &SdkRoom,
        since: &Position,
        update: &JoinedRoomUpdate,
        next_batch: &str,
        own: &Own<'_>,
    ) -> Result<Vec<TimelineEvent>, Halt> {
        if since.store_is_new {
            return self.walk_back(room, next_batch, &since.token, own).await;
        }
        let timeline = &update.timeline;
        let joined = timeline.events.iter().rposition(|event| is_own_join(event, own));
        let recent = timeline.events[joined.map_or(0, |at| at + 1)..].to_vec();
        match &timeline.prev_batch {
            Some(gap) if timeline.limited && joined.is_none() => {
                let mut events = self.walk_back(room, gap, &since.token, own).await?;
                events.extend(recent);
                Ok(events)
            }
            _ => Ok(recent),
        }
    }

    /// Reads a room's history from `from` back to `to`, or to where the bot came into the room.
    async fn walk_back(&self, room: &SdkRoom, from: &str, to: &str, own: &Own<'_>) -> Result<Vec<TimelineEvent>, Halt> {
        let mut newest_first = Vec::new();
        let mut from = from.to_owned();
        for _ in 0..MAX_PAGES {
            let Some(page) = self.page_back(room, &from, to).await? else { break };
            let joined = page.chunk.iter().position(|event| is_own_join(event, own));
            newest_first.extend(page.chunk.into_iter().take(joined.unwrap_or(usize::MAX)));
            match page.end {
                Some(end) if joined.is_none() => from = end,
                _ => {
                    newest_first.reverse();
                    return Ok(newest_first);
                }
            }
        }
        warn!(room = %room.room_id(), read = newest_first.len(), "older messages were not read: the gap is too long or closed to the bot");
        newest_first.reverse();
        Ok(newest_first)
    }

    /// A page of a walk; `None` when the homeserver will never give it.
    async fn page_back(&self, room: &SdkRoom, from: &str, to: &str) -> Result<Option<Messages>, Halt> {
        let mut backoff = Backoff::new();
        loop {
            let filter = assign!(RoomEventFilter::with_lazy_loading(), { types: Some(WALKED_TYPES.map(str::to_owned).to_vec()) });
            let options = assign!(MessagesOptions::backward().from(from), { to: Some(to.to_owned()), limit: UInt::from(PAGE), filter });
            let failure = match room.messages(options).await {
                Ok(page) => return Ok(Some(page)),
                Err(error) => Failure::from(error),
            };
            self.report(&failure);
            match failure {
                Failure::Permanent { .. } => return Ok(None),
                Failure::UnknownToken { .. } => return Err(Halt::Failed(failure)),
                Failure::Transient { .. } | Failure::Local { .. } => backoff.wait(failure.retry_after()).await,
            }
        }
    }

    /// Reads an event, remembers it, and gives what was said to us by it.
    fn understand(&self, room: &SdkRoom, event: &TimelineEvent, own: &Own<'_>) -> Option<(OwnedEventId, Said)> {
        if encrypted::concerns(room, event) {
            return None;
        }
        let id = event.event_id();
        let parsed = event
            .raw()
            .deserialize()
            .inspect_err(|error| debug!(room = %room.room_id(), event = ?id, %error, "ignoring a malformed event"))
            .ok()?;
        match intake::read(parsed, own) {
            Reading::Message { event_id, known, said } => {
                lock(&self.seen).insert(room.room_id().to_owned(), event_id.clone(), Memory::Said(known));
                Some((event_id, said?))
            }
            Reading::Nothing(why) => {
                debug!(room = %room.room_id(), event = ?id, why, "ignoring an event");
                None
            }
            Reading::Joined => None,
        }
    }

    async fn inbound(&self, room: &SdkRoom, event_id: &EventId, said: Said) -> Inbound {
        let replied = match said.replies_to {
            Some(id) => self.look_up(room, id).await,
            None => None,
        };
        let addressed = said.mentions_us
            || replied.as_ref().is_some_and(|replied| replied.ours)
            || self.ambient.contains(room.room_id())
            || is_direct(room).await;
        Inbound {
            room: Room { surface: SurfaceKind::Matrix, id: room.room_id().to_string() },
            event_id: event_id.to_string(),
            sender: Person { surface: SurfaceKind::Matrix, id: said.sender.to_string() },
            // A homeserver may write any number there.
            at: Timestamp::from_millisecond(said.at_ms).unwrap_or(Timestamp::UNIX_EPOCH),
            text: said.text,
            quoted: replied.map(|replied| replied.text),
            thread: said.thread.map(|root| root.to_string()),
            addressed,
            pending: None,
        }
    }

    /// An earlier message of the room, asked for once where it is not known.
    async fn look_up(&self, room: &SdkRoom, event_id: OwnedEventId) -> Option<Known> {
        let room_id = room.room_id().to_owned();
        let known = lock(&self.seen).get(room_id.clone(), event_id.clone());
        match known {
            Some(Memory::Said(known)) => return Some(known),
            Some(Memory::InVain) => return None,
            None => {}
        }
        let config = RequestConfig::new().disable_retry().timeout(LOOK_UP_PATIENCE);
        let found = match room.event(&event_id, Some(config)).await {
            Ok(event) => {
                let own = Own { user: room.own_user_id(), names: Vec::new() };
                match event.raw().deserialize().map(|event| intake::read(event, &own)) {
                    Ok(Reading::Message { known, .. }) => Memory::Said(known),
                    _ => Memory::InVain,
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                debug!(room = %room_id, event = %event_id, "a message that was replied to is not to be had: {}", failure.reason());
                if !matches!(failure, Failure::Permanent { .. }) {
                    return None;
                }
                Memory::InVain
            }
        };
        lock(&self.seen).insert(room_id, event_id, found.clone());
        match found {
            Memory::Said(known) => Some(known),
            Memory::InVain => None,
        }
    }

    /// Gives the message to the inbox until it is taken.
    async fn hand_over(&self, message: Inbound) -> Result<(), Halt> {
        let mut backoff = Backoff::new();
        loop {
            match self.inbox.accept(message.clone()).await {
                Ok(()) => return Ok(()),
                Err(InboxError::Stopping) => return Err(Halt::Stopping),
                Err(error @ InboxError::Journal(_)) => {
                    error!(room = %message.room, event = message.event_id, error = &error as &dyn std::error::Error, "a message waits before the inbox");
                    self.trouble.send_replace(Some(error.to_string()));
                    backoff.wait(None).await;
                }
            }
        }
    }

    fn report(&self, failure: &Failure) {
        warn!("receiving failed: {}", failure.reason());
        self.trouble.send_replace(Some(failure.reason().to_owned()));
    }
}

/// Little more than what is read: no presence, no receipts, members as they speak.
fn filter() -> Filter {
    let mut filter = FilterDefinition::with_lazy_loading();
    filter.room.timeline.limit = Some(UInt::from(TIMELINE_LIMIT));
    filter.room.ephemeral = RoomEventFilter::ignore_all();
    filter.presence = PresenceFilter::ignore_all();
    Filter::FilterDefinition(filter)
}

fn is_own_join(event: &TimelineEvent, own: &Own<'_>) -> bool {
    event.raw().deserialize().is_ok_and(|event| matches!(intake::read(event, own), Reading::Joined))
}

/// The name under which the room shows the bot.
async fn own_names(room: &SdkRoom) -> Vec<String> {
    let member = room.get_member_no_sync(room.own_user_id()).await;
    member.ok().flatten().and_then(|member| member.display_name().map(str::to_owned)).into_iter().collect()
}

/// Whether the room is a conversation of two: marked so, or by its members.
async fn is_direct(room: &SdkRoom) -> bool {
    if room.is_direct().await.unwrap_or(false) {
        return true;
    }
    match room.active_members_count() {
        // The homeserver gave no summary.
        0 => room.members(RoomMemberships::ACTIVE).await.is_ok_and(|members| members.len() == 2),
        count => count == 2,
    }
}
