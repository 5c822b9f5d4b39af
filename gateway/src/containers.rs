//! How a project becomes an image and a container: what of it comes from settings, host and journal.
//!
//! This is the gateway's only user of the engine. The engine may be gone at any time and come back (PROJ-12): it is
//! asked for anew whenever it is needed.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use link::takeover;
use musher_docker::{
    BaseImage, BuildFailure, BuildProgress, ContainerFacts, ContainerId, ContainerSpec, ContainerState, Engine,
    EngineError, EngineInfo, ImageInputs, ImagePlan, Inspection, Layer, Limits, Mount, Network, Proxies, SSH_FOLDER,
    SledBinary, WORKSPACE,
};
use stacks::{Stack, StackName, Stacks, Toolchains};
use tokio::{sync::OnceCell, time::sleep};
use tracing::warn;
use uuid::Uuid;

use crate::{
    failpoint,
    home::Home,
    projects::{Owner, Project, Spec, place},
    refusal::Refusal,
    text,
};

/// Where the sled keeps its journal, in a container.
const SLED_DATA: &str = "/var/lib/musher/sled";
/// How the sled learns whose it is: the actor of what it journals.
const PROJECT_ID: &str = "MUSHER_PROJECT_ID";
/// Names that are tried for a container before giving up.
const NAMES: u32 = 20;
/// How long the engine may take to answer whoever only wants to know whether it is there.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a sled that the engine does not see may take to end.
const UNSEEN_PATIENCE: Duration = takeover::LIMIT.saturating_add(Duration::from_secs(2));
/// How many such sleds of a project are ended at once. There is one; a program of the project could act as any number.
const UNSEEN_ROUNDS: usize = 3;
/// How long the engine has for learning of that.
const UNSEEN_PAUSE: Duration = Duration::from_millis(500);

/// What settings and host say of images and containers.
#[derive(Debug, Clone)]
pub struct ContainerSettings {
    /// The engine's address, from bot.toml or `DOCKER_HOST`; the usual sockets when absent.
    pub engine: Option<String>,
    /// What images stand on.
    pub base: BaseImage,
    /// Where toolchains come from.
    pub toolchains: Toolchains,
    /// Whether images hold the agent's command-line program.
    pub with_agent: bool,
    /// The npm registry to fetch the agent from, where it is not npm's own default.
    pub npm_registry: Option<String>,
    /// Certificates to trust, as PEM.
    pub ca_bundle: Option<Vec<u8>>,
    /// Proxies for builds and containers.
    pub proxies: Proxies,
    /// The sled's binary.
    pub sled: PathBuf,
    /// Default processors.
    pub cpus: Option<f64>,
    /// Default memory in bytes.
    pub memory: Option<u64>,
    /// Processes.
    pub pids: u32,
    /// Whether containers reach the network.
    pub network: bool,
}

/// Images and containers of one gateway.
pub struct Containers {
    gateway: Uuid,
    home: Home,
    settings: ContainerSettings,
    stacks: Stacks,
    engine: Mutex<Option<Engine>>,
    /// Read from the bridge's making until a container is on it; written while the bridge is removed.
    bridge: tokio::sync::RwLock<()>,
    sled: OnceCell<SledBinary>,
    info: OnceCell<EngineInfo>,
}

impl Containers {
    /// Nothing is asked of the engine yet.
    pub fn new(gateway: Uuid, home: Home, settings: ContainerSettings, stacks: Stacks) -> Self {
        Self {
            gateway,
            home,
            settings,
            stacks,
            engine: Mutex::default(),
            bridge: tokio::sync::RwLock::default(),
            sled: OnceCell::new(),
            info: OnceCell::new(),
        }
    }

    /// The engine; refused with what to do when none answers.
    pub fn engine(&self) -> Result<Engine, Refusal> {
        let mut known = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*known {
            return Ok(engine.clone());
        }
        let engine = Engine::connect(self.settings.engine.as_deref()).map_err(refused)?;
        *known = Some(engine.clone());
        Ok(engine)
    }

    /// Where the stacks' toolchains come from.
    pub fn toolchains(&self) -> Toolchains {
        self.settings.toolchains
    }

    /// The stacks that there are.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// The stack of this name; a refusal names those that there are.
    pub fn stack(&self, name: &str) -> Result<&Stack, Refusal> {
        let found = StackName::try_from(name.to_owned()).ok().and_then(|name| self.stacks.get(&name));
        found.ok_or_else(|| {
            let names: Vec<_> = self.stacks.names().map(|name| format!("`{name}`")).collect();
            Refusal::usage(format!("there is no stack {}", text::code(name)))
                .hint(format!("There are: {}.", names.join(", ")))
        })
    }

