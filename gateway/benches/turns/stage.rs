//! The gateway's own parts, put together as `musher up` does, but for the engine: its sleds run on the host, and its
//! surface and its dispatcher's carrier note when they are called.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bot_config::Config;
use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use journal::{Actor, Cause, Clock, StreamId, SystemClock};
use link::{SledClient, requests::Agent};
use musher::{
    chat::{Inbound, Inbox, Mark, Outbound, Person, Room, SendError, Surface, SurfaceKind, Weight},
    commands::{self, Commands},
    containers::Containers,
    dispatch::{
        Batch,
        actor::{Carrier, Dispatcher, Ended},
        core::{Ran, Why},
    },
    doctor::Doctor,
    followers::{self, Counting},
    git::{Audit, Credentials, Git},
    home::Home,
    intake::Intake,
    metrics::Metrics,
    model::Proxy,
    nodes::Nodes,
    outbox::Outbox,
    projects::{ProjectEvent, Registry, Spec, saga::Sagas, ssh_config::Doors},
    refusal::Refusal,
    rooms::{Mode, Rooms},
    secrets::Secrets,
    sessions::Sessions,
    settings::{self, Environment},
    store::Journal,
    tasks::Tasks,
    turns::{self, Handle, Sleds, StopRequest, Turns},
    usage::Usage,
};
use stacks::Stacks;
use tempfile::TempDir;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{figures::worked, node::Node};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_mins(1);

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was noted of a turn, in microseconds of the wall clock.
#[derive(Debug, Clone)]
pub struct Noted {
    /// Its id.
    pub turn: Uuid,
    /// Its project.
    pub project: Uuid,
    /// Its message was given to the intake …
    pub said: i64,
    /// … which had taken it, with its place in the journal.
    pub accepted: i64,
    /// The dispatcher closed the batch.
    pub closed: i64,
    /// The gateway asked for the project's sled, to hand the turn over.
    pub handed: i64,
    /// The answer was handed to the surface.
    pub surfaced: i64,
    /// What it says.
    pub answer: String,
}

/// Notes times as they come.
#[derive(Default)]
struct Notes {
    /// By turn: when its batch was closed, and when its sled was asked for.
    turns: Mutex<HashMap<Uuid, (i64, Option<i64>)>>,
    /// The turn that each project runs.
    running: Mutex<HashMap<Uuid, Uuid>>,
    /// Who waits for an answer, by event.
    waiting: Mutex<HashMap<String, oneshot::Sender<(i64, Outbound)>>>,
}

/// A surface that is nothing but a place to note times.
#[derive(Default)]
pub struct Hall(Arc<Notes>);

impl Surface for Hall {
    fn kind(&self) -> SurfaceKind {
        SurfaceKind::Console
    }
    fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        let at = now();
        if message.weight == Weight::Answer {
            for event in &message.answers {
                if let Some(waiting) = locked(&self.0.waiting).remove(event) {
                    // Who gave up waiting says so.
                    drop(waiting.send((at, message.clone())));
                }
            }
        }
        std::future::ready(Ok(message.transaction.clone())).boxed()
    }
    fn edit<'a>(&'a self, _: &'a Room, _: &'a str, _: &'a Outbound) -> BoxFuture<'a, Result<(), SendError>> {
        std::future::ready(Ok(())).boxed()
    }
    fn find<'a>(&'a self, _: &'a Room, _: &'a str, _: Timestamp) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        std::future::ready(Ok(None)).boxed()
    }
    fn mark(&self, _: &Room, _: &str, _: Mark) {}
    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        std::future::ready(()).boxed()
    }
    fn edit_interval(&self) -> Duration {
        Duration::ZERO
    }
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Notes when batches close, and lets turns carry them.
struct Noting(Arc<Notes>, Turns);

impl Carrier<Handle, StopRequest> for Noting {
    fn start(&self, batch: Batch<Handle>, ended: Ended<Handle, StopRequest>) {
        locked(&self.0.turns).insert(batch.id, (now(), None));
        locked(&self.0.running).insert(batch.session.project, batch.id);
        self.1.start(batch, ended);
    }
    fn cancel(&self, batch: Uuid, why: Why) {
        self.1.cancel(batch, why);
    }
    fn full(&self, session: musher::dispatch::SessionKey, message: Handle) {
        self.1.full(session, message);
    }
    fn stopped(&self, request: StopRequest, ran: Vec<Ran>, dropped: Vec<Handle>) {
        self.1.stopped(request, ran, dropped);
    }
    fn over(&self, batch: Uuid) {
        self.1.over(batch);
    }
}

/// The links, which are open for as long as the benchmark runs.
struct Links(HashMap<Uuid, SledClient>, Arc<Notes>);

impl Sleds for Links {
    fn sled(&self, project: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>> {
        if let Some(turn) = locked(&self.1.running).get(&project)
            && let Some((_, handed)) = locked(&self.1.turns).get_mut(turn)
        {
            handed.get_or_insert_with(now);
        }
        let client = self.0.get(&project).cloned();
        std::future::ready(client.ok_or_else(|| Refusal::usage("there is no such project"))).boxed()
    }
    fn kill(&self, _: Uuid) -> BoxFuture<'_, Result<(), Refusal>> {
        std::future::ready(Err(Refusal::unavailable("there is no engine"))).boxed()
    }

