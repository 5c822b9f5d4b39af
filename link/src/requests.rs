//! The typed requests of both sides: what the gateway asks of a sled, and what a sled tells of a turn.
//!
//! Shapes, routes and bounds only; no I/O. Whatever a sled says is the word of its container's code (DESIGN, invariant 9):
//! the gateway bounds, escapes and counts for itself.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Largest JSON body of a request or a unary answer, in bytes: the client holds answers to it, routers put `DefaultBodyLimit::max(BODY_LIMIT)` in front.
pub const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Longest line of a turn's events, in bytes without its end: one [`TurnRecord`].
pub const LINE_LIMIT: usize = 1024 * 1024;

/// How long a sled lets git look at the files for its status before it answers with what was found.
pub const STATUS_TIME_LIMIT: Duration = Duration::from_secs(4);

/// How long a sled lets a person's command (`git`) run before it ends it and answers with what there is.
pub const COMMAND_TIME_LIMIT: Duration = Duration::from_mins(1);

/// How long a sled lets a command of the gateway's own that talks to other servers run at the most.
pub const FETCH_TIME_LIMIT: Duration = Duration::from_mins(10);

/// How long a sled may take to put back what a turn changed.
pub const UNDO_TIME_LIMIT: Duration = Duration::from_mins(2);

/// Longest name of a permission question, in characters, each a letter, a digit, `-` or `_`.
pub const PERMISSION_ID_CHARS: usize = 64;

/// The routes, in axum's notation; a client puts the turn's id in place of `{id}`, and a permission question's in place of `{request}`.
pub mod paths {
    /// `GET`, answered by the link itself on both sides: 204.
    pub const PING: &str = "/v1/ping";
    /// `GET`: [`NodeStatus`](super::NodeStatus).
    pub const STATUS: &str = "/v1/status";
    /// `PUT` a [`TurnRequest`](super::TurnRequest): [`Accepted`](super::Accepted).
    pub const TURN: &str = "/v1/turns/{id}";
    /// `GET` with [`EventsQuery`](super::EventsQuery): [`TurnRecord`](super::TurnRecord)s, a JSON object a line.
    pub const TURN_EVENTS: &str = "/v1/turns/{id}/events";
    /// `POST` a [`StopRequest`](super::StopRequest): the turn's [`Outcome`](super::Outcome).
    pub const TURN_STOP: &str = "/v1/turns/{id}/stop";
    /// `POST` a [`PermissionAnswer`](super::PermissionAnswer): the [`Decision`](super::Decision) that holds.
    pub const TURN_PERMISSION: &str = "/v1/turns/{id}/permissions/{request}";
    /// `POST` a [`GitRequest`](super::GitRequest): [`CommandOutput`](super::CommandOutput).
    pub const GIT: &str = "/v1/git";
    /// `POST` a [`DiffRequest`](super::DiffRequest): a [`DiffAnswer`](super::DiffAnswer).
    pub const DIFF: &str = "/v1/diff";
    /// `POST` without a body: an [`UndoAnswer`](super::UndoAnswer).
    pub const UNDO: &str = "/v1/undo";
    /// `GET` with [`LogsQuery`](super::LogsQuery): [`CommandOutput`](super::CommandOutput).
    pub const LOGS: &str = "/v1/logs";
    /// `POST` an [`EraseRequest`](super::EraseRequest): [`Erased`](super::Erased). Sleds from before it was there refuse it as
    /// [`Invalid`](super::RefusalKind::Invalid), as they do everything that they do not know.
    pub const ERASE: &str = "/v1/erase";
}

/// Query of `GET /v1/turns/{id}/events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// The last event that the reader has; 0 for all.
    #[serde(default)]
    pub after: u64,
}

/// Query of `GET /v1/logs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsQuery {
    /// How many of the last lines of the sled's log.
    pub lines: u32,
}

/// Answer of `PUT /v1/turns/{id}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Whether the sled had this very turn already.
    pub already: bool,
}

