//! The gateway put together: what depends on what, what starts in which order, and how it ends.

use std::{
    collections::HashSet,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bot_config::{Config, Surface as Talk};
use journal::{Actor, Append, Cause, Clock, DomainEvent, Expected, Fold, NewEvent, Recorded, StreamId, SystemClock};
use serde::{Deserialize, Serialize};
use stacks::Stacks;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::oneshot,
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    chat::{
        Inbox, Mark, Room, SharedSurface, Surface, SurfaceKind,
        console::{self, Console},
        matrix::{Login, MatrixError, MatrixSettings, MatrixSurface},
    },
    commands::{self, Commands},
    containers::Containers,
    control::{self, Control},
    dispatch::{
        Common,
        actor::{Carrier, Dispatcher},
        core::Event,
    },
    doctor::Doctor,
    followers::{self, Counting},
    git::{Audit, Credentials, Git, audit},
    health,
    home::{Home, Owned},
    intake::Intake,
    metrics::Metrics,
    model::Proxy,
    nodes::Nodes,
    outbox::{Address, Outbox, Post},
    people::Role,
    projects::{Registry, Stage, saga::Sagas, ssh_config::Doors},
    refusal::Refusal,
    rooms::Rooms,
    secrets::Secrets,
    sessions::{Sessions, Unfinished},
    settings::{self, Environment, Settings},
    store::Journal,
    tasks::Tasks,
    turns::{self, Handle, StopRequest, Turns},
    usage::Usage,
};

/// How long everything may take to end.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a start waits for what an earlier gateway left half made to be removed.
const TIDYING: Duration = Duration::from_secs(5);
/// The longest wait between two tries to reach the homeserver at start.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// What the greeting begins with.
const VERSION: &str = concat!("musher ", env!("CARGO_PKG_VERSION"));
/// What it says when nobody has given a key.
const PRACTICE: &str = " The practice agent answers: there is no model key.";

/// What happens to the gateway itself. Stream `gateway/self`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum GatewayEvent {
    /// The state directory is new.
    #[serde(rename = "gateway.created")]
    Created {
        /// The id that everything of ours on the engine carries.
        id: Uuid,
    },
}

impl DomainEvent for GatewayEvent {
    const KINDS: &'static [&'static str] = &["gateway.created"];
}

/// Who a gateway is.
#[derive(Debug, Default)]
pub struct Identity {
    id: Option<Uuid>,
}

impl Fold for Identity {
    type Event = GatewayEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &GatewayEvent, _: &Recorded) -> Result<(), Self::Error> {
        let GatewayEvent::Created { id } = event;
        self.id = Some(*id);
        Ok(())
    }
}

/// The id of the gateway that owns this journal, made at its first start.
async fn identity(journal: &Journal) -> Result<Uuid, Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        Refusal::internal("the gateway's identity cannot be journaled", error.to_string())
    };
    let stream = StreamId::new("gateway", "self");
    let loaded = journal.load::<Identity>(&stream).await.map_err(|error| failed(&error))?;
    if let Some(id) = loaded.state.id {
        return Ok(id);
    }
    let id = Uuid::now_v7();
    let event = NewEvent::encode(&GatewayEvent::Created { id }).map_err(|error| failed(&error))?;
    let append = Append {
        stream,
        expected: Expected::NoStream,
        events: vec![event],
        key: None,
        actor: Actor::Gateway,
        cause: Cause::None,
    };
    journal.append(append).await.map_err(|error| failed(&error))?;
    Ok(id)
}

/// A gateway that is ready to run.
pub struct Gateway {
    tasks: Tasks,
    intake: Arc<Intake>,
    outbox: Outbox,
    home: Home,
    matrix: Option<MatrixSettings>,
    practice: bool,
    colours: bool,
    closed: Closed,
    /// What the messages show that an earlier gateway left.
    marks: Vec<(Room, String, Mark)>,
    journal: Journal,
    _owned: Owned,
}

