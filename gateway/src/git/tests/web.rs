//! The way to remotes behind web servers.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{extract::State, http::header, response::IntoResponse};
use futures_util::StreamExt;
use tokio::net::TcpListener;

use super::*;

/// What a server was asked.
type Heard = (String, HeaderMap, Bytes);

/// A web server that answers everything alike, and remembers what it was asked.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// Makes the answer to the request with these headers.
type Answer = Arc<dyn Fn(&HeaderMap) -> http::Response<Body> + Send + Sync>;

impl Server {
    async fn start(answer: impl Fn(&HeaderMap) -> http::Response<Body> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let answer: Answer = Arc::new(answer);
        let router = Router::new().fallback(remember).with_state((Arc::clone(&heard), answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, heard }
    }

    fn scene(&self) -> Scene {
        Scene::of(&format!("http://{}/team/app.git", self.address), "")
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("nobody panicked").clone()
    }

    /// The credentials that it was shown.
    fn credentials(&self) -> Vec<Option<String>> {
        let shown = |(_, headers, _): &Heard| Some(headers.get(header::AUTHORIZATION)?.to_str().ok()?.to_owned());
        self.heard().iter().map(shown).collect()
    }

    fn uri(&self, below: &str) -> String {
        format!("/git/web/{}/team/app.git{below}", self.address)
    }
}

async fn remember(
    State((heard, answer)): State<(Arc<Mutex<Vec<Heard>>>, Answer)>,
    request: axum::extract::Request,
) -> http::Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let response = answer(&parts.headers);
    heard.lock().expect("nobody panicked").push((format!("{} {}", parts.method, parts.uri), parts.headers, body));
    response
}

const REFS: &str = "/info/refs?service=git-upload-pack";

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::empty()).expect("it is a request")
}

fn done(_: &HeaderMap) -> http::Response<Body> {
    let headers = [
        (header::CONTENT_TYPE, "application/x-git-upload-pack-result"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::SET_COOKIE, "session=1"),
        (header::WWW_AUTHENTICATE, "Basic"),
        (header::SERVER, "x"),
    ];
    (headers, "PACK").into_response()
}

