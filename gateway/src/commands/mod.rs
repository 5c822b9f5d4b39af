//! Commands: what they say ([`grammar`]), what of that is not kept ([`exposed`]), and what they do.
//!
//! A command is answered at once, on its own; what takes long goes on beside everything else.

pub mod broken_off;
mod deletion;
pub mod exposed;
pub mod git_audit;
pub mod grammar;
mod members;
mod queue;
pub mod rights;
mod ssh;
pub mod stacks;
mod stopping;
mod undo;

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use journal::{Actor, Cause};
use link::{
    CallError,
    requests::{CommandOutput, NodeStatus},
};
use musher_docker::ContainerState;
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

use self::grammar::{Command, Confirm, Delete, New, NewProject, StacksVerb};
use crate::{
    chat::{InboxError, Mark, Person, Room},
    containers::SharedContainers,
    dispatch::{SessionKey, actor::Dispatcher, core::Event},
    doctor::{Doctor, Seen},
    failpoint,
    git::Git,
    home::Home,
    nodes::Nodes,
    outbox::{Address, Outbox, Post, Progress},
    people::{People, Role},
    projects::{Project, Registry, Stage, saga::Sagas, welcome},
    refusal::Refusal,
    rooms::{Mode, Rooms},
    sessions::{Message, Removal, Sessions},
    tasks::Tasks,
    text,
    turns::{Handle, StopRequest, Turns, Verdict, Word},
    usage::Usage,
};

/// How long a sled may take to tell its status before it counts as silent, besides what git is granted there.
const STATUS_PATIENCE: Duration = Duration::from_secs(4);
/// After this a proxied command says that it is still under way (CMD-5).
const PATIENCE: Duration = Duration::from_secs(5);
/// What of a command's output is shown, in bytes of its end.
const OUTPUT_MAX: usize = 20_000;

/// Who asked for a command, and where the answer goes.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who.
    pub by: Person,
    /// With which rights.
    pub role: Role,
    /// Where the answer goes.
    pub to: Address,
    /// The project that it is about: the one that they talk about there, or that the command names.
    pub project: Option<Uuid>,
    /// The message.
    pub event_id: String,
}

impl Asked {
    fn cause(&self) -> Cause {
        Cause::Command(self.event_id.clone())
    }
}

/// Carries commands out.
#[derive(Clone)]
pub struct Commands {
    inner: Arc<Inner>,
}

/// What commands work with.
pub struct Inner {
    /// The state directory.
    pub home: Home,
    /// The projects.
    pub registry: Arc<Registry>,
    /// How they come and go.
    pub sagas: Sagas,
    /// Their containers.
    pub containers: SharedContainers,
    /// Their sleds.
    pub nodes: Nodes,
    /// Their git remotes.
    pub git: Arc<Git>,
    /// Who talks about which.
    pub rooms: Arc<Rooms>,
    /// The agents' memories.
    pub sessions: Sessions,
    /// Sends answers.
    pub outbox: Outbox,
    /// Runs what takes long.
    pub tasks: Tasks,
    /// Checks the installation.
    pub doctor: Doctor,
    /// How other machines reach this host.
    pub ssh_host: Option<String>,
    /// Ends turns of projects that are deleted.
    pub dispatcher: Dispatcher<Handle, StopRequest>,
    /// Runs turns, which people answer questions of.
    pub turns: Turns,
    /// What the model was used for.
    pub usage: Usage,
    /// Turns that may run at the same time.
    pub max_turns: usize,
    /// Deletions that wait to be confirmed, with their time.
    pub deletions: Mutex<HashMap<(Room, Person, Uuid), Instant>>,
    /// Who may speak.
    pub people: People,
}

