//! What becomes of what surfaces give, in a gateway that is put together whole, without an engine and without sleds.

mod handing_over;
mod provisioning;
mod queue;
mod redactions;

use jiff::Timestamp;

use super::*;
use crate::{
    chat::{
        Edited, Inbound, Outbound, Person, Reacted, Weight,
        hall::{Hall, Heard},
    },
    dispatch::SessionKey,
    projects::{ProjectEvent, Spec},
    sessions::{self, Ending},
    usage::Tokens,
};

/// A gateway's life on a folder.
struct Life {
    gateway: Gateway,
    heard: Heard,
}

/// A gateway that listens to her and him, answers each message alone, and has no engine.
const CONFIG: &str = r#"
transport = "console"
admins = ["@ann:example.org"]
allowed_users = ["@bob:example.org"]
coalesce_window_ms = 0
[agent]
runtime = "echo"
[engine]
host = "unix:///nowhere/docker.sock"
[http]
listen = "127.0.0.1:0"
"#;

impl Life {
    async fn begin(folder: &tempfile::TempDir) -> Self {
        Self::configured(folder, CONFIG).await
    }

    async fn configured(folder: &tempfile::TempDir, config: &str) -> Self {
        Self::beside(folder, config, Path::new("/nowhere/musher")).await
    }

    /// With the program at this path, beside which the sled's lies.
    async fn beside(folder: &tempfile::TempDir, config: &str, musher: &Path) -> Self {
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        std::fs::write(home.config_file(), config).expect("there is room");
        let config = settings::load(&home).expect("it is right");
        let path = folder.path().to_str().expect("it is text").to_owned();
        let environment =
            Environment { variable: &move |name| (name == "HOME").then(|| path.clone()), musher: musher.to_owned() };
        let gateway = Box::pin(Gateway::build(&config, &environment, home)).await.expect("it needs no engine");
        let (hall, heard) = Hall::new(SurfaceKind::Matrix);
        gateway.outbox.add(Arc::new(hall));
        Self { gateway, heard }
    }

    async fn say(&self, event_id: &str, text: &str) {
        self.gateway.intake.accept(said(event_id, text)).await.expect("it is taken");
    }

    async fn hear(&mut self) -> Outbound {
        self.heard.sent.recv().await.expect("the surface is alive")
    }

    /// The answer to what was said in this event, and what it came to.
    async fn answer_to(&mut self, event_id: &str) -> String {
        loop {
            let heard = self.hear().await;
            if heard.answers.iter().any(|answered| answered == event_id) {
                return heard.markdown;
            }
        }
    }