fn basic(pair: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

#[tokio::test]
async fn a_request_passes_with_our_credential_and_without_anything_of_the_containers_own() {
    let server = Server::start(done).await;
    let scene = server.scene();
    scene.store(&format!("git:http://{}", server.address), "ann:t0ken");
    let request = Request::post(server.uri("/git-upload-pack"))
        .header(header::HOST, "127.0.0.1:2224")
        .header(header::AUTHORIZATION, "Basic Zm9yZ2Vk")
        .header(header::PROXY_AUTHORIZATION, "Basic Zm9yZ2Vk")
        .header(header::COOKIE, "forged=1")
        .header("x-forwarded-for", "10.0.0.1")
        .header("x-http-method-override", "DELETE")
        .header(header::CONNECTION, "close, authorization")
        .header(header::EXPECT, "100-continue")
        .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
        .header(header::CONTENT_ENCODING, "gzip")
        .header(header::ACCEPT, "application/x-git-upload-pack-result")
        .header("git-protocol", "version=2")
        .body(Body::from(&b"\x1f\x8b\0\xff packed"[..]))
        .expect("it is a request");
    let (status, headers, body) = scene.said(request).await;
    assert_eq!((status, body.as_deref()), (StatusCode::OK, Some(&b"PACK"[..])));
    let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-type"]);

    let heard = server.heard();
    let [(line, headers, body)] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(line, "POST /team/app.git/git-upload-pack");
    assert_eq!(body.as_ref(), b"\x1f\x8b\0\xff packed", "what is packed passes as it is");
    let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
    names.sort_unstable();
    let expected =
        ["accept", "authorization", "content-encoding", "content-type", "git-protocol", "host", "transfer-encoding"];
    assert_eq!(names, expected);
    assert_eq!(headers["host"], server.address.to_string().as_str());
    assert_eq!(headers["authorization"], basic("ann:t0ken").as_str());
    assert_eq!(scene.used().await, [(Service::Fetch, Part::Objects, By::Container, Some((Outcome::Done, 11, 4)))]);
}

#[tokio::test]
async fn the_nearest_credential_counts_and_is_read_anew_each_time() {
    let server = Server::start(done).await;
    let scene = server.scene();
    let (host, uri) = (format!("git:http://{}", server.address), server.uri(REFS));
    let ask = async || assert_eq!(scene.said(get(&uri)).await.0, StatusCode::OK);
    ask().await;
    scene.store(&host, "ann:one");
    scene.store(&format!("{host}/tea"), "neighbour:x");
    ask().await;
    scene.store(&host, "ann:two");
    ask().await;
    scene.store(&format!("{host}/team"), "bob:three");
    ask().await;
    scene.secrets.remove(&format!("{host}/team")).expect("it is there");
    ask().await;
    let expected =
        [None].into_iter().chain(["ann:one", "ann:two", "bob:three", "ann:two"].map(|pair| Some(basic(pair))));
    assert_eq!(server.credentials(), expected.collect::<Vec<_>>());
    assert_eq!(scene.outcomes().await, [Outcome::Done; 5]);
}

#[tokio::test]
async fn what_is_not_the_repository_itself_never_gets_to_a_server() {
    let server = Server::start(done).await;
    let scene = server.scene();
    scene.store(&format!("git:http://{}", server.address), "ann:t0ken");
    let (status, headers, body) = scene.said(get(&server.uri("-other/info/refs?service=git-upload-pack"))).await;
    assert_eq!((status, text(body).as_str()), (StatusCode::FOUND, ""));
    let own = format!("http://{}/team/app.git-other/info/refs?service=git-upload-pack", server.address);
    assert_eq!(headers["location"], own.as_str());
    assert!(!headers.contains_key("authorization"));
    for (uri, status) in [
        (server.uri("/info/refs"), StatusCode::FORBIDDEN),
        (server.uri("/HEAD"), StatusCode::FORBIDDEN),
        (server.uri("/info/lfs/objects/batch"), StatusCode::NOT_FOUND),
        (format!("/git/web/{}/team/other.git{REFS}", server.address), StatusCode::FORBIDDEN),
        (format!("/git/web/localhost:{}/team/app.git{REFS}", server.address.port()), StatusCode::FORBIDDEN),
        (format!("/git/web/{}/team/%61pp.git{REFS}", server.address), StatusCode::FORBIDDEN),
        (format!("/git/web/{}/team/x/../app.git{REFS}", server.address), StatusCode::FORBIDDEN),
        ("/git/web/".to_owned(), StatusCode::NOT_FOUND),
        ("/git/x".to_owned(), StatusCode::NOT_FOUND),
    ] {
        assert_eq!(scene.said(get(&uri)).await.0, status, "{uri}");
    }
    let elsewhere = scene.git.router(Uuid::now_v7());
    let answer = elsewhere.oneshot(get(&server.uri(REFS))).await.expect("a router does not fail");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN, "another project has another remote, or none");
    assert_eq!(server.heard().len(), 0);
    assert_eq!(scene.used().await, []);
}

