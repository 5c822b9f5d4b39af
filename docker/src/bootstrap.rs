//! Debian from a mirror, by mmdebstrap on the host, as a tar that is never held in memory (STK-5).

use std::io;
use std::process::Stdio;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use crate::EngineError;

/// The program and what it is told; the mirror follows where there is one.
pub(crate) const PROGRAM: &str = "mmdebstrap";
pub(crate) const ARGUMENTS: [&str; 5] =
    ["--variant=minbase", "--include=ca-certificates", "--format=tar", "trixie", "-"];

/// Starts the program and gives the tar of a root file system; each line that the program says is sent to `said`.
///
/// The stream ends with an error where the program fails, so that a part is never taken for the whole. Dropped early,
/// it ends the program and whatever the program started.
pub(crate) fn start(
    mirror: Option<&str>,
    routes: &[(&'static str, String)],
    said: mpsc::UnboundedSender<String>,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, EngineError> {
    // The gateway's environment may hold secrets: only what the program needs is passed on.
    let kept = ["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new(PROGRAM)
        .args(ARGUMENTS)
        .args(mirror)
        .env_clear()
        .envs(kept)
        .env("LC_ALL", "C.UTF-8")
        .envs(routes.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| EngineError::Program { program: PROGRAM, source })?;
    let missing = || EngineError::Program { program: PROGRAM, source: io::Error::other("it has no output") };
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    // Ends with the program, whose end of the pipe it reads.
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            if said.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut program = ProcessGroup(child);
    let end = futures_util::stream::once(async move { program.0.wait().await }).filter_map(|ended| {
        let failed = match ended {
            Ok(status) if status.success() => None,
            Ok(status) => Some(io::Error::other(format!("{PROGRAM} ended with {status}"))),
            Err(error) => Some(error),
        };
        std::future::ready(failed.map(Err))
    });
    Ok(ReaderStream::with_capacity(stdout, 256 << 10).chain(end))
}

struct ProcessGroup(Child);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Gone already: there is no id, and nothing to end.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // Asked, not killed, so that it removes the tree that it has made.
            let _ = killpg(Pid::from_raw(id), Signal::SIGTERM);
        }
    }
}
