//! The repository of a new project: cloned, or begun. libgit2 runs no hook, no filter and no helper, so that
//! nothing of the project's code runs on the host.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use git2::{
    CheckoutNotificationType, FetchOptions, ProxyOptions, RemoteCallbacks, RemoteRedirect, Repository,
    RepositoryInitOptions, RepositoryOpenFlags,
    build::{CheckoutBuilder, CloneLocal, RepoBuilder},
};
use url::{Host, Url};
use uuid::Uuid;

use super::{place, project::Owner};
use crate::{refusal::Refusal, text};

/// Where a clone comes from (PROJ-3, as far as no credential is needed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An https address, or http on loopback.
    Web(Url),
    /// A repository on this host.
    Local(PathBuf),
}

impl Source {
    /// Reads what follows `--git`. The refusal never repeats a credential.
    pub fn parse(text: &str, home: &Path) -> Result<Self, Refusal> {
        let refused = |what: &str| {
            Refusal::usage(what.to_owned()).hint("Give an https address such as `https://example.org/team/app.git`, or the path of a repository on this host.")
        };
        if text.starts_with('-') || text.contains("::") || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(refused("that is not the address of a git repository"));
        }
        if text.starts_with('/') || text.starts_with("~/") {
            return Ok(Self::Local(place::expand(text, home)?));
        }
        let Ok(url) = Url::parse(text) else {
            return Err(refused("that is not the address of a git repository"));
        };
        if url.password().is_some()
            || (url.scheme() != "ssh" && !url.username().is_empty())
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(Refusal::usage("the address carries a user name, a password or a token")
                .hint("It was not used and not stored. Delete your message, change that credential, and give the address without it."));
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => Ok(Self::Web(url)),
            "http" if loopback => Ok(Self::Web(url)),
            "http" => Err(refused("http is not encrypted, so it is taken on this host's loopback alone")),
            "ssh" => Err(refused("repositories over ssh are not in this version")),
            _ => Err(refused("only https addresses and local paths can be cloned")),
        }
    }

    /// As it is stored and shown.
    pub fn shown(&self) -> String {
        match self {
            Self::Web(url) => url.to_string(),
            Self::Local(path) => path.display().to_string(),
        }
    }

    /// Checks a local repository: under an allowed root, of the same user, whole, and no project's (PROJ-3): what lies in
    /// a project's folder is its container's word. Gives the source with every link resolved.
    pub fn check(self, rules: &place::Rules) -> Result<Self, Refusal> {
        let Self::Local(path) = &self else { return Ok(self) };
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
        if let Some((name, _)) =
            rules.taken.iter().find(|(_, taken)| real.starts_with(taken) || taken.starts_with(&real))
        {
            return Err(Refusal::usage(format!("{shown} belongs to project `{name}`"))
                .hint("Clone it from its address instead."));
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
        Ok(Self::Local(real))
    }
}

/// What to clone and how.
#[derive(Debug, Clone)]
pub struct Clone {
    /// The project's id: the clone is made in a folder of that name and moved to its place when it is whole.
    pub id: Uuid,
    /// From where.
    pub source: Source,
    /// Which branch; the remote's default when absent.
    pub branch: Option<String>,
    /// How many commits; all when absent.
    pub depth: Option<u32>,
}

