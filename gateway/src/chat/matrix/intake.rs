//! One event of a room's timeline, read: whether it says something to us, and what (MTX-4, first steps).
//!
//! Pure functions over the event. Nothing is fetched, stored or decided about people here.

use matrix_sdk::ruma::{
    MatrixToUri, OwnedEventId, OwnedUserId, UserId,
    events::{
        AnySyncMessageLikeEvent, AnySyncStateEvent, AnySyncTimelineEvent, SyncStateEvent,
        room::{
            member::{MembershipState, OriginalSyncRoomMemberEvent},
            message::{
                FormattedBody, MessageFormat, MessageType, OriginalSyncRoomMessageEvent, Relation, SyncRoomMessageEvent,
            },
        },
    },
    matrix_uri::MatrixId,
};

mod mention;

use self::mention::{Separator, strip_leading};
use super::seen::Known;

/// Who the bot is in a room.
#[derive(Debug, Clone)]
pub(super) struct Own<'a> {
    /// Its id.
    pub(super) user: &'a UserId,
    /// Its display names.
    pub(super) names: Vec<String>,
}

/// What an event is to us.
#[derive(Debug)]
pub(super) enum Reading {
    /// The bot came into the room: what stands before was not said to it.
    Joined,
    /// A message.
    Message {
        /// Its id.
        event_id: OwnedEventId,
        /// What to remember of it.
        known: Known,
        /// What was said to us, if it was: not by the bot itself, and no notice.
        said: Option<Said>,
    },
    /// Nothing that is read, and why not.
    Nothing(&'static str),
}

/// Something that somebody said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Who.
    pub(super) sender: OwnedUserId,
    /// When, in milliseconds since 1970, by the sender's homeserver.
    pub(super) at_ms: i64,
    /// What, without a leading mention of the bot and without a reply's fallback.
    pub(super) text: String,
    /// The message that it replies to.
    pub(super) replies_to: Option<OwnedEventId>,
    /// The root of its thread.
    pub(super) thread: Option<OwnedEventId>,
    /// Whether it mentions the bot.
    pub(super) mentions_us: bool,
}

/// Reads an event.
pub(super) fn read(event: AnySyncTimelineEvent, own: &Own<'_>) -> Reading {
    match event {
        AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(SyncRoomMessageEvent::Original(
            message,
        ))) => read_message(message, own),
        AnySyncTimelineEvent::State(AnySyncStateEvent::RoomMember(SyncStateEvent::Original(member)))
            if joins(&member, own.user) =>
        {
            Reading::Joined
        }
        _ => Reading::Nothing("not a message"),
    }
}

/// Whether the bot was not in the room before this event and is after it.
fn joins(member: &OriginalSyncRoomMemberEvent, user: &UserId) -> bool {
    let before = member.unsigned.prev_content.as_ref().map(|content| &content.membership);
    member.state_key == user
        && member.content.membership == MembershipState::Join
        && before != Some(&MembershipState::Join)
}

fn read_message(message: OriginalSyncRoomMessageEvent, own: &Own<'_>) -> Reading {
    let content = message.content;
    let (replies_to, thread) = match content.relates_to {
        Some(Relation::Replacement(_)) => return Reading::Nothing("an edit"),
        Some(Relation::Reply(reply)) => (Some(reply.in_reply_to.event_id), None),
        Some(Relation::Thread(thread)) => {
            // A thread's fallback names its latest message for clients that know no threads: not a reply.
            let reply = thread.in_reply_to.filter(|_| !thread.is_falling_back);
            (reply.map(|reply| reply.event_id), Some(thread.event_id))
        }
        _ => (None, None),
    };
    let (body, formatted, notice) = match content.msgtype {
        MessageType::Text(text) => (text.body, text.formatted, false),
        MessageType::Emote(emote) => (emote.body, emote.formatted, false),
        MessageType::Notice(notice) => (notice.body, notice.formatted, true),
        _ => return Reading::Nothing("not text"),
    };
    // Clients that know no threads see a thread's latest message quoted as well, so a thread counts here.
    let body = if replies_to.is_some() || thread.is_some() { without_fallback(&body) } else { &body };
    let ours = message.sender == own.user;
    let said = (!ours && !notice).then(|| {
        let html = formatted.as_ref().filter(|formatted| formatted.format == MessageFormat::Html);
        let (text, led) = without_mention(body, html, own);
        let mentions_us = match &content.mentions {
            // The client knows mentions; only an address in writing, "name: …", counts beside them.
            Some(mentions) => mentions.user_ids.contains(own.user) || led == Some(Separator::Mark),
            None => {
                led.is_some()
                    || html.is_some_and(|html| mention::pills(&html.body).any(|pill| names_user(pill.url, own.user)))
            }
        };
        Said {
            sender: message.sender,
            at_ms: i64::from(message.origin_server_ts.get()),
            text: text.to_owned(),
            replies_to,
            thread,
            mentions_us,
        }
    });
    Reading::Message { event_id: message.event_id, known: Known { ours, text: body.to_owned() }, said }
}

/// The text without the quoted lines that older clients put before a reply.
fn without_fallback(body: &str) -> &str {
    matrix_sdk::ruma::events::room::message::sanitize::remove_plain_reply_fallback(body).trim()
}

/// The text without a leading mention of the bot, and what stood after the mention if there was one.
fn without_mention<'a>(body: &'a str, html: Option<&FormattedBody>, own: &Own<'_>) -> (&'a str, Option<Separator>) {
    let localpart = own.user.localpart();
    let mut names = vec![own.user.to_string(), format!("@{localpart}"), localpart.to_owned()];
    for name in &own.names {
        names.extend([name.clone(), format!("@{name}")]);
    }
    // A client may show the bot under a name that we do not know; its pill's text says which.
    let leading = html.and_then(|html| mention::leading_pill(&html.body)).filter(|pill| names_user(pill.url, own.user));
    names.extend(leading.map(|pill| mention::text(pill.label)));
    match strip_leading(body, &names) {
        Some((rest, separator)) => (rest, Some(separator)),
        None => (body.trim(), None),
    }
}

/// Whether a link, as it stands in HTML, is a link to this user.
fn names_user(url: &str, user: &UserId) -> bool {
    MatrixToUri::parse(&mention::text(url)).is_ok_and(|uri| matches!(uri.id(), MatrixId::User(id) if id == user))
}

#[cfg(test)]
mod tests;
