//! Which projects a saga is at work on: one at a time. What is half made and has none was left by a failure.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use uuid::Uuid;

/// The projects that are being made or removed just now. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<BTreeSet<Uuid>>>,
}

/// A project that its holder alone makes or removes, until this is dropped: also by a panic.
#[derive(Debug)]
pub struct Claim {
    id: Uuid,
    claims: Claims,
}

impl Claims {
    /// A new project's id, and the claim to it.
    pub fn mint(&self) -> Claim {
        let id = Uuid::now_v7();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Claim { id, claims: self.clone() }
    }

    /// The claim to a project; none when somebody else has it.
    pub fn claim(&self, id: Uuid) -> Option<Claim> {
        let fresh = self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        fresh.then(|| Claim { id, claims: self.clone() })
    }

    /// Whether somebody has it.
    pub fn is_claimed(&self, id: Uuid) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

impl Claim {
    /// Whose it is.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
