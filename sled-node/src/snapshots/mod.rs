//! What a turn did to the project's files, and back (SLED-9): before and after each turn the tree is recorded as a commit under
//! `refs/musher/`, so that `diff` can show what the last turn changed and `undo` can put it back, and forth again.
//!
//! It must not fail a turn, nor hold one up longer than [`TURN_LIMIT`] on each side; and it writes neither index nor branches,
//! HEAD, reflogs or stash of the repository.

mod locks;
mod plumbing;
mod restore;
mod submodules;
mod tree;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use link::requests::{Diff, DiffAnswer, HeadMoved, NoRecord, PutBack, TurnOnRecord, UndoAnswer};
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use self::plumbing::{Alone, Call, Deadline, Fault, Repository};
use self::restore::Plan;
use self::submodules::Submodules;
use self::tree::Id;
use self::turns::{Changes, Snapshot, Turn};
use crate::text::{error_line, one_line};
use crate::workspace::Workspace;

/// How long recording may hold up a turn's beginning, and as long its end.
pub const TURN_LIMIT: Duration = Duration::from_secs(5);

/// How long recording may hold up the end of a turn that a sled ends because it ends itself.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// From when on it is worth a line in the log how long recording took.
const SLOW: Duration = Duration::from_secs(1);

/// How long noting that recording was given up may take on top.
const NOTE_LIMIT: Duration = Duration::from_secs(1);

/// How long `diff` may look at the tree, and `undo` work on it: as long may a turn wait that begins meanwhile.
const DIFF_LIMIT: Duration = Duration::from_secs(20);
const UNDO_LIMIT: Duration = Duration::from_mins(1);

/// How much of a difference is told, in bytes.
const DIFF_BYTES: usize = 256 * 1024;

/// How many paths are named.
const NAMES: usize = 50;

/// Longest name that is told, in characters.
const NAME_CHARS: usize = 200;

/// The records of a project's tree. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Snapshots {
    workspace: Workspace,
    one_at_a_time: Arc<Mutex<()>>,
}

/// The records while nobody else works with them: what is waited for before a turn's agent starts.
pub struct Held<'a> {
    workspace: &'a Workspace,
    alone: Alone,
}

impl Snapshots {
    /// The records in the repository of that workspace.
    pub fn new(workspace: Workspace) -> Self {
        Self { workspace, one_at_a_time: Arc::default() }
    }

    /// Waits until nobody else works with them, and what was begun and given up is over.
    pub async fn hold(&self) -> Held<'_> {
        let alone = Arc::new(self.one_at_a_time.clone().lock_owned().await);
        Held { workspace: &self.workspace, alone }
    }
}

