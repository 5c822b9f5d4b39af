//! The kill test: a person talks in several rooms about several projects while every part is killed at random
//! instants and started again. It counts what is lost, doubled, out of order or left behind; all must be zero.
//!
//! Run by `scripts/kill-test`. It runs twice: the outer run makes a private engine and removes everything when the
//! inner one has ended, however it ended; the inner run has that engine as its `DOCKER_HOST`.

mod agent;
mod engine;
mod journal;
mod ledger;
mod plan;
mod record;
mod storm;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use ::tests::{home::Home, process, product, wait};
use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    engine::Engine,
    world::{AgentKind, ECHO},
};

/// Kills every part of Musher again and again, and counts what that costs.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// How many kills
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// The seed of the plan, to repeat a run
    #[arg(long)]
    seed: Option<u64>,
    /// Which agent runs
    #[arg(long, value_enum, default_value_t = AgentKind::Claude)]
    agent: AgentKind,
    /// How long nothing may come until open messages count as lost
    #[arg(long, default_value_t = 180)]
    quiet_secs: u64,
    /// The folder of the private engine: the inner run
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Fresh with each run; what it was is printed.
    let seed = options.seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    let clean = match &options.inside {
        // Outside is who removes the engine.
        Some(folder) => storm::run(Engine::at(folder, std::os::unix::process::parent_id()), &options, seed).await,
        None => outer(&options, seed).await,
    };
    let clean = clean.unwrap_or_else(|error| {
        eprintln!("kill-test: {error:#}");
        false
    });
    if options.inside.is_none() && !clean {
        println!("to repeat it: scripts/kill-test --seed {seed} --kills {} --agent {}", options.kills, options.agent);
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes the engine, runs ourselves inside, and removes everything.
async fn outer(options: &Options, seed: u64) -> Result<bool> {
    println!("kill test: seed {seed}, {} kills, agent {}", options.kills, options.agent);
    let image = image(options.agent).await?;
    let folder = product::scratch()?.keep();
    let engine = Engine::at(&folder, std::process::id());
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let run = async {
        engine.make().await?;
        let began = Instant::now();
        engine.load(&image).await?;
        println!("the private engine has its image after {:.1} s", began.elapsed().as_secs_f64());
        let scratch = folder.join("h");
        std::fs::create_dir(&scratch)?;
        let mut inner = engine.within(std::env::current_exe()?);
        inner.args(["--kills", &options.kills.to_string(), "--seed", &seed.to_string()]);
        inner.args(["--agent", &options.agent.to_string(), "--quiet-secs", &options.quiet_secs.to_string()]);
        inner.arg("--inside").arg(&folder).env("DOCKER_HOST", engine.host()).env(product::SCRATCH, scratch);
        // An interruption on the terminal is for the outer run, which ends this one.
        inner.process_group(0).kill_on_drop(true);
        let status = inner.spawn().context("could not start the inner run")?.wait().await?;
        Ok(status.success())
    };
    let clean = tokio::select! {
        clean = run => clean,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("asked to end")),
    };
    let began = Instant::now();
    if let Err(error) = engine.remove().await {
        eprintln!("the private engine did not go in good order: {error:#}");
        engine.sweep().await?;
    }
    println!("everything was removed in {:.1} s", began.elapsed().as_secs_f64());
    clean
}

/// The image that projects without a stack run on, made by the product on the engine that was found.
async fn image(agent: AgentKind) -> Result<String> {
    let tables = match agent {
        AgentKind::Claude => "",
        AgentKind::Echo => ECHO,
    };
    let home = Home::new("", tables)?;
    let mut command = home.musher()?;
    let made = process::run(command.args(["images", "build"]), b"", wait::LONG * 7).await?.success()?;
    match made.lines().last() {
        Some(tag) if tag.contains(':') => Ok(tag.trim().to_owned()),
        _ => bail!("`musher images build` names no image:\n{made}"),
    }
}
