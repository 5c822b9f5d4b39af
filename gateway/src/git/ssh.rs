//! Git over SSH: the gateway opens the session itself, to a server whose host key is known, with a key that no container sees, and
//! runs `git-upload-pack` or `git-receive-pack` of the project's own repository there, nothing else.
//!
//! The container's git speaks to `sled git-ssh`, which asks here: the request's body is git's output, the answer's body are frames of
//! what the server says ([`link::git`]), both at once.

use std::{
    borrow::Cow,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Query, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use link::git::{Frame, SshRequest};
use russh::{
    Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect, Preferred,
    client::{self, Handle, Msg},
    keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tracing::warn;

use super::{
    BODY_MAX, CONNECT, Door, Git,
    audit::{By, Outcome, Part, Service},
    credentials,
    known_hosts::KnownHosts,
    refused,
    remote::{Remote, SshRemote},
    said, stalled, unjournaled,
};
use crate::{refusal::Refusal, text};

/// How long the server may take from the first byte to the program's start.
const OPENING: Duration = Duration::from_mins(1);
/// The longest time in which nothing moves: a push waits with an open session for what its hooks do.
const SILENCE: Duration = Duration::from_hours(1);
/// How long the session may take to close once its program has ended.
const CLOSING: Duration = Duration::from_secs(10);
/// How long the last of what was said may wait for whoever reads it.
const UNREAD: Duration = Duration::from_mins(10);
/// How often a silent server is asked whether it is there; it is gone when it has not answered three times.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What SSH calls standard error.
const STDERR: u32 = 1;
/// The exit code of a program that a signal ended, as `ssh` has it.
const SIGNALLED: u32 = 255;

/// Serves a fetch.
pub async fn upload_pack(State(door): State<Arc<Door>>, request: Request) -> Response {
    session(&door, Service::Fetch, request).await
}

/// Serves a push.
pub async fn receive_pack(State(door): State<Arc<Door>>, request: Request) -> Response {
    session(&door, Service::Push, request).await
}

/// Whether the place that the container names is the project's remote, exactly.
fn is_own(remote: &SshRemote, asked: &SshRequest) -> bool {
    remote.user == asked.user
        && remote.bare_host() == asked.host.to_ascii_lowercase()
        && remote.port() == asked.port.unwrap_or(22)
        && remote.path == asked.path.trim_end_matches('/')
}

async fn session(door: &Door, service: Service, request: Request) -> Response {
    let Ok(Query(asked)) = Query::<SshRequest>::try_from_uri(request.uri()) else {
        return said(StatusCode::BAD_REQUEST, "that does not name a repository").into_response();
    };
    let remote = match door.remote() {
        Some(Remote::Ssh(remote)) if is_own(&remote, &asked) => remote,
        _ => return said(StatusCode::NOT_FOUND, "that is not this project's repository").into_response(),
    };
    let place = match door.place() {
        Ok(place) => place,
        Err(busy) => return busy.into_response(),
    };
    // What may not be reached, or without any key, is no use of anything.
    if let Err(refusal) = door.git.reach.check(&Remote::Ssh(remote.clone())).await {
        return refused(&refusal).into_response();
    }
    match door.git.credentials.ssh(&remote) {
        Ok(Some(_)) => {}
        Ok(None) => return refused(&no_key(&remote)).into_response(),
        Err(refusal) => return refused(&refusal).into_response(),
    }
    let begun = door.git.audit.begin(door.project, (service, Part::Whole), remote.to_string(), By::Container).await;
    let used = match begun {
        Ok(used) => used,
        Err(refusal) => return unjournaled(&refusal).into_response(),
    };
    let protocol = asked.protocol.as_deref().and_then(version);
    let (connection, channel) = match open(&door.git, &remote, service, protocol).await {
        Ok(opened) => opened,
        Err((outcome, refusal)) => {
            let answer = match used.end(outcome).await {
                Ok(()) => refused(&refusal),
                Err(refusal) => unjournaled(&refusal),
            };
            return answer.into_response();
        }
    };
    let (frames, mut heard) = mpsc::channel(16);
    let body = request.into_body();
    door.git.tasks.spawn("git over ssh", async move {
        let ended = carry(channel, body, &frames, &used.sent(), &used.received()).await;
        // It is over, whether or not the server hears of it.
        drop(connection.disconnect(Disconnect::ByApplication, "", "").await);
        let last = match ended {
            Ended::Exit(code) => {
                let outcome = if code == 0 { Outcome::Done } else { Outcome::Failed };
                used.end(outcome).await.map(|()| Frame::Exit(code)).map_err(io::Error::other)
            }
            Ended::Unheard => return,
            Ended::Broken(why) => {
                drop(used);
                Err(io::Error::other(why))
            }
        };
        // The container may have gone, or not read on.
        drop(timeout(UNREAD, frames.send(last)).await);
        drop(place);
    });
    let frames = futures_util::stream::poll_fn(move |context| heard.poll_recv(context));
    (StatusCode::OK, Body::from_stream(frames.map(|said| said.map(|said| wire(&said))))).into_response()
}

/// The only values of `GIT_PROTOCOL` that are passed on.
fn version(protocol: &str) -> Option<&'static str> {
    ["version=0", "version=1", "version=2"].into_iter().find(|known| *known == protocol)
}

fn wire(said: &Frame) -> Bytes {
    let mut wire = BytesMut::new();
    said.encode(&mut wire);
    wire.freeze()
}

/// How a session ended.
pub(super) enum Ended {
    /// Its program ended with this code.
    Exit(u32),
    /// Nobody listens to it any more.
    Unheard,
    /// It was broken off.
    Broken(&'static str),
}

/// Where what the program says goes, none of it empty.
pub(super) type Frames = mpsc::Sender<io::Result<Frame>>;

/// Carries bytes both ways until the program has ended, and counts them.
pub(super) async fn carry(
    channel: Channel<Msg>,
    body: Body,
    frames: &Frames,
    sent: &AtomicU64,
    received: &AtomicU64,
) -> Ended {
    let (reading, writing) = channel.split();
    let moving = [sent, received];
    tokio::select! {
        ended = hear(reading, frames, received) => ended,
        ended = tell(writing, body, sent) => ended,
        () = stalled(&moving, SILENCE) => Ended::Broken("nothing moved for too long"),
    }
}

/// Passes on what the program says, until it has ended.
async fn hear(mut channel: ChannelReadHalf, frames: &Frames, received: &AtomicU64) -> Ended {
    let mut code = None;
    loop {
        let patience = if code.is_some() { CLOSING } else { SILENCE };
        let message = tokio::select! {
            message = timeout(patience, channel.wait()) => message.ok().flatten(),
            () = frames.closed() => return Ended::Unheard,
        };
        let said = match message {
            Some(ChannelMsg::Data { data }) => {
                received.fetch_add(data.len() as u64, Ordering::Relaxed);
                Frame::Stdout(data)
            }
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => Frame::Stderr(data),
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                code = Some(exit_status);
                continue;
            }
            Some(ChannelMsg::ExitSignal { .. }) => {
                code = Some(SIGNALLED);
                continue;
            }
            Some(ChannelMsg::Close) | None => {
                return code.map_or(Ended::Broken("the git server broke off"), Ended::Exit);
            }
            Some(_) => continue,
        };
        let is_empty = matches!(&said, Frame::Stdout(data) | Frame::Stderr(data) if data.is_empty());
        if !is_empty && frames.send(Ok(said)).await.is_err() {
            return Ended::Unheard;
        }
    }
}

/// Passes on what git in the container says. Returns only when that breaks off.
async fn tell(channel: ChannelWriteHalf<Msg>, body: Body, sent: &AtomicU64) -> Ended {
    let mut body = Limited::new(body, BODY_MAX).into_data_stream();
    while let Some(part) = body.next().await {
        let Ok(part) = part else { return Ended::Broken("the container broke off, or sent too much") };
        let length = part.len() as u64;
        if channel.data_bytes(part).await.is_err() {
            // The program may have ended without reading all of it; its exit code says more.
            return std::future::pending().await;
        }
        sent.fetch_add(length, Ordering::Relaxed);
    }
    // As above.
    drop(channel.eof().await);
    std::future::pending().await
}

type Opened = (Handle<Host>, Channel<Msg>);

/// Opens a session and starts the service in it.
pub(super) async fn open(
    git: &Git,
    remote: &SshRemote,
    service: Service,
    protocol: Option<&'static str>,
) -> Result<Opened, (Outcome, Refusal)> {
    let server = text::code(&remote.authority());
    let late = || Refusal::unavailable(format!("the git server {server} does not answer"));
    let addresses = git
        .reach
        .addresses(remote.bare_host(), remote.port())
        .await
        .map_err(|denied| (Outcome::Unreachable, denied.into()))?;
    let stream = match timeout(CONNECT, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let refusal = Refusal::unavailable(format!("the git server {server} could not be reached: {error}"));
            return Err((Outcome::Unreachable, refusal));
        }
        Err(_) => return Err((Outcome::Unreachable, late())),
    };
    let opening = timeout(OPENING, start(git, remote, service, protocol, stream));
    opening.await.unwrap_or_else(|_| Err((Outcome::Unreachable, late())))
}

