//! Git over the web: the smart-HTTP services of the project's own repository, with the credential added on the way out.
//!
//! Git in the container is told to ask here in place of the remote (`insteadOf`). That rule goes by prefixes, so it catches
//! neighbours too (`app.git` and `app.git-other`): those are sent to their own address, without a credential. No redirect is followed.

use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Limited};
use link::git::paths;
use reqwest::Url;
use tokio::{sync::mpsc, time::timeout};

use super::{
    BODY_MAX, Door, Git, Said,
    audit::{By, Outcome, Part, Service, Use},
    credentials::WebCredential,
    refused,
    remote::{Remote, WebRemote},
    said, stalled,
    trouble::Trouble,
    unjournaled,
};
use crate::{refusal::Refusal, text};

/// The longest time in which nothing moves.
const SILENCE: Duration = Duration::from_mins(10);
/// Pieces of an answer that wait for whoever reads it.
const CHUNKS: usize = 8;

/// What of a request's headers smart HTTP needs.
const ASKED: [HeaderName; 4] =
    [header::ACCEPT, header::ACCEPT_ENCODING, header::USER_AGENT, HeaderName::from_static("git-protocol")];
/// What of them is about a body.
const ASKED_OF_BODY: [HeaderName; 3] = [header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::CONTENT_TYPE];
/// What of an answer's headers smart HTTP needs. Not its length: whoever knows that stops at the last byte, and does not wait for the end
/// that is journaled.
const ANSWERED: [HeaderName; 5] =
    [header::CACHE_CONTROL, header::CONTENT_ENCODING, header::CONTENT_TYPE, header::EXPIRES, header::PRAGMA];

/// What a request is.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// A service of the project's own repository.
    Service(Service, Part),
    /// Something of a neighbour, which is at this address.
    Neighbour(String),
    /// A service of the project's own repository, which is spelt otherwise: with or without `.git`.
    OtherSpelling,
    /// Nothing that passes here.
    Nothing(StatusCode, &'static str),
}

/// Tells what a request for `rest`, which is `<authority>/<path>`, is to the project that has this remote. All other spellings of
/// the same place are another place.
fn asked(remote: &WebRemote, method: &Method, rest: &str, query: Option<&str>) -> Asked {
    let nothing = |what| Asked::Nothing(StatusCode::FORBIDDEN, what);
    let own = format!("{}{}", remote.authority(), remote.path);
    let twin = own.strip_suffix(".git").map_or_else(|| format!("{own}.git"), str::to_owned);
    if let Some("/info/refs" | "/git-upload-pack" | "/git-receive-pack") = rest.strip_prefix(&twin) {
        return Asked::OtherSpelling;
    }
    let Some(below) = rest.strip_prefix(&own) else { return nothing("that is not this project's repository") };
    let neighbour = || {
        if *method != Method::GET {
            return nothing("that is not this project's repository");
        }
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Asked::Neighbour(format!("{}://{rest}{query}", remote.scheme.as_str()))
    };
    if let Some((service, part)) = service(method, below, query) {
        return Asked::Service(service, part);
    }
    match below {
        "/info/refs" => nothing("only git's smart protocol passes here"),
        below if below.starts_with("/info/lfs/") => {
            Asked::Nothing(StatusCode::NOT_FOUND, "files of Git LFS do not pass here; they stay pointers")
        }
        // A repository below the repository's own path.
        below if below.ends_with("/info/refs") => neighbour(),
        below if below.is_empty() || below.starts_with('/') => nothing("only git's smart protocol passes here"),
        _ => neighbour(),
    }
}

/// Tells which service is asked for below a repository's address.
pub(super) fn service(method: &Method, below: &str, query: Option<&str>) -> Option<(Service, Part)> {
    Some(match (method, below, query) {
        (&Method::GET, "/info/refs", Some("service=git-upload-pack")) => (Service::Fetch, Part::References),
        (&Method::GET, "/info/refs", Some("service=git-receive-pack")) => (Service::Push, Part::References),
        (&Method::POST, "/git-upload-pack", None) => (Service::Fetch, Part::Objects),
        (&Method::POST, "/git-receive-pack", None) => (Service::Push, Part::Objects),
        _ => return None,
    })
}

