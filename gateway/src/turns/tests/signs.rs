//! The sign that an answer is being written.

use futures_util::future;

use super::*;
use crate::chat::{SendError, Surface};

/// A surface that tells which signs it was asked for.
struct Signs(Hall, mpsc::UnboundedSender<bool>);

impl Surface for Signs {
    fn kind(&self) -> SurfaceKind {
        self.0.kind()
    }
    fn send<'a>(&'a self, room: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        self.0.send(room, message)
    }
    fn edit<'a>(
        &'a self,
        room: &'a Room,
        event: &'a str,
        message: &'a Outbound,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        self.0.edit(room, event, message)
    }
    fn find<'a>(
        &'a self,
        room: &'a Room,
        transaction: &'a str,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        self.0.find(room, transaction, since)
    }
    fn mark(&self, room: &Room, event_id: &str, mark: Mark) {
        self.0.mark(room, event_id, mark);
    }
    fn typing<'a>(&'a self, _: &'a Room, on: bool) -> BoxFuture<'a, ()> {
        self.1.send(on).expect("the test listens");
        future::ready(()).boxed()
    }
    fn edit_interval(&self) -> Duration {
        self.0.edit_interval()
    }
    fn is_instant(&self) -> bool {
        self.0.is_instant()
    }
    fn health(&self) -> Result<(), String> {
        self.0.health()
    }
}

/// A surface of that kind, for a stage; and the signs that it was asked for.
fn signs(kind: SurfaceKind) -> (Arc<Signs>, UnboundedReceiver<bool>) {
    let (told, signs) = mpsc::unbounded_channel();
    (Arc::new(Signs(Hall::new(kind).0, told)), signs)
}

/// A sled whose turn ends when it is told to, and what tells it.
fn ending() -> (Router, oneshot::Sender<()>) {
    let (end, ending) = oneshot::channel();
    let ending = Arc::new(Mutex::new(Some(ending)));
    let following = get(move || {
        let ending = ending.lock().expect("no test panics holding it").take().expect("it is read once");
        async move {
            ending.await.expect("the test tells when");
            finished("done")
        }
    });
    (accepting().route(paths::TURN_EVENTS, following), end)
}

#[tokio::test]
async fn the_sign_is_there_as_long_as_a_turn_runs_also_when_it_was_taken_up_before_its_surface_came() {
    for taken_up in [true, false] {
        let (sled, end) = ending();
        let mut stage = Stage::new([Some(sled)]).await;
        stage.session.room.surface = SurfaceKind::Matrix;
        let (surface, mut signs) = signs(SurfaceKind::Matrix);
        if taken_up {
            stage.take_up("hello").await;
        } else {
            stage.say("hello", false).await;
        }
        stage.outbox.add(surface);
        assert_eq!(signs.recv().await, Some(true));
        end.send(()).expect("the turn is followed");
        assert_eq!(signs.recv().await, Some(false));
    }
}

#[tokio::test]
async fn the_end_of_a_turn_that_showed_no_sign_takes_no_others_away() {
    let mut stage = Stage::new([Some(events(finished("done")))]).await;
    stage.session.room.surface = SurfaceKind::Matrix;
    let (surface, mut signs) = signs(SurfaceKind::Matrix);
    stage.take_up("hello").await;
    while stage.endings().is_empty() {
        tokio::task::yield_now().await;
    }
    stage.outbox.add(surface);
    while stage.turns.running() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(signs.try_recv().is_err());
}
