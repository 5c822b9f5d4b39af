//! Putting back what a turn changed, and nothing else: first it is found out whether anybody changed the same since, then files are
//! made ready beside the tree, and then each is moved to its place at once, if what stands there is still what was looked at. Whoever is
//! stopped in between can do it again.
//!
//! A repository inside the tree is never deleted; a submodule is moved to its commit, unless it has changes of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::plumbing::{Call, Deadline, Fault, Index, Repository, path, remove};
use crate::text::one_line;

/// The mode of a submodule's pointer.
const POINTER: &[u8] = b"160000";

/// A path in a tree: its mode and object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: Vec<u8>,
    object: Vec<u8>,
}

impl Entry {
    fn is_pointer(&self) -> bool {
        self.mode == POINTER
    }
}

/// What a path was and is; nothing where it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    from: Option<Entry>,
    to: Option<Entry>,
}

/// Steps by path.
pub type Steps = BTreeMap<Vec<u8>, Step>;

/// What tells a file from another, and from itself after a change; of a folder it says nothing.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    same: [u64; 4],
    times: [i64; 2],
    /// When it was changed in any way, also by another of its names being removed.
    changed: [i64; 2],
    names: u64,
}

impl Stamp {
    fn of(place: &Path) -> Option<Self> {
        let found = place.symlink_metadata().ok().filter(|found| !found.is_dir())?;
        Some(Self {
            same: [found.dev(), found.ino(), found.size(), found.mode().into()],
            times: [found.mtime(), found.mtime_nsec()],
            changed: [found.ctime(), found.ctime_nsec()],
            names: found.nlink(),
        })
    }
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        // Where a file has several names, putting one of them back changes the others' time.
        let unchanged = self.changed == other.changed || self.names.max(other.names) > 1;
        self.same == other.same && self.times == other.times && unchanged
    }
}

/// What stood at some paths, before it was found out whether that is what is recorded.
#[derive(Debug, Default)]
pub struct Seen {
    stamps: HashMap<Vec<u8>, Option<Stamp>>,
}

impl Seen {
    fn of<'a>(root: &Path, files: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        Self { stamps: files.map(|file| (file.clone(), Stamp::of(&root.join(path(file))))).collect() }
    }

    /// Whether a file is still what it was, or is not there still.
    fn is_still(&self, file: &[u8], place: &Path) -> bool {
        self.stamps.get(file).is_some_and(|seen| *seen == Stamp::of(place))
    }
}

/// A submodule that is to be at another commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// Where it is.
    pub path: Vec<u8>,
    /// The commit.
    pub commit: String,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Paths that were changed since by somebody else, or are in the way; when there are any, nothing is to be done.
    pub conflicts: BTreeSet<Vec<u8>>,
    /// All paths that the turn changed.
    pub paths: Vec<Vec<u8>>,
    /// Submodules to be moved.
    pub pointers: Vec<Pointer>,
    /// Repositories that came into the tree and stay.
    pub left: Vec<Vec<u8>>,
    deletes: BTreeSet<Vec<u8>>,
    writes: BTreeMap<Vec<u8>, Entry>,
    seen: Seen,
}

impl Repository {
    /// Plans the way from one tree to another. What the work tree is now is recorded for that.
    pub async fn plan(&self, from: &str, to: &str) -> Result<Plan, Fault> {
        let steps = self.steps(Call::new("diff-tree"), from, to).await?;
        let (root, deadline) = (self.work_tree.clone(), self.deadline());
        // What is changed from here on is told by either the record or the stamps.
        let looked = self.blocking(move || Ok((Seen::of(&root, steps.keys()), steps)));
        let (seen, steps) = looked.await?;
        let now = self.record_again(from).await?;
        let since = self.steps(Call::new("diff-tree"), from, &now).await?;
        let root = self.work_tree.clone();
        let planned = self.blocking(move || Plan::of(&steps, &since, &root, deadline)).await?;
        Ok(Plan { seen, ..planned })
    }

    /// Whether files that are not in a submodule's commit stand where those of another commit are to be.
    pub async fn is_in_the_way_of(&self, to: &Pointer) -> Result<bool, Fault> {
        let place = path(&to.path);
        let steps = self.steps(Call::new("diff-tree").inside(place), "HEAD", &to.commit).await?;
        let (root, deadline) = (self.work_tree.join(place), self.deadline());
        self.blocking(move || Ok(!Plan::of(&steps, &Steps::new(), &root, deadline)?.conflicts.is_empty())).await
    }

