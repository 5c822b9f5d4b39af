//! A project's folder on the host: made, and taken back again as far as it was made (invariant 10).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

use super::{
    Made, Owner, Project, Spec,
    contents::Contents,
    place::{self, Found, Place},
    removal,
};
use crate::{failpoint, refusal::Refusal, text};

/// Makes the folder at a place that the rules allow, where there is none, and says what of it is ours.
pub fn make(place: &Place) -> Result<Made, Refusal> {
    failpoint::reach("before", "make_folder");
    let made = make_unwatched(place);
    failpoint::reach("after", "make_folder");
    made
}

fn make_unwatched(place: &Place) -> Result<Made, Refusal> {
    let failed = |error| {
        Refusal::internal(format!("the folder {} could not be made", text::code(&place.path.to_string_lossy())), error)
    };
    match place.found {
        Found::Repository => Ok(Made::Nothing),
        Found::Empty => Ok(Made::Content { before: place::owned(&place.path).map_err(failed)? }),
        Found::Nothing => {
            let mut parents: Vec<PathBuf> =
                place.path.ancestors().skip(1).take_while(|parent| !parent.exists()).map(Path::to_owned).collect();
            parents.reverse();
            for folder in parents.iter().chain([&place.path]) {
                // Exclusive: a folder that somebody else makes at this moment is theirs.
                let private = folder != &place.path && !nix::unistd::geteuid().is_root();
                let mode = if private { 0o700 } else { 0o755 };
                fs::DirBuilder::new().mode(mode).create(folder).map_err(failed)?;
            }
            Ok(Made::Folder { parents })
        }
    }
}

/// Takes back what was made of a project's folder, as long as the same folder still stands there. Gives, for people, what of
/// it stays: what is not ours, or cannot be removed.
pub fn unmake(project: &Project, spec: &Spec, contents: &Contents) -> Option<String> {
    let known = project.directory.map(|(identity, _)| identity);
    let same = known.zip(place::identity(&spec.path).ok()).is_some_and(|(known, now)| known.is(now));
    if !same || project.made == Made::Nothing {
        return None;
    }
    failpoint::reach("before", "unmake_folder");
    let (taken, left) = (contents.take_out(), let_go(&project.made, &spec.path));
    failpoint::reach("after", "unmake_folder");
    let shown = text::code(&spec.path.to_string_lossy());
    match taken.and(left) {
        Ok(Empty(true)) => None,
        Ok(Empty(false)) => Some(format!("What somebody has put into {shown} meanwhile, or changed there, stays.")),
        Err(error) => Some(format!("{shown} stays, because not all in it can be removed: {error}.")),
    }
}

/// Whether nothing is left.
struct Empty(bool);

/// Gives a folder back to whom it belonged, or removes it with those above it that were made for it, if nothing is left in it.
fn let_go(made: &Made, path: &Path) -> io::Result<Empty> {
    let empty = fs::read_dir(path)?.next().is_none();
    match made {
        Made::Content { before: Owner { uid, gid } } if nix::unistd::geteuid().is_root() => {
            chown(path, Some(*uid), Some(*gid))?;
        }
        Made::Folder { parents } if empty => {
            fs::remove_dir(path)?;
            for parent in parents.iter().rev() {
                // One that somebody has put something into meanwhile is theirs by now, and stays.
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        Made::Nothing | Made::Content { .. } | Made::Folder { .. } => {}
    }
    Ok(Empty(empty))
}

/// Removes a file or a tree, whatever a container has made of it; one that is not there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    failpoint::reach("before", "remove_tree");
    let removed = removal::remove_tree(path);
    failpoint::reach("after", "remove_tree");
    removed
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{home::Home, projects::Stage};

    struct Case {
        folder: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Makes a project's folder, fills it, lets somebody else at it, and takes it back. Gives what is said of what stays.
        fn made_and_unmade(&self, name: &str, found: Found, meanwhile: impl FnOnce(&Path)) -> Option<String> {
            let place = Place { path: self.path(name), found };
            let made = make(&place).expect("it can be made");
            let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
            let identity = place::identity(&place.path).expect("it is there");
            let (home, id) = (Home::open(&self.path("state")).expect("it can be made"), Uuid::now_v7());
            let contents = Contents::new(&home.project(id), id, &place.path);
            if found != Found::Repository {
                fs::create_dir_all(contents.stage().join(".git/objects")).expect("it can be filled");
                contents.move_in(own).expect("it can be filled");
            }
            meanwhile(&place.path);
            let spec = Spec::example(&place.path);
            let project =
                Project { stage: Stage::Undoing, directory: Some((identity, own)), made, ..Project::default() };
            let kept = unmake(&project, &spec, &contents);
            assert_eq!(unmake(&project, &spec, &contents), kept, "it can be repeated");
            kept
        }
    }

    #[test]
    fn what_was_there_stays_and_what_was_made_goes() {
        let case = Case::new();
        fs::create_dir(case.path("roots")).expect("it can be made");
        assert_eq!(case.made_and_unmade("roots/a", Found::Nothing, |_| ()), None);
        assert!(case.path("roots").exists(), "a root that was there stays, also empty");
        assert!(!case.path("roots/a").exists());

        assert_eq!(case.made_and_unmade("new/deep/a", Found::Nothing, |_| ()), None);
        assert!(!case.path("new").exists(), "folders that were made on the way go");

        fs::create_dir(case.path("empty")).expect("it can be made");
        assert_eq!(case.made_and_unmade("empty", Found::Empty, |_| ()), None);
        assert_eq!(fs::read_dir(case.path("empty")).expect("it stays").count(), 0);

        fs::create_dir_all(case.path("repo/.git")).expect("it can be made");
        assert_eq!(case.made_and_unmade("repo", Found::Repository, |_| ()), None);
        assert!(case.path("repo/.git").exists(), "an adopted repository is not touched");
    }

    #[test]
    fn what_somebody_put_into_the_folder_while_it_was_made_stays() {
        let case = Case::new();
        fs::create_dir(case.path("empty")).expect("it can be made");
        for (name, found) in [("new/a", Found::Nothing), ("empty", Found::Empty)] {
            let copied = |path: &Path| fs::write(path.join("thesis"), "years of work").expect("it can be written");
            let kept = case.made_and_unmade(name, found, copied).expect("not all goes");
            assert!(kept.contains(name) && kept.ends_with("stays."), "{kept}");
            let left: Vec<_> = fs::read_dir(case.path(name)).expect("it stays").collect();
            assert_eq!(left.len(), 1, "what was made goes: {left:?}");
            assert_eq!(fs::read_to_string(case.path(name).join("thesis")).expect("it stays"), "years of work");
        }
    }
}
