//! The project's files as git sees them: the state for `status`, and `git` at a person's request.
//!
//! Only git's own program looks into the repository, as a supervised child process, bounded in time and output, without a shell.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use link::requests::{CommandOutput, STATUS_TIME_LIMIT};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::environment::Environment;
use crate::porcelain::{Parser, TreeState};
use crate::supervised::{Program, StartError, Supervised, Supervision};
use crate::supervisor::Gone;
use crate::text;

/// How much of a command's output is kept: its end.
const OUTPUT_LIMIT: usize = 256 * 1024;

/// What a command that is ended has for doing so.
const GRACE: Duration = Duration::from_secs(1);

/// Settings that hold whatever the repository says: ours is never "dubious", no daemon is begun, no work goes on behind our back.
const GIT: [&str; 10] = [
    "git",
    "--no-pager",
    "-c",
    "safe.directory=*",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.autoDetach=false",
    "-c",
    "maintenance.autoDetach=false",
];

/// The folder that a project's container is about.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The folder, `/workspace` in a container.
    pub directory: PathBuf,
    /// The container's environment.
    pub environment: Environment,
    /// How its commands are run.
    pub supervision: Supervision,
    /// Those that run.
    pub commands: TaskTracker,
}

impl Workspace {
    /// Returns when no command runs any more. Nobody may ask for another.
    pub async fn idle(&self) {
        self.commands.close();
        self.commands.wait().await;
    }

    /// Runs `git <args>` for at most `limit` and gives what it wrote, both streams as they came.
    pub async fn git(&self, args: Vec<String>, limit: Duration) -> Result<CommandOutput, StartError> {
        let mut output = Ending::default();
        let ended =
            self.run(args.into_iter().map(Into::into), Errors::AmongOutput, limit, |chunk| output.push(chunk)).await?;
        let (mut output, truncated) = output.into_text();
        if ended.in_time {
            return Ok(CommandOutput { code: ended.code, output, truncated });
        }
        let limit = limit.as_secs();
        output = format!("{output}\n(ended: it had not finished after {limit} s)\n");
        Ok(CommandOutput { code: None, output, truncated })
    }

    /// The branch and what differs from the last commit. Nothing where the folder is no repository; what was found so far when it takes too long.
    pub async fn state(&self) -> Result<TreeState, StartError> {
        let args = ["--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=all", "-z"];
        let mut parser = Parser::default();
        let ended = self
            .run(args.into_iter().map(Into::into), Errors::Dropped, STATUS_TIME_LIMIT, |chunk| parser.feed(chunk))
            .await?;
        if !ended.in_time {
            tracing::warn!("git status takes longer than {} s", STATUS_TIME_LIMIT.as_secs());
            return Ok(parser.finish());
        }
        Ok(if ended.code == Some(0) { parser.finish() } else { TreeState::default() })
    }

    /// Runs `git <args>` for at most `limit`, and says whether it succeeded in time. What it says is logged when it did not.
    pub async fn succeeds(&self, args: impl Iterator<Item = OsString>, limit: Duration) -> Result<bool, StartError> {
        let mut output = Ending::default();
        let ended = self.run(args, Errors::AmongOutput, limit, |chunk| output.push(chunk)).await?;
        let succeeded = ended.in_time && ended.code == Some(0);
        if !succeeded {
            tracing::warn!(said = text::one_line(&output.into_text().0, text::MAX_ERROR), "git did not succeed");
        }
        Ok(succeeded)
    }

    async fn run(
        &self,
        args: impl Iterator<Item = OsString>,
        errors: Errors,
        limit: Duration,
        mut take: impl FnMut(&[u8]),
    ) -> Result<Ended, StartError> {
        let (output, stdout) = std::io::pipe()?;
        let stderr = match errors {
            Errors::AmongOutput => stdout.try_clone()?.into(),
            Errors::Dropped => Stdio::null(),
        };
        let mut output = pipe::Receiver::from_owned_fd(output.into())?;
        let supervised = self
            .supervision
            .start(Program {
                argv: GIT.into_iter().map(Into::into).chain(args).collect(),
                environment: self.environment.for_git(),
                directory: self.directory.clone(),
                stdin: Stdio::null(),
                stdout: stdout.into(),
                stderr,
            })
            .await?;
        let (wanted, unwanted) = oneshot::channel();
        let ended = self.commands.spawn(ended(supervised, unwanted));
        tokio::pin!(ended);
        let (mut open, mut wanted) = (true, Some(wanted));
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let mut buffer = vec![0; 16 * 1024];
        let gone = loop {
            tokio::select! {
                read = output.read(&mut buffer), if open => match read? {
                    0 => open = false,
                    length => take(&buffer[..length]),
                },
                gone = &mut ended => break gone.map_err(std::io::Error::other)?,
                () = &mut deadline, if wanted.is_some() => wanted = None,
            }
        };
        // What is still in the pipe; whoever else holds it open is not of this tree and not waited for.
        while let Ok(length @ 1..) = output.try_read(&mut buffer) {
            take(&buffer[..length]);
        }
        Ok(Ended { code: gone.code, in_time: wanted.is_some() })
    }
}

/// Waits until nothing of a command lives. When it is not wanted any more, because its time is over or its asker gone, it is asked to end before
/// it is killed: git takes its locks away then, and nobody's next command fails because of them.
async fn ended(mut command: Supervised, unwanted: oneshot::Receiver<()>) -> Gone {
    tokio::select! {
        gone = command.gone() => return gone,
        _gone = unwanted => {}
    }
    command.stop(GRACE).await;
    command.gone().await
}

/// Where a command's standard error goes.
enum Errors {
    AmongOutput,
    Dropped,
}

struct Ended {
    code: Option<i32>,
    in_time: bool,
}

/// The end of some output.
#[derive(Default)]
struct Ending {
    kept: Vec<u8>,
    truncated: bool,
}

impl Ending {
    fn push(&mut self, chunk: &[u8]) {
        self.kept.extend_from_slice(chunk);
        // Cut now and then, not for every chunk.
        if self.kept.len() > 2 * OUTPUT_LIMIT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if let Some(surplus) = self.kept.len().checked_sub(OUTPUT_LIMIT).filter(|surplus| *surplus > 0) {
            self.kept.drain(..surplus);
            self.truncated = true;
        }
    }

    fn into_text(mut self) -> (String, bool) {
        self.cut();
        (String::from_utf8_lossy(&self.kept).into_owned(), self.truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_what_is_kept() {
        let mut ending = Ending::default();
        ending.push(b"first\n");
        for _ in 0..40 {
            ending.push(&[b'x'; 16 * 1024]);
        }
        ending.push(b"last\n");
        let (text, truncated) = ending.into_text();
        assert!(truncated && text.len() == OUTPUT_LIMIT && text.ends_with("last\n"));

        let mut ending = Ending::default();
        ending.push(b"all of it");
        assert_eq!(ending.into_text(), ("all of it".to_owned(), false));
    }
}
