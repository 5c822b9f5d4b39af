//! The repository of a new project: cloned, or begun. libgit2 runs no hook, no filter and no helper, so that
//! nothing of the project's code runs on the host.
//!
//! A credential is handed in, used from memory for the one address that it is for, and is in no file, no setting of the
//! clone and no error.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use git2::{
    CertificateCheckStatus, CheckoutNotificationType, Cred, CredentialType, ErrorClass, ErrorCode, FetchOptions,
    ProxyOptions, RemoteCallbacks, RemoteRedirect, Repository, RepositoryInitOptions, RepositoryOpenFlags,
    build::{CheckoutBuilder, CloneLocal, RepoBuilder},
};
use uuid::Uuid;

use super::{place, project::Owner};
use crate::{
    git::{
        KnownHosts, Remote,
        audit::Outcome,
        credentials::{self, Credentials, SshKey, WebCredential},
        remote::is_loopback_name,
    },
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

/// Who logs in at the server.
#[derive(Debug)]
pub enum Login {
    /// Nobody: there is no credential for it.
    Nobody,
    /// By name and token.
    Web(WebCredential),
    /// Under a name, by key.
    Ssh(String, SshKey),
}

impl Login {
    /// The one for this repository.
    pub fn of(remote: &Remote, credentials: &Credentials) -> Result<Self, Refusal> {
        Ok(match remote {
            Remote::Web(web) => credentials.web(web)?.map_or(Self::Nobody, Self::Web),
            Remote::Ssh(ssh) => {
                credentials.ssh(ssh)?.map_or(Self::Nobody, |key| Self::Ssh(ssh.login().to_owned(), key))
            }
            Remote::Local(_) => Self::Nobody,
        })
    }
}

/// What to clone and how.
#[derive(Debug)]
pub struct Clone {
    /// The project's id: the clone is made in a folder of that name and moved to its place when it is whole.
    pub id: Uuid,
    /// From where.
    pub remote: Remote,
    /// Who logs in there.
    pub login: Login,
    /// Which SSH servers are known.
    pub known_hosts: KnownHosts,
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
    /// How many bytes have come.
    pub received: Arc<AtomicU64>,
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

/// How the server and we got on about the credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// It never asked.
    Never,
    /// It was given what there is.
    Given,
    /// It was given that, and asked again.
    Refused,
    /// There is nothing that it could be given.
    Nothing,
}

/// Why there is no clone, for the audit and for people.
pub type NotCloned = (Outcome, Refusal);

/// Clones into the folder at `path`, which is empty. Blocks; ends soon after it was cancelled.
pub fn clone(what: &Clone, path: &Path, watch: &Watch, mut progress: impl FnMut(Doing)) -> Result<Cloned, NotCloned> {
    let told = RefCell::new(&mut progress);
    let wanted = || !watch.cancelled.load(Ordering::Relaxed);
    let (asked, stranger) = (Cell::new(Asked::Never), RefCell::new(None));
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
        watch.received.store(u64::try_from(transfer.received_bytes()).unwrap_or(u64::MAX), Ordering::Relaxed);
        told.borrow_mut()(Doing::Objects(transfer.received_objects(), transfer.total_objects()));
        wanted()
            && within(transfer.received_bytes(), limits.bytes, "bytes")
            && within(transfer.total_objects(), limits.objects, "objects")
    });
    callbacks.sideband_progress(|_| {
        told.borrow_mut()(Doing::Waiting);
        wanted()
    });
    callbacks.credentials(|url, _, allowed| {
        // It is for this address, whatever else libgit2 may come to speak to.
        if url != address {
            rewritten.set(true);
            return Err(given_up());
        }
        give_login(&what.login, allowed, &asked)
    });
    if let Remote::Ssh(ssh) = &what.remote {
        callbacks.certificate_check(|certificate, _| {
            let key = certificate.as_hostkey().and_then(git2::cert::CertHostkey::hostkey);
            let known = match key {
                Some(key) => what.known_hosts.demand(ssh.bare_host(), ssh.port(), key),
                None => Err(Refusal::internal("the SSH server cannot be recognised", "it showed no host key")),
            };
            known.map(|()| CertificateCheckStatus::CertificateOk).map_err(|refusal| {
                stranger.replace(Some(refusal));
                given_up()
            })
        });
    }
    let mut fetch = FetchOptions::new();
    let mut proxy = ProxyOptions::new();
    // A proxy has another loopback, and would read along.
    if !matches!(&what.remote, Remote::Web(web) if is_loopback_name(web.bare_host())) {
        proxy.auto();
    }
    // On the same server libgit2 follows all the same: whoever asks for a clone looks for that beforehand.
    fetch.remote_callbacks(callbacks).follow_redirects(RemoteRedirect::None).proxy_options(proxy);
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
    builder.remote_create(|repository, name, url| at_address(repository, name, url, &rewritten));
    let stage = path.join(format!(".musher-clone-{}", what.id));
    let cloned = builder.clone(&address, &stage).and_then(|repository| look(&repository));
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
        let distrust = stranger.take().map(|refusal| (Outcome::Untrusted, refusal));
        distrust.unwrap_or_else(|| refused(what, asked.get(), &error))
    })?;
    if !wanted() {
        return Err(unwanted());
    }
    unpack(&stage, path)
        .map_err(|error| (Outcome::Done, Refusal::internal("the clone could not be put into its place", error)))?;
    Ok(cloned)
}

