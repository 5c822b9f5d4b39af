//! The clone of a new project: through a port of its own to the remote, in a process of its own, each use journaled; watched, and
//! given up when nothing comes any more. Submodules are fetched from inside the container, which has no credential.

use std::{path::Path, time::Duration};

use link::{SledClient, requests::CommandOutput};
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;
use uuid::Uuid;

use super::{
    clone::{Cloned, Doing, Failure, Limits, Order},
    clone_worker::{Told, Worker},
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

/// Why there is no clone, for the audit and for people.
type NotCloned = (Outcome, Refusal);

/// How long a clone may bring nothing.
const CLONE_SILENCE: Duration = Duration::from_mins(2);
/// How long a clone may take in all.
const CLONE_LONGEST: Duration = Duration::from_hours(2);

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
        let mut order = Order {
            id,
            remote: remote.clone(),
            through: None,
            branch: ask.branch.clone(),
            depth: ask.depth,
            into: path.to_owned(),
            limits: Limits::default(),
        };
        let place = self.git.clone_place()?;
        if let Remote::Local(_) = remote {
            return watched(&order, None, place, steps).await.map_err(|(_, refusal)| refusal);
        }
        let used = self.git.audit.begin(id, (Service::Fetch, Part::Whole), remote.shown(), By::Clone).await?;
        let port = match self.git.clone_port(remote, &used).await {
            Ok(port) => port,
            Err(refusal) => {
                used.end(Outcome::Failed).await?;
                return Err(refusal);
            }
        };
        order.through = Some(port.address().to_owned());
        let cloned = watched(&order, Some(port), place, steps).await;
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

/// What people are told of it.
fn describe(doing: Doing) -> Option<String> {
    match doing {
        Doing::Waiting => None,
        // By hundredths: where each edit is a line of its own, a large repository would fill the screen.
        Doing::Objects { have, all } => Some(format!("{} % of {all} objects", have * 100 / all.max(1))),
        Doing::Files { have, all } => Some(format!("{} % of {all} files", have * 100 / all.max(1))),
    }
}

/// Has a worker clone; given up when nothing comes any more, or when this future is dropped.
async fn watched(
    order: &Order,
    port: Option<ClonePort>,
    _place: OwnedSemaphorePermit,
    steps: &mut Steps<'_>,
) -> Result<Cloned, NotCloned> {
    let broken = |error| (Outcome::Failed, Refusal::internal("the clone broke off", error));
    let mut worker = Worker::start(order).await.map_err(broken)?;
    let mut longest = std::pin::pin!(tokio::time::sleep(CLONE_LONGEST));
    // What is copied on this host is copied without a word.
    let silence = if port.is_some() { CLONE_SILENCE } else { CLONE_LONGEST };
    let ended = loop {
        let told = tokio::select! {
            told = worker.next() => told,
            () = &mut longest => {
                let mins = CLONE_LONGEST.as_secs() / 60;
                let refusal = Refusal::unavailable(format!("the clone is given up: it took more than {mins} minutes"));
                break Err((Outcome::CutOff, refusal.hint("Fewer commits may do: `--depth 1`.")));
            }
            () = tokio::time::sleep(silence) => {
                let secs = CLONE_SILENCE.as_secs();
                let refusal = Refusal::unavailable(format!("the clone is given up: nothing came for {secs} s"));
                break Err((Outcome::CutOff, refusal.hint("Check the address, and that this host reaches it.")));
            }
        };
        match told {
            Ok(Some(Told::Doing(doing))) => {
                if let Some(detail) = describe(doing) {
                    steps.detail(detail);
                }
            }
            Ok(Some(Told::Cloned(cloned))) => break Ok(cloned),
            // What stands behind the port knows more of what went wrong there.
            Ok(Some(Told::Failed(failure))) => {
                let behind = port.as_ref().and_then(ClonePort::trouble);
                break Err(behind.unwrap_or_else(|| refused(order, &failure)));
            }
            Ok(None) => {
                let refusal = Refusal::unavailable(format!(
                    "{} cannot be cloned: git broke down over it",
                    text::code(&order.remote.shown())
                ));
                break Err((
                    Outcome::Failed,
                    refusal.hint("It may hold a file that is too large. Fewer commits may do: `--depth 1`."),
                ));
            }
            Err(error) => break Err(broken(error)),
        }
    };
    // Nothing of it is left when what it made is given away or removed.
    if let Err(error) = worker.end().await {
        warn!(%error, "the process of a clone could not be ended");
    }
    ended
}

/// What people are told of a clone that failed, as far as libgit2 knows why.
fn refused(order: &Order, failure: &Failure) -> NotCloned {
    let shown = text::code(&order.remote.shown());
    let said = |failure: &Failure| Refusal::internal(format!("{shown} cannot be cloned"), failure.clone());
    let refusal = match failure {
        Failure::TooMuch { limit, of } => Refusal::usage(format!("{shown} has more than {limit} {of}"))
            .hint("It is not cloned. Fewer commits may do: `--depth 1`."),
        Failure::Rewritten => Refusal::config(format!("your git configuration rewrites the address {shown}")).hint(
            "Give the address that is meant, or take the `url.….insteadOf` that fits it out of this host's git configuration.",
        ),
        Failure::NoBranch => {
            let branch = text::code(order.branch.as_deref().unwrap_or_default());
            Refusal::usage(format!("{shown} has no branch {branch}"))
                .hint("Check the branch, or leave `--branch` out for the repository's own default.")
        }
        Failure::Elsewhere => Refusal::usage(format!("the repository of {shown} lies elsewhere"))
            .hint("Clone the repository that it belongs to."),
        Failure::Borrowed => Refusal::usage(format!("{shown} borrows its objects from another repository"))
            .hint("Repack it first: `git repack -ad` there, then remove `objects/info/alternates`."),
        Failure::Strange(_) => said(failure).hint("A repository on this host is cloned when it holds files and folders alone."),
        Failure::Connection(_) => {
            let hint = "Check the address, and that this host reaches it; the same command tries it again.";
            return (Outcome::Unreachable, said(failure).hint(hint));
        }
        Failure::Disk(_) => said(failure).hint("Look whether this host's disk has room, and whether musher may read and write there."),
        Failure::Git(_) => said(failure).hint("Check the address; the same command tries it again."),
    };
    (Outcome::Failed, refusal)
}
