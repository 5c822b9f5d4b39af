//! The model's service limits the rate (SLED-5): the turn waits, the room is told once, and `stop` ends the wait.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{
    gateway::Gateway,
    home::Home,
    images,
    model::{Limit, Model, Step},
    wait,
};

use crate::scene::Scene;

/// In what a room is told of a limit.
const TOLD: &str = "limits the rate";

#[tokio::test]
async fn while_the_service_asks_for_patience_the_turn_waits_and_then_answers() -> Result<()> {
    let model = Model::start().await?;
    model.on("and now?", [Step::say("Now.")]);
    let asked = AtomicU32::new(0);
    model.otherwise(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => vec![Step::Limit(Limit::Soft(1))],
        _ => vec![Step::say("At last.")],
    });
    let (scene, gateway) = Scene::open(&model, "", "slowed").await?;
    let question = scene.say("hurry up").await?;
    scene.hear(&question, TOLD).await.with_context(|| gateway.all())?;
    scene.answer(&question, "At last.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "At last.").await?;
    assert_eq!((scene.heard(TOLD), scene.complaints()), (1, vec![]), "told once, and no failure");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_hard_limit_is_waited_out_and_stop_ends_the_wait_at_once() -> Result<()> {
    let model = Model::start().await?;
    model.on("hurry up", [Step::Limit(Limit::Hard)]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::open(&model, "", "limited").await?;
    let question = scene.say("hurry up").await?;
    let told = scene.hear(&question, TOLD).await.with_context(|| gateway.all())?;
    assert!(told.body.contains(" until "), "how long it waits is told: {}", told.body);
    scene.ask("status", "running for").await?;
    let began = Instant::now();
    scene.ask("stop", "topped").await.with_context(|| gateway.all())?;
    assert!(began.elapsed() < wait::SHORT, "`stop` took {:?}", began.elapsed());
    scene.ask("and now?", "Now.").await?;
    assert_eq!(model.asked("hurry up").len(), 1, "the service was left alone");
    assert_eq!(scene.heard(TOLD), 1);
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_limit_that_says_when_it_lifts_is_waited_for_until_then() -> Result<()> {
    images::ready().await?;
    // What Claude Code says of a subscription's limit, which the stand-in model has no way to bring about.
    let script = [
        "read -r line",
        "if mkdir /workspace/tried 2>/dev/null",
        "then at=$(($(date +%s) + 2))",
        "echo $at > /workspace/tried/lifts",
        r#"echo '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":'$at'}}'"#,
        r#"echo '{"type":"result","is_error":true,"api_error_status":429,"result":"limited"}'"#,
        "else said='In time.'",
        "[ $(date +%s) -ge $(cat /workspace/tried/lifts) ] || said='Too early.'",
        r#"echo '{"type":"result","is_error":false,"result":"'"$said"'"}'"#,
        "fi",
    ]
    .join("; ");
    let home = Home::new(
        "coalesce_window_ms = 200",
        &format!("[agent]\nruntime = \"command\"\ncommand = {}", json!(["sh", "-c", script])),
    )?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("lifted", "").await?;
    let answer = gateway.ask("hurry up").await?;
    assert!(answer.contains("In time."), "{answer}");
    assert_eq!(answer.matches(TOLD).count(), 1, "{answer}");
    gateway.finish().await.map(drop)
}
