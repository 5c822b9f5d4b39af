//! What `queue` tells, and how a message is taken out of it.

use super::*;

#[tokio::test]
async fn how_a_message_is_taken_out_is_shown_with_a_number_that_is_there() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    life.work("$one", "app").await;
    life.say("$two", "and this").await;
    life.say("$queue", "queue").await;
    let listed = life.answer_to("$queue").await;
    assert!(listed.contains("**2** waiting"), "{listed}");
    assert!(listed.ends_with("\n`cancel 2` takes the message with that number out."), "{listed}");
    life.end().await;
}

#[tokio::test]
async fn a_queue_tells_what_waits_from_what_is_about_to_begin_and_what_is_not_sent() {
    let folder = tempfile::tempdir().expect("there is room");
    let config = CONFIG.replace(
        "coalesce_window_ms = 0",
        "coalesce_window_ms = 60000\ncoalesce_max_ms = 60000\nmax_concurrent_turns = 1",
    );
    let mut life = Life::configured(&folder, &config).await;
    life.project("app", &[]).await;
    life.project("other", &[]).await;
    life.say("$switch", "!switch app").await;
    life.answer_to("$switch").await;
    life.nothing_is_on_its_way().await;
    life.say("$one", "do it").await;
    life.say("$queue", "queue").await;
    assert_eq!(
        life.answer_to("$queue").await,
        "**app**\n- **1** about to begin: @ann:example.org: `do it`\n`cancel 1` takes the message with that number out."
    );
    // Another project has the only place.
    let session = SessionKey { project: Uuid::now_v7(), room: room(), thread: None };
    let sessions = &life.gateway.intake.sessions;
    sessions.accept(&session, &said("$its", "its"), "its", Role::Admin, false).await.expect("it is accepted");
    let turn = Uuid::now_v7();
    sessions.begin(&session, turn, &["$its"]).await.expect("it begins").expect("it waits");
    let running = sessions.busy(|key| *key == session).await.remove(0).1.running.expect("it runs");
    let ended = life.gateway.intake.dispatcher.adopt(turn);
    life.gateway.intake.turns.resume(Unfinished { session, running }, ended);
    life.say("$again", "queue").await;
    let listed = life.answer_to("$again").await;
    assert!(listed.contains("\n- **1** waiting for other projects: "), "{listed}");
    // A room that takes nothing is told, once it does, what it had not got by then.
    let silent = Room { surface: SurfaceKind::Console, ..room() };
    let to = Address { room: silent.clone(), thread: None, reply_to: None, mention: None, pending: None };
    for number in 1..=5 {
        let post = Post::notice(to.clone(), format!("post-{number}"), format!("number {number}"));
        life.gateway.outbox.post(post).await.expect("it is journaled");
    }
    let asked = |event_id: &str, text: &str| Inbound {
        room: silent.clone(),
        sender: Person { surface: SurfaceKind::Console, id: "you".into() },
        ..said(event_id, text)
    };
    for (event_id, text) in [("$there", "!switch other"), ("$listed", "!queue")] {
        life.gateway.intake.accept(asked(event_id, text)).await.expect("it is taken");
        while life.gateway.intake.rooms.waiting_commands(&silent) > 0 {
            tokio::task::yield_now().await;
        }
    }
    let (hall, mut heard) = Hall::new(SurfaceKind::Console);
    life.gateway.outbox.add(Arc::new(hall));
    let listed = loop {
        let heard = heard.sent.recv().await.expect("the surface is alive");
        if heard.answers == ["$listed"] {
            break heard.markdown;
        }
    };
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 5, "{listed}");
    assert!(
        lines[1].starts_with("- on the way to this room since ") && lines[1].ends_with(" UTC: `number 1`"),
        "{listed}"
    );
    assert_eq!(lines[4], "- on the way to this room: 3 more", "{listed}");
    life.end().await;
}

#[tokio::test]
async fn a_queue_tells_what_became_of_the_last_that_was_said() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    let session = SessionKey { project: life.project("app", &[]).await, room: room(), thread: None };
    life.say("$switch", "!switch app").await;
    for (number, (ending, state)) in
        [(Ending::Answered, "delivered"), (Ending::Failed, "failed"), (Ending::Stopped, "stopped")]
            .into_iter()
            .enumerate()
    {
        let Intake { sessions, .. } = &*life.gateway.intake;
        let (event_id, turn) = (format!("$said{number}"), Uuid::now_v7());
        sessions
            .accept(&session, &said(&event_id, "first"), "first", Role::Admin, false)
            .await
            .expect("it is accepted");
        let edit_id = format!("$edit{number}");
        let edit = Edited { room: room(), event_id: event_id.clone(), edit_id, sender: ann(), text: state.into() };
        sessions.edit(&edit, |_| true).await.expect("it is taken");
        sessions.begin(&session, turn, &[&event_id]).await.expect("it begins").expect("it waits");
        let to = Address { room: room(), thread: None, reply_to: None, mention: None, pending: None };
        let post = Post { transaction: turns::transaction(turn), ..Post::answer(to, &event_id, "done".into()) };
        sessions.finish(&session, turn, ending, true, vec![post], Vec::new()).await.expect("it is journaled");
        life.answer_to(&event_id).await;
        life.nothing_is_on_its_way().await;
        let queue = format!("$queue{number}");
        life.say(&queue, "queue").await;
        let listed = life.answer_to(&queue).await;
        let begins = format!("**app**: nothing runs and nothing waits.\n- last: {state} 2");
        assert!(listed.starts_with(&begins), "{listed}");
        assert!(listed.ends_with(&format!(" UTC: @ann:example.org: `{state}`")), "{listed}");
    }
    life.end().await;
}

#[tokio::test]
async fn a_queue_does_not_take_what_runs_elsewhere_for_what_waits_for_the_next_budget() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::configured(&folder, &format!("{CONFIG}[budget]\ndaily_tokens = 10\n")).await;
    let project = life.project("app", &[]).await;
    life.work("$one", "app").await;
    let count =
        life.gateway.intake.usage.request(project).count("claude".into(), Tokens { input: 10, ..Tokens::default() });
    count.await.expect("it is journaled");
    let elsewhere = |event_id: &str, text: &str| {
        let room = Room { id: "!b:example.org".into(), ..room() };
        life.gateway.intake.accept(Inbound { room, ..said(event_id, text) })
    };
    elsewhere("$switch", "!switch app").await.expect("it is taken");
    elsewhere("$queue", "queue").await.expect("it is taken");
    let listed = life.answer_to("$queue").await;
    assert!(listed.contains("\n- in other rooms: 1 message\n"), "{listed}");
    assert!(listed.ends_with("is used up; messages wait until 00:00 UTC."), "{listed}");
    life.end().await;
}
