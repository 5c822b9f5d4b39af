//! What `new project` puts into a project's folder: made in a stage there, listed, moved in, and taken out again when the
//! project cannot come to be.
//!
//! The folder is in sight for as long as an image is built, and whoever asked for the project may use it already. So what is
//! taken out is what the list has and what is still as it was moved in; all else is somebody's (invariant 10). The list is
//! whole and lies in the state directory before the first thing is moved.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, lchown},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};
use uuid::Uuid;

use super::{project::Owner, removal};
use crate::home::{ProjectHome, make_private};

/// The repository, which belongs together: moved in first, and taken out only as a whole.
const REPOSITORY: &str = ".git";
/// Where the sled keeps what it knows of the files, in the repository.
const SLEDS: &str = ".git/musher";

/// What git writes anew when somebody merely looks at the repository: nobody's work is in it alone.
const INDEX: &str = ".git/index";

/// What is put into one project's folder.
#[derive(Debug, Clone)]
pub struct Contents {
    into: PathBuf,
    stage: PathBuf,
    list: PathBuf,
}

impl Contents {
    /// Nothing is made yet.
    pub fn new(parts: &ProjectHome, id: Uuid, into: &Path) -> Self {
        Self {
            into: into.to_owned(),
            stage: into.join(format!(".musher-clone-{id}")),
            list: parts.root().join("contents"),
        }
    }

    /// The folder in which all is to be made. Nobody else makes one of this name.
    pub fn stage(&self) -> &Path {
        &self.stage
    }

    /// Moves what is in the stage to where it belongs, and gives it and the folder to their owner. Nothing that stands there
    /// is replaced: [`io::ErrorKind::AlreadyExists`] says that somebody was faster.
    pub fn move_in(&self, owner: Owner) -> io::Result<()> {
        // The sled makes it as soon as it runs: it is ours as well.
        fs::create_dir_all(self.stage.join(SLEDS))?;
        self.give_and_list(owner)?;
        let mut names = fs::read_dir(&self.stage)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<OsString>>>()?;
        names.sort_unstable_by_key(|name| name != REPOSITORY);
        for name in names {
            rename(&self.stage.join(&name), &self.into.join(&name))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy())))?;
        }
        fs::remove_dir(&self.stage)?;
        // Last: until then nobody but us may write to what root makes here.
        give(&self.into, &fs::symlink_metadata(&self.into)?, owner)
    }

    /// Takes out what was put in, as far as it is still what it was. Once somebody has worked in the repository all of it stays.
    pub fn take_out(&self) -> io::Result<()> {
        removal::remove_tree(&self.stage)?;
        if !self.list.try_exists()? || !self.is_repository_untouched()? {
            return Ok(());
        }
        let folder = File::open(&self.into)?;
        let (mut below, mut first_error) = (Below::new(&folder), None);
        for entry in self.listed()? {
            let entry = entry?;
            if let Err(error) = below.remove(&entry) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Nobody needs to know any more what was put in.
    pub fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.list) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn give_and_list(&self, owner: Owner) -> io::Result<()> {
        if let Some(parts) = self.list.parent() {
            make_private(parts)?;
        }
        let unfinished = self.list.with_extension("new");
        let mut list = BufWriter::new(File::create(&unfinished)?);
        give_and_list(&self.stage, owner, &mut list)?;
        list.into_inner()?.sync_all()?;
        fs::rename(unfinished, &self.list)?;
        self.list.parent().map_or(Ok(()), |parts| File::open(parts)?.sync_all())
    }

    fn listed(&self) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
        Ok(BufReader::new(File::open(&self.list)?).split(0).map(|line| Entry::read(&line?)))
    }

    /// Whether the repository holds nothing but what was put in. What is missing of it does not count: an earlier run may have
    /// removed it.
    fn is_repository_untouched(&self) -> io::Result<bool> {
        let folder = File::open(&self.into)?;
        let (mut below, mut same) = (Below::new(&folder), 0_u64);
        for entry in self.listed()? {
            let entry = entry?;
            if entry.path.starts_with(REPOSITORY) {
                match below.look(&entry)? {
                    Some(true) => same += u64::from(!entry.is_folder),
                    Some(false) => return Ok(false),
                    None => {}
                }
            }
        }
        let mut left = vec![self.into.join(REPOSITORY)];
        while let Some(path) = left.pop() {
            let meta = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    left.push(entry?.path());
                }
            } else if same == 0 {
                return Ok(false);
            } else {
                same -= 1;
            }
        }
        Ok(same == 0)
    }
}

