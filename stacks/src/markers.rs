//! The `markers` file: a priority, what else is to be known of the stack, and one file-name pattern a line.
//!
//! ```text
//! # comments and empty lines are skipped
//! priority = 10
//! server = rust-analyzer
//! Cargo.toml
//! *.gemspec
//! ```
//!
//! A line with a `=` is a setting; so no pattern has one.

use crate::{MarkersFault, Toolchains};

/// What a setting may hold, in bytes: it is shown in one line.
const VALUE_MAX: usize = 200;

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

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text for each choice of toolchains, or for one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    upstream: Option<String>,
    distro: Option<String>,
}

impl Texts {
    pub(crate) fn get(&self, toolchains: Toolchains) -> Option<&str> {
        match toolchains {
            Toolchains::Upstream => self.upstream.as_deref(),
            Toolchains::Distro => self.distro.as_deref(),
        }
    }

    /// `false` when it was set before.
    fn set(&mut self, toolchains: Toolchains, value: &str) -> bool {
        let slot = match toolchains {
            Toolchains::Upstream => &mut self.upstream,
            Toolchains::Distro => &mut self.distro,
        };
        slot.replace(value.to_owned()).is_none()
    }
}

/// What a `markers` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Markers {
    /// Of several stacks that are found, the one with the lowest number is preferred.
    pub(crate) priority: u16,
    /// The command that starts the language server, which then speaks on its standard input and output.
    pub(crate) server: Texts,
    /// What the stack lacks with these toolchains.
    pub(crate) missing: Texts,
    pub(crate) patterns: Vec<Pattern>,
}

impl Markers {
    /// Reads the file; an error carries the line, counted from 1.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, MarkersFault)> {
        let mut priority = None;
        let (mut server, mut missing) = (Texts::default(), Texts::default());
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let setting = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
            if priority.is_none() {
                let given = setting.filter(|(key, _)| *key == "priority").and_then(|(_, value)| value.parse().ok());
                priority = Some(given.ok_or((number, MarkersFault::NoPriority))?);
            } else if let Some((key, value)) = setting {
                set(key, value, &mut server, &mut missing).map_err(|fault| (number, fault))?;
            } else {
                let pattern = Pattern::parse(line).ok_or_else(|| (number, MarkersFault::Pattern(line.to_owned())))?;
                patterns.push(pattern);
            }
        }
        let end = text.lines().count().max(1);
        let priority = priority.ok_or((end, MarkersFault::NoPriority))?;
        if patterns.is_empty() {
            return Err((end, MarkersFault::NoPattern));
        }
        Ok(Self { priority, server, missing, patterns })
    }
}

fn set(key: &str, value: &str, server: &mut Texts, missing: &mut Texts) -> Result<(), MarkersFault> {
    let (name, only) = match key.split_once('.') {
        Some((name, "upstream")) => (name, Some(Toolchains::Upstream)),
        Some((name, "distro")) => (name, Some(Toolchains::Distro)),
        Some(_) => return Err(MarkersFault::Setting(key.to_owned())),
        None => (key, None),
    };
    let texts = match name {
        "server" => server,
        "missing" => missing,
        _ => return Err(MarkersFault::Setting(key.to_owned())),
    };
    if value.is_empty() || value.len() > VALUE_MAX || !value.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Err(MarkersFault::Value(key.to_owned()));
    }
    let all = [Toolchains::Upstream, Toolchains::Distro];
    for toolchains in all.into_iter().filter(|one| only.is_none_or(|only| only == *one)) {
        if !texts.set(toolchains, value) {
            return Err(MarkersFault::Twice(key.to_owned()));
        }
    }
    Ok(())
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
    fn settings_hold_for_both_toolchains_or_for_one() {
        let text = "priority = 1\nserver.upstream = a-server --stdio\nmissing.distro = a server\nx.toml\n";
        let markers = Markers::parse(text).expect("a valid file");
        assert_eq!(markers.server.get(Toolchains::Upstream), Some("a-server --stdio"));
        assert_eq!(markers.server.get(Toolchains::Distro), None);
        assert_eq!(markers.missing.get(Toolchains::Upstream), None);
        assert_eq!(markers.missing.get(Toolchains::Distro), Some("a server"));
        let both = Markers::parse("priority = 1\nserver = s\nx.toml\n").expect("a valid file").server;
        assert_eq!((both.get(Toolchains::Upstream), both.get(Toolchains::Distro)), (Some("s"), Some("s")));
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
            ("priority = 1\npriority = 2\nok\n", 2, MarkersFault::Setting("priority".to_owned())),
            ("priority = 1\nok\nsever = x\n", 3, MarkersFault::Setting("sever".to_owned())),
            ("priority = 1\nserver.debian = x\n", 2, MarkersFault::Setting("server.debian".to_owned())),
            ("priority = 1\nserver =\n", 2, MarkersFault::Value("server".to_owned())),
            ("priority = 1\nserver = x\nserver.distro = y\n", 3, MarkersFault::Twice("server.distro".to_owned())),
        ];
        for (text, line, fault) in table {
            assert_eq!(Markers::parse(text), Err((line, fault)), "{text:?}");
        }
    }
}
