//! The parts, and how each is killed and comes back.
//!
//! What only somebody else starts again (gateway, engine, homeserver) is started here, as a service supervisor would;
//! containers, sleds and agents are the gateway's to bring back.

use std::{sync::Arc, time::Duration};

use ::tests::{
    engine::{self as holdings, docker},
    gateway::Gateway,
    home::Home,
    homeserver::Homeserver,
    model::Model,
    person::Person,
    process, wait,
};
use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    engine::{self, Engine},
    journal,
    ledger::Fault,
    plan::{PROJECTS, ROOMS, Target, project_name, project_of},
    record::Record,
};

/// How long a kill waits for something to kill.
const AIM: Duration = Duration::from_secs(20);

/// How long the one at a container's start does; nobody else has the engine meanwhile.
const AIM_AT_START: Duration = Duration::from_secs(6);

/// How soon something to kill is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a container gets for becoming quiet.
const QUIET: Duration = Duration::from_secs(6);

/// How soon a gateway that ended by itself is started again.
const RESTART: Duration = Duration::from_millis(500);

/// How the command line of the sled itself begins; its init's ends with it.
const SLED: &str = "/usr/local/bin/sled serve";

/// In the command line of the process that stands between the sled and an agent.
const SUPERVISOR: &str = "/sled supervise ";

/// Exit code of a gateway that cannot do without something that is away (`EX_UNAVAILABLE`).
const UNAVAILABLE: i32 = 69;

/// What the gateway logs when an engine that was killed had lost sight of a container.
const UNSEEN: &str = "a sled ran in a container that the engine takes for stopped";

/// The settings of the practice agent. Its image has no other.
pub const ECHO: &str = "[agent]\nruntime = \"echo\"";

/// More events than a run makes.
const EVERYTHING: &str = "1000000";

/// Which agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AgentKind {
    /// The real Claude Code CLI, against the stand-in for its model.
    Claude,
    /// The practice agent, which repeats what it is told.
    Echo,
}

impl AgentKind {
    /// How the command line of its process begins.
    fn command(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::Echo => "/usr/local/bin/sled echo-agent",
        }
    }
}

impl std::fmt::Display for AgentKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Claude => "claude",
            Self::Echo => "echo",
        })
    }
}

/// All parts. Fields are dropped in this order: the gateway before its home.
#[derive(Debug)]
pub struct World {
    gateway: Mutex<Option<Gateway>>,
    home: Home,
    homeserver: Homeserver,
    /// Held while the engine is away.
    engine: Mutex<Engine>,
    /// Held while the homeserver is away.
    away: Mutex<()>,
    agent: AgentKind,
    record: Arc<Record>,
    /// The person who talks.
    pub ann: Arc<Person>,
    /// The bot's account.
    pub bot: Person,
    /// The rooms' ids.
    pub rooms: Vec<String>,
}

impl World {
    /// Everything up: the projects are made, and each room has chosen its own.
    pub async fn open(engine: Engine, agent: AgentKind, model: &Model, record: Arc<Record>) -> Result<Self> {
        let homeserver = Homeserver::private().await?;
        let (ann, bot) = tokio::try_join!(Person::join(&homeserver, "ann"), Person::join(&homeserver, "bot"))?;
        let mut rooms = Vec::new();
        for room in 0..ROOMS {
            rooms.push(ann.create_room(&format!("room {room}"), &[&bot.id]).await?);
        }
        let settings = format!(
            "transport = \"matrix\"\nhomeserver = \"{}\"\nusername = \"{}\"\npassword = \"{}\"\nallowed_users = {}\nambient_rooms = {}\ncoalesce_window_ms = 500\n",
            homeserver.url(),
            bot.id,
            bot.password(),
            json!([ann.id]),
            json!(rooms),
        );
        let tables = match agent {
            AgentKind::Claude => Home::agent_tables(model),
            AgentKind::Echo => ECHO.to_owned(),
        };
        let home = Home::new(&settings, &tables)?.with_variable("ANTHROPIC_API_KEY", model.key());
        let gateway = Gateway::up(&home, &[]).await?;
        let world = Self {
            gateway: Mutex::new(Some(gateway)),
            home,
            homeserver,
            engine: Mutex::new(engine),
            away: Mutex::default(),
            agent,
            record,
            ann: Arc::new(ann),
            bot,
            rooms,
        };
        world.make_projects().await?;
        Ok(world)
    }

