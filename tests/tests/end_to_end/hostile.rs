//! Hostile strings (SEC-5) through commands, names of rooms and people, paths, branches, files, what the model says and what
//! tools print, on both surfaces: they are shown, and nothing of them is acted on.
//!
//! The strings are those of `tests/hostile.json`, which the gateway's own tests give to each place where text is made
//! safe. `CANARY` in them is a file that must never be there.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    images,
    model::{Model, Step},
    person::Message,
    product, ssh, wait,
};

use crate::scene::{Cast, Scene};

/// Which tags a message may have.
const TAGS: [&str; 19] = [
    "a",
    "blockquote",
    "br",
    "code",
    "del",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "strong",
    "ul",
];

/// The strings, with this file for their canary.
fn hostile(canary: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(product::repository()?.join("tests/hostile.json"))?;
    let all: Vec<String> = serde_json::from_str(&text)?;
    let canary = canary.to_str().context("the path is text")?;
    Ok(all.into_iter().map(|one| one.replace("CANARY", canary)).collect())
}

/// Whether a terminal or a client acts on the character, or does not show it.
fn acts(c: char) -> bool {
    let joins_or_ends = matches!(c, '\n' | '\t' | '\u{200c}' | '\u{200d}');
    let hides = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{e0000}'..='\u{e0fff}');
    let turns = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    !joins_or_ends && (hides || turns || c.is_control())
}

/// What is wrong with a text that is shown.
fn harmless(what: &str, text: &str) -> Result<()> {
    let line = text.lines().find(|line| line.contains(acts));
    ensure!(line.is_none(), "{what} would be acted on: {line:?}");
    let line = text.lines().find(|line| line.contains("hunter2"));
    ensure!(line.is_none(), "{what} shows a credential: {line:?}");
    Ok(())
}

/// Lines to type: each string as an argument of everything that takes one.
fn lines(hostile: &[String], source: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for one in hostile.iter().filter(|one| !one.contains(['\n', '\r', '\0'])) {
        let word = format!("'{}'", one.replace('\'', "'\\''"));
        for before in [
            "help",
            "switch",
            "ssh",
            "members",
            "members add",
            "members remove",
            "cancel",
            "mode",
            "approve",
            "deny",
            "logs --lines",
            "stacks check",
            "delete project",
            "confirm delete",
            "new project",
            "new project evil --path",
            "new project evil --stack",
            "new project evil --memory",
            "new project evil --cpus",
        ] {
            lines.push(format!("!{before} {word}"));
            if one.starts_with('-') {
                lines.push(format!("!{before} -- {word}"));
            }
        }
        lines.push(format!("!new project evil --git {} --branch={word}", source.display()));
        lines.push(format!("!new project evil --git {} --depth={word}", source.display()));
        // What is an address for all that is wrong with it leads nowhere but to this host.
        lines.push(format!("!new project evil --git={word}"));
        lines.push(format!("!{one}"));
    }
    lines
}

/// Lines about a project in which something has changed: what git, in its container, is to make of each string.
fn lines_of_files(hostile: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, one) in hostile.iter().filter(|one| !one.contains(['\n', '\r', '\0'])).enumerate() {
        let word = format!("'{}'", one.replace('\'', "'\\''"));
        // Each of them starts git: one for each string.
        lines.push(match number % 3 {
            0 => format!("!git {word}"),
            1 => format!("!git log -1 {word}"),
            _ => format!("!git log -1 -- {word}"),
        });
        lines.push(format!("!diff -- {word}"));
    }
    lines
}

/// Files of these names, as far as a file can have one.
fn name_files(folder: &Path, hostile: &[String]) -> Result<()> {
    // Without its slashes it is no address, and nobody could tell the credential in it.
    for one in hostile.iter().filter(|one| !one.contains("hunter2")) {
        let name = one.replace(['/', '\0'], "_");
        if !name.is_empty() && name.len() <= 200 && name != "." && name != ".." {
            fs::write(folder.join(format!("x{name}")), "mine\n")?;
        }
    }
    Ok(())
}

/// A model that says all of it, and has a tool print it.
async fn model(hostile: &[String]) -> Result<Model> {
    let model = Model::start().await?;
    // Bytes as they are; a shell's own words would change them.
    let all: Vec<u8> = hostile.join("\n").into_bytes();
    let octal = all.iter().fold(String::new(), |mut octal, byte| {
        let written = write!(octal, "\\{byte:03o}");
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        octal
    });
    let print =
        json!({ "command": format!("printf '{octal}'; printf '{octal}' >&2"), "description": hostile.join(" ") });
    model.on("say it all", [Step::call("Bash", print), Step::say(hostile.join("\n\n"))]);
    model.on(
        "write it",
        [
            Step::call(
                "Write",
                json!({ "file_path": format!("/workspace/{}", "written\u{1b}[31m\u{202e}"), "content": "x" }),
            ),
            Step::say(format!("- {}", hostile.join("\n- "))),
        ],
    );
    Ok(model)
}

