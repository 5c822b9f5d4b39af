//! A person's fresh home with a state directory in it, and `musher` run there with a clean environment.
//!
//! It outlives the gateways that run on it, so that a test can restart one. When it is dropped, what
//! those gateways made on the engine is removed by their label, and a test fails that has left a secret where it does not belong.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    engine::{self, Holdings},
    homeserver, images,
    model::Model,
    process,
    process::Output,
    product,
    secrets::{self, Area, Find},
    wait,
};

/// What of our own environment a gateway needs to reach the engine and the package mirrors.
const INHERITED: [&str; 12] = [
    "PATH",
    "DOCKER_HOST",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
];

/// A person's home and the state directory in it.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    port: u16,
    environment: Vec<(String, String)>,
    gateway: Mutex<Option<String>>,
}

impl Home {
    /// A fresh home whose bot.toml has the settings `top`, and after them the tables `tables`.
    ///
    /// Images are made of Debian's packages, and health is served on a free port.
    pub fn new(top: &str, tables: &str) -> Result<Self> {
        let (directory, port) = (product::scratch()?, homeserver::free_port()?);
        let home = Self { directory, port, environment: vec![], gateway: Mutex::default() };
        fs::create_dir(home.state()).context("the state directory")?;
        fs::set_permissions(home.state(), fs::Permissions::from_mode(0o700))?;
        // As on the host of somebody who uses git.
        fs::write(home.path().join(".gitconfig"), "[user]\n\tname = Ann Other\n\temail = ann@example.org\n")?;
        home.configure(top, tables)?;
        Ok(home)
    }

    /// A fresh home with the practice agent, its images made: for tests that need no real agent.
    pub async fn practice() -> Result<Self> {
        images::ready().await?;
        Self::new("", "[agent]\nruntime = \"echo\"")
    }

    /// A fresh home with the real agent, which talks to `model`; the key comes in the gateway's environment.
    pub async fn real(model: &Model) -> Result<Self> {
        images::ready().await?;
        Ok(Self::new("", &Self::agent_tables(model))?.with_variable("ANTHROPIC_API_KEY", model.key()))
    }

    /// The tables of bot.toml for the real agent with this model.
    pub fn agent_tables(model: &Model) -> String {
        format!("[agent]\nruntime = \"claude\"\n\n[model]\nbase_url = \"{}\"", model.base_url())
    }

    /// The same, with further settings of the agent.
    pub fn agent_tables_with(model: &Model, agent: &str) -> String {
        Self::agent_tables(model).replacen("[agent]", &format!("[agent]\n{agent}"), 1)
    }

    /// Writes bot.toml anew.
    pub fn configure(&self, top: &str, tables: &str) -> Result<()> {
        let port = self.port;
        let text =
            format!("{top}\n[images]\ntoolchains = \"distro\"\n\n[http]\nlisten = \"127.0.0.1:{port}\"\n\n{tables}\n");
        self.write_config(&text)
    }

    /// Writes exactly this as bot.toml.
    pub fn write_config(&self, text: &str) -> Result<()> {
        fs::write(self.state().join("bot.toml"), text).context("bot.toml could not be written")
    }