    /// What the image for this stack and owner would be.
    pub async fn plan(&self, stack: Option<&Stack>, owner: Owner) -> Result<ImagePlan, Refusal> {
        let settings = &self.settings;
        let open = || async {
            let path = settings.sled.clone();
            tokio::task::spawn_blocking(move || SledBinary::open(&path))
                .await
                .map_err(|error| Refusal::internal("the sled's binary cannot be read", error))?
                .map_err(|error| {
                    Refusal::internal("the sled's binary cannot be read", error)
                        .hint("It belongs beside the musher binary.")
                })
        };
        let sled = self.sled.get_or_try_init(open).await?.clone();
        let inputs = ImageInputs {
            base: settings.base.clone(),
            stack,
            toolchains: settings.toolchains,
            with_agent: settings.with_agent,
            npm_registry: settings.npm_registry.clone(),
            uid: owner.uid,
            gid: owner.gid,
            ca_bundle: settings.ca_bundle.clone(),
            proxies: settings.proxies.clone(),
            sled,
        };
        ImagePlan::new(&inputs).map_err(|error| Refusal::config(error.to_string()))
    }

    /// Builds what is missing of an image.
    pub async fn ensure_image(
        &self,
        plan: &ImagePlan,
        progress: &mut (dyn FnMut(BuildProgress) + Send),
    ) -> Result<(), Refusal> {
        let engine = self.engine()?;
        self.info(&engine).await?;
        let ensured = failpoint::around("ensure_image", engine.ensure_image(plan, progress)).await;
        ensured.map_err(|error| match error {
            EngineError::BuildFailed(failure) => not_built(*failure, self.settings.toolchains),
            other => refused(other),
        })
    }

    /// The project's container, if the engine has one: one that runs rather than one that does not.
    async fn find(&self, project: Uuid) -> Result<Option<ContainerFacts>, Refusal> {
        Ok(self.of(project).await?.min_by_key(|facts| match facts.state {
            ContainerState::Running => 0,
            // What runs in it goes on.
            ContainerState::Paused => 1,
            _ => 2,
        }))
    }

    /// All containers of the project, by its id: a reused name inherits nothing. There is a second where the engine has made
    /// one and was too slow to say so.
    async fn of(&self, project: Uuid) -> Result<impl Iterator<Item = ContainerFacts>, Refusal> {
        let (all, id) = (self.list().await?, project.to_string());
        Ok(all.into_iter().filter(move |facts| facts.project_id.as_ref() == Some(&id)))
    }

    /// Whether the engine answers, within a moment.
    pub async fn is_engine_there(&self) -> bool {
        matches!(tokio::time::timeout(ENGINE_PATIENCE, self.list()).await, Ok(Ok(_)))
    }

    /// All containers with our label.
    pub async fn list(&self) -> Result<Vec<ContainerFacts>, Refusal> {
        self.engine()?.list(&self.gateway.to_string()).await.map_err(refused)
    }

