//! The same over Matrix: a real homeserver, a person's client, the real agent.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    homeserver::Homeserver,
    images,
    model::{Gate, Model, Step},
    person::{Message, Person},
    wait,
};

/// A gateway on Matrix, the people it listens to, and the room they talk in.
///
/// Fields are dropped in this order: the gateway before its home.
struct Scene {
    gateway: Gateway,
    home: Home,
    ann: Person,
    bob: Person,
    bot: Person,
    room: String,
}

impl Scene {
    /// A scene with the practice agent.
    async fn practice() -> Result<Self> {
        Self::open(Home::new("", "")?, "[agent]\nruntime = \"echo\"").await
    }

    /// A scene with the real agent, which talks to `model`.
    async fn real(model: &Model) -> Result<Self> {
        let home = Home::new("", "")?.with_variable("ANTHROPIC_API_KEY", model.key());
        Self::open(home, &Home::agent_tables(model)).await
    }

    /// Ann makes a private room and invites the bot and Bob; every message in it is for the bot.
    async fn open(home: Home, agent: &str) -> Result<Self> {
        images::ready().await?;
        let homeserver = Homeserver::shared().await?;
        let (ann, bob, bot) = tokio::try_join!(
            Person::join(homeserver, "ann"),
            Person::join(homeserver, "bob"),
            Person::join(homeserver, "bot")
        )?;
        let room = ann.create_room("control", &[&bot.id, &bob.id]).await?;
        bob.enter(&room).await?;
        home.configure(&settings(homeserver, &bot, &[&ann, &bob], &[&room]), agent)?;
        let gateway = Gateway::up(&home, &[]).await?;
        ann.wait_membership(&room, &bot.id, "join").await?;
        let name = bot.id.trim_start_matches('@').split(':').next().context("a localpart")?;
        let told = format!("Connected. Invite the bot to a room without encryption and write \"@{name} help\".");
        wait::until("the terminal is told", wait::SHORT, || async { Ok(gateway.all().contains(&told).then_some(())) })
            .await
            .with_context(|| gateway.all())?;
        Ok(Self { gateway, home, ann, bob, bot, room })
    }

    /// Ann asks, the bot answers with what contains `needle`.
    async fn ask(&self, text: &str, needle: &str) -> Result<Message> {
        self.ann.ask(&self.room, &self.bot.id, text, needle).await.with_context(|| self.gateway.all())
    }

    /// Ann makes a project and everybody chooses it.
    async fn make(&self, project: &str, options: &str) -> Result<()> {
        self.ask(&format!("new project {project} {options}"), &format!("**{project}** is ready")).await?;
        for person in [&self.ann, &self.bob] {
            person.ask(&self.room, &self.bot.id, &format!("switch {project}"), project).await?;
        }
        Ok(())
    }
}

fn settings(homeserver: &Homeserver, bot: &Person, allowed: &[&Person], ambient: &[&str]) -> String {
    let allowed: Vec<&str> = allowed.iter().map(|person| person.id.as_str()).collect();
    format!(
        "transport = \"matrix\"\nhomeserver = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\nallowed_users = {}\nambient_rooms = {}\n",
        homeserver.url(),
        bot.id,
        bot.password(),
        json!(allowed),
        json!(ambient),
    )
}

