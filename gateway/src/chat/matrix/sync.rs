//! Receiving: a sync loop whose position moves only past what the inbox has taken (DUR-1).
//!
//! The frontier of every room is one and the same: the stored [`Position`], a token of the homeserver's
//! stream. Up to it the inbox has everything of every room, without a gap. matrix-sdk stores its own token
//! before anybody has seen the events, so ours is kept apart, and written after the inbox has taken
//! everything up to it; at start the SDK's is put back to ours.
//!
//! Between two positions a room's events are complete in the sync, or the sync says that they are not
//! (`limited`): then the room is walked back from where its events begin to the frontier, and handed over
//! from there on. The walk is of any length and never skips: it is tried until the homeserver answers, and
//! when that refuses for good, the inbox is told before the position moves on, and tells the room. A room whose walk takes longer
//! than the others may wait for is set aside before the position moves on ([`super::parked`]), with a frontier of its own.
//!
//! A new device has no store to go on with, but tokens are the homeserver's, not the device's: it walks every room back to the old position. Where the
//! position itself is lost, and the inbox is not, every room is walked back to the time of the newest message
//! that the inbox knows.
//!
//! Walks end where the bot came into the room: what was said before was not said to it (DUR-4). With a state
//! directory that was lost as a whole everything that was said so far is history, also what nobody has
//! answered: that cannot be told from what was answered and forgotten, and silence is the lesser evil (DUR-5). What a directory
//! that was set back has forgotten is fetched again; of that, what the room shows an answer to is left out.

use std::{
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use matrix_sdk::{
    Client, Room as SdkRoom,
    config::{SyncSettings, SyncToken},
    ruma::{
        OwnedRoomId, RoomId, UInt,
        api::client::{
            filter::{Filter as PresenceFilter, FilterDefinition, RoomEventFilter},
            sync::sync_events::v3::Filter,
        },
    },
    sync::{JoinedRoomUpdate, SyncResponse},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    MatrixSurface, SurfaceKind,
    answered::Answered,
    failure::{Backoff, Failure},
    handover::Handed,
    intake::Own,
    login::{self, Position},
    walk::{Until, Walk, is_own_join},
};
use crate::chat::InboxError;
use crate::failpoint;

/// How long the homeserver may hold a sync back when nothing happens.
const LONG_POLL: Duration = Duration::from_secs(30);
/// How long is waited for a message that somebody replied to, or for the room of an alias.
pub(super) const LOOK_UP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a sync waits for what the homeserver does not give of a room: history, members and single events. Long enough for a worker
/// or a proxy to be started anew, and short, for meanwhile nobody is heard in any room, `stop` included.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);
/// How many events a room gives in one sync; what is missing before them is walked back to.
const TIMELINE_LIMIT: u32 = 50;
/// From how many rooms events are handed over at once.
pub(super) const ROOMS_AT_ONCE: usize = 16;
/// How far the clocks of homeservers and of this machine may be apart.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(10);

/// Why receiving cannot go on.
#[derive(Debug)]
pub(super) enum Halt {
    /// The inbox takes nothing any more.
    Stopping,
    /// Something failed; what to do about it.
    Failed(Failure),
    /// Another room has said why.
    Elsewhere,
}

/// What the rooms of one sync have in common.
struct Taking<'a> {
    since: Option<&'a Position>,
    next_batch: &'a str,
    handed: &'a Handed,
    halted: CancellationToken,
}

/// What events are handed over with.
pub(super) struct Hearing<'a> {
    /// What need not be handed over again.
    pub(super) handed: &'a Handed,
    /// Cancelled when a room cannot go on: the others end at the next event.
    pub(super) halted: CancellationToken,
    /// Who waits for it.
    pub(super) whose: Whose<'a>,
}

/// Who waits for what is handed over.
pub(super) enum Whose<'a> {
    /// All rooms, until then: each has its own time from when it begins.
    Sync(Instant),
    /// The room alone, which is set aside.
    Parked {
        /// The room.
        room: &'a RoomId,
        /// Whether its people know that it is not heard; before, its history is asked for once, for they may not need to.
        told: bool,
    },
}

