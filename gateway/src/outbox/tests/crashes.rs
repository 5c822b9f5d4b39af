//! The process dies: every task of a life is dropped where it stands, and the next life has the file and the room.

use super::*;

/// A life on a paused clock that is killed when `run` is over.
fn life<T>(run: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run())
}

fn kills(at: usize, how: Does) -> impl FnMut(usize, &Ask) -> Does {
    move |n, _| if n == at { how } else { Does::Takes }
}

/// What is sent: the second one is too long for its surface, and goes in three parts.
const TEXTS: [&str; 3] = [
    "a",
    "one                                             one\n\ntwo                                             two\n\nthree                                         three",
    "c",
];

/// Kills a first life at its request `first`, and a second one at its request `second`.
fn killed_twice(remembers: bool, first: (usize, Does), second: (usize, Does)) -> Arc<Hall> {
    let (folder, hall) = (folder(), Hall::new(kills(first.0, first.1)));
    hall.with(|inside| inside.longest = 80);
    life(async || {
        let life = Life::begin(&folder, &hall).await;
        for (name, text) in ["a", "b", "c"].into_iter().zip(TEXTS) {
            life.outbox.post(Post { markdown: text.to_owned(), ..post(name) }).await.unwrap();
        }
        hall.asked_for(first.0 + 1).await;
    });
    let before = hall.with(|inside| {
        // A server forgets transactions at a new login.
        inside.remembers = remembers;
        inside.asked.len()
    });
    hall.follows(kills(before + second.0, second.1));
    life(async || {
        let life = Life::begin(&folder, &hall).await;
        let killed = hall.asked_for(before + second.0 + 1);
        tokio::select! { () = killed => {}, () = life.idle() => {} }
    });
    hall.follows(|_, _| Does::Takes);
    life(async || {
        let life = Life::begin(&folder, &hall).await;
        life.idle().await;
        assert_eq!(life.queued().await, ["a", "b", "c"]);
        let settled = life.events().await.len() - 3;
        assert_eq!(settled, 3, "each is settled once");
    });
    hall
}

#[test]
fn killed_before_or_after_any_request_each_message_is_there_once_and_in_order() {
    for how in [Does::Hangs, Does::TakesAndHangs] {
        for at in 0..5 {
            let again = [(0, Does::Hangs), (1, Does::Hangs), (1, Does::TakesAndHangs), (3, how), (5, how)];
            for (again, how_again) in again {
                for remembers in [true, false] {
                    let hall = killed_twice(remembers, (at, how), (again, how_again));
                    let case = format!("{at} {how:?}, {again} {how_again:?}, {remembers}: {:?}", hall.asked());
                    let parts = TEXTS.iter().flat_map(|text| text.split("\n\n")).collect::<Vec<_>>();
                    assert_eq!(hall.texts(), parts, "{case}");
                }
            }
        }
    }
}

#[test]
fn what_was_found_undelivered_is_looked_for_before_it_is_sent() {
    let (folder, hall) = (folder(), Hall::obliging());
    // Killed between the commit and the first try.
    life(async || {
        let life = Life::without_surface(&folder).await;
        life.post("a").await;
    });
    life(async || {
        let mut life = Life::begin(&folder, &hall).await;
        assert_eq!((life.outbox.undelivered(), hall.asked().len()), (1, 0));
        life.outcomes(1).await;
        life.post("b").await;
        life.outcomes(1).await;
    });
    let asked: Vec<_> = hall.asked().iter().map(|ask| matches!(ask, Ask::Find(..))).collect();
    assert_eq!(asked, [true, false, false], "what is new is just sent");
    assert_eq!(hall.texts(), ["a", "b"]);
}

#[test]
fn killed_in_the_middle_of_a_commit_it_is_made_whole_by_the_same_commit() {
    for polls in 0..6 {
        let (folder, hall) = (folder(), Hall::obliging());
        let commit = |life: &Life| {
            let outbox = life.outbox.clone();
            async move { outbox.commit(vec![post("a")], vec![deed(1, Expected::Any, Some("deed"))]).await }
        };
        life(async || {
            let life = Life::begin(&folder, &hall).await;
            let mut committing = std::pin::pin!(commit(&life));
            for _ in 0..polls {
                if committing.as_mut().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        });
        life(async || {
            let life = Life::begin(&folder, &hall).await;
            let (deeds_there, posts_there) = (deeds(&life.journal).await.len(), life.queued().await.len());
            assert_eq!(deeds_there, posts_there, "both or none");
            commit(&life).await.unwrap();
            life.idle().await;
            assert_eq!(deeds(&life.journal).await, [1]);
            assert_eq!(hall.texts(), ["a"]);
        });
    }
}
