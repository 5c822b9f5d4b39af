//! sshd without a capability, by OpenSSH's own client, through both doors: `sshd -i` by exec, and the loopback port.

use std::fs;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use musher_docker::{ContainerId, ContainerSpec, Engine, Network};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Command;

use crate::harness::{PATIENCE, World, until};

/// Joins each connection on a port of the host to an `sshd -i` of its own.
async fn relay(engine: Engine, id: ContainerId, listener: TcpListener) -> Result<()> {
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut session =
            engine.exec(&id, &["/usr/sbin/sshd", "-i", "-e", "-f", "/etc/musher/ssh/sshd_config"], &[]).await?;
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut session.stream).await });
    }
}

struct Client {
    options: Vec<String>,
    port: u16,
    folder: PathBuf,
}

impl Client {
    fn new(world: &World, port: u16) -> Result<Self> {
        let key = world.path("client");
        let host_key = fs::read_to_string(world.path("ssh/host_ed25519.pub"))?;
        let known_hosts = world.path("known_hosts");
        fs::write(&known_hosts, format!("test.musher {host_key}"))?;
        let options = [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "HostKeyAlias=test.musher".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            format!("UserKnownHostsFile={}", known_hosts.display()),
            format!("IdentityFile={}", key.display()),
            "User=dev".to_owned(),
            // As Debian's clients do.
            "SendEnv=LANG LC_*".to_owned(),
        ];
        Ok(Self { options: options.to_vec(), port, folder: world.folder.path().to_owned() })
    }

