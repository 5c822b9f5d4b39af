//! The way to a remote for libgit2, which makes the clone of a new project: a port on this host's loopback, behind which stands
//! the way that containers take ([`super::proxy`], [`super::ssh`]). So libgit2 is given no credential, looks no name up, judges no
//! server, and meets no redirect; and it notices at once when its clone is given up, because the port closes.
//!
//! A port serves one clone, to fetch alone. Whoever asks has to know its secret name, which libgit2 alone is told.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use link::git::Frame;
use russh::Disconnect;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::{io::ReaderStream, sync::DropGuard};
use tracing::debug;
use uuid::Uuid;

use super::{
    Git,
    audit::{Outcome, Service, Use},
    proxy,
    remote::{Remote, SshRemote, WebRemote},
    ssh::{self, Ended},
    trouble::{AGAIN, Trouble},
};
use crate::{refusal::Refusal, text};

/// Connections that are served at once. libgit2 keeps one; anybody on this host may open others.
const CONNECTIONS: usize = 64;
/// How long a connection may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line in which git's own protocol says that, in bytes.
const REQUEST_MAX: usize = 1024;
/// How much is passed on at once, in bytes.
const CHUNK: usize = 64 * 1024;
/// How much of what a server's git complains of is kept, in characters.
const WORDS_MAX: usize = 2000;

/// The port; it closes when this is dropped.
pub struct ClonePort {
    address: String,
    trouble: Arc<Mutex<Option<(Outcome, Refusal)>>>,
    _open: DropGuard,
}

/// What stands behind the port.
struct Way {
    git: Arc<Git>,
    remote: Remote,
    name: String,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<(Outcome, Refusal)>>>,
}

impl Git {
    /// Opens a port to `remote` for one clone, which is the use `used`; none is needed to a repository on this host.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn clone_port(self: &Arc<Self>, remote: &Remote, used: &Use) -> Result<ClonePort, Refusal> {
        let no_port = |error| Refusal::internal("no port can be had for the clone", error);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(no_port)?;
        let port = listener.local_addr().map_err(no_port)?.port();
        // Both of libgit2's transports that need no library: git's own protocol is what an SSH session carries.
        let scheme = if matches!(remote, Remote::Ssh(_)) { "git" } else { "http" };
        let name = format!("clone-{}", Uuid::new_v4().simple());
        let address = format!("{scheme}://127.0.0.1:{port}/{name}");
        let (sent, received, trouble) = (used.sent(), used.received(), Arc::default());
        let way =
            Way { git: Arc::clone(self), remote: remote.clone(), name, sent, received, trouble: Arc::clone(&trouble) };
        let closed = self.tasks.stopping().child_token();
        let open = closed.clone().drop_guard();
        self.tasks.spawn("clone port", async move {
            closed.run_until_cancelled(serve(listener, Arc::new(way))).await;
        });
        Ok(ClonePort { address, trouble, _open: open })
    }
}

impl ClonePort {
    /// What libgit2 is told in place of the remote's own address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What went wrong behind the port: more than libgit2 knows of it.
    pub fn trouble(&self) -> Option<(Outcome, Refusal)> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves until it is dropped, and every connection with it.
async fn serve(listener: TcpListener, way: Arc<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&way), stream))),
                Err(error) => {
                    debug!(%error, "the port of a clone does not accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(way: Arc<Way>, stream: TcpStream) {
    let served = match &way.remote {
        Remote::Web(_) => {
            let router = Router::new().fallback(web).with_state(way);
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            connection.await.map_err(io::Error::other)
        }
        Remote::Ssh(remote) => session(&way, remote, stream).await,
        Remote::Local(_) => Ok(()),
    };
    if let Err(error) = served {
        debug!(%error, "a connection of a clone broke");
    }
}

impl Way {
    /// Keeps what went wrong first: what follows comes of it.
    fn note(&self, outcome: Outcome, refusal: Refusal) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((outcome, refusal));
    }

    fn note_trouble(&self, trouble: Trouble, remote: &WebRemote) {
        self.note(trouble.outcome(), trouble.refusal(remote));
    }
}

