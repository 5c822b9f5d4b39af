//! `musher`: runs the gateway, and everything around it that a person does on the command line.

use std::{
    env,
    io::{self, IsTerminal, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    pin::pin,
    process::{Command, ExitCode},
};

use clap::Parser;
use musher::{
    chat::console,
    cli::{self, Cli, ConfigVerb, GitVerb, Images, JournalVerb, SecretsVerb, Verb},
    commands::git_audit,
    commands::{self, grammar::StacksVerb},
    containers::Containers,
    control,
    doctor::{Check, Doctor},
    failpoint,
    gateway::{Gateway, UpOptions, has_prompt},
    home::{Home, make_private},
    inspect, priority,
    projects::{Owner, clone_worker, ssh_config},
    refusal::Refusal,
    secrets::{Secrets, VALUE_MAX},
    settings::{self, Environment},
    text,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    termios::{self, LocalFlags, SetArg, Termios},
};
use stacks::Stacks;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};
use uuid::Uuid;

/// What is logged unless `MUSHER_LOG` says otherwise.
const LOG: &str = "info,matrix_sdk=warn,matrix_sdk_crypto=warn,hyper=warn";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return cli::tell(&told),
    };
    match run(cli) {
        Ok(code) => code,
        Err(refusal) => {
            // Its cause may be what an engine or a server has said.
            eprintln!("musher: {}", text::plain(&refusal.to_string()));
            refusal.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Refusal> {
    // It has no environment to find anything by.
    if matches!(cli.verb, Verb::CloneWorker) {
        return Ok(clone_worker::run());
    }
    // Programs that musher starts, and the engine, must not inherit a surprise: paths are made absolute at once.
    let musher = env::current_exe().map_err(|error| Refusal::internal("the path of this program is unknown", error))?;
    let environment = Environment { variable: &|name| env::var(name).ok(), musher };
    let is_named = cli.home.is_some();
    let home_path = home_path(cli.home, &environment)?;
    match cli.verb {
        Verb::Version => {
            println!("musher {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Config(ConfigVerb::Example) => {
            print!("{}", bot_config::example());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Ssh { project, command } => ssh(&Home::find(&home_path)?, &project, &command),
        Verb::SshProxy { project } => {
            let socket = Home::find(&home_path)?.control_socket();
            block_on(control::ssh_proxy(&socket, &project, tokio::io::stdin(), tokio::io::stdout()))?;
            Ok(ExitCode::SUCCESS)
        }
        verb => {
            // What only looks makes nothing where a path was mistyped. Its usual place may be looked at before the first start.
            let makes =
                matches!(verb, Verb::Up { .. } | Verb::Images(_) | Verb::Secrets(SecretsVerb::Set { .. })) || !is_named;
            let home = if makes { Home::open(&home_path)? } else { Home::find(&home_path)? };
            match verb {
                Verb::Up { no_wait } => up(&environment, home, UpOptions { no_wait }),
                Verb::Doctor { json } => doctor(&environment, home, json),
                Verb::Stacks(verb) => show_stacks(&environment, &home, &verb),
                Verb::Images(Images::Build { stacks }) => build_images(&environment, &home, &stacks),
                Verb::Secrets(verb) => secrets(&home, verb),
                Verb::Journal(verb) => look(&home, verb),
                Verb::Git(GitVerb::Audit { project }) => audit(&home, &project),
                _ => check_config(&environment, &home),
            }
        }
    }
}

/// The state directory: `--home`, `MUSHER_HOME`, or `~/.musher`.
fn home_path(given: Option<PathBuf>, environment: &Environment<'_>) -> Result<PathBuf, Refusal> {
    match given {
        Some(path) => std::path::absolute(&path)
            .map_err(|error| Refusal::internal(format!("the path {} cannot be used", path.display()), error)),
        None => Ok(environment.home()?.join(".musher")),
    }
}

fn up(environment: &Environment<'_>, home: Home, options: UpOptions) -> Result<ExitCode, Refusal> {
    let config = settings::load(&home)?;
    let _logging = log(&home, has_prompt(&config.surface, io::stdin().is_terminal()))?;
    install_crypto()?;
    failpoint::arm();
    raise_open_files();
    match priority::raise() {
        Ok(niceness) => tracing::debug!(niceness, "priority"),
        Err(error) => tracing::debug!(%error, "the priority stays as it is"),
    }
    block_on(async {
        let failed = |error| Refusal::internal("signals cannot be received", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut stop = pin!(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        let gateway = tokio::select! {
            built = Gateway::build(&config, environment, home) => built?,
            // Nothing was taken yet, and what is half done the next start takes up.
            () = &mut stop => return Ok(()),
        };
        gateway.run(options, stop).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Every stream of the model has a connection of its own, and a shell's thousand files are few for the streams of several projects.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

fn look(home: &Home, verb: JournalVerb) -> Result<ExitCode, Refusal> {
    let well = match verb {
        JournalVerb::Tail { lines, follow } => inspect::tail(home, lines, follow).map(|()| true),
        JournalVerb::Show { stream } => inspect::show(home, &stream).map(|()| true),
        JournalVerb::Verify => inspect::verify(home),
    }?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn audit(home: &Home, project: &str) -> Result<ExitCode, Refusal> {
    println!("{}", console::plain(&git_audit::from_journal(home, project)?));
    Ok(ExitCode::SUCCESS)
}

fn doctor(environment: &Environment<'_>, home: Home, json: bool) -> Result<ExitCode, Refusal> {
    let config = settings::load(&home)?;
    let (containers, owner, known) = workshop(&config, environment, &home)?;
    let doctor = Doctor { home, containers: containers.into(), owner, known: known.into(), model_projects: [].into() };
    let report = block_on(async { Ok(doctor.run(None).await) })?;
    if json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| Refusal::internal("the report cannot be written", error))?;
        println!("{text}");
    } else {
        println!("{}", report.to_markdown());
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_images(environment: &Environment<'_>, home: &Home, stacks: &[String]) -> Result<ExitCode, Refusal> {
    let config = settings::load(home)?;
    let (containers, owner, _) = workshop(&config, environment, home)?;
    block_on(async {
        let wanted = if stacks.is_empty() {
            vec![None]
        } else {
            stacks.iter().map(|name| containers.stack(name).map(Some)).collect::<Result<_, _>>()?
        };
        for stack in wanted {
            let plan = containers.plan(stack, owner).await?;
            let mut last = String::new();
            let mut report = |progress: musher_docker::BuildProgress| {
                let now = format!(
                    "{} step {}/{}: {}",
                    progress.layer,
                    progress.step,
                    progress.steps,
                    text::one_line(&progress.instruction, 100)
                );
                if now != last {
                    eprintln!("  {now}");
                    last = now;
                }
            };
            containers.ensure_image(&plan, &mut report).await?;
            println!("{}", plan.tag());
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn show_stacks(environment: &Environment<'_>, home: &Home, verb: &StacksVerb) -> Result<ExitCode, Refusal> {
    match verb {
        StacksVerb::List => {
            let (containers, ..) = workshop(&settings::load(home)?, environment, home)?;
            let listed = commands::stacks::list(containers.stacks(), containers.toolchains());
            println!("{}", console::plain(&listed));
            Ok(ExitCode::SUCCESS)
        }
        StacksVerb::Check { name } => {
            let commands::stacks::Outcome { ok, text } = commands::stacks::check(home, name.as_deref())?;
            println!("{text}");
            Ok(if ok { ExitCode::SUCCESS } else { Refusal::config("a stack is not in order").exit_code() })
        }
    }
}

/// Images and containers without a running gateway, and whom they are for. The gateway's id is of no matter, because nothing is made or listed by it.
fn workshop(
    config: &bot_config::Config,
    environment: &Environment<'_>,
    home: &Home,
) -> Result<(Containers, Owner, Vec<Check>), Refusal> {
    let stacks = Stacks::load(Some(&home.stacks())).map_err(|error| Refusal::config(error.to_string()))?;
    install_crypto()?;
    let settings = settings::resolve(config, environment, home)?;
    let containers = Containers::new(Uuid::nil(), home.clone(), settings.containers, stacks);
    Ok((containers, settings.places.fallback, settings.known))
}

fn secrets(home: &Home, verb: SecretsVerb) -> Result<ExitCode, Refusal> {
    let store = Secrets::new(home);
    match verb {
        SecretsVerb::Set { name } => {
            let value = if io::stdin().is_terminal() {
                block_on(typed_secret(&name))?
            } else {
                read_secret().map_err(unread)?
            };
            println!("stored {}", store.set(&name, &value)?);
        }
        SecretsVerb::List => {
            for name in store.list()? {
                println!("{name}");
            }
        }
        SecretsVerb::Remove { name } => {
            println!("removed {}", store.remove(&name)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_secret() -> io::Result<String> {
    let mut value = String::new();
    let limit = u64::try_from(VALUE_MAX).unwrap_or(u64::MAX) + 2;
    io::stdin().take(limit).read_to_string(&mut value)?;
    Ok(value)
}

fn unread(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Refusal {
    Refusal::internal("the value cannot be read from standard input", error)
}

/// A value that somebody types, who does not see it. Ctrl-C leaves the terminal as it was.
async fn typed_secret(name: &str) -> Result<String, Refusal> {
    let _hidden = Hidden::new().map_err(unread)?;
    eprintln!("{name}: type the value, then Enter and Ctrl-D (it is not shown)");
    tokio::select! {
        read = tokio::task::spawn_blocking(read_secret) => read.map_err(unread)?.map_err(unread),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(unread)?;
            Err(Refusal::usage("nothing was stored"))
        }
    }
}

/// Standard input's terminal, while it does not show what is typed.
struct Hidden(Termios);

impl Hidden {
    fn new() -> nix::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0) {
            eprintln!("musher: the terminal may still hide what is typed ({error}): `stty echo` mends it");
        }
    }
}

fn check_config(environment: &Environment<'_>, home: &Home) -> Result<ExitCode, Refusal> {
    let config = settings::load(home)?;
    install_crypto()?;
    settings::resolve(&config, environment, home)?;
    settings::check_keys(&config, environment, home)?;
    let path = home.config_file();
    let found = if path.exists() { "is in order" } else { "does not exist; everything has its default" };
    println!("{} {found}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn ssh(home: &Home, project: &str, command: &[String]) -> Result<ExitCode, Refusal> {
    ssh_config::find(home, project)?;
    let error =
        Command::new("ssh").arg("-F").arg(home.ssh_config()).arg(format!("{project}.musher")).args(command).exec();
    Err(Refusal::internal("ssh cannot be started", error).hint("Install the OpenSSH client."))
}

/// Logs to a file a day; beside a prompt to nothing else, otherwise warnings to standard error too.
fn log(home: &Home, prompt: bool) -> Result<tracing_appender::non_blocking::WorkerGuard, Refusal> {
    let failed = |error: &dyn std::fmt::Display| Refusal::internal("the log cannot be written", error.to_string());
    make_private(&home.logs()).map_err(|error| failed(&error))?;
    let files = tracing_appender::rolling::Builder::new()
        .rotation(tracing_appender::rolling::Rotation::DAILY)
        .filename_prefix("musher")
        .filename_suffix("log")
        .max_log_files(14)
        .build(home.logs())
        .map_err(|error| failed(&error))?;
    let (writer, guard) = tracing_appender::non_blocking(files);
    let filter =
        EnvFilter::try_from_env("MUSHER_LOG").or_else(|_| EnvFilter::try_new(LOG)).map_err(|error| failed(&error))?;
    let file = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let terminal = (!prompt).then(|| {
        let warnings = tracing_subscriber::filter::Targets::new().with_target("musher", tracing::Level::WARN);
        tracing_subscriber::Layer::with_filter(
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(io::stderr),
            warnings,
        )
    });
    tracing_subscriber::registry().with(filter).with(file).with(terminal).try_init().map_err(|error| failed(&error))?;
    Ok(guard)
}

fn install_crypto() -> Result<(), Refusal> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Refusal::internal("TLS cannot be set up", "another provider was installed before"))
}

fn block_on<T>(work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::internal("the runtime cannot be started", error))?;
    let result = runtime.block_on(work);
    // A thread that still waits for a line from the terminal must not hold the end up.
    runtime.shutdown_background();
    result
}