async fn start(
    git: &Git,
    remote: &SshRemote,
    service: Service,
    protocol: Option<&'static str>,
    stream: TcpStream,
) -> Result<Opened, (Outcome, Refusal)> {
    let server = text::code(&remote.authority());
    let failed = |error: russh::Error| {
        warn!(server, %error, "an SSH session for git failed");
        let why = text::one_line(&error.to_string(), 200);
        (Outcome::Unreachable, Refusal::unavailable(format!("the SSH session with {server} failed: {why}")))
    };
    if let Err(error) = stream.set_nodelay(true) {
        warn!(%error, "a connection stays slow");
    }
    let names = git
        .known_hosts
        .algorithms(remote.bare_host(), remote.port())
        .map_err(|refusal| (Outcome::Untrusted, refusal))?;
    let distrust = Arc::default();
    let host = Host {
        known: git.known_hosts.clone(),
        name: remote.bare_host().to_owned(),
        port: remote.port(),
        distrust: Arc::clone(&distrust),
    };
    let connected = client::connect_stream(Arc::new(config(&names)), stream, host).await;
    let mut connection = connected.map_err(|error| {
        let distrust = distrust.lock().unwrap_or_else(PoisonError::into_inner).take();
        distrust.map_or_else(|| failed(error), |refusal| (Outcome::Untrusted, refusal))
    })?;

    // The key is looked at when the server is known to be the right one, not before.
    let key = git.credentials.ssh(remote).map_err(|refusal| (Outcome::Denied, refusal))?;
    let key = key.ok_or_else(|| (Outcome::Denied, no_key(remote)))?.into_key();
    let hash = if key.algorithm().is_rsa() {
        // Never SHA-1; a server that does not say what it takes has known SHA-256 for long.
        let best = connection.best_supported_rsa_hash().await.map_err(failed)?.flatten();
        Some(best.unwrap_or(HashAlg::Sha256))
    } else {
        None
    };
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    let authenticated = connection.authenticate_publickey(remote.login(), key).await.map_err(failed)?;
    if !authenticated.success() {
        let what = format!("the git server {server} does not take the key");
        return Err((Outcome::Denied, another_key(remote, what)));
    }
    let mut channel = connection.channel_open_session().await.map_err(failed)?;
    if let Some(protocol) = protocol {
        channel.set_env(false, "GIT_PROTOCOL", protocol).await.map_err(failed)?;
    }
    channel.exec(true, command(service, &remote.path)).await.map_err(failed)?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok((connection, channel)),
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            _ => {
                let refusal = Refusal::unavailable(format!("the git server {server} does not run git for us"));
                return Err((Outcome::Failed, refusal));
            }
        }
    }
}

