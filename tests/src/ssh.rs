//! OpenSSH's clients, through the doors that the state directory's `ssh_config` describes.
//!
//! The configuration is used as it is: nothing here sets a host, a key or a known host. Prompts are
//! forbidden, so that a client that would ask fails instead.

use std::{ffi::OsStr, time::Duration};

use anyhow::Result;
use tokio::process::Command;

use crate::{home::Home, process, process::Output, wait};

/// How to reach a project (SSH-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `<name>.musher`: by `ProxyCommand`, which starts the container when needed.
    Proxy,
    /// `<name>.musher-port`: by the port on loopback.
    Port,
}

impl Door {
    /// Both doors.
    pub const BOTH: [Self; 2] = [Self::Proxy, Self::Port];

    /// The name of the host for the project.
    pub fn host(self, project: &str) -> String {
        match self {
            Self::Proxy => format!("{project}.musher"),
            Self::Port => format!("{project}.musher-port"),
        }
    }
}

/// One of OpenSSH's clients (`ssh`, `scp`, `sftp`) with the home's configuration.
pub fn client(home: &Home, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home.path()).env("LANG", "C.UTF-8").env("TERM", "xterm");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.arg("-F").arg(home.state().join("ssh_config")).args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
    command
}

/// Runs a client with further arguments to its end.
pub async fn run(
    home: &Home,
    program: &str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
    within: Duration,
) -> Result<Output> {
    process::run(client(home, program).args(args), input.as_bytes(), within).await
}

/// Runs a shell command in the project and gives what it prints; fails when it does.
pub async fn command(home: &Home, door: Door, project: &str, line: &str) -> Result<String> {
    run(home, "ssh", [&door.host(project), line], "", wait::LONG).await?.success()
}

/// Types a script into an interactive shell on a terminal, and gives what the terminal shows, line ends as on a file.
pub async fn terminal(home: &Home, door: Door, project: &str, script: &str) -> Result<Output> {
    let mut output = run(home, "ssh", ["-tt", &door.host(project)], script, wait::LONG).await?;
    output.stdout = output.stdout.replace("\r\n", "\n");
    Ok(output)
}