    fn command(&self, program: &str, port_flag: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["-F", "none", port_flag, &self.port.to_string()])
            .args(self.options.iter().flat_map(|option| ["-o", option]));
        command.env("LC_ALL", "de_DE.UTF-8").stdin(Stdio::null()).kill_on_drop(true).current_dir(&self.folder);
        command
    }

    /// What a command says: stdout, then stderr.
    async fn run(&self, mut command: Command, input: &str) -> Result<(String, String)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("OpenSSH's client is needed")?;
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes()).await?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        ensure!(output.status.success(), "{}: {out}{err}", output.status);
        Ok((out, err))
    }

    async fn ssh(&self, arguments: &[&str]) -> Result<(String, String)> {
        let mut command = self.command("ssh", "-p");
        command.arg("127.0.0.1").args(arguments);
        self.run(command, "").await
    }

    async fn check_all(&self, world: &World) -> Result<()> {
        // SSH-4: start-up prints nothing, exec starts in HOME, the image's PATH and the trust are there.
        assert_eq!(self.ssh(&["true"]).await?, (String::new(), String::new()));
        let image_path = "/home/dev/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let (out, err) = self.ssh(&["pwd; echo $PATH; echo $LANG$LC_ALL; echo $SSL_CERT_FILE; id -un"]).await?;
        let trust = "/etc/ssl/certs/ca-certificates.crt";
        assert_eq!((out, err), (format!("/home/dev\n{image_path}\nC.UTF-8\n{trust}\ndev\n"), String::new()));
        let (out, err) = self.ssh(&["bash", "-lc", "'echo $PATH'"]).await?;
        assert_eq!((out, err), (format!("{image_path}\n"), String::new()));
        assert_eq!(
            self.ssh(&["git -C /workspace init -q && git -C /workspace status --short"]).await?,
            (String::new(), String::new())
        );

        // A terminal: a login shell in the workspace, with the same PATH.
        let mut shell = self.command("ssh", "-p");
        shell.args(["-tt", "-q", "127.0.0.1"]);
        let (out, _) = self.run(shell, "stty -echo; PS1=; echo; echo at:$PWD:$(tty | cut -c1-8); echo path:$PATH; (cd; bash -ic 'echo again:$PWD'); exit\n").await?;
        let has = |line: &str| out.lines().any(|seen| seen.trim_end() == line);
        ensure!(has("at:/workspace:/dev/pts") && has(&format!("path:{image_path}")) && has("again:/home/dev"), "{out}");
        // A terminal asked for a command starts in HOME.
        let (out, _) = self.ssh(&["-tt", "-q", "pwd"]).await?;
        assert_eq!(out.trim_end(), "/home/dev");

        // scp and SFTP start in HOME.
        fs::write(self.folder.join("file"), "hello\n")?;
        let mut copy = self.command("scp", "-P");
        copy.args(["-q", "file", "127.0.0.1:copied"]);
        self.run(copy, "").await?;
        assert_eq!(fs::read_to_string(world.path("home/copied"))?, "hello\n");
        let mut sftp = self.command("sftp", "-P");
        sftp.args(["-q", "-b", "-", "127.0.0.1"]);
        let (out, _) = self.run(sftp, "pwd\nrename copied renamed\nget renamed fetched\n").await?;
        ensure!(out.contains("Remote working directory: /home/dev"), "{out}");
        assert_eq!(fs::read_to_string(self.folder.join("fetched"))?, "hello\n");
        fs::remove_file(self.folder.join("fetched"))?;

        self.check_forwarding().await?;
        self.check_one_connection_many_sessions().await
    }

    /// A port and a Unix socket of the container, reached through the connection.
    async fn check_forwarding(&self) -> Result<()> {
        let mut forward = self.command("ssh", "-p");
        forward.args(["-W", "127.0.0.1:2222", "127.0.0.1"]);
        let (greeting, _) = self.run(forward, "").await?;
        ensure!(greeting.starts_with("SSH-2.0-"), "{greeting}");

        let (local, remote) = (self.folder.join("forwarded"), "/tmp/forwarded");
        let serve = format!(
            "rm -f {remote}; perl -MIO::Socket::UNIX -e 'my $l=IO::Socket::UNIX->new(Local=>qq({remote}),Listen=>1) or die; my $c=$l->accept; print $c qq(through\\n)'"
        );
        let mut command = self.command("ssh", "-p");
        command.args([
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("{}:{remote}", local.display()),
            "127.0.0.1",
            &serve,
        ]);
        // It says so of each attempt before the socket is there.
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let said = tokio::sync::Mutex::new(String::new());
        until("the forwarded socket answers", async || {
            use tokio::io::AsyncReadExt as _;
            let Ok(mut stream) = UnixStream::connect(&local).await else { return Ok(false) };
            let mut said = said.lock().await;
            stream.read_to_string(&mut said).await?;
            Ok(!said.is_empty())
        })
        .await?;
        assert_eq!(said.into_inner(), "through\n");
        tokio::time::timeout(PATIENCE, child.wait()).await??;
        fs::remove_file(&local)?;
        Ok(())
    }

    /// `MaxSessions`: more at once than OpenSSH's default of ten.
    async fn check_one_connection_many_sessions(&self) -> Result<()> {
        let control = format!("ControlPath={}", self.folder.join("control").display());
        let mut master = self.command("ssh", "-p");
        master.args(["-o", &control, "-o", "ControlMaster=yes", "-N", "127.0.0.1"]);
        let mut master = master.spawn()?;
        until("the connection stands", async || Ok(self.folder.join("control").exists())).await?;
        // Each waits until all are there.
        let wait = "touch ~/session.$$; until [ $(ls ~ | grep -c session) -ge 20 ]; do sleep 0.05; done; echo there";
        let arguments = ["-o", &control, wait];
        for session in futures_util::future::join_all((0..20).map(|_| self.ssh(&arguments))).await {
            assert_eq!(session?.0, "there\n");
        }
        self.ssh(&["-o", &control, "rm ~/session.*"]).await?;
        master.kill().await?;
        fs::remove_file(self.folder.join("control"))
            .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        Ok(())
    }
}

#[tokio::test]
async fn sshd_serves_through_exec_without_a_network() -> Result<()> {
    let world = World::new().await?;
    world.write_ssh_folder()?;
    let id = world.running(&world.spec("exec")).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = Client::new(&world, listener.local_addr()?.port())?;
    let relay = tokio::spawn(relay(world.engine.clone(), id.clone(), listener));
    client.check_all(&world).await?;
    relay.abort();
    world.end(&[&id]).await
}

#[tokio::test]
async fn sshd_serves_through_the_loopback_port() -> Result<()> {
    let world = World::new().await?;
    world.write_ssh_folder()?;
    let network = world.engine.ensure_network(&world.gateway).await?;
    let port = StdListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let id = world
        .running(&ContainerSpec { port: Some(port), network: Network::Bridge(network), ..world.spec("port") })
        .await?;
    let client = Client::new(&world, port)?;
    until("sshd answers", async || Ok(client.ssh(&["true"]).await.is_ok())).await?;
    client.check_all(&world).await?;

    // A key that is not listed, and a password, are refused.
    let mut options = client.options.clone();
    options.retain(|option| !option.starts_with("IdentityFile"));
    let stranger = Client { options, port, folder: client.folder.clone() };
    let refused = stranger.ssh(&["true"]).await.err().context("a stranger came in")?;
    ensure!(refused.to_string().contains("Permission denied (publickey)"), "{refused}");
    world.end(&[&id]).await
}
