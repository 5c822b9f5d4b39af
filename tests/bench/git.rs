//! Clone and push of a repository of 200 MB from inside a project, through sled and gateway, against git on the host with the same
//! server.
//!
//! The work tree is not checked out: that is the same on both sides, and would only hide what the way costs. Both sides write to the
//! same disk, which is flushed before each sample. `web` or `ssh` after `--` chooses a transport.

mod report;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    gateway::Gateway,
    git_server::{Content, Repositories, SshServer, WebServer},
    home::Home,
    process, product,
    secrets::{self, Kind},
};
use tokio::process::Command;

use crate::report::{load, machine, report};

/// Of each kind, and one round before them that brings files into memory.
const SAMPLES: usize = 5;
/// Through the proxy, the speed is at least this part of the direct one.
const SPEED: f64 = 0.70;
/// What the repository has; git keeps a pack of so many, and does not make loose objects of it.
const FILES: u32 = 200;
/// Bytes of each file, which do not compress.
const FILE: u32 = 1_000_000;
/// For what is slow on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);

const NAME: &str = "team/app.git";
const BRANCH: &str = "main";

/// One of the two ways to the server.
struct Way {
    /// What runs a shell script there, which follows as the last argument.
    shell: Vec<String>,
    environment: Vec<(&'static str, String)>,
    folder: PathBuf,
    url: String,
}

impl Way {
    /// How long this takes, by the clock around it and nothing else.
    async fn time(&self, line: &str) -> Result<Duration> {
        process::run(&mut Command::new("sync"), b"", PATIENCE).await?.success()?;
        let script = format!("began=$EPOCHREALTIME; {line} && echo $began $EPOCHREALTIME");
        let printed = self.run(&script).await?;
        let (began, ended) = printed.trim().split_once(' ').with_context(|| format!("no times: {printed}"))?;
        let micros = |clock: &str| Ok::<_, anyhow::Error>(clock.replace(['.', ','], "").parse::<u64>()?);
        Ok(Duration::from_micros(micros(ended)?.checked_sub(micros(began)?).context("the clock went back")?))
    }

