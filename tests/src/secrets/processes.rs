//! What processes of the host show while a test runs: everybody's command line, and the environment and the open files of those
//! that belong to one home or run in a container.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{Area, Find, forbidden, matcher};

/// How often is looked: programs that fetch and push live longer.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks at processes until it is asked what it has found.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<BTreeSet<Find>>>,
}

impl Watch {
    /// Looks from now on. What has `home` in its environment belongs to it.
    pub fn start(home: &Path) -> Self {
        let (over, home) = (Arc::new(AtomicBool::new(false)), home.to_owned());
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut finds = BTreeSet::new();
            while !until.load(Ordering::Relaxed) {
                look(&home, &mut finds)?;
                std::thread::sleep(INTERVAL);
            }
            Ok(finds)
        });
        Self { over, thread }
    }

    /// What must not have been there.
    pub fn finish(self) -> Result<Vec<Find>> {
        self.over.store(true, Ordering::Relaxed);
        let finds = self.thread.join().map_err(|_| anyhow!("the watch has failed"))??;
        Ok(finds.into_iter().collect())
    }
}

/// Looks once. A process that has gone, or that is not ours to look at, shows nothing.
fn look(home: &Path, finds: &mut BTreeSet<Find>) -> Result<()> {
    let matcher = matcher()?;
    let own_namespace = fs::read_link("/proc/self/ns/pid")?;
    for process in fs::read_dir("/proc")? {
        let process: PathBuf = process?.path();
        let is_process = process.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
        let Some(line) = is_process.then(|| fs::read(process.join("cmdline")).ok()).flatten() else { continue };
        finds.extend(forbidden(Area::Elsewhere, "a command line", &matcher.bytes(&line)));
        let Ok(environment) = fs::read(process.join("environ")) else { continue };
        let contained = fs::read_link(process.join("ns/pid")).is_ok_and(|namespace| namespace != own_namespace);
        let home = home.as_os_str().as_bytes();
        if !contained && !environment.windows(home.len()).any(|window| window == home) {
            continue;
        }
        let program = String::from_utf8_lossy(line.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        let at = if contained { "in a container" } else { "on the host" };
        let place = |what: &str| format!("{what} of {program} {at}");
        finds.extend(forbidden(Area::Elsewhere, &place("the environment"), &matcher.bytes(&environment)));
        for file in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Ok(to) = fs::read_link(file.path()) else { continue };
            finds.extend(forbidden(Area::Elsewhere, &place("an open file"), &matcher.bytes(to.as_os_str().as_bytes())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        product,
        secrets::{Kind, mint},
        wait,
    };

    #[tokio::test]
    async fn a_secret_that_a_process_shows_is_found() -> Result<()> {
        let folder = product::scratch()?;
        let (argument, variable, file) = (mint(Kind::GitToken), mint(Kind::ModelKey), mint(Kind::Typed));
        let open = fs::File::create(folder.path().join(&file))?;
        let mut sleeper = tokio::process::Command::new("sh")
            .args(["-c", "sleep 1000; :", &argument])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("KEY", &variable)
            .stdin(open)
            .kill_on_drop(true)
            .spawn()?;
        let mut finds = BTreeSet::new();
        wait::until("all of it is found", wait::SHORT, || {
            let looked = look(folder.path(), &mut finds);
            let mut all = BTreeSet::new();
            all.extend(finds.iter().map(|find| (find.place.starts_with("a command line"), find.kind)));
            let expected = [(true, Kind::GitToken), (false, Kind::ModelKey), (false, Kind::Typed)];
            let whole = expected.iter().all(|find| all.contains(find));
            async move { looked.map(|()| whole.then_some(())) }
        })
        .await?;
        let id = crate::process::id(&sleeper)?;
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        sleeper.kill().await?;
        for child in children.split_whitespace() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.parse()?), nix::sys::signal::Signal::SIGKILL)?;
        }
        Ok(())
    }
}
