//! Who may send to a room just now: its lane, or drafts.
//!
//! Drafts begin nothing new while a lane has something to send; what they have begun may come to its end first, for
//! otherwise it could arrive after what the lane sends. A lane does not wait for that long.

use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

/// How long a lane waits for what a draft has begun.
const DRAFT_PATIENCE: Duration = Duration::from_secs(2);

/// A room's gate. Drafts go through side by side, a lane alone.
#[derive(Default)]
pub(super) struct Gate {
    passing: RwLock<()>,
    /// How many lanes want to go through, or do.
    claims: watch::Sender<usize>,
}

/// Held by a lane as long as it has something to send.
pub(super) struct Claim<'a> {
    gate: &'a Gate,
    passing: Option<RwLockWriteGuard<'a, ()>>,
}

impl Gate {
    /// Waits until no draft is being sent.
    pub async fn claim(&self) -> Claim<'_> {
        self.claims.send_modify(|claims| *claims += 1);
        // From here on the claim is taken back when this is dropped half-way.
        let mut claim = Claim { gate: self, passing: None };
        claim.passing = Some(self.passing.write().await);
        claim
    }

    /// Whether a lane has something to send.
    pub fn is_claimed(&self) -> bool {
        *self.claims.borrow() > 0
    }

    /// Waits until no lane has something to send. To be held while a draft is sent, as long as a lane waits for it.
    pub async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.passing.read().await
    }

    /// Waits for a draft's request; `None` when a lane has waited too long for it. The request goes on then.
    pub async fn bounded<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let mut claims = self.claims.subscribe();
        let overdue = async {
            // Does not fail: the gate has a sender.
            drop(claims.wait_for(|claims| *claims > 0).await);
            tokio::time::sleep(DRAFT_PATIENCE).await;
        };
        tokio::select! {
            biased;
            done = request => Some(done),
            () = overdue => None,
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.passing = None;
        self.gate.claims.send_modify(|claims| *claims -= 1);
    }
}
