//! `delete project` and its confirmation. Who may give them was decided by [`super::rights`].

use std::{sync::PoisonError, time::Duration};

use tokio::{sync::oneshot, time::Instant};
use tracing::warn;
use uuid::Uuid;

use super::{
    Asked, Commands,
    grammar::{Command, Confirm, Delete},
};
use crate::{
    dispatch::core::{Event, Scope},
    projects::Spec,
    refusal::Refusal,
    text,
    turns::StopRequest,
};

/// How long a deletion may be confirmed.
const CONFIRM_WITHIN: Duration = Duration::from_mins(2);
/// How long a turn may take to end before its project is deleted all the same.
const QUIET_WITHIN: Duration = Duration::from_secs(30);

impl Commands {
    /// Tells what goes, and waits for its confirmation.
    pub(super) fn ask_deletion(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let key = (asked.to.room.clone(), asked.by.clone(), id);
        self.inner.deletions.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
        let came_to_be = project.came_to_be;
        let Some(Spec { name, path, .. }) = project.spec else { return Err(Refusal::usage("that project is gone")) };
        let path = text::code(&path.to_string_lossy());
        let removed = if came_to_be {
            format!(
                "the container of **{name}**, its home with the agent's memory, and its keys. The files in {path} stay"
            )
        } else {
            format!("what was made of **{name}**. What was in {path} before stays")
        };
        Ok(format!(
            "This removes {removed}.\nWrite `{}` within two minutes to do it.",
            Command::Confirm(Confirm::Delete { name: name.clone() }),
        ))
    }

    /// Deletes what was asked for here, by the same person, a moment ago.
    pub(super) async fn delete(&self, name: &str, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let key = (asked.to.room.clone(), asked.by.clone(), id);
        let asked_at = self.inner.deletions.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if asked_at.is_none_or(|at| at.elapsed() > CONFIRM_WITHIN) {
            let first = Command::Delete(Delete::Project { name: name.to_owned() });
            return Err(Refusal::usage(format!("there is nothing to confirm for {}", text::code(name)))
                .hint(format!("Write `{first}` first; it can be confirmed in this room, by you, for two minutes.")));
        }
        let came_to_be = project.came_to_be;
        let path = project.spec.map(|spec| spec.path).unwrap_or_default();
        let kept = self.inner.sagas.delete(id, &asked.by, asked.cause(), self.quiet(id, asked)).await?;
        // Nobody waits for a budget of it any more; the dispatcher is gone only when the gateway stops.
        let _told = self.inner.dispatcher.tell(Event::Unpause { project: id });
        let path = text::code(&path.to_string_lossy());
        let stays = match kept {
            Some(kept) => kept,
            None if came_to_be => format!("Its files stay in {path}."),
            None => format!("Only what was there before stays in {path}."),
        };
        Ok(format!("**{name}** is deleted. {stays}"))
    }

    /// Ends what runs in a project and drops what waits for it, in all rooms.
    async fn quiet(&self, project: Uuid, asked: &Asked) {
        let (done, quiet) = oneshot::channel();
        let request = StopRequest::Silent { by: asked.by.clone(), event_id: asked.event_id.clone(), done };
        let stop = Event::Stop { scope: Scope::Project(project), request };
        if self.inner.dispatcher.tell(stop) && tokio::time::timeout(QUIET_WITHIN, quiet).await.is_err() {
            // Its container is killed next, and everything in it with it.
            warn!(%project, "the project's turn did not end in time");
        }
    }
}
