//! OpenSSH's clients through both doors (SSH-1 to SSH-4): commands, copies, terminals, forwarding.

use std::{fs, os::unix::fs::MetadataExt as _, process::Stdio};

use anyhow::{Context as _, Result};
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    homeserver::free_port,
    ssh::{self, Door},
    wait,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn commands_copies_and_terminals_work_through_both_doors() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    let made = gateway.make("editor", "--stack rust").await?;
    assert!(made.contains("ssh") && made.contains("editor.musher"), "the reply says how to open it:\n{made}");
    for door in Door::BOTH {
        commands(&home, door).await.with_context(|| format!("{door:?}: commands"))?;
        copies(&home, door).await.with_context(|| format!("{door:?}: copies"))?;
        terminal(&home, door).await.with_context(|| format!("{door:?}: terminal"))?;
        forwarding(&home, door).await.with_context(|| format!("{door:?}: forwarding"))?;
        many_sessions(&home, door).await.with_context(|| format!("{door:?}: many sessions"))?;
    }
    let through_musher = home.run(["ssh", "editor", "echo", "yes"], "").await?.success()?;
    assert_eq!(through_musher, "yes\n", "musher ssh runs a command");
    gateway.finish().await.map(drop)
}

async fn commands(home: &Home, door: Door) -> Result<()> {
    // Strictly equal: start-up files print nothing.
    let place = ssh::command(home, door, "editor", "pwd; echo $HOME").await?;
    let (at, house) = place.split_once('\n').context("two lines")?;
    assert_eq!(at, house.trim_end(), "a command starts in HOME");
    let failing =
        ssh::run(home, "ssh", [&door.host("editor"), "echo out; echo err >&2; exit 7"], "", wait::LONG).await?;
    assert_eq!((failing.code, failing.stdout.as_str(), failing.stderr.as_str()), (Some(7), "out\n", "err\n"));
    for shell in
        ["cargo --version", "bash -lc 'cargo --version'", "bash -c 'cargo --version'", "sh -lc 'cargo --version'"]
    {
        let version = ssh::command(home, door, "editor", shell).await?;
        assert!(version.starts_with("cargo ") && version.lines().count() == 1, "`{shell}`: {version}");
    }
    assert_eq!(ssh::command(home, door, "editor", "locale charmap").await?, "UTF-8\n");
    // safe.directory is set: git answers whoever owns the folder.
    ssh::command(home, door, "editor", "git -C /workspace init -q && git -C /workspace status --short").await.map(drop)
}

async fn copies(home: &Home, door: Door) -> Result<()> {
    let host = door.host("editor");
    let (near, back) = (home.path().join("near.bin"), home.path().join("back.bin"));
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&near, &content)?;
    let remote = format!("{host}:/workspace/far.bin");
    for flags in [&["-q"][..], &["-q", "-O"]] {
        let args =
            |from: &str, to: &str| [flags, &[from, to]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
        ssh::run(home, "scp", args(&near.to_string_lossy(), &remote), "", wait::LONG).await?.success()?;
        ssh::run(home, "scp", args(&remote, &back.to_string_lossy()), "", wait::LONG).await?.success()?;
        assert!(fs::read(&back)? == content, "scp {flags:?} brings back what it took");
    }
    let far = home.project("editor").join("far.bin");
    assert_eq!(fs::metadata(&far)?.uid(), home.owner());

    let batch = format!(
        "pwd\nput {} /workspace/by-sftp.bin\nget /workspace/by-sftp.bin {}\nls -1 /workspace\n",
        near.display(),
        back.display()
    );
    let shown = ssh::run(home, "sftp", ["-b", "-", &host], &batch, wait::LONG).await?.success()?;
    assert!(shown.contains("by-sftp.bin") && shown.contains("Remote working directory: /home/"), "{shown}");
    assert!(fs::read(home.project("editor").join("by-sftp.bin"))? == content && fs::read(&back)? == content);
    Ok(())
}

async fn terminal(home: &Home, door: Door) -> Result<()> {
    let script = "stty -echo; PS1=; echo at=$PWD; tty; cargo --version; echo shell=$0 term=$TERM; exit 4\n";
    let shown = ssh::terminal(home, door, "editor", script).await?;
    assert_eq!(shown.code, Some(4), "{shown}");
    for expected in ["at=/workspace\n", "/dev/pts/", "\ncargo ", "term=xterm"] {
        assert!(shown.stdout.contains(expected), "`{expected}` is not in\n{shown}");
    }
    Ok(())
}