/// A turn handed to a sled with `PUT /v1/turns/{id}`; the id is the batch's id, a `UUIDv7`.
///
/// Handing the same id over again is answered with what is already there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnRequest {
    /// The agent's memory that this turn belongs to.
    pub session: AgentSession,
    /// Which agent runs it.
    pub agent: Agent,
    /// What the agent is told, already rendered: who said what.
    pub prompt: String,
    /// Author of the commits that the agent makes; `None` leaves git unconfigured.
    pub identity: Option<GitIdentity>,
    /// Number of this run of the batch, from 1.
    pub attempt: u32,
    /// Whether the agent asks before it uses a tool that needs leave (MTX-11).
    #[serde(default)]
    pub permissions: Permissions,
    /// How long the agent's process is kept after the turn for the session's next one, in seconds; 0 for not at all (SLED-7).
    #[serde(default)]
    pub keep_warm_secs: u64,
    /// What the agent is told in place of `prompt` when its memory was expected and is not there: `prompt` may lean on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub afresh: Option<String>,
}

/// What an agent may do without asking. It helps people and is no fence: the container is (DESIGN, invariant 9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Permissions {
    /// Everything.
    #[default]
    Bypass,
    /// What the agent's own rules let it; it asks for the rest, and is denied what nobody answers.
    Ask {
        /// How long a question waits for its answer, in seconds, by the sled's clock.
        timeout_secs: u64,
    },
}

/// The agent's session, chosen and pinned by the gateway before its first run (CHAT-11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSession {
    /// The id under which the agent keeps its memory.
    pub id: Uuid,
    /// Whether an earlier turn ran under this id, so that its memory should be there.
    pub resumed: bool,
}

/// An agent that a sled can run (SLED-2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "runtime", rename_all = "kebab-case")]
pub enum Agent {
    /// The Claude Code CLI of the image.
    Claude {
        /// The model's name, or the CLI's own default.
        model: Option<String>,
    },
    /// Any command that speaks the same stream-json on stdin and stdout.
    Command {
        /// Program and arguments; never passed through a shell.
        argv: Vec<String>,
    },
    /// The built-in practice agent.
    Echo {
        /// A line that its first answer of a session begins with, such as how to give a model key.
        notice: Option<String>,
    },
}

/// Name and mail address that commits carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitIdentity {
    /// `user.name`.
    pub name: String,
    /// `user.email`.
    pub email: String,
}

/// One event of a turn, as `GET /v1/turns/{id}/events?after=N` streams them: a JSON object a line, until the turn is finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnRecord {
    /// Number within the turn, from 1, without a gap: the reader's cursor.
    pub seq: u64,
    /// When the sled journaled it, by the sled's clock.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: TurnEvent,
}

/// What happens in a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "data")]
pub enum TurnEvent {
    /// The sled has the request and answers for it.
    #[serde(rename = "turn.accepted")]
    Accepted(TurnRequest),
    /// The agent's process runs.
    #[serde(rename = "turn.started")]
    Started {
        /// False when the session's memory was expected and not found, so that a fresh one was begun.
        session_found: bool,
    },
    /// The agent said something before its final answer.
    #[serde(rename = "turn.spoke")]
    Spoke {
        /// What it said, Markdown.
        text: String,
    },
    /// The agent called a tool.
    #[serde(rename = "turn.tool_called")]
    ToolCalled {
        /// The tool's name, such as `Bash`.
        name: String,
        /// One bounded line that tells what it is used on.
        summary: String,
    },
    /// The agent has the people's words: it has echoed them, or has spoken since it was given them. Told once an attempt.
    #[serde(rename = "turn.heard")]
    Heard,
    /// The agent asks for permission to use a tool, and waits.
    #[serde(rename = "turn.permission_asked")]
    PermissionAsked {
        /// Names the question within the turn: letters, digits, `-` and `_`, bounded.
        request: String,
        /// The tool's name.
        tool: String,
        /// All that it is to be used on, in bounded lines; where not all is there, they say so.
        summary: String,
        /// When the sled denies it by itself, by the sled's wall clock.
        deadline: Timestamp,
    },
    /// A question is answered, once; also told of one that is open when the turn ends.
    #[serde(rename = "turn.permission_settled")]
    PermissionSettled {
        /// The question.
        request: String,
        /// The answer.
        decision: Decision,
    },
    /// The model's service limits the rate: the turn waits, and goes on by itself.
    #[serde(rename = "turn.rate_limited")]
    RateLimited {
        /// Seconds from when this was journaled until the turn goes on, when that is known: the service's word, or the sled's own wait
        /// where it waits itself.
        retry_after_secs: Option<u64>,
    },
    /// The turn is over and every process of it is gone.
    #[serde(rename = "turn.finished")]
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// What the agent reports to have used; a hint only, the gateway counts for itself.
        usage: Option<Usage>,
    },
}

