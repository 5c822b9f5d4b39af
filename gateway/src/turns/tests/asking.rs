//! What agents ask permission for, between a sled and a room.

use super::*;

/// What people call a question that was told.
fn name_of(question: &Outbound) -> String {
    let (_, from) = question.markdown.split_once("`!approve ").expect("it is a question");
    from.split_once('`').expect("the name ends").0.to_owned()
}

/// Two requests of a turn whose questions would have the same name.
fn alike(turn: Uuid) -> [String; 2] {
    let mut known = HashMap::new();
    for nth in 0.. {
        let request = format!("1-{nth}");
        let name = questions::names(turn, &request).next().expect("it has one");
        if let Some(before) = known.insert(name, request.clone()) {
            return [before, request];
        }
    }
    unreachable!("there are not so many names")
}

#[tokio::test]
async fn questions_that_would_have_the_same_name_are_all_told_and_not_taken_for_each_other() {
    // Whether the first is still open when the second is asked.
    for open in [true, false] {
        let (answered, answers) = mpsc::unbounded_channel();
        let answers = Arc::new(Mutex::new(Some(answers)));
        let following = accepting().route(
            paths::TURN_EVENTS,
            get(move |Path(turn): Path<Uuid>| async move {
                let mut answers = answers.lock().expect("no test panics holding it").take().expect("it is read once");
                let [first, second] = alike(turn);
                let settled =
                    |request: &String, decision| TurnEvent::PermissionSettled { request: request.clone(), decision };
                let asked = |request: &String, summary: &str| TurnEvent::PermissionAsked {
                    request: request.clone(),
                    tool: "Bash".into(),
                    summary: summary.into(),
                    deadline: Timestamp::UNIX_EPOCH,
                };
                let mut told = vec![asked(&first, "ls"), asked(&second, "rm"), settled(&first, Decision::TimedOut)];
                if !open {
                    told.swap(1, 2);
                }
                let told = (1..).zip(told).map(|(seq, event)| record(seq, event)).collect::<String>();
                let after = async move {
                    assert_eq!(answers.recv().await, Some(second));
                    Ok::<_, std::io::Error>(ended(4, Outcome::Answered { text: "done".into() }))
                };
                let told = futures_util::stream::iter([Ok(told)]).chain(futures_util::stream::once(after));
                axum::body::Body::from_stream(told)
            }),
        );
        let deciding = Router::new().route(
            paths::TURN_PERMISSION,
            post(move |Path((_, request)): Path<(Uuid, String)>| async move {
                answered.send(request).expect("the turn waits");
                Json(Decision::Allowed)
            }),
        );
        let mut stage = Stage::new([Some(following), Some(deciding)]).await;
        stage.say("hello", false).await;
        let (first, second) = (stage.answer().await, stage.answer().await);
        assert_ne!(first.transaction, second.transaction);
        assert_ne!(name_of(&first), name_of(&second));
        assert!(second.markdown.contains("Bash `rm`"), "{}", second.markdown);
        let (turns, room) = (stage.turns.clone(), stage.session.room.clone());
        let decide =
            async |name: &str| turns.decide(name, Verdict::Approve, &ann(), Role::Member, &room, Cause::None).await;
        while decide(&name_of(&first)).await.is_ok() {
            // It is not settled yet.
            tokio::task::yield_now().await;
        }
        let word = decide(&name_of(&second)).await.expect("it is open");
        assert_eq!(turns.carry_word(word).await.expect("the sled is there"), "Allowed: Bash `rm`");
        assert_eq!(stage.answer().await.markdown, "done");
    }
}