async fn forwarding(home: &Home, door: Door) -> Result<()> {
    let port = free_port()?;
    // sshd's own port inside is the server that is surely there: it greets by itself.
    let mut forward = ssh::client(home, "ssh")
        .args([
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("127.0.0.1:{port}:127.0.0.1:2222"),
            &door.host("editor"),
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stream = wait::until("the port is forwarded", wait::SHORT, || async {
        Ok(TcpStream::connect(("127.0.0.1", port)).await.ok())
    })
    .await?;
    stream.write_all(b"SSH-2.0-knock\r\n").await?;
    let mut greeting = [0; 8];
    tokio::time::timeout(wait::SHORT, stream.read_exact(&mut greeting)).await.context("a greeting")??;
    assert_eq!(&greeting, b"SSH-2.0-");
    forward.kill().await.context("the client could not be ended")?;

    // The other way, and by a Unix socket.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let here = listener.local_addr()?;
    let serve = async {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nheron").await?;
        stream.shutdown().await
    };
    let socket = format!("/tmp/{}.sock", door.host("editor"));
    let args = [
        "-R".into(),
        format!("{socket}:{here}"),
        door.host("editor"),
        format!("curl -s --unix-socket {socket} http://heron/"),
    ];
    let fetch = ssh::run(home, "ssh", args, "", wait::LONG);
    let (fetched, served) = tokio::join!(fetch, tokio::time::timeout(wait::LONG, serve));
    assert_eq!(fetched?.success()?, "heron");
    served.context("nobody came by the forwarded socket")?.context("the visitor left")
}

/// Editors open many sessions on one connection; sshd's own default is ten.
async fn many_sessions(home: &Home, door: Door) -> Result<()> {
    let (host, control) = (door.host("editor"), home.path().join(format!("{door:?}.control")));
    let control = format!("ControlPath={}", control.display());
    let mut master = ssh::client(home, "ssh")
        .args(["-M", "-N", "-o", &control, &host])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    wait::until("the connection is shared", wait::SHORT, || async {
        let check = ssh::run(home, "ssh", ["-O", "check", "-o", &control, &host], "", wait::SHORT).await?;
        Ok((check.code == Some(0)).then_some(()))
    })
    .await?;
    // Each waits until all are there, so that they are there at once.
    let line = "mkdir -p /tmp/here && touch /tmp/here/$$ && until [ $(ls /tmp/here | wc -l) -ge 20 ]; do sleep 0.1; done; echo here";
    let session = || ssh::run(home, "ssh", ["-o", &control, &host, line], "", wait::LONG);
    for output in futures_util::future::join_all((0..20).map(|_| session())).await {
        assert_eq!(output?.success()?, "here\n");
    }
    ssh::command(home, door, "editor", "rm -r /tmp/here").await?;
    master.kill().await.context("the client could not be ended")
}

#[tokio::test]
async fn what_is_made_inside_belongs_to_the_hosts_user() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("owned", "--stack rust").await?;
    let version = ssh::command(&home, Door::Proxy, "owned", "cargo --version && touch /workspace/x").await?;
    assert!(version.starts_with("cargo "), "{version}");
    let made = fs::metadata(home.project("owned").join("x"))?;
    assert_eq!(made.uid(), home.owner());
    assert_eq!(fs::metadata(home.project("owned"))?.uid(), home.owner(), "the folder as well");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn the_proxy_door_starts_a_container_that_stands_still() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("asleep", "").await?;
    let name = home.container("asleep").await?;
    engine::docker(&["stop", "--time", "2", &name]).await?;
    assert_eq!(ssh::command(&home, Door::Proxy, "asleep", "echo up").await?, "up\n");
    assert_eq!(engine::inspect(&name).await?["State"]["Running"], true);
    assert_eq!(ssh::command(&home, Door::Port, "asleep", "echo up").await?, "up\n", "the other door opens as well");
    let answer = gateway.ask("hello again").await?;
    assert!(answer.contains("hello again"), "the agent answers as before:\n{answer}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn strangers_are_not_let_in_and_hosts_are_known() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("closed", "").await?;
    for door in Door::BOTH {
        let host = door.host("closed");
        let shown = ssh::run(&home, "ssh", ["-G", &host], "", wait::SHORT).await?.success()?;
        for setting in ["stricthostkeychecking true", "identitiesonly yes", "forwardagent no"] {
            assert!(shown.lines().any(|line| line == setting), "{host}: `{setting}` is not in\n{shown}");
        }
        let by_password = [
            "-o",
            "PubkeyAuthentication=no",
            "-o",
            "PreferredAuthentications=password,keyboard-interactive",
            &host,
            "true",
        ];
        let refused = ssh::run(&home, "ssh", by_password, "", wait::SHORT).await?;
        assert!(
            refused.code == Some(255) && refused.stderr.contains("Permission denied (publickey)"),
            "keys only: {refused}"
        );
    }
    // Another host key behind the same name is noticed, not asked about.
    let known = home.state().join("known_hosts");
    let pinned = fs::read_to_string(&known)?;
    let (alias, _) = pinned.split_once(' ').context("a line begins with the host's alias")?;
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIfJ5pJ3gkYFqWz7B4sQbTq0xYcLwV8hZ1mRkU2nHdPa";
    fs::write(&known, format!("{alias} {other}\n"))?;
    let refused = ssh::run(&home, "ssh", [&Door::Port.host("closed"), "true"], "", wait::SHORT).await?;
    assert!(refused.code == Some(255) && refused.stderr.contains("Host key verification failed"), "{refused}");
    let key =
        fs::read_dir(home.state().join("projects"))?.next().context("one project")??.path().join("ssh/id_ed25519");
    assert_eq!(fs::metadata(&key)?.mode() & 0o777, 0o600, "the key is for its owner alone");
    gateway.finish().await.map(drop)
}