impl Held<'_> {
    /// Records the tree before a turn. What cannot be is noted, for `diff` and `undo` to say.
    pub async fn before(&self, turn: Uuid) {
        self.recorded(turn, self.try_before(turn)).await;
    }

    /// Records the tree after a turn whose processes are dead, unless nothing is on record of its beginning.
    pub async fn after(&self, turn: Uuid, limit: Duration) {
        self.recorded(turn, self.try_after(turn, limit)).await;
    }

    /// Records the tree after a turn that a sled before this one did not live to see the end of. No turn may run.
    pub async fn settle(&self) {
        let settled = async {
            let Some(repository) = self.open(TURN_LIMIT).await? else { return Ok(()) };
            repository.settle().await.map(drop)
        };
        if let Err(error) = settled.await {
            let error: Fault = error;
            tracing::warn!(%error, "what the last turn changed is not on record yet");
        }
    }

    /// What the last turn that changed anything changed, all of it or what these paths are about.
    ///
    /// While a turn `runs` it is the one before.
    pub async fn diff(&self, paths: Vec<String>, runs: bool) -> Result<DiffAnswer, String> {
        self.try_diff(paths, runs).await.map_err(|error| error_line(&error))
    }

    /// Puts back what the last turn changed, or what `undo` did to it. No turn may run.
    pub async fn undo(&self) -> Result<UndoAnswer, String> {
        self.try_undo().await.map_err(|error| error_line(&error))
    }

    async fn open(&self, limit: Duration) -> Result<Option<Repository>, Fault> {
        let Workspace { directory, environment, .. } = self.workspace;
        Repository::open(directory, environment, Deadline::within(limit), self.alone.clone()).await
    }

    /// Notes how recording went.
    async fn recorded(&self, turn: Uuid, recording: impl Future<Output = Result<(), Fault>>) {
        let began = Instant::now();
        match recording.await {
            Ok(()) if began.elapsed() < SLOW => {}
            Ok(()) => tracing::info!(%turn, ms = began.elapsed().as_millis(), "recording the files took long"),
            Err(fault) => self.give_up(turn, &fault).await,
        }
    }

    async fn try_before(&self, turn: Uuid) -> Result<(), Fault> {
        let Some(repository) = self.open(TURN_LIMIT).await? else { return Ok(()) };
        let mut turns = repository.turns().await?;
        if let Some(last) = turns.last() {
            let began = last.before.as_ref().is_some_and(|before| before.turn == turn);
            if began && last.open().is_some() {
                return Ok(());
            }
            // A further attempt of it. What somebody has changed since the one before, or put back, is none of the turn's: then it is
            // recorded like a turn of its own.
            if began
                && let (Some(before), Some(after)) = (&last.before, &last.after)
                && repository.tree_after(last, before).await? == after.tree
            {
                let mut changes = Changes::default();
                changes.unset(last, "after");
                if last.undone {
                    changes.unset(last, "undone");
                }
                return repository.change(changes).await;
            }
            if last.open().is_some() {
                turns = repository.settle().await?;
            }
        }
        let (tree, head) = tokio::try_join!(repository.record(), repository.head())?;
        let uncovered = repository.uncovered().await?;
        let (commit, uncovered) =
            tokio::try_join!(repository.commit(&tree, &head, turn, None), repository.store(&uncovered))?;
        let mut changes = Changes::default();
        let next = Repository::next(&turns);
        changes.set(&next, "uncovered", &uncovered);
        changes.set(&next, "before", &commit);
        changes.latest(&commit);
        Repository::prune(&turns, &mut changes);
        repository.change(changes).await
    }

    async fn try_after(&self, turn: Uuid, limit: Duration) -> Result<(), Fault> {
        let Some(repository) = self.open(limit).await? else { return Ok(()) };
        let turns = repository.turns().await?;
        match turns.last() {
            Some(last) if last.open().is_some_and(|before| before.turn == turn) => repository.close(last).await,
            _ => Ok(()),
        }
    }

    /// Notes that a turn is not on record, so that nobody takes the one before it for it.
    async fn give_up(&self, turn: Uuid, fault: &Fault) {
        tracing::warn!(%turn, error = %fault, "the tree is not recorded");
        let noted = async {
            let Some(repository) = self.open(NOTE_LIMIT).await? else { return Ok(()) };
            let turns = repository.turns().await?;
            let reason = repository.store(error_line(fault).as_bytes()).await?;
            let next = Repository::next(&turns);
            let last = turns.last().filter(|last| last.open().is_some_and(|before| before.turn == turn));
            let mut changes = Changes::default();
            changes.set(last.unwrap_or(&next), "given-up", &reason);
            Repository::prune(&turns, &mut changes);
            repository.change(changes).await
        };
        if let Err(error) = noted.await {
            tracing::warn!(%turn, %error, "nor can it be noted that it is not");
        }
    }

    async fn try_diff(&self, paths: Vec<String>, runs: bool) -> Result<DiffAnswer, Fault> {
        let Some(repository) = self.open(DIFF_LIMIT).await? else {
            return Ok(DiffAnswer::None(NoRecord::NoRepository));
        };
        let mut turns = if runs { repository.turns().await? } else { repository.settle().await? };
        if runs && turns.last().is_some_and(|last| last.open().is_some()) {
            turns.pop();
        }
        let (turn, before, after) = match repository.last(&turns).await? {
            Ok(found) => found,
            Err(none) => return Ok(DiffAnswer::None(none)),
        };
        let args = ["-r", "-M", "--patch", "--stat=80", "--summary", "--no-ext-diff", "--no-textconv", "--no-color"];
        let call = Call::new("diff-tree").args(args).args(["--ignore-submodules=none", "--submodule=short"]);
        let call = call.args([&before.tree, &after.tree]).args(["--"]).args(paths).first(DIFF_BYTES);
        let said = repository.run(call).await?;
        if !said.more && said.code != Some(0) {
            return Err(Fault::Git { command: "diff-tree", said: said.complaint });
        }
        let output = String::from_utf8_lossy(&said.output).into_owned();
        Ok(DiffAnswer::Changes(Diff { turn: on_record(turn, after), output, truncated: said.more }))
    }

    async fn try_undo(&self) -> Result<UndoAnswer, Fault> {
        let Some(repository) = self.open(UNDO_LIMIT).await? else {
            return Ok(UndoAnswer::None(NoRecord::NoRepository));
        };
        let turns = repository.settle().await?;
        let (turn, before, after) = match repository.last(&turns).await? {
            Ok(found) => found,
            Err(none) => return Ok(UndoAnswer::None(none)),
        };
        let (from, to) = if turn.undone { (before, after) } else { (after, before) };
        let mut plan = repository.plan(&from.tree, &to.tree).await?;
        let submodules = Submodules { workspace: self.workspace, repository: &repository };
        for pointer in &plan.pointers {
            if !submodules.can_move(pointer).await? {
                plan.conflicts.insert(pointer.path.clone());
            }
        }
        if !plan.conflicts.is_empty() {
            let (paths, more) = names(plan.conflicts.iter());
            return Ok(UndoAnswer::ChangedSince { paths, more });
        }
        repository.make_ready(&plan).await?;
        let (paths, more) = names(plan.paths.iter());
        let Plan { pointers, left, .. } = &plan;
        let (pointers, (left, _)) = (pointers.clone(), names(left.iter()));
        let changed = repository.carry_out(plan).await?;
        if !changed.is_empty() {
            let (paths, more) = names(changed.iter());
            return Ok(UndoAnswer::ChangedSince { paths, more });
        }
        let mut missing = Vec::new();
        for pointer in &pointers {
            if !submodules.move_to(pointer).await? {
                missing.push(&pointer.path);
            }
        }
        let mut changes = Changes::default();
        if turn.undone {
            changes.unset(turn, "undone");
        } else {
            changes.set(turn, "undone", &after.commit);
        }
        repository.change(changes).await?;
        let mut shown = on_record(turn, after);
        shown.undone = !turn.undone;
        let head_moved =
            (before.head != after.head).then(|| HeadMoved { before: before.head.clone(), after: after.head.clone() });
        let (missing, _) = names(missing.into_iter());
        Ok(UndoAnswer::PutBack(PutBack { turn: shown, paths, more, head_moved, left, missing }))
    }
}

