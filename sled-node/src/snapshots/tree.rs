//! The work tree as a tree of git's: every file that git tracks or would track, byte for byte, and none that is ignored.
//!
//! An index of our own remembers what was recorded, so that only what has changed is read again. The repository's index is read, never written.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::plumbing::{Call, Deadline, Fault, Index, Repository, entries, joined, path, remove};

/// The largest file that is recorded without being tracked, in bytes.
const MAX_NEW_FILE: u64 = 100 * 1024 * 1024;

/// How much is recorded anew at a time, in bytes.
const MAX_NEW: u64 = 1024 * 1024 * 1024;

/// How much of an index is copied without a look at the time, in bytes.
const PIECE: u64 = 16 * 1024 * 1024;

/// How many files git is handed at once: what one run has recorded is not lost when time runs out.
const CHUNK: usize = 2_000;

/// The name of an object.
pub type Id = String;

/// What of the tree was not recorded before a turn though it was there: ignored, or too large, or a repository of its own.
/// The turn's change of it is none of ours.
#[derive(Debug, Default)]
pub struct Uncovered {
    names: HashSet<Vec<u8>>,
}

impl Uncovered {
    /// Reads what [`uncovered`] gave.
    pub fn read(list: &[u8]) -> Self {
        Self { names: entries(list).map(<[u8]>::to_vec).collect() }
    }

    /// Whether that file was there, by itself or in a folder of which nothing was recorded.
    pub fn covers(&self, file: &[u8]) -> bool {
        let folders = file.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &file[..=at]);
        self.names.contains(file) || folders.into_iter().any(|folder| self.names.contains(folder))
    }
}

/// What has to be done to our index for it to be like the tree.
#[derive(Debug, Default)]
struct Work {
    root: PathBuf,
    /// Folders, and whether they are reached without a symbolic link.
    folders: HashMap<Vec<u8>, bool>,
    add: Vec<Vec<u8>>,
    forget: Vec<Vec<u8>>,
    /// Folders that are repositories of their own, with a `/` at the end.
    nested: Vec<Vec<u8>>,
    /// How much there is to be read.
    bytes: u64,
}

impl Repository {
    /// Records the tree before a turn: what is tracked, and what is neither tracked nor ignored.
    pub async fn record(&self) -> Result<Id, Fault> {
        let ours = self.index(Index::Ours).unwrap_or_default();
        if tokio::fs::try_exists(&ours).await.is_ok_and(|there| there) {
            match self.record_what_differs().await {
                // It cannot be read, after its machine went down, or somebody has removed objects that it names: begin anew.
                Err(Fault::Git { .. }) => {}
                done => return done,
            }
        }
        self.begin(&ours).await?;
        self.stage().await
    }

    /// Records the tree after a turn: besides what is recorded before one, what was recorded then and is ignored now.
    pub async fn record_again(&self, before: &str) -> Result<Id, Fault> {
        let ours = self.index(Index::Ours).unwrap_or_default();
        if tokio::fs::try_exists(&ours).await.is_ok_and(|there| there) {
            match self.stage().await {
                Err(Fault::Git { .. }) => self.blocking(move || remove(&ours)).await?,
                done => return done,
            }
        }
        self.git(Call::new("read-tree").args([before])).await?;
        self.stage().await
    }

    async fn record_what_differs(&self) -> Result<Id, Fault> {
        self.forget_ignored().await?;
        self.stage().await
    }

    /// What is there and was not recorded, NUL after each, folders of which nothing was with a `/` at their end.
    pub async fn uncovered(&self) -> Result<Vec<u8>, Fault> {
        self.git(Call::new("ls-files").args(["-z", "--others", "--directory", "--no-empty-directory"])).await
    }

    /// Takes these files out of what [`Repository::record_again`] recorded.
    pub async fn without(&self, files: &[Vec<u8>]) -> Result<Id, Fault> {
        self.forget(files, Index::Ours).await?;
        self.write().await
    }

