//! Speaking: messages and edits as Matrix events.
//!
//! Nothing is queued or tried again here; the outbox does that, under the same transaction id. In an
//! encrypted room matrix-sdk encrypts what is sent; this module never sends around it.

use std::{borrow::Cow, time::Duration};

use matrix_sdk::{
    config::RequestConfig,
    ruma::{EventId, TransactionId, UserId},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use super::{
    MatrixSurface, Outbound, Room, SendError, SurfaceKind,
    failure::Failure,
    html::to_matrix_html,
    lock,
    seen::{Known, Memory},
};
use crate::chat::{Person, Weight};

/// The longest Markdown of one message, in bytes. Twice that, which it comes to where all of it is escaped, fits into an event
/// of 64 kB; and so it does with its HTML, unless that is much longer.
pub(super) const LONGEST: usize = 16_000;
/// Above this size, in bytes, a message goes without HTML: an event holds 64 kB, and encryption adds a third.
const MAX_FORMATTED: usize = 45_000;
/// How much of an event the ids may take that it answers, in bytes: a turn answers as many messages as may wait.
const MAX_ANSWERS: usize = 10_000;
/// How long one send may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl MatrixSurface {
    /// Sends a message, or an edit of the message `replaces`; gives the new event's id.
    pub(super) async fn put(
        &self,
        room: &Room,
        message: &Outbound,
        replaces: Option<&str>,
    ) -> Result<String, SendError> {
        let ids = [replaces, message.reply_to.as_deref(), message.thread.as_deref()];
        if let Some(bad) = ids.into_iter().flatten().find(|id| EventId::parse(id).is_err()) {
            return Err(refused(format!("`{bad}` is not an event id")));
        }
        let rooms = self.rooms_of(room)?;
        let edited = replaces.and_then(|event_id| EventId::parse(event_id).ok());
        let there = match &edited {
            // An edit stands where its message does.
            Some(event_id) => self.where_stands(&rooms, event_id),
            None => &rooms[rooms.len() - 1],
        };
        let mut message = Cow::Borrowed(message);
        if there.room_id() != room.id.as_str() {
            info!(%room, there = %there.room_id(), transaction = message.transaction, "a message goes to the room in its room's place");
            // What it relates to stands elsewhere.
            let message = message.to_mut();
            (message.reply_to, message.thread) = (None, None);
        }
        let sent = there
            .send_raw("m.room.message", content(&message, replaces))
            .with_transaction_id(<&TransactionId>::from(message.transaction.as_str()))
            .with_request_config(RequestConfig::new().disable_retry().timeout(PATIENCE))
            .await
            .map_err(|error| match (Failure::from(error), there.successor_room()) {
                // It is sent as soon as the bot is where the others are; a draft is not worth the waiting.
                (Failure::Permanent { forbidden: true, .. }, Some(next))
                    if replaces.is_none() && self.may_follow(there, &next.room_id) =>
                {
                    transient(format!("the room is replaced by {}, where the bot is not", next.room_id), None)
                }
                (failure, _) => self.unsent(failure),
            })?;
        let event_id = sent.response.event_id;
        if replaces.is_none() {
            let sender = there.own_user_id().to_owned();
            let known = Known { sender, text: message.markdown.clone(), edit: None };
            lock(&self.seen).insert(there.room_id().to_owned(), event_id.clone(), Memory::Said(known));
        }
        Ok(event_id.to_string())
    }

    /// Nothing else is sent while the homeserver wants no messages.
    pub(super) fn unsent(&self, failure: Failure) -> SendError {
        let error = send_error(failure);
        if let SendError::Transient { retry_after, .. } = &error {
            lock(&self.marks).yield_to_messages(Instant::now(), *retry_after);
        }
        error
    }
}

pub(super) fn send_error(failure: Failure) -> SendError {
    match failure {
        Failure::Permanent { reason, .. } => refused(reason),
        // An unknown token is mended by the sync loop, which logs in anew.
        Failure::Transient { .. } | Failure::UnknownToken { .. } | Failure::Local { .. } => {
            transient(failure.reason().to_owned(), failure.retry_after())
        }
    }
}

pub(super) fn refused(message: String) -> SendError {
    SendError::Refused { surface: SurfaceKind::Matrix, message }
}

pub(super) fn transient(message: String, retry_after: Option<Duration>) -> SendError {
    SendError::Transient { surface: SurfaceKind::Matrix, message, retry_after }
}

