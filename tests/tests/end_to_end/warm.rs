//! An agent's process is kept for its session's next turn, and nothing else of a turn lives on (SLED-7).

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{
    engine,
    home::Home,
    model::{Model, Step},
    ssh::{self, Door},
};

use crate::scene::{Cast, Scene, TOOL, until_go};

/// In the command line of what the agent leaves behind.
const LEFT: &str = "sleep 98764";

/// Process id and command line of everything in the container.
async fn processes(scene: &Scene, project: &str) -> Result<String> {
    engine::docker(&["top", &scene.home.container(project).await?, "-eo", "pid,args"]).await
}

/// The process ids of the agents among them.
fn agents(processes: &str) -> Vec<&str> {
    let words = processes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|words| words.get(1).is_some_and(|program| program.ends_with("claude")))
        .map(|words| words[0])
        .collect()
}

#[tokio::test]
async fn two_turns_take_one_process_and_nothing_else_of_a_turn_lives_on_and_stop_ends_all() -> Result<()> {
    let model = Model::start().await?;
    let leave = format!("setsid sh -c 'trap \"\" HUP TERM; while :; do {LEFT}; done' >/dev/null 2>&1 & echo left");
    model.on("first", [Step::call("Bash", json!({ "command": leave })), Step::say("One.")]);
    model.on("second", [Step::say("Two.")]);
    model.on("third", [until_go(), Step::say("Never said.")]);
    let (scene, gateway) = Scene::open(&model, "", "warm").await?;

    scene.ask("the first", "One.").await.with_context(|| gateway.all())?;
    let after_one = processes(&scene, "warm").await?;
    assert_eq!(agents(&after_one).len(), 1, "the agent waits:\n{after_one}");
    assert!(!after_one.contains(LEFT), "what it started does not:\n{after_one}");
    scene.ask("the second", "Two.").await?;
    let after_two = processes(&scene, "warm").await?;
    assert_eq!(agents(&after_two), agents(&after_one), "it is the same process:\n{after_one}\n{after_two}");

    scene.say("the third").await?;
    scene.wait_tool("warm").await.with_context(|| gateway.all())?;
    scene.ask("stop", "topped").await?;
    let stopped = processes(&scene, "warm").await?;
    assert!(agents(&stopped).is_empty() && !stopped.contains(TOOL), "`stop` was answered:\n{stopped}");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn where_nothing_is_to_be_kept_nothing_is_and_the_session_goes_on() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("what bird", [Step::say("The heron.")]);
    let tables = Home::agent_tables_with(&model, "keep_warm_secs = 0");
    let (scene, gateway) = Scene::set(Cast::of(&model, "cold").tables(tables)).await?;
    scene.ask("please remember the heron", "I will").await?;
    let left = processes(&scene, "cold").await?;
    assert!(agents(&left).is_empty(), "{left}");
    scene.ask("what bird was it?", "The heron.").await?;
    let asked = model.asked("what bird");
    assert!(asked[0].conversation().contains("please remember the heron"), "{}", asked[0].conversation());
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_kept_agent_that_was_killed_is_replaced_and_nobody_notices() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("what bird", [Step::say("The heron.")]);
    let (scene, gateway) = Scene::open(&model, "", "replaced").await?;
    scene.ask("please remember the heron", "I will").await?;
    let before = processes(&scene, "replaced").await?;
    ssh::command(&scene.home, Door::Port, "replaced", "pkill -KILL -x claude").await?;
    scene.ask("what bird was it?", "The heron.").await.with_context(|| gateway.all())?;
    let after = processes(&scene, "replaced").await?;
    assert!(agents(&after).len() == 1 && agents(&after) != agents(&before), "{before}\n{after}");
    let asked = model.asked("what bird");
    assert_eq!(asked.len(), 1);
    assert!(asked[0].conversation().contains("please remember the heron"), "{}", asked[0].conversation());
    assert_eq!(scene.complaints(), Vec::<String>::new());
    gateway.stop().await.map(drop)
}
