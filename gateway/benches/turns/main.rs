//! Issue 3's numbers of turns: how long a message and an answer take on their way, how many of them pass, what an idle
//! room costs, and how soon a restarted gateway is ready.
//!
//! `cargo bench -p musher` runs it after `cargo build --release -p sled-node`; names of measurements choose some of
//! them. It prints every sample, and fails when a bound is not kept. `docs/performance.md` tells the method.

mod agent;
mod figures;
mod floor;
#[expect(dead_code, reason = "the model's bench asks for its port")]
mod node;
mod restart;
mod stage;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use link::requests::Agent;

use crate::{
    agent::Times,
    figures::{Samples, between, load, machine, milliseconds, resident},
    stage::{Noted, Plan, Stage},
};

/// Turns one after the other that times are taken of, and the pause before each: nobody writes at once when answered.
const TURNS: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);
/// How long an agent waits for the next turn, in seconds: longer than anything here takes.
const WARM: u64 = 600;

/// From the batch's closing to the agent's process started.
const TO_STARTED: (usize, Duration) = (95, Duration::from_millis(60));
/// From the batch's closing to a warm agent having the words.
const TO_HEARD: (usize, Duration) = (95, Duration::from_millis(15));
/// From the agent's result line to the reply handed to the surface.
const TO_SURFACE: (usize, Duration) = (95, Duration::from_millis(20));

/// The closed loop.
const ROOMS: usize = 100;
const WARM_ROOMS: usize = 40;
const PROJECTS: u16 = 10;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
const WARM_UP: Duration = Duration::from_secs(2);
const ANSWERS_PER_SECOND: f64 = 200.0;
const OWN_SHARE: (usize, Duration) = (99, Duration::from_millis(50));

/// Idle rooms, and what so many may add to the resident memory, in bytes.
const IDLE_ROOMS: usize = 1000;
const IDLE_BYTES: i64 = 5_000_000;
/// Until what was used last is put away.
const QUIET: Duration = Duration::from_secs(1);

