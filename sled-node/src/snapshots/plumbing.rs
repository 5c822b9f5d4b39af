//! Git's plumbing, run on the project's repository without anything of the repository's own that could run or change what is stored:
//! no hooks, no filters, no conversion of line ends, no monitor.
//!
//! It starts git alone, which with these settings starts nothing else; so it needs no supervisor, and is ended when nobody waits for it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::Instant;

use super::locks;
use crate::environment::Environment;
use crate::text::{MAX_ERROR, one_line};

/// How much of what git says is taken at all, in bytes.
const OUTPUT_LIMIT: usize = 64 * 1024 * 1024;

/// How much of its complaints is kept, in bytes.
const COMPLAINT_LIMIT: usize = 4 * 1024;

/// How long git has between being asked to end and being killed: it takes its locks away when it is asked, and only then. So long
/// it may take to be dead after that.
const PARTING: Duration = Duration::from_secs(if cfg!(test) { 10 } else { 1 });

/// Nobody else works on the records for as long as one of these is there.
pub type Alone = Arc<OwnedMutexGuard<()>>;

/// The tree without any entry, whose attributes hold in place of the project's own; by the repository's object format.
const EMPTY_TREE_SHA1: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
const EMPTY_TREE_SHA256: &str = "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321";

/// What holds whatever the repository's configuration says: names are stored as they are, changed files are known by all that the system
/// tells of them, nothing else is run, no log is kept.
const SETTINGS: [&str; 20] = [
    "safe.directory=*",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.fileMode=true",
    "core.symlinks=true",
    "core.ignoreCase=false",
    "core.ignoreStat=false",
    "core.checkStat=default",
    "core.trustctime=true",
    "core.protectHFS=false",
    "core.protectNTFS=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.logAllRefUpdates=false",
    "core.quotePath=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "color.ui=false",
    "core.commitGraph=false",
];

/// With these, and without attributes, bytes are stored as they are.
const AS_THEY_ARE: [&str; 2] = ["core.autocrlf=false", "core.attributesFile=/dev/null"];

/// Why the tree could not be recorded, compared or put back.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The time that there was is over.
    #[error("it took longer than {} s", .0.as_secs())]
    TooLong(Duration),
    /// More than is recorded.
    #[error("it is more than is recorded: {0}")]
    TooMuch(&'static str),
    /// Git refused.
    #[error("git {command} failed: {said}")]
    Git {
        /// Which of its commands.
        command: &'static str,
        /// Its own word for it.
        said: String,
    },
    /// Git said something that it should not.
    #[error("git {0} gave what cannot be read")]
    Unreadable(&'static str),
    /// A file could not be looked at, written or moved.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not any more what it was when it was looked at.
    #[error(
        "{path} was changed meanwhile and is left as it is; what comes after it is not put back yet, undo again goes on with it"
    )]
    ChangedMeanwhile {
        /// Which.
        path: String,
    },
    /// Git could not be run.
    #[error("cannot run git: {0}")]
    NotRun(#[from] std::io::Error),
}

impl Fault {
    /// What happened to a file.
    pub fn of(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: one_line(&path.to_string_lossy(), 200), source }
    }
}

/// Until when something may last.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    granted: Duration,
    at: Instant,
}

impl Deadline {
    /// So long from now on.
    pub fn within(granted: Duration) -> Self {
        Self { granted, at: Instant::now() + granted }
    }

    /// The time that there still is; fails when there is none.
    pub fn left(self) -> Result<Duration, Fault> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Fault::TooLong(self.granted)) } else { Ok(left) }
    }
}

/// An index, by its file in our folder of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// The repository's own, which is only read.
    Theirs,
    /// Ours: what is recorded of the tree, with what makes it quick to look again.
    Ours,
    /// Ours while it is made, which becomes ours when all of it is.
    Begun,
    /// What is to be put back.
    Goal,
}

/// One run of git.
pub struct Call<'a> {
    command: &'static str,
    args: Vec<OsString>,
    index: Index,
    input: &'a [u8],
    first: usize,
    conversions: bool,
    inside: Option<&'a Path>,
}