    /// Waits until all that was sent is known to be delivered.
    async fn nothing_is_on_its_way(&self) {
        while self.gateway.outbox.undelivered() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// A project of this name, for its members alone if there are any.
    async fn project(&self, name: &str, members: &[Person]) -> Uuid {
        let id = Uuid::now_v7();
        let spec = Spec { name: name.into(), ..Spec::example(format!("/srv/{name}")) };
        let mut made = vec![ProjectEvent::Reserved(spec), ProjectEvent::Registered];
        made.extend(members.iter().map(|person| ProjectEvent::MemberAdded { person: person.clone() }));
        let registry = &self.gateway.intake.registry;
        registry.append(id, &made, Actor::Gateway, Cause::None).await.expect("it is journaled");
        id
    }

    /// She lets the agent of a project work, which has no container to work in yet.
    async fn work(&self, event_id: &str, project: &str) {
        self.say(&format!("{event_id}-switch"), &format!("!switch {project}")).await;
        let running = self.gateway.intake.turns.running();
        self.say(event_id, "do it").await;
        while self.gateway.intake.turns.running() == running {
            tokio::task::yield_now().await;
        }
    }

    async fn end(self) {
        self.gateway.tasks.shutdown(SHUTDOWN).await.expect("it ends");
        self.gateway.journal.close().await;
    }
}

fn bob() -> Person {
    Person { id: "@bob:example.org".into(), ..ann() }
}

/// What she says.
fn said(event_id: &str, text: &str) -> Inbound {
    Inbound {
        room: room(),
        event_id: event_id.into(),
        sender: ann(),
        at: Timestamp::UNIX_EPOCH,
        text: text.into(),
        quoted: None,
        thread: None,
        addressed: true,
        with_file: false,
        pending: None,
    }
}

fn room() -> Room {
    Room { surface: SurfaceKind::Matrix, id: "!a:example.org".into() }
}

fn ann() -> Person {
    Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".into() }
}

#[test]
fn only_a_console_on_a_terminal_has_a_prompt() {
    let text = "transport = \"matrix\"\nhomeserver = \"https://h.example\"\nusername = \"bot\"\npassword = \"x\"\nadmins = [\"@a:h.example\"]\n";
    let matrix = Config::parse(text, Path::new("bot.toml")).expect("it is right").surface;
    assert!(has_prompt(&Talk::Console, true) && !has_prompt(&Talk::Console, false));
    assert!(!has_prompt(&matrix, true) && !has_prompt(&matrix, false), "its warnings go to the terminal");
}

#[test]
fn where_nobody_talks_the_terminal_is_told_where_people_do() {
    let settings = |login| MatrixSettings {
        homeserver: "https://matrix.example.org".parse().expect("it is an address"),
        login,
        room_ids: Vec::new(),
        ambient: Vec::new(),
        store_dir: PathBuf::from("/nowhere"),
        device_name: "musher".to_owned(),
    };
    let by_name = Login::Password { username: "musher".to_owned(), password: "s3cret".to_owned().into() };
    let told = greeting(&settings(by_name), Path::new("/home/ann/.musher/logs"), false);
    let expected = "It talks in Matrix rooms as musher on https://matrix.example.org; log: /home/ann/.musher/logs. Ctrl-C ends it.";
    assert_eq!(told, format!("musher {}. {expected}", env!("CARGO_PKG_VERSION")));
    let by_token = Login::Token { access_token: "s3cret".to_owned().into() };
    let told = greeting(&settings(by_token), Path::new("/logs"), true);
    assert!(told.contains(" by an access token on ") && told.contains(PRACTICE) && !told.contains("s3cret"), "{told}");
}

#[tokio::test]
async fn an_answer_is_given_also_where_its_first_append_fails() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    for (event_id, text, told) in [("$a", "!version", "musher"), ("$b", "!nonsense", "⚠"), ("$c", "words", "⚠")] {
        life.gateway.journal.refuse("command.answered", 1);
        life.say(event_id, text).await;
        let answer = life.hear().await;
        assert!(answer.markdown.starts_with(told), "{}", answer.markdown);
        assert_eq!(answer.answers, [event_id]);
    }
    assert_eq!(life.gateway.journal.append_failures(), 3);
    life.end().await;
}

#[tokio::test]
async fn who_sends_a_file_is_told_what_to_do_and_its_caption_is_taken() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    let give = async |life: &Life, event_id: &str, caption: &str, addressed: bool| {
        let message = Inbound { with_file: true, addressed, ..said(event_id, caption) };
        life.gateway.intake.accept(message).await.expect("it is taken");
    };
    give(&life, "$aside", "", false).await;
    for _ in 0..2 {
        give(&life, "$picture", "", true).await;
    }
    let told = "⚠ Files, pictures and voice messages are not taken from a room in this version.\nCopy it into the workspace with `scp <file> <project>.musher:/workspace/`, or paste it as text.";
    let answer = life.hear().await;
    assert_eq!((answer.markdown.as_str(), answer.answers), (told, vec!["$picture".to_owned()]));
    assert_eq!(answer.mention, Some(ann()));
    // As after a crash, it comes again.
    for _ in 0..2 {
        give(&life, "$captioned", "!version", true).await;
    }
    let (beside, answer) = (life.hear().await, life.hear().await);
    assert_eq!((beside.markdown.as_str(), beside.weight, beside.answers), (told, Weight::Notice, vec![]));
    assert!(answer.markdown.contains("musher"), "{}", answer.markdown);
    assert_eq!(answer.answers, ["$captioned"]);
    life.say("$last", "!version").await;
    assert_eq!(life.hear().await.answers, ["$last"], "each is told once");
    life.end().await;
}

