//! A project's folder on the host: made, and taken back again as far as it was made (invariant 10).

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

use super::{
    Made, Owner, Project, Spec,
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
    let failed = |error| refused("made", &place.path, error);
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

/// Removes what was made of a project's folder, as long as the same folder still stands there.
pub fn unmake(project: &Project, spec: &Spec) -> Result<(), Refusal> {
    let known = project.directory.map(|(identity, _)| identity);
    let same = known.zip(place::identity(&spec.path).ok()).is_some_and(|(known, now)| known.is(now));
    if !same {
        return Ok(());
    }
    failpoint::reach("before", "unmake_folder");
    let unmade = unmake_same(project, spec);
    failpoint::reach("after", "unmake_folder");
    unmade
}

fn unmake_same(project: &Project, spec: &Spec) -> Result<(), Refusal> {
    let failed = |error| refused("removed", &spec.path, error);
    match &project.made {
        Made::Nothing => Ok(()),
        Made::Content { before: Owner { uid, gid } } => {
            removal::remove_content(&spec.path).map_err(failed)?;
            if nix::unistd::geteuid().is_root() {
                chown(&spec.path, Some(*uid), Some(*gid)).map_err(failed)?;
            }
            Ok(())
        }
        Made::Folder { parents } => {
            removal::remove_tree(&spec.path).map_err(failed)?;
            for parent in parents.iter().rev() {
                // One that somebody has put something into meanwhile is theirs by now, and stays.
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// Removes a file or a tree, whatever a container has made of it; one that is not there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    failpoint::reach("before", "remove_tree");
    let removed = removal::remove_tree(path);
    failpoint::reach("after", "remove_tree");
    removed
}

fn refused(what: &str, path: &Path, error: io::Error) -> Refusal {
    Refusal::internal(format!("the folder {} could not be {what}", text::code(&path.to_string_lossy())), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projects::Stage;

    struct Case {
        folder: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
        }

        fn place(&self, name: &str, found: Found) -> Place {
            Place { path: self.folder.path().join(name), found }
        }

        /// Makes a project's folder, fills it, and takes it back.
        fn made_and_unmade(place: &Place) {
            let made = make(place).expect("it can be made");
            let own = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
            let identity = place::identity(&place.path).expect("it is there");
            fs::create_dir_all(place.path.join(".git/objects")).expect("it can be filled");
            let spec = Spec::example(&place.path);
            let project =
                Project { stage: Stage::Undoing, directory: Some((identity, own)), made, ..Project::default() };
            unmake(&project, &spec).expect("it can be taken back");
            unmake(&project, &spec).expect("it can be repeated");
        }
    }

    #[test]
    fn what_was_there_stays_and_what_was_made_goes() {
        let case = Case::new();
        fs::create_dir(case.folder.path().join("roots")).expect("it can be made");
        Case::made_and_unmade(&case.place("roots/a", Found::Nothing));
        assert!(case.folder.path().join("roots").exists(), "a root that was there stays, also empty");
        assert!(!case.folder.path().join("roots/a").exists());

        Case::made_and_unmade(&case.place("new/deep/a", Found::Nothing));
        assert!(!case.folder.path().join("new").exists(), "folders that were made on the way go");

        fs::create_dir(case.folder.path().join("empty")).expect("it can be made");
        Case::made_and_unmade(&case.place("empty", Found::Empty));
        assert_eq!(fs::read_dir(case.folder.path().join("empty")).expect("it stays").count(), 0);

        fs::create_dir(case.folder.path().join("repo")).expect("it can be made");
        Case::made_and_unmade(&case.place("repo", Found::Repository));
        assert!(case.folder.path().join("repo/.git").exists(), "an adopted repository is not touched");
    }
}
