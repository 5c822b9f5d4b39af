//! The links to the sleds: opened when they are needed, one per project, kept while they live.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use futures_util::FutureExt;
use jiff::Timestamp;
use link::{CallError, Hello, Link, Side, SledClient};
use musher_docker::{ContainerId, ExecSession, SLED};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    containers::{SharedContainers, StartError, refused},
    projects::{ProjectEvent, Registry, saga},
    refusal::Refusal,
    tasks::Tasks,
    text,
};

/// How long a container that was started may take until its sled answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// The wait between two tries to open a link.
const PAUSE: Duration = Duration::from_millis(20);

/// The links of one gateway.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    containers: SharedContainers,
    registry: Arc<Registry>,
    /// What sleds may ask of the gateway.
    router: Router,
    tasks: Tasks,
    slots: Mutex<HashMap<Uuid, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    link: tokio::sync::Mutex<Option<Link>>,
    unreachable_since: Mutex<Option<Timestamp>>,
}

impl Slot {
    /// Notes the first failure, and says since when.
    fn unreachable(&self) -> String {
        let mut since = self.unreachable_since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = since.get_or_insert_with(Timestamp::now);
        format!("the node is unreachable since {}", since.strftime("%H:%M:%S UTC"))
    }
}

impl Nodes {
    /// No link yet. `router` serves what sleds ask.
    pub fn new(containers: SharedContainers, registry: Arc<Registry>, router: Router, tasks: Tasks) -> Self {
        Self { inner: Arc::new(Inner { containers, registry, router, tasks, slots: Mutex::default() }) }
    }

    /// The project's sled. Starts its container, makes it if it is gone, and opens the link if need be.
    pub async fn sled(&self, project: Uuid) -> Result<SledClient, Refusal> {
        let slot = self.slot(project);
        let mut link = slot.link.lock().await;
        if let Some(open) = &*link
            && open.closed().now_or_never().is_none()
        {
            return Ok(SledClient::new(open.clone()));
        }
        *link = None;
        match Box::pin(self.reach(project)).await {
            Ok(opened) => {
                *link = Some(opened.clone());
                *slot.unreachable_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(SledClient::new(opened))
            }
            Err(mut refusal) => {
                warn!(%project, %refusal, "the node is unreachable");
                refusal.what = format!("{}: {}", slot.unreachable(), refusal.what);
                Err(refusal)
            }
        }
    }

    /// What a person is told when a sled that has a link does not answer a call (CMD-4).
    pub fn silent(&self, project: Uuid, error: &CallError) -> Refusal {
        let unreachable = matches!(error, CallError::Closed(_) | CallError::Dropped | CallError::Timeout(_));
        let what = if unreachable { self.slot(project).unreachable() } else { "the node does not do that".to_owned() };
        Refusal::unavailable(format!("{what}: {error}")).hint("`doctor` checks the engine and the containers.")
    }

    /// Notes that the sled has answered a call.
    pub fn heard(&self, project: Uuid) {
        *self.slot(project).unreachable_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts a command in the project's container, which is started if need be.
    pub async fn exec(&self, project: Uuid, argv: &[&str]) -> Result<ExecSession, Refusal> {
        let container = self.running(project).await?;
        self.inner.containers.engine()?.exec(&container, argv, &[]).await.map_err(refused)
    }

    /// Ends the link and forgets the project.
    pub fn forget(&self, project: Uuid) {
        let slot = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&project);
        if let Some(slot) = slot
            && let Ok(link) = slot.link.try_lock()
            && let Some(link) = &*link
        {
            link.close();
        }
    }

    /// Kills the project's container, and everything in it.
    pub async fn kill(&self, project: Uuid) -> Result<(), Refusal> {
        let name = self.inner.registry.get(project).and_then(|project| project.spec).map(|spec| spec.name);
        match name {
            Some(name) => self.inner.containers.remove(&name).await,
            None => Ok(()),
        }
    }

    fn slot(&self, project: Uuid) -> Arc<Slot> {
        Arc::clone(self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(project).or_default())
    }

    /// The project's container, running. Its image is built again where the engine has lost it, and its port moves
    /// where somebody else has taken it.
    async fn running(&self, id: Uuid) -> Result<ContainerId, Refusal> {
        let Inner { containers, registry, .. } = &*self.inner;
        loop {
            let project = registry.get(id).ok_or_else(|| Refusal::usage("that project is gone"))?;
            match containers.start(id, &project).await {
                Ok(container) => return Ok(container),
                Err(StartError::PortTaken(port)) => {
                    let port = saga::free_port(registry, port)?;
                    info!(%id, port, "the SSH door moves, because its port is taken");
                    registry
                        .append(id, &[ProjectEvent::PortMoved { port }], journal::Actor::Gateway, journal::Cause::None)
                        .await?;
                }
                Err(StartError::Refused(refusal)) => return Err(refusal),
            }
        }
    }

    async fn reach(&self, project: Uuid) -> Result<Link, Refusal> {
        let began = Instant::now();
        loop {
            let container = self.running(project).await?;
            let session =
                self.inner.containers.engine()?.exec(&container, &[SLED, "connect"], &[]).await.map_err(refused)?;
            let ExecSession { stream, process } = session;
            match link::open(
                stream,
                Side::Gateway,
                Hello::current(),
                self.inner.router.clone(),
                link::Limits::default(),
            )
            .await
            {
                Ok((link, driver)) => {
                    debug!(%project, sled = link.peer().version, "the link is open");
                    self.inner.tasks.spawn("link", async move {
                        let reason = driver.run().await;
                        debug!(%project, %reason, "the link is over");
                    });
                    return Ok(link);
                }
                Err(error @ link::OpenError::Version { .. }) => {
                    return Err(Refusal::internal("this sled cannot be served", error));
                }
                Err(error) if began.elapsed() > PATIENCE => {
                    let said = text::one_line(&process.stderr_tail(), 300);
                    return Err(Refusal::internal("its sled does not answer", format!("{error} {said}"))
                        .hint("`logs` may tell why; `doctor` checks the rest."));
                }
                Err(error) => {
                    debug!(%project, %error, "the sled does not answer yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
