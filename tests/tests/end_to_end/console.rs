//! The console on pipes: one line after another, the end of input, and what the command line says beside it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};
use tests::{
    gateway::Gateway,
    home::Home,
    model::{Model, Step},
    process,
    ssh::{self, Door},
    wait,
};
use tokio::process::Command;

#[tokio::test]
async fn all_lines_at_once_are_answered_in_turn_and_then_it_ends() -> Result<()> {
    let home = Home::practice().await?;
    let output =
        home.run(["up"], "new project batch\nswitch batch\nfirst words\nsecond words\nstatus\n").await?.success()?;
    let mut from = 0;
    for expected in ["batch is ready", "You said:", "first words", "You said:", "second words"] {
        let at =
            output[from..].find(expected).with_context(|| format!("no `{expected}` after byte {from} of\n{output}"))?;
        from += at + expected.len();
    }
    Ok(())
}

#[tokio::test]
async fn no_wait_sends_the_lines_at_once() -> Result<()> {
    let model = Model::start().await?;
    model.on("", [Step::say("Both at once.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("hasty", "").await?;
    gateway.finish().await?;
    home.run(["up", "--no-wait"], "switch hasty\nnumber one\nnumber two\n").await?.success()?;
    let asked = model.asked("number");
    assert_eq!(asked.len(), 1, "two lines within the window are one turn");
    assert!(asked[0].said.contains("number one") && asked[0].said.contains("number two"), "{}", asked[0].said);
    Ok(())
}

#[tokio::test]
async fn a_line_that_is_too_long_is_told_and_the_next_one_is_taken() -> Result<()> {
    let home = Home::practice().await?;
    let long = "x".repeat(300 * 1024);
    let output = home.run(["up"], &format!("version\n{long}\nversion\n")).await?.success()?;
    let (before, after) = output.split_once("Line 2 was not taken").context("it is told")?;
    assert!(before.contains("musher") && after.contains("musher"), "both others are answered:\n{output}");
    Ok(())
}

#[tokio::test]
async fn without_a_key_the_practice_agent_says_how_to_give_one() -> Result<()> {
    tests::images::ready().await?;
    let home = Home::new("", "")?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("keyless", "").await?;
    let first = gateway.ask("hello there").await?;
    assert!(first.contains("hello there") && first.contains("ANTHROPIC_API_KEY"), "{first}");
    let second = gateway.ask("hello again").await?;
    assert!(second.contains("hello again") && !second.contains("ANTHROPIC_API_KEY"), "{second}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_repository_is_cloned_and_its_stack_found() -> Result<()> {
    let home = Home::practice().await?;
    let source = home.project("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("Cargo.toml"), "[package]\nname = \"heron\"\nversion = \"0.1.0\"\n")?;
    git(&source, &["init", "--initial-branch", "main"]).await?;
    git(&source, &["add", "--all"]).await?;
    git(&source, &["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-m", "A heron"]).await?;

    let mut gateway = Gateway::console(&home).await?;
    let made = gateway.make("copy", &format!("--git {}", source.display())).await?;
    assert!(made.contains("rust") && made.contains("Cargo.toml"), "the stack and why are told:\n{made}");
    let file = home.project("copy").join("Cargo.toml");
    assert_eq!(fs::read(&file)?, fs::read(source.join("Cargo.toml"))?);
    assert_eq!((fs::metadata(&file)?.uid(), fs::metadata(&file)?.nlink()), (home.owner(), 1), "a copy of its own");
    let log = gateway.ask("!git log --oneline").await?;
    assert!(log.contains("A heron"), "{log}");
    let status = gateway.ask("status").await?;
    assert!(status.contains("main"), "the branch is told:\n{status}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_deleted_project_leaves_its_files_and_can_be_adopted() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("first", "").await?;
    ssh::command(&home, Door::Proxy, "first", "cd /workspace && git init -q . ; echo A heron. > README.md").await?;

    let unasked = gateway.ask("confirm delete first").await?;
    assert!(home.container("first").await.is_ok(), "deleted without having been asked:\n{unasked}");
    let asked = gateway.ask("delete project first").await?;
    assert!(asked.contains("confirm delete first"), "{asked}");
    assert!(home.container("first").await.is_ok(), "deleted without a confirmation:\n{asked}");
    let deleted = gateway.ask("confirm delete first").await?;
    assert!(home.container("first").await.is_err(), "the container is still there:\n{deleted}");
    let readme = home.project("first").join("README.md");
    assert_eq!(fs::read_to_string(&readme)?, "A heron.\n", "the host's source stays:\n{deleted}");
    assert_eq!(fs::read_dir(home.state().join("projects"))?.count(), 0, "nothing of it is kept:\n{deleted}");
    let listed = gateway.ask("projects").await?;
    assert!(!listed.contains("first"), "{listed}");

    gateway.make("second", &format!("--path {} --adopt", home.project("first").display())).await?;
    assert_eq!(ssh::command(&home, Door::Proxy, "second", "cat /workspace/README.md").await?, "A heron.\n");
    gateway.finish().await.map(drop)
}

async fn git(directory: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(args);
    process::run(&mut command, b"", wait::SHORT).await?.success().map(drop)
}

#[tokio::test]
async fn doctor_version_and_health_answer_while_the_gateway_runs_and_while_it_does_not() -> Result<()> {
    let home = Home::practice().await?;
    let version = home.run(["version"], "").await?.success()?;
    assert!(version.contains("musher"), "{version}");
    assert!(home.run(["doctor"], "").await?.text().contains("engine"), "doctor tells of the engine");
    assert_eq!(home.health().await?, None, "nobody runs");
    let gateway = Gateway::console(&home).await?;
    let (status, body) = home.health().await?.context("the gateway runs")?;
    assert_eq!(status, 200, "{body}");
    let doctor = home.run(["doctor"], "").await?.success()?;
    assert!(doctor.contains("engine"), "{doctor}");
    gateway.stop().await?;
    assert_eq!(home.health().await?, None, "nobody runs any more");
    Ok(())
}

#[tokio::test]
async fn health_says_why_no_messages_are_taken() -> Result<()> {
    let nobody = tests::homeserver::free_port()?;
    let top = format!(
        "transport = \"matrix\"\nhomeserver = \"http://127.0.0.1:{nobody}\"\nusername = \"bot\"\npassword = \"secret\"\nallowed_users = [\"@ann:homeserver.test\"]\n"
    );
    let home = Home::new(&top, "[agent]\nruntime = \"echo\"")?;
    let gateway = Gateway::start(&home, &[])?;
    let body = wait::until("health says that the homeserver is not there", wait::SHORT, || async {
        let answer = home.health().await?;
        Ok(answer.filter(|(status, body)| *status == 503 && body.contains("homeserver")).map(|(_, body)| body))
    })
    .await
    .with_context(|| gateway.all())?;
    // So does the terminal, and before that who talks where.
    let told =
        ["It talks in Matrix rooms as bot on http://127.0.0.1:", "the homeserver cannot be reached; tried again in "];
    wait::until("the terminal is told as well", wait::SHORT, || async {
        let all = gateway.all();
        Ok(told.iter().all(|told| all.contains(told)).then_some(()))
    })
    .await
    .with_context(|| gateway.all())?;
    assert!(!gateway.all().contains("Connected."), "{}", gateway.all());
    let report: serde_json::Value = serde_json::from_str(&body)?;
    assert!(report["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{body}");
    Ok(())
}
