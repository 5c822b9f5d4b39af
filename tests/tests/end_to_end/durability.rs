//! Nothing is lost and nothing is answered twice: one case for each way to break off, at a moment of the test's
//! choosing. The kill test chooses by chance.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    homeserver::Homeserver,
    model::{Gate, Model, Step},
    person::Message,
    process, wait,
};
use tokio::process::Command;

use crate::scene::{Cast, Scene, TOOL, numbers, until_go};

/// A model that answers `and now?`, and in whose turns about `marker` a tool waits before it says `answer`.
async fn model_with_tool(marker: &str, answer: &str) -> Result<Model> {
    let model = Model::start().await?;
    model.on(marker, [until_go(), Step::say(answer)]);
    model.on("and now?", [Step::say("Now.")]);
    Ok(model)
}

#[tokio::test]
async fn a_gateway_killed_in_a_turn_delivers_the_rest_and_asks_nobody_twice() -> Result<()> {
    let model = model_with_tool("take your time", "Taken.").await?;
    let (scene, gateway) = Scene::open(&model, "", "midway").await?;
    let question = scene.say("take your time").await?;
    scene.wait_tool("midway").await?;
    gateway.kill().await?;

    let gateway = scene.up().await?;
    scene.go("midway")?;
    scene.answer(&question, "Taken.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "Taken.").await?;
    assert_eq!(model.asked("take your time").len(), 1, "the model was asked once");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn what_was_read_before_the_gateway_was_killed_is_answered_after() -> Result<()> {
    let model = Model::start().await?;
    model.on("did you see", [Step::say("I saw it.")]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::set(Cast::of(&model, "window").window(5000)).await?;
    let question = scene.say("did you see this?").await?;
    scene.ann.wait_read(&scene.room, &scene.bot.id, &question).await?;
    gateway.kill().await?;
    assert!(model.asked("did you see").is_empty(), "the window was open when the gateway was killed");

    let gateway = scene.up().await?;
    scene.answer(&question, "I saw it.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "I saw it.").await?;
    assert_eq!(model.asked("did you see").len(), 1);
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn an_answer_that_could_not_be_sent_before_the_gateway_was_killed_comes_once() -> Result<()> {
    let model = model_with_tool("write it down", "Written down.").await?;
    // It is held, so nobody else may be on it.
    let homeserver = Homeserver::private().await?;
    let (scene, gateway) = Scene::on(&homeserver, Cast::of(&model, "undelivered")).await?;
    let question = scene.say("write it down").await?;
    scene.wait_tool("undelivered").await?;
    let finished = scene.journal().await?.matches("session.turn_finished").count();
    homeserver.hold()?;
    scene.go("undelivered")?;
    scene.wait_journal("session.turn_finished", finished).await.with_context(|| gateway.all())?;
    gateway.kill().await?;
    homeserver.release()?;

    let gateway = scene.up().await?;
    scene.answer(&question, "Written down.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "Written down.").await?;
    assert_eq!(model.asked("write it down").len(), 1);
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn messages_from_while_the_gateway_was_down_are_answered_and_those_from_before_it_joined_are_not() -> Result<()> {
    let model = Model::start().await?;
    model.on("while you slept", [Step::say("I am awake.")]);
    model.on("before you came", [Step::say("I was not there.")]);
    model.on("and now?", [Step::say("Now.")]);
    let (scene, gateway) = Scene::open(&model, "", "absent").await?;
    gateway.stop().await?;
    // A room that was talked in before the bot came: it is in it from its next start on.
    let older = scene.ann.create_room("older", &[]).await?;
    scene.ann.say(&older, "before you came").await?;
    scene.ann.invite(&older, &scene.bot.id).await?;
    let question = scene.say("while you slept").await?;

    let gateway = scene.up().await?;
    scene.answer(&question, "I am awake.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "I am awake.").await?;
    scene.ann.wait_membership(&older, &scene.bot.id, "join").await?;
    // The room is read in order: what is answered there is the later message.
    scene.ann.ask(&older, &scene.bot.id, "switch absent", "absent").await?;
    scene.ann.ask(&older, &scene.bot.id, "and now?", "Now.").await?;
    let heard = scene.ann.heard(&older, &scene.bot.id);
    assert!(!heard.iter().any(|message| message.body.contains("I was not there.")), "{heard:#?}");
    assert!(model.asked("before you came").is_empty());
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_turn_whose_container_is_killed_is_said_to_be_interrupted_and_resumed_once() -> Result<()> {
    let model = Model::start().await?;
    model.on("and now?", [Step::say("Now.")]);
    let mut attempts = 0;
    model.otherwise(move |_| {
        attempts += 1;
        match attempts {
            1 => vec![until_go()],
            _ => vec![Step::say("Done after all.")],
        }
    });
    let (scene, gateway) = Scene::open(&model, "", "interrupted").await?;
    let question = scene.say("begin, please").await?;
    scene.wait_tool("interrupted").await?;
    engine::docker(&["kill", &scene.home.container("interrupted").await?]).await?;

    let told = |message: &Message| message.body.contains("interrupted") && message.body.contains('⚠');
    let notice = scene.ann.wait_message(&scene.room, &scene.bot.id, &question, wait::LONG, told);
    notice.await.with_context(|| gateway.all())?;
    scene.answer(&question, "Done after all.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "Done after all.").await?;
    let turns: Vec<_> =
        model.requests().into_iter().filter(|request| request.for_turn && !request.said.contains("and now?")).collect();
    let said: Vec<_> = turns.iter().map(|request| request.said.as_str()).collect();
    assert_eq!(said.len(), 2, "one request for each attempt: {said:?}");
    assert!(!said[1].contains("begin, please"), "the agent had the words, and is not told again: {said:?}");
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_clean_stop_leaves_the_turn_to_its_sled_and_the_next_start_delivers() -> Result<()> {
    let model = model_with_tool("work through the night", "It is morning.").await?;
    let (scene, gateway) = Scene::open(&model, "", "overnight").await?;
    let question = scene.say("work through the night").await?;
    scene.wait_tool("overnight").await?;
    gateway.stop().await.context("a clean stop has exit code 0")?;
    let container = scene.home.container("overnight").await?;
    let running = engine::docker(&["top", &container, "-eo", "pid,args"]).await?;
    assert!(running.contains(TOOL), "the turn goes on:\n{running}");

    let gateway = scene.up().await?;
    scene.go("overnight")?;
    scene.answer(&question, "It is morning.").await.with_context(|| gateway.all())?;
    scene.answered_once(&question, "It is morning.").await?;
    assert_eq!(model.asked("work through the night").len(), 1);
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn what_waits_can_be_changed_taken_back_listed_and_cancelled() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("hold on", [Step::Wait(gate.clone()), Step::say("Held.")]);
    model.on("heron", [Step::say("The rest is read.")]);
    let (scene, gateway) = Scene::open(&model, "", "waiting").await?;
    let question = scene.say("hold on").await?;
    model.wait_asked("hold on").await?;
    let first = scene.say("heron as it was").await?;
    let second = scene.say("second to be taken back").await?;
    scene.say("third to be cancelled").await?;
    let fourth = scene.say("fourth stays").await?;
    scene.ann.edit(&scene.room, &first, "heron as it is now").await?;
    scene.ann.redact(&scene.room, &second).await?;

    // Edits and redactions reach the gateway in their own time.
    let listed = wait::until("the queue shows what was changed", wait::SHORT, || async {
        let listed = scene.ask("!queue", "fourth").await?.body;
        Ok((listed.contains("heron as it is now") && !listed.contains("second")).then_some(listed))
    })
    .await
    .with_context(|| gateway.all())?;
    assert!(!listed.contains("as it was"), "{listed}");
    let number = *numbers(&listed, "third").first().context("the third waits")?;
    scene.ask(&format!("!cancel {number}"), "ancel").await?;

    gate.open();
    scene.answer(&question, "Held.").await.with_context(|| gateway.all())?;
    scene.answer(&fourth, "The rest is read.").await.with_context(|| gateway.all())?;
    let asked = model.asked("heron");
    assert_eq!(asked.len(), 1, "one batch");
    let said = &asked[0].said;
    for (words, wanted) in [
        ("heron as it is now", true),
        ("fourth stays", true),
        ("as it was", false),
        ("second", false),
        ("third", false),
    ] {
        assert_eq!(said.contains(words), wanted, "`{words}` in\n{said}");
    }
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn a_second_gateway_on_the_same_directory_is_refused_by_name_and_process_id() -> Result<()> {
    let home = Home::practice().await?;
    let gateway = Gateway::console(&home).await?;
    let second = home.run(["up"], "").await?;
    assert!(second.code.is_some_and(|code| code != 0), "{second}");
    let directory = state_directory(&home)?;
    let text = second.text();
    assert!(text.contains(&gateway.pid()?.to_string()), "who has it is told:\n{text}");
    assert!(text.contains(&*directory.to_string_lossy()), "and what:\n{text}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn the_control_socket_is_its_owners_alone() -> Result<()> {
    let home = Home::practice().await?;
    let gateway = Gateway::console(&home).await?;
    let socket = state_directory(&home)?.join("control.sock");
    assert_eq!(fs::metadata(&socket)?.permissions().mode() & 0o7777, 0o600);
    // Modes stop nobody who has this capability, only the gateway does. To be somebody else takes root.
    let ask = async |user: &str| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]);
        command.args(["curl", "--silent", "--noproxy", "*", "--max-time", "10", "http://localhost/v1/version"]);
        process::run(command.arg("--unix-socket").arg(&socket), b"", wait::SHORT).await
    };
    if nix::unistd::geteuid().is_root() {
        assert!(ask("0").await?.success()?.starts_with(|digit: char| digit.is_ascii_digit()));
        let refused = ask("65534").await?;
        assert!(refused.code != Some(0) && refused.stdout.is_empty(), "{refused}");
        wait::until("the stranger is noticed", wait::SHORT, || async {
            Ok(gateway.all().lines().any(|line| line.contains("a stranger") && line.contains("65534")).then_some(()))
        })
        .await
        .with_context(|| gateway.all())?;
    }
    gateway.finish().await.map(drop)
}

fn state_directory(home: &Home) -> Result<PathBuf> {
    fs::canonicalize(home.state()).context("the state directory")
}
