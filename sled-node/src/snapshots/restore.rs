//! Putting back what a turn changed, and nothing else: first it is found out whether anybody changed the same since, then files are
//! made ready beside the tree, and then each is moved to its place at once. Whoever is killed in between can do it again.
//!
//! A repository inside the tree is never deleted; a submodule is moved to its commit, unless it has changes of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::plumbing::{Call, Fault, Index, Repository, path, remove};

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
struct Step {
    from: Option<Entry>,
    to: Option<Entry>,
}

/// Steps by path.
type Steps = BTreeMap<Vec<u8>, Step>;

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
}

impl Repository {
    /// Plans the way from one tree to another, while the work tree is `now`.
    pub async fn plan(&self, from: &str, to: &str, now: &str) -> Result<Plan, Fault> {
        let (steps, since) = tokio::try_join!(self.steps(from, to), self.steps(from, now))?;
        let root = self.work_tree.clone();
        let planned = tokio::task::spawn_blocking(move || Plan::of(&steps, &since, &root));
        Ok(planned.await.map_err(std::io::Error::other)?)
    }

    /// How two trees differ.
    async fn steps(&self, from: &str, to: &str) -> Result<Steps, Fault> {
        let args = ["-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--ignore-submodules=none", from, to];
        let listed = self.git(Call::new("diff-tree").args(args)).await?;
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
        clear(&ready)?;
        fs::create_dir(&ready).map_err(|error| Fault::of(&ready, error))?;
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

    /// Takes out of the tree what is not to be there, and moves to their places the files that were made ready.
    pub async fn carry_out(&self, plan: Plan) -> Result<(), Fault> {
        let (root, folder) = (self.work_tree.clone(), self.folder.clone());
        let carried = tokio::task::spawn_blocking(move || {
            // Deepest first, and whatever stands where a folder is to be before what goes into the folder.
            for file in plan.deletes.iter().rev() {
                remove(&root.join(path(file)))?;
                remove_empty(&root, file);
            }
            let ready = folder.join("ready");
            for file in plan.writes.keys() {
                let (from, to) = (ready.join(path(file)), root.join(path(file)));
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent).map_err(|error| Fault::of(parent, error))?;
                }
                if to.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                    // The planner has seen that nothing is in it.
                    remove_folders(&to)?;
                }
                fs::rename(&from, &to).map_err(|error| Fault::of(&to, error))?;
            }
            clear(&ready)?;
            remove(&folder.join("goal"))
        });
        carried.await.map_err(std::io::Error::other)?
    }
}

impl Plan {
    fn of(steps: &Steps, since: &Steps, root: &Path) -> Self {
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
        let writes: Vec<_> = plan.writes.keys().cloned().collect();
        for file in writes {
            plan.look_for_what_is_in_the_way(&file, steps, root);
        }
        plan
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
        } else if steps.get(file).is_some_and(|step| step.from.is_none()) {
            self.conflicts.insert(file.to_vec());
        }
    }
}

/// All in a folder that is no folder, by their paths from the root; and folders that cannot be read.
fn files_below(place: &Path, name: &[u8]) -> Vec<Vec<u8>> {
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
