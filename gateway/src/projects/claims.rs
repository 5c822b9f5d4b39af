//! Which projects a saga is at work on: one at a time. What is half made and has none was left by a failure.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use journal::Cause;
use uuid::Uuid;

/// The projects that are being made or removed just now, and what that follows from. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<BTreeMap<Uuid, Cause>>>,
}

/// A project that its holder alone makes or removes, until this is dropped: also by a panic.
#[derive(Debug)]
pub struct Claim {
    id: Uuid,
    claims: Claims,
}

impl Claims {
    /// A new project's id, and the claim to it.
    pub fn mint(&self, cause: Cause) -> Claim {
        let id = Uuid::now_v7();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, cause);
        Claim { id, claims: self.clone() }
    }

    /// The claim to a project; none when somebody else has it.
    pub fn claim(&self, id: Uuid, cause: Cause) -> Option<Claim> {
        match self.held.lock().unwrap_or_else(PoisonError::into_inner).entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(cause);
                Some(Claim { id, claims: self.clone() })
            }
        }
    }

    /// Whether somebody has it.
    pub fn is_claimed(&self, id: Uuid) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// What the work on it follows from: nothing where nobody is at work.
    pub fn cause(&self, id: Uuid) -> Cause {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().unwrap_or(Cause::None)
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
