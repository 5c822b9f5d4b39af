//! Nothing of a turn outlives it, whatever its processes do to get away (SLED-3, invariant 6).

use std::time::{Duration, Instant};

use link::requests::{FailureReason, Outcome};
use uuid::Uuid;

use crate::harness::{Node, lives, script, stop, turn};

/// Starts a process that has left the agent's session and group, whose parent is gone, and that does not listen to SIGTERM.
const RUNAWAY: &str =
    "(setsid sh -c 'trap \"\" TERM HUP INT; echo $$ > runaway.pid; while :; do sleep 0.1; done' > /dev/null 2>&1 &)";

/// Starts such a process whose first thread has ended, so that it looks dead, while another goes on.
pub const HEADLESS: &str = r#"(setsid python3 -c '
import ctypes, os, signal, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("headless.new", "w") as file: file.write(str(os.getpid()))
os.rename("headless.new", "headless.pid")
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).pthread_exit(None)
' > /dev/null 2>&1 &)
until test -s headless.pid && grep -q ") Z " "/proc/$(cat headless.pid)/stat"; do sleep 0.01; done"#;

const RESULT: &str = r#"echo '{"type":"result","is_error":false,"result":"done"}'"#;

#[tokio::test]
async fn stop_ends_runaways_and_the_deaf_within_its_grace() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let agent = script(&format!("trap '' TERM; {RUNAWAY}; echo $$ > agent.pid; while :; do sleep 0.1; done"));
    client.put_turn(id, &agent).await.unwrap();
    let pids = node.wait_for_pids(2).await;

    let began = Instant::now();
    let Outcome::Stopped { processes, killed } = client.stop_turn(id, &stop(300)).await.unwrap() else {
        panic!("not stopped")
    };
    assert!(killed && processes >= 2, "killed: {killed}, processes: {processes}");
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(5));
    assert!(pids.iter().all(|pid| !lives(*pid)));
}

#[tokio::test]
async fn a_grace_is_as_long_as_whoever_stops_says() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    // It takes longer than an agent has that ends by itself.
    client
        .put_turn(id, &script("trap 'sleep 7; exit' TERM; echo $$ > agent.pid; while :; do sleep 0.01; done"))
        .await
        .unwrap();
    node.wait_for_pids(1).await;
    let ended = client.stop_turn(id, &stop(50_000)).await.unwrap();
    assert!(matches!(ended, Outcome::Stopped { killed: false, .. }), "{ended:?}");
}

/// One that has answered, and is asked to end while it winds up.
#[tokio::test]
async fn a_grace_is_as_long_as_whoever_stops_says_also_for_a_turn_that_is_ending() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    let answered = r#"printf '{"type":"result","is_error":false,"result":"done"}\n'"#;
    let agent = format!(
        "trap 'sleep 7; touch ended; exit' TERM; {answered}; echo $$ > agent.pid; while :; do sleep 0.01; done"
    );
    client.put_turn(id, &script(&agent)).await.unwrap();
    node.wait_for_pids(1).await;
    client.stop_turn(id, &stop(50_000)).await.unwrap();
    assert!(node.path("workspace/ended").exists(), "it was killed before it had ended");
}

#[tokio::test]
async fn who_ends_when_asked_is_not_killed() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    client
        .put_turn(id, &script("trap 'echo x > asked; exit' TERM; echo $$ > agent.pid; while :; do sleep 0.01; done"))
        .await
        .unwrap();
    node.wait_for_pids(1).await;
    let began = Instant::now();
    assert!(matches!(client.stop_turn(id, &stop(60_000)).await.unwrap(), Outcome::Stopped { killed: false, .. }));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(node.path("workspace/asked").exists());
}

#[tokio::test]
async fn what_an_agent_leaves_behind_ends_with_its_turn() {
    let node = Node::start().await;
    let client = node.client().await;
    let agent = script(&format!("{RUNAWAY}; until test -s runaway.pid; do sleep 0.01; done; {RESULT}"));
    let (outcome, _) = turn(&client, &agent).await;
    assert_eq!(outcome, Outcome::Answered { text: "done".to_owned() });
    let pids = node.pids();
    assert!(pids.len() == 1 && !lives(pids[0]));
}

#[tokio::test]
async fn an_agent_that_stays_after_its_result_is_ended_too() {
    let node = Node::start().await;
    let client = node.client().await;
    let (outcome, _) =
        turn(&client, &script(&format!("trap '' TERM; echo $$ > agent.pid; {RESULT}; sleep 1000"))).await;
    assert_eq!(outcome, Outcome::Answered { text: "done".to_owned() });
    assert!(node.pids().into_iter().all(|pid| !lives(pid)));
}

