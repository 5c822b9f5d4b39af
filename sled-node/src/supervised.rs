//! Running a program under `sled supervise`, as the sled sees it: start, stop, and the moment when all of it is gone.
//!
//! Every program that the sled runs for somebody, agent or `git`, goes through here, so that none leaves anything behind.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::time::Instant;
use uuid::Uuid;

use crate::environment::Environment;
use crate::processes;
use crate::supervisor::{Gone, Order, Report};

/// How long a supervisor may take until it calls.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// How long the call of a supervisor that has ended is waited for.
const LAST_CALL: Duration = Duration::from_millis(100);

/// The variable by which a tree is found again if its supervisor was killed.
const MARK: &str = "MUSHER_SUPERVISED";

/// When a supervisor is first looked at that has not done what it was asked to, after the grace that it has, and how often from then on.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long to wait before looking again for what has not died yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How supervisors are started.
#[derive(Debug, Clone)]
pub struct Supervision {
    /// This very program.
    pub sled: PathBuf,
    /// A folder of this user alone, for the sockets by which supervisors call.
    pub run_dir: PathBuf,
}

/// A program to run.
pub struct Program {
    /// Program and arguments; never passed through a shell.
    pub argv: Vec<OsString>,
    /// All of its environment.
    pub environment: Environment,
    /// Where it runs.
    pub directory: PathBuf,
    /// Its standard input.
    pub stdin: Stdio,
    /// Its standard output.
    pub stdout: Stdio,
    /// Its standard error.
    pub stderr: Stdio,
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program itself could not be started.
    #[error("{0}")]
    Program(String),
    /// Its supervisor could not be.
    #[error("cannot supervise: {0}")]
    Supervisor(#[from] std::io::Error),
}

/// A program that runs, with all that came of it. Dropping it kills the tree.
pub struct Supervised {
    /// The supervisor, whose standard streams are the program's.
    pub child: Child,
    reports: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    mark: String,
    /// When to look whether the supervisor works, until it has begun and once it was asked to end all.
    look: Option<Instant>,
    gone: Option<Gone>,
}

impl Supervision {
    /// Starts a program under a supervisor of its own.
    pub async fn start(&self, program: Program) -> Result<Supervised, StartError> {
        if !program.directory.is_dir() {
            return Err(StartError::Program(format!("there is no folder {}", program.directory.display())));
        }
        let mark = Uuid::new_v4().to_string();
        let socket = self.run_dir.join(format!("{}.supervisor", &mark[..8]));
        let listener = UnixListener::bind(&socket)?;
        let socket = SocketFile(socket);
        let spawned = tokio::process::Command::new(&self.sled)
            .arg("supervise")
            .arg("--control")
            .arg(&socket.0)
            .arg("--")
            .args(&program.argv)
            .env_clear()
            .envs(&program.environment)
            .env(MARK, &mark)
            .current_dir(&program.directory)
            .stdin(program.stdin)
            .stdout(program.stdout)
            .stderr(program.stderr)
            .spawn();
        let called = match spawned {
            Ok(mut child) => {
                // Waiting for a child closes the standard input that it holds.
                let stdin = child.stdin.take();
                let called = call(&listener, &mut child).await;
                child.stdin = stdin;
                called.map(|stream| (child, stream))
            }
            Err(error) => Err(error),
        };
        drop(socket);
        let (child, stream) = called?;
        let (reports, orders) = stream.into_split();
        let reports = BufReader::new(reports).lines();
        let look = Some(Instant::now() + LOOK_AFTER);
        let mut supervised = Supervised { child, reports, orders, mark, look, gone: None };
        let Some(report) = supervised.reported().await else {
            // The program may have begun, and done that.
            supervised.gone().await;
            return Err(std::io::Error::other("the supervisor ended before it began").into());
        };
        match serde_json::from_str(&report).map_err(std::io::Error::other)? {
            Report::Started { oom_error } => {
                if let Some(error) = oom_error {
                    tracing::warn!(%error, "cannot make a program the first to go when memory is short");
                }
                supervised.look = None;
                Ok(supervised)
            }
            Report::NotStarted { error } => {
                supervised.child.wait().await?;
                // The system does not say what it did not find.
                let name = program.argv.first().map(|name| name.to_string_lossy()).unwrap_or_default();
                Err(StartError::Program(format!("{name}: {error}")))
            }
            Report::Gone(_) | Report::Settled { .. } => {
                Err(std::io::Error::other("the supervisor reports an end without a beginning").into())
            }
        }
    }
}

/// A socket's name in the file system, removed however the wait for the call ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, "cannot remove the socket of a supervisor");
        }
    }
}

/// Waits for the supervisor's call, and for nobody else's.
async fn call(listener: &UnixListener, child: &mut Child) -> std::io::Result<UnixStream> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let calls = async {
        loop {
            let (stream, _) = listener.accept().await?;
            if stream.peer_cred()?.pid() == pid {
                return Ok(stream);
            }
        }
    };
    tokio::pin!(calls);
    let ended = tokio::select! {
        called = tokio::time::timeout(CALL_LIMIT, &mut calls) => {
            return called.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        }
        ended = child.wait() => ended?,
    };
    // It may have called, run its program to the end, and ended, before anybody looked.
    match tokio::time::timeout(LAST_CALL, calls).await {
        Ok(called) => called,
        Err(_) => Err(std::io::Error::other(format!("the supervisor ended at once: {ended}"))),
    }
}

