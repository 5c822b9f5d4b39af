//! Where a project's repository comes from: the address that people write after `--git`, taken apart once (PROJ-3).
//!
//! What is parsed here has no credential in it, no control character, no `..`, and nothing that a program could take for an
//! option; so it can be stored, shown, compared and handed on. Pure: whether the address may be reached is [`super::reach`]'s to say.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::{Host, Url};

use crate::{projects::place, refusal::Refusal};

/// The longest address, in bytes.
const ADDRESS_MAX: usize = 1024;
/// Servers in hints, where the one that is meant is not known.
const EXAMPLE: &str = "https://example.org";
const EXAMPLE_SSH: &str = "ssh://example.org";
/// What a path has encoded in an `ssh://` address, because git decodes it.
const IN_SSH_PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'%').add(b'"').add(b'<').add(b'>').add(b'`').add(b'?').add(b'#');

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// Behind a web server.
    Web(WebRemote),
    /// Behind an SSH server.
    Ssh(SshRemote),
    /// On this host.
    Local(PathBuf),
}

/// How a web server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Encrypted.
    Https,
    /// In clear: on this host's loopback alone.
    Http,
}

impl Scheme {
    /// As it stands in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }

    /// The port that an address without one means.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
        }
    }
}

/// A repository behind a web server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebRemote {
    /// How the server is spoken to.
    pub scheme: Scheme,
    /// The server: a name in lower case, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    /// Its port, where it is not the scheme's own.
    pub port: Option<u16>,
    /// The path, percent-encoded as it is sent: begins with `/`, does not end with one.
    pub path: String,
}

/// A repository behind an SSH server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshRemote {
    /// Who logs in, where the address says so.
    pub user: Option<String>,
    /// The server: a name in lower case, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    /// Its port, where it is not 22.
    pub port: Option<u16>,
    /// The path as the server's git is given it, not encoded: one without a leading `/` begins at the user's home there.
    pub path: String,
}

/// The port of an SSH address without one.
const SSH_PORT: u16 = 22;
/// Who logs in where an SSH address names nobody: whom git servers have for it. Who runs the gateway, or what in the container, is nobody there.
const SSH_USER: &str = "git";

impl WebRemote {
    /// `host[:port]`.
    pub fn authority(&self) -> String {
        authority_of(&self.host, self.port)
    }

    /// The port, the scheme's own included.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(self.scheme.default_port())
    }

    /// The host as names are looked up and addresses are parsed: without brackets.
    pub fn bare_host(&self) -> &str {
        bare(&self.host)
    }
}

impl SshRemote {
    /// Who logs in, for the gateway's clone and for what the container asks alike.
    pub fn login(&self) -> &str {
        self.user.as_deref().unwrap_or(SSH_USER)
    }

    /// `host[:port]`.
    pub fn authority(&self) -> String {
        authority_of(&self.host, self.port)
    }

    /// The port, 22 included.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(SSH_PORT)
    }

    /// The host as names are looked up and addresses are parsed: without brackets.
    pub fn bare_host(&self) -> &str {
        bare(&self.host)
    }
}

