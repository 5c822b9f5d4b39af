//! What a hostile container may send: whole requests as bytes, and links that are cut or not read.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use link::{Hello, Limits, Link, Side};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Barrier, oneshot},
};

use super::*;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a provider was asked: method, target, headers and body.
type Asked = (String, String, HeaderMap, Bytes);

/// A provider that tells what it is asked.
fn telling() -> (mpsc::UnboundedReceiver<Asked>, Router) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let answer = move |request: Request| async move {
        let (parts, body) = request.into_parts();
        match body.collect().await {
            Ok(body) => {
                let asked = (parts.method.to_string(), parts.uri.to_string(), parts.headers, body.to_bytes());
                sender.send(asked).expect("somebody listens");
                ANSWER.into_response()
            }
            Err(_) => StatusCode::BAD_REQUEST.into_response(),
        }
    };
    (receiver, Router::new().fallback(answer))
}

/// Sends bytes to the door, which ask it to close, and reads all that comes back.
async fn raw(setting: &Setting, sent: &[u8]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let router = setting.router.clone();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    // Whoever has refused need not have read all of it.
    stream.write_all(sent).await.ok();
    let mut read = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    closed.expect("it is answered and closed").ok();
    serving.abort();
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn nothing_beside_the_table_gets_to_the_model() {
    let (mut asked, answers) = telling();
    let setting = Setting::of(answers).await;
    for line in [
        "POST /model/v1/x/../messages",
        "POST /model/v1/../v1/messages",
        "POST /model/../v1/messages",
        "POST /model//v1/messages",
        "POST //model/v1/messages",
        "POST /model/v1//messages",
        "POST /model/v1/messages/",
        "POST /model/v1/messages/..",
        "POST /model/v1/messages/../files",
        "POST /model/v1/%6dessages",
        "POST /model/v1%2fmessages",
        "POST /model/%2e%2e/v1/messages",
        "POST /model/v1/messages%2f..%2ffiles",
        "POST /model/v1/messages%00",
        "POST /model/v1/messages;beta",
        "POST /model/v1\\messages",
        "POST /MODEL/v1/messages",
        "POST /model/v1/complete",
        "POST /model/v1/messages/batches",
        "POST /model/v1/files",
        "GET /model/v1/models",
        "GET /model/v1/organizations/api_keys",
        "POST /model/v1/oauth/token",
        "GET /model/v1/messages",
        "HEAD /model/v1/messages",
        "PUT /model/v1/messages",
        "DELETE /model/v1/messages",
        "OPTIONS /model/v1/messages",
        "TRACE /model/v1/messages",
        "PROPFIND /model/v1/messages",
        "GET /model/v1/messages/count_tokens",
        "GET /model",
        "GET /model/",
        "POST http://evil.example.org/model/v1/messages",
        "POST https://evil.example.org/v1/messages",
        "POST evil.example.org/model/v1/messages",
        "CONNECT evil.example.org:443",
        "OPTIONS *",
    ] {
        let read = raw(
            &setting,
            format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes(),
        )
        .await;
        assert!(read.starts_with("HTTP/1.1 4"), "{line}: {read}");
        // Whoever meant the API, and cannot see why, is told.
        if line.contains(" /model/v1/") && !line.starts_with("HEAD") && !line.contains('\\') {
            assert!(read.contains("musher: "), "{line}: {read}");
        }
        assert!(asked.try_recv().is_err(), "{line} got to the model");
    }
    let good = "POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert!(raw(&setting, good.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(asked.recv().await.expect("it is asked").1, "/base/v1/messages");
}

/// However the body is framed, the model gets one request, or none, and nothing that hides behind it.
#[tokio::test]
async fn nothing_is_smuggled_behind_a_request() {
    let (mut asked, answers) = telling();
    let setting = Setting::of(answers).await;
    let hidden = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    for (framing, body, wanted) in [
        ("content-length: 2\r\ncontent-length: 60\r\n", format!("{{}}{hidden}"), None),
        ("content-length: 2, 60\r\n", format!("{{}}{hidden}"), None),
        ("content-length: +2\r\n", format!("{{}}{hidden}"), None),
        ("content-length: -1\r\n", "{}".to_owned(), None),
        ("content-length: 2\r\ncontent-length: 2\r\n", format!("{{}}{hidden}"), Some("{}")),
        ("content-length: 60\r\ntransfer-encoding: chunked\r\n", format!("2\r\n{{}}\r\n0\r\n\r\n{hidden}"), Some("{}")),
        ("transfer-encoding: chunked\r\ncontent-length: 2\r\n", format!("0\r\n\r\n{hidden}"), Some("")),
        ("transfer-encoding: chunked, identity\r\n", format!("0\r\n\r\n{hidden}"), None),
        ("transfer-encoding: xchunked\r\n", format!("0\r\n\r\n{hidden}"), None),
        ("transfer-encoding : chunked\r\n", format!("0\r\n\r\n{hidden}"), None),
        ("transfer-encoding: chunked\r\n", format!("FFFFFFFFFFFFFFFFF\r\n{hidden}"), None),
        ("transfer-encoding: chunked\r\n", format!("2\r\n{{}}\r\n0\r\nx-api-key: inside\r\n\r\n{hidden}"), Some("{}")),
        ("x: y\r\n z: w\r\ncontent-length: 2\r\n", "{}".to_owned(), None),
    ] {
        let text = format!("POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{framing}\r\n{body}");
        let read = raw(&setting, text.as_bytes()).await;
        let seen = asked.try_recv().ok();
        let got = seen.as_ref().map(|(_, _, _, body)| std::str::from_utf8(body).expect("it is text"));
        assert_eq!(got, wanted, "{framing}: {read}");
        assert!(asked.try_recv().is_err(), "{framing}: a second request got to the model");
        if let Some((method, target, headers, _)) = seen {
            assert_eq!((method.as_str(), target.as_str()), ("POST", "/base/v1/messages"));
            let framings = headers.get_all(header::CONTENT_LENGTH).iter().count()
                + headers.get_all(header::TRANSFER_ENCODING).iter().count();
            assert_eq!(framings, 1, "{framing}: {headers:?}");
            assert_eq!(headers.get_all("x-api-key").iter().collect::<Vec<_>>(), ["outside"]);
        }
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_a_word_and_costs_nothing() {
    let (mut asked, answers) = telling();
    let setting = Setting::of(answers).await;
    let over = endpoint::REQUEST_MAX as u64 + 1;
    // Announced, it is not even begun.
    let head =
        format!("POST /model/v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {over}\r\n\r\n");
    let read = raw(&setting, head.as_bytes()).await;
    assert!(read.starts_with("HTTP/1.1 413 ") && read.contains("larger than 32 MiB"), "{read}");
    // In chunks, it ends where it is too long.
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let endless = futures_util::stream::repeat_with(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Infallible>(Bytes::from_static(&PART))
    });
    let request = Request::post("/model/v1/messages").body(Body::from_stream(endless)).expect("it is a request");
    let answer = setting.router.clone().oneshot(request).await.expect("a router always answers");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(sent.load(Ordering::Relaxed) <= endpoint::REQUEST_MAX / PART.len() + 1, "no more of it is read");
    assert!(asked.try_recv().is_err(), "the model got no whole request");
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("nothing is counted");
    assert_eq!(setting.counted().1, 0);
    assert!(!setting.metric("musher_model_requests_total{outcome=\"unreachable\"} 1"), "the model is not to blame");
}

/// The sled's end of a link to the door.
async fn linked(setting: &Setting) -> Link {
    let (here, there) = tokio::io::duplex(256 * 1024);
    let router = setting.router.clone();
    let limits = Limits { inbound_streams: 64, outbound_streams: 384, ..Limits::default() };
    let (ours, theirs) = tokio::join!(
        link::open(here, Side::Gateway, Hello::current(), router, Limits::default()),
        link::open(there, Side::Sled, Hello::current(), Router::new(), limits),
    );
    tokio::spawn(ours.expect("the link opens").1.run());
    let (link, driver) = theirs.expect("the link opens");
    tokio::spawn(driver.run());
    link
}

async fn over(link: &Link) -> Response {
    link.request(request(Method::POST, "/model/v1/messages", "hello")).await.expect("the link answers").map(Body::new)
}

/// Tells when it is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.take().map(|sender| sender.send(()).ok());
    }
}

