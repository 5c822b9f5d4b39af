//! The clone itself, by libgit2, in a process of its own ([`super::clone_worker`]): it is the one thing on the host that reads
//! what a git server sends, or what lies in a repository that somebody names.
//!
//! libgit2 runs no hook, no filter and no helper, and reaches no server: it is told a port of this host's loopback behind which
//! one stands ([`ClonePort`](crate::git::ClonePort)).

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::{Path, PathBuf},
};

use git2::{
    ErrorClass, ErrorCode, FetchOptions, ObjectType, Odb, RemoteCallbacks, RemoteRedirect, Repository,
    RepositoryOpenFlags, Tree, TreeWalkMode, TreeWalkResult,
    build::{CheckoutBuilder, CloneLocal, RepoBuilder},
};
use serde::{Deserialize, Serialize};

use crate::{git::Remote, text};

/// What a clone calls where it came from.
const REMOTE: &str = "origin";
/// The mode of a submodule in a tree.
const SUBMODULE: u32 = 0o160_000;
/// Files of attributes that are looked at, and how large they may be, in bytes.
const ATTRIBUTES: usize = 1000;
const ATTRIBUTES_BYTES: usize = 256 * 1024;

/// What the process of a clone may allocate, in bytes: libgit2 holds whole objects, two at a time where one is kept as the
/// difference to another.
pub const MEMORY: usize = 4 * 1024 * 1024 * 1024;

/// What to clone and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// From where.
    pub remote: Remote,
    /// What libgit2 asks in place of that ([`ClonePort`](crate::git::ClonePort)); the remote itself when absent.
    pub through: Option<String>,
    /// Which branch; the remote's default when absent.
    pub branch: Option<String>,
    /// How many commits; all when absent.
    pub depth: Option<u32>,
    /// The folder that is to hold it, which is not there yet.
    pub into: PathBuf,
    /// How much it may bring.
    pub limits: Limits,
}

/// How much a clone may bring.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes from the server.
    pub bytes: usize,
    /// Objects.
    pub objects: usize,
    /// Files of the branch that is checked out.
    pub files: usize,
    /// Bytes of these files, which the server may have packed well.
    pub content: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: usize = 1024 * 1024 * 1024;
        Self { bytes: 20 * GIB, objects: 20_000_000, files: 5_000_000, content: 20 * GIB }
    }
}

/// What a clone is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// The server prepares; it is alive.
    Waiting,
    /// Objects come, and when all are there, are looked through.
    Objects {
        /// So many are there.
        have: usize,
        /// Of so many.
        all: usize,
    },
    /// Files are written.
    Files {
        /// So many are there.
        have: usize,
        /// Of so many.
        all: usize,
    },
}

/// What of a clone people should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// It has submodules, which are still to be fetched.
    pub submodules: bool,
    /// Some of its files are kept by Git LFS: what lies there are pointers.
    pub lfs: bool,
}

/// Why there is no clone, as far as libgit2 knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// It brings more than it may.
    #[error("it has more than {limit} {of}")]
    TooMuch {
        /// How much it may.
        limit: usize,
        /// Of what.
        of: String,
    },
    /// Git's settings on this host make another address of the one that libgit2 is told.
    #[error("this host's git configuration rewrites the address")]
    Rewritten,
    /// The branch is not there.
    #[error("it has no such branch")]
    NoBranch,
    /// What lies there is no repository.
    #[error("it is no git repository")]
    NoRepository,
    /// A repository on this host keeps its data elsewhere.
    #[error("the repository lies elsewhere")]
    Elsewhere,
    /// A repository on this host borrows objects from another.
    #[error("it borrows its objects from another repository")]
    Borrowed,
    /// A repository on this host holds something that is neither a file nor a folder.
    #[error("{0} in it is neither a file nor a folder")]
    Strange(String),
    /// The connection broke.
    #[error("{0}")]
    Connection(String),
    /// The disk of this host fails, or is full.
    #[error("{0}")]
    Disk(String),
    /// Anything else that git says.
    #[error("{0}")]
    Git(String),
}

