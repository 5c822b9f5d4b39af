//! The Rust stack's image from Debian's packages: its first build against `docker build` of the same Dockerfiles with the same
//! contexts by the engine's own client, and what it costs to find that there is nothing to build.
//!
//! The base, which all stacks share, is there. Each sample's stack is Rust's under a name of its own, which stands in a label at the
//! Dockerfile's beginning: so nothing of it is in the engine's cache. Packages are downloaded anew each time, and the sides alternate.
//! What was made is removed.

mod report;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{engine::docker, home::Home, images, process, product};
use tokio::process::Command;
use uuid::Uuid;

use crate::report::{load, machine, report};

/// Builds of each kind.
const BUILDS: usize = 3;
/// The first build may take this many times as long as `docker build`.
const RATIO: f64 = 1.15;
/// How often it is looked whether there is something to build.
const LOOKS: usize = 20;
/// How long one look may take.
const LOOK: Duration = Duration::from_millis(100);
/// For a build on a busy machine behind a slow mirror.
const PATIENCE: Duration = Duration::from_mins(20);

/// What every layer's Dockerfile has before its own lines.
const LABEL: &str = "dev.musher.layer";
/// The layer below the stack's.
const BASE: &str = "musher-base:";

#[tokio::main]
async fn main() -> Result<()> {
    machine().await?;
    // Debian itself is in the engine then.
    images::ready().await?;
    let home = Home::new("", "[agent]\nruntime = \"echo\"")?;
    let plain = home.run(["images", "build"], "").await?.success()?;
    let below = ancestry(plain.trim()).await?.into_iter().find(|tag| tag.starts_with(BASE)).context("a base")?;

    let (mut ours, mut floor, mut looks) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..BUILDS {
        for is_ours in [number % 2 == 0, number % 2 == 1] {
            let name = format!("r{}", &Uuid::new_v4().simple().to_string()[..12]);
            let made = if is_ours {
                let (took, tag, looked) = musher(&home, &name).await?;
                ours.push(took);
                looks.extend(looked);
                tag
            } else {
                let (took, tag) = engine_client(&home, &name, &below).await?;
                floor.push(took);
                tag
            };
            let made = ancestry(&made).await?;
            ensure!(made.contains(&below), "the layers of a stack stand on the base: {made:?}");
            for tag in made.iter().take_while(|tag| **tag != below) {
                docker(&["rmi", tag]).await?;
            }
        }
    }
    println!("load after: {}", load()?);
    let (ours, floor) = (report("musher images build, first", ours), report("docker build of the same", floor));
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    println!("ratio of the medians: {ratio:.2} (bound {RATIO})");
    let look = report("musher images build, unchanged", looks);
    println!("bound: {:.3} s", LOOK.as_secs_f64());
    ensure!(ratio <= RATIO && look <= LOOK, "a bound was not kept");
    Ok(())
}

/// The tags of an image and of those that it was built on, the nearest first.
async fn ancestry(tag: &str) -> Result<Vec<String>> {
    let (mut at, mut names) = (tag.to_owned(), Vec::new());
    while !at.is_empty() {
        let format = "{{.Parent}}\t{{join .RepoTags \" \"}}";
        let facts = docker(&["image", "inspect", "--format", format, &at]).await?;
        let (below, tags) = facts.trim_end_matches('\n').split_once('\t').context("a parent and tags")?;
        names.extend(tags.split(' ').filter(|tag| !tag.is_empty()).map(str::to_owned));
        below.clone_into(&mut at);
    }
    Ok(names)
}

/// The first build, its tag, and how long it takes to see that it is there.
async fn musher(home: &Home, name: &str) -> Result<(Duration, String, Vec<Duration>)> {
    let stack = home.state().join("stacks").join(name);
    fs::create_dir_all(&stack)?;
    copy(&product::repository()?.join("stacks/rust"), &stack)?;
    let build = async || {
        let began = Instant::now();
        let output = process::run(home.musher()?.args(["images", "build", name]), b"", PATIENCE).await?;
        let took = began.elapsed();
        let steps = output.stderr.clone();
        Ok::<_, anyhow::Error>((took, output.success()?.trim().to_owned(), steps))
    };
    let (took, tag, steps) = build().await?;
    ensure!(steps.contains(&format!("stack-{name} step")), "it was not the first build:\n{steps}");
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        let (took, again, steps) = build().await?;
        ensure!(again == tag && steps.is_empty(), "{again} was built again:\n{steps}");
        looks.push(took);
    }
    fs::remove_dir_all(stack)?;
    Ok((took, tag, looks))
}

/// The same two Dockerfiles by the engine's own client, and the last one's tag.
async fn engine_client(home: &Home, name: &str, below: &str) -> Result<(Duration, String)> {
    let repository = product::repository()?;
    let folder = product::scratch()?;
    let context = |layer: &str, below: &str, dockerfile: &str| -> Result<PathBuf> {
        let context = folder.path().join(layer);
        fs::create_dir(&context)?;
        let lines = fs::read_to_string(repository.join(dockerfile)).with_context(|| dockerfile.to_owned())?;
        let text = format!("FROM {below}\nLABEL {LABEL}={layer}\nARG DEBIAN_FRONTEND=noninteractive\n{lines}");
        fs::write(context.join("Dockerfile"), text)?;
        Ok(context)
    };
    let (of_stack, of_node) = (format!("musher-bench-{name}:stack"), format!("musher-bench-{name}:node"));
    let stack = context(&format!("stack-{name}"), below, "stacks/rust/Dockerfile.fragment.distro")?;
    let node = context("node", &of_stack, "docker/node/Dockerfile")?;
    copy(&repository.join("docker/node"), &node)?;
    fs::copy(product::binary("sled")?, node.join("sled"))?;
    for program in ["sudo", "sshd-environment"] {
        fs::set_permissions(node.join(program), fs::Permissions::from_mode(0o755))?;
    }
    let owner = home.owner();
    let owner = [format!("MUSHER_UID={owner}"), format!("MUSHER_GID={owner}")];

    let began = Instant::now();
    client_build(&stack, &of_stack, &[]).await?;
    client_build(&node, &of_node, &owner).await?;
    Ok((began.elapsed(), of_node))
}

/// Copies the files of a folder that are not there yet.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if !to.exists() {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

async fn client_build(context: &Path, tag: &str, arguments: &[String]) -> Result<()> {
    let mut build = Command::new("docker");
    build.args(["build", "--no-cache", "--force-rm", "--quiet", "--tag", tag]);
    for argument in arguments {
        build.args(["--build-arg", argument]);
    }
    process::run(build.arg(context), b"", PATIENCE).await?.success().map(drop)
}
