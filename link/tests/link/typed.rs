//! The gateway's client against sleds that behave and sleds that do not.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query};
use axum::routing::{any, get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, future, stream};
use http::StatusCode;
use jiff::Timestamp;
use link::requests::{
    Accepted, Agent, AgentSession, BODY_LIMIT, CommandOutput, Decision, EraseRequest, Erased, EventsQuery, GitRequest,
    LINE_LIMIT, LogsQuery, NodeStatus, Outcome, PermissionAnswer, Permissions, Refusal, RefusalKind, StopRequest,
    TurnEvent, TurnRecord, TurnRequest, paths,
};
use link::{CallError, Closed, Limits, SledClient};
use uuid::Uuid;

use crate::support::{End, endless, pair};

async fn calling(sled: Router) -> (SledClient, End, End) {
    let (gateway, sled) = pair(Router::new(), sled, Limits::default()).await;
    (SledClient::new(gateway.link.clone()), gateway, sled)
}

fn turn() -> TurnRequest {
    TurnRequest {
        session: AgentSession { id: Uuid::from_u128(5), resumed: false },
        agent: Agent::Echo { notice: None },
        prompt: "what does this do?".to_owned(),
        identity: None,
        attempt: 1,
        permissions: Permissions::Ask { timeout_secs: 60 },
        keep_warm_secs: 120,
        afresh: None,
    }
}

fn stop(grace_ms: u64) -> StopRequest {
    StopRequest { attempt: Some(2), grace_ms }
}

fn output(output: String) -> CommandOutput {
    CommandOutput { code: Some(0), output, truncated: false }
}

#[tokio::test]
async fn every_call_reaches_its_route_and_comes_back() {
    let status = NodeStatus {
        version: "0.1.0".to_owned(),
        uptime_secs: 3,
        turn: None,
        branch: None,
        dirty: 0,
        dirty_files: vec![],
    };
    let answer = status.clone();
    let sled = Router::new()
        .route(paths::STATUS, get(async move || Json(answer)))
        .route(
            paths::TURN,
            put(async |Path(id): Path<Uuid>, Json(sent): Json<TurnRequest>| {
                Json(Accepted { already: id == Uuid::from_u128(9) && sent == turn() })
            }),
        )
        .route(
            paths::TURN_STOP,
            post(async |Path(_): Path<Uuid>, Json(stop): Json<StopRequest>| {
                Json(Outcome::Stopped { processes: 2, killed: stop == StopRequest { attempt: Some(2), grace_ms: 7 } })
            }),
        )
        .route(
            paths::TURN_PERMISSION,
            post(async |Path((_, request)): Path<(Uuid, String)>, Json(answer): Json<PermissionAnswer>| {
                Json(if request == "toolu_01-a" && answer.allow { Decision::Allowed } else { Decision::TimedOut })
            }),
        )
        .route(paths::GIT, post(async |Json(git): Json<GitRequest>| Json(output(git.args.join(" ")))))
        .route(paths::LOGS, get(async |Query(logs): Query<LogsQuery>| Json(output(logs.lines.to_string()))))
        .route(
            paths::ERASE,
            post(async |Json(erase): Json<EraseRequest>| {
                Json(Erased { texts: if erase.before == Timestamp::UNIX_EPOCH { 7 } else { 0 } })
            }),
        );
    let (client, _gateway, _sled) = calling(sled).await;
    assert_eq!(client.status().await.unwrap(), status);
    assert_eq!(client.put_turn(Uuid::from_u128(9), &turn()).await.unwrap(), Accepted { already: true });
    assert_eq!(
        client.stop_turn(Uuid::from_u128(9), &stop(7)).await.unwrap(),
        Outcome::Stopped { processes: 2, killed: true }
    );
    let answer = async |request: &str, allow| client.answer_permission(Uuid::from_u128(9), request, allow).await;
    assert_eq!(answer("toolu_01-a", true).await.unwrap(), Decision::Allowed);
    assert_eq!(answer("toolu_01-a", false).await.unwrap(), Decision::TimedOut);
    for odd in ["", "../stop", "a b", "ä", &"x".repeat(65)] {
        let refused = answer(odd, true).await.unwrap_err();
        assert!(
            matches!(&refused, CallError::Refused(Refusal { kind: RefusalKind::UnknownPermission, .. })),
            "{odd:?}: {refused}"
        );
    }
    assert_eq!(client.git(vec!["log".to_owned(), "-1".to_owned()]).await.unwrap(), output("log -1".to_owned()));
    assert_eq!(client.logs(20).await.unwrap(), output("20".to_owned()));
    assert_eq!(client.erase(Timestamp::UNIX_EPOCH).await.unwrap(), Erased { texts: 7 });
}

