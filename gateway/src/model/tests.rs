//! The model's endpoint, against a provider of its own.

mod hostile_clients;
mod hostile_models;
mod own;

use std::{convert::Infallible, fs, time::Duration};

use axum::http::{HeaderName, HeaderValue, Method};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use jiff::Timestamp;
use journal::SystemClock;
use reqwest::Url;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::{
    chat::{Room, SurfaceKind},
    metrics::Now,
    projects::Registry,
    store::Journal,
    tasks::Tasks,
    usage::{Budget, Tokens},
};

/// A part of a long body.
static PART: [u8; 65536] = [b'x'; 65536];

/// A provider that answers with what it was sent.
async fn provider() -> Url {
    async fn echo(request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("it can be read").to_bytes();
        let headers: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let answer = format!("{} {}\n{}\n{}", parts.method, parts.uri, headers.join("\n"), body.len());
        ([("set-cookie", "a=b"), ("request-id", "7")], answer).into_response()
    }
    serve(Router::new().fallback(echo)).await
}

fn request(method: Method, path: &str, body: &'static str) -> Request {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "evil")
        .header("authorization", "Bearer inside")
        .header("x-api-key", "inside")
        .header("accept-encoding", "gzip, br")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("anthropic-version", "2023-06-01")
        .body(Body::from(body))
        .expect("it is a request")
}

/// A gateway's door to the provider at `base`, for one project.
struct Setting {
    _folder: tempfile::TempDir,
    journal: Journal,
    usage: Usage,
    metrics: Metrics,
    tasks: Tasks,
    project: Uuid,
    proxy: Arc<Proxy>,
    router: Router,
}

impl Setting {
    async fn new(base: Url, key: Key) -> Self {
        Self::with(base, key, Budget::default()).await
    }

    async fn with(base: Url, key: Key, budget: Budget) -> Self {
        let endpoint = Endpoint { base, auth: Auth::ApiKey, key, headers: HeaderMap::new() };
        Self::build(Models::new(endpoint, [], None).expect("a client can be made"), budget).await
    }

    async fn build(models: Models, budget: Budget) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = Arc::new(SystemClock);
        let journal = Journal::open(&folder.path().join("journal.db"), clock.clone()).expect("it can be made");
        let (tasks, metrics) = (Tasks::new(), Metrics::new(Timestamp::UNIX_EPOCH));
        let usage = Usage::open(journal.clone(), budget, clock, tasks.clone(), metrics.clone());
        let usage = usage.await.expect("it opens");
        let registry = Arc::new(Registry::open(journal.clone()).await.expect("it opens"));
        let project = Uuid::now_v7();
        let proxy = Proxy::new(models, registry, usage.clone(), metrics.clone());
        let router = proxy.router(project);
        Self { _folder: folder, journal, usage, metrics, tasks, project, proxy, router }
    }

    async fn of(answers: Router) -> Self {
        Self::new(serve(answers).await, Key::Given("outside".into())).await
    }

    async fn send(&self, method: Method, path: &str, body: &'static str) -> Response {
        self.router.clone().oneshot(request(method, path, body)).await.expect("a router always answers")
    }

    async fn ask(&self, method: Method, path: &str, body: &'static str) -> (StatusCode, HeaderMap, String) {
        let (parts, body) = self.send(method, path, body).await.into_parts();
        let body = body.collect().await.expect("it can be read").to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).expect("it is text"))
    }

    fn counted(&self) -> (Tokens, u64) {
        let amount = self.usage.today(self.project).amount();
        (amount.tokens, amount.requests)
    }

    fn metric(&self, line: &str) -> bool {
        let text = self.metrics.text(&Now::default()).expect("they can be written");
        text.lines().any(|other| other == line)
    }
}

async fn serve(router: Router) -> Url {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    Url::parse(&format!("http://{address}/base/")).expect("it is an address")
}

#[tokio::test]
async fn the_credential_is_replaced_and_only_the_table_passes() {
    let setting = Setting::new(provider().await, Key::Given("outside".into())).await;
    let (status, headers, seen) = setting.ask(Method::POST, "/model/v1/messages?beta=true", "hello").await;
    assert_eq!(status, StatusCode::OK);
    assert!(seen.starts_with("POST /base/v1/messages?beta=true\n"), "{seen}");
    assert!(
        seen.contains("x-api-key: outside") && seen.contains("anthropic-version: 2023-06-01") && seen.ends_with("\n5"),
        "{seen}"
    );
    assert!(seen.contains("accept-encoding: identity") && !seen.contains("gzip"), "{seen}");
    assert!(!seen.contains("inside") && !seen.contains("evil") && !seen.contains("x-hop"), "{seen}");
    assert!(headers.contains_key("request-id") && !headers.contains_key("set-cookie"));

    for (method, path) in [
        (Method::GET, "/model/v1/messages"),
        (Method::POST, "/model/v1/files"),
        (Method::POST, "/model/v1/messages/../files"),
        (Method::POST, "/v1/messages"),
    ] {
        let (status, _, seen) = setting.ask(method, path, "").await;
        assert!(status.is_client_error() && !seen.contains("outside"), "{path}: {status}");
    }
}

