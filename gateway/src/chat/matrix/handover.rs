//! From an event of a room's timeline to the inbox: what was said, edited, taken back, reacted to.
//!
//! Who may speak is asked before anything is fetched for an event (invariant 12). What decides whether an event
//! counts is fetched until the homeserver answers, as long as there is time: the position moves past what did not count. What the
//! inbox has in hand is awaited to its end; only the shutdown cuts it off.

use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, atomic::Ordering},
};

use jiff::Timestamp;
use matrix_sdk::{
    Room as SdkRoom, RoomMemberships,
    config::RequestConfig,
    deserialized_responses::TimelineEvent,
    ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId},
};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

use super::{
    MatrixSurface, SurfaceKind,
    answered::Answered,
    encrypted,
    failure::{Backoff, Failure},
    intake::{self, Own, Reading, Said},
    lock,
    seen::{Known, Memory},
    sync::{self, Halt, Hearing, LOOK_UP_PATIENCE, Whose},
};
use crate::chat::{Edited, Inbound, InboxError, Missed, Person, Reacted, Redacted, Room};

/// How many events are remembered as handed over before the position is stored past them.
const MAX_HANDED: usize = 50_000;

/// How long the id of an event may be by the protocol, in bytes.
const LONGEST_ID: usize = 255;

/// What the inbox took after the stored position: it need not get it again when a sync is repeated. What is
/// more than is remembered comes again, and the inbox knows it.
#[derive(Debug, Default)]
pub(super) struct Handed(Mutex<HashSet<(OwnedRoomId, OwnedEventId)>>);

impl Handed {
    fn contains(&self, key: &(OwnedRoomId, OwnedEventId)) -> bool {
        lock(&self.0).contains(key)
    }

    fn insert(&self, key: (OwnedRoomId, OwnedEventId)) {
        let mut handed = lock(&self.0);
        if handed.len() < MAX_HANDED {
            handed.insert(key);
        }
    }

    /// The position is stored past all of it.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// Something for the inbox.
#[derive(Debug, Clone)]
enum Heard {
    Said(Inbound),
    Edited(Edited),
    Redacted(Redacted),
    Reacted(Reacted),
    Missed(Missed),
}

impl MatrixSurface {
    /// Remembers what was said before the bot listened.
    pub(super) fn remember(&self, room: &SdkRoom, event: &TimelineEvent, own: &Own<'_>) {
        if encrypted::concerns(room, event) {
            return;
        }
        if let Some(reading) = parse(room, event, own) {
            self.note(room.room_id().to_owned(), &reading);
        }
    }

    /// Remembers what stands in the room from here on.
    fn note(&self, room: OwnedRoomId, reading: &Reading) {
        let mut seen = lock(&self.seen);
        match reading {
            Reading::Message { event_id, known, .. } => {
                seen.insert(room, event_id.clone(), Memory::Said(known.clone()));
            }
            Reading::Edit { event_id, original, sender, text } => {
                let edited = Known { sender: sender.clone(), text: text.clone(), edit: Some(event_id.clone()) };
                seen.edit(room, original.clone(), edited);
            }
            Reading::Redaction { redacts, .. } => seen.take_back(room, redacts.clone()),
            Reading::Reaction { .. } | Reading::Joined | Reading::Nothing(_) => {}
        }
    }