impl From<git2::Error> for Failure {
    fn from(error: git2::Error) -> Self {
        let said = text::one_line(error.message(), 200);
        match error.class() {
            ErrorClass::Net => Self::Connection(said),
            ErrorClass::NoMemory => Self::TooMuch { limit: MEMORY, of: "bytes of memory for one object".into() },
            ErrorClass::Os | ErrorClass::Filesystem => Self::Disk(said),
            _ => Self::Git(said),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Disk(error.to_string())
    }
}

/// Clones. Blocks for as long as that takes.
///
/// # Errors
/// What people can be told of why it was not done.
pub fn clone(order: &Order, mut progress: impl FnMut(Doing)) -> Result<Cloned, Failure> {
    if let Remote::Local(source) = &order.remote {
        inspect(source)?;
    }
    let told = RefCell::new(&mut progress);
    let limits = order.limits;
    let (rewritten, too_much) = (Cell::new(false), RefCell::new(None));
    let within = |count: usize, limit: usize, of: &str| {
        if count > limit {
            too_much.replace(Some(Failure::TooMuch { limit, of: of.to_owned() }));
        }
        count <= limit
    };
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|transfer| {
        let (have, all) = (transfer.received_objects(), transfer.total_objects());
        told.borrow_mut()(Doing::Objects { have, all });
        within(transfer.received_bytes(), limits.bytes, "bytes") && within(all, limits.objects, "objects")
    });
    callbacks.sideband_progress(|_| {
        told.borrow_mut()(Doing::Waiting);
        true
    });
    let mut fetch = FetchOptions::new();
    fetch.remote_callbacks(callbacks).follow_redirects(RemoteRedirect::None);
    if let Some(depth) = order.depth {
        fetch.depth(i32::try_from(depth).unwrap_or(i32::MAX));
    }
    // Nothing is written before it is known how much that is.
    let mut later = CheckoutBuilder::new();
    later.dry_run();
    let mut builder = RepoBuilder::new();
    builder.fetch_options(fetch).clone_local(CloneLocal::NoLinks).with_checkout(later);
    if let Some(branch) = &order.branch {
        builder.branch(branch);
    }
    builder.remote_create(|repository, name, url| as_it_stands(repository, name, url, &rewritten));
    let address = order.remote.shown();
    let made = builder.clone(order.through.as_deref().unwrap_or(&address), &order.into);
    drop(builder);
    let repository = made.map_err(|error| {
        if let Some(too_much) = too_much.take() {
            return too_much;
        }
        match (rewritten.get(), error.code(), error.class()) {
            (true, ..) => Failure::Rewritten,
            (_, ErrorCode::NotFound, ErrorClass::Reference) if order.branch.is_some() => Failure::NoBranch,
            _ => error.into(),
        }
    })?;
    if order.through.is_some() {
        forget(&repository, &address)?;
    }
    check_out(&repository, limits, &told)?;
    look(&repository)
}

/// Looks at a repository on this host before anything of it is read: it is whole, and nothing in it leads elsewhere or makes
/// whoever reads it wait.
fn inspect(source: &Path) -> Result<(), Failure> {
    let inner = source.join(".git");
    let folder = match fs::symlink_metadata(&inner) {
        Ok(meta) if meta.is_dir() => inner,
        Ok(_) => return Err(Failure::Elsewhere),
        Err(error) if error.kind() == io::ErrorKind::NotFound => source.to_owned(),
        Err(error) => return Err(error.into()),
    };
    let is = |name: &str, kind: fn(&fs::Metadata) -> bool| {
        fs::symlink_metadata(folder.join(name)).is_ok_and(|meta| kind(&meta) || meta.is_symlink())
    };
    if !is("HEAD", fs::Metadata::is_file) || !is("objects", fs::Metadata::is_dir) {
        return Err(Failure::NoRepository);
    }
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => {}
                _ => return Err(Failure::Strange(text::code(&entry.path().to_string_lossy()))),
            }
        }
    }
    let repository = Repository::open_ext(source, RepositoryOpenFlags::NO_SEARCH, &[] as &[&Path])?;
    let inside = |part: &Path| part.canonicalize().is_ok_and(|part| part.starts_with(source));
    if !inside(repository.path()) || !inside(repository.commondir()) {
        return Err(Failure::Elsewhere);
    }
    if repository.commondir().join("objects/info/alternates").exists() {
        return Err(Failure::Borrowed);
    }
    Ok(())
}

