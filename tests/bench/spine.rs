//! The spine's numbers: a warm `new project` against a bare `docker run`, and the memory of an idle gateway and sled.
//!
//! Run by `scripts/bench` on release builds. It prints commit, machine, every raw sample and the floor of the same
//! run, and fails when a bound of the issue is not kept. `docs/performance.md` keeps what it printed.

mod report;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    engine::{docker, inspect},
    gateway::Gateway,
    home::Home,
    homeserver::free_port,
    ssh::{self, Door},
    wait,
};

use crate::report::{machine, report};

/// Samples of each kind; they alternate, so that a change of the machine's load meets both.
const SAMPLES: usize = 7;
/// A warm `new project` may take this many times the floor.
const RATIO: f64 = 1.5;
/// Resident memory of the idle gateway, in megabytes (10⁶ bytes).
const GATEWAY_MB: f64 = 40.0;
/// Resident memory of the idle sled, in megabytes.
const SLED_MB: f64 = 10.0;

#[tokio::main]
async fn main() -> Result<()> {
    machine().await?;
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("resident", "").await?;
    ssh_true(&home, "resident").await?;
    memory(&home, &gateway).await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for n in 0..SAMPLES {
        floor.push(bare(&home, "resident").await?);
        let project = format!("sample{n}");
        let began = Instant::now();
        gateway.make(&project, "").await?;
        ssh_true(&home, &project).await?;
        ours.push(began.elapsed());
        docker(&["rm", "--force", &home.container(&project).await?]).await?;
    }
    let (ours, floor) = (report("new project to ssh", ours), report("docker run to ssh", floor));
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    println!("ratio of the medians: {ratio:.2} (bound {RATIO})");
    gateway.finish().await?;
    ensure!(ratio <= RATIO, "a warm new project takes {ratio:.2} times the floor");
    Ok(())
}

/// `ssh … true` through the port door: the same command on both sides.
async fn ssh_true(home: &Home, project: &str) -> Result<()> {
    ssh::run(home, "ssh", [Door::Port.host(project).as_str(), "true"], "", wait::SHORT).await?.success().map(drop)
}

/// What there is no way around: a container of the same image with the same flags and mounts, and the same ssh
/// command, tried until sshd is there.
async fn bare(home: &Home, like: &str) -> Result<Duration> {
    let model = home.container(like).await?;
    let facts = inspect(&model).await?;
    // Two containers cannot share the sled's journal.
    docker(&["stop", "--time", "2", &model]).await?;
    let port = free_port()?.to_string();
    let flags = flags(&facts, &port)?;
    let image = facts["Config"]["Image"].as_str().context("a container has an image")?;

    let began = Instant::now();
    let mut run = vec!["run", "--detach"];
    run.extend(flags.iter().map(String::as_str));
    run.push(image);
    let container = docker(&run).await?;
    let host = Door::Port.host(like);
    loop {
        let tried = ssh::run(home, "ssh", ["-p", &port, &host, "true"], "", wait::SHORT).await?;
        if tried.code == Some(0) {
            break;
        }
        ensure!(began.elapsed() < wait::SHORT, "the bare container never let ssh in: {tried}");
    }
    let took = began.elapsed();
    docker(&["rm", "--force", container.trim()]).await?;
    Ok(took)
}

/// The flags of `docker run` that make a container like this one.
fn flags(facts: &Value, port: &str) -> Result<Vec<String>> {
    let host = &facts["HostConfig"];
    let number = |name: &str| host[name].as_i64().with_context(|| format!("the container has no {name}"));
    let mut flags: Vec<String> =
        ["--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--ipc=private", "--log-driver=json-file"]
            .map(Into::into)
            .into();
    flags.push(format!("--user={}", facts["Config"]["User"].as_str().context("a user")?));
    flags.push(format!("--memory={0}", number("Memory")?));
    flags.push(format!("--memory-swap={}", number("MemorySwap")?));
    flags.push(format!("--cpus={}", number("NanoCpus")? / 1_000_000_000));
    flags.push(format!("--pids-limit={}", number("PidsLimit")?));
    flags.push(format!("--shm-size={}", number("ShmSize")?));
    flags.push(format!("--network={}", host["NetworkMode"].as_str().context("a network")?));
    flags.push(format!("--publish=127.0.0.1:{port}:2222"));
    for limit in host["Ulimits"].as_array().into_iter().flatten() {
        flags.push(format!("--ulimit={}={}", limit["Name"].as_str().context("a name")?, limit["Hard"]));
    }
    for (target, options) in host["Tmpfs"].as_object().into_iter().flatten() {
        flags.push(format!("--tmpfs={target}:{}", options.as_str().context("options")?));
    }
    for mount in host["Mounts"].as_array().into_iter().flatten() {
        let (source, target) =
            (mount["Source"].as_str().context("a source")?, mount["Target"].as_str().context("a target")?);
        let mode = if mount["ReadOnly"] == true { ",readonly" } else { "" };
        flags.push(format!("--mount=type=bind,source={source},target={target}{mode}"));
    }
    Ok(flags)
}

/// Resident memory (`VmRSS`) of the gateway, and of the sled as its container's process list shows it.
async fn memory(home: &Home, gateway: &Gateway) -> Result<()> {
    let of_gateway = resident(gateway.pid()?)?;
    let container = home.container("resident").await?;
    let list = docker(&["top", &container, "-eo", "pid,args"]).await?;
    let sled = list
        .lines()
        .find_map(|line| line.trim().split_once(' ').filter(|(_, args)| args.trim() == "/usr/local/bin/sled serve"));
    let of_sled = resident(sled.with_context(|| format!("no sled runs:\n{list}"))?.0.parse()?)?;
    println!(
        "resident, idle, one project, MB: gateway {of_gateway:.1} (bound {GATEWAY_MB}), sled {of_sled:.1} (bound {SLED_MB})"
    );
    ensure!(of_gateway <= GATEWAY_MB && of_sled <= SLED_MB, "more memory than the bound");
    Ok(())
}

fn resident(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}
