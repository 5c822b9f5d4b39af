//! A real Synapse on loopback: generated configuration, `SQLite`, rate limits raised, open registration.
//!
//! One is started for a test executable, by whoever needs it first; a test that kills or holds it has one of its own.
//! Each ends with its executable, however that ends: its watchdog reads from a pipe that only the executable holds.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{process, product, wait};

/// Names the Python interpreter that has `matrix-synapse` installed.
const PYTHON: &str = "MUSHER_TEST_SYNAPSE";

/// The domain in the ids of its users and rooms.
const SERVER_NAME: &str = "homeserver.test";

/// Our settings, which count before those that it has written.
const OVERLAY: &str = "overlay.yaml";

/// Starts the homeserver for each line of its own standard input, and tells the process id. When the input closes it
/// ends the last one by its id, also one that is held, and waits for it; one that was killed is waited for by nobody
/// until then, so its id stays its own. The directory goes with it: the executable's statics are never dropped.
const WATCHDOG: &str = r#"directory=$1; shift
while read -r _; do
  "$@" >>"$directory/out.log" 2>&1 </dev/null &
  server=$!
  echo "$server"
done
kill "$server"
kill -CONT "$server"
wait "$server"
rm -rf "$directory""#;

/// How long a homeserver may take to come up on a busy machine.
const START: Duration = Duration::from_mins(2);

/// The running homeserver.
#[derive(Debug)]
pub struct Homeserver {
    url: String,
    directory: PathBuf,
    process: Mutex<Process>,
}

/// The homeserver's process, under its watchdog.
#[derive(Debug)]
struct Process {
    /// Closing it, which the end of the executable does, ends the homeserver.
    lifeline: ChildStdin,
    ids: BufReader<ChildStdout>,
    id: Pid,
}

impl Homeserver {
    /// The one homeserver of this test executable.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Homeserver> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Its address for clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it keeps everything.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the account `name` and gives its user id.
    pub async fn register(&self, name: &str, password: &str) -> Result<String> {
        let body = json!({ "username": name, "password": password, "inhibit_login": true, "auth": { "type": "m.login.dummy" } });
        // A client belongs to the runtime that first used it, and each test has its own.
        let http = reqwest::Client::builder().no_proxy().build()?;
        let response = http.post(format!("{}/_matrix/client/v3/register", self.url)).json(&body).send().await?;
        let status = response.status();
        let answer: Value =
            response.json().await.with_context(|| format!("{name} could not be registered: {status}"))?;
        let id = answer["user_id"].as_str();
        Ok(id.with_context(|| format!("{name} could not be registered: {status} {answer}"))?.to_owned())
    }

