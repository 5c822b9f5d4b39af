//! Drafts: their pace, their end, and that they give way.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn draft(life: &Life) -> Progress {
    Progress::new(&life.outbox, to(), "final")
}

/// Whether no request of a draft was begun after the message that ends it was begun to be sent. A surface that is known to
/// hang may have a draft looked for, which it may have taken.
fn ends_before(hall: &Hall, text: &str, hangs: bool) -> bool {
    let asked = hall.asked();
    let end = asked.iter().position(|ask| matches!(ask, Ask::Send(message) if message.markdown == text));
    let is_over = |ask: &Ask| !ask.is_draft() || hangs && matches!(ask, Ask::Find(..));
    asked[end.unwrap()..].iter().all(is_over)
}

/// Whether none was still under way either.
fn ends_wholly_before(hall: &Hall, text: &str) -> bool {
    ends_before(hall, text, false) && hall.with(|inside| inside.clashes == 0)
}

#[tokio::test(start_paused = true)]
async fn the_pace_is_kept_and_the_last_text_is_seen() {
    let (folder, hall) = (folder(), Hall::obliging());
    let life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show("a");
    progress.show("b");
    hall.until(|inside| inside.answered == 1).await;
    progress.show("c");
    hall.until(|inside| inside.answered == 2).await;
    progress.show("d");
    progress.show("e");
    progress.close().await;
    let asked = hall.asked();
    let [Ask::Send(first), Ask::Edit(event, _), Ask::Edit(same, last)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((first.markdown.as_str(), first.transaction.as_str()), ("b", "draft-final"));
    assert_eq!((first.weight, event, same, last.markdown.as_str()), (Weight::Notice, &"0".to_owned(), event, "e"));
    assert_eq!(hall.waits(), [3, 0], "nobody waits for the pace at the end");
    life.idle().await;
    life.tasks.shutdown(Duration::ZERO).await.expect("no task is left");
}

#[tokio::test(start_paused = true)]
async fn the_time_in_it_goes_on_by_itself() {
    let (folder, hall) = (folder(), Hall::obliging());
    let life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show_since("building", Instant::now());
    hall.asked_for(4).await;
    progress.show("built");
    progress.close().await;
    let asked = hall.asked();
    let texts: Vec<_> = asked
        .iter()
        .map(|ask| match ask {
            Ask::Send(message) | Ask::Edit(_, message) => message.markdown.as_str(),
            Ask::Find(..) | Ask::TakeBack(..) => "",
        })
        .collect();
    assert_eq!(texts, ["building", "building (18 s)", "building (36 s)", "building (54 s)", "built"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_it_is_sent_after_the_message_that_ends_it() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    let (progress, other) = (draft(&life), Progress::new(&life.outbox, to(), "another"));
    progress.show("working");
    hall.until(|inside| inside.answered == 1).await;
    progress.show("never seen");
    life.post("final").await;
    life.outcomes(1).await;
    progress.show("never seen either");
    // Another draft of the room goes on.
    for text in ["still", "still there"] {
        let before = hall.asked().len();
        other.show(text);
        hall.asked_for(before + 1).await;
    }
    progress.close().await;
    other.close().await;
    assert_eq!(hall.texts(), ["working", "final", "still there"]);
    life.idle().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_draft_has_begun_ends_first_and_is_not_waited_for_when_that_takes_long() {
    for (does, shown) in [(Does::TakesWhenLet, ["done", "final"]), (Does::Hangs, ["working", "final"])] {
        let (folder, hall) = (folder(), Hall::obliging());
        let mut life = Life::begin(&folder, &hall).await;
        let progress = draft(&life);
        progress.show("working");
        hall.until(|inside| inside.answered == 1).await;
        hall.follows(move |_, ask| if ask.is_draft() { does } else { Does::Takes });
        progress.show("done");
        hall.asked_for(2).await;
        life.post("final").await;
        life.until(|busy| busy.gate.is_claimed()).await;
        assert_eq!(hall.asked().len(), 2, "the draft goes first");
        hall.letting.notify_one();
        life.outcomes(1).await;
        progress.show("never seen");
        progress.close().await;
        assert_eq!(hall.texts(), shown);
        assert!(if does == Does::Hangs {
            ends_before(&hall, "final", true)
        } else {
            ends_wholly_before(&hall, "final")
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_text_that_comes_after_the_end_is_taken_out() {
    let trouble = [Does::AsksToWait(SECOND), Does::Fails, Does::Takes];
    // One that is taken late, and one that is taken and whose answer is lost.
    for (does, before) in [(Does::TakesWhenLet, 2), (Does::TakesAndFailsWhenLet, 3)] {
        let (folder, hall) = (folder(), Hall::obliging());
        let mut life = Life::begin(&folder, &hall).await;
        let mut troubles = trouble.into_iter();
        hall.follows(move |_, ask| match ask {
            Ask::Send(message) if message.markdown == "working" => does,
            Ask::TakeBack(..) => troubles.next().unwrap(),
            _ => Does::Takes,
        });
        let progress = draft(&life);
        progress.show("working");
        hall.asked_for(1).await;
        let begun = Instant::now();
        life.post("final").await;
        life.outcomes(1).await;
        assert_eq!(begun.elapsed().as_secs(), 2, "it is not waited for long");
        progress.show("never seen");
        progress.close().await;
        hall.letting.notify_one();
        life.idle_on_paused_clock().await;
        assert_eq!(hall.texts(), ["final"]);
        let place = hall.with(|inside| inside.taken_out.iter().cloned().collect::<Vec<_>>());
        let take_back = Ask::TakeBack(place[0].clone(), "late-draft-final".to_owned());
        let asked = hall.asked();
        assert_eq!(asked[before..], vec![take_back; 3], "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_text_that_comes_late_and_before_its_end_is_edited_on() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    hall.follows(|n, _| if n == 0 { Does::TakesWhenLet } else { Does::Takes });
    let progress = draft(&life);
    progress.show("a");
    hall.asked_for(1).await;
    life.post("notice").await;
    life.outcomes(1).await;
    progress.show("b");
    hall.letting.notify_one();
    hall.asked_for(3).await;
    progress.close().await;
    life.idle().await;
    assert_eq!(hall.texts(), ["notice", "b"]);
    assert!(matches!(&hall.asked()[2], Ask::Edit(event, _) if event == "1"), "it is not sent twice");

    // One that nothing has ended when the gateway stops is the next one's to edit.
    hall.follows(|_, _| Does::TakesAfter(5 * SECOND));
    let other = Progress::new(&life.outbox, to(), "other");
    other.show("c");
    hall.asked_for(4).await;
    drop(other);
    life.tasks.shutdown(10 * SECOND).await.expect("it has its time");
    assert_eq!(hall.texts(), ["notice", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn drafts_wait_while_a_message_is_on_its_way() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show("a");
    hall.until(|inside| inside.answered == 1).await;
    hall.follows(|n, _| if n < 5 { Does::AsksToWait(20 * SECOND) } else { Does::Takes });
    life.post("notice").await;
    hall.asked_for(2).await;
    progress.show("b");
    hall.asked_for(4).await;
    progress.show("c");
    life.outcomes(1).await;
    hall.asked_for(7).await;
    let asked = hall.asked();
    assert!(asked[1..6].iter().all(|ask| !ask.is_draft()), "{asked:?}");
    assert!(matches!(&asked[6], Ask::Edit(_, message) if message.markdown == "c"), "{asked:?}");
    // At its end there is no time to wait: its last text is left out.
    hall.follows(|_, _| Does::Hangs);
    life.post("stuck").await;
    hall.asked_for(8).await;
    progress.show("d");
    let begun = Instant::now();
    progress.close().await;
    assert!(begun.elapsed() < SECOND / 2);
    assert_eq!(hall.texts(), ["c", "notice"]);
}

#[tokio::test(start_paused = true)]
async fn a_draft_that_waited_for_its_room_does_not_go_on_after_its_end() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    hall.follows(|_, _| Does::TakesWhenLet);
    life.post("notice").await;
    hall.asked_for(1).await;
    progress.show("waiting");
    for _ in 0..10 {
        // It comes to the gate, and no further.
        tokio::task::yield_now().await;
    }
    life.post("final").await;
    hall.follows(|_, _| Does::Takes);
    hall.letting.notify_one();
    life.outcomes(2).await;
    progress.close().await;
    life.idle().await;
    assert_eq!(hall.texts(), ["notice", "final"]);
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_slow_surface_no_longer_than_its_pace() {
    let (folder, hall) = (folder(), Hall::new(|_, _| Does::Hangs));
    let mut life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show("a");
    let begun = Instant::now();
    progress.close().await;
    assert_eq!(begun.elapsed().as_secs(), PACE.as_secs());
    // What is begun still gives way to what ends it.
    hall.follows(|_, _| Does::Takes);
    life.post("final").await;
    life.outcomes(1).await;
    assert_eq!(hall.texts(), ["final"]);
}

#[tokio::test(start_paused = true)]
async fn a_draft_that_is_dropped_shows_nothing_more_and_one_that_is_refused_neither() {
    let (folder, hall) = (folder(), Hall::obliging());
    let life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show("a");
    hall.until(|inside| inside.answered == 1).await;
    progress.show("never seen");
    drop(progress);
    life.idle().await;
    assert_eq!(hall.texts(), ["a"]);

    hall.follows(|_, _| Does::Refuses);
    let progress = Progress::new(&life.outbox, to(), "other");
    progress.show("b");
    hall.until(|inside| inside.answered == 2).await;
    progress.show("c");
    progress.close().await;
    assert_eq!((hall.asked().len(), life.events().await), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_draft_that_is_not_taken_is_tried_again_with_its_newest_text() {
    let folder = folder();
    let plan = [Does::AsksToWait(40 * SECOND), Does::TakesAndFails, Does::Takes, Does::Fails, Does::Takes];
    let hall = Hall::new(move |n, _| plan[n]);
    let life = Life::begin(&folder, &hall).await;
    let progress = draft(&life);
    progress.show("a");
    hall.asked_for(2).await;
    progress.show("b");
    hall.until(|inside| inside.answered == 5).await;
    // The third try was answered with the message that the second had sent: only an edit shows the newer text.
    assert_eq!(hall.texts(), ["b"]);
    let edits = hall.asked().iter().filter(|ask| matches!(ask, Ask::Edit(..))).count();
    assert_eq!((edits, hall.waits()[0]), (2, 40));
    progress.close().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_same_draft_is_edited_to_its_end() {
    for (found, remembers) in [(true, false), (false, true)] {
        let (folder, hall) = (folder(), Hall::obliging());
        let life = Life::begin(&folder, &hall).await;
        let progress = draft(&life);
        progress.show("before");
        hall.until(|inside| inside.answered == 1).await;
        drop(progress);
        life.idle().await;
        hall.with(|inside| inside.remembers = remembers);
        hall.follows(move |_, ask| if !found && matches!(ask, Ask::Find(..)) { Does::Refuses } else { Does::Takes });
        let since = Timestamp::UNIX_EPOCH;
        let progress = Progress::resume(&life.outbox, to(), "final", since);
        progress.show("after");
        hall.until(|inside| inside.shown[0].1.markdown == "after").await;
        progress.show("end");
        progress.close().await;
        assert_eq!(hall.texts(), ["end"]);
        assert_eq!(hall.asked()[1], Ask::Find("draft-final".to_owned(), since));
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_timing_a_draft_never_follows_its_end() {
    // Small steps of both sides against each other: when a text is shown, when the end is committed, how long a request
    // takes.
    let folder = folder();
    let mut life = Life::without_surface(&folder).await;
    let mut late = 0;
    for case in 0..200_u64 {
        let step =
            move |nth: u32| Duration::from_millis(case.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(nth) % 4000);
        // In a third of the cases a draft takes as long as it is not let to end.
        let (slow, lets) = (case % 3 == 0, case / 3 % 4);
        let hall = Hall::new(move |n, ask| match n % 4 {
            3 => Does::Fails,
            _ if slow && ask.is_draft() => Does::TakesWhenLet,
            n => Does::TakesAfter(step(u32::try_from(n).unwrap() * 5) / 2),
        });
        life.outbox.add(Arc::clone(&hall) as SharedSurface);
        let name = format!("final {case}");
        let progress = Progress::new(&life.outbox, to(), name.as_str());
        for nth in 0..3 {
            progress.show(format!("text {nth}"));
            tokio::time::sleep(step(nth * 7 + 11)).await;
            if u64::from(nth) < lets {
                hall.letting.notify_one();
            }
        }
        progress.show("last");
        let mut progress = Some(progress);
        if let Some(progress) = progress.take_if(|_| case % 2 == 0) {
            progress.close().await;
        }
        life.post(&name).await;
        life.outcomes(1).await;
        if let Some(progress) = progress {
            progress.close().await;
        }
        while !life.outbox.places().busy.is_empty() {
            hall.letting.notify_waiters();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(ends_before(&hall, &name, slow), "case {case}: {:?}", hall.asked());
        assert!(slow || ends_wholly_before(&hall, &name), "case {case}: {:?}", hall.asked());
        assert_eq!(hall.texts().last(), Some(&name), "case {case}: {:?}", hall.asked());
        late += hall.with(|inside| inside.taken_out.len());
    }
    assert!(late > 0, "some came late");
}
