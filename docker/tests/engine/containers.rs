//! Containers: hardened as the engine and the kernel see it, bounded, apart from each other, and gone when removed.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use musher_docker::{
    ContainerId, ContainerSpec, ContainerState, EngineError, Mount, MountKind, Network, PublishedPort,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{PATIENCE, World, user};

/// A port of the host's loopback that nobody holds at this moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[tokio::test]
async fn a_container_is_hardened_from_create_to_remove() -> Result<()> {
    let world = World::new().await?;
    let (uid, gid) = user();
    let network = world.engine.ensure_network(&world.gateway).await?;
    let port = free_port()?;
    let env = vec![("MUSHER_TEST".to_owned(), "a b".to_owned())];
    let spec = ContainerSpec { port: Some(port), network: Network::Bridge(network.clone()), env, ..world.spec("hard") };
    let id = world.engine.create(&spec).await?;
    assert_eq!(world.engine.inspect(&id).await?.state, ContainerState::Created);
    world.engine.start(&id).await?;
    world.engine.start(&id).await?;

    let nofile = i64::from(world.limits.nofile);
    let seen = world.engine.inspect(&id).await?;
    assert_eq!((seen.state, seen.user.clone()), (ContainerState::Running, format!("{uid}:{gid}")));
    assert_eq!((seen.privileged, seen.cap_add.len(), seen.cap_drop.clone()), (false, 0, vec!["ALL".to_owned()]));
    assert_eq!(seen.security_options, ["no-new-privileges:true"]);
    assert_eq!((seen.shared_namespaces.len(), seen.devices, seen.restarts), (0, 0, false));
    assert_eq!(
        seen.published,
        [PublishedPort { container_port: 2222, host_ip: "127.0.0.1".to_owned(), host_port: port }]
    );
    assert_eq!(seen.network, network.as_str());
    assert_eq!((seen.limits.memory_bytes, seen.limits.memory_and_swap_bytes), (256 << 20, 256 << 20));
    assert_eq!((seen.limits.pids, seen.limits.nofile, seen.limits.shm_bytes), (200, Some((nofile, nofile)), 1 << 30));
    assert_eq!((seen.limits.log_driver.as_str(), seen.limits.log_options["max-file"].as_str()), ("json-file", "2"));
    assert_eq!(seen.labels["dev.musher.project"], "hard");
    assert_eq!(seen.command, ["/usr/bin/tini", "--", "/usr/local/bin/sled", "serve"]);
    let mut mounts: Vec<_> =
        seen.mounts.iter().map(|m| (m.target.display().to_string(), m.kind, m.read_only)).collect();
    mounts.sort_by(|a, b| a.0.cmp(&b.0));
    let bind = |target: &str, read_only| (target.to_owned(), MountKind::Bind, read_only);
    assert_eq!(mounts, [bind("/etc/musher/ssh", true), bind("/home/dev", false), bind("/workspace", false)]);

    // The kernel's own word, of the main process and of an exec.
    let status = world.shell(&id, "grep -hE '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/1/status /proc/self/status").await?;
    for line in status.lines() {
        let (name, value) = line.split_once(':').unwrap_or_default();
        let expected = match name {
            "NoNewPrivs" => "1",
            "Seccomp" => "2",
            "Uid" => &format!("{uid}\t{uid}\t{uid}\t{uid}"),
            _ => "0000000000000000",
        };
        assert_eq!(value.trim(), expected, "{name}");
    }
    assert_eq!(status.lines().count(), 16);
    assert_eq!(
        world.shell(&id, "echo $MUSHER_TEST; ulimit -n; pwd; stat -c %a:%u /run/musher").await?,
        format!("a b\n{nofile}\n/workspace\n700:{uid}\n")
    );
    world.shell(&id, "printf '#!/bin/sh\\n' >/tmp/x && chmod +x /tmp/x && /tmp/x").await?;
    world.shell(&id, "! touch /etc/musher/ssh/x 2>/dev/null && ! sudo true 2>/dev/null").await?;

    // PROJ-14.
    world.shell(&id, "touch /workspace/made").await?;
    assert_eq!(fs::metadata(world.path("workspace/made"))?.uid(), uid);

    let listed = world.engine.list(&world.gateway).await?;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.clone(), listed[0].project.as_deref(), listed[0].port),
        (spec.name, Some("hard"), Some(port))
    );
    world.engine.stop(&id, Duration::from_secs(5)).await?;
    world.engine.stop(&id, Duration::from_secs(5)).await?;
    let stopped = world.engine.inspect(&id).await?;
    assert_eq!((stopped.state, stopped.exit_code), (ContainerState::Exited, 0));
    let refused = world.engine.exec(&id, &["true"], &[]).await;
    ensure!(matches!(&refused, Err(EngineError::ContainerStopped { .. })), "{refused:?}");
    world.engine.remove(&id).await?;
    world.engine.remove(&id).await?;
    world.end(&[]).await
}

