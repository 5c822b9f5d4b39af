//! A room whose history the homeserver does not give holds no other room up, and is heard in its order when it comes.

use super::*;

/// How long these tests wait for what the homeserver does not give: it is asked once or twice.
const SHORT: Duration = Duration::from_secs(1);

impl Running {
    async fn impatient(settings: MatrixSettings) -> Self {
        let (inbox, given) = TestInbox::new(Does::Take, None);
        Self::patient(settings, inbox, given, SHORT).await
    }

    /// Waits until no room is set aside, and all of the present sync is taken.
    async fn healthy(&self) {
        let healthy = async {
            while self.surface.health().is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, healthy).await.expect("in time");
    }

    /// What comes next, so many.
    async fn briefs(&mut self, count: usize) -> Vec<String> {
        let mut briefs = Vec::new();
        while briefs.len() < count {
            briefs.push(self.given().await.brief());
        }
        briefs
    }
}

/// A sync with one message in each of two rooms, of which the first may have more before it.
fn two_rooms(next: &str, slow: &str, quick: &str, limited: bool) -> (u16, Value) {
    let room = |id: &str, limited: bool| {
        json!({
            "timeline": {"events": [message(id, "hi")], "limited": limited, "prev_batch": "gap"},
            "summary": {"m.joined_member_count": 3},
        })
    };
    let rooms = json!({"!slow:example.org": room(slow, limited), "!quick:example.org": room(quick, false)});
    (200, json!({"next_batch": next, "rooms": {"join": rooms}}))
}

/// Two syncs with both rooms, the first with a gap; then nothing.
fn syncs(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
    match (path, since) {
        ("sync", Some("s1")) => Some(two_rooms("s2", "$slow-2", "$quick-2", true)),
        ("sync", Some("s2")) => Some(two_rooms("s3", "$slow-3", "$quick-3", false)),
        ("sync", Some(_)) => Some((200, Value::Null)),
        _ => one_message(number, path, since),
    }
}

const HISTORY: &str = "rooms/!slow:example.org/messages";

/// What the slow room's history has, newest first, from a token of the stream back.
fn history(from: Option<&str>) -> (u16, Value) {
    let all = [("s3", "$slow-3"), ("s2", "$slow-2"), ("gap", "$slow-1"), ("gap-1", "$slow-0")];
    let from = from.expect("a walk begins somewhere");
    let at = all.iter().position(|(token, _)| *token == from).expect("a token that the homeserver gave");
    let (_, id) = all[at];
    let mut page = json!({"start": from, "chunk": [message(id, "hi")]});
    if let Some((end, _)) = all.get(at + 1) {
        page["end"] = json!(end);
    }
    (200, page)
}

#[tokio::test]
async fn other_rooms_are_heard_while_one_is_walked_in_vain_and_it_comes_in_order_and_once_when_that_answers() {
    fn slow(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            // The sync's tries, and the first of the room's own.
            HISTORY if number <= 3 => Some((500, json!({}))),
            HISTORY => Some(history(since)),
            "sync" if since == Some("s3") && number > 4 => Some(two_rooms("s4", "$slow-4", "$quick-4", false)),
            path => syncs(number, path, since),
        }
    }
    let homeserver = Homeserver::start(slow).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    assert_eq!(running.briefs(1).await, ["said $quick-2: hi"]);
    // The room is told, and the others go on.
    let mut next = running.briefs(2).await;
    next.sort();
    assert_eq!(next, ["late in !slow:example.org: s1", "said $quick-3: hi"]);
    running.taken().await;
    let health = running.surface.health().expect_err("not all messages are taken");
    assert!(health.starts_with("the history of !slow:example.org: ") && health.contains("500"), "{health}");

    let said = running.briefs(4).await;
    assert_eq!(said, ["said $slow-0: hi", "said $slow-1: hi", "said $slow-2: hi", "said $slow-3: hi"]);
    running.healthy().await;
    let stored = async {
        while !login::parked(&running.surface.client()).await.expect("it can be read").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, stored).await.expect("in time");
    assert_eq!(running.end().await, Vec::<String>::new());

    // And so it stays: the next start has nothing to make good.
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    let mut next = running.briefs(2).await;
    next.sort();
    assert_eq!(next, ["said $quick-4: hi", "said $slow-4: hi"]);
    running.taken().await;
    assert_eq!(running.surface.health(), Ok(()));
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_restart_keeps_what_a_room_has_not_been_heard_of() {
    static ANSWERS: AtomicBool = AtomicBool::new(false);
    fn slow(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            HISTORY if ANSWERS.load(Ordering::SeqCst) => Some(history(since)),
            HISTORY => Some((502, json!("<html>bad gateway</html>"))),
            "sync" if since == Some("s2") && number == 3 => Some((200, Value::Null)),
            "sync" if since == Some("s2") => Some((200, json!({"next_batch": "s2b"}))),
            "sync" if since == Some("s2b") && ANSWERS.load(Ordering::SeqCst) => {
                Some(two_rooms("s3", "$slow-3", "$quick-3", false))
            }
            path => syncs(number, path, since),
        }
    }
    let homeserver = Homeserver::start(slow).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    assert_eq!(running.briefs(2).await, ["said $quick-2: hi", "late in !slow:example.org: s1"]);
    homeserver.requests("sync", 3).await;
    assert_eq!(running.end().await, Vec::<String>::new());

    // The next life tells it again, under the same name.
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    assert_eq!(running.briefs(1).await, ["late in !slow:example.org: s1"]);
    assert_eq!(running.end().await, Vec::<String>::new());

    // When the history comes at once, there is nothing to be told.
    ANSWERS.store(true, Ordering::SeqCst);
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    let given = running.briefs(5).await;
    let (slow, others): (Vec<_>, Vec<_>) = given.iter().map(String::as_str).partition(|given| given.contains("$slow"));
    assert_eq!(slow, ["said $slow-0: hi", "said $slow-1: hi", "said $slow-2: hi", "said $slow-3: hi"]);
    assert_eq!(others, ["said $quick-3: hi"]);
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn other_rooms_do_not_wait_either_for_a_history_that_is_long() {
    static ENDS: AtomicBool = AtomicBool::new(false);
    fn long(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            HISTORY if ENDS.load(Ordering::SeqCst) => {
                Some((200, json!({"start": since, "chunk": [message("$slow-0", "hi")]})))
            }
            HISTORY => Some((200, json!({"start": since, "end": format!("page-{number}"), "chunk": []}))),
            path => syncs(number, path, since),
        }
    }
    let homeserver = Homeserver::start(long).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    let mut given = running.briefs(3).await;
    given.sort();
    assert_eq!(given, ["late in !slow:example.org: s1", "said $quick-2: hi", "said $quick-3: hi"]);
    let health = running.surface.health().expect_err("not all messages are taken");
    assert!(health.starts_with("the history of !slow:example.org: it is long; "), "{health}");
    ENDS.store(true, Ordering::SeqCst);
    assert_eq!(running.briefs(1).await, ["said $slow-0: hi"]);
    running.end().await;
}

