//! From the file's text to [`Config`]: lines, unknown keys, nearest keys.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::check;
use crate::error::ConfigError;
use crate::settings::{Config, Section, dotted};
use crate::value::Problems;

/// The settings that the file has, by dotted key.
pub(crate) type Seen = BTreeMap<String, Found>;

/// Where a setting stands, and whether its value could be read.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) offset: usize,
    pub(crate) valid: bool,
}

impl Config {
    /// Reads and checks a file. The path is used as it is in errors.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = fs::read(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => ConfigError::NotFound { path },
                _ => ConfigError::Unreadable { path, source },
            }
        })?;
        match str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, path),
            Err(error) => {
                let text = String::from_utf8_lossy(&bytes);
                let mut problems = Problems::new(&text, path);
                problems.push(error.valid_up_to(), "not UTF-8; save the file as UTF-8 text");
                Err(ConfigError::Invalid(problems.into_sorted()))
            }
        }
    }

    /// Checks a text; `file` is what errors name. All problems are reported together, except that a text which is
    /// no TOML is not looked into further.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut problems = Problems::new(text, file);
        let mut config = Self::default();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            // The message alone: the whole error would show the line, and a secret may stand in it.
            problems.push(error.span().map_or(0, |span| span.start), error.message());
        }
        if errors.is_empty() {
            let seen = read(&mut config, table.get_ref(), &mut problems);
            check::contradictions(&config, &seen, &mut problems);
            check::surface(&mut config, &seen, &mut problems);
        }
        let problems = problems.into_sorted();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(problems)) }
    }
}

fn read(config: &mut Config, file: &DeTable<'_>, problems: &mut Problems<'_>) -> Seen {
    let mut seen = Seen::new();
    let keys = Keys::new();
    for (key, value) in file {
        let (name, offset) = (key.get_ref().as_ref(), key.span().start);
        let mut sections = config.sections();
        let Some(section) = sections.iter_mut().find(|section| section.name() == name) else {
            read_setting(config, key, value, &keys, &mut seen, problems);
            continue;
        };
        match value.get_ref() {
            DeValue::Table(table) => {
                for (key, value) in table {
                    read_setting(*section, key, value, &keys, &mut seen, problems);
                }
            }
            _ => problems.push(offset, format!("`{name}` is a section; write `[{name}]` on a line of its own")),
        }
    }
    seen
}

fn read_setting(
    section: &mut dyn Section,
    key: &Spanned<impl AsRef<str>>,
    value: &Spanned<DeValue<'_>>,
    keys: &Keys,
    seen: &mut Seen,
    problems: &mut Problems<'_>,
) {
    let (name, offset) = (key.get_ref().as_ref(), key.span().start);
    match section.read(name, value, problems) {
        Some(valid) => {
            seen.insert(dotted(section.name(), name), Found { offset, valid });
        }
        None => problems.push(offset, keys.unknown(section.name(), name, value.get_ref().is_table())),
    }
}

/// Every key that there is, to find the one that was meant.
struct Keys(Vec<(&'static str, &'static str)>);

impl Keys {
    fn new() -> Self {
        let mut config = Config::default();
        let mut keys: Vec<_> = config.settings().iter().map(|setting| ("", setting.key)).collect();
        for section in config.sections() {
            keys.extend(section.settings().iter().map(|setting| (section.name(), setting.key)));
        }
        Self(keys)
    }

    fn unknown(&self, section: &str, key: &str, is_table: bool) -> String {
        let shown = dotted(section, key).escape_debug().to_string();
        let siblings = self.0.iter().filter(|(of, _)| *of == section).map(|(_, key)| *key);
        let names = self.0.iter().map(|(of, _)| *of).filter(|name| !name.is_empty());
        if section.is_empty() && is_table {
            return match nearest(key, names) {
                Some(near) => format!("unknown section `[{shown}]`; did you mean `[{near}]`?"),
                None => format!("unknown section `[{shown}]`; `musher config example` shows every section"),
            };
        }
        let elsewhere = self.0.iter().find(|(_, other)| *other == key);
        match (elsewhere, nearest(key, siblings)) {
            (Some(("", _)), _) => {
                format!("unknown key `{shown}`; it belongs above the first `[section]`")
            }
            (Some((of, _)), _) => format!("unknown key `{shown}`; it belongs under `[{of}]`"),
            (None, Some(near)) => {
                format!("unknown key `{shown}`; did you mean `{}`?", dotted(section, near))
            }
            (None, None) => {
                format!("unknown key `{shown}`; `musher config example` shows every key")
            }
        }
    }
}

/// The word that was probably meant: about one letter in three may be wrong, or its end is missing.
pub(crate) fn nearest(word: &str, words: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let length = word.chars().count();
    if length > 64 {
        return None;
    }
    let words: Vec<_> = words.collect();
    let alike = words
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= (length / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate);
    let longer = |candidate: &&str| candidate.strip_prefix(word).is_some_and(|rest| rest.starts_with('_'));
    alike.or_else(|| words.iter().copied().find(longer))
}
