//! Turns as the gateway sees them: begun once, read from anywhere, and ended in every way there is.

use link::requests::{Agent, FailureReason, Outcome, RefusalKind, TurnEvent};
use link::{CallError, SledClient};
use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::harness::{Node, events, eventually, kinds, lives, outcome, request, script, stop, turn};

fn answered(text: &str) -> Outcome {
    Outcome::Answered { text: text.to_owned() }
}

fn refused<T>(answer: Result<T, CallError>) -> RefusalKind {
    match answer {
        Err(CallError::Refused(refusal)) => refusal.kind,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was not refused"),
    }
}

fn echo(notice: Option<&str>, prompt: &str) -> link::requests::TurnRequest {
    request(Agent::Echo { notice: notice.map(str::to_owned) }, prompt)
}

#[tokio::test]
async fn a_turn_is_answered_and_can_be_read_again_from_any_event() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let request = echo(Some("No key."), "hi");
    assert!(!client.put_turn(id, &request).await.unwrap().already);

    let all = events(&client, id, 0).await;
    assert_eq!(kinds(&all), ["accepted", "started", "heard", "finished"]);
    assert_eq!(outcome(&all), answered("No key.\n\nYou said: hi"));
    assert!(all.iter().zip(1..).all(|(record, seq)| record.seq == seq));
    assert_eq!(all[0].event, TurnEvent::Accepted(request));

    // Over another link too, and of a sled that was started anew.
    let mut node = node;
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    node.start_again().await;
    let client = node.client().await;
    // All but what people said, which is forgotten soon.
    for after in 1..4 {
        assert_eq!(events(&client, id, after).await, all[usize::try_from(after).unwrap()..]);
    }
    assert_eq!(client.stop_turn(id, &stop(0)).await.unwrap(), answered("No key.\n\nYou said: hi"));
}

#[tokio::test]
async fn a_turn_is_run_once_however_often_it_is_handed_over() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let request = echo(None, "hi");
    assert!(!client.put_turn(id, &request).await.unwrap().already);
    assert!(client.put_turn(id, &request).await.unwrap().already);
    assert_eq!(events(&client, id, 0).await.len(), 4);
    assert!(client.put_turn(id, &request).await.unwrap().already);
    assert_eq!(events(&client, id, 0).await.len(), 4);

    assert_eq!(refused(client.put_turn(id, &echo(None, "something else")).await), RefusalKind::Mismatch);
    // Only an interrupted attempt is followed by another.
    let again = link::requests::TurnRequest { attempt: 2, ..request };
    assert_eq!(refused(client.put_turn(id, &again).await), RefusalKind::Mismatch);
}

#[tokio::test]
async fn a_turn_whose_request_breaks_off_runs_all_the_same() {
    let node = Node::start().await;
    let client = node.client().await;
    let request = echo(None, "hi");
    for round in 0..60_u64 {
        let id = Uuid::now_v7();
        let put = tokio::time::timeout(std::time::Duration::from_micros(round * 50), client.put_turn(id, &request));
        if let Ok(answer) = put.await {
            answer.unwrap();
        }
        // The gateway hands it over again, as it does after a link that broke.
        client.put_turn(id, &request).await.unwrap();
        let told = events(&client, id, 0).await;
        assert_eq!(kinds(&told), ["accepted", "started", "heard", "finished"], "round {round}");
        assert_eq!(client.stop_turn(id, &stop(0)).await.unwrap(), answered("You said: hi"));
    }
}

#[tokio::test]
async fn one_turn_at_a_time() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    client.put_turn(id, &script("sleep 1000")).await.unwrap();
    assert_eq!(refused(client.put_turn(Uuid::now_v7(), &echo(None, "hi")).await), RefusalKind::Busy);
    assert_eq!(client.status().await.unwrap().turn.unwrap().id, id);
    assert!(matches!(client.stop_turn(id, &stop(5_000)).await.unwrap(), Outcome::Stopped { .. }));
    assert_eq!(client.status().await.unwrap().turn, None);
    assert_eq!(turn(&client, &echo(None, "hi")).await.0, answered("You said: hi"));
}

#[tokio::test]
async fn what_is_not_there_or_makes_no_sense_is_refused() {
    let node = Node::start().await;
    let client = node.client().await;
    assert_eq!(refused(client.stop_turn(Uuid::now_v7(), &stop(0)).await), RefusalKind::UnknownTurn);
    let unknown = futures_util::StreamExt::next(&mut client.turn_events(Uuid::now_v7(), 0)).await.unwrap();
    assert_eq!(refused(unknown), RefusalKind::UnknownTurn);
    assert_eq!(
        refused(client.put_turn(Uuid::now_v7(), &echo(None, &"x".repeat(1024 * 1024))).await),
        RefusalKind::Invalid
    );
}

#[tokio::test]
async fn words_longer_than_a_pipe_arrive() {
    let node = Node::start().await;
    let client = node.client().await;
    let words = "word ".repeat(60_000);
    assert_eq!(turn(&client, &echo(None, &words)).await.0, answered(&format!("You said: {words}")));
}