#[tokio::test]
async fn a_room_that_the_bot_has_left_is_waited_for_no_longer() {
    fn left(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match (path, since) {
            (HISTORY, _) => Some((500, json!({}))),
            ("sync", Some("s2")) => {
                let left = json!({"!slow:example.org": {"timeline": {"events": [], "limited": false}}});
                Some((200, json!({"next_batch": "s3", "rooms": {"leave": left}})))
            }
            _ => syncs(number, path, since),
        }
    }
    let homeserver = Homeserver::start(left).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    assert_eq!(running.briefs(2).await, ["said $quick-2: hi", "late in !slow:example.org: s1"]);
    running.healthy().await;
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_the_homeserver_does_not_give_of_single_events_in_time_counts_as_not_there() {
    fn away(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if since == Some("s1") => {
                let mut reply = message("$reply", "yes");
                reply["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": "$away"}});
                let mut edit = message("$edit", "* that");
                edit["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": "that"});
                edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": "$away"});
                let mut sync = answer("s2", &[reply, edit, message("$next", "and this")]);
                // A room of which the homeserver gives neither summary nor members.
                sync["rooms"]["join"]["!two:example.org"] =
                    json!({"timeline": {"events": [message("$alone", "hi")], "limited": false}});
                Some((200, sync))
            }
            path if path.contains("/event/") || path.ends_with("/members") => Some((503, json!({}))),
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(away).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    let mut said = Vec::new();
    for _ in 0..3 {
        let message = running.message().await;
        said.push((message.event_id, message.addressed, message.quoted));
    }
    said.sort();
    assert_eq!(said, ["$alone", "$next", "$reply"].map(|id| (id.to_owned(), false, None)));
    running.taken().await;
    assert_eq!(running.surface.health(), Ok(()));
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn rooms_whose_history_never_comes_leave_others_that_are_set_aside_their_turn() {
    fn all_turns_taken(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        let room = |id: &str| {
            json!({
                "timeline": {"events": [message(id, "hi")], "limited": true, "prev_batch": "gap"},
                "summary": {"m.joined_member_count": 3},
            })
        };
        match path {
            "rooms/!good:example.org/messages" if number > 1 => {
                Some((200, json!({"start": since, "chunk": [message("$good", "hi")]})))
            }
            path if path.ends_with("/messages") => Some((500, json!({}))),
            "sync" if since == Some("s1") => {
                let rooms =
                    (0..sync::ROOMS_AT_ONCE).map(|n| (format!("!bad{n}:example.org"), room(&format!("$bad{n}"))));
                Some((200, json!({"next_batch": "s2", "rooms": {"join": Value::Object(rooms.collect())}})))
            }
            "sync" if since == Some("s2") => {
                Some((200, json!({"next_batch": "s3", "rooms": {"join": {"!good:example.org": room("$good")}}})))
            }
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(all_turns_taken).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::impatient(homeserver.settings(dir.path())).await;
    let mut late = running.briefs(sync::ROOMS_AT_ONCE).await;
    late.retain(|brief| brief.starts_with("late in !bad"));
    assert_eq!(late.len(), sync::ROOMS_AT_ONCE);
    assert_eq!(running.briefs(2).await, ["late in !good:example.org: s2", "said $good: hi"]);
    running.end().await;
}
