//! A gateway that is stopped and started again finds its projects, their containers and its sessions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    model::{Model, Step},
    ssh::{self, Door},
    wait,
};
use tokio::net::UnixListener;
use uuid::Uuid;

#[tokio::test]
async fn projects_containers_and_sessions_survive_a_restart() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("what bird", [Step::say("It was the heron.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("lasting", "").await?;
    let answer = gateway.ask("please remember the heron").await?;
    assert!(answer.contains("I will remember the heron."), "{answer}");
    let before = engine::inspect(&home.container("lasting").await?).await?;
    gateway.stop().await?;

    let mut gateway = Gateway::console(&home).await?;
    let listed = gateway.ask("projects").await?;
    assert!(listed.contains("lasting"), "{listed}");
    let after = engine::inspect(&home.container("lasting").await?).await?;
    assert_eq!(after["Id"], before["Id"], "the container was found again");
    assert_eq!(after["State"]["Running"], Value::Bool(true));
    // The choice of the project survives as well: nobody switches here.
    let answer = gateway.ask("what bird was it?").await?;
    assert!(answer.contains("It was the heron."), "{answer}");
    let asked = model.asked("what bird");
    assert_eq!(asked.len(), 1);
    let conversation = asked[0].conversation();
    assert!(
        conversation.contains("please remember the heron") && conversation.contains("I will remember the heron."),
        "the session went on from what was said before:\n{conversation}"
    );
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn an_agent_that_was_killed_remembers_what_was_said_since_it_last_ended_in_order() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("and the fox", [Step::say("The fox, too.")]);
    model.on("what animals", [Step::say("A heron and a fox.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("memory", "").await?;
    let container = home.container("memory").await?;
    gateway.ask("please remember the heron").await?;
    engine::docker(&["stop", &container]).await?;
    gateway.ask("and the fox, please").await?;
    let session = session_of(&home)?;
    wait::until("the agent has put the answer away", wait::SHORT, || async {
        Ok(fs::read_to_string(&session)?.contains("The fox, too.").then_some(()))
    })
    .await?;
    engine::docker(&["kill", &container]).await?;
    end_elsewhere(&session, "I will remember the heron.")?;
    let answer = gateway.ask("what animals were they?").await?;
    assert!(answer.contains("A heron and a fox."), "{answer}");
    let conversation = model.asked("what animals")[0].conversation();
    for said in ["please remember the heron", "and the fox, please", "The fox, too."] {
        assert!(conversation.contains(said), "`{said}` is forgotten:\n{conversation}");
    }
    gateway.finish().await.map(drop)
}

/// The file of the one session that there is.
fn session_of(home: &Home) -> Result<PathBuf> {
    let entries =
        |folder: PathBuf| -> Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    let mut files = Vec::new();
    for project in entries(home.state().join("projects"))? {
        for folder in entries(project.join("home/dev/.claude/projects"))? {
            files.extend(entries(folder)?);
        }
    }
    files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "jsonl")).context("a session")
}

/// Has the session's last note of an end in order tell of one, after what says `said`, from which nothing went on.
fn end_elsewhere(session: &Path, said: &str) -> Result<()> {
    let mut lines: Vec<String> = fs::read_to_string(session)?.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| line.contains(said)).context("it was said")?;
    let mut end: Value = serde_json::from_str(&lines[at])?;
    end["uuid"] = json!(Uuid::new_v4());
    let noted = lines.iter().rposition(|line| line.contains("\"last-prompt\"")).context("it ended in order")?;
    let note = json!({ "type": "last-prompt", "leafUuid": end["uuid"], "sessionId": end["sessionId"] });
    lines[noted] = format!("{end}\n{note}");
    Ok(fs::write(session, lines.join("\n") + "\n")?)
}

#[tokio::test]
async fn reset_begins_a_session_that_remembers_nothing() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("what bird", [Step::say("Which bird?")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("fresh", "").await?;
    gateway.ask("please remember the heron").await?;
    gateway.ask("reset").await?;
    let answer = gateway.ask("what bird was it?").await?;
    assert!(answer.contains("Which bird?"), "{answer}");
    let asked = model.asked("what bird");
    assert!(!asked[0].conversation().contains("heron"), "{}", asked[0].conversation());
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_killed_gateway_is_followed_by_one_that_works() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("killed", "").await?;
    gateway.kill().await?;
    let mut gateway = Gateway::console(&home).await?;
    let answer = gateway.ask("are you there?").await?;
    assert!(answer.contains("are you there?"), "{answer}");
    assert_eq!(ssh::command(&home, Door::Port, "killed", "echo yes").await?, "yes\n");
    gateway.finish().await.map(drop)
}

/// A container of the project that the gateway does not know, as one that a killed engine has forgotten.
struct Unseen(String);

impl Unseen {
    /// Runs, with the same folders as the project's own.
    async fn beside(own: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("the engine tells it");
        let (name, image, user) = (text(&own["Name"])?, text(&own["Config"]["Image"])?, text(&own["Config"]["User"])?);
        let (uid, gid) = user.split_once(':').context("a user and a group")?;
        let run = format!("/run/musher:mode=0700,uid={uid},gid={gid}");
        let same = ["--volumes-from", name.trim_start_matches('/'), "--user", &user, "--tmpfs", &run];
        let id = engine::docker(&[&["run", "--detach"][..], &same, &[&image]].concat()).await?;
        Ok(Self(id.trim().to_owned()))
    }

    async fn start(&self) -> Result<()> {
        engine::docker(&["start", &self.0]).await.map(drop)
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        let removed = std::process::Command::new("docker").args(["rm", "--force", "--volumes", &self.0]).output();
        if !removed.is_ok_and(|removed| removed.status.success()) {
            eprintln!("container {} may be left", self.0);
        }
    }
}

/// Waits until a container has ended, and in good order.
async fn wait_exited(container: &str) -> Result<()> {
    let exited = || async {
        let state = &engine::inspect(container).await?["State"];
        Ok((state["Status"] == "exited").then(|| state["ExitCode"].clone()))
    };
    let code = wait::until("the container has ended", wait::LONG, exited).await?;
    ensure!(code == 0, "it ended with {code}");
    Ok(())
}

#[tokio::test]
async fn a_sled_that_runs_unseen_ends_for_its_projects_own_and_with_its_project() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("beside", "").await?;
    let own = home.container("beside").await?;
    let unseen = Unseen::beside(&engine::inspect(&own).await?).await?;
    // The newest has the project.
    wait_exited(&own).await?;
    let answer = gateway.ask("are you there?").await?;
    assert!(answer.contains("are you there?"), "{answer}");
    wait_exited(&unseen.0).await?;

    unseen.start().await?;
    wait_exited(&own).await?;
    gateway.ask("delete project beside").await?;
    gateway.ask("confirm delete beside").await?;
    wait_exited(&unseen.0).await?;
    gateway.finish().await.map(drop)
}

/// What an earlier one left half made is to be removed, and the engine does not answer.
#[tokio::test]
async fn a_gateway_that_is_still_starting_ends_in_order_too() -> Result<()> {
    let home = Home::practice().await?;
    let mut doomed = Gateway::start_with(&home, &[], &[("FAILPOINTS", "before project.registered=return")])?;
    doomed.write("new project brief").await?;
    let killed = wait::until("it is killed", wait::LONG, || {
        let ended = doomed.ended();
        async { ended }
    });
    killed.await?;
    let socket = home.path().join("silent.sock");
    let engine = UnixListener::bind(&socket)?;
    let starting = Gateway::start_with(&home, &[], &[("DOCKER_HOST", &format!("unix://{}", socket.display()))])?;
    let _asked = tokio::time::timeout(wait::LONG, engine.accept()).await.context("the engine is asked")??;
    starting.stop().await?;
    // It is removed all the same, once there is an engine.
    Gateway::console(&home).await?.finish().await?;
    assert!(!home.project("brief").exists());
    Ok(())
}