    /// Makes our index of theirs, which knows already what most files are; but not of those that git stores otherwise than they are, nor of
    /// those that it was told not to look at: those are found anew, as far as they are there. It is ours when all of that is done, because half of
    /// it would record those as git stores them.
    async fn begin(&self, ours: &Path) -> Result<(), Fault> {
        let index = ours.to_owned();
        self.blocking(move || remove(&index)).await?;
        // Line ends may be converted whatever attributes say.
        let converts = Call::new("config").args(["--get", "core.autocrlf"]).with_conversions();
        if self.ask(converts).await?.is_some_and(|value| value != "false") {
            return Ok(());
        }
        let args = ["--path-format=absolute", "--git-path", "index"];
        let theirs = self.git(Call::new("rev-parse").args(args).index(Index::Theirs)).await?;
        let theirs = path(theirs.strip_suffix(b"\n").unwrap_or(&theirs)).to_owned();
        let begun = self.index(Index::Begun).unwrap_or_default();
        let to = begun.clone();
        let deadline = self.deadline();
        let copied = self.blocking(move || copy(&theirs, &to, deadline));
        if !copied.await? {
            return Ok(());
        }
        let specification = ":(exclude,attr:!text !eol !filter !ident !crlf !working-tree-encoding)";
        let list = || Call::new("ls-files").index(Index::Begun);
        let converted = list().args(["-z", "--cached", "--", specification]).with_conversions();
        let listed = list().args(["-z", "-v", "--cached"]);
        let (converted, listed) = tokio::try_join!(self.git(converted), self.git(listed))?;
        // A small letter stands for "assume unchanged", an S for "skip the work tree".
        let unwatched = entries(&listed).filter(|entry| entry[0].is_ascii_lowercase() || entry[0] == b'S');
        let unwatched = unwatched.filter_map(|entry| entry.get(2..));
        let forgotten: Vec<_> = entries(&converted).chain(unwatched).map(<[u8]>::to_vec).collect();
        self.forget(&forgotten, Index::Begun).await?;
        let index = ours.to_owned();
        self.blocking(move || fs::rename(&begun, &index).map_err(|error| Fault::of(&index, error))).await
    }

    /// What our index has is what git has or would have: without what is ignored since and not tracked.
    async fn forget_ignored(&self) -> Result<(), Fault> {
        let (ours, theirs) = tokio::try_join!(self.ignored(Index::Ours), self.ignored(Index::Theirs))?;
        let theirs: HashSet<_> = theirs.into_iter().collect();
        let ours: Vec<_> = ours.into_iter().filter(|file| !theirs.contains(file)).collect();
        self.forget(&ours, Index::Ours).await
    }

    /// What an index has though it is ignored.
    async fn ignored(&self, index: Index) -> Result<Vec<Vec<u8>>, Fault> {
        let call = Call::new("ls-files").args(["-z", "--cached", "--ignored", "--exclude-standard"]).index(index);
        Ok(entries(&self.git(call).await?).map(<[u8]>::to_vec).collect())
    }

    async fn stage(&self) -> Result<Id, Fault> {
        let call = Call::new("ls-files").args(["-z", "-t", "--modified", "--others", "--exclude-standard"]);
        let (listed, tracked) = tokio::try_join!(self.git(call), self.ignored(Index::Theirs))?;
        let (mut work, deadline) = (Work::of(&self.work_tree), self.deadline());
        let sorted = self.blocking(move || {
            for entry in entries(&listed) {
                deadline.left()?;
                let (tag, file) = entry.split_at_checked(2).ok_or(Fault::Unreadable("ls-files"))?;
                work.take(file, tag == b"? ");
            }
            for file in &tracked {
                deadline.left()?;
                work.take(file, false);
            }
            Ok(work)
        });
        let mut work = sorted.await?;
        if work.bytes > MAX_NEW {
            return Err(Fault::TooMuch("over 1 GiB of new or changed files"));
        }
        if !work.nested.is_empty() {
            work.add.extend(self.pointers(&work.nested).await?);
        }
        self.forget(&work.forget, Index::Ours).await?;
        for some in work.add.chunks(CHUNK) {
            let call = Call::new("update-index").args(["--add", "--remove", "--replace", "-z", "--stdin"]);
            self.git(call.input(&joined(some.iter().map(Vec::as_slice)))).await?;
        }
        self.write().await
    }

