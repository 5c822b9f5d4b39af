//! A Docker engine of the run's own, beside the one that was found, which it never disturbs: its own socket, data,
//! network and containerd namespace, and no rule of the host's firewall. It can be killed.
//!
//! Everything of it lies in one folder; removing it leaves nothing, however the run ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use ::tests::{process, wait};
use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use tokio::process::Command;

/// For what the engine may take long for: starting on old data, loading images.
const SLOW: Duration = Duration::from_mins(3);

/// Where its ids are, and its containerd's.
const PID_FILES: [&str; 2] = ["pid", "exec/containerd/containerd.pid"];

/// What runs for the engine or on it, outside of containers.
const PROGRAMS: [&str; 6] = ["containerd", "containerd-shim", "containerd-shim-runc-v2", "dockerd", "musher", "runc"];

/// What waits in a container until that is started.
const RUNC_INIT: &str = "runc init";

/// The private engine in its folder.
#[derive(Debug)]
pub struct Engine {
    directory: PathBuf,
    /// Its bridge, and its namespace of containerd.
    name: String,
    /// The second number of its addresses.
    network: u32,
}

impl Engine {
    /// The engine that lies in this folder; `number` tells it from others on the host.
    pub fn at(directory: &Path, number: u32) -> Self {
        // An interface's name has 15 letters at most.
        let name = format!("mk{}", number % 10_000_000);
        Self { directory: directory.to_owned(), name, network: 100 + number % 100 }
    }