#[tokio::test]
async fn a_sled_that_cannot_erase_refuses_it_as_it_does_everything_that_it_does_not_know() {
    let unknown = "this sled knows no such request; is it older than the gateway?";
    let sled =
        Router::new().fallback(async move || Refusal { kind: RefusalKind::Invalid, message: unknown.to_owned() });
    let (client, _gateway, _sled) = calling(sled).await;
    let refused = client.erase(Timestamp::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(Refusal { kind: RefusalKind::Invalid, .. })), "{refused}");
}

#[tokio::test]
async fn refusals_come_as_such_and_nonsense_as_malformed() {
    let busy = |message: &str| Refusal { kind: RefusalKind::Busy, message: message.to_owned() };
    let sled = Router::new()
        .route(paths::STATUS, get(async || "<html>"))
        .route(paths::LOGS, get(async || (StatusCode::BAD_GATEWAY, "no")))
        .route(paths::TURN, put(async move || busy("another turn\n\x1b[2J runs")))
        .route(paths::TURN_STOP, post(async || "x".repeat(BODY_LIMIT + 1)))
        .route(paths::GIT, post(async || (StatusCode::BAD_REQUEST, Body::from_stream(endless().0))));
    let (client, _gateway, _sled) = calling(sled).await;
    let id = Uuid::from_u128(1);
    assert_eq!(
        client.status().await.unwrap_err().to_string(),
        "the sled's answer is malformed: expected value at line 1 column 1"
    );
    assert_eq!(
        client.logs(1).await.unwrap_err().to_string(),
        "the sled's answer is malformed: status 502 Bad Gateway without a reason"
    );
    assert_eq!(client.put_turn(id, &turn()).await.unwrap_err().to_string(), "another turn  [2J runs");
    assert_eq!(
        client.stop_turn(id, &stop(0)).await.unwrap_err().to_string(),
        "the sled's answer is malformed: it is too long"
    );
    assert_eq!(client.git(vec![]).await.unwrap_err().to_string(), "the sled's answer is malformed: it is too long");
}

#[tokio::test(start_paused = true)]
async fn a_sled_that_does_not_answer_is_given_up() {
    let sled = Router::new()
        .route(paths::STATUS, get(future::pending::<StatusCode>))
        .route(paths::LOGS, get(async || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())))
        .route(paths::TURN_STOP, post(future::pending::<StatusCode>))
        .route(paths::TURN_EVENTS, get(future::pending::<StatusCode>));
    let (client, _gateway, _sled) = calling(sled).await;
    let client = client.patience(Duration::from_secs(5));
    let id = Uuid::from_u128(1);
    let five = |error: CallError| {
        assert!(matches!(error, CallError::Timeout(limit) if limit == Duration::from_secs(5)), "{error}");
    };
    // Git's look at many files is no silence of the sled.
    assert!(matches!(client.status().await, Err(CallError::Timeout(limit)) if limit == Duration::from_secs(9)));
    five(client.logs(1).await.unwrap_err());
    five(client.turn_events(id, 0).next().await.unwrap().unwrap_err());
    assert!(
        matches!(client.stop_turn(id, &stop(3000)).await, Err(CallError::Timeout(limit)) if limit == Duration::from_secs(8))
    );
}

fn line(seq: u64, event: TurnEvent) -> String {
    serde_json::to_string(&TurnRecord { seq, at: Timestamp::UNIX_EPOCH, event }).unwrap() + "\n"
}

fn spoke(seq: u64) -> String {
    line(seq, TurnEvent::Spoke { text: "zwölf\n".to_owned() })
}

fn finished(seq: u64) -> String {
    line(seq, TurnEvent::Finished { outcome: Outcome::Interrupted, usage: None })
}