/// A provider that answers the first request without end, as fast as it is read, and the others at once; how many parts of 64 KiB were taken,
/// and when it was given up.
fn endless() -> (Arc<AtomicUsize>, oneshot::Receiver<()>, Router) {
    let (sender, given_up) = oneshot::channel();
    let (taken, sender) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Some(sender))));
    let counted = Arc::clone(&taken);
    let answer = move || async move {
        let Some(sender) = sender.lock().expect("nobody panics").take() else { return ANSWER.into_response() };
        let dropped = Dropped(Some(sender));
        let parts = futures_util::stream::repeat_with(move || {
            let _until_the_end = &dropped;
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from_static(&PART))
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
    };
    (taken, given_up, Router::new().fallback(answer))
}

#[tokio::test]
async fn who_does_not_read_an_answer_holds_up_that_answer_alone() {
    let (taken, given_up, answers) = endless();
    let setting = Setting::of(answers).await;
    let (link, other) = (linked(&setting).await, linked(&setting).await);
    let unread = over(&link).await;
    assert_eq!(unread.status(), StatusCode::OK);
    // As much as sockets and windows hold, and then no more. Meanwhile others are answered, on this link and on others.
    let mut before = 0;
    loop {
        for link in [&link, &other].into_iter().cycle().take(20) {
            let answer = over(link).await.into_body().collect().await.expect("it can be read").to_bytes();
            assert_eq!(answer, ANSWER);
        }
        let now = taken.load(Ordering::Relaxed);
        assert!(now * PART.len() < 48 << 20, "{now} parts were taken that nobody reads");
        if now == before {
            break;
        }
        before = now;
    }
    // It is still there for whoever reads on.
    let mut body = unread.into_body();
    let mut read = 0;
    while read < (before + 2) * PART.len() {
        read +=
            body.frame().await.expect("there is more").expect("it can be read").into_data().expect("it is data").len();
    }
    drop(body);
    given_up.await.expect("the model hears that nobody reads on");
}

