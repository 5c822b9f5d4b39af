//! Of a project's sleds one holds its folder, and with that its journal and workspace: the newest. Mostly there is one.
//! But an engine that was killed may have lost sight of a container, and another is made beside it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use link::takeover;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use crate::links;

/// How long the one before may take to end; it ends within [`crate::serve::SHUTDOWN_LIMIT`].
const PATIENCE: Duration = Duration::from_secs(12);

/// Time between two looks at a folder that is held.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The folder is this sled's as long as it lives.
pub struct Hold {
    _lock: Flock<File>,
    listener: UnixListener,
}

impl Hold {
    /// Takes the folder. A sled that holds it is asked to end, and waited for.
    pub async fn take(folder: &Path) -> anyhow::Result<Self> {
        let mut open = OpenOptions::new();
        let mut file = open.write(true).create(true).mode(0o600).open(folder.join("lock")).context("no lock")?;
        let deadline = Instant::now() + PATIENCE;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                    anyhow::bail!("another sled of this project has it, and has not ended within {PATIENCE:?}");
                }
                Err((held, Errno::EWOULDBLOCK)) => {
                    tracing::warn!("another sled of this project runs, and is asked to end");
                    file = held;
                    match takeover::ask(folder, deadline - Instant::now()).await {
                        Err(error) if error.kind() != std::io::ErrorKind::TimedOut => {
                            return Err(error).context("the sled that has it cannot be asked to end");
                        }
                        _ => tokio::time::sleep(LOOK_AGAIN).await,
                    }
                }
                Err((_, errno)) => return Err(errno).context("it cannot be locked"),
            }
        };
        Ok(Self { _lock: lock, listener: links::listen(&folder.join(takeover::SOCKET))? })
    }

    /// Waits until somebody asks this sled to end. What is given tells them by its closing that it has.
    pub async fn asked(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((asking, _)) => return asking,
                Err(error) => {
                    tracing::warn!(%error, "cannot hear who wants to take over");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}
