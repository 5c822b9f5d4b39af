//! What a hostile or broken model may answer, byte by byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A model that reads one request on each connection and writes `head`, and then `tail` for ever, or hangs up when that is empty. How many
/// connections there were, and how many have ended.
async fn model(head: impl Into<Vec<u8>>, tail: &'static [u8]) -> (Url, Arc<AtomicUsize>, mpsc::UnboundedReceiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let base = format!("http://{}/base/", listener.local_addr().expect("it is bound"));
    let (connections, head) = (Arc::new(AtomicUsize::new(0)), head.into());
    let (over, ended) = mpsc::unbounded_channel();
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let (head, over) = (head.clone(), over.clone());
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"hello") && !read.ends_with(b"0\r\n\r\n") {
                    let mut part = [0; 4096];
                    match stream.read(&mut part).await {
                        Ok(0) | Err(_) => return,
                        Ok(count) => read.extend(&part[..count]),
                    }
                }
                let mut written = 0;
                if stream.write_all(&head).await.is_ok() {
                    while !tail.is_empty() && stream.write_all(tail).await.is_ok() {
                        written += tail.len() as u64;
                    }
                }
                over.send(written).ok();
            });
        }
    });
    (Url::parse(&base).expect("it is an address"), connections, ended)
}

/// A door to a model that answers so.
async fn answering(head: impl Into<Vec<u8>>) -> Setting {
    let (base, _, _) = model(head, b"").await;
    Setting::new(base, Key::Given("outside".into())).await
}

async fn asked(setting: &Setting) -> (StatusCode, HeaderMap, String) {
    setting.ask(Method::POST, "/model/v1/messages", "hello").await
}

#[tokio::test]
async fn redirects_are_answered_with_a_word_and_lead_nowhere() {
    let (elsewhere, visits, _) = model("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"").await;
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let head = format!(
            "HTTP/1.1 {status} X\r\nlocation: {elsewhere}v1/messages\r\nrefresh: 0; url={elsewhere}\r\ncontent-length: 0\r\n\r\n"
        );
        let setting = answering(head).await;
        for path in ["/model/v1/messages", "/model/v1/messages/count_tokens"] {
            let (answered, headers, said) = setting.ask(Method::POST, path, "hello").await;
            assert_eq!(answered, StatusCode::BAD_GATEWAY);
            assert!(said.contains(&format!("status {status}")) && said.contains("base_url"), "{said}");
            assert!(!headers.contains_key("location") && !headers.contains_key("refresh"), "{headers:?}");
            assert!(!said.contains(elsewhere.as_str()), "where it leads is not told: {said}");
        }
        assert_eq!(setting.counted().1, 0);
    }
    assert_eq!(visits.load(Ordering::Relaxed), 0, "nobody has gone there");
}

#[tokio::test]
async fn interim_answers_are_left_out_and_no_protocol_is_switched() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\nset-cookie: a=b\r\n\r\n".repeat(20);
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let setting = answering(format!("{interim}HTTP/1.1 102 Processing\r\n\r\n{whole}")).await;
    let (status, headers, said) = asked(&setting).await;
    assert_eq!((status, said.as_str(), setting.counted()), (StatusCode::OK, ANSWER, (WHOLE, 1)));
    assert!(!headers.contains_key("link"), "{headers:?}");

    let setting = answering("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    assert_eq!(asked(&setting).await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_head_without_end_is_not_read_to_its_end() {
    for tail in [&b"x-more: and more\r\n"[..], b"and more of the same header "] {
        let (base, _, mut ended) = model("HTTP/1.1 200 OK\r\nx-first: ", tail).await;
        let setting = Setting::new(base, Key::Given("outside".into())).await;
        assert_eq!(asked(&setting).await.0, StatusCode::BAD_GATEWAY);
        let written = ended.recv().await.expect("it is hung up on");
        assert!(written < 32 << 20, "{written} bytes of a head were taken");
    }
}

#[tokio::test]
async fn a_head_that_does_not_fit_is_told_and_counted() {
    for headers in ["x-more: 1\r\n".repeat(80), format!("x-large: {}\r\n", "1".repeat(30_000))] {
        let head = format!(
            "HTTP/1.1 200 OK\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
            ANSWER.len()
        );
        let setting = answering(head).await;
        let (status, headers, said) = asked(&setting).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert!(said.contains("too many or too large headers") && !headers.contains_key("x-more"), "{said}");
        setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
        assert_eq!(setting.counted(), (HELLO, 1), "the model has done its work");
    }
}