    /// Hands over what the event tells, unless the inbox has it, or it was answered.
    pub(super) async fn take_event(
        &self,
        room: &SdkRoom,
        event: &TimelineEvent,
        own: &Own<'_>,
        answered: &Answered,
        hearing: &Hearing<'_>,
    ) -> Result<(), Halt> {
        let Some(reading) = parse(room, event, own) else { return Ok(()) };
        // What is taken back and reacted to is in clear in every room.
        let open = matches!(reading, Reading::Redaction { .. } | Reading::Reaction { .. });
        if !open && encrypted::concerns(room, event) {
            self.refuse_encrypted(room, event, own);
            return Ok(());
        }
        self.note(room.room_id().to_owned(), &reading);
        let (event_id, sender) = match &reading {
            Reading::Message { event_id, said: Some(said), .. } => (event_id, &said.sender),
            Reading::Edit { event_id, sender, .. }
            | Reading::Redaction { event_id, sender, .. }
            | Reading::Reaction { event_id, sender, .. } => (event_id, sender),
            Reading::Nothing(why) => {
                debug!(room = %room.room_id(), event = ?event.event_id(), why, "ignoring an event");
                return Ok(());
            }
            Reading::Message { said: None, .. } | Reading::Joined => return Ok(()),
        };
        if sender == own.user {
            return Ok(());
        }
        // Before anything is fetched for it: nobody holds up people who may speak. What is gone is gone for everybody.
        if !matches!(reading, Reading::Redaction { .. }) && !self.listens_to(sender.as_str()) {
            debug!(room = %room.room_id(), event = %event_id, %sender, "not listened to");
            return Ok(());
        }
        // The bot's questions are the bot's: the inbox may look long for what a reaction was put on.
        if let Reading::Reaction { target, .. } = &reading
            && let Some(Memory::Said(known)) = lock(&self.seen).get(room.room_id().to_owned(), target.clone())
            && known.sender != own.user
        {
            debug!(room = %room.room_id(), event = %event_id, %sender, "ignoring a reaction to what somebody else said");
            return Ok(());
        }
        // The inbox has it, or had it before it was set back.
        if matches!(reading, Reading::Message { .. }) && answered.contains(event_id) {
            info!(room = %room.room_id(), event = %event_id, "the room shows an answer to it already");
            return Ok(());
        }
        let key = (room.room_id().to_owned(), event_id.clone());
        if hearing.handed.contains(&key) {
            return Ok(());
        }
        if let Some(heard) = self.heard(room, reading, hearing).await? {
            if matches!(heard, Heard::Said(_)) && self.synced.load(Ordering::Acquire) && !hearing.is_of_parked() {
                // Said while the surface lives: no earlier run can have marked it.
                lock(&self.marks).live(key.0.clone(), key.1.clone());
            }
            self.hand_over(&key.0, &key.1, heard, hearing).await?;
            hearing.handed.insert(key);
        }
        Ok(())
    }

    /// Tells the inbox that some of what was said in the room is not to be had.
    pub(super) async fn tell_missed(&self, room: &RoomId, gap: String, hearing: &Hearing<'_>) -> Result<(), Halt> {
        error!(%room, gap, "messages were not read: the homeserver does not give all of the room's history");
        self.hand_gap_over(room, gap, false, hearing).await
    }

    /// Tells the inbox that the room is not heard for the time being.
    pub(super) async fn tell_awaited(&self, room: &RoomId, gap: String, hearing: &Hearing<'_>) -> Result<(), Halt> {
        self.hand_gap_over(room, gap, true, hearing).await
    }

    async fn hand_gap_over(
        &self,
        room: &RoomId,
        gap: String,
        awaited: bool,
        hearing: &Hearing<'_>,
    ) -> Result<(), Halt> {
        let there = Room { surface: SurfaceKind::Matrix, id: room.to_string() };
        self.hand_over(room, &"a gap", Heard::Missed(Missed { room: there, gap, awaited }), hearing).await
    }

