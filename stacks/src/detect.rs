//! Which stack a project wants, from the file names at its root (PROJ-4). Pure: no file is opened here.

use std::fmt;

use crate::{StackName, Stacks};

/// Names at a root that say that the project describes an editor container of its own.
const DEVCONTAINER: [&str; 3] = [".devcontainer", ".devcontainer.json", "devcontainer.json"];

/// A stack and the file that speaks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The stack.
    pub stack: StackName,
    /// The file's name at the root. Hostile input: bound and escape it where it is shown.
    pub marker: String,
}

/// What was found at a project's root. Its text is the reason for a person:
/// `rust: Cargo.toml; also node: package.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detection {
    /// The preferred stack; without one the base image alone is used.
    pub chosen: Option<Evidence>,
    /// The other stacks that were found, in their order of preference.
    pub others: Vec<Evidence>,
    /// The `devcontainer.json` or its folder, which is seen and not used.
    pub devcontainer: Option<String>,
}

impl Detection {
    /// The preferred stack's name.
    pub fn stack(&self) -> Option<&StackName> {
        self.chosen.as_ref().map(|evidence| &evidence.stack)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stack, self.marker.escape_default())
    }
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.chosen {
            Some(evidence) => evidence.fmt(f)?,
            None => f.write_str("no stack: no known file at the root")?,
        }
        for (index, other) in self.others.iter().enumerate() {
            f.write_str(if index == 0 { "; also " } else { ", " })?;
            other.fmt(f)?;
        }
        if let Some(name) = &self.devcontainer {
            write!(f, "; {} is seen and not used", name.escape_default())?;
        }
        Ok(())
    }
}

impl Stacks {
    /// Finds the stack from the names (not paths) of what lies at a project's root.
    pub fn detect<S: AsRef<str>>(&self, root_names: &[S]) -> Detection {
        let mut names: Vec<&str> = root_names.iter().map(AsRef::as_ref).collect();
        names.sort_unstable();
        let mut found = self.by_preference().filter_map(|stack| {
            let marker = stack.patterns().iter().find_map(|p| names.iter().find(|name| p.matches(name)))?;
            Some(Evidence { stack: stack.name().clone(), marker: (*marker).to_owned() })
        });
        let chosen = found.next();
        let others = found.collect();
        let devcontainer = DEVCONTAINER.iter().find(|name| names.contains(name)).map(|name| (*name).to_owned());
        Detection { chosen, others, devcontainer }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn add(folder: &Path, name: &str, markers: &str) {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("markers"), markers).expect("a file");
        for fragment in ["Dockerfile.fragment", "Dockerfile.fragment.distro"] {
            fs::write(folder.join(fragment), "RUN true\n").expect("a file");
        }
    }

    #[test]
    fn the_fixed_order_decides_and_the_others_are_named() {
        let own = tempfile::tempdir().expect("a folder");
        add(own.path(), "alpha", "priority = 900\nalpha.toml\n*.alpha\n");
        add(own.path(), "beta", "priority = 900\nbeta.json\n");
        let stacks = Stacks::load(Some(own.path())).expect("valid stacks");
        let table: [(&[&str], &str); 9] = [
            (&[], "no stack: no known file at the root"),
            (&["README.md", "src"], "no stack: no known file at the root"),
            (&["src", "Cargo.toml"], "rust: Cargo.toml"),
            (&["beta.json", "Cargo.toml"], "rust: Cargo.toml; also beta: beta.json"),
            (&["beta.json", "x.alpha"], "alpha: x.alpha; also beta: beta.json"),
            (&["beta.json", "alpha.toml", "Cargo.toml"], "rust: Cargo.toml; also alpha: alpha.toml, beta: beta.json"),
            (&["b.alpha", "a.alpha"], "alpha: a.alpha"),
            (&["Cargo.toml", ".devcontainer"], "rust: Cargo.toml; .devcontainer is seen and not used"),
            (&["devcontainer.json"], "no stack: no known file at the root; devcontainer.json is seen and not used"),
        ];
        for (names, reason) in table {
            assert_eq!(stacks.detect(names).to_string(), reason, "{names:?}");
        }
    }

    #[test]
    fn a_hostile_name_is_escaped_in_the_reason() {
        let own = tempfile::tempdir().expect("a folder");
        add(own.path(), "alpha", "priority = 1\n*.alpha\n");
        let stacks = Stacks::load(Some(own.path())).expect("valid stacks");
        assert_eq!(stacks.detect(&["\u{1b}[2J\n.alpha"]).to_string(), r"alpha: \u{1b}[2J\n.alpha");
    }

    proptest::proptest! {
        #[test]
        fn the_order_of_the_names_does_not_matter(mut names in proptest::collection::vec("[a-zA-Z.]{0,12}", 0..12)) {
            names.push("Cargo.toml".to_owned());
            let stacks = Stacks::builtin();
            let forward = stacks.detect(&names);
            names.reverse();
            proptest::prop_assert_eq!(forward, stacks.detect(&names));
        }
    }
}