fn authority_of(host: &str, port: Option<u16>) -> String {
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl Remote {
    /// Reads what follows `--git`; `~/` is below `home`. The refusal never repeats a credential.
    ///
    /// # Errors
    /// When it is not the address of a repository that may be cloned.
    pub fn parse(text: &str, home: &Path) -> Result<Self, Refusal> {
        if text.starts_with('-')
            || text.len() > ADDRESS_MAX
            || is_helper(text)
            || text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\')
        {
            return Err(not_an_address());
        }
        if text.starts_with('/') || text.starts_with("~/") {
            return Ok(Self::Local(place::expand(text, home)?));
        }
        let remote = Self::parse_remote(text)?;
        // Encoded it may be three times as long, and it is that which is stored and given again.
        if remote.shown().len() > ADDRESS_MAX {
            return Err(not_an_address());
        }
        if let Self::Web(web) = &remote {
            if web.path.is_empty() {
                return Err(refused("the address names a server and no repository on it"));
            }
            if climbs(&web.path) {
                return Err(not_an_address());
            }
            if web.scheme == Scheme::Http && !is_loopback_name(web.bare_host()) {
                return Err(refused("http is not encrypted, so it is taken on this host's loopback alone"));
            }
        }
        Ok(remote)
    }

    /// Reads what was stored: what [`Remote::parse`] once took and [`fmt::Display`] wrote, also by an earlier version whose rules were others.
    fn stored(text: &str) -> Result<Self, Refusal> {
        if text.starts_with('/') { Ok(Self::Local(text.into())) } else { Self::parse_remote(text) }
    }

    fn parse_remote(text: &str) -> Result<Self, Refusal> {
        let Some((scheme, rest)) = text.split_once("://") else { return scp_like(text).map(Self::Ssh) };
        match scheme.to_ascii_lowercase().as_str() {
            "https" => web(Scheme::Https, rest).map(Self::Web),
            "http" => web(Scheme::Http, rest).map(Self::Web),
            "ssh" => ssh_url(rest).map(Self::Ssh),
            _ if rest.contains('@') => Err(carries_a_credential(EXAMPLE)),
            _ => Err(refused("only https and ssh addresses and local paths can be cloned")),
        }
    }

    /// As it is stored and shown, and as git is given it.
    pub fn shown(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for WebRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path)
    }
}

/// `ssh://` where that can say it; a path that begins at the user's home can only be written the way of scp.
impl fmt::Display for SshRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        if self.path.starts_with(['/', '~']) {
            let slash = if self.path.starts_with('~') { "/" } else { "" };
            let path = utf8_percent_encode(&self.path, IN_SSH_PATH);
            write!(f, "ssh://{user}{}{slash}{path}", self.authority())
        } else {
            write!(f, "{user}{}:{}", self.host, self.path)
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(web) => web.fmt(f),
            Self::Ssh(ssh) => ssh.fmt(f),
            Self::Local(path) => path.display().fmt(f),
        }
    }
}

impl Serialize for Remote {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Remote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::stored(&text).map_err(|refusal| de::Error::custom(refusal.what))
    }
}

fn refused(what: &str) -> Refusal {
    Refusal::usage(what).hint(
        "Give an address such as `https://example.org/team/app.git` or `git@example.org:team/app.git`, or the path of a \
         repository on this host.",
    )
}

fn not_an_address() -> Refusal {
    refused("that is not the address of a git repository")
}

fn carries_a_credential(place: &str) -> Refusal {
    Refusal::usage("the address carries a user name, a password or a token").hint(format!(
        "It was not used and not stored. Delete your message, change that credential, give the address without it, and store the new one \
         with `musher secrets set git:{place}`."
    ))
}

/// A user's name before the host, as some servers show their addresses; it may be a token all the same.
fn names_a_user(place: &str) -> Refusal {
    Refusal::usage("the address carries a user name or a token before `@`").hint(format!(
        "It was not used and not stored. Leave out what stands before `@`; if it was a token, change it. For a private repository store a \
         credential with `musher secrets set git:{place}`."
    ))
}

/// The server of a web address, for the name of a secret; a stand-in where that could be part of a credential.
fn place_of(scheme: Scheme, rest: &str) -> String {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    // More than one `@`, or one behind the authority: nobody knows where the credential ends.
    let is_plain = !user.contains('@') && rest.matches('@').count() == authority.matches('@').count();
    let url = Url::parse(&format!("{}://{host}", scheme.as_str())).ok().filter(|_| is_plain);
    let name = url.as_ref().and_then(Url::host_str).filter(|name| is_host_name(name));
    let port = url.as_ref().and_then(Url::port);
    format!("{}://{}", scheme.as_str(), name.map_or_else(|| "example.org".into(), |name| authority_of(name, port)))
}