    /// How two trees differ, by that call.
    async fn steps(&self, call: Call<'_>, from: &str, to: &str) -> Result<Steps, Fault> {
        let args = ["-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--ignore-submodules=none", from, to];
        let listed = self.git(call.args(args)).await?;
        let mut steps = Steps::new();
        let mut fields = listed.split(|byte| *byte == 0);
        while let Some(head) = fields.next().filter(|head| !head.is_empty()) {
            let file = fields.next().ok_or(Fault::Unreadable("diff-tree"))?;
            let words: Vec<_> = head.split(|byte| *byte == b' ').collect();
            let [old_mode, mode, old_object, object, _] = words[..] else { return Err(Fault::Unreadable("diff-tree")) };
            let entry = |mode: &[u8], object: &[u8]| {
                let there = mode.iter().any(|digit| *digit != b'0');
                there.then(|| Entry { mode: mode.to_vec(), object: object.to_vec() })
            };
            let old_mode = old_mode.strip_prefix(b":").unwrap_or(old_mode);
            steps.insert(file.to_vec(), Step { from: entry(old_mode, old_object), to: entry(mode, object) });
        }
        Ok(steps)
    }

    /// Makes the files ready that are to be written, in a folder beside the tree.
    pub async fn make_ready(&self, plan: &Plan) -> Result<(), Fault> {
        let ready = self.folder.join("ready");
        let folder = ready.clone();
        let made = self.blocking(move || {
            clear(&folder)?;
            fs::create_dir(&folder).map_err(|error| Fault::of(&folder, error))
        });
        made.await?;
        if plan.writes.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for (file, Entry { mode, object }) in &plan.writes {
            entries.extend([mode, b" ".as_slice(), object, b"\t", file, b"\0"].concat());
        }
        let call = Call::new("update-index").args(["-z", "--index-info"]).index(Index::Goal);
        self.git(call.input(&entries)).await?;
        let mut prefix = std::ffi::OsString::from("--prefix=");
        prefix.push(&ready);
        prefix.push("/");
        let args = ["--all".into(), "--force".into(), prefix];
        self.git(Call::new("checkout-index").args(args).index(Index::Goal)).await.map(drop)
    }

    /// Takes out of the tree what is not to be there, and moves to their places the files that were made ready. What was changed since the
    /// plan was made is left as it is: if it is found before anything is done, it is given back, and nothing is done.
    pub async fn carry_out(&self, plan: Plan) -> Result<BTreeSet<Vec<u8>>, Fault> {
        let (root, folder, deadline) = (self.work_tree.clone(), self.folder.clone(), self.deadline());
        self.blocking(move || {
            let ready = folder.join("ready");
            let changed = plan.changed(&root);
            if changed.is_empty() {
                plan.carry_out(&root, &ready, deadline)?;
            }
            clear(&ready)?;
            remove(&folder.join("goal"))?;
            Ok(changed)
        })
        .await
    }
}

impl Plan {
    fn of(steps: &Steps, since: &Steps, root: &Path, deadline: Deadline) -> Result<Self, Fault> {
        let mut plan = Self::default();
        for (file, step) in steps {
            let now = since.get(file).map_or(&step.from, |since| &since.to);
            plan.paths.push(file.clone());
            if *now == step.to {
                continue;
            }
            if *now != step.from {
                plan.conflicts.insert(file.clone());
                continue;
            }
            let pointer = |entry: &Entry| {
                let commit = String::from_utf8_lossy(&entry.object).into_owned();
                Pointer { path: file.clone(), commit }
            };
            match (now, &step.to) {
                (Some(now), None) if now.is_pointer() => plan.left.push(file.clone()),
                // A repository stands where a file is to be.
                (Some(now), Some(to)) if now.is_pointer() && !to.is_pointer() => {
                    plan.conflicts.insert(file.clone());
                }
                (Some(now), Some(to)) if to.is_pointer() && !now.is_pointer() => {
                    plan.deletes.insert(file.clone());
                    plan.pointers.push(pointer(to));
                }
                (_, Some(to)) if to.is_pointer() => plan.pointers.push(pointer(to)),
                (_, Some(to)) => {
                    plan.writes.insert(file.clone(), to.clone());
                }
                (_, None) => {
                    plan.deletes.insert(file.clone());
                }
            }
        }
        // Git writes into the folder of a submodule that is not there any more.
        let gone = plan.pointers.iter().map(|pointer| &pointer.path);
        let gone = gone.filter(|place| root.join(path(place)).join(".git").symlink_metadata().is_err());
        let written: Vec<_> = plan.writes.keys().chain(gone).cloned().collect();
        for file in written {
            deadline.left()?;
            plan.look_for_what_is_in_the_way(&file, steps, root);
        }
        Ok(plan)
    }

    /// Files that are to be removed or replaced and are not what they were when they were looked at.
    fn changed(&self, root: &Path) -> BTreeSet<Vec<u8>> {
        let files = self.deletes.iter().chain(self.writes.keys());
        files.filter(|file| !self.seen.is_still(file, &root.join(path(file)))).cloned().collect()
    }