#[tokio::test]
async fn what_could_be_a_command_with_a_slip_is_told_from_words_where_nobody_takes_them() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    for (event_id, text, slip) in
        [("$a", "status please", true), ("$b", "new projct app", true), ("$c", "what is there to do?", false)]
    {
        life.say(event_id, text).await;
        let answer = life.hear().await.markdown;
        let told = answer.ends_with("write `!` before it to hear what is wrong with it.");
        assert!(answer.contains("new project myapp") && told == slip, "{answer}");
    }
    life.end().await;
}

#[tokio::test]
async fn how_a_project_is_made_is_told_to_who_wants_to_talk_about_one() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    for (number, (text, hint)) in [
        ("switch nope", "`projects` lists them; `new project nope` makes one."),
        ("ssh nope", "`projects` lists them."),
        ("members nope", "`projects` lists them."),
        ("members add @bob:example.org nope", "`projects` lists them."),
        ("delete project nope", "`projects` lists them."),
        ("confirm delete nope", "`projects` lists them."),
    ]
    .into_iter()
    .enumerate()
    {
        life.say(&format!("${number}"), text).await;
        assert_eq!(life.hear().await.markdown, format!("⚠ There is no project `nope`.\n{hint}"), "{text}");
    }
    life.end().await;
}

#[tokio::test]
async fn a_command_with_a_credential_in_it_is_refused_taken_back_and_nowhere_on_the_disk() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    let values = [
        "git:s3cret@example.org:a/b",
        "https://example.org/a?token=s3cret",
        "https://example.org/a#s3cret",
        "https://ann:p\"s3cret@h/a",
        "https://ann:s3c/s3cret@h/a",
        "'https://ann:my s3cret@h/a'",
        "https://ann:s3cret@h/a",
    ];
    for (number, value) in values.into_iter().enumerate() {
        let event_id = format!("$said{number}");
        life.say(&event_id, &format!("!new project a --git {value}")).await;
        assert_eq!(life.heard.taken_back.recv().await.as_ref(), Some(&event_id), "{value}");
        let answer = life.hear().await;
        assert!(answer.markdown.starts_with('⚠') && !answer.markdown.contains("s3c"), "{}", answer.markdown);
    }
    // The same of a message that waits and is edited into one.
    let session = SessionKey { project: Uuid::now_v7(), room: room(), thread: None };
    let Intake { registry, sessions, .. } = &*life.gateway.intake;
    let made = [ProjectEvent::Reserved(Spec::example("/srv/app")), ProjectEvent::Registered];
    registry.append(session.project, &made, Actor::Gateway, Cause::None).await.expect("it is journaled");
    sessions.accept(&session, &said("$waits", "hello"), "hello", Role::Admin, false).await.expect("it is accepted");
    let edit = |edit_id: &str, text: &str| Edited {
        room: room(),
        event_id: "$waits".into(),
        edit_id: edit_id.into(),
        sender: ann(),
        text: text.into(),
    };
    let exposing = edit("$edit", "!new project a --git https://ann:s3c/s3cret@h/a");
    life.gateway.intake.edited(exposing).await.expect("it is taken");
    assert_eq!(life.heard.taken_back.recv().await.as_deref(), Some("$edit"));
    let told = life.hear().await;
    assert!(told.markdown.starts_with('⚠') && !told.markdown.contains("s3c"), "{}", told.markdown);
    // One that masking hides everywhere else is taken out of the room without a word.
    let masked = edit("$masked", "!git fetch https://ann:s3cret@h/a");
    life.gateway.intake.edited(masked).await.expect("it is taken");
    assert_eq!(life.heard.taken_back.recv().await.as_deref(), Some("$masked"));
    assert!(life.heard.sent.try_recv().is_err());

    life.say("$kept", "!new project A --git https://example.org/a").await;
    assert!(life.hear().await.markdown.contains('⚠'));
    assert!(life.heard.taken_back.try_recv().is_err(), "it carries none");

    // Nor do replies bring it in.
    life.project("quoting", &[]).await;
    life.say("$switch", "!switch quoting").await;
    life.answer_to("$switch").await;
    for (number, value) in values.into_iter().enumerate() {
        let quoted = Some(format!("!new project a --git {value}"));
        let reply = Inbound { quoted, ..said(&format!("$reply{number}"), "what did that say?") };
        life.gateway.intake.accept(reply).await.expect("it is taken");
    }
    assert!(life.gateway.intake.sessions.busy(|_| true).await.len() > 1, "they wait for its agent");
    life.end().await;
    for entry in std::fs::read_dir(folder.path().join("state")).expect("it is readable") {
        let path = entry.expect("it is readable").path();
        if path.is_file() {
            let bytes = std::fs::read(&path).expect("it is readable");
            assert!(!bytes.windows(6).any(|bytes| bytes == b"s3cret"), "it is in {}", path.display());
        }
    }
}

