//! The repository of a new project: cloned, or begun. libgit2 runs no hook, no filter and no helper, so that
//! nothing of the project's code runs on the host.
//!
//! libgit2 reaches no server: it is told a port of this host's loopback behind which one stands.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use git2::{
    CheckoutNotificationType, ErrorClass, ErrorCode, FetchOptions, RemoteCallbacks, RemoteRedirect, Repository,
    RepositoryInitOptions, RepositoryOpenFlags,
    build::{CheckoutBuilder, CloneLocal, RepoBuilder},
};
use uuid::Uuid;

use super::{place, project::Owner};
use crate::{
    git::{Remote, audit::Outcome},
    refusal::Refusal,
    text,
};

/// The mode of a submodule in a tree.
const SUBMODULE: u32 = 0o160_000;
/// Files of attributes that are looked at, and how large they may be.
const ATTRIBUTES: usize = 1000;
const ATTRIBUTES_BYTES: usize = 256 * 1024;

/// Checks where a project is to come from. A local repository lies under an allowed root, belongs to the same user, is
/// whole, and is no project's (PROJ-3): what lies in a project's folder is its container's word. Nor was it a deleted one's
/// that the asker might not use (SEC-4). Gives it with every link resolved.
pub fn check(remote: Remote, rules: &place::Rules) -> Result<Remote, Refusal> {
    let Remote::Local(path) = &remote else { return Ok(remote) };
    let shown = text::code(&path.to_string_lossy());
    let unreadable = |error| {
        Refusal::internal(format!("{shown} cannot be read"), error)
            .hint("Give the path of a git repository on this host.")
    };
    let real = path.canonicalize().map_err(unreadable)?;
    let allowed = rules.roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
    if !allowed {
        return Err(Refusal::usage(format!("{shown} is not below a folder where projects may lie"))
            .hint("Add its parent to `[projects] roots` in bot.toml."));
    }
    if let Some(place::Taken { whose, .. }) = rules.taking(&real) {
        return Err(Refusal::usage(format!("{shown} belongs to {whose}")).hint("Clone it from its address instead."));
    }
    if real.metadata().map_err(unreadable)?.uid() != rules.own.uid {
        return Err(
            Refusal::usage(format!("{shown} belongs to another user")).hint("Clone it from its address instead.")
        );
    }
    let repository = Repository::open_ext(&real, RepositoryOpenFlags::NO_SEARCH, &[] as &[&Path])
        .map_err(|error| Refusal::internal(format!("{shown} is not a git repository"), error))?;
    let inside = |part: &Path| part.canonicalize().is_ok_and(|part| part.starts_with(&real));
    if !inside(repository.path()) || !inside(repository.commondir()) {
        return Err(Refusal::usage(format!("the repository of {shown} lies elsewhere"))
            .hint("Clone the repository that it belongs to."));
    }
    if repository.commondir().join("objects/info/alternates").exists() {
        return Err(Refusal::usage(format!("{shown} borrows its objects from another repository"))
            .hint("Repack it first: `git repack -ad` there, then remove `objects/info/alternates`."));
    }
    Ok(Remote::Local(real))
}

/// What to clone and how.
#[derive(Debug)]
pub struct Clone {
    /// The project's id: the clone is made in a folder of that name and moved to its place when it is whole.
    pub id: Uuid,
    /// From where.
    pub remote: Remote,
    /// What libgit2 asks in place of that ([`ClonePort`](crate::git::ClonePort)); the remote itself when absent.
    pub through: Option<String>,
    /// Which branch; the remote's default when absent.
    pub branch: Option<String>,
    /// How many commits; all when absent.
    pub depth: Option<u32>,
}

/// What a clone is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// The server prepares; it is alive.
    Waiting,
    /// So many objects of so many have come.
    Objects(usize, usize),
    /// So many files of so many are written.
    Files(usize, usize),
}

/// How much a clone may bring.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes from the server.
    pub bytes: usize,
    /// Objects.
    pub objects: usize,
    /// Files of the branch that is checked out.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 20 * 1024 * 1024 * 1024, objects: 20_000_000, files: 5_000_000 }
    }
}

/// How a clone is watched, and broken off.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Turns true when nobody wants it any more.
    pub cancelled: Arc<AtomicBool>,
    /// How much may come.
    pub limits: Limits,
}

