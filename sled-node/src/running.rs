//! One attempt of a turn: start the agent, hand it its words, store what it says, and see to it that nothing of it lives when the end is stored.
//!
//! It ends the agent's tree before it says how the turn ended (invariant 6), whatever happens.

use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use journal::AppendError;
use link::requests::{FailureReason, Outcome, TurnEvent, TurnRequest, Usage};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::stream_json::{self, Heard, Listener};
use crate::agent::{self, Launch};
use crate::lines::{BoundedLines, Line, Tail};
use crate::record::Recorder;
use crate::supervised::{Program, StartError, Supervised};
use crate::supervisor::Gone;
use crate::text::error_line;
use crate::turns::Site;

/// How long an agent has after its result to put its session away.
const WIND_UP: Duration = Duration::from_secs(5);

/// What an agent that overstays, or breaks the protocol, has for ending.
const GRACE: Duration = Duration::from_secs(1);

/// How long the last of the output may take to arrive when every process is gone: somebody outside the tree may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Longest line of standard error that is read at once, in bytes.
const ERROR_LINE: usize = 4096;

/// A wish that the turn end.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// What its processes have between being asked and being killed.
    pub grace: Duration,
    /// Whose wish it is.
    pub reason: StopReason,
}

/// Why a turn is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A person asked for it.
    Person,
    /// The sled ends.
    Shutdown,
}

/// How an attempt went.
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// What the agent says that it used.
    pub usage: Option<Usage>,
}

/// Runs an attempt to its end. When it returns, no process of it lives.
pub async fn run(
    request: TurnRequest,
    site: &Site,
    recorder: &mut Recorder,
    stops: &mut mpsc::Receiver<Stop>,
) -> Verdict {
    let prompt = stream_json::prompt_line(&request.prompt);
    let (mut agent, session_found) = match start(request, site).await {
        Ok(started) => started,
        Err(error) => return failed(FailureReason::NotStarted { error: error_line(&error) }, Vec::new()),
    };
    let stored = recorder.record(vec![TurnEvent::Started { session_found }]).await;
    let mut attempt = Attempt { recorder, listener: Listener::default(), tail: Tail::default(), end: None };
    let mut ears = Ears::new(&mut agent, prompt);
    if let Err(error) = stored {
        attempt.unstored(&error);
    }
    let gone = attempt.listen(&mut agent, &mut ears, stops).await;
    attempt.verdict(gone).await
}

async fn start(request: TurnRequest, site: &Site) -> Result<(Supervised, bool), StartError> {
    let surroundings = site.surroundings.clone();
    let prepared = tokio::task::spawn_blocking(move || agent::prepare(&request, &surroundings));
    let Launch { argv, environment, session_found } = prepared.await.map_err(std::io::Error::other)??;
    let program = Program {
        argv,
        environment,
        directory: site.workspace.clone(),
        stdin: Stdio::piped(),
        stdout: Stdio::piped(),
        stderr: Stdio::piped(),
    };
    Ok((site.supervision.start(program).await?, session_found))
}

/// The agent's streams.
struct Ears {
    /// Writes the words and then holds standard input open; dropped, it closes it.
    mouth: Option<AbortOnDropHandle<()>>,
    output: Option<BoundedLines<BufReader<tokio::process::ChildStdout>>>,
    errors: Option<BoundedLines<BufReader<tokio::process::ChildStderr>>>,
}

impl Ears {
    fn new(agent: &mut Supervised, prompt: Vec<u8>) -> Self {
        Self {
            mouth: agent.child.stdin.take().map(|stdin| AbortOnDropHandle::new(tokio::spawn(speak(stdin, prompt)))),
            output: agent
                .child
                .stdout
                .take()
                .map(|output| BoundedLines::new(BufReader::new(output), stream_json::MAX_LINE)),
            errors: agent.child.stderr.take().map(|errors| BoundedLines::new(BufReader::new(errors), ERROR_LINE)),
        }
    }

    async fn next(&mut self) -> Option<Sound> {
        tokio::select! {
            biased;
            line = next_of(&mut self.output), if self.output.is_some() => Some(Sound::Output(line)),
            line = next_of(&mut self.errors), if self.errors.is_some() => Some(Sound::Error(line)),
            else => None,
        }
    }
}

enum Sound {
    Output(Option<Line>),
    Error(Option<Line>),
}

async fn speak(mut stdin: ChildStdin, prompt: Vec<u8>) {
    // An agent that does not listen ends in its own way.
    stdin.write_all(&prompt).await.ok();
    std::future::pending::<()>().await;
}

