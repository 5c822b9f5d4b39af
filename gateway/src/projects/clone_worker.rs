//! The process in which libgit2 clones ([`super::clone`]): this same program, without the gateway's memory, secrets and environment,
//! and with bounds of its own. What a hostile repository makes of it ends with it.
//!
//! Its standard input is one line of JSON, the order, and then stays open for as long as somebody wants the clone; its output is
//! a line of JSON for whatever happens.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::clone::{self, Cloned, Doing, Failure, Order};
use crate::priority;

/// The verb of the command line that becomes the worker.
pub const VERB: &str = "clone-worker";
/// How long it may take to end by itself.
const ENDING: Duration = Duration::from_secs(5);
/// How often it tells how far it is.
const TELLING: Duration = Duration::from_millis(200);

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// How far it is.
    Doing(Doing),
    /// It is done.
    Cloned(Cloned),
    /// It is not.
    Failed(Failure),
}

/// A worker, from the gateway's side. Dropped, it is killed.
pub struct Worker {
    child: Child,
    told: Lines<BufReader<ChildStdout>>,
    /// The worker ends when it closes, also when the gateway is killed.
    _wanted: ChildStdin,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(order: &Order) -> io::Result<Self> {
        // The very program that runs, whatever lies at its path by now.
        let mut child = Command::new("/proc/self/exe")
            .arg(VERB)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the gateway, which decides.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(mut wanted), Some(told)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("its streams are missing"));
        };
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        wanted.write_all(&line).await?;
        Ok(Self { child, told: BufReader::new(told).lines(), _wanted: wanted })
    }

    /// What it says, until it is gone; what cannot be read is an error.
    pub fn told(&mut self) -> impl Stream<Item = io::Result<Told>> + Send {
        stream::try_unfold(&mut self.told, async |told| {
            let Some(line) = told.next_line().await? else { return Ok(None) };
            Ok(Some((serde_json::from_str(&line)?, told)))
        })
    }

    /// Ends it, waits until it is gone, and tells how it ended.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn end(mut self) -> io::Result<ExitStatus> {
        // Who has closed his output has ended, or will in a moment: how, is told by itself.
        if let Ok(ended) = tokio::time::timeout(ENDING, self.child.wait()).await {
            return ended;
        }
        self.child.start_kill()?;
        self.child.wait().await
    }

    /// Ends it at once, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn kill(mut self) -> io::Result<()> {
        self.child.kill().await
    }
}

/// Is the worker.
#[must_use]
pub fn run() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens any more, or nobody asked.
        Err(_) => ExitCode::FAILURE,
    }
}

fn work() -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    bound(&order)?;
    std::thread::spawn(|| {
        // Whatever comes or breaks: only the end matters.
        drop(io::stdin().lock().read_to_end(&mut Vec::new()));
        std::process::exit(1);
    });
    let mut last: Option<Instant> = None;
    let cloned = clone::clone(&order, |doing| {
        // The same again tells as well: that it lives.
        if last.is_some_and(|last| last.elapsed() < TELLING) {
            return;
        }
        last = Some(Instant::now());
        // Where nobody listens the thread above ends all.
        drop(tell(&Told::Doing(doing)));
    });
    tell(&cloned.map_or_else(Told::Failed, Told::Cloned))
}

/// Takes from itself what a clone needs not.
fn bound(order: &Order) -> io::Result<()> {
    priority::give_up()?;
    let file = u64::try_from(order.limits.bytes.max(order.limits.content)).unwrap_or(u64::MAX);
    let memory = u64::try_from(clone::MEMORY).unwrap_or(u64::MAX);
    for (resource, limit) in
        [(Resource::RLIMIT_DATA, memory), (Resource::RLIMIT_FSIZE, file), (Resource::RLIMIT_CORE, 0)]
    {
        // Whoever started the gateway may have allowed less.
        let limit = limit.min(getrlimit(resource)?.1);
        setrlimit(resource, limit, limit)?;
    }
    // When memory is short it goes first; where that may not be said, all are alike.
    drop(fs::write("/proc/self/oom_score_adj", "1000"));
    Ok(())
}

fn tell(told: &Told) -> io::Result<()> {
    let mut line = serde_json::to_vec(told)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
