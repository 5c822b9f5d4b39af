//! `sled connect`: standard input and output of this process become a link's byte stream. The gateway starts it by the engine's exec.
//!
//! It only copies; it must not look at what passes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, fcntl};

/// How long a sled that is just starting may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Time between two looks at a sled that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much is passed on at once, in bytes: what a pipe holds.
const BUFFER: usize = 64 * 1024;

/// How much the engine's two pipes shall hold, in bytes: the most that anybody may ask for. A transfer then goes on while a
/// process on its way waits for a processor.
const PIPE: i32 = 1024 * 1024;

/// Copies until the sled closes its side. The end of standard input is passed on to the sled, which may go on talking.
pub fn run(socket: &Path) -> anyhow::Result<()> {
    let sled = wait_for(socket).with_context(|| format!("no sled listens on {}", socket.display()))?;
    let (mut from_sled, mut to_sled) = (sled.try_clone()?, sled);
    // Unbuffered on both sides: what comes is passed on at once.
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for pipe in [&stdin, &stdout] {
        // It works as well with what there is: another kind of stream, or a user who has many pipes.
        let _size = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
    }
    std::thread::spawn(move || {
        // Whatever ends the input, an error too, ends this direction only.
        copy(&mut stdin, &mut to_sled).ok();
        to_sled.shutdown(Shutdown::Write).ok();
    });
    // The process ends with this direction: a sled that has closed its side has nothing more to hear.
    match copy(&mut from_sled, &mut stdout) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error).context("the link's byte stream failed"),
    }
}

/// Passes on what comes, as it comes. Not `io::copy`: its splice(2) was seen to sit on bytes that had come.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            outcome => return outcome,
        }
    }
}
