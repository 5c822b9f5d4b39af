//! JRNL-7, JRNL-8: after SIGKILL what was acknowledged is there, and what was erased is not. The
//! child is this test itself.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use journal::{Decoded, Expected, Journal, NewEvent, SystemClock};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::fixture::{CounterEvent, append_raw, counter, marked, marks_on_disk, versions};

/// Set for the child: the file to append to until it is killed.
const CHILD: &str = "JOURNAL_TO_APPEND_TO";

/// Starts the line by which the child says that a version was acknowledged: version, label, text.
const ACKNOWLEDGED: &str = "acknowledged ";

/// Starts the line by which it says that it is about to erase a text.
const ERASING: &str = "erasing ";

/// Starts the line by which it says that a text is erased.
const ERASED: &str = "erased ";

/// What a child has said before it died.
#[derive(Default)]
struct Said {
    acknowledged: Vec<(u64, String, Uuid)>,
    erasing: BTreeSet<Uuid>,
    erased: BTreeSet<Uuid>,
}

impl Said {
    /// Other lines are the test harness's.
    fn take_in(&mut self, line: &str) {
        if let Some(line) = line.strip_prefix(ACKNOWLEDGED) {
            let [version, label, text] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            self.acknowledged.push((version.parse().unwrap(), label.to_owned(), text.parse().unwrap()));
        } else if let Some(text) = line.strip_prefix(ERASING) {
            self.erasing.insert(text.parse().unwrap());
        } else if let Some(text) = line.strip_prefix(ERASED) {
            self.erased.insert(text.parse().unwrap());
        }
    }
}

#[test]
fn sigkill_loses_nothing_acknowledged() {
    if let Some(path) = env::var_os(CHILD) {
        return append_for_ever(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut before = 0;
    let mut all = Said::default();
    for kill_after in [1, 2, 17, 60, 150, 300] {
        let said = killed_after(kill_after, &path);
        assert!(said.acknowledged.len() >= kill_after);
        before = check(&path, before, &said);
        all.acknowledged.extend(said.acknowledged);
        all.erasing.extend(said.erasing);
        all.erased.extend(said.erased);
    }
    assert!(!all.erased.is_empty());
    // Not only the last child's.
    check(&path, 0, &all);
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
                    let event = NewEvent::encode(&CounterEvent::Labelled(label.clone())).unwrap();
                    let text = Uuid::now_v7();
                    let event = event.with_text(text, marked(text, 1 + task));
                    let asked = append_raw(&counter("killed"), Expected::Any, vec![event]);
                    let version = journal.append(asked).await.unwrap().last_version;
                    say(&format!("{ACKNOWLEDGED}{version} {label} {text}"));
                    if n % 3 == 1 {
                        say(&format!("{ERASING}{text}"));
                        assert_eq!(journal.erase(vec![text]).await.unwrap(), 1);
                        say(&format!("{ERASED}{text}"));
                    }
                }
            });
        }
        tasks.join_all().await;
    });
}

fn say(line: &str) {
    io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Ends the child also when the parent fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a child had said when it was killed, after so many appends or a little more.
fn killed_after(appends: usize, path: &Path) -> Said {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "killing::sigkill_loses_nothing_acknowledged", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .map(Killed)
        .unwrap();
    let stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut said = Said::default();
    let mut lines = stdout.lines().map(Result::unwrap);
    for line in lines.by_ref() {
        said.take_in(&line);
        if said.acknowledged.len() >= appends {
            break;
        }
    }
    drop(child);
    // What it could still say before it was dead counts as well.
    lines.for_each(|line| said.take_in(&line));
    said
}

/// All that was acknowledged is there, after all that was there before, and the versions have no
/// gap; the texts too, but for those that were erased, of which there is no trace. Returns how many
/// events there are now.
fn check(path: &Path, before: u64, said: &Said) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::open(path, Arc::new(SystemClock)).unwrap();
        let stored = journal.read(&counter("killed"), 0).await.unwrap();
        let now = stored.len() as u64;
        assert_eq!(versions(&stored), (1..=now).collect::<Vec<_>>());
        let texts = journal.texts(said.acknowledged.iter().map(|(.., text)| *text).collect()).await.unwrap();
        for (version, label, text) in &said.acknowledged {
            assert!(*version > before, "version {version} was given out twice");
            let event = &stored[usize::try_from(*version).unwrap() - 1];
            let expected = Decoded::Known(CounterEvent::Labelled(label.clone()));
            assert_eq!(event.decode().unwrap(), expected);
            assert!(texts.contains_key(text) || said.erasing.contains(text), "text {text} is lost");
            assert!(!(texts.contains_key(text) && said.erased.contains(text)), "text {text} is back");
        }
        let traces = marks_on_disk(path);
        assert!(traces.is_disjoint(&said.erased));
        let kept = texts.keys().filter(|text| !traces.contains(text)).count();
        assert_eq!(kept, 0, "every text that is there is seen where traces are looked for");
        assert!(Journal::open_read_only(path).unwrap().verify().unwrap().problems.is_empty());
        now
    })
}
