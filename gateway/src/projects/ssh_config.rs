//! The generated `ssh_config` and `known_hosts` of the state directory (SSH-2, SSH-3). Rendering is pure.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use musher_docker::USER;
use tracing::warn;
use uuid::Uuid;

use super::{Registry, Stage, Step, keys, name, no_project};
use crate::{
    failpoint,
    home::{Home, write_private},
    refusal::Refusal,
};

/// Keeps the two files true to the projects.
#[derive(Clone)]
pub struct Doors {
    /// The projects.
    pub registry: Arc<Registry>,
    /// The state directory.
    pub home: Home,
    /// The musher binary, for the `ProxyCommand` of the doors.
    pub musher: PathBuf,
    /// Whether containers have a port door.
    pub ports: bool,
    /// Held from the look at the projects until both files are written: the last to write knows all.
    pub writing: Arc<Mutex<()>>,
}

impl Doors {
    /// Writes the doors of all projects that have one anew. A project whose keys are gone has none, and does not take
    /// the others' away.
    pub fn write(&self) -> Result<(), Refusal> {
        let _held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut doors = Vec::new();
        for (id, project) in self.registry.all() {
            let open = match project.stage {
                Stage::Registered => true,
                Stage::Making => project.begun.contains(&Step::Sled),
                _ => false,
            };
            let Some(spec) = project.spec.filter(|_| open) else { continue };
            match keys::host_key(&self.home.project(id)) {
                Ok(host_key) => {
                    doors.push(Door { id, name: spec.name, port: self.ports.then_some(spec.port), host_key });
                }
                Err(error) => {
                    warn!(project = spec.name, %error, "the project has no door, because its host key cannot be read");
                }
            }
        }
        write(&self.home, &self.musher, &doors)
            .map_err(|error| Refusal::internal("the ssh_config could not be written", error))
    }
}

/// What the two files say of a project.
#[derive(Debug, Clone)]
pub struct Door {
    /// The project's id, which the host key is pinned to.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The loopback port, where there is one.
    pub port: Option<u16>,
    /// The public host key, `ssh-ed25519 …`.
    pub host_key: String,
}

/// Refused when the `ssh_config` has no door of a project of this name.
pub fn find(home: &Home, project: &str) -> Result<(), Refusal> {
    name::check(project)?;
    let config = fs::read_to_string(home.ssh_config()).unwrap_or_default();
    let names: Vec<_> = config.lines().filter_map(|line| line.strip_prefix("Host ")?.strip_suffix(".musher")).collect();
    if names.contains(&project) {
        return Ok(());
    }
    let way = |name: &str| format!("Make it in the chat that `musher up` opens: `new project {name}`.");
    Err(no_project(project, names.into_iter(), way))
}

/// Writes both files anew, each whole or not at all.
pub fn write(home: &Home, musher: &Path, doors: &[Door]) -> io::Result<()> {
    failpoint::reach("before", "write_known_hosts");
    write_private(&home.known_hosts(), known_hosts(doors).as_bytes())?;
    failpoint::reach("after", "write_known_hosts");
    failpoint::reach("before", "write_ssh_config");
    write_private(&home.ssh_config(), config(home, musher, doors)?.as_bytes())?;
    failpoint::reach("after", "write_ssh_config");
    Ok(())
}

/// The name under which a project's host key is pinned: a rebuild or a new port never changes it.
fn alias(id: Uuid) -> String {
    format!("musher-{id}")
}

/// What opens a project's port door from another machine, by way of this host. The key is a copy that its reader has made, and the host
/// key is remembered under the project: the port may have been another's before.
pub(crate) fn from_elsewhere(id: Uuid, port: u16, ssh_host: &str) -> String {
    format!("ssh -i <key> -J {ssh_host} -p {port} -o HostKeyAlias={} {USER}@127.0.0.1", alias(id))
}

fn known_hosts(doors: &[Door]) -> String {
    doors
        .iter()
        .flat_map(|door| [alias(door.id), " ".to_owned(), door.host_key.trim().to_owned(), "\n".to_owned()])
        .collect()
}

fn config(home: &Home, musher: &Path, doors: &[Door]) -> io::Result<String> {
    let mut text =
        "# Written by musher, and written anew with every change. Include it as the first line of your own file:\n"
            .to_owned();
    let include = quoted(&home.ssh_config())?;
    writeln!(text, "#   Include {include}").map_err(io::Error::other)?;
    for door in doors {
        let common = format!(
            "    User {USER}\n    HostKeyAlias {alias}\n    UserKnownHostsFile {known}\n    StrictHostKeyChecking yes\n    \
             IdentityFile {key}\n    IdentitiesOnly yes\n    ForwardAgent no\n    ServerAliveInterval 30\n",
            alias = alias(door.id),
            known = quoted(&home.known_hosts())?,
            key = quoted(&home.project(door.id).client_key())?,
        );
        let name = &door.name;
        let proxy = format!("{} --home {} ssh-proxy {name}", shell(musher)?, shell(home.root())?);
        write!(text, "\nHost {name}.musher\n    HostName {name}.musher\n    ProxyCommand {proxy}\n{common}")
            .map_err(io::Error::other)?;
        if let Some(port) = door.port {
            write!(text, "\nHost {name}.musher-port\n    HostName 127.0.0.1\n    Port {port}\n{common}")
                .map_err(io::Error::other)?;
        }
    }
    Ok(text)
}