#[tokio::test]
async fn without_a_key_nothing_is_sent() {
    let setting = Setting::new(provider().await, Key::None).await;
    let (status, _, seen) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(seen.contains("no model key"), "{seen}");
}

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":7,\"cache_creation_input_tokens\":9,\"output_tokens\":1}}}\n\n";
const TEXT: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"eight by\"}}\n\n";
const END: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":40}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const WHOLE: Tokens = Tokens { input: 5, output: 40, cache_read: 7, cache_write: 9 };
/// What "hello" is about.
const HELLO: Tokens = Tokens { input: 2, output: 0, cache_read: 0, cache_write: 0 };
/// Eight bytes of text are about two tokens.
const BEGUN: Tokens = Tokens { output: 2, ..WHOLE };

/// A provider that streams what the test sends; when the sender goes, it breaks off.
fn streaming() -> (mpsc::UnboundedSender<&'static str>, Router) {
    let (sender, receiver) = mpsc::unbounded_channel::<&'static str>();
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let answer = move || {
        let receiver = Arc::clone(&receiver);
        async move {
            let parts = futures_util::stream::unfold(receiver, |receiver| async move {
                let part = receiver.lock().await.recv().await;
                let part = part.ok_or_else(|| io::Error::other("the provider breaks off"));
                Some((part, receiver))
            });
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
        }
    };
    (sender, Router::new().fallback(answer))
}

fn fixed(content_type: &'static str, encoding: &'static str, status: StatusCode, body: &'static str) -> Router {
    let answer = move || async move {
        let headers = [(header::CONTENT_TYPE, content_type), (header::CONTENT_ENCODING, encoding)];
        Ok::<_, Infallible>((status, headers, body))
    };
    Router::new().fallback(answer)
}

#[tokio::test]
async fn a_stream_is_passed_on_as_it_comes_and_counted_before_its_end_is_read() {
    let (model, answers) = streaming();
    let setting = Setting::of(answers).await;
    let mut body = setting.send(Method::POST, "/model/v1/messages", "hello").await.into_body();
    let mut read = String::new();
    for part in [START, TEXT, END] {
        model.send(part).expect("it is there");
        while !read.ends_with(part) {
            assert_eq!(setting.counted().1, 0, "nothing is counted before the end");
            let frame = body.frame().await.expect("there is more").expect("it can be read");
            read.push_str(std::str::from_utf8(frame.data_ref().expect("it is data")).expect("it is text"));
        }
    }
    assert_eq!(setting.counted(), (WHOLE, 1));
    let events = setting.journal.read(&journal::StreamId::new("usage", setting.project), 0).await;
    assert_eq!(events.expect("it is readable").len(), 1, "it is journaled");
    assert!(setting.metric("musher_model_requests_total{outcome=\"answered\"} 1"));
    assert!(setting.metric("musher_model_tokens_total{kind=\"cache_write\"} 9"));
}

#[tokio::test]
async fn what_breaks_off_is_counted_as_far_as_it_was_seen() {
    let (model, answers) = streaming();
    let setting = Setting::of(answers).await;
    let mut body = setting.send(Method::POST, "/model/v1/messages", "hello").await.into_body();
    for part in [START, TEXT] {
        model.send(part).expect("it is there");
        body.frame().await.expect("there is more").expect("it can be read");
    }
    drop(model);
    body.collect().await.expect_err("it breaks off");
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (BEGUN, 1));
    assert!(setting.metric("musher_model_requests_total{outcome=\"cut_off\"} 1"));
}

#[tokio::test]
async fn what_nobody_reads_to_its_end_is_counted_as_far_as_it_was_seen() {
    let (model, answers) = streaming();
    let setting = Setting::of(answers).await;
    let mut body = setting.send(Method::POST, "/model/v1/messages", "hello").await.into_body();
    for part in [START, TEXT] {
        model.send(part).expect("it is there");
        body.frame().await.expect("there is more").expect("it can be read");
    }
    drop(body);
    // It is counted even though the gateway is about to stop.
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (BEGUN, 1));
}

/// A provider that takes whole requests and says how many there were, but answers none.
fn silent() -> (mpsc::UnboundedReceiver<usize>, Router) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let answer = move |request: Request| async move {
        let body = request.into_body().collect().await.expect("it can be read").to_bytes();
        sender.send(body.len()).expect("it is waited for");
        std::future::pending::<Response>().await
    };
    (receiver, Router::new().fallback(answer))
}

#[tokio::test]
async fn what_nobody_waits_to_be_answered_is_counted_by_what_was_asked() {
    let (mut taken, answers) = silent();
    let setting = Setting::of(answers).await;
    let large: &'static str = "x".repeat(400_001).leak();
    for path in ["/model/v1/messages", "/model/v1/messages/count_tokens"] {
        tokio::select! {
            _ = setting.send(Method::POST, path, large) => panic!("nobody answers"),
            bytes = taken.recv() => assert_eq!(bytes, Some(large.len())),
        }
    }
    // It is counted even though the gateway is about to stop.
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (Tokens { input: 100_001, ..Tokens::default() }, 1));
    assert!(setting.metric("musher_model_requests_total{outcome=\"cut_off\"} 1"));
}