async fn web(State(way): State<Arc<Way>>, request: Request) -> Response {
    let below = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(way.name.as_str()));
    let asked = below.and_then(|below| proxy::service(request.method(), below, request.uri().query()));
    let (Remote::Web(remote), Some((Service::Fetch, part))) = (&way.remote, asked) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let answer = async {
        way.git.reach.check(&way.remote).await.map_err(Trouble::Refused)?;
        let credential = way.git.credentials.web(remote).map_err(Trouble::Refused)?;
        proxy::send(&way.git, remote, (Service::Fetch, part), credential, request, &way.sent).await
    };
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(trouble) => {
            way.note_trouble(trouble, remote);
            return StatusCode::BAD_GATEWAY.into_response();
        }
    };
    let ((status, headers), received) = (proxy::head(&answer), Arc::clone(&way.received));
    let (way, remote) = (Arc::clone(&way), remote.clone());
    let body = answer.bytes_stream().inspect(move |chunk| match chunk {
        Ok(chunk) => drop(received.fetch_add(chunk.len() as u64, Ordering::Relaxed)),
        Err(_) => way.note_trouble(Trouble::BrokenOff, &remote),
    });
    (status, headers, Body::from_stream(body)).into_response()
}

/// One session of git's own protocol, carried over SSH.
async fn session(way: &Way, remote: &SshRemote, mut stream: TcpStream) -> io::Result<()> {
    let asked = timeout(PATIENCE, request(&mut stream)).await??;
    let wanted = format!("{} /{}", link::git::Service::UploadPack.name(), way.name);
    if asked.split(|byte| *byte == 0).next() != Some(wanted.as_bytes()) {
        return Err(io::Error::other("that is not what the port is for"));
    }
    let (connection, channel) = match ssh::open(&way.git, remote, Service::Fetch, None).await {
        Ok(opened) => opened,
        Err((outcome, refusal)) => {
            way.note(outcome, refusal);
            return Ok(());
        }
    };
    let (reading, writing) = stream.into_split();
    let told = Body::from_stream(ReaderStream::with_capacity(reading, CHUNK));
    let (frames, heard) = mpsc::channel(16);
    let carried = async move {
        let ended = ssh::carry(channel, told, &frames, &way.sent, &way.received).await;
        drop(frames);
        ended
    };
    // The connection is closed when its end has been noted, not before.
    let (ended, (_writing, words)) = tokio::join!(carried, pass_on(heard, writing));
    drop(connection.disconnect(Disconnect::ByApplication, "", "").await);
    let server = text::code(&remote.authority());
    match ended {
        Ended::Exit(0) | Ended::Unheard => {}
        Ended::Exit(code) => {
            let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let said = if last.is_empty() { format!("exit code {code}") } else { text::code(last) };
            let refusal = Refusal::unavailable(format!(
                "{} cannot be cloned: the git server {server} says {said}",
                text::code(&remote.to_string())
            ));
            way.note(Outcome::Failed, refusal.hint("Check the address, and whether the key may read there."));
        }
        // Why, is told in words for containers.
        Ended::Broken(why) => {
            debug!(why, "the session of a clone broke off");
            let shown = text::code(&remote.to_string());
            let what = format!("{shown} cannot be cloned: the session with the git server {server} broke off");
            way.note(Outcome::CutOff, Refusal::unavailable(what).hint(AGAIN));
        }
    }
    Ok(())
}

/// The first line of git's own protocol: its length in four hexadecimal digits, which counts these, and so much text.
async fn request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = std::str::from_utf8(&length).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let length = length.and_then(|length| length.checked_sub(4)).filter(|length| *length <= REQUEST_MAX);
    let mut line = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
    stream.read_exact(&mut line).await?;
    Ok(line)
}

/// Gives libgit2 what the server's git says; gives back the connection and what it complained of.
async fn pass_on<W: AsyncWriteExt + Unpin>(mut heard: mpsc::Receiver<io::Result<Frame>>, mut to: W) -> (W, String) {
    let mut words = String::new();
    while let Some(Ok(frame)) = heard.recv().await {
        match frame {
            Frame::Stdout(data) => {
                if to.write_all(&data).await.is_err() {
                    break;
                }
            }
            Frame::Stderr(data) => {
                let room = WORDS_MAX.saturating_sub(words.chars().count());
                words.extend(String::from_utf8_lossy(&data).chars().take(room));
            }
            Frame::Exit(_) => {}
        }
    }
    (to, words)
}
