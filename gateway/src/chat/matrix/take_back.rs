//! Taking a message out of a room: one that carries a credential (PROJ-3), or one of ours that came too late.
//!
//! Of people's messages the bot may take out those of a room that gives it the right to. What was sent stays known to whoever
//! has read it. Nothing is tried again here; the outbox does that, under the same transaction id.

use std::time::Duration;

use matrix_sdk::{
    config::RequestConfig,
    ruma::{EventId, api::client::redact::redact_event, assign},
};
use tracing::info;

use super::{MatrixSurface, Room, SendError, failure::Failure, send::refused};

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl MatrixSurface {
    /// Redacts an event; gives the redaction's id. The homeserver takes it for the same again under the same transaction.
    pub(super) async fn redact(
        &self,
        room: &Room,
        event_id: &str,
        transaction: &str,
        why: &str,
    ) -> Result<String, SendError> {
        let Ok(event) = EventId::parse(event_id) else {
            return Err(refused(format!("`{event_id}` is not an event id")));
        };
        let room_id = self.where_stands(&self.rooms_of(room)?, &event).room_id().to_owned();
        let request = assign!(
            redact_event::v3::Request::new(room_id, event, transaction.into()),
            { reason: Some(why.to_owned()) }
        );
        let config = RequestConfig::new().disable_retry().timeout(PATIENCE);
        let taken = self.client().send(request).with_request_config(config).await;
        let redaction = taken.map_err(|error| self.unsent(Failure::from(error)))?.event_id;
        info!(%room, event_id, why, "a message is taken out of its room");
        Ok(redaction.to_string())
    }
}
