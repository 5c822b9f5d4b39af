//! Git over HTTP: git's own CGI program behind a server that asks for a name and a password (Basic authentication).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinHandle,
};

use super::repositories::{Repositories, git};
use crate::secrets::{self, Kind};

/// How much is read from git's program at once.
const CHUNK: usize = 32 * 1024;

/// What the server does with the next requests for a service of git's, instead of answering them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It answers.
    Proper,
    /// It breaks the answer of `git-upload-pack` off after so many bytes of its body.
    CutAfter(usize),
    /// It sends whoever asks to this address.
    Redirect(String),
}

/// A request that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Method, path and query.
    pub line: String,
    /// Its `authorization`, where it has one.
    pub authorization: Option<String>,
    /// What it was answered with.
    pub status: u16,
}

/// The server, serving until it is dropped.
#[derive(Debug)]
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    repositories: Repositories,
    state: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// As the header has it; without one everybody may come.
    authorization: Option<String>,
    reply: Reply,
    seen: Vec<Seen>,
}

impl WebServer {
    /// A server on loopback that lets nobody in but `user` with `token`.
    pub async fn private(user: &str, token: &str) -> Result<Self> {
        secrets::register(Kind::GitToken, token);
        Self::start(Ipv4Addr::LOCALHOST.into(), Some(basic(user, token))).await
    }

    /// A server at this address of the host that lets everybody in.
    pub async fn public(address: IpAddr) -> Result<Self> {
        Self::start(address, None).await
    }

    async fn start(address: IpAddr, authorization: Option<String>) -> Result<Self> {
        let repositories = Repositories::new(nix::unistd::geteuid().as_raw())?;
        let listener = TcpListener::bind((address, 0)).await.context("no port for the git server")?;
        let address = listener.local_addr()?;
        let state = Mutex::new(Inner { authorization, reply: Reply::Proper, seen: Vec::new() });
        let shared = Arc::new(Shared { repositories, state });
        let router = Router::new().fallback(take).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // It ends with the test.
            let _ended = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, server })
    }

    /// The address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// The name under which its credential is kept.
    pub fn secret(&self) -> String {
        format!("git:http://{}", self.address)
    }

    /// What it serves.
    pub fn repositories(&self) -> &Repositories {
        &self.shared.repositories
    }

    /// From now on it lets nobody in but `user` with `token`.
    pub fn rotate(&self, user: &str, token: &str) {
        secrets::register(Kind::GitToken, token);
        self.shared.state().authorization = Some(basic(user, token));
    }

    /// What it does from now on.
    pub fn reply(&self, reply: Reply) {
        self.shared.state().reply = reply;
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of `authorization` for this name and password.
pub fn basic(user: &str, token: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for group in format!("{user}:{token}").as_bytes().chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        let digits = (0..4).map(|place| char::from(DIGITS[bits >> (18 - 6 * place) & 63]));
        encoded.extend(digits.enumerate().map(|(place, digit)| if place <= group.len() { digit } else { '=' }));
    }
    format!("Basic {encoded}")
}

async fn take(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let (wanted, reply) = {
        let state = shared.state();
        (state.authorization.clone(), state.reply.clone())
    };
    let response = match reply {
        _ if wanted.is_some() && authorization != wanted => {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")], "who are you?")
                .into_response()
        }
        Reply::Redirect(to) => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
        reply => {
            let cut = match reply {
                Reply::CutAfter(bytes) if request.uri().path().ends_with("/git-upload-pack") => Some(bytes),
                _ => None,
            };
            serve(&shared, request, cut)
                .await
                .unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response())
        }
    };
    shared.state().seen.push(Seen { line, authorization, status: response.status().as_u16() });
    response
}

