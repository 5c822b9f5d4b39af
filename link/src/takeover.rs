//! How a project's sled is told to make room for another one, by whoever sees the sled's folder.
//!
//! An engine that is killed while it starts a container takes that for one that does not run, and forgets it when it is
//! removed: no question to the engine reaches what runs in it. The folder is mounted from the host, and a socket in it does.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag, fstat},
};
use tokio::net::UnixStream;

/// The name of the socket, in the folder where a sled keeps its journal. Whoever opens it asks the sled to end, as SIGTERM
/// does; nothing is said on it, and it is closed when the sled is gone.
pub const SOCKET: &str = "takeover.sock";

/// How long a sled that is asked to end may take. Who asks is patient for longer.
pub const LIMIT: Duration = Duration::from_secs(8);

/// Asks the sled that runs on this folder to end, and waits until it has: whether there was one.
///
/// # Errors
///
/// With [`ErrorKind::TimedOut`] when it has not ended within `patience`, with [`ErrorKind::WouldBlock`] when too many ask at once;
/// otherwise when the folder cannot be looked at.
pub async fn ask(folder: &Path, patience: Duration) -> io::Result<bool> {
    let mut sled = match connect(folder).await {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(false),
        connected => connected?,
    };
    let mut nothing = tokio::io::sink();
    match tokio::time::timeout(patience, tokio::io::copy(&mut sled, &mut nothing)).await {
        Ok(Err(error)) if error.kind() != ErrorKind::ConnectionReset => Err(error),
        Ok(_) => Ok(true),
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, format!("it has not ended within {patience:?}"))),
    }
}

async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let reach = async || UnixStream::connect(by_descriptor(&socket(folder)?)).await;
    match reach().await {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            open_up(folder)?;
            reach().await
        }
        reached => reached,
    }
}

/// What has the socket's name, if it is one.
fn socket(folder: &Path) -> io::Result<OwnedFd> {
    let folder = File::open(folder)?;
    // Programs of the project may put anything there, at any time: what was looked at is what is opened.
    let socket = openat(&folder, SOCKET, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&socket)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(socket)
}

/// Gives the owner the rights back that a program of the project has taken away. The folder itself, a mount there, cannot be
/// exchanged from within its container.
fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    fs::set_permissions(by_descriptor(&socket(folder)?), Permissions::from_mode(0o600))
}

/// A path that is short however long the socket's own is.
fn by_descriptor(socket: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(socket.as_raw_fd().to_string())
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;
    use tokio::net::UnixListener;

    use super::*;

    /// Longer than a socket's path may be.
    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix(&"long-".repeat(30)).tempdir().expect("a folder")
    }

    fn listener(folder: &Path) -> UnixListener {
        let folder = OwnedFd::from(File::open(folder).expect("the folder"));
        UnixListener::bind(by_descriptor(&folder).join(SOCKET)).expect("a listener")
    }

    #[tokio::test]
    async fn whoever_asks_waits_until_the_sled_is_gone() {
        let folder = folder();
        let sled = listener(folder.path());
        let asked = tokio::spawn({
            let path = folder.path().to_owned();
            async move { ask(&path, Duration::from_mins(1)).await }
        });
        let (connection, _) = sled.accept().await.expect("it is asked");
        tokio::task::yield_now().await;
        assert!(!asked.is_finished());
        drop((connection, sled));
        assert!(asked.await.expect("it ends").expect("it was asked"));
        // What the sled leaves behind is nobody.
        assert!(!ask(folder.path(), Duration::from_mins(1)).await.expect("it is looked at"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_end_is_not_waited_for_for_ever() {
        let folder = folder();
        let _sled = listener(folder.path());
        let error = ask(folder.path(), Duration::from_secs(10)).await.expect_err("it stays");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn rights_that_were_taken_away_keep_nobody_from_asking() {
        let folder = folder();
        // Root passes everywhere: for files this thread is somebody else from here on.
        if nix::unistd::geteuid().is_root() {
            let nobody = Uid::from_raw(65_534);
            nix::unistd::chown(folder.path(), Some(nobody), None).expect("root may");
            nix::unistd::setfsuid(nobody);
        }
        for (round, left) in [0o600, 0o400, 0].into_iter().enumerate() {
            let socket = folder.path().join(SOCKET);
            let sled = listener(folder.path());
            fs::set_permissions(&socket, Permissions::from_mode(0o000)).expect("it is ours");
            fs::set_permissions(folder.path(), Permissions::from_mode(left)).expect("it is ours");
            let asked = ask(folder.path(), Duration::from_mins(1));
            let hears = tokio::spawn(async move { drop((sled.accept().await, sled)) });
            assert!(asked.await.expect("it is asked"), "round {round}");
            hears.await.expect("it is heard");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("it is ours");
            fs::remove_file(&socket).expect("it can be removed");
        }
    }

    #[tokio::test]
    async fn what_is_no_socket_is_nobody_and_a_link_is_not_followed() {
        let (folder, elsewhere) = (folder(), folder());
        assert!(!ask(folder.path(), Duration::from_mins(1)).await.expect("nothing is there"));
        let path = folder.path().join(SOCKET);
        fs::write(&path, "a file").expect("it can be written");
        assert!(!ask(folder.path(), Duration::from_mins(1)).await.expect("a file is there"));
        fs::remove_file(&path).expect("it can be removed");
        let other = listener(elsewhere.path());
        std::os::unix::fs::symlink(elsewhere.path().join(SOCKET), &path).expect("a link");
        assert!(!ask(folder.path(), Duration::from_mins(1)).await.expect("a link is there"));
        assert!(futures_util::FutureExt::now_or_never(other.accept()).is_none(), "nobody has come");
        assert!(!ask(&folder.path().join("gone"), Duration::from_mins(1)).await.expect("no folder is nobody's"));
    }
}
