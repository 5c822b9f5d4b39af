//! What the Docker engine holds of a gateway, asked of the host's own docker client.
//!
//! Everything is found by the gateway's label; nothing else on the engine is ever touched.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::process::Command;

use crate::{process, wait};

/// The label that carries the gateway's id.
pub const GATEWAY_LABEL: &str = "dev.musher.gateway";

/// The label that carries the project's name.
pub const PROJECT_LABEL: &str = "dev.musher.project";

/// Names of what a gateway has on the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its containers, running or not.
    pub containers: BTreeSet<String>,
    /// Its networks.
    pub networks: BTreeSet<String>,
    /// Its volumes.
    pub volumes: BTreeSet<String>,
}

/// Runs the docker client and gives what it prints; fails when it does.
pub async fn docker(args: &[&str]) -> Result<String> {
    process::run(Command::new("docker").args(args), b"", wait::SHORT).await?.success()
}

/// What the gateway with this id has.
pub async fn holdings(gateway: &str) -> Result<Holdings> {
    let label = format!("label={GATEWAY_LABEL}={gateway}");
    let filter = ["--filter", label.as_str(), "--format"];
    let containers = docker(&[&["ps", "--all"][..], &filter, &["{{.Names}}"]].concat()).await?;
    let networks = docker(&[&["network", "ls"][..], &filter, &["{{.Name}}"]].concat()).await?;
    let volumes = docker(&[&["volume", "ls"][..], &filter, &["{{.Name}}"]].concat()).await?;
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    Ok(Holdings { containers: lines(containers), networks: lines(networks), volumes: lines(volumes) })
}

/// The engine's own description of a container.
pub async fn inspect(container: &str) -> Result<Value> {
    let text = docker(&["container", "inspect", container]).await?;
    let mut all: Vec<Value> = serde_json::from_str(&text).context("docker inspect prints JSON")?;
    all.pop().with_context(|| format!("there is no container {container}"))
}

/// The engine's own description of all containers of the gateway with this id, and of their images. A container that goes
/// while it is asked for is not among them.
pub async fn described(gateway: &str) -> Result<String> {
    let label = format!("label={GATEWAY_LABEL}={gateway}");
    let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &label]).await?;
    if ids.is_empty() {
        return Ok(ids);
    }
    let mut inspect = Command::new("docker");
    inspect.args(["container", "inspect"]).args(ids.lines());
    let containers = process::run(&mut inspect, b"", wait::SHORT).await?.stdout;
    let all: Vec<Value> = serde_json::from_str(&containers).context("docker inspect prints JSON")?;
    let images: BTreeSet<&str> = all.iter().filter_map(|container| container["Image"].as_str()).collect();
    if images.is_empty() {
        return Ok(containers);
    }
    let images = docker(&[&["image", "inspect"][..], &images.into_iter().collect::<Vec<_>>()].concat()).await?;
    Ok(containers + &images)
}

/// The id of the gateway whose state directory this is, once it has made a container: its containers
/// mount parts of that directory.
pub async fn gateway_of(state: &Path) -> Result<Option<String>> {
    let ids = docker(&["ps", "--all", "--quiet", "--filter", &format!("label={GATEWAY_LABEL}")]).await?;
    for id in ids.lines() {
        // Another test may have removed it since it was listed; it was none of ours then.
        let Ok(container) = inspect(id).await else { continue };
        let mounts = container["Mounts"].as_array().into_iter().flatten();
        if mounts.filter_map(|mount| mount["Source"].as_str()).any(|source| Path::new(source).starts_with(state)) {
            return Ok(container["Config"]["Labels"][GATEWAY_LABEL].as_str().map(str::to_owned));
        }
    }
    Ok(None)
}

/// Removes what the gateway with this id has.
pub async fn remove(gateway: &str) -> Result<()> {
    let Holdings { containers, networks, volumes } = holdings(gateway).await?;
    for container in &containers {
        docker(&["rm", "--force", "--volumes", container]).await?;
    }
    for volume in &volumes {
        docker(&["volume", "rm", volume]).await?;
    }
    for network in &networks {
        docker(&["network", "rm", network]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_carries_the_label_is_found_and_removed() -> Result<()> {
        let gateway = uuid::Uuid::new_v4().to_string();
        assert_eq!(holdings(&gateway).await?, Holdings::default());
        let (name, other) = (format!("musher-test-{gateway}"), uuid::Uuid::new_v4().to_string());
        docker(&["network", "create", "--label", &format!("{GATEWAY_LABEL}={gateway}"), &name]).await?;
        remove(&other).await?;
        assert_eq!(holdings(&gateway).await?.networks, BTreeSet::from([name]));
        remove(&gateway).await?;
        assert_eq!(holdings(&gateway).await?, Holdings::default());
        Ok(())
    }
}