    async fn heard(&self, room: &SdkRoom, reading: Reading, hearing: &Hearing<'_>) -> Result<Option<Heard>, Halt> {
        let there = Room { surface: SurfaceKind::Matrix, id: room.room_id().to_string() };
        Ok(match reading {
            Reading::Message { event_id, said: Some(said), .. } => {
                Some(Heard::Said(self.inbound(room, there, &event_id, said, hearing).await?))
            }
            Reading::Edit { event_id, original, sender, text } => {
                // A homeserver relates any two events as somebody says.
                let edited = self.find_said(room, &original, hearing).await?.said();
                let edits_own = edited.is_some_and(|edited| edited.sender == sender);
                if !edits_own {
                    debug!(room = %room.room_id(), event = %event_id, %sender, "ignoring an edit of what is not theirs, or not there");
                }
                edits_own.then(|| {
                    Heard::Edited(Edited {
                        room: there,
                        event_id: original.to_string(),
                        edit_id: event_id.to_string(),
                        sender: person(&sender),
                        text,
                    })
                })
            }
            Reading::Redaction { event_id, redacts, sender } => Some(Heard::Redacted(Redacted {
                room: there,
                event_id: redacts.to_string(),
                redaction_id: event_id.to_string(),
                by: person(&sender),
            })),
            Reading::Reaction { event_id, target, sender, key } => Some(Heard::Reacted(Reacted {
                room: there,
                event_id: target.to_string(),
                reaction_id: event_id.to_string(),
                sender: person(&sender),
                key,
                encrypted: room.encryption_state().is_encrypted(),
            })),
            Reading::Message { said: None, .. } | Reading::Joined | Reading::Nothing(_) => None,
        })
    }

    async fn inbound(
        &self,
        room: &SdkRoom,
        there: Room,
        event_id: &EventId,
        said: Said,
        hearing: &Hearing<'_>,
    ) -> Result<Inbound, Halt> {
        let room_id = room.room_id();
        let mut addressed = said.mentions_us
            || self.ambient.contains(room)
            || self.seek(&format!("the members of {room_id}"), hearing, || is_direct(room)).await?.unwrap_or(false);
        let replied = match said.replies_to {
            None => None,
            // It is quoted, and nothing more: the message does not wait for it long.
            Some(id) if addressed => {
                let config = RequestConfig::new().disable_retry().timeout(LOOK_UP_PATIENCE);
                self.look_up(room, &id, Some(config)).await.ok().and_then(Memory::said)
            }
            Some(id) => {
                let replied = self.find_said(room, &id, hearing).await?.said();
                addressed = replied.as_ref().is_some_and(|replied| replied.sender == room.own_user_id());
                replied
            }
        };
        Ok(Inbound {
            room: there,
            event_id: event_id.to_string(),
            sender: person(&said.sender),
            // A homeserver may write any number there.
            at: Timestamp::from_millisecond(said.at_ms).unwrap_or(Timestamp::UNIX_EPOCH),
            text: said.text,
            quoted: replied.map(|replied| replied.text),
            thread: said.thread.map(|root| root.to_string()),
            addressed,
            with_file: said.with_file,
            pending: None,
        })
    }

    /// An earlier message of the room, asked for until the homeserver gives it or says that there is none, as long as there is
    /// time.
    async fn find_said(&self, room: &SdkRoom, event_id: &EventId, hearing: &Hearing<'_>) -> Result<Memory, Halt> {
        let what = format!("the event {event_id} in {}", room.room_id());
        let found = self.seek(&what, hearing, || self.look_up(room, event_id, None)).await?;
        Ok(found.unwrap_or(Memory::InVain))
    }

    /// What decides whether an event counts. What the homeserver does not give in time is as what is not there: the room's other
    /// events do not wait for it for ever.
    async fn seek<T, F>(&self, what: &str, hearing: &Hearing<'_>, request: impl FnMut() -> F) -> Result<Option<T>, Halt>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let now = Instant::now();
        let deadline = match hearing.whose {
            // However many there are of a kind that no answer comes to, each of them costs little when the time is over.
            Whose::Sync(deadline) => deadline.max(now + LOOK_UP_PATIENCE),
            Whose::Parked { .. } => now + self.patience,
        };
        let reason = match timeout_at(deadline, self.persist(what, hearing, deadline, request)).await {
            Ok(Err(Halt::Failed(Failure::Transient { reason, .. } | Failure::Local { reason }))) => reason,
            Ok(answer) => return answer,
            Err(_) => "no answer in time".to_owned(),
        };
        warn!("{what} is not to be had, and counts as not there: {reason}");
        Ok(None)
    }