#[tokio::test]
async fn the_dialogue() -> Result<()> {
    let model = Model::start().await?;
    let answer = "It is **empty**, see `README.md`:\n\n- one\n- two\n\n```rust\nfn main() {}\n```\n\n<b>raw</b>";
    model.on("what does this project do", [Step::say(answer)]);
    model.on(
        "write a note",
        [
            Step::call("Write", json!({ "file_path": "/workspace/note.md", "content": "A heron.\n" })),
            Step::say("Noted."),
        ],
    );
    let scene = Scene::real(&model).await?;
    scene.make("overmatrix", "--stack rust").await?;

    let said = scene.ask("what does this project do?", "It is").await?;
    assert_eq!(said.kind, "m.text", "an answer notifies");
    let html = said.html.context("an answer is formatted")?;
    for part in [
        "<strong>empty</strong>",
        "<code>README.md</code>",
        "<li>one</li>",
        "<pre><code",
        "fn main() {}",
        "&lt;b&gt;raw&lt;/b&gt;",
    ] {
        assert!(html.contains(part), "`{part}` is not in {html}");
    }
    assert_eq!(model.asked("what does this project do").len(), 1, "the model is asked once");

    scene.ask("write a note please", "Noted.").await?;
    let note = scene.home.project("overmatrix").join("note.md");
    assert_eq!(std::fs::read_to_string(&note)?, "A heron.\n");
    scene.ask("status", "overmatrix").await?;
    scene.ask("!git status", "note.md").await?;
    scene.ask("stop", "othing").await?;
    scene.gateway.stop().await.map(drop)
}

#[tokio::test]
async fn an_answer_that_no_event_can_hold_comes_in_several() -> Result<()> {
    let model = Model::start().await?;
    let lines: Vec<String> = (0..3000).map(|n| format!("line {n} of a long answer")).collect();
    let answer = format!("Here it is:\n\n```text\n{}\n```\n\nThat was all.", lines.join("\n"));
    assert!(answer.len() > 65_536);
    model.on("say it all", [Step::say(answer)]);
    let scene = Scene::real(&model).await?;
    scene.make("longwinded", "").await?;

    let (ann, room, bot) = (&scene.ann, &scene.room, &scene.bot.id);
    let asked = ann.say(room, "say it all").await?;
    let is_last = |message: &Message| message.kind == "m.text" && message.body.contains("That was all.");
    let last = ann.wait_message(room, bot, &asked, wait::LONG, is_last).await.with_context(|| scene.gateway.all())?;
    let of_turn = |message: &Message| {
        let transaction = message.content["dev.musher"]["transaction"].as_str().unwrap_or_default();
        message.kind == "m.text" && transaction.starts_with("turn-")
    };
    let parts: Vec<Message> = ann.heard(room, bot).into_iter().filter(of_turn).collect();
    assert_eq!(parts.last().map(|part| &part.event_id), Some(&last.event_id), "they come in order");
    let heard = parts.iter().flat_map(|part| part.body.lines()).filter(|line| line.starts_with("line "));
    assert!(heard.eq(&lines), "every line comes once, and in order");
    for part in &parts {
        assert!(part.body.contains("```text\n"), "each is a block of code of its own: {}", part.body);
        assert!(part.html.as_ref().is_some_and(|html| html.contains("<pre><code")), "{}", part.body);
    }
    let calls = parts.iter().filter(|part| part.content["m.mentions"]["user_ids"][0] == ann.id.as_str());
    assert_eq!(calls.count(), 1, "she is called once");
    let settling: Vec<bool> = parts.iter().map(|part| part.content["dev.musher"]["answers"][0] == asked).collect();
    assert_eq!(settling.iter().rposition(|settles| *settles), Some(parts.len() - 1));
    assert_eq!(settling.iter().filter(|settles| **settles).count(), 1, "what she asked is answered once");
    scene.gateway.stop().await.map(drop)
}

#[tokio::test]
async fn five_messages_in_a_burst_are_one_turn() -> Result<()> {
    let model = Model::start().await?;
    model.on("burst", [Step::say("All five read.")]);
    let scene = Scene::real(&model).await?;
    scene.make("bursting", "").await?;
    let mut last = String::new();
    for (number, person) in [&scene.ann, &scene.bob, &scene.ann, &scene.bob, &scene.ann].into_iter().enumerate() {
        last = person.say(&scene.room, &format!("burst number {number}")).await?;
    }
    scene
        .ann
        .wait_message(&scene.room, &scene.bot.id, &last, wait::LONG, |message| message.body.contains("All five read."))
        .await?;
    let asked = model.asked("burst");
    assert_eq!(asked.len(), 1, "one turn, one request");
    let said = &asked[0].said;
    let mut from = 0;
    for number in 0..5 {
        let words = format!("burst number {number}");
        let at =
            said[from..].find(&words).with_context(|| format!("`{words}` is missing or out of order in\n{said}"))?;
        let who = if number % 2 == 0 { &scene.ann } else { &scene.bob };
        assert!(said[from..from + at].contains(&who.id), "who said `{words}` is told:\n{said}");
        from += at + words.len();
    }
    let answers = scene
        .ann
        .heard(&scene.room, &scene.bot.id)
        .into_iter()
        .filter(|message| message.body.contains("All five read."));
    assert_eq!(answers.count(), 1, "one answer");
    scene.gateway.stop().await.map(drop)
}