#[tokio::test]
async fn redirects_are_not_followed_and_errors_are_said_in_our_words() {
    let trap = Server::start(done).await;
    let to = format!("http://{}/team/app.git/info/refs", trap.address);
    let away =
        Server::start(move |_| (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to.clone())]).into_response()).await;
    let answer = async |server: &Server| {
        let scene = server.scene();
        scene.store(&format!("git:http://{}", server.address), "ann:t0ken");
        let (status, headers, body) = scene.said(get(&server.uri(REFS))).await;
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
        assert!(!headers.contains_key("www-authenticate") && !headers.contains_key("location"));
        let body = text(body);
        assert!(
            !body.contains("t0ken") && !body.contains("YW5u") && body.ends_with('\n') && body.lines().count() == 1,
            "{body}"
        );
        (status, body.replace(&server.address.to_string(), "HERE"), scene.outcomes().await)
    };
    let (status, said, outcomes) = answer(&away).await;
    assert_eq!((status, outcomes), (StatusCode::BAD_GATEWAY, vec![Outcome::Failed]));
    assert!(said.starts_with("the git server `HERE` sends us elsewhere (to `127.0.0.1`)"), "{said}");
    assert_eq!(trap.heard().len(), 0);

    let echo = |status: StatusCode| {
        move |headers: &HeaderMap| {
            let page = format!("{headers:?} ann:t0ken YW5uOnQwa2Vu");
            (status, [(header::WWW_AUTHENTICATE, "Basic")], page).into_response()
        }
    };
    for (status, told, outcome, words) in [
        (StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, Outcome::Denied, "does not take the credential"),
        (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN, Outcome::Denied, "answers 403 Forbidden"),
        (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND, Outcome::Failed, "answers 404 Not Found"),
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::BAD_GATEWAY,
            Outcome::Failed,
            "answers 500 Internal Server Error",
        ),
    ] {
        let server = Server::start(echo(status)).await;
        let (found, said, outcomes) = answer(&server).await;
        assert_eq!((found, outcomes), (told, vec![outcome]));
        assert!(said.contains(words), "{said}");
    }
    let server = Server::start(echo(StatusCode::UNAUTHORIZED)).await;
    let said = text(server.scene().said(get(&server.uri(REFS))).await.2);
    assert!(said.contains("wants a credential") && said.contains(&format!("git:http://{}", server.address)), "{said}");
}

#[tokio::test]
async fn private_addresses_and_silent_servers_are_not_reached() {
    for (remote, names, words) in [
        ("https://10.0.0.1/a", &[][..], "private network (10.0.0.1)"),
        ("https://evil.example/a", &[("evil.example", "127.0.0.1")][..], "private network (127.0.0.1)"),
        ("https://gone.example/a", &[("evil.example", "127.0.0.1")][..], "cannot be found"),
        ("http://127.0.0.1:1/a", &[][..], "could not be reached"),
    ] {
        let scene = Scene::with(remote, "", names);
        let rest = remote.split_once("://").expect("it has a scheme").1;
        let (_, _, body) = scene.said(get(&format!("/git/web/{rest}{REFS}"))).await;
        let said = text(body);
        assert!(said.contains(words), "{remote}: {said}");
        // What may not be reached leaves nothing in the journal.
        let expected = if words == "could not be reached" { vec![Outcome::Unreachable] } else { Vec::new() };
        assert_eq!(scene.outcomes().await, expected, "{remote}");
    }
}