impl Commands {
    /// Commands on these parts.
    pub fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Takes a command that was journaled. Whether its asker may give it, and what decides about the messages that follow,
    /// is done before this returns; the rest goes on beside everything else.
    ///
    /// # Errors
    /// When the gateway is stopping.
    pub async fn take(&self, command: Command, mut asked: Asked) -> Result<(), InboxError> {
        if let Err(refusal) = self.permit(&command, &mut asked) {
            self.answer(asked, Err(refusal)).await;
            return Ok(());
        }
        if command == Command::Stop {
            return self.stop(asked).await;
        }
        if command.is_in_order() {
            let answer = self.run(command, &asked).await;
            self.answer(asked, answer).await;
            return Ok(());
        }
        let this = self.clone();
        self.inner.tasks.spawn("command", async move {
            let answer = this.run(command, &asked).await;
            this.answer(asked, answer).await;
        });
        Ok(())
    }

    async fn answer(&self, asked: Asked, answer: Result<String, Refusal>) {
        let Asked { to, event_id, .. } = asked;
        let markdown = answer.unwrap_or_else(|refusal| refusal.to_markdown());
        let room = to.room.clone();
        let post = Post::answer(to, &event_id, markdown);
        self.inner.rooms.answer_in_the_end(&self.inner.tasks, &room, &event_id, vec![post]).await;
    }

    async fn run(&self, command: Command, asked: &Asked) -> Result<String, Refusal> {
        match command {
            Command::Help { topic } => Ok(grammar::help(&topic).unwrap_or_else(|answer| answer)),
            Command::New(New::Project(new)) => self.new_project(&new, asked).await,
            Command::Projects => self.projects(asked).await,
            Command::Status => self.status(asked).await,
            Command::Ssh { .. } => self.ssh(asked),
            Command::Members { change: None, .. } => self.members(asked),
            Command::Members { change: Some(change), .. } => self.change_members(change, asked).await,
            Command::Delete(Delete::Project { .. }) => self.ask_deletion(asked),
            Command::Confirm(Confirm::Delete { name }) => self.delete(&name, asked).await,
            Command::Logs { lines } => self.logs(lines, asked).await,
            Command::Git { args } if git_audit::is_meant(&args) => self.git_audit(asked).await,
            Command::Git { args } => self.git(args, asked).await,
            Command::Diff { paths } => self.diff(paths, asked).await,
            Command::Undo => self.undo(asked).await,
            Command::Switch { .. } => self.switch(asked).await,
            Command::Reset => self.reset(asked).await,
            Command::Stop => unreachable!("it is the dispatcher's, which answers it"),
            Command::Queue => self.queue(asked).await,
            Command::Cancel { number } => self.cancel(number, asked).await,
            Command::Mode { mode } => self.mode(mode, asked).await,
            Command::Approve { question } => self.decide(&question, Verdict::Approve, asked).await,
            Command::Deny { question } => self.decide(&question, Verdict::Deny, asked).await,
            Command::Cost => Ok(self.cost(asked)),
            Command::Stacks(verb) => self.stacks(&verb),
            Command::Doctor => {
                let Inner { registry, sagas, .. } = &*self.inner;
                let seen = Seen { registry, by: &asked.by, role: asked.role, author: &sagas.author };
                Ok(self.inner.doctor.run(Some(seen)).await.to_markdown())
            }
            Command::Version => Ok(format!("musher {}", env!("CARGO_PKG_VERSION"))),
        }
    }

    /// The project that the asker talks about here.
    fn chosen(&self, asked: &Asked) -> Result<(Uuid, Project), Refusal> {
        let chosen = asked.project.and_then(|id| Some((id, self.inner.registry.get(id)?)));
        chosen.ok_or_else(|| {
            Refusal::usage("you have not chosen a project here").hint(self.ways_to_choose(&asked.by, asked.role))
        })
    }

    /// What words for an agent are answered with when there is no project for them.
    pub fn how_to_choose(&self, words: &str, by: &Person, role: Role) -> String {
        let meant = if grammar::begins_like_a_command(words) {
            " If that was meant as a command, write `!` before it to hear what is wrong with it."
        } else {
            ""
        };
        Refusal::usage("there is no agent here yet, because you have not chosen a project")
            .hint(format!("{}{meant}", self.ways_to_choose(by, role)))
            .to_markdown()
    }

