//! What is sent to people: in order per room, tried again until it is delivered.
//!
//! A room has a task only while something is on its way to it.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{error, warn};
use uuid::Uuid;

use crate::{
    chat::{Outbound, Person, Room, SendError, SharedSurface, SurfaceKind, Weight},
    tasks::Tasks,
    text,
};

/// The first wait after a send that failed; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// After so many tries a message is given up, with an error in the log.
const TRIES: u32 = 20;
/// How much of a message that was refused its room is shown, in characters.
const REFUSED_CHARS: usize = 300;

/// How often the time in a progress message is brought up to date when nothing else happens.
const TICK: Duration = Duration::from_secs(15);

/// Where an answer goes, and on whose behalf.
#[derive(Debug, Clone)]
pub struct Address {
    /// The room.
    pub room: Room,
    /// The thread in it.
    pub thread: Option<String>,
    /// The event that is answered.
    pub reply_to: Option<String>,
    /// Whom to mention.
    pub mention: Option<Person>,
    /// Held until it is delivered.
    pub pending: Option<TaskTrackerToken>,
}

/// Something on its way to a room.
struct Job {
    what: What,
    message: Outbound,
    delivered: oneshot::Sender<String>,
    _pending: Option<TaskTrackerToken>,
}

enum What {
    Send,
    Edit(String),
}

/// Sends to all surfaces.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    surfaces: Mutex<HashMap<SurfaceKind, SharedSurface>>,
    lanes: Mutex<HashMap<Room, VecDeque<Job>>>,
    tasks: Tasks,
}

impl Outbox {
    /// An outbox without surfaces.
    pub fn new(tasks: Tasks) -> Self {
        Self { inner: Arc::new(Inner { surfaces: Mutex::default(), lanes: Mutex::default(), tasks }) }
    }

    /// Makes a surface known. What was posted to it before waits.
    pub fn add(&self, surface: SharedSurface) {
        self.inner.surfaces.lock().unwrap_or_else(PoisonError::into_inner).insert(surface.kind(), surface);
    }

    /// The surface of a kind.
    pub fn surface(&self, kind: SurfaceKind) -> Option<SharedSurface> {
        self.inner.surfaces.lock().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned()
    }

    /// Posts a message; it is sent after all that was posted to its room before. The receiver gets the surface's
    /// event id, or an error when it was given up.
    pub fn post(&self, to: &Address, weight: Weight, markdown: impl Into<String>) -> oneshot::Receiver<String> {
        self.post_once(to, weight, markdown, Uuid::now_v7().to_string())
    }

    /// Like [`Outbox::post`], under a transaction id that the caller derives from what it tells: when that is told again
    /// after a crash, the surface recognises it.
    pub fn post_once(
        &self,
        to: &Address,
        weight: Weight,
        markdown: impl Into<String>,
        transaction: String,
    ) -> oneshot::Receiver<String> {
        let message = Outbound {
            weight,
            markdown: markdown.into(),
            reply_to: to.reply_to.clone(),
            mention: to.mention.clone(),
            thread: to.thread.clone(),
            transaction,
        };
        self.push(to, What::Send, message)
    }

    /// Posts a new text for an earlier message of ours.
    pub fn edit(
        &self,
        to: &Address,
        event_id: &str,
        weight: Weight,
        markdown: impl Into<String>,
    ) -> oneshot::Receiver<String> {
        let message = Outbound {
            weight,
            markdown: markdown.into(),
            reply_to: None,
            mention: None,
            thread: to.thread.clone(),
            transaction: Uuid::now_v7().to_string(),
        };
        self.push(to, What::Edit(event_id.to_owned()), message)
    }

