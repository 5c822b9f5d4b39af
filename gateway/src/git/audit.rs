//! What credentials of git remotes were used for, in stream `git/<project id>` (SEC-2): the beginning is journaled before a
//! credential is used, the end after it.
//!
//! A use that cannot be journaled does not take place. No credential is ever in an event.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use journal::{Actor, Append, Cause, DomainEvent, Expected, Fold, NewEvent, Recorded, StreamId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{refusal::Refusal, store::Journal, tasks::Tasks};

/// The stream kind.
pub const STREAM: &str = "git";
/// How many uses a fold keeps.
pub const LATEST: usize = 50;

/// What was asked of the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// To give: a clone or a fetch.
    Fetch,
    /// To take.
    Push,
}

/// Which part of it: over the web the two are requests of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What branches and tags there are.
    References,
    /// The objects.
    Objects,
    /// All of it.
    Whole,
}

/// Who used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The gateway, to make the project.
    Clone,
    /// Whatever runs in the project's container.
    Container,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The remote did it.
    Done,
    /// The remote wants another credential, or there is none.
    Denied,
    /// The remote refused for another reason, or failed.
    Failed,
    /// The remote could not be reached, or may not be.
    Unreachable,
    /// The remote is not known to be the one that it should be.
    Untrusted,
    /// It was broken off.
    CutOff,
}

/// What happens. Kinds `git.use_begun` and `git.use_ended`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum GitEvent {
    /// A credential is about to be used.
    #[serde(rename = "git.use_begun")]
    UseBegun {
        /// Names the use.
        id: Uuid,
        /// What for.
        service: Service,
        /// Which part of it.
        part: Part,
        /// The remote, as it is shown.
        remote: String,
        /// By whom.
        by: By,
    },
    /// It is over.
    #[serde(rename = "git.use_ended")]
    UseEnded {
        /// Which use.
        id: Uuid,
        /// How.
        outcome: Outcome,
        /// Bytes that went to the remote.
        sent: u64,
        /// Bytes that came from it.
        received: u64,
    },
}

impl DomainEvent for GitEvent {
    const KINDS: &'static [&'static str] = &["git.use_begun", "git.use_ended"];
}

/// A use, as the journal tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Which one.
    pub id: Uuid,
    /// When it began.
    pub time: Timestamp,
    /// What for.
    pub service: Service,
    /// Which part of it.
    pub part: Part,
    /// The remote, as it is shown.
    pub remote: String,
    /// By whom.
    pub by: By,
    /// How it ended, with bytes sent and received; nothing while it goes on, or when the gateway was killed under it.
    pub end: Option<(Outcome, u64, u64)>,
}

/// The latest uses of one project's credential, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// At most [`LATEST`].
    pub latest: VecDeque<Used>,
    /// How many there were in all.
    pub all: u64,
}

impl Fold for Uses {
    type Event = GitEvent;
    type Error = std::convert::Infallible;

    fn apply(&mut self, event: &GitEvent, recorded: &Recorded) -> Result<(), Self::Error> {
        match event {
            GitEvent::UseBegun { id, service, part, remote, by } => {
                if self.latest.len() == LATEST {
                    self.latest.pop_front();
                }
                self.all += 1;
                self.latest.push_back(Used {
                    id: *id,
                    time: recorded.time,
                    service: *service,
                    part: *part,
                    remote: remote.clone(),
                    by: *by,
                    end: None,
                });
            }
            GitEvent::UseEnded { id, outcome, sent, received } => {
                if let Some(used) = self.latest.iter_mut().find(|used| used.id == *id) {
                    used.end = Some((*outcome, *sent, *received));
                }
            }
        }
        Ok(())
    }
}

/// What a project's uses follow from at the moment: the turn that runs in it, or the command that makes it.
pub type Causes = Arc<dyn Fn(Uuid, By) -> Cause + Send + Sync>;

/// Journals uses. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    journal: Journal,
    tasks: Tasks,
    causes: Causes,
}

impl Audit {
    /// Uses go into this journal.
    pub fn new(journal: Journal, tasks: Tasks, causes: Causes) -> Self {
        Self { journal, tasks, causes }
    }

    /// Journals that a credential is about to be used. When this fails it must not be.
    ///
    /// # Errors
    /// When the journal does not take it.
    pub async fn begin(
        &self,
        project: Uuid,
        (service, part): (Service, Part),
        remote: String,
        by: By,
    ) -> Result<Use, Refusal> {
        let id = Uuid::now_v7();
        let begun = GitEvent::UseBegun { id, service, part, remote, by };
        let begun = self.append(project, by, &begun, (self.causes)(project, by)).await?;
        let (sent, received) = (Arc::default(), Arc::default());
        Ok(Use { audit: self.clone(), project, by, id, begun, sent, received, ended: false })
    }

    /// The latest uses of a project's credential.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn uses(&self, project: Uuid) -> Result<Uses, Refusal> {
        let loaded = self.journal.load::<Uses>(&StreamId::new(STREAM, project)).await;
        loaded
            .map(|loaded| loaded.state)
            .map_err(|error| Refusal::internal("the uses cannot be read from the journal", error))
    }

    /// Gives what follows from the event.
    async fn append(&self, project: Uuid, by: By, event: &GitEvent, cause: Cause) -> Result<Cause, Refusal> {
        let failed = |error: &dyn std::fmt::Display| {
            Refusal::internal("the use of the git credential could not be journaled", error.to_string())
        };
        let append = Append {
            stream: StreamId::new(STREAM, project),
            expected: Expected::Any,
            events: vec![NewEvent::encode(event).map_err(|error| failed(&error))?],
            key: None,
            actor: match by {
                By::Clone => Actor::Gateway,
                By::Container => Actor::Sled(project.to_string()),
            },
            cause,
        };
        let appended = self.journal.append(append).await.map_err(|error| failed(&error))?;
        Ok(appended.events.first().map_or(Cause::None, |event| Cause::Event(event.id)))
    }
}