impl<'a> Call<'a> {
    /// `git <command>` on our index.
    pub fn new(command: &'static str) -> Self {
        let args = Vec::new();
        Self { command, args, index: Index::Ours, input: &[], first: OUTPUT_LIMIT, conversions: false, inside: None }
    }

    /// With further arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// On another index.
    pub fn index(self, index: Index) -> Self {
        Self { index, ..self }
    }

    /// On the repository of a submodule and its index.
    pub fn inside(self, submodule: &'a Path) -> Self {
        Self { inside: Some(submodule), index: Index::Theirs, ..self }
    }

    /// With this on standard input.
    pub fn input(self, input: &'a [u8]) -> Self {
        Self { input, ..self }
    }

    /// Takes no more than the first `bytes` of what it says.
    pub fn first(self, bytes: usize) -> Self {
        Self { first: bytes, ..self }
    }

    /// With the project's own attributes and conversions, to ask for them.
    pub fn with_conversions(self) -> Self {
        Self { conversions: true, ..self }
    }
}

/// What a run came to.
pub struct Said {
    /// Its exit code; `None` when it was ended by a signal, or not heard to its end.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error, bounded, on one line.
    pub complaint: String,
    /// Whether it would have said more.
    pub more: bool,
}

/// The repository whose work tree a folder is, and until when it may be worked on.
#[derive(Debug)]
pub struct Repository {
    /// The work tree.
    pub work_tree: PathBuf,
    /// Our folder in the repository.
    pub folder: PathBuf,
    environment: Environment,
    empty_tree: &'static str,
    deadline: Deadline,
    alone: Alone,
}

