//! A project's part of the state directory: the keys of its doors, what its sshd and its git read, its home, its sled's
//! folder (SSH-2, SEC-2).

use std::{
    fs::{self, DirBuilder, set_permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::Path,
};

use musher_docker::{SSHD_CONFIG, USER};
use nix::unistd::geteuid;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey, rand_core::OsRng};

use super::project::Owner;
use crate::{
    failpoint,
    git::Remote,
    home::{ProjectHome, make_private, write_private},
};

/// Makes whatever of it is missing. What is there is kept, so that it can be repeated.
pub fn make(home: &ProjectHome, owner: Owner, remote: Option<&Remote>) -> io::Result<()> {
    failpoint::reach("before", "make_keys");
    let made = make_unwatched(home, owner, remote);
    failpoint::reach("after", "make_keys");
    made
}

fn make_unwatched(home: &ProjectHome, owner: Owner, remote: Option<&Remote>) -> io::Result<()> {
    make_private(home.root())?;
    make_private(&home.root().join("ssh"))?;
    let door = home.door();
    // The container's user looks into the door and writes to neither it nor what is in it: it is mounted read-only.
    make_folder(&door, 0o755, None)?;
    let client = key(&home.client_key(), None)?;
    key(&door.join("host_ed25519"), Some(owner))?;
    write_for(&door.join("authorized_keys"), line(&client)?.as_bytes(), owner)?;
    write_for(&door.join("sshd_config"), SSHD_CONFIG.as_bytes(), owner)?;
    write_git_settings(home, owner, remote)?;
    make_folder(&home.home(), 0o755, None)?;
    make_folder(&home.home().join(USER), 0o700, Some(owner))?;
    make_folder(&home.sled(), 0o700, Some(owner))
}

/// Brings the settings of git in the project's container up to date: its git reads them from the door.
pub fn write_git_settings(home: &ProjectHome, owner: Owner, remote: Option<&Remote>) -> io::Result<()> {
    let (path, wanted) = (home.door().join("gitconfig"), git_settings(remote));
    match fs::read(&path) {
        // A kill may have come before it was given.
        Ok(there) if there == wanted.as_bytes() => give(&path, owner),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => write_for(&path, wanted.as_bytes(), owner),
    }
}

/// What leads git in a container to the sled for the project's own remote, and for nothing else.
fn git_settings(remote: Option<&Remote>) -> String {
    match remote {
        Some(Remote::Web(web)) => format!(
            "[url {}]\n\tinsteadOf = {}\n",
            quoted(&format!("http://127.0.0.1:{}/web/{}{}", link::git::PORT, web.authority(), web.path)),
            quoted(&web.to_string())
        ),
        Some(Remote::Ssh(_)) => "[core]\n\tsshCommand = sled git-ssh\n[ssh]\n\tvariant = ssh\n".to_owned(),
        Some(Remote::Local(_)) | None => String::new(),
    }
}

/// A text as git's settings have it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
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
    use std::os::unix::fs::MetadataExt;

    use uuid::Uuid;

    use super::*;
    use crate::home::Home;

    #[test]
    fn keys_are_made_once_and_the_private_ones_stay_private() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made").project(Uuid::now_v7());
        fs::create_dir_all(home.root()).expect("it can be made");
        let owner = Owner { uid: 1000, gid: 1000 };
        make(&home, owner, None).expect("it can be made");
        let first = host_key(&home).expect("it is there");
        make(&home, owner, None).expect("it can be repeated");
        assert_eq!(host_key(&home).expect("it is there"), first);
        assert!(first.starts_with("ssh-ed25519 "), "{first}");
        for private in [home.client_key(), home.door().join("host_ed25519")] {
            assert_eq!(private.metadata().expect("it is there").permissions().mode() & 0o777, 0o600, "{private:?}");
        }
        assert!(!home.door().join("id_ed25519").exists(), "the client's key is never mounted");
    }

    #[test]
    fn settings_of_git_that_nobody_was_given_yet_are_given() {
        // Who is not root gives nothing away.
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made").project(Uuid::now_v7());
        fs::create_dir_all(home.root()).expect("it can be made");
        let owner = Owner { uid: 1000, gid: 1000 };
        make(&home, owner, None).expect("it can be made");
        let path = home.door().join("gitconfig");
        chown(&path, Some(0), Some(0)).expect("root may");
        write_git_settings(&home, owner, None).expect("they can be written");
        let meta = path.metadata().expect("it is there");
        assert_eq!((meta.uid(), meta.gid()), (1000, 1000));
    }

    #[test]
    fn git_is_led_to_the_sled_for_the_projects_own_remote_alone() {
        let settings = |address: &str| {
            let remote = Remote::parse(address, Path::new("/home/ann")).expect("it is an address");
            let text = git_settings(Some(&remote));
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            fs::write(folder.path().join("gitconfig"), &text).expect("it can be written");
            let read = git2::Config::open(&folder.path().join("gitconfig")).expect("git reads it");
            let mut found = Vec::new();
            let mut entries = read.entries(None).expect("it has entries");
            while let Some(entry) = entries.next() {
                let entry = entry.expect("it is readable");
                found.push(format!("{} = {}", entry.name().expect("a name"), entry.value().expect("a value")));
            }
            found
        };
        let web = |at: &str, of: &str| vec![format!("url.http://127.0.0.1:2224/web/{at}.insteadof = {of}")];
        assert_eq!(
            settings("https://example.org:8443/team/app.git"),
            web("example.org:8443/team/app.git", "https://example.org:8443/team/app.git")
        );
        assert_eq!(settings("https://[2001:db8::1]/a;b"), web("[2001:db8::1]/a;b", "https://[2001:db8::1]/a;b"));
        let ssh = ["core.sshcommand = sled git-ssh", "ssh.variant = ssh"];
        assert_eq!(settings("git@example.org:team/app.git"), ssh);
        assert_eq!(settings("/srv/app"), Vec::<String>::new());
        assert_eq!(quoted("a\\\"b"), "\"a\\\\\\\"b\"");
    }
}