    /// Makes and starts the project's container, or starts the one that is there. One whose network is not what the
    /// setting says is made anew: at once where it reaches what it must not, otherwise when it does not run.
    ///
    /// `another` gives a port that is free, other than the one that it is given.
    pub async fn start(
        &self,
        id: Uuid,
        project: &Project,
        another: impl Fn(u16) -> Result<u16, Refusal>,
    ) -> Result<Started, StartError> {
        let incomplete =
            |what: &str| Refusal::internal(format!("the project has no {what}"), "its journal is incomplete");
        let spec = project.spec.as_ref().ok_or_else(|| incomplete("settings"))?;
        let (identity, owner) = project.directory.ok_or_else(|| incomplete("folder"))?;
        let engine = self.engine()?;
        self.info(&engine).await?;
        let mut found = self.find(id).await?;
        // First of all: whatever else is in its way, no container keeps a network that it must not have.
        if let Some(container) = &found
            && self.network_is_outdated(&engine, container).await?
        {
            warn!(project = spec.name, container = container.name, "its network is another now: it is made anew");
            self.remove(id).await?;
            found = None;
        }
        place::recognise(spec, identity)?;
        let started = |id, name, port| Started { id, name, project: spec.name.clone(), port };
        if let Some(found) = found {
            match found.state {
                ContainerState::Running => return Ok(started(found.id, found.name, found.port)),
                // Somebody looks at it, or copies it: what runs in it is to go on.
                ContainerState::Paused => {
                    match failpoint::around("unpause_container", engine.unpause(&found.id)).await {
                        Ok(()) => return Ok(started(found.id, found.name, found.port)),
                        Err(EngineError::NotFound { .. }) => {}
                        Err(error) => return Err(refused(error).into()),
                    }
                }
                // Its port is fixed at creation; one that was made for another port cannot serve.
                ContainerState::Created | ContainerState::Exited => {
                    let mut begun = failpoint::around("start_container", engine.start(&found.id)).await;
                    // The engine may only not know that it runs, and starts it when it has ended.
                    if matches!(begun, Err(EngineError::Api { .. } | EngineError::Conflict { .. }))
                        && self.end_unseen(id).await?
                    {
                        begun = failpoint::around("start_container", engine.start(&found.id)).await;
                    }
                    match begun {
                        Ok(()) => {
                            let port = self.find(id).await?.and_then(|found| found.port);
                            return Ok(started(found.id, found.name, port));
                        }
                        Err(EngineError::PortTaken(port)) => {
                            self.remove(id).await?;
                            return Err(StartError::PortTaken(port));
                        }
                        // All that should last is mounted, so that a new one is as good.
                        Err(
                            error @ (EngineError::Api { .. }
                            | EngineError::NotFound { .. }
                            | EngineError::Conflict { .. }),
                        ) => {
                            warn!(project = spec.name, container = found.name, %error, "it is made anew");
                            self.remove(id).await?;
                        }
                        Err(error) => return Err(refused(error).into()),
                    }
                }
                ContainerState::Restarting
                | ContainerState::Stopping
                | ContainerState::Removing
                | ContainerState::Dead => self.remove(id).await?,
            }
        }
        let image = project.image.clone().ok_or_else(|| incomplete("image"))?;
        let _bridge = self.bridge.read().await;
        let mut wanted = self.spec(&engine, id, spec, image, owner).await?;
        let name = wanted.name.clone();
        let mut failed = None;
        for attempt in 2..NAMES {
            let made = match failpoint::around("create_container", engine.create(&wanted)).await {
                Ok(made) => made,
                Err(EngineError::Conflict { .. }) => {
                    wanted.name = format!("{name}-{attempt}");
                    continue;
                }
                Err(EngineError::NotFound { .. }) => return Err(StartError::ImageMissing(owner)),
                Err(error) => return Err(refused(error).into()),
            };
            let begun = failpoint::around("start_container", engine.start(&made)).await;
            let Err(error) = begun else { return Ok(started(made, wanted.name, wanted.port)) };
            self.remove(id).await?;
            match (error, wanted.port) {
                (EngineError::PortTaken(port), _) => return Err(StartError::PortTaken(port)),
                // An engine that was killed may keep a port for nobody until it ends in order. Another port tells.
                (error @ EngineError::Api { .. }, Some(port)) if failed.is_none() => {
                    warn!(project = spec.name, %error, "it does not start; another port is tried");
                    wanted.port = Some(another(port)?);
                    failed = Some(error);
                }
                (error, _) => return Err(refused(failed.unwrap_or(error)).into()),
            }
        }
        Err(Refusal::unavailable(format!("all names like `{name}` are taken on this engine"))
            .hint("Remove containers that nobody needs.")
            .into())
    }

    /// How a container's network contradicts the setting, if it does.
    pub fn network_fault(&self, inspection: &Inspection) -> Option<NetworkFault> {
        match (inspection.has_network(), self.settings.network) {
            (true, false) => Some(NetworkFault::Reaches),
            (false, true) => Some(NetworkFault::CutOff),
            (true, true) | (false, false) => None,
        }
    }

    async fn network_is_outdated(&self, engine: &Engine, found: &ContainerFacts) -> Result<bool, Refusal> {
        match engine.inspect(&found.id).await {
            Ok(inspection) => Ok(match self.network_fault(&inspection) {
                Some(NetworkFault::Reaches) => true,
                // Nobody is in danger: what runs in it goes on.
                Some(NetworkFault::CutOff) => !matches!(found.state, ContainerState::Running | ContainerState::Paused),
                None => false,
            }),
            Err(EngineError::NotFound { .. }) => Ok(true),
            Err(error) => Err(refused(error)),
        }
    }