/// The content of the event, without HTML where it would become too large with it.
fn content(message: &Outbound, replaces: Option<&str>) -> Value {
    let (plain, html) = to_matrix_html(&message.markdown);
    let full = content_of(message, replaces, &plain, html.as_deref());
    if html.is_some() && full.to_string().len() > MAX_FORMATTED {
        content_of(message, replaces, &plain, None)
    } else {
        full
    }
}

fn content_of(message: &Outbound, replaces: Option<&str>, plain: &str, html: Option<&str>) -> Value {
    let mut content = body(message.weight, "", plain, html);
    // Always there, so that no client looks for names in the text; and never the whole room.
    content["m.mentions"] = match message.mention.as_ref().filter(|person| is_matrix_user(person)) {
        Some(person) => json!({"user_ids": [person.id]}),
        None => json!({}),
    };
    if let Some(event_id) = replaces {
        // What clients that know no edits show. The mention stands in the new content alone: it was told before.
        let mut edit = body(message.weight, "* ", plain, html);
        edit["m.mentions"] = json!({});
        edit["m.new_content"] = content;
        edit["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": event_id});
        content = edit;
    } else if let Some(relation) = relation(message.thread.as_deref(), message.reply_to.as_deref()) {
        content["m.relates_to"] = relation;
    }
    content["dev.musher"] = json!({"transaction": message.transaction, "answers": latest(&message.answers)});
    content
}

/// The last of the ids, so many as there is room for.
fn latest(ids: &[String]) -> &[String] {
    let mut left = MAX_ANSWERS;
    let fits = |id: &&String| {
        // With its quotation marks and a comma.
        left = left.saturating_sub(id.len() + 3);
        left > 0
    };
    &ids[ids.len() - ids.iter().rev().take_while(fits).count()..]
}

fn body(weight: Weight, prefix: &str, plain: &str, html: Option<&str>) -> Value {
    let msgtype = match weight {
        Weight::Answer => "m.text",
        Weight::Notice => "m.notice",
    };
    let mut body = json!({"msgtype": msgtype, "body": format!("{prefix}{plain}")});
    if let Some(html) = html {
        body["format"] = json!("org.matrix.custom.html");
        body["formatted_body"] = json!(format!("{prefix}{html}"));
    }
    body
}

fn is_matrix_user(person: &Person) -> bool {
    person.surface == SurfaceKind::Matrix && UserId::parse(&person.id).is_ok()
}

