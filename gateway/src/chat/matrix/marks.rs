//! Marks on people's messages: a read receipt, and a reaction where a message waits or failed (CHAT-9).
//!
//! `plan` decides what comes next; here it is carried out, one request after the other, beside everything else.
//! A mark is worth little: it never delays an answer, it is late rather than in the way, and what was wanted when the
//! surface ended is wanted again by the next run.

use std::time::Duration;

use matrix_sdk::{
    Client,
    config::RequestConfig,
    ruma::{
        EventId, OwnedEventId, OwnedTransactionId, RoomId, UInt,
        api::client::{
            message::send_message_event, receipt::create_receipt, redact::redact_event,
            relations::get_relating_events_with_rel_type_and_event_type as related,
        },
        assign,
        events::{
            AnyMessageLikeEvent, MessageLikeEvent, TimelineEventType,
            reaction::ReactionEventContent,
            relation::{Annotation, RelationType},
        },
    },
};
use tokio::time::Instant;
use tracing::debug;

use self::plan::{Action, Key, Next, Outcome, Sign};
use super::{MatrixSurface, Room, SendError, failure::Failure, intake::is_variation_selector, lock, send::refused};
use crate::chat::Mark;

mod plan;

pub(super) use self::plan::Marks;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many reactions to a message are asked for at once.
const PAGE: u32 = 100;
/// How often more of them are asked for: people may put on a message what they like.
const PAGES: usize = 10;

impl MatrixSurface {
    /// Takes a wish over; it is carried out by [`MatrixSurface::keep_marks`].
    pub(super) fn want_mark(&self, room: &Room, event_id: &str, mark: Mark) -> Result<(), SendError> {
        let Ok(room_id) = RoomId::parse(&room.id) else {
            return Err(refused(format!("`{}` is not a room id", room.id)));
        };
        let Ok(event_id) = EventId::parse(event_id) else {
            return Err(refused(format!("`{event_id}` is not an event id")));
        };
        lock(&self.marks).want(Instant::now(), (room_id, event_id), mark);
        self.marked.notify_one();
        Ok(())
    }

    /// Shows marks; never ends by itself.
    pub(super) async fn keep_marks(&self) {
        loop {
            let next = lock(&self.marks).next(Instant::now());
            match next {
                Next::Do(action) => {
                    let outcome = carry_out(&self.client(), &action).await.unwrap_or_else(|failure| {
                        debug!(?action, "a mark is not shown: {}", failure.reason());
                        match failure {
                            Failure::Permanent { .. } => Outcome::Never,
                            // An unknown token is mended by the sync loop, which logs in anew.
                            _ => Outcome::Later(failure.retry_after()),
                        }
                    });
                    lock(&self.marks).done(Instant::now(), action, outcome);
                }
                Next::Wait(Some(until)) => {
                    drop(tokio::time::timeout_at(until, self.marked.notified()).await);
                }
                Next::Wait(None) => self.marked.notified().await,
            }
        }
    }
}

async fn carry_out(client: &Client, action: &Action) -> Result<Outcome, Failure> {
    let config = RequestConfig::new().disable_retry().timeout(PATIENCE);
    match action {
        Action::Read((room, event)) => {
            let kind = create_receipt::v3::ReceiptType::Read;
            let request = create_receipt::v3::Request::new(room.clone(), kind, event.clone());
            client.send(request).with_request_config(config).await?;
            Ok(Outcome::Done)
        }
        Action::Ask(key) => Ok(Outcome::Found(ours_on(client, key, config).await?)),
        Action::Show((room, event), sign) => {
            let content = ReactionEventContent::new(Annotation::new(event.clone(), sign.emoji().to_owned()));
            let request = send_message_event::v3::Request::new(room.clone(), transaction(event, *sign, ""), &content)
                .map_err(|error| Failure::Local { reason: error.to_string() })?;
            let shown = client.send(request).with_request_config(config).await?;
            Ok(Outcome::Shown(shown.event_id))
        }
        Action::TakeBack((room, event), sign, reaction) => {
            let transaction = transaction(event, *sign, "-over");
            let request = redact_event::v3::Request::new(room.clone(), reaction.clone(), transaction);
            client.send(request).with_request_config(config).await?;
            Ok(Outcome::Done)
        }
    }
}

/// Fixed, so that what is said twice is done once.
fn transaction(event: &EventId, sign: Sign, end: &str) -> OwnedTransactionId {
    format!("mark-{event}-{}{end}", sign.name()).into()
}

/// The signs of ours that are on a message.
async fn ours_on(
    client: &Client,
    (room, event): &Key,
    config: RequestConfig,
) -> Result<Vec<(Sign, OwnedEventId)>, Failure> {
    let mut found = Vec::new();
    let mut from = None;
    for _ in 0..PAGES {
        let (relation, kind) = (RelationType::Annotation, TimelineEventType::Reaction);
        let request = assign!(related::v1::Request::new(room.clone(), event.clone(), relation, kind), {
            from, limit: Some(UInt::from(PAGE)),
        });
        let page = client.send(request).with_request_config(config).await?;
        let ours = page.chunk.iter().filter_map(|event| {
            let Ok(AnyMessageLikeEvent::Reaction(MessageLikeEvent::Original(reaction))) = event.deserialize() else {
                return None;
            };
            let sign = sign(&reaction.content.relates_to.key)?;
            (client.user_id() == Some(&*reaction.sender)).then_some((sign, reaction.event_id))
        });
        found.extend(ours);
        from = page.next_batch;
        if from.is_none() {
            break;
        }
    }
    Ok(found)
}

/// Which of our signs this is, however it is to look.
fn sign(key: &str) -> Option<Sign> {
    let bare = |text: &str| text.chars().filter(|char| !is_variation_selector(*char)).collect::<String>();
    Sign::ALL.into_iter().find(|sign| bare(sign.emoji()) == bare(key))
}
