//! The agent's conversations (CHAT-11): what waits in each, which turn runs, and which session id is pinned.
//!
//! Stream `session/<project> <room> <thread>`. A message is journaled before its surface may forget it, a turn before
//! its sled hears of it, and its end in one transaction with its answer. The dispatcher decides *when* a batch begins;
//! the stream decides *what* is in it. A conversation is in memory only while something waits or runs in it (CHAT-13).

mod erasing;
mod names;
mod over;
mod session;

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use journal::{Actor, Append, AppendError, Appended, Cause, Expected, Loaded, NewEvent};
use link::requests::AgentSession;
use uuid::Uuid;

use self::names::stream;
pub use self::{
    erasing::Edit,
    names::{TextOf, seen_key, text_id},
    over::Over,
    session::{Answered, Ending, Message, Removal, Running, Session, SessionEvent},
};
use crate::{
    chat::{Edited, Inbound, Person, Room, SurfaceKind},
    dispatch::SessionKey,
    outbox::{Outbox, Post},
    people::Role,
    prompt::Words,
    refusal::Refusal,
    store::Journal,
    text::masked,
};

const STREAM: &str = "session";
/// So many events after a snapshot there is another one.
const SNAPSHOT_EVERY: u64 = 64;
/// How often a message that waits can be edited.
pub const MAX_EDITS: u64 = 64;

/// A turn that was begun and not finished when the gateway ended.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// The session.
    pub session: SessionKey,
    /// The turn as it stands.
    pub running: Running,
}

/// What an earlier gateway left to do.
#[derive(Debug, Default)]
pub struct Left {
    /// Turns that were under way.
    pub unfinished: Vec<Unfinished>,
    /// Messages that wait, in the order in which they were accepted.
    pub waiting: Vec<(SessionKey, Message)>,
}

/// What becomes of a message that is handed to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It waits now.
    New {
        /// Whether a turn runs in its project, so that it will wait for longer than its window.
        behind: bool,
    },
    /// It was accepted before: by an earlier gateway, or from an earlier sync.
    Seen,
}

/// What becomes of an edit that is handed to the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Editing {
    /// The message has another text now.
    Taken,
    /// There is nothing to change: the message does not wait, is somebody else's, or has had this edit.
    PassedOver,
    /// The message waits, and was edited too often already.
    TooOften,
}

/// A turn that begins.
#[derive(Debug)]
pub struct Begun {
    /// The agent's memory that it belongs to.
    pub memory: AgentSession,
    /// What its people said.
    pub messages: Vec<Message>,
}

/// A conversation in memory, for as long as somebody works with it or something waits or runs in it.
type Slot = Arc<tokio::sync::Mutex<Option<Loaded<Session>>>>;

/// All sessions. Clones speak of the same.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    outbox: Outbox,
    live: Mutex<HashMap<SessionKey, Slot>>,
    /// When the newest message of each surface was said, of those that an earlier gateway accepted.
    newest: Mutex<HashMap<SurfaceKind, Timestamp>>,
}

/// What a change does.
struct Change {
    events: Vec<NewEvent>,
    posts: Vec<Post>,
    /// What follows in other streams.
    with: Vec<Append>,
    key: Option<String>,
    /// What the session itself says that it follows from.
    cause: Option<Cause>,
}

impl Change {
    fn of<'a>(events: impl IntoIterator<Item = &'a SessionEvent>) -> Result<Self, Refusal> {
        let events = NewEvent::encode_all(events).map_err(|error| unjournaled(&error))?;
        Ok(Self { events, posts: Vec::new(), with: Vec::new(), key: None, cause: None })
    }
}

impl Sessions {
    /// The sessions in this journal. What is said with their changes goes through `outbox`.
    pub fn new(journal: Journal, outbox: Outbox) -> Self {
        Self { inner: Arc::new(Inner { journal, outbox, live: Mutex::default(), newest: Mutex::default() }) }
    }