/// Serves everything below [`paths::WEB`].
pub async fn web(State(door): State<Arc<Door>>, request: Request) -> Response {
    let Some(Remote::Web(remote)) = door.remote() else {
        return said(StatusCode::FORBIDDEN, "this project has no remote repository that is reached over the web")
            .into_response();
    };
    let rest = request.uri().path().strip_prefix(paths::WEB).unwrap_or_default();
    match asked(&remote, request.method(), rest, request.uri().query()) {
        Asked::Service(service, part) => forward(&door, &remote, service, part, request).await,
        Asked::Neighbour(address) => (StatusCode::FOUND, [(header::LOCATION, address)]).into_response(),
        Asked::OtherSpelling => {
            let sentence = format!("this project's remote is {}; use that spelling", text::code(&remote.to_string()));
            said(StatusCode::FORBIDDEN, &sentence).into_response()
        }
        Asked::Nothing(status, sentence) => said(status, sentence).into_response(),
    }
}

async fn forward(door: &Door, remote: &WebRemote, service: Service, part: Part, request: Request) -> Response {
    let place = match door.place() {
        Ok(place) => place,
        Err(busy) => return busy.into_response(),
    };
    // What may not be reached is no use of anything.
    if let Err(refusal) = door.git.reach.check(&Remote::Web(remote.clone())).await {
        return refused(&refusal).into_response();
    }
    let credential = match door.git.credentials.web(remote) {
        Ok(credential) => credential,
        Err(refusal) => return refused(&refusal).into_response(),
    };
    let used = match door.git.audit.begin(door.project, (service, part), remote.to_string(), By::Container).await {
        Ok(used) => used,
        Err(refusal) => return unjournaled(&refusal).into_response(),
    };
    let answer = match send(&door.git, remote, (service, part), credential, request, &used.sent()).await {
        Ok(answer) => answer,
        Err(trouble) => return end(used, trouble.outcome(), trouble.said(remote)).await.into_response(),
    };
    let (status, headers) = head(&answer);
    let (chunks, passed) = mpsc::channel(CHUNKS);
    // A task of its own: an answer that nobody reads must not keep its place for good.
    door.git.tasks.spawn("git over the web", async move {
        let last = match pass(answer.bytes_stream(), &chunks, &used.received()).await {
            // The end that nobody knows of is none.
            Ok(()) => used.end(Outcome::Done).await.map(|()| None).map_err(io::Error::other),
            Err(error) => {
                drop(used);
                Err(error)
            }
        };
        drop(timeout(SILENCE, chunks.send(last)).await);
        drop(place);
    });
    (status, headers, Body::from_stream(until_the_end(passed))).into_response()
}

/// Pieces of an answer, and its end: without that it was broken off.
type Chunk = io::Result<Option<Bytes>>;

