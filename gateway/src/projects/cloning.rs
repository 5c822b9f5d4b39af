//! The clone of a new project: through a port of its own to the remote, in a process of its own, each use journaled; watched, and
//! given up when nothing comes any more. Submodules are fetched from inside the container, which has no credential.

use std::{io, os::unix::process::ExitStatusExt, path::Path, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use link::{SledClient, requests::CommandOutput};
use nix::libc::{SIGBUS, SIGXFSZ};
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
    /// Clones into a folder that is not there yet, with the credential that there is for it.
    pub(super) async fn clone_repository(
        &self,
        id: Uuid,
        remote: &Remote,
        ask: &NewProject,
        into: &Path,
        steps: &mut Steps<'_>,
    ) -> Result<Cloned, Refusal> {
        let mut order = Order {
            remote: remote.clone(),
            through: None,
            branch: ask.branch.clone(),
            depth: ask.depth,
            into: into.to_owned(),
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

/// Why there is no clone, before it is put into words.
#[derive(Debug, PartialEq)]
enum Unfinished {
    /// It took too long.
    Endless,
    /// Nothing came for too long.
    Silent,
    /// The worker is gone without a word.
    Gone,
    /// The worker said what nobody understands.
    Unclear(String),
    /// The worker says why.
    Failed(Failure),
}

/// Has a worker clone; given up when nothing comes any more, or when this future is dropped.
async fn watched(
    order: &Order,
    port: Option<ClonePort>,
    _place: OwnedSemaphorePermit,
    steps: &mut Steps<'_>,
) -> Result<Cloned, NotCloned> {
    let broken = |error: io::Error| (Outcome::Failed, Refusal::internal("the clone broke off", error));
    let mut worker = Worker::start(order).await.map_err(broken)?;
    // What is copied on this host is copied without a word.
    let silence = port.as_ref().map(|_| CLONE_SILENCE);
    let ended = followed(worker.told(), silence, |detail| steps.detail(detail)).await;
    // Nothing of it is left when what it made is given away or removed.
    if !matches!(ended, Err(Unfinished::Gone)) {
        if let Err(error) = worker.kill().await {
            warn!(%error, "the process of a clone could not be ended");
        }
        return ended.map_err(|why| {
            // What stands behind the port knows more of what went wrong there.
            let known = matches!(why, Unfinished::Failed(Failure::Connection(_) | Failure::Git(_)));
            let behind = port.filter(|_| known).and_then(|port| port.trouble());
            behind.unwrap_or_else(|| unfinished(order, why))
        });
    }
    let status = worker.end().await.map_err(broken)?;
    warn!(%status, "the process of a clone ended without a word");
    Err(match status.signal() {
        // The disk had no room for a page of the file that was being written, or a file grew too long.
        Some(SIGBUS) => refused(order, &Failure::Disk("the disk took no more".into())),
        Some(SIGXFSZ) => {
            refused(order, &Failure::TooMuch { limit: order.limits.bytes, of: "bytes in one file".into() })
        }
        _ => unfinished(order, Unfinished::Gone),
    })
}

/// Hears a worker to its end.
async fn followed(
    told: impl Stream<Item = io::Result<Told>>,
    silence: Option<Duration>,
    mut show: impl FnMut(String),
) -> Result<Cloned, Unfinished> {
    let (mut told, mut longest) = (pin!(told), pin!(tokio::time::sleep(CLONE_LONGEST)));
    loop {
        let heard = tokio::select! {
            heard = told.next() => heard,
            () = &mut longest => return Err(Unfinished::Endless),
            () = tokio::time::sleep(silence.unwrap_or_default()), if silence.is_some() => return Err(Unfinished::Silent),
        };
        match heard {
            Some(Ok(Told::Doing(doing))) => {
                if let Some(detail) = describe(doing) {
                    show(detail);
                }
            }
            Some(Ok(Told::Cloned(cloned))) => return Ok(cloned),
            Some(Ok(Told::Failed(failure))) => return Err(Unfinished::Failed(failure)),
            Some(Err(error)) => return Err(Unfinished::Unclear(error.to_string())),
            None => return Err(Unfinished::Gone),
        }
    }
}

fn unfinished(order: &Order, why: Unfinished) -> NotCloned {
    let fewer = "Fewer commits may do: `--depth 1`.";
    match why {
        Unfinished::Endless => {
            let mins = CLONE_LONGEST.as_secs() / 60;
            let refusal = Refusal::unavailable(format!("the clone is given up: it took more than {mins} minutes"));
            (Outcome::CutOff, refusal.hint(fewer))
        }
        Unfinished::Silent => {
            let secs = CLONE_SILENCE.as_secs();
            let refusal = Refusal::unavailable(format!("the clone is given up: nothing came for {secs} s"));
            (Outcome::CutOff, refusal.hint("Check the address, and that this host reaches it."))
        }
        Unfinished::Gone => {
            let shown = text::code(&order.remote.shown());
            let refusal = Refusal::unavailable(format!("{shown} cannot be cloned: git broke down over it"));
            (Outcome::Failed, refusal.hint(format!("It may hold a file that is too large. {fewer}")))
        }
        Unfinished::Unclear(error) => (Outcome::Failed, Refusal::internal("the clone broke off", error)),
        Unfinished::Failed(failure) => refused(order, &failure),
    }
}

/// What people are told of a clone that failed, as far as libgit2 knows why.
fn refused(order: &Order, failure: &Failure) -> NotCloned {
    let shown = text::code(&order.remote.shown());
    let said = |failure: &Failure| Refusal::internal(format!("{shown} cannot be cloned"), failure.clone());
    let refusal = match failure {
        Failure::TooMuch { limit, of } => Refusal::usage(format!("{shown} has more than {limit} {of}"))
            .hint("It is not cloned. Fewer commits may do: `--depth 1`."),
        Failure::Rewritten => Refusal::config("`/etc/gitconfig` rewrites the address that this is cloned by")
            .hint("Take the `url.….insteadOf` out of there that fits `http://127.0.0.1`, `git://127.0.0.1` or a path."),
        Failure::NoBranch => {
            let branch = text::code(order.branch.as_deref().unwrap_or_default());
            Refusal::usage(format!("{shown} has no branch {branch}"))
                .hint("Check the branch, or leave `--branch` out for the repository's own default.")
        }
        Failure::NoRepository => Refusal::usage(format!("{shown} is no git repository"))
            .hint("Give the path of one on this host; `git init` begins one."),
        Failure::Elsewhere => elsewhere(&shown),
        Failure::Borrowed => borrowed(&shown),
        Failure::Strange(_) => {
            said(failure).hint("A repository on this host is cloned when it holds files and folders alone.")
        }
        Failure::Connection(_) => {
            let hint = "Check the address, and that this host reaches it; the same command tries it again.";
            return (Outcome::Unreachable, said(failure).hint(hint));
        }
        Failure::Disk(_) => {
            said(failure).hint("Look whether this host's disk has room, and whether musher may read and write there.")
        }
        Failure::Git(_) => said(failure).hint("Check the address; the same command tries it again."),
    };
    (Outcome::Failed, refusal)
}

/// What people are told of a worktree or a submodule.
pub(super) fn elsewhere(shown: &str) -> Refusal {
    Refusal::usage(format!("the repository of {shown} lies elsewhere")).hint("Clone the repository that it belongs to.")
}

/// What people are told of a repository that has its objects from another.
pub(super) fn borrowed(shown: &str) -> Refusal {
    Refusal::usage(format!("{shown} borrows its objects from another repository"))
        .hint("Repack it first: `git repack -ad` there, then remove `objects/info/alternates`.")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::time::{Instant, sleep};

    use super::*;

    const CLONED: Cloned = Cloned { submodules: false, lfs: false };

    /// What comes of it when `told` follow each other after so many seconds, and then nothing.
    async fn check(
        told: Vec<(u64, Told)>,
        silence: Option<Duration>,
    ) -> (Result<Cloned, Unfinished>, Vec<String>, u64) {
        let told = stream::iter(told).then(|(secs, told)| async move {
            sleep(Duration::from_secs(secs)).await;
            Ok(told)
        });
        let (mut shown, began) = (Vec::new(), Instant::now());
        let ended = followed(told.chain(stream::pending()), silence, |detail| shown.push(detail)).await;
        (ended, shown, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_the_same_again_lives_and_who_says_nothing_is_given_up() {
        let objects = |have| Told::Doing(Doing::Objects { have, all: 200 });
        let told = vec![
            (100, Told::Doing(Doing::Waiting)),
            (100, Told::Doing(Doing::Waiting)),
            (100, objects(1)),
            (100, objects(200)),
            (100, objects(200)),
            (100, Told::Doing(Doing::Files { have: 1, all: 0 })),
            (100, Told::Cloned(CLONED)),
        ];
        let (ended, shown, secs) = check(told, Some(CLONE_SILENCE)).await;
        assert_eq!((ended, secs), (Ok(CLONED), 700));
        assert_eq!(shown, ["0 % of 200 objects", "100 % of 200 objects", "100 % of 200 objects", "100 % of 0 files"]);
        let (ended, _, secs) = check(vec![(10, objects(1))], Some(CLONE_SILENCE)).await;
        assert_eq!((ended, secs), (Err(Unfinished::Silent), 10 + CLONE_SILENCE.as_secs()));
        let (ended, _, secs) = check(vec![(1000, objects(1))], None).await;
        assert_eq!((ended, secs), (Err(Unfinished::Endless), CLONE_LONGEST.as_secs()));
        let (ended, ..) = check(vec![(1, Told::Failed(Failure::Borrowed))], None).await;
        assert_eq!(ended, Err(Unfinished::Failed(Failure::Borrowed)));
        let ended = followed(stream::empty(), None, |_| ()).await;
        assert_eq!(ended, Err(Unfinished::Gone));
    }
}
