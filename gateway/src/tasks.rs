//! Tasks that cannot be forgotten: all of them end with the gateway, and after its end began only those start that
//! carry something to its end.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug};

/// Starts tasks, and waits for them at the end. Cheap to clone; all clones speak of the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    deadline: Arc<OnceLock<Instant>>,
}

/// Some tasks had not ended when the deadline passed.
#[derive(Debug, thiserror::Error)]
#[error("{0} tasks had not ended in time")]
pub struct Missed(pub usize);

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` until it ends or the gateway stops. After the end has begun nothing is started any more.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        if self.stopping.is_cancelled() {
            debug!(name, "not started: the gateway is stopping");
            return;
        }
        let stopping = self.stopping.clone();
        let bounded = async move {
            // The cancelled branch drops `work` where it stands: nothing in it may hold a half-made change.
            let _ended = stopping.run_until_cancelled(work).await;
        };
        self.tracker.spawn(bounded.instrument(tracing::info_span!("task", name)));
    }

    /// Runs `work` to its end, also when the gateway stops meanwhile or has begun to: for changes that must not be left
    /// half-made, and for answers on their way. [`Tasks::shutdown`] waits for it as long as it waits for anything.
    pub fn spawn_to_end(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work.instrument(tracing::info_span!("task", name)));
    }

    /// A token that is cancelled when the end begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Until when the end waits for tasks, once it has begun.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Ends all tasks, and waits for them at most `deadline`.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Missed> {
        // Before anybody hears of the end: who does asks how long it takes.
        self.deadline.get_or_init(|| Instant::now() + deadline);
        self.stopping.cancel();
        self.tracker.close();
        match tokio::time::timeout(deadline, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Missed(self.tracker.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn shutdown_ends_what_runs_and_refuses_what_comes_later() {
        let tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        tasks.shutdown(Duration::from_secs(1)).await.expect("a cancellable task ends at once");
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn("late", async move { sender.send(()).expect("the receiver is alive") });
        receiver.await.expect_err("a task that comes late is dropped unrun");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_must_end_is_waited_for_and_counted_when_it_does_not() {
        let tasks = Tasks::new();
        tasks.spawn_to_end("stuck", std::future::pending());
        let missed = tasks.shutdown(Duration::from_secs(1)).await.expect_err("it never ends");
        assert_eq!(missed.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_end_starts_during_the_shutdown_too_and_is_waited_for() {
        let tasks = Tasks::new();
        let (sender, mut receiver) = tokio::sync::oneshot::channel();
        let late = tasks.clone();
        let stopping = tasks.stopping();
        tasks.spawn_to_end("first", async move {
            stopping.cancelled().await;
            late.spawn_to_end("second", async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send(()).expect("the receiver is alive");
            });
        });
        tasks.shutdown(Duration::from_secs(10)).await.expect("both end in time");
        receiver.try_recv().expect("the second was waited for");
    }
}
