//! Order, retries, what is given up, and the end.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio_util::task::TaskTracker;

use super::{
    events::{OutboxEvent, Undelivered},
    lane::{LONGEST_LOOKING, LONGEST_TRYING, SNAPSHOT_EVERY},
    *,
};

fn delivered(places: &[usize]) -> Vec<Outcome> {
    places.iter().map(|place| Outcome::Delivered(place.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_however_often_they_are_tried() {
    let folder = folder();
    let troubles = [
        Does::AsksToWait(Duration::from_secs(7)),
        Does::TakesAndFails,
        Does::Takes,
        Does::Fails,
        Does::Fails,
        Does::AsksToWait(Duration::ZERO),
        Does::Takes,
    ];
    let hall = Hall::new(move |n, _| troubles[n % troubles.len()]);
    let mut life = Life::begin(&folder, &hall).await;
    let names: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    join_all(names.iter().map(|name| life.post(name))).await;
    let outcomes = life.outcomes(40).await;
    life.idle().await;
    assert_eq!(outcomes, delivered(&(0..40).collect::<Vec<_>>()));
    assert_eq!(hall.texts(), life.queued().await);
    let counts = life.outbox.counts();
    assert!((counts.delivered, counts.given_up) == (40, 0) && counts.retries > 40, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_room_has_no_lane_and_takes_no_memory() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    for n in 0..3 {
        life.post(&n.to_string()).await;
        life.outcomes(1).await;
        life.idle().await;
    }
    life.tasks.shutdown(Duration::ZERO).await.expect("no task is left to wait for");
    assert!(Life::without_surface(&folder).await.outbox.places().busy.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_while_a_lane_is_about_to_end_is_read_by_it() {
    let folder = folder();
    let life = Life::without_surface(&folder).await;
    // As if a lane ran, which has sent all that it knows of.
    life.outbox.places().busy.entry(room()).or_default().lane = true;
    life.post("one").await;
    let step = || life.outbox.step(&room(), &Undelivered::default());
    assert!(matches!(step(), Step::Read));
    // Had it read nothing, it could end now; what comes then starts another.
    assert!(matches!(step(), Step::End));
    life.post("two").await;
    life.until(|busy| busy.undelivered == 2 && !busy.lane).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_surface_asks_for_is_honoured_and_else_the_wait_doubles() {
    let folder = folder();
    let secs = Duration::from_secs;
    let plan = [Does::AsksToWait(secs(300)), Does::AsksToWait(secs(3600)), Does::AsksToWait(Duration::ZERO)];
    let hall = Hall::new(move |n, ask| match ask {
        Ask::Find(..) => Does::Takes,
        _ => plan.get(n).copied().unwrap_or(if n < 20 { Does::Fails } else { Does::Takes }),
    });
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    life.outcomes(1).await;
    // From the first unclear failure on it is looked for before each try, at the same moment.
    let waits: Vec<_> = hall.waits();
    assert_eq!(waits, [300, 3600, 0, 1, 0, 2, 0, 4, 0, 8, 0, 16, 0, 32, 0, 60, 0, 60, 0, 60, 0]);
    assert_eq!(life.outbox.counts().retries, 12);
}

#[tokio::test(start_paused = true)]
async fn a_surface_that_asks_to_wait_for_longer_than_a_message_is_tried_is_asked_once_more_then() {
    let folder = folder();
    let week = Duration::from_hours(7 * 24);
    let hall = Hall::new(move |n, _| if n < 2 { Does::AsksToWait(week) } else { Does::Takes });
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    assert!(matches!(life.outcomes(1).await[..], [Outcome::GivenUp]));
    assert_eq!(hall.waits()[0], LONGEST_TRYING.as_secs());
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_sent_is_looked_for_before_it_is_sent_again() {
    let folder = folder();
    let hall = Hall::new(|n, _| [Does::TakesAndFails, Does::Fails, Does::Takes][n]);
    hall.with(|inside| inside.remembers = false);
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    assert_eq!(life.outcomes(1).await, delivered(&[0]));
    let find = Ask::Find("one".to_owned(), Timestamp::UNIX_EPOCH);
    assert_eq!(hall.asked()[1..], [find.clone(), find]);
    assert_eq!(hall.texts(), ["one"]);
    // A surface that asks to wait has not taken it: nothing is looked for. One that does not let us look is sent to.
    let plan = [Does::AsksToWait(Duration::from_secs(1)), Does::Fails, Does::Refuses, Does::Takes];
    hall.follows(move |n, _| plan[n - 3]);
    life.post("two").await;
    life.outcomes(1).await;
    let asked = hall.asked()[3..].iter().map(|ask| matches!(ask, Ask::Find(..))).collect::<Vec<_>>();
    assert_eq!(asked, [false, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_for_is_sent_under_its_transaction_after_ten_minutes() {
    let folder = folder();
    let hall = Hall::new(|n, ask| match ask {
        Ask::Find(..) => Does::Fails,
        _ if n == 0 => Does::TakesAndFails,
        _ => Does::Takes,
    });
    let mut life = Life::begin(&folder, &hall).await;
    let begun = Instant::now();
    life.outbox.commit(vec![post("one"), post("two")], vec![]).await.unwrap();
    assert_eq!(life.outcomes(2).await, delivered(&[0, 1]));
    let tried = begun.elapsed();
    assert!(tried >= LONGEST_LOOKING && tried < LONGEST_LOOKING + Duration::from_mins(2), "{tried:?}");
    assert_eq!(hall.texts(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_try_has_sent_is_looked_for_once_the_surface_is_back_however_long_it_was_away() {
    let folder = folder();
    let begun = Instant::now();
    let looks = AtomicUsize::new(0);
    let hall = Hall::new(move |n, ask| match ask {
        _ if n == 0 => Does::TakesAndFails,
        _ if begun.elapsed() < LONGEST_LOOKING * 3 => Does::Fails,
        Ask::Find(..) if looks.fetch_add(1, Ordering::Relaxed) == 0 => Does::AsksToWait(Duration::from_secs(1)),
        _ => Does::Takes,
    });
    hall.with(|inside| inside.remembers = false);
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    assert_eq!(life.outcomes(1).await, delivered(&[0]));
    assert_eq!(hall.texts(), ["one"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_given_up_visibly_and_the_room_is_told_once() {
    let folder = folder();
    let hall = Hall::new(|_, ask| match ask {
        Ask::Send(message) if message.markdown.starts_with("bad") => Does::Refuses,
        Ask::Send(message) if message.markdown.starts_with("panic") => Does::Panics,
        _ => Does::Takes,
    });
    let mut life = Life::begin(&folder, &hall).await;
    let mut bad = post("bad");
    (bad.to.thread, bad.to.reply_to) = (Some("thread".to_owned()), Some("asked".to_owned()));
    bad.markdown = format!("bad\n{}", "x".repeat(500));
    let posts = vec![bad, post("panic"), post("next")];
    life.outbox.commit(posts, vec![]).await.unwrap();
    let outcomes = life.outcomes(3).await;
    assert_eq!(outcomes, [Outcome::GivenUp, Outcome::GivenUp, Outcome::Delivered("0".to_owned())]);
    life.idle().await;
    let shown = hall.with(|inside| inside.shown.clone());
    assert_eq!(shown.len(), 3, "{shown:?}");
    let notice = &shown[1].1;
    assert!(notice.markdown.starts_with("⚠ A message could not be sent: too long. It begins: bad xxx"));
    assert!(notice.markdown.chars().count() < 400);
    assert_eq!((notice.transaction.as_str(), &notice.thread, &notice.reply_to), ("bad-refused", &None, &None));
    assert!(shown[2].1.markdown.contains("It begins: panic"));
    let (transaction, reason) = ("bad".to_owned(), "too long".to_owned());
    assert!(life.events().await.contains(&OutboxEvent::GivenUp { transaction, reason, parts: Vec::new() }));
    for (transaction, came_to) in [("bad", Some(false)), ("next", Some(true)), ("never", None)] {
        let settled = life.outbox.settled_at(&room(), transaction).await.expect("it is readable");
        assert_eq!(settled.map(|(_, delivered)| delivered), came_to, "{transaction}");
    }
    assert_eq!((life.outbox.counts().delivered, life.outbox.counts().given_up), (3, 2));
    // Whoever takes back what tells of it means what it tells.
    assert!(life.outbox.erase_sent(&room(), "1").await.unwrap());
    assert_eq!(life.journal.texts(life.texts("bad-refused").await).await.unwrap().len(), 0);
    let elsewhere = Room { id: "!elsewhere:b.c".into(), ..room() };
    assert_eq!((life.outbox.given_up_in(&room()), life.outbox.given_up_in(&elsewhere)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn when_the_notice_is_refused_too_there_is_no_further_one() {
    let folder = folder();
    let hall = Hall::new(|n, _| if n < 2 { Does::Refuses } else { Does::Takes });
    let mut life = Life::begin(&folder, &hall).await;
    life.post("bad").await;
    assert_eq!(life.outcomes(1).await, [Outcome::GivenUp]);
    life.idle().await;
    assert_eq!(life.queued().await, ["bad", "bad-refused"]);
    assert_eq!((life.outbox.counts().given_up, hall.texts().len()), (2, 0));
}

/// Three paragraphs, of which a part of 100 bytes holds one.
fn long(name: &str) -> Post {
    let paragraphs = ["one", "two", "three"].map(|word| format!("{word} {}", "x".repeat(60)));
    Post { markdown: paragraphs.join("\n\n"), ..post(name) }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_for_its_surface_arrives_in_parts_and_is_one_message() {
    // The second part is asked to wait for, the third may have arrived at the first try.
    let (folder, hall) = (
        folder(),
        Hall::new(|n, _| match n {
            1 => Does::AsksToWait(Duration::from_secs(7)),
            3 => Does::TakesAndFails,
            _ => Does::Takes,
        }),
    );
    hall.with(|inside| (inside.longest, inside.remembers) = (100, false));
    let mut life = Life::begin(&folder, &hall).await;
    let mut answer = long("long");
    let ann = Person { surface: SurfaceKind::Console, id: "ann".to_owned() };
    (answer.to.thread, answer.to.reply_to) = (Some("thread".to_owned()), Some("asked".to_owned()));
    answer.to.mention = Some(ann.clone());
    life.outbox.commit(vec![answer.clone(), post("next")], vec![]).await.unwrap();
    let settled = [life.settled.recv().await.unwrap(), life.settled.recv().await.unwrap()];
    assert_eq!(settled.each_ref().map(|settled| settled.transaction.as_str()), ["long", "next"]);
    assert_eq!(settled.map(|settled| settled.outcome).as_slice(), delivered(&[2, 3]));
    let shown: Vec<_> = hall.with(|inside| inside.shown.iter().map(|(_, message)| message.clone()).collect());
    let texts: Vec<_> = shown[..3].iter().map(|part| part.markdown.as_str()).collect();
    assert_eq!(texts.join("\n\n"), answer.markdown);
    let transactions: Vec<_> = shown.iter().map(|part| part.transaction.as_str()).collect();
    assert_eq!(transactions, ["long", "long-part-2", "long-part-3", "next"]);
    // People are called once, and what is answered is told once.
    assert_eq!(shown[..3].iter().map(|part| part.mention.clone()).collect::<Vec<_>>(), [Some(ann), None, None]);
    let replies: Vec<_> = shown[..3].iter().map(|part| part.reply_to.as_deref()).collect();
    assert_eq!(replies, [Some("asked"), None, None]);
    assert!(shown[..3].iter().all(|part| part.thread.as_deref() == Some("thread")));
    assert_eq!(shown[..3].iter().map(|part| part.answers.len()).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!((life.outbox.counts().delivered, life.queued().await.len()), (2, 2));
    assert_eq!(life.outbox.event_of(&room(), "long").await.unwrap().as_deref(), Some("2"));
    assert_eq!(life.outbox.transaction_of(&room(), "1").await.unwrap().as_deref(), Some("long"));
    // Whoever takes a part back means what stands in it, and it is one text.
    assert!(life.outbox.erase_sent(&room(), "0").await.unwrap());
    assert!(!life.outbox.erase_sent(&room(), "4").await.unwrap());
    assert_eq!(life.journal.erase_before(Timestamp::MAX).await.unwrap(), 1, "the next message keeps its own");
}

#[tokio::test(start_paused = true)]
async fn when_a_part_is_refused_the_room_is_told_of_the_rest_once() {
    let (folder, hall) = (
        folder(),
        Hall::new(|_, ask| match ask {
            Ask::Send(message) if message.markdown.starts_with("three") => Does::Refuses,
            _ => Does::Takes,
        }),
    );
    hall.with(|inside| inside.longest = 160);
    let mut life = Life::begin(&folder, &hall).await;
    life.outbox.post(long("long")).await.unwrap();
    assert_eq!(life.outcomes(1).await, [Outcome::GivenUp]);
    life.idle().await;
    let texts = hall.texts();
    assert_eq!((texts.len(), &texts[0][..3], life.outbox.counts().given_up), (2, "one", 1));
    assert!(
        texts[1].starts_with("⚠ The rest of a message could not be sent: too long. It begins: three xxx"),
        "{texts:?}"
    );
    assert_eq!(life.queued().await, ["long", "long-refused"]);
    // Of the parts that are there one is taken back, and with it all.
    assert!(life.outbox.erase_sent(&room(), "0").await.unwrap());
    assert_eq!(life.journal.texts(life.texts("long").await).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_never_taken_is_given_up_after_a_day() {
    let folder = folder();
    let hall = Hall::new(|_, ask| match ask {
        Ask::Send(message) if message.markdown == "one" => Does::Fails,
        _ => Does::Takes,
    });
    let mut life = Life::begin(&folder, &hall).await;
    let begun = Instant::now();
    life.post("one").await;
    life.post("two").await;
    assert_eq!(life.outcomes(2).await, [Outcome::GivenUp, Outcome::Delivered("0".to_owned())]);
    let tried = begun.elapsed();
    assert!(tried >= LONGEST_TRYING && tried < LONGEST_TRYING + Duration::from_mins(2), "{tried:?}");
    life.idle().await;
    let notice = "⚠ A message could not be sent: not taken for 24 h 0 min: busy. It begins: one";
    assert_eq!((hall.texts(), life.outbox.counts().given_up), (vec!["two".to_owned(), notice.to_owned()], 1));
    let told = life.events().await.into_iter().any(
        |event| matches!(event, OutboxEvent::GivenUp { reason, .. } if reason == "not taken for 24 h 0 min: busy"),
    );
    assert!(told);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_text_was_erased_is_given_up() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::without_surface(&folder).await;
    life.post("one").await;
    assert_eq!(life.journal.erase_before(Timestamp::MAX).await.unwrap(), 1);
    life.outbox.add(Arc::clone(&hall) as SharedSurface);
    assert_eq!(life.outcomes(1).await, [Outcome::GivenUp]);
    assert_eq!(hall.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn without_its_surface_a_message_waits_and_no_task_does() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::without_surface(&folder).await;
    life.post("one").await;
    life.until(|busy| !busy.lane).await;
    assert_eq!(life.outbox.undelivered(), 1);
    life.outbox.add(Arc::clone(&hall) as SharedSurface);
    assert_eq!(life.outcomes(1).await, delivered(&[0]));
    life.idle().await;
    assert_eq!(life.outbox.undelivered(), 0);
    // It was not tried before, so nothing was looked for.
    assert_eq!(hall.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_surface_that_is_not_coming_keeps_no_text() {
    let (folder, hall) = (folder(), Hall::obliging());
    let life = Life::without_surface(&folder).await;
    let elsewhere = Room { surface: SurfaceKind::Matrix, id: "!a:example.org".to_owned() };
    let mut post = post("one");
    post.to.room = elsewhere.clone();
    life.outbox.post(post).await.expect("the journal takes it");
    let queued = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(life.outbox.oldest().await.expect("it is readable"), queued, "its surface may come yet");
    assert_eq!(life.outbox.counts().undelivered, 1);
    life.outbox.add(Arc::clone(&hall) as SharedSurface);
    assert_eq!(life.outbox.oldest().await.expect("it is readable"), None);
    assert_eq!(life.outbox.counts().undelivered, 0, "nobody can do anything about it");
    assert_eq!(life.outbox.undelivered_in(&elsewhere), 1, "it is sent should its surface come back");
    hall.follows(|_, _| Does::Hangs);
    life.post("two").await;
    assert_eq!(life.outbox.oldest().await.expect("it is readable"), queued);
    assert_eq!(life.outbox.counts().undelivered, 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_message_is_held_until_it_is_settled() {
    let folder = folder();
    let hall = Hall::new(|n, _| [Does::Fails, Does::Takes, Does::Takes, Does::Refuses, Does::Refuses, Does::Takes][n]);
    let life = Life::begin(&folder, &hall).await;
    let waiting = |text: &str| {
        let tracker = TaskTracker::new();
        tracker.close();
        let mut post = post(text);
        post.to.pending = Some(tracker.token());
        (tracker, post)
    };
    let (one, message) = waiting("one");
    life.outbox.post(message).await.unwrap();
    hall.asked_for(1).await;
    assert!(!one.is_empty(), "it was tried and not taken");
    // Who posts it again waits for the same.
    let (again, message) = waiting("one");
    life.outbox.post(message).await.unwrap();
    one.wait().await;
    again.wait().await;
    assert_eq!(hall.texts(), ["one"]);
    let (bad, message) = waiting("bad");
    life.outbox.post(message).await.unwrap();
    bad.wait().await;
    let (late, message) = waiting("one");
    life.outbox.post(message).await.unwrap();
    late.wait().await;
    life.idle().await;
    // Who waits for one is not held by the next.
    hall.follows(|_, ask| match ask {
        Ask::Send(message) if message.markdown == "stuck" => Does::Hangs,
        _ => Does::Takes,
    });
    let ((three, message), (stuck, next)) = (waiting("three"), waiting("stuck"));
    life.outbox.commit(vec![message, next], vec![]).await.unwrap();
    three.wait().await;
    assert!(!stuck.is_empty());
}

#[tokio::test(start_paused = true)]
async fn at_the_stop_all_is_sent_that_can_be() {
    let (folder, hall) = (folder(), Hall::new(|_, _| Does::TakesAfter(Duration::from_secs(1))));
    let mut life = Life::begin(&folder, &hall).await;
    for name in ["one", "two", "three"] {
        life.post(name).await;
    }
    let (late, stopping) = (life.outbox.clone(), life.tasks.stopping());
    life.tasks.spawn_to_end("end of a turn", async move {
        stopping.cancelled().await;
        late.post(post("four")).await.unwrap();
    });
    life.tasks.stopping().cancel();
    life.outcomes(4).await;
    assert_eq!(hall.texts(), ["one", "two", "three", "four"]);
    life.idle().await;
    life.tasks.shutdown(Duration::ZERO).await.expect("no task is left");
}

#[tokio::test]
async fn a_wait_that_ends_before_the_deadline_is_waited_out_at_the_stop() {
    let (millis, secs) = (Duration::from_millis, Duration::from_secs);
    let check = async |deadline: Duration, plan: Vec<Does>, sent: usize| {
        let name = format!("{deadline:?} {plan:?}");
        let (folder, hall) = (folder(), Hall::new(move |n, _| plan.get(n).copied().unwrap_or(Does::Takes)));
        let life = Life::begin(&folder, &hall).await;
        life.outbox.commit(vec![post("one"), post("two")], vec![]).await.unwrap();
        hall.asked_for(1).await;
        let stopped = Instant::now();
        life.tasks.shutdown(deadline).await.expect("nothing outlasts it");
        assert_eq!(hall.texts().len(), sent, "{name}");
        assert!(sent == 2 || stopped.elapsed() < secs(5), "{name}");
    };
    check(secs(10), vec![Does::AsksToWait(millis(300))], 2).await;
    // Also where several are asked for, and where one is asked for after the stop has begun.
    check(secs(10), vec![Does::AsksToWait(millis(300)); 3], 2).await;
    check(secs(10), vec![Does::AsksToWait(millis(300)), Does::Takes, Does::AsksToWait(millis(300))], 2).await;
    // One that would outlast the stop, or leave no time to send, ends it, and so does one that nobody asks for.
    check(secs(10), vec![Does::AsksToWait(secs(30))], 0).await;
    check(millis(2500), vec![Does::AsksToWait(secs(2))], 0).await;
    check(secs(10), vec![Does::AsksToWait(millis(300)), Does::Takes, Does::AsksToWait(secs(30))], 1).await;
    check(secs(10), vec![Does::Fails], 0).await;
}

#[tokio::test(start_paused = true)]
async fn no_wait_holds_the_stop_up_and_the_next_start_sends_the_rest() {
    let (folder, hall) = (folder(), Hall::new(|_, _| Does::AsksToWait(Duration::from_secs(9))));
    let life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    hall.until(|inside| inside.answered == 1).await;
    let stopped = Instant::now();
    life.tasks.stopping().cancel();
    life.until(|busy| !busy.lane).await;
    // What comes now has the one before tried once more, and not longer.
    life.post("two").await;
    life.until(|busy| !busy.lane).await;
    assert_eq!((hall.asked().len(), life.outbox.undelivered()), (2, 2));
    assert!(stopped.elapsed() < Duration::from_secs(9));
    life.tasks.shutdown(Duration::ZERO).await.expect("no task is left");
    life.journal.close().await;

    hall.follows(|_, _| Does::Takes);
    let mut life = Life::begin(&folder, &hall).await;
    assert_eq!(life.outcomes(2).await, delivered(&[0, 1]));
    assert_eq!(hall.texts(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn long_streams_are_read_from_a_snapshot_and_it_says_the_same() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    for n in 0..SNAPSHOT_EVERY {
        life.post(&n.to_string()).await;
        life.outcomes(1).await;
    }
    life.idle().await;
    hall.follows(|_, _| Does::Hangs);
    life.post("last").await;
    hall.asked_for(usize::try_from(SNAPSHOT_EVERY).unwrap() + 1).await;
    let stream = events::stream(&room());
    let short = life.journal.load_snapshot::<Undelivered>(&stream).await.unwrap();
    let long = life.journal.load::<Undelivered>(&stream).await.unwrap();
    assert_eq!((short.version, short.state.first()), (long.version, long.state.first()));
    assert_eq!((short.state.len(), long.state.len()), (1, 1));
    assert!(
        short.state.tail <= 1 && long.state.tail == 2 * SNAPSHOT_EVERY + 1,
        "{} {}",
        short.state.tail,
        long.state.tail
    );
}

#[tokio::test(start_paused = true)]
async fn the_event_of_a_message_is_known_once_it_is_delivered() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    let of = async |life: &Life, text: &str| life.outbox.event_of(&room(), text).await.unwrap();
    life.post("one").await;
    // Both in one transaction of the journal.
    life.outbox.commit(vec![post("two"), post("three")], Vec::new()).await.unwrap();
    assert_eq!(life.outcomes(3).await, delivered(&[0, 1, 2]));
    life.idle().await;
    hall.follows(|_, _| Does::Hangs);
    life.post("four").await;
    hall.asked_for(4).await;
    for (text, event) in [("one", Some("0")), ("two", Some("1")), ("three", Some("2")), ("four", None), ("five", None)]
    {
        assert_eq!(of(&life, text).await.as_deref(), event, "{text}");
    }
    let elsewhere = Room { id: "elsewhere".to_owned(), ..room() };
    assert_eq!(life.outbox.event_of(&elsewhere, "one").await.unwrap(), None);
}
