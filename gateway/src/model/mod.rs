//! The model's endpoint, as sleds reach it: a fixed table of method and path, the credential added on the way out (SEC-3).
//!
//! Requests come over a project's link and are the word of that project's code. The key never travels the other way.
//! What the model counts in its answers is read on their way through, and journaled before an answer is complete.

mod meter;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use reqwest::{Certificate, Client, Url, redirect};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::warn;
use uuid::Uuid;

use crate::{
    metrics::{Metrics, ModelOutcome},
    refusal::Refusal,
    usage::{self, Tokens, Usage},
};
use meter::{BYTES_PER_TOKEN, Counted, Meter, NAMELESS};

/// The prefix under which sleds ask for the model.
pub const PREFIX: &str = "/model";
/// The largest body of a request, in bytes: what the public API takes.
const REQUEST_MAX: usize = 32 * 1024 * 1024;
/// Requests that one project may have under way.
const AT_ONCE: usize = 64;
/// How long connecting to the model may take.
const CONNECT: Duration = Duration::from_secs(30);
/// The longest silence within an answer.
const SILENCE: Duration = Duration::from_mins(10);

/// How the key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `x-api-key: …`
    ApiKey,
    /// `authorization: Bearer …`
    Bearer,
}

/// Where the key is; read anew for each request, so that it can be changed at any time.
#[derive(Clone)]
pub enum Key {
    /// There is none.
    None,
    /// In a file, whose last line break does not count.
    File(PathBuf),
    /// In the gateway's own environment.
    Given(String),
}

impl Key {
    fn read(&self) -> io::Result<Option<String>> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => fs::read_to_string(path).map(|key| Some(key.trim_end_matches(['\n', '\r']).to_owned())),
            Self::Given(key) => Ok(Some(key.clone())),
        }
    }
}

/// The model's endpoint.
pub struct Model {
    client: Client,
    base: Url,
    auth: Auth,
    key: Key,
    headers: HeaderMap,
}

impl Model {
    /// An endpoint at `base`, to whose requests `headers` are added; certificates of the authorities in `extra_pem`
    /// are trusted beside the host's own.
    pub fn new(base: Url, auth: Auth, key: Key, headers: HeaderMap, extra_pem: Option<&[u8]>) -> Result<Self, Refusal> {
        let extra = extra_pem.map(Certificate::from_pem_bundle).transpose().map_err(|error| {
            Refusal::internal("the certificates in `[images] extra_ca_certificates` cannot be read", error)
        })?;
        let client = Client::builder()
            .tls_certs_merge(extra.unwrap_or_default())
            .redirect(redirect::Policy::none())
            // Answers pass as they are, whatever else in this program wants its client to unpack.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| Refusal::internal("the client for the model cannot be made", error))?;
        Ok(Self { client, base, auth, key, headers })
    }

    /// Sends a request; how many bytes of its body have been passed on is added to `passed`.
    async fn send(&self, request: Request, passed: Arc<AtomicU64>) -> Result<reqwest::Response, Response> {
        let (parts, body) = request.into_parts();
        let mut url = self.base.clone();
        let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.set_query(parts.uri.query());
        let mut headers = passed_on(&parts.headers);
        headers.extend(self.headers.clone());
        // What is compressed cannot be read on its way through.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let (name, value) = self.credential().map_err(|(status, message)| refused(status, message))?;
        headers.insert(name, value);
        if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, length.clone());
        }
        let body = Limited::new(body, REQUEST_MAX).into_data_stream().inspect(move |part| match part {
            Ok(part) => drop(passed.fetch_add(part.len() as u64, Ordering::Relaxed)),
            // The model gets no whole request, and answers none.
            Err(_) => passed.store(0, Ordering::Relaxed),
        });
        let body = reqwest::Body::wrap_stream(body);
        self.client.request(parts.method, url).headers(headers).body(body).send().await.map_err(|error| {
            warn!(%error, "the model was not reached");
            let why = if error.is_timeout() { "did not answer in time" } else { "could not be reached" };
            refused(StatusCode::BAD_GATEWAY, &format!("the model {why} from the gateway"))
        })
    }

    fn credential(&self) -> Result<(HeaderName, HeaderValue), (StatusCode, &'static str)> {
        let key = self.key.read().map_err(|error| {
            warn!(%error, "the model key cannot be read");
            (StatusCode::SERVICE_UNAVAILABLE, "the gateway cannot read the model key")
        })?;
        let key =
            key.filter(|key| !key.is_empty()).ok_or((StatusCode::UNAUTHORIZED, "the gateway has no model key"))?;
        let (name, text) = match self.auth {
            Auth::ApiKey => (HeaderName::from_static("x-api-key"), key),
            Auth::Bearer => (header::AUTHORIZATION, format!("Bearer {key}")),
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "the model key contains characters that a header cannot"))?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

/// The model's endpoint as projects reach it: every answer is counted.
pub struct Proxy {
    model: Model,
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
    /// Passes requests on to `model`; what it counts goes to `usage`.
    pub fn new(model: Model, usage: Usage, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { model, usage, metrics })
    }

    /// What this project's sled may ask; anything else is not found.
    pub fn router(self: &Arc<Self>, project: Uuid) -> Router {
        let door = Door { proxy: Arc::clone(self), project, places: Arc::new(Semaphore::new(AT_ONCE)) };
        Router::new()
            .route("/model/v1/messages", post(messages))
            .route("/model/v1/messages/count_tokens", post(count_tokens))
            .with_state(Arc::new(door))
    }
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

