//! Turns against sleds that answer by script, over links in memory: without an engine and an agent.

mod asking;
mod ends;
mod prompts;
mod signs;

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicI64, AtomicU32},
};

use axum::{
    Json, Router,
    extract::Path,
    response::IntoResponse,
    routing::{get, post, put},
};
use futures_util::StreamExt;
use jiff::SignedDuration;
use journal::{Expected, NewEvent, StreamId};
use link::{
    Hello, Side,
    requests::{
        Accepted, Decision, NodeStatus, Refusal as Refused, RefusalKind, RunningTurn, TurnEvent, TurnRecord,
        TurnRequest, paths,
    },
};
use tokio::sync::{
    mpsc::{self, UnboundedReceiver},
    oneshot,
};

use super::*;
use crate::{
    chat::{
        Inbound, Outbound, SurfaceKind,
        hall::{Hall, Heard},
    },
    dispatch::{
        Common,
        actor::Dispatcher,
        core::{Event, Limits, Scope},
    },
    people::Role,
    rooms::Mode,
    store::Journal,
    usage::UsageEvent,
};

/// What a project's sled is each time that it is asked for; `None` when it is away.
#[derive(Default)]
struct Script {
    sleds: Mutex<VecDeque<Option<Router>>>,
    killed: AtomicU32,
    /// How often it was heard.
    heard: AtomicU32,
    /// How often asking for it has a fault.
    faults: AtomicU32,
    /// How long it takes to be there, in seconds.
    slowness: AtomicU32,
}

