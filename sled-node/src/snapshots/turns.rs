//! What is on record of turns, as refs: `refs/musher/turns/<number>/…`, by the order in which they began.
//!
//! - `before`, `after` commits of the tree; that of before stands on the commit that was checked out, that of after on both
//! - `uncovered` what was there before and is not in the commit, a list
//! - `undone` stands while the turn is put back
//! - `given-up` why there is no commit, a text
//!
//! `refs/musher/latest` keeps what was recorded last from being thrown away as garbage.

use link::requests::Head;
use uuid::Uuid;

use super::plumbing::{Call, Fault, Index, Repository};
use super::tree::{Id, Uncovered};

/// Where they are.
const REFS: &str = "refs/musher/turns/";

/// What was recorded last.
const LATEST: &str = "refs/musher/latest";

/// How many turns stay on record.
const KEPT: usize = 20;

/// What is told of each ref, a NUL after each and a line feed after all.
const FORMAT: &str =
    "%(refname)%00%(objectname)%00%(tree)%00%(committerdate:unix)%00%(contents:subject)%00%(contents:body)%00";

/// How many things [`FORMAT`] tells.
const FIELDS: usize = 6;

/// The tree at one time.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The turn before or after which it was.
    pub turn: Uuid,
    /// The commit that keeps it.
    pub commit: Id,
    /// The tree.
    pub tree: Id,
    /// What was checked out.
    pub head: Head,
    /// When it was recorded, in seconds since 1970.
    pub time: i64,
}

/// A turn on record.
#[derive(Debug, Default)]
pub struct Turn {
    number: u32,
    /// The tree before it.
    pub before: Option<Snapshot>,
    /// The tree after it; there is none while it runs.
    pub after: Option<Snapshot>,
    /// Whether it is put back.
    pub undone: bool,
    uncovered: bool,
    /// The text that says why it was not recorded.
    pub given_up: Option<Id>,
}

impl Turn {
    fn name(&self, what: &str) -> String {
        format!("{REFS}{:08}/{what}", self.number)
    }

    /// The tree before it, when it is on record that it began and not that it ended.
    pub fn open(&self) -> Option<&Snapshot> {
        let open = self.after.is_none() && self.given_up.is_none() && self.uncovered;
        self.before.as_ref().filter(|_| open)
    }
}

/// Changes of refs, made together.
#[derive(Debug, Default)]
pub struct Changes {
    orders: Vec<String>,
}

impl Changes {
    /// `what` of a turn is that object from now on.
    pub fn set(&mut self, turn: &Turn, what: &str, object: &str) {
        self.orders.push(format!("update {} {object}\n", turn.name(what)));
    }

    /// There is no `what` of the turn from now on.
    pub fn unset(&mut self, turn: &Turn, what: &str) {
        self.orders.push(format!("delete {}\n", turn.name(what)));
    }

    /// Nothing is on record of the turn from now on.
    pub fn drop(&mut self, turn: &Turn) {
        let there = [
            ("before", turn.before.is_some()),
            ("after", turn.after.is_some()),
            ("uncovered", turn.uncovered),
            ("undone", turn.undone),
            ("given-up", turn.given_up.is_some()),
        ];
        for (what, _) in there.into_iter().filter(|(_, there)| *there) {
            self.unset(turn, what);
        }
    }

    /// What was recorded last.
    pub fn latest(&mut self, object: &str) {
        self.orders.push(format!("update {LATEST} {object}\n"));
    }
}