/// Nothing was made by any of them.
fn unharmed(home: &Home, canary: &Path) -> Result<()> {
    ensure!(!canary.exists(), "something was carried out");
    let made: BTreeSet<PathBuf> = home.tree()?.into_iter().filter(|path| path.ends_with("canary")).collect();
    ensure!(made.is_empty(), "something was carried out: {made:?}");
    Ok(())
}

/// `ssh_config` is read as it was meant, and `/metrics` is what a scraper reads.
async fn files_are_whole(home: &Home, project: &str) -> Result<()> {
    let mut client = ssh::client(home, "ssh");
    client.arg("-G").arg(format!("{project}.musher"));
    let read = tests::process::run(&mut client, b"", wait::SHORT).await?.success()?;
    let proxy = read.lines().find(|line| line.starts_with("proxycommand ")).context("it has a proxy command")?;
    ensure!(proxy.ends_with(&format!("ssh-proxy {project}")), "{proxy}");
    let hosts = fs::read_to_string(home.state().join("ssh_config"))?;
    let hosts: Vec<_> = hosts.lines().filter(|line| line.trim_start().to_lowercase().starts_with("host ")).collect();
    ensure!(hosts == [format!("Host {project}.musher"), format!("Host {project}.musher-port")], "{hosts:?}");

    let (status, metrics) = home.get("/metrics", "localhost").await?;
    ensure!(status == 200 && metrics.ends_with("# EOF\n"), "{status} {metrics}");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').with_context(|| format!("{line:?} is no sample"))?;
        let name = series.split('{').next().unwrap_or_default();
        ensure!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && value.parse::<f64>().is_ok(), "{line:?}");
        ensure!(!series.contains("evil"), "{line:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_hostile_is_shown_on_the_console_and_does_nothing() -> Result<()> {
    images::ready().await?;
    let canaries = tempfile::tempdir()?;
    let canary = canaries.path().join("canary");
    let hostile = hostile(&canary)?;
    let model = model(&hostile).await?;
    let home = Home::real(&model).await?;
    let source = home.path().join("musher/source");
    fs::create_dir_all(&source)?;
    let mut git = tokio::process::Command::new("git");
    git.args(["init", "--quiet"]).arg(&source);
    tests::process::run(&mut git, b"", wait::SHORT).await?.success()?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("app", "").await?;
    name_files(&home.project("app"), &hostile)?;

    let before = home.holdings().await?;
    let lines = lines(&hostile, &source);
    for line in &lines {
        gateway.write(line).await?;
    }
    // In order: when this is answered, all of them are.
    gateway.ask("!version").await.with_context(|| gateway.all())?;
    let refused = gateway.all().matches('⚠').count();
    ensure!(refused > lines.len() / 2, "{refused} of {} lines were refused", lines.len());
    unharmed(&home, &canary)?;
    let projects = gateway.ask("projects").await?;
    ensure!(home.holdings().await? == before, "something was made: {projects}");

    gateway.ask("switch app").await?;
    let said = gateway.ask("say it all").await?;
    ensure!(said.contains("<script>alert(1)</script>") && said.contains("$(touch"), "it is shown as text: {said}");
    gateway.ask("write it").await?;
    let container = home.container("app").await?;
    engine::docker(&[
        "exec",
        &container,
        "git",
        "-C",
        "/workspace",
        "checkout",
        "-q",
        "-b",
        "b;$(touch${IFS}canary)<b>@room",
    ])
    .await?;
    for line in [
        "status",
        "!git status",
        "!git add -A",
        "!git status",
        "!git diff --cached --stat",
        "!diff",
        "undo",
        "diff",
        "queue",
        "logs",
    ] {
        gateway.ask(line).await.with_context(|| gateway.all())?;
    }
    for line in lines_of_files(&hostile) {
        gateway.write(&line).await?;
    }
    gateway.ask("!version").await.with_context(|| gateway.all())?;
    files_are_whole(&home, "app").await?;
    harmless("the console", &gateway.all())?;
    for args in [&["journal", "tail", "--lines", "100000"][..], &["doctor"], &["git", "audit", "app"]] {
        let output = home.run(args, "").await?;
        harmless(&args.join(" "), &output.stdout)?;
        harmless(&args.join(" "), &output.stderr)?;
    }
    for log in fs::read_dir(home.state().join("logs"))? {
        let log = fs::read_to_string(log?.path())?;
        ensure!(!log.contains('\u{1b}'), "a terminal would act on the log");
    }
    let evil = home.run(["git", "audit", "\u{1b}[31m\u{202e}"], "").await?;
    harmless("a refusal", &evil.stderr)?;
    unharmed(&home, &canary)?;
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn what_is_hostile_is_shown_in_a_room_and_does_nothing() -> Result<()> {
    let canaries = tempfile::tempdir()?;
    let canary = canaries.path().join("canary");
    let hostile = hostile(&canary)?;
    let model = model(&hostile).await?;
    let (scene, gateway) = Scene::set(Cast::of(&model, "app")).await?;
    name_files(&scene.home.project("app"), &hostile)?;
    // A homeserver takes no NUL.
    let verbs = [
        "switch",
        "help",
        "members add",
        "new project",
        "members remove",
        "deny",
        "git",
        "diff --",
        "new project evil --git",
        "new project evil --git https://127.0.0.1:1/x --depth",
    ];
    for (one, verb) in hostile.iter().filter(|one| !one.contains('\0')).zip(verbs.into_iter().cycle()) {
        let word = format!("'{}'", one.replace('\'', "'\\''"));
        let asked = scene.say(&format!("!{verb} {word}")).await?;
        scene.hear(&asked, "").await.with_context(|| gateway.all())?;
    }
    // What a room is called and what it is about, and what she is called: a homeserver takes so much of it at once.
    let named: Vec<&str> = hostile.iter().map(String::as_str).filter(|one| !one.contains('\0')).collect();
    let all = named.join(" ");
    scene.ann.set_room(&scene.room, "m.room.name", &json!({ "name": all })).await?;
    scene.ann.set_room(&scene.room, "m.room.topic", &json!({ "topic": all })).await?;
    let letters: Vec<char> = all.chars().collect();
    for name in letters.chunks(250) {
        scene.ann.set_name(&name.iter().collect::<String>()).await?;
        let asked = scene.say("members").await?;
        scene.hear(&asked, "").await.with_context(|| gateway.all())?;
    }
    scene.ask("say it all", "<script>").await.with_context(|| gateway.all())?;
    scene.ask("write it", "onerror").await.with_context(|| gateway.all())?;
    for line in ["status", "!git status", "!diff", "queue", "members"] {
        let asked = scene.say(line).await?;
        scene.hear(&asked, "").await.with_context(|| gateway.all())?;
    }
    let heard = scene.ann.heard(&scene.room, &scene.bot.id);
    ensure!(heard.len() > hostile.len(), "{} messages", heard.len());
    let mut formatted = 0;
    for message in &heard {
        formatted += usize::from(message.html.is_some());
        proper(message, &scene.ann.id).with_context(|| format!("{:#}", message.content))?;
    }
    ensure!(formatted > 50, "only {formatted} messages were formatted");
    files_are_whole(&scene.home, "app").await?;
    unharmed(&scene.home, &canary)?;
    gateway.stop().await.map(drop)
}

/// The message mentions nobody but who asked, and is text and the HTML that Matrix allows.
fn proper(message: &Message, asker: &str) -> Result<()> {
    for content in [&message.content, &message.content["m.new_content"]] {
        if content.is_null() {
            continue;
        }
        harmless("a body", content["body"].as_str().unwrap_or_default())?;
        let mentions = &content["m.mentions"];
        ensure!(mentions.is_object() && mentions.get("room").is_none(), "it mentions {mentions}");
        let named = mentions["user_ids"].as_array().into_iter().flatten();
        ensure!(named.into_iter().all(|user: &Value| user == asker), "it mentions {mentions}");
        if let Some(html) = content["formatted_body"].as_str() {
            harmless("HTML", html)?;
            allowed(html)?;
        }
    }
    Ok(())
}

/// Only tags of the list, each closed, without an attribute but those that are checked here.
fn allowed(html: &str) -> Result<()> {
    let mut open = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '>', '"', '\'']) {
        let tag = rest[at..].strip_prefix('<').with_context(|| format!("stray at {:?}", &rest[at..]))?;
        let (tag, after) = tag.split_once('>').context("a tag without its end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            ensure!(open.pop() == Some(name), "</{name}> ends nothing");
            continue;
        }
        let (name, attribute) = tag.split_once(' ').unwrap_or((tag, ""));
        ensure!(TAGS.contains(&name), "<{tag}>");
        let value = |key: &str| attribute.strip_prefix(key)?.strip_prefix("=\"")?.strip_suffix('"');
        let schemes = ["http://", "https://", "mailto:"];
        let fits = attribute.is_empty()
            || value("href")
                .is_some_and(|url| schemes.iter().any(|scheme| url.starts_with(scheme)) && !url.contains('"'))
            || value("class").is_some_and(|class| class.starts_with("language-") && !class.contains(['"', ' ']))
            || value("start").is_some_and(|number| number.parse::<u64>().is_ok());
        ensure!(fits, "<{tag}>");
        if !matches!(name, "br" | "hr") {
            open.push(name);
        }
    }
    ensure!(open.is_empty(), "left open: {open:?}");
    Ok(())
}

#[test]
fn the_checks_see_what_is_wrong() {
    for bad in ["<b>x</b>", "<p>", "<a href=\"javascript:x\">x</a>", "<p onclick=\"x\">x</p>", "say \"x\"", "a > b"] {
        allowed(bad).expect_err(bad);
    }
    allowed("<p>a &lt; <a href=\"https://e.org/\">b</a><br></p>").expect("it is allowed");
    for bad in ["\u{1b}[31m", "\u{202e}", "\u{9b}31m", "hunter2"] {
        harmless("it", bad).expect_err(bad);
    }
}
