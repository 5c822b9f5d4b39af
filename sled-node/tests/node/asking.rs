//! Permission questions (MTX-11) and the limits of the model's service (SLED-5), with agents that are scripts.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use link::requests::{Agent, Decision, FailureReason, Outcome, Permissions, RefusalKind, TurnEvent, TurnRequest};
use link::{CallError, SledClient};
use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::harness::{Node, events, eventually, kinds, lives, outcome, script, stop, turn};

/// Asks as the CLI does, under the name `$1`, and answers with what it was told.
const ASK: &str = r#"
    ask() { printf '{"type":"control_request","request_id":"%s","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"ls\\n-l"}}}\n' "$1"; }
    result() { printf '{"type":"result","is_error":false,"result":"%s"}\n' "$1"; }
    told() { read -r line; case "$line" in *'"behavior":"allow"'*'"command":"ls\n-l"'*) echo allowed;; *'"behavior":"deny"'*) echo denied;; *'"subtype":"error"'*) echo error;; *) echo "$line";; esac; }
    read words
"#;

fn asking(timeout_secs: u64, rest: &str) -> TurnRequest {
    TurnRequest { permissions: Permissions::Ask { timeout_secs }, ..script(&format!("{ASK}{rest}")) }
}

fn answered(text: &str) -> Outcome {
    Outcome::Answered { text: text.to_owned() }
}

/// Begins a turn and waits until it has asked `count` questions; their names.
async fn asked(client: &SledClient, id: Uuid, request: &TurnRequest, count: usize) -> Vec<String> {
    client.put_turn(id, request).await.unwrap();
    let asked = client.turn_events(id, 0).filter_map(async |record| match record.unwrap().event {
        TurnEvent::PermissionAsked { request, tool, summary, deadline } => {
            assert_eq!((tool.as_str(), summary.as_str()), ("Bash", "command:\n  ls\n  -l"));
            assert!(deadline > jiff::Timestamp::UNIX_EPOCH);
            Some(request)
        }
        _ => None,
    });
    tokio::time::timeout(crate::harness::SOON, asked.take(count).collect()).await.unwrap()
}

fn settled(events: &[link::requests::TurnRecord]) -> Vec<(String, Decision)> {
    let settled = events.iter().filter_map(|record| match &record.event {
        TurnEvent::PermissionSettled { request, decision } => Some((request.clone(), *decision)),
        _ => None,
    });
    settled.collect()
}