/// What of a clone people should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cloned {
    /// It has submodules, which are still to be fetched.
    pub submodules: bool,
    /// Some of its files are kept by Git LFS: what lies there are pointers.
    pub lfs: bool,
}

/// Why there is no clone, for the audit and for people.
pub type NotCloned = (Outcome, Refusal);

/// Clones into the folder at `path`, which is empty. Blocks; ends soon after it was cancelled.
pub fn clone(what: &Clone, path: &Path, watch: &Watch, mut progress: impl FnMut(Doing)) -> Result<Cloned, NotCloned> {
    let told = RefCell::new(&mut progress);
    let wanted = || !watch.cancelled.load(Ordering::Relaxed);
    let (address, limits) = (what.remote.shown(), watch.limits);
    let (rewritten, too_large, files) = (Cell::new(false), Cell::new(None), Cell::new(0));
    let within = |count: usize, limit: usize, of: &'static str| {
        if count > limit {
            too_large.set(Some((limit, of)));
        }
        count <= limit
    };
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|transfer| {
        told.borrow_mut()(Doing::Objects(transfer.received_objects(), transfer.total_objects()));
        wanted()
            && within(transfer.received_bytes(), limits.bytes, "bytes")
            && within(transfer.total_objects(), limits.objects, "objects")
    });
    callbacks.sideband_progress(|_| {
        told.borrow_mut()(Doing::Waiting);
        wanted()
    });
    let mut fetch = FetchOptions::new();
    fetch.remote_callbacks(callbacks).follow_redirects(RemoteRedirect::None);
    if let Some(depth) = what.depth {
        fetch.depth(i32::try_from(depth).unwrap_or(i32::MAX));
    }
    let mut builder = RepoBuilder::new();
    let mut checkout = CheckoutBuilder::new();
    checkout.progress(|_, done, all| told.borrow_mut()(Doing::Files(done, all)));
    checkout.notify_on(CheckoutNotificationType::all()).notify(|_, _, _, _, _| {
        files.set(files.get() + 1);
        wanted() && within(files.get(), limits.files, "files")
    });
    builder.fetch_options(fetch).clone_local(CloneLocal::NoLinks).with_checkout(checkout);
    if let Some(branch) = &what.branch {
        builder.branch(branch);
    }
    builder
        .remote_create(|repository, name, url| at_address(repository, name, url, what.through.as_deref(), &rewritten));
    let stage = path.join(format!(".musher-clone-{}", what.id));
    let cloned = builder.clone(&address, &stage).and_then(|repository| {
        if let Some(through) = &what.through {
            forget(&repository, through)?;
        }
        look(&repository)
    });
    drop(builder);
    let cloned = cloned.map_err(|error| {
        if !wanted() {
            return unwanted();
        }
        if let Some((limit, of)) = too_large.get() {
            let refusal = Refusal::usage(format!("{} has more than {limit} {of}", text::code(&address)))
                .hint("It is not cloned. Fewer commits may do: `--depth 1`.");
            return (Outcome::Failed, refusal);
        }
        if rewritten.get() {
            return (Outcome::Failed, elsewhere(&address));
        }
        refused(what, &error)
    })?;
    if !wanted() {
        return Err(unwanted());
    }
    unpack(&stage, path)
        .map_err(|error| (Outcome::Done, Refusal::internal("the clone could not be put into its place", error)))?;
    Ok(cloned)
}

/// Makes the remote, and has libgit2 ask `through` for it. Git's own settings on this host may say that the address means another
/// (`insteadOf`), which nobody has judged: a longer rule counts more than theirs, but where theirs is as long nothing is asked.
fn at_address<'a>(
    repository: &'a Repository,
    name: &str,
    url: &str,
    through: Option<&str>,
    rewritten: &Cell<bool>,
) -> Result<git2::Remote<'a>, git2::Error> {
    if let Some(through) = through {
        repository.config()?.set_str(&instead_of(through), url)?;
    }
    let remote = repository.remote(name, url)?;
    rewritten.set(remote.url_bytes() != through.unwrap_or(url).as_bytes());
    if rewritten.get() {
        return Err(git2::Error::new(ErrorCode::GenericError, ErrorClass::Callback, "the address is rewritten"));
    }
    Ok(remote)
}

fn instead_of(through: &str) -> String {
    format!("url.{through}.insteadOf")
}

