//! `stop` (CHAT-5): what of a room it is for.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Asked, Commands};
use crate::{
    chat::InboxError,
    dispatch::core::{Event, Scope},
    turns::{Meant, Spared, StopRequest},
};

impl Commands {
    /// Has the dispatcher stop what the asker means: the chosen project in this room, or, where they have chosen none,
    /// everything in it that they may use: an agent that works before their eyes is not said to be idle.
    pub(super) async fn stop(&self, asked: Asked) -> Result<(), InboxError> {
        let Asked { by, role, to, project, event_id } = asked;
        let used: BTreeMap<Uuid, String> = self
            .inner
            .registry
            .used_by(&by, role)
            .filter_map(|(id, project)| project.spec.map(|spec| (id, spec.name)))
            .collect();
        let room = to.room.clone();
        let projects = project.map_or_else(|| used.keys().copied().collect(), |id| [id].into());
        let scope = Scope::Room { room, projects };
        let mut spared = Spared::default();
        for (key, _) in self.inner.sessions.busy(|key| key.room == to.room && !scope.covers(key)).await {
            match used.get(&key.project) {
                Some(name) => spared.used.push(name.clone()),
                None => spared.foreign = true,
            }
        }
        spared.used.dedup();
        let meant = if project.is_some() { Meant::Chosen } else { Meant::All(used) };
        let request = StopRequest::Told { by, event_id, to, meant, spared };
        if self.inner.dispatcher.tell(Event::Stop { scope, request }) { Ok(()) } else { Err(InboxError::Stopping) }
    }
}
