//! What is true at a turn's end, also where the journal or musher itself fails.

use journal::Decoded;

use super::*;

#[tokio::test]
async fn a_turns_end_and_its_count_are_one_transaction() {
    let mut stage = Stage::new([Some(accepting().merge(events(finished("done"))))]).await;
    stage.say("hello", false).await;
    assert_eq!(stage.answer().await.markdown, "done");
    let counts = stage.journal.read(&StreamId::new("usage", "one"), 0).await.expect("it is readable");
    let Stage { session: SessionKey { project, room, .. }, .. } = &stage;
    let stream = StreamId::new("session", format_args!("{project} {room}"));
    let session = stage.journal.read(&stream, 0).await.expect("it is readable");
    let finished = session.last().expect("it is not empty");
    assert_eq!((&*finished.kind, counts.len()), ("session.turn_finished", 1));
    assert_eq!((counts[0].position, counts[0].time), (finished.position + 1, finished.time), "in one transaction");
}

#[tokio::test]
async fn a_turn_that_is_taken_up_has_lasted_since_it_began() {
    // A clock that was set back meanwhile counts for nothing.
    for (after, least) in [(7200, 7_200_000), (-7200, 0)] {
        let mut stage = Stage::new([Some(events(finished("done")))]).await;
        stage.take_up_after("hello", after).await;
        assert_eq!(stage.answer().await.markdown, "done");
        let counts = stage.journal.read(&StreamId::new("usage", "one"), 0).await.expect("it is readable");
        let count = counts.last().expect("it is counted").decode::<UsageEvent>().expect("it is readable");
        let Decoded::Known(UsageEvent::TurnEnded { millis, .. }) = count else { panic!("{count:?}") };
        assert!((least..least + 60_000).contains(&millis), "{millis}");
    }
}

#[tokio::test]
async fn a_turn_whose_end_is_not_journaled_has_not_ended() {
    let (answer, answered) = oneshot::channel::<()>();
    let answered = Arc::new(Mutex::new(Some(answered)));
    let (asked, mut asking) = mpsc::unbounded_channel();
    let following = get(move || {
        let answered = answered.lock().expect("no test panics holding it").take().expect("it is read once");
        asked.send(()).expect("the test waits");
        async move {
            answered.await.expect("it is answered");
            finished("done")
        }
    });
    let stage = Stage::new([Some(accepting().route(paths::TURN_EVENTS, following))]).await;
    stage.say("hello", false).await;
    asking.recv().await.expect("the turn is followed");
    stage.journal.close().await;
    answer.send(()).expect("the sled waits");
    while stage.journal.append_failures() == 0 {
        tokio::task::yield_now().await;
    }
    stage.tasks.shutdown(Duration::from_secs(10)).await.expect("it is given up");
    assert_eq!((stage.endings(), stage.turns.running()), (Vec::new(), 0));
}

#[tokio::test]
async fn a_fault_of_our_own_ends_its_turn_visibly_and_the_session_goes_on() {
    let stopped = || stopping(Outcome::Stopped { processes: 1, killed: false });
    let mut stage = Stage::new([Some(accepting().merge(events(finished("done"))))]).await;
    stage.script.faults.store(1, Ordering::SeqCst);
    stage.say("one", false).await;
    let told = stage.answer().await;
    assert_eq!(told.markdown, "⚠ A fault in musher itself broke this off: its log tells where.\nWrite again to go on.");
    assert_eq!((told.answers, stage.killed()), (vec!["one".to_owned()], 0), "nothing was handed over");
    stage.say("two", false).await;
    assert_eq!(stage.answer().await.markdown, "done");
    assert!(stage.left().await.unfinished.is_empty());

    // A turn that may run in its sled is ended there, or with its container.
    for (sleds, faults, killed) in [(vec![Some(stopped())], 1, 0), (Vec::new(), 2, 0), (Vec::new(), 1, 1)] {
        let mut stage = Stage::new(sleds).await;
        stage.script.faults.store(faults, Ordering::SeqCst);
        stage.take_up("three").await;
        let told = stage.answer().await;
        assert!(told.markdown.starts_with("⚠ A fault in musher itself broke this off"), "{}", told.markdown);
        assert_eq!(told.markdown.contains("It may still run"), faults == 2, "{}", told.markdown);
        assert_eq!((stage.killed(), stage.endings()), (killed, vec![Ending::Failed]));
        assert!(stage.left().await.unfinished.is_empty());
    }
}

#[tokio::test]
async fn where_telling_takes_no_time_the_last_tool_call_is_told_before_the_answer() {
    let called = |seq, name: &str| record(seq, TurnEvent::ToolCalled { name: name.into(), summary: "x".into() });
    let (first, rest) =
        (called(1, "Write"), [called(2, "Bash"), ended(3, Outcome::Answered { text: "done".into() })].concat());
    let (go_on, going) = oneshot::channel::<()>();
    let going = Arc::new(Mutex::new(Some(going)));
    let following = get(move || {
        let going = going.lock().expect("no test panics holding it").take().expect("it is read once");
        let rest = rest.clone();
        let later = async move {
            going.await.expect("the test tells when");
            Ok::<_, std::convert::Infallible>(rest)
        };
        let lines = futures_util::stream::iter([Ok(first.clone())]).chain(futures_util::stream::once(later));
        async move { axum::body::Body::from_stream(lines) }
    });
    let stage = Stage::new([Some(accepting().route(paths::TURN_EVENTS, following))]).await;
    // It stands for one edit an hour.
    let (mut hall, mut heard) = Hall::new(SurfaceKind::Console);
    (hall.edit_interval, hall.is_instant) = (Duration::from_hours(1), true);
    stage.outbox.add(Arc::new(hall));
    let mut shown = async || heard.shown.recv().await.expect("the surface is alive").markdown;
    stage.say("hello", false).await;
    assert_eq!(shown().await, "· Write `x`");
    go_on.send(()).expect("the sled waits");
    assert_eq!(shown().await, "· Write `x`\n· Bash `x`");
    assert_eq!(shown().await, "done");
}

#[tokio::test]
async fn a_stop_of_a_turn_that_died_with_its_sled_says_that_it_stopped_it() {
    for (interrupts, told, ending) in
        [(false, "Stopped before the agent began.", Ending::Stopped), (true, "both", Ending::Superseded)]
    {
        let (following, mut followed) = mpsc::unbounded_channel();
        let silent = get(move || {
            following.send(()).expect("the test waits");
            std::future::pending::<String>()
        });
        let first = accepting().route(paths::TURN_EVENTS, silent);
        let next = accepting().merge(events(finished("both")));
        let mut stage = Stage::new([Some(first), Some(stopping(Outcome::Interrupted)), Some(next)]).await;
        stage.say("one", interrupts).await;
        followed.recv().await.expect("the turn is followed");
        if interrupts {
            stage.say("two", true).await;
        } else {
            stage.stop().await;
        }
        assert_eq!(stage.answer().await.markdown, told);
        assert_eq!(stage.endings()[0], ending);
    }
}
