//! Credentials of git remotes: which secret counts for which address, and what its value means (SEC-2).
//!
//! A secret named `git:<scheme>://<host>[:port][/path]` counts for every repository at or below that place; the longest name wins.
//! Values are read anew at each use, so that a credential is changed without touching anything else. They are in no `Debug`, no
//! error and no log.

use std::fmt;

use http::HeaderValue;
use russh::keys::PrivateKey;
use zeroize::Zeroizing;

use super::remote::{Remote, Scheme, SshRemote, WebRemote, climbs};
use crate::{refusal::Refusal, secrets::Secrets, text};

/// What the name of a secret for git begins with.
pub const PREFIX: &str = "git:";
/// The longest name, in bytes: percent-encoded three times as long, it must still be a file's name beside a temporary one.
const NAME_MAX: usize = 120;

/// Where a credential counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    kind: Kind,
    /// `host[:port]`, the port where it is not the scheme's own.
    authority: String,
    /// Nothing, or a path that begins with `/` and does not end with one.
    path: String,
}

/// What a credential is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A web server, and a user's name and token.
    Web(Scheme),
    /// An SSH server, and a private key.
    Ssh,
}

impl Scope {
    /// Reads the name of a secret, in any of its spellings.
    ///
    /// # Errors
    /// When it is none; the refusal does not repeat it.
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        let refused = || {
            Refusal::usage("that is not the name of a credential for git")
                .hint("Write for example `git:https://example.org`, `git:https://example.org/team`, or `git:ssh://example.org`; the value comes on standard input.")
        };
        let place = name.strip_prefix(PREFIX).ok_or_else(refused)?;
        let (scheme, rest) = place.split_once("://").ok_or_else(refused)?;
        if name.len() > NAME_MAX || rest.contains('@') {
            return Err(refused());
        }
        // A place is read as a repository there would be, so that both are spelt alike.
        let below = format!("{scheme}://{}/x", rest.trim_end_matches('/'));
        let remote = Remote::parse(&below, std::path::Path::new("/")).map_err(|_| refused())?;
        let (kind, authority, path) = match remote {
            Remote::Web(web) => (Kind::Web(web.scheme), web.authority(), web.path),
            Remote::Ssh(ssh) => (Kind::Ssh, ssh.authority(), rooted(&ssh.path)),
            Remote::Local(_) => return Err(refused()),
        };
        let path = path.strip_suffix("/x").ok_or_else(refused)?.to_owned();
        Ok(Self { kind, authority, path })
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it counts for a repository there.
    fn covers(&self, kind: Kind, authority: &str, path: &str) -> bool {
        let below = path.strip_prefix(self.path.as_str());
        // What an earlier version stored may lead out of the place that it seems to be in.
        let stays = kind == Kind::Ssh || !climbs(path);
        self.kind == kind
            && stays
            && self.authority == authority
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Checks the value of a secret of this name.
    ///
    /// # Errors
    /// When it is not of the form that the scheme wants; the refusal says nothing of the value.
    pub fn check(&self, value: &str) -> Result<(), Refusal> {
        match self.kind {
            Kind::Web(_) => WebCredential::read(value).map(drop),
            Kind::Ssh => SshKey::read(value).map(drop),
        }
    }
}

/// A path as those of web addresses are: one that begins at the user's home there is taken for one below `/`.
fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// The name under which a credential for this server would be kept.
pub fn example(remote: &WebRemote) -> String {
    Scope { kind: Kind::Web(remote.scheme), authority: remote.authority(), path: String::new() }.to_string()
}

/// The name under which a key for this server would be kept.
pub fn example_ssh(remote: &SshRemote) -> String {
    Scope { kind: Kind::Ssh, authority: remote.authority(), path: String::new() }.to_string()
}

/// The secret's name, in its one spelling.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Web(scheme) => scheme.as_str(),
            Kind::Ssh => "ssh",
        };
        write!(f, "{PREFIX}{scheme}://{}{}", self.authority, self.path)
    }
}

/// A user's name and token for a web server.
pub struct WebCredential {
    user: Zeroizing<String>,
    token: Zeroizing<String>,
}

impl WebCredential {
    /// Reads `user:token`.
    fn read(value: &str) -> Result<Self, Refusal> {
        let refused = || {
            Refusal::usage("a credential for a web server is `user:token` on one line")
                .hint("Where the server wants no user's name, any will do: `git:<token>`.")
        };
        let (user, token) = value.split_once(':').ok_or_else(refused)?;
        if user.is_empty() || token.is_empty() || value.chars().any(char::is_control) {
            return Err(refused());
        }
        Ok(Self { user: user.to_owned().into(), token: token.to_owned().into() })
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The token or password, for what needs it and for nothing else.
    pub fn expose_token(&self) -> &str {
        &self.token
    }

    /// The `Authorization` header, marked as a secret.
    pub fn basic(&self) -> HeaderValue {
        use base64::Engine;
        let pair = Zeroizing::new(format!("{}:{}", *self.user, *self.token));
        let text =
            Zeroizing::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| unreachable!("base64 is ASCII"));
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for WebCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebCredential(…)")
    }
}