    async fn run(&self, script: &str) -> Result<String> {
        let (program, args) = self.shell.split_first().context("a program")?;
        let mut command = Command::new(program);
        let inherited = ["PATH", "DOCKER_HOST"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.env_clear().envs(inherited).args(args).arg(script);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        process::run(&mut command, b"", PATIENCE).await?.success()
    }

    /// Where its clone is.
    fn sample(&self) -> String {
        self.folder.join("sample").display().to_string()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    machine().await?;
    let chosen: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let mut kept = true;
    if wanted("web") {
        kept &= web().await?;
    }
    if wanted("ssh") {
        kept &= ssh().await?;
    }
    ensure!(kept, "a bound was not kept");
    Ok(())
}

async fn web() -> Result<bool> {
    let home = Home::practice().await?;
    let token = secrets::mint(Kind::GitToken);
    let server = WebServer::private("ann", &token).await?;
    store(&home, &server.secret(), &format!("ann:{token}")).await?;
    let url = server.url(NAME);
    let direct = direct(url.replace("http://", &format!("http://ann:{token}@")), vec![])?;
    compare("web", &home, server.repositories(), &url, direct).await
}

async fn ssh() -> Result<bool> {
    let home = Home::practice().await?;
    let server = SshServer::start().await?;
    for secret in server.secrets() {
        store(&home, &secret, &server.key()?).await?;
    }
    fs::create_dir(home.path().join(".ssh"))?;
    fs::write(home.path().join(".ssh/known_hosts"), server.known_hosts()?)?;
    let keys = product::scratch()?;
    let (known, key) = (keys.path().join("known"), keys.path().join("key"));
    fs::write(&known, server.known_hosts()?)?;
    fs::write(&key, server.key()?)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let command = format!(
        "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile={} -i {}",
        known.display(),
        key.display()
    );
    let url = server.url(NAME);
    let direct = direct(url.clone(), vec![("GIT_SSH_COMMAND", command)])?;
    compare("ssh", &home, server.repositories(), &url, direct).await
}

async fn store(home: &Home, name: &str, value: &str) -> Result<()> {
    home.run(["secrets", "set", name], value).await?.success().map(drop)
}

/// Git on the host; its folder is removed with what is given back.
fn direct(url: String, environment: Vec<(&'static str, String)>) -> Result<(tempfile::TempDir, Way)> {
    let folder = product::scratch()?;
    let mut environment = environment;
    environment.push(("HOME", folder.path().display().to_string()));
    let shell = ["bash", "-c"].map(String::from).to_vec();
    let way = Way { shell, environment, folder: folder.path().to_owned(), url };
    Ok((folder, way))
}

/// Samples both ways in turns, prints them, and tells whether the bound is kept.
async fn compare(
    what: &str,
    home: &Home,
    repositories: &Repositories,
    url: &str,
    (_folder, direct): (tempfile::TempDir, Way),
) -> Result<bool> {
    let mut gateway = Gateway::console(home).await?;
    // The project is made of an empty repository: its own work tree has no part in this.
    repositories.empty(NAME, BRANCH).await?;
    gateway.make("app", &format!("--git {url}")).await?;
    let container = home.container("app").await?;
    let shell = ["docker", "exec", &container, "bash", "-c"].map(String::from).to_vec();
    let through = Way { shell, environment: vec![], folder: Path::new("/workspace").to_owned(), url: url.into() };
    fill(repositories).await?;
    for way in [&direct, &through] {
        println!("{what}: {}", way.run("git --version").await?.trim());
    }

    let mut took: [[Vec<Duration>; 2]; 2] = Default::default();
    for round in 0..=SAMPLES {
        let mut ways = [(0, &direct), (1, &through)];
        if round % 2 == 1 {
            ways.reverse();
        }
        for (index, way) in ways {
            way.run(&format!("rm -rf {}", way.sample())).await?;
            let cloned = way.time(&format!("git clone -q --no-checkout {} {}", way.url, way.sample())).await?;
            took[0][index].extend((round > 0).then_some(cloned));
        }
        for (index, way) in ways {
            let tip = repositories.tip(NAME, BRANCH).await?.context("a full repository")?;
            fs::remove_dir_all(repositories.folder().join(NAME))?;
            repositories.empty(NAME, BRANCH).await?;
            let pushed = way.time(&format!("git -C {} push -q origin HEAD:{BRANCH}", way.sample())).await?;
            ensure!(repositories.tip(NAME, BRANCH).await?.as_ref() == Some(&tip), "what was pushed has not come");
            took[1][index].extend((round > 0).then_some(pushed));
        }
    }
    println!("load after: {}", load()?);
    let mut kept = true;
    for (verb, [floor, ours]) in ["clone", "push"].into_iter().zip(took) {
        let floor = report(&format!("{what} {verb}, direct"), floor);
        let ours = report(&format!("{what} {verb}, from a project"), ours);
        let speed = floor.as_secs_f64() / ours.as_secs_f64();
        let rate = f64::from(FILES * FILE) / 1e6 / ours.as_secs_f64();
        println!(
            "{what} {verb}: {:.0} % of direct speed (bound {:.0} %), {rate:.0} MB/s",
            speed * 100.0,
            SPEED * 100.0
        );
        kept &= speed >= SPEED;
    }
    gateway.finish().await?;
    Ok(kept)
}

/// One commit of files that do not compress.
async fn fill(repositories: &Repositories) -> Result<()> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut noise = vec![0_u8; (FILES * FILE) as usize];
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let names: Vec<String> = (0..FILES).map(|number| format!("part-{number:03}")).collect();
    let files: Vec<_> =
        names.iter().zip(noise.chunks_exact(FILE as usize)).map(|(name, bytes)| Content::File(name, bytes)).collect();
    repositories.commit(NAME, BRANCH, "two hundred files", &files).await.map(drop)
}
