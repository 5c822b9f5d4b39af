//! The link between two ends in one process, over `tokio::io::duplex`: what it carries, and what it bears from a hostile peer.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod both_ways;
mod hello;
mod hostile;
mod support;
mod typed;
