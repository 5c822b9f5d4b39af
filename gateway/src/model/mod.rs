//! The model's endpoint, as sleds reach it: a fixed table of method and path, the credential added on the way out (SEC-3).
//!
//! Requests come over a project's link and are the word of that project's code. The key never travels the other way.
//! What the model counts in its answers is read on their way through, and journaled before an answer is complete.
//! Nothing is held back or kept: whoever does not read an answer holds up that answer, and no other.

mod counting;
mod endpoint;
mod headers;
mod meter;

#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;
use uuid::Uuid;

pub use endpoint::{Auth, Endpoint, Key, Models};

use crate::{
    metrics::{Metrics, ModelOutcome},
    projects::Registry,
    usage::{self, Usage},
};
use counting::Counting;
use endpoint::SendError;

/// The prefix under which sleds ask for the model.
pub const PREFIX: &str = "/model";
/// Requests that one project may have under way, until their answers are read.
const AT_ONCE: usize = 256;
/// The longest answer that is an error, in bytes.
const ERROR_MAX: usize = 1024 * 1024;
/// An answer's headers, in number and in bytes: what fits into a head on the link, with what is added there.
const HEADERS_MAX: usize = 56;
const HEAD_MAX: usize = 24 * 1024;

/// The model's endpoint as projects reach it: every answer is counted.
pub struct Proxy {
    models: Models,
    registry: Arc<Registry>,
    usage: Usage,
    metrics: Metrics,
}

/// One project's way in.
struct Door {
    proxy: Arc<Proxy>,
    project: Uuid,
    places: Arc<Semaphore>,
}

impl Proxy {
    /// Passes requests on to the models of the projects that `registry` knows; what they count goes to `usage`.
    pub fn new(models: Models, registry: Arc<Registry>, usage: Usage, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { models, registry, usage, metrics })
    }

    /// What this project's sled may ask below [`PREFIX`]; anything else there is refused.
    pub fn router(self: &Arc<Self>, project: Uuid) -> Router {
        let door = Door { proxy: Arc::clone(self), project, places: Arc::new(Semaphore::new(AT_ONCE)) };
        Router::new()
            .route("/model/v1/messages", post(messages).fallback(elsewhere))
            .route("/model/v1/messages/count_tokens", post(count_tokens).fallback(elsewhere))
            .route("/model", any(elsewhere))
            .route("/model/", any(elsewhere))
            .route("/model/{*rest}", any(elsewhere))
            .with_state(Arc::new(door))
    }

    /// What the project is called now, where that matters.
    fn name(&self, project: Uuid) -> Option<String> {
        let known = self.models.differ().then(|| self.registry.get(project)).flatten()?;
        known.spec.map(|spec| spec.name)
    }
}

async fn elsewhere() -> Response {
    refused(
        StatusCode::NOT_FOUND,
        "of the model's API, POST /v1/messages and POST /v1/messages/count_tokens are passed on, and nothing else",
    )
}

async fn messages(State(door): State<Arc<Door>>, request: Request) -> Response {
    let counted = door.proxy.usage.request(door.project);
    if let Some(pause) = counted.barred() {
        let until = pause.until.strftime("%H:%M UTC");
        let why =
            format!("today's budget of this project is used up; outside of a turn the model answers from {until} on");
        return refused(StatusCode::FORBIDDEN, &why);
    }
    forward(&door, request, Some(counted)).await
}

/// Free of charge, and so neither counted nor among the requests that metrics show, which agree with `cost`.
async fn count_tokens(State(door): State<Arc<Door>>, request: Request) -> Response {
    forward(&door, request, None).await
}

