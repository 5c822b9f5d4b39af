//! What the model was used for, what that may come to in a day, and the numbers for whoever watches (SLED-6).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use tests::{
    home::Home,
    model::{Model, Step},
    wait,
};

use crate::scene::{Cast, Scene};

/// What one request of the stand-in counts as.
const TOKENS: usize = 110;

/// In what is told of a budget.
const USED_UP: &str = "is used up";

/// The tables of bot.toml with this budget.
fn tables(model: &Model, daily_tokens: u64) -> String {
    format!("{}\n\n[budget]\ndaily_tokens = {daily_tokens}", Home::agent_tables(model))
}

/// What the gateway tells whoever watches: each series with its value.
pub async fn metrics(home: &Home) -> Result<BTreeMap<String, String>> {
    let (status, body) = home.get("/metrics", "127.0.0.1").await?;
    anyhow::ensure!(status == 200 && body.ends_with("# EOF\n"), "{status} {body}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
        let _: f64 = value.parse().with_context(|| format!("no number: {line}"))?;
        Ok((series.to_owned(), value.to_owned()))
    };
    samples.map(sample).collect()
}

#[tokio::test]
async fn what_is_over_the_days_budget_waits_visibly_until_there_is_more() -> Result<()> {
    let model = Model::start().await?;
    model.on("first", [Step::say("One.")]);
    model.on("second", [Step::say("Two.")]);
    let (scene, gateway) = Scene::set(Cast::of(&model, "thrifty").tables(tables(&model, 100))).await?;
    scene.ask("the first", "One.").await.with_context(|| gateway.all())?;
    let waiting = scene.say("the second").await?;
    scene.hear(&waiting, USED_UP).await.with_context(|| gateway.all())?;
    scene.say("and a third").await?;

    let listed = wait::until("both messages wait", wait::SHORT, || async {
        let listed = scene.ask("queue", "waiting").await?.body;
        Ok(listed.contains("and a third").then_some(listed))
    })
    .await?;
    assert!(listed.contains("the second") && listed.contains(USED_UP), "{listed}");
    let seen = metrics(&scene.home).await?;
    for (series, wanted) in [("musher_projects_paused", "1"), ("musher_messages_waiting", "2")] {
        assert_eq!(seen[series], wanted, "{series} in {seen:#?}");
    }
    scene.ask("cost", "of 100 tokens today").await?;
    let told = scene.ann.heard(&scene.room, &scene.bot.id).into_iter();
    let notices = told.filter(|message| message.kind == "m.notice" && message.body.contains(USED_UP)).count();
    assert_eq!(notices, 1, "the room was told once");
    assert!(model.asked("second").is_empty());
    gateway.stop().await?;

    scene.configure(&tables(&model, 1_000_000))?;
    let gateway = scene.up().await?;
    scene.answer(&waiting, "Two.").await.with_context(|| gateway.all())?;
    let asked = model.asked("second");
    assert!(matches!(&asked[..], [asked] if asked.said.contains("and a third")), "{asked:#?}");
    assert_eq!(metrics(&scene.home).await?["musher_projects_paused"], "0");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn cost_and_metrics_tell_what_was_used_by_day_and_room() -> Result<()> {
    let model = Model::start().await?;
    model.on("hello", [Step::say("Hello.")]);
    let (scene, gateway) = Scene::open(&model, "", "counted").await?;
    let Scene { home, ann, bot, room, .. } = &scene;
    let other = ann.create_room("the two of us", &[&bot.id]).await?;
    ann.wait_membership(&other, &bot.id, "join").await?;
    ann.ask(&other, &bot.id, "switch counted", "counted").await?;
    scene.ask("hello here", "Hello.").await.with_context(|| gateway.all())?;
    ann.ask(&other, &bot.id, "hello there", "Hello.").await.with_context(|| gateway.all())?;

    let requests = model.requests().len();
    let total = requests * TOKENS;
    // A turn is counted when its answer is out.
    let seen = wait::until("both turns are counted", wait::SHORT, || async {
        let seen = metrics(home).await?;
        Ok((seen[r#"musher_turns_total{ending="answered"}"#] == "2").then_some(seen))
    })
    .await?;
    let cost = scene.ask("cost", "today").await?.body;
    let today = cost.lines().find(|line| line.contains("today")).context("today is told")?;
    assert!(today.contains(&format!("{} tokens", thousands(total))) && today.contains("2 turns"), "{requests}: {cost}");
    for room in [room, &other] {
        let line = cost.lines().find(|line| line.contains(room.as_str()));
        assert!(line.is_some_and(|line| line.contains("1 turn")), "{cost}");
    }

    for (series, wanted) in [
        (r#"musher_model_tokens_total{kind="input"}"#, requests * 100),
        (r#"musher_model_tokens_total{kind="output"}"#, requests * 10),
        (r#"musher_model_requests_total{outcome="answered"}"#, requests),
        (r#"musher_turns_total{ending="failed"}"#, 0),
        ("musher_turn_duration_seconds_count", 2),
        ("musher_message_wait_seconds_count", 2),
        ("musher_turns_running", 0),
        ("musher_messages_waiting", 0),
        ("musher_send_retries_total", 0),
        ("musher_sends_given_up_total", 0),
        ("musher_journal_append_failures_total", 0),
        ("musher_projects", 1),
        ("musher_links_open", 1),
        ("musher_sleds_unreachable", 0),
        ("musher_engine_reachable", 1),
        ("musher_projects_paused", 0),
    ] {
        assert_eq!(seen.get(series), Some(&wanted.to_string()), "{series} in {seen:#?}");
    }
    for series in ["musher_sends_total", "musher_messages_undelivered", "process_start_time_seconds"] {
        assert!(seen.contains_key(series), "{series} in {seen:#?}");
    }
    let (status, body) = home.get("/metrics", "evil.example.org").await?;
    assert!(status == 421 && body.is_empty(), "by a name that is none of ours: {status} {body}");
    gateway.stop().await.map(drop)
}

fn thousands(n: usize) -> String {
    if n < 1000 { n.to_string() } else { format!("{},{:03}", n / 1000, n % 1000) }
}