    async fn make_projects(&self) -> Result<()> {
        for room in &self.rooms {
            self.ann.wait_membership(room, &self.bot.id, "join").await?;
        }
        for project in 0..PROJECTS {
            let name = project_name(project);
            let ready = format!("**{name}** is ready");
            self.ann.ask(&self.rooms[0], &self.bot.id, &format!("new project {name}"), &ready).await?;
        }
        for (room, id) in self.rooms.iter().enumerate() {
            let name = project_name(project_of(room));
            self.ann.ask(id, &self.bot.id, &format!("switch {name}"), &name).await?;
        }
        Ok(())
    }

    /// Kills a part, and starts it again after `down` where it is for us to do so. Where there is nothing of the
    /// kind to kill, the gateway is killed in its place.
    pub async fn kill(&self, target: Target, down: Duration) -> Result<()> {
        match target {
            Target::Gateway => self.kill_gateway(down).await,
            Target::Homeserver => {
                let _held = self.away.lock().await;
                let outage = self.record.away(target);
                self.homeserver.kill().await?;
                tokio::time::sleep(down).await;
                self.homeserver.revive().await?;
                self.record.back(outage);
                Ok(())
            }
            Target::Engine => {
                let engine = self.engine.lock().await;
                let outage = self.record.away(target);
                engine.kill().await?;
                tokio::time::sleep(down).await;
                engine.start().await?;
                self.record.back(outage);
                Ok(())
            }
            Target::Start(project) => {
                let engine = self.engine.lock().await;
                let Some(container) = self.running(project).await? else {
                    drop(engine);
                    return self.instead(target).await;
                };
                let id = docker(&["container", "inspect", "--format", "{{.Id}}", &container]).await;
                let killed = self.kill_container(project, &container).await;
                let (Ok(id), true) = (id, killed) else {
                    drop(engine);
                    return self.instead(target).await;
                };
                // The gateway starts it again for what is said about the project.
                if !engine.kill_at_start(id.trim(), AIM_AT_START).await? {
                    drop(engine);
                    return self.instead(target).await;
                }
                let outage = self.record.away(target);
                tokio::time::sleep(down).await;
                engine.start().await?;
                self.record.back(outage);
                Ok(())
            }
            Target::Sled(project) => self.kill_process(target, project, SLED).await,
            Target::Agent(project) => self.kill_process(target, project, self.agent.command()).await,
            Target::Container(project) => {
                let until = self.record.now() + AIM;
                while self.record.now() < until {
                    // Nobody takes the engine away meanwhile.
                    let held = self.engine.lock().await;
                    if let Some(container) = self.running(project).await?
                        && self.kill_container(project, &container).await
                    {
                        return Ok(());
                    }
                    drop(held);
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                self.instead(target).await
            }
        }
    }

    async fn kill_gateway(&self, down: Duration) -> Result<()> {
        let mut slot = self.gateway.lock().await;
        // One that has ended by itself was not killed.
        self.revive(&mut slot)?;
        let outage = self.record.away(Target::Gateway);
        if let Some(running) = slot.take() {
            running.kill().await?;
        }
        tokio::time::sleep(down).await;
        *slot = Some(Gateway::start(&self.home, &[])?);
        drop(slot);
        // Recovered only when it takes messages, which it cannot while another part is away.
        self.healthy().await?;
        self.record.back(outage);
        Ok(())
    }

    /// Kills a container: whether it still ran.
    async fn kill_container(&self, project: usize, container: &str) -> bool {
        let from = self.record.now();
        let killed = docker(&["kill", container]).await.is_ok();
        if killed {
            self.record.killed(Target::Container(project), from);
        }
        killed
    }

    /// Kills the newest process of the project's container that runs this command.
    async fn kill_process(&self, target: Target, project: usize, command: &str) -> Result<()> {
        let until = self.record.now() + AIM;
        while self.record.now() < until {
            let held = self.engine.lock().await;
            // The container may end at any moment; then there is none.
            if let Some(container) = self.running(project).await?
                && let Ok(all) = top(&container).await
                && let Some(id) = newest(&all, command)
            {
                let from = self.record.now();
                if engine::kill(id, "KILL").await? {
                    self.record.killed(target, from);
                    return Ok(());
                }
            }
            drop(held);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.instead(target).await
    }

    async fn instead(&self, target: Target) -> Result<()> {
        self.record.note(format!("there was no {target} to kill; the gateway in its place"));
        self.kill_gateway(Duration::from_millis(100)).await
    }

    /// The container of a project, if it runs.
    async fn running(&self, project: usize) -> Result<Option<String>> {
        // One that is gone for good shows in what is not answered.
        let Some(container) = self.home.find_container(&project_name(project)).await? else { return Ok(None) };
        // It may be removed meanwhile.
        let running = docker(&["container", "inspect", "--format", "{{.State.Running}}", &container]).await;
        Ok(running.is_ok_and(|running| running.trim() == "true").then_some(container))
    }

    /// Looks after the gateway for ever: one that ends by itself is started again, and why it ended is written down.
    pub async fn supervise(&self) -> Result<()> {
        loop {
            tokio::time::sleep(RESTART).await;
            self.revive(&mut *self.gateway.lock().await)?;
        }
    }

    /// Starts a gateway again that has ended by itself, and writes down why it ended.
    fn revive(&self, slot: &mut Option<Gateway>) -> Result<()> {
        let Some(status) = slot.as_mut().map(Gateway::ended).transpose()?.flatten() else { return Ok(()) };
        self.record.ended();
        let all = slot.take().map(|gateway| gateway.all()).unwrap_or_default();
        let what = format!("the gateway ended by itself with {status}:\n{}", engine::last_lines(&all, 6));
        let excused = |what| matches!(what, Target::Engine | Target::Start(_) | Target::Homeserver);
        if status.code() == Some(UNAVAILABLE) && self.record.ledger().is_away(self.record.now(), excused) {
            self.record.note(what);
        } else {
            self.record.found(Fault::Crash, what);
        }
        *slot = Some(Gateway::start(&self.home, &[])?);
        Ok(())
    }

    /// Waits until the gateway takes messages.
    pub async fn healthy(&self) -> Result<()> {
        let healthy = self.home.wait_healthy(wait::LONG).await;
        match (healthy, &*self.gateway.lock().await) {
            (Err(error), Some(gateway)) => Err(error.context(gateway.all())),
            (healthy, _) => healthy,
        }
    }

    /// Stops the gateway as a service supervisor does, and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        *self.gateway.lock().await = Some(Gateway::start(&self.home, &[])?);
        self.healthy().await
    }

    /// Stops the gateway (SIGTERM); it must end with exit code 0.
    pub async fn stop(&self) -> Result<()> {
        let gateway = self.gateway.lock().await.take().context("there is no gateway to stop")?;
        gateway.stop().await.context("the gateway did not stop cleanly").map(drop)
    }

    /// Looks for what should not be there once the gateway has stopped, then removes the containers and looks again.
    pub async fn inspect(&self) -> Result<()> {
        let names = docker(&["ps", "--all", "--format", "{{.Names}}"]).await?;
        let mut expected = Vec::new();
        for project in 0..PROJECTS {
            expected.push(self.home.container(&project_name(project)).await?);
        }
        for name in names.lines().filter(|name| !expected.iter().any(|known| known == name)) {
            self.record.found(Fault::Container, format!("container {name}"));
        }
        // An engine that was killed may have lost sight of one.
        for (id, line) in self.engine.lock().await.forgotten().await? {
            self.record.found(Fault::Container, format!("container {id}, which its engine has forgotten: {line}"));
        }
        for (project, container) in expected.iter().enumerate() {
            // It may be down, when that was the last thing that was killed.
            docker(&["start", container]).await?;
            for line in self.strays(project, container).await? {
                self.record.found(Fault::Process, format!("in the container of {}: {line}", project_name(project)));
            }
            let verified = docker(&["exec", container, "sled", "verify"]).await;
            if let Err(unsound) = verified {
                self.record.found(Fault::Journal, format!("of the sled of {}: {unsound:#}", project_name(project)));
            }
        }
        let ids = docker(&["ps", "--all", "--quiet", "--no-trunc"]).await?;
        let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
        for id in &ids {
            docker(&["rm", "--force", "--volumes", id]).await?;
        }
        let state = self.home.state().display().to_string();
        let mut left = engine::of_containers(&ids)?;
        left.extend(engine::command_lines()?.into_iter().filter(|(_, line)| line.contains(&state)));
        for (id, line) in left {
            self.record.found(Fault::Process, format!("on the host: {id} {line}"));
        }
        let gateway = self.home.gateway().await?.context("the gateway has an id")?;
        for name in holdings::holdings(&gateway).await?.containers {
            self.record.found(Fault::Container, format!("container {name}, after it was removed"));
        }
        Ok(())
    }

    /// Processes in a project's container that should have ended: all but its own, and one agent kept warm for each
    /// session. What is ending, or beginning, gets a moment.
    async fn strays(&self, project: usize, container: &str) -> Result<Vec<String>> {
        let sessions = (0..ROOMS).filter(|room| project_of(*room) == project).count();
        let until = self.record.now() + QUIET;
        loop {
            let looked = top(container).await.map(|all| strays(&all, self.agent.command(), sessions));
            if looked.as_ref().is_ok_and(Vec::is_empty) || self.record.now() >= until {
                return looked;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Reads the stopped gateway's journal: it is sound, and what it tells of each turn follows from what was killed.
    pub async fn audit(&self) -> Result<()> {
        let verified = self.home.run(["journal", "verify"], "").await?;
        if verified.code != Some(0) {
            self.record.found(Fault::Journal, verified.to_string());
        }
        let told = self.home.run(["journal", "tail", "--lines", EVERYTHING], "").await?;
        let turns = journal::turns(&told.stdout, |of_day| self.record.at(of_day));
        ensure!(!turns.is_empty(), "the journal tells of no turn: is it read rightly?");
        let again = turns.values().filter(|turn| turn.again.is_some()).count();
        println!("{} turns, {again} of them tried again", turns.len());
        for (id, turn) in turns {
            let unexplained = self.record.ledger().unexplained(&turn);
            if let Some((fault, what)) = unexplained {
                let story = self.record.ledger().turn_story(&turn);
                let about = journal::about(&told.stdout, &id);
                self.record.found(fault, format!("turn {id} {what}:\n{about}\n{story}"));
            }
        }
        Ok(())
    }

    /// How many sleds the gateway has ended that ran where the engine saw no container running.
    pub fn unseen(&self) -> Result<usize> {
        let mut count = 0;
        for entry in std::fs::read_dir(self.home.state().join("logs"))? {
            count += std::fs::read_to_string(entry?.path())?.matches(UNSEEN).count();
        }
        Ok(count)
    }

    /// Keeps what helps to find out why, in a folder that stays.
    pub async fn keep(&self, folder: &std::path::Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::copy(self.engine.lock().await.log(), folder.join("dockerd.log"))?;
        for entry in std::fs::read_dir(self.home.state())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("journal.db") {
                std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
            }
        }
        for entry in std::fs::read_dir(self.home.state().join("logs")).into_iter().flatten() {
            let entry = entry?;
            std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
        // What agents remember.
        for project in std::fs::read_dir(self.home.state().join("projects"))? {
            let project = project?;
            let memory = project.path().join("home/dev/.claude/projects");
            if memory.is_dir() {
                let copy = folder.join(project.file_name());
                let mut command = tokio::process::Command::new("cp");
                process::run(command.arg("-r").args([memory, copy]), b"", wait::SHORT).await?.success()?;
            }
        }
        Ok(())
    }
}

/// Ids on the host and command lines of a container's processes. A list without its sled is an error.
async fn top(container: &str) -> Result<Vec<(Pid, String)>> {
    processes(&docker(&["top", container, "-eo", "pid,args"]).await?)
}

fn processes(printed: &str) -> Result<Vec<(Pid, String)>> {
    let process = |line: &str| {
        let (id, args) = line.trim().split_once(' ')?;
        Some((Pid::from_raw(id.parse().ok()?), args.trim().to_owned()))
    };
    let all: Vec<_> = printed.lines().filter_map(process).collect();
    ensure!(newest(&all, SLED).is_some(), "no sled is among what runs in the container:\n{printed}");
    Ok(all)
}

/// The process that runs this command, of several the newest: mostly it has the highest id. Agents that wait are older.
fn newest(all: &[(Pid, String)], command: &str) -> Option<Pid> {
    all.iter().filter(|(_, line)| runs(line, command)).map(|(id, _)| *id).max()
}

fn strays(all: &[(Pid, String)], agent: &str, sessions: usize) -> Vec<String> {
    let agents = all.iter().filter(|(_, line)| runs(line, agent)).skip(sessions);
    let supervisors = all.iter().filter(|(_, line)| line.contains(SUPERVISOR)).skip(sessions);
    let known = |line: &str| runs(line, agent) || line.contains(SUPERVISOR) || belongs(line);
    let rest = all.iter().filter(|(_, line)| !known(line));
    agents.chain(supervisors).chain(rest).map(|(id, line)| format!("{id} {line}")).collect()
}

/// Whether it is a process of this command itself, neither what started it nor what it has started.
fn runs(line: &str, command: &str) -> bool {
    line.strip_prefix(command).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// The processes that a container always has.
fn belongs(line: &str) -> bool {
    runs(line, SLED)
        || ["/sbin/tini", "/usr/bin/tini", "sshd: "].iter().any(|known| line.starts_with(known))
        || line.contains("/sshd ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::TOOL_MARK;

    #[test]
    fn what_is_killed_is_the_newest_process_of_its_command_and_a_list_has_a_sled() {
        let all = processes(
            "PID                 COMMAND\n\
             11                  /usr/bin/tini -- /usr/local/bin/sled serve\n\
             12                  /usr/local/bin/sled serve\n\
             13                  /usr/local/bin/sled supervise --control 1 -- claude -p --resume 1\n\
             14                  claude -p --resume 1\n\
             15                  claude -p --resume 2\n\
             16                  /bin/bash -c source /home/dev/.claude/x && eval 'sleep 1'\n",
        );
        let all = all.unwrap();
        assert_eq!(newest(&all, SLED), Some(Pid::from_raw(12)));
        assert_eq!(newest(&all, AgentKind::Claude.command()), Some(Pid::from_raw(15)));
        assert_eq!(newest(&all, AgentKind::Echo.command()), None);
        for no_answer in ["", "PID COMMAND\n", "PID COMMAND\n11 /usr/bin/tini -- /usr/local/bin/sled serve\n"] {
            assert!(processes(no_answer).is_err(), "{no_answer}");
        }
    }

    #[test]
    fn a_container_has_its_own_processes_and_a_warm_agent_for_each_session() {
        let all: Vec<(Pid, String)> = [
            "/usr/bin/tini -- /usr/local/bin/sled serve",
            "/usr/local/bin/sled serve",
            "sshd: /usr/sbin/sshd -D [listener] 0 of 64-128 startups",
            "claude -p --resume 1",
            "claude -p --resume 2",
            "/usr/local/bin/sled supervise --control 1 -- claude -p --resume 1",
            "/usr/local/bin/sled supervise --control 2 -- claude -p --resume 2",
        ]
        .into_iter()
        .zip(1..)
        .map(|(line, id)| (Pid::from_raw(id), line.to_owned()))
        .collect();
        assert!(strays(&all, "claude", 2).is_empty());
        let left = strays(&all, "claude", 1);
        let supervisor = "7 /usr/local/bin/sled supervise --control 2 -- claude -p --resume 2";
        assert_eq!(left, ["5 claude -p --resume 2", supervisor]);
        let left: Vec<(Pid, String)> = ["/usr/local/bin/sled connect", &format!("sleep 1.2{TOOL_MARK}")]
            .into_iter()
            .map(|line| (Pid::from_raw(9), line.to_owned()))
            .collect();
        assert_eq!(strays(&left, "claude", 2).len(), 2);
    }
}