impl Hearing<'_> {
    /// Until when a page of a room's history is waited for, where `patience` is had with it.
    pub(super) fn page_deadline(&self, patience: Duration) -> Instant {
        match self.whose {
            Whose::Sync(deadline) => deadline,
            Whose::Parked { told: false, .. } => Instant::now(),
            // It is asked for again, and others that are set aside have their turn in between.
            Whose::Parked { told: true, .. } => Instant::now() + patience,
        }
    }

    /// Whether others have waited long enough.
    pub(super) fn is_late(&self) -> bool {
        matches!(self.whose, Whose::Sync(deadline) if Instant::now() >= deadline)
    }

    /// Whether the room is set aside.
    pub(super) fn is_of_parked(&self) -> bool {
        matches!(self.whose, Whose::Parked { .. })
    }
}

/// What receiving knows beyond one client.
struct Receiving {
    backoff: Backoff,
    handed: Handed,
    /// Whether the ambient rooms were looked for.
    ambient_sought: bool,
}

impl MatrixSurface {
    /// Receives until the shutdown, then waits for everything that the surface runs.
    pub(super) async fn run(self: Arc<Self>) {
        let working = async {
            tokio::select! {
                () = self.receive() => {}
                () = self.keep_marks() => {}
            }
        };
        self.shutdown.run_until_cancelled(Box::pin(working)).await;
        self.trouble.send_replace(Some("the gateway is stopping".to_owned()));
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn receive(&self) {
        let mut receiving = Receiving { backoff: Backoff::new(), handed: Handed::default(), ambient_sought: false };
        loop {
            let client = self.client();
            let failure = match self.receive_from(&client, &mut receiving).await {
                Halt::Stopping | Halt::Elsewhere => return,
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
                    self.rooms_known.store(false, Ordering::Release);
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
        if let Err(failure) = self.open_parked(client).await {
            return Halt::Failed(failure);
        }
        if position.is_none() {
            position = match self.lost_position(client).await {
                Ok(position) => position,
                Err(halt) => return halt,
            };
        }
        loop {
            let first = !self.synced.load(Ordering::Acquire);
            let since = position.as_ref().and_then(Position::resumable);
            let settings = SyncSettings::new()
                .filter(filter())
                .timeout(if first { Duration::ZERO } else { LONG_POLL })
                .token(since.map_or(SyncToken::NoToken, |token| SyncToken::Specific(token.to_owned())));
            let response = match client.sync_once(settings).await {
                Ok(response) => response,
                Err(error) => return Halt::Failed(Failure::from(error)),
            };
            // A room whose history is long in coming holds back nothing that is said to others, nor to it.
            self.rooms_known.store(true, Ordering::Release);
            // From here on nothing may lead to a second sync from the same position: the SDK would drop
            // an answer that it has seen. What fails is tried again in place.
            if !receiving.ambient_sought {
                if let Err(failure) = self.find_ambient(client).await {
                    return Halt::Failed(failure);
                }
                receiving.ambient_sought = true;
            }
            if let Err(halt) = self.take(client, position.as_ref(), &response, &receiving.handed).await {
                return halt;
            }
            response.rooms.left.keys().for_each(|room| self.parked.forget(room));
            // First: what the position moves past is heard, or known as not heard.
            self.store_parked().await;
            let next_batch = response.next_batch;
            let reached = Position::Token { token: next_batch.clone(), store_is_new: false };
            if position.as_ref() != Some(&reached) {
                self.store_position(client, &reached).await;
                position = Some(reached);
            }
            self.hear_parked(&next_batch);
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
        failpoint::reach("before", "position");
        while let Err(failure) = login::set_position(client, reached).await {
            self.report(&failure);
            backoff.wait(None).await;
        }
    }

    /// Hands everything that happened since `since` to the inbox, except what is in `handed` already: the rooms
    /// side by side, each in its order.
    async fn take(
        &self,
        client: &Client,
        since: Option<&Position>,
        response: &SyncResponse,
        handed: &Handed,
    ) -> Result<(), Halt> {
        let taking = Taking { since, next_batch: &response.next_batch, handed, halted: CancellationToken::new() };
        let mut rooms = Vec::with_capacity(response.rooms.joined.len());
        for (room_id, update) in &response.rooms.joined {
            let Some(room) = client.get_room(room_id) else { continue };
            rooms.push(self.take_room(room, update, &taking));
        }
        // All of them end by themselves: what the inbox has in hand must not be cut off when another room fails.
        let mut rooms = stream::iter(rooms).buffer_unordered(ROOMS_AT_ONCE);
        let mut outcome = Ok(());
        while let Some(taken) = rooms.next().await {
            outcome = match (outcome, taken) {
                (Ok(()) | Err(Halt::Elsewhere), Err(halt)) => Err(halt),
                (outcome, _) => outcome,
            };
        }
        outcome
    }

    async fn take_room(&self, room: SdkRoom, update: &JoinedRoomUpdate, taking: &Taking<'_>) -> Result<(), Halt> {
        if taking.halted.is_cancelled() {
            return Err(Halt::Elsewhere);
        }
        if self.parked.leaves_out(room.room_id(), taking.next_batch) {
            return Ok(());
        }
        let taken = Box::pin(self.take_timeline(&room, update, taking)).await;
        if taken.is_err() {
            taking.halted.cancel();
        }
        taken
    }

    async fn take_timeline(&self, room: &SdkRoom, update: &JoinedRoomUpdate, taking: &Taking<'_>) -> Result<(), Halt> {
        let own = own(room).await;
        let whose = Whose::Sync(Instant::now() + self.patience);
        let hearing = Hearing { handed: taking.handed, halted: taking.halted.clone(), whose };
        let timeline = &update.timeline;
        let Some(since) = taking.since else {
            // The very first sync: what was said before the bot came is history.
            timeline.events.iter().for_each(|event| self.remember(room, event, &own));
            return Ok(());
        };
        let (gap, recent) = match since {
            Position::Token { token, store_is_new: false } => {
                let joined = timeline.events.iter().rposition(|event| is_own_join(event, &own));
                let gap = timeline.prev_batch.as_ref().filter(|_| timeline.limited && joined.is_none());
                let recent = &timeline.events[joined.map_or(0, |at| at + 1)..];
                (gap.map(|from| (from.clone(), Until::Token(token.clone()))), recent)
            }
            Position::Token { token, .. } => {
                (Some((taking.next_batch.to_owned(), Until::Token(token.clone()))), &[][..])
            }
            Position::Time { since } => (Some((taking.next_batch.to_owned(), Until::Time(*since))), &[][..]),
        };
        let mut answered = Answered::default();
        timeline.events.iter().for_each(|event| answered.learn(event, &own));
        if let Some((from, until)) = gap {
            let taken = self.take_gap(room, from, until.clone(), &own, &mut answered, &hearing);
            match Box::pin(taken).await {
                Err(Halt::Failed(Failure::Transient { reason, .. } | Failure::Local { reason })) => {
                    let trouble = format!("the history of {}: {reason}", room.room_id());
                    self.parked.park(room.room_id(), until, taking.next_batch, &trouble);
                    return Ok(());
                }
                taken => taken?,
            }
        }
        for event in recent {
            self.take_event(room, event, &own, &answered, &hearing).await?;
        }
        Ok(())
    }

    /// Hands over what was said in a room before `from`, back to `until`; learns what was answered there.
    pub(super) async fn take_gap(
        &self,
        room: &SdkRoom,
        from: String,
        until: Until,
        own: &Own<'_>,
        answered: &mut Answered,
        hearing: &Hearing<'_>,
    ) -> Result<(), Halt> {
        let mut walk = Walk::back(self, room, from, until, own, answered, hearing).await?;
        while let Some(events) = walk.forward(self, room, own, hearing).await? {
            for event in &events {
                self.take_event(room, event, own, answered, hearing).await?;
            }
        }
        match walk.missed() {
            Some(gap) => self.tell_missed(room.room_id(), gap, hearing).await,
            None => Ok(()),
        }
    }

    /// What is to be done where no position is stored: nothing when the inbox is as new as the store, otherwise
    /// what was said since the newest message that the inbox knows. Stored at once: when it has taken some of that,
    /// it knows newer ones.
    async fn lost_position(&self, client: &Client) -> Result<Option<Position>, Halt> {
        let mut backoff = Backoff::new();
        let newest = loop {
            match self.inbox.newest(SurfaceKind::Matrix).await {
                Ok(newest) => break newest,
                Err(InboxError::Stopping) => return Err(Halt::Stopping),
                Err(error @ InboxError::Journal(_)) => {
                    error!(error = &error as &dyn std::error::Error, "the inbox does not say what it knows");
                    self.trouble.send_replace(Some(error.to_string()));
                    backoff.wait(None).await;
                }
            }
        };
        let Some(newest) = newest else { return Ok(None) };
        let since = earlier(newest);
        warn!(%since, "the position in the homeserver's stream is lost; the rooms are read back to what the inbox knows");
        let position = Position::Time { since };
        self.store_position(client, &position).await;
        Ok(Some(position))
    }

    /// What a request gives, made until the homeserver answers; `None` when it refuses for good. At the deadline its last failure
    /// is given; it is made once at least. What is asked for, `what`, stands beside each failure: while it is not answered, nothing is
    /// received of the rooms that wait for it.
    pub(super) async fn persist<T, F>(
        &self,
        what: &str,
        hearing: &Hearing<'_>,
        deadline: Instant,
        mut request: impl FnMut() -> F,
    ) -> Result<Option<T>, Halt>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut backoff = Backoff::new();
        let trying = async {
            loop {
                let failure = match request().await {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(failure) => failure,
                };
                warn!("receiving failed: {what}: {}", failure.reason());
                self.explain(hearing, format!("{what}: {}", failure.reason()));
                match failure {
                    Failure::Permanent { .. } => return Ok(None),
                    Failure::UnknownToken { .. } => return Err(Halt::Failed(failure)),
                    Failure::Transient { .. } | Failure::Local { .. } => {
                        let waited = backoff.wait(failure.retry_after());
                        timeout_at(deadline, waited).await.map_err(|_| Halt::Failed(failure))?;
                    }
                }
            }
        };
        hearing.halted.run_until_cancelled(trying).await.unwrap_or(Err(Halt::Elsewhere))
    }

    /// Notes why nothing is received for whoever waits.
    pub(super) fn explain(&self, hearing: &Hearing<'_>, trouble: String) {
        match hearing.whose {
            Whose::Sync(_) => {
                self.trouble.send_replace(Some(trouble));
            }
            Whose::Parked { room, .. } => self.parked.explain(room, trouble),
        }
    }

    pub(super) fn report(&self, failure: &Failure) {
        warn!("receiving failed: {}", failure.reason());
        self.trouble.send_replace(Some(failure.reason().to_owned()));
    }
}

/// A room that there is not.
static NOWHERE: LazyLock<OwnedRoomId> = LazyLock::new(|| {
    let room = RoomId::parse(format!("!{}:musher.invalid", Uuid::new_v4()));
    room.expect("an id of a room")
});

/// Little more than what is read: no presence, no receipts, members as they speak.
fn filter() -> Filter {
    let mut filter = FilterDefinition::with_lazy_loading();
    // Synapse answers what it has been asked within two minutes as it did then. With a state directory that was set back the same
    // would be asked again, and what was answered since would come without its answer.
    filter.room.not_rooms = vec![NOWHERE.clone()];
    filter.room.timeline.limit = Some(UInt::from(TIMELINE_LIMIT));
    filter.room.ephemeral = RoomEventFilter::ignore_all();
    filter.presence = PresenceFilter::ignore_all();
    Filter::FilterDefinition(filter)
}

/// Who the bot is in this room.
pub(super) async fn own(room: &SdkRoom) -> Own<'_> {
    let member = room.get_member_no_sync(room.own_user_id()).await;
    let name = member.ok().flatten().and_then(|member| member.display_name().map(str::to_owned));
    let rules = room.clone_info().room_version_rules_or_default();
    Own {
        user: room.own_user_id(),
        names: name.into_iter().collect(),
        redacts_in_content: rules.redaction.content_field_redacts,
    }
}

/// A moment that is certainly before what was said at `moment` by another machine's clock.
pub(super) fn earlier(moment: Timestamp) -> Timestamp {
    moment.saturating_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN)
}
