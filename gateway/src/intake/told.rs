//! What people are told of what was taken, or was not.

use uuid::Uuid;

use crate::{
    chat::{Missed, Room},
    outbox::{Address, Post},
    refusal::Refusal,
    sessions::{MAX_EDITS, Message},
};

/// What people are told when their words were not to be had.
const MISSED: &str = "Some of what was said here while I was away could not be read: the homeserver does not give it to me. \
    Please say again what I have not answered.";
/// What people are told whose message waits no longer, because its edit was taken back.
pub(crate) const UNSAID: &str = "The edit of this message was removed, and what it said before that is not kept: it waits no longer. \
    Please write it again if it is to be answered.";
/// What people are told whose words are late.
const AWAITED: &str = "What was said here lately could not be fetched yet: the homeserver does not give it to me. I keep asking for it; \
    until it comes I hear nothing that is written in this room, `stop` included, and then I take all of it in its order. \
    I do hear you in other rooms.";
/// What people are told who call the bot and say nothing.
pub(super) const NOTHING_SAID: &str = "Write what the agent is to do, or `help` for what else there is.";

/// What people are told whose edit is one too many.
pub(super) fn edited_too_often() -> Refusal {
    Refusal::usage(format!("this edit is not taken, because the message was edited {MAX_EDITS} times already"))
        .hint("Delete it, or take it out as `queue` shows, and write it anew.")
}

/// Tells who said a message that it is taken out with an edit of it, which was the event `edit_id`.
pub(super) fn unsaid(room: &Room, message: &Message, edit_id: &str) -> Post {
    let to = Address {
        room: room.clone(),
        thread: message.thread.clone(),
        reply_to: Some(message.event_id.clone()),
        mention: Some(message.sender.clone()),
        pending: None,
    };
    Post::notice(to, format!("unsaid-{edit_id}"), UNSAID)
}

/// Tells a room that some of what was said there is not to be had, or not yet, once however often the gap is met.
pub(super) fn missed(Missed { room, gap, awaited }: Missed) -> Post {
    let name = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{room} {gap}").as_bytes());
    let to = Address { room, thread: None, reply_to: None, mention: None, pending: None };
    let (kind, told) = if awaited { ("late", AWAITED) } else { ("gap", MISSED) };
    Post::notice(to, format!("{kind}-{name}"), told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{SurfaceKind, Weight};

    #[test]
    fn a_gap_is_told_under_one_transaction_per_room_and_gap() {
        let room = |id: &str| Room { surface: SurfaceKind::Matrix, id: id.to_owned() };
        let missed = |id: &str, gap: &str, awaited| Missed { room: room(id), gap: gap.to_owned(), awaited };
        let told = |id: &str, gap: &str| super::missed(missed(id, gap, false)).transaction;
        assert_eq!(told("!a:b.c", "s1_2~3"), told("!a:b.c", "s1_2~3"));
        assert_ne!(told("!a:b.c", "s1_2~3"), told("!a:b.c", "s1_2~4"));
        assert_ne!(told("!a:b.c", "s1_2~3"), told("!b:b.c", "s1_2~3"));
        // It stands in the path of a request.
        assert!(told("!a:b.c", "s1/2?3").chars().all(|char| char.is_ascii_alphanumeric() || char == '-'));
        let post = super::missed(missed("!a:b.c", "s1", false));
        assert_eq!((post.to.room, post.weight), (room("!a:b.c"), Weight::Notice));
        assert!(post.markdown.contains("say again"), "{}", post.markdown);
        // What is late first may be refused in the end.
        let late = super::missed(missed("!a:b.c", "s1", true));
        assert_ne!(late.transaction, post.transaction);
        assert!(late.markdown.contains("I keep asking for it"), "{}", late.markdown);
    }
}
