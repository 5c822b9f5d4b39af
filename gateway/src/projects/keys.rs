//! A project's part of the state directory: the keys of its doors, what its sshd reads, its home, its sled's folder (SSH-2).

use std::{
    fs::{DirBuilder, set_permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::Path,
};

use musher_docker::{SSHD_CONFIG, USER};
use nix::unistd::geteuid;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

use super::project::Owner;
use crate::home::{ProjectHome, make_private, write_private};

/// Makes whatever of it is missing. What is there is kept, so that it can be repeated.
pub fn make(home: &ProjectHome, owner: Owner) -> io::Result<()> {
    make_private(home.root())?;
    make_private(&home.root().join("ssh"))?;
    let door = home.door();
    // The container's user looks into the door and writes to neither it nor what is in it: it is mounted read-only.
    make_folder(&door, 0o755, None)?;
    let client = key(&home.client_key(), None)?;
    key(&door.join("host_ed25519"), Some(owner))?;
    write_for(&door.join("authorized_keys"), line(&client)?.as_bytes(), owner)?;
    write_for(&door.join("sshd_config"), SSHD_CONFIG.as_bytes(), owner)?;
    make_folder(&home.home(), 0o755, None)?;
    make_folder(&home.home().join(USER), 0o700, Some(owner))?;
    make_folder(&home.sled(), 0o700, Some(owner))
}

/// The public half of the project's host key, as `known_hosts` writes it.
pub fn host_key(home: &ProjectHome) -> io::Result<String> {
    line(PrivateKey::read_openssh_file(&home.door().join("host_ed25519")).map_err(io::Error::other)?.public_key())
}

fn key(path: &Path, owner: Option<Owner>) -> io::Result<PublicKey> {
    if path.try_exists()? {
        return PrivateKey::read_openssh_file(path).map(|key| key.public_key().clone()).map_err(io::Error::other);
    }
    let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(io::Error::other)?;
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    match owner {
        Some(owner) => write_for(path, text.as_bytes(), owner)?,
        None => write_private(path, text.as_bytes())?,
    }
    Ok(key.public_key().clone())
}

fn line(key: &PublicKey) -> io::Result<String> {
    key.to_openssh().map(|line| line + "\n").map_err(io::Error::other)
}

fn write_for(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    write_private(path, content)?;
    give(path, owner)
}

fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // The process's umask has had its say in `create`.
            set_permissions(path, PermissionsExt::from_mode(mode))?;
            owner.map_or(Ok(()), |owner| give(path, owner))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn give(path: &Path, owner: Owner) -> io::Result<()> {
    if geteuid().is_root() { chown(path, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::home::Home;

    #[test]
    fn keys_are_made_once_and_the_private_ones_stay_private() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made").project(Uuid::now_v7());
        std::fs::create_dir_all(home.root()).expect("it can be made");
        let owner = Owner { uid: 1000, gid: 1000 };
        make(&home, owner).expect("it can be made");
        let first = host_key(&home).expect("it is there");
        make(&home, owner).expect("it can be repeated");
        assert_eq!(host_key(&home).expect("it is there"), first);
        assert!(first.starts_with("ssh-ed25519 "), "{first}");
        for private in [home.client_key(), home.door().join("host_ed25519")] {
            assert_eq!(private.metadata().expect("it is there").permissions().mode() & 0o777, 0o600, "{private:?}");
        }
        assert!(!home.door().join("id_ed25519").exists(), "the client's key is never mounted");
    }
}
