//! Who may use a project (SEC-4): everybody who may speak until members are named, from then on those, who made it, and admins.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    gateway::Gateway,
    home::Home,
    homeserver::Homeserver,
    images,
    model::{Model, Step},
    person::{Message, Person},
    process::Output,
    wait,
};

use crate::scene::{Cast, Scene, is_answer, named, names};

/// What people are told who may not use a project.
const REFUSED: &str = "for its members alone";
/// What they are told who do not decide about one.
const NOT_YOURS: &str = "somebody else's";

/// Ann, Bob and Dora may speak; Olga is admin. The agent is the practice one.
struct Cooperative {
    home: Home,
    ann: Person,
    bob: Person,
    dora: Person,
    olga: Person,
    bot: Person,
    room: String,
}

impl Cooperative {
    async fn new() -> Result<Self> {
        images::ready().await?;
        let homeserver = Homeserver::shared().await?;
        let (ann, bob, dora, olga, bot) = tokio::try_join!(
            Person::join(homeserver, "ann"),
            Person::join(homeserver, "bob"),
            Person::join(homeserver, "dora"),
            Person::join(homeserver, "olga"),
            Person::join(homeserver, "bot")
        )?;
        let room = ann.create_room("control", &[&bot.id, &bob.id, &dora.id, &olga.id]).await?;
        for person in [&bob, &dora, &olga] {
            person.enter(&room).await?;
        }
        let home = Home::new("", "")?;
        let settings = format!(
            "transport = \"matrix\"\nhomeserver = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\nadmins = {}\nallowed_users = {}\n\
             ambient_rooms = {}\ncoalesce_window_ms = 2500\n",
            homeserver.url(),
            bot.id,
            bot.password(),
            json!([olga.id]),
            json!([ann.id, bob.id, dora.id]),
            json!([room]),
        );
        home.configure(&settings, "[agent]\nruntime = \"echo\"")?;
        Ok(Self { home, ann, bob, dora, olga, bot, room })
    }

    /// What is answered to `text`, which contains `needle`.
    async fn ask(&self, person: &Person, text: &str, needle: &str) -> Result<String> {
        let asked = person.say(&self.room, text).await?;
        let fits = |message: &Message| is_answer(message) && names(message, &asked);
        let answer = person.wait_message(&self.room, &self.bot.id, &asked, wait::LONG, fits).await?.body;
        ensure!(answer.contains(needle), "`{text}` (wanted `{needle}`): {answer}");
        Ok(answer)
    }

    /// Two who are no admins and one who is say something, one right after the other.
    async fn speak_together(&self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for person in [&self.ann, &self.bob, &self.olga] {
            said.push(person.say(&self.room, &format!("words of {}", person.id)).await?);
        }
        Ok(said)
    }

    /// What they said was answered by two turns: one of the two, one of the admin, each with its people's words.
    async fn answered_apart(&self, said: &[String]) -> Result<()> {
        let Self { ann, bob, olga, bot, room, .. } = self;
        let last = |message: &Message| is_answer(message) && names(message, &said[2]);
        ann.wait_message(room, &bot.id, &said[2], wait::LONG, last).await?;
        let heard = ann.heard(room, &bot.id);
        let answers = heard.iter().filter(|message| is_answer(message) && named(message).any(|of| said.contains(&of)));
        let turns: Vec<_> = answers.map(|answer| (named(answer).collect::<Vec<_>>(), repeated(answer))).collect();
        let words = |person: &Person| (person.id.clone(), format!("words of {}", person.id));
        let (members, admin) = (vec![words(ann), words(bob)], vec![words(olga)]);
        ensure!(turns == [(said[..2].to_vec(), members), (said[2..].to_vec(), admin)], "{said:?}: {turns:#?}");
        Ok(())
    }

    /// How many messages for an agent the journal holds.
    async fn accepted(&self) -> Result<usize> {
        let tail = self.home.run(["journal", "tail", "--lines", "100000"], "").await.and_then(Output::success)?;
        Ok(tail.matches(" message.accepted ").count())
    }
}

/// Who said what to the practice agent, as it repeats that.
fn repeated(answer: &Message) -> Vec<(String, String)> {
    let message = |told: &str| {
        let (who, rest) = told.split_once('"')?;
        let (_, words) = rest.split_once(">\n")?;
        Some((who.to_owned(), words.lines().next()?.to_owned()))
    };
    answer.body.split("<message from=\"").skip(1).filter_map(message).collect()
}

