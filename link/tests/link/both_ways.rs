//! What an honest link carries, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::routing::{any, post as route_post};
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use http::StatusCode;
use http_body_util::BodyExt;
use link::{Closed, Limits, RequestError};
use tokio::sync::{Mutex, Notify, oneshot};

use crate::support::{Dropped, End, endless, get, pair, post, text};

fn echo() -> Router {
    Router::new().route("/echo", route_post(async |request: Request| request.into_body()))
}

/// 20 chunks of 4 kB, one after the other.
fn chunks(fill: u8) -> Body {
    Body::from_stream(stream::iter((0..20).map(move |_| Ok::<_, std::io::Error>(Bytes::from(vec![fill; 4000])))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_each_way_at_once() {
    let limits = Limits { outbound_streams: 200, ..Limits::default() };
    let (gateway, sled) = pair(echo(), echo(), limits).await;
    let calls = (0..200_u8).flat_map(|n| [(&gateway, n), (&sled, n)]).map(async |(end, n)| {
        let response = end.link.request(post("/echo", chunks(n))).await.unwrap();
        let echoed = response.into_body().collect().await.unwrap().to_bytes();
        assert!(echoed.len() == 80_000 && echoed.iter().all(|byte| *byte == n), "stream {n}");
    });
    future::join_all(calls).await;
}

#[tokio::test]
async fn the_routers_own_routes_and_answers_stand() {
    let routes = Router::new().route("/turns/{id}", any(async |path: MatchedPath| path.as_str().to_owned()));
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    assert_eq!(text(gateway.link.request(get("/turns/5")).await.unwrap()).await, "/turns/{id}");
    assert_eq!(gateway.link.request(get("/other")).await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(gateway.link.request(get("/v1/ping")).await.unwrap().status(), StatusCode::NO_CONTENT);
}

/// More than this may not lie between a writer and a reader that does not read: a window, and the buffers on the way.
const IN_FLIGHT: usize = 1024 * 1024;

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_the_writer_back() {
    let (chunks, taken) = endless();
    let chunks = Arc::new(Mutex::new(Some(chunks)));
    let routes = Router::new().route("/", any(async move || Body::from_stream(chunks.lock().await.take().unwrap())));
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    let mut body = gateway.link.request(get("/")).await.unwrap().into_body().into_data_stream();
    let mut read = 0;
    for _ in 0..3 {
        // On a paused clock this returns when nothing moves any more.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let taken = taken.load(Ordering::Relaxed);
        assert!((1..IN_FLIGHT).contains(&(taken - read)), "{} bytes in flight", taken - read);
        while read < taken {
            read += body.next().await.unwrap().unwrap().len();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_read_holds_the_request_back() {
    let routes = Router::new().route("/", any(async |_: Request| future::pending::<()>().await));
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    let (chunks, taken) = endless();
    let request = gateway.link.request(post("/", Body::from_stream(chunks)));
    assert!(tokio::time::timeout(Duration::from_secs(1), request).await.is_err());
    let taken = taken.load(Ordering::Relaxed);
    assert!((1..IN_FLIGHT).contains(&taken), "{taken} bytes in flight");
}

/// A route that tells when it begins and when it is dropped, and never answers; and one that answers without end.
fn stuck() -> (Router, Arc<Notify>, oneshot::Receiver<()>) {
    let begun = Arc::new(Notify::new());
    let (dropped, told) = Dropped::new();
    let state = Arc::new(Mutex::new(Some(dropped)));
    let notify = begun.clone();
    let routes = Router::new()
        .route(
            "/stuck",
            any(async move || {
                let _dropped = state.lock().await.take();
                notify.notify_one();
                future::pending::<()>().await;
            }),
        )
        .route("/endless", any(async || Body::from_stream(endless().0)))
        .route("/silent", any(async || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())))
        .route("/panics", any(async || -> () { panic!("a handler's fault") }));
    (routes, begun, told)
}

#[tokio::test]
async fn an_answer_before_the_requests_end_is_whole() {
    const LENGTH: usize = 8 * 1024 * 1024;
    // The handler takes nothing of the request; its answer is far more than the buffers hold.
    let answer = || stream::iter((0..LENGTH / 8192).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[7; 8192]))));
    let routes = Router::new().route("/", any(async move || Body::from_stream(answer())));
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    for _ in 0..5 {
        let request = post("/", Body::from_stream(endless().0));
        let body = gateway.link.request(request).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), LENGTH);
    }
}

#[tokio::test]
async fn a_cancelled_request_frees_its_stream_and_drops_its_handler() {
    let (routes, begun, dropped) = stuck();
    let limits = Limits { outbound_streams: 1, ..Limits::default() };
    let (gateway, _sled) = pair(Router::new(), routes, limits).await;
    tokio::select! {
        _ = gateway.link.request(get("/stuck")) => panic!("it never answers"),
        () = begun.notified() => {}
    }
    dropped.await.unwrap();
    // The only place for a stream is free again, also after bodies that were not read to their end.
    for path in ["/endless", "/silent", "/endless", "/v1/ping"] {
        assert!(gateway.link.request(get(path)).await.unwrap().status().is_success(), "{path}");
    }
}

#[tokio::test]
async fn a_stream_past_the_limit_is_refused_and_the_link_goes_on() {
    let (routes, begun, dropped) = stuck();
    let limits = Limits { inbound_streams: 1, ..Limits::default() };
    let (gateway, _sled) = pair(Router::new(), routes, limits).await;
    let first = gateway.link.clone();
    let first = tokio::spawn(async move { first.request(get("/stuck")).await.map(drop) });
    begun.notified().await;
    assert!(matches!(gateway.link.request(get("/v1/ping")).await, Err(RequestError::Dropped)));
    first.abort();
    dropped.await.unwrap();
    // The handler is gone before its task is: its place may need another moment.
    while gateway.link.request(get("/v1/ping")).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_without_an_answer_hold_no_other_up() {
    let (routes, begun, _dropped) = stuck();
    let limits = Limits { outbound_streams: 384, ..Limits::default() };
    let (gateway, _sled) = pair(Router::new(), routes, limits).await;
    let mut waiting = tokio::task::JoinSet::new();
    // More than yamux lets wait for their first frame.
    for _ in 0..380 {
        let link = gateway.link.clone();
        waiting.spawn(async move { link.request(get("/stuck")).await.map(drop) });
        tokio::time::timeout(Duration::from_secs(10), begun.notified()).await.expect("a request is held up");
    }
    assert!(gateway.link.request(get("/v1/ping")).await.is_ok());
    assert!(waiting.try_join_next().is_none());
}

#[tokio::test]
async fn a_handler_that_panics_drops_its_request_alone() {
    let (routes, ..) = stuck();
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    assert!(matches!(gateway.link.request(get("/panics")).await, Err(RequestError::Dropped)));
    assert!(gateway.link.request(get("/v1/ping")).await.is_ok());
}

/// Ends a link in the given way while a request waits and a body streams: all of it fails at once, both drivers return.
async fn ends(how: impl FnOnce(&End, End), here: Closed, there: Option<Closed>) {
    let (routes, begun, dropped) = stuck();
    let (gateway, sled) = pair(Router::new(), routes, Limits::default()).await;
    let waiting = gateway.link.clone();
    let waiting = tokio::spawn(async move { waiting.request(get("/stuck")).await.map(drop) });
    let body = gateway.link.request(get("/silent")).await.unwrap().into_body();
    begun.notified().await;
    let far = sled.link.clone();
    how(&gateway, sled);
    let RequestError::Closed(reason) = waiting.await.unwrap().unwrap_err() else { panic!("another error") };
    assert_eq!(reason, here);
    assert!(body.collect().await.is_err());
    dropped.await.unwrap();
    assert_eq!(gateway.link.closed().await, here);
    assert_eq!(gateway.driver.await.unwrap(), here);
    assert!(matches!(gateway.link.request(get("/v1/ping")).await, Err(RequestError::Closed(_))));
    if let Some(there) = there {
        assert_eq!(far.closed().await, there);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_fails_with_closed_when_the_peer_vanishes() {
    ends(|_, sled| drop(sled), Closed::Peer, Some(Closed::Local)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_both_sides() {
    ends(
        |gateway, sled| {
            gateway.link.close();
            sled.driver.detach();
        },
        Closed::Local,
        Some(Closed::Peer),
    )
    .await;
}

#[tokio::test]
async fn an_aborted_driver_closes_its_link() {
    let (gateway, sled) = pair(Router::new(), Router::new(), Limits::default()).await;
    drop(gateway.driver);
    assert_eq!(gateway.link.closed().await, Closed::Local);
    assert_eq!(sled.driver.await.unwrap(), Closed::Peer);
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_lives_on() {
    let (gateway, sled) = pair(Router::new(), Router::new(), Limits::default()).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert!(!gateway.driver.is_finished() && !sled.driver.is_finished());
    assert!(gateway.link.request(get("/v1/ping")).await.is_ok());
}