    /// Kills and removes all containers of the project, and what runs in one that the engine does not know to run.
    pub async fn remove(&self, project: Uuid) -> Result<(), Refusal> {
        let runs = |facts: &ContainerFacts| matches!(facts.state, ContainerState::Running | ContainerState::Paused);
        let (running, others): (Vec<_>, Vec<_>) = self.of(project).await?.partition(runs);
        for found in running {
            self.remove_one(&found.id).await?;
        }
        // Before the engine forgets those: then nothing reaches them any more.
        self.end_unseen(project).await?;
        for found in others {
            self.remove_one(&found.id).await?;
        }
        Ok(())
    }

    async fn remove_one(&self, container: &ContainerId) -> Result<(), Refusal> {
        let engine = self.engine()?;
        failpoint::around("remove_container", engine.remove(container)).await.map_err(refused)
    }

    /// Ends what sleds of the project run in no container that the engine knows to run: whether there were any. An engine
    /// that is killed while it starts a container takes it afterwards for one that does not run.
    async fn end_unseen(&self, project: Uuid) -> Result<bool, Refusal> {
        let folder = self.home.project(project).sled();
        let mut ended = false;
        for _ in 0..UNSEEN_ROUNDS {
            match failpoint::around("end_unseen", takeover::ask(&folder, UNSEEN_PATIENCE)).await {
                Ok(false) => return Ok(ended),
                Ok(true) => {
                    warn!(%project, "a sled ran in a container that the engine takes for stopped, and was ended");
                    ended = true;
                    // The engine learns of its end, and tidies up after it.
                    sleep(UNSEEN_PAUSE).await;
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => return Err(Refusal::internal("it cannot be seen whether a sled runs unseen", error)),
            }
        }
        let what = "a sled of the project runs in a container that the engine takes for stopped, and does not end";
        Err(Refusal::unavailable(what).hint(
            "On the host `pgrep --full --list-full 'sled serve'` shows it, and `kill -9` ends it; then try again.",
        ))
    }

    /// Refuses what the engine's host does not have, asked for or by the setting, before anything is made.
    pub async fn check(&self, cpus: Option<f64>) -> Result<(), Refusal> {
        let engine = self.engine()?;
        engine.ping().await.map_err(refused)?;
        let info = self.info(&engine).await?;
        let (has, default) = (info.cpus, self.settings.cpus);
        match cpus.or(default) {
            Some(wanted) if wanted > f64::from(has) => Err(if cpus.is_some() {
                Refusal::usage(format!("`--cpus {wanted}` is more than this host has ({has})"))
                    .hint("Give a smaller number, or leave it out.")
            } else {
                Refusal::config(format!("`[projects] default_cpus` is {wanted}, and this host has {has}"))
                    .hint("Lower it in bot.toml and restart musher, or give `--cpus`.")
            }),
            _ => Ok(()),
        }
    }

    /// Removes the bridge when no container needs it any more.
    pub async fn tidy_network(&self) -> Result<(), Refusal> {
        let _bridge = self.bridge.write().await;
        if self.list().await?.is_empty() {
            let (engine, gateway) = (self.engine()?, self.gateway.to_string());
            failpoint::around("remove_network", engine.remove_network(&gateway)).await.map_err(refused)?;
        }
        Ok(())
    }

    /// What the engine is. Refused, before anything is made on it, when it is one that cannot be used.
    async fn info(&self, engine: &Engine) -> Result<&EngineInfo, Refusal> {
        self.info.get_or_try_init(|| engine.info()).await.map_err(refused)
    }

    async fn spec(
        &self,
        engine: &Engine,
        id: Uuid,
        spec: &Spec,
        image: String,
        owner: Owner,
    ) -> Result<ContainerSpec, Refusal> {
        let settings = &self.settings;
        let info = self.info(engine).await?;
        let defaults = Limits::defaults(info);
        let cpus = spec.cpus.or(settings.cpus);
        let limits = Limits {
            milli_cpus: cpus.map_or(defaults.milli_cpus, milli_cpus),
            memory_bytes: spec.memory.or(settings.memory).unwrap_or(defaults.memory_bytes),
            pids: settings.pids,
            ..defaults
        };
        let network = if settings.network {
            let gateway = self.gateway.to_string();
            let network = failpoint::around("ensure_network", engine.ensure_network(&gateway)).await;
            Network::Bridge(network.map_err(refused)?)
        } else {
            Network::None
        };
        let parts = self.home.project(id);
        let mount = |host: PathBuf, target: &str, read_only| Mount { host, target: target.into(), read_only };
        let mut environment = vec![(PROJECT_ID.to_owned(), id.to_string())];
        environment
            .extend(settings.proxies.variables().iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Ok(ContainerSpec {
            name: format!("musher-{}", spec.name),
            image,
            project: spec.name.clone(),
            project_id: id.to_string(),
            gateway_id: self.gateway.to_string(),
            uid: owner.uid,
            gid: owner.gid,
            mounts: vec![
                mount(spec.path.clone(), WORKSPACE, false),
                mount(parts.home(), "/home", false),
                mount(parts.sled(), SLED_DATA, false),
                mount(parts.door(), SSH_FOLDER, true),
            ],
            port: settings.network.then_some(spec.port),
            limits,
            network,
            env: environment,
        })
    }
}

/// A number of processors as thousandths. Settings and grammar have bounded it.
fn milli_cpus(cpus: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the float is clamped to what fits")]
    let milli = (cpus * 1000.0).clamp(1.0, 1_000_000.0) as u32;
    milli
}

/// A container that was made when `[projects] network` was another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkFault {
    /// It has a network, and must have none.
    Reaches,
    /// It has none, and may have one.
    CutOff,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The engine's id of it.
    pub id: ContainerId,
    /// Its name on the engine.
    pub name: String,
    /// Its project's name.
    pub project: String,
    /// The loopback port that its door really has.
    pub port: Option<u16>,
}

impl Started {
    /// What people are told when a command cannot be started in it.
    pub fn refused(&self, error: EngineError) -> Refusal {
        match error {
            EngineError::ContainerStopped { .. } => {
                Refusal::unavailable(format!("the container of `{}` stopped by itself", self.project))
                    .hint(self.look_at_its_log())
            }
            other => refused(other),
        }
    }