    /// What `DOCKER_HOST` is set to.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Makes its network, and starts it.
    pub async fn make(&self) -> Result<()> {
        let address = format!("10.{}.0.1/24", self.network);
        // A network of its own altogether: an engine that is started again after a kill clears bridges away, also those of
        // the engine that was found.
        root("ip", ["netns", "add", &self.name]).await?;
        for set in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", &self.name, "type", "bridge"],
            &["address", "add", &address, "dev", &self.name],
            &["link", "set", &self.name, "up"],
        ] {
            root("ip", [&["-n", &self.name], set].concat()).await?;
        }
        self.start().await
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        let log = self.log();
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).context("the engine's log")?;
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut command = self.within("dockerd");
        command.args(["--host", &self.host(), "--data-root", &path("data"), "--exec-root", &path("exec")]);
        command.args(["--pidfile", &path("pid"), "--bridge", &self.name]);
        // Another /17 than the bridge's; and what is published is reached through the engine's own proxy.
        command.args(["--default-address-pool", &format!("base=10.{}.128.0/17,size=24", self.network)]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.args(["--containerd-namespace", &self.name]);
        command.args(["--containerd-plugins-namespace", &format!("{}-plugins", self.name)]);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A Ctrl-C on the terminal is not for it.
        command.process_group(0);
        let mut child = command.spawn().context("could not start dockerd")?;
        // Whoever waits for it here collects it when it ends.
        tokio::spawn(async move { child.wait().await });
        wait::until("the private engine answers", SLOW, || async { Ok(self.answers().await.then_some(())) })
            .await
            .with_context(|| last_lines(&fs::read_to_string(&log).unwrap_or_default(), 30))
    }

    /// A command with root's rights in the engine's network, where alone its published ports are reached.
    pub fn within(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = as_root("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Loads an image that the engine which was found has.
    pub async fn load(&self, tag: &str) -> Result<()> {
        let mut save = Command::new("docker").args(["save", tag]).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let image: Stdio = save.stdout.take().context("a piped standard output")?.try_into()?;
        let mut load = Command::new("docker");
        load.args(["--host", &self.host(), "load"]).stdin(image).stdout(Stdio::null()).kill_on_drop(true);
        let status = tokio::time::timeout(SLOW, load.status()).await.context("loading the image takes too long")??;
        ensure!(status.success() && save.wait().await?.success(), "the image {tag} could not be loaded");
        Ok(())
    }

    /// Kills it (SIGKILL) with its containerd, which it takes along; its containers go on.
    pub async fn kill(&self) -> Result<()> {
        for file in PID_FILES {
            if let Some(id) = self.process(file)? {
                kill(id, "KILL").await?;
                let gone = || async { Ok(process::is_gone(id).then_some(())) };
                wait::until("the engine is gone", wait::SHORT, gone).await?;
            }
            // The next engine would take a dead process for a running one until somebody has waited for it.
            root("rm", ["-f".into(), self.directory.join(file)]).await?;
        }
        Ok(())
    }

    /// Kills it as soon as the first process of this container runs, which it then does not know yet: whether that came
    /// within `patience`.
    pub async fn kill_at_start(&self, container: &str, patience: Duration) -> Result<bool> {
        let mut ids = Vec::new();
        for file in PID_FILES {
            ids.extend(self.process(file)?);
        }
        let mut seen: BTreeSet<Pid> = process_ids()?.collect();
        let until = Instant::now() + patience;
        while Instant::now() < until {
            let new: Vec<Pid> = process_ids()?.filter(|id| !seen.contains(id)).collect();
            for id in new {
                let of = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
                if !of("cgroup").contains(container) {
                    seen.insert(id);
                } else if of("cmdline").contains("sled\0serve") {
                    for id in &ids {
                        kill(*id, "KILL").await?;
                    }
                    self.kill().await?;
                    return Ok(true);
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(false)
    }

    /// Removes all that it holds, ends it, and removes it; says what it could not.
    pub async fn remove(&self) -> Result<()> {
        // Containers outlive an engine that was killed; only an engine ends them in good order.
        if !self.answers().await {
            self.kill().await?;
            self.start().await?;
        }
        let containers = self.docker(&["ps", "--all", "--quiet"]).await?;
        for id in containers.lines() {
            self.docker(&["rm", "--force", "--volumes", id]).await?;
        }
        let networks = self.docker(&["network", "ls", "--quiet", "--filter", "type=custom"]).await?;
        for id in networks.lines() {
            self.docker(&["network", "rm", id]).await?;
        }
        if let Some(id) = self.process("pid")? {
            kill(id, "TERM").await?;
            wait::until("the engine ends", wait::SHORT, || async { Ok(process::is_gone(id).then_some(())) }).await?;
        }
        self.sweep().await
    }

    /// Ends what still runs in its folder by its id, and removes the folder.
    pub async fn sweep(&self) -> Result<()> {
        for (id, line) in self.processes()? {
            eprintln!("left by the run, and ended now: {id} {line}");
            // A shim's is the first process of a container, and all of that ends with it. It would outlive the shim.
            for child in children(id)? {
                kill(child, "KILL").await?;
            }
            kill(id, "KILL").await?;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").context("the list of mounts")?;
        let ours = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for mount in ours.filter(|mount| Path::new(mount).starts_with(&self.directory)) {
            root("umount", ["--lazy", mount]).await?;
        }
        if Path::new("/run/netns").join(&self.name).exists() {
            root("ip", ["netns", "delete", &self.name]).await?;
        }
        root("rm", ["-rf".as_ref(), self.directory.as_os_str()]).await.map(drop)
    }

    /// The engine's processes and the gateways that ran on it: they name its folder or its namespace.
    fn processes(&self) -> Result<Vec<(Pid, String)>> {
        let folder = self.directory.to_string_lossy().into_owned();
        let ours = |(_, line): &(Pid, String)| {
            let program = line.split(' ').next().and_then(|path| path.rsplit('/').next());
            program.is_some_and(|program| PROGRAMS.contains(&program))
                && (line.contains(&folder) || line.split(' ').any(|word| word == self.name))
        };
        Ok(command_lines()?.into_iter().filter(ours).collect())
    }

    /// Containers in which something runs though the engine does not know them: ids, and command lines of what runs.
    pub async fn forgotten(&self) -> Result<Vec<(String, String)>> {
        let known = self.docker(&["ps", "--all", "--quiet", "--no-trunc"]).await?;
        let lines: BTreeMap<Pid, String> = command_lines()?.into_iter().collect();
        let mut forgotten = Vec::new();
        for (shim, line) in self.processes()? {
            let Some(id) = line.split(' ').skip_while(|word| *word != "-id").nth(1) else { continue };
            if known.lines().any(|known| known == id) {
                continue;
            }
            let within = children(shim)?.into_iter().filter_map(|id| lines.get(&id));
            // Nothing of the project has begun in a container that the engine was killed in the middle of making.
            forgotten.extend(within.filter(|line| *line != RUNC_INIT).map(|line| (id.to_owned(), line.clone())));
        }
        Ok(forgotten)
    }

    /// The engine's own log.
    pub fn log(&self) -> PathBuf {
        self.directory.join("dockerd.log")
    }

    async fn answers(&self) -> bool {
        self.docker(&["version"]).await.is_ok()
    }

    async fn docker(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        process::run(command.args(["--host", &self.host()]).args(args), b"", wait::SHORT).await?.success()
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("docker.sock")
    }

    /// The process that a pid file names, if it runs and is of this engine.
    fn process(&self, file: &str) -> Result<Option<Pid>> {
        let Ok(text) = fs::read_to_string(self.directory.join(file)) else { return Ok(None) };
        let id: i32 = text.trim().parse().with_context(|| format!("{file} holds `{text}`"))?;
        Ok(self.processes()?.into_iter().map(|(id, _)| id).find(|found| found.as_raw() == id))
    }
}

/// The end of a log.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The host's processes.
fn process_ids() -> Result<impl Iterator<Item = Pid>> {
    let entries = fs::read_dir("/proc").context("the list of processes")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)))
}

/// Ids and command lines of all processes of the host.
pub fn command_lines() -> Result<Vec<(Pid, String)>> {
    let mut all = Vec::new();
    for id in process_ids()? {
        // One that has ended meanwhile has none.
        let Ok(line) = fs::read(format!("/proc/{id}/cmdline")) else { continue };
        all.push((id, String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned()));
    }
    Ok(all)
}

/// Ids and command lines of the host's processes that belong to one of these containers.
pub fn of_containers(containers: &[String]) -> Result<Vec<(Pid, String)>> {
    let belongs = |(id, _): &(Pid, String)| {
        let group = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
        containers.iter().any(|container| group.contains(container))
    };
    Ok(command_lines()?.into_iter().filter(belongs).collect())
}

/// Sends a signal to a process by its id, whoever owns it: whether it was there. One that has ended meanwhile is no error.
pub async fn kill(id: Pid, signal: &str) -> Result<bool> {
    // What has ended and was not waited for takes signals, too.
    if process::is_gone(id) {
        return Ok(false);
    }
    match root("kill", [format!("-{signal}"), id.to_string()]).await {
        Ok(_) => Ok(true),
        Err(_) if process::is_gone(id) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn root(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    process::run(as_root(program).args(args), b"", SLOW).await?.success()
}

/// A command with root's rights: an engine needs them.
fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "--", program]);
    command
}

/// What a process has started and not waited for.
fn children(of: Pid) -> Result<Vec<Pid>> {
    let is_child = |id: &Pid| {
        // One that ends meanwhile is none any more.
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
        parent == Some(of.to_string().as_str())
    };
    Ok(process_ids()?.filter(is_child).collect())
}
