//! What a message does that comes while a turn runs (CHAT-7).

use anyhow::{Context as _, Result};
use tests::model::{Gate, Model, Step};

use crate::scene::{Scene, names};

#[tokio::test]
async fn in_mode_interrupt_a_message_ends_the_turn_and_one_answer_covers_both_also_after_a_restart() -> Result<()> {
    let model = Model::start().await?;
    let (never, held) = (Gate::closed(), Gate::closed());
    model.on("stork", [Step::say("The stork, then.")]);
    model.on("robin", [Step::Wait(held.clone()), Step::say("The robin, in the end.")]);
    model.on("heron", [Step::Wait(never.clone()), Step::say("Only the heron.")]);
    model.on("wren", [Step::Wait(never), Step::say("Only the wren.")]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::open(&model, "", "birds").await?;
    scene.ask("mode", "`mode queue`: messages that come here while the agent works wait").await?;
    scene.ask("mode interrupt", "`mode interrupt`: messages that come here while the agent works end").await?;

    let first = scene.say("draw the heron").await?;
    model.wait_asked("heron").await?;
    let second = scene.say("no, the stork").await?;
    let answer = scene.answer(&second, "The stork, then.").await.with_context(|| gateway.all())?;
    assert!(names(&answer, &first) && names(&answer, &second), "{}", answer.content);
    let asked = model.wait_asked("stork").await?;
    assert!(asked.conversation().contains("draw the heron"), "{}", asked.conversation());
    scene.answered_once(&first, "The stork, then.").await?;
    gateway.stop().await?;

    let gateway = scene.up().await?;
    scene.ask("mode", "`mode interrupt`").await?;
    scene.say("draw the wren").await?;
    model.wait_asked("wren").await?;
    let last = scene.say("no, the robin").await?;
    model.wait_asked("robin").await.with_context(|| gateway.all())?;
    held.open();
    scene.answer(&last, "The robin, in the end.").await.with_context(|| gateway.all())?;
    assert_eq!(
        (scene.heard("Only the"), scene.complaints()),
        (0, vec![]),
        "what was interrupted is not answered by itself"
    );
    gateway.stop().await.map(drop)
}
