//! Locks of refs that a git has left which was killed with everything else.
//!
//! Whoever works in the project may have put anything in their place: no symbolic link is followed, and no more than so much is looked at.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::plumbing::Fault;

/// How many folders lie in one another below ours: `turns/<number>`.
const DEPTH: u32 = 2;

/// How many names are looked at; the records are about a hundred refs.
const NAMES: usize = 10_000;

/// Removes the locks of the refs that are ours alone. No git that works on them may live.
pub fn remove_left(git_dir: &Path) -> Result<(), Fault> {
    removed(git_dir).map_err(|errno| Fault::of(&git_dir.join("refs/musher"), errno.into()))
}

fn removed(git_dir: &Path) -> nix::Result<()> {
    let git_dir = Dir::open(git_dir, FLAGS, Mode::empty())?;
    let Some(refs) = folder(&git_dir, c"refs")? else { return Ok(()) };
    let Some(ours) = folder(&refs, c"musher")? else { return Ok(()) };
    remove_in(ours, DEPTH, &mut NAMES.clone())
}

const FLAGS: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn remove_in(mut within: Dir, depth: u32, left: &mut usize) -> nix::Result<()> {
    let (mut locks, mut folders): (Vec<CString>, Vec<CString>) = Default::default();
    for entry in within.iter() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            // No ref's name ends like this.
            name if name.ends_with(b".lock") => locks.push(entry.file_name().to_owned()),
            _ if matches!(entry.file_type(), Some(Type::Directory) | None) => {
                folders.push(entry.file_name().to_owned());
            }
            _ => {}
        }
    }
    for lock in locks {
        match unlinkat(&within, lock.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            // A folder is no lock of git's.
            Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    if depth > 0 {
        for name in folders {
            if let Some(folder) = folder(&within, &name)? {
                remove_in(folder, depth - 1, left)?;
            }
        }
    }
    Ok(())
}

/// A folder in another; `None` where there is none.
fn folder(within: impl AsFd, name: &CStr) -> nix::Result<Option<Dir>> {
    match Dir::openat(within, name, FLAGS, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn locks_of_ours_go_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let git_dir = folder.path().join("git");
        let ours = git_dir.join("refs/musher");
        // Nothing is there yet.
        fs::create_dir(&git_dir).unwrap();
        remove_left(&git_dir).unwrap();
        for inner in ["refs/musher/turns/00000001", "refs/musher/turns/folder.lock", "refs/heads", "outside"] {
            fs::create_dir_all(git_dir.join(inner)).unwrap();
        }
        let stay = [
            "refs/musher/latest",
            "refs/musher/turns/00000001/before",
            "refs/musher/turns/folder.lock/x.lock",
            "refs/heads/main.lock",
            "outside/x.lock",
            "packed-refs.lock",
        ];
        let go = ["refs/musher/latest.lock", "refs/musher/turns/00000001/after.lock", "refs/musher/turns/link.lock"];
        for name in stay.into_iter().chain(go).filter(|name| !name.ends_with("link.lock")) {
            fs::write(git_dir.join(name), "").unwrap();
        }
        symlink(git_dir.join("outside"), ours.join("turns/00000002")).unwrap();
        symlink(git_dir.join("outside/x.lock"), ours.join("turns/link.lock")).unwrap();
        remove_left(&git_dir).unwrap();
        assert!(stay.iter().all(|name| git_dir.join(name).exists()));
        assert!(go.iter().all(|name| git_dir.join(name).symlink_metadata().is_err()));

        // A link in the place of our folder itself.
        fs::remove_dir_all(&ours).unwrap();
        symlink(git_dir.join("outside"), &ours).unwrap();
        remove_left(&git_dir).unwrap();
        assert!(git_dir.join("outside/x.lock").exists());
    }
}