/// Whether git would start a program for it: `<name>::<address>`.
fn is_helper(text: &str) -> bool {
    text.split_once("::").is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c)))
}

/// Whether the host is this one, as it stands there.
pub fn is_loopback_name(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn web(scheme: Scheme, rest: &str) -> Result<WebRemote, Refusal> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A password that was not encoded may hold any of these.
    if authority.contains('@') || rest.split('/').next().is_some_and(|part| part.contains('@')) {
        let place = place_of(scheme, rest);
        let is_user =
            authority.matches('@').count() == 1 && !authority.split('@').next().unwrap_or_default().contains(':');
        return Err(if is_user { names_a_user(&place) } else { carries_a_credential(&place) });
    }
    if authority.is_empty() {
        return Err(not_an_address());
    }
    let url = Url::parse(&format!("{}://{rest}", scheme.as_str())).map_err(|_| not_an_address())?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(carries_a_credential(&place_of(scheme, rest)));
    }
    let written = rest.get(authority.len()..).unwrap_or_default();
    check_path(written)?;
    let lower = written.to_ascii_lowercase();
    if ["%2f", "%5c", "%2e"].iter().any(|encoded| lower.contains(encoded)) {
        return Err(not_an_address());
    }
    let host = match url.host() {
        Some(Host::Domain(name)) if is_host_name(name) => name.to_owned(),
        Some(host @ (Host::Ipv4(_) | Host::Ipv6(_))) => host.to_string(),
        _ => return Err(not_an_address()),
    };
    Ok(WebRemote { scheme, host, port: url.port(), path: url.path().trim_end_matches('/').to_owned() })
}

/// `[user@]host[:port]/path`
fn ssh_url(rest: &str) -> Result<SshRemote, Refusal> {
    let (authority, path) = rest.split_once('/').ok_or_else(not_an_address)?;
    if authority.contains(['?', '#', '%']) || path.contains(['?', '#']) {
        return Err(not_an_address());
    }
    let (user, place) = split_user(authority)?;
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed.split_once(']').ok_or_else(not_an_address)?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(not_an_address()),
            };
            (format!("[{address}]"), port)
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (place.to_owned(), None),
        },
    };
    let port = match port {
        Some("") | None => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some(port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(not_an_address)?)
        }
        Some(_) => return Err(not_an_address()),
    };
    check_path(path)?;
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| not_an_address())?;
    ssh_remote(user, &host, port, &format!("/{decoded}"))
}

/// `[user@]host:path`
fn scp_like(text: &str) -> Result<SshRemote, Refusal> {
    let after_user = text.find(['/', '[']).map_or(text, |end| &text[..end]);
    let (user, place) = match after_user.split_once('@') {
        Some((user, _)) if !user.contains(':') => (Some(user), &text[user.len() + 1..]),
        Some(_) => return Err(carries_a_credential(EXAMPLE_SSH)),
        None => (None, text),
    };
    let (host, path) = if place.starts_with('[') {
        let (address, path) = place.split_once("]:").ok_or_else(not_an_address)?;
        (format!("{address}]"), path)
    } else {
        let (host, path) = place.split_once(':').ok_or_else(not_an_address)?;
        (host.to_owned(), path)
    };
    // An address with a slash too few is no path on a host of that name.
    if ["http", "https", "ssh", "git", "ftp", "file"].contains(&host.to_ascii_lowercase().as_str()) {
        return Err(not_an_address());
    }
    check_path(path)?;
    ssh_remote(user.map(str::to_owned), &host, None, path)
}

fn split_user(authority: &str) -> Result<(Option<String>, &str), Refusal> {
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains([':', '@']) => Err(carries_a_credential(EXAMPLE_SSH)),
        Some((user, place)) => Ok((Some(user.to_owned()), place)),
        None => Ok((None, authority)),
    }
}

