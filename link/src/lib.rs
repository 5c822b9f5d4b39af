//! The link: HTTP requests both ways over one byte stream between a gateway and a sled.
//!
//! [`open`] exchanges a [`Hello`] with the other side and gives a [`Link`], which sends requests, and a [`Driver`], which carries
//! the bytes and serves what the other side asks by an axum router. Below lies yamux: each request is HTTP/1.1 on a stream of its own.
//! [`SledClient`] is the gateway's typed client of a sled; [`requests`] holds the shapes that both sides share, [`git`] those of git's way to a remote.
//!
//! Whatever the peer sends is hostile until it is bounded ([`Limits`]). This crate knows no policy: what a request may do is the router's to say.

mod batched;
mod client;
pub mod git;
mod guard;
pub mod headers;
mod hello;
mod mux;
pub mod requests;
pub mod takeover;

pub use client::{CallError, SledClient};
pub use hello::{Hello, OpenError, PROTOCOL};
pub use mux::{Closed, Driver, Limits, Link, RequestError, open};

/// Which end of the link this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// `musher`; the yamux client.
    Gateway,
    /// `sled`; the yamux server.
    Sled,
}

impl Side {
    /// The side that this one speaks with.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Gateway => Self::Sled,
            Self::Sled => Self::Gateway,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Sled => "sled",
        })
    }
}
