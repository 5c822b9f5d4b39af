//! Whether an SSH server is the one that people know: its host key against `known_hosts` files as OpenSSH has them.
//!
//! It reads and never writes: whom to trust is a person's decision.

use std::{fs, io, path::PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use ssh_key::{
    HashAlg, PublicKey,
    known_hosts::{Entry, HostPatterns, Marker},
};

use crate::{refusal::Refusal, text};

/// The port that a `known_hosts` line without one means.
const SSH_PORT: u16 = 22;

/// What the files say of a host's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is that host's.
    Known,
    /// They say nothing of it.
    Unknown {
        /// `SHA256:…`, to compare.
        fingerprint: String,
        /// The line that makes it known.
        line: String,
        /// Of what kinds the keys are that they have for that host.
        others: Vec<String>,
    },
    /// They have another key for that host, or this one is revoked.
    Changed {
        /// `SHA256:…`, of the key that the host showed.
        fingerprint: String,
    },
}

/// The files, in their order. Read anew at each check.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    files: Vec<PathBuf>,
}

impl KnownHosts {
    /// These files; one that is not there says nothing.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files }
    }

    /// Checks the key that a host showed, in its form on the wire. `host` has no brackets.
    ///
    /// # Errors
    /// When a file cannot be read, or that is no key.
    pub fn check(&self, host: &str, port: u16, key: &[u8]) -> Result<Verdict, Refusal> {
        let shown = PublicKey::from_bytes(key)
            .map_err(|error| Refusal::internal("the server's host key cannot be read", error))?;
        let fingerprint = shown.fingerprint(HashAlg::Sha256).to_string();
        let judge = |entries: &[Entry]| {
            let (mut known, mut other) = (false, false);
            for entry in entries {
                let same = entry.public_key().key_data() == shown.key_data();
                match entry.marker() {
                    Some(_) => {}
                    None if same => known = true,
                    None => other |= entry.public_key().algorithm() == shown.algorithm(),
                }
            }
            if known { Some(true) } else { other.then_some(false) }
        };
        let (entries, of_host) = (self.entries(host, port)?, self.of_host(host, port)?);
        let is_revoked = |entry: &Entry| {
            entry.marker() == Some(&Marker::Revoked) && entry.public_key().key_data() == shown.key_data()
        };
        if entries.iter().chain(&of_host).any(is_revoked) {
            return Ok(Verdict::Changed { fingerprint });
        }
        match judge(&entries) {
            Some(true) => return Ok(Verdict::Known),
            Some(false) => return Ok(Verdict::Changed { fingerprint }),
            // Another key on another port is no change.
            None if judge(&of_host) == Some(true) => return Ok(Verdict::Known),
            None => {}
        }
        let others = kinds(entries.iter().chain(&of_host));
        let key =
            shown.to_openssh().map_err(|error| Refusal::internal("the server's host key cannot be written", error))?;
        Ok(Verdict::Unknown { fingerprint, line: format!("{} {}", address(host, port), key.trim()), others })
    }

    /// As [`KnownHosts::check`], and everything but a known key is a refusal that tells people what to do.
    ///
    /// # Errors
    /// When the key is not known to be the host's.
    pub fn demand(&self, host: &str, port: u16, key: &[u8]) -> Result<(), Refusal> {
        let shown = text::code(&address(host, port));
        match self.check(host, port, key)? {
            Verdict::Known => Ok(()),
            Verdict::Unknown { fingerprint, line, others } => {
                let others = match others.as_slice() {
                    [] => String::new(),
                    others => format!(" (known for it are keys of another kind or port: {})", others.join(", ")),
                };
                let file =
                    self.files.first().map_or_else(|| "~/.ssh/known_hosts".into(), |file| file.display().to_string());
                Err(Refusal::config(format!("the SSH server {shown} is not known; its key is {fingerprint}{others}"))
                    .hint(format!("If its operator names the same fingerprint, add this line to {file}: {line}")))
            }
            Verdict::Changed { fingerprint } => Err(Refusal::config(format!(
                "the SSH server {shown} shows the key {fingerprint}, which is not the one that is known for it"
            ))
            .hint(
                "Somebody may be listening in. Ask its operator; only then take the old key out of your known_hosts.",
            )),
        }
    }

    /// The algorithms of the keys that are known for a host, in the files' order: a server that has several keys is asked for one of those.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn algorithms(&self, host: &str, port: u16) -> Result<Vec<String>, Refusal> {
        Ok(kinds(self.entries(host, port)?.iter().chain(&self.of_host(host, port)?)))
    }

    /// The entries that are about a host and say nothing of a port, where another port is meant: as OpenSSH does, a key that is known for the
    /// host is taken there too.
    fn of_host(&self, host: &str, port: u16) -> Result<Vec<Entry>, Refusal> {
        if port == SSH_PORT { Ok(Vec::new()) } else { self.entries(host, SSH_PORT) }
    }

    /// The entries that are about this host and port.
    fn entries(&self, host: &str, port: u16) -> Result<Vec<Entry>, Refusal> {
        let address = address(host, port);
        let mut found = Vec::new();
        for file in &self.files {
            let content = match fs::read(file) {
                Ok(content) => content,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(Refusal::internal(
                        format!("the known hosts in {} cannot be read", file.display()),
                        error,
                    )
                    .hint("Mend `[git] known_hosts` in bot.toml, or that file."));
                }
            };
            // A line that cannot be read names no host that is known; the others count all the same.
            let lines = String::from_utf8_lossy(&content).into_owned();
            found.extend(lines.lines().filter_map(entry).filter(|entry| is_about(entry.host_patterns(), &address)));
        }
        Ok(found)
    }
}

