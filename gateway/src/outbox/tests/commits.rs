//! What goes into the journal, once.

use futures_util::future::join_all;

use super::*;

#[tokio::test(start_paused = true)]
async fn the_same_transaction_is_sent_once_and_the_first_text_stands() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    life.post("one").await;
    life.outcomes(1).await;
    life.outbox.post(Post { markdown: "another".to_owned(), ..post("one") }).await.unwrap();
    let other_form = Post { weight: Weight::Notice, answers: Vec::new(), ..post("one") };
    life.outbox
        .commit(vec![other_form, post("two"), Post { markdown: "another".to_owned(), ..post("two") }], vec![])
        .await
        .unwrap();
    life.outcomes(1).await;
    life.idle().await;
    assert_eq!(hall.texts(), ["one", "two"]);
    assert_eq!(life.queued().await, ["one", "two"]);
    // The same transaction in another room is another message.
    let mut elsewhere = post("one");
    elsewhere.to.room.id = "other".to_owned();
    life.outbox.post(elsewhere).await.unwrap();
    life.outcomes(1).await;
    assert_eq!(hall.texts(), ["one", "two", "one"]);
}

#[tokio::test]
async fn what_is_committed_with_a_post_that_is_there_already_is_not_lost() {
    let folder = folder();
    let life = Life::without_surface(&folder).await;
    let any = |number| deed(number, Expected::Any, None);
    let commit =
        |posts: &[&str], with: Vec<Append>| life.outbox.commit(posts.iter().map(|text| post(text)).collect(), with);
    let done = commit(&["a"], vec![any(1), any(2)]).await.unwrap();
    assert_eq!(done.iter().map(|new| (new.first_version, new.repeated)).collect::<Vec<_>>(), [(1, false), (2, false)]);
    for (number, posts) in [(3, &["a"][..]), (4, &["b", "a"]), (5, &["a", "c", "b"]), (6, &["d", "d"]), (7, &[])] {
        let done = commit(posts, vec![any(number)]).await.unwrap();
        assert_eq!((done.len(), done[0].last_version, done[0].repeated), (1, u64::from(number), false));
    }
    assert_eq!(deeds(&life.journal).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(life.queued().await, ["a", "b", "c", "d"]);
    assert_eq!(life.outbox.undelivered(), 4);
}

#[tokio::test]
async fn the_very_same_commit_has_the_first_outcome() {
    let folder = folder();
    let life = Life::without_surface(&folder).await;
    life.outbox.post(post("old")).await.unwrap();
    for (number, posts) in
        [(1, &["a"][..]), (2, &["b", "old"]), (3, &["old", "c"]), (4, &["old"]), (5, &["d", "a", "e"])]
    {
        let name = format!("deed {number}");
        let commit = |text: &'static str| {
            let post = |id: &&str| Post { markdown: text.to_owned(), ..post(id) };
            life.outbox.commit(posts.iter().map(post).collect(), vec![deed(number, Expected::Any, Some(&name))])
        };
        let (first, again) = (commit("first").await.unwrap(), commit("again").await.unwrap());
        assert!(!first[0].repeated && again[0].repeated, "{posts:?}");
        assert_eq!(first[0].position, again[0].position, "{posts:?}");
    }
    assert_eq!(deeds(&life.journal).await, [1, 2, 3, 4, 5]);
    assert_eq!(life.queued().await, ["old", "a", "b", "c", "d", "e"]);
    assert_eq!(life.outbox.undelivered(), 6);
}

/// The journal's own error, when it was the journal that refused.
fn journals_word(refusal: &Refusal) -> Option<&AppendError> {
    std::error::Error::source(refusal)?.downcast_ref()
}

#[tokio::test]
async fn what_the_journal_refuses_changes_nothing() {
    let folder = folder();
    let life = Life::without_surface(&folder).await;
    life.outbox.commit(vec![post("a")], vec![deed(1, Expected::Any, Some("key"))]).await.unwrap();
    for (posts, with) in [
        (vec![post("b")], deed(2, Expected::Version(7), None)),
        (vec![post("a"), post("b")], deed(2, Expected::NoStream, None)),
    ] {
        let refusal = life.outbox.commit(posts, vec![with]).await.unwrap_err();
        assert!(matches!(journals_word(&refusal), Some(AppendError::Conflict { actual: 1, .. })), "{refusal}");
    }
    for (posts, number) in [(vec![post("b")], 1), (vec![post("a")], 2), (vec![post("a"), post("b")], 1), (vec![], 1)] {
        let with = vec![deed(number, Expected::Any, Some("key"))];
        let refusal = life.outbox.commit(posts, with).await.unwrap_err();
        assert!(
            matches!(journals_word(&refusal), Some(AppendError::KeyReused { key, .. }) if key == "key"),
            "{refusal}"
        );
    }
    assert_eq!(deeds(&life.journal).await, [1]);
    assert_eq!(life.queued().await, ["a"]);
    assert_eq!(life.outbox.undelivered(), 1);
    // A closed journal is an error, too.
    life.journal.close().await;
    life.outbox.post(post("c")).await.unwrap_err();
    assert_eq!(life.outbox.undelivered(), 1);
}

#[tokio::test]
async fn a_commit_is_carried_out_when_its_caller_has_gone() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    assert!(life.outbox.post(post("one")).now_or_never().is_none(), "it takes its time");
    life.outcomes(1).await;
    assert_eq!(hall.texts(), ["one"]);
}

#[tokio::test]
async fn credentials_are_masked_before_anything_is_stored() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    life.outbox.post(Post { markdown: "see https://ann:tok@h/x".to_owned(), ..post("one") }).await.unwrap();
    life.outcomes(1).await;
    assert_eq!(hall.texts(), ["see https://…@h/x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_commit_at_once_all_is_sent_in_the_order_of_the_journal() {
    let (folder, hall) = (folder(), Hall::obliging());
    let mut life = Life::begin(&folder, &hall).await;
    let commits = (0..8).map(|one| {
        let outbox = life.outbox.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                // So that lanes end and begin all the time.
                outbox.post(post(&format!("{one}-{n}"))).await.unwrap();
                for _ in 0..one * 20 {
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    for done in join_all(commits).await {
        done.unwrap();
    }
    life.outcomes(320).await;
    life.idle().await;
    assert_eq!(hall.texts(), life.queued().await);
    let counts = Counts { delivered: 320, retries: 0, given_up: 0, undelivered: 0 };
    assert_eq!((hall.asked().len(), life.outbox.counts()), (320, counts));
}
