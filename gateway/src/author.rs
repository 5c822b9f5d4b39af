//! Whose name commits carry: bot.toml's, otherwise that of the host's own git settings.
//!
//! The host's files are read anew at each use, so that what a person puts there counts at once. Nothing is written.

use std::path::{Path, PathBuf};

use git2::{Config, ConfigLevel};
use link::requests::GitIdentity;

/// Where the name comes from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Author {
    given: Option<GitIdentity>,
    /// The host's git settings, each with what it gives way to: a later file's word counts.
    files: Vec<(ConfigLevel, PathBuf)>,
}

impl Author {
    /// What bot.toml says, otherwise the git settings of whoever has this home.
    pub fn new(given: Option<GitIdentity>, home: &Path, xdg_config_home: Option<&Path>) -> Self {
        let xdg = xdg_config_home.map_or_else(|| home.join(".config"), Path::to_owned);
        let files = vec![(ConfigLevel::XDG, xdg.join("git/config")), (ConfigLevel::Global, home.join(".gitconfig"))];
        Self { given, files }
    }

    /// Who it is now; nothing when nobody says so.
    pub fn now(&self) -> Option<GitIdentity> {
        self.given.clone().or_else(|| self.of_host())
    }

    fn of_host(&self) -> Option<GitIdentity> {
        let mut config = Config::new().ok()?;
        for (level, path) in &self.files {
            // A file that is not there, or that git could not read either, says nothing.
            if path.is_file() && config.add_file(path, *level, false).is_err() {
                tracing::warn!(path = %path.display(), "these git settings cannot be read");
            }
        }
        let config = config.snapshot().ok()?;
        let text = |key| config.get_str(key).ok().filter(|text| is_usable(text)).map(str::to_owned);
        Some(GitIdentity { name: text("user.name")?, email: text("user.email")? })
    }
}

/// Whether git can write it into a commit as it is.
fn is_usable(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(|c: char| c.is_control() || matches!(c, '<' | '>'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(home: &Path, file: &str, text: &str) {
        let path = home.join(file);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        fs::write(path, text).expect("it can be written");
    }

    #[test]
    fn bot_toml_counts_first_and_then_the_hosts_settings_as_they_are_now() {
        let home = tempfile::tempdir().expect("a temporary folder can be made");
        let home = home.path();
        let author = Author::new(None, home, None);
        assert_eq!(author.now(), None, "nobody says so");

        write(home, ".config/git/config", "[user]\n\tname = Xenia\n\temail = x@example.org\n");
        assert_eq!(author.now().expect("it is there").name, "Xenia");
        write(home, "more", "[user]\n\temail = ann@example.org\n");
        write(home, ".gitconfig", "[user]\n\tname = \"Ann Other\"\n[include]\n\tpath = more\n");
        let ann = GitIdentity { name: "Ann Other".into(), email: "ann@example.org".into() };
        assert_eq!(author.now(), Some(ann), "the later file counts, and what it includes");
        let elsewhere = Author::new(None, &home.join("nobody"), Some(&home.join(".config")));
        assert_eq!(elsewhere.now().expect("it is there").name, "Xenia");

        let given = GitIdentity { name: "Bot".into(), email: "bot@example.org".into() };
        assert_eq!(Author::new(Some(given.clone()), home, None).now(), Some(given));

        for bad in [
            "[user]\n\tname = Ann\n",
            "[user]\n\tname = A <b>\n\temail = a@b\n",
            "[user\n",
            "[user]\n\tname =\n\temail = a\n",
        ] {
            write(home, "bad/.gitconfig", bad);
            assert_eq!(Author::new(None, &home.join("bad"), None).now(), None, "{bad}");
        }
    }
}
