//! Moving submodules to the commits that they had, with what is changed in them kept.
//!
//! Their own repositories have hooks and filters, so git is run under a supervisor here. What is changed in them and not committed is not on record.

use std::ffi::OsString;

use super::plumbing::{Fault, Repository, path};
use super::restore::{Pointer, files_below};
use crate::workspace::Workspace;

/// The submodules of a project.
pub struct Submodules<'a> {
    /// Where they are.
    pub workspace: &'a Workspace,
    /// The project's own repository.
    pub repository: &'a Repository,
}

impl Submodules<'_> {
    /// Whether a submodule that is there can be moved without losing what is changed in it, or what is ignored in it.
    pub async fn can_move(&self, to: &Pointer) -> Result<bool, Fault> {
        Ok(!self.is_there(to).await
            || self.inside(to, &["read-tree", "-m", "-u", "--dry-run", "HEAD", &to.commit]).await?
                && !self.repository.is_in_the_way_of(to).await?)
    }

    /// Moves a submodule. One that is not there is made from what the repository still has of it; says whether it is there then.
    pub async fn move_to(&self, to: &Pointer) -> Result<bool, Fault> {
        if !self.is_there(to).await {
            // Git would overwrite what has come there since the plan was made.
            let place = self.workspace.directory.join(path(&to.path));
            let empty =
                self.repository.blocking(move || Ok(!place.exists() || files_below(&place, b"").is_empty())).await?;
            let mut args: Vec<OsString> = ["submodule", "update", "--init", "--"].map(Into::into).into();
            args.push(path(&to.path).into());
            if !empty || !self.git(args).await? || !self.is_there(to).await {
                return Ok(false);
            }
        }
        self.inside(to, &["checkout", "--quiet", "--no-overwrite-ignore", "--detach", &to.commit]).await
    }

    async fn is_there(&self, to: &Pointer) -> bool {
        let place = self.workspace.directory.join(path(&to.path));
        tokio::fs::symlink_metadata(place.join(".git")).await.is_ok()
    }

    async fn inside(&self, to: &Pointer, args: &[&str]) -> Result<bool, Fault> {
        let place = ["-C".into(), path(&to.path).into()];
        self.git(place.into_iter().chain(args.iter().map(Into::into)).collect()).await
    }

    /// Runs git, and says whether it succeeded.
    async fn git(&self, args: Vec<OsString>) -> Result<bool, Fault> {
        let left = self.repository.deadline().left()?;
        let settings = ["-c", "core.hooksPath=/dev/null"].map(Into::into);
        let succeeded = self.workspace.succeeds(settings.into_iter().chain(args), left).await;
        succeeded.map_err(|error| Fault::NotRun(std::io::Error::other(error.to_string())))
    }
}