#[tokio::test]
async fn an_edit_too_many_is_answered() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    let session = SessionKey { project: life.project("app", &[]).await, room: room(), thread: None };
    let Intake { sessions, .. } = &*life.gateway.intake;
    sessions.accept(&session, &said("$waits", "hello"), "hello", Role::Admin, false).await.expect("it is accepted");
    for number in 0..=sessions::MAX_EDITS {
        let edit = Edited {
            room: room(),
            event_id: "$waits".into(),
            edit_id: format!("$edit{number}"),
            sender: ann(),
            text: format!("hello {number}"),
        };
        life.gateway.intake.edited(edit).await.expect("it is taken");
    }
    let told = life.hear().await;
    assert_eq!(told.reply_to.as_deref(), Some("$waits"));
    assert_eq!(
        told.markdown,
        "⚠ This edit is not taken, because the message was edited 64 times already.\n\
         Delete it, or take it out as `queue` shows, and write it anew."
    );
    life.end().await;
}

#[tokio::test]
async fn a_sign_on_a_question_of_a_turn_that_is_taken_up_outlives_the_gateway() {
    let folder = tempfile::tempdir().expect("there is room");
    // A gateway that has begun a turn, and told its question.
    let mut life = Life::begin(&folder).await;
    let session = SessionKey { project: Uuid::now_v7(), room: room(), thread: None };
    let Intake { registry, sessions, .. } = &*life.gateway.intake;
    let made = [ProjectEvent::Reserved(Spec::example("/srv/app")), ProjectEvent::Registered];
    registry.append(session.project, &made, Actor::Gateway, Cause::None).await.expect("it is journaled");
    sessions.accept(&session, &said("$said", "do it"), "do it", Role::Admin, false).await.expect("it is accepted");
    let turn = Uuid::now_v7();
    sessions.begin(&session, turn, &["$said"]).await.expect("it begins").expect("it waits");
    let to = Address { room: room(), thread: None, reply_to: None, mention: None, pending: None };
    let question = Uuid::new_v5(&Uuid::nil(), b"what the sled calls it");
    let asked = Post::notice(to, format!("question-{question}"), "may I?");
    life.gateway.outbox.post(asked).await.expect("it is journaled");
    life.hear().await;
    while life.gateway.outbox.undelivered() > 0 {
        tokio::task::yield_now().await;
    }
    life.end().await;

    // The next one takes the turn up, and waits for its sled.
    let life = Life::begin(&folder).await;
    assert!(life.gateway.intake.turns.takes_up(|of| *of == room()));
    let react = async |event_id: &str, reaction_id: &str| {
        let (event_id, reaction_id) = (event_id.to_owned(), reaction_id.to_owned());
        let reaction =
            Reacted { room: room(), event_id, reaction_id, sender: ann(), key: "👍".into(), encrypted: false };
        life.gateway.intake.reacted(reaction).await.expect("it is taken");
    };
    react("$0", "$sign").await;
    react("$0", "$sign").await;
    let unanswered = life.gateway.intake.rooms.unanswered().await.expect("they are readable");
    let unanswered: Vec<_> = unanswered.iter().map(|(_, command, text)| (&*command.event_id, &**text)).collect();
    let approval = format!("!approve {question}");
    assert_eq!(unanswered, [("$sign", approval.as_str())], "it is journaled when it is taken, once");
    let finish = life.gateway.intake.sessions.finish(&session, turn, Ending::Stopped, true, Vec::new(), Vec::new());
    finish.await.expect("it is journaled");
    life.end().await;

    // A sign on a question that is open no more is settled in silence, whenever it is taken up.
    let mut life = Life::begin(&folder).await;
    while !life.gateway.intake.rooms.unanswered().await.expect("they are readable").is_empty() {
        tokio::task::yield_now().await;
    }
    life.say("$version", "!version").await;
    assert_eq!(life.hear().await.answers, ["$version"], "it is the first thing that is said");
    life.end().await;
}

