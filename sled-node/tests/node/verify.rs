//! `sled verify`: whether the sled's journal is sound.

use std::process::{Command, Output};
use std::sync::Arc;

use journal::{Actor, Append, Cause, Expected, Journal, NewEvent, StreamId, SystemClock};
use link::requests::{Agent, Outcome};
use nix::sys::signal::Signal;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::harness::{Node, events, outcome, request, script, turn};

fn verify(node: &Node) -> (Option<i32>, String) {
    let sled = Command::new(env!("CARGO_BIN_EXE_sled")).arg("verify").arg("--data").arg(node.path("data")).output();
    let Output { status, stdout, stderr } = sled.unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[tokio::test]
async fn a_journal_is_sound_after_kills_and_one_that_is_not_is_told_by_its_stream() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let (ended, _) = turn(&client, &request(Agent::Echo { notice: None }, "hi")).await;
    assert!(matches!(ended, Outcome::Answered { .. }));
    let id = Uuid::now_v7();
    client.put_turn(id, &script("echo $$ > agent.pid; exec sleep 600")).await.unwrap();
    node.wait_for_pids(1).await;
    node.signal(Signal::SIGKILL);
    node.ended().await;
    node.start_again().await;
    assert_eq!(outcome(&events(&node.client().await, id, 0).await), Outcome::Interrupted);
    // The sled that has written it has it open.
    let (code, told) = verify(&node);
    assert!(code == Some(0) && told.ends_with("\nall is well\n"), "{code:?} {told}");

    node.signal(Signal::SIGTERM);
    node.ended().await;
    let journal = Journal::open(&node.path("data").join("journal.db"), Arc::new(SystemClock)).unwrap();
    let data = RawValue::from_string("{}".to_owned()).unwrap();
    let append = Append {
        stream: StreamId::new("turn", id),
        expected: Expected::Any,
        events: vec![NewEvent::raw("turn.dreamt", 1, false, data).unwrap()],
        key: None,
        actor: Actor::Sled("p".to_owned()),
        cause: Cause::None,
    };
    journal.append(append).await.unwrap();
    journal.close().await;
    let (code, told) = verify(&node);
    let names_it = told.contains("turn.dreamt") && told.contains(&id.to_string());
    assert!(code == Some(1) && names_it && told.ends_with("\nsomething is wrong\n"), "{code:?} {told}");
}
