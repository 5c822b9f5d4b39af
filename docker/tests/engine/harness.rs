//! What the tests share: the engine, an image with a stand-in for the sled, a project's folders, and the look
//! afterwards that nothing is left.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptions};
use musher_docker::{
    BaseImage, ContainerId, ContainerSpec, Engine, ImageInputs, ImagePlan, LABEL_LAYER, Layer, Limits, Mount, Network,
    Proxies, SSH_FOLDER, SSHD_CONFIG, SledBinary, WORKSPACE,
};
use stacks::{Stack, Toolchains};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::sync::OnceCell;
use uuid::Uuid;

/// What the container's main process does as far as these tests go: it starts sshd where there is a key, and stays.
pub const SLED: &str = r#"#!/bin/sh
[ "$1" = serve ] || exit 64
if [ -r /etc/musher/ssh/host_ed25519 ]; then /usr/sbin/sshd -D -e -f /etc/musher/ssh/sshd_config & fi
trap 'exit 0' TERM
while :; do sleep 1000 & wait $!; done
"#;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_mins(2);

pub fn engine() -> Result<Engine> {
    Engine::connect(None)
        .context("these tests need a Docker engine on its default socket: start one, then run them again")
}

/// The plan of a base image with a stand-in sled. Certificates of this host are carried in, as a gateway would.
pub fn plan(sled: &str, stack: Option<&Stack>) -> Result<ImagePlan> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), sled)?;
    let (uid, gid) = user();
    let inputs = ImageInputs {
        base: BaseImage::Bootstrap { mirror: None },
        stack,
        toolchains: Toolchains::Distro,
        with_agent: false,
        npm_registry: None,
        uid,
        gid,
        ca_bundle: fs::read("/etc/ssl/certs/ca-certificates.crt").ok(),
        proxies: Proxies::default(),
        sled: SledBinary::open(file.path())?,
    };
    Ok(ImagePlan::new(&inputs)?)
}

/// Whom the containers run as: this user, or 1000 where this is root.
pub fn user() -> (u32, u32) {
    let own = Path::new("/proc/self").metadata().expect("an own process");
    if own.uid() == 0 { (1000, 1000) } else { (own.uid(), own.gid()) }
}

/// The image with the stand-in, made once for all tests of this run.
pub async fn image(engine: &Engine) -> Result<String> {
    static IMAGE: OnceCell<String> = OnceCell::const_new();
    let make = async || {
        let plan = plan(SLED, None)?;
        engine.ensure_image(&plan, &mut |_| {}).await?;
        anyhow::Ok(plan.tag().to_owned())
    };
    IMAGE.get_or_try_init(make).await.cloned()
}

/// A gateway of its own, with a project's folders on the host.
pub struct World {
    pub engine: Engine,
    pub gateway: String,
    pub folder: TempDir,
    pub image: String,
    pub limits: Limits,
}