#[tokio::test]
async fn stop_in_the_middle_of_a_turn_kills_the_agents_whole_tree() -> Result<()> {
    let model = Model::start().await?;
    // One child in a session of its own, deaf to hang-up and to a polite end, and one that the tool waits for.
    let command = "setsid sh -c 'trap \"\" HUP TERM; while :; do sleep 98761; done' >/dev/null 2>&1 & sleep 98762";
    model.on(
        "dawdle",
        [Step::call("Bash", json!({ "command": command, "timeout": 600_000 })), Step::say("Never said.")],
    );
    model.on("and now", [Step::say("Now I am back.")]);
    let scene = Scene::real(&model).await?;
    scene.make("dawdling", "").await?;
    let container = scene.home.container("dawdling").await?;
    let quiet = agents(&container).await?;
    assert!(quiet.is_empty(), "no agent before the first turn: {quiet:?}");

    scene.ann.say(&scene.room, "please dawdle").await?;
    wait::until("the agent's children run", wait::LONG, || async {
        let running = agents(&container).await?;
        Ok(["98761", "98762", "claude"].iter().all(|name| running.iter().any(|line| line.contains(name))).then_some(()))
    })
    .await
    .with_context(|| scene.gateway.all())?;
    scene.ann.wait_typing(&scene.room, &scene.bot.id).await?;

    scene.ann.say(&scene.room, "one that waits").await?;

    let stopped = scene.ask("stop", "topped the running turn").await?;
    assert!(stopped.body.contains("1 message"), "what waited is dropped, and that is said: {}", stopped.body);
    let left = agents(&container).await?;
    assert!(left.is_empty(), "`stop` was answered, and these still run: {left:?}");
    scene.ann.wait_quiet(&scene.room).await?;

    scene.ask("and now?", "Now I am back.").await?;
    let heard = scene.ann.heard(&scene.room, &scene.bot.id);
    assert!(!heard.iter().any(|message| message.body.contains("Never said.")), "the stopped turn has no answer");
    assert!(model.asked("one that waits").is_empty(), "what was dropped is not asked");
    scene.gateway.stop().await.map(drop)
}

/// The processes of an agent and its children in the container, as the engine sees them.
async fn agents(container: &str) -> Result<Vec<String>> {
    let all = engine::docker(&["top", container, "-eo", "pid,args"]).await?;
    let ours = ["98761", "98762", "claude"];
    Ok(all.lines().skip(1).filter(|line| ours.iter().any(|name| line.contains(name))).map(str::to_owned).collect())
}

#[tokio::test]
async fn typing_is_shown_while_a_turn_runs() -> Result<()> {
    let model = Model::start().await?;
    let gate = Gate::closed();
    model.on("think", [Step::Wait(gate.clone()), Step::say("Thought.")]);
    let scene = Scene::real(&model).await?;
    scene.make("thinking", "").await?;
    let asked = scene.ann.say(&scene.room, "think about it").await?;
    scene.ann.wait_typing(&scene.room, &scene.bot.id).await?;
    // A command does not wait for the turn.
    scene.ask("status", "thinking").await?;
    gate.open();
    scene
        .ann
        .wait_message(&scene.room, &scene.bot.id, &asked, wait::LONG, |message| message.body.contains("Thought."))
        .await?;
    scene.ann.wait_quiet(&scene.room).await?;
    scene.gateway.stop().await.map(drop)
}