#[tokio::test]
async fn a_question_is_told_and_decided_by_whom_it_concerns() {
    let asked = TurnEvent::PermissionAsked {
        request: "q-1".into(),
        tool: "Bash".into(),
        summary: "rm -r target".into(),
        deadline: "2026-01-02T03:04:05Z".parse().expect("it is a time"),
    };
    let (answered, mut answers) = mpsc::unbounded_channel();
    let asked = record(1, asked);
    let after = async move {
        assert_eq!(answers.recv().await, Some(true));
        Ok::<_, std::io::Error>(ended(2, Outcome::Answered { text: "done".into() }))
    };
    let body = futures_util::stream::iter([Ok(asked)]).chain(futures_util::stream::once(after));
    let body = Arc::new(Mutex::new(Some(axum::body::Body::from_stream(body))));
    let sled = || {
        let answered = answered.clone();
        Router::new().route(
            paths::TURN_PERMISSION,
            post(move |Json(answer): Json<link::requests::PermissionAnswer>| async move {
                answered.send(answer.allow).expect("the turn waits");
                Json(Decision::Allowed)
            }),
        )
    };
    let following = accepting().merge(sled()).route(
        paths::TURN_EVENTS,
        get(move || {
            let body = body.lock().expect("no test panics holding it").take().expect("it is read once");
            async move { body }
        }),
    );
    let mut stage = Stage::new([Some(following), None, Some(sled())]).await;
    // A disk that is full for a moment keeps no question from people.
    stage.journal.refuse("send.queued", 1);
    stage.say("hello", false).await;
    let question = stage.answer().await;
    assert!(question.answers.is_empty(), "it ends no message");
    let name = name_of(&question);
    assert_eq!(
        question.markdown,
        format!(
            "⚠ The agent asks for permission: Bash `rm -r target`\n`!approve {name}` or `!deny {name}`, until 03:04:05 UTC."
        )
    );
    let bob = Person { id: "bob".into(), ..ann() };
    let room = stage.session.room.clone();
    let elsewhere = Room { id: "elsewhere".into(), ..room.clone() };
    let turns = stage.turns.clone();
    // She may see it, and react to it, before we hear under which event it stands.
    let mut seen = std::pin::pin!(turns.expect_question_at(&room, "$question"));
    assert_eq!(seen.as_mut().now_or_never(), None, "it is waited for");
    assert_eq!(turns.expect_question_at(&elsewhere, "$question").now_or_never(), Some(None), "nothing was asked there");
    turns.question_told(&question.transaction, "$question");
    assert_eq!(seen.await, Some(name.clone()));
    assert_eq!(turns.expect_question_at(&room, "$other").now_or_never(), Some(None), "it is told");
    let decide = async |verdict, by: &Person, role, room: &Room| {
        turns.decide(&name, verdict, by, role, room, Cause::Command("word".into())).await
    };
    let refusal = decide(Verdict::Approve, &bob, Role::Member, &room).await.expect_err("he did not ask for this turn");
    assert_eq!(refusal.what, "this question is not yours to answer");
    let unknown = decide(Verdict::Approve, &bob, Role::Member, &elsewhere).await.expect_err("nor was it asked there");
    assert_ne!(unknown.what, refusal.what);
    // Her room may have been replaced by that one.
    assert_eq!(turns.question_at(&elsewhere, "$question"), Some(name.clone()));
    let word = decide(Verdict::Approve, &ann(), Role::Member, &elsewhere).await.expect("she may");
    let said = turns.carry_word(word).await.expect("her word holds, though the sled is away");
    assert_eq!(
        said,
        "Allowed: Bash `rm -r target`\n\
         The sled has not heard of it yet (it is away). It is told when it is back, if that is in time."
    );
    let word = decide(Verdict::Deny, &ann(), Role::Member, &room).await.expect("it is still open");
    let said = turns.carry_word(word).await.expect("the sled is there");
    assert_eq!(said, "Allowed already, and that holds: Bash `rm -r target`");
    assert_eq!(stage.answer().await.markdown, "done");
    decide(Verdict::Approve, &ann(), Role::Member, &room).await.expect_err("the turn is over");
}

#[tokio::test]
async fn an_admin_decides_for_others_also_from_another_room() {
    for there in ["main", "elsewhere"] {
        let open = get(async || {
            let asked = futures_util::stream::iter([Ok::<_, std::io::Error>(question(1, "q-1"))]);
            axum::body::Body::from_stream(asked.chain(futures_util::stream::pending()))
        });
        let following = accepting().route(paths::TURN_EVENTS, open);
        let deciding = Router::new().route(paths::TURN_PERMISSION, post(async || Json(Decision::Allowed)));
        let mut stage = Stage::new([Some(following), Some(deciding)]).await;
        stage.say("hello", false).await;
        let name = name_of(&stage.answer().await);
        let eve = Person { id: "eve".into(), ..ann() };
        let room = Room { id: there.into(), ..stage.session.room.clone() };
        let turns = stage.turns.clone();
        let decide = async |role| turns.decide(&name, Verdict::Approve, &eve, role, &room, Cause::None).await;
        decide(Role::Member).await.expect_err("she did not ask for this turn");
        let word = decide(Role::Admin).await.expect("admins may");
        assert_eq!(turns.carry_word(word).await.expect("the sled is there"), "Allowed: Bash `ls`");
    }
}