#[tokio::test]
async fn each_thread_is_a_turn_of_its_own_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("there is room");
    let life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    life.work("$first", "app").await;
    for (event_id, thread) in [("$one", Some("$t1")), ("$two", Some("$t2")), ("$more", Some("$t2")), ("$none", None)] {
        let thread = thread.map(str::to_owned);
        let said = Inbound { thread, ..said(event_id, "and this") };
        life.gateway.intake.accept(said).await.expect("it is taken");
    }
    life.end().await;

    let life = Life::begin(&folder).await;
    let Intake { sessions, turns, .. } = &*life.gateway.intake;
    for (answered, thread) in [
        (vec!["$first"], None),
        (vec!["$one"], Some("$t1")),
        (vec!["$two", "$more"], Some("$t2")),
        (vec!["$none"], None),
    ] {
        let running = loop {
            let (_, session) = sessions.busy(|_| true).await.remove(0);
            match session.running {
                Some(running) if running.answers[0].event_id == answered[0] => break running,
                _ => tokio::task::yield_now().await,
            }
        };
        let answers: Vec<_> =
            running.answers.iter().map(|one| (one.event_id.as_str(), one.thread.as_deref())).collect();
        assert_eq!(answers, answered.iter().map(|event_id| (*event_id, thread)).collect::<Vec<_>>());
        turns.cancel(running.turn, crate::dispatch::core::Why::Stopped);
    }
    life.end().await;
}

#[tokio::test]
async fn a_room_is_told_once_of_a_restart_however_many_of_its_turns_are_taken_up() {
    let folder = tempfile::tempdir().expect("there is room");
    let elsewhere = Room { id: "!b:example.org".into(), ..room() };
    let life = Life::begin(&folder).await;
    for name in ["app", "other", "third"] {
        life.project(name, &[]).await;
    }
    life.work("$app", "app").await;
    life.work("$other", "other").await;
    for (event_id, text) in [("$switch", "!switch third"), ("$third", "do it")] {
        let said = Inbound { room: elsewhere.clone(), ..said(event_id, text) };
        life.gateway.intake.accept(said).await.expect("it is taken");
    }
    while life.gateway.intake.turns.running() < 3 {
        tokio::task::yield_now().await;
    }
    while life.gateway.intake.sessions.busy(|_| true).await.iter().any(|(_, session)| session.running.is_none()) {
        tokio::task::yield_now().await;
    }
    life.end().await;

    let life = Life::begin(&folder).await;
    assert_eq!(life.gateway.intake.turns.running(), 3);
    for room in [room(), elsewhere] {
        let stream = StreamId::new("outbox", &room);
        let queued = life.gateway.journal.read(&stream, 0).await.expect("it is readable");
        // It may be delivered by now, which is another event.
        let queued = queued.iter().filter(|event| event.kind == "send.queued");
        assert_eq!(queued.filter(|event| event.data.get().contains("-restart\"")).count(), 1, "{room}");
    }
    life.end().await;
}

