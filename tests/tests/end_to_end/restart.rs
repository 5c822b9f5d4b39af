//! A gateway that is stopped and started again finds its projects, their containers and its sessions.

use anyhow::Result;
use serde_json::Value;
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    model::{Model, Step},
    ssh::{self, Door},
};

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
