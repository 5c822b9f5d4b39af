//! `GET /healthz`: 200 when messages are being taken, 503 with the reasons otherwise. `GET /metrics`: for Prometheus.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{self, Metrics, Sources},
    refusal::Refusal,
};

/// Says what is wrong; nothing when messages are being taken.
pub type Reasons = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the door shows.
#[derive(Clone)]
pub struct Door {
    /// What is wrong.
    pub reasons: Reasons,
    /// What was counted.
    pub metrics: Metrics,
    /// What is true at the moment.
    pub sources: Sources,
}

/// Binds the gateway's HTTP door.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, Refusal> {
    TcpListener::bind(listen).await.map_err(|error| {
        Refusal::internal(format!("the address {listen} cannot be listened on"), error)
            .hint("Another program has it; set `[http] listen` in bot.toml to a free one.")
    })
}

/// Serves the door until the gateway stops.
pub async fn serve(listener: TcpListener, door: Door, stopping: CancellationToken) {
    let served = axum::serve(listener, router(door)).with_graceful_shutdown(stopping.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP door is closed");
    }
}

fn router(door: Door) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(scrape))
        .layer(from_fn(check_host))
        .with_state(Arc::new(door))
}

async fn healthz(State(door): State<Arc<Door>>) -> Response {
    let reasons = (door.reasons)();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ok": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn scrape(State(door): State<Arc<Door>>) -> Response {
    let now = (door.sources)().await;
    match door.metrics.text(&now) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A web page must not reach us by a name that leads to loopback (SEC-7): the host is an address, or `localhost`.
async fn check_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<SocketAddr>().map_or_else(
        |_| host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned(),
        |address| address.ip().to_string(),
    );
    let plain = name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if plain { next.run(request).await } else { StatusCode::MISDIRECTED_REQUEST.into_response() }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderMap};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    fn door(reasons: Vec<String>) -> Door {
        let now = metrics::Now { messages_waiting: 7, ..metrics::Now::default() };
        Door {
            reasons: Arc::new(move || reasons.clone()),
            metrics: Metrics::new(jiff::Timestamp::UNIX_EPOCH),
            sources: Arc::new(move || Box::pin(async move { now })),
        }
    }

    async fn get(path: &str, host: &str, reasons: Vec<String>) -> (StatusCode, HeaderMap, String) {
        let request = Request::builder().uri(path).header("host", host).body(Body::empty()).expect("it is a request");
        let response = router(door(reasons)).oneshot(request).await.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("it can be read").to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).expect("it is text"))
    }

    async fn ask(host: &str, reasons: Vec<String>) -> (StatusCode, String) {
        let (status, _, body) = get("/healthz", host, reasons).await;
        (status, body)
    }

    #[tokio::test]
    async fn metrics_are_asked_for_at_the_scrape_and_shown_to_loopback_names_alone() {
        let (status, headers, body) = get("/metrics", "127.0.0.1:7717", Vec::new()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], metrics::MEDIA_TYPE);
        assert!(body.contains("\nmusher_messages_waiting 7\n"), "{body}");
        let (status, _, body) = get("/metrics", "evil.example.org", Vec::new()).await;
        assert_eq!((status, body.as_str()), (StatusCode::MISDIRECTED_REQUEST, ""));
    }

    #[tokio::test]
    async fn health_is_true_only_when_messages_are_taken() {
        assert_eq!(ask("127.0.0.1:7717", Vec::new()).await, (StatusCode::OK, r#"{"ok":true,"reasons":[]}"#.into()));
        let (status, body) = ask("localhost", vec!["matrix: no sync yet".into()]).await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, r#"{"ok":false,"reasons":["matrix: no sync yet"]}"#)
        );
        for host in ["[::1]:7717", "127.0.0.1"] {
            assert_eq!(ask(host, Vec::new()).await.0, StatusCode::OK, "{host}");
        }
        assert_eq!(ask("evil.example.org", Vec::new()).await.0, StatusCode::MISDIRECTED_REQUEST);
    }
}
