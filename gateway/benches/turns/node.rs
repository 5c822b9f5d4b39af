//! Real sleds on the host, each with folders of its own, linked through `sled connect` as in a container.
//!
//! As a container does, each has a process namespace: what a sled looks through when a turn ends is its own processes, not
//! the host's. Its end takes everything with it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::Router;
use journal::{Journal, Reader};
use link::{Hello, Limits, Side, SledClient};
use tempfile::TempDir;

use crate::figures::worked;

/// How long a sled may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The release build of the sled: `MUSHER_BENCH_SLED`, or the one beside this benchmark.
pub fn sled() -> Result<PathBuf> {
    let path = match std::env::var_os("MUSHER_BENCH_SLED") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_BIN_EXE_musher")).with_file_name("sled"),
    };
    ensure!(path.is_file(), "{} is not there: cargo build --release -p sled-node", path.display());
    Ok(path)
}

/// A sled that runs, and the link to it.
pub struct Node {
    folder: TempDir,
    serving: Child,
    connecting: tokio::process::Child,
    client: SledClient,
    model_port: u16,
}

impl Node {
    /// Starts one that may ask what `router` serves.
    pub async fn start(router: Router) -> Result<Self> {
        let (program, folder) = (sled()?, tempfile::tempdir()?);
        let path = |name: &str| folder.path().join(name);
        for name in ["home", "data", "run", "workspace"] {
            fs::create_dir(path(name))?;
        }
        // Ports that were free a moment ago.
        let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (port, git) = (free()?, free()?);
        // A sled is the engine's child, which has the usual priority.
        let usual = (-musher::priority::niceness()?).to_string();
        let serving = Command::new("nice")
            .args([
                "-n",
                &usual,
                "unshare",
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "--",
            ])
            .arg(&program)
            .args(["serve", "--no-sshd", "--model-port", &port.to_string(), "--git-port", &git.to_string()])
            .arg("--socket")
            .arg(path("run/sled.sock"))
            .arg("--workspace")
            .arg(path("workspace"))
            .arg("--data")
            .arg(path("data"))
            .env("HOME", path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log"))?)
            .spawn()
            .context("unshare, of util-linux, cannot be run")?;
        let mut connecting = tokio::process::Command::new(&program)
            .args(["connect", "--socket"])
            .arg(path("run/sled.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (output, input) = (connecting.stdout.take(), connecting.stdin.take());
        let io = tokio::io::join(output.context("its output")?, input.context("its input")?);
        let opened = link::open(io, Side::Gateway, Hello::current(), router, Limits::default());
        let log = || fs::read_to_string(path("log")).unwrap_or_default();
        let (link, driver) =
            tokio::time::timeout(PATIENCE, opened).await.context("the sled does not answer")?.with_context(log)?;
        tokio::spawn(driver.run());
        Ok(Self { folder, serving, connecting, client: SledClient::new(link), model_port: port })
    }

    /// Calls it.
    pub fn client(&self) -> SledClient {
        self.client.clone()
    }

    /// The port of its model endpoint. It listens by the time the link is open.
    pub fn model_port(&self) -> u16 {
        self.model_port
    }

    /// The processor time of it, its agents and its end of the link.
    pub fn worked(&self) -> Result<Duration> {
        let connecting = self.connecting.id().context("it is not waited for")?;
        let unshare = self.serving.id();
        let sled = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?.trim().parse()?;
        Ok(worked(sled)? + worked(connecting)?)
    }

    /// Its journal.
    pub fn journal(&self) -> Result<Reader> {
        Ok(Journal::open_read_only(&self.folder.path().join("data/journal.db"))?)
    }

    /// Ends it, and what it runs.
    pub async fn end(mut self) -> Result<()> {
        self.client.link().close();
        self.connecting.wait().await?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The kernel ends a namespace with its first process, and that one ends with its parent.
        self.serving.kill().ok();
        self.serving.wait().ok();
    }
}