    fn carry_out(&self, root: &Path, ready: &Path, deadline: Deadline) -> Result<(), Fault> {
        let unchanged = |file: &[u8], place: &Path| {
            deadline.left()?;
            let meanwhile = || Fault::ChangedMeanwhile { path: one_line(&String::from_utf8_lossy(file), 200) };
            self.seen.is_still(file, place).then_some(()).ok_or_else(meanwhile)
        };
        // Deepest first, and whatever stands where a folder is to be before what goes into the folder.
        for file in self.deletes.iter().rev() {
            let place = root.join(path(file));
            unchanged(file, &place)?;
            remove(&place)?;
            remove_empty(root, file);
        }
        for file in self.writes.keys() {
            let (from, to) = (ready.join(path(file)), root.join(path(file)));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|error| Fault::of(parent, error))?;
            }
            if to.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                // The planner has seen that nothing is in it; if something is by now, it stays.
                remove_folders(&to)?;
            }
            unchanged(file, &to)?;
            fs::rename(&from, &to).map_err(|error| Fault::of(&to, error))?;
        }
        Ok(())
    }

    /// What is not recorded, such as an ignored file, is not overwritten.
    fn look_for_what_is_in_the_way(&mut self, file: &[u8], steps: &Steps, root: &Path) {
        for (at, _) in file.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let folder = &file[..at];
            let found = root.join(path(folder)).symlink_metadata();
            if found.is_ok_and(|found| !found.is_dir()) {
                if !self.deletes.contains(folder) {
                    self.conflicts.insert(folder.to_vec());
                }
                return;
            }
        }
        let place = root.join(path(file));
        let Ok(found) = place.symlink_metadata() else { return };
        if found.is_dir() {
            for inside in files_below(&place, file) {
                if !self.deletes.contains(&inside) {
                    self.conflicts.insert(inside);
                }
            }
        } else if !self.deletes.contains(file)
            && steps.get(file).is_some_and(|step| step.from.as_ref().is_none_or(Entry::is_pointer))
        {
            self.conflicts.insert(file.to_vec());
        }
    }
}

/// All in a folder that is no folder, by their paths from the root; and folders that cannot be read.
pub fn files_below(place: &Path, name: &[u8]) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(place) else { return vec![name.to_vec()] };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let name = [name, b"/", std::os::unix::ffi::OsStrExt::as_bytes(entry.file_name().as_os_str())].concat();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path(), &name));
        } else {
            files.push(name);
        }
    }
    files
}

/// Removes the folders above a file that have nothing in them any more.
fn remove_empty(root: &Path, file: &[u8]) {
    let mut folder = path(file).parent();
    while let Some(above) = folder.filter(|above| !above.as_os_str().is_empty()) {
        // One that is not empty stays, and so do those above it.
        if fs::remove_dir(root.join(above)).is_err() {
            return;
        }
        folder = above.parent();
    }
}

/// Removes a folder that has nothing but such folders in it.
fn remove_folders(folder: &Path) -> Result<(), Fault> {
    let entries = fs::read_dir(folder).map_err(|error| Fault::of(folder, error))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(folder).map_err(|error| Fault::of(folder, error))
}

/// Removes a folder of ours with all that is in it.
fn clear(folder: &Path) -> Result<(), Fault> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Fault::of(folder, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_changed_after_it_was_looked_at_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (root, ready) = (folder.path().join("root"), folder.path().join("ready"));
        let deadline = Deadline::within(Duration::from_mins(1));
        let names = ["deleted", "made", "written"];
        for changed in [None, Some("deleted"), Some("made"), Some("written")] {
            for folder in [&root, &ready] {
                clear(folder).unwrap();
                fs::create_dir(folder).unwrap();
            }
            for name in ["deleted", "written"] {
                fs::write(root.join(name), "now").unwrap();
            }
            for name in ["made", "written"] {
                fs::write(ready.join(name), "then").unwrap();
            }
            // A second name of a file is none the less put back.
            fs::hard_link(root.join("deleted"), root.join("other")).unwrap();
            let files = names.map(|name| name.as_bytes().to_vec());
            let entry = || Entry { mode: b"100644".to_vec(), object: Vec::new() };
            let plan = Plan {
                deletes: BTreeSet::from([files[0].clone(), b"other".to_vec()]),
                writes: files[1..].iter().map(|file| (file.clone(), entry())).collect(),
                seen: Seen::of(&root, files.iter().chain([&b"other".to_vec()])),
                ..Plan::default()
            };
            assert!(plan.changed(&root).is_empty());
            if let Some(name) = changed {
                fs::write(root.join(name), "mine").unwrap();
                assert!(plan.changed(&root).contains(name.as_bytes()));
            }
            let carried = plan.carry_out(&root, &ready, deadline);
            match changed {
                None => carried.unwrap(),
                Some(name) => {
                    assert!(matches!(carried, Err(Fault::ChangedMeanwhile { .. })), "{name}: {carried:?}");
                    assert_eq!(fs::read_to_string(root.join(name)).unwrap(), "mine");
                    continue;
                }
            }
            assert!(!root.join("deleted").exists() && !root.join("other").exists());
            assert!(["made", "written"].iter().all(|name| fs::read_to_string(root.join(name)).unwrap() == "then"));
        }
    }
}
