//! What was said lately in the rooms, so that a reply can be understood without asking the homeserver.
//!
//! Bounded memory and nothing more: whatever has fallen out is fetched again.

use std::collections::{HashMap, VecDeque};

use matrix_sdk::ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};

use crate::text;

/// How many events are remembered.
const CAPACITY: usize = 2048;
/// How much of each text is remembered, in bytes; a reply that quotes it tells how much is missing.
const MAX_TEXT: usize = 4096;

/// A message that was said earlier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Who said it.
    pub(super) sender: OwnedUserId,
    /// Its text.
    pub(super) text: String,
    /// The edit that has given it this text, if one has.
    pub(super) edit: Option<OwnedEventId>,
}

/// An event is known by its room too: a reply must not bring text from one room into another.
type Key = (OwnedRoomId, OwnedEventId);

/// What is remembered of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Memory {
    /// It was said.
    Said(Known),
    /// The homeserver was asked for it and has no such message.
    InVain,
}

impl Memory {
    /// What was said, if it was.
    pub(super) fn said(self) -> Option<Known> {
        match self {
            Self::Said(known) => Some(known),
            Self::InVain => None,
        }
    }
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Seen {
    entries: HashMap<Key, Memory>,
    order: VecDeque<Key>,
}

impl Seen {
    /// Remembers an event, and forgets the oldest one when there are too many.
    pub(super) fn insert(&mut self, room: OwnedRoomId, event: OwnedEventId, mut memory: Memory) {
        if let Memory::Said(known) = &mut memory {
            known.text = text::middle_left_out(&known.text, MAX_TEXT);
        }
        let key = (room, event);
        if self.entries.insert(key.clone(), memory).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    /// Puts another text in the place of what an event said, where that is remembered and its sender's own: no reply brings the
    /// earlier one in again.
    pub(super) fn edit(&mut self, room: OwnedRoomId, event: OwnedEventId, edited: Known) {
        let said = self.entries.get(&(room.clone(), event.clone())).cloned().and_then(Memory::said);
        if said.is_some_and(|said| said.sender == edited.sender) {
            self.insert(room, event, Memory::Said(edited));
        }
    }

    /// Forgets what an event said that was taken back: no reply brings it in again. What an edit has changed that was taken back
    /// is asked for again.
    pub(super) fn take_back(&mut self, room: OwnedRoomId, event: OwnedEventId) {
        let is_edited_by =
            |memory: &Memory| matches!(memory, Memory::Said(known) if known.edit.as_ref() == Some(&event));
        let edited = self.entries.iter().find(|((of, _), memory)| *of == room && is_edited_by(memory));
        if let Some(key) = edited.map(|(key, _)| key.clone()) {
            self.entries.remove(&key);
            self.order.retain(|other| *other != key);
        }
        if let Some(memory) = self.entries.get_mut(&(room, event)) {
            *memory = Memory::InVain;
        }
    }

    /// What is remembered of an event, if it is.
    pub(super) fn get(&self, room: OwnedRoomId, event: OwnedEventId) -> Option<Memory> {
        self.entries.get(&(room, event)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::{EventId, UserId, room_id, user_id};

    use super::*;

    #[test]
    fn memory_is_bounded_and_kept_apart_by_room() {
        let (room, other) = (room_id!("!a:b.c").to_owned(), room_id!("!other:b.c").to_owned());
        let event = |n: usize| EventId::parse(format!("$event{n}:b.c")).expect("an event id");
        let mut seen = Seen::default();
        for n in 0..=CAPACITY {
            let known = Known { sender: user_id!("@ann:b.c").to_owned(), text: "ü".repeat(MAX_TEXT), edit: None };
            seen.insert(room.clone(), event(n), Memory::Said(known));
        }
        assert_eq!(seen.get(room.clone(), event(0)), None);
        assert_eq!(seen.get(other, event(1)), None);
        let Some(Memory::Said(kept)) = seen.get(room.clone(), event(1)) else { panic!("it is still known") };
        let half = "ü".repeat(MAX_TEXT / 4);
        assert_eq!(kept.text, format!("{half}\n… ({MAX_TEXT} bytes were left out here)\n{half}"));
        assert_eq!((seen.entries.len(), seen.order.len()), (CAPACITY, CAPACITY));

        seen.insert(room.clone(), event(1), Memory::InVain);
        assert_eq!(seen.get(room.clone(), event(1)), Some(Memory::InVain));
        assert_eq!(seen.order.len(), CAPACITY);

        seen.take_back(room.clone(), event(2));
        assert_eq!(seen.get(room.clone(), event(2)), Some(Memory::InVain));
        seen.take_back(room.clone(), event(0));
        assert_eq!(seen.get(room, event(0)), None, "what is not known takes no place");
    }

    #[test]
    fn an_edit_puts_its_text_in_the_place_of_its_senders_own_until_it_is_taken_back() {
        let (room, other) = (room_id!("!a:b.c").to_owned(), room_id!("!other:b.c").to_owned());
        let event = |name: &str| EventId::parse(format!("${name}:b.c")).expect("an event id");
        let by = |sender: &UserId, text: &str, edit: Option<&str>| Known {
            sender: sender.to_owned(),
            text: text.to_owned(),
            edit: edit.map(event),
        };
        let (ann, eve) = (user_id!("@ann:b.c"), user_id!("@eve:b.c"));
        let mut seen = Seen::default();
        let text = |seen: &Seen| seen.get(room.clone(), event("said")).and_then(Memory::said).map(|known| known.text);
        seen.edit(room.clone(), event("said"), by(ann, "new", Some("edit")));
        assert_eq!(text(&seen), None, "what is not known takes no place");
        seen.insert(room.clone(), event("said"), Memory::Said(by(ann, "old", None)));
        seen.edit(room.clone(), event("said"), by(eve, "forged", Some("forgery")));
        assert_eq!(text(&seen).as_deref(), Some("old"));
        seen.edit(room.clone(), event("said"), by(ann, "new", Some("edit")));
        assert_eq!(text(&seen).as_deref(), Some("new"));
        for (room, taken_back) in [(&other, "edit"), (&room, "forgery")] {
            seen.take_back(room.clone(), event(taken_back));
        }
        assert_eq!(text(&seen).as_deref(), Some("new"));
        seen.take_back(room.clone(), event("edit"));
        assert_eq!(seen.get(room.clone(), event("said")), None, "the homeserver knows what stands there now");
        assert_eq!((seen.entries.len(), seen.order.len()), (0, 0));

        seen.insert(room.clone(), event("said"), Memory::InVain);
        seen.edit(room.clone(), event("said"), by(ann, "new", Some("edit")));
        assert_eq!(text(&seen), None, "what was taken back has no words");
    }
}
