//! What can be wrong with a `bot.toml`, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no [`Config`](crate::Config).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file. Whether that matters is the caller's decision.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file says something that it may not. Never empty; in the order of the file's lines. Displayed one
    /// problem per line.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong in a file: displayed as `bot.toml:12: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to `parse` or `load`.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and after a semicolon what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// Why a text is no value of a setting: a fragment that follows the setting's name, such as "must be …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(crate) String);

impl ValueError {
    pub(crate) fn must_be(kind: impl fmt::Display) -> Self {
        Self(format!("must be {kind}"))
    }
}
