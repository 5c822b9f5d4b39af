//! Removes a folder with whatever a container's programs have made in it: as deep, as long in its names and as closed as
//! the disk allows.
//!
//! It goes from folder to folder by their descriptors, never by a path, which may be longer than the system takes; it
//! keeps one folder open at a time, and no stack grows with the depth. No link is followed. The way up is `..`: a folder
//! that somebody has moved meanwhile would lead elsewhere by it, so that each is known again by its identity. Nothing
//! moves folders under us in good order: a project's container is removed before its files are.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io, mem,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat},
    unistd::{UnlinkatFlags, unlinkat},
};

/// How many inner folders of one folder are remembered at a time: whoever makes millions gets no memory for them.
const AT_ONCE: usize = 1024;
/// On how many levels that is done; below them each remembers the folder that it is in alone.
const REMEMBERED: usize = 64;

/// Removes a file or a tree; one that is not there is fine. Links are removed, not followed. Folders that their owner
/// has closed to himself are opened first: no program in a container may keep us from tidying up.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name that could be removed"));
    };
    let name = CString::new(name.as_bytes())?;
    let parent = match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if !removed(&parent, &name)? {
        let Some(folder) = open(&parent, &name)? else { return Ok(()) };
        empty(folder)?;
        gone(unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir))?;
    }
    Ok(())
}

/// Which folder it is, wherever it is moved to.
type Identity = (u64, u64);

fn identity(stat: &FileStat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// A folder on the way down, and what of it is still to be removed.
struct Level {
    identity: Identity,
    inner: Inner,
}

/// Folders in a folder.
struct Inner {
    /// Those that were seen. The last is the one that is being removed.
    names: Vec<CString>,
    /// Whether there may be more.
    more: bool,
}

fn empty(mut folder: Dir) -> io::Result<()> {
    let mut above: Vec<Level> = Vec::new();
    let mut inner = sweep(&mut folder)?;
    loop {
        if let Some(name) = inner.names.last() {
            let Some(mut below) = open(&folder, name)? else {
                inner.names.pop();
                continue;
            };
            let inner_of_below = sweep(&mut below)?;
            if above.len() >= REMEMBERED {
                // The others are looked for again on the way back.
                inner.more |= inner.names.len() > 1;
                inner.names.drain(..inner.names.len() - 1);
                inner.names.shrink_to_fit();
            }
            let identity = identity(&fstat(&folder)?);
            above.push(Level { identity, inner: mem::replace(&mut inner, inner_of_below) });
            folder = below;
        } else if inner.more {
            inner = sweep(&mut folder)?;
        } else {
            let Some(level) = above.pop() else { return Ok(()) };
            let Some(parent) = open(&folder, c"..")?.filter(|parent| is(parent, level.identity)) else {
                return Err(io::Error::other("a folder was moved while it was removed"));
            };
            (folder, inner) = (parent, level.inner);
            if let Some(name) = inner.names.pop() {
                gone(unlinkat(&folder, name.as_c_str(), UnlinkatFlags::RemoveDir))?;
            }
        }
    }
}

fn is(folder: &Dir, known: Identity) -> bool {
    fstat(folder).is_ok_and(|stat| identity(&stat) == known)
}

/// Removes all of a folder that is no folder, and gives the folders in it.
fn sweep(folder: &mut Dir) -> io::Result<Inner> {
    let mut names = Vec::new();
    // While it is read, only a copy of its descriptor is free to remove by.
    let by = folder.as_fd().try_clone_to_owned()?;
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." || removed(&by, name)? {
            continue;
        }
        names.push(name.to_owned());
        if names.len() == AT_ONCE {
            return Ok(Inner { names, more: true });
        }
    }
    Ok(Inner { names, more: false })
}

/// Removes what has this name unless it is a folder; whether it is gone.
fn removed(from: impl AsFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(from, name, UnlinkatFlags::NoRemoveDir) {
        // What the kernel says of a folder, on every filesystem.
        Err(Errno::EISDIR) => Ok(false),
        other => gone(other).map(|()| true),
    }
}

