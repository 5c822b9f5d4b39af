//! What an error of the homeserver means to us: gone for good, to be tried again, or to be waited for.
//!
//! Decided by the protocol's error codes and status codes, never by an error's text.

use std::{error::Error as _, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use matrix_sdk::{
    Error, HttpError,
    ruma::{
        api::error::{ErrorKind, RetryAfter},
        exports::http::StatusCode,
    },
};

/// What to do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The homeserver no longer knows the access token.
    UnknownToken {
        /// The device still exists and can be logged in again.
        soft: bool,
    },
    /// Trying again may help.
    Transient {
        /// What happened, one fragment.
        reason: String,
        /// How long the homeserver asked to wait.
        retry_after: Option<Duration>,
    },
    /// Trying again would give the same.
    Permanent {
        /// What happened, one fragment.
        reason: String,
        /// Whether it is the homeserver's `M_FORBIDDEN`.
        forbidden: bool,
    },
    /// The store or the encryption of this machine failed.
    Local {
        /// What happened, one fragment.
        reason: String,
    },
}

impl Failure {
    /// What happened, one fragment.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::UnknownToken { .. } => "the homeserver no longer knows the session",
            Self::Transient { reason, .. } | Self::Permanent { reason, .. } | Self::Local { reason } => reason,
        }
    }

    /// How long the homeserver asked to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Transient { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Http(http) => Self::from(*http),
            Error::WrongRoomState(_) => {
                Self::Permanent { reason: "the bot is not in that room".to_owned(), forbidden: false }
            }
            other => Self::Local { reason: other.to_string() },
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::from(&error)
    }
}

impl From<&HttpError> for Failure {
    fn from(error: &HttpError) -> Self {
        if let HttpError::Cached(inner) = error {
            return Self::from(inner.as_ref());
        }
        let reason = describe(error);
        let Some(answer) = error.as_client_api_error() else {
            return match error {
                HttpError::Api(_) if error.as_uiaa_response().is_some() => Self::Permanent { reason, forbidden: false },
                _ => Self::Transient { reason, retry_after: None },
            };
        };
        match answer.error_kind() {
            Some(ErrorKind::UnknownToken(data)) => Self::UnknownToken { soft: data.soft_logout },
            Some(ErrorKind::LimitExceeded(data)) => {
                let retry_after = match data.retry_after {
                    Some(RetryAfter::Delay(wait)) => Some(wait),
                    _ => None,
                };
                Self::Transient { reason, retry_after }
            }
            // States of the account or the homeserver, not words about this request: they end.
            Some(ErrorKind::UserLocked | ErrorKind::UserSuspended | ErrorKind::ResourceLimitExceeded(_)) => {
                Self::Transient { reason, retry_after: None }
            }
            // Without a code of the protocol it is a proxy's word, while the homeserver starts perhaps. That a request is
            // too large stays true.
            None if answer.status_code != StatusCode::PAYLOAD_TOO_LARGE => {
                Self::Transient { reason, retry_after: None }
            }
            kind => match answer.status_code.as_u16() {
                408 | 425 | 429 | 500.. => Self::Transient { reason, retry_after: None },
                _ => Self::Permanent { reason, forbidden: matches!(kind, Some(ErrorKind::Forbidden)) },
            },
        }
    }
}

/// The error as one fragment, without the request's URL.
fn describe(error: &HttpError) -> String {
    if let HttpError::Reqwest(transport) = error {
        if transport.is_timeout() {
            return "no answer in time".to_owned();
        }
        let mut cause: &dyn std::error::Error = transport;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        return match transport.source() {
            Some(_) => cause.to_string(),
            None => "the request could not be made".to_owned(),
        };
    }
    error.to_string()
}

/// Growing waits with jitter between attempts, from one second to a minute.
#[derive(Debug)]
pub(super) struct Backoff(ExponentialBackoff);

impl Backoff {
    pub(super) fn new() -> Self {
        let waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(MAX_WAIT)
            .with_jitter()
            .without_max_times();
        Self(waits.build())
    }

