//! Rooms that were upgraded: what is on its way goes to where their people are.

use super::*;

fn state(kind: &str, content: &Value) -> Value {
    json!({
        "type": kind, "state_key": "", "event_id": format!("${kind}"), "sender": "@ann:example.org", "origin_server_ts": 1,
        "content": content,
    })
}

fn replaced_by(next: &str) -> Value {
    state("m.room.tombstone", &json!({"body": "", "replacement_room": next}))
}

fn replacing(before: &str) -> Value {
    let predecessor = json!({"room_id": before, "event_id": "$m.room.tombstone"});
    state("m.room.create", &json!({"room_version": "11", "predecessor": predecessor}))
}

/// Rooms of which one was replaced twice by rooms in which the bot is, one by a room in which it is not, and one by a room that says
/// nothing of it. Nobody may write in the old ones any more.
fn upgraded(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
    let room = |state: &[Value]| json!({"state": {"events": state}, "timeline": {"events": [], "limited": false}});
    match path {
        "sync" if since.is_none() => {
            let rooms = json!({
                "!old:example.org": room(&[replaced_by("!newer:example.org")]),
                "!newer:example.org": room(&[replacing("!old:example.org"), replaced_by("!newest:example.org")]),
                "!newest:example.org": room(&[replacing("!newer:example.org")]),
                "!left:example.org": room(&[replaced_by("!away:example.org")]),
                "!claimed:example.org": room(&[replaced_by("!other:example.org")]),
                "!other:example.org": room(&[replacing("!another:example.org")]),
            });
            Some((200, json!({"next_batch": "s2", "rooms": {"join": rooms}})))
        }
        path if path.contains("/send/") && !path.starts_with("rooms/!new") && !path.starts_with("rooms/!other") => {
            Some((403, json!({"errcode": "M_FORBIDDEN", "error": "you may not write here"})))
        }
        "rooms/!newer:example.org/messages" => {
            let mut sent = message("$there", "done");
            sent["sender"] = json!("@musher:example.org");
            sent["origin_server_ts"] = json!(2_000_000_000_000_i64);
            sent["content"]["dev.musher"] = json!({"transaction": "earlier", "answers": []});
            Some((200, json!({"start": "s2", "chunk": [sent]})))
        }
        path if path.ends_with("/messages") => Some((200, json!({"start": "s2", "chunk": []}))),
        path => one_message(number, path, since),
    }
}

fn answer_to(transaction: &str) -> Outbound {
    Outbound {
        weight: crate::chat::Weight::Answer,
        markdown: "done".to_owned(),
        reply_to: Some("$question".to_owned()),
        mention: Some(Person { surface: SurfaceKind::Matrix, id: "@ann:example.org".to_owned() }),
        thread: Some("$root".to_owned()),
        answers: vec!["$question".to_owned()],
        transaction: transaction.to_owned(),
    }
}

fn room(name: &str) -> Room {
    Room { surface: SurfaceKind::Matrix, id: format!("!{name}:example.org") }
}

#[tokio::test]
async fn what_is_on_its_way_to_a_room_goes_to_the_one_in_its_place_or_waits_for_the_bot_to_be_there() {
    let homeserver = Homeserver::start(upgraded).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    running.taken().await;
    let surface = &running.surface;

    assert_eq!(surface.send(&room("old"), &answer_to("a")).await.expect("it is sent"), "$sent");
    let sent = homeserver.requests("/send/", 1).await;
    assert_eq!(sent[0].0, "rooms/!newest:example.org/send/m.room.message/a");
    assert_eq!(sent[0].1.get("m.relates_to"), None, "what it answers stands elsewhere");
    assert_eq!(sent[0].1["m.mentions"], json!({"user_ids": ["@ann:example.org"]}));
    // What was sent there is edited there.
    surface.edit(&room("old"), "$sent", &answer_to("b")).await.expect("it is edited");
    assert_eq!(homeserver.requests("/send/", 2).await[1].0, "rooms/!newest:example.org/send/m.room.message/b");

    // There the bot may still come. Where it is, but not because of that room, it never will.
    let later = surface.send(&room("left"), &answer_to("c")).await.expect_err("it cannot be sent");
    assert!(matches!(later, SendError::Transient { retry_after: None, .. }), "{later}");
    let never = surface.send(&room("claimed"), &answer_to("c")).await.expect_err("it cannot be sent");
    assert!(matches!(never, SendError::Refused { .. }), "{never}");
    for replaced in ["left", "claimed"] {
        let never = surface.edit(&room(replaced), "$before", &answer_to("d")).await.expect_err("it cannot be edited");
        assert!(matches!(never, SendError::Refused { .. }), "{replaced}: {never}");
    }
    assert!(homeserver.requests("/send/", 6).await[2..].iter().all(|(path, _)| !path.starts_with("rooms/!other")));
    running.end().await;
}

#[tokio::test]
async fn what_an_earlier_try_may_have_sent_is_looked_for_in_all_of_them() {
    let homeserver = Homeserver::start(upgraded).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    running.taken().await;
    let find = async |transaction: &str| running.surface.find(&room("old"), transaction, Timestamp::now()).await;
    assert_eq!(find("earlier").await.expect("it answers").as_deref(), Some("$there"));
    assert_eq!(find("never").await.expect("it answers"), None);
    let looked: Vec<_> = homeserver.requests("/messages", 5).await.into_iter().map(|(path, _)| path).collect();
    let all = ["old", "newer", "newest"].map(|name| format!("rooms/!{name}:example.org/messages"));
    assert_eq!(looked[2..], all);
    // After a start that is all there is to know where it stands.
    running.surface.edit(&room("old"), "$there", &answer_to("b")).await.expect("it is edited");
    assert_eq!(homeserver.requests("/send/", 1).await[0].0, "rooms/!newer:example.org/send/m.room.message/b");
    running.surface.take_back(&room("old"), "$there", "c", "late").await.expect("it is taken out");
    assert!(homeserver.requests("/redact/", 1).await[0].0.starts_with("rooms/!newer:example.org/redact/$there/"));
    running.end().await;
}

#[tokio::test]
async fn an_alias_that_goes_with_a_rooms_people_is_looked_for_again_when_the_bot_comes_after_them() {
    fn moved(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "directory/room/#team:example.org" => {
                let room = if number == 1 { "!room:example.org" } else { "!in:example.org" };
                Some((200, json!({"room_id": room, "servers": []})))
            }
            "sync" if since == Some("s1") => Some((200, invites::invited_by("@ann:example.org"))),
            path if path.ends_with("/join") => Some((200, json!({"room_id": "!in:example.org"}))),
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(moved).await;
    let dir = tempfile::tempdir().expect("a directory");
    let ambient = vec!["#team:example.org".to_owned()];
    let running = Running::start(MatrixSettings { ambient, ..homeserver.settings(dir.path()) }, Does::Take).await;
    let room = matrix_sdk::ruma::room_id!("!in:example.org");
    let known = async {
        while !running.surface.client().get_room(room).is_some_and(|room| running.surface.ambient.contains(&room)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, known).await.expect("in time");
    running.end().await;
}
