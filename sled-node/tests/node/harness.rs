//! A sled of the test's own, in a folder of its own, and what tests ask of it again and again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use futures_util::StreamExt;
use link::requests::{
    Agent, AgentSession, CommandOutput, Outcome, Permissions, StopRequest, TurnEvent, TurnRecord, TurnRequest,
};
use link::{Hello, Limits, Link, Side, SledClient};
use tempfile::TempDir;
use tokio::net::UnixStream;
use uuid::Uuid;

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// A running sled and its folder.
pub struct Node {
    pub folder: TempDir,
    pub model_port: u16,
    pub git_port: u16,
    args: Vec<String>,
    child: Child,
}

impl Node {
    /// A sled without sshd, which listens.
    pub async fn start() -> Self {
        Self::start_with(&["--no-sshd"]).await
    }

    /// A sled with further arguments, which listens.
    pub async fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "home", "data", "run", "workspace"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (model_port, git_port) = (free_port(), free_port());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(folder.path(), model_port, git_port, &args);
        let node = Self { folder, model_port, git_port, args, child };
        node.listening().await;
        node
    }

    /// The same sled again, after it ended.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), self.model_port, self.git_port, &self.args);
        self.listening().await;
    }

    /// Another sled on the same folder, which listens when the one before has ended, though nobody has told that: how it did.
    pub async fn start_beside(&mut self) -> ExitStatus {
        let mut before = self.spawn_beside();
        let status = ended(&mut before).await;
        self.listening().await;
        status
    }

    /// Another sled on the same folder. Given is the one before.
    pub fn spawn_beside(&mut self) -> Child {
        (self.model_port, self.git_port) = (free_port(), free_port());
        self.spawn_on_the_same_ports()
    }

    /// Another sled on the same folder, as where it is started in the same container. Given is the one before.
    pub fn spawn_on_the_same_ports(&mut self) -> Child {
        let child = spawn(self.folder.path(), self.model_port, self.git_port, &self.args);
        std::mem::replace(&mut self.child, child)
    }

    async fn listening(&self) {
        eventually(async || UnixStream::connect(self.socket()).await.is_ok()).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/sled.sock")
    }

    /// A gateway's link that serves `router` to the sled.
    pub async fn link(&self, router: Router) -> Link {
        let io = UnixStream::connect(self.socket()).await.unwrap();
        let (link, driver) = link::open(io, Side::Gateway, Hello::current(), router, Limits::default()).await.unwrap();
        tokio::spawn(driver.run());
        link
    }

    pub async fn client(&self) -> SledClient {
        SledClient::new(self.link(Router::new()).await).patience(Duration::from_mins(1))
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the sled's end.
    pub async fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child).await
    }

    /// Process ids that agents wrote into files of the workspace named `*.pid`.
    pub fn pids(&self) -> Vec<i32> {
        let files = std::fs::read_dir(self.path("workspace")).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|path| std::fs::read_to_string(path).unwrap().trim().parse().ok())
            .collect()
    }

    /// Waits until agents have written `count` process ids.
    pub async fn wait_for_pids(&self, count: usize) -> Vec<i32> {
        eventually(async || self.pids().len() >= count).await;
        self.pids()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}

/// A port that was free a moment ago, below those that the system gives to whoever wants any: none of those takes it before the sled does.
fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| 20_000 + u16::try_from(Uuid::new_v4().as_u128() % 12_000).unwrap());
    ports.into_iter().find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

fn spawn(folder: &Path, model_port: u16, git_port: u16, args: &[String]) -> Child {
    // What lies in the node's `bin` goes before this host's programs.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.join("bin")).chain(std::env::split_paths(&path))).unwrap();
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_sled"))
        .arg("serve")
        .arg("--socket")
        .arg(folder.join("run/sled.sock"))
        .arg("--workspace")
        .arg(folder.join("workspace"))
        .arg("--data")
        .arg(folder.join("data"))
        .arg("--model-port")
        .arg(model_port.to_string())
        .arg("--git-port")
        .arg(git_port.to_string())
        .args(args)
        .env("HOME", folder.join("home"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits for a sled's end.
pub async fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually(async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}

/// Waits until `condition` holds; fails when it does not come true.
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "what was waited for did not come true within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process with that id is there, and be it a zombie.
pub fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A turn of a fresh session.
pub fn request(agent: Agent, prompt: &str) -> TurnRequest {
    let session = AgentSession { id: Uuid::now_v7(), resumed: false };
    TurnRequest {
        session,
        agent,
        prompt: prompt.to_owned(),
        identity: None,
        attempt: 1,
        permissions: Permissions::Bypass,
        keep_warm_secs: 0,
        afresh: None,
    }
}

/// A turn of an agent that is a shell script.
pub fn script(script: &str) -> TurnRequest {
    request(Agent::Command { argv: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()] }, "go on")
}

/// All events of a turn after `after`, to its end.
pub async fn events(client: &SledClient, id: Uuid, after: u64) -> Vec<TurnRecord> {
    let reading = client.turn_events(id, after).map(Result::unwrap).collect();
    tokio::time::timeout(SOON, reading).await.unwrap()
}

/// Of whatever runs.
pub fn stop(grace_ms: u64) -> StopRequest {
    StopRequest { attempt: None, grace_ms }
}

/// Runs a turn to its end: how it ended, and all that was told of it.
pub async fn turn(client: &SledClient, request: &TurnRequest) -> (Outcome, Vec<TurnRecord>) {
    let id = Uuid::now_v7();
    client.put_turn(id, request).await.unwrap();
    let events = events(client, id, 0).await;
    (outcome(&events), events)
}

pub fn outcome(events: &[TurnRecord]) -> Outcome {
    match &events.last().unwrap().event {
        TurnEvent::Finished { outcome, .. } => outcome.clone(),
        other => panic!("{other:?} is no end"),
    }
}

pub fn kinds(events: &[TurnRecord]) -> Vec<&'static str> {
    let kind = |record: &TurnRecord| match record.event {
        TurnEvent::Accepted(_) => "accepted",
        TurnEvent::Started { .. } => "started",
        TurnEvent::Heard => "heard",
        TurnEvent::PermissionAsked { .. } => "asked",
        TurnEvent::PermissionSettled { .. } => "settled",
        TurnEvent::Spoke { .. } => "spoke",
        TurnEvent::ToolCalled { .. } => "tool called",
        TurnEvent::RateLimited { .. } => "rate limited",
        TurnEvent::Finished { .. } => "finished",
    };
    events.iter().map(kind).collect()
}

pub fn succeeded(output: CommandOutput) -> String {
    assert_eq!(output.code, Some(0), "{}", output.output);
    output.output
}
