//! Turns against sleds that answer by script, over links in memory: without an engine and an agent.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use axum::{
    Json, Router,
    extract::Path,
    response::IntoResponse,
    routing::{get, post, put},
};
use jiff::Timestamp;
use journal::{Journal, SystemClock};
use link::{
    Hello, Side,
    requests::{Accepted, NodeStatus, Refusal as Refused, RunningTurn, TurnRecord, paths},
};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::*;
use crate::{
    chat::{Outbound, Person, Room, SendError, Surface, SurfaceKind},
    dispatch::{
        actor::Dispatcher,
        core::{Event, Limits},
    },
    people::Role,
};

/// Takes what is sent, in order.
struct Hall(UnboundedSender<Outbound>);

impl Surface for Hall {
    fn kind(&self) -> SurfaceKind {
        SurfaceKind::Console
    }
    fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        self.0.send(message.clone()).ok();
        async { Ok("event".to_owned()) }.boxed()
    }
    fn edit<'a>(&'a self, _: &'a Room, _: &'a str, _: &'a Outbound) -> BoxFuture<'a, Result<(), SendError>> {
        async { Ok(()) }.boxed()
    }
    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }
    fn edit_interval(&self) -> Duration {
        Duration::ZERO
    }
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What a project's sled is each time that it is asked for; `None` when it is away.
#[derive(Default)]
struct Script {
    sleds: Mutex<VecDeque<Option<Router>>>,
    killed: AtomicU32,
}

impl Sleds for Arc<Script> {
    fn sled(&self, _: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>> {
        let next = self.sleds.lock().expect("no test panics holding it").pop_front().flatten();
        async move {
            let router = next.ok_or_else(|| Refusal::unavailable("it is away"))?;
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let gateway = link::open(ours, Side::Gateway, Hello::current(), Router::new(), link::Limits::default());
            let sled = link::open(theirs, Side::Sled, Hello::current(), router, link::Limits::default());
            let (gateway, sled) = tokio::join!(gateway, sled);
            let ((link, ours), (_, theirs)) = (gateway.expect("it opens"), sled.expect("it opens"));
            tokio::spawn(ours.run());
            tokio::spawn(theirs.run());
            Ok(SledClient::new(link))
        }
        .boxed()
    }

    fn kill(&self, _: Uuid) -> BoxFuture<'_, Result<(), Refusal>> {
        self.killed.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }.boxed()
    }
}

struct Stage {
    script: Arc<Script>,
    turns: Turns,
    sessions: Sessions,
    dispatcher: Dispatcher<Words, StopRequest>,
    sent: UnboundedReceiver<Outbound>,
    session: SessionKey,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(sleds: impl IntoIterator<Item = Option<Router>>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(SystemClock)).expect("it can be made");
        let (tasks, sessions) = (Tasks::new(), Sessions::new(journal));
        let outbox = Outbox::new(tasks.clone());
        let (sender, sent) = mpsc::unbounded_channel();
        outbox.add(Arc::new(Hall(sender)));
        let script = Arc::new(Script { sleds: Mutex::new(sleds.into_iter().collect()), ..Script::default() });
        let settings =
            TurnSettings { agent: Agent::Echo { notice: None }, identity: None, stop_grace: Duration::from_millis(10) };
        let turns = Turns::new(settings, Arc::clone(&script), sessions.clone(), outbox, tasks.clone());
        let limits = Limits { window: Duration::ZERO, max_window: Duration::ZERO, max_queue: 9, max_turns: 2 };
        let (dispatcher, work) = Dispatcher::new(limits, Arc::new(turns.clone()) as Arc<dyn Carrier<_, _>>);
        tasks.spawn("dispatcher", work);
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let session = SessionKey { project: Uuid::now_v7(), room, thread: None };
        Self { script, turns, sessions, dispatcher, sent, session, _folder: folder }
    }

    fn say(&self, text: &str) {
        let message = Words {
            room: self.session.room.clone(),
            thread: None,
            event_id: text.into(),
            sender: Person { surface: SurfaceKind::Console, id: "ann".into() },
            at: Timestamp::UNIX_EPOCH,
            text: text.into(),
            quoted: None,
            pending: None,
        };
        let session = self.session.clone();
        assert!(self.dispatcher.tell(Event::Message { session, rights: Role::Admin, message }));
    }

    fn stop(&self, room: Option<Room>, request: StopRequest) {
        assert!(self.dispatcher.tell(Event::Stop { room, project: self.session.project, request }));
    }

    async fn heard(&mut self) -> Outbound {
        self.sent.recv().await.expect("the surface is alive")
    }

    fn killed(&self) -> u32 {
        self.script.killed.load(Ordering::SeqCst)
    }
}

fn finished(text: &str) -> String {
    let outcome = Outcome::Answered { text: text.into() };
    let record = TurnRecord { seq: 1, at: Timestamp::UNIX_EPOCH, event: TurnEvent::Finished { outcome, usage: None } };
    format!("{}\n", serde_json::to_string(&record).expect("it serialises"))
}

fn events(lines: String) -> Router {
    Router::new().route(paths::TURN_EVENTS, get(move || async move { lines }))
}

fn accepting() -> Router {
    Router::new().route(paths::TURN, put(|| async { Json(Accepted { already: false }) }))
}