    /// Gives every `musher` here one more variable of the environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The person's home.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.path().join(".musher")
    }

    /// Where a project's files lie unless it was asked otherwise.
    pub fn project(&self, name: &str) -> PathBuf {
        self.path().join("musher").join(name)
    }

    /// `musher --home <state directory>`, to be given arguments, in this home's environment.
    pub fn musher(&self) -> Result<Command> {
        let mut command = Command::new(product::binary("musher")?);
        command.env_clear().env("HOME", self.path()).env("LANG", "C.UTF-8").current_dir(self.path());
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--home").arg(self.state());
        Ok(command)
    }

    /// Runs `musher` with these arguments and this standard input to its end.
    pub async fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &str) -> Result<Output> {
        let output = process::run(self.musher()?.args(args), input.as_bytes(), wait::LONG).await?;
        secrets::none(&secrets::in_bytes(Area::Elsewhere, "what `musher` printed", output.text().as_bytes())?)?;
        Ok(output)
    }

    /// Status and body of `GET /healthz`; nothing while nobody listens.
    pub async fn health(&self) -> Result<Option<(u16, String)>> {
        match self.get("/healthz", "127.0.0.1").await {
            Ok(answer) => Ok(Some(answer)),
            // Nobody is there, or whoever was there has just been killed.
            Err(error) if error.downcast_ref().is_some_and(reqwest::Error::is_request) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Status and body of what the gateway's HTTP door has under `path`, asked for by this name of the host.
    pub async fn get(&self, path: &str, host: &str) -> Result<(u16, String)> {
        let http = reqwest::Client::builder().no_proxy().timeout(wait::SHORT).build()?;
        let request = http.get(format!("http://127.0.0.1:{}{path}", self.port)).header("host", host);
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Waits until a gateway here takes messages.
    pub async fn wait_healthy(&self, within: Duration) -> Result<()> {
        wait::until("the gateway takes messages", within, || async {
            Ok(self.health().await?.filter(|(status, _)| *status == 200).map(drop))
        })
        .await
    }

    /// The id under which this home's gateway has things on the engine; nothing before its first container.
    pub async fn gateway(&self) -> Result<Option<String>> {
        let known = self.gateway.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let found = engine::gateway_of(&self.state()).await?;
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&found);
        Ok(found)
    }

    /// What this home's gateway has on the engine.
    pub async fn holdings(&self) -> Result<Holdings> {
        match self.gateway().await? {
            Some(gateway) => engine::holdings(&gateway).await,
            None => Ok(Holdings::default()),
        }
    }

    /// The container of a project.
    pub async fn container(&self, project: &str) -> Result<String> {
        let found = self.find_container(project).await?;
        found.with_context(|| format!("there is no container of project {project}"))
    }

    /// The container of a project, if the engine has one.
    pub async fn find_container(&self, project: &str) -> Result<Option<String>> {
        let gateway = self.gateway().await?.context("this gateway has no container")?;
        let (ours, of_project) = (
            format!("label={}={gateway}", engine::GATEWAY_LABEL),
            format!("label={}={project}", engine::PROJECT_LABEL),
        );
        let names =
            engine::docker(&["ps", "--all", "--filter", &ours, "--filter", &of_project, "--format", "{{.Names}}"])
                .await?;
        Ok(names.lines().next().map(str::to_owned))
    }

    /// The user that owns what containers of this home write: our own, or the configured one where we are root.
    pub fn owner(&self) -> u32 {
        match nix::unistd::geteuid().as_raw() {
            0 => 1000,
            own => own,
        }
    }

    /// Every path in the home, except what a running gateway writes by itself: logs and the journal's files.
    pub fn tree(&self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        collect(self.path(), &mut paths)?;
        let state = self.state();
        paths.retain(|path| !path.starts_with(state.join("logs")));
        paths
            .retain(|path| !path.strip_prefix(&state).is_ok_and(|own| own.to_string_lossy().starts_with("journal.db")));
        Ok(paths)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            // The test's own runtime cannot be waited on from here.
            let cleaning = scope.spawn(|| -> Result<Result<Vec<Find>>> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let Some(gateway) = self.gateway().await? else { return Ok(Ok(Vec::new())) };
                    let described = engine::described(&gateway).await;
                    engine::remove(&gateway).await?;
                    Ok(described.and_then(|text| secrets::in_bytes(Area::Elsewhere, "docker inspect", text.as_bytes())))
                })
            });
            match cleaning.join() {
                Ok(Ok(finds)) => secrets::judge(finds),
                Ok(Err(error)) => eprintln!("containers of {} may be left: {error:#}", self.path().display()),
                Err(_) => eprintln!("containers of {} may be left", self.path().display()),
            }
        });
        secrets::judge(secrets::in_folder(self.path(), &self.state()));
    }
}

/// All that lies below `directory`; symbolic links are not followed.
fn collect(directory: &Path, into: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("could not list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), into)?;
        }
        into.insert(entry.path());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{Kind, mint};

    #[test]
    fn a_home_that_is_left_with_a_secret_in_a_projects_folder_fails_its_test() -> Result<()> {
        let home = Home::new("", "")?;
        fs::create_dir_all(home.project("app"))?;
        fs::write(home.project("app").join("key"), mint(Kind::ModelKey))?;
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(home))).is_err());
        Ok(())
    }
}
