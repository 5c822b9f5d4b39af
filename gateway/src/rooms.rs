//! What the gateway remembers of a room: which project each person talks about, how messages during a turn are taken,
//! and which commands have no answer yet.
//!
//! Stream `room/<surface>:<id>`. A command is journaled before its surface may forget it, and its answer in one
//! transaction with its being answered, so that after a crash it is carried out again or visibly failed, and never both.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use journal::{
    Actor, Append, AppendError, Appended, Cause, DomainEvent, Expected, Fold, Loaded, NewEvent, Recorded, Snapshot,
    StreamId,
};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    chat::{Inbound, Person, Room, SurfaceKind},
    outbox::{Outbox, Post},
    refusal::Refusal,
    sessions::{TextOf, seen_key, text_id},
    store::Journal,
    tasks::Tasks,
    text::masked,
};

const STREAM: &str = "room";
/// So many events after a snapshot there is another one.
const SNAPSHOT_EVERY: u64 = 64;
/// The first wait before an answer is journaled again that was not taken; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest of these waits.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How messages are taken that come during a turn (CHAT-7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// They wait for its end
    #[default]
    Queue,
    /// They end it, and the agent begins anew with all that is not answered
    Interrupt,
}

/// What happens in a room, as far as the gateway remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum RoomEvent {
    /// Somebody chose a project.
    #[serde(rename = "room.project_switched")]
    ProjectSwitched {
        /// Who.
        person: Person,
        /// Which project they talk about from here on.
        project: Uuid,
    },
    /// Somebody chose how messages during a turn are taken.
    #[serde(rename = "room.mode_set")]
    ModeSet {
        /// How.
        mode: Mode,
    },
    /// Somebody wrote a command.
    #[serde(rename = "command.received")]
    CommandReceived(Received),
    /// A command has its answer.
    #[serde(rename = "command.answered")]
    CommandAnswered {
        /// The command's event.
        event_id: String,
    },
}

impl DomainEvent for RoomEvent {
    const KINDS: &'static [&'static str] =
        &["room.project_switched", "room.mode_set", "command.received", "command.answered"];
}

/// A command that somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Its event.
    pub event_id: String,
    /// Who wrote it.
    pub sender: Person,
    /// When, by the surface's clock.
    pub at: Timestamp,
    /// In which thread.
    pub thread: Option<String>,
    /// The project that its sender talked about then.
    pub project: Option<Uuid>,
    /// The id of its text.
    pub text: Uuid,
    /// The event that it was put on as a sign, if it was no message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_on: Option<String>,
    /// Where in the journal it was received. Not part of the event itself.
    #[serde(default)]
    pub position: u64,
    /// When it was received, by the journal's clock. Not part of the event itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Timestamp>,
}

/// What is remembered of a room.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// A list, because a person is no key of a JSON object.
    project_of: Vec<(Person, Uuid)>,
    /// As long as nobody set one, the configured default holds.
    mode: Option<Mode>,
    /// By their events.
    unanswered: BTreeMap<String, Received>,
    /// When the newest command was written, by its surface's clock.
    newest: Option<Timestamp>,
}

impl Fold for Remembered {
    type Event = RoomEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &RoomEvent, recorded: &Recorded) -> Result<(), Self::Error> {
        match event {
            RoomEvent::ProjectSwitched { person, project } => {
                self.project_of.retain(|(known, _)| known != person);
                self.project_of.push((person.clone(), *project));
            }
            RoomEvent::ModeSet { mode } => self.mode = Some(*mode),
            RoomEvent::CommandReceived(received) => {
                let (position, at) = (recorded.position, Some(recorded.time));
                let received = Received { position, received: at, ..received.clone() };
                // Its surface may say any time.
                self.newest = self.newest.max(Some(received.at.min(recorded.time)));
                self.unanswered.insert(received.event_id.clone(), received);
            }
            RoomEvent::CommandAnswered { event_id } => drop(self.unanswered.remove(event_id)),
        }
        Ok(())
    }
}

impl Snapshot for Remembered {
    const VERSION: u32 = 1;
}