/// Of what kinds the keys are, each once.
fn kinds<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in entries.filter(|entry| entry.marker().is_none()) {
        let name = entry.public_key().algorithm().as_str().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn entry(line: &str) -> Option<Entry> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    // Fields may be parted by any white space.
    line.split_whitespace().collect::<Vec<_>>().join(" ").parse().ok()
}

/// As `known_hosts` has it: `host`, or `[host]:port`.
fn address(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == SSH_PORT { host } else { format!("[{host}]:{port}") }
}

fn is_about(patterns: &HostPatterns, address: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
            .is_ok_and(|mac| mac.chain_update(address.as_bytes()).verify_slice(hash).is_ok()),
        HostPatterns::Patterns(patterns) => {
            let fits = |pattern: &str| matches(pattern.to_ascii_lowercase().as_bytes(), address.as_bytes());
            // One that is excluded is excluded, whatever else the line says.
            !patterns.iter().filter_map(|pattern| pattern.strip_prefix('!')).any(fits)
                && patterns.iter().any(|pattern| !pattern.starts_with('!') && fits(pattern))
        }
    }
}

/// Whether the whole text fits a pattern of `*` and `?`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=";

    fn wire(key: &str) -> Vec<u8> {
        key.parse::<PublicKey>().expect("it is a key").to_bytes().expect("it can be written")
    }

    fn known(lines: &str) -> (tempfile::TempDir, KnownHosts) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = folder.path().join("known_hosts");
        fs::write(&file, lines).expect("it can be written");
        let missing = folder.path().join("missing");
        (folder, KnownHosts::new(vec![missing, file]))
    }

    #[test]
    fn keys_are_told_apart() {
        for (lines, host, port, expected) in [
            (format!("example.org {ED25519}"), "example.org", 22, "known"),
            (format!("EXAMPLE.org,10.0.0.1 {ED25519} a comment"), "Example.org", 22, "known"),
            (format!("example.org\t{}  # x", ED25519.replace(' ', "\t")), "example.org", 22, "known"),
            (format!("[example.org]:2222 {ED25519}"), "example.org", 2222, "known"),
            (format!("[example.org]:2222 {ED25519}"), "example.org", 22, "unknown"),
            (format!("example.org {ED25519}"), "example.org", 2222, "known"),
            (format!("example.org {OTHER}"), "example.org", 2222, "unknown"),
            (format!("[example.org]:2222 {OTHER}\nexample.org {ED25519}"), "example.org", 2222, "changed"),
            (format!("[example.org]:2222 {ED25519}\n@revoked example.org {ED25519}"), "example.org", 2222, "changed"),
            (format!("[::1]:2222 {ED25519}"), "::1", 2222, "known"),
            (format!("::1 {ED25519}"), "::1", 22, "known"),
            (format!("*.example.org {ED25519}"), "git.example.org", 22, "known"),
            (format!("*.example.org {ED25519}"), "example.org", 22, "unknown"),
            (format!("*.example.org,!git.example.org {ED25519}"), "git.example.org", 22, "unknown"),
            (format!("g?t.example.org {ED25519}"), "git.example.org", 22, "known"),
            (format!("# example.org {ED25519}\n\nexample.org"), "example.org", 22, "unknown"),
            (format!("garbage\nexample.org {ED25519}"), "example.org", 22, "known"),
            (format!("example.org {OTHER}"), "example.org", 22, "changed"),
            (format!("example.org {OTHER}\nexample.org {ED25519}"), "example.org", 22, "known"),
            (format!("example.org {ECDSA}"), "example.org", 22, "unknown"),
            (format!("example.org {ED25519}\n@revoked * {ED25519}"), "example.org", 22, "changed"),
            (format!("@revoked example.org {OTHER}"), "example.org", 22, "unknown"),
            (format!("@cert-authority example.org {ED25519}"), "example.org", 22, "unknown"),
            (String::new(), "example.org", 22, "unknown"),
        ] {
            let (_folder, hosts) = known(&lines);
            let found = match hosts.check(host, port, &wire(ED25519)).expect("it can be checked") {
                Verdict::Known => "known",
                Verdict::Changed { .. } => "changed",
                Verdict::Unknown { fingerprint, line, .. } => {
                    assert!(fingerprint.starts_with("SHA256:"), "{fingerprint}");
                    let (_folder, hosts) = known(&line);
                    assert_eq!(hosts.check(host, port, &wire(ED25519)).ok(), Some(Verdict::Known), "{line}");
                    "unknown"
                }
            };
            assert_eq!(found, expected, "{lines}");
        }
    }

    #[test]
    fn a_key_of_another_kind_is_told_of() {
        let (_folder, hosts) = known(&format!("example.org {ECDSA}"));
        let refusal = hosts.demand("example.org", 22, &wire(ED25519)).expect_err("it is not known");
        assert!(refusal.what.contains("another kind or port: ecdsa-sha2-nistp256)"), "{refusal}");
        assert_eq!(hosts.algorithms("example.org", 2222).expect("they can be read"), ["ecdsa-sha2-nistp256"]);
    }

    #[test]
    fn names_that_are_hashed_are_found() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = folder.path().join("known_hosts");
        fs::write(&file, format!("[example.org]:2222 {ED25519}\nexample.org {OTHER}\n")).expect("it can be written");
        let hashed = std::process::Command::new("ssh-keygen").args(["-H", "-f"]).arg(&file).output();
        assert!(hashed.expect("OpenSSH's client is there").status.success());
        assert!(!fs::read_to_string(&file).expect("it is there").contains("example"));
        let hosts = KnownHosts::new(vec![file]);
        assert_eq!(hosts.check("example.org", 2222, &wire(ED25519)).ok(), Some(Verdict::Known));
        assert_eq!(hosts.check("example.org", 22, &wire(OTHER)).ok(), Some(Verdict::Known));
        assert!(matches!(hosts.check("example.org", 22, &wire(ED25519)), Ok(Verdict::Changed { .. })));
        assert!(matches!(hosts.check("example.com", 22, &wire(OTHER)), Ok(Verdict::Unknown { .. })));
        assert_eq!(hosts.algorithms("example.org", 22).expect("they can be read"), ["ssh-ed25519"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let hosts = KnownHosts::new(vec![folder.path().to_owned()]);
        assert!(hosts.check("example.org", 22, &wire(ED25519)).is_err(), "a folder is no file");
        assert!(KnownHosts::default().check("example.org", 22, b"garbage").is_err());
    }
}
