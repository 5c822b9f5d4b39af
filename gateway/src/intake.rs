//! From a surface's message to a command or a turn (MTX-4, CHAT-12): who may speak, is it for us, what is it.
//!
//! Who may speak is decided before what was said (invariant 12). Commands never wait for a turn.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tracing::debug;
use uuid::Uuid;

use crate::{
    chat::{Inbound, Inbox, InboxError, Person, Room, Weight},
    commands::{
        Asked, Commands,
        grammar::{self, Command, Said},
    },
    dispatch::{SessionKey, actor::Dispatcher, core::Event},
    outbox::{Address, Outbox},
    people::{People, Role},
    projects::{Registry, Stage},
    prompt::Words,
    rooms::Rooms,
    turns::StopRequest,
};

/// Takes what people say.
pub struct Intake {
    /// Who may speak.
    pub people: People,
    /// Whom they talk about.
    pub rooms: Arc<Rooms>,
    /// The projects.
    pub registry: Arc<Registry>,
    /// Carries commands out.
    pub commands: Commands,
    /// Takes words for agents.
    pub dispatcher: Dispatcher<Words, StopRequest>,
    /// Sends answers.
    pub outbox: Outbox,
}

impl Intake {
    /// The project that this person talks about here, as long as it is there.
    fn project(&self, room: &Room, person: &Person) -> Option<Uuid> {
        let id = self.rooms.project_of(room, person)?;
        self.registry.get(id).filter(|project| project.stage == Stage::Registered).map(|_| id)
    }

    async fn take(&self, message: Inbound) -> Result<(), InboxError> {
        let Some(role) = self.people.role(&message.sender) else {
            debug!(sender = %message.sender, room = %message.room, "not listened to");
            return Ok(());
        };
        if !message.addressed {
            return Ok(());
        }
        let to = Address {
            room: message.room.clone(),
            thread: message.thread.clone(),
            reply_to: Some(message.event_id.clone()),
            mention: Some(message.sender.clone()),
            pending: message.pending.clone(),
        };
        let project = self.project(&message.room, &message.sender);
        match grammar::read(&message.text) {
            Said::Text(text) if text.is_empty() => Ok(()),
            Said::Text(text) => self.words(message, text, role, project, &to),
            Said::Misused(answer) => {
                drop(self.outbox.post(&to, Weight::Answer, answer));
                Ok(())
            }
            Said::Command(Command::Stop) => {
                if let Some(project) = project {
                    self.tell(Event::Stop { room: Some(message.room), project, request: StopRequest::Told(to) })
                } else {
                    drop(self.outbox.post(&to, Weight::Answer, "Nothing was running."));
                    Ok(())
                }
            }
            Said::Command(command) => {
                let asked = Asked { by: message.sender, role, to, project, event_id: message.event_id };
                self.commands.take(command, asked).await;
                Ok(())
            }
        }
    }

    fn words(
        &self,
        message: Inbound,
        text: String,
        role: Role,
        project: Option<Uuid>,
        to: &Address,
    ) -> Result<(), InboxError> {
        let Some(project) = project else {
            drop(self.outbox.post(to, Weight::Answer, self.commands.how_to_choose()));
            return Ok(());
        };
        let Inbound { room, event_id, sender, at, quoted, thread, pending, .. } = message;
        // Threads are conversations of their own later; answers go to them already.
        let session = SessionKey { project, room: room.clone(), thread: None };
        let message = Words { room, thread, event_id, sender, at, text, quoted, pending };
        self.tell(Event::Message { session, rights: role, message })
    }

    fn tell(&self, event: Event<Words, StopRequest>) -> Result<(), InboxError> {
        if self.dispatcher.tell(event) { Ok(()) } else { Err(InboxError::Stopping) }
    }
}

impl Inbox for Intake {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(message).boxed()
    }

    fn listens_to(&self, person: &Person) -> bool {
        self.people.role(person).is_some()
    }
}