/// A file or a folder as it was moved in.
#[derive(Debug, PartialEq)]
struct Entry {
    is_folder: bool,
    inode: u64,
    /// In bytes. What a folder says of this, and of when it was changed, goes with what is in it.
    size: u64,
    /// When it was changed last: seconds, and their nanoseconds.
    modified: (i64, i64),
    /// Below the project's folder.
    path: PathBuf,
}

impl Entry {
    fn of(path: &Path, meta: &Metadata) -> Self {
        Self {
            is_folder: meta.is_dir(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            path: path.to_owned(),
        }
    }

    fn is(&self, now: &FileStat) -> bool {
        let is_folder = SFlag::from_bits_truncate(now.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        let unchanged =
            u64::try_from(now.st_size) == Ok(self.size) && (now.st_mtime, now.st_mtime_nsec) == self.modified;
        let same = self.inode == now.st_ino && (is_folder || unchanged);
        self.is_folder == is_folder && (same || self.path == Path::new(INDEX))
    }

    /// The folder that it is in, and its name there.
    fn place(&self) -> (&Path, &OsStr) {
        (self.path.parent().unwrap_or(Path::new("")), self.path.file_name().unwrap_or_default())
    }

    fn write(&self, list: &mut impl Write) -> io::Result<()> {
        let Self { is_folder, inode, size, modified: (secs, nanos), path } = self;
        write!(list, "{} {inode} {size} {secs} {nanos} ", if *is_folder { "d" } else { "f" })?;
        list.write_all(path.as_os_str().as_bytes())?;
        list.write_all(&[0])
    }

    fn read(line: &[u8]) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the list of what was put in is not readable");
        let parts: Vec<&[u8]> = line.splitn(6, |byte| *byte == b' ').collect();
        let [kind, inode, size, secs, nanos, path] = parts.as_slice() else { return Err(wrong()) };
        let text = |part: &[u8]| str::from_utf8(part).map(str::to_owned).map_err(|_| wrong());
        let number = |part: &[u8]| text(part)?.parse::<u64>().map_err(|_| wrong());
        let signed = |part: &[u8]| text(part)?.parse::<i64>().map_err(|_| wrong());
        Ok(Self {
            is_folder: *kind == b"d",
            inode: number(inode)?,
            size: number(size)?,
            modified: (signed(secs)?, signed(nanos)?),
            path: OsString::from_vec(path.to_vec()).into(),
        })
    }
}

/// The way to what lies below a folder, on which no link is followed.
struct Below<'a> {
    folder: &'a File,
    /// The folder that was asked for last: what is listed follows its neighbours.
    last: Option<(PathBuf, OwnedFd)>,
}

impl<'a> Below<'a> {
    fn new(folder: &'a File) -> Self {
        Self { folder, last: None }
    }

