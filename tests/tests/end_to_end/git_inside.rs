//! Git inside a project, for a person's editor and for the agent: it fetches from and pushes to the project's own remote, with a
//! credential that never enters the container, and reaches nothing else with it (SEC-1, SEC-2).

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{
    engine,
    gateway::Gateway,
    git_server::{Content, SshServer, WebServer},
    home::Home,
    images,
    model::{Model, Step},
    process::Output,
    secrets::{self, Kind},
    ssh::{self, Door},
    wait,
};

use crate::git_clone::store;

/// What an editor does: one more commit, and it is pushed.
fn push(file: &str) -> String {
    format!(
        "cd /workspace && git fetch -q && echo {file} > {file} && git add {file} && \
         git -c user.name=Bob -c user.email=bob@example.org commit -qm {file} && git push -q && git rev-parse HEAD"
    )
}

/// Runs a shell command in the project, whatever comes of it.
async fn attempt(home: &Home, project: &str, line: &str) -> Result<Output> {
    ssh::run(home, "ssh", [&Door::Proxy.host(project), line], "", wait::LONG).await
}

/// Looks for texts everywhere in a project's container and in what the engine and the host show of it.
async fn assert_nowhere(home: &Home, project: &str, secrets: &[&str]) -> Result<()> {
    // The patterns come on standard input, so that they stand in no command line.
    let places = "/workspace /home /etc /var/lib/musher /tmp /run /opt /usr/local";
    let search = format!(
        "cat > /dev/shm/patterns; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cF -f /dev/shm/patterns; \
         grep -rlF --exclude-dir=proc -f /dev/shm/patterns {places} 2>/dev/null; rm /dev/shm/patterns; echo searched"
    );
    let found =
        ssh::run(home, "ssh", [&Door::Proxy.host(project), &search], &format!("{}\n", secrets.join("\n")), wait::LONG)
            .await?;
    assert_eq!(found.stdout, "0\nsearched\n", "a credential is in the container: {found}");
    let described = engine::docker(&["container", "inspect", &home.container(project).await?]).await?;
    let kept = String::from_utf8_lossy(&fs::read(home.state().join("journal.db"))?).into_owned();
    let mut logs = String::new();
    for entry in fs::read_dir(home.state().join("logs"))? {
        logs += &fs::read_to_string(entry?.path())?;
    }
    for secret in secrets {
        assert!(!described.contains(secret) && !kept.contains(secret) && !logs.contains(secret), "it is shown or kept");
    }
    Ok(())
}

