//! From a TOML value to a setting's type. Knows types, not settings.

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use crate::error::{Problem, ValueError};

/// Problems found so far, and the text that their lines are counted in.
pub(crate) struct Problems<'t> {
    text: &'t str,
    file: &'t Path,
    found: Vec<Problem>,
}

impl<'t> Problems<'t> {
    pub(crate) fn new(text: &'t str, file: &'t Path) -> Self {
        let found = Vec::new();
        Self { text, file, found }
    }

    /// Notes a problem at a byte offset of the text.
    pub(crate) fn push(&mut self, offset: usize, message: impl Into<String>) {
        let before = self.text.as_bytes().iter().take(offset);
        self.found.push(Problem {
            file: self.file.to_owned(),
            line: before.filter(|&&byte| byte == b'\n').count() + 1,
            message: message.into(),
        });
    }

    /// The problems in the order of their lines.
    pub(crate) fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.line);
        self.found
    }
}

/// The type of a setting.
pub(crate) trait Value: Sized {
    /// What a person has to write, with its article: "a whole number".
    fn kind() -> String;

    /// Reads it, or notes why not. Messages begin with the name and never quote the value.
    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self>;

    /// As TOML, for the example's defaults; nothing for "not set".
    fn to_toml(&self) -> Option<String>;
}

/// A type that is written as TOML text.
pub(crate) trait Text: FromStr<Err = ValueError> {
    /// What a person has to write, with its article.
    fn shape() -> String;

    fn text(&self) -> String;
}

impl<T: Text> Value for T {
    fn kind() -> String {
        T::shape()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        text(name, value, problems, str::parse)
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.text()))
    }
}

/// Reads a text, or notes why it is none or not the right one.
pub(crate) fn text<T: Value>(
    name: &str,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
    parse: impl FnOnce(&str) -> Result<T, ValueError>,
) -> Option<T> {
    let Some(text) = value.get_ref().as_str() else {
        return wrong_type(name, value, problems);
    };
    parse(text).map_err(|error| problems.push(value.span().start, format!("{name} {error}"))).ok()
}

/// A text as TOML writes it.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Notes that a value has the wrong TOML type.
pub(crate) fn wrong_type<T: Value>(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<T> {
    let found = match value.get_ref() {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    let message = format!("{name} must be {}, not {found}", T::kind());
    problems.push(value.span().start, message);
    None
}

impl<T: Value> Value for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        T::read(name, value, problems).map(Some)
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(T::to_toml)
    }
}

impl<T: Value> Value for Vec<T> {
    fn kind() -> String {
        format!("a list, each entry {}", T::kind())
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(entries) = value.get_ref().as_array() else {
            return wrong_type(name, value, problems);
        };
        // Every entry is read, so that every bad one is named.
        let mut read = Vec::new();
        for (number, entry) in (1..).zip(entries.iter()) {
            read.push(T::read(&format!("entry {number} of {name}"), entry, problems));
        }
        read.into_iter().collect()
    }

    fn to_toml(&self) -> Option<String> {
        let entries: Vec<_> = self.iter().filter_map(T::to_toml).collect();
        Some(format!("[{}]", entries.join(", ")))
    }
}

impl Value for String {
    fn kind() -> String {
        "a text, not empty and without control characters".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        text(name, value, problems, |text| {
            if text.is_empty() || text.contains(char::is_control) {
                return Err(ValueError::must_be(Self::kind()));
            }
            Ok(text.to_owned())
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for bool {
    fn kind() -> String {
        "true or false".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        value.get_ref().as_bool().or_else(|| wrong_type(name, value, problems))
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for SocketAddr {
    fn kind() -> String {
        "an IP address and a port such as \"127.0.0.1:7717\"".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        text(name, value, problems, |text| {
            let address = text.parse();
            address.map_err(|_| ValueError::must_be(Self::kind()))
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}