impl Repository {
    /// The repository of `work_tree`; `None` where it is not the top of one.
    pub async fn open(
        work_tree: &Path,
        environment: &Environment,
        deadline: Deadline,
        alone: Alone,
    ) -> Result<Option<Self>, Fault> {
        let mut environment = environment.for_git();
        environment.extend([
            ("GIT_AUTHOR_NAME", "Musher"),
            ("GIT_AUTHOR_EMAIL", "musher@localhost"),
            ("GIT_COMMITTER_NAME", "Musher"),
            ("GIT_COMMITTER_EMAIL", "musher@localhost"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_LAZY_FETCH", "1"),
        ]);
        let (work_tree, folder) = (work_tree.to_owned(), PathBuf::new());
        let mut found = Self { work_tree, folder, environment, empty_tree: EMPTY_TREE_SHA1, deadline, alone };
        if !tokio::fs::metadata(&found.work_tree).await.is_ok_and(|found| found.is_dir()) {
            return Ok(None);
        }
        let args = ["--show-object-format", "--show-cdup", "--path-format=absolute", "--git-dir", "--git-common-dir"];
        let said = found.run(Call::new("rev-parse").args(args).index(Index::Theirs)).await?;
        if said.code != Some(0) {
            // Of a repository that is there, but broken, it is said.
            return match tokio::fs::symlink_metadata(found.work_tree.join(".git")).await {
                Ok(_) => Err(Fault::Git { command: "rev-parse", said: said.complaint }),
                Err(_) => Ok(None),
            };
        }
        let lines: Vec<_> = said.output.split(|byte| *byte == b'\n').collect();
        let [format, up, git_dir, common_dir, b""] = lines[..] else { return Err(Fault::Unreadable("rev-parse")) };
        if !up.is_empty() {
            return Ok(None);
        }
        if format == b"sha256" {
            found.empty_tree = EMPTY_TREE_SHA256;
        }
        found.folder = path(git_dir).join("musher");
        let (folder, common_dir) = (found.folder.clone(), path(common_dir).to_owned());
        let cleaned = found.blocking(move || {
            std::fs::create_dir_all(&folder).map_err(|error| Fault::of(&folder, error))?;
            // Whoever held them was killed: there is one sled, and it does one thing at a time here.
            let left = ["index.lock", "begun", "begun.lock", "goal", "goal.lock"];
            left.iter().try_for_each(|left| remove(&folder.join(left)))?;
            locks::remove_left(&common_dir)
        });
        cleaned.await?;
        Ok(Some(found))
    }

    /// The file of an index; `None` for theirs.
    pub fn index(&self, index: Index) -> Option<PathBuf> {
        match index {
            Index::Theirs => None,
            Index::Ours => Some(self.folder.join("index")),
            Index::Begun => Some(self.folder.join("begun")),
            Index::Goal => Some(self.folder.join("goal")),
        }
    }

    /// Until when there is time.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// What git says, which must succeed.
    pub async fn git(&self, call: Call<'_>) -> Result<Vec<u8>, Fault> {
        let command = call.command;
        let said = self.run(call).await?;
        match said {
            Said { more: true, .. } => Err(Fault::TooMuch("too many files")),
            Said { code: Some(0), output, .. } => Ok(output),
            Said { complaint, .. } => Err(Fault::Git { command, said: complaint }),
        }
    }

    /// What git says on one line; `None` when it says by exit code 1 that there is nothing.
    pub async fn ask(&self, call: Call<'_>) -> Result<Option<String>, Fault> {
        let command = call.command;
        let said = self.run(call).await?;
        match said.code {
            Some(0) => Ok(Some(String::from_utf8_lossy(&said.output).trim_end_matches('\n').to_owned())),
            Some(1) => Ok(None),
            _ => Err(Fault::Git { command, said: said.complaint }),
        }
    }

    /// Works on files, where nothing else waits for it, and waits for that while there is time. Nobody else works on the records before it is
    /// done, whoever waits for it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let alone = self.alone.clone();
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(alone);
            done
        });
        let Ok(worked) = tokio::time::timeout_at(self.deadline.at, working).await else {
            return Err(Fault::TooLong(self.deadline.granted));
        };
        worked.map_err(std::io::Error::other)?
    }

    /// Runs git.
    pub async fn run(&self, call: Call<'_>) -> Result<Said, Fault> {
        self.deadline.left()?;
        let mut command = Command::new("git");
        command.env_clear().envs(&self.environment).current_dir(&self.work_tree).kill_on_drop(true);
        if let Some(index) = self.index(call.index) {
            command.env("GIT_INDEX_FILE", index);
        }
        if let Some(submodule) = call.inside {
            command.arg("-C").arg(submodule);
        }
        command.arg("--no-pager");
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        if !call.conversions {
            command.args(AS_THEY_ARE.iter().flat_map(|setting| ["-c", setting]));
            command.arg(format!("--attr-source={}", self.empty_tree));
        }
        command.arg(call.command).args(&call.args);
        let stdin = if call.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (wanted, unwanted) = oneshot::channel();
        let mut ended = tokio::spawn(ended(child, unwanted, self.alone.clone()));
        let worked = async {
            let writing = async {
                if let Some(mut stdin) = stdin {
                    // Who ends without having read it all says why by other means.
                    stdin.write_all(call.input).await.ok();
                }
            };
            let reading = async {
                let (output, more) = read(stdout, call.first).await?;
                if more {
                    return Ok((output, None));
                }
                Ok::<_, std::io::Error>((output, Some((&mut ended).await.map_err(std::io::Error::other)??)))
            };
            let complaining = complaint(stderr);
            tokio::pin!(reading, complaining, writing);
            let mut said = Vec::new();
            let (mut written, mut complained) = (false, false);
            let heard = loop {
                tokio::select! {
                    heard = &mut reading => break heard?,
                    () = &mut writing, if !written => written = true,
                    complaint = &mut complaining, if !complained => {
                        complained = true;
                        said = complaint?;
                    }
                }
            };
            if !complained && heard.1.is_some() {
                said = complaining.await?;
            }
            Ok::<_, std::io::Error>((heard, said))
        };
        let Ok(worked) = tokio::time::timeout_at(self.deadline.at, worked).await else {
            drop(wanted);
            // How it ends does not matter any more; if it has ended, something else holds its output open.
            if !ended.is_finished() {
                ended.await.ok();
            }
            return Err(Fault::TooLong(self.deadline.granted));
        };
        let ((mut output, status), complaint) = worked?;
        output.truncate(call.first);
        let complaint = one_line(&String::from_utf8_lossy(&complaint), MAX_ERROR);
        Ok(Said { code: status.and_then(|status| status.code()), output, complaint, more: status.is_none() })
    }
}

