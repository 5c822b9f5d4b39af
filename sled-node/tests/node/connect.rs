//! `sled connect`, the byte stream between an engine's exec and the sled's socket.

use std::process::Stdio;

use axum::Router;
use link::{Hello, Limits, Side, SledClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};

use crate::harness::Node;

fn connect(socket: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sled"))
        .args(["connect", "--socket"])
        .arg(socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_link_runs_over_it_and_ends_with_it() {
    let node = Node::start().await;
    let mut child = connect(&node.socket());
    let io = tokio::io::join(child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let (link, driver) =
        link::open(io, Side::Gateway, Hello::current(), Router::new(), Limits::default()).await.unwrap();
    let driver = tokio::spawn(driver.run());
    assert_eq!(SledClient::new(link.clone()).status().await.unwrap().turn, None);
    link.close();
    driver.await.unwrap();
    // Its input's end reaches the sled, which closes; then it ends too.
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_end_of_its_input_is_passed_on_while_the_answer_still_comes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    // Started before anybody listens.
    let mut child = connect(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let (mut sled, _) = listener.accept().await.unwrap();

    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"question").await.unwrap();
    drop(stdin);
    let mut heard = String::new();
    sled.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");

    sled.write_all(b"answer").await.unwrap();
    drop(sled);
    let mut answer = String::new();
    child.stdout.take().unwrap().read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    assert!(child.wait().await.unwrap().success());
}
