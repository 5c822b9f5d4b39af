//! Stops, once the dispatcher has carried them out: what they dropped is journaled, and who asked hears what they did.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError},
};

use journal::{Actor, Cause};
use tokio::sync::oneshot;
use tracing::info;
use uuid::Uuid;

use super::{
    Handle, Turns,
    told::{self, Did},
};
use crate::{
    chat::{Mark, Person},
    dispatch::{SessionKey, core::Ran},
    outbox::{Address, Post},
    sessions::{Message, Removal},
};

/// Who asked to stop, and what they get.
#[derive(Debug)]
pub enum StopRequest {
    /// A person asked by the command with this event, and gets the report here.
    Told {
        /// Who.
        by: Person,
        /// The command's event.
        event_id: String,
        /// Where the report goes.
        to: Address,
        /// What they meant.
        meant: Meant,
        /// What works there and was not meant.
        spared: Spared,
    },
    /// The project is being deleted. Nobody gets a report; `done` when nothing of the project runs or waits any more.
    /// Each room is told what became of its own turn and messages.
    Silent {
        /// Who deletes it.
        by: Person,
        /// By the command with this event.
        event_id: String,
        /// Fired when nothing is left.
        done: oneshot::Sender<()>,
    },
}

/// What a person means who asks to stop.
#[derive(Debug)]
pub enum Meant {
    /// The project that they have chosen in that room.
    Chosen,
    /// They have chosen none there: all that they may use, by name.
    All(BTreeMap<Uuid, String>),
}

/// What works in a room and a stop there is not for.
#[derive(Debug, Default)]
pub struct Spared {
    /// The projects of it that who asked may use, by name.
    pub used: Vec<String>,
    /// Whether there are others.
    pub foreign: bool,
}

/// The end of a turn that was stopped.
#[derive(Debug)]
pub(super) struct End {
    project: Uuid,
    /// How it ended, and what it answered; nothing where it was over by itself.
    told: Option<(String, Vec<String>)>,
}

impl Turns {
    /// How these turns ended, which are over now.
    pub(super) fn ends_of(&self, ran: &[Ran]) -> Vec<End> {
        let stopped = self.inner.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        ran.iter().map(|ran| End { project: ran.project, told: stopped.get(&ran.batch).cloned() }).collect()
    }

    /// Journals what a stop dropped, and tells of it. If the gateway ends before, the stop has no answer yet and is done again.
    pub(super) async fn report(&self, request: StopRequest, ends: Vec<End>, dropped: Vec<Handle>) {
        let (why, by, event_id) = match &request {
            StopRequest::Told { by, event_id, .. } => (Removal::Stopped, by, event_id),
            StopRequest::Silent { by, event_id, .. } => (Removal::Deleted, by, event_id),
        };
        let origin = (Actor::Person(by.to_string()), Cause::Command(event_id.clone()));
        let mut by_session: HashMap<Arc<SessionKey>, Vec<Arc<str>>> = HashMap::new();
        for handle in dropped {
            by_session.entry(handle.session).or_default().push(handle.event_id);
        }
        let mut did: BTreeMap<Uuid, Did> = BTreeMap::new();
        let mut answers: Vec<String> = Vec::new();
        for End { project, told } in ends {
            let did = did.entry(project).or_default();
            did.ran += 1;
            if let Some((how, answered)) = told {
                did.hows.push(how);
                answers.extend(answered);
            }
        }
        let mut left = by_session.into_iter().peekable();
        while let Some((session, event_ids)) = left.next() {
            let ids: Vec<&str> = event_ids.iter().map(|id| &**id).collect();
            let last = left.peek().is_none();
            let sessions = &self.inner.parts.sessions;
            let removing = self.until_journaled("messages are dropped", async || match &request {
                // Told in one transaction with what was dropped last: done again after a crash, it would find nothing to name.
                StopRequest::Told { event_id, to, meant, spared, .. } if last => {
                    let told = |removed: &[Message]| {
                        let (mut did, mut answers) = (did.clone(), answers.clone());
                        note(&session, removed, &mut did, &mut answers);
                        vec![reported(to, event_id, told::report(meant, &did, spared), answers)]
                    };
                    let removing =
                        |answered| sessions.remove(&session, &ids, why, origin.clone(), told, vec![answered]);
                    self.inner.parts.rooms.answer_with(&to.room, event_id, removing).await
                }
                _ => {
                    let told = |removed: &[Message]| {
                        if why == Removal::Deleted { told::dropped(&session, removed) } else { Vec::new() }
                    };
                    sessions.remove(&session, &ids, why, origin.clone(), told, Vec::new()).await
                }
            });
            // Without an answer the stop is done again by the next start.
            let Some(removed) = removing.await else { return };
            note(&session, &removed, &mut did, &mut answers);
            self.mark(&session.room, &removed, Mark::Delivered);
            for id in ids {
                drop(self.let_go(id));
            }
        }
        match request {
            // Where the last of what was dropped has told it, there is nothing left to answer.
            StopRequest::Told { event_id, to, meant, spared, .. } => {
                let post = reported(&to, &event_id, told::report(&meant, &did, &spared), answers);
                let answering = self.until_journaled("a stop is answered", || {
                    self.inner.parts.rooms.answer(&to.room, &event_id, vec![post.clone()])
                });
                if answering.await.is_none() {
                    info!("a stop has no answer; the next start does it again");
                }
            }
            // Whoever gave up waiting has dropped the receiver.
            StopRequest::Silent { done, .. } => drop(done.send(())),
        }
    }
}

/// Notes what was dropped of a session.
fn note(session: &SessionKey, dropped: &[Message], did: &mut BTreeMap<Uuid, Did>, answers: &mut Vec<String>) {
    if !dropped.is_empty() {
        did.entry(session.project).or_default().dropped += dropped.len();
    }
    answers.extend(dropped.iter().map(|message| message.event_id.clone()));
}

/// The answer to a stop. Its people see what became of what they said.
fn reported(to: &Address, event_id: &str, markdown: String, mut answers: Vec<String>) -> Post {
    let mut post = Post::answer(to.clone(), event_id, markdown);
    post.answers.append(&mut answers);
    post
}
