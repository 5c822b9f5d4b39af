//! Why a web server gave nothing that passes: one line for git in a container, a refusal for people who want a clone.

use std::error::Error as _;

use axum::http::StatusCode;
use reqwest::Url;
use tracing::warn;

use super::{Said, audit::Outcome, credentials, reach::Denied, refused, remote::WebRemote, said};
use crate::{refusal::Refusal, text};

/// What git asks a server for first.
const REFERENCES: &str = "/info/refs?service=git-upload-pack";
/// What to do about what may pass by itself.
pub(super) const AGAIN: &str = "Check the address, and that this host reaches it; the same command tries it again.";

/// What went wrong.
#[derive(Debug)]
pub enum Trouble {
    /// It was not begun.
    Refused(Refusal),
    /// What was to be sent is more than passes at once.
    TooLarge,
    /// Nobody answers there.
    Unreachable,
    /// The exchange was broken off.
    BrokenOff,
    /// Nothing moved for too long.
    Silent,
    /// The server sends elsewhere, to this address if it can be read.
    Moved(Option<Box<Url>>),
    /// The server wants a credential, and there is none.
    NoCredential,
    /// The server does not take the credential.
    WrongCredential,
    /// The server answers otherwise.
    Status(StatusCode),
}

impl Trouble {
    /// Why a request was not answered.
    pub fn unsent(error: &reqwest::Error, too_large: bool) -> Self {
        if too_large {
            return Self::TooLarge;
        }
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(Denied::Private { host, address }) = inner.downcast_ref::<Denied>() {
                return Self::Refused(Denied::Private { host: host.clone(), address: *address }.into());
            }
            cause = inner.source();
        }
        warn!(%error, "a git server was not reached");
        if error.is_timeout() || error.is_connect() { Self::Unreachable } else { Self::BrokenOff }
    }

    /// How the use of the credential ended with it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) | Self::Unreachable => Outcome::Unreachable,
            Self::BrokenOff | Self::Silent => Outcome::CutOff,
            Self::NoCredential | Self::WrongCredential | Self::Status(StatusCode::FORBIDDEN) => Outcome::Denied,
            Self::TooLarge | Self::Moved(_) | Self::Status(_) => Outcome::Failed,
        }
    }

    /// What git in a container is answered.
    pub fn said(&self, remote: &WebRemote) -> Said {
        let (server, name) = (text::code(&remote.authority()), credentials::example(remote));
        match self {
            Self::Refused(refusal) => refused(refusal),
            Self::TooLarge => {
                said(StatusCode::PAYLOAD_TOO_LARGE, "that is more than passes at once; push fewer commits")
            }
            Self::Unreachable => said(StatusCode::BAD_GATEWAY, "the git server could not be reached from the gateway"),
            Self::BrokenOff => said(StatusCode::BAD_GATEWAY, "the exchange with the git server was broken off"),
            Self::Silent => said(StatusCode::GATEWAY_TIMEOUT, "the git server does not answer"),
            Self::Moved(to) => {
                let host = to.as_ref().and_then(|to| to.host_str()).map(|host| format!(" (to {})", text::code(host)));
                let host = host.unwrap_or_default();
                let sentence = format!(
                    "the git server {server} sends us elsewhere{host}, where no credential is taken; the repository may have moved"
                );
                said(StatusCode::BAD_GATEWAY, &sentence)
            }
            // With 401 git would ask for a name and a password, which nobody should type there.
            Self::NoCredential => {
                let sentence = format!(
                    "the git server {server} wants a credential; whoever runs musher can store one: musher secrets set {name}"
                );
                said(StatusCode::FORBIDDEN, &sentence)
            }
            Self::WrongCredential => {
                let sentence = format!(
                    "the git server {server} does not take the credential; whoever runs musher can store another: musher secrets set {name}"
                );
                said(StatusCode::FORBIDDEN, &sentence)
            }
            Self::Status(status) => {
                let passed = if status.is_client_error() { *status } else { StatusCode::BAD_GATEWAY };
                said(passed, &format!("the git server {server} answers {status}"))
            }
        }
    }

    /// What whoever wants a clone is told.
    pub fn refusal(self, remote: &WebRemote) -> Refusal {
        let (shown, server) = (text::code(&remote.to_string()), text::code(&remote.authority()));
        let store =
            format!("`musher secrets set {}`, with `user:token` on standard input.", credentials::example(remote));
        let not_cloned =
            |why: &str| Refusal::unavailable(format!("{shown} cannot be cloned: the server {server} {why}"));
        match self {
            Self::Refused(refusal) => refusal,
            Self::Unreachable => not_cloned("cannot be reached").hint(AGAIN),
            Self::TooLarge | Self::BrokenOff => not_cloned("broke off").hint(AGAIN),
            Self::Silent => not_cloned("does not answer").hint(AGAIN),
            Self::Moved(to) => {
                let to = to.map(|to| to.to_string()).unwrap_or_default();
                let to = to.strip_suffix(REFERENCES).unwrap_or(&to);
                let to = if to.is_empty() { "nowhere".to_owned() } else { text::code(to) };
                Refusal::usage(format!("the server of {shown} sends to {to}"))
                    .hint("A redirect is not followed. If that is the repository, give its address there.")
            }
            Self::NoCredential => {
                Refusal::usage(format!("{shown} wants a credential, and none is stored for it")).hint(format!(
                    "Check the address: a repository that is not there looks the same. For a private one store a credential, then give the same command again: {store}"
                ))
            }
            Self::WrongCredential => {
                Refusal::usage(format!("the server of {shown} does not take the credential that is stored for it"))
                    .hint(format!("Store one that it takes, then give the same command again: {store}"))
            }
            Self::Status(status) => not_cloned(&format!("answers {status}")).hint(AGAIN),
        }
    }
}