/// Takes up a turn that was under way, and tells its room so, once (DUR-7): `told` has the rooms that know.
async fn resume(
    outbox: &Outbox,
    dispatcher: &Dispatcher<Handle, StopRequest>,
    turns: &Turns,
    unfinished: Unfinished,
    told: &mut HashSet<Room>,
) -> Result<(), Refusal> {
    let Unfinished { session, running } = &unfinished;
    let rights = running.messages.iter().map(|message| message.rights).max().unwrap_or(Role::Member);
    // A turn that an older version began may be of several threads: its answer goes to that of the last.
    let thread = running.answers.last().and_then(|last| last.thread.as_deref()).map(Into::into);
    let common = Common { rights, thread };
    let key = Arc::new(session.clone());
    let handle = |event_id: &String| Handle { session: Arc::clone(&key), event_id: event_id.as_str().into() };
    let messages = running.messages.iter().map(|message| handle(&message.event_id)).collect();
    let to = Address { room: session.room.clone(), thread: None, reply_to: None, mention: None, pending: None };
    if told.insert(session.room.clone()) {
        let transaction = format!("turn-{}-restart", running.turn);
        let post = Post::notice(to, transaction, "musher was restarted, and goes on with what was asked.");
        let post = post.because_of(running.cause().unwrap_or(Cause::None));
        outbox.post(post).await?;
    }
    let batch = running.turn;
    let ended = dispatcher.adopt(batch);
    if dispatcher.tell(Event::Resumed { session: session.clone(), batch, common, messages }) {
        turns.resume(unfinished, ended);
    }
    Ok(())
}

/// Whether there is a prompt: where people talk on the terminal, and there is one.
pub fn has_prompt(surface: &Talk, terminal: bool) -> bool {
    terminal && matches!(surface, Talk::Console)
}

/// How `musher up` was asked to take chat.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// Piped lines do not wait for each other.
    pub no_wait: bool,
}

