//! What the engine itself says of a container: what `doctor` proves (PROJ-13).

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard::models::{HostConfig, RestartPolicyNameEnum};

use crate::{ContainerId, ContainerState, Engine, EngineError};

/// A container as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Its image's tag.
    pub image: String,
    /// What it does.
    pub state: ContainerState,
    /// How its main process ended; 0 while it runs.
    pub exit_code: i64,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
    /// Whom it runs as, `uid:gid`.
    pub user: String,
    /// Whether it has all rights.
    pub privileged: bool,
    /// Capabilities that were added.
    pub cap_add: Vec<String>,
    /// Capabilities that were dropped; `ALL` is all.
    pub cap_drop: Vec<String>,
    /// Security options, such as `no-new-privileges:true`; one that names seccomp would replace the default profile.
    pub security_options: Vec<String>,
    /// The host's namespaces that it shares, by the setting's name and value.
    pub shared_namespaces: Vec<(&'static str, String)>,
    /// The host's devices that it was given.
    pub devices: usize,
    /// The folders and files of the host in it.
    pub mounts: Vec<InspectedMount>,
    /// File systems in memory, by their place, with their options.
    pub tmpfs: BTreeMap<String, String>,
    /// The ports that are published, as they were asked for.
    pub published: Vec<PublishedPort>,
    /// The engine's name or id of the network.
    pub network: String,
    /// What it may use.
    pub limits: InspectedLimits,
    /// Whether the engine would start it again by itself.
    pub restarts: bool,
    /// Its environment: the image's and its own.
    pub env: Vec<(String, String)>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its main process: program, then arguments.
    pub command: Vec<String>,
}

/// A mount as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedMount {
    /// What kind it is.
    pub kind: MountKind,
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it is in the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A folder or file of the host.
    Bind,
    /// A volume of the engine.
    Volume,
    /// Memory.
    Tmpfs,
    /// Anything else.
    Other,
}

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// The container's port.
    pub container_port: u16,
    /// The host's address; empty means every address.
    pub host_ip: String,
    /// The host's port.
    pub host_port: u16,
}

/// Limits as the engine describes them. 0 means that there is none, except for swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedLimits {
    /// Thousand-millionths of a processor.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Memory and swap together in bytes; equal to memory when there is no swap.
    pub memory_and_swap_bytes: i64,
    /// Processes and threads.
    pub pids: i64,
    /// Open files of one process, as soft and hard limit.
    pub nofile: Option<(i64, i64)>,
    /// Shared memory in bytes.
    pub shm_bytes: i64,
    /// How the engine keeps the log.
    pub log_driver: String,
    /// The log's options.
    pub log_options: BTreeMap<String, String>,
}

impl Inspection {
    /// Whether it reaches anything beyond itself. What is not known to be none is a network.
    pub fn has_network(&self) -> bool {
        self.network != "none"
    }
}

impl Engine {
    /// What the engine says of a container.
    pub async fn inspect(&self, id: &ContainerId) -> Result<Inspection, EngineError> {
        const WHAT: &str = "inspect a container";
        let found = self.call(WHAT, self.docker().inspect_container(id.as_str(), None)).await?;
        let missing = |missing| EngineError::Answer { what: WHAT, missing };
        let state = found.state.ok_or(missing("state"))?;
        let config = found.config.ok_or(missing("configuration"))?;
        let host = found.host_config.ok_or(missing("host configuration"))?;
        let env = config.env.unwrap_or_default().into_iter().map(|pair| match pair.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (pair, String::new()),
        });
        let mounts = found.mounts.unwrap_or_default().into_iter().map(|mount| InspectedMount {
            kind: match mount.typ.as_deref() {
                Some("bind") => MountKind::Bind,
                Some("volume") => MountKind::Volume,
                Some("tmpfs") => MountKind::Tmpfs,
                _ => MountKind::Other,
            },
            host: mount.source.unwrap_or_default().into(),
            target: mount.destination.unwrap_or_default().into(),
            read_only: mount.rw == Some(false),
        });
        Ok(Inspection {
            id: ContainerId::new(found.id.ok_or(missing("id"))?),
            name: found.name.ok_or(missing("name"))?.trim_start_matches('/').to_owned(),
            image: config.image.ok_or(missing("image"))?,
            state: ContainerState::from_status(state.status).ok_or(missing("state"))?,
            exit_code: state.exit_code.unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            privileged: host.privileged.unwrap_or_default(),
            cap_add: host.cap_add.clone().unwrap_or_default(),
            cap_drop: host.cap_drop.clone().unwrap_or_default(),
            security_options: host.security_opt.clone().unwrap_or_default(),
            shared_namespaces: shared_namespaces(&host),
            devices: host.devices.as_ref().map_or(0, Vec::len) + host.device_requests.as_ref().map_or(0, Vec::len),
            mounts: mounts.collect(),
            tmpfs: host.tmpfs.clone().unwrap_or_default().into_iter().collect(),
            published: published(&host).ok_or(missing("port"))?,
            network: host.network_mode.clone().unwrap_or_default(),
            restarts: !matches!(
                host.restart_policy.as_ref().and_then(|policy| policy.name),
                None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY)
            ),
            limits: limits(host),
            env: env.collect(),
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            command: found.path.into_iter().chain(found.args.unwrap_or_default()).collect(),
        })
    }
}

fn shared_namespaces(host: &HostConfig) -> Vec<(&'static str, String)> {
    let modes = [
        ("network", &host.network_mode),
        ("ipc", &host.ipc_mode),
        ("pid", &host.pid_mode),
        ("uts", &host.uts_mode),
        ("user", &host.userns_mode),
    ];
    let shared = |mode: &String| mode == "host" || mode.starts_with("container:");
    modes.into_iter().filter_map(|(name, mode)| mode.clone().filter(shared).map(|mode| (name, mode))).collect()
}

/// None when a port is no number.
fn published(host: &HostConfig) -> Option<Vec<PublishedPort>> {
    let mut all = Vec::new();
    for (container, bindings) in host.port_bindings.iter().flatten() {
        let container_port = container.split('/').next()?.parse().ok()?;
        for binding in bindings.iter().flatten() {
            all.push(PublishedPort {
                container_port,
                host_ip: binding.host_ip.clone().unwrap_or_default(),
                host_port: binding.host_port.as_deref()?.parse().ok()?,
            });
        }
    }
    Some(all)
}

fn limits(host: HostConfig) -> InspectedLimits {
    let log = host.log_config.unwrap_or_default();
    let nofile = host.ulimits.iter().flatten().find(|limit| limit.name.as_deref() == Some("nofile"));
    InspectedLimits {
        nano_cpus: host.nano_cpus.unwrap_or_default(),
        memory_bytes: host.memory.unwrap_or_default(),
        memory_and_swap_bytes: host.memory_swap.unwrap_or_default(),
        pids: host.pids_limit.unwrap_or_default(),
        nofile: nofile.and_then(|limit| limit.soft.zip(limit.hard)),
        shm_bytes: host.shm_size.unwrap_or_default(),
        log_driver: log.typ.unwrap_or_default(),
        log_options: log.config.unwrap_or_default().into_iter().collect(),
    }
}