    /// Waits before the next attempt, at least as long as the homeserver asked.
    pub(super) async fn wait(&mut self, retry_after: Option<Duration>) {
        let own = self.0.next().unwrap_or(MAX_WAIT);
        tokio::time::sleep(retry_after.map_or(own, |asked| own.max(asked))).await;
    }
}

const MAX_WAIT: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use matrix_sdk::ruma::{
        api::{EndpointError, client::uiaa::UiaaResponse, error::FromHttpResponseError},
        exports::http,
    };

    use super::*;

    fn answer(status: u16, body: &str) -> Failure {
        let response = http::Response::builder().status(status).body(body.as_bytes()).expect("a response");
        let error = UiaaResponse::from_http_response(response);
        Failure::from(HttpError::from(FromHttpResponseError::Server(error)))
    }

    #[test]
    fn codes_decide() {
        assert_eq!(answer(401, r#"{"errcode":"M_UNKNOWN_TOKEN","error":"x"}"#), Failure::UnknownToken { soft: false });
        assert_eq!(
            answer(401, r#"{"errcode":"M_UNKNOWN_TOKEN","error":"x","soft_logout":true}"#),
            Failure::UnknownToken { soft: true }
        );
        let limited =
            answer(429, r#"{"errcode":"M_LIMIT_EXCEEDED","error":"Too Many Requests","retry_after_ms":1500}"#);
        assert_eq!(limited.retry_after(), Some(Duration::from_millis(1500)));
        assert!(matches!(answer(429, "slow down"), Failure::Transient { .. }));
        assert!(matches!(answer(502, "<html>bad gateway</html>"), Failure::Transient { .. }));
        // What is locked, suspended or full today need not be so tomorrow.
        for (status, body) in [
            (401, r#"{"errcode":"M_USER_LOCKED","error":"locked","soft_logout":true}"#),
            (403, r#"{"errcode":"M_USER_SUSPENDED","error":"suspended"}"#),
            (
                403,
                r#"{"errcode":"M_RESOURCE_LIMIT_EXCEEDED","error":"full","admin_contact":"mailto:admin@example.org"}"#,
            ),
        ] {
            let failure = answer(status, body);
            assert!(matches!(failure, Failure::Transient { retry_after: None, .. }), "{status} {body}: {failure:?}");
        }
        // What no homeserver says is not its refusal.
        for (status, body) in [
            (404, "404 page not found"),
            (403, "<html>forbidden</html>"),
            (401, ""),
            (400, "{}"),
            (410, r#"{"error":"gone"}"#),
            (405, r#"{"errcode":7}"#),
        ] {
            let failure = answer(status, body);
            assert!(matches!(failure, Failure::Transient { retry_after: None, .. }), "{status} {body}: {failure:?}");
        }
        assert!(matches!(answer(413, "<html>too large</html>"), Failure::Permanent { forbidden: false, .. }));
        assert!(matches!(
            answer(403, r#"{"errcode":"M_FORBIDDEN","error":"no"}"#),
            Failure::Permanent { forbidden: true, .. }
        ));
        assert!(matches!(
            answer(413, r#"{"errcode":"M_TOO_LARGE","error":"too large"}"#),
            Failure::Permanent { forbidden: false, .. }
        ));
        assert!(matches!(answer(404, r#"{"errcode":"M_NOT_FOUND","error":"no"}"#), Failure::Permanent { .. }));
        // A text that only talks of another error does not become it.
        assert!(matches!(
            answer(400, r#"{"errcode":"M_BAD_JSON","error":"M_UNKNOWN_TOKEN"}"#),
            Failure::Permanent { .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_honour_what_was_asked() {
        let mut backoff = Backoff::new();
        let mut waited = Vec::new();
        for asked in [None, None, Some(Duration::from_secs(30)), None] {
            let before = tokio::time::Instant::now();
            backoff.wait(asked).await;
            waited.push(before.elapsed().as_secs());
        }
        assert!((1..=2).contains(&waited[0]), "{waited:?}");
        assert!(waited[2] >= 30 && waited[3] > waited[0], "{waited:?}");
        for _ in 0..40 {
            let before = tokio::time::Instant::now();
            backoff.wait(None).await;
            assert!(before.elapsed() <= MAX_WAIT * 2);
        }
    }
}