/// All rooms.
pub struct Rooms {
    journal: Journal,
    outbox: Outbox,
    default_mode: Mode,
    remembered: Mutex<HashMap<Room, Loaded<Remembered>>>,
    /// One for each room, held from an append until it is folded, so that events are folded in their order.
    writing: Mutex<HashMap<Room, Arc<tokio::sync::Mutex<()>>>>,
}

impl Rooms {
    /// Folds all rooms from the journal. Answers to commands go through `outbox`.
    pub async fn open(journal: Journal, outbox: Outbox, default_mode: Mode) -> Result<Self, Refusal> {
        let loaded = journal
            .load_all_snapshots::<Remembered>(STREAM)
            .await
            .map_err(|error| Refusal::internal("the rooms cannot be read from the journal", error))?;
        let mut rooms = HashMap::new();
        for (stream, remembered) in loaded {
            let room = Room::parse(&stream.id).ok_or_else(|| {
                Refusal::internal("the rooms cannot be read from the journal", format!("{stream} names no room"))
            })?;
            rooms.insert(room, remembered);
        }
        Ok(Self { journal, outbox, default_mode, remembered: Mutex::new(rooms), writing: Mutex::default() })
    }

    /// The project that this person talks about here; it may be gone by now.
    pub fn project_of(&self, room: &Room, person: &Person) -> Option<Uuid> {
        self.of(room, |remembered| {
            remembered.project_of.iter().find(|(known, _)| known == person).map(|(_, project)| *project)
        })
        .flatten()
    }

    /// When the newest command of a surface was written, of those that were ever received.
    pub fn newest(&self, surface: SurfaceKind) -> Option<Timestamp> {
        let rooms = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let of_surface = rooms.iter().filter(|(room, _)| room.surface == surface);
        of_surface.filter_map(|(_, remembered)| remembered.state.newest).max()
    }

    /// How many commands of a room have no answer yet.
    pub fn waiting_commands(&self, room: &Room) -> usize {
        self.of(room, |remembered| remembered.unanswered.len()).unwrap_or_default()
    }

    /// When the oldest command was received that has no answer yet.
    pub fn oldest(&self) -> Option<Timestamp> {
        let rooms = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let unanswered = rooms.values().flat_map(|remembered| remembered.state.unanswered.values());
        unanswered.filter_map(|received| received.received).min()
    }

    /// How messages during a turn are taken here.
    pub fn mode(&self, room: &Room) -> Mode {
        self.of(room, |remembered| remembered.mode).flatten().unwrap_or(self.default_mode)
    }

    /// The commands without an answer, of all rooms, with what they said, in the order in which they were received.
    pub async fn unanswered(&self) -> Result<Vec<(Room, Received, String)>, Refusal> {
        let mut all: Vec<(Room, Received)> = {
            let rooms = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let unanswered = |(room, remembered): (&Room, &Loaded<Remembered>)| {
                let received: Vec<_> = remembered.state.unanswered.values().cloned().collect();
                received.into_iter().map(|received| (room.clone(), received)).collect::<Vec<_>>()
            };
            rooms.iter().flat_map(unanswered).collect()
        };
        all.sort_by_key(|(_, received)| received.position);
        let ids = all.iter().map(|(_, received)| received.text).collect();
        let mut texts = self.journal.texts(ids).await.map_err(|error| failed(&error))?;
        let with_text = |(room, received): (Room, Received)| {
            let text = texts.remove(&received.text).unwrap_or_default();
            (room, received, text)
        };
        Ok(all.into_iter().map(with_text).collect())
    }

    /// Receives a command, once; whether it is new.
    pub async fn receive(&self, said: &Inbound, project: Option<Uuid>) -> Result<bool, Refusal> {
        self.receive_as(said, project, None, Vec::new()).await
    }

    /// As [`Rooms::receive`], and journals in the same transaction what else follows from the command.
    pub async fn receive_with(&self, said: &Inbound, project: Option<Uuid>, posts: Vec<Post>) -> Result<bool, Refusal> {
        self.receive_as(said, project, None, posts).await
    }

