//! The secrets store (SEC-1): a file each under the state directory's `secrets/`, for its owner alone. Values are never shown.
//!
//! Two sorts of names: those that bot.toml uses, and `git:…`, which say where a credential counts.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use bot_config::SecretName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::{
    git::credentials::{self, Scope},
    home::{Home, make_private, write_private},
    refusal::Refusal,
    text,
};

/// The longest value, in bytes.
pub const VALUE_MAX: usize = 64 * 1024;

/// What a file's name has encoded.
const IN_FILE_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-');

/// The secrets of one state directory.
#[derive(Debug, Clone)]
pub struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// The secrets of this state directory.
    pub fn new(home: &Home) -> Self {
        Self { folder: home.secrets() }
    }

    /// Where a secret is kept, whether it is there or not.
    pub fn path(&self, name: &SecretName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    /// Stores a value, whose last line break does not count. Gives the name as it is kept.
    pub fn set(&self, name: &str, value: &str) -> Result<String, Refusal> {
        let name = Name::parse(name)?;
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(Refusal::usage("there is no value on standard input")
                .hint(format!("Write for example: musher secrets set {name} < file")));
        }
        if value.len() > VALUE_MAX {
            return Err(Refusal::usage(format!("the value has more than {VALUE_MAX} bytes")));
        }
        if let Name::Git(scope) = &name {
            scope.check(value)?;
        }
        make_private(&self.folder)
            .and_then(|()| write_private(&self.folder.join(name.file()), value.as_bytes()))
            .map_err(|error| Refusal::internal("the secret could not be stored", error))?;
        Ok(name.to_string())
    }

    /// The names of all secrets, sorted.
    pub fn list(&self) -> Result<Vec<String>, Refusal> {
        let mut names: Vec<_> = self.names()?.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Forgets a secret. Gives the name as it was kept.
    pub fn remove(&self, name: &str) -> Result<String, Refusal> {
        let name = Name::parse(name)?;
        fs::remove_file(self.folder.join(name.file())).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::usage(format!("there is no secret {}", text::code(&name.to_string())))
                .hint("`musher secrets list` shows the names."),
            _ => Refusal::internal("the secret could not be removed", error),
        })?;
        Ok(name.to_string())
    }

    /// A secret's value.
    pub fn get(&self, name: &SecretName) -> Result<String, Refusal> {
        read(&self.path(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Refusal::config(format!("bot.toml names the secret `{}`, which is not there", name.as_str()))
                    .hint(format!("Store it: musher secrets set {} < file", name.as_str()))
            }
            _ => unreadable(error),
        })
    }

    /// Where there are credentials for git.
    pub fn git(&self) -> Result<Vec<Scope>, Refusal> {
        let scope = |name| match name {
            Name::Git(scope) => Some(scope),
            Name::Plain(_) => None,
        };
        Ok(self.names()?.into_iter().filter_map(scope).collect())
    }

    /// The credential for git that counts there; nothing when there is none.
    pub fn git_value(&self, scope: &Scope) -> Result<Option<Zeroizing<String>>, Refusal> {
        match read(&self.folder.join(Name::Git(scope.clone()).file())) {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(error)),
        }
    }

    fn names(&self) -> Result<Vec<Name>, Refusal> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(unreadable)?.file_name();
            names.extend(file.to_str().and_then(Name::of_file));
        }
        Ok(names)
    }
}

/// A secret's name.
enum Name {
    /// One that bot.toml uses.
    Plain(SecretName),
    /// Where a credential for git counts.
    Git(Scope),
}

impl Name {
    fn parse(name: &str) -> Result<Self, Refusal> {
        if name.starts_with(credentials::PREFIX) {
            return Scope::parse(name).map(Self::Git);
        }
        name.parse().map(Self::Plain).map_err(|error| {
            Refusal::usage(format!("{} cannot be a secret's name: it {error}", text::code(name)))
                .hint("Write for example `model-key`, or `git:https://example.org` for a credential of git.")
        })
    }

    /// The name that a file has, if it is one: each name has one spelling, and so one file.
    fn of_file(file: &str) -> Option<Self> {
        let name = Self::parse(&percent_decode_str(file).decode_utf8().ok()?).ok()?;
        (name.file() == file).then_some(name)
    }

    fn file(&self) -> String {
        utf8_percent_encode(&self.to_string(), IN_FILE_NAME).to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(name) => name.fmt(f),
            Self::Git(scope) => scope.fmt(f),
        }
    }
}

/// The value in a file, whose last line break does not count.
pub fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|value| value.trim_end_matches(['\n', '\r']).to_owned())
}

fn unreadable(error: io::Error) -> Refusal {
    Refusal::internal("the secrets cannot be read", error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_kept_for_their_owner_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let secrets = Secrets::new(&Home::open(&folder.path().join("state")).expect("it can be made"));
        assert_eq!(secrets.list().expect("it can be listed"), Vec::<String>::new());
        secrets.set("model-key", "s3cret\n").expect("it can be stored");
        assert_eq!(secrets.list().expect("it can be listed"), ["model-key"]);
        let name = "model-key".parse().expect("it is a name");
        assert_eq!(secrets.get(&name).expect("it is there"), "s3cret");
        assert_eq!(secrets.path(&name).metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        for (name, value) in [("../x", "v"), ("", "v"), ("a b", "v"), ("ok", "\n")] {
            let refusal = secrets.set(name, value).expect_err(name);
            assert!(!refusal.to_string().contains("s3cret"));
        }
        secrets.remove("model-key").expect("it is there");
        secrets.remove("model-key").expect_err("it is gone");
    }

    #[test]
    fn places_are_names_too_and_foreign_files_are_none() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let home = Home::open(&folder.path().join("state")).expect("it can be made");
        let secrets = Secrets::new(&home);
        let name = secrets.set("git:https://EXAMPLE.org:443/Team/", "ann:s3cret\r\n").expect("it can be stored");
        assert_eq!(name, "git:https://example.org/Team");
        let file = home.secrets().join("git%3Ahttps%3A%2F%2Fexample.org%2FTeam");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "ann:s3cret");
        assert_eq!(file.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        for foreign in [
            ".tmp",
            "git%3Ahttps://",
            "git%3ahttps%3a%2f%2fexample.com",
            "%6dodel-key",
            "git%3Ahttps%3A%2F%2Fa%2F..%2Fb",
            "x%ff",
        ] {
            // A slash would be another folder.
            fs::write(home.secrets().join(foreign.replace('/', "_")), "x").expect("it can be written");
        }
        assert_eq!(secrets.list().expect("it can be listed"), ["git:https://example.org/Team"]);
        for name in ["git:https://ann:s3cret@example.org", "git:https://example.org/%2e%2e/x", "git:"] {
            let refusal = secrets.set(name, "ann:s3cret").expect_err(name).to_string();
            assert!(!refusal.contains("s3cret"), "{refusal}");
        }
        assert_eq!(secrets.remove("git:https://example.org/Team").expect("it is there"), name);
        let refusal = secrets.remove("git:https://example.org/Team").expect_err("it is gone").to_string();
        assert!(refusal.contains("there is no secret `git:https://example.org/Team`"), "{refusal}");
    }
}