    /// Where to look when its sled, which `logs` asks, cannot say anything any more.
    pub fn look_at_its_log(&self) -> String {
        format!("`docker logs {}` on the host may tell why; `doctor` checks the rest.", self.name)
    }
}

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine has lost its image, which was made for this owner.
    #[error("the image is not there any more")]
    ImageMissing(Owner),
    /// Its port on the host belongs to somebody else; nothing is left of the attempt.
    #[error("port {0} is taken")]
    PortTaken(u16),
    /// For another reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What people are told of a build that failed: first the last word of what ran, which mostly tells why, then what to do, and
/// then the end of the log.
fn not_built(failure: BuildFailure, toolchains: Toolchains) -> Refusal {
    let BuildFailure { layer, step, steps, message, log } = failure;
    let of_builder = |line: &String| ["Step ", "--->"].iter().any(|mark| line.trim_start().starts_with(mark));
    let reason = log.last().filter(|line| !of_builder(line)).unwrap_or(&message);
    let what = format!("layer {layer} of the image failed at step {step} of {steps}: {}", text::code(reason));
    // What failed is not read out of the log: who sees it knows whether it was a download.
    let next = match (&layer, toolchains) {
        (Layer::Stack(_), Toolchains::Upstream) => {
            "If a download failed, try again, or put `toolchains = \"distro\"` under `[images]` in bot.toml and restart musher: \
             then toolchains come from the Debian mirror (docs/stacks.md)."
        }
        _ => "Mend what it tells of, and try again: what was built before is kept.",
    };
    let lines = log.iter().map(|line| text::one_line(line, 200)).chain([text::one_line(&message, 300)]);
    let block = text::code_block(&lines.collect::<Vec<_>>().join("\n"));
    Refusal::internal(what, "its last lines follow").hint(format!("{next}\n{block}"))
}

/// What people are told of the engine's error.
pub fn refused(error: EngineError) -> Refusal {
    let hint = error.hint().map(|hint| {
        let mut hint = hint.to_owned();
        if let Some(first) = hint.get(..1).map(str::to_uppercase) {
            hint.replace_range(..1, &first);
        }
        hint + "."
    });
    let refusal = match error {
        EngineError::NotRunning { .. } | EngineError::PermissionDenied { .. } | EngineError::Remapped { .. } => {
            Refusal::unavailable(error.to_string())
        }
        other => Refusal::internal(other.to_string(), other),
    };
    match hint {
        Some(hint) => refusal.hint(hint),
        None => refusal,
    }
}

/// Shared.
pub type SharedContainers = Arc<Containers>;

#[cfg(test)]
mod tests;
