//! Issue 4's numbers of the way to the model: how much later a streamed answer comes through sled, link and gateway than straight from
//! the model, when two hundred are under way at once.
//!
//! `cargo bench -p musher --bench model` runs it after `cargo build --release -p sled-node`; `steady` and `burst` behind `--` choose
//! one of both. It prints what each round came to, and fails when a bound is not kept. `docs/performance.md` tells the method.

#[path = "../turns/figures.rs"]
#[expect(dead_code, reason = "the numbers of turns need more of it")]
mod figures;
mod load;
#[path = "../turns/node.rs"]
#[expect(dead_code, reason = "the numbers of turns need more of it")]
mod node;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::http::HeaderMap;
use journal::{Clock, SystemClock};
use musher::{
    metrics::Metrics,
    model::{Auth, Endpoint, Key, Models, Proxy},
    projects::Registry,
    store::Journal,
    tasks::Tasks,
    usage::{Budget, Usage},
};
use reqwest::Url;
use uuid::Uuid;

use crate::{
    figures::{Samples, load as machine_load, machine, milliseconds, worked},
    load::{Order, Report, Start},
    node::Node,
};

/// Rounds of each kind; those straight to the model and those through all of it alternate.
const ROUNDS: usize = 3;

/// By how much an event of a stream, and an answer's first byte, may come later than straight from the model.
const LATER: Duration = Duration::from_millis(10);

/// What an order may take.
const PATIENCE: Duration = Duration::from_mins(1);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if arguments.first().is_some_and(|first| first == load::ARGUMENT) {
        return load::run();
    }
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    // As the gateway's own.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(chosen: &[String]) -> Result<()> {
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    machine()?;
    let mut missed = Vec::new();
    for (name, start) in [("steady", Start::Spread), ("burst", Start::Together)] {
        if wanted(name) {
            missed.extend(compare(name, start).await?);
        }
    }
    machine_load("after")?;
    ensure!(missed.is_empty(), "bounds are not kept:\n{}", missed.join("\n"));
    Ok(())
}

/// The same load straight to the model and through all of it, in turns.
async fn compare(name: &str, start: Start) -> Result<Vec<String>> {
    println!(
        "\n== {name}: {} streams at once, {} ms between a stream's events",
        load::STREAMS,
        load::PAUSE.as_millis()
    );
    let mut load = Load::start()?;
    let way = Way::open(load.model).await?;
    let (mut direct, mut through) = (Report::default(), Report::default());
    for round in 0..ROUNDS {
        let before = way.worked()?;
        for (port, whole) in [(load.model, &mut direct), (way.node.model_port(), &mut through)] {
            let report = load.measure(Order { port, start })?;
            ensure!(report.changed == 0, "{} answers came with other bytes than they were sent", report.changed);
            let first = Samples::from(report.first()).percentile(95)?;
            let events = Samples::from(report.events()).percentile(95)?;
            let kind = if port == load.model { "direct " } else { "through" };
            println!(
                "round {round} {kind}: first byte p95 {}, events p95 {} ms",
                milliseconds(first),
                milliseconds(events)
            );
            whole.extend(report);
        }
        let (gateway, sled) = way.worked()?;
        println!(
            "round {round} processor time, ms: gateway {}, sled {}",
            milliseconds(gateway.saturating_sub(before.0)),
            milliseconds(sled.saturating_sub(before.1))
        );
    }
    let mut missed = Vec::new();
    for (what, direct, through, percent) in [
        ("first byte", direct.first(), through.first(), [50, 95]),
        ("events", direct.events(), through.events(), [50, 95]),
        ("last event", direct.lasts(), through.lasts(), [50, 95]),
    ] {
        let (direct, through) = (Samples::from(direct), Samples::from(through));
        direct.report(&format!("{what}, direct"), None)?;
        through.report(&format!("{what}, through"), None)?;
        for percent in percent {
            let (floor, found) = (direct.percentile(percent)?, through.percentile(percent)?);
            let later = found.saturating_sub(floor);
            println!("  p{percent} later by {} ms", milliseconds(later));
            // Two hundred requests in one instant, and counts on their way into the journal, wait for processors and disk: told, not bounded.
            if later > LATER && start == Start::Spread && what != "last event" {
                missed.push(format!("{name}: {what} p{percent} comes {} ms later", milliseconds(later)));
            }
        }
    }
    way.end().await?;
    load.end()?;
    Ok(missed)
}

/// The process that is both the model and whoever asks it.
struct Load {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The model's port.
    model: u16,
}

impl Load {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(load::ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take().context("its input")?, child.stdout.take().context("its output")?);
        let mut load = Self { child, input, output: BufReader::new(output), model: 0 };
        load.model = serde_json::from_str(&load.line()?)?;
        Ok(load)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the load has ended");
        Ok(line)
    }

    fn measure(&mut self, order: Order) -> Result<Report> {
        writeln!(self.input, "{}", serde_json::to_string(&order)?)?;
        let answer = tokio::task::block_in_place(|| self.line())?;
        Ok(serde_json::from_str(&answer)?)
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        ensure!(self.child.wait()?.success(), "the load failed");
        Ok(())
    }
}

/// A gateway's door to the model, and a sled that is linked to it.
struct Way {
    node: Node,
    journal: Journal,
    tasks: Tasks,
    _folder: tempfile::TempDir,
}

impl Way {
    async fn open(model: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let clock = Arc::new(SystemClock);
        let journal = Journal::open(&folder.path().join("journal.db"), clock.clone())?;
        let (tasks, metrics) = (Tasks::new(), Metrics::new(clock.now()));
        let registry = Arc::new(Registry::open(journal.clone()).await?);
        let usage = Usage::open(journal.clone(), Budget::default(), clock, tasks.clone(), metrics.clone()).await?;
        let base = Url::parse(&format!("http://127.0.0.1:{model}"))?;
        let key = Key::Given("the-key".to_owned());
        let models = Models::new(Endpoint { base, auth: Auth::ApiKey, key, headers: HeaderMap::new() }, [], None)?;
        let router = Proxy::new(models, registry, usage, metrics).router(Uuid::now_v7());
        Ok(Self { node: Node::start(router).await?, journal, tasks, _folder: folder })
    }

    /// The processor time of the gateway's parts, this process, and of the sled with its end of the link.
    fn worked(&self) -> Result<(Duration, Duration)> {
        Ok((worked(std::process::id())?, self.node.worked()?))
    }

    async fn end(self) -> Result<()> {
        self.node.end().await?;
        self.tasks.shutdown(PATIENCE).await?;
        self.journal.close().await;
        Ok(())
    }
}
