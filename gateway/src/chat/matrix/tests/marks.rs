//! Marks on messages, and looking for what was sent, against the homeserver.

use super::*;

fn room() -> Room {
    Room { surface: SurfaceKind::Matrix, id: "!room:example.org".to_owned() }
}

/// History first; then a message; an earlier run has marked `$before`.
fn with_marks(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
    let reaction = |id: &str, sender: &str, key: &str| {
        json!({
            "type": "m.reaction", "event_id": id, "sender": sender, "origin_server_ts": 1, "room_id": "!room:example.org",
            "content": {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$before", "key": key}},
        })
    };
    match path {
        "sync" if token == Some("s2") => Some((200, answer("s3", &[message("$live", "live")]))),
        path if path.contains("/relations/$before/m.annotation/m.reaction") && token.is_none() => Some((
            200,
            json!({"chunk": [reaction("$anns", "@ann:example.org", "⏳"), reaction("$thumb", "@musher:example.org", "👍")], "next_batch": "more"}),
        )),
        path if path.contains("/relations/$before/") => {
            Some((200, json!({"chunk": [reaction("$ours", "@musher:example.org", "⏳")]})))
        }
        path if path.contains("/send/m.reaction/") => Some((200, json!({"event_id": "$reaction"}))),
        path => one_message(number, path, token),
    }
}

async fn running(homeserver: &Homeserver, dir: &std::path::Path) -> Running {
    let mut running = Running::start(homeserver.settings(dir), Does::Take).await;
    for event in ["$new", "$live"] {
        assert_eq!(running.message().await.event_id, event);
    }
    running
}

#[tokio::test]
async fn a_message_that_waits_carries_a_sign_until_its_turn_runs() {
    let homeserver = Homeserver::start(with_marks).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = running(&homeserver, dir.path()).await;
    let mark = |event: &str, mark| running.surface.mark(&room(), event, mark);
    mark("$live", Mark::Accepted);
    let read = homeserver.requests("/receipt/m.read/", 1).await;
    assert_eq!(read[0].0, "rooms/!room:example.org/receipt/m.read/$live");

    mark("$live", Mark::Waiting);
    let shown = homeserver.requests("/send/m.reaction/", 1).await;
    assert_eq!(shown[0].0, "rooms/!room:example.org/send/m.reaction/mark-$live-waiting");
    assert_eq!(
        shown[0].1,
        json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "$live", "key": "⏳\u{FE0F}"}})
    );
    mark("$live", Mark::Running);
    let redacted = homeserver.requests("/redact/", 1).await;
    assert_eq!(redacted[0].0, "rooms/!room:example.org/redact/$reaction/mark-$live-waiting-over");

    mark("$live", Mark::Failed);
    let shown = homeserver.requests("/send/m.reaction/", 2).await;
    assert_eq!(shown[1].0, "rooms/!room:example.org/send/m.reaction/mark-$live-failed");
    assert_eq!(homeserver.requests("/relations/", 0).await, [], "what came in this run is known");
    running.end().await;
}

#[tokio::test]
async fn an_earlier_runs_sign_is_found_and_taken_back() {
    let homeserver = Homeserver::start(with_marks).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = running(&homeserver, dir.path()).await;
    running.surface.mark(&room(), "$before", Mark::Running);
    let redacted = homeserver.requests("/redact/", 1).await;
    assert_eq!(redacted[0].0, "rooms/!room:example.org/redact/$ours/mark-$before-waiting-over");
    assert_eq!(homeserver.requests("/relations/", 2).await.len(), 2);
    running.end().await;
    assert_eq!(homeserver.requests("/redact/", 1).await.len(), 1, "what others put on it stays");
    assert_eq!(homeserver.requests("/send/", 0).await, []);
}

fn by_moderator() -> Value {
    json!({
        "type": "m.room.redaction", "event_id": "$redaction", "sender": "@ann:example.org",
        "origin_server_ts": 4_001_000, "redacts": "$gone", "content": {"redacts": "$gone"},
    })
}

/// Our own messages, newest first, in small pages.
fn with_sent(number: usize, path: &str, token: Option<&str>) -> Option<(u16, Value)> {
    let sent = |id: &str, seconds: i64, transaction: &str| {
        let mut event = message(id, "answer");
        event["sender"] = json!("@musher:example.org");
        event["origin_server_ts"] = json!(seconds * 1000);
        event["content"]["dev.musher"] = json!({"transaction": transaction, "answers": []});
        event
    };
    if !path.ends_with("/messages") {
        return one_message(number, path, token);
    }
    let pages = |events: &[Value], end: &str| Some((200, json!({"start": "x", "end": end, "chunk": events})));
    let page = |event: Value, end: &str| pages(&[event], end);
    match token {
        None => {
            let mut edit = sent("$edit", 5000, "turn-1");
            edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": "$draft"});
            page(edit, "p1")
        }
        Some("p1") => {
            // What a moderator has taken back has lost its content.
            let mut gone = sent("$gone", 4000, "turn-3");
            gone["content"] = json!({});
            gone["unsigned"] = json!({"transaction_id": "turn-3", "redacted_because": by_moderator()});
            pages(&[gone, sent("$two", 4000, "turn-2")], "p2")
        }
        Some("p2") => page(message("$ann", "not ours"), "p3"),
        Some("p3") => page(sent("$one", 3000, "turn-1"), "p4"),
        Some("p4") => page(sent("$nought", 1000, "turn-0"), "p5"),
        _ => Some((200, json!({"start": "p5", "chunk": []}))),
    }
}

#[tokio::test]
async fn what_was_sent_is_found_by_its_transaction() {
    let homeserver = Homeserver::start(with_sent).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(running.message().await.event_id, "$new");
    running.taken().await;
    let find = async |transaction: &str, since: i64| {
        let before = homeserver.requests("/messages", 0).await.len();
        let since = Timestamp::from_second(since).expect("a time");
        let found = running.surface.find(&room(), transaction, since).await.expect("the homeserver answers");
        (found, homeserver.requests("/messages", 0).await.len() - before)
    };
    let found = |id: &str| Some(id.to_owned());
    // Ten minutes are allowed for differing clocks.
    assert_eq!(find("turn-1", 3500).await, (found("$one"), 4), "its edit is another event");
    assert_eq!(find("turn-2", 3500).await, (found("$two"), 2));
    assert_eq!(find("turn-3", 3500).await, (found("$gone"), 2), "also when it was taken back");
    assert_eq!(find("turn-0", 1100).await, (found("$nought"), 5));
    assert_eq!(find("turn-0", 4300).await, (None, 4), "older ones are not asked for");
    assert_eq!(find("turn-9", 0).await, (None, 6), "the room has an end");

    let elsewhere = Room { surface: SurfaceKind::Matrix, id: "!elsewhere:example.org".to_owned() };
    let refused = running.surface.find(&elsewhere, "turn-1", Timestamp::UNIX_EPOCH).await;
    assert!(matches!(refused, Err(SendError::Refused { .. })), "{refused:?}");
    running.end().await;
}