    /// Opens a folder; none when there is no such.
    fn open(&mut self, path: &Path) -> io::Result<Option<&OwnedFd>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = None;
            let mut at = self.folder.as_fd().try_clone_to_owned()?;
            for part in path {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                at = match openat(&at, part, flags, Mode::empty()) {
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
                    opened => opened?,
                };
            }
            self.last = Some((path.to_owned(), at));
        }
        Ok(self.last.as_ref().map(|(_, at)| at))
    }

    /// Whether what stands there is what was moved in; none when nothing does.
    fn look(&mut self, entry: &Entry) -> io::Result<Option<bool>> {
        let (parent, name) = entry.place();
        let Some(parent) = self.open(parent)? else { return Ok(None) };
        match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            found => Ok(Some(entry.is(&found?))),
        }
    }

    /// Removes it if it is still what was moved in. A folder with something in it stays.
    fn remove(&mut self, entry: &Entry) -> io::Result<()> {
        if self.look(entry)? != Some(true) {
            return Ok(());
        }
        let (parent, name) = entry.place();
        let Some(parent) = self.open(parent)? else { return Ok(()) };
        let flags = if entry.is_folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        match unlinkat(parent, name, flags) {
            Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if entry.is_folder => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// A folder on the way down, and what of it is still to come.
struct Level {
    path: PathBuf,
    meta: Metadata,
    inner: std::vec::IntoIter<OsString>,
}

impl Level {
    fn open(stage: &Path, path: PathBuf, meta: Metadata) -> io::Result<Self> {
        let inner = fs::read_dir(stage.join(&path))?.map(|entry| entry.map(|entry| entry.file_name()));
        Ok(Self { path, meta, inner: inner.collect::<io::Result<Vec<_>>>()?.into_iter() })
    }
}

/// Gives what is in the stage to its owner and lists it, each folder after what is in it: whoever owns what is given already can
/// do nothing about the rest. Links are given, not followed. No stack grows with the depth.
fn give_and_list(stage: &Path, owner: Owner, list: &mut impl Write) -> io::Result<()> {
    let mut levels = vec![Level::open(stage, PathBuf::new(), fs::symlink_metadata(stage)?)?];
    while let Some(level) = levels.last_mut() {
        let (path, meta) = if let Some(name) = level.inner.next() {
            let path = level.path.join(name);
            let meta = fs::symlink_metadata(stage.join(&path))?;
            if meta.is_dir() {
                levels.push(Level::open(stage, path, meta)?);
                continue;
            }
            (path, meta)
        } else {
            let Some(done) = levels.pop().filter(|_| !levels.is_empty()) else { break };
            (done.path, done.meta)
        };
        give(&stage.join(&path), &meta, owner)?;
        Entry::of(&path, &meta).write(list)?;
    }
    Ok(())
}

fn give(path: &Path, meta: &Metadata, owner: Owner) -> io::Result<()> {
    if meta.uid() != owner.uid || meta.gid() != owner.gid {
        lchown(path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Renames, and replaces nothing.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can be asked for that.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::symlink};

    use super::*;
    use crate::home::Home;

    struct Case {
        _folder: tempfile::TempDir,
        contents: Contents,
        base: PathBuf,
    }

    fn own() -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it can be made");
        fs::write(path, text).expect("it can be written");
    }

    impl Case {
        /// A folder, and in its stage what a clone would make.
        fn staged() -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let base = folder.path().canonicalize().expect("it is there");
            let home = Home::open(&base.join("state")).expect("it can be made");
            let (id, into) = (Uuid::now_v7(), base.join("app"));
            fs::create_dir(&into).expect("it can be made");
            let contents = Contents::new(&home.project(id), id, &into);
            for file in [".git/HEAD", ".git/objects/pack/one", "README.md", "src/deep/a b.rs", "src/line\nbreak"] {
                write(&contents.stage().join(file), file);
            }
            fs::create_dir(contents.stage().join(".git/refs")).expect("it can be made");
            symlink("src/deep", contents.stage().join("link")).expect("a link can be made");
            Self { _folder: folder, contents, base }
        }

        fn moved_in() -> Self {
            let case = Self::staged();
            case.contents.move_in(own()).expect("it can be moved in");
            fs::create_dir(case.at(".git/musher")).expect_err("the sled finds its folder there");
            assert_eq!(case.left().len(), 13, "{:?}", case.left());
            case
        }

        fn at(&self, name: &str) -> PathBuf {
            self.contents.into.join(name)
        }

        fn take_out(&self) -> Vec<String> {
            self.contents.take_out().expect("it can be taken out");
            let left = self.left();
            self.contents.take_out().expect("it can be repeated");
            assert_eq!(self.left(), left);
            left.into_keys().collect()
        }

        /// All below the folder, and what it says.
        fn left(&self) -> BTreeMap<String, String> {
            let (mut found, mut folders) = (BTreeMap::new(), vec![self.contents.into.clone()]);
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).expect("it is a folder") {
                    let path = entry.expect("it can be read").path();
                    let name =
                        path.strip_prefix(&self.contents.into).expect("it is below").to_string_lossy().into_owned();
                    if path.is_dir() && !path.is_symlink() {
                        folders.push(path.clone());
                    }
                    found.insert(name, fs::read_to_string(&path).unwrap_or_default());
                }
            }
            found
        }
    }

    #[test]
    fn what_was_put_in_is_taken_out_wherever_it_broke_off() {
        let case = Case::moved_in();
        assert_eq!(case.take_out(), [""; 0]);
        let case = Case::staged();
        assert_eq!(case.take_out(), [""; 0], "nothing was moved in yet");
        let case = Case::moved_in();
        let half = case.contents.stage();
        fs::create_dir(half).expect("it can be made");
        fs::rename(case.at("README.md"), half.join("README.md")).expect("it can be moved");
        assert_eq!(case.take_out(), [""; 0], "not all was moved in");
        let case = Case::moved_in();
        for gone in [".git/HEAD", "src/deep/a b.rs"] {
            fs::remove_file(case.at(gone)).expect("it is there");
        }
        assert_eq!(case.take_out(), [""; 0], "some of it was taken out already");
    }

    #[test]
    fn what_somebody_put_there_or_changed_stays() {
        let case = Case::moved_in();
        write(&case.at("notes"), "mine");
        write(&case.at("src/mine"), "mine");
        write(&case.at("README.md"), "mine, and longer");
        fs::create_dir(case.at("empty")).expect("it can be made");
        fs::remove_file(case.at("link")).expect("it is there");
        symlink("README.md", case.at("link")).expect("a link can be made");
        assert_eq!(case.take_out(), ["README.md", "empty", "link", "notes", "src", "src/mine"]);
        // Before anything was moved in,
        let case = Case::staged();
        write(&case.at("src/mine"), "mine");
        let error = case.contents.move_in(own()).expect_err("a folder of theirs is in the way");
        assert!(error.kind() == io::ErrorKind::AlreadyExists && error.to_string().starts_with("src: "), "{error}");
        assert_eq!(case.take_out(), ["src", "src/mine"]);
        // a repository of their own,
        let case = Case::staged();
        write(&case.at(".git/HEAD"), "mine");
        case.contents.move_in(own()).expect_err("a repository of theirs is in the way");
        assert_eq!(case.take_out(), [".git", ".git/HEAD"]);
        // and where nobody knows what was put in.
        let case = Case::moved_in();
        case.contents.forget().expect("it can be forgotten");
        assert_eq!(case.take_out().len(), 13);
    }

    #[test]
    fn a_repository_that_somebody_looked_at_goes() {
        let case = Case::staged();
        write(&case.contents.stage().join(INDEX), "as it was cloned");
        case.contents.move_in(own()).expect("it can be moved in");
        // As `git status` does it.
        write(&case.at(".git/index.lock"), "the same, with new times");
        fs::rename(case.at(".git/index.lock"), case.at(INDEX)).expect("it can be renamed");
        assert_eq!(case.take_out(), [""; 0]);
    }

    #[test]
    fn a_repository_that_somebody_works_in_stays_with_its_files() {
        type Work = fn(&Case);
        let works: [Work; 3] = [
            |case| write(&case.at(".git/objects/ab/new"), "a commit"),
            |case| write(&case.at(".git/HEAD"), "another branch"),
            |case| {
                fs::remove_dir_all(case.at(".git")).expect("it is there");
                symlink(case.base.join("elsewhere"), case.at(".git")).expect("a link can be made");
            },
        ];
        for work in works {
            let case = Case::moved_in();
            work(&case);
            let left = case.left();
            case.take_out();
            assert_eq!(case.left(), left);
        }
    }

    #[test]
    fn no_link_leads_out_of_the_folder() {
        let case = Case::moved_in();
        let outside = case.base.join("outside");
        // The very file that was moved in, by another way.
        fs::rename(case.at("src"), &outside).expect("it can be moved");
        symlink(&outside, case.at("src")).expect("a link can be made");
        assert_eq!(case.take_out(), ["src"]);
        assert!(outside.join("deep/a b.rs").exists());
    }

    #[test]
    fn folders_in_each_other_are_no_matter_for_the_stack() {
        let case = Case::staged();
        let mut deep = case.contents.stage().to_owned();
        for _ in 0..1_900 {
            deep.push("d");
            fs::create_dir(&deep).expect("it can be made");
        }
        let contents = case.contents.clone();
        let small = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            contents.move_in(own()).expect("it can be moved in");
            contents.take_out().expect("it can be taken out");
        });
        small.expect("it runs").join().expect("it succeeds");
        assert_eq!(case.take_out(), [""; 0]);
    }
}