#[tokio::test]
async fn over_the_web_editor_and_agent_fetch_and_push_and_reach_nothing_else() -> Result<()> {
    images::ready().await?;
    let model = Model::start().await?;
    let script = "cd /workspace && git pull -q && echo by-agent > by-agent && git add by-agent && git commit -qm by-agent && git push 2>&1 && git log -1 --format='%an <%ae>'";
    model.on("push it", [Step::call("Bash", json!({ "command": script })), Step::say("Pushed.")]);
    let home = Home::real(&model).await?;
    let [first, second] = [(); 2].map(|()| secrets::mint(Kind::GitToken));
    let server = WebServer::private("ann", &first).await?;
    let (repositories, url) = (server.repositories(), server.url("team/app.git"));
    for name in ["team/app.git", "team/app.git-other", "team/other.git"] {
        repositories.add(name, "main", &[Content::File("README.md", name.as_bytes())]).await?;
    }
    store(&home, &server.secret(), &format!("ann:{first}")).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("app", &format!("--git {url}")).await?;

    for (door, file) in [(Door::Proxy, "by-proxy"), (Door::Port, "by-port")] {
        let pushed = ssh::command(&home, door, "app", &push(file)).await?;
        assert_eq!(repositories.tip("team/app.git", "main").await?.as_deref(), Some(pushed.trim()), "{file}");
        assert_eq!(repositories.file("team/app.git", "main", file).await?, format!("{file}\n"));
    }
    let newer = repositories.commit("team/app.git", "main", "elsewhere", &[Content::File("elsewhere", b"x")]).await?;
    let answer = gateway.ask("push it").await?;
    assert!(answer.contains("Pushed."), "{answer}");
    let log = ssh::command(&home, Door::Proxy, "app", "git -C /workspace log -2 --format='%H %an'").await?;
    let tip = repositories.tip("team/app.git", "main").await?.context("a branch")?;
    assert_eq!(
        log,
        format!("{tip} Ann Other\n{newer} Bob\n"),
        "the agent pulled, committed by the host's name, and pushed"
    );

    // Everything else is refused, and the server does not hear of it.
    let before = server.seen().len();
    let at = url.replace("http://", "http://127.0.0.1:2224/web/");
    let curl = |more: &str| format!("curl -s -o /dev/null -w '%{{http_code}} %{{redirect_url}}' {more}");
    let (fetch, other) = ("info/refs?service=git-upload-pack", at.replace("app.git", "other.git"));
    for (line, expected) in [
        (format!("'{at}/{fetch}'"), "200 ".to_owned()),
        (format!("'{other}/{fetch}'"), "403 ".into()),
        (format!("-X POST '{other}/git-receive-pack'"), "403 ".into()),
        (format!("'{at}/HEAD'"), "403 ".into()),
        (format!("'{at}/info/refs'"), "403 ".into()),
        (format!("--path-as-is '{at}/../other.git/{fetch}'"), "3".into()),
        (format!("'{at}-other/{fetch}'"), format!("302 {url}-other/{fetch}")),
        (format!("-H 'Host: evil.example' '{at}/{fetch}'"), "4".into()),
        (format!("-H 'Authorization: Basic eDp4' '{at}/{fetch}'"), "200 ".into()),
    ] {
        let answer = ssh::command(&home, Door::Proxy, "app", &curl(&line)).await?;
        assert!(answer.starts_with(&expected), "{line}: wanted `{expected}`, got `{answer}`");
    }
    let lost = attempt(&home, "app", &format!("git ls-remote {}", server.url("team/other.git"))).await?;
    assert_ne!(lost.code, Some(0), "the server itself is not reached from inside: {lost}");
    let seen = &server.seen()[before..];
    assert!(seen.iter().all(|seen| seen.line.contains("/team/app.git/")), "only the project's own: {seen:?}");
    assert!(seen.iter().all(|seen| seen.status == 200), "with the gateway's credential and no other: {seen:?}");

    // A new token counts at once, in the container that is there.
    let container = engine::inspect(&home.container("app").await?).await?["Id"].clone();
    server.rotate("ann", &second);
    let refused = attempt(&home, "app", "git -C /workspace fetch").await?;
    assert!(refused.code != Some(0) && refused.stderr.contains("does not take the credential"), "{refused}");
    assert!(refused.stderr.contains(&server.secret()), "the secret's name is told: {refused}");
    store(&home, &server.secret(), &format!("ann:{second}")).await?;
    ssh::command(&home, Door::Proxy, "app", "git -C /workspace fetch").await?;
    home.run(["secrets", "remove", &server.secret()], "").await?.success()?;
    let refused = attempt(&home, "app", "git -C /workspace fetch").await?;
    assert!(refused.code != Some(0) && refused.stderr.contains("wants a credential"), "{refused}");
    assert_eq!(engine::inspect(&home.container("app").await?).await?["Id"], container);

    let header = |token: &str| tests::git_server::web::basic("ann", token).replace("Basic ", "");
    assert_nowhere(&home, "app", &[&first, &second, &header(&first), &header(&second)]).await?;
    audited(&home, &mut gateway, "app", &url).await?;
    gateway.finish().await?;

    // A project that an earlier version has made has no such settings; the next start gives it what it lacks.
    let project = fs::read_dir(home.state().join("projects"))?.next().context("one project")??.path();
    let settings = project.join("ssh/door/gitconfig");
    let there = fs::read_to_string(&settings)?;
    fs::remove_file(&settings)?;
    store(&home, &server.secret(), &format!("ann:{second}")).await?;
    let gateway = Gateway::console(&home).await?;
    assert_eq!(fs::read_to_string(&settings)?, there);
    ssh::command(&home, Door::Proxy, "app", "git -C /workspace fetch").await?;
    gateway.finish().await.map(drop)
}

