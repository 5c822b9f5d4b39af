//! `sled connect`: standard input and output of this process, which must be pipes, become a link's byte stream. The gateway starts it by
//! the engine's exec, which lasts as long as this process.
//!
//! It only hands them over and waits; nothing that passes goes through it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, fcntl};

use crate::handing;

/// How long a sled that is just starting may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Time between two looks at a sled that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much the engine's two pipes shall hold, in bytes: the most that anybody may ask for. A transfer then goes on while a
/// process on its way waits for a processor.
const PIPE: i32 = 1024 * 1024;

/// Hands both to the sled, and stays until that closes the link.
pub fn run(socket: &Path) -> anyhow::Result<()> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let both = [stdin.as_fd(), stdout.as_fd()];
    for pipe in both {
        let kind = File::from(pipe.try_clone_to_owned()?).metadata()?.file_type();
        anyhow::ensure!(
            kind.is_fifo(),
            "its input and output must be pipes: it is for the gateway, which starts it by the engine's exec"
        );
        // It works as well with what there is: a user may have many pipes.
        let _size = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
    }
    let mut sled = wait_for(socket).with_context(|| format!("no sled listens on {}", socket.display()))?;
    handing::give(&sled, both).context("the sled does not take the link's byte stream")?;
    // It says nothing; this ends when it has closed its side, or is gone.
    match io::copy(&mut sled, &mut io::sink()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("the sled cannot be waited for"),
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
