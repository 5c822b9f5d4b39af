//! The model endpoint: what the agent's CLI sends to loopback reaches the newest gateway, and its answer comes back as it is made.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{Node, eventually};

/// A gateway that answers every request with `name`, the request's line and headers, and its body.
fn gateway(name: &'static str) -> Router {
    Router::new().fallback(async move |request: Request| {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let mut names: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        format!("{name}: {} {} {} {}", head.method, head.uri, names.join(","), String::from_utf8_lossy(&body))
    })
}

/// What the endpoint answers to a request that is written as it stands: status and all the rest.
async fn ask(node: &Node, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", node.model_port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(&mut stream).await
}

async fn answer(stream: &mut TcpStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-Api-Key: text\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn requests_reach_the_newest_gateway() {
    let node = Node::start().await;
    let _older = node.link(gateway("older")).await;
    let newer = node.link(gateway("newer")).await;
    // The sled knows a link as soon as it has answered on it.
    link::SledClient::new(newer.clone()).status().await.unwrap();
    let (status, body) = ask(&node, &post("{}")).await;
    assert_eq!(status, 200);
    assert!(body.contains("newer: POST /model/v1/messages?beta=true content-length,host,x-api-key {}"), "{body}");

    newer.close();
    eventually(async || ask(&node, &post("{}")).await.1.contains("older: ")).await;
}

#[tokio::test]
async fn a_request_waits_for_a_gateway() {
    let node = Node::start().await;
    let question = post("{}");
    let asked = ask(&node, &question);
    let comes = async {
        let link = node.link(gateway("late")).await;
        link::SledClient::new(link).status().await.unwrap();
    };
    let ((status, body), ()) = tokio::join!(asked, comes);
    assert!(status == 200 && body.contains("late: "), "{body}");
}

#[tokio::test]
async fn answers_stream() {
    let node = Node::start().await;
    let (pieces, source) = mpsc::channel::<&'static str>(1);
    let source = std::sync::Arc::new(std::sync::Mutex::new(Some(source)));
    let router = Router::new().fallback(async move || {
        let source = source.lock().unwrap().take().unwrap();
        Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(source).map(Ok::<_, std::convert::Infallible>))
    });
    let _link = node.link(router).await;
    let mut stream = TcpStream::connect(("127.0.0.1", node.model_port)).await.unwrap();
    stream.write_all(post("{}").as_bytes()).await.unwrap();
    // Each piece arrives while the answer is not yet made to its end.
    let mut seen = String::new();
    for piece in ["first piece", "second piece"] {
        pieces.send(piece).await.unwrap();
        while !seen.contains(piece) {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
    drop(pieces);
    answer_ends(&mut stream).await;
}

async fn answer_ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn strangers_names_and_endless_bodies_are_refused() {
    let node = Node::start().await;
    let _link = node.link(gateway("gateway")).await;
    let (status, body) = ask(&node, "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status, 421, "{body}");
    let (status, body) =
        ask(&node, "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n").await;
    assert_eq!(status, 413, "{body}");
    assert!(body.contains(r#""type":"error""#), "{body}");

    // A length that is not told is counted.
    let mut stream = TcpStream::connect(("127.0.0.1", node.model_port)).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"1000\r\n".as_slice(), &[b'x'; 0x1000], b"\r\n"].concat();
    for _ in 0..=32 * 1024 * 1024 / 0x1000 {
        stream.write_all(&chunk).await.unwrap();
    }
    assert_eq!(answer(&mut stream).await.0, 413);
}

#[tokio::test]
async fn requests_at_once_are_bounded() {
    let node = Node::start().await;
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let router = Router::new().fallback(async move || {
        arrived.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let _link = node.link(router).await;
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(("127.0.0.1", node.model_port)).await.unwrap();
        stream.write_all(post("{}").as_bytes()).await.unwrap();
        arrivals.recv().await.unwrap();
        waiting.push(stream);
    }
    let (status, body) = ask(&node, &post("{}")).await;
    assert!(status == 503 && body.contains("overloaded_error"), "{body}");
    // A caller that goes away makes room.
    drop(waiting);
    eventually(async || {
        let mut stream = TcpStream::connect(("127.0.0.1", node.model_port)).await.unwrap();
        stream.write_all(post("{}").as_bytes()).await.unwrap();
        let mut first = [0; 12];
        tokio::select! {
            Some(()) = arrivals.recv() => true,
            read = stream.read_exact(&mut first) => {
                read.unwrap();
                false
            }
        }
    })
    .await;
}