/// Every use is told of, in the room and on the command line.
async fn audited(home: &Home, gateway: &mut Gateway, project: &str, url: &str) -> Result<()> {
    let told = gateway.ask("git audit").await?;
    let printed = home.run(["git", "audit", project], "").await?.success()?;
    for text in [&told, &printed] {
        for word in [url, "fetch", "push", "to make the project"] {
            assert!(text.contains(word), "`{word}` is not in\n{text}");
        }
        assert!(!text.contains("**"), "it is for a terminal:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn over_ssh_editors_fetch_and_push_and_run_nothing_else() -> Result<()> {
    let home = Home::practice().await?;
    let server = SshServer::start().await?;
    for name in ["team/app.git", "team/scp.git", "team/other.git"] {
        server.repositories().add(name, "main", &[Content::File("README.md", name.as_bytes())]).await?;
    }
    for secret in server.secrets() {
        store(&home, &secret, &server.key()?).await?;
    }
    let known = home.path().join(".ssh/known_hosts");
    fs::create_dir(home.path().join(".ssh"))?;
    fs::write(&known, server.known_hosts()?)?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("app", &format!("--git {}", server.url("team/app.git"))).await?;
    gateway.make("scp", &format!("--git {}", server.scp_like("team/scp.git"))).await?;
    for project in ["app", "scp"] {
        let pushed = ssh::command(&home, Door::Proxy, project, &push("mine")).await?;
        let name = format!("team/{project}.git");
        assert_eq!(server.repositories().tip(&name, "main").await?.as_deref(), Some(pushed.trim()), "{project}");
        assert_eq!(
            ssh::command(&home, Door::Port, project, "git -C /workspace pull 2>&1").await?,
            "Already up to date.\n"
        );
    }

    let log = server.log().await?;
    let url = server.url("team/app.git");
    let (place, _) = url.strip_prefix("ssh://").and_then(|rest| rest.split_once('/')).context("a place")?;
    let (host, port) = place.split_once(':').context("a port")?;
    let ask =
        |command: &str| format!("timeout 60 sled git-ssh -o BatchMode=yes -p {port} {host} \"{command}\" < /dev/null");
    for command in [
        "git-upload-pack '/srv/git/team/other.git'",
        "git-receive-pack '/srv/git/team/other.git'",
        "git-upload-archive '/srv/git/team/app.git'",
        "git-upload-pack '/srv/git/team/app.git'; id",
        "id",
    ] {
        let refused = attempt(&home, "app", &ask(command)).await?;
        assert!(refused.code != Some(0) && !refused.stdout.contains("uid="), "{command}: {refused}");
    }
    let other = attempt(&home, "app", &format!("git ls-remote {}", server.url("team/other.git"))).await?;
    assert_ne!(other.code, Some(0), "{other}");
    let neighbour = attempt(&home, "app", &format!("git ls-remote {}", server.scp_like("team/scp.git"))).await?;
    assert_ne!(neighbour.code, Some(0), "another project's remote is not one's own: {neighbour}");
    assert_eq!(server.log().await?, log, "the server has not heard of any of it");

    fs::write(&known, "")?;
    let refused = attempt(&home, "app", "git -C /workspace fetch").await?;
    let fingerprint = server.fingerprint().await?;
    assert!(refused.code != Some(0) && refused.stderr.contains(&fingerprint), "{refused}");
    fs::write(&known, server.known_hosts()?)?;
    ssh::command(&home, Door::Proxy, "app", "git -C /workspace fetch").await?;
    home.run(["secrets", "remove", &server.secrets()[0]], "").await?.success()?;
    let refused = attempt(&home, "app", "git -C /workspace fetch").await?;
    assert!(refused.code != Some(0) && refused.stderr.contains(&server.secrets()[0]), "{refused}");

    let key = server.key()?;
    let line = key.lines().nth(3).context("a key has lines")?;
    assert_nowhere(&home, "app", &[line]).await?;
    gateway.ask("switch app").await?;
    audited(&home, &mut gateway, "app", &url).await?;
    gateway.finish().await.map(drop)
}