/// How a permission question was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// A person allowed it.
    Allowed,
    /// A person denied it, or the turn ended before anybody answered, or too many were open.
    Denied,
    /// Nobody answered in time.
    TimedOut,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The agent answered.
    Answered {
        /// The answer, Markdown.
        text: String,
    },
    /// It failed (CHAT-10).
    Failed {
        /// Why, as one of a fixed set.
        reason: FailureReason,
        /// The last lines of its output, bounded.
        last_lines: Vec<String>,
    },
    /// A person stopped it.
    Stopped {
        /// How many processes were there when it was stopped.
        processes: u32,
        /// Whether some had to be killed after the grace.
        killed: bool,
    },
    /// The sled or its container died under it (DUR-6).
    Interrupted,
}

/// Why a turn failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum FailureReason {
    /// The agent's program could not be started.
    NotStarted {
        /// The system's word for it.
        error: String,
    },
    /// The agent ended without a result.
    Exited {
        /// Its exit code, when it was not killed by a signal.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The agent reported an error as its result.
    Reported {
        /// The agent's own word, bounded.
        text: String,
    },
    /// Its output broke the protocol or a bound.
    Protocol {
        /// Which rule.
        error: String,
    },
}

/// What an agent reports to have used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Cost in US dollars.
    pub cost_usd: Option<f64>,
}

/// Body of `POST /v1/turns/{id}/stop`; the answer is the turn's [`Outcome`], given when its processes are gone. An attempt that is handed
/// over only after its stop is accepted and has ended, as [`Outcome::Stopped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// The attempt that is meant, which may still be on its way; without one, what runs or may come next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How long the processes have between being asked and being killed, in milliseconds; ten minutes at the most, whatever is asked.
    pub grace_ms: u64,
}

/// Body of `POST /v1/turns/{id}/permissions/{request}`. The first answer holds; a later one is answered with the [`Decision`] that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionAnswer {
    /// Whether the tool may be used.
    pub allow: bool,
}

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The sled's version.
    pub version: String,
    /// Seconds since the sled started.
    pub uptime_secs: u64,
    /// The turn that runs now.
    pub turn: Option<RunningTurn>,
    /// The checked-out branch, or a short commit id when detached; `None` where `/workspace` is no repository, or git cannot tell.
    pub branch: Option<String>,
    /// How many files differ from the last commit, untracked ones included; those that were found when git takes too long to look.
    pub dirty: u64,
    /// Names of the first few of them, at most ten.
    pub dirty_files: Vec<String>,
}

/// A turn under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTurn {
    /// Its id.
    pub id: Uuid,
    /// Seconds since it was accepted.
    pub running_secs: u64,
}

/// Body of `POST /v1/git`: `git <args>` in `/workspace`, without a shell, without a terminal, bounded in time and output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitRequest {
    /// What follows `git`.
    pub args: Vec<String>,
    /// How long it may run, in seconds, [`FETCH_TIME_LIMIT`] at the most; [`COMMAND_TIME_LIMIT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_secs: Option<u64>,
}

impl GitRequest {
    /// How long it may run, with the bounds of [`GitRequest::limit_secs`] applied.
    pub fn limit(&self) -> Duration {
        self.limit_secs.map_or(COMMAND_TIME_LIMIT, Duration::from_secs).min(FETCH_TIME_LIMIT)
    }
}

