//! The agent's model endpoint: on the container's loopback, forwarded to the gateway over the newest link (SEC-3).
//!
//! It holds no key and no table of what is allowed: the gateway checks method and path and adds the credential. Path `/x?y` here is
//! `/model/x?y` there. Bodies stream both ways; numbers and sizes are bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use link::headers::strip_hop_by_hop;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::links::Links;

/// The port that the endpoint has unless `serve` is told another: beside sshd's, below the ephemeral range.
pub const DEFAULT_PORT: u16 = 2223;

/// Requests at once, their answers' bodies included.
pub const MAX_REQUESTS: usize = 64;

/// Largest request body, in bytes.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// How long a request waits for a gateway: long enough for one that restarts.
const LINK_PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone)]
struct Endpoint {
    links: Links,
    places: Arc<Semaphore>,
}

/// Serves the endpoint until `shutdown`.
pub async fn serve(listener: TcpListener, links: Links, shutdown: CancellationToken) -> std::io::Result<()> {
    let endpoint = Endpoint { links, places: Arc::new(Semaphore::new(MAX_REQUESTS)) };
    let router = Router::new().fallback(forward).with_state(endpoint);
    let served = axum::serve(listener, router).into_future();
    tokio::select! {
        ended = served => ended,
        () = shutdown.cancelled() => Ok(()),
    }
}

async fn forward(State(endpoint): State<Endpoint>, request: Request<Body>) -> Response {
    if !is_for_loopback(&request) {
        return refuse(
            StatusCode::MISDIRECTED_REQUEST,
            "invalid_request_error",
            "this endpoint answers to loopback names only",
        );
    }
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return too_large();
    }
    let Ok(place) = endpoint.places.try_acquire_owned() else {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded_error",
            "too many model requests at once in this project",
        );
    };
    let Some(link) = endpoint.links.newest(LINK_PATIENCE).await else {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "api_error",
            "no gateway is connected to this project: is musher running?",
        );
    };
    let over = Arc::new(AtomicBool::new(false));
    let outbound = match outbound(request, over.clone()) {
        Ok(outbound) => outbound,
        Err(error) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                &format!("the path cannot be forwarded: {error}"),
            );
        }
    };
    match link.request(outbound).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            strip_hop_by_hop(&mut head.headers);
            let body = body.into_data_stream().map(move |chunk| {
                let _until_the_end = &place;
                chunk
            });
            Response::from_parts(head, Body::from_stream(body))
        }
        Err(_) if over.load(Ordering::Relaxed) => too_large(),
        Err(error) => refuse(StatusCode::BAD_GATEWAY, "api_error", &format!("the gateway gave no answer: {error}")),
    }
}

/// The same request as the gateway gets it.
fn outbound(request: Request<Body>, over: Arc<AtomicBool>) -> Result<Request<Body>, http::uri::InvalidUri> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    head.uri = Uri::try_from(format!("/model{path}"))?;
    head.version = http::Version::HTTP_11;
    strip_hop_by_hop(&mut head.headers);
    let body = Limited::new(body, MAX_BODY).map_err(move |error| {
        over.store(error.is::<http_body_util::LengthLimitError>(), Ordering::Relaxed);
        error
    });
    Ok(Request::from_parts(head, Body::new(body)))
}

/// Against web pages that make a browser ask for them under a name of their own (SEC-7).
fn is_for_loopback(request: &Request<Body>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let one = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    let is_loopback =
        |authority: &http::uri::Authority| matches!(authority.host(), "127.0.0.1" | "localhost" | "[::1]");
    one.and_then(|host| host.parse().ok()).is_some_and(|host| is_loopback(&host))
        && request.uri().authority().is_none_or(is_loopback)
}

fn too_large() -> Response {
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", "the request is larger than 32 MiB")
}

/// An error in the form that the model API's clients show.
fn refuse(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = serde_json::json!({ "type": "error", "error": { "type": kind, "message": format!("sled: {message}") } });
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_a_gateway_the_wait_ends_with_a_word_that_clients_show() {
        let endpoint = Endpoint { links: Links::new(), places: Arc::new(Semaphore::new(1)) };
        let began = tokio::time::Instant::now();
        let request = Request::builder().header(header::HOST, "127.0.0.1").body(Body::empty()).unwrap();
        let response = forward(State(endpoint), request).await;
        assert_eq!((response.status(), began.elapsed()), (StatusCode::SERVICE_UNAVAILABLE, LINK_PATIENCE));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["message"], "sled: no gateway is connected to this project: is musher running?");
    }

    #[test]
    fn only_loopback_names_are_answered() {
        let table = [
            (&["127.0.0.1:2223"][..], true),
            (&["localhost"], true),
            (&["[::1]:2223"], true),
            (&["evil.example:2223"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["localhost@evil.example"], false),
            (&["127.0.0.1", "evil.example"], false),
            (&[], false),
        ];
        for (hosts, wanted) in table {
            let mut request = Request::new(Body::empty());
            for host in hosts {
                request.headers_mut().append(header::HOST, host.parse().unwrap());
            }
            assert_eq!(is_for_loopback(&request), wanted, "{hosts:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/v1/messages?beta=true".parse().unwrap();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("host", "127.0.0.1:2223"),
            ("anthropic-version", "2023-06-01"),
        ] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let outbound = outbound(request, Arc::default()).unwrap();
        assert_eq!(outbound.uri(), "/model/v1/messages?beta=true");
        let names: Vec<_> = outbound.headers().keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["anthropic-version"]);
    }
}