#[tokio::test]
async fn a_link_that_is_cut_ends_the_request_at_the_model_and_is_counted_by_what_was_seen() {
    let (sender, given_up) = oneshot::channel();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let answer = move || async move {
        let dropped = Dropped(sender.lock().expect("nobody panics").take());
        let parts = futures_util::stream::iter([START, TEXT]).map(Ok::<_, Infallible>);
        let parts = parts.chain(futures_util::stream::pending()).map(move |part| {
            let _until_the_end = &dropped;
            part
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
    };
    let setting = Setting::of(Router::new().fallback(answer)).await;
    let link = linked(&setting).await;
    let mut body = over(&link).await.into_body();
    let mut read = 0;
    while read < START.len() + TEXT.len() {
        read +=
            body.frame().await.expect("there is more").expect("it can be read").into_data().expect("it is data").len();
    }
    link.close();
    given_up.await.expect("the model hears of it");
    body.collect().await.expect_err("it is cut off");
    setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
    assert_eq!(setting.counted(), (BEGUN, 1));
}

/// A provider that answers when so many have asked.
fn all_at_once(count: usize) -> Router {
    let barrier = Arc::new(Barrier::new(count));
    let answer = move || async move {
        let parts = futures_util::stream::once(async { Ok::<_, Infallible>(START) }).chain(futures_util::stream::once(
            async move {
                barrier.wait().await;
                Ok([TEXT, END].concat().leak() as &'static str)
            },
        ));
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(parts)).into_response()
    };
    Router::new().fallback(answer)
}

#[tokio::test]
async fn two_hundred_and_fifty_six_streams_pass_at_once_through_one_link_and_one_more_is_told() {
    let setting = Setting::of(all_at_once(AT_ONCE + 1)).await;
    let link = linked(&setting).await;
    let first = futures_util::future::join_all((0..AT_ONCE).map(|_| over(&link))).await;
    assert!(first.iter().all(|answer| answer.status() == StatusCode::OK), "all of them have begun");
    let answer = over(&link).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(answer);
    // Another project has places of its own, and is the one that they all wait for.
    let other = Request::post("/model/v1/messages").body(Body::from("hello")).expect("it is a request");
    let others = setting.proxy.router(Uuid::now_v7()).oneshot(other).await.expect("a router always answers");
    assert_eq!(others.status(), StatusCode::OK);
    let (_, answers) = tokio::join!(
        others.into_body().collect(),
        futures_util::future::join_all(first.into_iter().map(|answer| answer.into_body().collect()))
    );
    for answer in answers {
        assert_eq!(answer.expect("it can be read").to_bytes(), [START, TEXT, END].concat());
    }
    let whole = u64::try_from(AT_ONCE).expect("it is small");
    assert_eq!(setting.counted().1, whole, "each is counted before its end is read");
    assert_eq!(over(&link).await.status(), StatusCode::OK, "their places are free again");
}
