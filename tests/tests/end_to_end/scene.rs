//! Ann, a bot and a project that she has chosen, over Matrix, with the real agent: where most tests of waiting,
//! stopping and being killed begin.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    engine,
    gateway::Gateway,
    home::Home,
    homeserver::Homeserver,
    images,
    model::{Model, Step},
    person::{Message, Person},
    process::Output,
    wait,
};

/// In the command line of the tool of [`until_go`].
pub const TOOL: &str = "/workspace/go";

/// The model calls a tool that runs until [`Scene::go`].
pub fn until_go() -> Step {
    let command = format!("until [ -e {TOOL} ]; do sleep 0.05; done; echo went");
    Step::call("Bash", json!({ "command": command, "timeout": 600_000 }))
}

/// What a scene begins with.
#[derive(Debug, Clone)]
pub struct Cast {
    project: String,
    /// At the top of bot.toml.
    top: String,
    /// How long a batch stays open after its latest message, in milliseconds.
    window: u32,
    /// Its tables.
    tables: String,
    /// The model's, where there is one.
    key: Option<String>,
}

impl Cast {
    /// The real agent, which talks to `model`, works on `project`.
    pub fn of(model: &Model, project: &str) -> Self {
        Self {
            project: project.into(),
            top: String::new(),
            window: 200,
            tables: Home::agent_tables(model),
            key: Some(model.key().into()),
        }
    }

    /// The practice agent works on `project`.
    pub fn practice(project: &str) -> Self {
        Self {
            project: project.into(),
            top: String::new(),
            window: 200,
            tables: "[agent]\nruntime = \"echo\"".into(),
            key: None,
        }
    }

    /// With these settings at the top of bot.toml.
    #[must_use]
    pub fn top(self, top: &str) -> Self {
        Self { top: top.into(), ..self }
    }

    /// With batches that stay open for so many milliseconds after their latest message; otherwise it is few.
    #[must_use]
    pub fn window(self, window: u32) -> Self {
        Self { window, ..self }
    }

    /// With these tables in bot.toml, the agent's among them.
    #[must_use]
    pub fn tables(self, tables: String) -> Self {
        Self { tables, ..self }
    }
}

/// Ann, Bob, the bot and their room; the gateway comes and goes.
pub struct Scene {
    /// Where the gateway is at home.
    pub home: Home,
    /// Who talks to the bot.
    pub ann: Person,
    /// Who may talk to the bot as well, and is in the room.
    pub bob: Person,
    /// The bot.
    pub bot: Person,
    /// Where they talk: all that is said there is for the bot.
    pub room: String,
    /// What the gateway's settings begin with.
    settings: String,
}

impl Scene {
    /// The gateway has made `project`, and Ann has chosen it. The agent is the real one.
    pub async fn open(model: &Model, top: &str, project: &str) -> Result<(Self, Gateway)> {
        Self::set(Cast::of(model, project).top(top)).await
    }

    /// The same with this cast, on the homeserver that the tests share.
    pub async fn set(cast: Cast) -> Result<(Self, Gateway)> {
        Self::on(Homeserver::shared().await?, cast).await
    }

    /// The same on this homeserver.
    pub async fn on(homeserver: &Homeserver, cast: Cast) -> Result<(Self, Gateway)> {
        images::ready().await?;
        let Cast { project, top, window, tables, key } = cast;
        let (ann, bob, bot) = tokio::try_join!(
            Person::join(homeserver, "ann"),
            Person::join(homeserver, "bob"),
            Person::join(homeserver, "bot")
        )?;
        let room = ann.create_room("control", &[&bot.id, &bob.id]).await?;
        bob.enter(&room).await?;
        let mut home = Home::new("", "")?;
        if let Some(key) = key {
            home = home.with_variable("ANTHROPIC_API_KEY", &key);
        }
        let settings = format!(
            "transport = \"matrix\"\nhomeserver = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\nallowed_users = {}\nambient_rooms = {}\ncoalesce_window_ms = {window}\n{top}\n",
            homeserver.url(),
            bot.id,
            bot.password(),
            json!([ann.id, bob.id]),
            json!([room]),
        );
        let scene = Self { home, ann, bob, bot, room, settings };
        scene.configure(&tables)?;
        let gateway = scene.up().await?;
        scene.ann.wait_membership(&scene.room, &scene.bot.id, "join").await?;
        scene.ask(&format!("new project {project}"), &format!("**{project}** is ready")).await?;
        scene.ask(&format!("switch {project}"), &project).await?;
        Ok((scene, gateway))
    }

    /// Writes bot.toml anew with these tables, for the next start.
    pub fn configure(&self, tables: &str) -> Result<()> {
        self.home.configure(&self.settings, tables)
    }

    /// Starts a gateway, and waits until it takes messages.
    pub async fn up(&self) -> Result<Gateway> {
        Gateway::up(&self.home, &[]).await
    }

    /// Ann says `text`.
    pub async fn say(&self, text: &str) -> Result<String> {
        self.ann.say(&self.room, text).await
    }

