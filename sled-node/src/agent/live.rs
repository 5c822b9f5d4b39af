//! An agent's process with its streams, from its start to its end, over one turn or many.
//!
//! It carries lines in and out and bounds them; what they mean is [`super::stream_json`]'s to say, and when a turn is over the attempt's.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Launch, stream_json};
use crate::lines::{BoundedLines, Line};
use crate::supervised::{News, Program, StartError, Supervised, Supervision};
use crate::supervisor::Gone;

/// Longest line of standard error that is read at once, in bytes.
const ERROR_LINE: usize = 4096;

/// How many lines may wait for an agent to read them.
const UNREAD: usize = 64;

/// How long the last of the output may take to arrive when every process is gone: somebody outside the tree may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long an agent that is no longer wanted has between the end of its input and being asked to end, and from there to being killed.
const PARTING: Duration = Duration::from_secs(1);

/// An agent that runs. Dropping it kills its tree.
pub struct LiveAgent {
    tree: Supervised,
    mouth: Option<Mouth>,
    output: Option<BoundedLines<BufReader<ChildStdout>>>,
    errors: Option<BoundedLines<BufReader<ChildStderr>>>,
    /// Its start is over: what it has started until then is its own.
    started: bool,
    /// What it says to have cost since its start, in US dollars.
    spent_usd: f64,
}

/// What comes from an agent.
pub enum Sound {
    /// A line of its standard output.
    Output(Line),
    /// A line of its standard error.
    Error(Line),
    /// It has closed its standard output.
    Silent,
    /// It has closed its standard input.
    Deaf,
    /// What its supervisor tells.
    News(News),
}

/// The agent reads nothing of what it is told, or has closed its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoesNotListen;

struct Mouth {
    lines: mpsc::Sender<Vec<u8>>,
    /// Dropped, it closes the agent's standard input.
    speaking: AbortOnDropHandle<()>,
}

impl LiveAgent {
    /// Starts an agent in `directory`.
    pub async fn start(launch: Launch, directory: &Path, supervision: &Supervision) -> Result<Self, StartError> {
        let program = Program {
            argv: launch.argv,
            environment: launch.environment,
            directory: directory.to_owned(),
            stdin: Stdio::piped(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
        };
        Ok(Self::of(supervision.start(program).await?))
    }

    /// An agent that runs already.
    pub(crate) fn of(mut tree: Supervised) -> Self {
        let (output, errors) = (tree.child.stdout.take(), tree.child.stderr.take());
        Self {
            mouth: tree.child.stdin.take().map(Mouth::new),
            output: output.map(|output| BoundedLines::new(BufReader::new(output), stream_json::MAX_LINE)),
            errors: errors.map(|errors| BoundedLines::new(BufReader::new(errors), ERROR_LINE)),
            tree,
            started: false,
            spent_usd: 0.0,
        }
    }

    /// Hands the agent a line. Returns at once.
    pub fn say(&self, line: Vec<u8>) -> Result<(), DoesNotListen> {
        self.mouth.as_ref().and_then(|mouth| mouth.lines.try_send(line).ok()).ok_or(DoesNotListen)
    }

    /// Whether the agent has closed neither its standard input nor its output, as far as [`Sound`]s have told.
    pub fn converses(&self) -> bool {
        self.mouth.is_some() && self.output.is_some()
    }

    /// Closes the agent's standard input: the way to tell it that nothing will follow.
    pub fn hang_up(&mut self) {
        self.mouth = None;
    }

    /// Has every process of it asked to end, and killed after `grace`. Returns at once; [`Sound::News`] tells when all are gone.
    pub async fn stop(&mut self, grace: Duration) {
        self.tree.stop(grace).await;
    }

    /// Has everything ended but the agent and what it had at its start. Returns at once; [`Sound::News`] tells when it is.
    pub async fn settle(&mut self) {
        self.tree.settle().await;
    }

    /// The agent says that it is ready: what it has started by now, such as MCP servers, belongs to it for as long as it lives.
    pub async fn ready(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.tree.adopt().await;
        }
    }

    /// What a turn has cost, by what the agent says to have cost since its start.
    pub fn spent_in_turn(&mut self, total_usd: f64) -> f64 {
        let before = std::mem::replace(&mut self.spent_usd, total_usd);
        if total_usd >= before { total_usd - before } else { total_usd }
    }

    /// The next that comes. May be dropped and called again; says [`News::Gone`] again and again.
    pub async fn next(&mut self) -> Sound {
        loop {
            return tokio::select! {
                line = next_of(&mut self.output), if self.output.is_some() => line.map_or(Sound::Silent, Sound::Output),
                line = next_of(&mut self.errors), if self.errors.is_some() => match line {
                    Some(line) => Sound::Error(line),
                    None => continue,
                },
                () = until_deaf(&mut self.mouth), if self.mouth.is_some() => Sound::Deaf,
                news = self.tree.news() => Sound::News(news),
            };
        }
    }

    /// What is still to be read when every process is gone.
    pub async fn last_words(&mut self) -> Vec<Sound> {
        let mut words = Vec::new();
        let rest = async {
            while self.output.is_some() || self.errors.is_some() {
                tokio::select! {
                    line = next_of(&mut self.output), if self.output.is_some() => words.extend(line.map(Sound::Output)),
                    line = next_of(&mut self.errors), if self.errors.is_some() => words.extend(line.map(Sound::Error)),
                }
            }
        };
        if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
            tracing::warn!("somebody outside the agent's tree holds its output open");
        }
        words
    }

    /// Ends an agent that nobody listens to any more. Returns when no process of it lives.
    pub async fn end(mut self) -> Gone {
        self.hang_up();
        // Who leaves by himself leaves in order.
        let left = tokio::time::timeout(PARTING, self.silenced()).await;
        if let Ok(gone) = left {
            return gone;
        }
        self.stop(PARTING).await;
        self.silenced().await
    }

    /// Waits for its end, and reads meanwhile, so that it can write.
    async fn silenced(&mut self) -> Gone {
        loop {
            if let Sound::News(News::Gone(gone)) = self.next().await {
                return gone;
            }
        }
    }
}

impl Mouth {
    fn new(stdin: ChildStdin) -> Self {
        let (lines, mut unread) = mpsc::channel::<Vec<u8>>(UNREAD);
        let speaking = tokio::spawn(async move {
            let Ok(mut stdin) = stdin.into_owned_fd().and_then(pipe::Sender::from_owned_fd) else { return };
            loop {
                // What was written just before the agent closed its end was taken by the pipe, and nobody reads it.
                let line = tokio::select! {
                    line = unread.recv() => line,
                    _closed = stdin.ready(Interest::ERROR) => None,
                };
                let Some(line) = line else { return };
                if stdin.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        Self { lines, speaking: AbortOnDropHandle::new(speaking) }
    }
}

async fn until_deaf(mouth: &mut Option<Mouth>) {
    if let Some(mouth) = mouth {
        // It ends when the agent has closed its end, alone: the other end of its channel is here.
        (&mut mouth.speaking).await.ok();
    }
    *mouth = None;
}

/// The next line; the stream is closed at its end and at an error, which is an end too.
async fn next_of<R: AsyncBufRead + Unpin>(lines: &mut Option<BoundedLines<R>>) -> Option<Line> {
    let line = match lines {
        Some(lines) => lines.next().await.ok().flatten(),
        None => None,
    };
    if line.is_none() {
        *lines = None;
    }
    line
}