#[tokio::test]
async fn the_first_answer_holds() {
    let node = Node::start().await;
    let client = node.client().await;
    for (allow, wanted, says) in [(true, Decision::Allowed, "allowed"), (false, Decision::Denied, "denied")] {
        let id = Uuid::now_v7();
        let agent = asking(600, r#"ask r1; a=$(told); until test -e go; do sleep 0.01; done; result "$a""#);
        let question = asked(&client, id, &agent, 1).await.remove(0);
        assert_eq!(question, "1-1");
        assert_eq!(client.answer_permission(id, &question, allow).await.unwrap(), wanted);
        // A repeat, and one that comes too late.
        assert_eq!(client.answer_permission(id, &question, !allow).await.unwrap(), wanted);
        std::fs::write(node.path("workspace/go"), "").unwrap();
        let told = events(&client, id, 0).await;
        assert_eq!(kinds(&told), ["accepted", "started", "asked", "settled", "finished"]);
        assert_eq!(outcome(&told), answered(says));
        assert_eq!(client.answer_permission(id, &question, !allow).await.unwrap(), wanted);

        let unknown = client.answer_permission(id, "1-2", true).await;
        assert!(
            matches!(&unknown, Err(CallError::Refused(refused)) if refused.kind == RefusalKind::UnknownPermission),
            "{unknown:?}"
        );
        std::fs::remove_file(node.path("workspace/go")).unwrap();
    }
    let nowhere = client.answer_permission(Uuid::now_v7(), "1-1", true).await;
    assert!(matches!(nowhere, Err(CallError::Refused(refused)) if refused.kind == RefusalKind::UnknownTurn));
}

#[tokio::test]
async fn what_nobody_answers_is_denied_by_the_sled() {
    let node = Node::start().await;
    let client = node.client().await;
    let (ended, told) = turn(&client, &asking(1, r#"ask r1; result "$(told)""#)).await;
    assert_eq!(ended, answered("denied"));
    assert_eq!(settled(&told), [("1-1".to_owned(), Decision::TimedOut)]);
}

#[tokio::test]
async fn what_is_open_when_a_turn_ends_is_denied() {
    let node = Node::start().await;
    let client = node.client().await;
    let denied = |name: &str| (name.to_owned(), Decision::Denied);
    // By a stop, by the agent's end, by its result, because it no longer wants to know.
    let id = Uuid::now_v7();
    let questions = asked(&client, id, &asking(600, "ask r1; ask r2; sleep 1000"), 2).await;
    assert!(matches!(client.stop_turn(id, &stop(5_000)).await.unwrap(), Outcome::Stopped { .. }));
    assert_eq!(settled(&events(&client, id, 0).await), [denied("1-1"), denied("1-2")]);
    assert_eq!(client.answer_permission(id, &questions[1], true).await.unwrap(), Decision::Denied);

    for end in
        ["exit 3", "result early; read line", r#"echo '{"type":"control_cancel_request","request_id":"r1"}'; result x"#]
    {
        let (_, told) = turn(&client, &asking(600, &format!("ask r1; {end}"))).await;
        assert_eq!(settled(&told), [denied("1-1")], "{end}");
    }
}

#[tokio::test]
async fn what_was_open_when_the_sled_was_killed_is_denied() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let question = asked(&client, id, &asking(600, "ask r1; sleep 1000"), 1).await.remove(0);
    node.signal(Signal::SIGKILL);
    node.ended().await;
    node.start_again().await;
    let client = node.client().await;
    let told = events(&client, id, 0).await;
    assert_eq!(kinds(&told), ["accepted", "started", "asked", "settled", "finished"]);
    assert_eq!(client.answer_permission(id, &question, true).await.unwrap(), Decision::Denied);

    // The next attempt's questions have names of their own.
    let again = TurnRequest { attempt: 2, ..asking(1, r#"ask r1; result "$(told)""#) };
    client.put_turn(id, &again).await.unwrap();
    assert_eq!(settled(&events(&client, id, 5).await), [("2-1".to_owned(), Decision::TimedOut)]);
    assert_eq!(client.answer_permission(id, &question, true).await.unwrap(), Decision::Denied);
}

#[tokio::test]
async fn too_many_questions_at_once_are_denied() {
    let node = Node::start().await;
    let client = node.client().await;
    let agent =
        asking(600, r#"for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do ask r$n; done; result "$(told)""#);
    let (ended, told) = turn(&client, &agent).await;
    assert_eq!(ended, answered("denied"));
    assert_eq!(settled(&told)[0], ("1-17".to_owned(), Decision::Denied));
    assert_eq!(settled(&told).len(), 17);
}

#[tokio::test]
async fn who_need_not_ask_is_told_so_and_unknown_requests_are_answered() {
    let node = Node::start().await;
    let client = node.client().await;
    let bypass = TurnRequest { permissions: Permissions::Bypass, ..asking(0, r#"ask r1; result "$(told)""#) };
    let (ended, told) = turn(&client, &bypass).await;
    assert_eq!((ended, settled(&told).len()), (answered("error"), 0));
    let odd = r#"echo '{"type":"control_request","request_id":"r1","request":{"subtype":"odd"}}'; result "$(told)""#;
    assert_eq!(turn(&client, &asking(600, odd)).await.0, answered("error"));
}

#[tokio::test]
async fn an_agent_that_asks_and_never_reads_is_ended() {
    let node = Node::start().await;
    let client = node.client().await;
    let agent = asking(600, "echo $$ > a.pid; while :; do ask r$RANDOM$$; n=$((n + 1)); ask x$n; done");
    let (ended, told) = turn(&client, &agent).await;
    assert!(matches!(ended, Outcome::Failed { reason: FailureReason::Protocol { .. }, .. }), "{ended:?}");
    assert_eq!(settled(&told).len(), kinds(&told).iter().filter(|kind| **kind == "asked").count());
    assert!(node.pids().into_iter().all(|pid| !lives(pid)));
}

/// Meets the limit in its first process, which says until `$resets`; later ones answer with the words that they got. `$1` comes before the limit.
fn limited(before: &str, event: &str) -> TurnRequest {
    script(&format!(
        r#"read line; printf '%s\n' "$line" >> words; echo $MUSHER_SESSION_RESUMED >> resumed
        if ! test -e met; then
            touch met; echo $$ > a.pid; {before}
            {event}
            echo '{{"type":"result","is_error":true,"api_error_status":429,"result":"API Error: limited","usage":{{"input_tokens":2}}}}'
        else
            echo '{{"type":"result","is_error":false,"result":"done","usage":{{"input_tokens":5}}}}'
        fi"#
    ))
}

const REJECTED: &str = r#"printf '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":%s}}\n' $(($(date +%s) + 2))"#;
const SAYS: &str = r#"echo '{"type":"assistant","message":{"content":[{"type":"text","text":"so far"}]}}'"#;

#[tokio::test]
async fn a_limited_turn_waits_for_its_reset_and_goes_on() {
    let node = Node::start().await;
    let client = node.client().await;
    let request = limited(SAYS, REJECTED);
    let began = Instant::now();
    let id = Uuid::now_v7();
    client.put_turn(id, &request).await.unwrap();
    let told = events(&client, id, 0).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(kinds(&told), ["accepted", "started", "heard", "spoke", "rate limited", "finished"]);
    assert!(matches!(told[4].event, TurnEvent::RateLimited { retry_after_secs: Some(1 | 2) }), "{:?}", told[4].event);
    let TurnEvent::Finished { outcome, usage } = &told[5].event else { panic!() };
    assert_eq!((outcome, usage.as_ref().unwrap().input_tokens), (&answered("done"), 7));
    // It had the words, so that they are not said again.
    let words = std::fs::read_to_string(node.path("workspace/words")).unwrap();
    let words: Vec<&str> = words.lines().collect();
    assert!(words.len() == 2 && words[0].contains("\"go on\"") && words[1].contains("\"Go on.\""), "{words:?}");
    assert_eq!(std::fs::read_to_string(node.path("workspace/resumed")).unwrap(), "0\n1\n");
}

#[tokio::test]
async fn without_a_reset_it_waits_as_long_as_is_set_and_says_the_words_again_if_they_were_not_heard() {
    let node = Node::start_with(&["--no-sshd", "--limit-backoff-secs", "0"]).await;
    let client = node.client().await;
    let (ended, told) = turn(&client, &limited("", "")).await;
    assert_eq!(ended, answered("done"));
    assert_eq!(kinds(&told), ["accepted", "started", "rate limited", "finished"]);
    assert_eq!(told[2].event, TurnEvent::RateLimited { retry_after_secs: Some(0) });
    let words = std::fs::read_to_string(node.path("workspace/words")).unwrap();
    assert_eq!(words.matches("\"go on\"").count(), 2, "{words}");
    assert_eq!(std::fs::read_to_string(node.path("workspace/resumed")).unwrap(), "0\n0\n");
}

#[tokio::test]
async fn a_limit_that_does_not_lift_is_waited_for_so_often_and_told_once() {
    let node = Node::start_with(&["--no-sshd", "--limit-backoff-secs", "0"]).await;
    let client = node.client().await;
    let always = script(
        r#"read line; echo x >> tries; echo '{"type":"result","is_error":true,"api_error_status":429,"result":"limited"}'"#,
    );
    let (ended, told) = turn(&client, &always).await;
    let Outcome::Failed { reason: FailureReason::Reported { text }, .. } = &ended else { panic!("{ended:?}") };
    assert_eq!(text, "limited");
    assert_eq!(kinds(&told), ["accepted", "started", "rate limited", "finished"]);
    assert_eq!(std::fs::read_to_string(node.path("workspace/tries")).unwrap().lines().count(), 9);
}

#[tokio::test]
async fn a_limit_and_how_long_it_is_waited_for_are_told_once_however_many_processes_meet_it_until_the_agent_gets_on() {
    let node = Node::start_with(&["--no-sshd", "--limit-backoff-secs", "0"]).await;
    let client = node.client().await;
    let patient = script(&format!(
        r#"read line; echo x >> tries
        retry='{{"type":"system","subtype":"api_retry","error_status":429}}'
        echo "$retry"
        case $(wc -l < tries) in
        3) {SAYS}; echo "$retry"; echo "$retry" ;;
        5) echo '{{"type":"result","is_error":false,"result":"done"}}'; exit ;;
        esac
        echo '{{"type":"result","is_error":true,"api_error_status":429,"result":"limited"}}'"#
    ));
    let (ended, told) = turn(&client, &patient).await;
    assert_eq!(ended, answered("done"));
    let limit = ["rate limited"; 2];
    let once = [&["accepted", "started"][..], &limit, &["heard", limit[0], "spoke", limit[1], "finished"]].concat();
    assert_eq!(kinds(&told), once);
    let waits = told.iter().filter_map(|record| match record.event {
        TurnEvent::RateLimited { retry_after_secs } => Some(retry_after_secs),
        _ => None,
    });
    assert_eq!(waits.collect::<Vec<_>>(), [None, Some(0), None, Some(0)]);
}

#[tokio::test]
async fn stop_ends_the_wait_at_once_and_nothing_lives_meanwhile() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    client.put_turn(id, &limited("", "")).await.unwrap();
    let mut told = client.turn_events(id, 0);
    while !matches!(told.next().await.unwrap().unwrap().event, TurnEvent::RateLimited { retry_after_secs: Some(300) }) {
    }
    assert!(node.wait_for_pids(1).await.into_iter().all(|pid| !lives(pid)));
    assert_eq!(client.status().await.unwrap().turn.unwrap().id, id);
    let began = Instant::now();
    assert_eq!(client.stop_turn(id, &stop(60_000)).await.unwrap(), Outcome::Stopped { processes: 0, killed: false });
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn stop_holds_though_the_agent_that_met_the_limit_has_not_ended_yet() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    // It puts its session away until somebody asks it to end.
    let mut request = limited("trap 'exit 0' TERM", "");
    let Agent::Command { argv } = &mut request.agent else { panic!() };
    argv[2].push_str("; touch away; while :; do sleep 0.05; done");
    client.put_turn(id, &request).await.unwrap();
    eventually(async || node.path("workspace/away").exists()).await;
    let began = Instant::now();
    let ended = client.stop_turn(id, &stop(1_000)).await.unwrap();
    assert!(matches!(ended, Outcome::Stopped { .. }), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    let told = events(&client, id, 0).await;
    assert_eq!(kinds(&told), ["accepted", "started", "finished"], "nobody waits for the limit");
    let TurnEvent::Finished { usage, .. } = &told[2].event else { panic!() };
    assert_eq!(usage.as_ref().unwrap().input_tokens, 2, "what it used is counted");
}

#[tokio::test]
async fn warnings_are_no_failures() {
    let node = Node::start().await;
    let client = node.client().await;
    let warned = script(
        r#"read line; echo '{"type":"rate_limit_event","rate_limit_info":{"status":"allowed_warning","resetsAt":1}}'; echo '{"type":"result","is_error":false,"result":"done"}'"#,
    );
    let (ended, told) = turn(&client, &warned).await;
    assert_eq!((ended, kinds(&told)), (answered("done"), vec!["accepted", "started", "finished"]));
    eventually(async || client.status().await.unwrap().turn.is_none()).await;
}
