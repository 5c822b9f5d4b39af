//! What is taken out of a room: as surely as a message is sent.

use super::*;

fn ann() -> Person {
    Person { surface: SurfaceKind::Console, id: "ann".to_owned() }
}

/// That what she has said is taken out.
fn taking_back() -> Post {
    let to = Address { reply_to: Some("$said".to_owned()), mention: Some(ann()), ..to() };
    Post::take_back(to, "$said", "why", "it stays")
}

fn take_back() -> Ask {
    Ask::TakeBack("$said".to_owned(), "take-back-$said".to_owned())
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_under_one_transaction_until_the_surface_takes_it_and_not_told() {
    let folder = folder();
    let secs = Duration::from_secs;
    let plan = [Does::Fails, Does::AsksToWait(secs(7)), Does::TakesAndFails, Does::Takes];
    let hall = Hall::new(move |n, _| plan[n]);
    hall.with(|inside| inside.longest = 4);
    let mut life = Life::begin(&folder, &hall).await;
    for _ in 0..2 {
        life.outbox.post(taking_back()).await.unwrap();
    }
    assert_eq!(life.outcomes(1).await, [Outcome::Delivered("redaction of $said".to_owned())]);
    life.idle().await;
    assert_eq!(hall.asked(), vec![take_back(); 4]);
    assert_eq!((hall.waits(), hall.texts().len()), (vec![1, 7, 2], 0));
    assert_eq!((life.outbox.counts().delivered, life.outbox.counts().undelivered), (0, 0), "it is no message");
}

#[tokio::test(start_paused = true)]
async fn it_comes_before_what_waits_to_be_said() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::without_surface(&folder).await;
    for name in ["one", "two"] {
        life.post(name).await;
    }
    let queued = life.outbox.oldest().await.unwrap();
    life.outbox.post(taking_back()).await.unwrap();
    assert_eq!(life.outbox.oldest().await.unwrap(), queued);
    life.until(|busy| !busy.lane).await;
    assert_eq!((life.outbox.undelivered(), life.outbox.undelivered_in(&room())), (2, 3));
    life.outbox.add(Arc::clone(&hall) as SharedSurface);
    life.outcomes(3).await;
    assert_eq!(hall.asked()[0], take_back());
    assert_eq!(hall.texts(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn it_comes_before_the_next_try_of_what_is_not_taken() {
    let folder = folder();
    let mut taking_out = 0;
    let hall = Hall::new(move |_, ask| {
        taking_out += usize::from(*ask == take_back());
        if taking_out < 3 && !matches!(ask, Ask::Find(..)) { Does::Fails } else { Does::Takes }
    });
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    hall.asked_for(2).await;
    life.outbox.post(taking_back()).await.unwrap();
    let redacted = Outcome::Delivered("redaction of $said".to_owned());
    assert_eq!(life.outcomes(2).await, [redacted, Outcome::Delivered("0".to_owned())]);
    let asked = hall.asked();
    let first = asked.iter().position(|ask| *ask == take_back()).unwrap();
    let last = asked.iter().rposition(|ask| *ask == take_back()).unwrap();
    assert!(asked[first..=last].iter().all(|ask| *ask == take_back()), "{asked:?}");
    assert!(matches!(asked[last + 1], Ask::Find(..)), "it is looked for as before: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn where_it_is_refused_whose_it_is_is_told_that_it_stays() {
    let folder = folder();
    let hall = Hall::new(|_, ask| if *ask == take_back() { Does::Refuses } else { Does::Takes });
    let mut life = Life::begin(&folder, &hall).await;
    life.outbox.post(taking_back()).await.unwrap();
    assert_eq!(life.outcomes(1).await, [Outcome::GivenUp]);
    life.idle().await;
    let [(_, told)] = &hall.with(|inside| inside.shown.clone())[..] else { panic!("{:?}", hall.texts()) };
    assert_eq!(told.markdown, "⚠ it stays\nThe reason: too long.");
    assert_eq!(
        (told.reply_to.as_deref(), told.mention.clone(), told.weight),
        (Some("$said"), Some(ann()), Weight::Answer)
    );
}

/// Everything else for the room waits so long, too, and who wrote it had better do it.
#[tokio::test(start_paused = true)]
async fn where_it_is_not_taken_for_ten_minutes_whose_it_is_is_told_that_it_stays() {
    for does in [Does::Fails, Does::AsksToWait(Duration::from_hours(1))] {
        let folder = folder();
        let hall = Hall::new(move |_, ask| if *ask == take_back() { does } else { Does::Takes });
        let mut life = Life::begin(&folder, &hall).await;
        let begun = Instant::now();
        life.outbox.post(taking_back()).await.unwrap();
        life.post("one").await;
        assert_eq!(life.outcomes(2).await, [Outcome::GivenUp, Outcome::Delivered("0".to_owned())]);
        assert!(begun.elapsed() < Duration::from_mins(12), "{:?}", begun.elapsed());
        life.idle().await;
        let told = hall.texts().into_iter().find(|text| text.starts_with("⚠ it stays")).unwrap();
        assert!(told.contains("not taken for 10 min"), "{told}");
    }
}

#[tokio::test]
async fn a_gateway_that_ends_before_it_is_done_leaves_it_to_the_next() {
    let (folder, hall) = (folder(), Hall::new(|_, _| Does::TakesAndHangs));
    let life = Life::begin(&folder, &hall).await;
    life.outbox.post(taking_back()).await.unwrap();
    hall.asked_for(1).await;
    life.journal.close().await;

    let life = Life::without_surface(&folder).await;
    assert_eq!((life.outbox.undelivered(), life.outbox.undelivered_in(&room())), (0, 1), "it is no message");
    life.journal.close().await;

    hall.follows(|_, _| Does::Takes);
    let mut life = Life::begin(&folder, &hall).await;
    life.outcomes(1).await;
    assert_eq!(hall.asked(), vec![take_back(); 2]);
}
