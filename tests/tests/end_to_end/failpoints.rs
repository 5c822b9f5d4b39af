//! The gateway is killed at every append to its journal and at every effect, one after the other, and each time the next
//! gateway makes it good: what was said is answered once, or visibly failed once.
//!
//! The points are the gateway's own (its feature `failpoints`): `before` and `after` each kind of event, and each thing
//! that it does to the world. The tests in [`sources`] see to it that none is missing here, and no effect without a point
//! there. What has none, and why, says docs/durability.md.

mod sources;

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests::{
    engine::{self, Holdings},
    gateway::Gateway,
    git_server::{Content, WebServer},
    home::Home,
    images,
    model::{Model, Step},
    person::Message,
    secrets::{self, Kind},
    ssh::{self, Door},
    wait,
};
use tokio::net::TcpListener;

use crate::git_clone::store;
use crate::scene::{Cast, Scene, TOOL, is_answer, names, numbers};

/// What a message to the practice agent passes, from its acceptance to its delivery.
const TURN: [&str; 9] = [
    "message.accepted",
    "session.turn_begun",
    "exec",
    "put_turn",
    "session.turn_finished",
    "send.queued",
    "send",
    "send.delivered",
    "usage.turn_ended",
];
/// What commands pass, and which.
const COMMANDS: [(&str, &str); 7] = [
    ("command.received", "version"),
    ("command.answered", "version"),
    ("room.project_switched", "switch points"),
    ("room.mode_set", "mode queue"),
    ("session.opened", "reset"),
    ("git", "git status"),
    ("undo", "undo"),
];
/// What `new project` passes,
const MAKING: [&str; 14] = [
    "project.reserved",
    "project.step_begun",
    "make_folder",
    "project.directory_found",
    "project.stack_chosen",
    "project.image_chosen",
    "ensure_image",
    "send_draft",
    "edit_draft",
    "make_keys",
    "ensure_network",
    "create_container",
    "start_container",
    "project.registered",
];
/// and `delete project`.
const DELETING: [&str; 5] =
    ["project.deletion_begun", "remove_container", "end_unseen", "remove_tree", "project.removed"];
/// What every use of a git credential passes.
const GIT: [&str; 2] = ["git.use_begun", "git.use_ended"];
/// What a new state directory passes.
const BEGINNING: [&str; 3] = ["gateway.created", "write_known_hosts", "write_ssh_config"];

fn both(what: &str) -> [String; 2] {
    [format!("before {what}"), format!("after {what}")]
}

/// The practice agent's project, its gateway stopped.
async fn practice(project: &str, window_ms: u32) -> Result<Scene> {
    let (scene, gateway) = Scene::set(Cast::practice(project).window(window_ms)).await?;
    gateway.stop().await?;
    Ok(scene)
}

impl Scene {
    /// Starts a gateway that ends at `point`.
    fn doomed(&self, point: &str) -> Result<Gateway> {
        Gateway::start_with(&self.home, &[], &[("FAILPOINTS", &format!("{point}=return"))])
    }

    /// Waits until that gateway has ended there, and starts one that lives.
    async fn revived(&self, point: &str, mut doomed: Gateway) -> Result<Gateway> {
        let what = format!("the gateway ends at `{point}`");
        let ended = wait::until(&what, wait::LONG, || {
            let ended = doomed.ended();
            async { ended }
        });
        let status = ended.await.with_context(|| doomed.all())?;
        ensure!(status.code().is_none(), "at `{point}` it ended with {status} by itself{}", doomed.all());
        self.up().await.with_context(|| format!("after `{point}`"))
    }

    /// Waits until the bot has answered the event, and gives how often it has once a later command is answered.
    async fn settled(&self, event: &str) -> Result<usize> {
        self.wait_named(event).await?;
        let last = self.say("!version").await?;
        self.wait_named(&last).await?;
        let heard = self.ann.heard(&self.room, &self.bot.id);
        Ok(heard.into_iter().filter(|message| is_answer(message) && names(message, event)).count())
    }

