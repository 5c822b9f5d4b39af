//! `sled serve`: the container's main process. It puts the parts together, runs them until it is asked to end, and ends them in order.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use journal::{Journal, SystemClock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Surroundings;
use crate::api::{self, Node};
use crate::environment::Environment;
use crate::forward::{self, Gate};
use crate::git;
use crate::links::{self, Links};
use crate::log::RecentLog;
use crate::model;
use crate::room::Room;
use crate::snapshots::Snapshots;
use crate::sshd::Sshd;
use crate::supervised::Supervision;
use crate::takeover::{self, Successors};
use crate::turns::{Site, Turns};
use crate::warm::Warm;
use crate::workspace::Workspace;

/// What a turn's processes have for ending when the sled is asked to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// How long the whole end may take; engines kill after ten seconds.
const SHUTDOWN_LIMIT: Duration = link::takeover::LIMIT;

/// Where everything is. The defaults are those of a project's container.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// The socket that gateways reach through `sled connect`; what an earlier sled left there is replaced
    #[arg(long, default_value = crate::SOCKET)]
    socket: PathBuf,
    /// The project's files
    #[arg(long, default_value = "/workspace")]
    workspace: PathBuf,
    /// The folder of the sled's journal
    #[arg(long, default_value = crate::DATA)]
    data: PathBuf,
    /// The project's id, for the journal; otherwise `MUSHER_PROJECT_ID`
    #[arg(long)]
    project: Option<String>,
    /// Port of the model endpoint on the container's loopback
    #[arg(long, default_value_t = model::DEFAULT_PORT)]
    model_port: u16,
    /// Port of the git endpoint on the container's loopback
    #[arg(long, default_value_t = link::git::PORT)]
    git_port: u16,
    /// Seconds that a turn waits when the model's service limits the rate and does not say until when
    #[arg(long, default_value_t = 300)]
    limit_backoff_secs: u64,
    /// Seconds that a sled which has the project already may take to end
    #[arg(long, default_value_t = takeover::PATIENCE.as_secs(), hide = true)]
    takeover_secs: u64,
    /// Where the kernel shows cgroups, for the room that there is
    #[arg(long, default_value = "/sys/fs/cgroup", hide = true)]
    cgroups: PathBuf,
    /// Where the kernel shows processes and the machine's memory, for the same
    #[arg(long, default_value = "/proc", hide = true)]
    proc: PathBuf,
    /// Run no sshd
    #[arg(long)]
    no_sshd: bool,
    #[command(flatten)]
    sshd: SshdSettings,
}

/// Where sshd is.
#[derive(Debug, clap::Args)]
pub struct SshdSettings {
    /// The sshd to run
    #[arg(long = "sshd-program", default_value = "/usr/sbin/sshd")]
    program: PathBuf,
    /// Its configuration
    #[arg(long = "sshd-config", default_value = "/etc/musher/ssh/sshd_config")]
    config: PathBuf,
}

impl From<SshdSettings> for Sshd {
    fn from(settings: SshdSettings) -> Self {
        Self { program: settings.program, config: settings.config }
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(settings: Settings, environment: Environment, log: RecentLog) -> anyhow::Result<()> {
    tracing::info!("sled {} starts", env!("CARGO_PKG_VERSION"));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let run_dir = settings.socket.parent().context("the socket's path names no folder")?.to_owned();
    let sled = std::env::current_exe().context("cannot find this very program")?;
    let supervision = Supervision { sled: sled.clone(), run_dir };
    let home = PathBuf::from(environment.get("HOME").context("HOME is not set")?);
    let project =
        settings.project.or_else(|| environment.get("MUSHER_PROJECT_ID").map(str::to_owned)).unwrap_or_default();

    // First: in a container that has a sled, another one fails here, and takes nothing from it.
    let model = endpoint(settings.model_port, "model").await?;
    let git = endpoint(settings.git_port, "git").await?;
    let taking = Successors::take(&settings.data, Duration::from_secs(settings.takeover_secs));
    let successors = tokio::select! {
        taken = taking => taken.with_context(|| format!("cannot have {}", settings.data.display()))?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let journal_path = settings.data.join("journal.db");
    let journal = Journal::open(&journal_path, Arc::new(SystemClock))?;
    let surroundings = Surroundings { sled, home, environment: environment.clone(), model_port: settings.model_port };
    let workspace = Workspace {
        directory: settings.workspace.clone(),
        environment: environment.clone(),
        supervision: supervision.clone(),
        commands: TaskTracker::new(),
    };
    let snapshots = Snapshots::new(workspace.clone());
    let site = Site {
        workspace: settings.workspace,
        surroundings,
        supervision,
        warm: Warm::new(Room { cgroups: settings.cgroups, proc: settings.proc }),
        limit_backoff: Duration::from_secs(settings.limit_backoff_secs),
        snapshots: snapshots.clone(),
    };
    let turns = Turns::open(journal.clone(), project, site).await.context("cannot read the turns of before")?;

    let socket =
        links::listen(&settings.socket).with_context(|| format!("cannot listen on {}", settings.socket.display()))?;

    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let links = Links::new();
    let router = api::router(Node { started: Instant::now(), turns: turns.clone(), workspace: workspace.clone(), log });
    {
        let (links, shutdown) = (links.clone(), shutdown.clone());
        tasks.spawn(async move { links.serve(socket, router, shutdown).await });
    }
    for (listener, rules, gate) in [(model, model::RULES, turns.model_gate()), (git, git::RULES, Gate::default())] {
        let (links, shutdown) = (links.clone(), shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = forward::serve(listener, links, rules, gate, shutdown).await {
                tracing::error!(%error, "the endpoint of {} ended", rules.of_what);
            }
        });
    }
    {
        let shutdown = shutdown.clone();
        let turns = turns.clone();
        tasks.spawn(async move { shutdown.run_until_cancelled(turns.watch_room()).await });
    }
    {
        let shutdown = shutdown.clone();
        let turns = turns.clone();
        tasks.spawn(async move { shutdown.run_until_cancelled(turns.forget_prompts()).await });
    }
    {
        let shutdown = shutdown.clone();
        let turns = turns.clone();
        tasks.spawn(async move { shutdown.run_until_cancelled(turns.settle_snapshots()).await });
    }
    if !settings.no_sshd {
        let (sshd, shutdown) = (Sshd::from(settings.sshd), shutdown.clone());
        tasks.spawn(async move { sshd.keep_running(&environment, shutdown).await });
    }
    tasks.close();
    tracing::info!("ready on {}", settings.socket.display());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = successors.ask() => {}
    }
    tracing::info!("asked to end");
    let ended = tokio::time::timeout(SHUTDOWN_LIMIT, async {
        turns.shut_down(SHUTDOWN_GRACE).await;
        shutdown.cancel();
        tasks.wait().await;
        // A git whose asker is cut off with that takes its locks away before it ends.
        workspace.idle().await;
        drop(snapshots.hold().await);
        journal.close().await;
    });
    if ended.await.is_err() {
        let limit = SHUTDOWN_LIMIT.as_secs();
        tracing::error!("not everything ended within {limit} s; a turn that runs is interrupted at the next start");
        // Whatever goes on in a thread must not outlive the folder's lock.
        std::process::exit(1);
    }
    tracing::info!("ended");
    Ok(())
}

/// Listens on a port of the loopback.
async fn endpoint(port: u16, of_what: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    bound.with_context(|| format!("cannot listen on port {port} for the {of_what} endpoint"))
}