/// Restarts, and the bound of each.
const RESTARTS: usize = 7;
const READY: (usize, Duration) = (100, Duration::from_secs(1));

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if arguments.first().is_some_and(|first| first == agent::ARGUMENT) {
        return agent::run();
    }
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    // As the gateway does.
    if let Err(error) = musher::priority::raise() {
        println!("without a gateway's priority: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(chosen: &[String]) -> Result<()> {
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    machine()?;
    let mut missed = Vec::new();
    // First, while nothing else has been in this process's memory.
    if wanted("idle-rooms") {
        missed.extend(idle_rooms().await?);
    }
    if wanted("latency") {
        missed.extend(latency().await?);
    }
    if wanted("closed-loop") {
        missed.extend(closed_loop(ROOMS).await?);
        // So many that every room's agent stays warm.
        missed.extend(closed_loop(WARM_ROOMS).await?);
    }
    if wanted("restart") {
        println!("\n== restart to ready");
        for left in [restart::Left::Few, restart::Left::All] {
            let samples = restart::measure(left, RESTARTS).await?;
            missed.extend(samples.report("start of the process to /healthz", Some(READY))?);
            samples.raw();
        }
    }
    load("after")?;
    ensure!(missed.is_empty(), "bounds are not kept:\n{}", missed.join("\n"));
    Ok(())
}

/// Times of turns one after the other, on a gateway that does nothing else.
async fn latency() -> Result<Vec<String>> {
    let mut missed = Vec::new();
    println!("\n== floors of this machine");
    floor::flush()?.report("4 kB appended and flushed", None)?;
    floor::start()?.report("bare practice agent, start to first line", None)?;

    println!("\n== an agent that starts: the practice agent, not kept");
    let stage = Stage::new(Plan { projects: 1, agent: Agent::Echo { notice: None }, keep_warm_secs: 0 }).await?;
    let turns = one_by_one(&stage).await?;
    let started = of(&turns, &stage.stored(&turns, "turn.started")?, |turn, at| between(turn.closed, at))?;
    missed.extend(started.report("batch closed to agent's start stored", Some(TO_STARTED))?);
    started.raw();
    shares(&turns)?;
    stage.end().await?;

    println!("\n== an agent that is warm: the practice agent");
    let stage = Stage::new(Plan { projects: 1, agent: Agent::Echo { notice: None }, keep_warm_secs: WARM }).await?;
    let turns = one_by_one(&stage).await?;
    let heard = of(&turns, &stage.stored(&turns, "turn.heard")?, |turn, at| between(turn.closed, at))?;
    missed.extend(heard.report("batch closed to agent heard stored", Some(TO_HEARD))?);
    heard.raw();
    shares(&turns)?;
    stage.end().await?;

    println!("\n== an agent that is warm and tells the time itself");
    let agent =
        Agent::Command { argv: vec![std::env::current_exe()?.display().to_string(), agent::ARGUMENT.to_owned()] };
    let stage = Stage::new(Plan { projects: 1, agent, keep_warm_secs: WARM }).await?;
    let turns = one_by_one(&stage).await?;
    let times = turns.iter().map(|turn| Times::read(&turn.answer)).collect::<Result<Vec<_>>>()?;
    let first = times.iter().map(|times| times.started).collect::<std::collections::BTreeSet<_>>().len();
    ensure!(first == 1, "the agent was started {first} times: it was not warm");
    let heard = of(&turns, &times, |turn, times| between(turn.closed, times.heard))?;
    missed.extend(heard.report("batch closed to agent having the words", Some(TO_HEARD))?);
    heard.raw();
    let surfaced = of(&turns, &times, |turn, times| between(times.answered, turn.surfaced))?;
    missed.extend(surfaced.report("result line to reply handed to the surface", Some(TO_SURFACE))?);
    surfaced.raw();
    shares(&turns)?;
    stage.end().await?;
    Ok(missed)
}

/// The samples that turns and what else is known of each give together.
fn of<T: Copy>(turns: &[Noted], times: &[T], sample: impl Fn(&Noted, T) -> Result<Duration>) -> Result<Samples> {
    let mut samples = Samples::default();
    for (turn, time) in turns.iter().zip(times) {
        samples.extend([sample(turn, *time)?]);
    }
    Ok(samples)
}

/// Where the time of turns goes, as the gateway sees it.
fn shares(turns: &[Noted]) -> Result<()> {
    let part = |what: &str, sample: fn(&Noted) -> Result<Duration>| {
        let samples = turns.iter().map(sample).collect::<Result<Vec<_>>>()?;
        Samples::from(samples).report(what, None)
    };
    part("  message given to the intake until it is journaled", |turn| between(turn.said, turn.accepted))?;
    part("  batch closed until it is handed over", |turn| between(turn.closed, turn.handed))?;
    part("  message until reply", |turn| between(turn.said, turn.surfaced))?;
    Ok(())
}

/// The same room again and again: one turn to warm up, then those that count.
async fn one_by_one(stage: &Stage) -> Result<Vec<Noted>> {
    stage.bind(0).await?;
    stage.say(0).await?;
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        stage.idle().await;
        tokio::time::sleep(PAUSE).await;
        turns.push(stage.say(0).await?);
    }
    Ok(turns)
}

