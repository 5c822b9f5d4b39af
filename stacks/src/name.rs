//! The name of a stack: what a person writes after `--stack`, and the folder's name.

use std::fmt;
use std::str::FromStr;

/// A stack's name: `[a-z][a-z0-9-]{0,30}`, so that it fits a folder, an image tag and a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StackName(String);

/// A text that cannot be a stack's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no stack name: it needs a lower-case letter first, then at most 30 of a-z, 0-9 and `-`")]
pub struct BadStackName(pub String);

impl StackName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StackName {
    type Err = BadStackName;

    fn from_str(text: &str) -> Result<Self, BadStackName> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if first && rest && text.len() <= 31 { Ok(Self(text.to_owned())) } else { Err(BadStackName(text.to_owned())) }
    }
}

impl TryFrom<String> for StackName {
    type Error = BadStackName;

    fn try_from(text: String) -> Result<Self, BadStackName> {
        text.parse()
    }
}

impl From<StackName> for String {
    fn from(name: StackName) -> Self {
        name.0
    }
}

impl fmt::Display for StackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