fn relation(thread: Option<&str>, reply_to: Option<&str>) -> Option<Value> {
    match (thread, reply_to) {
        (Some(root), Some(reply)) => Some(
            json!({"rel_type": "m.thread", "event_id": root, "is_falling_back": false, "m.in_reply_to": {"event_id": reply}}),
        ),
        (Some(root), None) => Some(
            json!({"rel_type": "m.thread", "event_id": root, "is_falling_back": true, "m.in_reply_to": {"event_id": root}}),
        ),
        (None, Some(reply)) => Some(json!({"m.in_reply_to": {"event_id": reply}})),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::events::room::message::{MessageType, Relation, RoomMessageEventContent};

    use super::*;

    fn outbound(markdown: &str) -> Outbound {
        Outbound {
            weight: Weight::Answer,
            markdown: markdown.to_owned(),
            reply_to: None,
            mention: None,
            thread: None,
            answers: Vec::new(),
            transaction: "txn-1".to_owned(),
        }
    }

    /// The content as ruma reads it.
    fn read(content: &Value) -> RoomMessageEventContent {
        serde_json::from_value(content.clone()).expect("it is a message")
    }

    #[test]
    fn a_plain_message_is_plain_and_mentions_nobody() {
        insta::assert_snapshot!(
            content(&outbound("hello @room"), None),
            @r#"{"body":"hello @room","dev.musher":{"answers":[],"transaction":"txn-1"},"m.mentions":{},"msgtype":"m.text"}"#
        );
    }

    #[test]
    fn an_answer_is_a_formatted_reply_that_mentions_one_person() {
        let answer = Outbound {
            reply_to: Some("$question".to_owned()),
            mention: Some(Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".to_owned() }),
            answers: vec!["$before".to_owned(), "$question".to_owned()],
            ..outbound("**done**")
        };
        let content = content(&answer, None);
        let read = read(&content);
        let MessageType::Text(text) = read.msgtype else { panic!("not a text") };
        assert_eq!(
            (text.body.as_str(), text.formatted.expect("it is formatted").body.as_str()),
            ("**done**", "<p><strong>done</strong></p>")
        );
        let Some(Relation::Reply(reply)) = read.relates_to else { panic!("not a reply") };
        assert_eq!(reply.in_reply_to.event_id, "$question");
        let mentions = read.mentions.expect("mentions are always there");
        assert_eq!(mentions.user_ids.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["@ann:example.org"]);
        assert!(!mentions.room);
        assert_eq!(content["dev.musher"], json!({"transaction": "txn-1", "answers": ["$before", "$question"]}));
    }

    #[test]
    fn a_person_of_another_surface_is_not_mentioned() {
        let mention = Some(Person { surface: SurfaceKind::Console, id: "@ann:example.org".to_owned() });
        assert_eq!(content(&Outbound { mention, ..outbound("x") }, None)["m.mentions"], json!({}));
        let mention = Some(Person { surface: SurfaceKind::Matrix, id: "@room".to_owned() });
        assert_eq!(content(&Outbound { mention, ..outbound("x") }, None)["m.mentions"], json!({}));
    }

    #[test]
    fn threads_are_kept_with_and_without_a_reply() {
        let thread = |reply_to: Option<&str>| {
            let message =
                Outbound { thread: Some("$root".to_owned()), reply_to: reply_to.map(str::to_owned), ..outbound("x") };
            match read(&content(&message, None)).relates_to {
                Some(Relation::Thread(thread)) => (
                    thread.event_id.to_string(),
                    thread.is_falling_back,
                    thread.in_reply_to.expect("a reply").event_id.to_string(),
                ),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(thread(None), ("$root".to_owned(), true, "$root".to_owned()));
        assert_eq!(thread(Some("$q")), ("$root".to_owned(), false, "$q".to_owned()));
    }

    #[test]
    fn an_edit_replaces_and_has_a_fallback() {
        let notice = Outbound {
            weight: Weight::Notice,
            reply_to: Some("$question".to_owned()),
            mention: Some(Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".to_owned() }),
            ..outbound("step *2*")
        };
        let edit = content(&notice, Some("$first"));
        assert_eq!(
            (&edit["body"], &edit["formatted_body"]),
            (&json!("* step *2*"), &json!("* <p>step <em>2</em></p>"))
        );
        assert_eq!(edit["m.mentions"], json!({}));
        assert_eq!(edit["m.new_content"]["m.mentions"], json!({"user_ids": ["@ann:example.org"]}));
        let Some(Relation::Replacement(replacement)) = read(&edit).relates_to else { panic!("not an edit") };
        assert_eq!(replacement.event_id, "$first");
        let MessageType::Notice(new) = replacement.new_content.msgtype else { panic!("not a notice") };
        assert_eq!(new.body, "step *2*");
    }

    #[test]
    fn what_would_be_too_large_goes_without_html() {
        let large = content(&outbound(&format!("**a** {}", "b ".repeat(20_000))), None);
        assert_eq!(large.get("formatted_body"), None);
        assert!(large["body"].as_str().is_some_and(|body| body.len() > 40_000 - 10));
    }

    #[test]
    fn the_longest_message_fits_into_an_event() {
        let answers: Vec<String> = (0..65_535).map(|n| format!("${n:0>43}")).collect();
        for text in ["a", "ü", "\"", "\\", "\n\t", "&<>", "| a ", "* a\n", "\u{1}", "`a` "] {
            let markdown = text.repeat(LONGEST / text.len());
            let content = content(&Outbound { answers: answers.clone(), ..outbound(&markdown) }, None);
            let sent = content.to_string().len();
            let named = content["dev.musher"]["answers"].as_array().expect("they are listed");
            assert!(named.len() > 200 && named.last() == answers.last().map(|id| json!(id)).as_ref());
            // The rest of an event is ids, hashes and signatures.
            assert!(sent < 60_000, "{sent} bytes of {text:?}");
        }
        let prose = content(&outbound(&"Some **words**, as agents write them, with `code`.\n\n".repeat(300)), None);
        assert!(prose.get("formatted_body").is_some(), "what is common keeps its form");
    }

    #[test]
    fn errors_are_transient_only_when_trying_again_helps() {
        let wait = Some(Duration::from_secs(5));
        let limited = send_error(Failure::Transient { reason: "slow".to_owned(), retry_after: wait });
        assert!(matches!(limited, SendError::Transient { retry_after, .. } if retry_after == wait));
        assert!(matches!(send_error(Failure::UnknownToken { soft: false }), SendError::Transient { .. }));
        let forbidden = send_error(Failure::Permanent { reason: "no".to_owned(), forbidden: true });
        assert!(matches!(forbidden, SendError::Refused { .. }));
    }
}