    /// A homeserver of the caller's own, which ends when it is dropped.
    pub async fn private() -> Result<Self> {
        Self::start().await
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn kill(&self) -> Result<()> {
        let id = self.process().id;
        kill(id, Signal::SIGKILL).context("the homeserver could not be killed")?;
        wait::until("the homeserver is gone", wait::SHORT, || async { Ok(process::is_gone(id).then_some(())) }).await
    }

    /// Starts it again after [`Homeserver::kill`], on the same data and port, and waits until it answers.
    pub async fn revive(&self) -> Result<()> {
        self.process().launch()?;
        self.answers().await
    }

    /// Lets people send no more messages than Synapse does by itself, from its next start on.
    pub fn limit_messages(&self) -> Result<()> {
        let file = self.directory.join(OVERLAY);
        let mut overlay: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        overlay.as_object_mut().context("settings are an object")?.remove("rc_message");
        std::fs::write(&file, overlay.to_string()).with_context(|| format!("could not write {}", file.display()))
    }

    /// Holds it (SIGSTOP): connections to it are taken, and nothing on them is answered.
    pub fn hold(&self) -> Result<()> {
        kill(self.process().id, Signal::SIGSTOP).context("the homeserver could not be held")
    }

    /// Lets it go on after [`Homeserver::hold`].
    pub fn release(&self) -> Result<()> {
        kill(self.process().id, Signal::SIGCONT).context("the homeserver could not be released")
    }

    async fn start() -> Result<Self> {
        let python = std::env::var_os(PYTHON).map(PathBuf::from).with_context(|| {
            format!("{PYTHON} names no Python with matrix-synapse; run scripts/test, which installs one and sets it")
        })?;
        // Removed by the watchdog, after the server that writes into it.
        let directory = product::scratch()?.keep();
        let port = free_port()?;
        configure(&python, &directory, port).await?;
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "homeserver"])
            .arg(&directory)
            .arg(&python)
            .args(["-m", "synapse.app.homeserver", "-c", "homeserver.yaml", "-c", OVERLAY])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start sh")?;
        let lifeline = watchdog.stdin.take().context("a piped standard input")?;
        let ids = BufReader::new(watchdog.stdout.take().context("a piped standard output")?);
        // There is no process yet that has this id.
        let mut process = Process { lifeline, ids, id: Pid::from_raw(i32::MAX) };
        process.launch()?;
        let homeserver = Self { url: format!("http://127.0.0.1:{port}"), directory, process: Mutex::new(process) };
        homeserver.answers().await?;
        Ok(homeserver)
    }

    async fn answers(&self) -> Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let versions = format!("{}/_matrix/client/versions", self.url);
        wait::until("Synapse answers", START, || async {
            Ok(http.get(&versions).send().await.ok().filter(|answer| answer.status().is_success()).map(drop))
        })
        .await
        .with_context(|| std::fs::read_to_string(self.directory.join("out.log")).unwrap_or_default())
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Has the watchdog start the server.
    fn launch(&mut self) -> Result<()> {
        writeln!(self.lifeline, "start").context("the homeserver's watchdog is gone")?;
        let mut line = String::new();
        self.ids.read_line(&mut line).context("the homeserver's watchdog is silent")?;
        self.id = Pid::from_raw(line.trim().parse().with_context(|| format!("`{line}` is no process id"))?);
        Ok(())
    }
}

/// Lets Synapse write its own configuration and keys, and lays ours over it.
async fn configure(python: &Path, directory: &Path, port: u16) -> Result<()> {
    let mut generate = tokio::process::Command::new(python);
    generate.current_dir(directory).args(["-m", "synapse.app.homeserver", "--server-name", SERVER_NAME]);
    generate.args([
        "--config-path",
        "homeserver.yaml",
        "--generate-config",
        "--report-stats",
        "no",
        "--data-directory",
        ".",
    ]);
    process::run(&mut generate, b"", START).await?.success()?;
    let rate = json!({ "per_second": 10_000, "burst_count": 10_000 });
    // JSON is YAML.
    let overlay = json!({
        "listeners": [{
            "port": port, "type": "http", "tls": false, "bind_addresses": ["127.0.0.1"],
            "resources": [{ "names": ["client"] }],
        }],
        "enable_registration": true,
        "enable_registration_without_verification": true,
        "trusted_key_servers": [],
        "rc_message": rate, "rc_registration": rate, "rc_admin_redaction": rate,
        "rc_login": { "address": rate, "account": rate, "failed_attempts": rate },
        "rc_joins": { "local": rate, "remote": rate }, "rc_joins_per_room": rate,
        "rc_invites": { "per_room": rate, "per_user": rate, "per_issuer": rate },
        "rc_room_creation": rate, "rc_presence": { "per_user": rate },
        "url_preview_enabled": false,
        // The account's password is hashed once for each login; the tests need no strong hash.
        "bcrypt_rounds": 4,
    });
    let file = directory.join(OVERLAY);
    std::fs::write(&file, overlay.to_string()).with_context(|| format!("could not write {}", file.display()))
}

/// A port of loopback that was free a moment ago, given out once. It is none of those that the system
/// gives to whoever connects, of which one is soon taken again.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 20_000..32_000;
    for _ in PORTS {
        let next = std::process::id().wrapping_mul(64).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + next % (PORTS.end - PORTS.start))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on loopback")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_people_can_be_registered_and_a_name_only_once() -> Result<()> {
        let homeserver = Homeserver::shared().await?;
        assert_eq!(homeserver.register("ann", "secret").await?, "@ann:homeserver.test");
        assert_eq!(homeserver.register("bob", "secret").await?, "@bob:homeserver.test");
        let twice = homeserver.register("ann", "secret").await.expect_err("the name is taken");
        assert!(twice.to_string().contains("M_USER_IN_USE"), "{twice:#}");
        Ok(())
    }
}
