//! The secrets store (SEC-1): a file each under the state directory's `secrets/`, for its owner alone. Values are never shown.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bot_config::SecretName;

use crate::{
    home::{Home, make_private, write_private},
    refusal::Refusal,
    text,
};

/// The longest value, in bytes.
pub const VALUE_MAX: usize = 64 * 1024;

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

    /// Stores a value, whose last line break does not count.
    pub fn set(&self, name: &str, value: &str) -> Result<(), Refusal> {
        let name = parse(name)?;
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(Refusal::usage("there is no value on standard input")
                .hint(format!("Write for example: musher secrets set {} < file", name.as_str())));
        }
        if value.len() > VALUE_MAX {
            return Err(Refusal::usage(format!("the value has more than {VALUE_MAX} bytes")));
        }
        make_private(&self.folder)
            .and_then(|()| write_private(&self.path(&name), value.as_bytes()))
            .map_err(|error| Refusal::internal("the secret could not be stored", error))
    }

    /// The names of all secrets, sorted.
    pub fn list(&self) -> Result<Vec<String>, Refusal> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
            if name.parse::<SecretName>().is_ok() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Forgets a secret.
    pub fn remove(&self, name: &str) -> Result<(), Refusal> {
        let name = parse(name)?;
        fs::remove_file(self.path(&name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::usage(format!("there is no secret {}", text::code(name.as_str())))
                .hint("`musher secrets list` shows the names."),
            _ => Refusal::internal("the secret could not be removed", error),
        })
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
}

/// The value in a file, whose last line break does not count.
pub fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|value| value.trim_end_matches(['\n', '\r']).to_owned())
}

fn parse(name: &str) -> Result<SecretName, Refusal> {
    name.parse().map_err(|error| {
        Refusal::usage(format!("{} cannot be a secret's name: it {error}", text::code(name)))
            .hint("Write for example `model-key`.")
    })
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
}