    /// Ann asks, and hears something of the bot that contains `needle`.
    pub async fn ask(&self, text: &str, needle: &str) -> Result<Message> {
        self.ann.ask(&self.room, &self.bot.id, text, needle).await
    }

    /// Waits until the bot says something after the event that contains `needle`.
    pub async fn hear(&self, event: &str, needle: &str) -> Result<Message> {
        let fits = |message: &Message| message.body.contains(needle);
        self.ann.wait_message(&self.room, &self.bot.id, event, wait::LONG, fits).await
    }

    /// How often the bot has said something that contains `needle`, so far as Ann has heard; edits do not count.
    pub fn heard(&self, needle: &str) -> usize {
        let heard = self.ann.heard(&self.room, &self.bot.id);
        heard.iter().filter(|message| message.edits.is_none() && message.body.contains(needle)).count()
    }

    /// What the bot has said so far of what went wrong.
    pub fn complaints(&self) -> Vec<String> {
        let heard = self.ann.heard(&self.room, &self.bot.id).into_iter().map(|message| message.body);
        heard.filter(|body| body.starts_with('⚠')).collect()
    }

    /// Waits for an answer after the event that contains `needle`.
    pub async fn answer(&self, event: &str, needle: &str) -> Result<Message> {
        let fits = |message: &Message| is_answer(message) && message.body.contains(needle);
        self.ann.wait_message(&self.room, &self.bot.id, event, wait::LONG, fits).await
    }

    /// Waits for an answer that names the event.
    pub async fn wait_named(&self, event: &str) -> Result<()> {
        let fits = |message: &Message| is_answer(message) && names(message, event);
        self.ann.wait_message(&self.room, &self.bot.id, event, wait::LONG, fits).await.map(drop)
    }

    /// All answers so far that name the event, once a later question has been answered: what is delivered in order
    /// cannot come any more. The model says `Now.` to `and now?`.
    pub async fn answers(&self, event: &str) -> Result<Vec<Message>> {
        let last = self.say("and now?").await?;
        self.answer(&last, "Now.").await?;
        let heard = self.ann.heard(&self.room, &self.bot.id).into_iter();
        Ok(heard.filter(|message| is_answer(message) && names(message, event)).collect())
    }

    /// The event has one answer, and it contains `needle`.
    pub async fn answered_once(&self, event: &str, needle: &str) -> Result<()> {
        let answers = self.answers(event).await?;
        let bodies: Vec<&str> = answers.iter().map(|answer| answer.body.as_str()).collect();
        ensure!(matches!(bodies[..], [body] if body.contains(needle)), "wanted one answer `{needle}`: {bodies:#?}");
        Ok(())
    }

    /// Those of these events that answers name, in the order of the answers, once for each; so far as Ann has heard.
    pub fn answered(&self, events: &[String]) -> Vec<String> {
        let heard = self.ann.heard(&self.room, &self.bot.id);
        let answered = heard.iter().filter(|message| is_answer(message)).flat_map(named);
        answered.filter(|event| events.contains(event)).collect()
    }

    /// Lets the tool of a turn go on.
    pub fn go(&self, project: &str) -> Result<()> {
        fs::write(self.home.project(project).join("go"), "").context("the project's folder is ours")
    }

    /// Waits until the tool of the turn runs.
    pub async fn wait_tool(&self, project: &str) -> Result<()> {
        let container = self.home.container(project).await?;
        wait::until("the turn's tool runs", wait::LONG, || async {
            Ok(engine::docker(&["top", &container, "-eo", "pid,args"]).await?.contains(TOOL).then_some(()))
        })
        .await
    }

    /// What the journal says, a line for each event.
    pub async fn journal(&self) -> Result<String> {
        self.home.run(["journal", "tail", "--lines", "100000"], "").await.and_then(Output::success)
    }

    /// Waits until the journal holds an event of this kind that it did not hold `before`.
    pub async fn wait_journal(&self, kind: &str, before: usize) -> Result<()> {
        wait::until(&format!("the journal holds another {kind}"), wait::LONG, || async {
            Ok((self.journal().await?.matches(kind).count() > before).then_some(()))
        })
        .await
    }
}

/// Whether it is an answer, and no notice or edit.
pub fn is_answer(message: &Message) -> bool {
    message.kind == "m.text" && message.edits.is_none()
}

/// Whether the message says to answer the event.
pub fn names(message: &Message, event: &str) -> bool {
    named(message).any(|answered| answered == event)
}

/// The events that the message says to answer.
pub fn named(message: &Message) -> impl Iterator<Item = String> {
    let answers = message.content["dev.musher"]["answers"].as_array().into_iter().flatten();
    answers.filter_map(|event| event.as_str().map(str::to_owned))
}

/// The numbers by which `queue` calls the messages whose lines contain `words`.
pub fn numbers(queue: &str, words: &str) -> Vec<u64> {
    let lines = queue.lines().filter(|line| line.contains(words));
    let number = |line: &str| {
        let digits = line.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
    };
    lines.filter_map(number).collect()
}
