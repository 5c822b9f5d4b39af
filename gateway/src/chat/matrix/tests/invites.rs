//! Invites, and rooms that cannot be joined yet.

use super::*;

#[tokio::test]
async fn an_invite_that_cannot_be_answered_is_tried_as_long_as_it_stands() {
    fn not_yet(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if since == Some("s1") => Some((200, invited_by("@ann:example.org"))),
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

/// A sync with an invite.
pub(super) fn invited_by(sender: &str) -> Value {
    let invite = json!({
        "type": "m.room.member", "sender": sender, "state_key": "@musher:example.org",
        "content": {"membership": "invite"},
    });
    let rooms = json!({"invite": {"!in:example.org": {"invite_state": {"events": [invite]}}}});
    json!({"next_batch": "s2", "rooms": rooms})
}

#[tokio::test]
async fn an_invite_of_a_stranger_that_cannot_be_declined_is_let_stand() {
    fn never(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "sync" if since == Some("s1") => Some((200, invited_by("@eve:example.org"))),
            path if path.ends_with("/leave") => Some((403, json!({"errcode": "M_FORBIDDEN", "error": "no"}))),
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(never).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    homeserver.requests("/leave", 1).await;
    tokio::time::pause();
    let declined = || lock(&homeserver.requests).iter().filter(|(path, _)| path.ends_with("/leave")).count();
    let mut arrived = homeserver.arrived.clone();
    let tried = timeout(Duration::from_mins(30), arrived.wait_for(|_| declined() > 6)).await;
    tried.expect_err("it is not tried for ever");
    assert_eq!(declined(), 6);
    tokio::time::resume();
    assert_eq!(running.end().await, Vec::<String>::new());
}

/// How often joining is tried until it succeeds: for more minutes than the log hears of it.
const TRIES: usize = 9;