/// A path as an argument of `ssh_config`: in double quotes, `%` doubled. ssh cannot express a double quote or a line break,
/// and reads `${…}` as a variable.
fn quoted(path: &Path) -> io::Result<String> {
    let text = expressible(path)?;
    if text.contains("${") {
        return Err(inexpressible(path));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// A path as a word of `ProxyCommand`, which the person's shell reads after ssh has replaced `%`.
fn shell(path: &Path) -> io::Result<String> {
    Ok(shell_words::quote(expressible(path)?).replace('%', "%%"))
}

fn expressible(path: &Path) -> io::Result<&str> {
    path.to_str()
        .filter(|path| !path.contains(['"', '\\']) && !path.chars().any(char::is_control))
        .ok_or_else(|| inexpressible(path))
}

fn inexpressible(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("ssh cannot express the path {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_hostile_place_is_written_as_one_argument_or_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let canary = folder.path().join("canary");
        let (mut written, mut refused) = (0, 0);
        for hostile in crate::text::hostile() {
            // What can be a folder's name at all.
            let name = hostile.replace("CANARY", "canary").replace(['/', '\0'], "_");
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let Ok(home) = Home::open(&folder.path().join(format!("x{name}"))) else { continue };
            let door = Door { id: Uuid::nil(), name: "app".into(), port: None, host_key: "ssh-ed25519 AAAA\n".into() };
            let musher = home.root().join("musher");
            if let Err(error) = write(&home, &musher, &[door]) {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}: {error}");
                refused += 1;
                continue;
            }
            written += 1;
            let output = Command::new("ssh")
                .current_dir(folder.path())
                .args(["-G", "-F"])
                .arg(home.ssh_config())
                .arg("app.musher")
                .output()
                .expect("ssh is installed");
            let (said, read) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
            assert!(output.status.success(), "{name:?}: {said}");
            let known = format!("userknownhostsfile {}/known_hosts", home.root().display());
            assert!(read.lines().any(|line| line == known), "{name:?}:\n{read}");
            // The shell that runs it gets the program's path and its arguments, each as one word.
            let proxy = read.lines().find_map(|line| line.strip_prefix("proxycommand ")).expect("it has one");
            let words = shell_words::split(&proxy.replace("%%", "%")).expect("a shell can read it");
            let root = home.root().to_str().expect("it is text");
            assert_eq!(words, [&format!("{root}/musher"), "--home", root, "ssh-proxy", "app"], "{name:?}");
        }
        assert!(written > 20 && refused > 20, "{written} {refused}");
        assert!(!canary.exists());
    }

    #[test]
    fn from_elsewhere_a_host_key_is_remembered_under_its_project_as_it_is_here() {
        let line = from_elsewhere(Uuid::nil(), 22_001, "you@server").replace("<key>", "copy");
        let words = shell_words::split(&line).expect("a shell can read it");
        let output = Command::new(&words[0])
            .args(["-G", "-F", "/dev/null"])
            .args(&words[1..])
            .output()
            .expect("ssh is installed");
        let read = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let alias = format!("hostkeyalias {}", alias(Uuid::nil()));
        for line in [&*alias, "hostname 127.0.0.1", "port 22001", "user dev", "proxyjump you@server"] {
            assert!(read.lines().any(|found| found == line), "{line} is not in\n{read}");
        }
    }

    #[test]
    fn openssh_reads_what_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("a state 100%")).expect("it can be made");
        let door =
            Door { id: Uuid::nil(), name: "my-app".into(), port: Some(22_001), host_key: "ssh-ed25519 AAAA\n".into() };
        write(&home, Path::new("/opt/it's here/musher"), &[door]).expect("it can be written");
        let asked = |host: &str| {
            let output = Command::new("ssh")
                .arg("-G")
                .arg("-F")
                .arg(home.ssh_config())
                .arg(host)
                .output()
                .expect("ssh is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("it is text")
        };
        let root = home.root().display();
        let proxy = asked("my-app.musher");
        for line in [
            "user dev".to_owned(),
            "hostkeyalias musher-00000000-0000-0000-0000-000000000000".into(),
            "stricthostkeychecking true".into(),
            "identitiesonly yes".into(),
            "forwardagent no".into(),
            format!("userknownhostsfile {root}/known_hosts"),
        ] {
            assert!(proxy.lines().any(|found| found == line), "{line} is not in\n{proxy}");
        }
        assert!(proxy.contains("ssh-proxy my-app"), "{proxy}");
        let port = asked("my-app.musher-port");
        assert!(port.contains("hostname 127.0.0.1\n") && port.contains("port 22001\n"), "{port}");
        assert!(!port.contains("proxycommand"), "{port}");
        let known = fs::read_to_string(home.known_hosts()).expect("it is there");
        assert_eq!(known, "musher-00000000-0000-0000-0000-000000000000 ssh-ed25519 AAAA\n");

        find(&home, "my-app").expect("it has a door");
        for (name, words) in
            [("my-ap", "Did you mean `my-app`?"), ("zebra", "`new project zebra`"), ("My.App", "for example")]
        {
            let refusal = find(&home, name).expect_err("it has none");
            assert!(refusal.hint.as_ref().is_some_and(|hint| hint.contains(words)), "{refusal}");
        }
    }
}
