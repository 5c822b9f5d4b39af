//! A peer that means harm: floods, endless heads, broken frames, silence, any bytes at all.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use link::{Closed, Limits, RequestError, Side};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::{DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, against, frame, get, pair, read_frame};

#[tokio::test]
async fn header_floods_and_long_heads_are_refused() {
    let (gateway, _sled) = pair(Router::new(), Router::new(), Limits::default()).await;
    let many = (0..100).fold(Request::builder(), |request, n| request.header(format!("x-{n}"), "1"));
    let long = Request::builder().header("x", "y".repeat(100_000));
    for request in [many, long] {
        let response = gateway.link.request(request.uri("/v1/ping").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert!(gateway.link.request(get("/v1/ping")).await.is_ok());
}

#[tokio::test]
async fn a_response_with_too_long_a_head_is_an_error() {
    let name = |n| HeaderName::try_from(format!("x-{n}")).unwrap();
    let many: HeaderMap = (0..100).map(|n| (name(n), HeaderValue::from_static("1"))).collect();
    let long = [("x", "y".repeat(100_000))];
    let routes = Router::new()
        .route("/long", routing::any(async move || (long, "")))
        .route("/many", routing::any(async move || (many, "")));
    let (gateway, _sled) = pair(Router::new(), routes, Limits::default()).await;
    for path in ["/long", "/many"] {
        assert!(matches!(gateway.link.request(get(path)).await, Err(RequestError::Http(_))), "{path}");
    }
    assert!(gateway.link.request(get("/v1/ping")).await.is_ok());
}

/// Waits until the other end has closed or reset `stream`.
async fn ended(io: &mut DuplexStream, stream: u32) {
    loop {
        let (_, flags, id, _) = read_frame(io).await.unwrap();
        if id == stream && flags & (FIN | RST) != 0 {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_given_up() {
    for begun in [&b""[..], b"GET / HTTP/1.1\r\nx: y"] {
        let (_end, mut peer) = against(Side::Sled, Router::new(), Limits::default()).await;
        let started = tokio::time::Instant::now();
        peer.write_all(&frame(DATA, SYN, 1, u32::try_from(begun.len()).unwrap(), begun)).await.unwrap();
        ended(&mut peer, 1).await;
        assert_eq!(started.elapsed().as_secs(), 10, "{begun:?}");
    }
}

#[tokio::test]
async fn a_flood_of_streams_is_reset_past_the_limit() {
    let limits = Limits { inbound_streams: 4, ..Limits::default() };
    let (end, peer) = against(Side::Sled, Router::new(), limits).await;
    let (mut reader, mut writer) = tokio::io::split(peer);
    let flood = async {
        for stream in 0..2000 {
            writer.write_all(&frame(DATA, SYN, 2 * stream + 1, 1, b"G")).await.unwrap();
        }
    };
    let refused = async {
        let mut refused = 0;
        while refused < 1996 {
            let mut header = [0; 12];
            reader.read_exact(&mut header).await.unwrap();
            assert_ne!(header[1], GO_AWAY, "the link gave up");
            refused += usize::from(u16::from_be_bytes([header[2], header[3]]) & RST != 0);
        }
    };
    tokio::join!(flood, refused);
    assert!(!end.driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_flood_from_a_peer_that_reads_nothing_is_held_back() {
    let limits = Limits { inbound_streams: 4, outbound_streams: 4, ..Limits::default() };
    let (end, mut peer) = against(Side::Sled, Router::new(), limits).await;
    let body = vec![b'G'; 64 * 1024];
    let mut taken = 0_u32;
    let flood = async {
        loop {
            peer.write_all(&frame(DATA, SYN, 2 * taken + 1, 64 * 1024, &body)).await.unwrap();
            taken += 1;
        }
    };
    // On a paused clock the second passes when nothing moves any more.
    assert!(tokio::time::timeout(Duration::from_secs(1), flood).await.is_err());
    // At most what the limits allow (4 + 4 + 64), and those whose reset, of 12 bytes, still fitted into the end's own buffer and 512 bytes.
    assert!((4..64 * 1024 / 12 + 120).contains(&taken), "{taken} streams were taken");
    end.link.close();
    assert_eq!(end.driver.await.unwrap(), Closed::Local);
}

#[tokio::test]
async fn broken_frames_end_the_link_with_a_reason() {
    let cases = [
        (frame(DATA, SYN, 1, 64 * 1024 + 1, &[]), Closed::Protocol("a data frame is too long")),
        (frame(DATA, SYN, 1, u32::MAX, &[]), Closed::Protocol("a data frame is too long")),
        (frame(WINDOW_UPDATE, SYN, 1, u32::MAX, &[]), Closed::Protocol("a window update grants too much")),
        (frame(7, 0, 0, 0, &[]), Closed::Protocol("a frame is of no known kind")),
        (b"HTTP/1.1 400 Bad Request".to_vec(), Closed::Protocol("a frame is of no known version")),
        (frame(GO_AWAY, 0, 0, 0, &[]), Closed::Peer),
    ];
    for (bytes, expected) in cases {
        let (end, mut peer) = against(Side::Sled, Router::new(), Limits::default()).await;
        // The second half comes later, and behind a whole frame with a body.
        let bytes = [frame(DATA, 0, 9, 3, b"abc"), bytes].concat();
        let (first, second) = bytes.split_at(20);
        peer.write_all(first).await.unwrap();
        peer.write_all(second).await.unwrap();
        assert_eq!(end.driver.await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_found_dead() {
    for side in [Side::Gateway, Side::Sled] {
        let (end, _peer) = against(side, Router::new(), Limits::default()).await;
        let started = tokio::time::Instant::now();
        let waiting = end.link.request(get("/anything")).await;
        assert!(matches!(waiting, Err(RequestError::Closed(Closed::Silent))));
        assert_eq!(started.elapsed(), Duration::from_secs(30));
    }
}

/// A stretch of what a peer may send: any bytes, or frames that look right.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let frames = (
        0..4_u8,
        0..16_u16,
        0..6_u32,
        prop_oneof![0..64_u32, any::<u32>(), Just(u32::MAX)],
        prop::collection::vec(any::<u8>(), 0..64),
    )
        .prop_map(|(kind, flags, stream, length, body)| match kind {
            DATA => frame(kind, flags, stream, u32::try_from(body.len()).unwrap(), &body),
            _ => frame(kind, flags, stream, length, &[]),
        });
    let pieces = prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..64), 8 => frames, 1 => Just(frame(PING, SYN, 0, 5, &[]))];
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_bytes_make_either_side_panic(bytes in bytes(), gateway in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let side = if gateway { Side::Gateway } else { Side::Sled };
            let routes = Router::new().fallback(routing::any(async |body: Body| body));
            let (end, peer) = against(side, routes, Limits::default()).await;
            let (mut reader, mut writer) = tokio::io::split(peer);
            let mut answers = Vec::new();
            let attack = async {
                // The end may hang up at any of it.
                let _ = writer.write_all(&bytes).await;
                let _ = writer.shutdown().await;
            };
            let request = end.link.request(get("/"));
            let (answer, (), read) = tokio::join!(request, attack, reader.read_to_end(&mut answers));
            prop_assert!(answer.is_err() && read.is_ok());
            // A panic of the driver would be an error here.
            let reason = end.driver.await.unwrap();
            prop_assert!(reason != Closed::Local && reason != Closed::Silent, "{reason:?}");
            Ok(())
        })?;
    }

    #[test]
    fn no_first_bytes_make_opening_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(8192);
            theirs.write_all(&bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let opened = link::open(ours, Side::Sled, link::Hello::current(), Router::new(), Limits::default()).await;
            let shown = opened.err().unwrap().to_string();
            prop_assert!(shown.len() <= 900 && shown.is_ascii());
            Ok(())
        })?;
    }
}