/// Body of `POST /v1/diff`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRequest {
    /// What to look at, as git's pathspecs; everything when empty.
    pub paths: Vec<String>,
}

/// What the last turn that changed files changed (SLED-9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "of", rename_all = "kebab-case")]
pub enum DiffAnswer {
    /// It is not known.
    None(NoRecord),
    /// This.
    Changes(Diff),
}

/// Answer of `POST /v1/undo`: what became of the request to put back what the last turn changed, or, when it is put back, to take that back.
/// While a turn runs it is refused as [`RefusalKind::Busy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "of", rename_all = "kebab-case")]
pub enum UndoAnswer {
    /// There is nothing to put back.
    None(NoRecord),
    /// Somebody has changed files since that the turn changed, or something stands in their way; nothing was done.
    ChangedSince {
        /// The first of them.
        paths: Vec<String>,
        /// How many more there are.
        more: u64,
    },
    /// It is done.
    PutBack(PutBack),
}

/// Why a turn's changes are not on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum NoRecord {
    /// `/workspace` is no git repository.
    NoRepository,
    /// No turn has changed a file yet.
    NoTurn,
    /// Recording the last turn was given up.
    GivenUp {
        /// One sentence fragment for people.
        reason: String,
    },
}

/// A turn whose changes are on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnOnRecord {
    /// Its id.
    pub id: Uuid,
    /// Seconds since it ended, by the sled's clock.
    pub secs_ago: u64,
    /// Whether its changes are put back.
    pub undone: bool,
}

/// A turn's changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The turn.
    pub turn: TurnOnRecord,
    /// Summary and patch as git shows them, lossily UTF-8, bounded.
    pub output: String,
    /// Whether the bound cut something off its end.
    pub truncated: bool,
}

/// What `undo` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    /// The turn, as it stands now.
    pub turn: TurnOnRecord,
    /// The first of the paths that the turn changed.
    pub paths: Vec<String>,
    /// How many more there are.
    pub more: u64,
    /// What was checked out before and after the turn, where that is not the same: it was not touched.
    pub head_moved: Option<HeadMoved>,
    /// Repositories inside the tree that the turn made, which were left there.
    pub left: Vec<String>,
    /// Submodules that could not be brought back.
    pub missing: Vec<String>,
}

/// What a turn did to `HEAD`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadMoved {
    /// Before it.
    pub before: Head,
    /// After it.
    pub after: Head,
}

/// What is checked out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The branch; `None` when detached.
    pub branch: Option<String>,
    /// The commit; `None` when there is none yet.
    pub commit: Option<String>,
}

/// Output of a command that a sled ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOutput {
    /// Exit code; `None` when it was killed by a signal, or ended because its time was over, which the last line of `output` tells then.
    pub code: Option<i32>,
    /// Standard output and error as they came, lossily UTF-8, bounded.
    pub output: String,
    /// Whether the bound cut something off its beginning.
    pub truncated: bool,
}

/// Body of `POST /v1/erase`: the sled forgets what people and agents said in turns that are over (JRNL-8). The events stay, and what was
/// erased reads as forgotten. Repeating it is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseRequest {
    /// Texts that were stored before this are erased, by the sled's clock. The sled may keep some that are younger than a turn that runs
    /// now, until it is asked again. Of what the gateway still has to read it knows nothing.
    pub before: Timestamp,
}

/// Answer of `POST /v1/erase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// How many texts were erased.
    pub texts: u64,
}

/// A refusal or failure, as the body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which kind.
    pub kind: RefusalKind,
    /// One sentence fragment for people.
    pub message: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.kind {
            RefusalKind::UnknownTurn | RefusalKind::UnknownPermission => StatusCode::NOT_FOUND,
            RefusalKind::Busy | RefusalKind::Mismatch => StatusCode::CONFLICT,
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// No such turn.
    UnknownTurn,
    /// The turn has asked no such question.
    UnknownPermission,
    /// Another turn runs in this project, one at a time; or the sled is ending, and takes none.
    Busy,
    /// The same turn id came with another request.
    Mismatch,
    /// The request is malformed.
    Invalid,
    /// Something failed inside.
    Internal,
}
