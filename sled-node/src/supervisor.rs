//! `sled supervise`: the process that stands above an agent's whole tree (SLED-3).
//!
//! As a subreaper it inherits every orphan below it, whatever session or group that chose, and it ends only when it has no child left:
//! its last word, [`Report::Gone`], means that nothing of the tree lives. Between an agent's turns [`Report::Settled`] says the same of all but
//! the agent and what it had at its start. It takes its orders over a socket of the sled's;
//! when that closes, because the sled is gone, it kills the tree. It knows nothing of turns and protocols, passes
//! standard input, output and error through untouched, and lets go of the first two, so that the sled hears when the program closes them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::processes::{self, Process};

/// How long what an agent leaves behind has between being asked to end and being killed.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

/// How long to wait before looking again for what has not died yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What the kernel adds to the tree's badness when memory is short, so that it dies before sshd and the sled (PROJ-9); of 1000.
const OOM_SCORE_ADJ: i32 = 600;

/// What the sled asks of a supervisor, a JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// End the tree: SIGTERM to every process, SIGKILL to what is left after the grace.
    Stop {
        /// The grace, in milliseconds.
        grace_ms: u64,
    },
    /// The processes that hang below the program now belong to it: the MCP servers of its start.
    Adopt,
    /// A turn is over: end every process but the program and what it has adopted, and say [`Report::Settled`].
    Settle,
}

/// What a supervisor tells the sled, a JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The program runs.
    Started {
        /// Why the tree could not be marked as the first to die when memory is short, if so.
        oom_error: Option<String>,
    },
    /// The program could not be started; nothing runs.
    NotStarted {
        /// The system's word for it.
        error: String,
    },
    /// What [`Order::Settle`] came to. Does not come if the program itself ends first.
    Settled {
        /// The program has a process at work that it has not adopted: nothing was ended, because it would notice and might act on it.
        /// When false, every process but the program and what it has adopted is dead.
        busy: bool,
    },
    /// Every process of the tree is dead.
    Gone(Gone),
}

/// How a tree ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// The program's exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    /// How many processes lived when the tree was first asked to end.
    pub processes: u32,
    /// Whether some had to be killed.
    pub killed: bool,
}

/// Runs `argv` and its descendants to their end. Returns the program's exit code, or 128 and the signal's number.
pub fn run(control: &Path, argv: &[OsString]) -> anyhow::Result<ExitCode> {
    // Fails only where this process leads a group already, and then it has what this is for: to be apart from the sled's group.
    setsid().ok();
    prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(control, argv))
}

