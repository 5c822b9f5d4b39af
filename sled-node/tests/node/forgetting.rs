//! What a sled forgets: what people said when their turn is over, and the rest when it is asked to (JRNL-8).

use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use link::requests::{Agent, Outcome, TurnEvent, TurnRequest};
use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::harness::{Node, events, eventually, kinds, outcome, request, script, stop};

const FORGOTTEN: &str = "(forgotten)";

/// Speaks, calls a tool, and fails.
const TALKATIVE: &str = r#"read line
    echo '{"type":"assistant","message":{"content":[{"type":"text","text":"agents-secret-word"},{"type":"tool_use","name":"Bash","input":{"command":"echo tools-secret"}}]}}'
    echo 'lines-secret' >&2
    echo '{"type":"result","is_error":true,"result":"failures-secret"}'
    exit 1"#;

const SECRETS: [&str; 6] =
    ["peoples-secret", "other-secret", "agents-secret-word", "tools-secret", "lines-secret", "failures-secret"];

/// Which of `words` the bytes of the journal's files hold.
fn on_disk<'a>(node: &Node, words: &[&'a str]) -> Vec<&'a str> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(node.path("data")).unwrap() {
        let entry = entry.unwrap();
        // The socket by which its holder can be asked to end lies there, too.
        if entry.file_type().unwrap().is_file() {
            bytes.extend(std::fs::read(entry.path()).unwrap());
        }
    }
    let holds = |word: &&str| bytes.windows(word.len()).any(|some| some == word.as_bytes());
    words.iter().copied().filter(holds).collect()
}

fn secret_request() -> TurnRequest {
    TurnRequest { prompt: "peoples-secret".to_owned(), afresh: Some("other-secret".to_owned()), ..script(TALKATIVE) }
}

#[tokio::test]
async fn texts_are_gone_from_the_files_and_their_turn_can_still_be_followed() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    // The agent's own script says these words too, and is no text of anybody.
    let argv = vec!["sh".to_owned(), "talk".to_owned()];
    std::fs::write(node.path("workspace/talk"), TALKATIVE).unwrap();
    let request = TurnRequest { agent: Agent::Command { argv }, ..secret_request() };
    client.put_turn(id, &request).await.unwrap();
    let told = events(&client, id, 0).await;
    assert_eq!(kinds(&told), ["accepted", "started", "heard", "spoke", "tool called", "finished"]);
    assert_eq!(on_disk(&node, &SECRETS), SECRETS);

    // What is younger than asked for stays.
    let hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    assert_eq!(client.erase(hour_ago).await.unwrap().texts, 0);
    assert_eq!(events(&client, id, 0).await, told);

    // The end has the reason, and one line of the agent's output; the rest is of a text each.
    assert_eq!(client.erase(Timestamp::MAX).await.unwrap().texts, 2 + 1 + 1 + 1 + 1);
    assert_eq!(client.erase(Timestamp::MAX).await.unwrap().texts, 0);
    eventually(async || on_disk(&node, &SECRETS).is_empty()).await;

    let after = events(&client, id, 0).await;
    assert_eq!(kinds(&after), kinds(&told));
    assert_eq!(after[3].event, TurnEvent::Spoke { text: FORGOTTEN.to_owned() });
    assert_eq!(after[4].event, TurnEvent::ToolCalled { name: "Bash".to_owned(), summary: FORGOTTEN.to_owned() });
    let Outcome::Failed { last_lines, .. } = outcome(&after) else { panic!("{after:?}") };
    assert_eq!(last_lines, [FORGOTTEN]);
    assert_eq!(client.stop_turn(id, &stop(0)).await.unwrap(), outcome(&after));
    assert!(client.put_turn(id, &request).await.unwrap().already);
}

#[tokio::test]
async fn a_turn_that_runs_keeps_what_it_has_and_the_next_sled_forgets_what_people_said() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let over = Uuid::now_v7();
    client.put_turn(over, &request(Agent::Echo { notice: None }, "first-secret")).await.unwrap();
    events(&client, over, 0).await;
    let id = Uuid::now_v7();
    let agent = script("read line; echo $$ > a.pid; sleep 1000");
    client.put_turn(id, &TurnRequest { prompt: "second-secret".to_owned(), ..agent }).await.unwrap();
    node.wait_for_pids(1).await;
    // The first turn's words, and its answer that says them again.
    assert_eq!(client.erase(Timestamp::MAX).await.unwrap().texts, 2);
    let first = client.turn_events(id, 0).next().await.unwrap().unwrap().event;
    assert!(matches!(first, TurnEvent::Accepted(TurnRequest { prompt, .. }) if prompt == "second-secret"));
    eventually(async || on_disk(&node, &["first-secret", "second-secret"]) == ["second-secret"]).await;

    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    node.start_again().await;
    eventually(async || on_disk(&node, &["second-secret"]).is_empty()).await;
    let told = events(&node.client().await, id, 0).await;
    assert_eq!(outcome(&told), Outcome::Interrupted);
    assert!(matches!(&told[0].event, TurnEvent::Accepted(TurnRequest { prompt, .. }) if prompt == FORGOTTEN));
}
