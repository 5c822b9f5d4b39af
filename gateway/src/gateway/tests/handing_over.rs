//! What the dispatcher is told of what people said: at once, and by the next gateway.

use super::*;
use crate::dispatch::{
    Batch,
    actor::Ended,
    core::{Limits, Ran, Why},
};

/// Ends each turn as soon as it begins, and remembers what it was told.
#[derive(Default)]
struct Notes {
    begun: Mutex<Vec<(Vec<String>, Role)>>,
    cancelled: Mutex<Vec<Uuid>>,
}

impl Carrier<Handle, StopRequest> for Notes {
    fn start(&self, batch: Batch<Handle>, ended: Ended<Handle, StopRequest>) {
        let event_ids = batch.messages.iter().map(|message| message.event_id.to_string()).collect();
        self.begun.lock().expect("no test panics holding it").push((event_ids, batch.common.rights));
        drop(ended);
    }

    fn cancel(&self, batch: Uuid, _: Why) {
        self.cancelled.lock().expect("no test panics holding it").push(batch);
    }

    fn full(&self, _: SessionKey, _: Handle) {}

    fn stopped(&self, _: StopRequest, _: Vec<Ran>, _: Vec<Handle>) {}

    fn over(&self, _: Uuid) {}
}

impl Notes {
    /// The turns that have begun, once there are so many.
    async fn begun(&self, turns: usize) -> Vec<(Vec<String>, Role)> {
        loop {
            let begun = self.begun.lock().expect("no test panics holding it").clone();
            if begun.len() >= turns {
                return begun;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Life {
    /// What people say goes from here on to a dispatcher of which this is told.
    fn noted(&mut self) -> Arc<Notes> {
        let notes = Arc::new(Notes::default());
        let limits = Limits { window: Duration::ZERO, max_window: Duration::ZERO, max_queue: 9, max_turns: 9 };
        let tasks = &self.gateway.tasks;
        let carrier = Arc::clone(&notes) as Arc<dyn Carrier<_, _>>;
        let (dispatcher, work) = Dispatcher::new(limits, carrier, tasks.stopping());
        tasks.spawn("another dispatcher", work);
        Arc::get_mut(&mut self.gateway.intake).expect("nobody else has it").dispatcher = dispatcher;
        notes
    }

    async fn command(&mut self, event_id: &str, text: &str) {
        self.say(event_id, text).await;
        self.answer_to(event_id).await;
    }
}

#[tokio::test]
async fn what_is_said_goes_with_its_senders_rights_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("there is room");
    let mut life = Life::begin(&folder).await;
    life.project("app", &[]).await;
    let notes = life.noted();
    for (person, name) in [(ann(), "ann"), (bob(), "bob")] {
        for text in ["!switch app", "do it"] {
            let said = Inbound { sender: person.clone(), ..said(&format!("${name}: {text}"), text) };
            life.gateway.intake.accept(said).await.expect("it is taken");
        }
    }
    let expected = [("$ann: do it", Role::Admin), ("$bob: do it", Role::Member)];
    let expected = expected.map(|(event_id, rights)| (vec![event_id.to_owned()], rights));
    assert_eq!(notes.begun(2).await, expected);
    // No turn was journaled: they wait.
    let notes = life.noted();
    let left = life.gateway.intake.sessions.recover().await.expect("it is readable");
    life.gateway.intake.take_up(left.waiting).await.expect("it is not stopping");
    assert_eq!(notes.begun(2).await, expected);
    life.end().await;
}

#[tokio::test]
async fn a_turn_that_is_taken_up_ends_for_what_was_said_to_interrupt_it_and_for_nothing_else() {
    for (then, now, interrupts) in [("queue", "interrupt", false), ("interrupt", "queue", true)] {
        let folder = tempfile::tempdir().expect("there is room");
        let mut life = Life::begin(&folder).await;
        let session = SessionKey { project: life.project("app", &[]).await, room: room(), thread: None };
        life.noted();
        life.command("$switch", "!switch app").await;
        life.command("$then", &format!("!mode {then}")).await;
        life.say("$one", "do it").await;
        let turn = Uuid::now_v7();
        let begun = life.gateway.intake.sessions.begin(&session, turn, &["$one"]).await;
        begun.expect("it begins").expect("it waits");
        life.say("$two", "and this").await;
        life.command("$now", &format!("!mode {now}")).await;

        // The next gateway.
        let notes = life.noted();
        let Intake { sessions, dispatcher, .. } = &*life.gateway.intake;
        let left = sessions.recover().await.expect("it is readable");
        let ended = dispatcher.adopt(turn);
        let common = Common { rights: Role::Admin, thread: None };
        assert!(dispatcher.tell(Event::Resumed { session, batch: turn, common, messages: Vec::new() }));
        life.gateway.intake.take_up(left.waiting).await.expect("it is not stopping");
        drop(ended);
        assert_eq!(notes.begun(1).await, [(vec!["$two".to_owned()], Role::Admin)]);
        let cancelled = notes.cancelled.lock().expect("no test panics holding it").clone();
        assert_eq!(cancelled, if interrupts { vec![turn] } else { Vec::new() }, "{then}, {now}");
        life.end().await;
    }
}