impl Repository {
    /// Closes a turn that is open, which no longer runs; gives the turns as they are then.
    async fn settle(&self) -> Result<Vec<Turn>, Fault> {
        let turns = self.turns().await?;
        match turns.last() {
            Some(last) if last.open().is_some() => {
                self.close(last).await?;
                self.turns().await
            }
            _ => Ok(turns),
        }
    }

    /// Records the tree after an open turn. One that changed nothing goes from the record, so that `undo` is about the one before it.
    async fn close(&self, turn: &Turn) -> Result<(), Fault> {
        let Some(before) = turn.open() else { return Ok(()) };
        let tree = self.tree_after(turn, before).await?;
        let mut changes = Changes::default();
        if tree == before.tree {
            changes.drop(turn);
        } else {
            let head = self.head().await?;
            let commit = self.commit(&tree, &head, before.turn, Some(before)).await?;
            changes.set(turn, "after", &commit);
            changes.latest(&commit);
        }
        self.change(changes).await
    }

    /// Records the tree as it is after a turn: without what was there before it and was not recorded.
    async fn tree_after(&self, turn: &Turn, before: &Snapshot) -> Result<Id, Fault> {
        let tree = self.record_again(&before.tree).await?;
        if tree == before.tree {
            return Ok(tree);
        }
        let added = ["-r", "-z", "--name-only", "--diff-filter=A", "--no-renames", &before.tree, &tree];
        let added = self.git(Call::new("diff-tree").args(added)).await?;
        let uncovered = self.uncovered_before(turn).await?;
        let was_there = plumbing::entries(&added).filter(|file| uncovered.covers(file));
        let was_there: Vec<_> = was_there.map(<[u8]>::to_vec).collect();
        if was_there.is_empty() { Ok(tree) } else { self.without(&was_there).await }
    }

    /// The last turn, with the trees before and after it; or why there is none.
    async fn last<'a>(
        &self,
        turns: &'a [Turn],
    ) -> Result<Result<(&'a Turn, &'a Snapshot, &'a Snapshot), NoRecord>, Fault> {
        let Some(turn) = turns.last() else { return Ok(Err(NoRecord::NoTurn)) };
        Ok(match (turn, &turn.before, &turn.after) {
            (Turn { given_up: Some(reason), .. }, ..) => {
                let reason = self.stored(reason).await?;
                Err(NoRecord::GivenUp { reason: one_line(&String::from_utf8_lossy(&reason), 500) })
            }
            (_, Some(before), Some(after)) => Ok((turn, before, after)),
            // Somebody has taken refs away.
            _ => Err(NoRecord::NoTurn),
        })
    }
}

fn on_record(turn: &Turn, after: &Snapshot) -> TurnOnRecord {
    let ago = Timestamp::now().as_second().saturating_sub(after.time);
    TurnOnRecord { id: after.turn, secs_ago: u64::try_from(ago).unwrap_or_default(), undone: turn.undone }
}

/// The first of these paths, to be shown, and how many more there are.
fn names<'a>(paths: impl ExactSizeIterator<Item = &'a Vec<u8>>) -> (Vec<String>, u64) {
    let more = u64::try_from(paths.len().saturating_sub(NAMES)).unwrap_or(u64::MAX);
    let shown = paths.take(NAMES).map(|path| one_line(&String::from_utf8_lossy(path), NAME_CHARS));
    (shown.collect(), more)
}
