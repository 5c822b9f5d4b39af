//! Taking a person's message out of a room, because it carries a credential (PROJ-3).
//!
//! The bot may do that only where the room gives it the right to; where it does not, people are told to do it themselves. What
//! was sent stays known to whoever has read it: the credential has to be changed in any case.

use std::time::Duration;

use matrix_sdk::{
    config::RequestConfig,
    ruma::{EventId, RoomId, api::client::redact::redact_event, assign},
};
use tracing::{info, warn};

use super::{MatrixSurface, Room, failure::Failure};

/// How long the homeserver may be asked for it, all tries together.
const PATIENCE: Duration = Duration::from_mins(1);
/// What people see in its place.
const REASON: &str = "it carried a credential";

impl MatrixSurface {
    /// Redacts a message beside everything else.
    pub(super) fn redact(&self, room: &Room, event_id: &str) {
        let (Ok(room), Ok(event)) = (RoomId::parse(&room.id), EventId::parse(event_id)) else { return };
        let (client, shutdown) = (self.client(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let request = assign!(
                redact_event::v3::Request::new(room.clone(), event.clone(), format!("take-back-{event}").into()),
                { reason: Some(REASON.to_owned()) }
            );
            let sending = client.send(request).with_request_config(RequestConfig::new().timeout(PATIENCE));
            match shutdown.run_until_cancelled(sending.into_future()).await {
                Some(Ok(_)) => info!(%room, %event, "a message with a credential is taken out of its room"),
                Some(Err(error)) => {
                    warn!(%room, %event, "a message with a credential stays in its room: {}", Failure::from(error).reason());
                }
                None => warn!(%room, %event, "a message with a credential stays in its room: the gateway stops"),
            }
        });
    }
}
