//! Real git servers on loopback: repositories behind HTTP with a password ([`web`]) and behind OpenSSH's sshd ([`ssh`]).
//!
//! Containers do not reach them: what comes from inside a project has come by way of the gateway.

pub mod repositories;
pub mod ssh;
pub mod web;

pub use repositories::{Content, Repositories};
pub use ssh::SshServer;
pub use web::{Reply, WebServer};