#[tokio::test]
async fn what_is_cut_off_before_the_model_has_counted_it_is_counted_by_what_was_asked() {
    let (_model, answers) = streaming();
    let setting = Setting::of(answers).await;
    drop(setting.send(Method::POST, "/model/v1/messages", "hello").await);
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (HELLO, 1));
}

#[tokio::test]
async fn what_does_not_get_to_the_model_costs_nothing() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = closed.local_addr().expect("it is bound");
    drop(closed);
    let base = Url::parse(&format!("http://{address}/")).expect("it is an address");
    let setting = Setting::new(base, Key::Given("outside".into())).await;
    let (status, _, _) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(setting.metric("musher_model_requests_total{outcome=\"unreachable\"} 1"));

    // Nor does what is no whole request.
    let (_taken, answers) = silent();
    let whole = Setting::of(answers).await;
    let parts = [Ok("the beginning"), Err(io::Error::other("the container breaks off"))];
    let body = Body::from_stream(futures_util::stream::iter(parts));
    let request = Request::post("/model/v1/messages").body(body).expect("it is a request");
    let answer = whole.router.clone().oneshot(request).await.expect("a router always answers");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    for setting in [setting, whole] {
        setting.tasks.shutdown(Duration::from_secs(10)).await.expect("nothing is counted");
        assert_eq!(setting.counted().1, 0);
    }
}

const ANSWER: &str = r#"{"model":"claude-x","content":[],"usage":{"input_tokens":5,"output_tokens":40,"cache_read_input_tokens":7,"cache_creation_input_tokens":9}}"#;

#[tokio::test]
async fn one_json_answer_is_counted_and_errors_and_estimates_are_not() {
    let json = "application/json";
    let setting = Setting::of(fixed(json, "identity", StatusCode::OK, ANSWER)).await;
    let (status, _, read) = setting.ask(Method::POST, "/model/v1/messages/count_tokens", "hello").await;
    assert_eq!((status, read.as_str(), setting.counted().1), (StatusCode::OK, ANSWER, 0));
    let (status, _, read) = setting.ask(Method::POST, "/model/v1/messages?beta=true", "hello").await;
    assert_eq!((status, read.as_str(), setting.counted()), (StatusCode::OK, ANSWER, (WHOLE, 1)));
    assert!(setting.metric("musher_model_requests_total{outcome=\"answered\"} 1"), "the same as `cost` tells");

    let setting = Setting::of(fixed(json, "identity", StatusCode::TOO_MANY_REQUESTS, ANSWER)).await;
    for path in ["/model/v1/messages", "/model/v1/messages/count_tokens"] {
        let (status, _, read) = setting.ask(Method::POST, path, "hello").await;
        assert_eq!((status, read.as_str(), setting.counted().1), (StatusCode::TOO_MANY_REQUESTS, ANSWER, 0));
    }
    assert!(setting.metric("musher_model_requests_total{outcome=\"refused\"} 1"));
}

#[tokio::test]
async fn what_cannot_be_counted_is_not_passed_on() {
    let setting = Setting::of(fixed("application/json", "gzip", StatusCode::OK, "{}")).await;
    let (status, _, read) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(read.contains("compressed"), "{read}");
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (HELLO, 1), "it has its cost all the same");

    let (model, answers) = streaming();
    let setting = Setting::of(answers).await;
    let body = setting.send(Method::POST, "/model/v1/messages", "hello").await.into_body();
    setting.journal.close().await;
    for part in [START, TEXT, END] {
        model.send(part).expect("it is there");
    }
    body.collect().await.expect_err("its end is not read by whom it was not counted for");
    assert_eq!(setting.journal.append_failures(), 1);
}

#[tokio::test]
async fn a_budget_that_is_used_up_ends_no_turn_and_bars_everything_else() {
    let base = serve(fixed("application/json", "identity", StatusCode::OK, ANSWER)).await;
    let budget = Budget { daily_tokens: Some(1), ..Budget::default() };
    let setting = Setting::with(base, Key::Given("outside".into()), budget).await;
    let turn = Uuid::now_v7();
    setting.usage.begin(
        setting.project,
        &Room { surface: SurfaceKind::Console, id: "main".into() },
        turn,
        journal::Cause::None,
    );
    for requests in 1..=2 {
        let (status, _, _) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
        assert_eq!((status, setting.counted().1), (StatusCode::OK, requests), "the turn goes on");
    }
    assert!(setting.usage.paused(setting.project).is_some());
    setting.usage.end(setting.project, turn).await.expect("it is taken in");
    let (status, _, read) = setting.ask(Method::POST, "/model/v1/messages", "hello").await;
    assert_eq!((status, setting.counted().1), (StatusCode::FORBIDDEN, 2));
    assert!(read.contains("from 00:00 UTC on"), "{read}");
}
