//! The way of a project's git to its remote: where it begins in the container, the routes that the gateway serves for it, and the frames
//! in which an ssh session's output comes back (SEC-2).
//!
//! Shapes and framing only. Which remote a project has, and what may be run there, is the gateway's to say.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The port of the container's loopback on which the sled takes git's requests: beside the model's, below the ephemeral range.
/// What is asked there as `/x?y` reaches the gateway as `/git/x?y`.
pub const PORT: u16 = 2224;

/// The routes, as the gateway sees them.
pub mod paths {
    /// What the sled puts before a path.
    pub const PREFIX: &str = "/git";
    /// Smart HTTP of a web remote; `<authority>/<path of the repository>/<service's path>` follows.
    pub const WEB: &str = "/git/web/";
    /// `POST` with [`SshRequest`](super::SshRequest) as the query and the client's standard input as the body, for `git-upload-pack`. Nothing of the body
    /// comes before the answer's head. The answer 200 has frames as its body, which come while the request's still goes on; any other status one sentence
    /// as `text/plain`, and 404 means that this is not the project's remote.
    pub const SSH_UPLOAD_PACK: &str = "/git/ssh/git-upload-pack";
    /// The same for `git-receive-pack`.
    pub const SSH_RECEIVE_PACK: &str = "/git/ssh/git-receive-pack";
}

/// What a git client asks of a server: the only two programs that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Service {
    /// The server gives: `git fetch`, `git clone`.
    #[serde(rename = "git-upload-pack")]
    UploadPack,
    /// The server takes: `git push`.
    #[serde(rename = "git-receive-pack")]
    ReceivePack,
}

impl Service {
    /// The service of that name; `None` for any other program.
    pub fn named(name: &str) -> Option<Self> {
        [Self::UploadPack, Self::ReceivePack].into_iter().find(|service| service.name() == name)
    }

    /// Its name, which is the server's program.
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    /// The gateway's route for its session by ssh.
    pub fn ssh_path(self) -> &'static str {
        match self {
            Self::UploadPack => paths::SSH_UPLOAD_PACK,
            Self::ReceivePack => paths::SSH_RECEIVE_PACK,
        }
    }
}

/// Query of a session by ssh: the place as the client named it. All of it is the container's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshRequest {
    /// Whom to be there; absent when the remote's URL names nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The host, an IPv6 address without brackets.
    pub host: String,
    /// Its port; absent when the remote's URL names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The repository's path as the server is to see it: `/srv/x.git` of a URL, `x.git` of the scp-like form.
    pub path: String,
    /// `GIT_PROTOCOL`, by which git asks for a newer form of its protocol: `version=2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

impl SshRequest {
    /// Path and query of this request for `service`, as the gateway sees them.
    ///
    /// # Errors
    /// None that such a value can bring about; the encoding of queries has them for other shapes.
    pub fn path_and_query(&self, service: Service) -> Result<String, serde_urlencoded::ser::Error> {
        Ok(format!("{}?{}", service.ssh_path(), serde_urlencoded::to_string(self)?))
    }
}

/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Kind and length, before each payload.
const HEADER: usize = 5;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// A piece of what a remote program says. On the wire: one byte for the kind, the payload's length as a big-endian `u32`, the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended with this code; nothing comes after it.
    Exit(u32),
}

impl Frame {
    /// Appends the frame to `wire`. Output longer than [`MAX_PAYLOAD`] becomes several frames, none at all becomes no frame.
    pub fn encode(&self, wire: &mut BytesMut) {
        let (kind, payload) = match self {
            Self::Stdout(payload) => (STDOUT, payload),
            Self::Stderr(payload) => (STDERR, payload),
            Self::Exit(code) => return put(wire, EXIT, &code.to_be_bytes()),
        };
        for piece in payload.chunks(MAX_PAYLOAD) {
            put(wire, kind, piece);
        }
    }
}