    /// How much is on its way.
    pub fn undelivered(&self) -> usize {
        self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner).values().map(|lane| lane.len() + 1).sum()
    }

    fn push(&self, to: &Address, what: What, message: Outbound) -> oneshot::Receiver<String> {
        let (delivered, receiver) = oneshot::channel();
        let job = Job { what, message, delivered, _pending: to.pending.clone() };
        let mut lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(&to.room) {
            lane.push_back(job);
        } else {
            lanes.insert(to.room.clone(), VecDeque::from([job]));
            drop(lanes);
            let (this, room) = (self.clone(), to.room.clone());
            self.inner.tasks.spawn_to_end("outbox", async move { this.drain(room).await });
        }
        receiver
    }

    async fn drain(self, room: Room) {
        loop {
            let job = {
                let mut lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(job) = lanes.get_mut(&room).and_then(VecDeque::pop_front) else {
                    lanes.remove(&room);
                    return;
                };
                job
            };
            // A fault in one delivery must not hold the room up for ever.
            if AssertUnwindSafe(self.deliver(&room, job)).catch_unwind().await.is_err() {
                error!(%room, "a message is given up: its delivery panicked");
            }
        }
    }

    async fn deliver(&self, room: &Room, Job { what, message, delivered, _pending }: Job) {
        match (self.attempt(room, &what, &message).await, what) {
            // Whoever does not wait for the event id has dropped the receiver.
            (Ok(event), _) => drop(delivered.send(event)),
            (Err(GivenUp::Refused(reason)), What::Send) => {
                drop(delivered);
                // Once: when this one is refused too, the log tells.
                drop(self.attempt(room, &What::Send, &not_sent(&message, &reason)).await);
            }
            (Err(_), _) => {}
        }
    }

    /// Tries until it is delivered or given up.
    async fn attempt(&self, room: &Room, what: &What, message: &Outbound) -> Result<String, GivenUp> {
        let mut wait = FIRST_WAIT;
        for _ in 0..TRIES {
            let Some(surface) = self.surface(room.surface) else {
                // It is still starting.
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                continue;
            };
            let sent = match what {
                What::Send => surface.send(room, message).await,
                What::Edit(event) => surface.edit(room, event, message).await.map(|()| event.clone()),
            };
            match sent {
                Ok(event) => return Ok(event),
                // A newer edit follows, or the answer itself: a late one is worth nothing.
                Err(SendError::Transient { message, .. }) if matches!(what, What::Edit(_)) => {
                    warn!(%room, message, "an edit was not taken");
                    return Err(GivenUp::NotTaken);
                }
                Err(SendError::Transient { message, retry_after, .. }) => {
                    warn!(%room, message, "a message was not taken, and is sent again");
                    tokio::time::sleep(retry_after.unwrap_or(wait).min(LONGEST_WAIT)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                Err(SendError::Refused { message, .. }) => {
                    error!(%room, message, "a message is refused, and given up");
                    return Err(GivenUp::Refused(message));
                }
            }
        }
        error!(%room, "a message is given up after {TRIES} tries");
        Err(GivenUp::NotTaken)
    }
}

/// Why a message is given up.
enum GivenUp {
    /// The surface refuses it for good, for this reason.
    Refused(String),
    /// The surface did not take it in time.
    NotTaken,
}

/// What a room is told in the place of a message that its surface refuses; plain, for the form may be what was refused.
fn not_sent(message: &Outbound, reason: &str) -> Outbound {
    let (reason, begins) = (text::one_line(reason, REFUSED_CHARS), text::one_line(&message.markdown, REFUSED_CHARS));
    Outbound {
        weight: message.weight,
        markdown: format!("⚠ A message could not be sent: {reason}. It begins: {begins}"),
        reply_to: None,
        mention: None,
        thread: None,
        transaction: Uuid::now_v7().to_string(),
    }
}

/// One message that is edited while something goes on (PROJ-5). The newest text wins; the surface's pace is kept.
pub struct Progress {
    text: tokio::sync::watch::Sender<Shown>,
    over: oneshot::Receiver<()>,
}

/// What a progress message says, and since when that has been so, where it is to be told.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    since: Option<Instant>,
}

impl Shown {
    fn render(&self) -> String {
        match self.since.map(|since| since.elapsed()) {
            Some(elapsed) if elapsed >= Duration::from_secs(1) => format!("{} ({})", self.text, text::span(elapsed)),
            _ => self.text.clone(),
        }
    }
}