impl World {
    pub async fn new() -> Result<Self> {
        let engine = engine()?;
        let limits = Limits { memory_bytes: 256 << 20, pids: 200, ..Limits::defaults(&engine.info().await?) };
        let world = Self {
            image: image(&engine).await?,
            gateway: Uuid::now_v7().to_string(),
            folder: tempfile::tempdir()?,
            engine,
            limits,
        };
        for folder in ["workspace", "home", "ssh"] {
            fs::create_dir(world.path(folder))?;
            own(&world.path(folder))?;
        }
        fs::set_permissions(world.folder.path(), fs::Permissions::from_mode(0o755))?;
        Ok(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn spec(&self, name: &str) -> ContainerSpec {
        let (uid, gid) = user();
        let mount =
            |name: &str, target: &str, read_only| Mount { host: self.path(name), target: target.into(), read_only };
        ContainerSpec {
            name: format!("musher-test-{name}-{}", self.gateway),
            image: self.image.clone(),
            project: name.to_owned(),
            project_id: name.to_owned(),
            gateway_id: self.gateway.clone(),
            uid,
            gid,
            mounts: vec![
                mount("workspace", WORKSPACE, false),
                mount("home", "/home/dev", false),
                mount("ssh", SSH_FOLDER, true),
            ],
            port: None,
            limits: self.limits,
            network: Network::None,
            env: Vec::new(),
        }
    }

    pub async fn running(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        let id = self.engine.create(spec).await?;
        self.engine.start(&id).await?;
        Ok(id)
    }

    /// Runs a shell command in a container and gives what it printed.
    pub async fn shell(&self, id: &ContainerId, script: &str) -> Result<String> {
        let mut session = self.engine.exec(id, &["bash", "-c", script], &[]).await?;
        let mut output = String::new();
        tokio::time::timeout(PATIENCE, session.stream.read_to_string(&mut output)).await??;
        let code = session.process.exit_code().await?;
        ensure!(code == Some(0), "{script}: exit {code:?}: {}", session.process.stderr_tail());
        Ok(output)
    }

    /// Keys and configuration as a gateway writes them. Gives the client's private key.
    pub fn write_ssh_folder(&self) -> Result<PathBuf> {
        let key = |path: &Path| -> Result<()> {
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
                .arg(path)
                .status();
            ensure!(made.context("ssh-keygen is needed")?.success(), "ssh-keygen failed");
            Ok(())
        };
        let ssh = self.path("ssh");
        key(&ssh.join("host_ed25519"))?;
        key(&self.path("client"))?;
        fs::copy(self.path("client.pub"), ssh.join("authorized_keys"))?;
        fs::write(ssh.join("sshd_config"), SSHD_CONFIG)?;
        for entry in fs::read_dir(&ssh)? {
            own(&entry?.path())?;
        }
        Ok(self.path("client"))
    }

    /// Removes what a test made by its ids, and looks that nothing is left.
    pub async fn end(self, ids: &[&ContainerId]) -> Result<()> {
        for id in ids {
            self.engine.remove(id).await?;
        }
        self.engine.remove_network(&self.gateway).await?;
        self.assert_nothing_left().await
    }

    pub async fn assert_nothing_left(&self) -> Result<()> {
        let left = self.engine.list(&self.gateway).await?;
        ensure!(left.is_empty(), "containers are left: {left:?}");
        Ok(())
    }
}

/// A test that failed half-way leaves nothing either.
impl Drop for World {
    fn drop(&mut self) {
        let (engine, gateway) = (self.engine.clone(), self.gateway.clone());
        let clean = async move {
            for left in engine.list(&gateway).await? {
                engine.remove(&left.id).await?;
            }
            engine.remove_network(&gateway).await
        };
        // A thread of its own: the test's runtime is busy with this very call.
        let cleaned = std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| runtime.block_on(clean))
        });
        if !matches!(cleaned.join(), Ok(Ok(Ok(())))) {
            eprintln!("could not remove what gateway {} made", self.gateway);
        }
    }
}

/// The container's user owns what is mounted, as PROJ-14 wants.
fn own(path: &Path) -> Result<()> {
    let (uid, gid) = user();
    Ok(chown(path, Some(uid), Some(gid))?)
}

/// How many containers, of any state, come from the build of a layer. Asked past our own code, which lists a
/// gateway's alone.
pub async fn build_containers(layer: &Layer) -> Result<usize> {
    let docker = Docker::connect_with_local_defaults()?;
    let filters = HashMap::from([("label", vec![format!("{LABEL_LAYER}={layer}")])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    Ok(docker.list_containers(Some(options)).await?.len())
}

/// Removes what the engine keeps of a layer's steps as its cache, when the layer is a test's own.
pub async fn forget_steps(layer: &Layer) -> Result<()> {
    let docker = Docker::connect_with_local_defaults()?;
    let filters = HashMap::from([("label", vec![format!("{LABEL_LAYER}={layer}")])]);
    for image in docker.list_images(Some(ListImagesOptionsBuilder::new().filters(&filters).build())).await? {
        docker.remove_image(&image.id, None::<RemoveImageOptions>, None).await?;
    }
    Ok(())
}

/// Waits until a condition holds.
pub async fn until(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let waiting = async {
        while !condition().await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("waited in vain: {what}"))?
}