/// A private key for an SSH server.
pub struct SshKey {
    pem: Zeroizing<String>,
    key: Box<PrivateKey>,
}

impl SshKey {
    /// Reads a private key in OpenSSH's form, without a passphrase.
    fn read(value: &str) -> Result<Self, Refusal> {
        // OpenSSH and libssh2 want the line break after the last line, which secrets are kept without.
        let pem = Zeroizing::new(format!("{}\n", value.trim()));
        let key = PrivateKey::from_openssh(pem.as_bytes()).map_err(|_| {
            Refusal::usage("a credential for an SSH server is a private key in OpenSSH's form")
                .hint("Make one: `ssh-keygen -t ed25519 -N '' -f key`, give its public half to the server, and store the file `key`.")
        })?;
        if key.is_encrypted() {
            return Err(Refusal::usage("that private key has a passphrase, which nobody is there to type")
                .hint("Store a key of its own without one (`ssh-keygen -t ed25519 -N ''`): secrets are readable by you alone."));
        }
        Ok(Self { pem, key: Box::new(key) })
    }

    /// The key in OpenSSH's form, its last line ended, for what needs it and for nothing else.
    pub fn expose_pem(&self) -> &str {
        &self.pem
    }

    /// The key, taken apart.
    pub(super) fn into_key(self) -> PrivateKey {
        *self.key
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshKey(…)")
    }
}

/// The credentials among the secrets of one state directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials {
    secrets: Secrets,
}

impl Credentials {
    /// Those among these secrets.
    pub fn new(secrets: Secrets) -> Self {
        Self { secrets }
    }

    /// The credential for a repository behind a web server; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not of its form.
    pub fn web(&self, remote: &WebRemote) -> Result<Option<WebCredential>, Refusal> {
        self.find(Kind::Web(remote.scheme), &remote.authority(), &remote.path, WebCredential::read)
    }

    /// The key for a repository behind an SSH server; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not of its form.
    pub fn ssh(&self, remote: &SshRemote) -> Result<Option<SshKey>, Refusal> {
        self.find(Kind::Ssh, &remote.authority(), &rooted(&remote.path), SshKey::read)
    }

