//! Everything that Musher asks of a Docker engine: images, hardened containers, exec sessions, one network.
//!
//! bollard lives in this crate alone and none of its types leave it. Nothing here knows projects, sagas or the
//! journal: the caller says what it wants and keeps the record. Nothing is deleted that does not carry our labels
//! or was not named by the caller.

mod bootstrap;
mod build;
mod certificates;
mod containers;
mod context;
mod engine;
mod error;
mod exec;
mod images;
mod inspection;
mod layers;
mod network;
mod sockets;
mod spec;

pub use build::BuildProgress;
pub use containers::{ContainerFacts, ContainerId, ContainerState};
pub use engine::{CgroupVersion, Engine, EngineInfo};
pub use error::{BuildFailure, EngineError};
pub use exec::{ExecProcess, ExecSession, ExecStream};
pub use images::{BaseImage, ImageInputs, ImagePlan, PlanError, Proxies, SledBinary};
pub use inspection::{InspectedLimits, InspectedMount, Inspection, MountKind, PublishedPort};
pub use layers::Layer;
pub use network::NetworkId;
pub use spec::{ContainerSpec, Limits, Mount, Network, SpecError};

/// The label that names a container's project.
pub const LABEL_PROJECT: &str = "dev.musher.project";
/// The label that holds a container's project's id: names come back, ids do not.
pub const LABEL_PROJECT_ID: &str = "dev.musher.project-id";
/// The label that names the gateway that made a container or a network.
pub const LABEL_GATEWAY: &str = "dev.musher.gateway";
/// The label that names the layer which an image of ours ends with.
pub const LABEL_LAYER: &str = "dev.musher.layer";

/// The sshd configuration that the gateway puts into [`SSH_FOLDER`] (SSH-1, SSH-4).
pub const SSHD_CONFIG: &str = include_str!("../sshd_config");
/// Where the gateway mounts, read-only, `sshd_config`, `host_ed25519` and `authorized_keys`.
pub const SSH_FOLDER: &str = "/etc/musher/ssh";
/// The port that sshd listens on inside a container.
pub const SSH_PORT: u16 = 2222;
/// The name of the container's one user. sshd knows no other.
pub const USER: &str = "dev";
/// That user's home, which the gateway mounts.
pub const HOME: &str = "/home/dev";
/// Where the project's source is mounted.
pub const WORKSPACE: &str = "/workspace";
/// The folder for sockets and the like: in memory, the user's alone.
pub const RUN_FOLDER: &str = "/run/musher";
/// The sled's binary in an image.
pub const SLED: &str = "/usr/local/bin/sled";
/// The version of the Claude Code CLI that the agent layer holds.
pub const CLAUDE_CODE_VERSION: &str = "2.1.197";
