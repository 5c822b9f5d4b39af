//! What people said while something was away: the gateway, its state directory or a part of it, or a homeserver that takes
//! its time. The next start answers what is due once, in order, and nothing again (DUR-1, DUR-2, DUR-4, DUR-5, DUR-8).

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{home::Home, homeserver::Homeserver, process, product, wait};
use tokio::process::Command;

use crate::{
    budget::metrics,
    scene::{Cast, Scene, is_answer},
};

impl Scene {
    /// Ann says it, and has her answer.
    async fn settle(&self, words: &str) -> Result<String> {
        let said = self.say(words).await?;
        self.answer(&said, words).await?;
        Ok(said)
    }
}

#[tokio::test]
async fn more_than_a_sync_brings_is_answered_in_order_after_the_gateway_was_down() -> Result<()> {
    let (scene, gateway) = Scene::set(Cast::practice("crowded").top("max_queue = 200")).await?;
    let Scene { ann, bob, bot, room, .. } = &scene;
    bob.ask(room, &bot.id, "switch crowded", "crowded").await?;
    gateway.stop().await?;
    // The newest are in the sync, and the others take more than a page of the room's history.
    let (mut said, mut words) = (Vec::new(), Vec::new());
    for number in 0..160 {
        let person = if number % 3 == 0 { bob } else { ann };
        words.push(format!("heron {number}"));
        said.push(person.say(room, &words[number]).await?);
    }

    let gateway = scene.up().await?;
    let last = said.last().context("much was said")?;
    scene.wait_named(last).await.with_context(|| gateway.all())?;
    assert_eq!(scene.answered(&said), said, "each is answered once, in order");
    let heard = ann.heard(room, &bot.id);
    let lines = heard.iter().filter(|message| is_answer(message)).flat_map(|answer| answer.body.lines());
    let repeated: Vec<_> = lines.filter(|line| line.starts_with("heron ")).collect();
    assert_eq!(repeated, words, "the agent was told each once, in order");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn without_the_matrix_clients_store_what_is_due_is_answered_and_nothing_twice() -> Result<()> {
    let (scene, gateway) = Scene::set(Cast::practice("storeless").window(3000)).await?;
    let mut said = vec![scene.settle("heron one").await?, scene.settle("heron two").await?];
    let waiting = scene.say("heron three").await?;
    scene.ann.wait_read(&scene.room, &scene.bot.id, &waiting).await?;
    gateway.kill().await?;
    fs::remove_dir_all(scene.home.state().join("matrix"))?;
    said.extend([waiting, scene.say("heron four").await?]);

    let gateway = scene.up().await?;
    scene.answer(&said[3], "heron four").await.with_context(|| gateway.all())?;
    // Before what is said now, all of that would be said again.
    said.push(scene.settle("heron five").await?);
    assert_eq!(scene.answered(&said), said);
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_state_directory_that_is_set_back_answers_nothing_again() -> Result<()> {
    let homeserver = Homeserver::private().await?;
    let (scene, gateway) = Scene::on(&homeserver, Cast::practice("setback")).await?;
    let mut said = vec![scene.settle("heron one").await?];
    gateway.stop().await?;
    let folder = product::scratch()?;
    let copy = folder.path().join("copy");
    let mut cp = Command::new("cp");
    cp.arg("--archive").arg(scene.home.state()).arg(&copy);
    process::run(&mut cp, b"", wait::SHORT).await?.success()?;

    let gateway = scene.up().await?;
    said.extend([scene.settle("heron two").await?, scene.settle("heron three").await?]);
    let command = scene.say("!version").await?;
    scene.wait_named(&command).await?;
    gateway.stop().await?;
    fs::remove_dir_all(scene.home.state())?;
    fs::rename(&copy, scene.home.state())?;
    said.push(scene.say("heron four").await?);

    let gateway = scene.up().await?;
    scene.answer(&said[3], "heron four").await.with_context(|| gateway.all())?;
    said.push(scene.settle("heron five").await?);
    assert_eq!(scene.answered(&said), said);
    // Of that, the same answer again would be no other event.
    assert!(!scene.journal().await?.contains(&command), "nor is a command carried out");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_state_directory_that_is_lost_makes_all_that_was_said_history() -> Result<()> {
    let (scene, gateway) = Scene::set(Cast::practice("forgotten")).await?;
    scene.settle("heron one").await?;
    gateway.stop().await?;
    scene.say("heron two").await?;
    empty(&scene.home)?;
    let answers = || scene.ann.heard(&scene.room, &scene.bot.id).iter().filter(|message| is_answer(message)).count();
    let heard = answers();

    let gateway = scene.up().await?;
    // Nobody has chosen a project: whatever is taken for new is answered with how to.
    scene.wait_named(&scene.say("heron three").await?).await.with_context(|| gateway.all())?;
    assert_eq!(answers(), heard + 1);
    gateway.stop().await.map(drop)
}

/// Removes all of the state directory but the settings.
fn empty(home: &Home) -> Result<()> {
    let remove = |path: &Path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    for entry in fs::read_dir(home.state())? {
        let path = entry?.path();
        if !path.ends_with("bot.toml") {
            remove(&path).with_context(|| format!("could not remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_homeserver_that_allows_few_messages_gets_all_answers_in_order_when_it_asks_for_them() -> Result<()> {
    let homeserver = Homeserver::private().await?;
    let (scene, gateway) = Scene::on(&homeserver, Cast::practice("slowly")).await?;
    gateway.stop().await?;
    // Synapse takes ten messages at once, and then one in five seconds. People have no limits yet.
    let (burst, more) = (10, 4);
    let mut said = Vec::new();
    for _ in 0..burst + more {
        said.push(scene.say("switch slowly").await?);
    }
    homeserver.kill().await?;
    homeserver.limit_messages()?;
    homeserver.revive().await?;

    let gateway = scene.up().await?;
    let last = said.last().context("much was said")?;
    scene.wait_named(last).await.with_context(|| gateway.all())?;
    assert_eq!(scene.answered(&said), said, "each is answered once, in order");
    let retries: usize = metrics(&scene.home).await?["musher_send_retries_total"].parse()?;
    assert!((1..=more + 1).contains(&retries), "each was tried again when it was time: {retries}");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_clean_stop_does_not_wait_for_a_homeserver_that_hangs_and_the_next_start_delivers() -> Result<()> {
    // It is held, so nobody else may be on it.
    let homeserver = Homeserver::private().await?;
    let (scene, gateway) = Scene::on(&homeserver, Cast::practice("hanging").window(3000)).await?;
    let question = scene.say("say it in the end").await?;
    scene.ann.wait_read(&scene.room, &scene.bot.id, &question).await?;
    let journal = scene.journal().await?;
    homeserver.hold()?;
    scene.wait_journal("session.turn_finished", journal.matches("session.turn_finished").count()).await?;
    let began = Instant::now();
    gateway.stop().await.context("a clean stop has exit code 0")?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(15), "it took {took:?}");
    let delivered = |journal: &str| journal.matches("send.delivered").count();
    assert_eq!(delivered(&scene.journal().await?), delivered(&journal), "nothing could be sent");
    homeserver.release()?;

    let gateway = scene.up().await?;
    scene.answer(&question, "say it in the end").await.with_context(|| gateway.all())?;
    let said = [question, scene.settle("and now?").await?];
    assert_eq!(scene.answered(&said), said);
    gateway.stop().await.map(drop)
}
