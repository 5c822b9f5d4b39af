//! How often a container may use its project's remote: so many uses in a burst, then at a steady pace. What is refused leaves no
//! trace in the journal, which therefore grows no faster than that.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Uses in a burst.
const BURST: f64 = 60.0;
/// Uses per second after that.
const PER_SECOND: f64 = 2.0;

/// A token bucket.
#[derive(Debug)]
pub struct Pace(Mutex<(f64, Instant)>);

impl Pace {
    /// A full one.
    pub fn new() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }

    /// Takes one use out; false when there is none.
    pub fn take(&self) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (left, then) = *bucket;
        let left = (left + now.duration_since(then).as_secs_f64() * PER_SECOND).min(BURST);
        let is_there = left >= 1.0;
        *bucket = (if is_there { left - 1.0 } else { left }, now);
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_so_many_per_second() {
        let pace = Pace::new();
        let taken = || (0..1000).take_while(|_| pace.take()).count();
        assert_eq!(taken(), 60);
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(taken(), 0);
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(taken(), 1);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(taken(), 60);
    }
}