/// The numbers of the events that a client reads of `text` sent byte by byte or whole, and the error that it ends with.
async fn read(text: String, piece: usize) -> (Vec<u64>, Option<String>) {
    let sled = Router::new().route(
        paths::TURN_EVENTS,
        get(async move || {
            let pieces: Vec<_> = text
                .as_bytes()
                .chunks(piece)
                .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
                .collect();
            Body::from_stream(stream::iter(pieces))
        }),
    );
    let (client, _gateway, _sled) = calling(sled).await;
    let mut events = client.turn_events(Uuid::from_u128(1), 4);
    let mut seqs = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => seqs.push(event.seq),
            Err(error) => {
                assert!(events.next().await.is_none());
                return (seqs, Some(error.to_string()));
            }
        }
    }
    (seqs, None)
}

#[tokio::test]
async fn events_come_in_order_and_end_with_the_turn() {
    let whole = [spoke(5), spoke(6), finished(7)].concat();
    assert_eq!(read(whole.clone(), 1).await, (vec![5, 6, 7], None));
    assert_eq!(read(whole.clone() + "what follows is not read", 4096).await, (vec![5, 6, 7], None));
    assert_eq!(read(whole.trim_end().to_owned(), 4096).await, (vec![5, 6, 7], None));
}

#[tokio::test]
async fn events_out_of_form_end_the_stream_with_an_error() {
    let malformed = |what: &str| Some(format!("the sled's answer is malformed: {what}"));
    assert_eq!(read(spoke(5) + &spoke(7), 4096).await, (vec![5], malformed("event 7 came after event 5")));
    assert_eq!(read(spoke(4), 4096).await, (vec![], malformed("event 4 came after event 4")));
    assert_eq!(read(spoke(5) + "\n", 4096).await, (vec![5], malformed("EOF while parsing a value at line 1 column 0")));
    assert_eq!(read("x".repeat(LINE_LIMIT + 1), 4096).await, (vec![], malformed("a line is too long")));
    assert_eq!(read(spoke(5), 4096).await, (vec![5], Some("the sled broke off its answer".to_owned())));
    assert_eq!(read(String::new(), 4096).await, (vec![], Some("the sled broke off its answer".to_owned())));
}

#[tokio::test]
async fn a_line_without_end_is_not_gathered() {
    let sled = Router::new().route(paths::TURN_EVENTS, get(async || Body::from_stream(endless().0)));
    let (client, _gateway, _sled) = calling(sled).await;
    let events: Result<Vec<_>, _> = client.turn_events(Uuid::from_u128(1), 0).try_collect().await;
    assert!(matches!(events, Err(CallError::Malformed(_))));
}

#[tokio::test]
async fn the_reader_asks_from_its_cursor_and_waits_between_events() {
    let sled = Router::new().route(
        paths::TURN_EVENTS,
        get(async |Query(query): Query<EventsQuery>| {
            Body::from_stream(
                stream::once(async move { Ok::<_, std::io::Error>(spoke(query.after + 1)) }).chain(stream::pending()),
            )
        }),
    );
    let (client, gateway, sled) = calling(sled).await;
    let mut events = client.turn_events(Uuid::from_u128(1), 41);
    assert_eq!(events.try_next().await.unwrap().unwrap().seq, 42);
    assert!(events.next().now_or_never().is_none());
    // The sled's process ends: the reader learns of it at once.
    drop(sled);
    assert!(matches!(events.next().await, Some(Err(CallError::Closed(Closed::Peer)))));
    assert!(events.next().await.is_none());
    assert!(matches!(client.status().await, Err(CallError::Closed(Closed::Peer))));
    assert_eq!(gateway.driver.await.unwrap(), Closed::Peer);
}

#[tokio::test]
async fn an_unknown_turn_is_refused_on_the_stream_too() {
    let refuse = async || Refusal { kind: RefusalKind::UnknownTurn, message: "no such turn".to_owned() };
    let (client, _gateway, _sled) = calling(Router::new().route(paths::TURN_EVENTS, any(refuse))).await;
    let first = client.turn_events(Uuid::from_u128(1), 0).next().await;
    assert!(matches!(first, Some(Err(CallError::Refused(Refusal { kind: RefusalKind::UnknownTurn, .. })))));
}

#[test]
fn a_request_of_the_previous_version_is_understood() {
    let mut before = serde_json::to_value(turn()).unwrap();
    for added in ["permissions", "keep_warm_secs"] {
        before.as_object_mut().unwrap().remove(added);
    }
    let wanted = TurnRequest { permissions: Permissions::Bypass, keep_warm_secs: 0, ..turn() };
    assert_eq!(serde_json::from_value::<TurnRequest>(before).unwrap(), wanted);
}
