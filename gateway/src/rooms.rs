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
    choices: Mutex<HashMap<String, Loaded<Choices>>>,
    /// Held from an append until it is folded, so that events are folded in their order.
    writing: tokio::sync::Mutex<()>,
}

impl Rooms {
    /// Folds all rooms from the journal.
    pub async fn open(journal: Journal) -> Result<Self, Refusal> {
        let loaded = journal
            .load_all::<Choices>(STREAM)
            .await
            .map_err(|error| Refusal::internal("the rooms cannot be read from the journal", error))?;
        let rooms = loaded.into_iter().map(|(stream, choices)| (stream.id, choices)).collect();
        Ok(Self { journal, choices: Mutex::new(rooms), writing: tokio::sync::Mutex::default() })
    }

    /// The project that this person talks about here; it may be gone by now.
    pub fn project_of(&self, room: &Room, person: &Person) -> Option<Uuid> {
        let rooms = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
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
        let _writing = self.writing.lock().await;
        let appended = self.journal.append(append).await.map_err(|error| failed(&error))?;
        let mut rooms = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let choices = rooms.entry(room.to_string()).or_default();
        for recorded in &appended.events {
            choices.advance(recorded).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::join_all;
    use journal::SystemClock;

    use super::*;
    use crate::chat::SurfaceKind;

    #[tokio::test]
    async fn many_switches_at_once_are_all_remembered() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let rooms = Rooms::open(journal.clone()).await.expect("it opens");
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let people: Vec<_> =
            (0..20).map(|n| Person { surface: SurfaceKind::Console, id: format!("person{n}") }).collect();
        let projects: Vec<_> = people.iter().map(|_| Uuid::now_v7()).collect();
        let switches =
            people.iter().zip(&projects).map(|(person, project)| rooms.switch(&room, person, *project, Cause::None));
        for switched in join_all(switches).await {
            switched.expect("nobody is in the way of anybody");
        }
        let reopened = Rooms::open(journal).await.expect("it opens again");
        for (person, project) in people.iter().zip(&projects) {
            assert_eq!(rooms.project_of(&room, person), Some(*project));
            assert_eq!(reopened.project_of(&room, person), Some(*project));
        }
    }
}