#[tokio::test]
async fn an_error_without_end_ends() {
    for head in [
        "HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n\r\n",
        "HTTP/1.1 429 No\r\ncontent-length: 99999999999999\r\n\r\n",
        "HTTP/1.1 400 No\r\ncontent-type: text/event-stream\r\n\r\n",
    ] {
        let (base, _, mut ended) = model(head, &PART).await;
        let setting = Setting::new(base, Key::Given("outside".into())).await;
        let answer = setting.send(Method::POST, "/model/v1/messages", "hello").await;
        assert!(answer.status().is_client_error() || answer.status().is_server_error());
        let mut body = answer.into_body();
        let mut read = 0;
        let failed = loop {
            assert!(read <= ERROR_MAX, "{read} bytes came");
            match body.frame().await.expect("it does not end as if it were whole") {
                Ok(frame) => read += frame.into_data().expect("it is data").len(),
                Err(error) => break error,
            }
        };
        assert!(read > ERROR_MAX / 2, "{read} bytes came");
        assert!(format!("{failed:?}").contains("too long"), "{failed:?}");
        assert!(body.frame().await.is_none());
        drop(body);
        ended.recv().await.expect("it is hung up on");
        assert_eq!(setting.counted().1, 0);
    }
}

#[tokio::test]
async fn what_belongs_to_the_connection_or_steers_the_reader_is_left_out() {
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: x-hop, close\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\n\
         proxy-connection: close\r\ntrailer: x-late\r\nupgrade: h2c\r\nset-cookie: a=b\r\nset-cookie: c=d\r\nset-cookie2: e\r\n\
         location: /x\r\nalt-svc: h3=\":1\"\r\nwww-authenticate: Basic\r\nx-api-key: echoed\r\nauthorization: echoed\r\nrequest-id: 7\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{ANSWER}\r\n0\r\nx-late: 1\r\n\r\n",
        ANSWER.len()
    );
    let setting = answering(head).await;
    let answer = setting.send(Method::POST, "/model/v1/messages", "hello").await;
    let mut names: Vec<_> = answer.headers().keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["content-type", "request-id"]);
    let whole = answer.into_body().collect().await.expect("it can be read");
    assert!(whole.trailers().is_none());
    assert_eq!(whole.to_bytes(), ANSWER);
    assert_eq!(setting.counted(), (WHOLE, 1));
}

#[tokio::test]
async fn an_answer_that_is_shorter_than_it_says_does_not_look_whole() {
    for head in [
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n{START}{TEXT}"),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{START}{TEXT}",
            9999
        ),
    ] {
        let setting = answering(head).await;
        let answer = setting.send(Method::POST, "/model/v1/messages", "hello").await;
        answer.into_body().collect().await.expect_err("it breaks off");
        setting.tasks.shutdown(Duration::from_secs(10)).await.expect("the count ends");
        assert_eq!(setting.counted(), (BEGUN, 1));
    }
}

#[tokio::test]
async fn what_is_no_http_is_no_answer() {
    for head in [
        "",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "HTTP/1.1 999999 X\r\n\r\n",
    ] {
        let setting = answering(head).await;
        let (status, _, said) = asked(&setting).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{head}");
        assert!(said.contains("could not be reached"), "{said}");
    }
}

/// Whatever the bytes are, and however they are cut, the same bytes come out.
#[tokio::test]
async fn bytes_pass_unchanged() {
    let events = b"\xef\xbb\xbf: a comment\r\n\r\nevent: ping\rdata: {\"type\": \"ping\"}\n\ndata:\xff\xfe\x00\n\n\n\nevent: content_block_delta\ndata: {\"a\":\r\ndata: 1}\n\nid\n:\n";
    let noise: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for (content_type, bytes) in [
        ("text/event-stream; charset=utf-8", events.repeat(100)),
        ("text/event-stream", noise.clone()),
        ("application/json", noise),
        ("application/json", b" {\"content\" :[ ] }\n ".to_vec()),
    ] {
        let mut head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
        for (number, part) in bytes.chunks(7919).enumerate() {
            let (one, two) = part.split_at(number.min(part.len()));
            for part in [one, two].into_iter().filter(|part| !part.is_empty()) {
                head.extend(format!("{:x}\r\n", part.len()).bytes());
                head.extend(part);
                head.extend(b"\r\n");
            }
        }
        head.extend(b"0\r\n\r\n");
        let setting = answering(head).await;
        let answer = setting.send(Method::POST, "/model/v1/messages", "hello").await;
        assert_eq!(answer.headers()[header::CONTENT_TYPE], content_type);
        assert_eq!(answer.into_body().collect().await.expect("it can be read").to_bytes(), bytes);
    }
}
