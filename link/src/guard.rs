//! The guard between the byte stream and yamux: it looks at every frame header that comes in, stops what yamux would not
//! survive or bound, and tells the link at once how and when its stream ended.
//!
//! It must not change a byte.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mux::{Closed, Shared};

/// Length of a yamux frame header, in bytes.
pub(crate) const HEADER: usize = 12;

/// Largest data frame that a peer may send, in bytes. Ours are no longer with their header; yamux would reserve up to 1 MiB on a header's word.
const MAX_FRAME: u32 = 64 * 1024;

/// Largest credit of one window update: no honest receiver grants more than its whole window, which grows to some MiB.
/// yamux adds it to a stream's first window without a check.
const MAX_CREDIT: u32 = 1024 * 1024 * 1024;

/// A byte stream whose inbound half is checked frame by frame.
pub(crate) struct Guard<T> {
    io: T,
    shared: Arc<Shared>,
    frames: Frames,
}

impl<T> Guard<T> {
    pub(crate) fn new(io: T, shared: Arc<Shared>) -> Self {
        Self { io, shared, frames: Frames::default() }
    }
}

/// What the byte stream's error says of the link: whoever writes to a peer that is gone finds out before it reads the end.
fn reason(error: &std::io::Error) -> Closed {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Closed::Peer,
        other => Closed::Io(other),
    }
}

/// Where in the sequence of frames the inbound bytes are.
#[derive(Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    body: usize,
}

impl Frames {
    /// Takes the next bytes; an error names the first rule that one of the frames breaks.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let skip = self.body.min(bytes.len());
            self.body -= skip;
            bytes = &bytes[skip..];
            let take = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == HEADER {
                self.have = 0;
                self.body = check(&self.header)?;
            }
        }
        Ok(())
    }
}

/// Checks one frame header and gives the length of the body that follows it.
fn check(header: &[u8; HEADER]) -> Result<usize, Closed> {
    let [version, kind, _, _, _, _, _, _, length @ ..] = *header;
    let length = u32::from_be_bytes(length);
    match (version, kind) {
        (0, 0) if length <= MAX_FRAME => Ok(length as usize),
        (0, 0) => Err(Closed::Protocol("a data frame is too long")),
        (0, 1) if length <= MAX_CREDIT => Ok(0),
        (0, 1) => Err(Closed::Protocol("a window update grants too much")),
        (0, 2) => Ok(0),
        (0, 3) => Err(Closed::Peer),
        (0, _) => Err(Closed::Protocol("a frame is of no known kind")),
        (_, _) => Err(Closed::Protocol("a frame is of no known version")),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        // A stream that always has bytes must let other tasks run; not every T sees to that itself.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        let this = &mut *self;
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        turn.made_progress();
        let fresh = &buf.filled()[before..];
        let ended = match &read {
            Err(error) => Err(reason(error)),
            Ok(()) if fresh.is_empty() && buf.remaining() > 0 => Err(Closed::Peer),
            Ok(()) => this.frames.feed(fresh),
        };
        this.shared.heard();
        if let Err(reason) = ended {
            this.shared.close(reason.clone());
            return Poll::Ready(Err(std::io::Error::other(reason)));
        }
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(self.noted(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.io).poll_flush(cx));
        Poll::Ready(self.noted(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T> Guard<T> {
    fn noted<V>(&self, outcome: std::io::Result<V>) -> std::io::Result<V> {
        if let Err(error) = &outcome {
            self.shared.close(reason(error));
        }
        outcome
    }
}