async fn failure(client: &SledClient, agent: &str) -> (FailureReason, Vec<String>) {
    match turn(client, &script(agent)).await.0 {
        Outcome::Failed { reason, last_lines } => (reason, last_lines),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn failures_say_why() {
    let node = Node::start().await;
    let client = node.client().await;

    let missing = request(Agent::Command { argv: vec!["no-such-agent".to_owned()] }, "hi");
    let (ended, events) = turn(&client, &missing).await;
    let Outcome::Failed { reason: FailureReason::NotStarted { error }, .. } = &ended else { panic!("{ended:?}") };
    assert!(error.starts_with("no-such-agent: "), "{error}");
    assert_eq!(kinds(&events), ["accepted", "finished"]);

    let (reason, lines) = failure(&client, "echo not json; echo '{\"type\":7}'; echo on stderr >&2; exit 3").await;
    assert_eq!(reason, FailureReason::Exited { code: Some(3), signal: None });
    assert_eq!(lines.len(), 3);
    assert!(
        ["not json", "{\"type\":7}", "on stderr"].iter().all(|line| lines.iter().any(|shown| shown == line)),
        "{lines:?}"
    );

    let (reason, _) = failure(&client, "kill -9 $$").await;
    assert_eq!(reason, FailureReason::Exited { code: None, signal: Some(9) });

    let (reason, _) =
        failure(&client, r#"echo '{"type":"result","is_error":true,"result":"no credit"}'; exit 1"#).await;
    assert_eq!(reason, FailureReason::Reported { text: "no credit".to_owned() });

    // The session goes on.
    assert_eq!(turn(&client, &echo(None, "hi")).await.0, answered("You said: hi"));
}

#[tokio::test]
async fn an_endless_line_is_not_waited_for() {
    let node = Node::start().await;
    let client = node.client().await;
    let (reason, lines) = failure(&client, "echo $$ > a.pid; cat /dev/zero | tr '\\0' x").await;
    assert!(matches!(reason, FailureReason::Protocol { .. }), "{reason:?}");
    assert!(lines.iter().all(|line| line.len() < 1000));
    assert!(node.pids().into_iter().all(|pid| !lives(pid)));
}

#[tokio::test]
async fn what_an_agent_does_is_told_as_it_happens() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let agent = script(
        r#"read line
        echo '{"type":"assistant","message":{"content":[{"type":"text","text":"looking"},{"type":"tool_use","name":"Bash","input":{"command":"ls"}}]}}'
        until test -e go; do sleep 0.01; done
        echo '{"type":"result","is_error":false,"result":"done"}'
        read line"#,
    );
    client.put_turn(id, &agent).await.unwrap();
    let mut told = client.turn_events(id, 0);
    let mut next = async || futures_util::StreamExt::next(&mut told).await.unwrap().unwrap().event;
    assert!(matches!(next().await, TurnEvent::Accepted(_)));
    assert_eq!(next().await, TurnEvent::Started { session_found: true });
    assert_eq!(next().await, TurnEvent::Heard);
    assert_eq!(next().await, TurnEvent::Spoke { text: "looking".to_owned() });
    assert_eq!(next().await, TurnEvent::ToolCalled { name: "Bash".to_owned(), summary: "ls".to_owned() });
    std::fs::write(node.path("workspace/go"), "").unwrap();
    assert_eq!(next().await, TurnEvent::Finished { outcome: answered("done"), usage: None });
}

/// Returns when it is stored that the turn's agent runs.
async fn started(client: &SledClient, id: Uuid) {
    let mut told = client.turn_events(id, 0);
    while !matches!(futures_util::StreamExt::next(&mut told).await.unwrap().unwrap().event, TurnEvent::Started { .. }) {
    }
}

#[tokio::test]
async fn a_sled_that_was_killed_finds_its_turn_interrupted() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let agent = script("trap '' TERM; (setsid sh -c 'echo $$ > b.pid; sleep 1000' &); echo $$ > a.pid; sleep 1000");
    client.put_turn(id, &agent).await.unwrap();
    started(&client, id).await;
    let pids = node.wait_for_pids(2).await;
    node.signal(Signal::SIGKILL);
    node.ended().await;
    // In a container everything ends with the sled; here the supervisor sees to it.
    eventually(async || pids.iter().all(|pid| !lives(*pid))).await;

    node.start_again().await;
    let client = node.client().await;
    let told = events(&client, id, 0).await;
    assert_eq!(kinds(&told), ["accepted", "started", "finished"]);
    assert_eq!(outcome(&told), Outcome::Interrupted);
    assert!(client.put_turn(id, &agent).await.unwrap().already);

    // The second attempt goes on in the same stream.
    let again = link::requests::TurnRequest { attempt: 2, ..echo(None, "again") };
    assert!(!client.put_turn(id, &again).await.unwrap().already);
    let told = events(&client, id, 3).await;
    assert_eq!((kinds(&told), told[0].seq), (vec!["accepted", "started", "heard", "finished"], 4));
    assert_eq!(outcome(&told), answered("You said: again"));
}

#[tokio::test]
async fn a_sled_that_is_asked_to_end_interrupts_its_turn_and_exits_cleanly() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    client.put_turn(id, &script("echo $$ > a.pid; sleep 1000")).await.unwrap();
    started(&client, id).await;
    let pids = node.wait_for_pids(1).await;
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(pids.iter().all(|pid| !lives(*pid)));

    node.start_again().await;
    let told = events(&node.client().await, id, 0).await;
    assert_eq!(outcome(&told), Outcome::Interrupted);
    assert_eq!(told.len(), 3);
}