/// Passes an answer on piece by piece, until it has ended or nothing has moved for too long.
async fn pass<E: Error + Send + Sync + 'static>(
    mut answer: impl Stream<Item = Result<Bytes, E>> + Unpin,
    chunks: &mpsc::Sender<Chunk>,
    received: &AtomicU64,
) -> io::Result<()> {
    while let Some(chunk) = timeout(SILENCE, answer.next()).await? {
        let chunk = chunk.map_err(io::Error::other)?;
        received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let heard = timeout(SILENCE, chunks.send(Ok(Some(chunk)))).await?;
        heard.map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
    Ok(())
}

fn until_the_end(passed: mpsc::Receiver<Chunk>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some(passed), |passed| async move {
        let mut passed = passed?;
        match passed.recv().await.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into())) {
            Ok(chunk) => chunk.map(|chunk| (Ok(chunk), Some(passed))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

async fn end(used: Use, outcome: Outcome, answer: Said) -> Said {
    match used.end(outcome).await {
        Ok(()) => answer,
        Err(refusal) => unjournaled(&refusal),
    }
}

/// What of an answer passes beside its body.
pub(super) fn head(answer: &reqwest::Response) -> (StatusCode, HeaderMap) {
    let mut headers = HeaderMap::new();
    for name in ANSWERED {
        if let Some(value) = answer.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    (answer.status(), headers)
}

/// Sends a request; gives an answer that is a success, or why there is none. What is sent is counted in `sent`.
pub(super) async fn send(
    git: &Git,
    remote: &WebRemote,
    (service, part): (Service, Part),
    credential: Option<WebCredential>,
    request: Request,
    sent: &Arc<AtomicU64>,
) -> Result<reqwest::Response, Trouble> {
    let url = address(remote, service, part)?;
    let (parts, body) = request.into_parts();
    let mut headers = HeaderMap::new();
    let with_body = parts.method == Method::POST;
    let asked_of_body = ASKED_OF_BODY.into_iter().filter(|_| with_body);
    for name in ASKED.into_iter().chain(asked_of_body) {
        for value in parts.headers.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    let with_credential = credential.is_some();
    if let Some(credential) = credential {
        headers.insert(header::AUTHORIZATION, credential.basic());
    }
    let mut request = git.client(remote).request(parts.method.clone(), url).headers(headers);
    let too_large = Arc::new(AtomicBool::new(false));
    if with_body {
        let (sent, too_large) = (Arc::clone(sent), Arc::clone(&too_large));
        let body = Limited::new(body, BODY_MAX).into_data_stream().inspect(move |part| match part {
            Ok(part) => drop(sent.fetch_add(part.len() as u64, Ordering::Relaxed)),
            Err(error) => too_large.store(error.is::<http_body_util::LengthLimitError>(), Ordering::Relaxed),
        });
        request = request.body(reqwest::Body::wrap_stream(body));
    }
    let moving = [&**sent];
    let answer = tokio::select! {
        answer = request.send() => answer.map_err(|error| Trouble::unsent(&error, too_large.load(Ordering::Relaxed)))?,
        () = stalled(&moving, SILENCE) => return Err(Trouble::Silent),
    };
    judged(answer, with_credential)
}

fn address(remote: &WebRemote, service: Service, part: Part) -> Result<Url, Trouble> {
    let service = match service {
        Service::Fetch => link::git::Service::UploadPack,
        Service::Push => link::git::Service::ReceivePack,
    };
    let service = service.name();
    let below = if part == Part::References { format!("info/refs?service={service}") } else { service.to_owned() };
    let unusable = |error| Trouble::Refused(Refusal::internal("the repository's address cannot be used", error));
    Url::parse(&format!("{remote}/{below}")).map_err(unusable)
}

/// Passes successes. What else a server says is not passed on: pages about errors may repeat the request, and the credential with it.
fn judged(answer: reqwest::Response, with_credential: bool) -> Result<reqwest::Response, Trouble> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    if status.is_redirection() {
        let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
        return Err(Trouble::Moved(to.and_then(|to| answer.url().join(to).ok()).map(Box::new)));
    }
    Err(match (status, with_credential) {
        (StatusCode::UNAUTHORIZED, true) => Trouble::WrongCredential,
        (StatusCode::UNAUTHORIZED, false) => Trouble::NoCredential,
        (status, _) => Trouble::Status(status),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_given_up() {
        let (chunks, mut passed) = mpsc::channel(1);
        let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(b"x")));
        let received = AtomicU64::new(0);
        let began = tokio::time::Instant::now();
        let ended = pass(endless, &chunks, &received).await.expect_err("nobody reads");
        assert_eq!((ended.kind(), began.elapsed(), received.into_inner()), (io::ErrorKind::TimedOut, SILENCE, 2));
        passed.close();
        let silent = stream::pending::<io::Result<Bytes>>();
        let ended = pass(silent, &chunks, &AtomicU64::new(0)).await.expect_err("nothing comes");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        let gone = pass(stream::iter([Ok::<_, io::Error>(Bytes::new())]), &chunks, &AtomicU64::new(0)).await;
        assert_eq!(gone.expect_err("nobody is there").kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn an_answer_without_its_end_is_broken_off() {
        for (last, whole) in [(Some(Ok(None)), true), (Some(Err(io::ErrorKind::TimedOut.into())), false), (None, false)]
        {
            let (chunks, passed) = mpsc::channel(2);
            chunks.send(Ok(Some(Bytes::from_static(b"x")))).await.expect("there is room");
            if let Some(last) = last {
                chunks.send(last).await.expect("there is room");
            }
            drop(chunks);
            let heard: Vec<_> = until_the_end(passed).collect().await;
            assert_eq!((heard.len() == 1, heard.last().is_some_and(Result::is_ok)), (whole, whole));
        }
    }

    #[test]
    fn exactly_the_services_of_the_repository_itself_pass() {
        let remote = |text: &str| match Remote::parse(text, std::path::Path::new("/")).expect("it is an address") {
            Remote::Web(web) => web,
            other => panic!("{other:?}"),
        };
        let own = remote("https://example.org:8443/team/app.git");
        let nothing = "nothing".to_owned();
        let check = |method: Method, rest: &str, query: Option<&str>| match asked(&own, &method, rest, query) {
            Asked::Service(service, part) => format!("{service:?} {part:?}"),
            Asked::Neighbour(address) => address,
            Asked::OtherSpelling => "other spelling".to_owned(),
            Asked::Nothing(..) => nothing.clone(),
        };
        let base = "example.org:8443/team/app.git";
        let (fetch, push) = (Some("service=git-upload-pack"), Some("service=git-receive-pack"));
        for (method, below, query, expected) in [
            (Method::GET, "/info/refs", fetch, "Fetch References"),
            (Method::GET, "/info/refs", push, "Push References"),
            (Method::POST, "/git-upload-pack", None, "Fetch Objects"),
            (Method::POST, "/git-receive-pack", None, "Push Objects"),
            (Method::GET, "/info/refs", None, "nothing"),
            (Method::GET, "/info/refs", Some("service=git-upload-archive"), "nothing"),
            (Method::GET, "/info/refs", Some("service=git-upload-pack&x=1"), "nothing"),
            (Method::GET, "/info/refs", Some("x=1&service=git-upload-pack"), "nothing"),
            (Method::HEAD, "/info/refs", fetch, "nothing"),
            (Method::POST, "/info/refs", fetch, "nothing"),
            (Method::GET, "/git-upload-pack", None, "nothing"),
            (Method::POST, "/git-upload-pack", Some("x"), "nothing"),
            (Method::POST, "/git-upload-archive", None, "nothing"),
            (Method::GET, "/HEAD", None, "nothing"),
            (Method::GET, "/objects/info/packs", None, "nothing"),
            (Method::POST, "/info/lfs/objects/batch", None, "nothing"),
            (Method::GET, "", None, "nothing"),
            (Method::GET, "/", None, "nothing"),
            (
                Method::GET,
                "//info/refs",
                fetch,
                "https://example.org:8443/team/app.git//info/refs?service=git-upload-pack",
            ),
            (
                Method::GET,
                "-other/info/refs",
                fetch,
                "https://example.org:8443/team/app.git-other/info/refs?service=git-upload-pack",
            ),
            (
                Method::GET,
                "/sub/info/refs",
                fetch,
                "https://example.org:8443/team/app.git/sub/info/refs?service=git-upload-pack",
            ),
            (
                Method::GET,
                "/../b/info/refs",
                fetch,
                "https://example.org:8443/team/app.git/../b/info/refs?service=git-upload-pack",
            ),
            (Method::POST, "-other/git-upload-pack", None, "nothing"),
            (Method::POST, "/../b/git-upload-pack", None, "nothing"),
            (Method::DELETE, "-other", None, "nothing"),
        ] {
            assert_eq!(check(method.clone(), &format!("{base}{below}"), query), expected, "{method} {below}");
        }
        let twin = |own: &str, rest: &str| asked(&remote(own), &Method::GET, rest, fetch) == Asked::OtherSpelling;
        assert!(twin("https://h/app.git", "h/app/info/refs") && twin("https://h/app", "h/app.git/info/refs"));
        assert!(twin("https://h/app", "h/app.git/git-upload-pack"));
        assert!(!twin("https://h/app", "h/app.git-other/info/refs") && !twin("https://h/app", "h/app.git/x/info/refs"));
        for rest in [
            "example.org/team/app.git/info/refs",
            "EXAMPLE.org:8443/team/app.git/info/refs",
            "evil.example/example.org:8443/team/app.git/info/refs",
            "ann@example.org:8443/team/app.git/info/refs",
            "example.org:8443/team/%61pp.git/info/refs",
            "example.org:8443/team/../team/app.git/info/refs",
            "example.org:8443//team/app.git/info/refs",
            "",
        ] {
            assert_eq!(check(Method::GET, rest, fetch), "nothing", "{rest}");
        }
    }
}