#[tokio::test]
async fn a_use_that_cannot_be_journaled_does_not_take_place() {
    let server = Server::start(done).await;
    let scene = server.scene();
    scene.journal.close().await;
    let (status, _, body) = scene.said(get(&server.uri(REFS))).await;
    assert_eq!((status, server.heard().len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert!(text(body).contains("could not be journaled"));
}

#[tokio::test]
async fn a_credential_of_the_wrong_form_is_not_used() {
    let server = Server::start(done).await;
    let scene = server.scene();
    let name = format!("git:http://{}", server.address);
    scene.store(&name, "ann:t0ken");
    // Somebody wrote into the folder by hand.
    let folder = scene.folder.path().join("state/secrets");
    let file =
        std::fs::read_dir(&folder).expect("it is there").next().expect("it has one").expect("it is readable").path();
    std::fs::write(file, "t0ken-without-a-name").expect("it can be written");
    let (status, _, body) = scene.said(get(&server.uri(REFS))).await;
    let said = text(body);
    assert_eq!((status, server.heard().len()), (StatusCode::FORBIDDEN, 0));
    assert!(said.contains("is of no use") && !said.contains("t0ken"), "{said}");
    assert_eq!(scene.outcomes().await, []);
}

#[tokio::test]
async fn an_answer_of_a_fixed_length_is_done_also_over_a_real_connection() {
    let server = Server::start(done).await;
    let scene = server.scene();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    let router = scene.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = reqwest::Client::builder().no_proxy().build().expect("it can be made");
    let answer = client.get(format!("http://{address}{}", server.uri(REFS))).send().await.expect("it answers");
    assert_eq!(answer.text().await.expect("it is whole"), "PACK");
    assert_eq!(scene.outcomes().await, [Outcome::Done]);
}

#[tokio::test]
async fn a_burst_of_requests_ends_before_the_journal_is_touched() {
    let server = Server::start(done).await;
    let scene = server.scene();
    let mut busy = None;
    for _ in 0..200 {
        let (status, _, body) = scene.said(get(&server.uri(REFS))).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            busy = Some(text(body));
            break;
        }
    }
    assert!(busy.expect("it ends").contains("too often"));
    let uses = scene.git.audit.uses(scene.project).await.expect("it can be read");
    assert_eq!(usize::try_from(uses.all), Ok(server.heard().len()));
}

#[tokio::test]
async fn what_is_broken_off_is_journaled_as_cut_off() {
    let cut = Arc::new(tokio::sync::Notify::new());
    let waiting = Arc::clone(&cut);
    let server = Server::start(move |_| {
        let waiting = Arc::clone(&waiting);
        let end = futures_util::stream::once(async move {
            waiting.notified().await;
            Err(std::io::Error::other("gone"))
        });
        let parts = futures_util::stream::iter([Ok(Bytes::from_static(b"PA"))]).chain(end);
        Body::from_stream(parts).into_response()
    })
    .await;
    let scene = server.scene();
    let answer = scene.ask(get(&server.uri(REFS))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    cut.notify_one();
    assert!(answer.into_body().collect().await.is_err(), "what is cut off is not whole");

    let endless = Server::start(|_| {
        let part = || Ok::<_, std::io::Error>(Bytes::from_static(b"more"));
        Body::from_stream(futures_util::stream::repeat_with(part)).into_response()
    })
    .await;
    let gone = endless.scene();
    let mut body = gone.ask(get(&endless.uri(REFS))).await.into_body().into_data_stream();
    body.next().await.expect("it has begun").expect("it goes on");
    // The link is cut.
    drop(body);
    assert_eq!((scene.outcomes().await, gone.outcomes().await), (vec![Outcome::CutOff], vec![Outcome::CutOff]));
}

#[tokio::test]
async fn both_bodies_stream_and_a_project_has_so_many_requests_under_way() {
    // The server begins its answer before it has the whole request.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let router = Router::new().fallback(async move |request: axum::extract::Request| {
        counted.fetch_add(1, Ordering::SeqCst);
        Body::from_stream(request.into_body().into_data_stream())
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    let scene = Scene::of(&format!("http://{address}/a"), "");
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let body = Body::from_stream(futures_util::stream::poll_fn(move |context| receiver.poll_recv(context)));
    let post =
        |body| Request::post(format!("/git/web/{address}/a/git-receive-pack")).body(body).expect("it is a request");
    sender.send(Ok(Bytes::from_static(b"one"))).await.expect("it is taken");
    let mut answer = scene.ask(post(body)).await.into_body().into_data_stream();
    assert_eq!(answer.next().await.expect("it is there").expect("it goes on"), "one");
    sender.send(Ok(Bytes::from_static(b"two"))).await.expect("it is taken");
    assert_eq!(answer.next().await.expect("it is there").expect("it goes on"), "two");

    let mut others = Vec::new();
    for _ in 1..super::super::AT_ONCE {
        let answer =
            scene.ask(post(Body::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>()))).await;
        assert_eq!(answer.status(), StatusCode::OK);
        others.push(answer);
    }
    assert_eq!(scene.ask(post(Body::empty())).await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(begun.load(Ordering::SeqCst), super::super::AT_ONCE);
    drop((others, sender));
    assert!(answer.next().await.is_none());
    assert_eq!(scene.ask(post(Body::empty())).await.status(), StatusCode::OK);
    scene.tasks.shutdown(Duration::from_secs(5)).await.expect("everything ends");
}
