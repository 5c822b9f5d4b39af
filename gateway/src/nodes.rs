//! The links to the sleds: opened when they are needed, one per project, kept while they live.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use journal::Actor;
use link::{CallError, Hello, Link, Side, SledClient};
use musher_docker::{ContainerId, ExecSession, SLED};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    containers::{SharedContainers, StartError, Started},
    failpoint,
    git::Git,
    model::Proxy,
    projects::{Owner, Project, ProjectEvent, Registry, Stage, saga, ssh_config::Doors},
    refusal::Refusal,
    tasks::Tasks,
    text,
};

/// How long a container that was started may take until its sled answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// The wait between two tries to open a link.
const PAUSE: Duration = Duration::from_millis(20);
/// Ports that are tried for one start.
const PORT_TRIES: u32 = 20;

/// The links of one gateway.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    containers: SharedContainers,
    registry: Arc<Registry>,
    doors: Doors,
    /// What sleds may ask of the gateway: the model,
    model: Arc<Proxy>,
    /// and their project's git remote.
    git: Arc<Git>,
    tasks: Tasks,
    slots: Mutex<HashMap<Uuid, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    link: Arc<tokio::sync::Mutex<Option<Link>>>,
    /// Held while the container is started or removed.
    starting: tokio::sync::Mutex<()>,
    unreachable: Mutex<Option<Unreachable>>,
}

/// That a sled cannot be reached.
struct Unreachable {
    since: Timestamp,
    /// What the log says of it: that is not said again.
    warned: Option<String>,
}

impl Default for Unreachable {
    fn default() -> Self {
        Self { since: Timestamp::now(), warned: None }
    }
}

impl Slot {
    /// Notes the first failure, and says since when.
    fn unreachable(&self) -> String {
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        let since = unreachable.get_or_insert_default().since;
        format!("the sled is unreachable since {}", since.strftime("%H:%M:%S UTC"))
    }

    /// Whether this is news of a sled that cannot be reached: turns try again and again (PROJ-12).
    fn is_news(&self, why: &str) -> bool {
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        let warned = &mut unreachable.get_or_insert_default().warned;
        let is_news = warned.as_deref() != Some(why);
        if is_news {
            *warned = Some(why.to_owned());
        }
        is_news
    }