/// Waits for the end of a git. It is asked to end when it is not wanted any more because whoever waited for it is gone, and nobody else works
/// on the records before it is dead.
async fn ended(mut child: Child, unwanted: oneshot::Receiver<()>, alone: Alone) -> std::io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        _gone = unwanted => {}
    }
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It is a child that nobody has waited for, so that nobody else has its id.
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
    }
    let mut status = tokio::time::timeout(PARTING, child.wait()).await;
    if status.is_err() {
        child.start_kill()?;
        // One that hangs in a file system is not killed by that: nothing else waits for it without an end.
        status = tokio::time::timeout(PARTING, child.wait()).await;
    }
    let status = status?;
    drop(alone);
    status
}

/// Reads up to `limit` bytes, and says whether there are more.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> std::io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok((bytes, false)) };
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    pipe.take(most).read_to_end(&mut bytes).await?;
    let more = bytes.len() > limit;
    Ok((bytes, more))
}

/// Reads to the end, and keeps what came first.
async fn complaint(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    (&mut pipe).take(COMPLAINT_LIMIT as u64).read_to_end(&mut kept).await?;
    // What is over the bound is read all the same, for git to go on.
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(kept)
}

/// Removes a file that may be there.
pub fn remove(path: &Path) -> Result<(), Fault> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Fault::of(path, error)),
        _ => Ok(()),
    }
}

/// What stands between the NULs.
pub fn entries(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    output.split(|byte| *byte == 0).filter(|entry| !entry.is_empty())
}

/// Entries with a NUL after each.
pub fn joined<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in entries {
        all.extend_from_slice(entry);
        all.push(0);
    }
    all
}

/// A path of git's, which has bytes.
pub fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;

    use super::*;

    /// A git that has taken a lock, and takes it away when it is asked to end.
    const LOCKED: &str = "#!/bin/sh\ntrap 'rm lock; exit 1' TERM\ntouch lock\nwhile :; do :; done\n";

    /// Has it run until it holds its lock, and `cut` off then; its lock is gone when somebody else may work on the records.
    async fn check(cut: impl AsyncFnOnce(tokio::task::JoinHandle<Result<Said, Fault>>)) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let git = folder.path().join("git");
        std::fs::write(&git, LOCKED).unwrap();
        std::fs::set_permissions(&git, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let records = Arc::new(Mutex::new(()));
        let repository = Repository {
            work_tree: folder.path().to_owned(),
            folder: PathBuf::new(),
            environment: [("PATH", path)].into_iter().collect(),
            empty_tree: EMPTY_TREE_SHA1,
            deadline: Deadline::within(Duration::from_mins(1)),
            alone: Arc::new(records.clone().lock_owned().await),
        };
        let running = tokio::spawn(async move { repository.run(Call::new("update-ref")).await });
        let lock = folder.path().join("lock");
        while !lock.exists() {
            tokio::task::yield_now().await;
        }
        cut(running).await;
        drop(records.lock().await);
        assert!(!lock.exists());
    }

    #[tokio::test]
    async fn git_that_nobody_waits_for_any_more_takes_its_locks_away() {
        check(async |running| running.abort()).await;
    }

    #[tokio::test]
    async fn git_that_takes_too_long_takes_its_locks_away() {
        check(async |running| {
            tokio::time::pause();
            tokio::time::advance(Duration::from_mins(1)).await;
            tokio::time::resume();
            assert!(matches!(running.await.unwrap(), Err(Fault::TooLong(_))));
        })
        .await;
    }
}