impl Gateway {
    /// Takes the state directory, recovers what an earlier gateway left, and opens the doors. Nothing is taken from
    /// people yet.
    pub async fn build(config: &Config, environment: &Environment<'_>, home: Home) -> Result<Self, Refusal> {
        let settings = settings::resolve(config, environment, &home)?;
        settings::check_keys(config, environment, &home)?;
        let stacks = Stacks::load(Some(&home.stacks()))
            .map_err(|error| Refusal::config(error.to_string()).hint("docs/stacks.md tells how a stack is written."))?;
        let owned = home.own()?;
        let listener = health::bind(config.http.listen).await?;
        let control_socket = control::bind(&home)?;
        let path = home.journal();
        // An older one is lifted first: a signal does not wait for that.
        let journal = tokio::task::spawn_blocking(move || Journal::open(&path, Arc::new(SystemClock)))
            .await
            .map_err(|error| Refusal::internal("the journal cannot be opened", error))?
            .map_err(Journal::unopened)?;
        Self::assemble(
            config,
            environment.musher.clone(),
            home,
            owned,
            settings,
            stacks,
            journal,
            (listener, control_socket),
        )
        .await
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where everything meets")]
    async fn assemble(
        config: &Config,
        musher: PathBuf,
        home: Home,
        owned: Owned,
        settings: Settings,
        stacks: Stacks,
        journal: Journal,
        (listener, control_socket): (TcpListener, UnixListener),
    ) -> Result<Self, Refusal> {
        let id = identity(&journal).await?;
        info!(version = env!("CARGO_PKG_VERSION"), %id, home = %home.root().display(), "musher");
        let tasks = Tasks::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Metrics::new(clock.now());
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await?;
        let registry = Arc::new(Registry::open(journal.clone()).await?);
        let rooms = Arc::new(Rooms::open(journal.clone(), outbox.clone(), settings.mode).await?);
        let sessions = Sessions::new(journal.clone(), outbox.clone());
        let left = sessions.recover().await?;
        let usage =
            Usage::open(journal.clone(), settings.budget, Arc::clone(&clock), tasks.clone(), metrics.clone()).await?;
        let ports = settings.containers.network;
        let containers = Arc::new(Containers::new(id, home.clone(), settings.containers, stacks));
        let doors =
            Doors { registry: Arc::clone(&registry), home: home.clone(), musher, ports, writing: Arc::default() };
        let remotes = Arc::clone(&registry);
        let git = Git::new(
            settings.git,
            Credentials::new(Secrets::new(&home)),
            Arc::new(move |project| remotes.get(project)?.spec?.git),
            Audit::new(journal.clone(), tasks.clone(), {
                let (usage, registry) = (usage.clone(), Arc::clone(&registry));
                Arc::new(move |project, by| match by {
                    audit::By::Clone => registry.claims().cause(project),
                    audit::By::Container => usage.cause(project),
                })
            }),
            tasks.clone(),
        )?;
        let nodes = Nodes::new(
            Arc::clone(&containers),
            Arc::clone(&registry),
            doors.clone(),
            Proxy::new(settings.model, Arc::clone(&registry), usage.clone(), metrics.clone()),
            Arc::clone(&git),
            tasks.clone(),
        );
        let sagas = Sagas {
            registry: Arc::clone(&registry),
            containers: Arc::clone(&containers),
            nodes: nodes.clone(),
            home: home.clone(),
            doors,
            places: settings.places,
            git: Arc::clone(&git),
            author: settings.author,
        };
        let turns = Turns::new(turns::Parts {
            settings: settings.turns,
            nodes: Box::new(nodes.clone()),
            sessions: sessions.clone(),
            rooms: Arc::clone(&rooms),
            outbox: outbox.clone(),
            tasks: tasks.clone(),
            clock: Arc::clone(&clock),
            watch: Arc::new(Counting {
                usage: usage.clone(),
                metrics: metrics.clone(),
                clock: Arc::clone(&clock),
                tasks: tasks.clone(),
            }),
        });
        let (dispatcher, dispatching) =
            Dispatcher::new(settings.limits, Arc::new(turns.clone()) as Arc<dyn Carrier<_, _>>, tasks.stopping());
        tasks.spawn("dispatcher", dispatching);

        let closed = Closed::new("the gateway is starting");
        let doctor = Doctor {
            home: home.clone(),
            containers: Arc::clone(&containers),
            owner: sagas.places.fallback,
            known: settings.known.into(),
            model_projects: settings.model_projects.into(),
        };
        let commands = Commands::new(commands::Inner {
            home: home.clone(),
            registry: Arc::clone(&registry),
            sagas: sagas.clone(),
            containers: Arc::clone(&containers),
            nodes: nodes.clone(),
            git,
            rooms: Arc::clone(&rooms),
            sessions: sessions.clone(),
            outbox: outbox.clone(),
            tasks: tasks.clone(),
            doctor,
            ssh_host: config.ssh_host.as_ref().map(|host| host.as_str().to_owned()),
            dispatcher: dispatcher.clone(),
            turns: turns.clone(),
            usage: usage.clone(),
            max_turns: settings.limits.max_turns,
            deletions: Mutex::default(),
            people: settings.people.clone(),
        });
        tasks.spawn(
            "control",
            control::serve(
                control_socket,
                Control { registry: Arc::clone(&registry), nodes: nodes.clone(), tasks: tasks.clone() },
            ),
        );
        let (why_closed, reachable) = (closed.clone(), outbox.clone());
        let reasons: health::Reasons = Arc::new(move || reasons(&why_closed, &reachable));
        let sources = followers::sources(
            turns.clone(),
            sessions.clone(),
            outbox.clone(),
            nodes.clone(),
            containers,
            usage.clone(),
            journal.clone(),
        );
        let door = health::Door { reasons, metrics: metrics.clone(), sources };
        tasks.spawn_to_end("http", health::serve(listener, door, tasks.stopping()));

        let (tried, tidied) = oneshot::channel();
        tasks.spawn("leftovers", sagas.clone().tidy(tried));
        if tokio::time::timeout(TIDYING, tidied).await.is_err() {
            warn!("what was left half made is still being removed; the start waits no longer");
        }
        sagas.doors.write()?;
        sagas.refresh_git();
        tasks.spawn("outcomes", followers::show_outcomes(outbox.outcomes(), outbox.clone(), turns.clone()));
        let waiting = left.waiting.iter().map(|(key, message)| (key, message, Mark::Waiting));
        let running = left.unfinished.iter().flat_map(|unfinished| {
            let messages = unfinished.running.messages.iter();
            messages.map(|message| (&unfinished.session, message, Mark::Running))
        });
        let marks = waiting
            .chain(running)
            .map(|(key, message, mark)| (key.room.clone(), message.event_id.clone(), mark))
            .collect();
        // First, so that nothing of them starts.
        for (project, _) in registry.all() {
            if usage.paused(project).is_some() && !dispatcher.tell(Event::Pause { project }) {
                return Err(Refusal::unavailable("the gateway is stopping"));
            }
        }
        let mut told = HashSet::new();
        for unfinished in left.unfinished {
            resume(&outbox, &dispatcher, &turns, unfinished, &mut told).await?;
        }
        let budgets = followers::Budgets {
            usage: usage.clone(),
            dispatcher: dispatcher.clone(),
            sessions: sessions.clone(),
            registry: Arc::clone(&registry),
            outbox: outbox.clone(),
        };
        tasks.spawn("budgets", budgets.follow());
        if let Some(keep) = settings.retention {
            let forgetting = followers::Forgetting {
                journal: journal.clone(),
                clock,
                keep,
                sessions: sessions.clone(),
                rooms: Arc::clone(&rooms),
                outbox: outbox.clone(),
                sleds: followers::Sleds::new(Arc::new({
                    let (nodes, registry) = (nodes.clone(), Arc::clone(&registry));
                    move || {
                        let projects = registry.all().into_iter();
                        let registered = projects.filter(|(_, state)| state.stage == Stage::Registered);
                        registered.map(|(project, _)| (project, nodes.linked(project))).collect()
                    }
                })),
            };
            tasks.spawn("retention", forgetting.go());
        }
        for (project, state) in registry.all() {
            if state.stage == Stage::Registered {
                let nodes = nodes.clone();
                // Says itself what went wrong; the next command tries again.
                tasks.spawn("node", async move { drop(nodes.sled(project).await) });
            }
        }
        let intake = Intake {
            people: settings.people,
            rooms,
            sessions,
            registry,
            commands,
            dispatcher,
            turns,
            outbox: outbox.clone(),
            reaction_approvals: config.reaction_approvals,
            usage,
            tasks: tasks.clone(),
            max_turns: settings.limits.max_turns,
        };
        intake.take_up(left.waiting).await?;
        Ok(Self {
            tasks,
            intake: Arc::new(intake),
            outbox,
            home,
            matrix: settings.matrix,
            practice: settings.practice,
            colours: settings.colours,
            closed,
            marks,
            journal,
            _owned: owned,
        })
    }

    /// Talks with people until there is nobody left to talk to, or `stop` is done; then ends in order.
    pub async fn run(self, options: UpOptions, stop: impl Future<Output = ()>) -> Result<(), Refusal> {
        let talking = async {
            match &self.matrix {
                Some(settings) => self.matrix(settings.clone()).await,
                None => self.console(options).await,
            }
        };
        let talked = tokio::select! {
            talked = talking => talked,
            () = stop => Ok(()),
        };
        self.closed.because("the gateway is stopping");
        if self.matrix.is_none() && std::io::stdin().is_terminal() {
            console::last_words(self.farewell());
        }
        if let Err(missed) = self.tasks.shutdown(SHUTDOWN).await {
            error!(%missed, "the end came before everything had ended");
            eprintln!(
                "musher: {missed}; turns go on in their containers, and the next start delivers what is not yet delivered"
            );
        }
        self.journal.close().await;
        talked
    }

    /// What is said at the prompt's end: what of its work goes on without the gateway.
    fn farewell(&self) -> String {
        let mut told = "musher ends.".to_owned();
        if self.intake.turns.running() > 0 {
            told += " Turns go on in their containers; `musher up` takes them up again.";
        }
        let registry = &self.intake.registry;
        for (id, project) in registry.all() {
            if let (Stage::Making, Some(spec)) = (project.stage, project.spec)
                && registry.is_at_work_on(id)
            {
                told.push(' ');
                told.push_str(&spec.name);
                told += " is not made yet: the next start removes what there is of it; make it again then.";
            }
        }
        told
    }

    async fn console(&self, options: UpOptions) -> Result<(), Refusal> {
        let broken = |error| Refusal::internal("the console broke off", error);
        let inbox: &dyn Inbox = &*self.intake;
        let greeting = format!(
            "{VERSION}. Write `help`, or `new project myapp --stack rust`.{}",
            if self.practice { PRACTICE } else { "" }
        );
        if std::io::stdin().is_terminal() {
            let console = Arc::new(Console::prompt(self.colours).map_err(broken)?);
            self.outbox.add(Arc::clone(&console) as SharedSurface);
            println!("{greeting} Alt-Enter begins another line, Ctrl-D ends it.");
            self.closed.open();
            let history = (self.home.console_history(), keeps as fn(&str) -> bool);
            console::run_prompt(&console, inbox, &SystemClock, history, self.tasks.stopping()).await.map_err(broken)
        } else {
            let console = Arc::new(Console::plain(std::io::stdout()).map_err(broken)?);
            self.outbox.add(Arc::clone(&console) as SharedSurface);
            eprintln!("{greeting}");
            self.closed.open();
            let input = tokio::io::stdin();
            console::read_lines(&console, input, inbox, &SystemClock, !options.no_wait).await.map_err(broken)
        }
    }

    async fn matrix(&self, settings: MatrixSettings) -> Result<(), Refusal> {
        eprintln!("{}", greeting(&settings, &self.home.logs(), self.practice));
        let mut wait = Duration::from_secs(1);
        let (surface, syncing) = loop {
            let inbox = Arc::clone(&self.intake) as Arc<dyn Inbox>;
            match MatrixSurface::start(settings.clone(), inbox, self.tasks.stopping()).await {
                Ok(started) => break started,
                Err(
                    unreachable @ (MatrixError::Unreachable { .. }
                    | MatrixError::LoginRefused { retry_after: Some(_), .. }),
                ) => {
                    let what = match &unreachable {
                        MatrixError::Unreachable { .. } => "cannot be reached",
                        _ => "lets nobody in just now",
                    };
                    warn!(cause = %unreachable, "the homeserver {what}; tried again in {} s", wait.as_secs());
                    self.closed.because(&unreachable.to_string());
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                Err(error) => return Err(error.into_refusal()),
            }
        };
        for (room, event_id, mark) in &self.marks {
            surface.mark(room, event_id, *mark);
        }
        self.outbox.add(Arc::clone(&surface) as SharedSurface);
        // The loop ends by itself when the gateway stops, after it has taken its signs of typing back.
        self.tasks.spawn_to_end("matrix", syncing);
        self.closed.open();
        let stopping = self.tasks.stopping();
        // With a session from before it starts also while the homeserver is away.
        if stopping.run_until_cancelled(surface.in_touch()).await.is_some() {
            let bot = surface.bot();
            eprintln!("Connected. Invite the bot to a room without encryption and write \"@{bot} help\".");
        }
        stopping.cancelled().await;
        Ok(())
    }
}

/// What is said on a terminal where nobody talks with the bot.
fn greeting(settings: &MatrixSettings, logs: &Path, practice: bool) -> String {
    let who = match &settings.login {
        Login::Password { username, .. } => format!("as {username}"),
        Login::Token { .. } => "by an access token".to_owned(),
    };
    let homeserver = settings.homeserver.as_str().trim_end_matches('/');
    let agent = if practice { PRACTICE } else { "" };
    let logs = logs.display();
    format!("{VERSION}. It talks in Matrix rooms {who} on {homeserver}; log: {logs}.{agent} Ctrl-C ends it.")
}

/// Whether a line may stand in the prompt's history.
fn keeps(line: &str) -> bool {
    commands::exposed::look(line).is_none()
}

/// Why no messages are taken, while that is so.
#[derive(Debug, Clone)]
struct Closed(Arc<Mutex<Option<String>>>);

impl Closed {
    fn new(why: &str) -> Self {
        Self(Arc::new(Mutex::new(Some(why.to_owned()))))
    }

    fn because(&self, why: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    fn open(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn reasons(closed: &Closed, outbox: &Outbox) -> Vec<String> {
    if let Some(why) = closed.0.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        return vec![why];
    }
    let surfaces = [SurfaceKind::Console, SurfaceKind::Matrix].into_iter().filter_map(|kind| outbox.surface(kind));
    surfaces.filter_map(|surface| surface.health().err().map(|why| format!("{}: {why}", surface.kind()))).collect()
}

#[cfg(test)]
mod tests;
