//! The repository of a new project, as far as it is the gateway's own matter: where it may come from, and how an empty one is
//! begun. Cloning is [`super::clone`]'s.

use std::{os::unix::fs::MetadataExt, path::Path};

use git2::{Repository, RepositoryInitOptions};

use super::place;
use crate::{git::Remote, refusal::Refusal, text};

/// Checks where a project is to come from. A local repository lies under an allowed root, belongs to the same user, and neither is nor
/// was any project's (PROJ-3, [`place::Taken::once_by`]). Gives it with every link resolved. What is in it is looked at when it is cloned.
pub fn check(remote: Remote, rules: &place::Rules) -> Result<Remote, Refusal> {
    let Remote::Local(path) = &remote else { return Ok(remote) };
    let shown = text::code(&path.to_string_lossy());
    let unreadable = |error| {
        Refusal::internal(format!("{shown} cannot be read"), error)
            .hint("Give the path of a git repository on this host.")
    };
    let real = path.canonicalize().map_err(unreadable)?;
    let allowed = rules.roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
    if !allowed {
        return Err(Refusal::usage(format!("{shown} is not below a folder where projects may lie"))
            .hint("Add its parent to `[projects] roots` in bot.toml."));
    }
    if let Some(place::Taken { whose, .. }) = rules.taking(&real) {
        return Err(Refusal::usage(format!("{shown} belongs to {whose}")).hint("Clone it from its address instead; files that a deleted project left can be taken over: `--path`, with `--adopt`."));
    }
    if real.metadata().map_err(unreadable)?.uid() != rules.own.uid {
        return Err(
            Refusal::usage(format!("{shown} belongs to another user")).hint("Clone it from its address instead.")
        );
    }
    Ok(Remote::Local(real))
}

/// Begins an empty repository on branch `main`, in a folder that is not there yet.
pub fn begin(path: &Path) -> Result<(), Refusal> {
    let mut options = RepositoryInitOptions::new();
    options.initial_head("main").external_template(false).no_reinit(true);
    Repository::init_opts(path, &options)
        .map(drop)
        .map_err(|error| Refusal::internal("the repository cannot be begun", text::one_line(error.message(), 200)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::project::Owner, *};

    #[test]
    fn a_repository_of_this_host_is_allowed_where_projects_may_lie_and_is_nobody_elses() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        let rules = |root: &str, taken: &str, uid: u32| place::Rules {
            roots: vec![folder.path().join(root)],
            home: folder.path().to_owned(),
            state: folder.path().join("state"),
            taken: vec![place::Taken {
                path: folder.path().canonicalize().expect("it is there").join(taken),
                whose: "a deleted project".into(),
            }],
            own: Owner { uid, ..own },
            fallback: own,
        };
        for name in ["elsewhere", "source"] {
            fs::create_dir_all(folder.path().join(name)).expect("it can be made");
        }
        let source = Remote::Local(folder.path().join("source"));
        for (refused, why) in [
            (rules("elsewhere", "x", own.uid), "not below"),
            (rules("", "source", own.uid), "belongs to a deleted project"),
            (rules("", "x", 4_000_000), "another user"),
        ] {
            let refusal = check(source.clone(), &refused).expect_err(why);
            assert!(refusal.what.contains(why), "{refusal}");
        }
        check(source, &rules("", "x", own.uid)).expect("it is allowed");
    }
}