fn no_key(remote: &SshRemote) -> Refusal {
    another_key(remote, format!("there is no key for the git server {}", text::code(&remote.authority())))
}

fn another_key(remote: &SshRemote, what: String) -> Refusal {
    let name = credentials::example_ssh(remote);
    Refusal::config(what).hint(format!("Whoever runs musher can store a key: musher secrets set {name} < key"))
}

fn config(known: &[String]) -> client::Config {
    let parse = |name: &String| -> Vec<Algorithm> {
        // A key of this kind signs in several ways; SHA-1 is none of them.
        let names = if name == "ssh-rsa" { vec!["rsa-sha2-512", "rsa-sha2-256"] } else { vec![name.as_str()] };
        names.into_iter().filter_map(|name| name.parse().ok()).collect()
    };
    let mut keys: Vec<Algorithm> = known.iter().flat_map(parse).collect();
    let others = Preferred::DEFAULT
        .key
        .iter()
        .filter(|key| !matches!(key, Algorithm::Rsa { hash: None }) && !keys.contains(key));
    let others: Vec<_> = others.cloned().collect();
    keys.extend(others);
    client::Config {
        window_size: 8 * 1024 * 1024,
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        preferred: Preferred { key: Cow::Owned(keys), ..Preferred::DEFAULT },
        ..client::Config::default()
    }
}

/// What the server runs: the path is the project's own, quoted as git quotes it for the server's shell.
fn command(service: Service, path: &str) -> String {
    let program = match service {
        Service::Fetch => link::git::Service::UploadPack,
        Service::Push => link::git::Service::ReceivePack,
    };
    let quoted = path.replace('\'', "'\\''").replace('!', "'\\!'");
    format!("{} '{quoted}'", program.name())
}

/// The server, as it is judged.
pub(super) struct Host {
    known: KnownHosts,
    name: String,
    port: u16,
    /// Why it is not trusted.
    distrust: Arc<Mutex<Option<Refusal>>>,
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let judged = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                let wire = key.to_bytes().map_err(russh::Error::SshKey)?;
                self.known.demand(&self.name, self.port, &wire)
            }
            // None was asked for.
            PublicKeyOrCertificate::Certificate(_) => {
                Err(Refusal::config("the SSH server shows a certificate in place of a key"))
            }
        };
        let trusted = judged.is_ok();
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) = judged.err();
        Ok(trusted)
    }
}
