//! The first line: versions, roles, noise.

use std::time::Duration;

use axum::Router;
use link::{Hello, Limits, OpenError, PROTOCOL, Side, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn speaking(protocol: u32, version: &str) -> Hello {
    Hello { protocol, version: version.to_owned() }
}

/// Opens both ends and gives what each says: the peer's version, or the error.
async fn meet(gateway: Hello, sled: Hello) -> [String; 2] {
    let (left, right) = tokio::io::duplex(64);
    let (gateway, sled) = tokio::join!(
        open(left, Side::Gateway, gateway, Router::new(), Limits::default()),
        open(right, Side::Sled, sled, Router::new(), Limits::default()),
    );
    [gateway, sled].map(|opened| match opened {
        Ok((link, _)) => link.peer().version.clone(),
        Err(error) => error.to_string(),
    })
}

#[tokio::test]
async fn a_gateway_serves_its_own_protocol_and_the_one_before() {
    for (gateway, sled) in [(PROTOCOL, PROTOCOL), (7, 7), (7, 6)] {
        let said = meet(speaking(gateway, "0.7.0"), speaking(sled, "0.6.0")).await;
        assert_eq!(said, ["0.6.0", "0.7.0"], "gateway {gateway}, sled {sled}");
    }
}

#[tokio::test]
async fn both_sides_say_which_one_to_update() {
    let old_sled =
        "the gateway is version 0.7.0 (protocol 7) and the sled is version 0.5.0 (protocol 5): update the sled";
    assert_eq!(meet(speaking(7, "0.7.0"), speaking(5, "0.5.0")).await, [old_sled, old_sled]);
    let old_gateway =
        "the gateway is version 0.7.0 (protocol 7) and the sled is version 0.8.0 (protocol 8): update the gateway";
    assert_eq!(meet(speaking(7, "0.7.0"), speaking(8, "0.8.0")).await, [old_gateway, old_gateway]);
    let extreme = meet(speaking(0, "0"), speaking(u32::MAX, "1")).await;
    assert!(extreme.iter().all(|said| said.ends_with("update the gateway")), "{extreme:?}");
}

/// What a gateway says of a peer that sends `noise` and closes its writing half.
async fn refused(noise: &[u8]) -> OpenError {
    let (ours, theirs) = tokio::io::duplex(256);
    let (mut reader, mut writer) = tokio::io::split(theirs);
    let send = async {
        // The end under test may have hung up on the noise already.
        let _ = writer.write_all(noise).await;
        let _ = writer.shutdown().await;
    };
    let mut sink = Vec::new();
    let opening = open(ours, Side::Gateway, Hello::current(), Router::new(), Limits::default());
    let (opened, (), read) = tokio::join!(opening, send, reader.read_to_end(&mut sink));
    read.unwrap();
    opened.err().unwrap()
}

#[tokio::test]
async fn noise_is_shown_bounded_and_escaped() {
    let long = vec![b'x'; 100_000];
    let deep = [b"{".repeat(4000), b"\n".to_vec()].concat();
    let cases: [(&[u8], &str); 8] = [
        (b"bash: sled: not found\n", "expected a hello, got \"bash: sled: not found\""),
        (b"<!doctype html>\x1b[31m\xff", r#"expected a hello, got "<!doctype html>\x1b[31m\xff""#),
        (b"{\"musher\":1}\n", r#"expected a hello, got "{\"musher\":1}""#),
        (
            b"{\"musher\":1,\"version\":\"\\u001b[2J\",\"role\":\"sled\"}\n",
            r#"expected a hello, got "{\"musher\":1,\"version\":\"\\u001b[2J\",\"role\":\"sled\"}""#,
        ),
        (
            b"{\"musher\":-1,\"version\":\"1\",\"role\":\"sled\"}\n",
            r#"expected a hello, got "{\"musher\":-1,\"version\":\"1\",\"role\":\"sled\"}""#,
        ),
        (
            b"{\"musher\":1,\"version\":\"1\",\"role\":\"gateway\"}\n",
            "a gateway answered where the other side of the link was expected",
        ),
        (b"\n", "expected a hello, got \"\""),
        (b"", "the other side closed the stream without a word"),
    ];
    for (noise, expected) in cases {
        assert_eq!(refused(noise).await.to_string(), expected);
    }
    for noise in [long, deep] {
        let OpenError::Garbage { excerpt } = refused(&noise).await else { panic!("not refused as garbage") };
        assert_eq!(excerpt.as_bytes(), &noise[..200]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_never_ends_is_given_up() {
    for (begun, expected) in [
        (&b""[..], "no hello within 10 s"),
        (b"{\"musher\":1", "no hello within 10 s"),
        (b"login: ", "expected a hello, got \"login: \""),
    ] {
        let (ours, mut theirs) = tokio::io::duplex(256);
        theirs.write_all(begun).await.unwrap();
        let started = tokio::time::Instant::now();
        let opened = open(ours, Side::Gateway, Hello::current(), Router::new(), Limits::default()).await;
        assert_eq!(opened.err().unwrap().to_string(), expected);
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }
}