/// The next line; the stream is closed at its end and at an error, which is an end too.
async fn next_of<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut Option<BoundedLines<R>>) -> Option<Line> {
    let line = match lines {
        Some(lines) => lines.next().await.ok().flatten(),
        None => None,
    };
    if line.is_none() {
        *lines = None;
    }
    line
}

struct Attempt<'a> {
    recorder: &'a mut Recorder,
    listener: Listener,
    tail: Tail,
    end: Option<End>,
}

/// Why the agent is to end, the first reason that came.
enum End {
    Result(Outcome, Option<Usage>),
    Broken(String),
    Unstored(String),
    Stopped(StopReason),
}

impl Attempt<'_> {
    /// Hears the agent until every process of it is gone.
    async fn listen(&mut self, agent: &mut Supervised, ears: &mut Ears, stops: &mut mpsc::Receiver<Stop>) -> Gone {
        let wind_up = tokio::time::sleep(WIND_UP);
        tokio::pin!(wind_up);
        let mut overstayed = false;
        let mut ending = false;
        let mut quiet = false;
        let gone = loop {
            if let Some(end) = &self.end
                && !std::mem::replace(&mut ending, true)
            {
                ears.mouth = None;
                wind_up.as_mut().reset(tokio::time::Instant::now() + WIND_UP);
                if matches!(end, End::Broken(_) | End::Unstored(_)) {
                    agent.stop(GRACE).await;
                }
            }
            tokio::select! {
                sound = ears.next(), if !quiet => match sound {
                    Some(sound) => self.take(sound).await,
                    None => quiet = true,
                },
                gone = agent.gone() => break gone,
                Some(stop) = stops.recv() => {
                    self.end.get_or_insert(End::Stopped(stop.reason));
                    agent.stop(stop.grace).await;
                }
                () = &mut wind_up, if ending && !overstayed => {
                    overstayed = true;
                    agent.stop(GRACE).await;
                }
            }
        };
        let rest = async {
            while let Some(sound) = ears.next().await {
                self.take(sound).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
            tracing::warn!("somebody outside the agent's tree holds its output open");
        }
        gone
    }

    async fn take(&mut self, sound: Sound) {
        let line = match sound {
            Sound::Output(Some(Line::Whole(line))) => line,
            Sound::Output(Some(Line::Cut(line))) => {
                self.tail.push(&line);
                self.end.get_or_insert_with(|| End::Broken("a line of its output is longer than 8 MiB".to_owned()));
                return;
            }
            Sound::Error(Some(Line::Whole(line) | Line::Cut(line))) => return self.tail.push(&line),
            Sound::Output(None) | Sound::Error(None) => return,
        };
        if self.end.is_some() {
            // After the result, or after it was told to end, an agent has nothing to say that belongs to the turn.
            return;
        }
        let stored = match self.listener.hear(&line, Timestamp::now()) {
            Heard::Events(events) => self.recorder.record(events).await,
            Heard::End(events, outcome, usage) => {
                self.end = Some(End::Result(outcome, usage));
                self.recorder.record(events).await
            }
            Heard::Noise => return self.tail.push(&line),
        };
        if let Err(error) = stored {
            self.unstored(&error);
        }
    }

    /// What cannot be stored was not said: the turn fails.
    fn unstored(&mut self, error: &AppendError) {
        tracing::error!(error = error as &dyn std::error::Error, "a turn's output cannot be stored");
        self.end = Some(End::Unstored(format!("its output could not be stored: {}", error_line(error))));
    }

    async fn verdict(mut self, gone: Gone) -> Verdict {
        if !matches!(self.end, Some(End::Unstored(_)))
            && let Err(error) = self.recorder.record(self.listener.flush()).await
        {
            self.unstored(&error);
        }
        let last_lines = self.tail.into_lines();
        match self.end {
            Some(End::Result(Outcome::Failed { reason, .. }, usage)) => {
                Verdict { outcome: Outcome::Failed { reason, last_lines }, usage }
            }
            Some(End::Result(outcome, usage)) => Verdict { outcome, usage },
            Some(End::Broken(error) | End::Unstored(error)) => failed(FailureReason::Protocol { error }, last_lines),
            Some(End::Stopped(StopReason::Person)) => {
                Verdict { outcome: Outcome::Stopped { processes: gone.processes, killed: gone.killed }, usage: None }
            }
            Some(End::Stopped(StopReason::Shutdown)) => Verdict { outcome: Outcome::Interrupted, usage: None },
            None => failed(FailureReason::Exited { code: gone.code, signal: gone.signal }, last_lines),
        }
    }
}

fn failed(reason: FailureReason, last_lines: Vec<String>) -> Verdict {
    Verdict { outcome: Outcome::Failed { reason, last_lines }, usage: None }
}
