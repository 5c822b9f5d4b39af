//! The control socket: how the command line speaks to the gateway that owns the state directory (DUR-9).
//!
//! HTTP over a Unix socket of mode 0600, whose peers must have the gateway's own uid or be root. An upgraded connection carries the
//! bytes of an SSH session.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path as UrlPath, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use musher_docker::SLED;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
};
use tracing::{debug, warn};

use crate::{
    home::Home,
    nodes::Nodes,
    projects::{self, Registry},
    refusal::Refusal,
    tasks::Tasks,
};

/// The protocol that an SSH session's connection is upgraded to.
const STREAM: &str = "musher-stream";
/// How long the gateway may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// The largest refusal, in bytes.
const REFUSAL_MAX: usize = 16 * 1024;

/// What the socket serves.
#[derive(Clone)]
pub struct Control {
    /// The projects.
    pub registry: std::sync::Arc<Registry>,
    /// Their sleds.
    pub nodes: Nodes,
    /// Runs sessions.
    pub tasks: Tasks,
}

/// Binds the socket of a directory that this process owns. What an earlier owner left is replaced.
pub fn bind(home: &Home) -> Result<UnixListener, Refusal> {
    let path = home.control_socket();
    let failed =
        |error: io::Error| Refusal::internal(format!("the control socket {} cannot be made", path.display()), error);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The state directory is closed to others, so that nobody can connect before the mode is set.
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves the socket.
pub async fn serve(listener: UnixListener, control: Control) {
    let tasks = control.tasks.clone();
    let router = Router::new()
        .route("/v1/version", get(async || env!("CARGO_PKG_VERSION")))
        .route("/v1/ssh/{project}", post(ssh))
        .with_state(control);
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the control socket does not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => {}
            peer => {
                warn!(?peer, "a stranger at the control socket");
                continue;
            }
        }
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn("control", async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                debug!(%error, "a control connection broke");
            }
        });
    }
}

async fn ssh(State(control): State<Control>, UrlPath(project): UrlPath<String>, request: Request) -> Response {
    match open_ssh(&control, &project).await {
        Ok(mut session) => {
            control.tasks.spawn("ssh", async move {
                match hyper::upgrade::on(request).await {
                    Ok(upgraded) => {
                        let copied = copy_bidirectional(&mut TokioIo::new(upgraded), &mut session.stream).await;
                        debug!(?copied, said = session.process.stderr_tail(), "an SSH session is over");
                    }
                    Err(error) => debug!(%error, "an SSH session was not taken up"),
                }
            });
            (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, STREAM)])
                .into_response()
        }
        Err(refusal) => (StatusCode::CONFLICT, refusal.to_string()).into_response(),
    }
}

async fn open_ssh(control: &Control, project: &str) -> Result<musher_docker::ExecSession, Refusal> {
    let (id, _) = control.registry.registered(project, |_| true, projects::listed)?;
    control.nodes.exec(id, &[SLED, "sshd", "--inetd"]).await
}

/// Carries an SSH session between `input`, `output` and the project's sshd, through the gateway that owns `home`.
pub async fn ssh_proxy(
    socket: &Path,
    project: &str,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> Result<(), Refusal> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Refusal::unavailable("musher is not running")
            .hint(format!(
                "Start it (`musher up`), or use the port door of a container that runs: {project}.musher-port"
            )),
        _ => Refusal::internal(format!("the gateway's socket {} cannot be used", socket.display()), error),
    })?;
    let broken = |error: hyper::Error| Refusal::internal("the gateway broke off", error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method("POST")
        .uri(format!("/v1/ssh/{project}"))
        .header(header::HOST, "musher")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, STREAM)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| Refusal::usage(format!("that is not a project's name: {error}")))?;
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .map_err(|_| Refusal::unavailable(format!("the gateway did not answer within {} s", PATIENCE.as_secs())))?
        .map_err(broken)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(Body::new(response.into_body()), REFUSAL_MAX)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let said = String::from_utf8_lossy(&body).into_owned();
        return Err(Refusal::unavailable(if said.is_empty() { "the gateway refused".to_owned() } else { said }));
    }
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?);
    let carried = carry(upgraded, input, output).await;
    connection.abort();
    carried.map_err(|error| Refusal::internal("the SSH session broke off", error))
}

/// Copies both ways until the far side has ended; the end of our input is passed on.
async fn carry(
    remote: impl AsyncRead + AsyncWrite,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(remote);
    let sending = async {
        tokio::io::copy(&mut input, &mut to).await?;
        to.shutdown().await
    };
    let receiving = async {
        tokio::io::copy(&mut from, &mut output).await?;
        output.flush().await
    };
    tokio::pin!(sending, receiving);
    tokio::select! {
        received = &mut receiving => received,
        sent = &mut sending => {
            sent?;
            receiving.await
        }
    }
}