    fn find<T>(
        &self,
        kind: Kind,
        authority: &str,
        path: &str,
        read: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        let scopes = self.secrets.git()?;
        let nearest =
            scopes.into_iter().filter(|scope| scope.covers(kind, authority, path)).max_by_key(|scope| scope.path.len());
        let Some(scope) = nearest else { return Ok(None) };
        // One that is taken away just now is none.
        let Some(value) = self.secrets.git_value(&scope)? else { return Ok(None) };
        read(&value).map(Some).map_err(|refusal| {
            Refusal::config(format!("the secret {} is of no use: {}", text::code(&scope.to_string()), refusal.what))
                .hint(format!("Store it anew: musher secrets set {scope} < file"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::home::Home;

    fn name(text: &str) -> Result<String, String> {
        Scope::parse(text).map(|scope| scope.to_string()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_place_has_one_name() {
        for (text, expected) in [
            ("git:https://Example.ORG", "git:https://example.org"),
            ("git:https://example.org:443/", "git:https://example.org"),
            ("git:https://example.org:8443/Team/", "git:https://example.org:8443/Team"),
            ("git:https://example.org/team/app.git", "git:https://example.org/team/app.git"),
            ("git:HTTP://127.0.0.1:80", "git:http://127.0.0.1"),
            ("git:ssh://example.org:22", "git:ssh://example.org"),
            ("git:ssh://[::1]:2222/srv/", "git:ssh://[::1]:2222/srv"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "git:",
            "git:example.org",
            "git:https://",
            "git:https:///team",
            "git:http://example.org",
            "git:ftp://example.org",
            "git:https://ann:s3cret@example.org",
            "git:ssh://git@example.org",
            "git:https://example.org/../x",
            "git:https://example.org?x",
            "git:https://example.org/a b",
            "git:https://example.org/%0a",
            "git:git@example.org:team",
            "git:/srv/a",
            "model-key",
        ] {
            let refusal = name(text).expect_err(text);
            assert!(!refusal.contains("s3cret"), "{refusal}");
        }
        assert!(name(&format!("git:https://example.org/{}", "x".repeat(NAME_MAX))).is_err());
    }

    fn remote(text: &str) -> Remote {
        Remote::parse(text, Path::new("/")).expect("it is an address")
    }

    #[test]
    fn the_longest_name_that_fits_counts() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let secrets = Secrets::new(&Home::open(&folder.path().join("state")).expect("it can be made"));
        for (name, value) in [
            ("git:https://example.org", "host:1"),
            ("git:https://example.org/team", "team:2"),
            ("git:https://example.org/team/app.git", "app:3:with:colons"),
            ("git:https://example.org:8443", "port:4"),
        ] {
            secrets.set(name, value).expect("it can be stored");
        }
        let credentials = Credentials::new(secrets);
        for (text, user) in [
            ("https://example.org/a", Some("host")),
            ("https://example.org/team", Some("team")),
            ("https://example.org/team/b", Some("team")),
            ("https://example.org/teams/b", Some("host")),
            ("https://example.org/team/app.git", Some("app")),
            ("https://example.org/team/app.git-other", Some("team")),
            ("https://example.org:443/team/app.git", Some("app")),
            ("https://example.org:8443/team/app.git", Some("port")),
            ("https://sub.example.org/a", None),
            ("https://example.org.evil.example/a", None),
            ("http://127.0.0.1/a", None),
        ] {
            let Remote::Web(web) = remote(text) else { panic!("{text}") };
            let found = credentials.web(&web).expect("it can be read");
            assert_eq!(found.as_ref().map(WebCredential::user), user, "{text}");
            let shown = format!("{found:?}");
            assert!(found.is_none() || shown == "Some(WebCredential(…))", "{shown}");
        }
        let climbing: Remote =
            serde_json::from_value("https://example.org/team/%252e%252e/b".into()).expect("an earlier version took it");
        let Remote::Web(climbing) = climbing else { panic!("it is a web address") };
        assert!(credentials.web(&climbing).expect("it can be read").is_none());
        let Remote::Web(app) = remote("https://example.org/team/app.git") else { panic!("it is a web address") };
        let found = credentials.web(&app).expect("it can be read").expect("there is one");
        assert_eq!(found.expose_token(), "3:with:colons");
        assert!(found.basic().is_sensitive());
    }

    #[test]
    fn keys_are_found_for_all_spellings_of_a_place_and_are_checked() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let secrets = Secrets::new(&Home::open(&folder.path().join("state")).expect("it can be made"));
        let make = |name: &str, passphrase: &str| {
            let file = folder.path().join(name);
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-C", name, "-N", passphrase, "-f"])
                .arg(&file)
                .status();
            assert!(made.expect("OpenSSH's client is there").success());
            std::fs::read_to_string(file).expect("it is there")
        };
        let (host, team) = (make("host", ""), make("team", ""));
        secrets.set("git:ssh://example.org", &host).expect("it can be stored");
        secrets.set("git:ssh://example.org/team", &team).expect("it can be stored");
        let credentials = Credentials::new(secrets.clone());
        for (text, expected) in [
            ("git@example.org:app.git", Some(&host)),
            ("git@example.org:team/app.git", Some(&team)),
            ("ssh://git@example.org/team/app.git", Some(&team)),
            ("ssh://example.org:22/teams/app.git", Some(&host)),
            ("ssh://git@example.org:2222/team/app.git", None),
        ] {
            let Remote::Ssh(ssh) = remote(text) else { panic!("{text}") };
            let found = credentials.ssh(&ssh).expect("it can be read");
            assert_eq!(found.as_ref().map(SshKey::expose_pem), expected.map(String::as_str), "{text}");
            let shown = format!("{found:?}");
            assert!(found.is_none() || shown == "Some(SshKey(…))", "{shown}");
        }
        let locked = make("locked", "s3cret");
        for (name, value, words) in [
            ("git:ssh://example.org", locked.as_str(), "has a passphrase"),
            ("git:ssh://example.org", "user:t0ken", "a private key in OpenSSH's form"),
            ("git:ssh://example.org", &host[..200], "a private key in OpenSSH's form"),
            ("git:https://example.org", "t0ken", "is `user:token` on one line"),
            ("git:https://example.org", ":t0ken", "is `user:token` on one line"),
            ("git:https://example.org", "user:", "is `user:token` on one line"),
            ("git:https://example.org", "user:t0ken\nuser:t0ken", "is `user:token` on one line"),
        ] {
            let refusal = secrets.set(name, value).expect_err(words).to_string();
            assert!(refusal.contains(words) && !refusal.contains("t0ken") && !refusal.contains("b3Blbn"), "{refusal}");
        }
        assert_eq!(secrets.list().expect("it can be listed"), ["git:ssh://example.org", "git:ssh://example.org/team"]);
        secrets.remove("git:ssh://EXAMPLE.org/team/").expect("it is there");
        assert_eq!(secrets.list().expect("it can be listed"), ["git:ssh://example.org"]);
    }
}
