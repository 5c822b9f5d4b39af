//! What becomes of a turn that does not go as it should, and of what an agent leaves behind.

use anyhow::Result;
use serde_json::json;
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    images,
    model::{Gate, Model, Step},
    ssh::{self, Door},
    wait,
};

#[tokio::test]
async fn a_turn_that_fails_says_why_and_the_next_one_runs() -> Result<()> {
    images::ready().await?;
    let script = "read -r line; case $line in *please*) echo boom from inside >&2; exit 3;; esac; \
                  echo '{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"It works.\"}'";
    let home = Home::new("", &format!("[agent]\nruntime = \"command\"\ncommand = {}", json!(["sh", "-c", script])))?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("failing", "").await?;
    let answer = gateway.ask("fail please").await?;
    assert!(answer.contains('3') && answer.contains("boom from inside"), "the reason and the last lines:\n{answer}");
    let answer = gateway.ask("and now").await?;
    assert!(answer.contains("It works."), "{answer}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_key_that_the_model_refuses_is_said() -> Result<()> {
    let model = Model::start().await?;
    let home = Home::real(&model).await?.with_variable("ANTHROPIC_API_KEY", "another-key");
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("refused", "").await?;
    let answer = gateway.ask("hello?").await?;
    assert!(
        answer.contains('⚠') && answer.to_lowercase().contains("api key") || answer.contains("x-api-key"),
        "{answer}"
    );
    assert!(!answer.contains("another-key"), "{answer}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn nothing_that_an_agent_started_outlives_its_turn() -> Result<()> {
    let model = Model::start().await?;
    let command = "setsid sh -c 'trap \"\" HUP TERM; while :; do sleep 98763; done' >/dev/null 2>&1 & echo started";
    model.on("leave", [Step::call("Bash", json!({ "command": command })), Step::say("Left something running.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("leaving", "").await?;
    let answer = gateway.ask("leave something").await?;
    assert!(answer.contains("Left something running."), "{answer}");
    let results: Vec<_> = model.requests().into_iter().filter(|request| request.tool_result.is_some()).collect();
    assert!(results.iter().any(|request| request.body.to_string().contains("started")), "the child was started");
    let running = engine::docker(&["top", &home.container("leaving").await?, "-eo", "pid,args"]).await?;
    assert!(!running.contains("98763"), "the turn has ended, and this runs still:\n{running}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_session_that_the_agent_lost_is_begun_anew_and_said() -> Result<()> {
    let model = Model::start().await?;
    model.on("remember", [Step::say("I will remember the heron.")]);
    model.on("what bird", [Step::say("Which bird?")]);
    let home = Home::real(&model).await?;
    // An agent that is kept warm remembers without its files.
    home.configure("", &Home::agent_tables(&model).replacen("[agent]", "[agent]\nkeep_warm_secs = 0", 1))?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("forgetful", "").await?;
    gateway.ask("please remember the heron").await?;
    ssh::command(&home, Door::Port, "forgetful", "rm -rf ~/.claude ~/.claude.json").await?;
    let answer = gateway.ask("what bird was it?").await?;
    assert!(answer.contains("Which bird?"), "a fresh session answers:\n{answer}");
    assert!(answer.contains("lost"), "and the room is told:\n{answer}");
    assert_eq!(model.asked("what bird").len(), 1);
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_sled_that_is_silent_is_called_unreachable() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("silent", "").await?;
    let container = home.container("silent").await?;
    engine::docker(&["pause", &container]).await?;
    let answer = gateway.ask_within("status", wait::SHORT).await?;
    assert!(answer.contains("The sled is unreachable since"), "{answer}");
    let answer = gateway.ask_within("projects", wait::SHORT).await?;
    assert!(answer.contains("silent"), "other commands do not wait for it:\n{answer}");
    engine::docker(&["unpause", &container]).await?;
    let answer = gateway.ask("are you back?").await?;
    assert!(answer.contains("are you back?"), "{answer}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn what_is_said_during_a_turn_is_the_next_turn_and_the_answer_is_not_held_back() -> Result<()> {
    let model = Model::start().await?;
    let (first, second) = (Gate::closed(), Gate::closed());
    model.on("first", [Step::Wait(first.clone()), Step::say("Answer to the first.")]);
    model.on("second", [Step::Wait(second.clone()), Step::say("Answer to the rest.")]);
    let home = Home::real(&model).await?;
    Gateway::console(&home).await?.make("busy", "").await?;
    let mut gateway = Gateway::up(&home, &["--no-wait"]).await?;
    gateway.write("switch busy").await?;
    gateway.write("first words").await?;
    model.wait_asked("first").await?;
    gateway.write("second words").await?;
    gateway.write("third words").await?;
    // A command is answered at once, while the turn runs and messages wait.
    gateway.write("projects").await?;
    gateway.expect("running", wait::SHORT).await?;
    first.open();
    gateway.expect("Answer to the first.", wait::LONG).await?;
    let asked = model.wait_asked("second").await?;
    assert!(asked.said.contains("second words") && asked.said.contains("third words"), "{}", asked.said);
    assert!(!asked.said.contains("first words"), "what was answered is not said again: {}", asked.said);
    second.open();
    gateway.expect("Answer to the rest.", wait::LONG).await?;
    assert_eq!(model.asked("words").len(), 2, "two turns in all");
    gateway.finish().await.map(drop)
}