    /// Says `text` to a gateway that ends at `point`; the next one answers it once.
    async fn made_good(&self, point: &str, text: &str) -> Result<()> {
        let doomed = self.doomed(point)?;
        let said = self.say(text).await?;
        let gateway = self.revived(point, doomed).await?;
        let answers = self.settled(&said).await.with_context(|| format!("{point}{}", gateway.all()))?;
        ensure!(answers == 1, "killed {point}, it was answered {answers} times{}", gateway.all());
        gateway.stop().await.map(drop)
    }

    async fn sound(&self) -> Result<()> {
        self.home.run(["journal", "verify"], "").await?.success().map(drop)
    }
}

#[tokio::test]
async fn a_message_is_answered_once_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 100).await?;
    for point in TURN.into_iter().flat_map(both).chain(["before position".to_owned()]) {
        scene.made_good(&point, &format!("killed {point}")).await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_command_is_answered_once_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 100).await?;
    for (what, command) in COMMANDS {
        for point in both(what) {
            scene.made_good(&point, &format!("!{command}")).await?;
        }
    }
    scene.sound().await
}

#[tokio::test]
async fn a_member_is_named_and_removed_wherever_the_gateway_ends() -> Result<()> {
    let scene = practice("points", 100).await?;
    for (added, removed) in both("project.member_added").into_iter().zip(both("project.member_removed")) {
        scene.made_good(&added, &format!("!members add {}", scene.bob.id)).await?;
        scene.made_good(&removed, &format!("!members remove {}", scene.bob.id)).await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn what_happens_to_a_message_that_waits_has_happened_wherever_the_gateway_ends() -> Result<()> {
    let scene = practice("points", 4000).await?;
    for point in both("message.edited") {
        let doomed = scene.doomed(&point)?;
        let said = scene.say("as it was").await?;
        scene.ann.wait_read(&scene.room, &scene.bot.id, &said).await?;
        scene.ann.edit(&scene.room, &said, "as it is now").await?;
        let gateway = scene.revived(&point, doomed).await?;
        scene.answer(&said, "as it is now").await.with_context(|| gateway.all())?;
        ensure!(scene.settled(&said).await? == 1, "{point}");
        gateway.stop().await?;
    }
    for point in both("message.removed") {
        let doomed = scene.doomed(&point)?;
        let said = scene.say("to be dropped").await?;
        scene.ann.wait_read(&scene.room, &scene.bot.id, &said).await?;
        let stop = scene.say("stop").await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&stop).await.with_context(|| gateway.all())? == 1, "{point}");
        // Whenever it was dropped: who said it hears so.
        let heard = scene.ann.heard(&scene.room, &scene.bot.id);
        let told =
            |message: &&Message| names(message, &stop) && names(message, &said) && message.body.contains("dropped");
        let count = heard.iter().filter(told).count();
        ensure!(count == 1, "{point}: {count} tell what was dropped{}", gateway.all());
        let agent_said = scene.heard("You said");
        let later = scene.say("said later").await?;
        scene.answer(&later, "said later").await.with_context(|| gateway.all())?;
        ensure!(scene.heard("You said") == agent_said + 1, "{point}: what was stopped was answered{}", gateway.all());
        gateway.stop().await?;
    }
    scene.sound().await
}