    fn ways_to_choose(&self, by: &Person, role: Role) -> String {
        let new =
            Command::New(New::Project(NewProject { stack: Some("rust".to_owned()), ..NewProject::named("myapp") }));
        let ready = self.inner.registry.used_by(by, role).filter(|(_, project)| project.stage == Stage::Registered);
        let switches: Vec<_> = ready
            .filter_map(|(_, project)| project.spec)
            .take(5)
            .map(|spec| format!("`{}`", Command::Switch { project: spec.name }))
            .collect();
        if switches.is_empty() {
            format!("Make one: `{new}`.")
        } else {
            format!("Choose one with {}, or make one: `{new}`.", switches.join(", "))
        }
    }

    fn stacks(&self, verb: &StacksVerb) -> Result<String, Refusal> {
        match verb {
            StacksVerb::List => Ok(stacks::list(self.inner.containers.stacks(), self.inner.containers.toolchains())),
            StacksVerb::Check { name } => Ok(stacks::check(&self.inner.home, name.as_deref())?.text),
        }
    }

    async fn switch(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let name = project.spec.map(|spec| spec.name).unwrap_or_default();
        self.inner.rooms.switch(&asked.to.room, &asked.by, id, asked.cause()).await?;
        Ok(format!("You talk to **{name}** here now."))
    }

    async fn reset(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let key = SessionKey { project: id, room: asked.to.room.clone(), thread: None };
        self.inner.sessions.reset(&key, &asked.by, asked.cause()).await?;
        let name = project.spec.map(|spec| spec.name).unwrap_or_default();
        Ok(format!("The agent of **{name}** begins afresh with your next message. The files stay as they are."))
    }

    async fn cancel(&self, number: u64, asked: &Asked) -> Result<String, Refusal> {
        let (id, _) = self.chosen(asked)?;
        let unknown = || {
            Refusal::usage(format!("no message with the number {number} waits here"))
                .hint(format!("`{}` lists what waits.", Command::Queue))
        };
        let room = &asked.to.room;
        let busy = self.inner.sessions.busy(|key| key.project == id && key.room == *room).await;
        let found = busy.iter().find_map(|(key, session)| {
            session.waiting.iter().find(|message| message.number == number).map(|message| (key, message))
        });
        let (key, message) = found.ok_or_else(unknown)?;
        if message.sender != asked.by && asked.role != Role::Admin {
            return Err(Refusal::usage("that message is somebody else's")
                .hint("Its writer can take it out, and the `admins` in bot.toml."));
        }
        let origin = (Actor::Person(asked.by.to_string()), asked.cause());
        let ids = [message.event_id.as_str()];
        let words = self.inner.sessions.words(std::slice::from_ref(message)).await?;
        let said = words.first().map(|words| quoted(&words.sender, &words.text)).unwrap_or_default();
        let told = format!("Taken out: {said}");
        let posts = |_: &[Message]| vec![Post::answer(asked.to.clone(), &asked.event_id, told.clone())];
        let removing =
            |answered| self.inner.sessions.remove(key, &ids, Removal::Cancelled, origin, posts, vec![answered]);
        // Carried out again after a crash it would find the number gone, and deny what it did.
        let removed = self.inner.rooms.answer_with(room, &asked.event_id, removing).await?;
        let message = removed.first().ok_or_else(unknown)?;
        drop(self.inner.turns.let_go(&message.event_id));
        let handle = Handle { session: Arc::new(key.clone()), event_id: message.event_id.as_str().into() };
        if !self.inner.dispatcher.tell(Event::Removed { message: handle }) {
            info!(%room, event_id = message.event_id, "the gateway is stopping; the next one finds the message gone");
        }
        self.inner.outbox.mark(room, &message.event_id, Mark::Delivered);
        Ok(told)
    }

    async fn mode(&self, mode: Option<Mode>, asked: &Asked) -> Result<String, Refusal> {
        if let Some(mode) = mode {
            self.inner.rooms.set_mode(&asked.to.room, mode, &asked.by, asked.cause()).await?;
        }
        let (now, other, what) = match self.inner.rooms.mode(&asked.to.room) {
            Mode::Queue => (Mode::Queue, Mode::Interrupt, "wait for its end"),
            Mode::Interrupt => {
                (Mode::Interrupt, Mode::Queue, "end that work, and it begins anew with all that is not answered")
            }
        };
        let (now, other) = (Command::Mode { mode: Some(now) }, Command::Mode { mode: Some(other) });
        Ok(format!("`{now}`: messages that come here while the agent works {what}. `{other}` changes that."))
    }