/// What libgit2 is told where there is nothing to give it. It is not shown.
fn given_up() -> git2::Error {
    git2::Error::new(ErrorCode::Auth, ErrorClass::Callback, "given up")
}

/// Makes the remote, unless git's own settings on this host say that another address is meant (`insteadOf`), which nobody has judged.
fn at_address<'a>(
    repository: &'a Repository,
    name: &str,
    url: &str,
    rewritten: &Cell<bool>,
) -> Result<git2::Remote<'a>, git2::Error> {
    let remote = repository.remote(name, url)?;
    rewritten.set(remote.url_bytes() != url.as_bytes());
    if rewritten.get() { Err(given_up()) } else { Ok(remote) }
}

fn give_login(login: &Login, allowed: CredentialType, asked: &Cell<Asked>) -> Result<Cred, git2::Error> {
    if let (true, Login::Ssh(user, _)) = (allowed.contains(CredentialType::USERNAME), login) {
        return Cred::username(user);
    }
    if asked.get() != Asked::Never {
        asked.set(Asked::Refused);
        return Err(given_up());
    }
    match login {
        Login::Web(login) if allowed.contains(CredentialType::USER_PASS_PLAINTEXT) => {
            asked.set(Asked::Given);
            Cred::userpass_plaintext(login.user(), login.expose_token())
        }
        Login::Ssh(user, key) if allowed.intersects(CredentialType::SSH_KEY | CredentialType::SSH_MEMORY) => {
            asked.set(Asked::Given);
            Cred::ssh_key_from_memory(user, None, key.expose_pem(), None)
        }
        _ => {
            asked.set(Asked::Nothing);
            Err(given_up())
        }
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

/// What people are told of a clone that failed.
fn refused(what: &Clone, asked: Asked, error: &git2::Error) -> NotCloned {
    let shown = text::code(&what.remote.shown());
    let store = match &what.remote {
        Remote::Web(web) => {
            format!("`musher secrets set {}`, with `user:token` on standard input.", credentials::example(web))
        }
        Remote::Ssh(ssh) => {
            format!("`musher secrets set {} < key`, a private key without a passphrase.", credentials::example_ssh(ssh))
        }
        Remote::Local(_) => String::new(),
    };
    match asked {
        Asked::Nothing => {
            let refusal = Refusal::usage(format!("{shown} wants a credential, and none is stored for it")).hint(format!(
                "Check the address: a repository that is not there looks the same. For a private one store a credential, then give the same command again: {store}"
            ));
            return (Outcome::Denied, refusal);
        }
        Asked::Refused => {
            let refusal =
                Refusal::usage(format!("the server of {shown} does not take the credential that is stored for it"))
                    .hint(format!("Store one that it takes, then give the same command again: {store}"));
            return (Outcome::Denied, refusal);
        }
        Asked::Never | Asked::Given => {}
    }
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
        let other = at_address(&repository, "other", "https://example.com/a", &rewritten).expect("it can be made");
        assert_eq!((other.url().ok(), rewritten.get()), (Some("https://example.com/a"), false));
        let made = at_address(&repository, "origin", "https://example.org/a", &rewritten);
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
        let what = Clone {
            id: Uuid::now_v7(),
            remote,
            login: Login::Nobody,
            known_hosts: KnownHosts::default(),
            branch: None,
            depth: None,
        };
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