/// A use under way. One that is dropped was cut off, and is journaled so.
#[must_use]
pub struct Use {
    audit: Audit,
    project: Uuid,
    by: By,
    id: Uuid,
    /// What its end follows from.
    begun: Cause,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    ended: bool,
}

impl Use {
    /// What is added to here counts as bytes sent.
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// What is added to here counts as bytes received.
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Journals the end. It happens whether or not the caller waits for it.
    pub fn end(mut self, outcome: Outcome) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        self.journal_end(outcome)
    }

    fn journal_end(&mut self, outcome: Outcome) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        self.ended = true;
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        let event = GitEvent::UseEnded { id: self.id, outcome, sent, received };
        let (audit, project, by, begun) = (self.audit.clone(), self.project, self.by, self.begun.clone());
        let (sender, written) = tokio::sync::oneshot::channel();
        self.audit.tasks.spawn_to_end("git audit", async move {
            let result = audit.append(project, by, &event, begun).await.map(drop);
            if let Err(refusal) = &result {
                tracing::error!(%project, %refusal, ?event, "the end of a use is not journaled");
            }
            // The caller may have gone.
            drop(sender.send(result));
        });
        async move { written.await.unwrap_or_else(|_| Err(Refusal::unavailable("the gateway is stopping"))) }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if !self.ended {
            // It is journaled whether or not anybody waits for it.
            drop(self.journal_end(Outcome::CutOff));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit() -> (tempfile::TempDir, Journal, Audit, Tasks) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = Journal::open(&folder.path().join("journal.db"), Arc::new(Timestamp::UNIX_EPOCH));
        let (journal, tasks) = (journal.expect("it can be made"), Tasks::new());
        let causes = Arc::new(|_, by| match by {
            By::Clone => Cause::Command("$new".to_owned()),
            By::Container => Cause::None,
        });
        (folder, journal.clone(), Audit::new(journal, tasks.clone(), causes), tasks)
    }

    const FETCH: (Service, Part) = (Service::Fetch, Part::Whole);

    #[tokio::test]
    async fn uses_are_told_with_their_ends_and_the_dropped_ones_as_cut_off() {
        let (_folder, journal, audit, tasks) = audit();
        let project = Uuid::now_v7();
        let remote = || "https://example.org/a".to_owned();
        let first = audit.begin(project, FETCH, remote(), By::Clone).await.expect("it is journaled");
        first.sent().fetch_add(3, Ordering::Relaxed);
        first.received().fetch_add(5, Ordering::Relaxed);
        let second = audit
            .begin(project, (Service::Push, Part::Objects), remote(), By::Container)
            .await
            .expect("it is journaled");
        let third = audit.begin(project, FETCH, remote(), By::Container).await.expect("it is journaled");
        first.end(Outcome::Done).await.expect("it is journaled");
        drop(second);
        tasks.shutdown(std::time::Duration::from_secs(5)).await.expect("what was dropped is journaled");
        let uses = audit.uses(project).await.expect("it can be read");
        let ends: Vec<_> = uses.latest.iter().map(|used| (used.service, used.by, used.end)).collect();
        assert_eq!(
            ends,
            [
                (Service::Fetch, By::Clone, Some((Outcome::Done, 3, 5))),
                (Service::Push, By::Container, Some((Outcome::CutOff, 0, 0))),
                (Service::Fetch, By::Container, None),
            ]
        );
        let events = journal.read(&StreamId::new(STREAM, project), 0).await.expect("it can be read");
        let causes: Vec<_> = events.iter().map(|event| event.cause.clone()).collect();
        let new = Cause::Command("$new".to_owned());
        let [first_begun, second_begun] = [&events[0], &events[1]].map(|event| Cause::Event(event.id));
        assert_eq!(causes, [new, Cause::None, Cause::None, first_begun, second_begun]);
        assert_eq!(audit.uses(Uuid::now_v7()).await.expect("it can be read"), Uses::default());
        drop(third);
    }

    #[tokio::test]
    async fn the_latest_are_kept_and_all_are_counted() {
        let (_folder, _journal, audit, _tasks) = audit();
        let project = Uuid::now_v7();
        for number in 0..LATEST + 3 {
            let used = audit.begin(project, FETCH, number.to_string(), By::Container).await.expect("it is journaled");
            used.end(Outcome::Done).await.expect("it is journaled");
        }
        let uses = audit.uses(project).await.expect("it can be read");
        assert_eq!((uses.latest.len(), uses.all), (LATEST, 53));
        assert_eq!((uses.latest[0].remote.as_str(), uses.latest[LATEST - 1].remote.as_str()), ("3", "52"));
    }

    #[tokio::test]
    async fn what_cannot_be_journaled_does_not_begin() {
        let (_folder, journal, audit, _tasks) = audit();
        journal.close().await;
        assert!(audit.begin(Uuid::now_v7(), FETCH, String::new(), By::Container).await.is_err());
    }
}