/// Takes what libgit2 asked in place of the remote out of the clone: from its settings, and from its reflogs, which tell
/// nothing but where it came from.
fn forget(repository: &Repository, through: &str) -> Result<(), git2::Error> {
    repository.config()?.remove(&instead_of(through))?;
    let logs = repository.path().join("logs");
    match fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(git2::Error::new(ErrorCode::GenericError, ErrorClass::Os, error.to_string()))
        }
        _ => Ok(()),
    }
}

/// What people are told where another address would be spoken to.
fn elsewhere(address: &str) -> Refusal {
    Refusal::config(format!("your git configuration rewrites the address {}", text::code(address))).hint(
        "Give the address that is meant, or take the `url.….insteadOf` that fits it out of the git configuration of the user who runs musher.",
    )
}

fn unwanted() -> NotCloned {
    (Outcome::CutOff, Refusal::unavailable("the clone was given up"))
}

/// What people are told of a clone that failed, as far as libgit2 knows why.
fn refused(what: &Clone, error: &git2::Error) -> NotCloned {
    let shown = text::code(&what.remote.shown());
    if let (ErrorCode::NotFound, ErrorClass::Reference, Some(branch)) = (error.code(), error.class(), &what.branch) {
        let refusal = Refusal::usage(format!("{shown} has no branch {}", text::code(branch)))
            .hint("Check the branch, or leave `--branch` out for the repository's own default.");
        return (Outcome::Failed, refusal);
    }
    let (outcome, hint) = match error.class() {
        ErrorClass::Net | ErrorClass::Os => {
            (Outcome::Unreachable, "Check the address, and that this host reaches it; the same command tries it again.")
        }
        _ => (Outcome::Failed, "Check the address; the same command tries it again."),
    };
    let said = GitError(text::one_line(error.message(), 200));
    (outcome, Refusal::internal(format!("{shown} cannot be cloned"), said).hint(hint))
}

/// What of a clone people should know, from its index.
fn look(repository: &Repository) -> Result<Cloned, git2::Error> {
    let index = repository.index()?;
    let listed = index.get_path(Path::new(".gitmodules"), 0).is_some();
    let submodules = listed && index.iter().any(|entry| entry.mode == SUBMODULE);
    let attributes = index
        .iter()
        .filter(|entry| entry.path == b".gitattributes" || entry.path.ends_with(b"/.gitattributes"))
        .take(ATTRIBUTES);
    let mut lfs = false;
    for entry in attributes {
        let Ok(blob) = repository.find_blob(entry.id) else { continue };
        lfs |= blob.size() <= ATTRIBUTES_BYTES && names_lfs(&String::from_utf8_lossy(blob.content()));
    }
    Ok(Cloned { submodules, lfs })
}

/// Whether a file of attributes gives files to Git LFS.
fn names_lfs(attributes: &str) -> bool {
    let lines = attributes.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| line.split_whitespace().skip(1)).any(|attribute| attribute == "filter=lfs")
}

/// Moves what is in a folder up into the folder around it.
fn unpack(stage: &Path, path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(stage)? {
        let entry = entry?;
        fs::rename(entry.path(), path.join(entry.file_name()))?;
    }
    fs::remove_dir(stage)
}

/// Begins an empty repository on branch `main`.
pub fn begin(path: &Path) -> Result<(), Refusal> {
    let mut options = RepositoryInitOptions::new();
    options.initial_head("main").external_template(false).no_reinit(true);
    Repository::init_opts(path, &options).map(drop).map_err(|error| {
        Refusal::internal("the repository cannot be begun", GitError(text::one_line(error.message(), 200)))
    })
}