/// What a supervisor says of a program that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// What [`Supervised::settle`] came to; see [`Report::Settled`].
    Settled {
        /// The program is still at work, and nothing was ended.
        busy: bool,
    },
    /// No process of the tree lives any more.
    Gone(Gone),
}

impl Supervised {
    /// Asks every process of the tree to end, and has those killed that are left after `grace`. Returns at once.
    pub async fn stop(&mut self, grace: Duration) {
        self.order(Order::Stop { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) }).await;
        self.look = Instant::now().checked_add(grace.saturating_add(LOOK_AFTER));
    }

    /// What hangs below the program now is its own from now on. Returns at once.
    pub async fn adopt(&mut self) {
        self.order(Order::Adopt).await;
    }

    /// Has everything ended but the program and its own; [`Supervised::news`] tells when it is. Returns at once.
    pub async fn settle(&mut self) {
        self.order(Order::Settle).await;
    }

    async fn order(&mut self, order: Order) {
        let mut line = serde_json::json!(order).to_string();
        line.push('\n');
        // A supervisor that is gone is noticed by `news`.
        self.orders.write_all(line.as_bytes()).await.ok();
    }

    /// Waits until no process of the tree lives (invariant 6). May be dropped and called again.
    pub async fn gone(&mut self) -> Gone {
        loop {
            // An answer to a wish that nobody waits for any more is let go.
            if let News::Gone(gone) = self.news().await {
                return gone;
            }
        }
    }

    /// Waits for the next that there is to say. May be dropped and called again; says the end again and again.
    pub async fn news(&mut self) -> News {
        let gone = loop {
            if let Some(gone) = self.gone {
                break gone;
            }
            let report = self.reported().await;
            self.gone = match report.map(|line| serde_json::from_str(&line)) {
                Some(Ok(Report::Settled { busy })) => return News::Settled { busy },
                Some(Ok(Report::Gone(gone))) => Some(gone),
                // Anything else means that it has no more to say.
                Some(_) | None => Some(self.without_supervisor().await),
            };
        };
        // The supervisor is on its way out; its zombie is the only thing left.
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "cannot wait for a supervisor");
        }
        News::Gone(gone)
    }

    /// The supervisor's next word; none when it has no more to say. May be dropped and called again.
    async fn reported(&mut self) -> Option<String> {
        loop {
            tokio::select! {
                report = self.reports.next_line() => return report.ok().flatten(),
                () = until(self.look) => {
                    self.look = Some(Instant::now() + LOOK_AFTER);
                    // Its processes may have stopped it (SIGSTOP). A signal to go on could be answered by another such.
                    if self.child.id().is_some_and(processes::is_stopped) {
                        tracing::warn!("a supervisor was stopped, and is killed");
                        self.child.start_kill().ok();
                    }
                }
            }
        }
    }

    /// The supervisor was killed: end what it had below it, as far as it can be found.
    async fn without_supervisor(&mut self) -> Gone {
        tracing::warn!("a supervisor was killed; its processes are looked for by their mark");
        let mut most = 0;
        loop {
            let mark = self.mark.clone();
            let swept = tokio::task::spawn_blocking(move || {
                let found = processes::marked(MARK, &mark)?.len();
                processes::kill_all(|| processes::marked(MARK, &mark)).map(|()| found)
            });
            match swept.await.map_err(std::io::Error::other).flatten() {
                Ok(0) => break,
                Ok(found) => most = most.max(found),
                Err(error) => tracing::warn!(%error, "cannot kill the processes of a supervisor that was killed"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Gone {
            code: None,
            signal: Some(nix::libc::SIGKILL),
            processes: u32::try_from(most).unwrap_or(u32::MAX),
            killed: true,
        }
    }
}

/// Waits until then; for ever if there is no such moment.
pub async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
impl Supervised {
    /// A program without a supervisor, and the other end of the line to it.
    pub fn alone(child: Child) -> (Self, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        let (reports, orders) = here.into_split();
        let reports = BufReader::new(reports).lines();
        (Self { child, reports, orders, mark: Uuid::new_v4().to_string(), look: None, gone: None }, there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_that_is_given_up_leaves_no_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        // In place of a supervisor: it never calls, and ends with its standard input.
        std::fs::write(path.join("supervise"), "echo > started; read line").unwrap();
        let sockets = || {
            let entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "supervisor")).count()
        };
        let started = async {
            while !path.join("started").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sockets()
        };
        let program = Program {
            argv: Vec::new(),
            environment: std::iter::empty::<(&str, &str)>().collect(),
            directory: path.clone(),
            stdin: Stdio::piped(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
        };
        {
            let supervision = Supervision { sled: "/bin/sh".into(), run_dir: path.clone() };
            tokio::select! {
                _ = supervision.start(program) => panic!("nobody called"),
                there = started => assert_eq!(there, 1),
            }
        }
        assert_eq!(sockets(), 0);
    }
}