impl Progress {
    /// Nothing is sent until there is a first text.
    pub fn new(outbox: &Outbox, to: Address) -> Self {
        let (text, mut texts) = tokio::sync::watch::channel(Shown::default());
        let (ending, over) = oneshot::channel();
        let outbox = outbox.clone();
        let tasks = outbox.inner.tasks.clone();
        tasks.spawn_to_end("progress", async move {
            let mut event: Option<String> = None;
            loop {
                let told_since = event.is_some() && texts.borrow().since.is_some();
                let changed = match tokio::time::timeout(TICK, texts.changed()).await {
                    Ok(changed) => changed.is_ok(),
                    Err(_) if told_since => true,
                    Err(_) => continue,
                };
                if !changed {
                    break;
                }
                let newest = texts.borrow_and_update().render();
                match &event {
                    None => event = outbox.post(&to, Weight::Notice, newest).await.ok(),
                    Some(event) => drop(outbox.edit(&to, event, Weight::Notice, newest).await),
                }
                let pace = outbox.surface(to.room.surface).map_or(Duration::ZERO, |surface| surface.edit_interval());
                if !pace.is_zero() {
                    // Cut short when the last text is there: nobody waits for the pace at the end.
                    drop(tokio::time::timeout(pace, ended(&texts)).await);
                }
            }
            drop(ending);
        });
        Self { text, over }
    }

    /// Shows a new text in the place of the one before.
    pub fn show(&self, text: impl Into<String>) {
        self.text.send_replace(Shown { text: text.into(), since: None });
    }

    /// Shows a new text that ends with the time since `since`, which goes on by itself.
    pub fn show_since(&self, text: impl Into<String>, since: Instant) {
        self.text.send_replace(Shown { text: text.into(), since: Some(since) });
    }

    /// Waits until the last text is shown.
    pub async fn close(self) {
        drop(self.text);
        // The other half is dropped when the last text is shown, or when the gateway ends.
        drop(self.over.await);
    }
}

