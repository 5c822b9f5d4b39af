//! The gateway's typed client of a sled. It bounds what comes back and checks its form; it must not trust its content.

use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;
use uuid::Uuid;

use crate::requests::{
    Accepted, BODY_LIMIT, COMMAND_TIME_LIMIT, CommandOutput, Decision, DiffAnswer, DiffRequest, EraseRequest, Erased,
    FETCH_TIME_LIMIT, GitRequest, LINE_LIMIT, NodeStatus, Outcome, PERMISSION_ID_CHARS, PermissionAnswer, Refusal,
    RefusalKind, STATUS_TIME_LIMIT, StopRequest, TurnEvent, TurnRecord, TurnRequest, UNDO_TIME_LIMIT, UndoAnswer,
    paths,
};
use crate::{Closed, Link, RequestError};

/// What erasing is granted: there may be years of texts the first time.
const ERASING: Duration = Duration::from_mins(2);

/// How long a sled may take for an answer, unless [`SledClient::patience`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(15);

/// Largest body of a refusal, in bytes.
const REFUSAL_LIMIT: usize = 16 * 1024;

/// How much of a sled's words an error carries, in characters.
const MESSAGE_CHARS: usize = 500;

/// Why a call of a sled has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The sled refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The sled is unreachable: the link is over.
    #[error("the sled is unreachable")]
    Closed(#[from] Closed),
    /// No whole answer came in time.
    #[error("the sled did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The sled ended this exchange before its answer was whole; the link itself goes on.
    #[error("the sled broke off its answer")]
    Dropped,
    /// The answer is out of form or out of bounds.
    #[error("the sled's answer is malformed: {0}")]
    Malformed(String),
}

impl From<RequestError> for CallError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Closed(reason) => Self::Closed(reason),
            RequestError::Dropped => Self::Dropped,
            RequestError::Http(error) => malformed(error),
        }
    }
}

/// A sled, as the gateway calls it.
///
/// Any call can fail as [`Closed`](CallError::Closed), [`Timeout`](CallError::Timeout), [`Dropped`](CallError::Dropped) or
/// [`Malformed`](CallError::Malformed); whether the sled did what it was asked is not known then. And a sled refuses as
/// [`Invalid`](RefusalKind::Invalid) what it does not know, being older, and a body longer than [`BODY_LIMIT`]. Each call says which
/// refusals it can have besides.
#[derive(Clone)]
pub struct SledClient {
    link: Link,
    patience: Duration,
}

impl SledClient {
    /// Calls the sled at the other end of `link`, giving each call 15 s besides the time that it grants the sled itself.
    pub fn new(link: Link) -> Self {
        Self { link, patience: PATIENCE }
    }

    /// The same sled with another time limit.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The link below.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How the node is; it looks at its files for at most [`STATUS_TIME_LIMIT`].
    ///
    /// # Errors
    /// No refusals of its own: a repository that git cannot read is shown as none.
    pub async fn status(&self) -> Result<NodeStatus, CallError> {
        self.call(Method::GET, paths::STATUS, None::<&()>, STATUS_TIME_LIMIT).await
    }

    /// Hands a turn over; repeating it is safe.
    ///
    /// # Errors
    /// - [`Busy`](RefusalKind::Busy): another turn runs in this project, or the sled is ending. The turn is not begun.
    /// - [`Mismatch`](RefusalKind::Mismatch): the sled has this id with another request, and this is not the attempt that may follow one
    ///   that was interrupted. The turn is not begun.
    /// - [`Invalid`](RefusalKind::Invalid): as JSON the request is longer than [`LINE_LIMIT`] less 1 KiB. The turn is not begun.
    /// - [`Internal`](RefusalKind::Internal): the sled could not read or write its journal. It may have the turn: repeating it tells.
    pub async fn put_turn(&self, id: Uuid, turn: &TurnRequest) -> Result<Accepted, CallError> {
        self.call(Method::PUT, &of_turn(paths::TURN, id), Some(turn), Duration::ZERO).await
    }

