//! The state directory: what lies where, with which rights, and which process owns it (DUR-9).
//!
//! Paths only; what the files mean is the matter of those who write them.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use crate::refusal::Refusal;

/// The longest path that a Unix socket can have (`sun_path` less its closing zero).
const SOCKET_PATH_MAX: usize = 107;

/// The state directory.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

/// The parts of one project in the state directory.
#[derive(Debug, Clone)]
pub struct ProjectHome {
    root: PathBuf,
}

/// The right to the state directory, held by the gateway that runs on it; given back when dropped.
#[derive(Debug)]
pub struct Owned {
    _lock: Flock<File>,
}

impl Home {
    /// Opens the state directory at `path`, and makes it (0700) where it is missing.
    ///
    /// Refused when it cannot be made, belongs to somebody else, or can be entered by others.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        // Otherwise it would lie wherever the gateway happens to stand.
        if path.is_absolute() {
            make_private(path).map_err(|error| {
                Refusal::internal(format!("the state directory {} cannot be made", path.display()), error)
                    .hint("Choose another one with --home or MUSHER_HOME.")
            })?;
        }
        Self::find(path)
    }

    /// Opens the state directory at `path` for whoever only looks: where it is missing, that is said, and nothing made.
    ///
    /// Refused as by [`Home::open`].
    pub fn find(path: &Path) -> Result<Self, Refusal> {
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Refusal::usage(format!("the state directory {shown} is not an absolute path")));
        }
        let root = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::usage(format!("there is no state directory {shown}"))
                .hint("`musher up` makes one; --home or MUSHER_HOME names another."),
            _ => Refusal::internal(format!("the state directory {shown} cannot be opened"), error),
        })?;
        let meta = root
            .metadata()
            .map_err(|error| Refusal::internal(format!("the state directory {shown} cannot be read"), error))?;
        let own = nix::unistd::geteuid().as_raw();
        if meta.uid() != own {
            return Err(Refusal::config(format!(
                "the state directory {shown} belongs to uid {}, and musher runs as uid {own}",
                meta.uid()
            ))
            .hint("Run musher as its owner, or choose another directory with --home."));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(Refusal::config(format!("the state directory {shown} is open to other users"))
                .hint(format!("Close it: chmod 700 {shown}")));
        }
        let home = Self { root };
        let socket = home.control_socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Refusal::config(format!(
                "the state directory's path is too long for a socket in it: {}",
                socket.display()
            ))
            .hint(format!("Choose one with --home so that control.sock in it has at most {SOCKET_PATH_MAX} bytes.")));
        }
        Ok(home)
    }

    /// Takes the directory for this process, and makes the folders in it.
    ///
    /// Refused by name and pid while another gateway owns it.
    pub fn own(&self) -> Result<Owned, Refusal> {
        let failed = |error: io::Error| {
            Refusal::internal(format!("the state directory {} cannot be prepared", self.root.display()), error)
        };
        for folder in [self.secrets(), self.projects(), self.logs(), self.matrix(), self.stacks()] {
            make_private(&folder).map_err(failed)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.root.join("owner"))
            .map_err(failed)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                return Err(Refusal::unavailable(format!(
                    "another musher (pid {}) owns the state directory {}",
                    pid.trim(),
                    self.root.display()
                ))
                .hint("Talk to that one, stop it first, or use another directory with --home."));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Owned { _lock: lock })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `bot.toml`.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("bot.toml")
    }

    /// The folder of secrets, a file each.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal.db")
    }

    /// The socket that the command line uses to speak to the running gateway.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The generated client configuration of ssh.
    pub fn ssh_config(&self) -> PathBuf {
        self.root.join("ssh_config")
    }

    /// Our own known hosts.
    pub fn known_hosts(&self) -> PathBuf {
        self.root.join("known_hosts")
    }

    /// What the Matrix surface keeps.
    pub fn matrix(&self) -> PathBuf {
        self.root.join("matrix")
    }

    /// Log files.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The person's own stacks.
    pub fn stacks(&self) -> PathBuf {
        self.root.join("stacks")
    }

    /// History of the console prompt.
    pub fn console_history(&self) -> PathBuf {
        self.root.join("console_history")
    }

    fn projects(&self) -> PathBuf {
        self.root.join("projects")
    }

    /// The parts of a project.
    pub fn project(&self, id: Uuid) -> ProjectHome {
        ProjectHome { root: self.projects().join(id.to_string()) }
    }
}

impl ProjectHome {
    /// The project's folder in the state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The private key that opens the project's doors; never mounted.
    pub fn client_key(&self) -> PathBuf {
        self.root.join("ssh/id_ed25519")
    }

    /// What the container's sshd reads, mounted read-only.
    pub fn door(&self) -> PathBuf {
        self.root.join("ssh/door")
    }

    /// What is mounted as `/home`.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Where the sled keeps its journal.
    pub fn sled(&self) -> PathBuf {
        self.root.join("sled")
    }
}

/// Makes a folder, its parents as usual, itself for its owner alone. An existing one is left as it is.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file for its owner alone, whole or not at all: to a temporary file beside it, synced, then renamed.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".new-{}", Uuid::now_v7().simple()));
    let temporary = PathBuf::from(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; a temporary file that cannot be removed changes nothing about it.
        drop(std::fs::remove_file(&temporary));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("state");
        (folder, path)
    }

    #[test]
    fn a_second_owner_is_refused_by_pid() {
        let (_folder, path) = temporary();
        let home = Home::open(&path).expect("it can be made");
        let owned = home.own().expect("nobody owns it");
        let refusal = home.own().expect_err("it is owned");
        assert!(refusal.what.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(owned);
        home.own().expect("it was given back");
    }

    #[test]
    fn who_only_looks_makes_nothing() {
        let (folder, path) = temporary();
        let refusal = Home::find(&path.join("below")).expect_err("it is not there");
        assert!(refusal.what.starts_with("there is no state directory"), "{refusal}");
        assert_eq!(folder.path().read_dir().expect("it is there").count(), 0);
        let made = Home::open(&path).expect("it can be made");
        assert_eq!(Home::find(&path).expect("it is there now").root(), made.root());
        for relative in [Home::open(Path::new("state")), Home::find(Path::new("state"))] {
            assert!(relative.expect_err("it lies nowhere").what.ends_with("is not an absolute path"));
        }
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let (_folder, path) = temporary();
        Home::open(&path).expect("it can be made");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        assert!(Home::open(&path).expect_err("others may look").hint.is_some_and(|hint| hint.starts_with("Close it")));
    }

    #[test]
    fn a_private_file_is_replaced_whole() {
        let (_folder, path) = temporary();
        make_private(&path).expect("it can be made");
        let file = path.join("f");
        for content in ["one", "two"] {
            write_private(&file, content.as_bytes()).expect("it can be written");
            assert_eq!(std::fs::read_to_string(&file).expect("it is there"), content);
        }
        assert_eq!(file.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(path.read_dir().expect("it is there").count(), 1);
    }
}
