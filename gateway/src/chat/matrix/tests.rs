//! The surface against a homeserver of a few lines, for what must hold at moments that a real one does not offer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::*;
use crate::chat::{Edited, Inbound, InboxError, Missed, Reacted, Redacted};

mod invites;
mod look_ups;
mod marks;
mod parked;
mod replaced;
mod taking_out;
mod walks;

/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an inbox is given.
#[derive(Debug, Clone)]
enum Given {
    Said(Inbound),
    Edited(Edited),
    Redacted(Redacted),
    Reacted(Reacted),
    Missed(Missed),
}

impl Given {
    /// Its kind, and the event that it is about.
    fn brief(&self) -> String {
        match self {
            Self::Said(message) => format!("said {}: {}", message.event_id, message.text),
            Self::Edited(edit) => format!("edited {} by {}: {}", edit.event_id, edit.edit_id, edit.text),
            Self::Redacted(redaction) => format!("redacted {} by {}", redaction.event_id, redaction.by.id),
            Self::Reacted(reaction) => format!("reacted to {}: {}", reaction.event_id, reaction.key),
            Self::Missed(Missed { room, gap, awaited: false }) => format!("missed in {}: {gap}", room.id),
            Self::Missed(Missed { room, gap, awaited: true }) => format!("late in {}: {gap}", room.id),
        }
    }
}

/// What a test's inbox does with what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Take,
    /// Has it in hand for ever.
    Keep,
    /// Has what was missed in hand for ever.
    KeepMissed,
    /// Cannot write down the first edit.
    FailOnce,
}

/// An inbox that tells what it is given. It listens to Ann alone.
struct TestInbox {
    given: mpsc::UnboundedSender<Given>,
    does: Does,
    failed: AtomicBool,
    newest: Option<Timestamp>,
}

impl TestInbox {
    fn new(does: Does, newest: Option<Timestamp>) -> (Arc<Self>, mpsc::UnboundedReceiver<Given>) {
        let (given, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { given, does, failed: AtomicBool::new(false), newest }), receiver)
    }

    fn take(&self, given: Given) -> BoxFuture<'_, Result<(), InboxError>> {
        if self.does == Does::FailOnce
            && matches!(given, Given::Edited(_))
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            return std::future::ready(Err(InboxError::Journal("the disk is full".into()))).boxed();
        }
        let keeps = self.does == Does::Keep || self.does == Does::KeepMissed && matches!(given, Given::Missed(_));
        self.given.send(given).expect("the test listens");
        if keeps { std::future::pending().boxed() } else { std::future::ready(Ok(())).boxed() }
    }
}

impl Inbox for TestInbox {
    fn accept(&self, message: Inbound) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(Given::Said(message))
    }

    fn edited(&self, edit: Edited) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(Given::Edited(edit))
    }

    fn redacted(&self, redaction: Redacted) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(Given::Redacted(redaction))
    }

    fn reacted(&self, reaction: Reacted) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(Given::Reacted(reaction))
    }

    fn missed(&self, missed: Missed) -> BoxFuture<'_, Result<(), InboxError>> {
        self.take(Given::Missed(missed))
    }

    fn newest(&self, _: SurfaceKind) -> BoxFuture<'_, Result<Option<Timestamp>, InboxError>> {
        std::future::ready(Ok(self.newest)).boxed()
    }

    fn listens_to(&self, person: &Person) -> bool {
        person.id == "@ann:example.org"
    }
}

fn message(id: &str, body: &str) -> Value {
    json!({
        "type": "m.room.message", "event_id": id, "sender": "@ann:example.org", "origin_server_ts": 1,
        "content": {"msgtype": "m.text", "body": body},
    })
}

/// A sync's answer with these events in one room of three members.
fn answer(next: &str, events: &[Value]) -> Value {
    let room = json!({"timeline": {"events": events, "limited": false}, "summary": {"m.joined_member_count": 3}});
    json!({"next_batch": next, "rooms": {"join": {"!room:example.org": room}}})
}

/// What a test's homeserver answers to a request, by its number among those to the same path, from 1, its path
/// without prefix, and the token of the stream from which something is asked for: `Null` is no answer at all.
type Answers = fn(usize, &str, Option<&str>) -> Option<(u16, Value)>;

/// The stream: history at first, then one message, then nothing.
fn one_message(_: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
    (path == "sync").then(|| match since {
        None => (200, answer("s1", &[message("$history", "history")])),
        Some("s1") => (200, answer("s2", &[message("$new", "new")])),
        _ => (200, Value::Null),
    })
}