    /// Finds what an earlier gateway left, and takes it into memory. What it had not yet erased of edited messages is.
    pub async fn recover(&self) -> Result<Left, Refusal> {
        let all = self.inner.journal.load_all_snapshots::<Session>(STREAM).await.map_err(|error| unreadable(&error))?;
        let mut left = Left::default();
        for (_, session) in all {
            let Session { key: Some(key), waiting, running, newest, .. } = &session.state else { continue };
            if let Some(at) = *newest {
                let mut newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner);
                let newest = newest.entry(key.room.surface).or_insert(at);
                *newest = at.max(*newest);
            }
            if session.state.is_idle() {
                continue;
            }
            left.waiting.extend(waiting.iter().map(|message| (key.clone(), message.clone())));
            let unfinished = running.clone().map(|running| Unfinished { session: key.clone(), running });
            left.unfinished.extend(unfinished);
            let key = key.clone();
            let slot = Arc::new(tokio::sync::Mutex::new(Some(session)));
            self.inner.live.lock().unwrap_or_else(PoisonError::into_inner).insert(key, slot);
        }
        left.waiting.sort_by_key(|(_, message)| message.position);
        let running = left.unfinished.iter().flat_map(|Unfinished { session, running }| {
            running.messages.iter().map(move |message| (&session.room, message))
        });
        for (room, message) in left.waiting.iter().map(|(key, message)| (&key.room, message)).chain(running) {
            if message.edits > 0 {
                self.erase_before_edit(room, &message.event_id, message.edits).await?;
            }
        }
        Ok(left)
    }

    /// Accepts a message, once. When this returns it is on the disk and waits. Whether it ends a turn that runs stays as it is said
    /// now.
    pub async fn accept(
        &self,
        key: &SessionKey,
        said: &Inbound,
        text: &str,
        rights: Role,
        interrupts: bool,
    ) -> Result<Accepted, Refusal> {
        let actor = Actor::Person(said.sender.to_string());
        let id = seen_key(&said.room, &said.event_id);
        let body = text_id(&said.room, &said.event_id, TextOf::Words(0));
        let quote = said.quoted.as_ref().map(|_| text_id(&said.room, &said.event_id, TextOf::Quote));
        let decide = |session: &Session| {
            let message = Message {
                event_id: said.event_id.clone(),
                number: session.said + 1,
                sender: said.sender.clone(),
                rights,
                at: said.at,
                thread: said.thread.clone(),
                text: body,
                quoted: quote,
                interrupts,
                edits: 0,
                position: 0,
                accepted: None,
                begun: false,
            };
            let mut events = Vec::new();
            if session.key.is_none() {
                events.push(encode(&opened(key, Uuid::new_v4()))?);
            }
            let mut accepted = encode(&SessionEvent::Accepted(message))?.with_text(body, masked(text));
            if let (Some(quote), Some(quoted)) = (quote, &said.quoted) {
                accepted = accepted.with_text(quote, masked(quoted));
            }
            events.push(accepted);
            Ok((Change { events, key: Some(id.clone()), ..Change::of([])? }, ()))
        };
        let behind = self.is_busy(key.project);
        let (new, ()) = self.change(key, actor, Cause::Command(said.event_id.clone()), decide).await?;
        if !new {
            return Ok(Accepted::Seen);
        }
        Ok(Accepted::New { behind })
    }

    /// Gives a message that still waits in the edit's room another text, once for each edit. What it said until then is erased, also when an earlier try came no further than the new text.
    pub async fn edit(&self, edit: &Edited, admitted: impl Fn(Uuid) -> bool) -> Result<Editing, Refusal> {
        let Edited { room, event_id, edit_id, sender, text } = edit;
        for key in self.live_in(room).into_iter().filter(|key| admitted(key.project)) {
            let actor = Actor::Person(sender.to_string());
            let decide = |session: &Session| {
                let theirs = |message: &&Message| message.event_id == *event_id && message.sender == *sender;
                let Some(message) = session.waiting.iter().find(theirs) else {
                    let running = session.running.iter().flat_map(|running| &running.messages).find(theirs);
                    return Ok((Change::of([])?, (running.map(|message| message.edits), false)));
                };
                let mut change = Change { key: Some(seen_key(room, edit_id)), ..Change::of([])? };
                if message.edits < MAX_EDITS {
                    let id = text_id(room, event_id, TextOf::Words(message.edits + 1));
                    let edited = SessionEvent::Edited { event_id: event_id.clone(), text: id };
                    change.events.push(encode(&edited)?.with_text(id, masked(text)));
                }
                Ok((change, (Some(message.edits), message.edits >= MAX_EDITS)))
            };
            let (new, (edits, too_often)) = self.change(&key, actor, Cause::Command(edit_id.clone()), decide).await?;
            if let Some(edits) = edits {
                self.erase_before_edit(room, event_id, edits + u64::from(new)).await?;
                return match new {
                    true => Ok(Editing::Taken),
                    false if too_often && !self.has_had(room, edit_id).await? => Ok(Editing::TooOften),
                    false => Ok(Editing::PassedOver),
                };
            }
        }
        Ok(Editing::PassedOver)
    }

    /// Whether what was said by this event is journaled.
    async fn has_had(&self, room: &Room, event_id: &str) -> Result<bool, Refusal> {
        let events = self.inner.journal.events_of_key(&seen_key(room, event_id)).await;
        events.map(|events| !events.is_empty()).map_err(|error| unreadable(&error))
    }

    /// Takes messages out that wait, or, when they are redacted, are being answered and could wait again; those that did, in
    /// order. Who does it, and by which event, is journaled. If there were any, `posts` tell of it and `with` follows in other
    /// streams, in the same transaction.
    pub async fn remove(
        &self,
        key: &SessionKey,
        event_ids: &[&str],
        why: Removal,
        (by, cause): (Actor, Cause),
        posts: impl Fn(&[Message]) -> Vec<Post>,
        with: Vec<Append>,
    ) -> Result<Vec<Message>, Refusal> {
        let decide = |session: &Session| {
            let of_these = |message: &&Message| event_ids.contains(&message.event_id.as_str());
            let running = session.running.iter().flat_map(|running| &running.messages);
            let running = running.filter(|_| why == Removal::Redacted);
            let removed: Vec<_> = running.chain(&session.waiting).filter(of_these).cloned().collect();
            if removed.is_empty() {
                return Ok((Change::of([])?, removed));
            }
            let event_ids = removed.iter().map(|message| message.event_id.clone()).collect();
            let mut change = Change::of([&SessionEvent::Removed { event_ids, why }])?;
            change.posts = posts(&removed);
            change.with.clone_from(&with);
            Ok((change, removed))
        };
        let (_, removed) = self.change(key, by, cause, decide).await?;
        Ok(removed)
    }

    /// Begins a turn with those of these messages that still wait; `None` when none does.
    pub async fn begin(&self, key: &SessionKey, turn: Uuid, event_ids: &[&str]) -> Result<Option<Begun>, Refusal> {
        let cause = event_ids.last().map_or(Cause::None, |event| Cause::Command((*event).to_owned()));
        let decide = |session: &Session| {
            if let Some(running) = &session.running {
                let running = format!("turn {} is not journaled as over", running.turn);
                return Err(Refusal::internal("the turn before it still runs", running));
            }
            let of_these = |message: &&Message| event_ids.contains(&message.event_id.as_str());
            let messages: Vec<_> = session.waiting.iter().filter(of_these).cloned().collect();
            if messages.is_empty() {
                return Ok((Change::of([])?, None));
            }
            let answers = messages
                .iter()
                .map(|message| Answered {
                    event_id: message.event_id.clone(),
                    sender: message.sender.clone(),
                    thread: message.thread.clone(),
                })
                .collect();
            let begun = SessionEvent::TurnBegun { turn, answers };
            let memory = session.agent.ok_or_else(|| unreadable(&"messages wait in a session that was not opened"))?;
            let memory = AgentSession { id: memory.id, resumed: memory.used };
            Ok((Change::of([&begun])?, Some(Begun { memory, messages })))
        };
        let (_, begun) = self.change(key, Actor::Gateway, cause, decide).await?;
        Ok(begun)
    }

    /// The agent's memory that a turn under way belongs to.
    pub async fn memory(&self, key: &SessionKey, turn: Uuid) -> Result<AgentSession, Refusal> {
        let decide = |session: &Session| {
            let running = session.running.as_ref().filter(|running| running.turn == turn);
            let id = running
                .map(|running| running.agent)
                .ok_or_else(|| Refusal::internal("the turn does not run any more", "its session's stream says so"))?;
            let resumed = session.agent.is_some_and(|memory| memory.id == id && memory.used);
            Ok((Change::of([])?, AgentSession { id, resumed }))
        };
        self.change(key, Actor::Gateway, Cause::None, decide).await.map(|(_, memory)| memory)
    }

    /// Journals that an interrupted turn is tried again, and tells of it.
    pub async fn resume(&self, key: &SessionKey, turn: Uuid, attempt: u32, post: Post) -> Result<(), Refusal> {
        let decide = |session: &Session| {
            let running = session.running.as_ref().filter(|running| running.turn == turn);
            let running = running
                .ok_or_else(|| Refusal::internal("the turn does not run any more", "its session's stream says so"))?;
            let mut change = Change::of([&SessionEvent::TurnResumed { turn, attempt }])?;
            change.cause = running.cause();
            change.posts.push(post.clone());
            Ok((change, ()))
        };
        self.change(key, Actor::Gateway, Cause::None, decide).await.map(drop)
    }

    /// Journals what a person decided on a question of a running turn, once; what holds, or `None` when the turn is over.
    pub async fn decide(
        &self,
        key: &SessionKey,
        turn: Uuid,
        request: &str,
        allow: bool,
        by: &Person,
        cause: Cause,
    ) -> Result<Option<bool>, Refusal> {
        let actor = Actor::Person(by.to_string());
        let decide = |session: &Session| {
            let Some(running) = session.running.as_ref().filter(|running| running.turn == turn) else {
                return Ok((Change::of([])?, None));
            };
            if let Some((_, before)) = running.decided.iter().find(|(known, _)| known == request) {
                return Ok((Change::of([])?, Some(*before)));
            }
            let request = request.to_owned();
            let event = SessionEvent::PermissionDecided { turn, request, allow, by: by.clone() };
            Ok((Change::of([&event])?, Some(allow)))
        };
        self.change(key, actor, cause, decide).await.map(|(_, decided)| decided)
    }

    /// Journals that a turn is over together with what is told of it (DESIGN: answered) and what follows in other streams;
    /// one that does not run is over already. Gives its messages that wait again.
    pub async fn finish(
        &self,
        key: &SessionKey,
        turn: Uuid,
        ending: Ending,
        agent_ran: bool,
        posts: Vec<Post>,
        with: Vec<Append>,
    ) -> Result<Vec<Message>, Refusal> {
        let actor = Actor::Sled(key.project.to_string());
        let decide = |session: &Session| {
            let Some(running) = session.running.as_ref().filter(|running| running.turn == turn) else {
                return Ok((Change::of([])?, Vec::new()));
            };
            let again = if ending == Ending::Superseded { running.messages.clone() } else { Vec::new() };
            let mut change = Change::of([&SessionEvent::TurnFinished { turn, ending, agent_ran }])?;
            change.cause = running.cause();
            change.posts.clone_from(&posts);
            change.with.clone_from(&with);
            Ok((change, again))
        };
        self.change(key, actor, Cause::None, decide).await.map(|(_, again)| again)
    }

    /// Pins a fresh session; the agent remembers nothing of before.
    pub async fn reset(&self, key: &SessionKey, by: &Person, cause: Cause) -> Result<(), Refusal> {
        let fresh = Uuid::new_v4();
        let decide = |_: &Session| Ok((Change::of([&opened(key, fresh)])?, ()));
        self.change(key, Actor::Person(by.to_string()), cause, decide).await.map(drop)
    }

    /// What waits and runs now, of the sessions that `wanted` names, as far as they can be read.
    pub async fn busy(&self, wanted: impl Fn(&SessionKey) -> bool) -> Vec<(SessionKey, Session)> {
        let keys: Vec<_> = self.live().into_iter().filter(|(key, _)| wanted(key)).collect();
        let mut busy = Vec::new();
        for (key, slot) in keys {
            match self.as_it_is(&key, &slot).await {
                Ok(session) => busy.extend(session.map(|session| (key, session))),
                Err(refusal) => tracing::warn!(session = %stream(&key), %refusal, "a session is left out"),
            }
        }
        busy.sort_by(|(one, _), (other, _)| one.cmp(other));
        busy
    }

    /// What a session in memory is now; `None` when it is idle, and then it is in memory no longer.
    async fn as_it_is(&self, key: &SessionKey, slot: &Slot) -> Result<Option<Session>, Refusal> {
        let mut kept = slot.lock().await;
        let session = match &*kept {
            Some(session) => session,
            // A change of it failed, and what it is now is not known.
            None => kept.insert(self.load(key).await?),
        };
        if !session.state.is_idle() {
            return Ok(Some(session.state.clone()));
        }
        drop(kept);
        self.forget(key, slot);
        Ok(None)
    }

    async fn load(&self, key: &SessionKey) -> Result<Loaded<Session>, Refusal> {
        self.inner.journal.load_snapshot::<Session>(&stream(key)).await.map_err(|error| unreadable(&error))
    }

    /// Whether something of this project waits or runs in this room, or may: one that cannot be read counts.
    pub fn is_in(&self, project: Uuid, room: &Room) -> bool {
        self.live_in(room).iter().any(|key| key.project == project)
    }

    /// What messages say, for the agent or for people. A text that was erased reads so.
    pub async fn words(&self, messages: &[Message]) -> Result<Vec<Words>, Refusal> {
        let ids = messages.iter().flat_map(|message| [Some(message.text), message.quoted]).flatten().collect();
        let mut texts = self.inner.journal.texts(ids).await.map_err(|error| unreadable(&error))?;
        let words = messages.iter().map(|message| Words {
            sender: message.sender.clone(),
            at: message.at,
            text: texts.remove(&message.text).unwrap_or_else(|| "(erased)".to_owned()),
            quoted: message.quoted.and_then(|id| texts.remove(&id)),
        });
        Ok(words.collect())
    }

    /// When the oldest message was accepted that waits or is being answered.
    ///
    /// # Errors
    /// When one of the sessions cannot be read: what waits in it might be older.
    pub async fn oldest(&self) -> Result<Option<Timestamp>, Refusal> {
        let mut oldest: Option<Timestamp> = None;
        for (key, slot) in self.live() {
            let Some(Session { waiting, running, .. }) = self.as_it_is(&key, &slot).await? else { continue };
            let messages = running.into_iter().flat_map(|running| running.messages).chain(waiting);
            oldest = messages.filter_map(|message| message.accepted).chain(oldest).min();
        }
        Ok(oldest)
    }

    /// When the newest message of a surface was said, of those that earlier gateways accepted.
    pub fn newest(&self, surface: SurfaceKind) -> Option<Timestamp> {
        self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner).get(&surface).copied()
    }

    fn live(&self) -> Vec<(SessionKey, Slot)> {
        let live = self.inner.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().map(|(key, slot)| (key.clone(), Arc::clone(slot))).collect()
    }

    /// The sessions of a room in which something waits or runs.
    fn live_in(&self, room: &Room) -> Vec<SessionKey> {
        self.live().into_iter().map(|(key, _)| key).filter(|key| key.room == *room).collect()
    }

    /// Whether a turn runs in a project, as far as that can be told without waiting.
    fn is_busy(&self, project: Uuid) -> bool {
        let live = self.inner.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().filter(|(key, _)| key.project == project).any(|(_, slot)| {
            let session = slot.try_lock();
            session.is_ok_and(|session| session.as_ref().is_some_and(|session| session.state.running.is_some()))
        })
    }

    /// Appends what `decide` makes of the session as it is now, together with its posts. Whether something was appended
    /// now: not when `decide` wants nothing, nor when its key was used before.
    async fn change<T>(
        &self,
        key: &SessionKey,
        actor: Actor,
        cause: Cause,
        decide: impl Fn(&Session) -> Result<(Change, T), Refusal>,
    ) -> Result<(bool, T), Refusal> {
        let slot = {
            let mut live = self.inner.live.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(live.entry(key.clone()).or_default())
        };
        let mut kept = slot.lock().await;
        let changed = self.change_kept(key, &mut kept, actor, cause, decide).await;
        if changed.is_err() {
            // Whether it was appended is not known: the next change reads anew.
            *kept = None;
        }
        let idle = kept.as_ref().is_some_and(|session| session.state.is_idle());
        drop(kept);
        if idle {
            self.forget(key, &slot);
        }
        changed
    }

    /// Forgets an idle session, unless somebody is at it this moment: besides the map's own and ours.
    fn forget(&self, key: &SessionKey, slot: &Slot) {
        let mut live = self.inner.live.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = slot.try_lock().is_ok_and(|kept| kept.as_ref().is_some_and(|session| session.state.is_idle()));
        if idle && Arc::strong_count(slot) <= 2 {
            live.remove(key);
        }
    }

    async fn change_kept<T>(
        &self,
        key: &SessionKey,
        kept: &mut Option<Loaded<Session>>,
        actor: Actor,
        cause: Cause,
        decide: impl Fn(&Session) -> Result<(Change, T), Refusal>,
    ) -> Result<(bool, T), Refusal> {
        let Inner { journal, outbox, .. } = &*self.inner;
        let stream = stream(key);
        let now = if let Some(now) = kept { now } else { kept.insert(self.load(key).await?) };
        let (Change { events, posts, with, key, cause: own }, decided) = decide(&now.state)?;
        if events.is_empty() {
            return Ok((false, decided));
        }
        let expected = Expected::Version(now.version);
        let cause = own.unwrap_or(cause);
        let append = Append { stream: stream.clone(), expected, events, key, actor, cause };
        let mut appends = vec![append];
        appends.extend(with);
        let appended = if posts.is_empty() {
            match journal.append_all(appends).await {
                Ok(appended) => appended,
                // It was accepted into another session, before somebody switched to another project.
                Err(AppendError::KeyReused { .. }) => return Ok((false, decided)),
                Err(error) => return Err(unjournaled(&error)),
            }
        } else {
            outbox.commit(posts, appends).await?
        };
        let Appended { events, repeated, .. } = appended.first().ok_or_else(|| unjournaled(&"nothing was appended"))?;
        if *repeated {
            return Ok((false, decided));
        }
        let before = now.version;
        for recorded in events {
            now.advance(recorded).map_err(|error| unreadable(&error))?;
        }
        // Worth nothing but time at the next start.
        if now.version / SNAPSHOT_EVERY > before / SNAPSHOT_EVERY
            && let Err(error) = journal.snapshot(&stream, now).await
        {
            tracing::warn!(%stream, %error, "no snapshot could be stored");
        }
        Ok((true, decided))
    }
}

fn opened(key: &SessionKey, agent_session: Uuid) -> SessionEvent {
    let SessionKey { project, room, thread } = key.clone();
    SessionEvent::Opened { project, room, thread, agent_session }
}

fn encode(event: &SessionEvent) -> Result<NewEvent, Refusal> {
    NewEvent::encode(event).map_err(|error| unjournaled(&error))
}

fn unjournaled(error: &dyn Display) -> Refusal {
    Refusal::internal("the session could not be journaled", error.to_string())
}

fn unreadable(error: &dyn Display) -> Refusal {
    Refusal::internal("the session cannot be read from the journal", error.to_string())
}

#[cfg(test)]
mod tests;
