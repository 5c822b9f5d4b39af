//! Bare repositories in a folder, made without a work tree, and looked at with git's own program.

use std::{
    fs,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{process, product, wait};

/// What a commit has.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A file of this path with this content.
    File(&'a str, &'a [u8]),
    /// A submodule at this path, at this commit.
    Submodule(&'a str, &'a str),
}

/// Bare repositories, which belong to one user.
#[derive(Debug)]
pub struct Repositories {
    folder: TempDir,
    owner: u32,
}

impl Repositories {
    /// None yet. What is made belongs to this user, where we may give it.
    pub fn new(owner: u32) -> Result<Self> {
        let repositories = Self { folder: product::scratch()?, owner };
        repositories.give()?;
        Ok(repositories)
    }

    /// The folder that they lie in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A repository without a commit, whose default branch is `branch`.
    pub async fn empty(&self, name: &str, branch: &str) -> Result<()> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        self.run(name, &["init", "--quiet", "--bare", "--initial-branch", branch], b"").await?;
        // Without it, only people whom the web server knows may push, and it knows them by a variable of its own.
        self.run(name, &["config", "http.receivepack", "true"], b"").await?;
        self.give()
    }

    /// A repository whose default branch has one commit with this content; gives the commit's id.
    pub async fn add(&self, name: &str, branch: &str, content: &[Content<'_>]) -> Result<String> {
        self.empty(name, branch).await?;
        self.commit(name, branch, "first", content).await
    }

    /// One more commit on a branch, which begins with it where there is none; gives the commit's id.
    pub async fn commit(&self, name: &str, branch: &str, message: &str, content: &[Content<'_>]) -> Result<String> {
        let mut stream = format!(
            "commit refs/heads/{branch}\ncommitter Bob <bob@example.org> 1700000000 +0000\ndata {}\n{message}\n",
            message.len()
        )
        .into_bytes();
        if let Some(before) = self.tip(name, branch).await? {
            stream.extend(format!("from {before}\n").into_bytes());
        }
        for part in content {
            match part {
                Content::File(path, bytes) => {
                    stream.extend(format!("M 100644 inline {path}\ndata {}\n", bytes.len()).into_bytes());
                    stream.extend_from_slice(bytes);
                    stream.push(b'\n');
                }
                Content::Submodule(path, commit) => stream.extend(format!("M 160000 {commit} {path}\n").into_bytes()),
            }
        }
        self.run(name, &["fast-import", "--quiet"], &stream).await?;
        self.give()?;
        self.tip(name, branch).await?.with_context(|| format!("{name} has no branch {branch}"))
    }

    /// The commit that a branch is at.
    pub async fn tip(&self, name: &str, branch: &str) -> Result<Option<String>> {
        let branch = format!("refs/heads/{branch}");
        let found = self.run(name, &["for-each-ref", "--format=%(objectname)", &branch], b"").await?;
        Ok(Some(found.trim().to_owned()).filter(|commit| !commit.is_empty()))
    }

    /// What a file has on a branch.
    pub async fn file(&self, name: &str, branch: &str, path: &str) -> Result<String> {
        self.run(name, &["show", &format!("{branch}:{path}")], b"").await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn run(&self, name: &str, args: &[&str], input: &[u8]) -> Result<String> {
        let mut git = git(self.folder.path());
        git.current_dir(self.path(name)).args(args);
        process::run(&mut git, input, wait::LONG).await?.success()
    }

    /// Gives all of it to its user, which only root can, and only root needs.
    fn give(&self) -> Result<()> {
        fn walk(path: &Path, owner: u32) -> std::io::Result<()> {
            lchown(path, Some(owner), Some(owner))?;
            if fs::symlink_metadata(path)?.is_dir() {
                for entry in fs::read_dir(path)? {
                    walk(&entry?.path(), owner)?;
                }
            }
            Ok(())
        }
        if nix::unistd::geteuid().as_raw() == self.owner {
            return Ok(());
        }
        walk(self.folder.path(), self.owner).context("the repositories cannot be given to their user")
    }
}

/// Git's own program, with no settings but these: whoever the repositories belong to is fine.
pub(super) fn git(home: &Path) -> Command {
    let mut git = Command::new("git");
    git.env_clear().env("HOME", home).env("LANG", "C.UTF-8").env("GIT_CONFIG_NOSYSTEM", "1");
    git.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    git.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    git
}
