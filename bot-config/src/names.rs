//! Texts with a shape: ids, references, paths, secrets, headers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use crate::error::ValueError;
use crate::value::{Problems, Text, Value, quoted, wrong_type};

macro_rules! shaped_texts {
    ($(
        $(#[$meta:meta])*
        $Name:ident: $kind:literal if $valid:expr;
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Name(String);

        impl $Name {
            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $Name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(ValueError::must_be($kind)) }
            }
        }

        impl Text for $Name {
            fn shape() -> String {
                $kind.to_owned()
            }

            fn text(&self) -> String {
                self.0.clone()
            }
        }
    )+};
}

shaped_texts! {
    /// A Matrix user, `@name:server`.
    UserId: "a Matrix user id such as `@you:example.org`"
        if |text| matrix_id(text, '@');

    /// A Matrix room: `!id:server` (or `!id` of 43 characters, as room version 12 has it), or `#alias:server`.
    RoomRef: "a Matrix room id or alias such as `!abc:example.org` or `#team:example.org`"
        if |text| matrix_id(text, '!') || matrix_id(text, '#') || room_id_without_server(text);

    /// The name under which `musher secrets set` keeps a value.
    SecretName: "the name of a secret: a letter, then at most 63 letters, digits, `_` or `-`"
        if |text| text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));

    /// An image by its digest, `name@sha256:…` or `name:tag@sha256:…`, so that it cannot change under its name.
    ImageRef: "an image by its digest, such as `debian@sha256:` and 64 hexadecimal digits" if image_by_digest;

    /// A path on the host: absolute, or under the home directory as `~/…`. A relative one is refused, because what it
    /// would be relative to depends on who reads the file.
    ConfigPath: "a path that begins with `/` or `~/`"
        if |text| (text == "~" || text.starts_with("~/") || text.starts_with('/'))
            && !text.contains(char::is_control);

    /// A server's name or address as it stands in a repository's address, IPv6 without its brackets.
    HostName: "a host's name or IP address, in lower case, without port or user"
        if |text| text.parse::<IpAddr>().is_ok_and(|address| address.to_string() == text)
            || (text.len() <= 253
                && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase() || "._-".contains(c)));

    /// The host as other machines reach it by ssh, `host` or `user@host`.
    SshHost: "a host, or `user@host`"
        if |text| text.splitn(2, '@').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        });
}

fn matrix_id(text: &str, sigil: char) -> bool {
    text.len() <= 255
        && text.strip_prefix(sigil).and_then(|rest| rest.split_once(':')).is_some_and(|(name, server)| {
            !name.is_empty()
                && !name.contains(|c: char| c.is_whitespace() || c.is_control())
                && server.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
                && server.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
        })
}

fn room_id_without_server(text: &str) -> bool {
    text.strip_prefix('!')
        .is_some_and(|hash| hash.len() == 43 && hash.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)))
}

fn image_by_digest(text: &str) -> bool {
    text.split_once("@sha256:").is_some_and(|(name, digest)| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:".contains(c))
            && digest.len() == 64
            && digest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

impl ConfigPath {
    /// The path with `~` replaced by the home directory that the caller names.
    pub fn resolve(&self, home: &Path) -> PathBuf {
        match self.0.strip_prefix('~') {
            Some("" | "/") => home.to_owned(),
            Some(rest) => home.join(rest.trim_start_matches('/')),
            None => PathBuf::from(&self.0),
        }
    }

    pub(crate) fn in_home(rest: &str) -> Self {
        Self(format!("~/{rest}"))
    }
}

/// A secret that stands in bot.toml itself. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret, to be handed to what needs it and to nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::must_be(Self::shape()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Text for Secret {
    fn shape() -> String {
        "a text, not empty".to_owned()
    }

    fn text(&self) -> String {
        "…".to_owned()
    }
}

/// Headers that the gateway adds to every request to the model. Names are lower case. Values count as secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(BTreeMap<String, Secret>);

/// Headers that are not ours to set: they belong to one connection (RFC 9110, 7.6.1), frame the body, name the host,
/// or carry the model key.
const REFUSED_HEADERS: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

impl Headers {
    /// Without any.
    pub(crate) const fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Name and value of each header.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    fn header(name: &str, value: &str) -> Result<(String, Secret), String> {
        let name = name.to_ascii_lowercase();
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err("is no header name".to_owned());
        }
        if REFUSED_HEADERS.contains(&name.as_str()) {
            return Err("is set by the gateway itself; take it out".to_owned());
        }
        if value.is_empty() || value.contains(|c: char| !matches!(c, ' '..='~')) {
            return Err("must be a text of printable ASCII characters".to_owned());
        }
        Ok((name, Secret(value.to_owned())))
    }
}

impl Value for Headers {
    fn kind() -> String {
        "a table of header names and texts".to_owned()
    }

    fn read(name: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            return wrong_type(name, value, problems);
        };
        let mut headers = BTreeMap::new();
        for (header, value) in table {
            let name = format!("`{}` in {name}", header.get_ref().escape_debug());
            let Some(text) = value.get_ref().as_str() else {
                wrong_type::<String>(&name, value, problems);
                continue;
            };
            let refusal = match Self::header(header.get_ref(), text) {
                Ok((name, value)) => match headers.insert(name, value) {
                    None => continue,
                    Some(_) => "is there already; case does not matter".to_owned(),
                },
                Err(refusal) => refusal,
            };
            problems.push(header.span().start, format!("{name} {refusal}"));
        }
        (headers.len() == table.len()).then_some(Self(headers))
    }

    fn to_toml(&self) -> Option<String> {
        let entry = |(name, _): (&String, &Secret)| format!("{} = \"…\"", quoted(name));
        let entries: Vec<_> = self.0.iter().map(entry).collect();
        Some(format!("{{{}}}", entries.join(", ")))
    }
}
