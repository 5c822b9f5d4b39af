//! The gateway of Musher: chat, projects, routing and secrets.
//!
//! This is the only process that talks to the Docker engine, to Matrix, to git remotes and to model
//! providers. It runs no project code and no agent on the host. See `docs/architecture.md` for the map.

pub mod author;
pub mod chat;
pub mod cli;
pub mod commands;
pub mod containers;
pub mod control;
pub mod dispatch;
pub mod doctor;
pub mod failpoint;
pub mod followers;
pub mod gateway;
pub mod git;
pub mod health;
pub mod home;
pub mod inspect;
pub mod intake;
pub mod metrics;
pub mod model;
pub mod nodes;
pub mod outbox;
pub mod people;
pub mod priority;
pub mod projects;
pub mod prompt;
pub mod refusal;
pub mod rooms;
pub mod secrets;
pub mod sessions;
pub mod settings;
pub mod store;
pub mod tasks;
pub mod text;
pub mod turns;
pub mod usage;
