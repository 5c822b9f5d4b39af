//! Turns and the records of the project's files (SLED-9): an attempt runs when the files before it are recorded, or beside that; `diff` and
//! `undo` go by those records.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use link::requests::{Agent, DiffAnswer, FailureReason, Outcome, Refusal, TurnRequest, UndoAnswer};
use uuid::Uuid;

use super::{Shared, Turns, internal};
use crate::attempt::Wishes;
use crate::record::Recorder;
use crate::running::{self, Verdict};

impl Turns {
    /// What the last turn that has ended and changed files changed (SLED-9).
    pub async fn diff(&self, paths: Vec<String>) -> Result<DiffAnswer, Refusal> {
        let shared = self.shared.clone();
        let held = shared.site.snapshots.hold().await;
        let runs = self.running().await.is_some();
        held.diff(paths, runs).await.map_err(internal)
    }

    /// Puts back what the last turn changed, or takes that back; refused while one runs.
    pub async fn undo(&self) -> Result<UndoAnswer, Refusal> {
        let this = self.clone();
        // A task of its own: who asked may go away at any moment, and what was begun is brought to its end.
        let undone = self.shared.tasks.spawn(async move {
            this.shared.idle().await?;
            // A turn that begins from here on waits for this, before its agent starts.
            let held = this.shared.site.snapshots.hold().await;
            this.shared.idle().await?;
            held.undo().await.map_err(internal)
        });
        undone.await.map_err(internal)?
    }

    /// Completes what is on record of a turn that an earlier sled did not see the end of.
    pub async fn settle_snapshots(&self) {
        let held = self.shared.site.snapshots.hold().await;
        if self.running().await.is_none() {
            held.settle().await;
        }
    }
}

impl Shared {
    /// Runs an attempt whose beginning is on record before its agent changes anything.
    pub(super) async fn run_recorded(
        &self,
        id: Uuid,
        request: &TurnRequest,
        recorder: &mut Recorder,
        wishes: &mut Wishes,
    ) -> Verdict {
        match &request.agent {
            // It changes no files.
            Agent::Echo { .. } => running::run(request, &self.site, recorder, wishes).await,
            Agent::Claude { .. } => Box::pin(self.run_beside_record(id, request, recorder, wishes)).await,
            Agent::Command { .. } => match self.record_before(id, wishes).await {
                Some(outcome) => Verdict { outcome, usage: None },
                None => running::run(request, &self.site, recorder, wishes).await,
            },
        }
    }

    /// Records the files before a turn, unless it is to end meanwhile: then how it ended.
    async fn record_before(&self, id: Uuid, wishes: &mut Wishes) -> Option<Outcome> {
        let recording = async { self.site.snapshots.hold().await.before(id).await };
        tokio::select! {
            () = recording => None,
            Some(stop) = wishes.stops.recv() => Some(stop.reason.without_agent()),
        }
    }

    /// Runs an attempt whose agent does nothing before the model has answered: its start and the recording of the files go on
    /// side by side, and its first request waits for the record.
    async fn run_beside_record(
        &self,
        id: Uuid,
        request: &TurnRequest,
        recorder: &mut Recorder,
        wishes: &mut Wishes,
    ) -> Verdict {
        let closed = self.model_gate.clone().write_owned().await;
        let recording = async {
            self.site.snapshots.hold().await.before(id).await;
            drop(closed);
        };
        let running = running::run(request, &self.site, recorder, wishes);
        tokio::pin!(recording, running);
        tokio::select! {
            verdict = &mut running => verdict,
            () = &mut recording => running.await,
        }
    }
}

/// How an attempt went, and be it that a fault of our own has cut it off: it must have an end that can be stored.
pub(super) async fn survived(running: impl Future<Output = Verdict>) -> Verdict {
    AssertUnwindSafe(running).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a turn is ended: the sled has a fault, which is told above");
        let reason = FailureReason::Protocol { error: "the sled itself failed at it; its log says where".to_owned() };
        Verdict { outcome: Outcome::Failed { reason, last_lines: Vec::new() }, usage: None }
    })
}