impl Sleds for Arc<Script> {
    fn sled(&self, _: Uuid) -> BoxFuture<'_, Result<SledClient, Refusal>> {
        let faulty = self.faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        assert!(!faulty, "a fault");
        let next = self.sleds.lock().expect("no test panics holding it").pop_front().flatten();
        let slowness = Duration::from_secs(self.slowness.load(Ordering::SeqCst).into());
        async move {
            tokio::time::sleep(slowness).await;
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

    fn heard(&self, _: Uuid) {
        self.heard.fetch_add(1, Ordering::SeqCst);
    }
}

/// A clock that runs with the machine's, so many seconds ahead of it.
#[derive(Default)]
struct Ahead(AtomicI64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// Remembers how turns ended, and how many messages had waited for each.
#[derive(Default)]
struct Endings(Mutex<Vec<Ending>>, Mutex<Vec<usize>>);

impl Watch for Endings {
    fn began(&self, _: Uuid, _: &Room, _: Uuid, _: Cause, accepted: &[Timestamp]) {
        self.1.lock().expect("no test panics holding it").push(accepted.len());
    }
    fn ending(&self, _: Uuid, turn: Uuid, lasted: Duration) -> Result<Option<Append>, Refusal> {
        let millis = u64::try_from(lasted.as_millis()).expect("it is short");
        let event =
            UsageEvent::TurnEnded { turn, room: Room { surface: SurfaceKind::Console, id: "main".into() }, millis };
        Ok(Some(Append {
            stream: StreamId::new("usage", "one"),
            expected: Expected::Any,
            events: vec![NewEvent::encode(&event).expect("it can be encoded")],
            key: None,
            actor: Actor::Gateway,
            cause: Cause::None,
        }))
    }
    fn ended(&self, _: Uuid, _: Uuid, ending: Ending, _: Duration) {
        self.0.lock().expect("no test panics holding it").push(ending);
    }
}

struct Stage {
    script: Arc<Script>,
    turns: Turns,
    sessions: Sessions,
    rooms: Arc<Rooms>,
    journal: Journal,
    outbox: Outbox,
    dispatcher: Dispatcher<Handle, StopRequest>,
    tasks: Tasks,
    sent: UnboundedReceiver<Outbound>,
    session: SessionKey,
    clock: Arc<Ahead>,
    endings: Arc<Endings>,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new(sleds: impl IntoIterator<Item = Option<Router>>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let clock = Arc::new(Ahead::default());
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::clone(&clock) as Arc<dyn Clock>);
        let journal = journal.expect("it can be made");
        let tasks = Tasks::new();
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await.expect("it opens");
        let sessions = Sessions::new(journal.clone(), outbox.clone());
        let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens");
        let rooms = Arc::new(rooms);
        let (hall, Heard { sent, .. }) = Hall::new(SurfaceKind::Console);
        outbox.add(Arc::new(hall));
        let script = Arc::new(Script { sleds: Mutex::new(sleds.into_iter().collect()), ..Script::default() });
        let endings = Arc::new(Endings::default());
        let turns = Turns::new(Parts {
            settings: TurnSettings {
                agent: Agent::Echo { notice: None },
                author: Author::default(),
                stop_grace: Duration::from_millis(10),
                permissions: Permissions::Ask { timeout_secs: 60 },
                keep_warm: Duration::ZERO,
            },
            nodes: Box::new(Arc::clone(&script)),
            sessions: sessions.clone(),
            rooms: Arc::clone(&rooms),
            outbox: outbox.clone(),
            tasks: tasks.clone(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            watch: Arc::clone(&endings) as Arc<dyn Watch>,
        });
        let limits = Limits { window: Duration::ZERO, max_window: Duration::ZERO, max_queue: 9, max_turns: 2 };
        let (dispatcher, work) =
            Dispatcher::new(limits, Arc::new(turns.clone()) as Arc<dyn Carrier<_, _>>, tasks.stopping());
        tasks.spawn("dispatcher", work);
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let session = SessionKey { project: Uuid::now_v7(), room, thread: None };
        Self {
            script,
            turns,
            sessions,
            rooms,
            journal,
            outbox,
            dispatcher,
            tasks,
            sent,
            session,
            clock,
            endings,
            _folder: folder,
        }
    }

    fn said(&self, text: &str) -> Inbound {
        Inbound {
            room: self.session.room.clone(),
            event_id: text.into(),
            sender: ann(),
            at: Timestamp::UNIX_EPOCH,
            text: text.into(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        }
    }

    async fn say(&self, text: &str, interrupts: bool) {
        self.say_as(text, text, interrupts).await;
    }

    async fn say_as(&self, event_id: &str, text: &str, interrupts: bool) {
        let accepted = self.sessions.accept(&self.session, &self.said(event_id), text, Role::Admin, interrupts).await;
        assert!(accepted.expect("it is accepted") != crate::sessions::Accepted::Seen);
        let message = Handle { session: Arc::new(self.session.clone()), event_id: event_id.into() };
        let session = self.session.clone();
        let common = Common { rights: Role::Admin, thread: None };
        assert!(self.dispatcher.tell(Event::Message { session, common, interrupts, message }));
    }

    async fn stop(&self) {
        let said = Inbound { event_id: "stop".into(), ..self.said("stop") };
        assert!(self.rooms.receive(&said, None).await.expect("it is received"));
        let to =
            Address { room: self.session.room.clone(), thread: None, reply_to: None, mention: None, pending: None };
        let (meant, spared) = (Meant::Chosen, Spared::default());
        let request = StopRequest::Told { by: ann(), event_id: "stop".into(), to, meant, spared };
        let SessionKey { project, room, .. } = self.session.clone();
        let scope = Scope::Room { room, projects: [project].into() };
        assert!(self.dispatcher.tell(Event::Stop { scope, request }));
    }

    async fn heard(&mut self) -> Outbound {
        self.sent.recv().await.expect("the surface is alive")
    }

    /// The next message that answers something, or tells something that people are to see.
    async fn answer(&mut self) -> Outbound {
        loop {
            let heard = self.heard().await;
            if heard.weight == Weight::Answer {
                return heard;
            }
        }
    }

    fn killed(&self) -> u32 {
        self.script.killed.load(Ordering::SeqCst)
    }

    fn endings(&self) -> Vec<Ending> {
        self.endings.0.lock().expect("no test panics holding it").clone()
    }

    /// What the next gateway finds.
    async fn left(&self) -> crate::sessions::Left {
        let sessions = Sessions::new(self.journal.clone(), self.outbox.clone());
        sessions.recover().await.expect("it is readable")
    }

    /// Begins a turn as an earlier gateway did that is gone, and takes it up.
    async fn take_up(&self, text: &str) -> Uuid {
        self.take_up_after(text, 0).await
    }

    /// The same, so many seconds after it began.
    async fn take_up_after(&self, text: &str, seconds: i64) -> Uuid {
        let accepted = self.sessions.accept(&self.session, &self.said(text), text, Role::Admin, false).await;
        assert!(accepted.expect("it is accepted") != crate::sessions::Accepted::Seen);
        let turn = Uuid::now_v7();
        self.sessions.begin(&self.session, turn, &[text]).await.expect("it begins").expect("it waits");
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
        let unfinished = self.left().await.unfinished.remove(0);
        self.turns.resume(unfinished, self.dispatcher.adopt(turn));
        turn
    }
}

fn ann() -> Person {
    Person { surface: SurfaceKind::Console, id: "ann".into() }
}

fn record(seq: u64, event: TurnEvent) -> String {
    let record = TurnRecord { seq, at: Timestamp::UNIX_EPOCH, event };
    format!("{}\n", serde_json::to_string(&record).expect("it serialises"))
}

fn ended(seq: u64, outcome: Outcome) -> String {
    record(seq, TurnEvent::Finished { outcome, usage: None })
}

fn finished(text: &str) -> String {
    ended(1, Outcome::Answered { text: text.into() })
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

#[tokio::test(start_paused = true)]
async fn an_answer_in_the_sled_outlives_a_node_that_is_away_at_start() {
    let mut stage = Stage::new([None, None, Some(events(finished("done")))]).await;
    let turn = stage.take_up("hello").await;
    let answer = stage.heard().await;
    assert_eq!((answer.markdown, answer.transaction), ("done".to_owned(), format!("turn-{turn}")));
    assert_eq!(answer.answers, ["hello"]);
    assert!(stage.left().await.unfinished.is_empty(), "journaled before it is told");
}

#[tokio::test]
async fn a_node_that_takes_a_turn_or_tells_of_it_is_heard() {
    for (sled, heard) in [
        (events(finished("done")).merge(accepting()), 2),
        (events("nonsense\n".into()).merge(accepting()), 1),
        (events(finished("done")), 0),
    ] {
        let mut stage = Stage::new([Some(sled)]).await;
        stage.say("hello", false).await;
        stage.answer().await;
        assert_eq!(stage.script.heard.load(Ordering::SeqCst), heard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_waited_for_and_then_told() {
    let mut stage = Stage::new([None]).await;
    stage.say("hello", false).await;
    assert_eq!(stage.heard().await.markdown, "⚠ It is away.\nIt is tried again.");
    assert_eq!(stage.answer().await.markdown, "⚠ It is away.");
    assert_eq!(stage.killed(), 0, "nothing was handed over");
    assert_eq!(stage.endings(), [Ending::Failed]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_takes_its_time_is_told_of() {
    let mut stage = Stage::new([Some(accepting().merge(events(finished("done"))))]).await;
    stage.script.slowness.store(20, Ordering::SeqCst);
    stage.say("hello", false).await;
    let told = stage.heard().await.markdown;
    assert!(told.starts_with("The project's container is being started"), "{told}");
    assert_eq!(stage.answer().await.markdown, "done");
}

#[tokio::test]
async fn a_turn_is_dead_before_it_is_called_failed() {
    let unstoppable =
        Router::new().route(paths::TURN_STOP, post(|| async { refused(RefusalKind::Internal).into_response() }));
    let sled = accepting().merge(events("nonsense\n".into()));
    let mut stage = Stage::new([Some(sled), Some(unstoppable)]).await;
    stage.say("hello", false).await;
    assert!(stage.heard().await.markdown.starts_with("⚠ The sled's answer cannot be used"));
    assert_eq!(stage.killed(), 1);
}

#[tokio::test]
async fn a_turn_that_tells_without_end_is_ended() {
    let told = (1..=40_001).map(|seq| record(seq, TurnEvent::RateLimited { retry_after_secs: None }));
    let sled = accepting().merge(events(told.collect()));
    let mut stage = Stage::new([Some(sled), Some(stopping(Outcome::Stopped { processes: 1, killed: false }))]).await;
    stage.say("hello", false).await;
    let answer = stage.answer().await;
    assert!(answer.markdown.starts_with("⚠ The sled's answer cannot be used"), "{}", answer.markdown);
    assert_eq!((stage.endings(), stage.killed()), (vec![Ending::Failed], 0));
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
    let mut stage = Stage::new([Some(sled)]).await;
    stage.say("hello", false).await;
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
    let mut stage = Stage::new([Some(hanging), Some(stopping(Outcome::Stopped { processes: 1, killed: false }))]).await;
    stage.say("hello", false).await;
    waiting.await.expect("it is handed over");
    stage.stop().await;
    let report = stage.answer().await;
    assert_eq!(report.markdown, "Stopped the running turn: 1 process ended by request.");
    assert_eq!(report.answers, ["stop", "hello"], "both have their end");
}

#[tokio::test]
async fn a_deleted_project_tells_its_rooms_and_says_when_nothing_is_left() {
    let silent = Router::new().route(paths::TURN_EVENTS, get(std::future::pending::<String>));
    let stopping = stopping(Outcome::Stopped { processes: 1, killed: false });
    let mut stage = Stage::new([Some(accepting().merge(silent)), Some(stopping)]).await;
    stage.say("hello", false).await;
    while stage.turns.running() == 0 {
        tokio::task::yield_now().await;
    }
    stage.say("more", false).await;
    let (done, nothing_left) = oneshot::channel();
    let request = StopRequest::Silent { by: ann(), event_id: "delete".into(), done };
    let scope = Scope::Project(stage.session.project);
    assert!(stage.dispatcher.tell(Event::Stop { scope, request }));
    nothing_left.await.expect("it is told");
    assert_eq!(stage.turns.running(), 0);
    assert_eq!(stage.heard().await.markdown, "Stopped, because the project was deleted.");
    assert_eq!(stage.heard().await.markdown, "1 message that waited was dropped, because the project was deleted.");
    let SessionKey { project, room, .. } = &stage.session;
    let stream = StreamId::new("session", format_args!("{project} {room}"));
    let session = stage.journal.read(&stream, 0).await.expect("it is readable");
    let removed = session.iter().find(|event| event.kind == "message.removed").expect("it was dropped");
    assert_eq!(removed.actor, Actor::Person(ann().to_string()));
    assert_eq!(removed.cause, Cause::Command("delete".into()));
}

/// A sled that ends the first attempt as `first` says and the second with an answer, and the prompts that it was given.
fn interrupted(first: String) -> (Router, UnboundedReceiver<TurnRequest>) {
    let (asked, prompts) = mpsc::unbounded_channel();
    let second = ended(3, Outcome::Answered { text: "done".into() });
    let sled = Router::new()
        .route(
            paths::TURN,
            put(move |Json(request): Json<TurnRequest>| async move {
                asked.send(request).expect("the test listens");
                Json(Accepted { already: false })
            }),
        )
        .route(
            paths::TURN_EVENTS,
            get(move |query: axum::extract::Query<link::requests::EventsQuery>| async move {
                if query.after == 0 { first } else { second }
            }),
        );
    (sled, prompts)
}

#[tokio::test]
async fn an_interrupted_turn_is_said_so_and_resumed_once_with_its_words_if_it_never_had_them() {
    for heard in [true, false] {
        let begun = if heard { TurnEvent::Heard } else { TurnEvent::Started { session_found: true } };
        let (sled, mut prompts) = interrupted([record(1, begun), ended(2, Outcome::Interrupted)].concat());
        let mut stage = Stage::new([Some(sled.clone()), Some(sled)]).await;
        stage.say("hello", false).await;
        assert_eq!(
            stage.heard().await.markdown,
            "⚠ The agent was interrupted before it answered. It goes on by itself."
        );
        let answer = stage.answer().await;
        assert_eq!((answer.markdown.as_str(), answer.answers), ("done", vec!["hello".to_owned()]));
        let first = prompts.recv().await.expect("there was an attempt");
        let second = prompts.recv().await.expect("there was another");
        assert_eq!((first.attempt, first.prompt.as_str(), second.attempt), (1, "hello", 2));
        assert!(second.prompt.starts_with("You were interrupted before you answered"));
        assert_eq!(second.prompt.ends_with("\n\nhello"), !heard);
        let afresh = second.afresh.map(|afresh| afresh.ends_with("\n\nhello"));
        assert_eq!(afresh, heard.then_some(true), "its memory may be gone, and what it has not heard is told once");
    }
}

#[tokio::test]
async fn an_interrupted_turn_goes_on_though_the_journal_does_not_take_that_at_once() {
    let (sled, _prompts) = interrupted([record(1, TurnEvent::Heard), ended(2, Outcome::Interrupted)].concat());
    let mut stage = Stage::new([Some(sled.clone()), Some(sled)]).await;
    stage.journal.refuse("session.turn_resumed", 1);
    stage.say("hello", false).await;
    assert_eq!(stage.answer().await.markdown, "done");
}

#[tokio::test]
async fn a_turn_that_its_sled_never_had_counts_as_interrupted() {
    let unknown =
        Router::new().route(paths::TURN_EVENTS, get(|| async { refused(RefusalKind::UnknownTurn).into_response() }));
    let sled = accepting().merge(events(finished("done")));
    let mut stage = Stage::new([Some(unknown), Some(sled)]).await;
    let turn = stage.take_up("hello").await;
    assert_eq!(stage.heard().await.transaction, format!("turn-{turn}-interrupted"));
    assert_eq!(stage.answer().await.markdown, "done");
}

#[tokio::test]
async fn a_second_interruption_ends_the_turn_visibly() {
    let (first, second) = (ended(1, Outcome::Interrupted), ended(2, Outcome::Interrupted));
    let events = Router::new().route(
        paths::TURN_EVENTS,
        get(move |query: axum::extract::Query<link::requests::EventsQuery>| async move {
            if query.after == 0 { first } else { second }
        }),
    );
    let sled = accepting().merge(events);
    let mut stage = Stage::new([Some(sled.clone()), Some(sled)]).await;
    stage.say("hello", false).await;
    let answer = stage.answer().await;
    assert!(
        answer.markdown.starts_with("⚠ The agent was interrupted before it answered.\nWrite again"),
        "{}",
        answer.markdown
    );
    assert_eq!(answer.answers, ["hello"]);
    assert_eq!(stage.endings(), [Ending::Interrupted]);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_turn_waits_for_its_sled_to_be_gone_and_goes_on_in_the_next() {
    let status = NodeStatus {
        version: String::new(),
        uptime_secs: 0,
        turn: None,
        branch: None,
        dirty: 0,
        dirty_files: Vec::new(),
    };
    // It has ended its turn, takes no other, and its link is still open.
    let ending =
        events(ended(1, Outcome::Interrupted)).route(paths::STATUS, get(move || async move { Json(status) })).route(
            paths::TURN,
            put(|Json(request): Json<TurnRequest>| async move {
                if request.attempt == 1 {
                    Json(Accepted { already: false }).into_response()
                } else {
                    refused(RefusalKind::Busy).into_response()
                }
            }),
        );
    let next = accepting().merge(events(ended(2, Outcome::Answered { text: "done".into() })));
    let sleds = std::iter::repeat_n(Some(ending), 8).chain([None, Some(next)]);
    let mut stage = Stage::new(sleds).await;
    stage.say("hello", false).await;
    assert_eq!(stage.answer().await.markdown, "done");
    assert_eq!((stage.endings(), stage.killed()), (vec![Ending::Answered], 0));
}

/// A sled that says nothing of its turn for so long, and then breaks off.
fn breaking(after: Duration) -> Router {
    let said = move || async move {
        let silence = async move {
            tokio::time::sleep(after).await;
            Ok::<_, std::io::Error>(String::new())
        };
        axum::body::Body::from_stream(futures_util::stream::once(silence))
    };
    Router::new().route(paths::TURN_EVENTS, get(said))
}

#[tokio::test(start_paused = true)]
async fn links_that_break_add_up_only_while_the_node_is_not_really_reached() {
    for (lasts, told) in [(60, "done"), (20, "⚠ The link to the sled broke again and again")] {
        let breaking = || breaking(Duration::from_secs(lasts));
        let sleds = std::iter::once(accepting().merge(breaking())).chain(std::iter::repeat_with(breaking).take(40));
        let mut stage = Stage::new(sleds.chain([events(finished("done"))]).map(Some)).await;
        stage.say("hello", false).await;
        let answer = stage.answer().await;
        assert!(answer.markdown.starts_with(told), "{lasts}: {}", answer.markdown);
    }
}

#[tokio::test]
async fn a_message_that_interrupts_begins_anew_with_all_that_is_not_answered() {
    let (following, mut followed) = mpsc::unbounded_channel();
    let silent = get(move || {
        following.send(()).expect("the test waits");
        std::future::pending::<String>()
    });
    let first = accepting().route(paths::TURN_EVENTS, silent);
    let (sled, mut prompts) = interrupted(finished("both"));
    let stopping = stopping(Outcome::Stopped { processes: 1, killed: false });
    let mut stage = Stage::new([Some(first), Some(stopping), Some(sled)]).await;
    stage.say("one", true).await;
    followed.recv().await.expect("the turn is followed");
    stage.say("two", true).await;
    let answer = stage.answer().await;
    assert_eq!((answer.markdown.as_str(), answer.answers), ("both", vec!["one".to_owned(), "two".to_owned()]));
    let prompt = prompts.recv().await.expect("it was asked").prompt;
    assert!(prompt.contains("one") && prompt.contains("two"), "{prompt}");
    assert_eq!(stage.endings()[0], Ending::Superseded);
    let waited = stage.endings.1.lock().expect("no test panics holding it").clone();
    assert_eq!(waited, [1, 1], "the wait of each is counted once");
}
