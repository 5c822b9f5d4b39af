//! A real Synapse on loopback: generated configuration, `SQLite`, rate limits raised, open registration.
//!
//! It is started once for a test executable, by whoever needs it first, and ends with that executable,
//! however that ends: its watchdog reads from a pipe that only the executable holds.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{process, product, wait};

/// Names the Python interpreter that has `matrix-synapse` installed.
const PYTHON: &str = "MUSHER_TEST_SYNAPSE";

/// The domain in the ids of its users and rooms.
const SERVER_NAME: &str = "homeserver.test";

/// Runs the homeserver until its own standard input closes, then ends it by its id and waits for it.
/// The directory goes with it: the executable's statics are never dropped.
const WATCHDOG: &str = r#"directory=$1; shift
"$@" >"$directory/out.log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill "$server"
wait "$server"
rm -rf "$directory""#;

/// How long a homeserver may take to come up on a busy machine.
const START: Duration = Duration::from_mins(2);

/// The running homeserver.
#[derive(Debug)]
pub struct Homeserver {
    url: String,
    /// Closing it, which the end of the process does, ends the homeserver.
    _lifeline: ChildStdin,
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
            .args(["-m", "synapse.app.homeserver", "-c", "homeserver.yaml", "-c", "overlay.yaml"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start sh")?;
        let lifeline = watchdog.stdin.take().context("a piped standard input")?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://127.0.0.1:{port}");
        let versions = format!("{url}/_matrix/client/versions");
        wait::until("Synapse answers", START, || async {
            Ok(http.get(&versions).send().await.ok().filter(|answer| answer.status().is_success()))
        })
        .await
        .with_context(|| std::fs::read_to_string(directory.join("out.log")).unwrap_or_default())?;
        Ok(Self { url, _lifeline: lifeline })
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
    let file = directory.join("overlay.yaml");
    std::fs::write(&file, overlay.to_string()).with_context(|| format!("could not write {}", file.display()))
}

/// A port of loopback that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on loopback")?;
    Ok(listener.local_addr()?.port())
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