/// Makes the remote, unless git's settings on this host say that another address is meant (`insteadOf`), which nobody has judged.
fn as_it_stands<'a>(
    repository: &'a Repository,
    name: &str,
    url: &str,
    rewritten: &Cell<bool>,
) -> Result<git2::Remote<'a>, git2::Error> {
    let remote = repository.remote(name, url)?;
    rewritten.set(remote.url_bytes() != url.as_bytes());
    if rewritten.get() {
        return Err(git2::Error::new(ErrorCode::GenericError, ErrorClass::Callback, "the address is rewritten"));
    }
    Ok(remote)
}

/// Takes what libgit2 asked in place of the remote out of the clone: from its settings, and from its reflogs, which tell
/// nothing but where it came from.
fn forget(repository: &Repository, address: &str) -> Result<(), Failure> {
    repository.remote_set_url(REMOTE, address)?;
    match fs::remove_dir_all(repository.path().join("logs")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes the files of the branch, once it is known that they are not too many nor too large.
fn check_out(repository: &Repository, limits: Limits, told: &RefCell<&mut impl FnMut(Doing)>) -> Result<(), Failure> {
    // The repository is empty.
    let Ok(head) = repository.head() else { return Ok(()) };
    measure(&repository.odb()?, &head.peel_to_tree()?, limits)?;
    let mut checkout = CheckoutBuilder::new();
    checkout.force().progress(|_, have, all| told.borrow_mut()(Doing::Files { have, all }));
    Ok(repository.checkout_head(Some(&mut checkout))?)
}

/// Counts the files and folders of a tree and their bytes, without reading any.
fn measure(objects: &Odb<'_>, tree: &Tree<'_>, limits: Limits) -> Result<(), Failure> {
    let (mut files, mut content, mut failure) = (0, 0_usize, None);
    let walked = tree.walk(TreeWalkMode::PreOrder, |_, entry| {
        files += 1;
        if entry.kind() == Some(ObjectType::Blob) {
            match objects.read_header(entry.id()) {
                Ok((bytes, _)) => content = content.saturating_add(bytes),
                Err(error) => failure = Some(error.into()),
            }
        }
        if files > limits.files {
            failure = Some(Failure::TooMuch { limit: limits.files, of: "files".into() });
        }
        if content > limits.content {
            failure = Some(Failure::TooMuch { limit: limits.content, of: "bytes of files".into() });
        }
        if failure.is_some() { TreeWalkResult::Abort } else { TreeWalkResult::Ok }
    });
    failure.map_or_else(|| Ok(walked?), Err)
}

/// What of a clone people should know, from its index.
fn look(repository: &Repository) -> Result<Cloned, Failure> {
    let (index, objects) = (repository.index()?, repository.odb()?);
    let listed = index.get_path(Path::new(".gitmodules"), 0).is_some();
    let submodules = listed && index.iter().any(|entry| entry.mode == SUBMODULE);
    let attributes = index
        .iter()
        .filter(|entry| entry.path == b".gitattributes" || entry.path.ends_with(b"/.gitattributes"))
        .take(ATTRIBUTES);
    let mut lfs = false;
    for entry in attributes {
        let is_small = objects.read_header(entry.id).is_ok_and(|(bytes, _)| bytes <= ATTRIBUTES_BYTES);
        if let Some(blob) = is_small.then(|| repository.find_blob(entry.id).ok()).flatten() {
            lfs |= names_lfs(&String::from_utf8_lossy(blob.content()));
        }
    }
    Ok(Cloned { submodules, lfs })
}

/// Whether a file of attributes gives files to Git LFS.
fn names_lfs(attributes: &str) -> bool {
    let lines = attributes.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| line.split_whitespace().skip(1)).any(|attribute| attribute == "filter=lfs")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn files_of_attributes_tell_of_lfs() {
        for (text, lfs) in [
            ("*.bin filter=lfs diff=lfs merge=lfs -text\n", true),
            ("# *.bin filter=lfs\n*.txt text\n", false),
            ("filter=lfs text\n", false),
            ("*.bin -filter=lfs\n", false),
            ("", false),
        ] {
            assert_eq!(names_lfs(text), lfs, "{text}");
        }
    }

    #[test]
    fn an_address_that_gits_settings_rewrite_is_not_spoken_to() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let repository = Repository::init(folder.path()).expect("a repository can be begun");
        let mut config = repository.config().expect("it has settings");
        config.set_str("url.https://evil.example/.insteadOf", "https://example.org/").expect("it can be set");
        let rewritten = Cell::new(false);
        let made = as_it_stands(&repository, "other", "https://example.com/a", &rewritten).map(drop);
        assert!(made.is_ok() && !rewritten.get());
        let made = as_it_stands(&repository, "another", "https://example.org/a", &rewritten).map(drop);
        assert!(made.is_err() && rewritten.get());
    }

    #[test]
    fn a_clone_tells_of_its_remote_and_not_of_the_way_there() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let repository = Repository::init(folder.path()).expect("a repository can be begun");
        let port = "http://127.0.0.1:9/clone-x";
        repository.remote(REMOTE, port).expect("it can be made");
        fs::create_dir_all(repository.path().join("logs/refs")).expect("it can be made");
        fs::write(repository.path().join("logs/HEAD"), port).expect("it can be written");
        forget(&repository, "https://example.org/a").expect("it can be forgotten");
        let told = |path: &PathBuf| {
            path.is_file() && String::from_utf8_lossy(&fs::read(path).expect("a file")).contains("clone-x")
        };
        assert_eq!(walk(repository.path()).into_iter().find(told), None);
        let remote = repository.find_remote(REMOTE).expect("it is there");
        assert_eq!(remote.url().ok(), Some("https://example.org/a"));
    }

    /// A repository of one commit with a file `file` and, in a folder, another.
    fn source(path: &Path) -> Repository {
        let repository = Repository::init(path).expect("a repository can be begun");
        let author = git2::Signature::now("a", "a@example.org").expect("a signature can be made");
        let blob = repository.blob(b"hello").expect("a blob can be written");
        let commit = {
            let mut inner = repository.treebuilder(None).expect("a tree can be built");
            inner.insert("deep", blob, 0o100_644).expect("an entry can be added");
            let inner = inner.write().expect("it can be written");
            let mut tree = repository.treebuilder(None).expect("a tree can be built");
            tree.insert("file", blob, 0o100_644).expect("an entry can be added");
            tree.insert("folder", inner, 0o040_000).expect("an entry can be added");
            let tree = repository.find_tree(tree.write().expect("it can be written")).expect("it is there");
            repository.commit(Some("HEAD"), &author, &author, "one", &tree, &[]).expect("a commit can be made")
        };
        repository.find_commit(commit).expect("it is there");
        repository
    }

    fn order(from: &Path, into: &Path) -> Order {
        Order {
            remote: Remote::Local(from.to_owned()),
            through: None,
            branch: None,
            depth: None,
            into: into.to_owned(),
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_local_clone_is_whole_and_shares_nothing_with_its_source() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let root = folder.path().canonicalize().expect("it is there");
        let from = root.join("source");
        source(&from);
        let target = root.join("target");
        let cloned = clone(&order(&from, &target), |_| ()).expect("it can be cloned");
        assert_eq!(cloned, Cloned { submodules: false, lfs: false });
        for file in ["file", "folder/deep"] {
            assert_eq!(fs::read_to_string(target.join(file)).expect("it is there"), "hello");
        }
        let status = Repository::open(&target).expect("it is a repository");
        assert!(status.statuses(None).expect("it can be asked").is_empty(), "the index fits the files");
        let linked = walk(&target)
            .into_iter()
            .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() > 1));
        assert_eq!(linked, None, "no file is shared by a hard link");
        assert_eq!(fs::read_dir(&target).expect("it is there").count(), 3, "the repository and its files alone");

        let wrong = Order { branch: Some("nope".into()), ..order(&from, &root.join("branch")) };
        assert_eq!(clone(&wrong, |_| ()), Err(Failure::NoBranch));
    }

    #[test]
    fn what_is_too_much_is_not_written() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let root = folder.path().canonicalize().expect("it is there");
        let from = root.join("source");
        source(&from);
        for (name, limits, limit, of) in [
            ("files", Limits { files: 1, ..Limits::default() }, 1, "files"),
            ("content", Limits { content: 9, ..Limits::default() }, 9, "bytes of files"),
        ] {
            let into = root.join(name);
            let order = Order { limits, ..order(&from, &into) };
            assert_eq!(clone(&order, |_| ()), Err(Failure::TooMuch { limit, of: of.into() }));
            assert!(!walk(&into).iter().any(|path| path.ends_with("file")), "{name}: nothing is checked out");
        }
    }

    #[test]
    fn a_repository_of_this_host_that_leads_elsewhere_is_not_read() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let root = folder.path().canonicalize().expect("it is there");
        source(&root.join("other"));
        let bend = |name: &str, bend: &dyn Fn(&Path)| {
            let from = root.join(name);
            source(&from);
            bend(&from.join(".git"));
            clone(&order(&from, &root.join(format!("{name}-clone"))), |_| ())
        };
        let objects = root.join("other/.git/objects");
        let linked = bend("linked", &|git| {
            fs::remove_dir_all(git.join("objects")).expect("it can be removed");
            symlink(&objects, git.join("objects")).expect("a link can be made");
        });
        assert!(matches!(&linked, Err(Failure::Strange(what)) if what.contains("objects")), "{linked:?}");
        let fifo = bend("fifo", &|git| {
            fs::remove_file(git.join("config")).expect("it can be removed");
            nix::unistd::mkfifo(&git.join("config"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
        });
        assert!(matches!(&fifo, Err(Failure::Strange(what)) if what.contains("config")), "{fifo:?}");
        let borrowed = bend("borrowed", &|git| {
            fs::write(git.join("objects/info/alternates"), objects.to_str().expect("it is text"))
                .expect("it can be written");
        });
        assert_eq!(borrowed, Err(Failure::Borrowed));
        let common = bend("common", &|git| {
            fs::write(git.join("commondir"), root.join("other/.git").to_str().expect("it is text"))
                .expect("it can be written");
        });
        assert_eq!(common, Err(Failure::Elsewhere));
        let none = bend("none", &|git| fs::remove_file(git.join("HEAD")).expect("it can be removed"));
        assert_eq!(none, Err(Failure::NoRepository));
        let bent = bend("bent", &|git| {
            fs::rename(git, git.with_file_name("moved")).expect("it can be moved");
            fs::write(git, format!("gitdir: {}\n", root.join("other/.git").display())).expect("it can be written");
        });
        assert_eq!(bent, Err(Failure::Elsewhere));
    }

    fn walk(path: &Path) -> Vec<PathBuf> {
        let mut found = vec![path.to_owned()];
        if path.is_dir() {
            for entry in fs::read_dir(path).expect("it is a folder") {
                found.extend(walk(&entry.expect("it can be read").path()));
            }
        }
        found
    }
}