    /// As [`Rooms::receive`], of what a sign on the event `on` stands for.
    pub async fn receive_sign(&self, stands_for: &Inbound, on: &str) -> Result<bool, Refusal> {
        self.receive_as(stands_for, None, Some(on.to_owned()), Vec::new()).await
    }

    async fn receive_as(
        &self,
        said: &Inbound,
        project: Option<Uuid>,
        sign_on: Option<String>,
        posts: Vec<Post>,
    ) -> Result<bool, Refusal> {
        let text = text_id(&said.room, &said.event_id, TextOf::Command);
        let received = Received {
            event_id: said.event_id.clone(),
            sender: said.sender.clone(),
            at: said.at,
            thread: said.thread.clone(),
            project,
            text,
            sign_on,
            position: 0,
            received: None,
        };
        let event = encode(&RoomEvent::CommandReceived(received))?.with_text(text, masked(&said.text));
        let key = Some(seen_key(&said.room, &said.event_id));
        let cause = Cause::Command(said.event_id.clone());
        self.change(&said.room, event, key, Actor::Person(said.sender.to_string()), cause, posts).await
    }

    /// Answers a command: that it is answered, and what with, is one transaction.
    pub async fn answer(&self, room: &Room, event_id: &str, posts: Vec<Post>) -> Result<(), Refusal> {
        let waits = self.of(room, |remembered| remembered.unanswered.contains_key(event_id)).unwrap_or(false);
        if !waits {
            return Ok(());
        }
        let event = encode(&RoomEvent::CommandAnswered { event_id: event_id.to_owned() })?;
        let cause = Cause::Command(event_id.to_owned());
        self.change(room, event, None, Actor::Gateway, cause, posts).await.map(drop)
    }

    /// Answers a command together with what it does, which is not done again when the gateway ends before its answer:
    /// `change` is given what it must append in its own transaction, or has not done anything.
    pub async fn answer_with<T, F>(
        &self,
        room: &Room,
        event_id: &str,
        change: impl FnOnce(Append) -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let event = encode(&RoomEvent::CommandAnswered { event_id: event_id.to_owned() })?;
        let (stream, cause) = (StreamId::new(STREAM, room), Cause::Command(event_id.to_owned()));
        let (expected, actor) = (Expected::Any, Actor::Gateway);
        let answered = Append { stream: stream.clone(), expected, events: vec![event], key: None, actor, cause };
        let _writing = self.writing(room).await;
        let changed = change(answered).await;
        self.read_again(room, &stream).await;
        changed
    }

