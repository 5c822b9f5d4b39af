//! Invites, and rooms that cannot be joined yet.

use super::*;

#[tokio::test]
async fn an_invite_that_cannot_be_answered_is_tried_as_long_as_it_stands() {
    fn not_yet(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if since == Some("s1") => {
                let invite = json!({
                    "type": "m.room.member", "sender": "@ann:example.org", "state_key": "@musher:example.org",
                    "content": {"membership": "invite"},
                });
                let rooms = json!({"invite": {"!in:example.org": {"invite_state": {"events": [invite]}}}});
                Some((200, json!({"next_batch": "s2", "rooms": rooms})))
            }
            path if path.ends_with("/join") && number < TRIES => {
                Some((403, json!({"errcode": "M_FORBIDDEN", "error": "not yet"})))
            }
            path if path.ends_with("/join") => Some((200, json!({"room_id": "!in:example.org"}))),
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(not_yet).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    homeserver.requests("/join", 1).await;
    // Minutes lie between them, and no test waits so long.
    tokio::time::pause();
    let joins = || lock(&homeserver.requests).iter().filter(|(path, _)| path.ends_with("/join")).count();
    let mut arrived = homeserver.arrived.clone();
    let tried = timeout(Duration::from_mins(30), arrived.wait_for(|_| joins() >= TRIES)).await;
    drop(tried.expect("in time").expect("the homeserver lives"));
    tokio::time::resume();
    assert_eq!(running.end().await, Vec::<String>::new());
}

/// How often joining is tried until it succeeds: for more minutes than the log hears of it.
const TRIES: usize = 9;