    /// Stops a turn and waits until its processes are gone, for its `grace_ms` at most besides the client's patience.
    /// Repeating it is safe.
    ///
    /// # Errors
    /// - [`UnknownTurn`](RefusalKind::UnknownTurn): the sled has no such turn. One that is still on its way has ended when it comes.
    /// - [`Internal`](RefusalKind::Internal): the sled is ending, and ends the turn itself, or could not read its journal.
    pub async fn stop_turn(&self, id: Uuid, stop: &StopRequest) -> Result<Outcome, CallError> {
        let granted = Duration::from_millis(stop.grace_ms);
        self.call(Method::POST, &of_turn(paths::TURN_STOP, id), Some(stop), granted).await
    }

    /// Answers a permission question of a turn that runs, and says what holds: the first answer, or the sled's own at the deadline.
    /// Repeating it is safe.
    ///
    /// # Errors
    /// - [`UnknownTurn`](RefusalKind::UnknownTurn): the sled has no such turn.
    /// - [`UnknownPermission`](RefusalKind::UnknownPermission): the turn has asked no such question; or nothing that a sled asks is called
    ///   so, and it was not asked.
    /// - [`Internal`](RefusalKind::Internal): the turn is over and its end not stored yet, or the sled could not read its journal.
    pub async fn answer_permission(&self, id: Uuid, request: &str, allow: bool) -> Result<Decision, CallError> {
        if !is_permission_id(request) {
            // What a sled has told of comes back to it; anything else names no question, and must not become a part of a path.
            let message = "a permission question has no such name".to_owned();
            return Err(CallError::Refused(Refusal { kind: RefusalKind::UnknownPermission, message }));
        }
        let path = of_turn(paths::TURN_PERMISSION, id).replace("{request}", request);
        self.call(Method::POST, &path, Some(&PermissionAnswer { allow }), Duration::ZERO).await
    }

    /// Runs `git <args>` in the project, for at most [`COMMAND_TIME_LIMIT`].
    ///
    /// # Errors
    /// - [`Invalid`](RefusalKind::Invalid): an argument contains a NUL.
    /// - [`Internal`](RefusalKind::Internal): git could not be started, or its output not be read.
    ///
    /// A git that fails is no error, nor is one that was ended when its time was over: see [`CommandOutput::code`].
    pub async fn git(&self, args: Vec<String>) -> Result<CommandOutput, CallError> {
        self.call(Method::POST, paths::GIT, Some(&GitRequest { args, limit_secs: None }), COMMAND_TIME_LIMIT).await
    }

    /// Runs `git <args>` in the project, which may talk to other servers, for at most [`FETCH_TIME_LIMIT`].
    ///
    /// # Errors
    /// As [`SledClient::git`].
    pub async fn git_fetching(&self, args: Vec<String>) -> Result<CommandOutput, CallError> {
        let request = GitRequest { args, limit_secs: Some(FETCH_TIME_LIMIT.as_secs()) };
        self.call(Method::POST, paths::GIT, Some(&request), FETCH_TIME_LIMIT).await
    }

    /// What the last turn that changed files changed, waited for [`COMMAND_TIME_LIMIT`] at most besides the client's patience. While a turn
    /// runs, what the one before it changed.
    ///
    /// # Errors
    /// - [`Invalid`](RefusalKind::Invalid): a path contains a NUL.
    /// - [`Internal`](RefusalKind::Internal): git failed, or took too long.
    ///
    /// That nothing is on record is no error: see [`DiffAnswer::None`].
    pub async fn diff(&self, paths: Vec<String>) -> Result<DiffAnswer, CallError> {
        self.call(Method::POST, paths::DIFF, Some(&DiffRequest { paths }), COMMAND_TIME_LIMIT).await
    }

