//! The hello: one bounded JSON line that each side writes before anything else, so that two versions that cannot
//! speak find out at once, and noise on the byte stream (a shell's complaint, a web page) is shown for what it is.
//!
//! It must not read a byte past its line: what follows belongs to yamux.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Side;

/// The protocol that this build speaks. Raised by every change that an older peer would not understand: 2 has permission questions and
/// events of kinds that 1 does not know; a sled that speaks 1 never asks, whatever a turn's `permissions` say.
pub const PROTOCOL: u32 = 2;

/// Longest hello line, in bytes.
const MAX_LINE: usize = 4096;

/// How many bytes of noise an error shows.
const EXCERPT: usize = 200;

/// What one side says of itself when the link opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The protocol it speaks; [`PROTOCOL`] for this build.
    pub protocol: u32,
    /// Its version, for people: at most 64 of letters, digits, `.`, `+`, `-`.
    pub version: String,
}

impl Hello {
    /// This build's own hello.
    pub fn current() -> Self {
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// The line as it stands on the wire; unknown fields are let pass for later versions.
#[derive(Serialize, Deserialize)]
struct Line {
    musher: u32,
    version: String,
    role: Side,
}

/// Why a link did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The two sides' protocols do not fit.
    #[error(
        "the gateway is version {} (protocol {}) and the sled is version {} (protocol {}): update the {update}",
        gateway.version, gateway.protocol, sled.version, sled.protocol
    )]
    Version {
        /// The gateway's hello.
        gateway: Hello,
        /// The sled's hello.
        sled: Hello,
        /// Which of them is too old.
        update: Side,
    },
    /// The other end is the same side as this one.
    #[error("a {0} answered where the other side of the link was expected")]
    Role(Side),
    /// What came is no hello.
    #[error("expected a hello, got \"{excerpt}\"")]
    Garbage {
        /// The beginning of it, escaped to printable ASCII and bounded.
        excerpt: String,
    },
    /// The stream ended before a hello came.
    #[error("the other side closed the stream without a word")]
    Silent,
    /// No whole hello came in time.
    #[error("no hello within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The stream failed.
    #[error("the stream failed before the hello")]
    Io(#[from] std::io::Error),
}

/// Says `own`, hears the peer's, and checks that the two can work together.
pub(crate) async fn exchange<T>(io: &mut T, side: Side, own: &Hello, limit: Duration) -> Result<Hello, OpenError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let line = Line { musher: own.protocol, version: own.version.clone(), role: side };
    let mut said = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
    said.push(b'\n');
    let mut heard = Vec::new();
    let (mut reader, mut writer) = tokio::io::split(io);
    let both = async {
        let say = async {
            writer.write_all(&said).await?;
            writer.flush().await
        };
        // A peer that closed after its refusal makes our writing fail: what it said matters more.
        let (said, heard) = tokio::join!(say, read_line(&mut reader, &mut heard));
        heard.and(said)
    };
    let outcome = tokio::time::timeout(limit, both).await;
    let peer = match outcome {
        Ok(Ok(())) => parse(&heard)?,
        Ok(Err(_)) | Err(_) if heard.first().is_some_and(|first| *first != b'{') => {
            return Err(garbage(&heard));
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(if heard.is_empty() { OpenError::Silent } else { garbage(&heard) });
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(garbage(&heard));
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Err(OpenError::Timeout(limit)),
    };
    if peer.role != side.other() {
        return Err(OpenError::Role(peer.role));
    }
    let peer = Hello { protocol: peer.musher, version: peer.version };
    let (gateway, sled) = match side {
        Side::Gateway => (own, &peer),
        Side::Sled => (&peer, own),
    };
    match misfit(gateway.protocol, sled.protocol) {
        Some(update) => Err(OpenError::Version { gateway: gateway.clone(), sled: sled.clone(), update }),
        None => Ok(peer),
    }
}

/// Which side is too old, if the two do not fit: a gateway serves sleds of its own protocol and of the one before.
fn misfit(gateway: u32, sled: u32) -> Option<Side> {
    match gateway.checked_sub(sled) {
        Some(0 | 1) => None,
        Some(_) => Some(Side::Sled),
        None => Some(Side::Gateway),
    }
}

/// Reads up to the line's end into `heard`, byte by byte: a buffer would swallow the beginning of yamux.
async fn read_line<R: AsyncRead + Unpin>(reader: &mut R, heard: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        match reader.read_u8().await? {
            b'\n' => return Ok(()),
            _ if heard.len() == MAX_LINE => return Err(std::io::ErrorKind::InvalidData.into()),
            byte => heard.push(byte),
        }
    }
}

fn parse(heard: &[u8]) -> Result<Line, OpenError> {
    let plain = |version: &str| {
        (1..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-".contains(&b))
    };
    match serde_json::from_slice::<Line>(heard) {
        Ok(line) if plain(&line.version) => Ok(line),
        Ok(_) | Err(_) => Err(garbage(heard)),
    }
}

fn garbage(heard: &[u8]) -> OpenError {
    OpenError::Garbage { excerpt: heard[..heard.len().min(EXCERPT)].escape_ascii().to_string() }
}