    /// An earlier message of the room, asked for once where it is not known. A refusal for good is an answer.
    async fn look_up(
        &self,
        room: &SdkRoom,
        event_id: &EventId,
        config: Option<RequestConfig>,
    ) -> Result<Memory, Failure> {
        if !can_be_asked_for(event_id) {
            return Ok(Memory::InVain);
        }
        let (room_id, event_id) = (room.room_id().to_owned(), event_id.to_owned());
        let known = lock(&self.seen).get(room_id.clone(), event_id.clone());
        if let Some(memory) = known {
            return Ok(memory);
        }
        let found = match room.event(&event_id, config).await {
            Ok(event) => {
                let own = sync::own(room).await;
                match event.raw().deserialize().map(|event| intake::read(event, &own)) {
                    Ok(Reading::Message { known, .. }) => Memory::Said(known),
                    _ => Memory::InVain,
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                debug!(room = %room_id, event = %event_id, "an earlier message is not to be had: {}", failure.reason());
                if !matches!(failure, Failure::Permanent { .. }) {
                    return Err(failure);
                }
                Memory::InVain
            }
        };
        lock(&self.seen).insert(room_id, event_id, found.clone());
        Ok(found)
    }

    /// Gives it to the inbox until it is taken. Logs call it `what`.
    async fn hand_over(
        &self,
        room: &RoomId,
        what: &(dyn fmt::Display + Sync),
        heard: Heard,
        hearing: &Hearing<'_>,
    ) -> Result<(), Halt> {
        let mut backoff = Backoff::new();
        loop {
            if hearing.halted.is_cancelled() {
                return Err(Halt::Elsewhere);
            }
            let taken = match heard.clone() {
                Heard::Said(message) => self.inbox.accept(message),
                Heard::Edited(edit) => self.inbox.edited(edit),
                Heard::Redacted(redaction) => self.inbox.redacted(redaction),
                Heard::Reacted(reaction) => self.inbox.reacted(reaction),
                Heard::Missed(missed) => self.inbox.missed(missed),
            };
            match taken.await {
                Ok(()) => return Ok(()),
                Err(InboxError::Stopping) => return Err(Halt::Stopping),
                Err(error @ InboxError::Journal(_)) => {
                    error!(%room, %what, error = &error as &dyn std::error::Error, "something waits before the inbox");
                    self.explain(hearing, error.to_string());
                    hearing.halted.run_until_cancelled(backoff.wait(None)).await;
                }
            }
        }
    }
}

/// Whether there can be such an event. People's clients relate what they send to any text, and a request that neither homeserver
/// nor proxy reads is never answered. Nor is one whose path a proxy takes for another one: it may decode what is escaped in it, and
/// resolve parts that are `.` or `..`.
fn can_be_asked_for(event_id: &EventId) -> bool {
    let leads_away = |part: &str| part == "." || part == "..";
    event_id.as_str().len() <= LONGEST_ID
        && !event_id.as_str().contains(char::is_control)
        && !event_id.as_str().split(['/', '\\']).any(leads_away)
}

fn person(user: &UserId) -> Person {
    Person { surface: SurfaceKind::Matrix, id: user.to_string() }
}

fn parse(room: &SdkRoom, event: &TimelineEvent, own: &Own<'_>) -> Option<Reading> {
    let parsed = event
        .raw()
        .deserialize()
        .inspect_err(
            |error| debug!(room = %room.room_id(), event = ?event.event_id(), %error, "ignoring a malformed event"),
        )
        .ok()?;
    Some(intake::read(parsed, own))
}

/// Whether the room is a conversation of two: marked so, or by its members.
async fn is_direct(room: &SdkRoom) -> Result<bool, Failure> {
    if room.is_direct().await.map_err(matrix_sdk::Error::from)? {
        return Ok(true);
    }
    match room.active_members_count() {
        // The homeserver gave no summary.
        0 => Ok(room.members(RoomMemberships::ACTIVE).await?.len() == 2),
        count => Ok(count == 2),
    }
}
