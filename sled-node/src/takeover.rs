//! Of a project's sleds one at a time holds its folder, and with that its journal and workspace. Mostly there is one. But
//! an engine that was killed may have lost sight of a container, and another is made beside it.
//!
//! Any process of the container may ask its sled to end; it could kill it as well.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use link::takeover;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use tokio::net::UnixListener;
use tokio::time::Instant;

use crate::links;

/// How long the sled before may take to end.
pub const PATIENCE: Duration = takeover::LIMIT.saturating_add(Duration::from_secs(4));

/// Time between two looks at a folder that is held.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where sleds that come after this one ask it to end. The folder is this one's until its process is gone.
pub struct Successors(UnixListener);

impl Successors {
    /// Takes the folder. A sled that has it is asked to end, and waited for.
    pub async fn take(folder: &Path, patience: Duration) -> anyhow::Result<Self> {
        let path = folder.join("lock");
        let mut options = OpenOptions::new();
        // A program of the project may have put a link or a pipe there; waiting for the pipe's other end would be for ever.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
        let mut file = options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let deadline = Instant::now() + patience;
        let mut asked = false;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    hold(lock);
                    return Ok(Self(links::listen(&folder.join(takeover::SOCKET))?));
                }
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                    let what = if asked { "does not end" } else { "does not listen" };
                    anyhow::bail!("another sled of this project has it, and {what}");
                }
                Err((held, Errno::EWOULDBLOCK)) => file = held,
                Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
            }
            match takeover::ask(folder, deadline - Instant::now()).await {
                Ok(true) => {
                    tracing::warn!("another sled of this project ran, and was asked to end");
                    asked = true;
                }
                Ok(false) => {}
                Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => asked = true,
                Err(error) => return Err(error).context("the sled that has it cannot be asked to end"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until somebody asks this sled to end.
    pub async fn ask(&self) {
        loop {
            match self.0.accept().await {
                Ok((asking, _)) => return hold(asking),
                Err(error) => {
                    tracing::warn!(%error, "cannot hear who wants to take over");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Leaves it to the end of this process to give it back: its threads may be at work on the project until then.
fn hold<T>(held: T) {
    std::mem::forget(held);
}