async fn forward(door: &Door, request: Request, counted: Option<usage::Request>) -> Response {
    if request.uri().authority().is_some() {
        return refused(
            StatusCode::BAD_REQUEST,
            "the request names a host; the gateway alone says which one it goes to",
        );
    }
    let Ok(place) = Arc::clone(&door.places).try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "too many requests of this project are under way");
    };
    let Proxy { models, metrics, .. } = &*door.proxy;
    let is_counted = counted.is_some();
    let over = |outcome| {
        if is_counted {
            metrics.model_requested(outcome);
        }
    };
    let upload = Arc::default();
    let mut counting = counted.map(|request| Counting::new(request, Arc::clone(&upload), metrics.clone()));
    let name = door.proxy.name(door.project);
    let answer = match models.send(name.as_deref(), request, &upload).await {
        Ok(answer) => answer,
        Err(error) => {
            if matches!(error, SendError::Silent | SendError::Unreachable) {
                over(ModelOutcome::Unreachable);
            }
            // It may have got to the model all the same.
            drop(counting.as_mut().and_then(Counting::count));
            return refused(error.status(), &error.to_string());
        }
    };
    let (status, headers) = (answer.status(), headers::downward(answer.headers()));
    if !status.is_success()
        && let Some(counting) = counting.take()
    {
        // Errors cost nothing.
        counting.free();
    }
    if let Some(why) = unfit(status, &headers, counting.is_some()) {
        over(ModelOutcome::Refused);
        warn!(%status, "the model's answer is not passed on: {why}");
        // The model has done its work all the same.
        drop(counting.as_mut().and_then(Counting::count));
        return refused(StatusCode::BAD_GATEWAY, &why);
    }
    if let Some(counting) = &mut counting {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        counting.answered(content_type.unwrap_or_default());
    } else {
        // An answer that is counted is over when it has been read.
        over(ModelOutcome::Refused);
    }
    let left = (!status.is_success()).then_some(ERROR_MAX);
    let passing = Passing { answer, counting, left, _place: place };
    let body = futures_util::stream::unfold(Some(passing), async |passing| {
        let mut passing = passing?;
        let chunk = passing.next().await?;
        // After a failure there is nothing more.
        let going_on = chunk.is_ok().then_some(passing);
        Some((chunk, going_on))
    });
    (status, headers, Body::from_stream(body)).into_response()
}

/// Why an answer cannot be passed on.
fn unfit(status: StatusCode, headers: &HeaderMap, is_counted: bool) -> Option<String> {
    if status.is_redirection() || status.is_informational() {
        let number = status.as_u16();
        return Some(format!(
            "the model's address answers with status {number}, which leads elsewhere and is not followed; `base_url` under `[model]` in bot.toml has \
             to name the right address"
        ));
    }
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if headers.len() > HEADERS_MAX || bytes > HEAD_MAX {
        return Some("the model's answer has too many or too large headers".to_owned());
    }
    (is_counted && is_encoded(headers)).then(|| {
        "the model's answer is compressed although it was asked not to be, so its use cannot be counted".to_owned()
    })
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// An answer on its way to the project.
struct Passing {
    answer: reqwest::Response,
    counting: Option<Counting>,
    /// How much more of it may come, where that is bounded.
    left: Option<usize>,
    /// Given back when the body has been read, or nobody wants it any more.
    _place: OwnedSemaphorePermit,
}

impl Passing {
    /// The answer's next part. What it is counted to is journaled before the part that completes it is passed on.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let chunk = self.answer.chunk().await.map_err(io::Error::other).transpose();
        if let (Some(left), Some(Ok(chunk))) = (&mut self.left, &chunk) {
            match left.checked_sub(chunk.len()) {
                Some(less) => *left = less,
                None => return Some(Err(io::Error::other("the model's error is too long"))),
            }
        }
        let Some(counting) = &mut self.counting else { return chunk };
        let complete = match &chunk {
            Some(Ok(chunk)) => counting.read(chunk),
            Some(Err(_)) => false,
            None => true,
        };
        if !complete {
            return chunk;
        }
        match counting.settle(ModelOutcome::Answered).await {
            Ok(()) => chunk,
            // Whoever asked must not take for complete what is not counted.
            Err(refusal) => Some(Err(io::Error::other(refusal))),
        }
    }
}

/// An error in the form that agents show to people.
fn refused(status: StatusCode, message: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": "musher_error", "message": format!("musher: {message}") } });
    (status, axum::Json(body)).into_response()
}
