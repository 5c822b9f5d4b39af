//! What decides whether an event counts is fetched until the homeserver answers.

use super::*;

fn reply(id: &str, to: &str, body: &str) -> Value {
    let mut event = message(id, body);
    event["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": to}});
    event
}

fn ours(id: &str) -> Value {
    let mut event = message(id, "shall I?");
    event["sender"] = json!("@musher:example.org");
    event
}

#[tokio::test]
async fn whether_a_message_is_for_the_bot_is_asked_until_it_is_known_and_what_it_quotes_once() {
    fn failing(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let member = |user: &str| {
            json!({
                "type": "m.room.member", "event_id": format!("${user}"), "sender": user, "state_key": user,
                "origin_server_ts": 1, "room_id": "!two:example.org", "content": {"membership": "join"},
            })
        };
        match path {
            "sync" if token == Some("s1") => {
                let said = [
                    reply("$quoting", "$elsewhere", "musher: do this"),
                    reply("$yes", "$ours", "yes"),
                    reply("$aside", "$removed", "they said"),
                ];
                let mut sync = answer("s2", &said);
                // A room of which the homeserver gives no summary.
                sync["rooms"]["join"]["!two:example.org"] =
                    json!({"timeline": {"events": [message("$alone", "hi")], "limited": false}});
                Some((200, sync))
            }
            path if path.ends_with("/event/$ours") && number == 1 => Some((502, json!({}))),
            path if path.ends_with("/event/$ours") => Some((200, ours("$ours"))),
            path if path.ends_with("/event/$elsewhere") => Some((502, json!({}))),
            path if path.ends_with("/event/$removed") => Some((404, json!({"errcode": "M_NOT_FOUND", "error": "no"}))),
            "rooms/!two:example.org/members" if number == 1 => {
                Some((429, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "slow down", "retry_after_ms": 10})))
            }
            "rooms/!two:example.org/members" => {
                Some((200, json!({"chunk": [member("@musher:example.org"), member("@ann:example.org")]})))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(failing).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let mut said = Vec::new();
    for _ in 0..4 {
        let Inbound { event_id, addressed, quoted, .. } = running.message().await;
        said.push((event_id, addressed, quoted));
    }
    // The rooms come side by side.
    said.sort();
    let is = |id: &str, addressed: bool, quoted: Option<&str>| (id.to_owned(), addressed, quoted.map(str::to_owned));
    assert_eq!(
        said,
        [
            is("$alone", true, None),
            is("$aside", false, None),
            is("$quoting", true, None),
            is("$yes", true, Some("shall I?")),
        ]
    );
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
    for (asked, times) in
        [("/event/$ours", 2), ("/event/$elsewhere", 1), ("/event/$removed", 1), ("!two:example.org/members", 2)]
    {
        assert_eq!(homeserver.requests(asked, times).await.len(), times, "{asked}");
    }
}

#[tokio::test]
async fn an_edit_outlives_the_session_in_which_its_message_was_asked_for() {
    fn forgetful(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if token == Some("s1") => {
                let mut edit = message("$edit", "* that");
                edit["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": "that"});
                edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": "$before"});
                Some((200, answer("s2", &[edit])))
            }
            path if path.ends_with("/event/$before") && number == 1 => {
                Some((401, json!({"errcode": "M_UNKNOWN_TOKEN", "error": "gone"})))
            }
            path if path.ends_with("/event/$before") => Some((200, message("$before", "this"))),
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(forgetful).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(running.given().await.brief(), "edited $before by $edit: that");
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
    // With the old session it would have been asked for in vain.
    assert_eq!(homeserver.logins.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_look_up_that_never_succeeds_does_not_hold_the_end_up_and_comes_again_after_a_restart() {
    fn away(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if token == Some("s1") => Some((200, answer("s2", &[reply("$yes", "$ours", "yes")]))),
            path if path.ends_with("/event/$ours") && number == 1 => Some((503, json!({}))),
            path if path.ends_with("/event/$ours") => Some((200, ours("$ours"))),
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(away).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let of_it = |why: &String| why.starts_with("the event $ours in !room:example.org: ") && why.contains("503");
    running.trouble(|trouble| trouble.as_ref().is_some_and(of_it)).await;
    assert_eq!(running.end().await, Vec::<String>::new());
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let message = running.message().await;
    assert_eq!((message.event_id.as_str(), message.addressed), ("$yes", true));
    running.end().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_is_not_asked_for() {
    fn deaf(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if token == Some("s1") => {
                let (long, broken) = (format!("${}", "a".repeat(17_000)), "$a\n.example.org");
                let mut edit = message("$edit", "* that");
                edit["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": "that"});
                edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": long});
                let said = [
                    reply("$long", &long, "yes"),
                    reply("$broken", broken, "musher: yes"),
                    reply("$away", "$/../../../../x", "yes"),
                    reply("$last", "$x/..", "yes"),
                    reply("$here", "$x/./y", "yes"),
                    reply("$other", "$x\\..\\y", "yes"),
                    edit,
                ];
                Some((200, answer("s2", &[&said[..], &[message("$new", "new")]].concat())))
            }
            // Such a request is not read, or goes elsewhere.
            path if path.contains("/event/") => Some((414, json!("<html>too long</html>"))),
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(deaf).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    for (id, addressed) in [
        ("$long", false),
        ("$broken", true),
        ("$away", false),
        ("$last", false),
        ("$here", false),
        ("$other", false),
        ("$new", false),
    ] {
        let message = running.message().await;
        assert_eq!((message.event_id.as_str(), message.addressed, message.quoted), (id, addressed, None));
    }
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(homeserver.requests("/event/", 0).await, []);
}

#[tokio::test]
async fn what_was_taken_back_is_not_quoted() {
    fn taken_back(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let redaction = |id: &str, redacts: &str, sender: &str| {
            json!({
                "type": "m.room.redaction", "event_id": id, "sender": sender, "origin_server_ts": 1,
                "redacts": redacts, "content": {"redacts": redacts},
            })
        };
        match path {
            "sync" if token == Some("s1") => {
                let said = [
                    message("$hers", "musher: a secret"),
                    message("$shown", "musher: another"),
                    message("$kept", "musher: none"),
                    redaction("$d1", "$hers", "@ann:example.org"),
                    redaction("$d2", "$shown", "@musher:example.org"),
                    reply("$1", "$hers", "musher: this?"),
                    reply("$2", "$shown", "musher: this?"),
                    reply("$3", "$kept", "musher: this?"),
                ];
                Some((200, answer("s2", &said)))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(taken_back).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    for _ in 0..3 {
        running.message().await;
    }
    assert_eq!(running.given().await.brief(), "redacted $hers by @ann:example.org");
    for (id, quoted) in [("$1", None), ("$2", None), ("$3", Some("none"))] {
        let message = running.message().await;
        assert_eq!((message.event_id.as_str(), message.quoted.as_deref()), (id, quoted));
    }
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_an_edit_took_away_is_not_quoted() {
    fn edited(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
        let edit = |id: &str, of: &str| {
            let mut edit = message(id, "* none");
            edit["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": "none"});
            edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": of});
            edit
        };
        match path {
            // Before the bot listened.
            "sync" if token.is_none() => Some((200, answer("s1", &[message("$old", "a secret"), edit("$e0", "$old")]))),
            "sync" if token == Some("s1") => {
                let said = [
                    message("$new", "musher: a secret"),
                    edit("$e1", "$new"),
                    reply("$1", "$old", "musher: this?"),
                    reply("$2", "$new", "musher: this?"),
                    reply("$3", "$far", "musher: this?"),
                ];
                Some((200, answer("s2", &said)))
            }
            path if path.ends_with("/event/$far") => {
                let mut far = message("$far", "a secret");
                far["unsigned"] = json!({"m.relations": {"m.replace": edit("$e2", "$far")}});
                Some((200, far))
            }
            path => one_message(number, path, token),
        }
    }
    let homeserver = Homeserver::start(edited).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(running.message().await.event_id, "$new");
    assert_eq!(running.given().await.brief(), "edited $new by $e1: none");
    for id in ["$1", "$2", "$3"] {
        let message = running.message().await;
        assert_eq!((message.event_id.as_str(), message.quoted.as_deref()), (id, Some("none")));
    }
    running.taken().await;
    assert_eq!(running.end().await, Vec::<String>::new());
}
