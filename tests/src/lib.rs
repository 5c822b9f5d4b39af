//! The harness of the end-to-end tests: everything that stands around the product.
//!
//! A stand-in for the model ([`model`]), a real homeserver ([`homeserver`]) and a person on it
//! ([`person`]), the gateway as a process ([`gateway`]), what the engine holds of it ([`engine`]) and
//! OpenSSH's clients ([`ssh`]). It knows the product by its public doors alone: binaries, chat, SSH,
//! HTTP and Docker. It must never link a crate of the product.

pub mod engine;
pub mod gateway;
pub mod git_server;
pub mod home;
pub mod homeserver;
pub mod images;
pub mod lsp;
pub mod model;
pub mod person;
pub mod process;
pub mod product;
pub mod secrets;
pub mod ssh;
pub mod transcript;
pub mod wait;
