//! Which project somebody talks about in a room: the last `switch`, per person and room.
//!
//! Stream `room/<surface>:<id>`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use journal::{Actor, Append, Cause, DomainEvent, Expected, Fold, Journal, Loaded, NewEvent, Recorded, StreamId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    chat::{Person, Room},
    refusal::Refusal,
};

const STREAM: &str = "room";

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
}

impl DomainEvent for RoomEvent {
    const KINDS: &'static [&'static str] = &["room.project_switched"];
}

#[derive(Debug, Default)]
struct Choices {
    project_of: HashMap<Person, Uuid>,
}

impl Fold for Choices {
    type Event = RoomEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &RoomEvent, _: &Recorded) -> Result<(), Self::Error> {
        let RoomEvent::ProjectSwitched { person, project } = event;
        self.project_of.insert(person.clone(), *project);
        Ok(())
    }
}

/// All rooms' choices.
pub struct Rooms {
    journal: Journal,
    rooms: Mutex<HashMap<String, Loaded<Choices>>>,
}

impl Rooms {
    /// Folds all rooms from the journal.
    pub async fn open(journal: Journal) -> Result<Self, Refusal> {
        let loaded = journal
            .load_all::<Choices>(STREAM)
            .await
            .map_err(|error| Refusal::internal("the rooms cannot be read from the journal", error))?;
        let rooms = loaded.into_iter().map(|(stream, choices)| (stream.id, choices)).collect();
        Ok(Self { journal, rooms: Mutex::new(rooms) })
    }

    /// The project that this person talks about here; it may be gone by now.
    pub fn project_of(&self, room: &Room, person: &Person) -> Option<Uuid> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.get(&room.to_string())?.state.project_of.get(person).copied()
    }

    /// Remembers what this person talks about here from now on.
    pub async fn switch(&self, room: &Room, person: &Person, project: Uuid, cause: Cause) -> Result<(), Refusal> {
        let failed =
            |error: &dyn std::fmt::Display| Refusal::internal("the choice could not be journaled", error.to_string());
        let event = RoomEvent::ProjectSwitched { person: person.clone(), project };
        let append = Append {
            stream: StreamId::new(STREAM, room),
            expected: Expected::Any,
            events: vec![NewEvent::encode(&event).map_err(|error| failed(&error))?],
            key: None,
            actor: Actor::Person(person.to_string()),
            cause,
        };
        let appended = self.journal.append(append).await.map_err(|error| failed(&error))?;
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let choices = rooms.entry(room.to_string()).or_default();
        for recorded in &appended.events {
            choices.advance(recorded).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}