/// Clones into the folder at `path`, which is empty. Blocks; ends soon after `cancelled` turns true.
///
/// `progress` is told how many objects have come, then how many files are written, and how many there are.
pub fn clone(
    what: &Clone,
    path: &Path,
    cancelled: &Arc<AtomicBool>,
    mut progress: impl FnMut(usize, usize),
) -> Result<(), Refusal> {
    let told = RefCell::new(&mut progress);
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|transfer| {
        told.borrow_mut()(transfer.received_objects(), transfer.total_objects());
        !cancelled.load(Ordering::Relaxed)
    });
    // Without a credentials callback, a server that wants one is an error and nothing is asked.
    let mut fetch = FetchOptions::new();
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    fetch.remote_callbacks(callbacks).follow_redirects(RemoteRedirect::Initial).proxy_options(proxy);
    if let Some(depth) = what.depth {
        fetch.depth(i32::try_from(depth).unwrap_or(i32::MAX));
    }
    let mut builder = RepoBuilder::new();
    let mut checkout = CheckoutBuilder::new();
    checkout.progress(|_, done, all| told.borrow_mut()(done, all));
    checkout.notify_on(CheckoutNotificationType::all()).notify(|_, _, _, _, _| !cancelled.load(Ordering::Relaxed));
    builder.fetch_options(fetch).clone_local(CloneLocal::NoLinks).with_checkout(checkout);
    if let Some(branch) = &what.branch {
        builder.branch(branch);
    }
    let stage = path.join(format!(".musher-clone-{}", what.id));
    let cloned = builder.clone(&what.source.shown(), &stage).map(drop);
    cloned.map_err(|error| {
        let hint = match (error.code(), &what.branch) {
            (git2::ErrorCode::Auth, _) => "It wants a credential; private repositories are not in this version.",
            (git2::ErrorCode::NotFound, Some(_)) => "Check the branch.",
            _ => "Check the address, and that this host reaches it.",
        };
        Refusal::internal(
            format!("{} cannot be cloned", text::code(&what.source.shown())),
            GitError(text::one_line(error.message(), 200)),
        )
        .hint(hint)
    })?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(Refusal::unavailable("the clone was given up"));
    }
    unpack(&stage, path).map_err(|error| Refusal::internal("the clone could not be put into its place", error))
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
    use super::*;

    #[test]
    fn addresses() {
        let home = Path::new("/home/ann");
        let web = |text: &str| Ok::<_, String>(Source::Web(Url::parse(text).expect("it is an address")));
        for (text, expected) in [
            ("https://example.org/a.git", web("https://example.org/a.git")),
            ("http://127.0.0.1:9/a", web("http://127.0.0.1:9/a")),
            ("http://localhost/a", web("http://localhost/a")),
            ("~/src/a", Ok(Source::Local("/home/ann/src/a".into()))),
            ("http://example.org/a", Err("http is not encrypted".into())),
            ("https://ann:secret@example.org/a", Err("the address carries".into())),
            ("https://ghp_token@example.org/a", Err("the address carries".into())),
            ("https://example.org/a?token=1", Err("the address carries".into())),
            ("ssh://git@example.org/a", Err("repositories over ssh".into())),
            ("git@example.org:a/b.git", Err("that is not the address".into())),
            ("ext::sh -c id", Err("that is not the address".into())),
            ("ext::sh", Err("that is not the address".into())),
            ("--upload-pack=id", Err("that is not the address".into())),
            ("-x", Err("that is not the address".into())),
            ("file:///etc", Err("only https".into())),
            ("git://example.org/a", Err("only https".into())),
            ("", Err("that is not the address".into())),
        ] {
            match (Source::parse(text, home), expected) {
                (Ok(source), Ok(expected)) => assert_eq!(source, expected),
                (Err(refusal), Err(words)) => {
                    assert!(refusal.what.starts_with(&words), "{text}: {refusal}");
                    assert!(
                        !refusal.to_string().contains("secret") && !refusal.to_string().contains("ghp_"),
                        "{refusal}"
                    );
                }
                (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
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
            taken: vec![("other".into(), folder.path().join(taken))],
            own: Owner { uid, ..own },
            fallback: own,
        };
        fs::create_dir_all(folder.path().join("elsewhere")).expect("it can be made");
        let source = Source::Local(source);
        for (refused, why) in [
            (rules("elsewhere", "x", own.uid), "not below"),
            (rules("", "source", own.uid), "project `other`"),
            (rules("", "x", 4_000_000), "another user"),
        ] {
            let refusal = source.clone().check(&refused).expect_err(why);
            assert!(refusal.what.contains(why), "{refusal}");
        }
        let source = source.check(&rules("", "x", own.uid)).expect("it is allowed");

        let target = folder.path().join("target");
        fs::create_dir(&target).expect("it can be made");
        let what = Clone { id: Uuid::now_v7(), source, branch: None, depth: None };
        clone(&what, &target, &Arc::default(), |_, _| ()).expect("it can be cloned");
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
        let refusal = Source::Local(bent).check(&rules("", "x", own.uid)).expect_err("it leads out");
        assert!(refusal.what.contains("lies elsewhere"), "{refusal}");

        let empty = folder.path().join("empty");
        fs::create_dir(&empty).expect("it can be made");
        let wrong = Clone { branch: Some("nope".into()), ..what };
        clone(&wrong, &empty, &Arc::default(), |_, _| ()).expect_err("there is no such branch");
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
