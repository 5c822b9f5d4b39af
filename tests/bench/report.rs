//! What every benchmark prints: where it ran, and its samples with their median.

use std::{fs, time::Duration};

use anyhow::Result;
use tests::{engine::docker, process, product::repository, wait};
use tokio::process::Command;

/// Prints commit, processors, kernel, engine, and the load that others put on the machine.
pub async fn machine() -> Result<()> {
    let mut git = Command::new("git");
    git.arg("-C").arg(repository()?).args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let commit = process::run(&mut git, b"", wait::SHORT).await?.success()?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |found| found.1);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let engine = docker(&["version", "--format", "{{.Server.Version}} (client {{.Client.Version}})"]).await?;
    println!("commit {}; {count} × {model}; kernel {}; engine {}", commit.trim(), kernel.trim(), engine.trim());
    println!("load before: {}", load()?);
    Ok(())
}

/// How many processes wanted a processor, on average, in the last 1, 5 and 15 minutes.
pub fn load() -> Result<String> {
    Ok(fs::read_to_string("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

/// Prints the samples in the order in which they were taken, and gives their median.
pub fn report(what: &str, samples: Vec<Duration>) -> Duration {
    let shown: Vec<_> = samples.iter().map(|sample| format!("{:.3}", sample.as_secs_f64())).collect();
    let mut sorted = samples;
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    println!("{what}, s: {} (median {:.3})", shown.join(" "), median.as_secs_f64());
    median
}
