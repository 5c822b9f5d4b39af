//! The outbox on a real journal, and a surface that does as it is told.

mod commits;
mod crashes;
mod delivery;
mod drafts;
mod taking_back;

use std::{
    collections::HashSet,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use journal::{Actor, Append, Cause, Decoded, DomainEvent, Expected, NewEvent, StreamId};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, mpsc::UnboundedReceiver},
    time::Instant,
};
use uuid::Uuid;

use super::{events::OutboxEvent, *};
use crate::chat::{Mark, Outbound, SendError, Surface};

/// The pace of the surface.
const PACE: Duration = Duration::from_secs(3);

/// What a surface is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Send(Outbound),
    Edit(String, Outbound),
    Find(String, Timestamp),
    /// Of an event, under a transaction.
    TakeBack(String, String),
}

impl Ask {
    fn is_draft(&self) -> bool {
        match self {
            Self::Send(message) => message.transaction.starts_with("draft-"),
            Self::Edit(..) => true,
            Self::Find(transaction, _) => transaction.starts_with("draft-"),
            Self::TakeBack(..) => false,
        }
    }
}

/// What it does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Takes,
    /// Takes it after so long.
    TakesAfter(Duration),
    /// Takes it when it is let to.
    TakesWhenLet,
    /// Does not take it, and asks to wait.
    AsksToWait(Duration),
    /// Does not take it, and does not say so clearly.
    Fails,
    /// Takes it, and seems to fail.
    TakesAndFails,
    /// Takes it, and seems to fail when it is let to.
    TakesAndFailsWhenLet,
    Refuses,
    Panics,
    /// Does not take it, and never answers.
    Hangs,
    /// Takes it, and never answers.
    TakesAndHangs,
}

type Plan = Box<dyn FnMut(usize, &Ask) -> Does + Send>;

/// A place that outlives the gateway.
struct Hall {
    inner: Mutex<Inside>,
    /// Told at each begin and end of a request.
    stirred: Notify,
    letting: Notify,
}

struct Inside {
    plan: Plan,
    /// Whether it knows transactions that it has seen.
    remembers: bool,
    known: HashSet<(Room, String)>,
    /// The longest text that it takes.
    longest: usize,
    /// What stands there, in order of arrival; the place in it is the event id.
    shown: Vec<(Room, Outbound)>,
    /// What was taken out again.
    taken_out: HashSet<String>,
    asked: Vec<(Instant, Ask)>,
    answered: usize,
    /// Requests of drafts that were begun and have not ended.
    drafts: usize,
    /// How often something else was begun meanwhile.
    clashes: usize,
}

impl Hall {
    fn new(plan: impl FnMut(usize, &Ask) -> Does + Send + 'static) -> Arc<Self> {
        let inner = Inside {
            plan: Box::new(plan),
            remembers: true,
            known: HashSet::new(),
            longest: usize::MAX,
            shown: Vec::new(),
            taken_out: HashSet::new(),
            asked: Vec::new(),
            answered: 0,
            drafts: 0,
            clashes: 0,
        };
        Arc::new(Self { inner: Mutex::new(inner), stirred: Notify::new(), letting: Notify::new() })
    }

