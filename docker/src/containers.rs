//! Containers from create to remove. What fails half-way is taken back; what is already gone is fine.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use bollard::models::{ContainerStateStatusEnum as Status, ContainerSummary, ContainerSummaryStateEnum as Summary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use uuid::Uuid;

use crate::engine::CALL_SECS;
use crate::spec::LABEL_ATTEMPT;
use crate::{ContainerSpec, Engine, EngineError, LABEL_GATEWAY, LABEL_PROJECT, LABEL_PROJECT_ID, SSH_PORT};

/// The engine's id of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// An id that was kept, such as one from the journal. Names work as well.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// About to be started again by the engine, which ours never are.
    Restarting,
    /// Being stopped.
    Stopping,
    /// Ended.
    Exited,
    /// Being removed.
    Removing,
    /// Could not be removed.
    Dead,
}

/// A container that carries a gateway's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The project that its label names.
    pub project: Option<String>,
    /// That project's id, by which it is found: a reused name inherits nothing.
    pub project_id: Option<String>,
    /// Its image's tag.
    pub image: String,
    /// What it does.
    pub state: ContainerState,
    /// The host's loopback port behind which its sshd answers; known while it runs.
    pub port: Option<u16>,
}

impl Engine {
    /// Makes a container. It is not started.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] when the name is taken, [`EngineError::NotFound`] when the image is not there,
    /// [`EngineError::Spec`] when the spec contradicts itself. None leaves a container behind.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        let attempt = Uuid::now_v7().to_string();
        let body = spec.body(&attempt, self.address())?;
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let error = match self.call("make a container", self.docker().create_container(Some(options), body)).await {
            Ok(made) => return Ok(ContainerId(made.id)),
            Err(error) => error,
        };
        // The engine may have made it before it failed to say so.
        for left in self.by_label(LABEL_ATTEMPT, &attempt).await? {
            let id = left.id.ok_or(EngineError::Answer { what: "list containers", missing: "id" })?;
            self.remove(&ContainerId(id)).await?;
        }
        Err(error)
    }

    /// Starts a container; one that runs is fine.
    ///
    /// # Errors
    /// [`EngineError::PortTaken`] when its port belongs to somebody else. The container is left as it was, though its port
    /// cannot be changed: an engine that was killed may take one that runs for one that does not, and forgets it when it is
    /// removed. Whoever does that sees to it first.
    pub async fn start(&self, id: &ContainerId) -> Result<(), EngineError> {
        let mut again = true;
        loop {
            let error = match self.call("start a container", self.docker().start_container(id.as_str(), None)).await {
                Ok(()) => return Ok(()),
                Err(error @ EngineError::Api { .. }) => error,
                Err(error) => return Err(error),
            };
            let inspection = self.inspect(id).await?;
            let Some(port) = inspection
                .published
                .iter()
                .find(|published| published.container_port == SSH_PORT)
                .map(|published| published.host_port)
            else {
                return Err(error);
            };
            if self.port_is_taken(port).await? {
                return Err(EngineError::PortTaken(port));
            }
            // Whoever had the port may have let go of it before we looked: then it is ours now.
            if !again {
                return Err(error);
            }
            again = false;
        }
    }

    /// Whether somebody holds the port: another container, or, where the engine is on this host, any process.
    async fn port_is_taken(&self, port: u16) -> Result<bool, EngineError> {
        if self.address().starts_with('/') {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(true),
                Ok(_) | Err(_) => {}
            }
        }
        let running = self.call("list containers", self.docker().list_containers(None)).await?;
        Ok(running
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .any(|published| published.public_port == Some(port)))
    }

    /// Stops a container: asks it to end and kills it after `grace` (rounded up to seconds). One that does not run is
    /// fine.
    pub async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        let secs = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options = StopContainerOptionsBuilder::new().t(i32::try_from(secs).unwrap_or(i32::MAX)).build();
        let docker = self.docker().clone().with_timeout(Duration::from_secs(secs + CALL_SECS));
        self.call_within(secs + CALL_SECS, "stop a container", docker.stop_container(id.as_str(), Some(options))).await
    }

    /// Lets a container go on that somebody has paused. One that runs by now is fine.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when it is gone.
    pub async fn unpause(&self, id: &ContainerId) -> Result<(), EngineError> {
        match self.call("unpause a container", self.docker().unpause_container(id.as_str())).await {
            // Whoever paused it was faster.
            Err(EngineError::Api { .. } | EngineError::Conflict { .. })
                if self.inspect(id).await?.state == ContainerState::Running =>
            {
                Ok(())
            }
            unpaused => unpaused,
        }
    }

    /// Kills and removes a container. One that is already gone, or is being removed, is fine; it is gone afterwards.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        const WHAT: &str = "remove a container";
        let removing = async {
            let mut pause = Duration::from_millis(10);
            loop {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                match self.call(WHAT, self.docker().remove_container(id.as_str(), Some(options))).await {
                    Ok(()) | Err(EngineError::NotFound { .. }) => return Ok(()),
                    // Somebody else is removing it.
                    Err(EngineError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        };
        match tokio::time::timeout(Duration::from_secs(CALL_SECS), removing).await {
            Ok(removed) => removed,
            Err(_) => Err(EngineError::Timeout { what: WHAT, secs: CALL_SECS }),
        }
    }

    /// All containers with this gateway's label, whatever they do.
    pub async fn list(&self, gateway_id: &str) -> Result<Vec<ContainerFacts>, EngineError> {
        self.by_label(LABEL_GATEWAY, gateway_id).await?.into_iter().map(facts).collect()
    }

    async fn by_label(&self, label: &str, value: &str) -> Result<Vec<ContainerSummary>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{label}={value}")])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        self.call("list containers", self.docker().list_containers(Some(options))).await
    }
}