    /// Those of these folders that are submodules by their index.
    async fn pointers(&self, nested: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Fault> {
        let folders =
            nested.iter().map(|folder| path(folder.strip_suffix(b"/").unwrap_or(folder)).as_os_str().to_owned());
        let mut pointers = Vec::new();
        let folders: Vec<_> = folders.collect();
        for some in folders.chunks(100) {
            // Each stands for itself, whatever characters it has.
            let literal = some.iter().map(|folder| {
                let mut specification = std::ffi::OsString::from(":(top,literal)");
                specification.push(folder);
                specification
            });
            let call = Call::new("ls-files").args(["-z", "--stage", "--"]).args(literal).index(Index::Theirs);
            let listed = self.git(call).await?;
            pointers.extend(entries(&listed).filter(|entry| entry.starts_with(b"160000 ")).filter_map(|entry| {
                let tab = entry.iter().position(|byte| *byte == b'\t')?;
                Some(entry[tab + 1..].to_vec())
            }));
        }
        Ok(pointers)
    }

    async fn forget(&self, files: &[Vec<u8>], index: Index) -> Result<(), Fault> {
        if files.is_empty() {
            return Ok(());
        }
        let files = joined(files.iter().map(Vec::as_slice));
        let call = Call::new("update-index").args(["--force-remove", "-z", "--stdin"]).index(index);
        self.git(call.input(&files)).await.map(drop)
    }

    async fn write(&self) -> Result<Id, Fault> {
        let tree = self.ask(Call::new("write-tree")).await?;
        tree.ok_or(Fault::Unreadable("write-tree"))
    }
}

impl Work {
    fn of(root: &Path) -> Self {
        Self { root: root.to_owned(), ..Self::default() }
    }

    /// Sorts a file that differs from what is recorded, or is `new`.
    fn take(&mut self, file: &[u8], new: bool) {
        if file.ends_with(b"/") {
            return self.nested.push(file.to_vec());
        }
        let place = self.root.join(path(file));
        let kept = self.is_here(file)
            && match place.symlink_metadata() {
                Ok(found) if found.is_file() && new && found.len() > MAX_NEW_FILE => return,
                Ok(found) if found.is_file() => {
                    self.bytes += found.len();
                    // What cannot be read cannot be recorded, and git would give up because of it. It may be a pipe or a link by now.
                    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
                    File::options().read(true).custom_flags(flags.bits()).open(&place).is_ok()
                }
                Ok(found) if found.is_symlink() => true,
                // A submodule, or a folder where a file was.
                Ok(found) => found.is_dir() && place.join(".git").symlink_metadata().is_ok(),
                // Git finds out by itself that it is gone.
                Err(_) => true,
            };
        if kept { &mut self.add } else { &mut self.forget }.push(file.to_vec());
    }

    /// Whether a file lies in the tree itself, not behind a symbolic link.
    fn is_here(&mut self, file: &[u8]) -> bool {
        let Some(end) = file.iter().rposition(|byte| *byte == b'/') else { return true };
        let folder = &file[..end];
        if let Some(known) = self.folders.get(folder) {
            return *known;
        }
        let here = self.is_here(folder)
            && !self.root.join(path(folder)).symlink_metadata().is_ok_and(|found| found.is_symlink());
        self.folders.insert(folder.to_vec(), here);
        here
    }
}

/// Copies an index with its time of change: files that were changed after it, in the same moment, are known by that. Returns
/// whether there is one. What is no file is none: a device or a pipe has no end.
fn copy(from: &Path, to: &Path, deadline: Deadline) -> Result<bool, Fault> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut theirs = match File::options().read(true).custom_flags(flags.bits()).open(from) {
        Ok(theirs) => theirs,
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::ENXIO) => return Ok(false),
            _ => return Err(Fault::of(from, error)),
        },
    };
    let found = theirs.metadata().map_err(|error| Fault::of(from, error))?;
    if !found.is_file() {
        return Ok(false);
    }
    let length = found.len();
    if length > MAX_NEW {
        return Err(Fault::TooMuch("an index of over 1 GiB"));
    }
    let copied = |error| Fault::of(to, error);
    // What a program of the project has put there is not followed, nor waited for.
    remove(to)?;
    let mut ours = File::create_new(to).map_err(copied)?;
    let mut left = length;
    while left > 0 {
        deadline.left()?;
        let some = std::io::copy(&mut (&mut theirs).take(left.min(PIECE)), &mut ours).map_err(copied)?;
        if some == 0 {
            break;
        }
        left -= some;
    }
    found.modified().and_then(|changed| ours.set_modified(changed)).map_err(copied)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_an_uncovered_folder_is_uncovered() {
        let uncovered = Uncovered::read(b"target/\0a.log\0deep/er/\0");
        let table: [(&[u8], bool); 7] = [
            (b"target/debug/x", true),
            (b"a.log", true),
            (b"deep/er/x", true),
            (b"deep/x", false),
            (b"target", false),
            (b"targets/x", false),
            (b"b/a.log", false),
        ];
        for (file, wanted) in table {
            assert_eq!(uncovered.covers(file), wanted, "{}", String::from_utf8_lossy(file));
        }
    }
}