    fn heard(&self, _: Uuid) {}
}

/// A gateway without an engine, and its sleds.
pub struct Stage {
    intake: Intake,
    notes: Arc<Notes>,
    nodes: Vec<(Uuid, Node)>,
    rooms: Arc<Rooms>,
    turns: Turns,
    outbox: Outbox,
    tasks: Tasks,
    journal: Journal,
    _folder: TempDir,
}

/// What a stage is made with.
pub struct Plan {
    /// How many projects, each with a sled.
    pub projects: u16,
    /// The agent.
    pub agent: Agent,
    /// How long it is kept warm, in seconds.
    pub keep_warm_secs: u64,
}

/// The settings of every measurement; only what it needs differs from the defaults.
pub fn config(plan: &Plan) -> Result<Config> {
    let text = format!(
        "coalesce_window_ms = 0\nmax_concurrent_turns = {}\n[agent]\nruntime = \"echo\"\nkeep_warm_secs = {}\n",
        plan.projects, plan.keep_warm_secs
    );
    Ok(Config::parse(&text, Path::new("bot.toml"))?)
}

/// Registers projects that have no container.
pub async fn register(registry: &Registry, number: u16) -> Result<Uuid> {
    let project = Uuid::now_v7();
    let spec = Spec {
        name: format!("project-{number}"),
        path: format!("/nowhere/project-{number}").into(),
        stack: None,
        git: None,
        branch: None,
        depth: None,
        adopt: false,
        cpus: None,
        memory: None,
        port: 20_000 + number,
        asked_by: person(),
    };
    let events = [ProjectEvent::Reserved(spec), ProjectEvent::Registered];
    registry.append(project, &events, Actor::Gateway, Cause::None).await?;
    Ok(project)
}

/// The one who talks.
pub fn person() -> Person {
    Person { surface: SurfaceKind::Console, id: "ann".to_owned() }
}

/// The room of that number.
pub fn room(number: usize) -> Room {
    Room { surface: SurfaceKind::Console, id: format!("room-{number}") }
}

impl Stage {
    /// Starts everything.
    pub async fn new(plan: Plan) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let home = Home::open(&folder.path().join("state"))?;
        let config = config(&plan)?;
        let user_home = folder.path().display().to_string();
        let variable = move |name: &str| (name == "HOME").then(|| user_home.clone());
        let environment = Environment { variable: &variable, musher: "musher".into() };
        let settings = settings::resolve(&config, &environment, &home)?;

        let journal = Journal::open(&home.journal(), Arc::new(SystemClock))?;
        let (tasks, clock) = (Tasks::new(), Arc::new(SystemClock) as Arc<dyn Clock>);
        let metrics = Metrics::new(clock.now());
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await?;
        let registry = Arc::new(Registry::open(journal.clone()).await?);
        let rooms = Arc::new(Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await?);
        let sessions = Sessions::new(journal.clone(), outbox.clone());
        let usage =
            Usage::open(journal.clone(), settings.budget, Arc::clone(&clock), tasks.clone(), metrics.clone()).await?;
        let containers = Arc::new(Containers::new(Uuid::nil(), home.clone(), settings.containers, Stacks::builtin()));
        let doors = Doors {
            registry: Arc::clone(&registry),
            home: home.clone(),
            musher: "musher".into(),
            ports: false,
            writing: Arc::default(),
        };
        let git = Git::new(
            settings.git,
            Credentials::new(Secrets::new(&home)),
            Arc::new(|_| None),
            Audit::new(journal.clone(), tasks.clone(), Arc::new(|_, _| Cause::None)),
            tasks.clone(),
        )?;
        let engine = Nodes::new(
            Arc::clone(&containers),
            Arc::clone(&registry),
            doors.clone(),
            Proxy::new(settings.model, Arc::clone(&registry), usage.clone(), metrics.clone()),
            Arc::clone(&git),
            tasks.clone(),
        );

        let mut nodes = Vec::new();
        for number in 0..plan.projects {
            nodes.push((register(&registry, number).await?, Node::start(axum::Router::new()).await?));
        }
        let notes = Arc::new(Notes::default());
        let links = nodes.iter().map(|(project, node)| (*project, node.client())).collect();
        let turns = Turns::new(turns::Parts {
            settings: turns::TurnSettings { agent: plan.agent, ..settings.turns },
            nodes: Box::new(Links(links, Arc::clone(&notes))),
            sessions: sessions.clone(),
            rooms: Arc::clone(&rooms),
            outbox: outbox.clone(),
            tasks: tasks.clone(),
            clock: Arc::clone(&clock),
            watch: Arc::new(Counting { usage: usage.clone(), metrics: metrics.clone(), clock, tasks: tasks.clone() }),
        });
        let carrier = Arc::new(Noting(Arc::clone(&notes), turns.clone())) as Arc<dyn Carrier<_, _>>;
        let (dispatcher, dispatching) = Dispatcher::new(settings.limits, carrier, tasks.stopping());
        tasks.spawn("dispatcher", dispatching);
        tasks.spawn("outcomes", followers::show_outcomes(outbox.outcomes(), outbox.clone(), turns.clone()));
        outbox.add(Arc::new(Hall(Arc::clone(&notes))));

