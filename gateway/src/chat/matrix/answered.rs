//! Which messages have their answer, as their room shows it (DUR-5).
//!
//! The last part of each answer bears the events that it answers (`dev.musher`). What is read there in the same history as such a
//! message, which the answer always follows, was answered: by a life that a state directory which was set back knows nothing of, or
//! that was killed before the position moved on.

use std::collections::HashSet;

use matrix_sdk::{deserialized_responses::TimelineEvent, ruma::EventId};
use serde::Deserialize;

use super::intake::Own;

/// The events that were answered.
#[derive(Debug, Default)]
pub(super) struct Answered(HashSet<String>);

impl Answered {
    /// Learns what an event says to answer, if it is ours: others may write there what they like.
    pub(super) fn learn(&mut self, event: &TimelineEvent, own: &Own<'_>) {
        if event.sender().is_none_or(|sender| sender != own.user) {
            return;
        }
        if let Ok(Sent { content: Content { musher: Some(musher) } }) = serde_json::from_str(event.raw().json().get()) {
            self.0.extend(musher.answers);
        }
    }

    /// Whether the event was answered.
    pub(super) fn contains(&self, event: &EventId) -> bool {
        self.0.contains(event.as_str())
    }
}

/// The part of an event that says what it answers.
#[derive(Deserialize)]
struct Sent {
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    /// Lost when the event was taken back.
    #[serde(rename = "dev.musher")]
    musher: Option<Musher>,
}

#[derive(Deserialize)]
struct Musher {
    #[serde(default)]
    answers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::{event_id, serde::Raw, user_id};
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    #[test]
    fn our_own_messages_alone_say_what_was_answered() {
        let own = Own { user: user_id!("@musher:example.org"), names: Vec::new(), redacts_in_content: true };
        let learn = |sender: &str, content: Value| {
            let event = json!({
                "type": "m.room.message", "event_id": "$answer", "sender": sender, "origin_server_ts": 1,
                "content": content,
            });
            let mut answered = Answered::default();
            let raw = Raw::from_json(to_raw_value(&event).expect("it can be written"));
            answered.learn(&TimelineEvent::from_plaintext(raw), &own);
            answered
        };
        let answers =
            json!({"msgtype": "m.text", "body": "done", "dev.musher": {"transaction": "t", "answers": ["$1", "$2"]}});
        let answered = learn("@musher:example.org", answers.clone());
        assert!(answered.contains(event_id!("$1")) && answered.contains(event_id!("$2")));
        assert!(!answered.contains(event_id!("$3")));
        assert!(!learn("@eve:example.org", answers).contains(event_id!("$1")));
        for content in
            [json!({}), json!({"dev.musher": {"transaction": "t"}}), json!({"dev.musher": {"answers": "$1"}})]
        {
            assert!(!learn("@musher:example.org", content).contains(event_id!("$1")));
        }
    }
}