/// What was not there any more is as good as removed.
fn gone(removed: nix::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Opens a folder for reading and for removing from it, also one that its owner has closed; none if it is gone.
fn open(from: impl AsFd, name: &CStr) -> io::Result<Option<Dir>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let once = || openat(&from, name, flags, Mode::empty());
    let opened = match once() {
        Err(Errno::EACCES) => {
            fchmodat(&from, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            once()
        }
        other => other,
    };
    let folder = match opened {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened?,
    };
    let mode = Mode::from_bits_truncate(fstat(&folder)?.st_mode);
    if !mode.contains(Mode::S_IRWXU) {
        match fchmod(&folder, mode | Mode::S_IRWXU) {
            // Somebody else's; whether it can be removed from all the same, that tells.
            Err(Errno::EPERM) => {}
            other => other?,
        }
    }
    Ok(Some(Dir::from_fd(folder)?))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{
            fd::OwnedFd,
            unix::fs::{PermissionsExt, symlink},
        },
        path::PathBuf,
    };

    use nix::{
        sys::stat::mkdirat,
        unistd::{Gid, Uid, chown, geteuid, setfsgid, setfsuid},
    };

    use super::*;

    /// Longer than any path that the system takes, together.
    const LONG: usize = 20;

    /// Runs as somebody whom the modes of files bind, which root is not, in a folder of theirs.
    fn bound(test: impl FnOnce(&Path) + Send + 'static) {
        // In memory where there is such a place: some disks take a minute for twenty thousand folders.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a temporary folder can be made");
        let path = folder.path().to_owned();
        // These ids are the thread's own, and its stack is small.
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            if geteuid().is_root() {
                let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
                chown(&path, Some(uid), Some(gid)).expect("root may");
                setfsgid(gid);
                setfsuid(uid);
            }
            test(&path);
        });
        thread.expect("it runs").join().expect("the test succeeds");
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing is left");
    }

    fn folder(path: &Path) -> OwnedFd {
        fs::create_dir_all(path).expect("it can be made");
        File::open(path).expect("it can be opened").into()
    }

    /// A folder in a folder in a folder.
    fn deepen(mut at: OwnedFd, name: &str, levels: usize) -> OwnedFd {
        for _ in 0..levels {
            mkdirat(&at, name, Mode::S_IRWXU).expect("it can be made");
            at = openat(&at, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).expect("it can be opened");
        }
        at
    }

    fn file(at: &OwnedFd, name: &str) {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_EXCL;
        drop(openat(at, name, flags, Mode::S_IRUSR).expect("it can be made"));
    }

    fn close(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_closed_folder_beyond_the_longest_path_is_removed() {
        bound(|base| {
            let tree = base.join("tree");
            let last = deepen(folder(&tree), &"x".repeat(255), LONG);
            file(&last, "file");
            fchmod(&last, Mode::S_IRUSR | Mode::S_IXUSR).expect("it is ours");
            remove_tree(&tree).expect("it can be removed");
            assert!(!tree.exists());
        });
    }

    #[test]
    fn twenty_thousand_folders_in_each_other_are_removed_on_a_small_stack() {
        bound(|base| {
            let tree = base.join("tree");
            file(&deepen(folder(&tree), "d", 20_000), "file");
            remove_tree(&tree).expect("it can be removed");
        });
    }

    #[test]
    fn more_folders_than_are_remembered_are_removed() {
        bound(|base| {
            let tree = base.join("tree");
            let wide = folder(&tree);
            for n in 0..=(2 * AT_ONCE) {
                file(&deepen(wide.try_clone().expect("it can be cloned"), &format!("{n}"), 1), "file");
            }
            remove_tree(&tree).expect("it can be removed");
        });
    }

    #[test]
    fn closed_folders_of_every_kind_are_removed() {
        bound(|base| {
            let tree = base.join("tree");
            for mode in [0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600] {
                let closed = tree.join(format!("{mode:o}/inner/innermost"));
                fs::create_dir_all(&closed).expect("it can be made");
                fs::write(closed.join("file"), "x").expect("it can be written");
                for folder in [&closed, closed.parent().unwrap(), closed.parent().unwrap().parent().unwrap()] {
                    close(folder, mode);
                }
            }
            close(&tree, 0o000);
            remove_tree(&tree).expect("it can be removed");
        });
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        bound(|base| {
            let (tree, outside) = (base.join("tree"), base.join("outside"));
            fs::create_dir_all(tree.join("inner")).expect("it can be made");
            fs::create_dir(&outside).expect("it can be made");
            fs::write(outside.join("kept"), "x").expect("it can be written");
            close(&outside, 0o500);
            for link in ["inner/link", "link"] {
                symlink(&outside, tree.join(link)).expect("a link can be made");
            }
            symlink("nowhere", tree.join("broken")).expect("a link can be made");
            // Where the tree itself is one, too.
            symlink(&outside, base.join("tree-link")).expect("a link can be made");
            remove_tree(&base.join("tree-link")).expect("it can be removed");
            remove_tree(&tree).expect("it can be removed");
            assert!(!base.join("tree-link").exists() && !tree.exists());
            assert!(outside.join("kept").exists(), "what they lead to stays");
            close(&outside, 0o700);
            remove_tree(&outside).expect("it can be removed");
        });
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_removed_and_what_is_not_there_is_fine() {
        bound(|base| {
            let path: PathBuf = base.join("tree");
            fs::write(&path, "x").expect("it can be written");
            remove_tree(&path).expect("it can be removed");
            assert!(!path.exists());
            remove_tree(&path).expect("what is gone is fine");
            remove_tree(&path.join("never/there")).expect("also when its folder is");
            remove_tree(Path::new("/")).expect_err("that is nobody's tree");
        });
    }
}
