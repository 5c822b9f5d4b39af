//! What failures and crashes left of projects: what was half made is undone, what was half deleted is finished (PROJ-7), at the
//! start and from time to time.

use std::time::Duration;

use futures_util::future;
use journal::{Actor, Cause};
use tokio::{sync::oneshot, time::sleep};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Project, Spec, Stage, saga::Sagas};
use crate::refusal::Refusal;

/// The wait until what could not be removed is tried again. It doubles,
const AGAIN: Duration = Duration::from_secs(30);
/// up to this.
const AGAIN_AT_LAST: Duration = Duration::from_mins(10);

impl Sagas {
    /// Removes what is left, again and again for as long as the gateway runs. Tells when it was tried the first time.
    pub async fn tidy(self, tried: oneshot::Sender<()>) {
        self.tidy_once().await;
        // The start may wait no longer.
        let _told = tried.send(());
        again_and_again(|| self.tidy_once()).await;
    }

    /// Whether nothing is left. All are tried at once: one for which the engine takes its time holds no other up.
    async fn tidy_once(&self) -> bool {
        let tries = self.registry.all().into_iter().map(|(id, project)| self.tidy_one(id, project));
        future::join_all(tries).await.into_iter().all(|gone| gone)
    }

    async fn tidy_one(&self, id: Uuid, project: Project) -> bool {
        let Some(tried) = self.take_up(id, &project).await else { return true };
        let name = project.spec.map(|Spec { name, .. }| name);
        match &tried {
            Ok(kept) => info!(%id, name, kept, "what was left of a project is removed"),
            Err(refusal) => warn!(%id, name, %refusal, "what is left of a project could not be removed"),
        }
        tried.is_ok()
    }

    /// None where nothing is left, or somebody else is at work.
    async fn take_up(&self, id: Uuid, project: &Project) -> Option<Result<Option<String>, Refusal>> {
        if !matches!(project.stage, Stage::Making | Stage::Undoing | Stage::Deleting) {
            return None;
        }
        let claim = self.registry.claims().claim(id, Cause::None)?;
        // Whoever had it before may just have done it.
        match self.registry.get(id)?.stage {
            Stage::Making => {
                let origin = (Actor::Gateway, Cause::None);
                Some(self.abandon(&claim, "whoever made it is gone".to_owned(), origin).await)
            }
            Stage::Undoing | Stage::Deleting => Some(self.remove(id).await),
            Stage::Unknown | Stage::Registered | Stage::Removed => None,
        }
    }
}

async fn again_and_again<F: Future<Output = bool>>(mut is_done: impl FnMut() -> F) {
    let mut wait = AGAIN;
    loop {
        sleep(wait).await;
        wait = if is_done().await { AGAIN } else { (wait * 2).min(AGAIN_AT_LAST) };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_ever_more_rarely_until_it_is_done() {
        let (began, mut tried) = (Instant::now(), Vec::new());
        let tries = again_and_again(|| {
            tried.push(began.elapsed().as_secs());
            future::ready(tried.len() > 6)
        });
        timeout(Duration::from_secs(2200), tries).await.expect_err("it goes on");
        assert_eq!(tried, [30, 90, 210, 450, 930, 1530, 2130, 2160, 2190]);
    }
}