/// The parts of an SSH address, each checked.
fn ssh_remote(user: Option<String>, host: &str, port: Option<u16>, path: &str) -> Result<SshRemote, Refusal> {
    let is_user = |user: &String| {
        !user.is_empty()
            && user.len() <= 64
            && !user.starts_with('-')
            && user.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
    };
    if user.as_ref().is_some_and(|user| !is_user(user)) {
        return Err(not_an_address());
    }
    let host = if let Some(address) = host.strip_prefix('[') {
        let address: Ipv6Addr =
            address.strip_suffix(']').and_then(|address| address.parse().ok()).ok_or_else(not_an_address)?;
        format!("[{address}]")
    } else {
        let host = host.to_ascii_lowercase();
        if !is_host_name(&host) {
            return Err(not_an_address());
        }
        host
    };
    let trimmed = path.trim_end_matches('/');
    // Git takes `/~name/…` for a path below that user's home.
    let trimmed = if trimmed.starts_with("/~") { &trimmed[1..] } else { trimmed };
    let unsafe_char = |c: char| c.is_control() || c == '\\' || matches!(c, '\u{2028}' | '\u{2029}');
    if trimmed.is_empty() || trimmed.starts_with('-') || trimmed.contains(unsafe_char) || has_dots(trimmed) {
        return Err(not_an_address());
    }
    Ok(SshRemote { user, host, port: port.filter(|port| *port != SSH_PORT), path: trimmed.to_owned() })
}

/// A name as the domain name system has them, or an IPv4 address; nothing that a program could take for an option.
fn is_host_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && host.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Servers that give parts of a path parameters (`..;x`) take these off before they look at the dots.
fn has_dots(path: &str) -> bool {
    path.split('/').any(|part| matches!(part.split(';').next(), Some("." | "..")))
}

/// Whether some server may take an encoded path of the web for one that leads elsewhere, however often it decodes it.
pub(super) fn climbs(path: &str) -> bool {
    let mut path = path.to_ascii_lowercase();
    while path.contains("%25") {
        path = path.replace("%25", "%");
    }
    has_dots(&path) || ["%2f", "%5c", "%2e", "%3b"].iter().any(|encoded| path.contains(encoded))
}