#[tokio::test]
async fn strangers_are_not_answered_and_their_invitations_declined() -> Result<()> {
    let scene = Scene::practice().await?;
    let eve = Person::join(Homeserver::shared().await?, "eve").await?;
    scene.make("private", "").await?;
    let lair = eve.create_room("lair", &[&scene.bot.id]).await?;
    eve.wait_membership(&lair, &scene.bot.id, "leave").await?;

    scene.ann.invite(&scene.room, &eve.id).await?;
    eve.enter(&scene.room).await?;
    let first = eve.say(&scene.room, "status").await?;
    eve.say(&scene.room, "new project evil").await?;
    eve.send(
        &scene.room,
        &json!({
            "msgtype": "m.text",
            "body": format!("{}: eve was here", scene.bot.id),
            "m.mentions": { "user_ids": [scene.bot.id] },
        }),
    )
    .await?;
    // The room is read in order: when Ann's later words are answered, Eve's were passed over.
    let answer = scene.ask("ann was here", "ann was here").await?;
    assert!(!answer.body.contains("eve was here"), "{}", answer.body);
    let first_seen = scene.ann.wait_message(&scene.room, &scene.bot.id, &first, wait::SHORT, |_| true).await?;
    assert_eq!(first_seen.event_id, answer.event_id, "the first answer after Eve spoke is to Ann: {}", first_seen.body);
    assert!(!scene.home.project("evil").exists());
    scene.gateway.stop().await.map(drop)
}

#[tokio::test]
async fn in_a_room_of_two_every_message_is_for_the_bot_and_else_only_what_mentions_it() -> Result<()> {
    let homeserver = Homeserver::shared().await?;
    let scene = Scene::practice().await?;
    scene.make("addressed", "").await?;
    let (ann, bot) = (&scene.ann, &scene.bot);
    let alone = ann.create_room("the two of us", &[&bot.id]).await?;
    ann.wait_membership(&alone, &bot.id, "join").await?;
    ann.ask(&alone, &bot.id, "projects", "addressed").await?;

    let eve = Person::join(homeserver, "eve").await?;
    let crowd = ann.create_room("crowd", &[&bot.id, &eve.id]).await?;
    eve.enter(&crowd).await?;
    ann.wait_membership(&crowd, &bot.id, "join").await?;
    let unaddressed = ann.say(&crowd, "projects").await?;
    let mention =
        json!({ "msgtype": "m.text", "body": format!("{} version", bot.id), "m.mentions": { "user_ids": [bot.id] } });
    ann.send(&crowd, &mention).await?;
    let answer = ann.wait_message(&crowd, &bot.id, &unaddressed, wait::LONG, |_| true).await?;
    assert!(answer.body.contains("musher"), "the first answer is to the mention: {}", answer.body);

    // So it is with pictures, of which only captions are taken.
    let picture = |more: Value| {
        let mut content = json!({ "msgtype": "m.image", "body": "heron.png", "url": "mxc://homeserver.test/heron" });
        content
            .as_object_mut()
            .into_iter()
            .for_each(|content| content.extend(more.as_object().cloned().unwrap_or_default()));
        content
    };
    let unaddressed = ann.send(&crowd, &picture(json!({}))).await?;
    ann.send(&crowd, &picture(json!({ "m.mentions": { "user_ids": [bot.id] } }))).await?;
    let answer = ann.wait_message(&crowd, &bot.id, &unaddressed, wait::LONG, |_| true).await?;
    assert!(answer.body.contains("scp"), "it says what to do: {}", answer.body);
    let captioned = ann.send(&alone, &picture(json!({ "filename": "heron.png", "body": "version" }))).await?;
    ann.wait_message(&alone, &bot.id, &captioned, wait::LONG, |message| message.body.contains("scp")).await?;
    ann.wait_message(&alone, &bot.id, &captioned, wait::LONG, |message| message.body.starts_with("musher")).await?;
    let heard = ann.heard(&crowd, &bot.id);
    assert_eq!(heard.iter().filter(|message| message.body.contains("scp")).count(), 1, "{heard:?}");
    scene.gateway.stop().await.map(drop)
}
