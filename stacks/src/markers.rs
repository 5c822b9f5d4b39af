//! The `markers` file: a priority, then one file-name pattern a line.
//!
//! ```text
//! # comments and empty lines are skipped
//! priority = 10
//! Cargo.toml
//! *.gemspec
//! ```

use crate::MarkersFault;

/// A file name at a project's root; `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        let says_something = text.bytes().any(|b| !matches!(b, b'*' | b'.'));
        (plain && says_something).then(|| Self(text.to_owned()))
    }

    /// Whether this file name is meant.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else { return false };
        let Some(tail) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(tail)
    }
}

/// What a `markers` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Markers {
    /// Of several stacks that are found, the one with the lowest number is preferred.
    pub(crate) priority: u16,
    pub(crate) patterns: Vec<Pattern>,
}

impl Markers {
    /// Reads the file; an error carries the line, counted from 1.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, MarkersFault)> {
        let mut priority = None;
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if priority.is_none() {
                let number = line.strip_prefix("priority").and_then(|rest| rest.trim_start().strip_prefix('='));
                priority =
                    Some(number.and_then(|n| n.trim().parse().ok()).ok_or((index + 1, MarkersFault::NoPriority))?);
                continue;
            }
            patterns.push(Pattern::parse(line).ok_or_else(|| (index + 1, MarkersFault::Pattern(line.to_owned())))?);
        }
        let end = text.lines().count().max(1);
        let priority = priority.ok_or((end, MarkersFault::NoPriority))?;
        if patterns.is_empty() {
            return Err((end, MarkersFault::NoPattern));
        }
        Ok(Self { priority, patterns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let table = [
            ("Cargo.toml", "Cargo.toml", true),
            ("Cargo.toml", "cargo.toml", false),
            ("Cargo.toml", "Cargo.toml.orig", false),
            ("*.gemspec", "x.gemspec", true),
            ("*.gemspec", ".gemspec", true),
            ("*.gemspec", "x.gemspec.bak", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("go.*", "go.mod", true),
        ];
        for (pattern, name, expected) in table {
            let parsed = Pattern::parse(pattern).expect("a valid pattern");
            assert_eq!(parsed.matches(name), expected, "{pattern} against {name}");
        }
    }

    #[test]
    fn a_bad_file_is_refused_by_line() {
        let pattern = |text: &str| MarkersFault::Pattern(text.to_owned());
        let table = [
            ("", 1, MarkersFault::NoPriority),
            ("# only a comment\n", 1, MarkersFault::NoPriority),
            ("# c\nCargo.toml\n", 2, MarkersFault::NoPriority),
            ("priority = high\nCargo.toml\n", 1, MarkersFault::NoPriority),
            ("priority = 1\n\n", 2, MarkersFault::NoPattern),
            ("priority = 1\nsrc/main.rs\n", 2, pattern("src/main.rs")),
            ("priority = 1\nok\n*\n", 3, pattern("*")),
            ("priority = 1\n..\n", 2, pattern("..")),
            ("priority = 1\ntwo words\n", 2, pattern("two words")),
        ];
        for (text, line, fault) in table {
            assert_eq!(Markers::parse(text), Err((line, fault)), "{text:?}");
        }
    }
}