/// Gives a tree that this run made to its owner; links are given, not followed.
pub fn give(path: &Path, owner: Owner) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.uid() != owner.uid || meta.gid() != owner.gid {
        lchown(path, Some(owner.uid), Some(owner.gid))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct GitError(String);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        let port = "http://127.0.0.1:9/clone-x";
        for (name, address) in [("other", "https://example.com/a"), ("origin", "https://example.org/a")] {
            let made = at_address(&repository, name, address, Some(port), &rewritten).expect("it can be made");
            assert_eq!((made.url().ok(), rewritten.get()), (Some(port), false), "ours is the longer rule");
            forget(&repository, port).expect("it can be forgotten");
        }
        assert_eq!(
            config.snapshot().expect("it can be read").get_str("remote.origin.url"),
            Ok("https://example.org/a")
        );
        // A rule for the very address, of a level that counts as much.
        config.set_str("url.https://evil.example/.insteadOf", "https://example.net/a").expect("it can be set");
        let made = at_address(&repository, "exact", "https://example.net/a", Some(port), &rewritten);
        assert!(made.is_err() && rewritten.get());
        let made = at_address(&repository, "direct", "https://example.net/a", None, &rewritten);
        assert!(made.is_err() && rewritten.get());
        assert!(elsewhere("https://example.org/a").what.contains("your git configuration rewrites"));
    }

    #[test]
    fn a_local_clone_shares_nothing_with_its_source() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let source = folder.path().join("source");
        let repository = Repository::init(&source).expect("a repository can be begun");
        let author = git2::Signature::now("a", "a@example.org").expect("a signature can be made");
        let blob = repository.blob(b"hello").expect("a blob can be written");
        let mut tree = repository.treebuilder(None).expect("a tree can be built");
        tree.insert("file", blob, 0o100_644).expect("an entry can be added");
        let tree = repository.find_tree(tree.write().expect("it can be written")).expect("it is there");
        repository.commit(Some("HEAD"), &author, &author, "one", &tree, &[]).expect("a commit can be made");

        let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let rules = |root: &str, taken: &str, uid: u32| place::Rules {
            roots: vec![folder.path().join(root)],
            home: folder.path().to_owned(),
            state: folder.path().join("state"),
            taken: vec![place::Taken {
                path: folder.path().canonicalize().expect("it is there").join(taken),
                whose: "a deleted project that was for its members alone".into(),
            }],
            own: Owner { uid, ..own },
            fallback: own,
        };
        fs::create_dir_all(folder.path().join("elsewhere")).expect("it can be made");
        let source = Remote::Local(source);
        for (refused, why) in [
            (rules("elsewhere", "x", own.uid), "not below"),
            (rules("", "source", own.uid), "belongs to a deleted project that was for its members alone"),
            (rules("", "x", 4_000_000), "another user"),
        ] {
            let refusal = check(source.clone(), &refused).expect_err(why);
            assert!(refusal.what.contains(why), "{refusal}");
        }
        let remote = check(source, &rules("", "x", own.uid)).expect("it is allowed");

        let target = folder.path().join("target");
        fs::create_dir(&target).expect("it can be made");
        let what = Clone { id: Uuid::now_v7(), remote, through: None, branch: None, depth: None };
        let cloned = clone(&what, &target, &Watch::default(), |_| ()).expect("it can be cloned");
        assert_eq!(cloned, Cloned { submodules: false, lfs: false });
        assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "hello");
        let linked = walk(&target)
            .into_iter()
            .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() > 1));
        assert_eq!(linked, None, "no file is shared by a hard link");

        let staged = fs::read_dir(&target)
            .expect("it is there")
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
            .collect::<Vec<_>>();
        assert_eq!(staged.len(), 2, "the repository and its one file: {staged:?}");

        // An agent can write a `.git` that leads elsewhere.
        let bent = folder.path().join("bent");
        fs::create_dir(&bent).expect("it can be made");
        fs::write(bent.join(".git"), format!("gitdir: {}\n", target.join(".git").display()))
            .expect("it can be written");
        let refusal = check(Remote::Local(bent), &rules("", "x", own.uid)).expect_err("it leads out");
        assert!(refusal.what.contains("lies elsewhere"), "{refusal}");

        let large = folder.path().join("large");
        fs::create_dir(&large).expect("it can be made");
        let watch = Watch { limits: Limits { files: 0, ..Limits::default() }, ..Watch::default() };
        let (outcome, refusal) = clone(&what, &large, &watch, |_| ()).expect_err("it has a file");
        assert!(outcome == Outcome::Failed && refusal.what.ends_with("has more than 0 files"), "{refusal}");

        let empty = folder.path().join("empty");
        fs::create_dir(&empty).expect("it can be made");
        let wrong = Clone { branch: Some("nope".into()), ..what };
        let (_, refusal) = clone(&wrong, &empty, &Watch::default(), |_| ()).expect_err("there is no such branch");
        assert!(refusal.what.ends_with("has no branch `nope`"), "{refusal}");
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
