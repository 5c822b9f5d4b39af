//! One event of a room's timeline, read: whether it tells us something, and what (MTX-4, first steps).
//!
//! Pure functions over the event. Nothing is fetched, stored or decided about people here.

use matrix_sdk::ruma::{
    MatrixToUri, OwnedEventId, OwnedUserId, UserId,
    events::{
        AnySyncMessageLikeEvent, AnySyncStateEvent, AnySyncTimelineEvent, SyncMessageLikeEvent, SyncStateEvent,
        reaction::OriginalSyncReactionEvent,
        relation::Replacement,
        room::{
            member::{MembershipState, OriginalSyncRoomMemberEvent},
            message::{
                FormattedBody, MessageFormat, MessageType, OriginalSyncRoomMessageEvent, Relation,
                RoomMessageEventContentWithoutRelation,
            },
            redaction::{OriginalSyncRoomRedactionEvent, SyncRoomRedactionEvent},
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
    /// Whether a redaction names its event in its content, as from room version 11 on. What stands in the other
    /// place is not protected by the room's rules.
    pub(super) redacts_in_content: bool,
}

/// The longest sign of a reaction that is read, in bytes.
const MAX_SIGN: usize = 64;

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
    /// A person's new text for a message.
    Edit {
        /// The edit's own id.
        event_id: OwnedEventId,
        /// The message.
        original: OwnedEventId,
        /// Who edited.
        sender: OwnedUserId,
        /// The new text, stripped like a message's.
        text: String,
    },
    /// Somebody took something back; it may have been the bot.
    Redaction {
        /// The redaction's own id.
        event_id: OwnedEventId,
        /// What was taken back.
        redacts: OwnedEventId,
        /// Who took it back.
        sender: OwnedUserId,
    },
    /// A person has put a sign on an event.
    Reaction {
        /// The reaction's own id.
        event_id: OwnedEventId,
        /// What it was put on.
        target: OwnedEventId,
        /// Who reacted.
        sender: OwnedUserId,
        /// The sign, without variation selectors.
        key: String,
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
    /// What, without a leading mention of the bot and without a reply's fallback; of a file its caption.
    pub(super) text: String,
    /// The message that it replies to.
    pub(super) replies_to: Option<OwnedEventId>,
    /// The root of its thread.
    pub(super) thread: Option<OwnedEventId>,
    /// Whether it mentions the bot.
    pub(super) mentions_us: bool,
    /// Whether it brings a file.
    pub(super) with_file: bool,
}

/// Reads an event.
pub(super) fn read(event: AnySyncTimelineEvent, own: &Own<'_>) -> Reading {
    match event {
        AnySyncTimelineEvent::MessageLike(event) => match event {
            AnySyncMessageLikeEvent::RoomMessage(SyncMessageLikeEvent::Original(message)) => read_message(message, own),
            AnySyncMessageLikeEvent::RoomRedaction(SyncRoomRedactionEvent::Original(redaction)) => {
                read_redaction(redaction, own)
            }
            AnySyncMessageLikeEvent::Reaction(SyncMessageLikeEvent::Original(reaction)) => read_reaction(reaction, own),
            _ => Reading::Nothing("nothing that is read"),
        },
        AnySyncTimelineEvent::State(AnySyncStateEvent::RoomMember(SyncStateEvent::Original(member)))
            if joins(&member, own.user) =>
        {
            Reading::Joined
        }
        AnySyncTimelineEvent::State(_) => Reading::Nothing("nothing that is read"),
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
    let edit = message.unsigned.relations.replace.map(|edit| read_message(*edit, own));
    let (replies_to, thread) = match content.relates_to {
        Some(Relation::Replacement(edit)) => return read_edit(message.event_id, message.sender, edit, own),
        Some(Relation::Reply(reply)) => (Some(reply.in_reply_to.event_id), None),
        Some(Relation::Thread(thread)) => {
            // A thread's fallback names its latest message for clients that know no threads: not a reply.
            let reply = thread.in_reply_to.filter(|_| !thread.is_falling_back);
            (reply.map(|reply| reply.event_id), Some(thread.event_id))
        }
        _ => (None, None),
    };
    let Some(Words { body, formatted, notice, file }) = Words::of(content.msgtype) else {
        return Reading::Nothing("neither text nor a file");
    };
    // Clients that know no threads see a thread's latest message quoted as well, so a thread counts here.
    let body = if replies_to.is_some() || thread.is_some() { without_fallback(&body) } else { &body };
    let sender = message.sender;
    let said = (sender != own.user && !notice).then(|| {
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
            sender: sender.clone(),
            at_ms: i64::from(message.origin_server_ts.get()),
            text: text.to_owned(),
            replies_to,
            thread,
            mentions_us,
            with_file: file.is_some(),
        }
    });
    // A quote is read as what it quotes was: without the mention.
    let words = said.as_ref().map(|said| said.text.as_str()).filter(|text| !text.is_empty()).unwrap_or(body);
    let text = file.filter(|_| words.is_empty()).unwrap_or_else(|| words.to_owned());
    let known = match edit {
        // What it says by now, as the homeserver knows already.
        Some(Reading::Edit { event_id, sender: by, text, .. }) if by == sender => {
            Known { sender, text, edit: Some(event_id) }
        }
        _ => Known { sender, text, edit: None },
    };
    Reading::Message { event_id: message.event_id, known, said }
}

/// What is to be read of a message.
struct Words {
    /// What was written; of a file its caption, which may be empty.
    body: String,
    formatted: Option<FormattedBody>,
    notice: bool,
    /// The name of the file that it brings.
    file: Option<String>,
}

impl Words {
    /// `None` where there is nothing that is read, nor anything that people would miss.
    fn of(message: MessageType) -> Option<Self> {
        let written = |body, formatted, notice| Self { body, formatted, notice, file: None };
        let file = |name: &str, caption: Option<&str>, formatted: Option<&FormattedBody>| Self {
            body: caption.unwrap_or_default().to_owned(),
            formatted: formatted.cloned(),
            notice: false,
            file: Some(name.to_owned()),
        };
        Some(match message {
            MessageType::Text(text) => written(text.body, text.formatted, false),
            MessageType::Emote(emote) => written(emote.body, emote.formatted, false),
            MessageType::Notice(notice) => written(notice.body, notice.formatted, true),
            MessageType::Audio(audio) => file(audio.filename(), audio.caption(), audio.formatted_caption()),
            MessageType::File(any) => file(any.filename(), any.caption(), any.formatted_caption()),
            MessageType::Image(image) => file(image.filename(), image.caption(), image.formatted_caption()),
            MessageType::Video(video) => file(video.filename(), video.caption(), video.formatted_caption()),
            _ => return None,
        })
    }
}

fn read_edit(
    event_id: OwnedEventId,
    sender: OwnedUserId,
    edit: Replacement<RoomMessageEventContentWithoutRelation>,
    own: &Own<'_>,
) -> Reading {
    if sender == own.user {
        return Reading::Nothing("an edit of our own");
    }
    let words = Words::of(edit.new_content.msgtype);
    let worded = words.filter(|words| !words.notice && (words.file.is_none() || !words.body.is_empty()));
    let Some(Words { body, formatted, .. }) = worded else {
        return Reading::Nothing("an edit to something that is not text");
    };
    // Whether the message is a reply does not stand in its edit, so only what names a user is a fallback: people quote, too.
    let fallback = body.starts_with("> <@") || body.starts_with("> * <@");
    let body = if fallback { without_fallback(&body) } else { &body };
    let html = formatted.as_ref().filter(|formatted| formatted.format == MessageFormat::Html);
    let text = without_mention(body, html, own).0.to_owned();
    Reading::Edit { event_id, original: edit.event_id, sender, text }
}

fn read_redaction(redaction: OriginalSyncRoomRedactionEvent, own: &Own<'_>) -> Reading {
    let (proper, other) = if own.redacts_in_content {
        (redaction.content.redacts, redaction.redacts)
    } else {
        (redaction.redacts, redaction.content.redacts)
    };
    match proper.or(other) {
        Some(redacts) => Reading::Redaction { event_id: redaction.event_id, redacts, sender: redaction.sender },
        None => Reading::Nothing("a redaction of nothing"),
    }
}

fn read_reaction(reaction: OriginalSyncReactionEvent, own: &Own<'_>) -> Reading {
    if reaction.sender == own.user {
        return Reading::Nothing("a reaction of our own");
    }
    let target = reaction.content.relates_to;
    if target.key.len() > MAX_SIGN {
        return Reading::Nothing("a reaction with more than a sign");
    }
    let key = target.key.chars().filter(|char| !is_variation_selector(*char) && !is_skin_tone(*char)).collect();
    Reading::Reaction { event_id: reaction.event_id, target: target.event_id, sender: reaction.sender, key }
}

/// Whether it only says how the character before it is to look.
pub(super) fn is_variation_selector(char: char) -> bool {
    ('\u{FE00}'..='\u{FE0F}').contains(&char)
}

/// Whether it only says which skin the character before it is to have.
fn is_skin_tone(char: char) -> bool {
    ('\u{1F3FB}'..='\u{1F3FF}').contains(&char)
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
