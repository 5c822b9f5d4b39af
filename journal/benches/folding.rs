//! What a start costs: folds of long streams, of many streams, and from snapshots. It fails when the
//! bound on a start from a snapshot is not kept.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use journal::{
    Actor, Append, Cause, DomainEvent, Expected, Fold, Journal, NewEvent, Recorded, Snapshot, StreamId, SystemClock,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// The most that a start from a snapshot and a tail of 1,000 events may take, the median of [`ROUNDS`].
const FROM_SNAPSHOT: Duration = Duration::from_millis(5);

const ROUNDS: usize = 21;

/// Of the size and shape of what a chat's session writes.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum ChatEvent {
    #[serde(rename = "message.accepted")]
    Accepted { event_id: String, sender: String, at: jiff::Timestamp, thread: Option<String>, text: Uuid },
    #[serde(rename = "message.answered")]
    Answered { event_id: String, turn: Uuid },
}

impl DomainEvent for ChatEvent {
    const KINDS: &'static [&'static str] = &["message.accepted", "message.answered"];
}

/// What waits, and how much there was.
#[derive(Default, Serialize, Deserialize)]
struct Chat {
    waiting: BTreeMap<String, Uuid>,
    answered: u64,
}

impl Fold for Chat {
    type Event = ChatEvent;
    type Error = Infallible;

    fn apply(&mut self, event: &ChatEvent, _: &Recorded) -> Result<(), Infallible> {
        match event {
            ChatEvent::Accepted { event_id, text, .. } => {
                self.waiting.insert(event_id.clone(), *text);
            }
            ChatEvent::Answered { event_id, .. } => {
                self.waiting.remove(event_id);
                self.answered += 1;
            }
        }
        Ok(())
    }
}

impl Snapshot for Chat {
    const VERSION: u32 = 1;
}

/// Event `n` of a stream: every second one is answered at once, a hundredth waits for ever.
fn event(stream: u64, n: u64) -> ChatEvent {
    let event_id = format!("$Kd8s7fGhj3lPq0aZxW{stream:08}{:012}:example.org", n / 2);
    if n.is_multiple_of(2) || n % 200 == 1 {
        let sender = "matrix:@ada:example.org".to_owned();
        let (at, text) = ("2026-01-02T12:00:00.123456Z".parse().unwrap(), Uuid::now_v7());
        ChatEvent::Accepted { event_id, sender, at, thread: None, text }
    } else {
        ChatEvent::Answered { event_id, turn: Uuid::now_v7() }
    }
}

async fn fill(journal: &Journal, stream: u64, numbers: std::ops::Range<u64>) {
    let events: Vec<_> = numbers.map(|n| NewEvent::encode(&event(stream, n)).unwrap()).collect();
    for events in events.chunks(1000) {
        journal
            .append(Append {
                stream: StreamId::new("chat", stream),
                expected: Expected::Any,
                events: events.to_vec(),
                key: None,
                actor: Actor::Person("matrix:@ada:example.org".to_owned()),
                cause: Cause::Command("$Kd8s7fGhj3lPq0aZxW:example.org".to_owned()),
            })
            .await
            .unwrap();
    }
}

async fn keep_all(journal: &Journal) {
    for (stream, loaded) in journal.load_all::<Chat>("chat").await.unwrap() {
        journal.snapshot(&stream, &loaded).await.unwrap();
    }
}

fn main() -> ExitCode {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let long = Journal::open(&folder.path().join("long.db"), Arc::new(SystemClock)).unwrap();
    let mut criterion = Criterion::default().configure_from_args();
    folding(&mut criterion, &runtime, &long);
    criterion.final_summary();
    check(&runtime, &long)
}

/// Leaves in `journal` one stream with a snapshot at 50,000 and a tail of 1,000 events.
fn folding(criterion: &mut Criterion, runtime: &Runtime, journal: &Journal) {
    let mut group = criterion.benchmark_group("fold");
    group.sample_size(20);

    let stream = StreamId::new("chat", 0);
    runtime.block_on(fill(journal, 0, 0..50_000));
    group.throughput(Throughput::Elements(50_000));
    group.bench_function("one stream of 50,000 events", |b| {
        b.iter(|| black_box(runtime.block_on(journal.load::<Chat>(&stream)).unwrap()));
    });
    runtime.block_on(keep_all(journal));
    runtime.block_on(fill(journal, 0, 50_000..51_000));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("snapshot at 50,000 and a tail of 1,000 events", |b| {
        b.iter(|| black_box(runtime.block_on(journal.load_snapshot::<Chat>(&stream)).unwrap()));
    });

    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("many.db"), Arc::new(SystemClock)).unwrap();
    runtime.block_on(async {
        for stream in 0..1000 {
            fill(&journal, stream, 0..50).await;
        }
    });
    group.throughput(Throughput::Elements(50_000));
    group.bench_function("1,000 streams of 50 events", |b| {
        b.iter(|| black_box(runtime.block_on(journal.load_all::<Chat>("chat")).unwrap()));
    });
    runtime.block_on(keep_all(&journal));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1,000 streams from snapshots", |b| {
        b.iter(|| black_box(runtime.block_on(journal.load_all_snapshots::<Chat>("chat")).unwrap()));
    });
    group.bench_function("last events of 1,000 streams", |b| {
        b.iter(|| black_box(runtime.block_on(journal.last_events("chat")).unwrap()));
    });
    group.finish();
}

/// Whether a start from a snapshot keeps its bound.
fn check(runtime: &Runtime, journal: &Journal) -> ExitCode {
    let stream = StreamId::new("chat", 0);
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let loaded = runtime.block_on(journal.load_snapshot::<Chat>(&stream)).unwrap();
            let took = start.elapsed();
            assert_eq!(loaded.version, 51_000);
            took
        })
        .collect();
    rounds.sort_unstable();
    let (median, least, most) = (rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1]);
    println!(
        "snapshot at 50,000 and a tail of 1,000 events: {median:.2?} (of {ROUNDS} rounds {least:.2?} to {most:.2?})"
    );
    if median > FROM_SNAPSHOT {
        eprintln!("missed: {FROM_SNAPSHOT:?} for a snapshot and its tail");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