/// Returns when no newer text can come any more.
async fn ended(texts: &tokio::sync::watch::Receiver<Shown>) {
    let mut texts = texts.clone();
    while texts.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    /// Takes messages, and refuses the first try of each as if it were busy.
    #[derive(Default)]
    struct Busy {
        tried: Mutex<Vec<String>>,
        seen: Mutex<Vec<String>>,
    }

    impl crate::chat::Surface for Busy {
        fn kind(&self) -> SurfaceKind {
            SurfaceKind::Console
        }
        fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
            async move {
                let mut tried = self.tried.lock().expect("no test panics holding it");
                if !tried.contains(&message.transaction) {
                    tried.push(message.transaction.clone());
                    let retry_after = Some(Duration::from_secs(7));
                    return Err(SendError::Transient {
                        surface: SurfaceKind::Console,
                        message: "busy".into(),
                        retry_after,
                    });
                }
                self.seen.lock().expect("no test panics holding it").push(message.markdown.clone());
                Ok(format!("event of {}", message.markdown))
            }
            .boxed()
        }
        fn edit<'a>(
            &'a self,
            _: &'a Room,
            event: &'a str,
            message: &'a Outbound,
        ) -> BoxFuture<'a, Result<(), SendError>> {
            async move {
                self.seen.lock().expect("no test panics holding it").push(format!("{event}: {}", message.markdown));
                Ok(())
            }
            .boxed()
        }
        fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
            async {}.boxed()
        }
        fn edit_interval(&self) -> Duration {
            Duration::from_secs(3)
        }
        fn health(&self) -> Result<(), String> {
            Ok(())
        }
    }

    fn setting() -> (Arc<Busy>, Outbox, Address) {
        let surface = Arc::new(Busy::default());
        let outbox = Outbox::new(Tasks::new());
        outbox.add(Arc::clone(&surface) as SharedSurface);
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        (surface, outbox, Address { room, thread: None, reply_to: None, mention: None, pending: None })
    }

    #[tokio::test(start_paused = true)]
    async fn messages_arrive_in_order_however_often_they_are_tried() {
        let (surface, outbox, to) = setting();
        let _first = outbox.post(&to, Weight::Answer, "one");
        let second = outbox.post(&to, Weight::Answer, "two");
        assert_eq!(second.await.expect("it is delivered"), "event of two");
        assert_eq!(*surface.seen.lock().expect("no test panics holding it"), ["one", "two"]);
        tokio::task::yield_now().await;
        assert_eq!(outbox.undelivered(), 0, "an idle room has no lane");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_keeps_the_pace_and_ends_with_the_last_text() {
        let (surface, outbox, to) = setting();
        let progress = Progress::new(&outbox, to);
        for text in ["a", "b"] {
            progress.show(text);
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        progress.show("c");
        progress.show("d");
        progress.close().await;
        assert_eq!(*surface.seen.lock().expect("no test panics holding it"), ["b", "event of b: d"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_a_progress_message_goes_on_by_itself() {
        let (surface, outbox, to) = setting();
        let progress = Progress::new(&outbox, to);
        progress.show_since("building", Instant::now());
        tokio::time::sleep(Duration::from_mins(1)).await;
        progress.show("built");
        progress.close().await;
        let seen = surface.seen.lock().expect("no test panics holding it").clone();
        assert_eq!(seen.first().map(String::as_str), Some("building"));
        assert_eq!(seen.last().map(String::as_str), Some("event of building: built"));
        let ticks = seen.iter().filter(|text| text.starts_with("event of building: building (")).count();
        assert!((2..=4).contains(&ticks), "every 15 s, and the pace: {seen:?}");
    }

    /// Refuses what begins with "bad", and panics at what begins with "panic".
    #[derive(Default)]
    struct Strict {
        sent: Mutex<Vec<Outbound>>,
    }

    impl crate::chat::Surface for Strict {
        fn kind(&self) -> SurfaceKind {
            SurfaceKind::Console
        }
        fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
            async move {
                assert!(!message.markdown.starts_with("panic"), "as asked");
                if message.markdown.starts_with("bad") {
                    return Err(SendError::Refused { surface: SurfaceKind::Console, message: "too long".into() });
                }
                self.sent.lock().expect("no test panics holding it").push(message.clone());
                Ok("event".into())
            }
            .boxed()
        }
        fn edit<'a>(&'a self, _: &'a Room, _: &'a str, _: &'a Outbound) -> BoxFuture<'a, Result<(), SendError>> {
            async { Err(SendError::Refused { surface: SurfaceKind::Console, message: "gone".into() }) }.boxed()
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

    fn strict() -> (Arc<Strict>, Outbox, Tasks, Address) {
        let (surface, tasks) = (Arc::new(Strict::default()), Tasks::new());
        let outbox = Outbox::new(tasks.clone());
        outbox.add(Arc::clone(&surface) as SharedSurface);
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        let to = Address {
            room,
            thread: Some("thread".into()),
            reply_to: Some("asked".into()),
            mention: None,
            pending: None,
        };
        (surface, outbox, tasks, to)
    }

    fn texts(surface: &Strict) -> Vec<String> {
        surface.sent.lock().expect("no test panics holding it").iter().map(|sent| sent.markdown.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_message_is_not_given_up_in_silence() {
        let (surface, outbox, _, to) = strict();
        let refused = outbox.post(&to, Weight::Answer, format!("bad\n{}", "x".repeat(500)));
        let next = outbox.post_once(&to, Weight::Answer, "next", "turn-1".into());
        refused.await.expect_err("it was not delivered");
        next.await.expect("what comes after is delivered");
        outbox.edit(&to, "event", Weight::Notice, "newer").await.expect_err("an edit is given up");
        let sent = surface.sent.lock().expect("no test panics holding it").clone();
        assert_eq!(sent.len(), 2, "one notice, none for an edit");
        assert!(sent[0].markdown.starts_with("⚠ A message could not be sent: too long. It begins: bad xxx"));
        assert!(sent[0].markdown.chars().count() < 400);
        assert_eq!((&sent[0].thread, &sent[0].reply_to), (&None, &None));
        assert_eq!(sent[1].transaction, "turn-1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_panics_does_not_hold_its_room_up() {
        let (surface, outbox, _, to) = strict();
        let lost = outbox.post(&to, Weight::Answer, "panic");
        let next = outbox.post(&to, Weight::Answer, "next");
        lost.await.expect_err("it was not delivered");
        next.await.expect("it is delivered");
        assert_eq!(texts(&surface), ["next"]);
        outbox.post(&to, Weight::Answer, "later").await.expect("it is delivered");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_posted_during_the_shutdown_is_sent() {
        let (surface, outbox, tasks, to) = strict();
        let progress = Progress::new(&outbox, to.clone());
        progress.show("unseen yet");
        let (stopping, late) = (tasks.stopping(), outbox.clone());
        tasks.spawn_to_end("end of a turn", async move {
            stopping.cancelled().await;
            progress.close().await;
            drop(late.post(&to, Weight::Answer, "the answer"));
        });
        tasks.shutdown(Duration::from_secs(10)).await.expect("all is sent in time");
        assert_eq!(texts(&surface), ["unseen yet", "the answer"]);
        assert_eq!(outbox.undelivered(), 0);
    }
}