        let sagas = Sagas {
            registry: Arc::clone(&registry),
            containers: Arc::clone(&containers),
            nodes: engine.clone(),
            home: home.clone(),
            doors,
            places: settings.places,
            git: Arc::clone(&git),
            author: settings.author,
        };
        let commands = Commands::new(commands::Inner {
            home: home.clone(),
            registry: Arc::clone(&registry),
            containers: Arc::clone(&containers),
            nodes: engine,
            git,
            rooms: Arc::clone(&rooms),
            sessions: sessions.clone(),
            outbox: outbox.clone(),
            tasks: tasks.clone(),
            doctor: Doctor {
                home,
                containers,
                owner: sagas.places.fallback,
                known: Arc::default(),
                model_projects: Arc::default(),
            },
            sagas,
            ssh_host: None,
            dispatcher: dispatcher.clone(),
            turns: turns.clone(),
            usage: usage.clone(),
            max_turns: settings.limits.max_turns,
            deletions: Mutex::default(),
            people: settings.people.clone(),
        });
        let intake = Intake {
            people: settings.people,
            rooms: Arc::clone(&rooms),
            sessions,
            registry,
            commands,
            dispatcher,
            turns: turns.clone(),
            outbox: outbox.clone(),
            reaction_approvals: false,
            usage,
            tasks: tasks.clone(),
            max_turns: settings.limits.max_turns,
        };
        Ok(Self { intake, notes, nodes, rooms, turns, outbox, tasks, journal, _folder: folder })
    }

    /// Binds a room to a project; rooms are spread over all of them.
    pub async fn bind(&self, number: usize) -> Result<()> {
        let (project, _) = self.nodes.get(number % self.nodes.len()).context("there are projects")?;
        Ok(self.rooms.switch(&room(number), &person(), *project, Cause::None).await?)
    }

    /// Says something in a room, and waits for the answer.
    pub async fn say(&self, number: usize) -> Result<Noted> {
        let event_id = Uuid::now_v7().to_string();
        let (answer, answered) = oneshot::channel();
        locked(&self.notes.waiting).insert(event_id.clone(), answer);
        let message = Inbound {
            room: room(number),
            event_id,
            sender: person(),
            at: Timestamp::now(),
            text: "What is the state of the build?".to_owned(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        };
        let said = now();
        self.intake.accept(message).await?;
        let accepted = now();
        let (surfaced, message) = tokio::time::timeout(PATIENCE, answered).await.context("no answer comes")??;
        let turn = message.transaction.strip_prefix("turn-").context("a turn's answer")?.parse()?;
        let (closed, handed) = locked(&self.notes.turns).remove(&turn).context("the turn has begun")?;
        let handed = handed.context("the turn was handed over")?;
        let (project, _) = self.nodes.get(number % self.nodes.len()).context("there are projects")?;
        ensure!(!message.markdown.starts_with('⚠'), "a turn failed: {}", message.markdown);
        Ok(Noted { turn, project: *project, said, accepted, closed, handed, surfaced, answer: message.markdown })
    }

    /// When the sleds stored the first event of that kind of each turn, in microseconds of the wall clock: the times of
    /// their own journals, each taken just before its commit.
    pub fn stored(&self, noted: &[Noted], kind: &str) -> Result<Vec<i64>> {
        let journals = self.nodes.iter().map(|(project, node)| Ok((*project, node.journal()?)));
        let journals = journals.collect::<Result<HashMap<_, _>>>()?;
        let time = |noted: &Noted| {
            let journal = journals.get(&noted.project).context("its project")?;
            let events = journal.read(&StreamId::new("turn", noted.turn), 0)?;
            let found = events.iter().find(|event| event.kind == kind);
            Ok(found.with_context(|| format!("turn {} has no {kind}", noted.turn))?.time.as_microsecond())
        };
        noted.iter().map(time).collect()
    }

    /// The processor time of the gateway's parts, this process, and of all sleds with their agents.
    pub fn worked(&self) -> Result<(Duration, Duration)> {
        let sleds = self.nodes.iter().map(|(_, node)| node.worked()).sum::<Result<Duration>>()?;
        Ok((worked(std::process::id())?, sleds))
    }

    /// Waits until nothing runs and everything is delivered.
    pub async fn idle(&self) {
        while self.turns.running() > 0 || self.outbox.counts().undelivered > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends everything.
    pub async fn end(self) -> Result<()> {
        self.idle().await;
        self.tasks.shutdown(PATIENCE).await?;
        self.journal.close().await;
        for (_, node) in self.nodes {
            node.end().await?;
        }
        Ok(())
    }
}