    async fn decide(&self, question: &str, verdict: Verdict, asked: &Asked) -> Result<String, Refusal> {
        self.inner.turns.expect_question(question).await;
        let word = self.rule_on(question, verdict, &asked.by, asked.role, &asked.to.room, asked.cause()).await?;
        self.inner.turns.carry_word(word).await
    }

    /// Journals a person's word on an open question, given by the event `cause`, if they may use its project.
    pub async fn rule_on(
        &self,
        question: &str,
        verdict: Verdict,
        by: &Person,
        role: Role,
        room: &Room,
        cause: Cause,
    ) -> Result<Word, Refusal> {
        let turns = &self.inner.turns;
        if let Some(project) = turns.project_of(question).and_then(|id| self.inner.registry.get(id)) {
            rights::admit(&project, by, role)?;
        }
        turns.decide(question, verdict, by, role, room, cause).await
    }

    fn cost(&self, asked: &Asked) -> String {
        let name = |id| Some(self.inner.registry.get(id)?.spec?.name);
        let shown = |id| self.inner.registry.get(id).is_none_or(|project| project.admits(&asked.by, asked.role));
        self.inner.usage.report(asked.project, shown, name)
    }

    async fn new_project(&self, new: &NewProject, asked: &Asked) -> Result<String, Refusal> {
        let Inner { outbox, sagas, home, ssh_host, .. } = &*self.inner;
        let quiet = Address { reply_to: None, mention: None, ..asked.to.clone() };
        let progress = Progress::new(outbox, quiet, format!("answer-{}", asked.event_id));
        let made = sagas.create(new, &asked.by, asked.role, asked.cause(), &progress).await;
        progress.close().await;
        Ok(welcome::welcome(&made?, home, ssh_host.as_deref(), sagas.doors.ports))
    }

    /// Those that the asker may use.
    async fn projects(&self, asked: &Asked) -> Result<String, Refusal> {
        let all: Vec<_> = self.inner.registry.used_by(&asked.by, asked.role).collect();
        if all.is_empty() {
            let ways = self.ways_to_choose(&asked.by, asked.role);
            return Ok(format!("There are no projects that you may use yet. {ways}"));
        }
        let containers = self.inner.containers.list().await;
        let mut lines = Vec::new();
        for (id, project) in all {
            let Some(spec) = project.spec else { continue };
            let at_work = self.inner.registry.is_at_work_on(id);
            let id = id.to_string();
            let state = match (project.stage, &containers) {
                (Stage::Making, _) if !at_work => "half made; `delete project` removes it",
                (Stage::Making, _) => "being made",
                (Stage::Undoing | Stage::Deleting, _) if !at_work => {
                    "could not be removed to the end; `delete project` tries it again"
                }
                (Stage::Undoing | Stage::Deleting, _) => "being removed",
                (_, Err(_)) => "unknown",
                (_, Ok(containers)) => {
                    let mut its = containers.iter().filter(|found| found.project_id.as_ref() == Some(&id));
                    if its.any(|found| found.state == ContainerState::Running) {
                        "running"
                    } else {
                        "stopped; starts when it is needed"
                    }
                }
            };
            let stack = project.stack.as_deref().unwrap_or("no stack");
            lines.push(format!("- **{}** ({stack}), {state}: {}", spec.name, text::code(&spec.path.to_string_lossy())));
        }
        if let Err(refusal) = containers {
            lines.push(String::new());
            lines.push(refusal.to_markdown());
        }
        Ok(lines.join("\n"))
    }

    async fn status(&self, asked: &Asked) -> Result<String, Refusal> {
        let (id, project) = self.chosen(asked)?;
        let name = project.spec.map(|spec| spec.name).unwrap_or_default();
        let work = async {
            let sled = self.inner.nodes.sled(id).await?.patience(STATUS_PATIENCE);
            Ok(describe(&name, &self.heard(id, sled.status().await)?))
        };
        self.patiently("status", asked, work).await
    }