fn facts(summary: ContainerSummary) -> Result<ContainerFacts, EngineError> {
    let missing = |missing| EngineError::Answer { what: "list containers", missing };
    let port =
        summary.ports.iter().flatten().find(|port| port.private_port == SSH_PORT).and_then(|port| port.public_port);
    let name = summary.names.and_then(|names| names.into_iter().next()).ok_or(missing("name"))?;
    let mut labels = summary.labels.unwrap_or_default();
    Ok(ContainerFacts {
        id: ContainerId(summary.id.ok_or(missing("id"))?),
        name: name.trim_start_matches('/').to_owned(),
        project: labels.remove(LABEL_PROJECT),
        project_id: labels.remove(LABEL_PROJECT_ID),
        image: summary.image.ok_or(missing("image"))?,
        state: match summary.state {
            Some(Summary::CREATED) => ContainerState::Created,
            Some(Summary::RUNNING) => ContainerState::Running,
            Some(Summary::PAUSED) => ContainerState::Paused,
            Some(Summary::RESTARTING) => ContainerState::Restarting,
            Some(Summary::STOPPING) => ContainerState::Stopping,
            Some(Summary::EXITED) => ContainerState::Exited,
            Some(Summary::REMOVING) => ContainerState::Removing,
            Some(Summary::DEAD) => ContainerState::Dead,
            Some(Summary::EMPTY) | None => return Err(missing("state")),
        },
        port,
    })
}

impl ContainerState {
    pub(crate) fn from_status(status: Option<Status>) -> Option<Self> {
        Some(match status? {
            Status::CREATED => Self::Created,
            Status::RUNNING => Self::Running,
            Status::PAUSED => Self::Paused,
            Status::RESTARTING => Self::Restarting,
            Status::STOPPING => Self::Stopping,
            Status::EXITED => Self::Exited,
            Status::REMOVING => Self::Removing,
            Status::DEAD => Self::Dead,
            Status::EMPTY => return None,
        })
    }
}