#[tokio::test]
async fn a_message_that_is_cancelled_and_the_answer_to_that_are_one_transaction() {
    let folder = tempfile::tempdir().expect("there is room");
    let life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    life.work("$one", "app").await;
    life.say("$two", "and this").await;
    // What a gateway leaves that is killed before the answer is journaled.
    life.gateway.journal.refuse("command.answered", u64::MAX);
    life.say("$cancel", "!cancel 2").await;
    life.end().await;

    let mut life = Life::begin(&folder).await;
    assert_eq!(life.answer_to("$cancel").await, "Taken out: @ann:example.org: `and this`");
    life.say("$queue", "!queue").await;
    assert!(!life.answer_to("$queue").await.contains("and this"));
    let Intake { rooms, .. } = &*life.gateway.intake;
    assert!(rooms.unanswered().await.expect("they are readable").is_empty());
    assert_eq!(rooms.waiting_commands(&room()), 0);
    life.end().await;
}

#[tokio::test]
async fn who_calls_the_bot_and_says_nothing_is_answered() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.say("$nothing", "").await;
    assert_eq!(life.answer_to("$nothing").await, "Write what the agent is to do, or `help` for what else there is.");
    let aside = Inbound { addressed: false, ..said("$aside", "") };
    life.gateway.intake.accept(aside).await.expect("it is taken");
    life.say("$version", "!version").await;
    assert_eq!(life.hear().await.answers, ["$version"]);
    life.end().await;
}

#[tokio::test]
async fn a_stop_by_who_has_chosen_nothing_ends_what_works_in_the_room_as_far_as_they_may() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.project("open", &[]).await;
    life.project("closed", &[ann()]).await;
    life.work("$open", "open").await;
    life.work("$closed", "closed").await;
    let by_bob = |event_id: &str| Inbound { sender: bob(), ..said(event_id, "stop") };
    life.gateway.intake.accept(by_bob("$stop")).await.expect("it is taken");
    assert_eq!(life.answer_to("$stop").await, "**open**: Stopped before the agent began.");
    assert_eq!(life.gateway.intake.turns.running(), 1, "what is not his goes on");
    life.gateway.intake.accept(by_bob("$again")).await.expect("it is taken");
    assert_eq!(
        life.answer_to("$again").await,
        "Nothing was running.\nA project has work here that is for its members alone."
    );
    let elsewhere = Room { id: "!b:example.org".into(), ..room() };
    life.gateway.intake.accept(Inbound { room: elsewhere, ..by_bob("$there") }).await.expect("it is taken");
    assert_eq!(life.answer_to("$there").await, "Nothing was running.");
    life.end().await;
}

#[tokio::test]
async fn a_stop_of_the_chosen_project_tells_of_another_that_works_in_the_room() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    life.project("other", &[]).await;
    life.work("$app", "app").await;
    life.say("$switch", "!switch other").await;
    life.say("$stop", "stop").await;
    assert_eq!(
        life.answer_to("$stop").await,
        "Nothing was running.\n**app** has work here: `switch app`, then `stop`, ends it."
    );
    assert_eq!(life.gateway.intake.turns.running(), 1);
    life.say("$back", "!switch app").await;
    life.say("$now", "stop").await;
    assert_eq!(life.answer_to("$now").await, "Stopped before the agent began.");
    life.end().await;
}
