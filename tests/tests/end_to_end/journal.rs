//! `musher journal` beside a running gateway, and what redaction leaves of a message there (JRNL-8).

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result};
use tests::{
    gateway::Gateway,
    home::Home,
    model::{Gate, Model, Step},
    process::Output,
    wait,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::scene::Scene;

/// What `musher journal` with these arguments prints.
async fn journal(scene: &Scene, args: &[&str]) -> Result<String> {
    scene.home.run([&["journal"], args].concat(), "").await.and_then(Output::success)
}

#[tokio::test]
async fn the_journal_is_shown_and_verified_beside_a_running_gateway_and_a_redacted_message_is_erased() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("bittern", [Step::say("I will keep it to myself.")]);
    model.on("hold on", [Step::Wait(gate.clone()), Step::say("Held.")]);
    let (scene, gateway) = Scene::open(&model, "", "written").await?;
    let question = scene.say("my bird is the bittern").await?;
    scene.answer(&question, "to myself").await.with_context(|| gateway.all())?;

    let last = journal(&scene, &["tail", "--lines", "3"]).await?;
    assert_eq!(last.lines().count(), 3, "{last}");
    let all = scene.journal().await?;
    let line = all.lines().find(|line| line.contains("message.accepted")).context("a message was accepted")?;
    assert!(line.contains("«my bird is the bittern»") && line.contains(&scene.ann.id), "{line}");
    let stream = session(line).context("it is a session's")?;
    let shown = journal(&scene, &["show", &stream]).await?;
    for kind in ["session.opened", "message.accepted", "session.turn_begun", "session.turn_finished"] {
        assert!(shown.contains(kind), "no {kind} in\n{shown}");
    }
    assert!(shown.lines().any(|shown| shown == line), "it is the same event:\n{line}\n{shown}");

    let mut following = scene.home.musher()?;
    following.args(["journal", "tail", "--lines", "0", "--follow"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut following = following.spawn()?;
    let mut lines = BufReader::new(following.stdout.take().context("a pipe")?).lines();
    let held = scene.say("hold on").await?;
    let followed = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("«hold on»") {
                return Ok(());
            }
        }
        anyhow::bail!("`tail --follow` ended")
    };
    tokio::time::timeout(wait::SHORT, followed).await.context("the message was not followed")??;
    following.kill().await?;

    scene.ann.redact(&scene.room, &question).await?;
    wait::until("the redacted message is erased", wait::SHORT, || async {
        Ok(journal(&scene, &["show", &stream]).await?.contains("«erased»").then_some(()))
    })
    .await
    .with_context(|| gateway.all())?;
    assert!(!scene.journal().await?.contains("bittern"), "no event has it elsewhere");
    let verified = journal(&scene, &["verify"]).await?;
    assert!(verified.contains("all is well") && verified.contains("erased"), "{verified}");
    gate.open();
    scene.answer(&held, "Held.").await?;
    gateway.stop().await?;

    let verified = journal(&scene, &["verify"]).await?;
    assert!(verified.contains("all is well"), "and after the end: {verified}");
    for entry in fs::read_dir(scene.home.state())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal.db")) {
            let bytes = fs::read(&path)?;
            assert!(!bytes.windows(7).any(|window| window == b"bittern"), "its bytes are in {}", path.display());
        }
    }
    Ok(())
}

/// Waits until the gateway's journal says nothing of these words any more.
async fn forgotten(scene: &Scene, words: &str) -> Result<()> {
    wait::until(&format!("`{words}` is erased"), wait::SHORT, || async {
        Ok((!scene.journal().await?.contains(words)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_message_whose_edit_is_taken_back_is_not_answered_and_the_edit_is_erased() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("hold on", [Step::Wait(gate.clone()), Step::say("Held.")]);
    model.on("heron", [Step::say("The rest is read.")]);
    let (scene, gateway) = Scene::open(&model, "", "written").await?;
    let held = scene.say("hold on").await?;
    model.wait_asked("hold on").await?;
    let said = scene.say("a bird, as it was").await?;
    let rest = scene.say("heron").await?;
    let edit = scene.ann.edit(&scene.room, &said, "my bird is the bittern").await?;
    scene.wait_journal("«my bird is the bittern»", 0).await.with_context(|| gateway.all())?;
    scene.ann.redact(&scene.room, &edit).await?;
    scene.hear(&said, "The edit of this message was removed").await.with_context(|| gateway.all())?;
    forgotten(&scene, "bittern").await?;
    gate.open();
    scene.answer(&held, "Held.").await.with_context(|| gateway.all())?;
    scene.answer(&rest, "The rest is read.").await.with_context(|| gateway.all())?;
    let asked = model.asked("heron");
    assert!(asked.iter().all(|asked| !asked.said.contains("bittern") && !asked.said.contains("as it was")));
    assert!(journal(&scene, &["verify"]).await?.contains("all is well"));
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn an_answer_that_is_taken_back_is_erased() -> Result<()> {
    let model = Model::start().await?;
    model.on("which bird", [Step::say("It is the bittern.")]);
    let (scene, gateway) = Scene::open(&model, "", "written").await?;
    let question = scene.say("which bird is it?").await?;
    let answer = scene.answer(&question, "bittern").await.with_context(|| gateway.all())?;
    scene.wait_journal("«It is the bittern.»", 0).await?;
    // Ann has made the room, and may take out what others say there.
    scene.ann.redact(&scene.room, &answer.event_id).await?;
    forgotten(&scene, "bittern").await.with_context(|| gateway.all())?;
    assert!(journal(&scene, &["verify"]).await?.contains("all is well"));
    gateway.stop().await.map(drop)
}

/// The session's stream in a line of `tail`: a room's id is in it, which has no `@`, and the event's version follows one.
fn session(line: &str) -> Option<String> {
    let from = line.find("session/")?;
    let to = from + line[from..].find('@')?;
    Some(line[from..to].to_owned())
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_refused_with_a_hint() -> Result<()> {
    let home = Home::practice().await?;
    let gateway = Gateway::console(&home).await?;
    for stream in ["project/nothing", "nonsense"] {
        let refused = home.run(["journal", "show", stream], "").await?;
        assert!(refused.code.is_some_and(|code| code != 0), "{refused}");
        assert!(refused.text().contains(stream) && refused.text().contains("musher journal tail"), "{refused}");
    }
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn where_no_gateway_has_been_there_is_no_journal_and_none_is_made() -> Result<()> {
    let home = Home::new("", "")?;
    let before = home.tree()?;
    for args in [&["journal", "tail"][..], &["journal", "verify"], &["journal", "show", "gateway/self"]] {
        let refused = home.run(args, "").await?;
        assert!(refused.code.is_some_and(|code| code != 0), "{refused}");
        assert!(refused.text().contains("no journal") && refused.text().contains("musher up"), "{refused}");
    }
    assert_eq!(home.tree()?, before);
    assert!(!home.state().join("journal.db").exists());
    Ok(())
}
