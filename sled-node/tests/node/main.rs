//! The real `sled` program on this host, asked over its socket by a real link.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod project;

mod asking;
mod connect;
mod forgetting;
mod git;
mod git_server;
mod model;
mod sshd;
mod takeover;
mod trees;
mod turns;
mod undo;
mod verify;
mod warm;
mod workspace;