    /// Puts back what the last turn changed, or takes that back, waited for [`UNDO_TIME_LIMIT`] at most besides the client's patience. Not to
    /// be repeated, unless it was refused: the second time undoes the first.
    ///
    /// # Errors
    /// - [`Busy`](RefusalKind::Busy): a turn runs, or the sled is ending. Nothing was done.
    /// - [`Internal`](RefusalKind::Internal): git or the file system failed, or it took too long. Some files may be put back already; asked
    ///   again, the sled does the rest.
    ///
    /// That there is nothing to put back, or that something stands in the way, is no error: see [`UndoAnswer`].
    pub async fn undo(&self) -> Result<UndoAnswer, CallError> {
        self.call(Method::POST, paths::UNDO, None::<&()>, UNDO_TIME_LIMIT).await
    }

    /// The last `lines` lines of the sled's log, as far as it keeps them; their [`CommandOutput::code`] is 0.
    ///
    /// # Errors
    /// No refusals of its own.
    pub async fn logs(&self, lines: u32) -> Result<CommandOutput, CallError> {
        self.call(Method::GET, &format!("{}?lines={lines}", paths::LOGS), None::<&()>, Duration::ZERO).await
    }

    /// Has the sled erase the texts of turns that are over, as far as they were stored before `before`. Repeating it is safe.
    ///
    /// # Errors
    /// - [`Invalid`](RefusalKind::Invalid): the sled is of a version that cannot.
    /// - [`Busy`](RefusalKind::Busy): the sled is ending. Nothing was erased.
    /// - [`Internal`](RefusalKind::Internal): its journal could not be read or written. Some texts may be erased.
    pub async fn erase(&self, before: Timestamp) -> Result<Erased, CallError> {
        self.call(Method::POST, paths::ERASE, Some(&EraseRequest { before }), ERASING).await
    }

    /// A turn's events from the one after `after_seq` on, as they come, without a gap.
    ///
    /// The stream ends after [`TurnEvent::Finished`] or after an error, never before. Between events it waits as long as the link lives.
    ///
    /// # Errors
    /// As the stream's last item:
    /// - [`UnknownTurn`](RefusalKind::UnknownTurn): the sled has no such turn.
    /// - [`Invalid`](RefusalKind::Invalid): the turn has no event `after_seq` yet.
    /// - [`Internal`](RefusalKind::Internal): the sled could not read its journal. When that happens later it is
    ///   [`Dropped`](CallError::Dropped), as it is when `after_seq` is the last event of a turn that is over.
    /// - [`Malformed`](CallError::Malformed), also when a number is missing or a line is longer than [`LINE_LIMIT`].
    pub fn turn_events(
        &self,
        id: Uuid,
        after_seq: u64,
    ) -> impl Stream<Item = Result<TurnRecord, CallError>> + Send + Unpin + use<> {
        let client = self.clone();
        let path = format!("{}?after={after_seq}", of_turn(paths::TURN_EVENTS, id));
        let lines = stream::once(async move { client.lines(&path).await }).try_flatten();
        let link = self.link.clone();
        stream::unfold(Some((Box::pin(lines), after_seq)), move |reading| {
            let link = link.clone();
            async move {
                let (mut lines, last) = reading?;
                let record = match lines.next().await {
                    Some(Ok(line)) => record(&line, last),
                    Some(Err(error)) => Err(error),
                    None => Err(link.close_reason().map_or(CallError::Dropped, CallError::Closed)),
                };
                let rest = match &record {
                    Ok(TurnRecord { event: TurnEvent::Finished { .. }, .. }) | Err(_) => None,
                    Ok(record) => Some((lines, record.seq)),
                };
                Some((record, rest))
            }
        })
        .boxed()
    }

