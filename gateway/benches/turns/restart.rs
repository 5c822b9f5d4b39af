//! The released gateway, started on a state directory with a history.

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use journal::SystemClock;
use musher::{
    chat::{Inbound, Weight},
    dispatch::SessionKey,
    home::Home,
    outbox::{Address, Outbox, Post},
    people::Role,
    projects::Registry,
    rooms::{Mode, Rooms},
    sessions::{Ending, Sessions},
    store::Journal,
    tasks::Tasks,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use uuid::Uuid;

use crate::{
    figures::Samples,
    stage::{Hall, person, register, room},
};

/// Messages in the journal.
const MESSAGES: usize = 10_000;
/// Few of them: the last ones of so many rooms.
const FEW: usize = 5;
/// Rooms that they were said in.
const ROOMS: usize = 100;
/// Projects that they are about.
const PROJECTS: u16 = 10;
/// How long a start may take before it counts as failed, and an end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the last gateway left unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// A few messages.
    Few,
    /// Every message; each room's queue is full.
    All,
}

/// The time from the start of the process until it is healthy, of `rounds` starts on copies of one history.
pub async fn measure(left: Left, rounds: usize) -> Result<Samples> {
    let folder = tempfile::tempdir()?;
    let history = folder.path().join("history");
    let home = Home::open(&history)?;
    // A port that was free a moment ago.
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let engine = folder.path().join("no-engine.sock").display().to_string();
    let settings =
        format!("[agent]\nruntime = \"echo\"\n[http]\nlisten = \"{listen}\"\n[engine]\nhost = \"unix://{engine}\"\n");
    fs::write(home.config_file(), settings)?;
    // The first start of all makes the gateway's identity; what is measured are later ones.
    Running::start(&history, listen)?.end()?;
    let began = Instant::now();
    write(&home, left).await?;
    let size = fs::metadata(home.journal())?.len() / 1_000_000;
    let waiting = if left == Left::All { MESSAGES } else { FEW };
    let took = began.elapsed();
    println!("history: {MESSAGES} messages in {ROOMS} rooms, {waiting} waiting, {size} MB, written in {took:.1?}");

    let mut samples = Samples::default();
    for round in 0..rounds {
        let state = folder.path().join(format!("round-{round}"));
        copy(&history, &state)?;
        let running = Running::start(&state, listen)?;
        samples.extend([running.took]);
        running.end()?;
        fs::remove_dir_all(&state)?;
    }
    Ok(samples)
}

/// A gateway that is healthy.
struct Running {
    process: Child,
    took: Duration,
}

impl Running {
    fn start(state: &Path, listen: SocketAddr) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_musher"));
        command.arg("--home").arg(state).arg("up");
        let errors = File::create(state.join("stderr"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors);
        let began = Instant::now();
        let mut process = command.spawn()?;
        loop {
            if healthy(listen).unwrap_or(false) {
                return Ok(Self { process, took: began.elapsed() });
            }
            let ended = process.try_wait()?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                process.kill().ok();
                bail!("the gateway is not ready: {}", fs::read_to_string(state.join("stderr"))?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id().try_into()?), Signal::SIGTERM)?;
        let began = Instant::now();
        while self.process.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                self.process.kill()?;
                bail!("the gateway does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn healthy(listen: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&listen, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// Writes the history by the gateway's own parts, as turns of many rooms leave it.
async fn write(home: &Home, left: Left) -> Result<()> {
    let journal = Journal::open(&home.journal(), Arc::new(SystemClock))?;
    let tasks = Tasks::new();
    let outbox = Outbox::open(journal.clone(), tasks.clone()).await?;
    outbox.add(Arc::new(Hall::default()));
    let registry = Registry::open(journal.clone()).await?;
    let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await?;
    let sessions = Sessions::new(journal.clone(), outbox.clone());
    let mut projects = Vec::new();
    for number in 0..PROJECTS {
        projects.push(register(&registry, number).await?);
    }
    let (sessions, rooms, projects) = (&sessions, &rooms, &projects);
    stream::iter(0..ROOMS)
        .map(|number| async move {
            let project = projects[number % projects.len()];
            rooms.switch(&room(number), &person(), project, journal::Cause::None).await?;
            let key = SessionKey { project, room: room(number), thread: None };
            for n in 0..MESSAGES / ROOMS {
                let event_id = format!("event-{number}-{n}");
                let said = said(&key, &event_id);
                sessions.accept(&key, &said, &said.text, Role::Admin, false).await?;
                if left == Left::All || (n + 1 == MESSAGES / ROOMS && number < FEW) {
                    continue;
                }
                let turn = Uuid::now_v7();
                sessions.begin(&key, turn, &[&event_id]).await?.context("it waits")?;
                sessions
                    .finish(&key, turn, Ending::Answered, true, vec![answer(&key, turn, event_id)], Vec::new())
                    .await?;
            }
            anyhow::Ok(())
        })
        .buffer_unordered(ROOMS)
        .try_collect::<()>()
        .await?;
    let deadline = Instant::now() + PATIENCE;
    while outbox.counts().undelivered > 0 {
        ensure!(Instant::now() < deadline, "the history is not delivered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tasks.shutdown(PATIENCE).await?;
    journal.close().await;
    Ok(())
}

fn said(key: &SessionKey, event_id: &str) -> Inbound {
    Inbound {
        room: key.room.clone(),
        event_id: event_id.to_owned(),
        sender: person(),
        at: Timestamp::now(),
        text: "Why does the build fail on the second machine, and what would you change first?".to_owned(),
        quoted: None,
        thread: None,
        addressed: true,
        with_file: false,
        pending: None,
    }
}

fn answer(key: &SessionKey, turn: Uuid, event_id: String) -> Post {
    let (room, mention) = (key.room.clone(), Some(person()));
    Post {
        to: Address { room, thread: None, reply_to: Some(event_id.clone()), mention, pending: None },
        weight: Weight::Answer,
        markdown: "It fails because the second machine has no linker. ".repeat(10),
        transaction: format!("turn-{turn}"),
        answers: vec![event_id],
        failed: false,
        takes_back: None,
        cause: journal::Cause::None,
    }
}

/// Copies a state directory of an ended gateway. Sockets are left out.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
