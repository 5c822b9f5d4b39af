//! The thin shell around [`super::core`]: feeds it events and time, and has its effects carried out.

use std::sync::Arc;

use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender, WeakUnboundedSender},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Batch, SessionKey,
    core::{Core, Effect, Event, Limits, Ran, Why},
};

/// Carries effects out, in the order in which they are told. Nothing here may block: what takes time is started, not
/// awaited.
pub trait Carrier<M, S>: Send + Sync + 'static {
    /// Runs a turn. `ended` is kept until nothing of the turn is left.
    fn start(&self, batch: Batch<M>, ended: Ended<M, S>);
    /// Asks a running turn to end; comes again when there is a stronger reason.
    fn cancel(&self, batch: Uuid, why: Why);
    /// Tells that a message was not taken because the queue is full.
    fn full(&self, session: SessionKey, message: M);
    /// Tells what a stop did.
    fn stopped(&self, request: S, ran: Vec<Ran>, dropped: Vec<M>);
    /// A turn is over, and every stop that waited for it is told.
    fn over(&self, batch: Uuid);
}

/// Says that a turn is over when it is dropped, on whatever way.
#[derive(Debug)]
#[must_use = "dropping it says that the turn is over"]
pub struct Ended<M, S> {
    batch: Uuid,
    requeued: bool,
    events: UnboundedSender<Event<M, S>>,
}

impl<M, S> Ended<M, S> {
    /// The turn is over without an answer: it was superseded, and its messages wait again, in the journal already.
    pub fn requeue(mut self) {
        self.requeued = true;
    }
}

impl<M, S> Drop for Ended<M, S> {
    fn drop(&mut self) {
        // The dispatcher is gone only when the gateway ends; then nobody wants to know.
        drop(self.events.send(Event::Ended { batch: self.batch, requeued: self.requeued }));
    }
}

/// The door of the dispatcher. What waits in it is bounded by the core, which takes events faster than people write.
#[derive(Debug)]
pub struct Dispatcher<M, S> {
    events: UnboundedSender<Event<M, S>>,
}

impl<M, S> Clone for Dispatcher<M, S> {
    fn clone(&self) -> Self {
        Self { events: self.events.clone() }
    }
}

impl<M: Clone + Eq + Send + 'static, S: Send + 'static> Dispatcher<M, S> {
    /// A dispatcher and the work that makes it go, for the caller to spawn. The work ends when no door and no turn is left
    /// that could tell it anything.
    pub fn new(
        limits: Limits,
        carrier: Arc<dyn Carrier<M, S>>,
        stopping: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (events, receiver) = mpsc::unbounded_channel();
        let work = run(Core::new(limits, Uuid::now_v7), receiver, events.downgrade(), carrier, stopping);
        (Self { events }, work)
    }

    /// Hands an event over, in order. `false` when the gateway is ending and nobody takes it any more.
    #[must_use]
    pub fn tell(&self, event: Event<M, S>) -> bool {
        self.events.send(event).is_ok()
    }

    /// The guard of a turn that was found running at start.
    pub fn adopt(&self, batch: Uuid) -> Ended<M, S> {
        Ended { batch, requeued: false, events: self.events.clone() }
    }
}