    fn obliging() -> Arc<Self> {
        Self::new(|_, _| Does::Takes)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.inner.lock().unwrap())
    }

    fn follows(&self, plan: impl FnMut(usize, &Ask) -> Does + Send + 'static) {
        self.with(|inside| inside.plan = Box::new(plan));
    }

    /// What stands there.
    fn texts(&self) -> Vec<String> {
        self.with(|inside| {
            let there = inside.shown.iter().enumerate();
            let there = there.filter(|(place, _)| !inside.taken_out.contains(&place.to_string()));
            there.map(|(_, (_, message))| message.markdown.clone()).collect()
        })
    }

    fn asked(&self) -> Vec<Ask> {
        self.with(|inside| inside.asked.iter().map(|(_, ask)| ask.clone()).collect())
    }

    /// The waits between what it was asked.
    fn waits(&self) -> Vec<u64> {
        self.with(|inside| inside.asked.windows(2).map(|two| (two[1].0 - two[0].0).as_secs()).collect())
    }

    async fn until(&self, is: impl Fn(&Inside) -> bool) {
        loop {
            let stirred = self.stirred.notified();
            tokio::pin!(stirred);
            stirred.as_mut().enable();
            if self.with(|inside| is(inside)) {
                return;
            }
            stirred.await;
        }
    }

    /// Waits until it was asked so often.
    async fn asked_for(&self, times: usize) {
        self.until(|inside| inside.asked.len() >= times).await;
    }

    async fn answer<T>(&self, ask: Ask, take: impl FnOnce(&mut Inside) -> T) -> Result<T, SendError> {
        let transient = |retry_after| {
            let message = "busy".to_owned();
            Err(SendError::Transient { surface: SurfaceKind::Console, message, retry_after })
        };
        let does = self.with(|inside| {
            inside.asked.push((Instant::now(), ask.clone()));
            if ask.is_draft() {
                inside.drafts += 1;
            } else {
                inside.clashes += inside.drafts;
            }
            (inside.plan)(inside.asked.len() - 1, &ask)
        });
        let _end = End(self, ask.is_draft());
        self.stirred.notify_waiters();
        match does {
            Does::Takes => Ok(self.with(take)),
            Does::TakesAfter(time) => {
                tokio::time::sleep(time).await;
                Ok(self.with(take))
            }
            Does::TakesWhenLet => {
                self.letting.notified().await;
                Ok(self.with(take))
            }
            Does::AsksToWait(time) => transient(Some(time)),
            Does::Fails => transient(None),
            Does::TakesAndFails => {
                self.with(take);
                transient(None)
            }
            Does::TakesAndFailsWhenLet => {
                self.with(take);
                self.letting.notified().await;
                transient(None)
            }
            Does::Refuses => Err(SendError::Refused { surface: SurfaceKind::Console, message: "too long".to_owned() }),
            Does::Panics => panic!("as asked"),
            Does::Hangs => pending().await,
            Does::TakesAndHangs => {
                self.with(take);
                self.stirred.notify_waiters();
                pending().await
            }
        }
    }
}

/// A request ends, also when it is broken off.
struct End<'a>(&'a Hall, bool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.with(|inside| {
            inside.drafts -= usize::from(self.1);
            inside.answered += 1;
        });
        self.0.stirred.notify_waiters();
    }
}

fn at(event: &str) -> usize {
    event.parse().unwrap()
}

impl Surface for Hall {
    fn kind(&self) -> SurfaceKind {
        SurfaceKind::Console
    }