#[tokio::test]
async fn a_project_is_for_everybody_until_members_are_named_and_then_for_them() -> Result<()> {
    let scene = Cooperative::new().await?;
    let Cooperative { home, ann, bob, dora, olga, .. } = &scene;
    let gateway = Gateway::up(home, &[]).await?;
    ann.wait_membership(&scene.room, &scene.bot.id, "join").await?;
    scene.ask(ann, "new project shared", "**shared** is ready").await?;
    for person in [ann, bob, dora, olga] {
        scene.ask(person, "switch shared", "shared").await?;
    }

    // Open to all who may speak; but who made it decides about it.
    scene.ask(ann, "members", "open to everybody").await?;
    scene.ask(bob, "bob works", "bob works").await?;
    for command in
        [format!("members add {}", bob.id), format!("members remove {}", dora.id), "delete project shared".into()]
    {
        scene.ask(bob, &command, NOT_YOURS).await?;
    }
    let typo = scene.ask(ann, "members add @nobody:example.org", "may not speak").await?;
    ensure!(typo.contains("allowed_users"), "{typo}");
    scene.ask(ann, "members", "open to everybody").await?;

    // Bob is no member.
    let listed = scene.ask(ann, &format!("members add {}", dora.id), &dora.id).await?;
    ensure!(listed.contains(&ann.id) && !listed.contains(&bob.id), "{listed}");
    let before = scene.accepted().await?;
    let spoke = bob.say(&scene.room, "bob works on").await?;
    let refused = bob
        .wait_message(&scene.room, &scene.bot.id, &spoke, wait::LONG, |message| names(message, &spoke))
        .await
        .with_context(|| gateway.all())?;
    ensure!(
        refused.body.contains(REFUSED) && refused.body.contains(&format!("members add {} shared", bob.id)),
        "{refused:?}"
    );
    for command in [
        "status",
        "stop",
        "queue",
        "cancel 1",
        "reset",
        "mode interrupt",
        "cost",
        "logs",
        "ssh",
        "ssh shared",
        "!git log",
        "git audit",
        "!diff",
        "undo",
        "switch shared",
        "members",
        "members shared",
        "members add @x:example.org",
        "members remove @x:example.org shared",
        "delete project shared",
        "confirm delete shared",
    ] {
        scene.ask(bob, command, REFUSED).await?;
    }
    let projects = scene.ask(bob, "projects", "no projects").await?;
    ensure!(!projects.contains("shared"), "{projects}");
    let near = scene.ask(bob, "switch share", "no project").await?;
    ensure!(!near.contains("shared"), "{near}");
    let theft = format!("new project theft --git {}", home.project("shared").display());
    scene.ask(bob, &theft, "belongs to another project").await?;
    scene.ask(ann, "mode", "mode queue").await?;
    let told = scene.bob.heard(&scene.room, &scene.bot.id);
    ensure!(told.iter().filter(|message| names(message, &spoke)).count() == 1, "refused once: {told:#?}");
    ensure!(scene.accepted().await? == before, "nothing of Bob was taken for the agent");

    // Dora is; who made it and admins may all.
    scene.ask(dora, "dora works", "dora works").await?;
    scene.ask(dora, "status", "**shared**").await?;
    scene.ask(dora, "projects", "**shared**").await?;
    scene.ask(dora, &format!("members add {}", bob.id), NOT_YOURS).await?;
    scene.ask(dora, "delete project shared", NOT_YOURS).await?;
    scene.ask(ann, "ann works", "ann works").await?;
    scene.ask(olga, "olga works", "olga works").await?;

    // It is so after a restart.
    gateway.kill().await?;
    let gateway = Gateway::up(home, &[]).await?;
    scene.ask(bob, "bob works on", REFUSED).await?;
    scene.ask(olga, &format!("members add {} shared", bob.id), &bob.id).await?;

    // What was accepted stays so; what is new is judged anew, an edit too.
    let waits = bob.say(&scene.room, "accepted before").await?;
    bob.wait_read(&scene.room, &scene.bot.id, &waits).await?;
    scene.ask(ann, &format!("members remove {}", bob.id), &dora.id).await?;
    bob.edit(&scene.room, &waits, "changed after").await?;
    let fits = |message: &Message| is_answer(message) && names(message, &waits);
    let answer = bob.wait_message(&scene.room, &scene.bot.id, &waits, wait::LONG, fits).await?.body;
    ensure!(answer.contains("accepted before") && !answer.contains("changed after"), "{answer}");

    // Without its last member it is not open again.
    let left = scene.ask(ann, &format!("members remove {}", dora.id), &ann.id).await?;
    ensure!(!left.contains(&dora.id), "{left}");
    scene.ask(dora, "dora works", REFUSED).await?;
    scene.ask(ann, "delete project shared", "confirm delete shared").await?;
    scene.ask(ann, "confirm delete shared", "is deleted").await?;

    // Nor when it is made anew.
    let again = format!("new project again --path {} --adopt", home.project("shared").display());
    scene.ask(bob, &again, "a deleted project that was for its members alone").await?;
    scene.ask(ann, &again, "stays closed").await?;
    scene.ask(dora, "switch again", REFUSED).await?;
    let listed = scene.ask(ann, "members again", &ann.id).await?;
    ensure!(!listed.contains("open to everybody"), "{listed}");
    home.run(["journal", "verify"], "").await?.success()?;
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn what_an_admin_and_others_say_together_is_answered_apart_also_when_the_gateway_ends_before_their_turns()
-> Result<()> {
    let scene = Cooperative::new().await?;
    let Cooperative { home, ann, bob, olga, bot, room, .. } = &scene;
    let gateway = Gateway::up(home, &[]).await?;
    ann.wait_membership(room, &bot.id, "join").await?;
    scene.ask(ann, "new project apart", "**apart** is ready").await?;
    for person in [ann, bob, olga] {
        scene.ask(person, "switch apart", "apart").await?;
    }
    let said = scene.speak_together().await?;
    scene.answered_apart(&said).await.with_context(|| gateway.all())?;
    gateway.stop().await?;

    let before = scene.accepted().await?;
    let mut doomed = Gateway::start_with(home, &[], &[("FAILPOINTS", "before session.turn_begun=return")])?;
    home.wait_healthy(wait::SHORT).await?;
    let said = scene.speak_together().await?;
    let ended = wait::until("the gateway ends before the first turn", wait::LONG, || {
        let ended = doomed.ended();
        async { ended }
    });
    ended.await.with_context(|| doomed.all())?;
    ensure!(scene.accepted().await? == before + said.len(), "all was accepted:{}", doomed.all());
    let gateway = Gateway::up(home, &[]).await?;
    scene.answered_apart(&said).await.with_context(|| gateway.all())?;
    gateway.stop().await.map(drop)
}

#[tokio::test]
async fn who_is_no_member_any_more_approves_nothing() -> Result<()> {
    let model = Model::start().await?;
    let touch = Step::call("Bash", json!({ "command": "touch /workspace/made" }));
    model.on("make it", [touch, Step::say("Made.")]);
    let tables = Home::agent_tables_with(&model, "permissions = \"ask\"");
    let (scene, gateway) = Scene::set(Cast::of(&model, "asked").tables(tables)).await?;
    let Scene { ann, bob, bot, room, .. } = &scene;
    bob.ask(room, &bot.id, "switch asked", "asked").await?;
    let said = bob.say(room, "make it").await?;
    let question = |message: &Message| message.body.contains("!approve ");
    let question = bob.wait_message(room, &bot.id, &said, wait::LONG, question).await.with_context(|| gateway.all())?;
    let name = question.body.split("!approve ").nth(1).and_then(|rest| rest.get(..6)).context("it is named")?;

    // Ann made it, and names somebody else.
    scene.ask(&format!("members add {}", ann.id), "may be used by").await?;
    bob.ask(room, &bot.id, &format!("!approve {name}"), REFUSED).await?;
    bob.react(room, &question.event_id, "👍").await?;
    let refused = |message: &Message| message.kind == "m.notice" && message.body.contains(REFUSED);
    bob.wait_message(room, &bot.id, &question.event_id, wait::LONG, refused).await.with_context(|| gateway.all())?;
    ensure!(!scene.home.project("asked").join("made").exists(), "nobody has allowed it");
    scene.ask(&format!("members add {}", bob.id), &bob.id).await?;
    bob.ask(room, &bot.id, &format!("!approve {name}"), "Made.").await?;
    ensure!(scene.home.project("asked").join("made").exists(), "Bob has");
    gateway.stop().await.map(drop)
}
