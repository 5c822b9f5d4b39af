//! What was said while nobody listened, and what happened to messages, handed over whole and in order.

use std::sync::atomic::AtomicUsize;

use tokio::sync::Barrier;

use super::*;

/// A sync that gives the newest message of a room, and that there is more before it.
fn limited(next: &str, newest: Value) -> Value {
    let mut sync = answer(next, &[newest]);
    sync["rooms"]["join"]["!room:example.org"]["timeline"]["limited"] = json!(true);
    sync["rooms"]["join"]["!room:example.org"]["timeline"]["prev_batch"] = json!("p0");
    sync
}

fn briefs(given: &[Given]) -> Vec<String> {
    given.iter().map(Given::brief).collect()
}

impl Running {
    async fn given_so_many(&mut self, count: usize) -> Vec<Given> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.given().await);
        }
        all
    }
}

/// More pages than a walk ever kept, with more in them than it keeps.
const PAGES: usize = 120;

#[tokio::test]
async fn a_gap_of_any_length_is_handed_over_whole_and_in_order() {
    fn long(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if token == Some("s1") => Some((200, limited("s2", message("$newest", "newest")))),
            path if path.ends_with("/messages") => {
                let page: usize = token?.strip_prefix('p')?.parse().ok()?;
                let body = format!("{page} {}", "x".repeat(60_000));
                let mut answer = json!({"start": token, "chunk": [message(&format!("$p{page}"), &body)]});
                if page + 1 < PAGES {
                    answer["end"] = json!(format!("p{}", page + 1));
                }
                Some((200, answer))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(long).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let given = running.given_so_many(PAGES + 1).await;
    let ids: Vec<String> = given
        .iter()
        .map(|given| match given {
            Given::Said(message) => message.event_id.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected: Vec<String> =
        (0..PAGES).rev().map(|page| format!("$p{page}")).chain(["$newest".to_owned()]).collect();
    assert_eq!(ids, expected);
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
    let asked = homeserver.requests("/messages", PAGES).await.len();
    assert!((PAGES + 10..2 * PAGES).contains(&asked), "what is not kept is asked for again: {asked}");
}

#[tokio::test]
async fn the_inbox_has_taken_that_history_is_refused_before_the_position_moves_on() {
    fn closed(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if token == Some("s1") => {
                // The same gap, whatever was said since.
                let mut sync = limited("s2", message("$newest", "newest"));
                sync["rooms"]["join"]["!room:example.org"]["timeline"]["prev_batch"] = json!(format!("p{number}"));
                Some((200, sync))
            }
            path if path.ends_with("/messages") && token == Some("closed") => {
                Some((403, json!({"errcode": "M_FORBIDDEN", "error": "no"})))
            }
            path if path.ends_with("/messages") => {
                Some((200, json!({"start": token, "end": "closed", "chunk": [message("$near", "near")]})))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(closed).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (near, missed, newest) = ("said $near: near", "missed in !room:example.org: s1", "said $newest: newest");
    // The first life ends before it is written down that something was missed.
    let mut running = Running::start(homeserver.settings(dir.path()), Does::KeepMissed).await;
    assert_eq!(briefs(&running.given_so_many(2).await), [near, missed]);
    assert_eq!(running.end().await, Vec::<String>::new());
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(briefs(&running.given_so_many(3).await), [near, missed, newest]);
    running.taken().await;
    assert_eq!(running.surface.health(), Ok(()));
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(homeserver.requests("/send/", 0).await, [], "the inbox tells the room");
}

#[tokio::test]
async fn a_directory_that_was_set_back_answers_nothing_again_that_the_room_shows_an_answer_to() {
    fn answered(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let answer_to = |id: &str, sender: &str, answers: &[&str]| {
            let mut event = by(sender, message(id, "done"));
            event["content"]["dev.musher"] = json!({"transaction": id, "answers": answers});
            event
        };
        let bot = "@musher:example.org";
        match path {
            // What an older copy of the store asks for: all of what was said since.
            "sync" if token == Some("s1") => {
                let events = [
                    answer_to("$a2", bot, &["$2", "$3"]),
                    message("$4", "four"),
                    answer_to("$a4", bot, &["$4"]),
                    message("$5", "five"),
                    // Anybody may write that.
                    answer_to("$forged", "@eve:example.org", &["$5"]),
                    edit("$e4", "$4", "four and a half"),
                ];
                let mut sync = limited("s2", message("$5", "five"));
                sync["rooms"]["join"]["!room:example.org"]["timeline"]["events"] = json!(events);
                Some((200, sync))
            }
            path if path.ends_with("/messages") && token == Some("p0") => {
                let newest_first = [message("$3", "three"), answer_to("$a1", bot, &["$1"])];
                Some((200, json!({"start": "p0", "end": "p1", "chunk": newest_first})))
            }
            path if path.ends_with("/messages") => {
                let newest_first = [message("$2", "two"), message("$1", "one"), message("$0", "zero")];
                Some((200, json!({"start": "p1", "chunk": newest_first})))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(answered).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let given = running.given_so_many(3).await;
    assert_eq!(briefs(&given), ["said $0: zero", "said $5: five", "edited $4 by $e4: four and a half"]);
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
}

/// When the newest message was said that a test's inbox knows, in seconds.
const NEWEST: i64 = 1_700_000_000;

#[tokio::test]
async fn a_lost_store_is_walked_back_to_what_the_inbox_knows_and_a_lost_directory_is_history() {
    fn lost(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let said = |id: &str, seconds: i64| {
            let mut event = message(id, "hi");
            event["origin_server_ts"] = json!((NEWEST + seconds) * 1000);
            event
        };
        match (path, token) {
            ("sync", None) => Some((200, answer("s1", &[said("$newest", 60)]))),
            ("rooms/!room:example.org/messages", Some("s1")) => Some((
                200,
                json!({"start": "s1", "end": "p1", "chunk": [said("$newest", 60), said("$old", -3600), said("$known", 0)]}),
            )),
            // A page that another homeserver has dated back as a whole.
            ("rooms/!room:example.org/messages", Some("p1")) => {
                let dated =
                    [by("@eve:elsewhere.org", said("$eves", -7200)), by("@ann:elsewhere.org", said("$anns", -7200))];
                Some((200, json!({"start": "p1", "end": "p2", "chunk": dated})))
            }
            ("rooms/!room:example.org/messages", Some("p2")) => {
                Some((200, json!({"start": "p2", "end": "p3", "chunk": [said("$before", 0)]})))
            }
            ("rooms/!room:example.org/messages", Some("p3")) => {
                Some((200, json!({"start": "p3", "end": "p4", "chunk": [said("$older", -7200)]})))
            }
            ("sync", _) => Some((200, Value::Null)),
            (path, token) => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(lost).await;
    let dir = tempfile::tempdir().expect("a directory");
    // The second life knows a newer message, but the first has not ended its walk.
    for (does, newest, expected) in [
        (Does::Keep, NEWEST, vec!["said $before: hi"]),
        (Does::Take, NEWEST + 86_400, vec!["said $before: hi", "said $known: hi", "said $newest: hi"]),
    ] {
        let newest = Timestamp::from_second(newest).expect("a time");
        let (inbox, given) = TestInbox::new(does, Some(newest));
        let mut running = Running::with(homeserver.settings(dir.path()), inbox, given).await;
        assert_eq!(briefs(&running.given_so_many(expected.len()).await), expected);
        if does == Does::Take {
            running.taken().await;
        }
        assert_eq!(running.end().await, Vec::<String>::new());
    }
    // Two walks of four pages: a page that is older as a whole ends them, by the bot's own homeserver's clock.
    assert_eq!(homeserver.requests("/messages", 8).await.len(), 8);

    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(homeserver.requests("/messages", 8).await.len(), 8);
}

#[tokio::test]
async fn a_walk_that_hangs_holds_nothing_back_that_is_sent() {
    fn hanging(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            path if path.ends_with("/messages") && token == Some("s1") => Some((200, Value::Null)),
            path if path.ends_with("/messages") => Some((200, json!({"start": "s1", "chunk": []}))),
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(hanging).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (inbox, given) = TestInbox::new(Does::Take, Some(Timestamp::from_second(NEWEST).expect("a time")));
    let running = Running::with(homeserver.settings(dir.path()), inbox, given).await;
    homeserver.requests("/messages", 1).await;
    let room = Room { surface: SurfaceKind::Matrix, id: "!room:example.org".to_owned() };
    let message = Outbound {
        weight: crate::chat::Weight::Answer,
        markdown: "done".to_owned(),
        reply_to: None,
        mention: None,
        thread: None,
        answers: Vec::new(),
        transaction: "turn-1".to_owned(),
    };
    let found = running.surface.find(&room, "turn-1", Timestamp::UNIX_EPOCH).await;
    assert_eq!(found.expect("the homeserver answers"), None);
    assert_eq!(running.surface.send(&room, &message).await.expect("the homeserver takes it"), "$sent");
    assert!(running.surface.health().is_err(), "not all is taken");
    assert_eq!(running.end().await, Vec::<String>::new());
}

fn by(sender: &str, mut event: Value) -> Value {
    event["sender"] = json!(sender);
    event
}

fn edit(id: &str, original: &str, body: &str) -> Value {
    let mut event = message(id, &format!("* {body}"));
    event["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": body});
    event["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": original});
    event
}

fn redaction(id: &str, redacts: &str) -> Value {
    json!({
        "type": "m.room.redaction", "event_id": id, "sender": "@ann:example.org", "origin_server_ts": 1,
        "redacts": redacts, "content": {"redacts": redacts},
    })
}

fn reaction(id: &str, target: &str, key: &str) -> Value {
    json!({
        "type": "m.reaction", "event_id": id, "sender": "@ann:example.org", "origin_server_ts": 1,
        "content": {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": key}},
    })
}

#[tokio::test]
async fn edits_redactions_and_reactions_come_in_order_live_and_from_a_gap() {
    fn changes(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let (eve, bot) = ("@eve:example.org", "@musher:example.org");
        match path {
            "sync" if token == Some("s1") => {
                let mut sync = limited("s2", message("$1", "one"));
                let events = [
                    message("$1", "one"),
                    by(eve, message("$eves", "hers")),
                    edit("$e2", "$1", "one and a half"),
                    edit("$not-hers", "$eves", "forged"),
                    by(eve, edit("$forged", "$1", "forged")),
                    by(bot, edit("$ours", "$1", "ours")),
                    edit("$e3", "$fetched", "from before"),
                    edit("$e4", "$lost", "nobody knows"),
                    reaction("$r1", "$question", "✅\u{FE0F}"),
                    by(eve, reaction("$r2", "$question", "✅")),
                    reaction("$r3", "$1", "👍"),
                    by(bot, message("$asked", "shall I?")),
                    reaction("$r4", "$asked", "👍"),
                    by(eve, redaction("$d1", "$1")),
                    by(bot, redaction("$d2", "$ours")),
                ];
                sync["rooms"]["join"]["!room:example.org"]["timeline"]["events"] = json!(events);
                Some((200, sync))
            }
            path if path.ends_with("/messages") => {
                let newest_first = [
                    redaction("$d0", "$r0"),
                    reaction("$r0", "$question", "👍"),
                    edit("$e1", "$0", "nought"),
                    message("$0", "zero"),
                ];
                Some((200, json!({"start": "p0", "chunk": newest_first})))
            }
            path if path.ends_with("/event/$fetched") => Some((200, message("$fetched", "before"))),
            path if path.contains("/event/") => Some((404, json!({"errcode": "M_NOT_FOUND", "error": "no"}))),
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(changes).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::FailOnce).await;
    let given = running.given_so_many(10).await;
    assert_eq!(
        briefs(&given),
        [
            "said $0: zero",
            "edited $0 by $e1: nought",
            "reacted to $question: 👍",
            "redacted $r0 by @ann:example.org",
            "said $1: one",
            "edited $1 by $e2: one and a half",
            "edited $fetched by $e3: from before",
            "reacted to $question: ✅",
            "reacted to $asked: 👍",
            "redacted $1 by @eve:example.org",
        ]
    );
    let Given::Reacted(reacted) = &given[2] else { panic!("{given:?}") };
    assert_eq!((reacted.reaction_id.as_str(), reacted.sender.id.as_str()), ("$r0", "@ann:example.org"));
    assert!(!reacted.encrypted);
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_in_clear_in_an_encrypted_room_is_told_as_such() {
    fn encrypted(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        if path != "sync" || token != Some("s1") {
            return one_message(number, path, token);
        }
        let encryption = json!({
            "type": "m.room.encryption", "state_key": "", "event_id": "$e", "sender": "@ann:example.org",
            "origin_server_ts": 1, "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        });
        let events = [edit("$edit", "$1", "new"), reaction("$r", "$question", "✅"), redaction("$d", "$1")];
        let mut sync = answer("s2", &events);
        sync["rooms"]["join"]["!room:example.org"]["state"] = json!({"events": [encryption]});
        Some((200, sync))
    }
    let homeserver = Homeserver::start(encrypted).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let given = running.given_so_many(2).await;
    assert_eq!(briefs(&given), ["reacted to $question: ✅", "redacted $1 by @ann:example.org"]);
    assert!(matches!(&given[0], Given::Reacted(reacted) if reacted.encrypted));
    assert_eq!(running.end().await, Vec::<String>::new());
}

/// Rooms of one sync, and how many of them are handed over at once.
const ROOMS: usize = 32;
const AT_ONCE: usize = 16;

/// Takes a message only when so many others are in hand at the same time.
struct Together {
    given: mpsc::UnboundedSender<Given>,
    barrier: Barrier,
    in_hand: AtomicUsize,
    most: AtomicUsize,
}

impl Inbox for Together {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        async move {
            let in_hand = self.in_hand.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(in_hand, Ordering::SeqCst);
            self.barrier.wait().await;
            self.in_hand.fetch_sub(1, Ordering::SeqCst);
            self.given.send(Given::Said(message)).expect("the test listens");
            Ok(())
        }
        .boxed()
    }

    fn edited(&self, edit: Edited) -> BoxFuture<'_, Result<(), InboxError>> {
        panic!("{edit:?}")
    }

    fn redacted(&self, redaction: Redacted) -> BoxFuture<'_, Result<(), InboxError>> {
        panic!("{redaction:?}")
    }

    fn reacted(&self, reaction: Reacted) -> BoxFuture<'_, Result<(), InboxError>> {
        panic!("{reaction:?}")
    }

    fn missed(&self, missed: Missed) -> BoxFuture<'_, Result<(), InboxError>> {
        panic!("{missed:?}")
    }

    fn newest(&self, _: SurfaceKind) -> BoxFuture<'_, Result<Option<Timestamp>, InboxError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn listens_to(&self, _: &Person) -> bool {
        true
    }
}

#[tokio::test]
async fn rooms_are_handed_over_side_by_side_and_each_in_its_order() {
    fn many(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        if path != "sync" || token != Some("s1") {
            return one_message(number, path, token);
        }
        let rooms: serde_json::Map<String, Value> = (0..ROOMS)
            .map(|room| {
                let events = ["first", "second"].map(|body| message(&format!("${body}-{room}"), body));
                let timeline = json!({"events": events, "limited": false});
                (format!("!{room}:example.org"), json!({"timeline": timeline, "summary": {"m.joined_member_count": 3}}))
            })
            .collect();
        Some((200, json!({"next_batch": "s2", "rooms": {"join": rooms}})))
    }
    let homeserver = Homeserver::start(many).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (given, receiver) = mpsc::unbounded_channel();
    let inbox = Arc::new(Together {
        given,
        barrier: Barrier::new(AT_ONCE),
        in_hand: AtomicUsize::default(),
        most: AtomicUsize::default(),
    });
    let mut running =
        Running::with(homeserver.settings(dir.path()), Arc::clone(&inbox) as Arc<dyn Inbox>, receiver).await;
    let mut said: HashMap<String, Vec<String>> = HashMap::new();
    for given in running.given_so_many(2 * ROOMS).await {
        let Given::Said(message) = given else { panic!("{given:?}") };
        said.entry(message.room.id).or_default().push(message.text);
    }
    assert_eq!(said.len(), ROOMS);
    assert!(said.values().all(|texts| *texts == ["first", "second"]), "{said:?}");
    assert_eq!(inbox.most.load(Ordering::SeqCst), AT_ONCE, "bounded");
    running.taken().await;
    running.end().await;
}