    fn send<'a>(&'a self, room: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        self.answer(Ask::Send(message.clone()), move |inside| {
            let id = (room.clone(), message.transaction.clone());
            let place = inside.shown.iter().position(|(there, shown)| *there == id.0 && shown.transaction == id.1);
            if let Some(place) = place.filter(|_| inside.remembers && inside.known.contains(&id)) {
                return place.to_string();
            }
            inside.known.insert(id);
            inside.shown.push((room.clone(), message.clone()));
            (inside.shown.len() - 1).to_string()
        })
        .boxed()
    }

    fn longest(&self) -> usize {
        self.with(|inside| inside.longest)
    }

    fn edit<'a>(&'a self, _: &'a Room, event: &'a str, message: &'a Outbound) -> BoxFuture<'a, Result<(), SendError>> {
        self.answer(Ask::Edit(event.to_owned(), message.clone()), move |inside| {
            inside.shown[at(event)].1.markdown.clone_from(&message.markdown);
        })
        .boxed()
    }

    fn find<'a>(
        &'a self,
        room: &'a Room,
        transaction: &'a str,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        self.answer(Ask::Find(transaction.to_owned(), since), move |inside| {
            let is = |(there, shown): &(Room, Outbound)| there == room && shown.transaction == transaction;
            inside.shown.iter().position(is).map(|place| place.to_string())
        })
        .boxed()
    }

    fn take_back<'a>(
        &'a self,
        _: &'a Room,
        event_id: &'a str,
        transaction: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<String, SendError>> {
        self.answer(Ask::TakeBack(event_id.to_owned(), transaction.to_owned()), move |inside| {
            inside.taken_out.insert(event_id.to_owned());
            format!("redaction of {event_id}")
        })
        .boxed()
    }

    fn mark(&self, _: &Room, _: &str, _: Mark) {}

    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn edit_interval(&self) -> Duration {
        PACE
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A gateway's life: it ends when this is dropped with its runtime.
struct Life {
    outbox: Outbox,
    tasks: Tasks,
    journal: Journal,
    settled: UnboundedReceiver<Settled>,
}

impl Life {
    async fn without_surface(folder: &TempDir) -> Self {
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(Timestamp::UNIX_EPOCH)).unwrap();
        let tasks = Tasks::new();
        let outbox = Outbox::open(journal.clone(), tasks.clone()).await.unwrap();
        let settled = outbox.outcomes();
        Self { outbox, tasks, journal, settled }
    }

    async fn begin(folder: &TempDir, hall: &Arc<Hall>) -> Self {
        let life = Self::without_surface(folder).await;
        life.outbox.add(Arc::clone(hall) as SharedSurface);
        life
    }

    async fn post(&self, text: &str) {
        self.outbox.post(post(text)).await.unwrap();
    }

    /// What becomes of the next messages.
    async fn outcomes(&mut self, count: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for _ in 0..count {
            outcomes.push(self.settled.recv().await.unwrap().outcome);
        }
        outcomes
    }

    /// Waits until rooms are idle; whoever told of the last message has that only just behind it.
    async fn idle(&self) {
        while !self.outbox.places().busy.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// Waits while time stands still.
    async fn until(&self, is: impl Fn(&Busy) -> bool) {
        while !self.outbox.places().busy.get(&room()).is_some_and(&is) {
            tokio::task::yield_now().await;
        }
    }

    /// As [`Life::idle`], where somebody sleeps: time goes on only while nobody else works.
    async fn idle_on_paused_clock(&self) {
        while !self.outbox.places().busy.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn events(&self) -> Vec<OutboxEvent> {
        let recorded = self.journal.read(&events::stream(&room()), 0).await.unwrap();
        let decode = |event: &journal::Recorded| match event.decode().unwrap() {
            Decoded::Known(event) => event,
            Decoded::Unknown => panic!("a stranger"),
        };
        recorded.iter().map(decode).collect()
    }

    /// The ids of the texts that are queued under a transaction.
    async fn texts(&self, transaction: &str) -> Vec<Uuid> {
        let text = |event| match event {
            OutboxEvent::Queued(queued) if queued.transaction == transaction => Some(queued.text),
            _ => None,
        };
        let texts: Vec<_> = self.events().await.into_iter().filter_map(text).collect();
        assert_eq!(texts.len(), 1, "{transaction}");
        texts
    }

    /// The transactions of the room in the order of the journal.
    async fn queued(&self) -> Vec<String> {
        let queued = |event| match event {
            OutboxEvent::Queued(queued) => Some(queued.transaction),
            _ => None,
        };
        self.events().await.into_iter().filter_map(queued).collect()
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn room() -> Room {
    Room { surface: SurfaceKind::Console, id: "main:1".to_owned() }
}

fn to() -> Address {
    Address { room: room(), thread: None, reply_to: None, mention: None, pending: None }
}

/// A message whose id is its text, and that answers an event of that name.
fn post(text: &str) -> Post {
    Post {
        to: to(),
        weight: Weight::Answer,
        markdown: text.to_owned(),
        transaction: text.to_owned(),
        answers: vec![text.to_owned()],
        failed: false,
        takes_back: None,
        cause: Cause::None,
    }
}

/// Something that is journaled together with posts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
enum Deed {
    #[serde(rename = "deed.done")]
    Done(u32),
}

impl DomainEvent for Deed {
    const KINDS: &'static [&'static str] = &["deed.done"];
}

fn deed(number: u32, expected: Expected, key: Option<&str>) -> Append {
    Append {
        stream: StreamId::new("deeds", "mine"),
        expected,
        events: vec![NewEvent::encode(&Deed::Done(number)).unwrap()],
        key: key.map(str::to_owned),
        actor: Actor::Gateway,
        cause: Cause::None,
    }
}

async fn deeds(journal: &Journal) -> Vec<u32> {
    let recorded = journal.read(&StreamId::new("deeds", "mine"), 0).await.unwrap();
    let number = |event: &journal::Recorded| match event.decode().unwrap() {
        Decoded::Known(Deed::Done(number)) => number,
        Decoded::Unknown => panic!("a stranger"),
    };
    recorded.iter().map(number).collect()
}
