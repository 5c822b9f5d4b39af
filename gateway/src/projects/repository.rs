//! The repository of a new project: cloned, or begun. libgit2 runs no hook, no filter and no helper, so that
//! nothing of the project's code runs on the host.

use std::{
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use git2::{
    FetchOptions, RemoteCallbacks, RemoteRedirect, Repository, RepositoryInitOptions, RepositoryOpenFlags,
    build::{CloneLocal, RepoBuilder},
};
use url::{Host, Url};

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

    /// Checks a local repository: under an allowed root, and of the same user (PROJ-3).
    pub fn check(&self, roots: &[PathBuf], owner: u32) -> Result<(), Refusal> {
        let Self::Local(path) = self else { return Ok(()) };
        let shown = text::code(&path.to_string_lossy());
        let unreadable = |error| {
            Refusal::internal(format!("{shown} cannot be read"), error)
                .hint("Give the path of a git repository on this host.")
        };
        let real = path.canonicalize().map_err(unreadable)?;
        let allowed = roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
        if !allowed {
            return Err(Refusal::usage(format!("{shown} is not below a folder where projects may lie"))
                .hint("Add its parent to `[projects] roots` in bot.toml."));
        }
        if real.metadata().map_err(unreadable)?.uid() != owner {
            return Err(
                Refusal::usage(format!("{shown} belongs to another user")).hint("Clone it from its address instead.")
            );
        }
        let repository = Repository::open_ext(&real, RepositoryOpenFlags::NO_SEARCH, &[] as &[&Path])
            .map_err(|error| Refusal::internal(format!("{shown} is not a git repository"), error))?;
        if repository.commondir().join("objects/info/alternates").exists() {
            return Err(Refusal::usage(format!("{shown} borrows its objects from another repository"))
                .hint("Repack it first: `git repack -ad` there, then remove `objects/info/alternates`."));
        }
        Ok(())
    }
}

/// What to clone and how.
#[derive(Debug, Clone)]
pub struct Clone {
    /// From where.
    pub source: Source,
    /// Which branch; the remote's default when absent.
    pub branch: Option<String>,
    /// How many commits; all when absent.
    pub depth: Option<u32>,
}

/// Clones into the folder at `path`, which is empty. Blocks; ends soon after `cancelled` turns true.
///
/// `progress` is told how many objects have come and how many there are.
pub fn clone(
    what: &Clone,
    path: &Path,
    cancelled: &Arc<AtomicBool>,
    mut progress: impl FnMut(usize, usize),
) -> Result<(), Refusal> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|transfer| {
        progress(transfer.received_objects(), transfer.total_objects());
        !cancelled.load(Ordering::Relaxed)
    });
    // Without a credentials callback, a server that wants one is an error and nothing is asked.
    let mut fetch = FetchOptions::new();
    fetch.remote_callbacks(callbacks).follow_redirects(RemoteRedirect::Initial);
    if let Some(depth) = what.depth {
        fetch.depth(i32::try_from(depth).unwrap_or(i32::MAX));
    }
    let mut builder = RepoBuilder::new();
    builder.fetch_options(fetch).clone_local(CloneLocal::NoLinks);
    if let Some(branch) = &what.branch {
        builder.branch(branch);
    }
    builder.clone(&what.source.shown(), path).map(drop).map_err(|error| {
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
    })
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

        let source = Source::Local(source);
        source.check(&[folder.path().to_owned()], nix::unistd::geteuid().as_raw()).expect("it is allowed");
        source
            .check(&[folder.path().join("elsewhere")], nix::unistd::geteuid().as_raw())
            .expect_err("not below a root");
        source.check(&[folder.path().to_owned()], 4_000_000).expect_err("of another user");

        let target = folder.path().join("target");
        fs::create_dir(&target).expect("it can be made");
        let what = Clone { source, branch: None, depth: None };
        clone(&what, &target, &Arc::default(), |_, _| ()).expect("it can be cloned");
        assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "hello");
        let linked = walk(&target)
            .into_iter()
            .find(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() > 1));
        assert_eq!(linked, None, "no file is shared by a hard link");

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
