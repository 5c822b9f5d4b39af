//! The surface against a homeserver of a few lines, for what must hold at moments that a real one does not offer.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::*;
use crate::chat::{Inbound, InboxError, Person};

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// An inbox that tells what it is given, and takes it or never answers.
struct TestInbox {
    given: mpsc::UnboundedSender<Inbound>,
    takes: bool,
}

impl Inbox for TestInbox {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        self.given.send(message).expect("the test listens");
        if self.takes { std::future::ready(Ok(())).boxed() } else { std::future::pending().boxed() }
    }

    fn may_invite(&self, _: &Person) -> bool {
        false
    }
}

#[derive(Deserialize)]
struct Sync {
    since: Option<String>,
}

fn message(id: &str, body: &str) -> Value {
    json!({
        "type": "m.room.message", "event_id": id, "sender": "@ann:example.org", "origin_server_ts": 1,
        "content": {"msgtype": "m.text", "body": body},
    })
}

/// The stream: history at first, then one message, then nothing.
async fn sync(Query(query): Query<Sync>) -> Json<Value> {
    let (next, events) = match query.since.as_deref() {
        None => ("s1", [message("$history", "history")]),
        Some("s1") => ("s2", [message("$new", "new")]),
        _ => return std::future::pending().await,
    };
    let room = json!({"timeline": {"events": events, "limited": false}, "summary": {"m.joined_member_count": 3}});
    Json(json!({"next_batch": next, "rooms": {"join": {"!room:example.org": room}}}))
}

async fn homeserver() -> (Url, Arc<AtomicUsize>) {
    let logins = Arc::new(AtomicUsize::new(0));
    let who = json!({"user_id": "@musher:example.org", "device_id": "DEVICE"});
    let log_in = |State(logins): State<Arc<AtomicUsize>>| async move {
        logins.fetch_add(1, Ordering::Relaxed);
        Json(json!({"user_id": "@musher:example.org", "device_id": "DEVICE", "access_token": "token"}))
    };
    let router = Router::new()
        .route("/_matrix/client/versions", get(async || Json(json!({"versions": ["v1.11"]}))))
        .route("/_matrix/client/v3/login", post(log_in))
        .route("/_matrix/client/v3/account/whoami", get(async || Json(who)))
        .route("/_matrix/client/v3/sync", get(sync))
        .with_state(Arc::clone(&logins));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    (Url::parse(&url).expect("a URL"), logins)
}

#[tokio::test]
async fn a_message_that_the_inbox_has_not_taken_comes_again_after_a_restart() {
    let (homeserver, logins) = homeserver().await;
    let dir = tempfile::tempdir().expect("a directory");
    let settings = MatrixSettings {
        homeserver,
        login: Login::Password { username: "musher".to_owned(), password: Secret::from("secret".to_owned()) },
        room_ids: Vec::new(),
        store_dir: dir.path().to_owned(),
        device_name: "Musher".to_owned(),
    };
    // The first life ends while the inbox still has the message in hand; the SDK has stored its token.
    let mut lives = Vec::new();
    for takes in [false, true] {
        let (given, mut messages) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (surface, receiving) =
            MatrixSurface::start(settings.clone(), Arc::new(TestInbox { given, takes }), stop.clone())
                .await
                .expect("it starts");
        let (ended, end) = oneshot::channel();
        tokio::spawn(async move {
            receiving.await;
            ended.send(()).expect("the test waits");
        });
        let message = timeout(PATIENCE, messages.recv()).await.expect("it comes in time").expect("a message comes");
        lives.push((message.event_id, message.text, message.addressed));
        if takes {
            surface.trouble.subscribe().wait_for(Option::is_none).await.expect("the surface lives");
        }
        stop.cancel();
        end.await.expect("the loop ends");
        assert!(surface.health().is_err());
        // History never comes, and nothing comes twice in one life.
        assert!(messages.try_recv().is_err());
    }
    let new = ("$new".to_owned(), "new".to_owned(), false);
    assert_eq!(lives, [new.clone(), new]);
    assert_eq!(logins.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn settings_that_name_no_room_are_refused_with_a_hint() {
    let settings = MatrixSettings {
        homeserver: Url::parse("http://127.0.0.1:1").expect("a URL"),
        login: Login::Token { access_token: Secret::from("hidden".to_owned()) },
        room_ids: vec!["!fine:example.org".to_owned(), "#fine:example.org".to_owned(), "general".to_owned()],
        store_dir: PathBuf::from("/nonexistent"),
        device_name: "Musher".to_owned(),
    };
    assert!(!format!("{settings:?}").contains("hidden"));
    let (given, _messages) = mpsc::unbounded_channel();
    let started =
        MatrixSurface::start(settings, Arc::new(TestInbox { given, takes: true }), CancellationToken::new()).await;
    let Err(error) = started else { panic!("it started") };
    assert_eq!(error.to_string(), "`general` is neither a room id nor a room alias");
    assert!(error.hint().contains("room_ids"));
}
