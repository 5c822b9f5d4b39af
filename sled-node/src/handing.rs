//! How `sled connect` hands its standard input and output to the sled, over the sled's socket: a link's bytes then go through the
//! engine's pipes and through nobody else's hands.
//!
//! It must not look at what passes through them. Who hands over what is no more trusted than the container itself (invariant 9).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::timeout;

/// The byte that travels with the two. A hello begins with another.
const MARK: u8 = 0;

/// How long the sled waits for the first byte of a newcomer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a newcomer on the sled's socket speaks through.
pub enum Way {
    /// What it reads and what it writes, for as long as the socket stays open.
    Pipes(Receiver, Sender),
    /// The socket itself; this was the first byte.
    Socket(u8),
}

/// Hands both over, to be read from and to be written to.
pub fn give(socket: impl AsFd, both: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&both)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&[MARK])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Hears how a newcomer wants to speak.
pub async fn take(socket: &UnixStream) -> io::Result<Way> {
    let hearing = socket.async_io(Interest::READABLE, || hear(socket));
    let (first, handed) = timeout(PATIENCE, hearing).await??;
    match <[OwnedFd; 2]>::try_from(handed) {
        Ok([input, output]) => Ok(Way::Pipes(Receiver::from_owned_fd(input)?, Sender::from_owned_fd(output)?)),
        Err(none) if none.is_empty() => Ok(Way::Socket(first)),
        Err(other) => {
            Err(io::Error::new(ErrorKind::InvalidData, format!("{} descriptors in place of two", other.len())))
        }
    }
}

/// The first byte, and what came with it.
fn hear(socket: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [MARK];
    let heard = recvmsg(socket, &mut [IoSliceMut::new(&mut first)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if heard.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if heard.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(ErrorKind::InvalidData, "too many descriptors"));
    }
    let handed = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(handed) => Some(handed),
        _ => None,
    });
    Ok((first[0], handed.flatten().collect()))
}