#[tokio::test]
async fn an_exec_is_a_byte_stream_with_two_ends() -> Result<()> {
    let world = World::new().await?;
    let id = world.running(&world.spec("exec")).await?;

    // Half-close: the command sees the end of its input, and what it says after still comes.
    let mut session = world
        .engine
        .exec(&id, &["sh", "-c", "sha256sum; echo \"$A\"; echo fault >&2; exit 7"], &[("A", "b c")])
        .await?;
    let (mut reading, mut writing) = tokio::io::split(session.stream);
    let sent = vec![0xa5; 3 << 20];
    let exchange = async {
        let mut said = String::new();
        let send = async {
            writing.write_all(&sent).await?;
            writing.shutdown().await
        };
        tokio::try_join!(send, reading.read_to_string(&mut said))?;
        anyhow::Ok(said)
    };
    let said = tokio::time::timeout(PATIENCE, exchange).await??;
    let expected = std::process::Command::new("sh")
        .args(["-c", "head -c 3145728 /dev/zero | tr '\\000' '\\245' | sha256sum"])
        .output()?
        .stdout;
    assert_eq!(said, format!("{}b c\n", String::from_utf8(expected)?));
    assert_eq!((session.process.exit_code().await?, session.process.stderr_tail().as_str()), (Some(7), "fault\n"));

    // Bytes come back unchanged, whatever they are and however many.
    session = world.engine.exec(&id, &["cat"], &[]).await?;
    let (mut reading, mut writing) = tokio::io::split(session.stream);
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let mut echoed = Vec::new();
    let send = async {
        writing.write_all(&bytes).await?;
        writing.shutdown().await
    };
    tokio::time::timeout(PATIENCE, async { tokio::try_join!(send, reading.read_to_end(&mut echoed)) }).await??;
    assert!(echoed == bytes, "{} bytes came back", echoed.len());
    assert_eq!(session.process.exit_code().await?, Some(0));

    // A session that is dropped ends the command's input.
    let mut session = world.engine.exec(&id, &["sh", "-c", "echo ready; cat; touch /workspace/ended"], &[]).await?;
    let mut ready = [0; 6];
    session.stream.read_exact(&mut ready).await?;
    drop(session);
    crate::harness::until("the command saw the end", async || Ok(world.path("workspace/ended").exists())).await?;
    world.end(&[&id]).await
}

#[tokio::test]
async fn a_taken_port_is_told() -> Result<()> {
    let world = World::new().await?;
    let network = world.engine.ensure_network(&world.gateway).await?;
    let with_port = |name: &str, port| ContainerSpec {
        port: Some(port),
        network: Network::Bridge(network.clone()),
        ..world.spec(name)
    };

    // Taken by a process of the host.
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port();
    let id = world.engine.create(&with_port("one", port)).await?;
    let error = world.engine.start(&id).await;
    ensure!(matches!(error, Err(EngineError::PortTaken(taken)) if taken == port), "{error:?}");
    assert_eq!(world.engine.list(&world.gateway).await?.len(), 1, "whoever removes it sees to what runs in it");
    world.engine.remove(&id).await?;
    drop(holder);

    // Taken by another container.
    let first = world.running(&with_port("one", port)).await?;
    let second = world.engine.create(&with_port("two", port)).await?;
    let error = world.engine.start(&second).await;
    ensure!(matches!(error, Err(EngineError::PortTaken(taken)) if taken == port), "{error:?}");
    assert_eq!(world.engine.list(&world.gateway).await?.len(), 2);
    world.engine.remove(&second).await?;
    world.engine.stop(&first, Duration::from_secs(5)).await?;
    let holder = TcpListener::bind(("127.0.0.1", port))?;
    let error = world.engine.start(&first).await;
    ensure!(matches!(error, Err(EngineError::PortTaken(taken)) if taken == port), "{error:?}");
    assert_eq!(world.engine.list(&world.gateway).await?.len(), 1);
    drop(holder);
    world.end(&[&first]).await
}