/// `cancel` takes its message out and is answered in one transaction: whoever hears that it was taken out never hears an
/// answer to it, and otherwise it is answered.
#[tokio::test]
async fn what_is_cancelled_is_never_answered_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 4000).await?;
    for point in both("message.removed") {
        let doomed = scene.doomed(&point)?;
        let words = format!("cancelled at {point}");
        let said = scene.say(&words).await?;
        scene.ann.wait_read(&scene.room, &scene.bot.id, &said).await?;
        let queue = scene.ask("!queue", &words).await?.body;
        let [number] = numbers(&queue, &words)[..] else { bail!("one message waits: {queue}") };
        let cancel = scene.say(&format!("!cancel {number}")).await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&cancel).await.with_context(|| gateway.all())? == 1, "{point}{}", gateway.all());
        let later = scene.say("said later").await?;
        scene.answer(&later, "said later").await.with_context(|| gateway.all())?;
        let heard = scene.ann.heard(&scene.room, &scene.bot.id);
        let taken_out =
            heard.iter().filter(|message| message.body.starts_with("Taken out") && names(message, &cancel)).count();
        let answered = heard.iter().filter(|message| is_answer(message) && names(message, &said)).count();
        ensure!(taken_out + answered == 1, "{point}: {taken_out} and {answered}{}", gateway.all());
        ensure!(taken_out == 1 || point.starts_with("before"), "{point}: what was journaled is told{}", gateway.all());
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_project_is_made_or_undone_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 100).await?;
    for point in MAKING.into_iter().flat_map(both) {
        let doomed = scene.doomed(&point)?;
        let said = scene.say("!new project brief").await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&said).await.with_context(|| gateway.all())? == 1, "{point}");
        scene.can_be_made_and_deleted().await.with_context(|| format!("{point}{}", gateway.all()))?;
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_project_is_deleted_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 100).await?;
    for point in DELETING.into_iter().flat_map(both) {
        let gateway = scene.up().await?;
        scene.ask("!new project brief", "**brief** is ready").await.with_context(|| gateway.all())?;
        gateway.stop().await?;
        let doomed = scene.doomed(&point)?;
        scene.ask("!delete project brief", "confirm delete brief").await?;
        let said = scene.say("!confirm delete brief").await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&said).await.with_context(|| gateway.all())? == 1, "{point}");
        scene.can_be_made_and_deleted().await.with_context(|| format!("{point}{}", gateway.all()))?;
        gateway.stop().await?;
    }
    scene.sound().await
}

impl Scene {
    /// Whatever became of `brief`: it can be made, and deleted.
    async fn can_be_made_and_deleted(&self) -> Result<()> {
        if !self.ask("!projects", "**points**").await?.body.contains("**brief**") {
            // A project's files outlive it.
            let _made = fs::remove_dir_all(self.home.project("brief"));
            self.ask("!new project brief", "**brief** is ready").await?;
        }
        self.ask("!delete project brief", "confirm delete brief").await?;
        self.ask("!confirm delete brief", "**brief** is deleted").await?;
        let _made = fs::remove_dir_all(self.home.project("brief"));
        Ok(())
    }

