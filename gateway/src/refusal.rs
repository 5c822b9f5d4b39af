//! Refusals that help: one clear sentence, and what to do next.
//!
//! Everything that a person is told when something is not done has this shape, in chat and on the
//! terminal alike. A refusal says that nothing has changed; what failed half-way undoes itself first.

use std::{error::Error, fmt, process::ExitCode};

/// Whose move it is, which also decides the exit code of the command line (sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command was wrong (64).
    Usage,
    /// A setting was wrong (78).
    Config,
    /// Something that is needed is not there, such as the engine (69).
    Unavailable,
    /// A fault of ours or of the system (70).
    Internal,
}

impl Kind {
    /// The exit code of the command line.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Config => 78,
        })
    }
}

/// A refusal: what, and what to do next.
#[derive(Debug)]
pub struct Refusal {
    /// Whose move it is.
    pub kind: Kind,
    /// One sentence, without its full stop.
    pub what: String,
    /// What to do next, a sentence of its own.
    pub hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Refusal {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None, source: None }
    }

    /// The command was wrong.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// A setting was wrong.
    pub fn config(what: impl Into<String>) -> Self {
        Self::new(Kind::Config, what)
    }

    /// Something that is needed is not there.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, what)
    }

    /// A fault of ours or of the system.
    pub fn internal(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..Self::new(Kind::Internal, what) }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code of the command line.
    pub fn exit_code(&self) -> ExitCode {
        self.kind.exit_code()
    }

    /// The refusal as chat text: the sentence, its causes, and the hint on a line of its own.
    pub fn to_markdown(&self) -> String {
        let sentence = self.sentence();
        let mut letters = sentence.chars();
        let sentence: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        match &self.hint {
            Some(hint) => format!("⚠ {sentence}\n{hint}"),
            None => format!("⚠ {sentence}"),
        }
    }

    /// The sentence with the causes that the system gave, ended by a full stop.
    pub fn sentence(&self) -> String {
        let mut text = self.what.clone();
        let mut source = self.source.as_deref().map(|source| source as &dyn Error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        if !text.ends_with(['.', '?', '!', ':']) {
            text.push('.');
        }
        text
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_sentence_with_its_cause_and_a_hint() {
        let refusal = Refusal::internal("the journal cannot be opened", std::io::Error::other("disk full"))
            .hint("Free some space and try again.");
        assert_eq!(refusal.to_string(), "the journal cannot be opened: disk full.\n  Free some space and try again.");
        assert_eq!(refusal.to_markdown(), "⚠ The journal cannot be opened: disk full.\nFree some space and try again.");
    }
}
