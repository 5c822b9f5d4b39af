//! JRNL-7: what was acknowledged is there after SIGKILL. The child is this test itself.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use journal::{Decoded, Expected, Journal, SystemClock};
use tokio::task::JoinSet;

use crate::fixture::{CounterEvent, append, counter, versions};

/// Set for the child: the file to append to until it is killed.
const CHILD: &str = "JOURNAL_TO_APPEND_TO";

/// Starts the line by which the child says that a version was acknowledged.
const ACKNOWLEDGED: &str = "acknowledged ";

#[test]
fn sigkill_loses_nothing_acknowledged() {
    if let Some(path) = env::var_os(CHILD) {
        return append_for_ever(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut before = 0;
    for kill_after in [1, 2, 17, 60, 150, 300] {
        let acknowledged = killed_after(kill_after, &path);
        assert!(acknowledged.len() >= kill_after);
        before = check(&path, before, &acknowledged);
    }
}

/// Several tasks at once, so that the kill finds groups of them under way.
fn append_for_ever(path: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let journal = Journal::open(path, Arc::new(SystemClock)).unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..16 {
            let journal = journal.clone();
            tasks.spawn(async move {
                for n in 0_u64.. {
                    let label = format!("{}-{task}-{n}", std::process::id());
                    let event = CounterEvent::Labelled(label.clone());
                    let asked = append(&counter("killed"), Expected::Any, &[event]);
                    let version = journal.append(asked).await.unwrap().last_version;
                    let line = format!("{ACKNOWLEDGED}{version} {label}\n");
                    io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
}

/// Ends the child also when the parent fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a child had acknowledged when it was killed: versions and labels.
fn killed_after(lines: usize, path: &Path) -> Vec<(u64, String)> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "killing::sigkill_loses_nothing_acknowledged", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut acknowledged = stdout.lines().map(Result::unwrap).filter_map(|line| {
        let (version, label) = line.strip_prefix(ACKNOWLEDGED)?.split_once(' ')?;
        Some((version.parse().unwrap(), label.to_owned()))
    });
    let mut seen: Vec<_> = acknowledged.by_ref().take(lines).collect();
    drop(child);
    // What it could still say before it was dead counts as well.
    seen.extend(acknowledged);
    seen
}

/// All that was acknowledged is there, after all that was there before, and the versions have no
/// gap. Returns how many there are now.
fn check(path: &Path, before: u64, acknowledged: &[(u64, String)]) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::open(path, Arc::new(SystemClock)).unwrap();
        let stored = journal.read(&counter("killed"), 0).await.unwrap();
        let now = stored.len() as u64;
        assert_eq!(versions(&stored), (1..=now).collect::<Vec<_>>());
        for (version, label) in acknowledged {
            assert!(*version > before, "version {version} was given out twice");
            let event = &stored[usize::try_from(*version).unwrap() - 1];
            let expected = Decoded::Known(CounterEvent::Labelled(label.clone()));
            assert_eq!(event.decode().unwrap(), expected);
        }
        now
    })
}