async fn supervise(control: &Path, argv: &[OsString]) -> anyhow::Result<ExitCode> {
    let stream = UnixStream::connect(control)
        .await
        .with_context(|| format!("cannot reach the sled at {}", control.display()))?;
    let (orders, mut reports) = stream.into_split();
    let mut orders = BufReader::new(orders).lines();
    let mut child_ended = signal(SignalKind::child())?;
    let mut asked_to_end = signal(SignalKind::terminate())?;

    let started = start(argv);
    let (agent, oom_error) = match started {
        Ok(started) => started,
        Err(error) => {
            tell(&mut reports, &Report::NotStarted { error: error.to_string() }).await;
            return Ok(ExitCode::from(127));
        }
    };
    tell(&mut reports, &Report::Started { oom_error }).await;

    let mut tree =
        Tree { agent, adopted: HashSet::new(), ended: None, phase: Phase::Running, processes: 0, killed: false };
    let mut sled_is_there = true;
    while tree.reap()? {
        if let Some(busy) = tree.advance() {
            tell(&mut reports, &Report::Settled { busy }).await;
        }
        let wake = tree.wake();
        tokio::select! {
            _ = child_ended.recv() => {}
            _ = asked_to_end.recv() => tree.ask(LEFTOVER_GRACE),
            order = orders.next_line(), if sled_is_there => match order.ok().flatten().map(|line| serde_json::from_str(&line)) {
                Some(Ok(Order::Stop { grace_ms })) => tree.ask(Duration::from_millis(grace_ms)),
                Some(Ok(Order::Adopt)) => tree.adopt(),
                Some(Ok(Order::Settle)) => tree.settle(),
                Some(Err(error)) => anyhow::bail!("an order is malformed: {error}"),
                None => {
                    sled_is_there = false;
                    tree.phase = Phase::Killing;
                }
            },
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
    let gone = tree.gone();
    tell(&mut reports, &Report::Gone(gone)).await;
    let status = gone.code.or(gone.signal.map(|signal| 128 + signal));
    Ok(status.and_then(|status| u8::try_from(status).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A sled that is gone need not be told: its socket's end is heard where orders are read.
async fn tell(reports: &mut OwnedWriteHalf, report: &Report) {
    let mut line = serde_json::json!(report).to_string();
    line.push('\n');
    reports.write_all(line.as_bytes()).await.ok();
}

/// Starts the program in a process group of its own, first in line when memory is short; this process itself keeps its place.
fn start(argv: &[OsString]) -> std::io::Result<(Pid, Option<String>)> {
    use std::os::unix::process::CommandExt;
    let (program, arguments) = argv.split_first().ok_or_else(|| std::io::Error::other("no program is named"))?;
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let own = std::fs::read_to_string("/proc/self/oom_score_adj")
        .and_then(|own| own.trim().parse().map_err(std::io::Error::other));
    let raised = own.and_then(|own: i32| set_oom_score_adj(own.max(OOM_SCORE_ADJ)).map(|()| own));
    let child = std::process::Command::new(program).args(arguments).process_group(0).spawn();
    let oom_error = raised.and_then(set_oom_score_adj).err().map(|error| error.to_string());
    // `Child` neither kills nor reaps when it is dropped: reaping is the tree's business.
    let id = child?.id();
    if let Err(error) = dup2_stdin(&nothing).and_then(|()| dup2_stdout(&nothing)) {
        // It runs, and is not heard to close them.
        eprintln!("sled supervise: cannot let go of the program's streams: {error}");
    }
    let pid = i32::try_from(id).map_err(std::io::Error::other)?;
    Ok((Pid::from_raw(pid), oom_error))
}

fn set_oom_score_adj(value: i32) -> std::io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", value.to_string())
}

struct Tree {
    agent: Pid,
    /// What the agent had below it at its start.
    adopted: HashSet<Process>,
    /// Exit code or signal of the agent, once it has ended.
    ended: Option<(Option<i32>, Option<i32>)>,
    phase: Phase,
    processes: u32,
    killed: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// What does not belong to the agent is being ended: asked to, and killed from then on.
    Settling {
        kill_from: Option<Instant>,
    },
    Asked {
        until: Instant,
    },
    Killing,
}

impl Tree {
    /// Takes note of every child that has ended; false when there is no child left, and so no descendant.
    fn reap(&mut self) -> anyhow::Result<bool> {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Ok(true),
                Ok(WaitStatus::Exited(pid, code)) if pid == self.agent => self.ended = Some((Some(code), None)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.agent => {
                    self.ended = Some((None, Some(signal as i32)));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(false),
                Err(error) => return Err(error).context("cannot wait for the tree"),
            }
        }
    }

    /// Asks every process to end, and kills after `grace` what is left.
    fn ask(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        match self.phase {
            Phase::Killing => return,
            Phase::Asked { until: earlier } => self.phase = Phase::Asked { until: until.min(earlier) },
            Phase::Running | Phase::Settling { .. } => {
                self.phase = Phase::Asked { until };
                self.processes =
                    processes::count_alive(own_pid()).map_or(0, |alive| u32::try_from(alive).unwrap_or(u32::MAX));
            }
        }
        ask_to_end(processes::descendants(own_pid()));
    }

    /// Only the first time: what an agent starts later is not of its start.
    fn adopt(&mut self) {
        if !self.adopted.is_empty() {
            return;
        }
        match processes::descendants(self.agent.as_raw()) {
            Ok(below) => self.adopted.extend(below),
            // They are taken for work of the turn's then, and the agent for busy.
            Err(error) => eprintln!("sled supervise: cannot see what the program has started: {error}"),
        }
    }

    fn settle(&mut self) {
        if let Phase::Running = self.phase {
            self.phase = Phase::Settling { kill_from: None };
        }
    }

    /// What lives below this process and belongs neither to the agent nor to what it has adopted; `None` if the agent itself has such a process.
    fn leftovers(&self) -> std::io::Result<Option<Vec<Process>>> {
        processes::leftovers(own_pid(), self.agent.as_raw(), &self.adopted)
    }

    /// Ends what does not belong to the agent. Says how it came out, once it has.
    fn advance_settling(&mut self, kill_from: Option<Instant>) -> Option<bool> {
        let left = match self.leftovers() {
            Ok(Some(left)) => left,
            Ok(None) => {
                self.phase = Phase::Running;
                return Some(true);
            }
            Err(error) => {
                eprintln!("sled supervise: cannot see what a turn has left behind: {error}");
                return None;
            }
        };
        if left.is_empty() {
            self.phase = Phase::Running;
            return Some(false);
        }
        match kill_from {
            None => {
                self.phase = Phase::Settling { kill_from: Some(Instant::now() + LEFTOVER_GRACE) };
                ask_to_end(Ok(left));
            }
            Some(then) if Instant::now() >= then => {
                // If the agent has begun something meanwhile, the next look finds it.
                if let Err(error) = processes::kill_all(|| self.leftovers().map(Option::unwrap_or_default)) {
                    eprintln!("sled supervise: cannot kill what a turn has left behind: {error}");
                }
            }
            Some(_) => {}
        }
        None
    }

    /// Takes the next step; the answer to [`Order::Settle`] when there is one.
    fn advance(&mut self) -> Option<bool> {
        if let (Phase::Running | Phase::Settling { .. }, Some(_)) = (self.phase, self.ended) {
            self.ask(LEFTOVER_GRACE);
        }
        if let Phase::Settling { kill_from } = self.phase {
            return self.advance_settling(kill_from);
        }
        if let Phase::Asked { until } = self.phase
            && Instant::now() >= until
        {
            self.phase = Phase::Killing;
        }
        if let Phase::Killing = self.phase {
            self.killed = true;
            if let Err(error) = processes::kill_all(|| processes::descendants(own_pid())) {
                // Tried again at once, until nothing is left: there is no other way out.
                eprintln!("sled supervise: cannot kill the processes: {error}");
            }
        }
        None
    }

    fn wake(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => None,
            Phase::Asked { until } => Some(until),
            // Not all of what is ended there is a child of this process, so that nobody tells of it.
            Phase::Settling { .. } | Phase::Killing => Some(Instant::now() + LOOK_AGAIN),
        }
    }

    fn gone(&self) -> Gone {
        let (code, signal) = self.ended.unwrap_or((None, None));
        Gone { code, signal, processes: self.processes, killed: self.killed }
    }
}

/// Those that do not end are killed after the grace all the same, so that a failure is only told.
fn ask_to_end(which: std::io::Result<Vec<Process>>) {
    let asked =
        which.and_then(|all| all.into_iter().try_for_each(|process| processes::signal(process, Signal::SIGTERM)));
    if let Err(error) = asked {
        eprintln!("sled supervise: cannot ask the processes to end: {error}");
    }
}

fn own_pid() -> i32 {
    Pid::this().as_raw()
}