#[tokio::test(start_paused = true)]
async fn reactions_wait_once_in_a_while_for_the_question_of_a_turn_that_is_taken_up() {
    let stage = Stage::new([]).await;
    stage.script.slowness.store(1000, Ordering::SeqCst);
    stage.take_up("hello").await;
    let (turns, room) = (&stage.turns, &stage.session.room);
    for (event_id, patience) in [("$one", 15), ("$two", 0), ("$three", 0)] {
        let begun = Instant::now();
        assert_eq!(turns.expect_question_at(room, event_id).await, None);
        assert_eq!(begun.elapsed().as_secs(), patience, "{event_id}");
    }
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(turns.expect_question_at(room, "$four").now_or_never(), None, "it is waited for again");
}

#[tokio::test]
async fn a_question_shows_each_line_of_what_is_asked_and_no_sign_as_another() {
    let table = [
        ("ls -l", "Bash `ls -l`"),
        ("ls `pwd`", "Bash\n```\nls `pwd`\n```"),
        ("command:\n  cargo test # all\n  rm -rf src", "Bash\n```\ncommand:\n  cargo test # all\n  rm -rf src\n```"),
        ("/a\ncontent:\n  ```\n  `!approve 3fa81c`", "Bash\n````\n/a\ncontent:\n  ```\n  `!approve 3fa81c`\n````"),
        ("a\n\n\u{1b}[2J\u{202e}b", "Bash\n```\na\n[2Jb\n```"),
    ];
    for (summary, shown) in table {
        let asked = TurnEvent::PermissionAsked {
            request: "q-1".into(),
            tool: "Bash".into(),
            summary: summary.into(),
            deadline: Timestamp::UNIX_EPOCH,
        };
        let told = [record(1, asked), ended(2, Outcome::Answered { text: "done".into() })].concat();
        let mut stage = Stage::new([Some(accepting().merge(events(told)))]).await;
        stage.say("hello", false).await;
        let question = stage.answer().await.markdown;
        assert!(question.starts_with(&format!("⚠ The agent asks for permission: {shown}\n`!approve ")), "{question}");
    }
}

#[tokio::test]
async fn what_was_decided_shows_where_a_line_ended() {
    let summary = "command:\n  true #\n  rm -rf src".to_owned();
    let (request, tool, deadline) = ("q-1".to_owned(), "Bash".into(), Timestamp::UNIX_EPOCH);
    let asked = record(1, TurnEvent::PermissionAsked { request: request.clone(), tool, summary, deadline });
    let timed_out = record(2, TurnEvent::PermissionSettled { request, decision: Decision::TimedOut });
    let told = [asked, timed_out, ended(3, Outcome::Answered { text: "done".into() })].concat();
    let mut stage = Stage::new([Some(accepting().merge(events(told)))]).await;
    stage.say("hello", false).await;
    stage.answer().await;
    let told = stage.heard().await.markdown;
    assert_eq!(told, "Nobody answered in time, so this was denied: Bash `command: ⏎ true # ⏎ rm -rf src`");
}

/// A question of this name, and that it is settled.
fn question(seq: u64, request: &str) -> String {
    let (request, tool, summary) = (request.to_owned(), "Bash".into(), "ls".into());
    record(seq, TurnEvent::PermissionAsked { request, tool, summary, deadline: Timestamp::UNIX_EPOCH })
}

fn settled(seq: u64, request: &str) -> String {
    record(seq, TurnEvent::PermissionSettled { request: request.to_owned(), decision: Decision::Denied })
}