fn put(wire: &mut BytesMut, kind: u8, payload: &[u8]) {
    wire.reserve(HEADER + payload.len());
    wire.put_u8(kind);
    wire.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    wire.put_slice(payload);
}

/// Bytes that are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Of no kind that there is.
    #[error("a frame is of unknown kind {0}")]
    Kind(u8),
    /// Its length is more than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(u32),
    /// An exit code that is not of four bytes.
    #[error("an exit code has {0} bytes in place of four")]
    ExitLength(u32),
    /// Something after the exit code.
    #[error("something came after the exit code")]
    AfterExit,
    /// The stream ended before the exit code.
    #[error("the stream ended before the exit code")]
    Truncated,
}

/// Takes frames out of bytes that come in any pieces. Holds what of one frame has come, besides what it was fed and not yet asked for.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    wire: BytesMut,
    exited: bool,
}

impl FrameDecoder {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has come.
    ///
    /// # Errors
    /// [`FrameError::Kind`], [`FrameError::TooLong`], [`FrameError::ExitLength`] as soon as such a header is there, before its payload;
    /// [`FrameError::AfterExit`]. After an error the rest means nothing.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.exited && !self.wire.is_empty() {
            return Err(FrameError::AfterExit);
        }
        let Some(&[kind, a, b, c, d]) = self.wire.first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        match kind {
            STDOUT | STDERR if length as usize > MAX_PAYLOAD => return Err(FrameError::TooLong(length)),
            EXIT if length != 4 => return Err(FrameError::ExitLength(length)),
            STDOUT | STDERR | EXIT => {}
            unknown => return Err(FrameError::Kind(unknown)),
        }
        if self.wire.len() < HEADER + length as usize {
            return Ok(None);
        }
        self.wire.advance(HEADER);
        let mut payload = self.wire.split_to(length as usize).freeze();
        Ok(Some(match kind {
            STDOUT => Frame::Stdout(payload),
            STDERR => Frame::Stderr(payload),
            _ => {
                self.exited = true;
                Frame::Exit(payload.get_u32())
            }
        }))
    }

    /// Says whether the stream may end here: after the exit code, and nowhere else.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] before the exit code, [`FrameError::AfterExit`] when something came after it.
    pub fn finish(&self) -> Result<(), FrameError> {
        match (self.exited, self.wire.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(FrameError::AfterExit),
            (false, _) => Err(FrameError::Truncated),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn wire(frames: &[Frame]) -> BytesMut {
        let mut wire = BytesMut::new();
        for frame in frames {
            frame.encode(&mut wire);
        }
        wire
    }

    /// All frames of bytes that come in pieces of the given lengths, again and again, and how their stream ends.
    fn decode(bytes: &[u8], lengths: &[usize]) -> (Vec<Frame>, Result<(), FrameError>) {
        let (mut decoder, mut frames, mut rest) = (FrameDecoder::default(), Vec::new(), bytes);
        for length in lengths.iter().cycle() {
            let (piece, later) = rest.split_at((*length).clamp(1, rest.len().max(1)).min(rest.len()));
            decoder.feed(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Err(error)),
                }
            }
            if later.is_empty() {
                break;
            }
            rest = later;
        }
        let end = decoder.finish();
        (frames, end)
    }

    /// The two outputs, each as one, and the code.
    fn said(frames: &[Frame]) -> (Vec<u8>, Vec<u8>, Option<u32>) {
        let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
        for frame in frames {
            match frame {
                Frame::Stdout(payload) => stdout.extend_from_slice(payload),
                Frame::Stderr(payload) => stderr.extend_from_slice(payload),
                Frame::Exit(exit) => code = Some(*exit),
            }
        }
        (stdout, stderr, code)
    }

    #[test]
    fn the_form_on_the_wire() {
        let frames =
            [Frame::Stdout("ab".into()), Frame::Stdout(Bytes::new()), Frame::Stderr("c".into()), Frame::Exit(258)];
        assert_eq!(&wire(&frames)[..], b"\x01\0\0\0\x02ab\x02\0\0\0\x01c\x03\0\0\0\x04\0\0\x01\x02");
    }

    #[test]
    fn long_output_is_cut_into_frames() {
        let long = Bytes::from(vec![7; 3 * MAX_PAYLOAD + 1]);
        let (frames, end) = decode(&wire(&[Frame::Stdout(long.clone()), Frame::Exit(0)]), &[10_000]);
        assert_eq!((frames.len(), end), (5, Ok(())));
        assert_eq!(said(&frames), (long.to_vec(), Vec::new(), Some(0)));
    }

    #[test]
    fn hostile_bytes_are_typed_errors_before_their_payload_comes() {
        let table: [(&[u8], FrameError); 9] = [
            (b"", FrameError::Truncated),
            (b"\x01\0\0", FrameError::Truncated),
            (b"\x01\0\0\0\x05abc", FrameError::Truncated),
            (b"\x01\0\x01\0\x01", FrameError::TooLong(65537)),
            (b"\x02\xff\xff\xff\xff", FrameError::TooLong(u32::MAX)),
            (b"\x03\0\0\0\x05", FrameError::ExitLength(5)),
            (b"\x00\0\0\0\0", FrameError::Kind(0)),
            (b"HTTP/1.1", FrameError::Kind(b'H')),
            (b"\x03\0\0\0\x04\0\0\0\0\x01", FrameError::AfterExit),
        ];
        for (bytes, expected) in table {
            assert_eq!(decode(bytes, &[usize::MAX]).1, Err(expected), "{bytes:?}");
        }
        assert_eq!(decode(&[&b"\x01\0\x01\0\0"[..], &vec![0; MAX_PAYLOAD]].concat(), &[999]).0.len(), 1);
    }

    #[test]
    fn a_place_survives_the_query() {
        let request = SshRequest {
            user: Some("g&it".to_owned()),
            host: "::1".to_owned(),
            port: Some(2022),
            path: "/a b/'x'%2f&host=evil\n+ä".to_owned(),
            protocol: Some("version=2".to_owned()),
        };
        for request in [SshRequest { user: None, port: None, protocol: None, ..request.clone() }, request] {
            let uri: http::Uri = request.path_and_query(Service::UploadPack).unwrap().parse().unwrap();
            assert_eq!(uri.path(), "/git/ssh/git-upload-pack");
            assert_eq!(axum::extract::Query::<SshRequest>::try_from_uri(&uri).unwrap().0, request);
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            vec(any::<u8>(), 0..300).prop_map(|payload| Frame::Stdout(payload.into())),
            vec(any::<u8>(), 0..300).prop_map(|payload| Frame::Stderr(payload.into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn in_whatever_pieces_they_come_the_frames_are_the_same(
            frames in vec(frame(), 0..12),
            code in any::<u32>(),
            lengths in vec(1..70_usize, 1..8),
        ) {
            let frames = [frames, vec![Frame::Exit(code)]].concat();
            let (decoded, end) = decode(&wire(&frames), &lengths);
            prop_assert_eq!(end, Ok(()));
            prop_assert_eq!(said(&decoded), said(&frames));
            let (whole, _) = decode(&wire(&frames), &[usize::MAX]);
            prop_assert_eq!(decoded, whole);
        }

        #[test]
        fn any_bytes_come_to_the_same_in_any_pieces(bytes in vec(prop_oneof![Just(0), 0..5_u8, any::<u8>()], 0..200), lengths in vec(1..9_usize, 1..8)) {
            let (whole, end) = decode(&bytes, &[usize::MAX]);
            let (pieces, pieces_end) = decode(&bytes, &lengths);
            prop_assert_eq!(end, pieces_end);
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn a_cut_stream_is_never_whole(frames in vec(frame(), 0..4), cut in any::<prop::sample::Index>()) {
            let whole = wire(&[frames, vec![Frame::Exit(0)]].concat());
            prop_assert_eq!(decode(&whole[..cut.index(whole.len())], &[7]).1, Err(FrameError::Truncated));
        }
    }
}
