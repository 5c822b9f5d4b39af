//! A gateway of the test's own for git's requests: one remote, whose "servers" are git's own programs beside it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use futures_util::{StreamExt, TryStreamExt};
use http::StatusCode;
use link::git::{Frame, MAX_PAYLOAD, Service, SshRequest};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::bytes::BytesMut;
use tokio_util::io::{ReaderStream, StreamReader};

/// The remote's host; any other is not the project's.
pub const HOST: &str = "git.test";

/// A remote whose repositories are in `folder`, by ssh and by web.
pub fn router(folder: &Path) -> Router {
    let folder = Arc::new(folder.to_owned());
    Router::new()
        .route("/git/ssh/{service}", post(ssh))
        .route("/git/web/{host}/{*path}", any(web))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(folder)
}

async fn ssh(
    State(folder): State<Arc<PathBuf>>,
    UrlPath(service): UrlPath<String>,
    Query(place): Query<SshRequest>,
    body: Body,
) -> Response {
    if place.host != HOST {
        return (StatusCode::NOT_FOUND, "not this project's remote").into_response();
    }
    if place.path == "/forbidden" {
        return (StatusCode::FORBIDDEN, "the git server refused the credential\n").into_response();
    }
    let service = Service::named(&service).unwrap();
    let mut command = Command::new(service.name());
    command.arg(folder.join(place.path.trim_start_matches('/')));
    if let Some(protocol) = place.protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    program(command, body)
}

/// Runs a program whose input is `body` and whose output and end are the answer's frames.
pub fn program(mut command: Command, body: Body) -> Response {
    let mut child = spawn(&mut command);
    feed(&mut child, body);
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (send, frames) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let out = async {
            let mut buffer = vec![0; MAX_PAYLOAD];
            while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
                send.send(Frame::Stdout(Bytes::copy_from_slice(&buffer[..length]))).await.ok();
            }
        };
        let err = async {
            let mut buffer = vec![0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                send.send(Frame::Stderr(Bytes::copy_from_slice(&buffer[..length]))).await.ok();
            }
        };
        tokio::join!(out, err);
        let code = child.wait().await.unwrap().code().unwrap_or(255);
        send.send(Frame::Exit(code.try_into().unwrap())).await.ok();
    });
    Body::from_stream(ReceiverStream::new(frames).map(|frame| {
        let mut wire = BytesMut::new();
        frame.encode(&mut wire);
        Ok::<_, std::convert::Infallible>(wire.freeze())
    }))
    .into_response()
}

/// Smart HTTP by git's own CGI program.
async fn web(
    State(folder): State<Arc<PathBuf>>,
    UrlPath((host, path)): UrlPath<(String, String)>,
    request: Request,
) -> Response {
    if host != HOST {
        return (StatusCode::FORBIDDEN, "not this project's remote\n").into_response();
    }
    let (head, body) = request.into_parts();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &*folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "tester")
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", format!("/{path}"))
        .env("QUERY_STRING", head.uri.query().unwrap_or(""));
    for (name, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("content-length", "CONTENT_LENGTH"),
        ("git-protocol", "HTTP_GIT_PROTOCOL"),
    ] {
        if let Some(value) = head.headers.get(name) {
            command.env(variable, value.to_str().unwrap());
        }
    }
    let mut child = spawn(&mut command);
    feed(&mut child, body);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut answer = Response::builder();
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).await.unwrap() > 0, "the CGI program ended in its head");
        match line.trim_end().split_once(": ") {
            Some(("Status", status)) => answer = answer.status(status.split(' ').next().unwrap()),
            Some((name, value)) => answer = answer.header(name, value),
            None => break,
        }
    }
    tokio::spawn(async move { child.wait().await });
    answer.body(Body::from_stream(ReaderStream::new(output))).unwrap()
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn feed(child: &mut Child, body: Body) {
    let mut stdin = child.stdin.take().unwrap();
    tokio::spawn(async move {
        let mut body = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
        // Either side may end first.
        tokio::io::copy(&mut body, &mut stdin).await.ok();
        stdin.shutdown().await.ok();
    });
}