    /// Answers a command, as often as it takes: what a command did is not kept from people because a disk was full for a
    /// while. What the journal does not take at once is tried again beside everything else. Where the gateway stops before,
    /// the command has no answer yet, and the next start sees to it.
    pub async fn answer_in_the_end(self: &Arc<Self>, tasks: &Tasks, room: &Room, event_id: &str, posts: Vec<Post>) {
        let Err(refusal) = self.answer(room, event_id, posts.clone()).await else { return };
        error!(%room, event_id, %refusal, "the answer to a command is not journaled; it is tried again");
        let (this, stopping) = (Arc::clone(self), tasks.stopping());
        let (room, event_id) = (room.clone(), event_id.to_owned());
        tasks.spawn_to_end("an answer", async move {
            let mut wait = FIRST_WAIT;
            while stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
                match this.answer(&room, &event_id, posts.clone()).await {
                    Ok(()) => return,
                    Err(refusal) => error!(%room, event_id, %refusal, ?wait, "it is not journaled yet"),
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            info!(%room, event_id, "a command has no answer; the next start sees to it");
        });
    }

    /// Remembers what this person talks about here from now on.
    pub async fn switch(&self, room: &Room, person: &Person, project: Uuid, cause: Cause) -> Result<(), Refusal> {
        let event = encode(&RoomEvent::ProjectSwitched { person: person.clone(), project })?;
        self.change(room, event, None, Actor::Person(person.to_string()), cause, Vec::new()).await.map(drop)
    }

    /// Remembers how messages during a turn are taken here from now on.
    pub async fn set_mode(&self, room: &Room, mode: Mode, by: &Person, cause: Cause) -> Result<(), Refusal> {
        let event = encode(&RoomEvent::ModeSet { mode })?;
        self.change(room, event, None, Actor::Person(by.to_string()), cause, Vec::new()).await.map(drop)
    }

    fn of<T>(&self, room: &Room, look: impl FnOnce(&Remembered) -> T) -> Option<T> {
        let rooms = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.get(room).map(|remembered| look(&remembered.state))
    }

    /// Appends an event, together with what is told of it; whether it is new.
    async fn change(
        &self,
        room: &Room,
        event: NewEvent,
        key: Option<String>,
        actor: Actor,
        cause: Cause,
        posts: Vec<Post>,
    ) -> Result<bool, Refusal> {
        let stream = StreamId::new(STREAM, room);
        let append = Append { stream: stream.clone(), expected: Expected::Any, events: vec![event], key, actor, cause };
        let _writing = self.writing(room).await;
        let changed = self.append(room, append, posts).await;
        if changed.is_err() {
            self.read_again(room, &stream).await;
        }
        changed
    }

    /// Nobody else changes a room while this is held.
    async fn writing(&self, room: &Room) -> tokio::sync::OwnedMutexGuard<()> {
        let writing = {
            let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(writing.entry(room.clone()).or_default())
        };
        writing.lock_owned().await
    }

    /// Where what was appended is not known, or not folded here: what the journal says now holds.
    async fn read_again(&self, room: &Room, stream: &StreamId) {
        match self.journal.load_snapshot::<Remembered>(stream).await {
            Ok(now) => {
                self.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(room.clone(), now);
            }
            Err(error) => error!(%stream, %error, "a room cannot be read"),
        }
    }

    async fn append(&self, room: &Room, append: Append, posts: Vec<Post>) -> Result<bool, Refusal> {
        let stream = append.stream.clone();
        let appended = if posts.is_empty() {
            match self.journal.append(append).await {
                Ok(appended) => appended,
                // It was seen before, when it meant something else.
                Err(AppendError::KeyReused { .. }) => return Ok(false),
                Err(error) => return Err(failed(&error)),
            }
        } else {
            let mut outcomes = match self.outbox.commit(posts, vec![append]).await {
                Ok(outcomes) => outcomes,
                Err(refusal) if was_seen(&refusal) => return Ok(false),
                Err(refusal) => return Err(refusal),
            };
            outcomes.pop().ok_or_else(|| failed(&"nothing was appended"))?
        };
        let Appended { events, repeated, .. } = &appended;
        if *repeated {
            return Ok(false);
        }
        let due = {
            let mut rooms = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            let remembered = rooms.entry(room.clone()).or_default();
            let before = remembered.version;
            for recorded in events {
                remembered.advance(recorded).map_err(|error| failed(&error))?;
            }
            let due = remembered.version / SNAPSHOT_EVERY > before / SNAPSHOT_EVERY;
            due.then(|| self.journal.snapshot(&stream, remembered))
        };
        // Worth nothing but time at the next start.
        if let Some(snapshot) = due
            && let Err(error) = snapshot.await
        {
            warn!(%stream, %error, "no snapshot could be stored");
        }
        Ok(true)
    }
}

fn encode(event: &RoomEvent) -> Result<NewEvent, Refusal> {
    NewEvent::encode(event).map_err(|error| failed(&error))
}

/// Whether it was seen before, when it meant something else.
fn was_seen(refusal: &Refusal) -> bool {
    let journals_word = std::error::Error::source(refusal).and_then(|word| word.downcast_ref());
    matches!(journals_word, Some(AppendError::KeyReused { .. }))
}

fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::internal("the command could not be journaled", error.to_string())
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use journal::SystemClock;

    use super::*;
    use crate::{chat::Weight, outbox::Address};