/// What no path may hold, encoded or not: control characters, `..`, and what is no encoding.
fn check_path(path: &str) -> Result<(), Refusal> {
    let well_encoded = path
        .split('%')
        .skip(1)
        .all(|after| after.get(..2).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())));
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| not_an_address())?;
    if !well_encoded || decoded.contains(char::is_control) || has_dots(&decoded) || has_dots(path) {
        return Err(not_an_address());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOME: &str = "/home/ann";

    fn shown(text: &str) -> Result<String, String> {
        let parsed = Remote::parse(text, Path::new(HOME));
        parsed.map(|remote| remote.shown()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn addresses_are_taken_in_the_forms_that_people_write() {
        for (text, expected) in [
            ("https://example.org/a.git", "https://example.org/a.git"),
            ("HTTPS://EXAMPLE.org:443/Team/a.git/", "https://example.org/Team/a.git"),
            ("https://example.org:8443/a%20b", "https://example.org:8443/a%20b"),
            ("https://[2001:DB8::1]:444/a", "https://[2001:db8::1]:444/a"),
            ("http://127.0.0.1:9/a", "http://127.0.0.1:9/a"),
            ("http://[::1]/a", "http://[::1]/a"),
            ("http://localhost/a", "http://localhost/a"),
            ("ssh://git@Example.org/a.git", "ssh://git@example.org/a.git"),
            ("ssh://git@example.org:22/a", "ssh://git@example.org/a"),
            ("ssh://example.org:2222/srv/a/", "ssh://example.org:2222/srv/a"),
            ("ssh://git@[::1]:29418/a", "ssh://git@[::1]:29418/a"),
            ("ssh://git@example.org/~ann/a", "ssh://git@example.org/~ann/a"),
            ("ssh://git@example.org/a%20b", "ssh://git@example.org/a%20b"),
            ("git@example.org:team/a.git", "git@example.org:team/a.git"),
            ("Example.org:a", "example.org:a"),
            ("git@[::1]:a/b", "git@[::1]:a/b"),
            ("git@example.org:/srv/a.git", "ssh://git@example.org/srv/a.git"),
            ("git@example.org:~ann/a", "ssh://git@example.org/~ann/a"),
            ("git@ssh.example.org:v3/org/My%20Project/a", "git@ssh.example.org:v3/org/My%20Project/a"),
            ("/srv/a", "/srv/a"),
            ("~/src/a", "/home/ann/src/a"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_and_no_credential_is_repeated() {
        let credential = "the address carries";
        let no_address = "that is not the address";
        for (text, words) in [
            ("http://example.org/a", "http is not encrypted"),
            ("http://127.0.0.1.example.org/a", "http is not encrypted"),
            ("https://example.org", "the address names a server"),
            ("https://example.org//", "the address names a server"),
            ("https://ann:s3cret@example.org/a", credential),
            ("https://ann:s3c/r3t@example.org/a", "that is not"),
            ("https://ann:s3c?s3cret@example.org/a", credential),
            ("https://s3cret@example.org/a", credential),
            ("https://example.org/a?token=s3cret", credential),
            ("https://example.org/a#s3cret", credential),
            ("ssh://git:s3cret@example.org/a", credential),
            ("ssh://git@s3cret@example.org/a", credential),
            ("git:s3cret@example.org:a/b", credential),
            ("ftp://ann:s3cret@example.org/a", credential),
            ("ext::sh -c id", no_address),
            ("ext::sh", no_address),
            ("fd::17", no_address),
            ("my-helper::https://example.org/a", no_address),
            ("--upload-pack=id", no_address),
            ("-x", no_address),
            ("-oProxyCommand=id:a", no_address),
            ("ssh://-oProxyCommand=id/a", no_address),
            ("ssh://-x@example.org/a", no_address),
            ("-x@example.org:a", no_address),
            ("git@-oProxyCommand=id:a", no_address),
            ("git@example.org:-x", no_address),
            ("git@example.org:--upload-pack=id", no_address),
            ("git@example.org:", no_address),
            ("git@example.org", no_address),
            ("git@example.org:a\nb", no_address),
            ("git@example.org:a\\b", no_address),
            ("git@example.org:../a", no_address),
            ("git@example.org:a/%0ab", no_address),
            ("git@ex%0aample.org:a", no_address),
            ("git@[::1:a", no_address),
            ("git@[::1]a", no_address),
            ("git@[example.org:22]:a", no_address),
            ("ssh://git@[::1]x/a", no_address),
            ("ssh://git@[::1%25lo]/a", no_address),
            ("ssh://git@example.org:0/a", no_address),
            ("ssh://git@example.org:65536/a", no_address),
            ("ssh://git@example.org:+22/a", no_address),
            ("ssh://git@example.org:22a/a", no_address),
            ("ssh://git@exa_mple.org;id/a", no_address),
            ("ssh://git@$(id)/a", no_address),
            ("ssh://git@example.org", no_address),
            ("ssh://git@example.org/", no_address),
            ("ssh://git@example.org/a%0ab", no_address),
            ("ssh://git@example.org/a%00", no_address),
            ("ssh://git@example.org/%2e%2e/a", no_address),
            ("ssh://git@example.org/a%zz", no_address),
            ("https://example.org/a%0d%0ab", no_address),
            ("https://example.org/../a", no_address),
            ("https://example.org/a/%2e%2e/b", no_address),
            ("https://example.org/a/%2E./b", no_address),
            ("https://example.org/a%2fb", no_address),
            ("https://example.org/a/..;/b", no_address),
            ("https://example.org/a/..;x=1/b", no_address),
            ("https://example.org/a/..%3b/b", no_address),
            ("https://example.org/a/%252e%252E/b", no_address),
            ("https://example.org/a%25252fb", no_address),
            ("https://example.org\\a", no_address),
            ("https:/example.org/a", no_address),
            ("https:///a", no_address),
            ("https://[::1/a", no_address),
            ("https://example.org:99999/a", no_address),
            ("file:///etc", "only https"),
            ("git://example.org/a", "only https"),
            ("git+ssh://git@example.org/a", credential),
            ("", no_address),
            ("a", no_address),
            ("./a", no_address),
            ("../a", no_address),
        ] {
            let answer = shown(text).expect_err(text);
            assert!(answer.starts_with(words), "{text:?}: {answer}");
            assert!(!answer.contains("s3c") && !answer.contains("r3t"), "{answer}");
        }
    }

    #[test]
    fn whoever_names_a_user_hears_what_to_leave_out_and_the_host_that_is_meant() {
        for (text, what, place) in [
            (
                "https://org@dev.example.com/org/p/_git/a",
                "a user name or a token before `@`",
                "git:https://dev.example.com`",
            ),
            ("https://s3cret@example.com:8443/a", "a user name or a token before `@`", "git:https://example.com:8443`"),
            ("https://ann:s3cret@example.com/a", "a user name, a password or a token", "git:https://example.com`"),
            ("https://example.com/a?token=s3cret", "a user name, a password or a token", "git:https://example.com`"),
            ("https://ann:s3@s3cret@example.com/a", "a user name, a password or a token", "git:https://example.org`"),
            ("https://ann:s3@s3cret/x@example.com/a", "a user name, a password or a token", "git:https://example.org`"),
            ("git:s3cret@example.com:a", "a user name, a password or a token", "git:ssh://example.org`"),
        ] {
            let refusal = Remote::parse(text, Path::new(HOME)).expect_err(text);
            let hint = refusal.hint.as_deref().unwrap_or_default();
            assert!(refusal.what.ends_with(what) && hint.contains(place), "{text}: {refusal}");
            assert!(!refusal.to_string().contains("s3"), "{text}: {refusal}");
        }
    }

    #[test]
    fn what_was_stored_is_read_back_and_earlier_rules_still_count_there() {
        for text in [
            "https://example.org/a.git",
            "ssh://git@[::1]:29418/a%20b",
            "git@example.org:team/a.git",
            "/srv/with a space",
        ] {
            let remote: Remote = serde_json::from_value(text.into()).expect("it is read");
            assert_eq!(serde_json::to_value(&remote).expect("it is written"), text);
        }
        let bare: Remote = serde_json::from_value("https://example.org/".into()).expect("an earlier version took it");
        assert_eq!(bare.shown(), "https://example.org");
        let error = serde_json::from_value::<Remote>("https://ann:s3cret@h/a".into()).expect_err("it has a credential");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm_and_what_is_taken_reads_the_same_again(text in "\\PC{0,40}") {
            if let Ok(remote) = Remote::parse(&text, Path::new(HOME)) {
                let again = Remote::parse(&remote.shown(), Path::new(HOME)).map_err(|refusal| refusal.to_string());
                prop_assert_eq!(again, Ok(remote));
            }
        }

        #[test]
        fn addresses_with_all_sorts_of_parts_read_the_same_again(
            scheme in "(https://|ssh://|http://|)", user in "([a-z:%@-]{0,6}@)?", host in "[a-zA-Z0-9.:\\[\\]-]{1,12}",
            separator in "[:/]", path in "[a-z./%~@ -]{0,12}",
        ) {
            let text = format!("{scheme}{user}{host}{separator}{path}");
            if let Ok(remote) = Remote::parse(&text, Path::new(HOME)) {
                let again = Remote::parse(&remote.shown(), Path::new(HOME)).map_err(|refusal| refusal.to_string());
                prop_assert_eq!(again, Ok(remote));
            }
        }
    }
}