/// Every room says something, waits for the answer, and says the next thing at once.
async fn closed_loop(rooms: usize) -> Result<Vec<String>> {
    println!("\n== closed loop: {rooms} rooms on {PROJECTS} projects, window 0, practice agent");
    let plan = Plan { projects: PROJECTS, agent: Agent::Echo { notice: None }, keep_warm_secs: WARM };
    let stage = Stage::new(plan).await?;
    try_join_all((0..rooms).map(|number| stage.bind(number))).await?;
    let over = AtomicBool::new(false);
    let talk = async |number: usize| {
        let mut turns = Vec::new();
        while !over.load(Ordering::Relaxed) {
            turns.push(stage.say(number).await?);
        }
        anyhow::Ok(turns)
    };
    let bell = async {
        tokio::time::sleep(WARM_UP).await;
        let (began, before) = (jiff::Timestamp::now().as_microsecond(), stage.worked()?);
        for _ in 0..ROUNDS {
            tokio::time::sleep(ROUND).await;
        }
        over.store(true, Ordering::Relaxed);
        let after = stage.worked()?;
        anyhow::Ok((began, after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)))
    };
    let (turns, (began, gateway, sleds)) = tokio::try_join!(try_join_all((0..rooms).map(talk)), bell)?;
    stage.idle().await;
    let round = i64::try_from(ROUND.as_micros())?;
    let mut rates = Vec::new();
    let mut counted = Vec::new();
    for from in (0..).map(|number| began + number * round).take(ROUNDS) {
        let before = counted.len();
        let within = turns.iter().flatten().filter(|turn| (from..from + round).contains(&turn.surfaced));
        counted.extend(within.cloned());
        rates.push(u32::try_from(counted.len() - before)?);
    }
    let rates: Vec<f64> = rates.into_iter().map(|count| f64::from(count) / ROUND.as_secs_f64()).collect();
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[ROUNDS / 2];
    println!("answers/s, rounds of {} s: {rates:.0?} (median {median:.0})", ROUND.as_secs());
    let each = |worked: Duration| milliseconds(worked / u32::try_from(counted.len().max(1)).unwrap_or(u32::MAX));
    println!("processor time of an answer, ms: gateway {}, sled and agent {}", each(gateway), each(sleds));
    let finished = stage.stored(&counted, "turn.finished")?;
    let own = of(&counted, &finished, |turn, finished| {
        let before = between(turn.said, turn.accepted)? + between(turn.closed, turn.handed)?;
        Ok(before + between(finished, turn.surfaced)?)
    })?;
    let mut missed: Vec<_> = own.report("the gateway's own share of a turn", Some(OWN_SHARE))?.into_iter().collect();
    of(&counted, &finished, |turn, finished| between(finished, turn.surfaced))?
        .report("  end stored by the sled until reply handed to the surface", None)?;
    shares(&counted)?;
    let started = stage.stored(&counted, "turn.started")?;
    of(&counted, &started, |turn, started| between(turn.closed, started))?
        .report("  batch closed until agent's start stored", None)?;
    if median < ANSWERS_PER_SECOND {
        missed.push(format!("closed loop: {median:.0} answers/s, fewer than {ANSWERS_PER_SECOND}"));
    }
    stage.end().await?;
    Ok(missed)
}

/// What rooms cost in which something was said and answered once.
async fn idle_rooms() -> Result<Option<String>> {
    println!("\n== idle rooms");
    let plan = Plan { projects: PROJECTS, agent: Agent::Echo { notice: None }, keep_warm_secs: 0 };
    let stage = Stage::new(plan).await?;
    // Caches, threads and code pages that any work brings in.
    let mut next = 0;
    visit(&stage, &mut next, 2 * ROOMS).await?;
    let mut found = Vec::new();
    let mut before = resident()?;
    for _ in 0..2 {
        visit(&stage, &mut next, IDLE_ROOMS).await?;
        let after = resident()?;
        let (all, own) = (after.0 - before.0, after.1 - before.1);
        println!(
            "{next} rooms: resident {} kB, of no file {} kB; the last {IDLE_ROOMS} added {} and {} kB",
            after.0 / 1000,
            after.1 / 1000,
            all / 1000,
            own / 1000
        );
        found.push(all);
        before = after;
    }
    stage.end().await?;
    let most = found.into_iter().max().unwrap_or_default();
    Ok((most > IDLE_BYTES).then(|| format!("{IDLE_ROOMS} idle rooms add {} kB", most / 1000)))
}

/// Talks once in each of the next rooms, a few at a time, and waits until all is quiet.
async fn visit(stage: &Stage, next: &mut usize, count: usize) -> Result<()> {
    let rooms = *next..*next + count;
    *next = rooms.end;
    let visit = async |number| {
        stage.bind(number).await?;
        stage.say(number).await.map(drop)
    };
    stream::iter(rooms).map(visit).buffer_unordered(PROJECTS.into()).try_collect::<()>().await?;
    stage.idle().await;
    tokio::time::sleep(QUIET).await;
    Ok(())
}
