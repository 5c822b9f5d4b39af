//! `GET /healthz`: 200 when messages are being taken, 503 with the reasons otherwise.

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

use crate::refusal::Refusal;

/// Says what is wrong; nothing when messages are being taken.
pub type Reasons = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Binds the gateway's HTTP door.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, Refusal> {
    TcpListener::bind(listen).await.map_err(|error| {
        Refusal::internal(format!("the address {listen} cannot be listened on"), error)
            .hint("Another program has it; set `[http] listen` in bot.toml to a free one.")
    })
}

/// Serves the door until the gateway stops.
pub async fn serve(listener: TcpListener, reasons: Reasons, stopping: CancellationToken) {
    let served = axum::serve(listener, router(reasons)).with_graceful_shutdown(stopping.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP door is closed");
    }
}

fn router(reasons: Reasons) -> Router {
    Router::new().route("/healthz", get(healthz)).layer(from_fn(check_host)).with_state(reasons)
}

async fn healthz(State(reasons): State<Reasons>) -> Response {
    let reasons = reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ok": reasons.is_empty(), "reasons": reasons }))).into_response()
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
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(host: &str, reasons: Vec<String>) -> (StatusCode, String) {
        let request =
            Request::builder().uri("/healthz").header("host", host).body(Body::empty()).expect("it is a request");
        let response =
            router(Arc::new(move || reasons.clone())).oneshot(request).await.expect("a router always answers");
        let status = response.status();
        let body = response.into_body().collect().await.expect("it can be read").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("it is text"))
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
