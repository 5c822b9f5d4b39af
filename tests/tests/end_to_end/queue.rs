//! What waits: how much of it there may be, whose it is, and what people see of it on their messages (CHAT-8, CHAT-9).

use anyhow::{Context as _, Result};
use tests::model::{Gate, Model, Step};

use crate::scene::{Scene, numbers};

#[tokio::test]
async fn what_does_not_fit_is_refused_visibly_and_what_waits_stays_its_senders() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("hold on", [Step::Wait(gate.clone()), Step::say("Held.")]);
    model.on("fits", [Step::say("That one fitted.")]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::open(&model, "max_queue = 1", "narrow").await?;
    let Scene { ann, bob, bot, room, .. } = &scene;
    bob.ask(room, &bot.id, "switch narrow", "narrow").await?;
    let running = scene.say("hold on").await?;
    model.wait_asked("hold on").await?;
    let waiting = scene.say("this one fits").await?;
    let refused = scene.say("this one is one too many").await?;

    let told = scene.answer(&refused, "oo many messages wait").await.with_context(|| gateway.all())?;
    assert_eq!(told.content["m.relates_to"]["m.in_reply_to"]["event_id"], *refused, "{}", told.content);
    assert_eq!(ann.wait_reaction(room, &bot.id, &refused).await?.key, "⚠\u{FE0F}");
    let listed = bob.ask(room, &bot.id, "queue", "this one fits").await?.body;
    assert!(!listed.contains("one too many"), "{listed}");
    let number = *numbers(&listed, "fits").first().context("it has a number")?;
    bob.ask(room, &bot.id, &format!("cancel {number}"), "somebody else's").await?;

    gate.open();
    scene.answer(&running, "Held.").await.with_context(|| gateway.all())?;
    scene.answer(&waiting, "That one fitted.").await.with_context(|| gateway.all())?;
    scene.answered_once(&refused, "oo many messages wait").await?;
    assert!(model.asked("one too many").is_empty(), "what was refused is not asked");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_message_is_read_when_it_is_taken_and_shows_that_it_waits_only_while_it_does() -> Result<()> {
    let model = Model::start().await?;
    let (first, second) = (Gate::closed(), Gate::closed());
    model.on("hold on", [Step::Wait(first.clone()), Step::say("Held.")]);
    model.on("behind it", [Step::Wait(second.clone()), Step::say("Behind it.")]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::open(&model, "", "signs").await?;
    let Scene { ann, bot, room, .. } = &scene;
    let running = scene.say("hold on").await?;
    ann.wait_read(room, &bot.id, &running).await?;
    model.wait_asked("hold on").await?;
    let waiting = scene.say("one behind it").await?;
    ann.wait_read(room, &bot.id, &waiting).await?;
    let sign = ann.wait_reaction(room, &bot.id, &waiting).await.with_context(|| gateway.all())?;
    assert_eq!(sign.key, "⏳\u{FE0F}");

    first.open();
    scene.answer(&running, "Held.").await?;
    model.wait_asked("behind it").await?;
    ann.wait_redacted(room, &sign.event_id).await.with_context(|| gateway.all())?;
    second.open();
    scene.answer(&waiting, "Behind it.").await?;
    scene.ask("and now?", "Now.").await?;
    assert_eq!(ann.reactions(room, &bot.id).len(), 1, "no other message had a sign");
    gateway.stop().await.map(drop)
}
