use std::sync::Mutex;

use journal::StreamId;

use super::*;
use crate::{
    chat::{Inbound, Person, SurfaceKind, hall::Hall},
    dispatch::SessionKey,
    people::Role,
    rooms::Mode,
    sessions::Begun,
    usage::Budget,
};

/// A clock that is set by hand, in seconds since 1970.
#[derive(Default)]
struct Hands(Mutex<Timestamp>);

impl Hands {
    fn set(&self, second: i64) {
        *self.0.lock().expect("no test panics holding it") = moment(second);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("no test panics holding it")
    }
}

fn moment(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("it is a moment")
}

struct Setting {
    clock: Arc<Hands>,
    journal: Journal,
    tasks: Tasks,
    outbox: Outbox,
    sessions: Sessions,
    rooms: Rooms,
    key: SessionKey,
    _folder: tempfile::TempDir,
}

impl Setting {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (clock, tasks) = (Arc::new(Hands::default()), Tasks::new());
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::clone(&clock) as Arc<dyn Clock>);
        let journal = journal.expect("it can be made");
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await.expect("it opens");
        let rooms = Rooms::open(journal.clone(), outbox.clone(), Mode::Queue).await.expect("it opens");
        let sessions = Sessions::new(journal.clone(), outbox.clone());
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let key = SessionKey { project: Uuid::now_v7(), room, thread: None };
        Self { clock, journal, tasks, outbox, sessions, rooms, key, _folder: folder }
    }

    fn said(&self, event_id: &str) -> Inbound {
        Inbound {
            room: self.key.room.clone(),
            event_id: event_id.into(),
            sender: Person { surface: SurfaceKind::Console, id: "ann".into() },
            at: moment(0),
            text: event_id.into(),
            quoted: None,
            thread: None,
            addressed: true,
            with_file: false,
            pending: None,
        }
    }

    async fn accept(&self, event_id: &str) {
        let said = self.said(event_id);
        self.sessions.accept(&self.key, &said, event_id, Role::Member, false).await.expect("it is accepted");
    }

    async fn begin(&self, event_id: &str) -> (Uuid, Begun) {
        let turn = Uuid::now_v7();
        let begun = self.sessions.begin(&self.key, turn, &[event_id]).await.expect("it begins");
        (turn, begun.expect("it waits"))
    }

    async fn finish(&self, turn: Uuid) {
        let finished = self.sessions.finish(&self.key, turn, Ending::Answered, true, Vec::new(), Vec::new());
        finished.await.expect("it ends");
    }

    /// Erases as a round does that may erase everything before the hundredth second; from when on it does not.
    async fn forget(&self) -> Timestamp {
        let before = erasable_before(moment(100), &self.sessions, &self.rooms, &self.outbox).await;
        let before = before.expect("it is readable");
        self.journal.erase_before(before).await.expect("it is erased");
        before
    }

    async fn words(&self, begun: &Begun) -> String {
        let words = self.sessions.words(&begun.messages).await.expect("they are readable");
        words.into_iter().next().expect("it is one").text
    }
}

#[tokio::test]
async fn no_text_is_erased_that_waits_is_answered_or_is_on_its_way() {
    let setting = Setting::new().await;
    let Setting { clock, rooms, outbox, key, .. } = &setting;
    let mut outcomes = outbox.outcomes();
    assert_eq!(setting.forget().await, moment(100), "nothing is needed");

    setting.accept("done").await;
    let (turn, done) = setting.begin("done").await;
    setting.finish(turn).await;
    clock.set(1);
    setting.accept("waits").await;
    clock.set(2);
    assert!(rooms.receive(&setting.said("command"), None).await.expect("it is received"));
    clock.set(3);
    let to = Address { room: key.room.clone(), thread: None, reply_to: None, mention: None, pending: None };
    outbox.post(Post::notice(to, "news".to_owned(), "news")).await.expect("it is journaled");
    clock.set(1000);

    assert_eq!(setting.forget().await, moment(1));
    let (turn, waited) = setting.begin("waits").await;
    assert_eq!(setting.forget().await, moment(1), "it is being answered");
    assert_eq!((setting.words(&done).await.as_str(), setting.words(&waited).await.as_str()), ("(erased)", "waits"));
    setting.finish(turn).await;

    assert_eq!(setting.forget().await, moment(2));
    let unanswered = rooms.unanswered().await.expect("it is readable");
    assert_eq!((unanswered.len(), unanswered[0].2.as_str()), (1, "command"));
    assert_eq!(setting.words(&waited).await, "(erased)");
    rooms.answer(&key.room, "command", Vec::new()).await.expect("it is answered");

    assert_eq!(setting.forget().await, moment(3));
    outbox.add(Arc::new(Hall::new(SurfaceKind::Console).0));
    let settled = outcomes.recv().await.expect("the outbox is there");
    assert_eq!(settled.outcome, Outcome::Delivered("$0".to_owned()), "its text was there");
    assert_eq!(setting.forget().await, moment(100));
}

#[tokio::test]
async fn a_turn_is_counted_by_its_end_and_over_a_restart_right_after_it() {
    let setting = Setting::new().await;
    let Setting { clock, journal, tasks, sessions, key, .. } = &setting;
    let open = async || {
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        let metrics = Metrics::new(moment(0));
        let usage = Usage::open(journal.clone(), Budget::default(), Arc::clone(&clock), tasks.clone(), metrics.clone());
        Counting { usage: usage.await.expect("it opens"), metrics, clock, tasks: tasks.clone() }
    };
    let counting = open().await;
    setting.accept("one").await;
    let (turn, _) = setting.begin("one").await;
    counting.began(key.project, &key.room, turn, Cause::None, &[]);
    let lasted = Duration::from_secs(3);
    let count = counting.ending(key.project, turn, lasted).expect("it can be encoded");
    let counts = sessions.finish(key, turn, Ending::Answered, true, Vec::new(), count.into_iter().collect());
    counts.await.expect("it ends");

    // Killed here: nobody has said that it ended.
    let next = open().await;
    let used = next.usage.today(key.project);
    assert_eq!((used.turns, used.millis), (1, 3000));
    next.began(key.project, &key.room, turn, Cause::None, &[]);
    assert!(next.ending(key.project, turn, lasted).expect("it can be encoded").is_none(), "it is counted once");

    counting.usage.end(key.project, turn).await.expect("it is taken in");
    assert_eq!(counting.usage.today(key.project), used);
    let stream = StreamId::new("usage", key.project);
    assert_eq!(journal.read(&stream, 0).await.expect("it is readable").len(), 1);
}

#[tokio::test]
async fn a_budget_is_told_once_a_day_and_again_when_it_was_raised() {
    let Setting { journal, outbox, key, _folder, .. } = Setting::new().await;
    let registry = Registry::open(journal).await.expect("it opens");
    let tell = async |limit: Limit| {
        let pause = Pause { limit, until: moment(86_400) };
        tell_pause(&outbox, &registry, key.project, &key.room, &pause, 1).await.expect("it is told");
        outbox.undelivered()
    };
    assert_eq!(tell(Limit::Tokens(1000)).await, 1);
    assert_eq!(tell(Limit::Tokens(1000)).await, 1);
    assert_eq!(tell(Limit::Tokens(2000)).await, 2);
}