#[tokio::test]
async fn the_tree_dies_even_if_its_supervisor_is_killed() {
    let node = Node::start().await;
    let client = node.client().await;
    let agent = script(&format!(
        "{RUNAWAY}; until test -s runaway.pid; do sleep 0.01; done; {HEADLESS}; echo $$ > agent.pid; kill -9 $PPID; sleep 1000"
    ));
    let (outcome, _) = turn(&client, &agent).await;
    assert!(
        matches!(outcome, Outcome::Failed { reason: FailureReason::Exited { code: None, signal: Some(9) }, .. }),
        "{outcome:?}"
    );
    let pids = node.pids();
    assert_eq!(pids.len(), 3);
    assert!(pids.into_iter().all(is_dead));
}

#[tokio::test]
async fn a_supervisor_that_is_stopped_holds_no_answer_back() {
    let node = Node::start().await;
    let client = node.client().await;
    let agent = script(&format!(
        "{RUNAWAY}; until test -s runaway.pid; do sleep 0.01; done; echo $$ > agent.pid; kill -STOP $PPID; {RESULT}"
    ));
    // The rest of its end is `without_supervisor`'s.
    assert_eq!(turn(&client, &agent).await.0, Outcome::Answered { text: "done".to_owned() });
    let pids = node.pids();
    assert_eq!(pids.len(), 2);
    assert!(pids.into_iter().all(is_dead));
    // Nor is a stop held up. The supervisor may not even have told that it began.
    let id = Uuid::now_v7();
    client.put_turn(id, &script("kill -STOP $PPID; echo $$ > late.pid; exec sleep 1000")).await.unwrap();
    node.wait_for_pids(3).await;
    let began = Instant::now();
    let ended = client.stop_turn(id, &stop(300)).await.unwrap();
    let not_begun = |reason: &FailureReason| matches!(reason, FailureReason::NotStarted { .. });
    let is_over = match &ended {
        Outcome::Stopped { killed, .. } => *killed,
        Outcome::Failed { reason, .. } => not_begun(reason),
        _ => false,
    };
    assert!(is_over && began.elapsed() < Duration::from_secs(10), "{ended:?} after {:?}", began.elapsed());
    assert!(node.pids().into_iter().all(is_dead));
}

/// Whoever inherits it reaps it; dead it may be already.
fn is_dead(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || (stat.contains(") Z ") && stat.split(' ').nth(19) == Some("1"))
}

#[tokio::test]
async fn a_process_that_forks_and_exits_over_and_over_is_caught() {
    let node = Node::start().await;
    let client = node.client().await;
    let id = Uuid::now_v7();
    std::fs::write(
        node.path("workspace/hop.sh"),
        "trap '' TERM\necho $$ > hop.pid.new; mv hop.pid.new hop.pid\nsh hop.sh &\n",
    )
    .unwrap();
    client
        .put_turn(id, &script("trap '' TERM; sh hop.sh & sh hop.sh & echo $$ > agent.pid; sleep 1000"))
        .await
        .unwrap();
    node.wait_for_pids(2).await;
    assert!(matches!(client.stop_turn(id, &stop(100)).await.unwrap(), Outcome::Stopped { killed: true, .. }));
    let last = node.pids();
    // A hopper that had got away would have left a newer trace by the time that another turn has come and gone.
    turn(&client, &script(RESULT)).await;
    assert_eq!(node.pids(), last);
    assert!(last.into_iter().all(|pid| !lives(pid)));
}

#[tokio::test]
async fn the_agent_is_the_first_to_go_when_memory_is_short() {
    let node = Node::start().await;
    let client = node.client().await;
    // The supervisor takes its own back after the agent's start.
    let agent = r#"scores() { cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj; }
        n=0; until set -- $(scores); test "$1" -gt "$2" || test $n -gt 100; do n=$((n + 1)); sleep 0.05; done
        printf '{"type":"result","is_error":false,"result":"%s %s"}\n' $(scores)"#;
    let (outcome, _) = turn(&client, &script(agent)).await;
    let Outcome::Answered { text } = outcome else { panic!("{outcome:?}") };
    let scores: Vec<i32> = text.split(' ').map(|score| score.parse().unwrap()).collect();
    assert!(scores[0] > scores[1], "agent and supervisor have {scores:?}");
}