    /// Waits until nothing of the words is left in the gateway's journal.
    async fn forgotten(&self, words: &str) -> Result<()> {
        wait::until(&format!("`{words}` is erased"), wait::SHORT, || async {
            let mut left = false;
            for file in ["journal.db", "journal.db-wal"] {
                let bytes = fs::read(self.home.state().join(file))?;
                left |= bytes.windows(words.len()).any(|part| part == words.as_bytes());
            }
            Ok((!left).then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn the_network_of_the_last_project_is_removed_wherever_the_gateway_ends() -> Result<()> {
    let home = Home::practice().await?;
    let delete = ["delete project brief", "confirm delete brief"];
    for point in both("remove_network") {
        let mut gateway = Gateway::console(&home).await?;
        gateway.make("brief", "").await?;
        let id = home.gateway().await?.context("the gateway has an id")?;
        gateway.finish().await?;
        let mut doomed = Gateway::start_with(&home, &[], &[("FAILPOINTS", &format!("{point}=return"))])?;
        for line in delete {
            doomed.write(line).await?;
        }
        wait_end(&point, doomed).await?;
        // A bridge that stayed goes with the next that is the last.
        let mut gateway = Gateway::console(&home).await?;
        let _made = fs::remove_dir_all(home.project("brief"));
        gateway.make("brief", "").await?;
        for line in delete {
            gateway.ask(line).await?;
        }
        let _made = fs::remove_dir_all(home.project("brief"));
        let held = engine::holdings(&id).await?;
        ensure!(held == Holdings::default(), "{point}: {held:?}{}", gateway.all());
        gateway.finish().await?;
    }
    home.run(["journal", "verify"], "").await?.success().map(drop)
}

#[tokio::test]
async fn what_is_to_be_erased_is_wherever_the_gateway_ends_under_it() -> Result<()> {
    let (scene, gateway) = Scene::set(Cast::practice("points").window(4000).top("retention_days = 30")).await?;
    gateway.stop().await?;
    for point in both("erase_before") {
        scene.made_good(&point, &format!("killed {point}")).await?;
    }
    for point in both("erase") {
        let words = format!("withdrawn at {point}");
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&words).await?;
        scene.ann.wait_read(&scene.room, &scene.bot.id, &said).await?;
        scene.ann.redact(&scene.room, &said).await?;
        let gateway = scene.revived(&point, doomed).await?;
        scene.forgotten(&words).await.with_context(|| format!("{point}{}", gateway.all()))?;
        let later = scene.say("said later").await?;
        scene.answer(&later, "said later").await.with_context(|| gateway.all())?;
        ensure!(scene.heard(&words) == 0, "{point}: what was withdrawn was answered{}", gateway.all());
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_message_with_a_credential_is_taken_out_of_its_room_wherever_the_gateway_ends_under_it() -> Result<()> {
    let scene = practice("points", 100).await?;
    scene.ann.let_tidy(&scene.room, &scene.bot.id).await?;
    for point in ["take_back", "send.queued", "send.delivered"].into_iter().flat_map(both) {
        let doomed = scene.doomed(&point)?;
        let typed = secrets::mint(Kind::Typed);
        let said = scene.say(&format!("!new project leak --git https://ann:{typed}@example.org/team/app.git")).await?;
        let gateway = scene.revived(&point, doomed).await?;
        let taken_out = scene.ann.wait_redacted(&scene.room, &said).await;
        taken_out.with_context(|| format!("{point}{}", gateway.all()))?;
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_real_agents_turn_is_made_good_wherever_the_gateway_ends_under_it() -> Result<()> {
    let model = Model::start().await?;
    model.on("plainly", [Step::say("Plainly answered.")]);
    // It changes something, so that it needs leave.
    let command = format!("touch asked; until [ -e {TOOL} ]; do sleep 0.05; done");
    let asking = Step::call("Bash", json!({ "command": command, "timeout": 600_000 }));
    model.on("endlessly", [asking, Step::say("Ended.")]);
    let cast = Cast::of(&model, "points").tables(Home::agent_tables_with(&model, "permissions = \"ask\""));
    let (scene, gateway) = Scene::set(cast).await?;
    gateway.stop().await?;

    for point in ["usage.counted", "ask_model"].into_iter().flat_map(both) {
        scene.made_good(&point, &format!("plainly, {point}")).await?;
    }
    // A turn that was begun and not handed over counts as interrupted.
    for point in both("session.turn_resumed") {
        let doomed = scene.doomed("before put_turn")?;
        let said = scene.say(&format!("plainly, {point}")).await?;
        wait_end("before put_turn", doomed).await?;
        let gateway = scene.revived(&point, scene.doomed(&point)?).await?;
        ensure!(scene.settled(&said).await.with_context(|| format!("{point}{}", gateway.all()))? == 1, "{point}");
        gateway.stop().await?;
    }
    for point in ["session.permission_decided", "answer_permission"].into_iter().flat_map(both) {
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&format!("endlessly, {point}")).await?;
        let question = scene.hear(&said, "approve").await.with_context(|| doomed.all())?.body;
        let name = question.split("!approve ").nth(1).and_then(|rest| rest.get(..6)).context("it is named")?.to_owned();
        scene.say(&format!("!approve {name}")).await?;
        let gateway = scene.revived(&point, doomed).await?;
        scene.wait_tool("points").await.with_context(|| format!("{point}{}", gateway.all()))?;
        scene.go("points")?;
        ensure!(scene.settled(&said).await.with_context(|| format!("{point}{}", gateway.all()))? == 1, "{point}");
        fs::remove_file(scene.home.project("points").join("go")).context("the tool's sign")?;
        gateway.stop().await?;
    }
    // A sled that does not stop the turn loses its container.
    for point in ["stop_turn", "remove_container"].into_iter().flat_map(both) {
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&format!("endlessly, {point}")).await?;
        scene.hear(&said, "approve").await.with_context(|| doomed.all())?;
        if point.ends_with("remove_container") {
            let hold = "kill -STOP $(pgrep --full 'sled serve$' | tail -n 1)";
            engine::docker(&["exec", &scene.home.container("points").await?, "sh", "-c", hold]).await?;
        }
        let stop = scene.say("stop").await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&stop).await.with_context(|| format!("{point}{}", gateway.all()))? == 1, "{point}");
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_project_that_was_broken_off_is_removed_wherever_the_next_gateway_ends() -> Result<()> {
    let scene = practice("points", 100).await?;
    for (what, broken_off) in [
        ("project.abandoned", "after project.reserved"),
        ("remove_tree", "before project.registered"),
        ("unmake_folder", "before project.registered"),
    ] {
        for point in both(what) {
            let doomed = scene.doomed(broken_off)?;
            let said = scene.say("!new project brief").await?;
            wait_end(broken_off, doomed).await?;
            let gateway = scene.revived(&point, scene.doomed(&point)?).await?;
            ensure!(scene.settled(&said).await.with_context(|| gateway.all())? == 1, "{point}");
            let listed = scene.ask("!projects", "**points**").await?.body;
            ensure!(!listed.contains("**brief**"), "{point}: {listed}");
            ensure!(!scene.home.project("brief").exists(), "{point}: what was made is left");
            gateway.stop().await?;
        }
    }
    scene.sound().await
}

#[tokio::test]
async fn what_somebody_put_into_the_folder_of_a_project_that_was_broken_off_stays() -> Result<()> {
    let scene = practice("points", 100).await?;
    let point = "before ensure_image";
    let doomed = scene.doomed(point)?;
    let said = scene.say("!new project brief").await?;
    wait_end(point, doomed).await?;
    let folder = scene.home.project("brief");
    ensure!(folder.join(".git").exists(), "it is half made");
    fs::write(folder.join("thesis"), "years of work")?;
    let gateway = scene.up().await?;
    ensure!(scene.settled(&said).await.with_context(|| gateway.all())? == 1, "{point}");
    let listed = scene.ask("!projects", "**points**").await?.body;
    ensure!(!listed.contains("**brief**"), "it holds nothing up: {listed}");
    ensure!(fs::read_to_string(folder.join("thesis"))? == "years of work");
    ensure!(fs::read_dir(&folder)?.count() == 1, "what was made is left");
    gateway.stop().await?;
    scene.sound().await
}

#[tokio::test]
async fn a_port_that_somebody_took_is_moved_from_wherever_the_gateway_ends() -> Result<()> {
    let scene = practice("points", 100).await?;
    for point in both("project.port_moved") {
        engine::docker(&["stop", "--time", "1", &scene.home.container("points").await?]).await?;
        let config = fs::read_to_string(scene.home.state().join("ssh_config"))?;
        let port = config.split("points.musher-port").nth(1).and_then(|rest| rest.split("Port ").nth(1));
        let port: u16 = port.and_then(|rest| rest.split_whitespace().next()).context("the door has a port")?.parse()?;
        let taken = TcpListener::bind(("127.0.0.1", port)).await?;
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&format!("killed {point}")).await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&said).await.with_context(|| format!("{point}{}", gateway.all()))? == 1, "{point}");
        drop(taken);
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn a_container_that_somebody_paused_goes_on_wherever_the_gateway_ends() -> Result<()> {
    let scene = practice("points", 100).await?;
    let container = scene.home.container("points").await?;
    let id = ["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &container];
    let before = engine::docker(&id).await?;
    for point in both("unpause_container") {
        engine::docker(&["pause", &container]).await?;
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&format!("killed {point}")).await?;
        let gateway = scene.revived(&point, doomed).await?;
        ensure!(scene.settled(&said).await.with_context(|| format!("{point}{}", gateway.all()))? == 1, "{point}");
        ensure!(engine::docker(&id).await? == before, "{point}: it is another container, or was started anew");
        gateway.stop().await?;
    }
    scene.sound().await
}

#[tokio::test]
async fn what_a_room_refuses_is_given_up_or_sent_wherever_the_gateway_ends() -> Result<()> {
    let scene = practice("points", 100).await?;
    for point in both("send.given_up") {
        scene.ann.let_speak(&scene.room, false).await?;
        let doomed = scene.doomed(&point)?;
        let said = scene.say(&format!("killed {point}")).await?;
        wait_end(&point, doomed).await?;
        scene.ann.let_speak(&scene.room, true).await?;
        let gateway = scene.up().await?;
        // Either it was not given up yet, and comes; or the room is told that it was.
        let told = if point.starts_with("before") { "killed" } else { "could not be sent" };
        scene.hear(&said, told).await.with_context(|| format!("{point}{}", gateway.all()))?;
        gateway.stop().await?;
    }
    scene.sound().await
}

async fn wait_end(point: &str, mut doomed: Gateway) -> Result<()> {
    let what = format!("the gateway ends at `{point}`");
    let ended = wait::until(&what, wait::SHORT, || {
        let ended = doomed.ended();
        async { ended }
    });
    ended.await.map(drop).with_context(|| doomed.all())
}

#[tokio::test]
async fn git_goes_on_and_its_uses_are_told_wherever_the_gateway_ends_under_them() -> Result<()> {
    images::ready().await?;
    let home = Home::practice().await?;
    let token = secrets::mint(Kind::GitToken);
    let server = WebServer::private("ann", &token).await?;
    server.repositories().add("team/app.git", "main", &[Content::File("README.md", b"app")]).await?;
    store(&home, &server.secret(), &format!("ann:{token}")).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("app", &format!("--git {}", server.url("team/app.git"))).await?;
    gateway.finish().await?;
    let fetch =
        async || ssh::run(&home, "ssh", [&Door::Port.host("app"), "git -C /workspace fetch"], "", wait::LONG).await;
    for point in GIT.into_iter().flat_map(both) {
        let doomed = Gateway::start_with(&home, &[], &[("FAILPOINTS", &format!("{point}=return"))])?;
        // Whatever comes of this one.
        fetch().await?;
        wait_end(&point, doomed).await?;
        let gateway = Gateway::console(&home).await?;
        fetch().await?.success().with_context(|| format!("{point}{}", gateway.all()))?;
        gateway.finish().await?;
    }
    let told = home.run(["git", "audit", "app"], "").await?.success()?;
    ensure!(told.matches("fetch").count() > GIT.len() * 2, "{told}");
    home.run(["journal", "verify"], "").await?.success().map(drop)
}

#[tokio::test]
async fn a_state_directory_is_begun_wherever_its_first_gateway_ends() -> Result<()> {
    for point in BEGINNING.into_iter().flat_map(both) {
        let home = Home::practice().await?;
        wait_end(&point, Gateway::start_with(&home, &[], &[("FAILPOINTS", &format!("{point}=return"))])?).await?;
        Gateway::console(&home).await.with_context(|| point)?.finish().await?;
    }
    Ok(())
}
