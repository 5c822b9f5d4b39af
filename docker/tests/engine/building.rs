//! Images: built once, built only where something changed, and nothing left of a build that did not come to its end.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use musher_docker::{BaseImage, BuildProgress, EngineError, ImageInputs, ImagePlan, Layer, Proxies, SledBinary};
use stacks::{StackName, Stacks, Toolchains};
use uuid::Uuid;

use crate::harness::{self, SLED, build_containers, engine, forget_steps, plan, until};

/// A sled that no image holds yet.
fn new_sled() -> String {
    format!("{SLED}# {}\n", Uuid::now_v7())
}

/// A person's own stack of one instruction, with a name that nothing else has.
fn own_stack(fragment: &str) -> Result<(Stacks, StackName)> {
    let folder = tempfile::tempdir()?;
    let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..20]);
    let stack = folder.path().join(&name);
    fs::create_dir(&stack)?;
    fs::write(stack.join("markers"), "priority = 1\ntest\n")?;
    fs::write(stack.join("Dockerfile.fragment"), fragment)?;
    fs::write(stack.join("Dockerfile.fragment.distro"), fragment)?;
    Ok((Stacks::load(Some(folder.path()))?, name.parse()?))
}

#[tokio::test]
async fn an_unchanged_image_builds_nothing() -> Result<()> {
    let engine = engine()?;
    harness::image(&engine).await?;
    let plan = plan(SLED, None)?;
    let mut seen = Vec::new();
    engine.ensure_image(&plan, &mut |progress| seen.push(progress)).await?;
    assert_eq!(seen, []);
    Ok(())
}

#[tokio::test]
async fn a_changed_sled_builds_one_layer_and_two_callers_build_it_once() -> Result<()> {
    let engine = engine()?;
    harness::image(&engine).await?;
    let plan = plan(&new_sled(), None)?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut report_first = |progress: BuildProgress| first.push(progress);
    let mut report_second = |progress: BuildProgress| second.push(progress);
    let (one, two) =
        tokio::join!(engine.ensure_image(&plan, &mut report_first), engine.ensure_image(&plan, &mut report_second));
    one?;
    two?;
    let layers: BTreeSet<String> = first.iter().chain(&second).map(|progress| progress.layer.to_string()).collect();
    assert_eq!(layers, BTreeSet::from(["node".to_owned()]));
    let builds = [&first, &second].iter().filter(|seen| seen.iter().any(|progress| progress.step == 1)).count();
    assert_eq!(builds, 1, "{first:?} {second:?}");
    let steps: Vec<u32> =
        first.iter().chain(&second).filter(|p| p.step > 0 && p.line.is_none()).map(|p| p.step).collect();
    let last = *steps.last().context("steps")?;
    assert_eq!(steps, (1..=last).collect::<Vec<_>>(), "every step is told once, in order");
    assert!(engine.image_exists(plan.tag()).await?);
    engine.remove_image(plan.tag()).await?;
    engine.remove_image(plan.tag()).await?;
    assert!(!engine.image_exists(plan.tag()).await?);
    Ok(())
}

#[tokio::test]
async fn a_step_that_fails_is_told_with_the_logs_end_and_leaves_no_container() -> Result<()> {
    let engine = engine()?;
    harness::image(&engine).await?;
    let (stacks, name) = own_stack("RUN for n in $(seq 1 30); do echo line $n; done; exit 3\n")?;
    let plan = plan(SLED, stacks.get(&name))?;
    let Err(EngineError::BuildFailed(failure)) = engine.ensure_image(&plan, &mut |_| {}).await else {
        bail!("the build did not fail")
    };
    assert_eq!((failure.layer.clone(), failure.step, failure.steps), (Layer::Stack(name.clone()), 4, 4));
    assert_eq!(failure.log.len(), 20);
    assert!(failure.log.iter().any(|line| line == "line 30"), "{:?}", failure.log);
    assert!(!engine.image_exists(plan.tag()).await?);
    assert_eq!(build_containers(&failure.layer).await?, 0);
    forget_steps(&failure.layer).await
}

#[tokio::test]
async fn a_cancelled_build_leaves_no_container() -> Result<()> {
    let engine = engine()?;
    harness::image(&engine).await?;
    let (stacks, name) = own_stack("RUN echo begun; sleep 100000\n")?;
    let plan = plan(SLED, stacks.get(&name))?;
    let layer = Layer::Stack(name);
    let (begun, mut beginning) = tokio::sync::mpsc::unbounded_channel();
    let mut report = |progress: BuildProgress| {
        if progress.line.as_deref() == Some("begun") {
            let _ = begun.send(());
        }
    };
    tokio::select! {
        ended = engine.ensure_image(&plan, &mut report) => bail!("the build ended: {ended:?}"),
        told = beginning.recv() => told.context("the build's beginning")?,
    }
    until("the build's container is removed", async || Ok(build_containers(&layer).await? == 0)).await?;
    forget_steps(&layer).await
}

#[tokio::test]
async fn a_silent_build_is_given_up() -> Result<()> {
    let engine = engine()?.with_build_silence(Duration::from_secs(3));
    harness::image(&engine).await?;
    let (stacks, name) = own_stack("RUN sleep 100000\n")?;
    let plan = plan(SLED, stacks.get(&name))?;
    let given_up = engine.ensure_image(&plan, &mut |_| {}).await;
    ensure!(matches!(&given_up, Err(EngineError::NoProgress { secs: 3, .. })), "{given_up:?}");
    let layer = Layer::Stack(name);
    until("the build's container is removed", async || Ok(build_containers(&layer).await? == 0)).await?;
    forget_steps(&layer).await
}

/// A part of Debian must never be taken for the whole.
#[tokio::test]
async fn a_mirror_that_does_not_answer_gives_no_image() -> Result<()> {
    let engine = engine()?;
    let file = tempfile::NamedTempFile::new()?;
    // A port that was free a moment ago and that nobody serves.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let inputs = ImageInputs {
        base: BaseImage::Bootstrap { mirror: Some(format!("http://127.0.0.1:{port}/debian")) },
        stack: None,
        toolchains: Toolchains::Distro,
        with_agent: false,
        npm_registry: None,
        uid: 1000,
        gid: 1000,
        ca_bundle: None,
        proxies: Proxies::default(),
        sled: SledBinary::open(file.path())?,
    };
    let plan = ImagePlan::new(&inputs)?;
    let Err(EngineError::BuildFailed(failure)) = engine.ensure_image(&plan, &mut |_| {}).await else {
        bail!("the build did not fail")
    };
    assert_eq!((failure.layer, failure.log.is_empty()), (Layer::Root, false));
    for (layer, tag) in plan.layers() {
        assert!(!engine.image_exists(tag).await?, "{layer}");
    }
    Ok(())
}
