//! What can go wrong with an engine, by kind. A kind comes from status codes, error kinds of the system and our own
//! checks, never from the words of a message.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use bollard::errors::Error as ApiError;

use crate::{Layer, SpecError};

type Source = Box<dyn StdError + Send + Sync>;

/// An engine that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No engine answers.
    #[error("no container engine answers on {address}")]
    NotRunning {
        /// The socket or address that was tried.
        address: String,
    },
    /// The engine's socket is not for this user.
    #[error("this user may not use the container engine's socket {}", socket.display())]
    PermissionDenied {
        /// The socket.
        socket: PathBuf,
    },
    /// The engine's address is of a kind that is not served.
    #[error("{host:?} is no engine address that can be used")]
    UnsupportedHost {
        /// The address as it was given.
        host: String,
    },
    /// The engine speaks only older versions of the API.
    #[error("the container engine speaks API {found}, older than {needed}")]
    TooOld {
        /// What it speaks.
        found: String,
        /// What is needed.
        needed: &'static str,
    },
    /// Users in its containers are other users on its host: rootless, or dockerd with `userns-remap`.
    #[error(
        "the container engine on {address} cannot be used, because its containers run as other users than this host's (it is rootless, or remaps users), to whom a project's folder is closed"
    )]
    Remapped {
        /// The socket or address.
        address: String,
    },
    /// The container, image or network is not there.
    #[error("could not {what}: {message}")]
    NotFound {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// The engine's words.
        message: String,
    },
    /// A name is taken, or the thing is in a state that does not allow it.
    #[error("could not {what}: {message}")]
    Conflict {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// The engine's words.
        message: String,
    },
    /// A command was to run in a container that does not run.
    #[error("container {container} is not running")]
    ContainerStopped {
        /// The container.
        container: String,
    },
    /// The host's loopback port belongs to somebody else.
    #[error("port {0} on the host's loopback is taken")]
    PortTaken(u16),
    /// The engine did not answer in time.
    #[error("the container engine did not {what} within {secs} s")]
    Timeout {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// How long was waited.
        secs: u64,
    },
    /// A build said nothing for too long.
    #[error("building layer {layer} made no progress for {secs} s")]
    NoProgress {
        /// The layer.
        layer: Layer,
        /// How long was waited.
        secs: u64,
    },
    /// A step of a build failed.
    #[error(transparent)]
    BuildFailed(Box<BuildFailure>),
    /// A program of the host that is needed cannot be started.
    #[error("{program} cannot be started: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What a container was to be contradicts itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The engine refused, or failed, in another way.
    #[error("could not {what}: the engine answered {status}: {message}")]
    Api {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// An answer of the engine lacks what it must hold.
    #[error("could not {what}: the engine's answer has no valid {missing}")]
    Answer {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// What was looked for.
        missing: &'static str,
    },
    /// The connection broke, or carried something else than the API.
    #[error("could not {what}: {source}")]
    Connection {
        /// What was asked, in the infinitive.
        what: &'static str,
        /// What broke.
        source: Source,
    },
}

impl EngineError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRunning { .. } => Some(
                "start the system's engine (`systemctl start docker`, or `dockerd`), or set [engine] host in bot.toml",
            ),
            Self::PermissionDenied { .. } => {
                Some("add the user to the socket's group (`usermod -aG docker <user>`) and log in again")
            }
            Self::UnsupportedHost { .. } => {
                Some("use unix:///path/to/socket, or tcp://host:port for an engine without TLS")
            }
            Self::TooOld { .. } => Some("install Docker 20.10 or later, or Podman 4 or later"),
            Self::Remapped { .. } => Some(
                "use the system's Docker or Podman: unset DOCKER_HOST, or set [engine] host in bot.toml to its socket",
            ),
            Self::PortTaken(_) => Some("another port is tried at the next attempt"),
            Self::NoProgress { .. } => Some("look whether the Debian mirror and the network answer, then try again"),
            Self::Program { .. } => Some(
                "install it (on Debian and Ubuntu: `apt-get install mmdebstrap`), or set [images] base to an image of your own",
            ),
            _ => None,
        }
    }

    pub(crate) fn connection(what: &'static str, source: impl Into<Source>) -> Self {
        Self::Connection { what, source: source.into() }
    }

    /// Sorts bollard's error. `address` is the engine's, for the case that it has gone.
    pub(crate) fn from_api(what: &'static str, address: &str, error: ApiError) -> Self {
        match error {
            ApiError::DockerResponseServerError { status_code: 404, message } => Self::NotFound { what, message },
            ApiError::DockerResponseServerError { status_code: 409, message } => Self::Conflict { what, message },
            ApiError::DockerResponseServerError { status_code, message } => {
                Self::Api { what, status: status_code, message }
            }
            ApiError::SocketNotFoundError(_) => Self::NotRunning { address: address.to_owned() },
            other => match io_kind(&other) {
                Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    Self::NotRunning { address: address.to_owned() }
                }
                Some(io::ErrorKind::PermissionDenied) => Self::PermissionDenied { socket: PathBuf::from(address) },
                _ => Self::connection(what, other),
            },
        }
    }
}

/// The kind of the system's error at the root, if that is what failed.
fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

/// A step of a build that failed.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer} failed at step {step} of {steps}: {message}")]
pub struct BuildFailure {
    /// The layer.
    pub layer: Layer,
    /// The step that failed, counted from 1; 0 before the first.
    pub step: u32,
    /// How many steps the layer has.
    pub steps: u32,
    /// The engine's or the program's word on it.
    pub message: String,
    /// The last lines of the log, at most 20.
    pub log: Vec<String>,
}