async fn run<M: Clone + Eq + Send + 'static, S: Send + 'static>(
    mut core: Core<M, S>,
    mut receiver: UnboundedReceiver<Event<M, S>>,
    events: WeakUnboundedSender<Event<M, S>>,
    carrier: Arc<dyn Carrier<M, S>>,
    stopping: CancellationToken,
) {
    let began = Instant::now();
    loop {
        let deadline = core.next_deadline().map(|deadline| began + deadline);
        let event = tokio::select! {
            event = receiver.recv() => match event {
                Some(event) => event,
                None => return,
            },
            () = sleep_until(deadline.unwrap_or(began)), if deadline.is_some() => Event::Tick,
        };
        if stopping.is_cancelled() {
            // Turns that are let go of then have not ended: they go on in their sleds.
            return;
        }
        for effect in core.on(began.elapsed(), event) {
            match effect {
                Effect::Start(batch) => {
                    // Without a door left the gateway is ending, and the next start finds what waits.
                    let Some(events) = events.upgrade() else { return };
                    let ended = Ended { batch: batch.id, requeued: false, events };
                    carrier.start(batch, ended);
                }
                Effect::Cancel { batch, why } => carrier.cancel(batch, why),
                Effect::Full { session, message } => carrier.full(session, message),
                Effect::Stopped { request, ran, dropped } => carrier.stopped(request, ran, dropped),
                Effect::Over { batch } => carrier.over(batch),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::{
        chat::{Room, SurfaceKind},
        dispatch::{Common, core::Scope},
        people::Role,
    };

    const COMMON: Common = Common { rights: Role::Admin, thread: None };

    const LIMITS: Limits =
        Limits { window: Duration::from_millis(1500), max_window: Duration::from_secs(8), max_queue: 2, max_turns: 4 };

    /// Keeps what it is told, in short words, and the turns that run.
    #[derive(Default)]
    struct Record {
        told: Mutex<Vec<String>>,
        running: Mutex<Vec<Ended<u32, u32>>>,
    }

    impl Record {
        fn tell(&self, what: String) {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        }

        fn told(&self) -> Vec<String> {
            std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn end(&self) -> Ended<u32, u32> {
            self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(0)
        }
    }

    impl Carrier<u32, u32> for Record {
        fn start(&self, batch: Batch<u32>, ended: Ended<u32, u32>) {
            self.running.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
            self.tell(format!("start {:?}", batch.messages));
        }

        fn cancel(&self, _: Uuid, why: Why) {
            self.tell(format!("{why:?}"));
        }

        fn full(&self, _: SessionKey, message: u32) {
            self.tell(format!("full {message}"));
        }

        fn stopped(&self, request: u32, ran: Vec<Ran>, dropped: Vec<u32>) {
            self.tell(format!("stopped {request} ran {} dropped {dropped:?}", ran.len()));
        }

        fn over(&self, _: Uuid) {
            self.tell("over".to_owned());
        }
    }

    fn session() -> SessionKey {
        let room = Room { surface: SurfaceKind::Console, id: "main".into() };
        SessionKey { project: Uuid::nil(), room, thread: None }
    }

    fn dispatcher() -> (Dispatcher<u32, u32>, Arc<Record>, tokio::task::JoinHandle<()>) {
        let record = Arc::new(Record::default());
        let (dispatcher, work) =
            Dispatcher::new(LIMITS, Arc::clone(&record) as Arc<dyn Carrier<_, _>>, CancellationToken::new());
        (dispatcher, record, tokio::spawn(work))
    }

    fn say(dispatcher: &Dispatcher<u32, u32>, interrupts: bool, message: u32) {
        assert!(dispatcher.tell(Event::Message { session: session(), common: COMMON, interrupts, message }));
    }

    /// Lets the dispatcher take what it was told, and windows close.
    async fn pass(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn windows_close_by_time_and_a_dropped_turn_makes_room_for_the_next() {
        let (dispatcher, record, _work) = dispatcher();
        say(&dispatcher, false, 1);
        say(&dispatcher, false, 2);
        say(&dispatcher, false, 3);
        pass(1501).await;
        assert_eq!(record.told(), ["full 3", "start [1, 2]"]);
        say(&dispatcher, false, 4);
        pass(60_000).await;
        assert!(record.told().is_empty());
        drop(record.end());
        pass(1).await;
        assert_eq!(record.told(), ["over", "start [4]"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_superseded_turn_gives_its_messages_back_or_is_stopped_after_all() {
        let (dispatcher, record, _work) = dispatcher();
        say(&dispatcher, false, 1);
        pass(1501).await;
        say(&dispatcher, true, 2);
        pass(1).await;
        record.end().requeue();
        pass(1501).await;
        assert_eq!(record.told(), ["start [1]", "Superseded", "over", "start [1, 2]"]);
        let scope = Scope::Room { room: session().room, projects: [session().project].into() };
        assert!(dispatcher.tell(Event::Stop { scope, request: 7 }));
        pass(1).await;
        record.end().requeue();
        pass(1).await;
        assert_eq!(record.told(), ["Stopped", "stopped 7 ran 1 dropped [1, 2]", "over"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_was_found_running_holds_its_place_until_its_guard_goes() {
        let (dispatcher, record, _work) = dispatcher();
        let batch = Uuid::now_v7();
        let ended = dispatcher.adopt(batch);
        let messages = vec![1];
        assert!(dispatcher.tell(Event::Resumed { session: session(), batch, common: COMMON, messages }));
        say(&dispatcher, false, 2);
        pass(9000).await;
        assert!(record.told().is_empty());
        drop(ended);
        pass(1).await;
        assert_eq!(record.told(), ["over", "start [2]"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_ends_when_no_door_and_no_turn_is_left() {
        let (dispatcher, record, work) = dispatcher();
        say(&dispatcher, false, 1);
        pass(1501).await;
        drop(dispatcher);
        pass(60_000).await;
        assert!(!work.is_finished(), "a turn may still end");
        drop(record.end());
        work.await.expect("it ends by itself");
        assert_eq!(record.told(), ["start [1]", "over"]);
    }
}
