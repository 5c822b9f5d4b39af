//! The model and whoever asks it, in one process, so that both have one clock: the model writes into each event when it was sent.

use std::{
    collections::HashMap,
    io::{BufRead, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::future::try_join_all;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Barrier,
    time::{Instant, sleep, sleep_until},
};

/// The argument that makes this program the load.
pub const ARGUMENT: &str = "load";
/// Answers under way at once.
pub const STREAMS: u32 = 200;
/// Between two events of one answer: twenty a second, as a model writes.
pub const PAUSE: Duration = Duration::from_millis(50);
/// Events of an answer, the last not counted.
const EVENTS: u32 = 40;
/// Answers that each of those who ask gets, one after the other; those at the edges, when not all are under way, do not count.
const TURNS: usize = 4;
/// How large a request is, in bytes: about what Claude Code's first one is.
const REQUEST: usize = 76_000;
/// The header by which an answer is found again.
const NUMBER: &str = "x-bench-number";

/// What to measure.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Order {
    /// Whom to ask.
    pub port: u16,
    /// When they begin.
    pub start: Start,
}

/// When those who ask begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// One after the other, over the length of one answer; then again and again.
    Spread,
    /// All at once, when connections are open; one answer each counts.
    Together,
}

/// What was found, in microseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    first: Vec<u64>,
    events: Vec<u64>,
    lasts: Vec<u64>,
    /// Answers that were not, byte for byte, what was sent.
    pub changed: usize,
}

impl Report {
    /// From asking to an answer's first byte.
    pub fn first(&self) -> Vec<Duration> {
        durations(&self.first)
    }

    /// From an event's sending to its arrival.
    pub fn events(&self) -> Vec<Duration> {
        durations(&self.events)
    }

    /// The same for the event that ends an answer, which waits for the journal.
    pub fn lasts(&self) -> Vec<Duration> {
        durations(&self.lasts)
    }

    /// Takes in what another has found.
    pub fn extend(&mut self, other: Self) {
        self.first.extend(other.first);
        self.events.extend(other.events);
        self.lasts.extend(other.lasts);
        self.changed += other.changed;
    }
}

fn durations(micros: &[u64]) -> Vec<Duration> {
    micros.iter().copied().map(Duration::from_micros).collect()
}

/// What the model has sent, by the number of the request.
#[derive(Clone)]
struct Sent {
    epoch: Instant,
    answers: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Sent {
    fn now(&self) -> Result<u64> {
        Ok(self.epoch.elapsed().as_micros().try_into()?)
    }
}

/// Serves as the model, and takes orders on standard input until it ends.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", listener.local_addr()?.port())?;
    let sent = Sent { epoch: Instant::now(), answers: Arc::default() };
    let router = Router::new()
        .route("/v1/messages", post(answer))
        .layer(DefaultBodyLimit::max(1 << 30))
        .with_state(sent.clone());
    runtime.spawn(async move { axum::serve(listener, router).await });
    for line in std::io::stdin().lock().lines() {
        let report = runtime.block_on(measure(serde_json::from_str(&line?)?, &sent))?;
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
        output.flush()?;
    }
    Ok(())
}

async fn answer(State(sent): State<Sent>, headers: HeaderMap, _whole: Bytes) -> Response {
    let number = headers.get(NUMBER).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let began = Instant::now();
    // Streams do not tick together.
    let phase =
        PAUSE * (number.bytes().fold(0, |hash: u32, byte| hash.wrapping_mul(31) + u32::from(byte)) % STREAMS) / STREAMS;
    let events = futures_util::stream::unfold(0, move |event| {
        let (sent, number) = (sent.clone(), number.clone());
        async move {
            if event > 0 && event <= EVENTS {
                sleep_until(began + phase + PAUSE * (event - 1)).await;
            }
            let text = match event {
                0 => text_of(
                    "message_start",
                    "\"message\":{\"model\":\"claude-bench\",\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}",
                    &sent,
                ),
                event if event < EVENTS => text_of(
                    "content_block_delta",
                    &format!(
                        "\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"the next few words of {event}\"}}"
                    ),
                    &sent,
                ),
                EVENTS => text_of("message_stop", "\"usage\":{\"output_tokens\":400}", &sent),
                _ => return None,
            };
            let text = match text {
                Ok(text) => text,
                Err(error) => return Some((Err(error), event + 1)),
            };
            let mut answers = sent.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.entry(number.clone()).or_default().extend(text.bytes());
            drop(answers);
            Some((Ok(Bytes::from(text)), event + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

fn text_of(kind: &str, members: &str, sent: &Sent) -> Result<String> {
    Ok(format!("event: {kind}\ndata: {{\"type\":\"{kind}\",{members},\"at\":{}}}\n\n", sent.now()?))
}

async fn measure(order: Order, sent: &Sent) -> Result<Report> {
    let client = Client::builder().no_proxy().http1_only().build()?;
    let body = Bytes::from(vec![b'x'; REQUEST]);
    let length = PAUSE * EVENTS;
    let open = Barrier::new(STREAMS as usize);
    let whole = try_join_all((0..STREAMS).map(|number| {
        let (client, body, open) = (&client, &body, &open);
        async move {
            let mut found = Report::default();
            let turns = match order.start {
                Start::Spread => {
                    sleep(length * number / STREAMS).await;
                    TURNS
                }
                Start::Together => {
                    ask(client, order.port, body.clone(), sent).await?;
                    open.wait().await;
                    1
                }
            };
            for turn in 0..turns {
                let report = ask(client, order.port, body.clone(), sent).await?;
                let counts = order.start == Start::Together || (1..TURNS - 1).contains(&turn);
                found.extend(if counts { report } else { Report { changed: report.changed, ..Report::default() } });
            }
            anyhow::Ok(found)
        }
    }));
    let mut report = Report::default();
    for found in whole.await? {
        report.extend(found);
    }
    Ok(report)
}

/// One answer.
async fn ask(client: &Client, port: u16, body: Bytes, sent: &Sent) -> Result<Report> {
    let number = uuid::Uuid::new_v4().to_string();
    let asked = sent.now()?;
    let request = client.post(format!("http://127.0.0.1:{port}/v1/messages")).header(NUMBER, &number).body(body);
    let mut answer = request.send().await?;
    ensure!(answer.status().is_success(), "{} {}", answer.status(), answer.text().await?);
    let (mut report, mut read, mut looked) = (Report::default(), Vec::new(), 0);
    let mut times = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let now = sent.now()?;
        if read.is_empty() {
            report.first.push(now - asked);
        }
        read.extend(&chunk);
        // Every event is one line of data.
        while let Some(end) = read[looked..].iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&read[looked..looked + end])?;
            looked += end + 1;
            if let Some((_, at)) = line.split_once("\"at\":") {
                let at: u64 = at.trim_end_matches('}').parse()?;
                times.push(now - at);
            }
        }
    }
    report.lasts.extend(times.pop());
    report.events = times;
    let answers = &mut *sent.answers.lock().unwrap_or_else(PoisonError::into_inner);
    let original = answers.remove(&number).context("the model was asked")?;
    report.changed = usize::from(original != read);
    Ok(report)
}