/// Free of charge, and so not counted.
async fn count_tokens(State(door): State<Arc<Door>>, request: Request) -> Response {
    forward(&door, request, None).await
}

async fn forward(door: &Door, request: Request, counted: Option<usage::Request>) -> Response {
    let Ok(place) = Arc::clone(&door.places).try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "too many requests of this project are under way");
    };
    let metrics = door.proxy.metrics.clone();
    let mut counting = counted.map(|request| Counting::new(request, metrics.clone()));
    let passed = counting.as_ref().map(|counting| Arc::clone(&counting.passed)).unwrap_or_default();
    let answer = match door.proxy.model.send(request, passed).await {
        Ok(answer) => answer,
        Err(refusal) => {
            if refusal.status() == StatusCode::BAD_GATEWAY {
                metrics.model_requested(ModelOutcome::Unreachable);
            }
            // It may have got to the model all the same.
            drop(counting.as_mut().and_then(Counting::count));
            return refusal;
        }
    };
    let (status, headers) = (answer.status(), passed_on(answer.headers()));
    if !status.is_success()
        && let Some(counting) = counting.take()
    {
        // Errors cost nothing.
        counting.free();
    }
    if let Some(counting) = &mut counting {
        if is_encoded(&headers) {
            metrics.model_requested(ModelOutcome::Refused);
            warn!("the model's answer is compressed although it was asked not to be");
            drop(counting.count());
            return refused(StatusCode::BAD_GATEWAY, "the model's answer is compressed, so its use cannot be counted");
        }
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        counting.meter = Some(Meter::new(content_type.unwrap_or_default()));
    } else {
        metrics.model_requested(if status.is_success() { ModelOutcome::Answered } else { ModelOutcome::Refused });
    }
    // The place is given back when the body has been read, or nobody wants it any more.
    let body =
        futures_util::stream::unfold((answer, counting, place), |(mut answer, mut counting, place)| async move {
            let chunk = next_chunk(&mut answer, counting.as_mut()).await?;
            Some((chunk, (answer, counting, place)))
        });
    (status, headers, Body::from_stream(body)).into_response()
}

/// The answer's next part. What it is counted to is journaled before the part that completes it is passed on.
async fn next_chunk(answer: &mut reqwest::Response, counting: Option<&mut Counting>) -> Option<io::Result<Bytes>> {
    let chunk = answer.chunk().await.map_err(io::Error::other).transpose();
    let Some(counting) = counting else { return chunk };
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

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Counts one request from when it is sent: one whose answer breaks off, or that nobody reads to its end, by what was seen of it; one that
/// nobody waited to be answered, by what was passed on of it.
struct Counting {
    /// Bytes of its body that were passed on.
    passed: Arc<AtomicU64>,
    /// There is one when an answer has begun.
    meter: Option<Meter>,
    /// Taken when it is counted.
    request: Option<usage::Request>,
    metrics: Metrics,
}

impl Counting {
    fn new(request: usage::Request, metrics: Metrics) -> Self {
        Self { passed: Arc::default(), meter: None, request: Some(request), metrics }
    }

    /// The answer's next part; whether the answer is complete with it.
    fn read(&mut self, chunk: &[u8]) -> bool {
        self.meter.as_mut().is_some_and(|meter| {
            meter.read(chunk);
            meter.complete()
        })
    }

    /// It costs nothing.
    fn free(mut self) {
        self.request = None;
    }

    /// Counts it, unless it was counted or has not got to the model. It is journaled whether or not anybody waits for it.
    fn count(&mut self) -> Option<impl Future<Output = Result<(), Refusal>> + use<>> {
        let passed = self.passed.load(Ordering::Relaxed);
        let request = self.request.take().filter(|_| self.meter.is_some() || passed > 0)?;
        let Counted { model, mut tokens } = match &mut self.meter {
            Some(meter) => meter.counted(),
            None => Counted { model: NAMELESS.to_owned(), tokens: Tokens::default() },
        };
        if tokens.total() == tokens.output {
            // The model did not get to count what it was sent.
            tokens.input = passed.div_ceil(BYTES_PER_TOKEN);
        }
        Some(request.count(model, tokens))
    }

    fn settle(&mut self, outcome: ModelOutcome) -> impl Future<Output = Result<(), Refusal>> + use<> {
        let counted = self.count();
        if counted.is_some() {
            self.metrics.model_requested(outcome);
        }
        async move {
            match counted {
                Some(counted) => counted.await,
                None => Ok(()),
            }
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It is journaled whether or not anybody waits for it.
        drop(self.settle(ModelOutcome::CutOff));
    }
}

/// The headers that may pass: neither those of one connection, nor credentials, nor what only fits the body as it came.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    link::headers::strip_hop_by_hop(&mut passed);
    for name in [
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        HeaderName::from_static("x-api-key"),
        header::CONTENT_LENGTH,
        header::EXPECT,
    ] {
        passed.remove(name);
    }
    passed
}

/// An error in the form that agents show to people.
fn refused(status: StatusCode, message: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": "musher_error", "message": format!("musher: {message}") } });
    (status, axum::Json(body)).into_response()
}
