//! The thin shell around [`super::core`]: feeds it events and time, and has its effects carried out.

use std::sync::Arc;

use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{
    Batch,
    core::{Core, Effect, Event, Limits},
};

/// Carries effects out. Nothing here may block: what takes time is started, not awaited.
pub trait Carrier<M, S>: Send + Sync + 'static {
    /// Runs a turn. `ended` is kept until nothing of the turn is left.
    fn start(&self, batch: Batch<M>, ended: Ended<M, S>);
    /// Asks a running turn to end; `everywhere` when its whole project is stopped.
    fn cancel(&self, batch: Uuid, everywhere: bool);
    /// Tells that a message was not taken because the queue is full.
    fn full(&self, message: M);
    /// Tells what a stop did.
    fn stopped(&self, request: S, ran: Vec<Uuid>, dropped: Vec<M>);
    /// A turn is over, and the stops that waited for it alone are told.
    fn over(&self, batch: Uuid);
}

/// Says that a turn is over when it is dropped, on whatever way.
#[derive(Debug)]
pub struct Ended<M, S> {
    batch: Uuid,
    events: UnboundedSender<Event<M, S>>,
}

impl<M, S> Drop for Ended<M, S> {
    fn drop(&mut self) {
        // The dispatcher is gone only when the gateway ends; then nobody wants to know.
        drop(self.events.send(Event::Ended { batch: self.batch }));
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

impl<M: Send + 'static, S: Send + 'static> Dispatcher<M, S> {
    /// A dispatcher and the work that makes it go, for the caller to spawn.
    pub fn new(limits: Limits, carrier: Arc<dyn Carrier<M, S>>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (events, receiver) = mpsc::unbounded_channel();
        let work = run(Core::new(limits, Uuid::now_v7), receiver, events.clone(), carrier);
        (Self { events }, work)
    }

    /// Hands an event over, in order. `false` when the gateway is ending and nobody takes it any more.
    #[must_use]
    pub fn tell(&self, event: Event<M, S>) -> bool {
        self.events.send(event).is_ok()
    }

    /// The guard of a turn that was found running at start.
    pub fn adopt(&self, batch: Uuid) -> Ended<M, S> {
        Ended { batch, events: self.events.clone() }
    }
}

async fn run<M: Send + 'static, S: Send + 'static>(
    mut core: Core<M, S>,
    mut receiver: UnboundedReceiver<Event<M, S>>,
    events: UnboundedSender<Event<M, S>>,
    carrier: Arc<dyn Carrier<M, S>>,
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
        let over = if let Event::Ended { batch } = &event { Some(*batch) } else { None };
        for effect in core.on(began.elapsed(), event) {
            match effect {
                Effect::Start(batch) => {
                    let ended = Ended { batch: batch.id, events: events.clone() };
                    carrier.start(batch, ended);
                }
                Effect::Cancel { batch, everywhere } => carrier.cancel(batch, everywhere),
                Effect::Full(message) => carrier.full(message),
                Effect::Stopped { request, ran, dropped } => carrier.stopped(request, ran, dropped),
            }
        }
        if let Some(batch) = over {
            carrier.over(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::*;
    use crate::{
        chat::{Room, SurfaceKind},
        dispatch::SessionKey,
        people::Role,
    };

    type Started = (Vec<u32>, Ended<u32, ()>);

    #[derive(Default)]
    struct Record {
        started: Mutex<Vec<Started>>,
    }

    impl Carrier<u32, ()> for Record {
        fn start(&self, batch: Batch<u32>, ended: Ended<u32, ()>) {
            self.started.lock().expect("no test panics holding it").push((batch.messages, ended));
        }
        fn cancel(&self, _: Uuid, _: bool) {}
        fn full(&self, _: u32) {}
        fn stopped(&self, (): (), _: Vec<Uuid>, _: Vec<u32>) {}
        fn over(&self, _: Uuid) {}
    }

    #[tokio::test(start_paused = true)]
    async fn windows_close_by_time_and_a_dropped_turn_makes_room_for_the_next() {
        let record = Arc::new(Record::default());
        let limits = Limits {
            window: Duration::from_millis(1500),
            max_window: Duration::from_secs(8),
            max_queue: 100,
            max_turns: 4,
        };
        let (dispatcher, work) = Dispatcher::new(limits, Arc::clone(&record) as Arc<dyn Carrier<u32, ()>>);
        let work = tokio::spawn(work);
        let session = SessionKey {
            project: Uuid::nil(),
            room: Room { surface: SurfaceKind::Console, id: "main".into() },
            thread: None,
        };
        let say = |message| {
            assert!(dispatcher.tell(Event::Message { session: session.clone(), rights: Role::Admin, message }));
        };
        let started = || {
            record.started.lock().expect("no test panics holding it").iter().map(|(m, _)| m.clone()).collect::<Vec<_>>()
        };
        say(1);
        say(2);
        tokio::time::sleep(Duration::from_millis(1501)).await;
        assert_eq!(started(), [vec![1, 2]]);
        say(3);
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(started().len(), 1);
        record.started.lock().expect("no test panics holding it").clear();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(started(), [vec![3]]);
        work.abort();
    }
}
