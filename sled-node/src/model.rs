//! The agent's model endpoint: on the container's loopback, forwarded to the gateway (SEC-3), with refusals in the form that the model API's clients show.

use std::time::Duration;

use axum::response::{IntoResponse, Response};

use crate::forward::{Refusal, Rules};

/// The port that the endpoint has unless `serve` is told another: beside sshd's, below the ephemeral range.
pub const DEFAULT_PORT: u16 = 2223;

/// Path `/x?y` here is `/model/x?y` there.
pub const RULES: Rules = Rules {
    prefix: "/model",
    of_what: "model requests",
    requests: 256,
    body_limit: Some(32 * 1024 * 1024),
    // A turn goes on without its gateway for as long as its agent's client does. A little less than the ten minutes that Claude Code waits for
    // an answer: it is told in time, and asks again, instead of leaving requests behind that nobody takes the answers of.
    link_patience: Duration::from_mins(9),
    // The provider's thinking is nobody's idleness.
    idle: None,
    refuse,
};

fn refuse(refusal: &Refusal) -> Response {
    let kind = match refusal {
        Refusal::Stranger | Refusal::Path(_) => "invalid_request_error",
        Refusal::TooLarge(_) => "request_too_large",
        Refusal::TooMany(_) => "overloaded_error",
        Refusal::NoGateway | Refusal::NoAnswer(_) | Refusal::Idle(_) => "api_error",
    };
    let error = serde_json::json!({ "type": kind, "message": format!("sled: {refusal}") });
    (refusal.status(), axum::Json(serde_json::json!({ "type": "error", "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn refusals_are_errors_that_clients_show() {
        let table = [
            (Refusal::Stranger, 421, "invalid_request_error", "sled: this endpoint answers to loopback names only"),
            (
                Refusal::TooLarge(RULES.body_limit.unwrap()),
                413,
                "request_too_large",
                "sled: the request is larger than 32 MiB",
            ),
            (
                Refusal::TooMany(RULES.of_what),
                503,
                "overloaded_error",
                "sled: too many model requests at once in this project",
            ),
            (Refusal::NoGateway, 503, "api_error", "sled: no gateway is connected to this project: is musher running?"),
            (
                Refusal::NoAnswer(link::RequestError::Dropped),
                502,
                "api_error",
                "sled: the gateway gave no answer: the other side dropped the request",
            ),
        ];
        for (refusal, status, kind, message) in table {
            let response = refuse(&refusal);
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body, serde_json::json!({ "type": "error", "error": { "type": kind, "message": message } }));
        }
    }
}