    async fn logs(&self, lines: u32, asked: &Asked) -> Result<String, Refusal> {
        let (id, _) = self.chosen(asked)?;
        let work = async {
            let sled = self.inner.nodes.sled(id).await?;
            Ok(show(&self.heard(id, sled.logs(lines).await)?))
        };
        self.patiently("logs", asked, work).await
    }

    async fn git(&self, args: Vec<String>, asked: &Asked) -> Result<String, Refusal> {
        let (id, _) = self.chosen(asked)?;
        let work = async {
            let sled = self.inner.nodes.sled(id).await?;
            Ok(show(&self.heard(id, failpoint::around("git", sled.git(args)).await)?))
        };
        self.patiently("git", asked, work).await
    }

    /// What a sled answered; one that is silent is unreachable (CMD-4).
    fn heard<T>(&self, project: Uuid, answer: Result<T, CallError>) -> Result<T, Refusal> {
        match answer {
            Ok(answer) => {
                self.inner.nodes.heard(project);
                Ok(answer)
            }
            Err(error) => Err(self.inner.nodes.silent(project, &error)),
        }
    }

    /// Answers within [`PATIENCE`], or says that it is still at it and answers later (CMD-5). The container may have to
    /// be started first.
    async fn patiently(
        &self,
        what: &'static str,
        asked: &Asked,
        work: impl Future<Output = Result<String, Refusal>> + Send,
    ) -> Result<String, Refusal> {
        let mut work = std::pin::pin!(work);
        if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut work).await {
            return answer;
        }
        let to = Address { pending: None, ..asked.to.clone() };
        let told = format!("`{what}` is still under way; the answer follows.");
        let post = Post::notice(to, format!("under-way-{}", asked.event_id), told).because_of(asked.cause());
        self.inner.outbox.post(post).await?;
        work.await
    }
}

/// What somebody said, in a line.
fn quoted(sender: &Person, said: &str) -> String {
    format!("{}: {}", text::one_line(&sender.id, 60), text::code(&text::one_line(said, 100)))
}

/// `status`, for people.
fn describe(name: &str, status: &NodeStatus) -> String {
    let NodeStatus { version, uptime_secs, turn, branch, dirty, dirty_files } = status;
    let mut said = format!(
        "**{name}**: sled {} up for {}",
        text::one_line(version, 40),
        text::span(Duration::from_secs(*uptime_secs))
    );
    let turn = match turn {
        Some(turn) => format!("running for {}", text::span(Duration::from_secs(turn.running_secs))),
        None => "none".to_owned(),
    };
    let branch = branch.as_deref().map_or_else(|| "no repository".to_owned(), text::code);
    let mut written = write!(said, "\n- turn: {turn}\n- branch: {branch}");
    if *dirty > 0 {
        let names: Vec<_> = dirty_files.iter().take(10).map(|name| text::code(name)).collect();
        let more = dirty.saturating_sub(names.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        written = written.and_then(|()| write!(said, "\n- changed since the last commit: {}{more}", names.join(", ")));
    } else {
        written = written.and_then(|()| said.write_str("\n- nothing has changed since the last commit"));
    }
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    said
}

/// A command's output, for people: its end where it is long.
fn show(output: &CommandOutput) -> String {
    let CommandOutput { code, output, truncated } = output;
    let mut from = output.len().saturating_sub(OUTPUT_MAX);
    while !output.is_char_boundary(from) {
        from += 1;
    }
    let mut said = String::new();
    if *truncated || from > 0 {
        said.push_str("(the end of it)\n");
    }
    if output[from..].trim().is_empty() {
        said.push_str("(no output)");
    } else {
        said.push_str(&text::code_block(&output[from..]));
    }
    match code {
        Some(0) => {}
        Some(code) => return format!("{said}\nexit code {code}"),
        None => said.push_str("\nended by a signal"),
    }
    said
}