impl Repository {
    /// The turns on record, the oldest first.
    pub async fn turns(&self) -> Result<Vec<Turn>, Fault> {
        let args = ["--sort=refname", &format!("--format={FORMAT}"), REFS];
        let listed = self.git(Call::new("for-each-ref").args(args).index(Index::Theirs)).await?;
        let listed = String::from_utf8_lossy(&listed);
        let fields: Vec<_> = listed.split('\0').collect();
        let mut turns: Vec<Turn> = Vec::new();
        for fields in fields.chunks_exact(FIELDS) {
            let [name, object, tree, time, subject, body] = fields else { continue };
            let Some((number, what)) = name.trim_start().strip_prefix(REFS).and_then(|name| name.split_once('/'))
            else {
                continue;
            };
            let Ok(number) = number.parse() else { continue };
            if turns.last().is_none_or(|turn| turn.number != number) {
                turns.push(Turn { number, ..Turn::default() });
            }
            let Some(turn) = turns.last_mut() else { continue };
            let snapshot = || {
                let turn = subject.rsplit(' ').next().and_then(|id| id.parse().ok());
                let time = time.parse().ok();
                let (turn, time) = turn.zip(time).ok_or(Fault::Unreadable("for-each-ref"))?;
                let line = |name| body.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let head = Head { branch: line("branch "), commit: line("commit ") };
                let (commit, tree) = ((*object).to_owned(), (*tree).to_owned());
                Ok::<_, Fault>(Some(Snapshot { turn, commit, tree, head, time }))
            };
            match what {
                "before" => turn.before = snapshot()?,
                "after" => turn.after = snapshot()?,
                "uncovered" => turn.uncovered = true,
                "undone" => turn.undone = true,
                "given-up" => turn.given_up = Some((*object).to_owned()),
                _ => {}
            }
        }
        Ok(turns)
    }

    /// The turn that begins after these, of which nothing is on record yet.
    pub fn next(turns: &[Turn]) -> Turn {
        Turn { number: turns.last().map_or(0, |turn| turn.number).wrapping_add(1), ..Turn::default() }
    }

    /// Changes refs.
    pub async fn change(&self, changes: Changes) -> Result<(), Fault> {
        let call = Call::new("update-ref").args(["--no-deref", "--stdin"]).index(Index::Theirs);
        self.git(call.input(changes.orders.concat().as_bytes())).await.map(drop)
    }

    /// Forgets the oldest turns, so that as many stay as are kept.
    pub fn prune(turns: &[Turn], changes: &mut Changes) {
        let surplus = turns.len().saturating_sub(KEPT);
        turns.iter().take(surplus).for_each(|turn| changes.drop(turn));
    }

    /// What is checked out.
    pub async fn head(&self) -> Result<Head, Fault> {
        let branch = Call::new("symbolic-ref").args(["--quiet", "--short", "HEAD"]).index(Index::Theirs);
        let commit = Call::new("rev-parse").args(["--quiet", "--verify", "HEAD^{commit}"]).index(Index::Theirs);
        let (branch, commit) = tokio::try_join!(self.ask(branch), self.ask(commit))?;
        Ok(Head { branch, commit })
    }

    /// Makes the commit of a tree: before a turn, or after the one that began with `since`.
    pub async fn commit(&self, tree: &str, head: &Head, turn: Uuid, since: Option<&Snapshot>) -> Result<Id, Fault> {
        let subject = format!("{} turn {turn}", if since.is_some() { "after" } else { "before" });
        let lines = [("branch", &head.branch), ("commit", &head.commit)];
        let lines = lines.into_iter().filter_map(|(name, value)| Some(format!("{name} {}\n", value.as_ref()?)));
        let body: String = lines.collect();
        let mut args = vec![tree.to_owned()];
        for parent in since.map(|since| &since.commit).into_iter().chain(&head.commit) {
            args.extend(["-p".to_owned(), parent.clone()]);
        }
        args.extend(["-m".to_owned(), subject]);
        if !body.is_empty() {
            args.extend(["-m".to_owned(), body]);
        }
        let made = self.ask(Call::new("commit-tree").args(args).index(Index::Theirs)).await?;
        made.ok_or(Fault::Unreadable("commit-tree"))
    }

    /// Stores some bytes.
    pub async fn store(&self, bytes: &[u8]) -> Result<Id, Fault> {
        let call = Call::new("hash-object").args(["-w", "--stdin", "--no-filters"]).index(Index::Theirs);
        self.ask(call.input(bytes)).await?.ok_or(Fault::Unreadable("hash-object"))
    }

    /// Bytes that were stored.
    pub async fn stored(&self, object: &str) -> Result<Vec<u8>, Fault> {
        self.git(Call::new("cat-file").args(["blob", object]).index(Index::Theirs)).await
    }

    /// What was not recorded before a turn.
    pub async fn uncovered_before(&self, turn: &Turn) -> Result<Uncovered, Fault> {
        Ok(Uncovered::read(&self.stored(&turn.name("uncovered")).await?))
    }
}
