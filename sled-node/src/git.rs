//! The endpoint of the project's git: on the container's loopback, forwarded to the gateway, which alone has the remote's credential (SEC-2).
//!
//! git comes here by itself for a web remote (`insteadOf`), and through `sled git-ssh` for an ssh remote.

use std::time::Duration;

use axum::response::{IntoResponse, Response};

use crate::forward::{Refusal, Rules};

/// Path `/x?y` here is `/git/x?y` there. A pack is as large as it is; the gateway bounds it.
pub const RULES: Rules = Rules {
    prefix: link::git::paths::PREFIX,
    of_what: "git requests",
    requests: 64,
    body_limit: None,
    // Long enough for a gateway that restarts; git's people wait at a terminal.
    link_patience: Duration::from_mins(1),
    // A push waits with an open session for what its pre-push hook does: often a run of all tests.
    idle: Some(Duration::from_hours(1)),
    refuse,
};

/// git shows plain text of a server, and nothing else.
fn refuse(refusal: &Refusal) -> Response {
    (refusal.status(), format!("{refusal}\n")).into_response()
}
