//! The gateway's journal: every append of the gateway, and all that it erases, passes here, between the points at which tests kill it, and those
//! that the journal does not take are counted.
//!
//! It adds nothing to what is appended and decides nothing about it.

use std::{
    ops::Deref,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use journal::{Append, AppendError, Appended, Clock, OpenError};
use uuid::Uuid;

use crate::{failpoint, refusal::Refusal};

/// A [`journal::Journal`] whose appends are watched. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Journal {
    inner: journal::Journal,
    failures: Arc<AtomicU64>,
    /// Events of which kind are not taken, and how often, as if the disk were full.
    #[cfg(test)]
    refusing: Arc<std::sync::Mutex<(&'static str, u64)>>,
}

/// For what neither appends nor erases.
impl Deref for Journal {
    type Target = journal::Journal;

    fn deref(&self) -> &journal::Journal {
        &self.inner
    }
}

impl Journal {
    /// As [`journal::Journal::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Ok(Self {
            inner: journal::Journal::open(path, clock)?,
            failures: Arc::default(),
            #[cfg(test)]
            refusing: Arc::default(),
        })
    }

    /// Why a journal is not opened, for whoever wanted to.
    pub fn unopened(error: OpenError) -> Refusal {
        match &error {
            OpenError::Newer { supported, .. } => Refusal::config(error.to_string()).hint(format!(
                "Install the newer musher again. To go back, remove journal.db with its -wal and -shm, and rename the backup that the newer one \
                 made of it, journal.db.backup-v{supported}, to journal.db: what happened since is lost."
            )),
            OpenError::Older { .. } => {
                Refusal::usage(error.to_string()).hint("`musher up` brings it up to date, after a backup beside it.")
            }
            _ => Refusal::internal("the journal cannot be opened", error),
        }
    }

    /// As [`journal::Journal::append`].
    ///
    /// # Errors
    /// As there.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let mut appended = self.append_all(vec![append]).await?;
        appended.pop().ok_or(AppendError::Closed)
    }

    /// As [`journal::Journal::append_all`].
    ///
    /// # Errors
    /// As there.
    pub async fn append_all(&self, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        let kinds: Vec<String> = if cfg!(feature = "failpoints") {
            appends.iter().flat_map(|append| &append.events).map(|event| event.kind().to_owned()).collect()
        } else {
            Vec::new()
        };
        for kind in &kinds {
            failpoint::reach("before", kind);
        }
        let appending = async {
            #[cfg(test)]
            if self.refuses(&appends) {
                return Err(AppendError::Closed);
            }
            self.inner.append_all(appends).await
        };
        let appended = appending.await.inspect_err(|error| {
            // A lost race is decided anew, and a key that was used before says that it has happened already.
            if !matches!(error, AppendError::Conflict { .. } | AppendError::KeyReused { .. }) {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        for kind in &kinds {
            failpoint::reach("after", kind);
        }
        Ok(appended)
    }

    /// As [`journal::Journal::erase`].
    ///
    /// # Errors
    /// As there.
    pub async fn erase(&self, ids: Vec<Uuid>) -> Result<u64, AppendError> {
        failpoint::around("erase", self.inner.erase(ids)).await
    }

    /// As [`journal::Journal::erase_before`].
    ///
    /// # Errors
    /// As there.
    pub async fn erase_before(&self, time: Timestamp) -> Result<u64, AppendError> {
        failpoint::around("erase_before", self.inner.erase_before(time)).await
    }

    /// How many appends the journal has not taken since the start, other than for a lost race or a used key.
    pub fn append_failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Journal {
    /// The next `times` events of this kind are not taken.
    pub fn refuse(&self, kind: &'static str, times: u64) {
        *self.refusing.lock().expect("no test panics holding it") = (kind, times);
    }

    fn refuses(&self, appends: &[Append]) -> bool {
        let mut refusing = self.refusing.lock().expect("no test panics holding it");
        let (kind, left) = &mut *refusing;
        let meant = *left > 0 && appends.iter().flat_map(|append| &append.events).any(|event| event.kind() == *kind);
        *left -= u64::from(meant);
        meant
    }
}

#[cfg(test)]
mod tests {
    use journal::{Actor, Cause, Expected, NewEvent, StreamId};

    use super::*;
    use crate::usage::{Tokens, UsageEvent};

    fn count(expected: Expected, key: Option<&str>, requests: u64) -> Append {
        let tokens = Tokens::default();
        let event = UsageEvent::Counted { turn: None, room: None, model: String::new(), tokens, requests };
        Append {
            stream: StreamId::new("usage", "one"),
            expected,
            events: vec![NewEvent::encode(&event).expect("it can be encoded")],
            key: key.map(str::to_owned),
            actor: Actor::Gateway,
            cause: Cause::None,
        }
    }

    #[tokio::test]
    async fn what_the_journal_does_not_take_is_counted_and_a_lost_race_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(Timestamp::UNIX_EPOCH));
        let journal = journal.expect("it can be made");
        journal.append(count(Expected::NoStream, Some("key"), 1)).await.expect("it is appended");
        journal.append(count(Expected::NoStream, None, 1)).await.expect_err("the race is lost");
        journal.append(count(Expected::Any, Some("key"), 2)).await.expect_err("the key is used");
        assert_eq!(journal.append_failures(), 0);
        let nothing = Append { events: Vec::new(), ..count(Expected::Any, None, 1) };
        journal.append(nothing).await.expect_err("there is nothing to append");
        let other = journal.clone();
        other.close().await;
        other.append_all(vec![count(Expected::Any, None, 1); 2]).await.expect_err("it is closed");
        assert_eq!(journal.append_failures(), 2);
    }
}
