//! What the gateway may ask of this sled: the routes of `link::requests`, each handed to the part that knows.
//!
//! No rule lives here. Whoever reaches the socket may ask; answers say no more than the container's own processes could find out.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures_util::StreamExt;
use http::header;
use link::requests::{
    Accepted, BODY_LIMIT, CommandOutput, Decision, DiffAnswer, DiffRequest, EraseRequest, Erased, EventsQuery,
    GitRequest, LogsQuery, NodeStatus, Outcome, PermissionAnswer, Refusal, RefusalKind, StopRequest, TurnRequest,
    UndoAnswer, paths,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::log::RecentLog;
use crate::turns::Turns;
use crate::workspace::Workspace;

/// The longest grace that is granted to a turn that is stopped.
const MAX_GRACE: Duration = Duration::from_mins(10);

/// The parts that answer.
#[derive(Clone)]
pub struct Node {
    /// When this sled started.
    pub started: Instant,
    /// The project's turns.
    pub turns: Turns,
    /// The project's files.
    pub workspace: Workspace,
    /// What was logged of late.
    pub log: RecentLog,
}

/// The routes.
pub fn router(node: Node) -> Router {
    Router::new()
        .route(paths::STATUS, get(status))
        .route(paths::TURN, put(put_turn))
        .route(paths::TURN_EVENTS, get(events))
        .route(paths::TURN_STOP, post(stop))
        .route(paths::TURN_PERMISSION, post(answer))
        .route(paths::GIT, post(git))
        .route(paths::DIFF, post(diff))
        .route(paths::UNDO, post(undo))
        .route(paths::LOGS, get(logs))
        .route(paths::ERASE, post(erase))
        .fallback(async || invalid("this sled knows no such request; is it older than the gateway?"))
        .method_not_allowed_fallback(async || invalid("this sled answers to another method there"))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(node)
}

async fn status(State(node): State<Node>) -> Json<NodeStatus> {
    let tree = node.workspace.state().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot ask git for the state of the files");
        crate::porcelain::TreeState::default()
    });
    Json(NodeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_secs: node.started.elapsed().as_secs(),
        turn: node.turns.running().await,
        branch: tree.branch,
        dirty: tree.dirty,
        dirty_files: tree.names,
    })
}

async fn put_turn(
    State(node): State<Node>,
    id: Result<Path<Uuid>, PathRejection>,
    request: Result<Json<TurnRequest>, JsonRejection>,
) -> Result<Json<Accepted>, Refusal> {
    let (Path(id), Json(request)) = (id.map_err(invalid)?, request.map_err(invalid)?);
    node.turns.put(id, request).await.map(Json)
}

async fn events(
    State(node): State<Node>,
    id: Result<Path<Uuid>, PathRejection>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let (Path(id), Query(query)) = (id.map_err(invalid)?, query.map_err(invalid)?);
    let lines = node.turns.events(id, query.after).await?.map(|record| {
        let mut line = record.map_err(std::io::Error::other).and_then(|record| Ok(serde_json::to_string(&record)?));
        if let Err(error) = &line {
            tracing::error!(%error, "a turn's events cannot be read");
        } else if let Ok(line) = &mut line {
            line.push('\n');
        }
        line
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn stop(
    State(node): State<Node>,
    id: Result<Path<Uuid>, PathRejection>,
    request: Result<Json<StopRequest>, JsonRejection>,
) -> Result<Json<Outcome>, Refusal> {
    let (Path(id), Json(request)) = (id.map_err(invalid)?, request.map_err(invalid)?);
    node.turns.stop(id, request.attempt, Duration::from_millis(request.grace_ms).min(MAX_GRACE)).await.map(Json)
}

async fn answer(
    State(node): State<Node>,
    place: Result<Path<(Uuid, String)>, PathRejection>,
    answer: Result<Json<PermissionAnswer>, JsonRejection>,
) -> Result<Json<Decision>, Refusal> {
    let (Path((id, request)), Json(PermissionAnswer { allow })) = (place.map_err(invalid)?, answer.map_err(invalid)?);
    node.turns.answer(id, request, allow).await.map(Json)
}

async fn git(
    State(node): State<Node>,
    request: Result<Json<GitRequest>, JsonRejection>,
) -> Result<Json<CommandOutput>, Refusal> {
    let Json(request) = request.map_err(invalid)?;
    let limit = request.limit();
    let GitRequest { args, .. } = request;
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(invalid("an argument contains a NUL"));
    }
    let output = node.workspace.git(args, limit).await;
    output
        .map(Json)
        .map_err(|error| Refusal { kind: RefusalKind::Internal, message: format!("cannot run git: {error}") })
}

async fn diff(
    State(node): State<Node>,
    request: Result<Json<DiffRequest>, JsonRejection>,
) -> Result<Json<DiffAnswer>, Refusal> {
    let Json(DiffRequest { paths }) = request.map_err(invalid)?;
    if paths.iter().any(|path| path.contains('\0')) {
        return Err(invalid("a path contains a NUL"));
    }
    node.turns.diff(paths).await.map(Json)
}

async fn undo(State(node): State<Node>) -> Result<Json<UndoAnswer>, Refusal> {
    node.turns.undo().await.map(Json)
}

async fn logs(
    State(node): State<Node>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Json<CommandOutput>, Refusal> {
    let Query(LogsQuery { lines }) = query.map_err(invalid)?;
    let (output, truncated) = node.log.last(usize::try_from(lines).unwrap_or(usize::MAX));
    Ok(Json(CommandOutput { code: Some(0), output, truncated }))
}

async fn erase(
    State(node): State<Node>,
    request: Result<Json<EraseRequest>, JsonRejection>,
) -> Result<Json<Erased>, Refusal> {
    let Json(EraseRequest { before }) = request.map_err(invalid)?;
    node.turns.erase(before).await.map(Json)
}

fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal { kind: RefusalKind::Invalid, message: error.to_string() }
}
