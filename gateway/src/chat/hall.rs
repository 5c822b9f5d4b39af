//! A surface for tests of what speaks through surfaces: it takes everything at once, and tells the test.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Mark, Outbound, Room, SendError, Surface, SurfaceKind};

/// The surface. What it is sent has the ids `$0`, `$1`, …
pub struct Hall {
    kind: SurfaceKind,
    sent: UnboundedSender<Outbound>,
    shown: UnboundedSender<Outbound>,
    taken_back: UnboundedSender<String>,
    number: AtomicUsize,
    /// As [`Surface::edit_interval`].
    pub edit_interval: Duration,
    /// As [`Surface::is_instant`].
    pub is_instant: bool,
}

/// What a [`Hall`] tells, in order.
pub struct Heard {
    /// What was sent.
    pub sent: UnboundedReceiver<Outbound>,
    /// What was sent, and what it was edited to.
    pub shown: UnboundedReceiver<Outbound>,
    /// The events that were taken out of the room.
    pub taken_back: UnboundedReceiver<String>,
}

impl Hall {
    /// One of that kind, whose messages may be edited at any time, and what it tells.
    pub fn new(kind: SurfaceKind) -> (Self, Heard) {
        let ((sent, of_sent), (shown, of_shown), (taken_back, of_taken_back)) =
            (unbounded_channel(), unbounded_channel(), unbounded_channel());
        let number = AtomicUsize::new(0);
        let hall = Self { kind, sent, shown, taken_back, number, edit_interval: Duration::ZERO, is_instant: false };
        (hall, Heard { sent: of_sent, shown: of_shown, taken_back: of_taken_back })
    }
}

impl Surface for Hall {
    fn kind(&self) -> SurfaceKind {
        self.kind
    }

    fn send<'a>(&'a self, _: &'a Room, message: &'a Outbound) -> BoxFuture<'a, Result<String, SendError>> {
        let event_id = format!("${}", self.number.fetch_add(1, Ordering::SeqCst));
        // A test need not listen.
        self.sent.send(message.clone()).ok();
        self.shown.send(message.clone()).ok();
        async { Ok(event_id) }.boxed()
    }

    fn edit<'a>(&'a self, _: &'a Room, _: &'a str, message: &'a Outbound) -> BoxFuture<'a, Result<(), SendError>> {
        self.shown.send(message.clone()).ok();
        async { Ok(()) }.boxed()
    }

    fn find<'a>(&'a self, _: &'a Room, _: &'a str, _: Timestamp) -> BoxFuture<'a, Result<Option<String>, SendError>> {
        async { Ok(None) }.boxed()
    }

    fn mark(&self, _: &Room, _: &str, _: Mark) {}

    fn take_back<'a>(
        &'a self,
        _: &'a Room,
        event_id: &'a str,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<String, SendError>> {
        self.taken_back.send(event_id.to_owned()).ok();
        async { Ok("$redaction".to_owned()) }.boxed()
    }

    fn typing<'a>(&'a self, _: &'a Room, _: bool) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn edit_interval(&self) -> Duration {
        self.edit_interval
    }

    fn is_instant(&self) -> bool {
        self.is_instant
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}
