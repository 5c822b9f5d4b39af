//! A stand-in for the model's service: the Anthropic messages API on loopback, scripted by the test.
//!
//! It answers by rules: what a person has said since the model last spoke contains a marker, and the
//! rule's steps follow, one for each request of the agent. Every request is kept for assertions. It
//! refuses requests without the right key, so that an answer proves that somebody added it.

mod reply;
mod request;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

pub use request::Request;

use crate::{
    secrets::{self, Kind},
    wait,
};

/// What the model does when the agent asks it.
#[derive(Debug, Clone)]
pub enum Step {
    /// It says this, and its turn is over.
    Say(String),
    /// It calls a tool; the next step follows when the agent brings the result.
    Call {
        /// The tool's name, such as `Write`.
        tool: String,
        /// Its input.
        input: Value,
    },
    /// It begins to answer, and goes on with the next step only when the gate is opened.
    Wait(Gate),
    /// It refuses, as the service does at its rate limit.
    Limit(Limit),
}

/// How the service refuses at its rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// It may be asked again after so many seconds.
    Soft(u32),
    /// Asking again would be refused again; it does not say until when.
    Hard,
}

impl Step {
    /// The model says `text`.
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// The model calls `tool` with `input`.
    pub fn call(tool: &str, input: Value) -> Self {
        Self::Call { tool: tool.into(), input }
    }

    /// Whether an answer ends with it.
    fn ends(&self) -> bool {
        !matches!(self, Self::Wait(_))
    }
}

/// Holds an answer back until it is opened.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        let mut state = self.0.subscribe();
        // The sender lives in `self`, so waiting ends only by opening.
        let _open = state.wait_for(|open| *open).await;
    }
}

/// What requests must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wants {
    /// This key, as `x-api-key` or as a bearer token.
    Key(String),
    /// No credential at all, as a server of one's own may have it.
    Nothing,
    /// This token as the service wants that of a subscription: a bearer token, no key beside it, `oauth-2025-04-20` among
    /// the betas, and a system prompt that names the agent.
    Subscription(String),
}

/// The stand-in, serving until it is dropped.
#[derive(Debug)]
pub struct Model {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rules, otherwise: _, requests, strays } = self;
        let mut out = f.debug_struct("Record");
        out.field("rules", rules).field("requests", requests).field("strays", strays).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    key: String,
    wants: Mutex<Wants>,
    record: Mutex<Record>,
}

/// What the model does when no rule fits.
type Otherwise = Box<dyn FnMut(&Request) -> Vec<Step> + Send>;

#[derive(Default)]
struct Record {
    rules: Vec<Rule>,
    otherwise: Option<Otherwise>,
    requests: Vec<Request>,
    strays: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    marker: String,
    steps: Vec<Step>,
}