    /// Opens an NDJSON stream.
    async fn lines(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<String, CallError>> + Send + use<>, CallError> {
        let opened = async {
            let response = self.link.request(request(Method::GET, path, None::<&()>)?).await?;
            match response.status() {
                StatusCode::OK => Ok(response.into_body()),
                status => Err(self.refusal(status, response.into_body()).await),
            }
        };
        let body = self.within(Duration::ZERO, opened).await?;
        let reader = StreamReader::new(body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other)));
        let link = self.link.clone();
        Ok(FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_LIMIT)).map(move |line| {
            line.map_err(|error| match (error, link.close_reason()) {
                (LinesCodecError::MaxLineLengthExceeded, _) => CallError::Malformed("a line is too long".to_owned()),
                (LinesCodecError::Io(_), Some(reason)) => CallError::Closed(reason),
                (LinesCodecError::Io(error), None) if error.kind() == std::io::ErrorKind::InvalidData => {
                    malformed(error)
                }
                (LinesCodecError::Io(_), None) => CallError::Dropped,
            })
        }))
    }

    /// One request, one JSON answer, within the client's patience and what the call itself grants.
    async fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        granted: Duration,
    ) -> Result<A, CallError> {
        let request = request(method, path, body)?;
        self.within(granted, async {
            let response = self.link.request(request).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(self.refusal(status, response.into_body()).await);
            }
            let bytes = self.collect(response.into_body(), BODY_LIMIT).await?;
            serde_json::from_slice(&bytes).map_err(malformed)
        })
        .await
    }

    async fn within<V>(
        &self,
        granted: Duration,
        call: impl Future<Output = Result<V, CallError>>,
    ) -> Result<V, CallError> {
        let limit = self.patience.saturating_add(granted);
        tokio::time::timeout(limit, call).await.unwrap_or(Err(CallError::Timeout(limit)))
    }

    async fn collect(&self, body: Body, limit: usize) -> Result<bytes::Bytes, CallError> {
        match Limited::new(body, limit).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(CallError::Malformed("it is too long".to_owned())),
            Err(_) => Err(self.link.close_reason().map_or(CallError::Dropped, CallError::Closed)),
        }
    }

    async fn refusal(&self, status: StatusCode, body: Body) -> CallError {
        match self.collect(body, REFUSAL_LIMIT).await.map(|bytes| serde_json::from_slice::<Refusal>(&bytes)) {
            Ok(Ok(Refusal { kind, message })) => CallError::Refused(Refusal { kind, message: one_line(&message) }),
            Ok(Err(_)) => CallError::Malformed(format!("status {status} without a reason")),
            Err(error) => error,
        }
    }
}

/// The decoder's complaint may quote what the sled sent.
fn malformed(error: impl Display) -> CallError {
    CallError::Malformed(one_line(&error.to_string()))
}

/// A sled's words as one bounded line without control characters.
fn one_line(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether `request` can be the name of a permission question.
fn is_permission_id(request: &str) -> bool {
    (1..=PERMISSION_ID_CHARS).contains(&request.len())
        && request.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn of_turn(route: &str, id: Uuid) -> String {
    route.replace("{id}", &id.to_string())
}

fn request<B: Serialize>(method: Method, path: &str, body: Option<&B>) -> Result<Request<Body>, CallError> {
    // Both are built here from our own types, so that a failure is a fault of this side's request.
    let fault = |error: &dyn std::error::Error| CallError::Malformed(format!("the request cannot be made: {error}"));
    let builder = Request::builder().method(method).uri(path);
    match body {
        None => builder.body(Body::empty()),
        Some(body) => {
            let json = serde_json::to_vec(body).map_err(|error| fault(&error))?;
            builder.header(header::CONTENT_TYPE, "application/json").body(Body::from(json))
        }
    }
    .map_err(|error| fault(&error))
}

/// Checks a line of a turn's events against the number of the one before.
fn record(line: &str, last: u64) -> Result<TurnRecord, CallError> {
    let record: TurnRecord = serde_json::from_str(line).map_err(malformed)?;
    if last.checked_add(1) == Some(record.seq) {
        Ok(record)
    } else {
        Err(CallError::Malformed(format!("event {} came after event {last}", record.seq)))
    }
}