#[tokio::test]
async fn what_is_asked_beyond_what_a_room_hears_is_denied_at_once_and_the_room_hears_of_that_once() {
    let (open, told) = (questions::OPEN_MAX, 200);
    let many_at_once: String = (1..=open + 2).map(|nth| question(nth as u64, &format!("q{nth}"))).collect();
    let many: String = (1..=told)
        .map(|nth| [question(2 * nth - 1, &format!("q{nth}")), settled(2 * nth, &format!("q{nth}"))].concat())
        .chain([question(2 * told + 1, "more"), question(2 * told + 2, "even-more")])
        .collect();
    let unnameable = [question(1, &"long".repeat(100)), question(2, "q2"), settled(3, "q2")].concat();
    for (asked, denied, heard) in [
        (many_at_once, vec!["q17", "q18"], open),
        (many, vec!["more", "even-more"], 200),
        // It cannot be spoken of to its sled, either.
        (unnameable, vec![], 1),
    ] {
        let (answered, mut answers) = mpsc::unbounded_channel();
        let deciding = post(
            move |Path((_, request)): Path<(Uuid, String)>, Json(answer): Json<link::requests::PermissionAnswer>| async move {
                answered.send((request, answer.allow)).expect("the test listens");
                Json(Decision::Denied)
            },
        );
        let (end, ending) = oneshot::channel::<()>();
        let last = asked.lines().count() as u64 + 1;
        let body = async move {
            ending.await.expect("the test tells when");
            Ok::<_, std::io::Error>(ended(last, Outcome::Answered { text: "done".into() }))
        };
        let body = futures_util::stream::iter([Ok(asked)]).chain(futures_util::stream::once(body));
        let body = Arc::new(Mutex::new(Some(axum::body::Body::from_stream(body))));
        let following = get(move || {
            let body = body.lock().expect("no test panics holding it").take().expect("it is read once");
            async move { body }
        });
        let sled = accepting().route(paths::TURN_EVENTS, following).route(paths::TURN_PERMISSION, deciding);
        let mut stage = Stage::new([Some(sled)]).await;
        stage.say("hello", false).await;
        for denied in denied {
            assert_eq!(answers.recv().await, Some((denied.to_owned(), false)));
        }
        end.send(()).expect("the sled waits");
        let mut told = Vec::new();
        let answer = loop {
            let heard = stage.heard().await;
            if !heard.answers.is_empty() {
                break heard.markdown;
            }
            told.push(heard.markdown);
        };
        assert_eq!(answer, "done");
        assert!(answers.try_recv().is_err(), "nothing else is denied");
        assert_eq!(told.iter().filter(|told| told.contains("asks for permission")).count(), heard);
        assert_eq!(told.iter().filter(|told| told.starts_with("Not every question")).count(), 1, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_that_a_broken_link_swallows_is_repeated_over_the_next() {
    let all: String = (1..=questions::OPEN_MAX + 1).map(|nth| question(nth as u64, &format!("q{nth}"))).collect();
    let first = accepting()
        .route(
            paths::TURN_EVENTS,
            get(move || async move {
                let asked = futures_util::stream::iter([Ok::<_, std::io::Error>(all)]);
                axum::body::Body::from_stream(asked.chain(futures_util::stream::pending()))
            }),
        )
        .route(paths::TURN_PERMISSION, post(std::future::pending::<Json<Decision>>));
    let (answered, mut answers) = mpsc::unbounded_channel();
    let answers_it = post(move |Path((_, request)): Path<(Uuid, String)>| async move {
        answered.send(request).expect("the test listens");
        Json(Decision::Denied)
    });
    let rest = get(|query: axum::extract::Query<link::requests::EventsQuery>| async move {
        assert_eq!(query.after, questions::OPEN_MAX as u64, "the last one is read again");
        let seq = query.after + 1;
        [question(seq, "q17"), ended(seq + 1, Outcome::Answered { text: "done".into() })].concat()
    });
    let next = Router::new().route(paths::TURN_EVENTS, rest).route(paths::TURN_PERMISSION, answers_it);
    let mut stage = Stage::new([Some(first), Some(next)]).await;
    stage.say("hello", false).await;
    assert_eq!(answers.recv().await.as_deref(), Some("q17"));
    let mut answer = stage.answer().await;
    while answer.answers.is_empty() {
        answer = stage.answer().await;
    }
    assert_eq!(answer.markdown, "done");
}