#[tokio::test]
async fn a_create_that_fails_leaves_no_container() -> Result<()> {
    let world = World::new().await?;
    let missing_source = ContainerSpec {
        mounts: vec![Mount { host: world.path("nowhere"), target: "/workspace".into(), read_only: false }],
        ..world.spec("x")
    };
    let error = world.engine.create(&missing_source).await;
    ensure!(matches!(&error, Err(EngineError::Api { status: 400, .. })), "{error:?}");
    let no_image = ContainerSpec { image: "musher-node:none".to_owned(), ..world.spec("x") };
    let error = world.engine.create(&no_image).await;
    ensure!(matches!(&error, Err(EngineError::NotFound { .. })), "{error:?}");
    world.assert_nothing_left().await?;

    let id = world.engine.create(&world.spec("x")).await?;
    let error = world.engine.create(&world.spec("x")).await;
    ensure!(matches!(&error, Err(EngineError::Conflict { .. })), "{error:?}");
    assert_eq!(world.engine.list(&world.gateway).await?.len(), 1, "the one that has the name is not touched");
    world.end(&[&id]).await
}

/// SEC-7, as far as containers among themselves go.
#[tokio::test]
async fn containers_do_not_see_each_other() -> Result<()> {
    let world = World::new().await?;
    let (one, two) =
        tokio::join!(world.engine.ensure_network(&world.gateway), world.engine.ensure_network(&world.gateway));
    let network = one?;
    assert_eq!(network, two?);
    assert_eq!(network, world.engine.ensure_network(&world.gateway).await?);
    let on_bridge = |name: &str| ContainerSpec { network: Network::Bridge(network.clone()), ..world.spec(name) };
    let a = world.running(&on_bridge("a")).await?;
    let b = world.running(&on_bridge("b")).await?;

    let serve = "perl -MIO::Socket::INET -e '$|=1; my $l=IO::Socket::INET->new(Listen=>5,LocalPort=>8080) or die; print qq(ready\\n); sleep 1000'";
    let mut server = world.engine.exec(&a, &["sh", "-c", serve], &[]).await?;
    let mut ready = [0; 6];
    server.stream.read_exact(&mut ready).await?;
    let address = world.shell(&a, "hostname -I").await?;
    let reach = |from: &ContainerId| {
        let (world, from, script) = (
            &world,
            from.clone(),
            format!("timeout 2 bash -c '</dev/tcp/{}/8080' 2>/dev/null && echo open || echo closed", address.trim()),
        );
        async move { world.shell(&from, &script).await }
    };
    assert_eq!(reach(&a).await?, "open\n");
    assert_eq!(reach(&b).await?, "closed\n");

    let busy = world.engine.remove_network(&world.gateway).await;
    ensure!(busy.is_err(), "a network with containers on it is not removed");
    drop(server);
    world.end(&[&a, &b]).await
}

#[tokio::test]
async fn a_host_without_an_engine_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("docker.sock");
    let host = format!("unix://{}", socket.display());
    let absent = musher_docker::Engine::connect(Some(&host));
    ensure!(
        matches!(&absent, Err(EngineError::NotRunning { address }) if address == &socket.display().to_string()),
        "{absent:?}"
    );
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    let closed = musher_docker::Engine::connect(Some(&host));
    ensure!(matches!(&closed, Err(EngineError::NotRunning { .. })), "{closed:?}");
    let engine = musher_docker::Engine::connect(Some("tcp://127.0.0.1:1"))?;
    let refused = engine.ping().await;
    ensure!(matches!(&refused, Err(EngineError::NotRunning { .. })), "{refused:?}");
    crate::harness::engine()?.ping().await?;
    Ok(())
}