    /// Whether it could not be reached when it was wanted last.
    fn is_unreachable(&self) -> bool {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Notes that it has been reached.
    fn heard(&self) {
        *self.unreachable.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The link, if it is open. One that is held is being opened.
    fn open(&self) -> Option<Link> {
        let link = self.link.try_lock().ok()?;
        link.as_ref().filter(|link| link.closed().now_or_never().is_none()).cloned()
    }
}

/// Since when the sled of the container that runs now has been waited for. What the engine takes to make it or start it is
/// nothing that a sled could be late by.
#[derive(Default)]
struct Waiting(Option<(ContainerId, Instant)>);

impl Waiting {
    /// Since when it is this container, which runs.
    fn since(&mut self, container: &ContainerId) -> Instant {
        match &self.0 {
            Some((known, since)) if known == container => *since,
            _ => self.0.insert((container.clone(), Instant::now())).1,
        }
    }
}

impl Nodes {
    /// No link yet. `model` and `git` are what sleds may ask for.
    pub fn new(
        containers: SharedContainers,
        registry: Arc<Registry>,
        doors: Doors,
        model: Arc<Proxy>,
        git: Arc<Git>,
        tasks: Tasks,
    ) -> Self {
        Self { inner: Arc::new(Inner { containers, registry, doors, model, git, tasks, slots: Mutex::default() }) }
    }

    /// The project's sled. Starts its container, makes it if it is gone, and opens the link if need be.
    ///
    /// Whoever does not wait for the end does not cut it off half-way.
    pub async fn sled(&self, project: Uuid) -> Result<SledClient, Refusal> {
        let slot = self.slot(project);
        let mut link = Arc::clone(&slot.link).lock_owned().await;
        if let Some(open) = &*link
            && open.closed().now_or_never().is_none()
        {
            return Ok(SledClient::new(open.clone()));
        }
        *link = None;
        let (sender, reached) = oneshot::channel();
        let this = self.clone();
        self.inner.tasks.spawn_to_end("reaching a sled", async move {
            let result = this.reach(project, &slot).await;
            *link = result.as_ref().ok().cloned();
            // Whoever asked may have gone; the link is there for the next.
            drop(sender.send(result));
        });
        let reached = reached.await.map_err(|_| Refusal::unavailable("the gateway is stopping"))?;
        match reached {
            Ok(link) => {
                self.heard(project);
                Ok(SledClient::new(link))
            }
            Err(mut refusal) => {
                if self.is_registered(project) {
                    let slot = self.slot(project);
                    if slot.is_news(&refusal.sentence()) {
                        warn!(%project, %refusal, "the sled is unreachable");
                    }
                    refusal.what = format!("{}: {}", slot.unreachable(), refusal.what);
                }
                Err(refusal)
            }
        }
    }

    /// What a person is told when a sled that has a link does not answer a call (CMD-4).
    pub fn silent(&self, project: Uuid, error: &CallError) -> Refusal {
        let unreachable = matches!(error, CallError::Closed(_) | CallError::Dropped | CallError::Timeout(_));
        let what = if unreachable { self.slot(project).unreachable() } else { "the sled does not do that".to_owned() };
        Refusal::unavailable(format!("{what}: {error}")).hint("`doctor` checks the engine and the containers.")
    }

    /// Notes that the sled has answered a call, or told something of a turn.
    pub fn heard(&self, project: Uuid) {
        self.slot(project).heard();
    }

    /// Starts a command in the project's container, which is started if need be.
    pub async fn exec(&self, project: Uuid, argv: &[&str]) -> Result<ExecSession, Refusal> {
        let (this, slot) = (self.clone(), self.slot(project));
        let (sender, started) = oneshot::channel();
        self.inner.tasks.spawn_to_end("starting a container", async move {
            // Whoever asked may have gone; a container that runs is there for the next.
            drop(sender.send(this.running(project, &slot).await));
        });
        let container = started.await.map_err(|_| Refusal::unavailable("the gateway is stopping"))??;
        self.exec_in(&container, argv).await
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

    /// Kills and removes the project's container, and everything in it.
    pub async fn kill(&self, project: Uuid) -> Result<(), Refusal> {
        let slot = self.slot(project);
        let _held = slot.starting.lock().await;
        self.inner.containers.remove(project).await
    }

    /// The project's sled, if there is a link to it. Starts nothing and waits for nothing.
    pub fn linked(&self, project: Uuid) -> Option<SledClient> {
        let slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&project).and_then(|slot| slot.open()).map(SledClient::new)
    }

    /// How many links are open.
    pub fn open_links(&self) -> usize {
        let slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.values().filter(|slot| slot.open().is_some()).count()
    }

    /// How many projects have a sled, whether or not there is a link to it.
    pub fn projects(&self) -> usize {
        let all = self.inner.registry.all().into_iter();
        all.filter(|(_, project)| project.stage == Stage::Registered).count()
    }

    /// How many sleds of projects could not be reached when they were wanted last.
    pub fn unreachable(&self) -> usize {
        let slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner).clone();
        slots.iter().filter(|(project, slot)| slot.is_unreachable() && self.is_registered(**project)).count()
    }

    /// Whether there is such a project, made to its end and not being deleted.
    pub fn is_registered(&self, project: Uuid) -> bool {
        self.inner.registry.get(project).is_some_and(|known| known.stage == Stage::Registered)
    }

    fn slot(&self, project: Uuid) -> Arc<Slot> {
        Arc::clone(self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(project).or_default())
    }

    /// The project's container, running. Its image is built again where the engine has lost it, and its port moves
    /// where somebody else has taken it.
    async fn running(&self, id: Uuid, slot: &Slot) -> Result<Started, Refusal> {
        let Inner { containers, registry, .. } = &*self.inner;
        for _ in 0..PORT_TRIES {
            let held = slot.starting.lock().await;
            let project = self.live(id)?;
            let port = project.spec.as_ref().map(|spec| spec.port);
            let another = |port| saga::free_port(registry, port);
            match containers.start(id, &project, another).await {
                Ok(started) => {
                    // What the container really has is the truth.
                    if let Some(real) = started.port.filter(|_| started.port != port) {
                        self.move_port(id, real).await?;
                    }
                    return Ok(started);
                }
                Err(StartError::PortTaken(port)) => self.move_port(id, another(port)?).await?,
                Err(StartError::ImageMissing(owner)) => {
                    // That takes minutes: who wants the project removed does not wait for it.
                    drop(held);
                    self.rebuild(id, project.stack.as_deref(), owner).await?;
                }
                Err(StartError::Refused(refusal)) => return Err(refusal),
            }
        }
        Err(Refusal::unavailable("no port for the SSH door could be had").hint("`doctor` checks the engine."))
    }

    /// The project, unless it is gone or going.
    fn live(&self, id: Uuid) -> Result<Project, Refusal> {
        let project = self.inner.registry.get(id);
        let live = project.filter(|project| matches!(project.stage, Stage::Making | Stage::Registered));
        live.ok_or_else(|| Refusal::usage("the project is deleted"))
    }

    async fn exec_in(&self, container: &Started, argv: &[&str]) -> Result<ExecSession, Refusal> {
        let engine = self.inner.containers.engine()?;
        failpoint::around("exec", engine.exec(&container.id, argv, &[])).await.map_err(|error| container.refused(error))
    }

    async fn move_port(&self, id: Uuid, port: u16) -> Result<(), Refusal> {
        info!(%id, port, "the SSH door moves");
        let moved = [ProjectEvent::PortMoved { port }];
        let registry = &self.inner.registry;
        registry.append(id, &moved, Actor::Gateway, registry.claims().cause(id)).await?;
        self.inner.doors.write()
    }

    async fn rebuild(&self, id: Uuid, stack: Option<&str>, owner: Owner) -> Result<(), Refusal> {
        let Inner { containers, registry, .. } = &*self.inner;
        warn!(%id, "the engine has lost the project's image; it is made again");
        let stack = stack.map(|name| containers.stack(name)).transpose()?;
        let plan = containers.plan(stack, owner).await?;
        containers.ensure_image(&plan, &mut |progress| debug!(%id, ?progress, "image")).await?;
        self.live(id)?;
        let chosen = [ProjectEvent::ImageChosen { image: plan.tag().to_owned() }];
        registry.append(id, &chosen, Actor::Gateway, registry.claims().cause(id)).await.map(drop)
    }

    async fn reach(&self, project: Uuid, slot: &Slot) -> Result<Link, Refusal> {
        let mut waiting = Waiting::default();
        let mut healed = false;
        loop {
            let container = self.running(project, slot).await?;
            let began = waiting.since(&container.id);
            let ExecSession { stream, process } = self.exec_in(&container, &[SLED, "connect"]).await?;
            // Each link has a router, and so bounds, of its own: one project cannot use up another's.
            let router = self.inner.model.router(project).merge(self.inner.git.router(project));
            match link::open(stream, Side::Gateway, Hello::current(), router, link::Limits::default()).await {
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
                // A sled that is stuck, or that the project's code has cut off, does not come back by itself.
                Err(error) if began.elapsed() > PATIENCE && !healed && self.is_registered(project) => {
                    warn!(%project, %error, "the sled does not answer; its container is made anew");
                    let _held = slot.starting.lock().await;
                    self.inner.containers.remove(project).await?;
                    healed = true;
                }
                Err(error) if began.elapsed() > PATIENCE => {
                    let said = text::one_line(&process.stderr_tail(), 300);
                    return Err(Refusal::internal("the project's sled does not answer", format!("{error} {said}"))
                        .hint(container.look_at_its_log()));
                }
                Err(error) => {
                    debug!(%project, %error, "the sled does not answer yet");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_sled_from_being_reached_is_news_once_until_it_changes() {
        let slot = Slot::default();
        let news = ["no engine", "no engine", "no image", "no image", "no engine"].map(|why| slot.is_news(why));
        assert_eq!(news, [true, false, true, false, true]);
        assert!(slot.is_unreachable());
        // It was reached.
        slot.heard();
        assert!(!slot.is_unreachable());
        assert!(slot.is_news("no engine"));
    }

    #[tokio::test(start_paused = true)]
    async fn each_container_that_runs_has_the_whole_time_for_its_sled() {
        let [first, second] = ["first", "second"].map(ContainerId::new);
        let mut waiting = Waiting::default();
        let began = Instant::now();
        assert_eq!(waiting.since(&first), began);
        sleep(PATIENCE).await;
        assert_eq!(waiting.since(&first), began);
        // It was made anew, however long that took.
        let anew = Instant::now();
        assert_eq!(waiting.since(&second), anew);
        sleep(PAUSE).await;
        assert_eq!(waiting.since(&second), anew);
    }
}