struct Homeserver {
    url: Url,
    logins: Arc<AtomicUsize>,
    /// Paths and bodies, in their order.
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    arrived: watch::Receiver<usize>,
}

#[derive(Clone)]
struct Stub {
    answers: Answers,
    logins: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    arrived: watch::Sender<usize>,
}

async fn serve(State(stub): State<Stub>, uri: Uri, body: Bytes) -> (StatusCode, Json<Value>) {
    let mut path = uri.path().rsplit_once("/v3/").map_or(uri.path(), |(_, path)| path).to_owned();
    for (code, sign) in [("%21", "!"), ("%23", "#"), ("%24", "$"), ("%3A", ":"), ("%40", "@")] {
        path = path.replace(code, sign);
    }
    let number = {
        let mut requests = lock(&stub.requests);
        requests.push((path.clone(), serde_json::from_slice(&body).unwrap_or_default()));
        requests.iter().filter(|(earlier, _)| *earlier == path).count()
    };
    stub.arrived.send_modify(|arrived| *arrived += 1);
    let query = Url::parse(&format!("http://stub/?{}", uri.query().unwrap_or_default())).expect("a query");
    let since =
        query.query_pairs().find(|(key, _)| key == "since" || key == "from").map(|(_, value)| value.into_owned());
    let (status, body) = (stub.answers)(number, &path, since.as_deref()).unwrap_or_else(|| {
        let body = match path.as_str() {
            "/_matrix/client/versions" => json!({"versions": ["v1.11"]}),
            "login" => {
                stub.logins.fetch_add(1, Ordering::Relaxed);
                json!({"user_id": "@musher:example.org", "device_id": "DEVICE", "access_token": "token"})
            }
            "account/whoami" => json!({"user_id": "@musher:example.org", "device_id": "DEVICE"}),
            "keys/upload" => json!({"one_time_key_counts": {"signed_curve25519": 50}}),
            "keys/query" => json!({"device_keys": {}}),
            path if path.ends_with("/members") => json!({"chunk": []}),
            path if path.ends_with("/state/m.room.encryption/") => {
                return (404, json!({"errcode": "M_NOT_FOUND", "error": "not encrypted"}));
            }
            path if path.contains("/send/") || path.contains("/redact/") => json!({"event_id": "$sent"}),
            _ => json!({}),
        };
        (200, body)
    });
    if body.is_null() {
        std::future::pending::<()>().await;
    }
    (StatusCode::from_u16(status).expect("a status"), Json(body))
}

impl Homeserver {
    async fn start(answers: Answers) -> Self {
        let (logins, requests) = (Arc::default(), Arc::default());
        let (sender, arrived) = watch::channel(0);
        let stub = Stub { answers, logins: Arc::clone(&logins), requests: Arc::clone(&requests), arrived: sender };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(serve).with_state(stub);
        tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url: Url::parse(&url).expect("a URL"), logins, requests, arrived }
    }

    fn settings(&self, store_dir: &std::path::Path) -> MatrixSettings {
        MatrixSettings {
            homeserver: self.url.clone(),
            login: Login::Password { username: "musher".to_owned(), password: Secret::from("secret".to_owned()) },
            room_ids: Vec::new(),
            ambient: Vec::new(),
            store_dir: store_dir.to_owned(),
            device_name: "Musher".to_owned(),
        }
    }

    /// The requests whose path contains this, once there are so many.
    async fn requests(&self, what: &str, count: usize) -> Vec<(String, Value)> {
        let found = || lock(&self.requests).iter().filter(|(path, _)| path.contains(what)).cloned().collect::<Vec<_>>();
        let mut arrived = self.arrived.clone();
        let waited = timeout(PATIENCE, arrived.wait_for(|_| found().len() >= count)).await;
        let Ok(waited) = waited else {
            let paths = lock(&self.requests).iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
            panic!("{what} does not come in time: {paths:?}");
        };
        drop(waited.expect("the homeserver lives"));
        found()
    }
}

/// A surface at work.
struct Running {
    surface: Arc<MatrixSurface>,
    given: mpsc::UnboundedReceiver<Given>,
    stop: CancellationToken,
    end: oneshot::Receiver<()>,
}

impl Running {
    async fn start(settings: MatrixSettings, does: Does) -> Self {
        let (inbox, given) = TestInbox::new(does, None);
        Self::with(settings, inbox, given).await
    }