    #[tokio::test]
    async fn a_command_is_received_once_and_stays_until_it_is_answered() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let outbox = Outbox::open(journal.clone(), Tasks::new()).await.expect("it opens");
        let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens");
        let room = Room { surface: SurfaceKind::Matrix, id: "!a:example.org".into() };
        let said = |event_id: &str| Inbound {
            room: room.clone(),
            event_id: event_id.into(),
            sender: Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() },
            at: Timestamp::UNIX_EPOCH,
            text: "!new project a --git https://ann:secret@example.org/a.git".into(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        };
        for (event, new) in [("$1", true), ("$2", true), ("$1", false)] {
            assert_eq!(rooms.receive(&said(event), None).await.expect("it is received"), new);
        }
        let to = Address { room: room.clone(), thread: None, reply_to: None, mention: None, pending: None };
        for _ in 0..2 {
            let post = Post::answer(to.clone(), "$1", "done".into());
            assert_eq!(post.weight, Weight::Answer);
            rooms.answer(&room, "$1", vec![post]).await.expect("it is answered, once");
        }
        assert_eq!(outbox.undelivered(), 1);
        rooms.set_mode(&room, Mode::Interrupt, &said("$3").sender, Cause::None).await.expect("it is set");

        let reopened = Rooms::open(journal, outbox, Mode::Queue).await.expect("it opens again");
        let left = reopened.unanswered().await.expect("it is readable");
        let left: Vec<_> = left.iter().map(|(_, received, text)| (received.event_id.as_str(), text.as_str())).collect();
        assert_eq!(left, [("$2", "!new project a --git https://…@example.org/a.git")]);
        assert_eq!(reopened.mode(&room), Mode::Interrupt);
        assert!(!reopened.receive(&said("$2"), None).await.expect("it is known"));
    }

    #[tokio::test]
    async fn an_answer_that_the_journal_does_not_take_is_tried_until_it_does() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let tasks = Tasks::new();
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await.expect("it opens");
        let rooms = Arc::new(Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens"));
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let said = Inbound {
            room: room.clone(),
            event_id: "$1".into(),
            sender: Person { surface: SurfaceKind::Console, id: "ann".into() },
            at: Timestamp::UNIX_EPOCH,
            text: "version".into(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        };
        assert!(rooms.receive(&said, None).await.expect("it is received"));
        journal.refuse("command.answered", 2);
        let to = Address { room: room.clone(), thread: None, reply_to: None, mention: None, pending: None };
        rooms.answer_in_the_end(&tasks, &room, "$1", vec![Post::answer(to, "$1", "0.1".into())]).await;
        assert_eq!((rooms.waiting_commands(&room), outbox.undelivered()), (1, 0), "it is not taken yet");
        while rooms.waiting_commands(&room) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!((journal.append_failures(), outbox.undelivered()), (2, 1));

        // A gateway that stops leaves it to the next one.
        let said = Inbound { event_id: "$2".into(), ..said };
        assert!(rooms.receive(&said, None).await.expect("it is received"));
        journal.refuse("command.answered", u64::MAX);
        rooms.answer_in_the_end(&tasks, &room, "$2", Vec::new()).await;
        tasks.shutdown(Duration::from_secs(10)).await.expect("it is given up");
        assert_eq!(rooms.unanswered().await.expect("they are readable").len(), 1);
    }

    #[tokio::test]
    async fn many_switches_at_once_are_all_remembered() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let outbox = Outbox::open(journal.clone(), Tasks::new()).await.expect("it opens");
        let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens");
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let people: Vec<_> =
            (0..20).map(|n| Person { surface: SurfaceKind::Console, id: format!("person{n}") }).collect();
        let projects: Vec<_> = people.iter().map(|_| Uuid::now_v7()).collect();
        let switches =
            people.iter().zip(&projects).map(|(person, project)| rooms.switch(&room, person, *project, Cause::None));
        for switched in join_all(switches).await {
            switched.expect("nobody is in the way of anybody");
        }
        let reopened = Rooms::open(journal, outbox, Mode::Queue).await.expect("it opens again");
        for (person, project) in people.iter().zip(&projects) {
            assert_eq!(rooms.project_of(&room, person), Some(*project));
            assert_eq!(reopened.project_of(&room, person), Some(*project));
        }
    }
}
