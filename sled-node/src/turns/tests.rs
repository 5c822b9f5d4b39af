//! Turns of a sled without agents: whoever goes away or holds something, they begin once and end.

use std::future::poll_fn;
use std::task::Poll;

use journal::{Append, Cause, Expected, NewEvent};
use link::requests::{Agent, AgentSession, Permissions};

use super::*;
use crate::room::Room;
use crate::workspace::Workspace;

/// Turns of a sled that finds no program to supervise by, so that each fails at its start.
async fn turns(folder: &std::path::Path) -> Turns {
    let journal = Journal::open(&folder.join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
    let sled = folder.join("no-such-sled");
    let surroundings = Surroundings {
        sled: sled.clone(),
        home: folder.to_owned(),
        environment: std::iter::empty::<(&str, &str)>().collect(),
        model_port: 1,
    };
    let supervision = Supervision { sled, run_dir: folder.to_owned() };
    let warm = Warm::new(Room { cgroups: folder.join("cgroup"), proc: folder.join("proc") });
    let (workspace, limit_backoff) = (folder.to_owned(), Duration::ZERO);
    let environment = surroundings.environment.clone();
    let commands = TaskTracker::new();
    let files = Workspace { directory: workspace.clone(), environment, supervision: supervision.clone(), commands };
    let snapshots = Snapshots::new(files);
    let site = Site { workspace, surroundings, supervision, warm, limit_backoff, snapshots };
    Turns::open(journal, "p".to_owned(), site).await.unwrap()
}

fn request() -> TurnRequest {
    let session = AgentSession { id: Uuid::nil(), resumed: false };
    let agent = Agent::Echo { notice: None };
    TurnRequest {
        session,
        agent,
        prompt: "hi".to_owned(),
        identity: None,
        attempt: 1,
        permissions: Permissions::Bypass,
        keep_warm_secs: 60,
        afresh: None,
    }
}

/// How a turn ended, by its events.
async fn end(turns: &Turns, id: Uuid) -> Outcome {
    let events = turns.events(id, 0).await.unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let events = timeout(Duration::from_secs(20), events).await.expect("a turn's events do not end");
    match &events.last().unwrap().event {
        TurnEvent::Finished { outcome, .. } => outcome.clone(),
        other => panic!("{other:?} is no end"),
    }
}

#[tokio::test]
async fn a_turn_runs_though_who_asked_for_it_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let turns = turns(folder.path()).await;
    for polls in 1..10 {
        let id = Uuid::from_u128(polls);
        {
            let mut left = polls;
            let mut put = std::pin::pin!(turns.put(id, request()));
            // It is dropped at whatever it awaits then.
            poll_fn(|context| {
                left -= 1;
                let ended = put.as_mut().poll(context).is_ready();
                if ended || left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        assert!(turns.put(id, request()).await.unwrap().already);
        let end = end(&turns, id).await;
        assert!(matches!(end, Outcome::Failed { .. }), "dropped after {polls}: {end:?}");
        assert_eq!(turns.stop(id, None, Duration::ZERO).await.unwrap(), end);
        assert_eq!(turns.running().await, None);
    }
}

#[tokio::test]
async fn a_turn_that_was_accepted_and_does_not_run_is_interrupted_whoever_asks() {
    let folder = tempfile::tempdir().unwrap();
    let turns = turns(folder.path()).await;
    let accepted = async |id: u128| {
        let (journal, actor) = (turns.shared.journal.clone(), turns.shared.actor.clone());
        Recorder::accept(journal, actor, Uuid::from_u128(id), 0, request()).await.unwrap();
        Uuid::from_u128(id)
    };
    assert_eq!(end(&turns, accepted(1).await).await, Outcome::Interrupted);

    assert_eq!(turns.stop(accepted(2).await, None, Duration::ZERO).await.unwrap(), Outcome::Interrupted);

    let id = accepted(3).await;
    assert!(turns.put(id, request()).await.unwrap().already);
    assert_eq!(end(&turns, id).await, Outcome::Interrupted);

    let id = accepted(4).await;
    let again = TurnRequest { attempt: 2, ..request() };
    assert!(!turns.put(id, again).await.unwrap().already);
    assert_eq!(end(&turns, id).await, Outcome::Interrupted);
    // Of the second attempt, to its end.
    assert!(turns.events(id, 2).await.unwrap().all(async |record| record.is_ok()).await);
    assert!(matches!(turns.stop(id, None, Duration::ZERO).await.unwrap(), Outcome::Failed { .. }));
}

#[tokio::test]
async fn a_start_reads_no_turn_whose_words_are_forgotten_and_passes_over_none_that_lives() {
    let folder = tempfile::tempdir().unwrap();
    let actor = Actor::Sled("p".to_owned());
    let [old, left, over] = [1, 2, 3].map(Uuid::from_u128);
    {
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(journal::SystemClock)).unwrap();
        let end = async |id| {
            let mut recorder = Recorder::accept(journal.clone(), actor.clone(), id, 0, request()).await.unwrap();
            recorder.finish(Outcome::Interrupted, None).await.unwrap();
        };
        end(old).await;
        forgetting::erase_prompts(&journal, &actor).await.unwrap();
        // Whoever read this one again could not go on.
        let unreadable = serde_json::value::RawValue::from_string("7".to_owned()).unwrap();
        let append = |id: Uuid, event| Append {
            stream: record::stream(id),
            expected: Expected::Any,
            events: vec![event],
            key: None,
            actor: actor.clone(),
            cause: Cause::None,
        };
        let unreadable = NewEvent::raw("turn.finished", 2, false, unreadable).unwrap();
        journal.append(append(old, unreadable)).await.unwrap();
        let erased = serde_json::value::RawValue::from_string(r#"{"up_to":4}"#.to_owned()).unwrap();
        let erased = Append {
            stream: journal::StreamId::new("prompts", "erased"),
            ..append(old, NewEvent::raw("prompts.erased", 1, true, erased).unwrap())
        };
        journal.append(erased).await.unwrap();
        Recorder::accept(journal.clone(), actor.clone(), left, 0, request()).await.unwrap();
        end(over).await;
        forgetting::erase_prompts(&journal, &actor).await.unwrap();
        journal.close().await;
    }
    let turns = turns(folder.path()).await;
    let left = turns.shared.journal.load::<Turn>(&record::stream(left)).await.unwrap();
    assert_eq!(left.state.outcome.map(|outcome| outcome.rest), Some(Outcome::Interrupted));
}

#[tokio::test]
async fn a_turn_that_its_stop_has_overtaken_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let turns = turns(folder.path()).await;
    let stopped = Outcome::Stopped { processes: 0, killed: false };
    let id = Uuid::from_u128(1);
    for _ in 0..2 {
        assert_eq!(turns.stop(id, None, Duration::ZERO).await.unwrap_err().kind, RefusalKind::UnknownTurn);
    }
    assert!(!turns.put(id, request()).await.unwrap().already);
    assert_eq!(turns.running().await, None);
    assert_eq!(end(&turns, id).await, stopped);
    assert!(turns.put(id, request()).await.unwrap().already);

    // The same of a second attempt, whose stop finds the end of the first.
    let id = Uuid::from_u128(2);
    let recorder = Recorder::accept(turns.shared.journal.clone(), turns.shared.actor.clone(), id, 0, request()).await;
    recorder.unwrap().finish(Outcome::Interrupted, None).await.unwrap();
    assert_eq!(turns.stop(id, None, Duration::ZERO).await.unwrap(), Outcome::Interrupted);
    turns.put(id, TurnRequest { attempt: 2, ..request() }).await.unwrap();
    assert_eq!(turns.stop(id, None, Duration::ZERO).await.unwrap(), stopped);

    // A sled that knows nothing of the turn is told which attempt it is. No earlier one is meant that it knows the end of.
    let id = Uuid::from_u128(4);
    turns.stop(id, Some(2), Duration::ZERO).await.unwrap_err();
    turns.put(id, TurnRequest { attempt: 2, ..request() }).await.unwrap();
    assert_eq!(end(&turns, id).await, stopped);
    let id = Uuid::from_u128(5);
    let recorder = Recorder::accept(turns.shared.journal.clone(), turns.shared.actor.clone(), id, 0, request()).await;
    recorder.unwrap().finish(Outcome::Interrupted, None).await.unwrap();
    assert_eq!(turns.stop(id, Some(1), Duration::ZERO).await.unwrap(), Outcome::Interrupted);
    assert!(!turns.shared.was_overtaken(id, 2));

    // What a later gateway decides anew is another attempt, and runs.
    let id = Uuid::from_u128(3);
    turns.stop(id, None, Duration::ZERO).await.unwrap_err();
    turns.put(id, TurnRequest { attempt: 2, ..request() }).await.unwrap();
    assert!(matches!(end(&turns, id).await, Outcome::Failed { .. }));

    // However many there are, what is kept of them is bounded; the latest are what matters.
    for id in 10..10 + 2 * OVERTAKEN_MAX as u128 {
        turns.stop(Uuid::from_u128(id), None, Duration::ZERO).await.unwrap_err();
    }
    assert_eq!(turns.shared.overtaken.lock().unwrap().len(), OVERTAKEN_MAX);
    let last = Uuid::from_u128(9 + 2 * OVERTAKEN_MAX as u128);
    turns.put(last, request()).await.unwrap();
    assert_eq!(end(&turns, last).await, stopped);
}

#[tokio::test]
async fn what_people_said_is_forgotten_soon_after() {
    let folder = tempfile::tempdir().unwrap();
    let turns = turns(folder.path()).await;
    let prompt = async |id: Uuid| {
        let accepted = turns.events(id, 0).await.unwrap().boxed().next().await.unwrap().unwrap().event;
        let TurnEvent::Accepted(request) = accepted else { panic!("{accepted:?}") };
        request.prompt
    };
    let forgetting = turns.clone();
    let forgetting = tokio::spawn(async move { forgetting.forget_prompts().await });
    for id in [1, 2].map(Uuid::from_u128) {
        turns.put(id, request()).await.unwrap();
        assert!(matches!(end(&turns, id).await, Outcome::Failed { .. }));
        assert_eq!(prompt(id).await, "hi");
        tokio::time::pause();
        while prompt(id).await != crate::stored::FORGOTTEN {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
        assert!(turns.put(id, request()).await.unwrap().already);
    }
    forgetting.abort();
}

#[tokio::test]
async fn a_turn_is_stopped_though_somebody_works_on_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let turns = turns(folder.path()).await;
    let held = turns.shared.site.snapshots.hold().await;
    let id = Uuid::from_u128(1);
    let request = TurnRequest { agent: Agent::Command { argv: vec!["true".to_owned()] }, ..request() };
    turns.put(id, request).await.unwrap();
    let stopped = timeout(Duration::from_secs(20), turns.stop(id, None, Duration::ZERO)).await;
    let stopped = stopped.expect("it waits for the records").unwrap();
    assert_eq!(stopped, Outcome::Stopped { processes: 0, killed: false });
    assert_eq!(turns.running().await, None);
    drop(held);
}

#[tokio::test]
async fn a_fault_of_our_own_is_an_end_too() {
    let verdict = recorded::survived(async { panic!("a fault") }).await;
    assert!(matches!(verdict.outcome, Outcome::Failed { .. }), "{:?}", verdict.outcome);
}