    async fn with(settings: MatrixSettings, inbox: Arc<dyn Inbox>, given: mpsc::UnboundedReceiver<Given>) -> Self {
        Self::patient(settings, inbox, given, sync::PATIENCE).await
    }

    /// One that waits so long for what the homeserver does not give.
    async fn patient(
        settings: MatrixSettings,
        inbox: Arc<dyn Inbox>,
        given: mpsc::UnboundedReceiver<Given>,
        patience: Duration,
    ) -> Self {
        let stop = CancellationToken::new();
        let started = MatrixSurface::start_with(settings, inbox, stop.clone(), patience).await;
        let (surface, receiving) = started.expect("it starts");
        let (ended, end) = oneshot::channel();
        tokio::spawn(async move {
            receiving.await;
            ended.send(()).expect("the test waits");
        });
        Self { surface, given, stop, end }
    }

    async fn given(&mut self) -> Given {
        timeout(PATIENCE, self.given.recv()).await.expect("it comes in time").expect("something comes")
    }

    async fn message(&mut self) -> Inbound {
        match self.given().await {
            Given::Said(message) => message,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until all of the present sync is taken.
    async fn taken(&self) {
        self.trouble(Option::is_none).await;
    }

    async fn trouble(&self, wanted: impl FnMut(&Option<String>) -> bool) {
        let mut trouble = self.surface.trouble.subscribe();
        drop(timeout(PATIENCE, trouble.wait_for(wanted)).await.expect("in time").expect("the surface lives"));
    }

    /// Ends it; gives what nobody has read.
    async fn end(mut self) -> Vec<String> {
        self.stop.cancel();
        self.end.await.expect("the loop ends");
        assert!(self.surface.health().is_err());
        std::iter::from_fn(|| self.given.try_recv().ok()).map(|given| given.brief()).collect()
    }
}

#[tokio::test]
async fn a_message_that_the_inbox_has_not_taken_comes_again_after_a_restart() {
    let homeserver = Homeserver::start(one_message).await;
    let dir = tempfile::tempdir().expect("a directory");
    // The first life ends while the inbox still has the message in hand; the SDK has stored its token.
    let mut lives = Vec::new();
    for does in [Does::Keep, Does::Take] {
        let mut running = Running::start(homeserver.settings(dir.path()), does).await;
        assert_eq!(running.surface.in_touch().now_or_never(), None, "the homeserver has said nothing yet");
        let message = running.message().await;
        lives.push((message.event_id, message.text, message.addressed));
        if does == Does::Take {
            timeout(PATIENCE, running.surface.in_touch()).await.expect("in time");
            assert!(running.surface.health().is_ok());
            assert_eq!(running.surface.bot(), "musher");
        }
        // History never comes, and nothing comes twice in one life.
        assert_eq!(running.end().await, Vec::<String>::new());
    }
    let new = ("$new".to_owned(), "new".to_owned(), false);
    assert_eq!(lives, [new.clone(), new]);
    assert_eq!(homeserver.logins.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_position_that_cannot_be_stored_is_stored_later_and_nothing_comes_twice() {
    // The first life makes the store and leaves the message; then the store refuses the next position.
    let homeserver = Homeserver::start(one_message).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Keep).await;
    assert_eq!(running.message().await.event_id, "$new");
    running.end().await;

    let store = dir.path().read_dir().expect("it is there").flatten().find(|entry| entry.path().is_dir());
    let path = store.expect("there is a store").path().join("matrix-sdk-state.sqlite3");
    let database = rusqlite::Connection::open(path).expect("it opens");
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON kv_blob WHEN instr(NEW.value, '\"s2\"') BEGIN SELECT RAISE(ABORT, 'full'); END";
    database.execute_batch(refuse).expect("it can be changed");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(running.message().await.event_id, "$new");
    running.trouble(|trouble| trouble.as_ref().is_some_and(|why| why.starts_with("the Matrix store failed"))).await;
    database.execute_batch("DROP TRIGGER refuse").expect("it can be changed");
    running.trouble(Option::is_none).await;
    assert_eq!(running.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_handed_over_does_not_come_again_when_the_session_ends_in_the_next_rooms_walk() {
    fn two_rooms(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        let room = |id: &str| {
            json!({
                "timeline": {"events": [message(id, "new")], "limited": true, "prev_batch": "gap"},
                "summary": {"m.joined_member_count": 3},
            })
        };
        match path {
            "sync" if since == Some("s1") => Some((
                200,
                json!({"next_batch": "s2", "rooms": {"join": {"!a:example.org": room("$a"), "!b:example.org": room("$b")}}}),
            )),
            // So late that the other room is done.
            "rooms/!b:example.org/messages" if number == 1 => Some((502, json!({}))),
            "rooms/!b:example.org/messages" if number == 2 => {
                Some((401, json!({"errcode": "M_UNKNOWN_TOKEN", "error": "gone"})))
            }
            path if path.ends_with("/messages") => Some((200, json!({"start": "gap", "chunk": []}))),
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(two_rooms).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    assert_eq!(running.message().await.event_id, "$a");
    assert_eq!(running.message().await.event_id, "$b");
    running.trouble(Option::is_none).await;
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(homeserver.logins.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_room_counts_as_what_it_calls_itself_while_nobody_says_whose_the_alias_is() {
    fn unresolved(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        let called = |alias: &str| {
            json!({"events": [{
                "type": "m.room.canonical_alias", "event_id": format!("$of{alias}"), "sender": "@ann:example.org",
                "state_key": "", "origin_server_ts": 1, "content": {"alias": "#x:example.org", "alt_aliases": [alias]},
            }]})
        };
        match path {
            "directory/room/#away:example.org" => Some((502, json!({}))),
            "directory/room/#gone:example.org" => Some((404, json!({"errcode": "M_NOT_FOUND", "error": "no"}))),
            "sync" if since == Some("s1") => {
                let mut sync = answer("s2", &[message("$away", "hi")]);
                let rooms = &mut sync["rooms"]["join"];
                let mut other = rooms["!room:example.org"].clone();
                other["timeline"]["events"] = json!([message("$gone", "hi")]);
                other["state"] = called("#gone:example.org");
                rooms["!room:example.org"]["state"] = called("#away:example.org");
                rooms["!two:example.org"] = other;
                Some((200, sync))
            }
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(unresolved).await;
    let dir = tempfile::tempdir().expect("a directory");
    let ambient = vec!["#away:example.org".to_owned(), "#gone:example.org".to_owned()];
    let mut running = Running::start(MatrixSettings { ambient, ..homeserver.settings(dir.path()) }, Does::Take).await;
    let mut said = Vec::new();
    for _ in 0..2 {
        let message = running.message().await;
        said.push((message.event_id, message.addressed));
    }
    said.sort();
    assert_eq!(said, [("$away".to_owned(), true), ("$gone".to_owned(), false)]);
    running.end().await;
}

#[tokio::test]
async fn ambient_rooms_are_known_before_the_first_message_and_strangers_cost_nothing() {
    fn with_alias(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "directory/room/#team:example.org" if number == 1 => Some((502, json!({}))),
            "directory/room/#team:example.org" => Some((200, json!({"room_id": "!room:example.org", "servers": []}))),
            "sync" if since == Some("s1") => {
                let mut stranger = message("$eve", "hi");
                stranger["sender"] = json!("@eve:example.org");
                stranger["content"]["m.relates_to"] = json!({"m.in_reply_to": {"event_id": "$old"}});
                Some((200, answer("s2", &[stranger, message("$new", "new")])))
            }
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(with_alias).await;
    let dir = tempfile::tempdir().expect("a directory");
    let ambient = vec!["#team:example.org".to_owned(), "!other:example.org".to_owned()];
    let mut running = Running::start(MatrixSettings { ambient, ..homeserver.settings(dir.path()) }, Does::Take).await;
    let message = running.message().await;
    assert_eq!((message.event_id.as_str(), message.addressed), ("$new", true));
    running.trouble(Option::is_none).await;
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(homeserver.requests("directory/", 2).await.len(), 2);
    for asked in ["/event/", "/members", "/context/"] {
        assert_eq!(homeserver.requests(asked, 0).await, [], "{asked}");
    }
}

#[tokio::test]
async fn messages_do_not_wait_as_long_as_the_homeserver_asks_before_it_says_whose_an_alias_is() {
    fn slowly(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        match path {
            "directory/room/#team:example.org" => {
                Some((429, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "slowly", "retry_after_ms": 600_000})))
            }
            path => one_message(number, path, since),
        }
    }
    let homeserver = Homeserver::start(slowly).await;
    let dir = tempfile::tempdir().expect("a directory");
    let ambient = vec!["#team:example.org".to_owned()];
    let (inbox, given) = TestInbox::new(Does::Take, None);
    let settings = MatrixSettings { ambient, ..homeserver.settings(dir.path()) };
    let mut running = Running::patient(settings, inbox, given, Duration::from_secs(1)).await;
    assert_eq!(running.message().await.event_id, "$new");
    // It is asked on beside.
    homeserver.requests("directory/", 3).await;
    running.end().await;
}

#[tokio::test]
async fn encrypted_rooms_are_refused_once_and_never_in_clear() {
    fn encrypted(number: usize, path: &str, since: Option<&str>) -> Option<(u16, Value)> {
        if path != "sync" || since != Some("s1") {
            return one_message(number, path, since);
        }
        let encryption = json!({
            "type": "m.room.encryption", "state_key": "", "event_id": "$e", "sender": "@ann:example.org",
            "origin_server_ts": 1, "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        });
        let said = ["$1", "$2"].map(|id| message(id, "!help")).to_vec();
        let mut sync = answer("s2", &said);
        sync["rooms"]["join"]["!room:example.org"]["state"] = json!({"events": [encryption]});
        Some((200, sync))
    }
    let homeserver = Homeserver::start(encrypted).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let sent = homeserver.requests("/send/", 1).await;
    assert_eq!(running.end().await, Vec::<String>::new());
    assert_eq!(sent.len(), 1);
    assert!(sent[0].0.contains("/send/m.room.encrypted/"), "{sent:?}");
    assert_eq!((sent[0].1.get("body"), sent[0].1.get("msgtype")), (None, None));
    assert_eq!(homeserver.requests("/send/", 1).await, sent);
}

#[tokio::test]
async fn a_client_that_is_put_in_the_place_of_another_is_not_taken_for_one_that_knows_its_rooms() {
    let homeserver = Homeserver::start(one_message).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    running.taken().await;
    assert!(running.surface.knowing_client().is_some());
    let (begun, begins) = std::sync::mpsc::channel();
    let surface = Arc::clone(&running.surface);
    let mut sender = None;
    running.surface.client.send_modify(|_| {
        sender = Some(std::thread::spawn(move || {
            begun.send(()).expect("the test waits");
            surface.knowing_client().is_some()
        }));
        begins.recv().expect("it begins");
        // It comes as far as it can meanwhile.
        std::thread::sleep(Duration::from_millis(50));
        running.surface.rooms_known.store(false, Ordering::Release);
    });
    assert!(!sender.expect("it was begun").join().expect("it does not panic"));
    running.end().await;
}

#[tokio::test]
async fn typing_ends_with_the_last_that_writes_in_the_room() {
    let homeserver = Homeserver::start(one_message).await;
    let dir = tempfile::tempdir().expect("a directory");
    let running = Running::start(homeserver.settings(dir.path()), Does::Take).await;
    let room = Room { surface: SurfaceKind::Matrix, id: "!room:example.org".to_owned() };
    for on in [true, true, false] {
        running.surface.typing(&room, on).await;
    }
    let shown = homeserver.requests("/typing/", 1).await;
    assert!(shown.iter().all(|(_, body)| body["typing"] == json!(true)), "{shown:?}");
    // The other goes on: the sign is renewed.
    let renewed = homeserver.requests("/typing/", shown.len() + 1).await;
    assert!(renewed.iter().all(|(_, body)| body["typing"] == json!(true)), "{renewed:?}");
    running.surface.typing(&room, false).await;
    let ended = homeserver.requests("/typing/", renewed.len() + 1).await;
    assert_eq!(ended.last().map(|(_, body)| &body["typing"]), Some(&json!(false)));
    running.end().await;
}

#[tokio::test]
async fn settings_that_name_no_room_are_refused_with_a_hint() {
    let rooms = |wrong: &str| vec!["!fine:example.org".to_owned(), "#fine:example.org".to_owned(), wrong.to_owned()];
    for (room_ids, ambient) in [(rooms("general"), Vec::new()), (Vec::new(), rooms("general"))] {
        let settings = MatrixSettings {
            homeserver: Url::parse("http://127.0.0.1:1").expect("a URL"),
            login: Login::Token { access_token: Secret::from("hidden".to_owned()) },
            room_ids,
            ambient,
            store_dir: PathBuf::from("/nonexistent"),
            device_name: "Musher".to_owned(),
        };
        assert!(!format!("{settings:?}").contains("hidden"));
        let (inbox, _given) = TestInbox::new(Does::Take, None);
        let started = MatrixSurface::start(settings, inbox, CancellationToken::new()).await;
        let Err(error) = started else { panic!("it started") };
        assert_eq!(error.to_string(), "`general` is neither a room id nor a room alias");
        assert!(error.hint().contains("room_ids"));
    }
}
