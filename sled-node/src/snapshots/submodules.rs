//! Moving submodules to the commits that they had, with what is changed in them kept.
//!
//! Their own repositories have hooks and filters, so git is run under a supervisor here. What is changed in them and not committed is not on record.

use std::ffi::OsString;

use super::plumbing::{Deadline, Fault, path};
use super::restore::Pointer;
use crate::workspace::Workspace;

/// The submodules of a project.
pub struct Submodules<'a> {
    /// Where they are.
    pub workspace: &'a Workspace,
    /// Until when there is time.
    pub deadline: Deadline,
}

impl Submodules<'_> {
    /// Whether a submodule that is there can be moved without losing what is changed in it.
    pub async fn can_move(&self, to: &Pointer) -> Result<bool, Fault> {
        Ok(!self.is_there(to) || self.inside(to, &["read-tree", "-m", "-u", "--dry-run", "HEAD", &to.commit]).await?)
    }

    /// Moves a submodule. One that is not there is made from what the repository still has of it; says whether it is there then.
    pub async fn move_to(&self, to: &Pointer) -> Result<bool, Fault> {
        if !self.is_there(to) {
            let mut args: Vec<OsString> = ["submodule", "update", "--init", "--force", "--"].map(Into::into).into();
            args.push(path(&to.path).into());
            if !self.git(args).await? || !self.is_there(to) {
                return Ok(false);
            }
        }
        self.inside(to, &["checkout", "--quiet", "--detach", &to.commit]).await
    }

    fn is_there(&self, to: &Pointer) -> bool {
        self.workspace.directory.join(path(&to.path)).join(".git").symlink_metadata().is_ok()
    }

    async fn inside(&self, to: &Pointer, args: &[&str]) -> Result<bool, Fault> {
        let place = ["-C".into(), path(&to.path).into()];
        self.git(place.into_iter().chain(args.iter().map(Into::into)).collect()).await
    }

    /// Runs git, and says whether it succeeded.
    async fn git(&self, args: Vec<OsString>) -> Result<bool, Fault> {
        let left = self.deadline.left()?;
        let settings = ["-c", "core.hooksPath=/dev/null"].map(Into::into);
        let succeeded = self.workspace.succeeds(settings.into_iter().chain(args), left).await;
        succeeded.map_err(|error| Fault::NotRun(std::io::Error::other(error.to_string())))
    }
}