impl Model {
    /// Serves on a free port of loopback and wants a key of its own in every request.
    pub async fn start() -> Result<Self> {
        let key = secrets::mint(Kind::ModelKey);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no free port on loopback")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { wants: Mutex::new(Wants::Key(key.clone())), key, record: Mutex::default() });
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .fallback(stray)
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // Serving ends by abort alone; an accept that fails shows as requests that are missing.
            let _ended = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, server })
    }

    /// What `[model] base_url` is set to.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The key that every request must carry, unless something else is wanted.
    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// From now on requests must carry something else.
    pub fn want(&self, wants: Wants) {
        if let Wants::Key(secret) | Wants::Subscription(secret) = &wants {
            secrets::register(Kind::ModelKey, secret);
        }
        *self.shared.wants.lock().unwrap_or_else(PoisonError::into_inner) = wants;
    }

    /// When what was said contains `marker`, these steps follow. The first rule that fits counts.
    pub fn on(&self, marker: &str, steps: impl IntoIterator<Item = Step>) {
        let rule = Rule { marker: marker.into(), steps: steps.into_iter().collect() };
        self.shared.record().rules.push(rule);
    }

    /// When no rule fits, these steps follow: those up to the one that ends an answer. Asked anew for each request of
    /// a turn, also for one that brings a tool's result.
    pub fn otherwise(&self, answer: impl FnMut(&Request) -> Vec<Step> + Send + 'static) {
        self.shared.record().otherwise = Some(Box::new(answer));
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.record().requests.clone()
    }

    /// Method and target of every request that is not one of the two that a model answers.
    pub fn strays(&self) -> Vec<String> {
        self.shared.record().strays.clone()
    }

    /// The requests in which somebody has just said something that contains `marker`.
    pub fn asked(&self, marker: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.for_turn && request.said.contains(marker)).collect()
    }

    /// Waits until the model has been asked something that contains `marker`.
    pub async fn wait_asked(&self, marker: &str) -> Result<Request> {
        wait::until(&format!("the model is asked `{marker}`"), wait::LONG, || async {
            Ok(self.asked(marker).into_iter().next())
        })
        .await
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request may ask; one that has a body is looked into.
    fn admits(&self, headers: &HeaderMap, body: Option<&Value>) -> bool {
        let all = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let (keys, tokens) = (all("x-api-key"), all("authorization"));
        match &*self.wants.lock().unwrap_or_else(PoisonError::into_inner) {
            Wants::Key(key) => keys.contains(&key.as_bytes()) || tokens.contains(&format!("Bearer {key}").as_bytes()),
            Wants::Nothing => keys.is_empty() && tokens.is_empty(),
            Wants::Subscription(token) => {
                let betas = all("anthropic-beta").join(&b","[..]);
                let oauth = betas.split(|byte| *byte == b',').any(|beta| beta.trim_ascii() == b"oauth-2025-04-20");
                let named = body.is_none_or(|body| body["system"].to_string().contains("You are a Claude agent"));
                keys.is_empty() && tokens == [format!("Bearer {token}").as_bytes()] && oauth && named
            }
        }
    }
}

impl Record {
    /// The steps from the one that answers this request on, up to the one that ends the answer.
    fn answer(&mut self, request: &Request) -> (String, Vec<Step>) {
        if !request.for_turn {
            return (String::new(), vec![Step::say("A session")]);
        }
        let (rule, from) = match &request.tool_result {
            Some(id) => reply::position(id).unwrap_or((usize::MAX, 0)),
            None => (self.rules.iter().position(|rule| request.said.contains(&rule.marker)).unwrap_or(usize::MAX), 0),
        };
        let Some(steps) = self.rules.get(rule).and_then(|rule| rule.steps.get(from..)) else {
            let steps = match &mut self.otherwise {
                Some(answer) => answer(request),
                None => vec![Step::say("The stand-in has no rule for this.")],
            };
            return (reply::tool_use_id(rule, self.requests.len()), steps);
        };
        let end = steps.iter().position(Step::ends).map_or(steps.len(), |at| at + 1);
        (reply::tool_use_id(rule, from + end), steps[..end].to_vec())
    }
}

async fn messages(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "invalid_request_error", "the body is not JSON");
    };
    let request = Request::read(&uri, &headers, body);
    let (tool_use_id, steps) = {
        let mut record = shared.record();
        record.requests.push(request.clone());
        record.answer(&request)
    };
    if !shared.admits(&headers, Some(&request.body)) {
        return refusal(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if let [Step::Limit(limit), ..] = steps[..] {
        return limited(limit);
    }
    if request.streams() {
        let body = Body::from_stream(reply::stream(tool_use_id, steps));
        ([("content-type", "text/event-stream")], body).into_response()
    } else {
        Json(reply::whole(&tool_use_id, steps).await).into_response()
    }
}

async fn count_tokens(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if shared.admits(&headers, None) {
        Json(json!({ "input_tokens": 100 })).into_response()
    } else {
        refusal(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key")
    }
}

async fn stray(State(shared): State<Arc<Shared>>, method: Method, uri: Uri) -> Response {
    shared.record().strays.push(format!("{method} {uri}"));
    refusal(StatusCode::NOT_FOUND, "not_found_error", "the stand-in has no such door")
}

fn limited(limit: Limit) -> Response {
    let refusal = refusal(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "this would exceed the rate limit");
    let (mut parts, body) = refusal.into_parts();
    if let Limit::Soft(secs) = limit {
        parts.headers.remove("x-should-retry");
        parts.headers.insert("retry-after", secs.into());
    }
    Response::from_parts(parts, body)
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": kind, "message": message } });
    // As the service does: asking again would be refused again.
    (status, [("x-should-retry", "false")], Json(body)).into_response()
}

#[cfg(test)]
mod tests;