/// Has git's CGI program (RFC 3875) answer a request, both bodies streaming.
async fn serve(shared: &Shared, request: Request, cut: Option<usize>) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let folder = shared.repositories.folder();
    let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut cgi = git(folder);
    cgi.arg("http-backend");
    cgi.env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1");
    cgi.env("REQUEST_METHOD", parts.method.as_str()).env("PATH_INFO", percent_decoded(parts.uri.path())?);
    cgi.env("QUERY_STRING", parts.uri.query().unwrap_or_default()).env("REMOTE_ADDR", "127.0.0.1");
    cgi.env("CONTENT_TYPE", header(header::CONTENT_TYPE));
    cgi.env("HTTP_CONTENT_ENCODING", header(header::CONTENT_ENCODING));
    cgi.env("GIT_PROTOCOL", header(HeaderName::from_static("git-protocol")));
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        cgi.env("CONTENT_LENGTH", length.to_str()?);
    }
    let mut child = cgi
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("git http-backend")?;
    let mut stdin = child.stdin.take().context("a piped standard input")?;
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        while let Some(Ok(chunk)) = body.next().await {
            // A program that has ended is judged by its answer.
            if stdin.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });
    let mut output = BufReader::with_capacity(CHUNK, child.stdout.take().context("a piped standard output")?);
    let (status, headers) = head(&mut output).await?;
    let mut left = cut;
    let bytes = stream::unfold((output, child, false), move |(mut output, child, over)| {
        let mut chunk = vec![0; CHUNK];
        let most = left.unwrap_or(CHUNK).min(CHUNK);
        let broken = most == 0;
        chunk.truncate(most);
        let left = &mut left;
        *left = left.map(|left| left.saturating_sub(most));
        async move {
            if over {
                return None;
            }
            if broken {
                return Some((Err(std::io::Error::other("cut off")), (output, child, true)));
            }
            match output.read(&mut chunk).await {
                Ok(0) => None,
                Ok(length) => {
                    chunk.truncate(length);
                    Some((Ok(Bytes::from(chunk)), (output, child, false)))
                }
                Err(error) => Some((Err(error), (output, child, true))),
            }
        }
    });
    let mut response = Response::new(Body::from_stream(bytes));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Reads the head of a CGI answer.
async fn head(output: &mut BufReader<tokio::process::ChildStdout>) -> Result<(StatusCode, HeaderMap)> {
    let (mut status, mut headers) = (StatusCode::OK, HeaderMap::new());
    loop {
        let mut line = String::new();
        ensure!(output.read_line(&mut line).await? > 0, "git http-backend ended before its answer began");
        let line = line.trim_end();
        if line.is_empty() {
            return Ok((status, headers));
        }
        let Some((name, value)) = line.split_once(": ") else { bail!("git http-backend said `{line}`") };
        if name.eq_ignore_ascii_case("status") {
            status = value.split(' ').next().unwrap_or_default().parse()?;
        } else {
            headers.insert(name.parse::<HeaderName>()?, HeaderValue::from_str(value)?);
        }
    }
}

fn percent_decoded(path: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, tail @ ..]) = (first, tail) {
            let hex = [*high, *low];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex)?, 16)?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Ok(String::from_utf8(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{git_server::Content, process, wait};

    #[test]
    fn a_password_is_encoded_as_browsers_do_it() {
        for (user, token, expected) in
            [("Aladdin", "open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), ("a", "", "YTo="), ("ab", "", "YWI6")]
        {
            assert_eq!(basic(user, token), format!("Basic {expected}"));
        }
    }

    #[tokio::test]
    async fn whoever_has_the_password_clones_and_pushes_and_nobody_else() -> Result<()> {
        let token = secrets::mint(Kind::GitToken);
        let server = WebServer::private("ann", &token).await?;
        let big = vec![b'x'; 3_000_000];
        server.repositories().add("team/app.git", "trunk", &[Content::File("big", &big)]).await?;
        let folder = crate::product::scratch()?;
        let run = async |args: &[&str]| {
            let mut git = git(folder.path());
            git.current_dir(folder.path()).env("GIT_TERMINAL_PROMPT", "0").args(args);
            process::run(&mut git, b"", wait::SHORT).await
        };
        let refused = run(&["clone", &server.url("team/app.git"), "no"]).await?;
        assert_ne!(refused.code, Some(0));
        let with = server.url("team/app.git").replace("http://", &format!("http://ann:{token}@"));
        run(&["clone", "-q", &with, "yes"]).await?.success()?;
        let identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
        let commit = [&["-C", "yes"][..], &identity, &["commit", "-q", "--allow-empty", "-m", "mine"]].concat();
        run(&commit).await?.success()?;
        run(&["-C", "yes", "push", "-q"]).await?.success()?;
        let pushed = run(&["-C", "yes", "rev-parse", "HEAD"]).await?.success()?;
        assert_eq!(server.repositories().tip("team/app.git", "trunk").await?.as_deref(), Some(pushed.trim()));
        assert!(
            server.seen().iter().any(|seen| seen.status == 401) && server.seen().iter().any(|seen| seen.status == 200)
        );

        server.reply(Reply::CutAfter(400));
        let cut = run(&["clone", &with, "cut"]).await?;
        assert_ne!(cut.code, Some(0), "{cut}");
        server.reply(Reply::Redirect("http://127.0.0.1:1/elsewhere".into()));
        let lost = run(&["clone", &with, "lost"]).await?;
        assert!(lost.stderr.contains("127.0.0.1 port 1"), "{lost}");
        Ok(())
    }
}
