//! `new project --git`: private repositories behind real servers, whatever is wrong with them, and whose name commits carry
//! (PROJ-3, SEC-2). What git does inside a project afterwards is `git_inside`'s.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{
    engine,
    gateway::Gateway,
    git_server::{Content, Reply, SshServer, WebServer},
    home::Home,
    homeserver::free_port,
    model::Model,
    secrets::{self, Kind},
    ssh::{self, Door},
};

use crate::scene::Scene;

/// Stores a secret.
pub async fn store(home: &Home, name: &str, value: &str) -> Result<()> {
    home.run(["secrets", "set", name], value).await?.success().map(drop)
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// What a refused `new project` must not change.
async fn left(home: &Home) -> Result<impl PartialEq + std::fmt::Debug> {
    Ok((home.holdings().await?, home.tree()?))
}

#[tokio::test]
async fn a_private_repository_is_cloned_with_its_credential_and_no_other() -> Result<()> {
    let home = Home::practice().await?;
    let [wrong, right] = [(); 2].map(|()| secrets::mint(Kind::GitToken));
    let server = WebServer::private("ann", &right).await?;
    let (repositories, url) = (server.repositories(), server.url("team/app.git"));
    let attributes = b"*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let files = [Content::File("README.md", b"A heron.\n"), Content::File(".gitattributes", attributes)];
    repositories.add("team/app.git", "trunk", &files).await?;
    repositories.commit("team/app.git", "trunk", "second", &[Content::File("b", b"b")]).await?;
    repositories.empty("team/empty.git", "start").await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("first", "").await?;

    let before = left(&home).await?;
    let ask = format!("new project app --git {url}");
    let answer = gateway.ask(&ask).await?;
    let line = format!("musher secrets set {}", server.secret());
    assert!(
        answer.contains('⚠') && answer.contains(&line),
        "without a credential the way to store one is told:\n{answer}"
    );
    assert_eq!(left(&home).await?, before, "and nothing is left");

    store(&home, &server.secret(), &format!("ann:{wrong}")).await?;
    let before = left(&home).await?;
    let answer = gateway.ask(&ask).await?;
    assert!(answer.contains("does not take the credential") && answer.contains(&line), "{answer}");
    assert_eq!(left(&home).await?, before, "nothing is left of a try with a wrong one");

    store(&home, &server.secret(), &format!("ann:{right}")).await?;
    let made = gateway.make("app", &format!("--git {url}")).await?;
    assert!(made.contains("Git LFS"), "pointers are told of:\n{made}");
    assert_eq!(fs::read(home.project("app").join("README.md"))?, b"A heron.\n");
    let status = gateway.ask("status").await?;
    assert!(status.contains("trunk"), "the remote's default branch is taken:\n{status}");
    let remote = gateway.ask("!git config remote.origin.url").await?;
    assert!(remote.contains(&url), "{remote}");
    let config = fs::read_to_string(home.project("app").join(".git/config"))?;
    assert!(config.contains(&url) && !config.contains("ann"), "the address has no credential:\n{config}");
    assert_eq!(names_the_port(&home.project("app"))?, None);

    gateway.ask("delete project app").await?;
    gateway.ask("confirm delete app").await?;
    let anew = gateway.make("anew", &format!("--path {} --adopt", home.project("app").display())).await?;
    assert!(anew.contains(&url), "what is taken over is told:\n{anew}");
    let fetched = gateway.ask("!git fetch origin").await?;
    assert!(fetched.contains("(no output)"), "a project that is made anew has its remote:\n{fetched}");

    gateway.make("shallow", &format!("--git {url} --depth 1")).await?;
    let count = gateway.ask("!git rev-list --count HEAD").await?;
    assert!(count.contains('1') && !count.contains('2'), "one commit of two:\n{count}");

    let before = left(&home).await?;
    let answer = gateway.ask(&format!("new project branch --git {url} --branch nowhere")).await?;
    assert!(answer.contains("has no branch `nowhere`"), "{answer}");
    assert_eq!(left(&home).await?, before);

    let hollow = gateway.make("hollow", &format!("--git {}", server.url("team/empty.git"))).await?;
    let remote = gateway.ask("!git config remote.origin.url").await?;
    assert!(remote.contains("team/empty.git"), "an empty repository is one as well:\n{hollow}{remote}");

    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_clone_that_breaks_off_leaves_nothing_and_the_same_command_goes_on() -> Result<()> {
    let home = Home::practice().await?;
    let token = secrets::mint(Kind::GitToken);
    let server = WebServer::private("ann", &token).await?;
    let big = noise(4_000_000);
    server.repositories().add("big.git", "main", &[Content::File("noise", &big)]).await?;
    store(&home, &server.secret(), &format!("ann:{token}")).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("first", "").await?;
    let ask = format!("new project big --git {}", server.url("big.git"));
    let before = left(&home).await?;
    let moved = server.url("elsewhere.git");
    let sends = format!("sends to `{moved}`");
    for (reply, expected) in [
        (Reply::CutAfter(1_000_000), "cannot be cloned"),
        (Reply::Redirect(format!("{moved}/info/refs?service=git-upload-pack")), sends.as_str()),
    ] {
        server.reply(reply.clone());
        let answer = gateway.ask(&ask).await?;
        assert!(answer.contains('⚠') && answer.contains(expected), "{reply:?}:\n{answer}");
        assert_eq!(left(&home).await?, before, "{reply:?}: nothing is left");
    }
    assert!(!server.seen().iter().any(|seen| seen.line.contains("elsewhere")), "no redirect is followed");
    server.reply(Reply::Proper);
    let answer = gateway.ask(&ask).await?;
    assert!(answer.contains("big is ready"), "{answer}");
    assert!(fs::read(home.project("big").join("noise"))? == big, "all of it is there");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn an_ssh_repository_is_cloned_once_its_server_is_known_and_a_key_is_stored() -> Result<()> {
    let home = Home::practice().await?;
    let server = SshServer::start().await?;
    server.repositories().add("team/app.git", "main", &[Content::File("README.md", b"A heron.\n")]).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("first", "").await?;
    let before = left(&home).await?;

    let nobody = gateway.ask(&format!("new project app --git ssh://git@127.0.0.1:{}/x.git", free_port()?)).await?;
    assert!(nobody.contains('⚠') && nobody.contains("127.0.0.1"), "nobody is there:\n{nobody}");
    for url in [server.url("team/app.git"), server.scp_like("team/app.git")] {
        let answer = gateway.ask(&format!("new project app --git {url}")).await?;
        let (fingerprint, lines) = (server.fingerprint().await?, server.known_hosts()?);
        let told = lines.lines().any(|line| answer.contains(line));
        assert!(
            answer.contains('⚠') && answer.contains(&fingerprint) && told,
            "{url}: fingerprint and line are told:\n{answer}"
        );
    }
    assert_eq!(left(&home).await?, before, "nothing is left");

    let known = home.path().join(".ssh/known_hosts");
    fs::create_dir(home.path().join(".ssh"))?;
    fs::write(&known, server.known_hosts()?)?;
    let answer = gateway.ask(&format!("new project app --git {}", server.url("team/app.git"))).await?;
    let [with_port, without] = server.secrets();
    assert!(answer.contains(&format!("musher secrets set {with_port} < key")), "{answer}");

    for (project, url, secret) in
        [("port", server.url("team/app.git"), with_port), ("scp", server.scp_like("team/app.git"), without)]
    {
        store(&home, &secret, &server.key()?).await?;
        let made = gateway.make(project, &format!("--git {url}")).await?;
        assert_eq!(fs::read(home.project(project).join("README.md"))?, b"A heron.\n", "{made}");
        assert_eq!(names_the_port(&home.project(project))?, None);
    }

    // Somebody else answers under the name of the one that is known.
    let other = SshServer::start().await?.known_hosts()?;
    let key = other.split(' ').nth(2).and_then(|key| key.lines().next()).context("a key")?;
    let own = server.known_hosts()?;
    let hosts = own.lines().filter_map(|line| line.split(' ').next());
    let changed: Vec<_> = hosts.map(|host| format!("{host} ssh-ed25519 {key}")).collect();
    fs::write(&known, changed.join("\n"))?;
    let before = left(&home).await?;
    let answer = gateway.ask(&format!("new project app --git {}", server.url("team/app.git"))).await?;
    assert!(answer.contains("not the one that is known"), "{answer}");
    assert_eq!(left(&home).await?, before);
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn without_a_name_for_commits_no_repository_is_cloned_and_the_hosts_own_counts() -> Result<()> {
    let home = Home::practice().await?;
    let server = WebServer::public([127, 0, 0, 1].into()).await?;
    server.repositories().add("app.git", "main", &[Content::File("README.md", b"A heron.\n")]).await?;
    fs::remove_file(home.path().join(".gitconfig"))?;
    let mut gateway = Gateway::console(&home).await?;
    let made = gateway.make("plain", "").await?;
    for line in ["git_user_name = \"", "git_user_email = \""] {
        assert!(made.contains(line), "without --git it is a remark:\n{made}");
    }
    let before = left(&home).await?;
    let ask = format!("new project app --git {}", server.url("app.git"));
    let answer = gateway.ask(&ask).await?;
    for line in ["git_user_name = \"", "git_user_email = \""] {
        assert!(answer.contains('⚠') && answer.contains(line), "{answer}");
    }
    assert_eq!(left(&home).await?, before, "nothing is left");

    // Read anew: no restart is needed.
    fs::create_dir_all(home.path().join(".config/git"))?;
    fs::write(home.path().join(".config/git/config"), "[user]\n\tname = Ann Other\n\temail = ann@example.org\n")?;
    let made = gateway.ask(&ask).await?;
    assert!(made.contains("app is ready") && !made.contains("git_user_name"), "{made}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn submodules_that_anybody_may_fetch_are_and_others_are_told_of() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("first", "").await?;
    // An address of the host that containers reach, as they reach the internet.
    let network = home.holdings().await?.networks.into_iter().next().context("there is a network")?;
    let network: Value = serde_json::from_str(&engine::docker(&["network", "inspect", &network]).await?)?;
    let address = network[0]["IPAM"]["Config"][0]["Gateway"].as_str().context("a bridge has an address")?.to_owned();
    let public = WebServer::public(address.parse()?).await?;
    let inner = public.repositories().add("inner.git", "main", &[Content::File("deep", b"deep\n")]).await?;
    let modules = format!("[submodule \"inner\"]\n\tpath = inner\n\turl = {}\n", public.url("inner.git"));
    let files = [Content::File(".gitmodules", modules.as_bytes()), Content::Submodule("inner", &inner)];
    let outer = public.repositories().add("outer.git", "main", &files).await?;

    let token = secrets::mint(Kind::GitToken);
    let private = WebServer::private("ann", &token).await?;
    let hidden = private.repositories().add("hidden.git", "main", &[Content::File("x", b"x")]).await?;
    let modules = format!("[submodule \"outer\"]\n\tpath = outer\n\turl = {}\n", public.url("outer.git"));
    let files = [Content::File(".gitmodules", modules.as_bytes()), Content::Submodule("outer", &outer)];
    private.repositories().add("open.git", "main", &files).await?;
    let modules = "[submodule \"hidden\"]\n\tpath = hidden\n\turl = ../hidden.git\n";
    let files = [Content::File(".gitmodules", modules.as_bytes()), Content::Submodule("hidden", &hidden)];
    private.repositories().add("closed.git", "main", &files).await?;
    store(&home, &private.secret(), &format!("ann:{token}")).await?;

    let made = gateway.make("open", &format!("--git {}", private.url("open.git"))).await?;
    assert!(!made.contains("Not all submodules"), "there is nothing to tell:\n{made}");
    let deep = ssh::command(&home, Door::Proxy, "open", "cat /workspace/outer/inner/deep").await?;
    assert_eq!(deep, "deep\n", "submodules of submodules as well");
    assert!(owned(&home, &home.project("open").join("outer/inner/deep"))?, "they belong to the host's user");

    let before = private.seen().len();
    let made = gateway.make("closed", &format!("--git {}", private.url("closed.git"))).await?;
    assert!(made.contains("Not all submodules") && made.contains("!git submodule update --init --recursive"), "{made}");
    assert!(
        !private.seen()[before..].iter().any(|seen| seen.line.contains("hidden")),
        "nobody asked for it with our credential"
    );
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_command_with_a_credential_in_it_is_refused_and_taken_out_of_the_room() -> Result<()> {
    let model = Model::start().await?;
    let (scene, gateway) = Scene::open(&model, "", "first").await?;
    let typed = secrets::mint(Kind::Typed);
    let say = format!("!new project leak --git https://ann:{typed}@example.org/team/app.git");
    let kept = scene.say(&say).await?;
    let told = scene.hear(&kept, "carries").await?;
    assert!(told.body.contains("Delete your message") && !told.body.contains(&typed), "{}", told.body);
    // Without the right to it the bot leaves the message, says so, and goes on.
    scene.hear(&kept, "could not be taken out of this room").await?;
    scene.ann.let_tidy(&scene.room, &scene.bot.id).await?;
    let taken = scene.say(&say).await?;
    scene.hear(&taken, "carries").await?;
    scene.ann.wait_redacted(&scene.room, &taken).await?;
    // Forms that are no address at all, and that only a whole word hides.
    for (value, told) in [
        (format!("git:{typed}@example.org:a/b"), "carries"),
        (format!("https://example.org/a?token={typed}"), "carries"),
        (format!("https://example.org/a#{typed}"), "carries"),
        (format!("https://ann:p\"{typed}@example.org/a"), "carries"),
        (format!("https://ann:p`<{typed}>@example.org/a"), "carries"),
        (format!("https://ann:s3c/{typed}@example.org/a"), "not the address"),
        (format!("'https://ann:my {typed}@example.org/a'"), "not the address"),
    ] {
        let taken = scene.say(&format!("!new project leak --git {value}")).await?;
        let told = scene.hear(&taken, told).await.with_context(|| value.replace(&typed, "…"))?;
        assert!(!told.body.contains(&typed), "{}", told.body.replace(&typed, "…"));
        scene.ann.wait_redacted(&scene.room, &taken).await?;
    }
    // What is meant for the agent is its sender's matter.
    let prose = scene.say(&format!("is https://ann:{typed}@example.org/ a good example?")).await?;
    scene.answer(&prose, "").await?;
    let last = scene.say("!projects").await?;
    scene.hear(&last, "first").await?;
    assert!(!scene.ann.is_redacted(&scene.room, &prose) && !scene.ann.is_redacted(&scene.room, &kept), "they stay");
    gateway.stop().await.map(drop)
}

/// The first file of the repository that tells of the port through which the gateway cloned it.
fn names_the_port(project: &Path) -> Result<Option<PathBuf>> {
    let mut folders = vec![project.join(".git")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path)?.windows(7).any(|part| part == b"/clone-") {
                return Ok(Some(path));
            }
        }
    }
    Ok(None)
}

fn owned(home: &Home, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.uid() == home.owner())
}