fn stopping(outcome: Outcome) -> Router {
    Router::new().route(paths::TURN_STOP, post(move || async move { Json(outcome) }))
}

fn refused(kind: RefusalKind) -> Refused {
    Refused { kind, message: "no".into() }
}

#[tokio::test]
async fn an_answer_in_the_sled_outlives_a_node_that_is_away_at_start() {
    let mut stage = Stage::new([None, None, Some(events(finished("done")))]);
    let turn = Uuid::now_v7();
    stage.sessions.begin(&stage.session, turn, Vec::new()).await.expect("it begins");
    let unfinished = stage.sessions.unfinished().await.expect("it is readable").remove(0);
    stage.turns.resume(unfinished, stage.dispatcher.adopt(turn));
    let answer = stage.heard().await;
    assert_eq!((answer.markdown, answer.transaction), ("done".to_owned(), format!("turn-{turn}")));
    assert!(stage.sessions.unfinished().await.expect("it is readable").is_empty(), "journaled before it is told");
}

#[tokio::test]
async fn a_node_that_is_away_before_the_hand_over_is_told_at_once() {
    let mut stage = Stage::new([None]);
    stage.say("hello");
    assert_eq!(stage.heard().await.markdown, "⚠ It is away.");
    assert_eq!(stage.killed(), 0, "nothing was handed over");
}

#[tokio::test]
async fn a_turn_is_dead_before_it_is_called_failed() {
    let unstoppable =
        Router::new().route(paths::TURN_STOP, post(|| async { refused(RefusalKind::Internal).into_response() }));
    let sled = accepting().merge(events("nonsense\n".into()));
    let mut stage = Stage::new([Some(sled), Some(unstoppable)]);
    stage.say("hello");
    assert!(stage.heard().await.markdown.starts_with("⚠ The node's answer cannot be used"));
    assert_eq!(stage.killed(), 1);
}

#[tokio::test]
async fn a_broken_hand_over_is_repeated_and_a_stranger_makes_room() {
    let (stranger, gone) = (Uuid::now_v7(), Arc::new(AtomicBool::new(false)));
    let (asked, ended) = (Arc::clone(&gone), Arc::clone(&gone));
    let status = NodeStatus {
        version: String::new(),
        uptime_secs: 0,
        turn: Some(RunningTurn { id: stranger, running_secs: 1 }),
        branch: None,
        dirty: 0,
        dirty_files: Vec::new(),
    };
    let sled = events(finished("done"))
        .route(paths::STATUS, get(move || async move { Json(status) }))
        .route(
            paths::TURN,
            put(move || async move {
                if asked.load(Ordering::SeqCst) {
                    Json(Accepted { already: false }).into_response()
                } else {
                    refused(RefusalKind::Busy).into_response()
                }
            }),
        )
        .route(
            paths::TURN_STOP,
            post(move |Path(id): Path<Uuid>| async move {
                ended.store(id == stranger, Ordering::SeqCst);
                Json(Outcome::Stopped { processes: 1, killed: false })
            }),
        );
    let mut stage = Stage::new([Some(sled)]);
    stage.say("hello");
    assert_eq!(stage.heard().await.markdown, "done");
    assert!(gone.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_hand_over_that_hangs() {
    let (reached, waiting) = oneshot::channel();
    let reached = Arc::new(Mutex::new(Some(reached)));
    let hanging = Router::new().route(
        paths::TURN,
        put(move || async move {
            let reached = reached.lock().expect("no test panics holding it").take();
            reached.expect("it is handed over once").send(()).expect("the test waits");
            std::future::pending::<()>().await;
        }),
    );
    let mut stage = Stage::new([Some(hanging), Some(stopping(Outcome::Stopped { processes: 1, killed: false }))]);
    stage.say("hello");
    waiting.await.expect("it is handed over");
    let to = Address { room: stage.session.room.clone(), thread: None, reply_to: None, mention: None, pending: None };
    stage.stop(Some(stage.session.room.clone()), StopRequest::Told(to));
    assert_eq!(stage.heard().await.markdown, "Stopped the running turn: 1 process ended by request.");
}

#[tokio::test]
async fn a_deleted_project_tells_its_rooms_and_says_when_nothing_is_left() {
    let silent = Router::new().route(paths::TURN_EVENTS, get(std::future::pending::<String>));
    let mut stage =
        Stage::new([Some(accepting().merge(silent)), Some(stopping(Outcome::Stopped { processes: 1, killed: false }))]);
    stage.say("hello");
    while stage.turns.running() == 0 {
        tokio::task::yield_now().await;
    }
    stage.say("more");
    let (done, nothing_left) = oneshot::channel();
    stage.stop(None, StopRequest::Silent(done));
    nothing_left.await.expect("it is told");
    assert_eq!(stage.turns.running(), 0);
    assert_eq!(stage.heard().await.markdown, "Stopped, because the project was deleted.");
    assert_eq!(stage.heard().await.markdown, "1 message that waited was dropped, because the project was deleted.");
}

#[test]
fn a_node_that_is_away_is_tried_for_minutes_and_not_for_ever() {
    let waits: Vec<_> = Backoff::default().collect();
    assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
    assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
    let all: Duration = waits.iter().sum();
    assert!(all > Duration::from_mins(2) && all < Duration::from_mins(3), "{all:?}");
}
