//! Git over SSH: OpenSSH's own sshd, in a container of a node's image, which has it; published on an address of loopback
//! of its own, so that it has port 22 and the address that scp knows.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command};

use super::Repositories;
use crate::{
    engine,
    home::Home,
    images, process, product,
    secrets::{self, Kind},
    wait,
};

/// Who logs in.
pub const USER: &str = "dev";
/// Where the repositories lie for sshd.
pub const FOLDER: &str = "/srv/git";

/// The server; its container is removed when it is dropped.
#[derive(Debug)]
pub struct SshServer {
    container: String,
    host: String,
    port: u16,
    repositories: Repositories,
    keys: TempDir,
}

impl SshServer {
    /// A server that lets nobody in but whoever has [`SshServer::key`].
    pub async fn start() -> Result<Self> {
        let image = images::node().await?;
        let owner = Home::new("", "")?.owner();
        let (repositories, keys) = (Repositories::new(owner)?, product::scratch()?);
        for name in ["host", "client"] {
            keygen(&keys.path().join(name)).await?;
        }
        secrets::register_key(Kind::GitKey, &fs::read_to_string(keys.path().join("client"))?)?;
        fs::copy(keys.path().join("client.pub"), keys.path().join("authorized_keys"))?;
        fs::write(
            keys.path().join("sshd_config"),
            format!(
                "Port 2222\nPidFile none\nHostKey /etc/own/host\nAuthorizedKeysFile /etc/own/authorized_keys\n\
                 StrictModes no\nAllowUsers {USER}\nAuthenticationMethods publickey\nUsePAM no\nPerSourcePenalties no\n\
                 AcceptEnv GIT_PROTOCOL\nLogLevel VERBOSE\n"
            ),
        )?;
        for entry in fs::read_dir(keys.path())? {
            let path = entry?.path();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            give(&path, owner)?;
        }
        give(keys.path(), owner)?;
        let unique = uuid::Uuid::new_v4();
        let [_, _, _, _, a, b, c, ..] = *unique.as_bytes();
        let host = format!("127.{}.{b}.{}", 1 + a % 254, 1 + c % 254);
        let port = crate::homeserver::free_port()?;
        let container = format!("musher-test-sshd-{unique}");
        let mount = |from: &Path, to: &str| format!("type=bind,source={},target={to}", from.display());
        let user = format!("{owner}:{owner}");
        engine::docker(&[
            "run",
            "--detach",
            "--name",
            &container,
            "--user",
            &user,
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--publish",
            &format!("{host}:22:2222"),
            "--publish",
            &format!("{host}:{port}:2222"),
            "--mount",
            &mount(repositories.folder(), FOLDER),
            "--mount",
            &mount(keys.path(), "/etc/own"),
            "--entrypoint",
            "/usr/sbin/sshd",
            &image,
            "-D",
            "-e",
            "-f",
            "/etc/own/sshd_config",
        ])
        .await?;
        let server = Self { container, host, port, repositories, keys };
        wait::until("sshd answers", wait::SHORT, || async {
            let Ok(stream) = TcpStream::connect((server.host.as_str(), 22)).await else { return Ok(None) };
            let mut greeting = [0; 4];
            let mut stream = stream;
            let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting).await;
            Ok((read.is_ok() && greeting == *b"SSH-").then_some(()))
        })
        .await?;
        Ok(server)
    }

    /// The address of a repository as URLs have it, with a port.
    pub fn url(&self, name: &str) -> String {
        format!("ssh://{USER}@{}:{}{FOLDER}/{name}", self.host, self.port)
    }

    /// The address of a repository as scp has it.
    pub fn scp_like(&self, name: &str) -> String {
        format!("{USER}@{}:{FOLDER}/{name}", self.host)
    }

    /// The name under which its key is kept, for addresses with a port and without.
    pub fn secrets(&self) -> [String; 2] {
        [format!("git:ssh://{}:{}", self.host, self.port), format!("git:ssh://{}", self.host)]
    }

    /// The private key that it lets in.
    pub fn key(&self) -> Result<String> {
        fs::read_to_string(self.keys.path().join("client")).context("the client's key")
    }

    /// The lines by which clients know it, with a port and without.
    pub fn known_hosts(&self) -> Result<String> {
        let key = fs::read_to_string(self.keys.path().join("host.pub")).context("the host's key")?;
        let mut words = key.split(' ');
        let (kind, key) = (words.next().context("a kind")?, words.next().context("a key")?);
        let (host, port) = (&self.host, self.port);
        Ok(format!("[{host}]:{port} {kind} {key}\n{host} {kind} {key}\n"))
    }

    /// Its host key's fingerprint, as people compare it.
    pub async fn fingerprint(&self) -> Result<String> {
        let mut keygen = Command::new("ssh-keygen");
        keygen.arg("-lf").arg(self.keys.path().join("host.pub"));
        let line = process::run(&mut keygen, b"", wait::SHORT).await?.success()?;
        Ok(line.split(' ').nth(1).context("a fingerprint")?.to_owned())
    }

    /// What it serves.
    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// What sshd has said so far.
    pub async fn log(&self) -> Result<String> {
        Ok(process::run(Command::new("docker").args(["logs", &self.container]), b"", wait::SHORT).await?.text())
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let removed =
            std::process::Command::new("docker").args(["rm", "--force", "--volumes", &self.container]).output();
        if !removed.is_ok_and(|output| output.status.success()) {
            eprintln!("the container {} may be left", self.container);
        }
    }
}

async fn keygen(path: &Path) -> Result<()> {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path);
    process::run(&mut keygen, b"", wait::SHORT).await?.success().map(drop)
}

fn give(path: &Path, owner: u32) -> Result<()> {
    if nix::unistd::geteuid().as_raw() == owner {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git_server::Content;

    #[tokio::test]
    async fn whoever_has_the_key_clones_by_both_addresses() -> Result<()> {
        let server = SshServer::start().await?;
        server.repositories().add("team/app.git", "main", &[Content::File("a", b"hello\n")]).await?;
        let folder = product::scratch()?;
        fs::write(folder.path().join("known"), server.known_hosts()?)?;
        fs::write(folder.path().join("key"), server.key()?)?;
        fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o600))?;
        let ssh = format!(
            "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile={0}/known -i {0}/key",
            folder.path().display()
        );
        for (number, url) in [server.url("team/app.git"), server.scp_like("team/app.git")].iter().enumerate() {
            let mut git = super::super::repositories::git(folder.path());
            git.env("GIT_SSH_COMMAND", &ssh).current_dir(folder.path()).args(["clone", "-q", url, &number.to_string()]);
            process::run(&mut git, b"", wait::SHORT).await?.success()?;
            assert_eq!(fs::read(folder.path().join(number.to_string()).join("a"))?, b"hello\n");
        }
        assert!(server.log().await?.contains("Accepted publickey for dev"));
        assert!(server.fingerprint().await?.starts_with("SHA256:"));
        Ok(())
    }
}
