//! Two sleds of one project, as where an engine has lost sight of a container.

use std::time::Duration;

use link::requests::{Agent, Outcome};
use link::takeover;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::harness::{Node, SOON, ended, events, eventually, lives, outcome, request, script, turn};

#[tokio::test]
async fn a_sled_that_starts_ends_the_one_that_has_the_project_with_its_turn() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    client.put_turn(id, &script("echo $$ > a.pid; sleep 1000")).await.unwrap();
    let pids = node.wait_for_pids(1).await;

    assert_eq!(node.start_beside().await.code(), Some(0));
    assert!(pids.iter().all(|pid| !lives(*pid)));

    let client = node.client().await;
    assert_eq!(outcome(&events(&client, id, 0).await), Outcome::Interrupted);
    let (outcome, _) = turn(&client, &request(Agent::Echo { notice: None }, "hi")).await;
    assert_eq!(outcome, Outcome::Answered { text: "You said: hi".to_owned() });
}

#[tokio::test]
async fn a_sled_is_gone_when_whoever_sees_its_folder_has_asked_it_to_end() {
    let mut node = Node::start().await;
    assert!(takeover::ask(&node.path("data"), SOON).await.unwrap());
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(!takeover::ask(&node.path("data"), SOON).await.unwrap());
    // What was killed holds nothing.
    node.start_again().await;
    node.signal(Signal::SIGKILL);
    node.ended().await;
    assert!(!takeover::ask(&node.path("data"), SOON).await.unwrap());
    node.start_again().await;
}

#[tokio::test]
async fn a_sled_does_not_run_beside_one_that_does_not_end() {
    let mut node = Node::start_with(&["--no-sshd", "--takeover-secs", "1"]).await;
    node.signal(Signal::SIGSTOP);
    let mut before = node.spawn_beside();
    assert_eq!(node.ended().await.code(), Some(1));
    let log = std::fs::read_to_string(node.path("log")).unwrap();
    assert!(log.contains("another sled of this project has it, and does not end"), "{log}");
    before.kill().unwrap();
    tokio::time::timeout(Duration::from_secs(5), ended(&mut before)).await.unwrap();
    node.start_again().await;
}

#[tokio::test]
async fn a_sled_that_waits_for_the_one_before_ends_when_it_is_asked_to() {
    let mut node = Node::start().await;
    node.signal(Signal::SIGSTOP);
    let mut before = node.spawn_beside();
    // It has its port before it asks.
    eventually(async || TcpStream::connect(("127.0.0.1", node.model_port)).await.is_ok()).await;
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended().await.code(), Some(0));
    before.kill().unwrap();
    ended(&mut before).await;
}

/// Such as one that somebody types in the container.
#[tokio::test]
async fn a_second_sled_in_the_same_container_takes_nothing_from_the_first() {
    let mut node = Node::start().await;
    let mut first = node.spawn_on_the_same_ports();
    assert_eq!(node.ended().await.code(), Some(1));
    let log = std::fs::read_to_string(node.path("log")).unwrap();
    assert!(log.contains("cannot listen on port"), "{log}");
    let (outcome, _) = turn(&node.client().await, &request(Agent::Echo { notice: None }, "hi")).await;
    assert_eq!(outcome, Outcome::Answered { text: "You said: hi".to_owned() });
    first.kill().unwrap();
    ended(&mut first).await;
}
