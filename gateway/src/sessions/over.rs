//! What became of what was said last, for whoever asks.

use std::collections::HashMap;

use journal::Decoded;
use uuid::Uuid;

use super::{Ending, Message, SessionEvent, Sessions, stream, unreadable};
use crate::{dispatch::SessionKey, refusal::Refusal};

/// In how many events of a session, the latest, its last turn is looked for.
const LOOKED_THROUGH: u64 = 256;

/// A turn that is over.
#[derive(Debug)]
pub struct Over {
    /// Its id.
    pub turn: Uuid,
    /// How it ended.
    pub ending: Ending,
    /// The last message that it was about.
    pub last: Message,
}

impl Sessions {
    /// The turn of a session that ended last and left nothing to be answered, if it is among its latest events.
    pub async fn last_over(&self, key: &SessionKey) -> Result<Option<Over>, Refusal> {
        let since = self.load(key).await?.version.saturating_sub(LOOKED_THROUGH);
        let events = self.inner.journal.read(&stream(key), since).await.map_err(|error| unreadable(&error))?;
        let (mut messages, mut begun, mut over) = (HashMap::new(), None, None);
        for recorded in events {
            let Ok(Decoded::Known(event)) = recorded.decode() else { continue };
            match event {
                SessionEvent::Accepted(message) => drop(messages.insert(message.event_id.clone(), message)),
                SessionEvent::Edited { event_id, text } => {
                    messages.entry(event_id).and_modify(|message| message.text = text);
                }
                SessionEvent::TurnBegun { answers, .. } => {
                    begun = answers.last().and_then(|last| messages.get(&last.event_id)).cloned();
                }
                SessionEvent::TurnFinished { turn, ending, .. } if ending != Ending::Superseded => {
                    over = begun.take().map(|last| Over { turn, ending, last });
                }
                _ => {}
            }
        }
        Ok(over)
    }
}
