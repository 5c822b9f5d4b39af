//! The clone of a new project: through a port of its own to the remote, each use journaled; watched, and given up when nothing
//! comes any more. Submodules are fetched from inside the container, which has no credential.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use link::{SledClient, requests::CommandOutput};
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;
use uuid::Uuid;

use super::{
    repository::{self, Cloned, Doing, NotCloned, Watch},
    saga::Sagas,
    steps::Steps,
};
use crate::{
    commands::grammar::NewProject,
    git::{
        ClonePort, Remote,
        audit::{By, Outcome, Part, Service},
    },
    refusal::Refusal,
    text,
};

/// How long a clone may bring nothing.
const CLONE_SILENCE: Duration = Duration::from_mins(2);
/// How long a clone may take in all.
const CLONE_LONGEST: Duration = Duration::from_hours(2);
/// How long a clone that is given up may take to notice.
const CLONE_END: Duration = Duration::from_secs(10);

impl Sagas {
    /// Clones, with the credential that there is for it.
    pub(super) async fn clone_repository(
        &self,
        id: Uuid,
        remote: &Remote,
        ask: &NewProject,
        path: &Path,
        steps: &mut Steps<'_>,
    ) -> Result<Cloned, Refusal> {
        let mut what = repository::Clone {
            id,
            remote: remote.clone(),
            through: None,
            branch: ask.branch.clone(),
            depth: ask.depth,
        };
        let place = self.git.clone_place()?;
        if let Remote::Local(_) = remote {
            return watched(what, path, None, place, steps).await.map_err(|(_, refusal)| refusal);
        }
        let used = self.git.audit.begin(id, (Service::Fetch, Part::Whole), remote.shown(), By::Clone).await?;
        let port = match self.git.clone_port(remote, &used).await {
            Ok(port) => port,
            Err(refusal) => {
                used.end(Outcome::Failed).await?;
                return Err(refusal);
            }
        };
        what.through = Some(port.address().to_owned());
        let cloned = watched(what, path, Some(port), place, steps).await;
        used.end(cloned.as_ref().map_or_else(|(outcome, _)| *outcome, |_| Outcome::Done)).await?;
        cloned.map_err(|(_, refusal)| refusal)
    }
}

/// Has the sled fetch the submodules, with no credential but the project's own; gives what could not be done as a remark.
pub(super) async fn fetch_submodules(sled: &SledClient) -> Option<String> {
    let args = ["submodule", "update", "--init", "--recursive"].map(str::to_owned).into();
    let again = "⚠ Not all submodules could be fetched. A submodule that needs a credential is not fetched: only the project's own repository has one here. Once they can be, `!git submodule update --init --recursive` fetches them.";
    match sled.git_fetching(args).await {
        Ok(CommandOutput { code: Some(0), .. }) => None,
        Ok(CommandOutput { output, .. }) => {
            let last = output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Some(format!("{again} Git's last word: {}", text::code(last)))
        }
        Err(error) => Some(format!("{again} ({})", text::one_line(&error.to_string(), 200))),
    }
}

/// Whether people are told of that many.
fn is_told(have: usize, all: usize) -> bool {
    have == all || have.is_multiple_of(1000)
}

/// Clones on a thread of its own; given up when nothing comes any more, or soon after this future is dropped. A thread that
/// takes longer to notice works in a folder that bears the project's id, and so can disturb nobody.
async fn watched(
    what: repository::Clone,
    path: &Path,
    port: Option<ClonePort>,
    place: OwnedSemaphorePermit,
    steps: &mut Steps<'_>,
) -> Result<Cloned, NotCloned> {
    struct CancelOnDrop(Watch);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.cancelled.store(true, Ordering::Relaxed);
        }
    }
    let (watch, path) = (Watch::default(), path.to_owned());
    let cancelled = CancelOnDrop(watch.clone());
    let (sender, mut progress) = tokio::sync::watch::channel(Doing::Waiting);
    let mut cloning = tokio::task::spawn_blocking(move || {
        // Given back when this thread ends, whoever still waits for it.
        let _place = place;
        repository::clone(&what, &path, &watch, |doing| {
            sender.send_replace(doing);
        })
    });
    let mut longest = std::pin::pin!(tokio::time::sleep(CLONE_LONGEST));
    loop {
        let refusal = tokio::select! {
            cloned = &mut cloning => {
                let cloned = cloned.unwrap_or_else(|error| {
                    Err((Outcome::Failed, Refusal::internal("the clone broke off", error)))
                });
                return cloned.map_err(|known| port.and_then(|port| port.trouble()).unwrap_or(known));
            }
            Ok(()) = progress.changed() => {
                match *progress.borrow_and_update() {
                    Doing::Objects(have, all) if is_told(have, all) => steps.detail(format!("{have} of {all} objects")),
                    Doing::Files(have, all) if is_told(have, all) => steps.detail(format!("{have} of {all} files")),
                    Doing::Waiting | Doing::Objects(..) | Doing::Files(..) => {}
                }
                continue;
            }
            () = &mut longest => {
                let mins = CLONE_LONGEST.as_secs() / 60;
                Refusal::unavailable(format!("the clone is given up: it took more than {mins} minutes"))
                    .hint("Fewer commits may do: `--depth 1`.")
            }
            () = tokio::time::sleep(CLONE_SILENCE) => {
                let secs = CLONE_SILENCE.as_secs();
                Refusal::unavailable(format!("the clone is given up: nothing came for {secs} s"))
                    .hint("Check the address, and that this host reaches it.")
            }
        };
        drop(cancelled);
        drop(port);
        // What it does when it notices must not meet the undo; a thread that hangs longer does nothing more.
        let ended = tokio::time::timeout(CLONE_END, &mut cloning).await;
        warn!(ended = ended.is_ok(), "a clone is given up");
        return Err((Outcome::CutOff, refusal));
    }
}
