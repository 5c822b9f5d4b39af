//! Where the journal's times come from. Nothing else in this crate reads the wall clock.

use jiff::Timestamp;

/// A wall clock, handed in so that tests decide what time it is.
pub trait Clock: Send + Sync {
    /// The present moment. A journal keeps it to the microsecond.
    fn now(&self) -> Timestamp;
}

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A fixed moment is a clock that stands still.
impl Clock for Timestamp {
    fn now(&self) -> Timestamp {
        *self
    }
}
