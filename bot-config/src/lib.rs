//! `bot.toml`: every setting, its default, its checks, its errors, and the example file.
//!
//! One table in `settings.rs` is struct, default, documentation and example at once. What comes out of
//! [`Config::parse`] is typed and free of contradictions; everything that is wrong with a file is reported
//! together, each problem with its line and what to write instead.
//!
//! This crate must not know another crate of Musher, read the environment, or open a file except in
//! [`Config::load`]. The home directory is handed in ([`ConfigPath::resolve`]). No error quotes a text
//! that stands as a value: it may be a secret in the wrong place.

mod address;
mod check;
mod choice;
mod endpoint;
mod error;
mod example;
mod money;
mod names;
mod quantity;
mod read;
mod settings;
mod value;

pub use address::{EngineHost, MirrorUrl, ServerUrl};
pub use choice::{Auth, Network, Permissions, RoomMode, Toolchains};
pub use endpoint::{Endpoint, KeySource, ModelKey, ProjectModels};
pub use error::{ConfigError, Problem, ValueError};
pub use example::example;
pub use money::{Price, Prices, Usd};
pub use names::{ConfigPath, Headers, HostName, ImageRef, RoomRef, Secret, SecretName, SshHost, UserId};
pub use quantity::{Cpus, Memory};
pub use settings::{
    Agent, Budget, Config, Engine, Git, Http, Images, MatrixAccount, MatrixLogin, Model, PasswordSource, Projects,
    Runtime, Surface,
};
