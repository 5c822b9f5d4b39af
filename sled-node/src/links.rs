//! The links that are open: gateways come in over the socket, and the newest one is the gateway that the sled asks.
//!
//! Any process of the container can open the socket. Who does is no more trusted than the container itself (invariant 9).

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use link::{Hello, Limits, Link, Side};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handing::{self, Way};

/// Links at once, hellos under way included; past it, the oldest open one is closed, or the newcomer is not heard.
const MAX_LINKS: usize = 8;

/// Bounds of one link. A gateway asks little at once; what the endpoints forward, and pings, go the other way.
const LIMITS: fn() -> Limits = || Limits {
    inbound_streams: 80,
    outbound_streams: crate::model::RULES.requests + crate::git::RULES.requests + 8,
    ..Limits::default()
};

/// The open links, oldest first.
#[derive(Clone)]
pub struct Links {
    open: Arc<watch::Sender<Vec<(u64, Link)>>>,
}

impl Links {
    /// None yet.
    pub fn new() -> Self {
        Self { open: Arc::new(watch::Sender::new(Vec::new())) }
    }

    /// The newest link; waits up to `patience` for one.
    pub async fn newest(&self, patience: Duration) -> Option<Link> {
        let mut open = self.open.subscribe();
        let some = tokio::time::timeout(patience, open.wait_for(|open| !open.is_empty())).await.ok()?.ok()?;
        some.last().map(|(_, link)| link.clone())
    }

    /// Takes links from `listener` and serves each by `router`, until `shutdown`; then ends them all.
    pub async fn serve(&self, listener: UnixListener, router: Router, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_LINKS));
        let tasks = TaskTracker::new();
        let mut number = 0;
        loop {
            let io = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((io, _)) => io,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a link");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!("too many links: the oldest is closed");
                if let Some((_, oldest)) = self.open.borrow().first() {
                    oldest.close();
                }
                continue;
            };
            number += 1;
            let (links, router, shutdown) = (self.clone(), router.clone(), shutdown.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = links.carry(number, io, router) => {}
                }
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Opens one link and carries it to its end.
    async fn carry(&self, number: u64, mut socket: UnixStream, router: Router) {
        match handing::take(&socket).await {
            Ok(Way::Socket(first)) => {
                let (reads, writes) = socket.into_split();
                self.carry_over(number, tokio::io::join(Cursor::new([first]).chain(reads), writes), router).await;
            }
            Ok(Way::Pipes(input, output)) => tokio::select! {
                () = self.carry_over(number, tokio::io::join(input, output), router) => {}
                // Who handed them over is gone, and whoever has the other ends hears of it by that.
                _ = socket.read_u8() => tracing::info!(link = number, "its process is gone"),
            },
            Err(error) => tracing::warn!(%error, "a newcomer is not heard"),
        }
    }

    async fn carry_over<T>(&self, number: u64, io: T, router: Router)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (link, driver) = match link::open(io, Side::Sled, Hello::current(), router, LIMITS()).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "a link did not open");
                return;
            }
        };
        tracing::info!(link = number, gateway = %link.peer().version, "link open");
        let _listed = Listed { links: self, number };
        self.open.send_modify(|open| open.push((number, link)));
        let reason = driver.run().await;
        tracing::info!(link = number, %reason, "link over");
    }
}

/// Takes a link off the list however its task ends.
struct Listed<'a> {
    links: &'a Links,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.links.open.send_modify(|open| open.retain(|(number, _)| *number != self.number));
    }
}

/// Listens on `socket`, in place of what an earlier sled left there.
pub fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
