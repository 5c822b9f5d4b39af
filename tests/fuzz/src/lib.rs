//! What must hold for any input at all, at the three doors that strangers' bytes come in by: what people write in a room, the address after
//! `--git`, and what a container sends over the link.
//!
//! Each function takes one input and panics when a rule is broken. `fuzz_targets/` lets libFuzzer look for such an input (`scripts/fuzz`);
//! `tests/replay.rs` gives each the files of its corpus, in every run of the tests.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use bytes::BytesMut;
use link::git::{Frame, FrameDecoder, FrameError};
use link::{Closed, Hello, Limits, Side};
use musher::commands::grammar::{self, Said};
use musher::git::remote::Remote;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Takes one input, and panics when a rule is broken.
pub type Target = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: [(&str, Target); 3] =
    [("chat_grammar", chat_grammar), ("git_remote", git_remote), ("link_frames", link_frames)];

/// A message is a command, a misuse with an answer, or text; what a command prints as is read back as the same command (CMD-1, CHAT-12).
pub fn chat_grammar(input: &[u8]) {
    let Ok(message) = str::from_utf8(input) else { return };
    match grammar::read(message) {
        Said::Command(command) => {
            let shown = command.to_string();
            assert_eq!(
                grammar::parse(shown.strip_prefix('!').unwrap_or(&shown)).as_ref(),
                Ok(&command),
                "{message:?} is shown as {shown:?}"
            );
        }
        Said::Misused(answer) => {
            assert!(!answer.is_empty(), "{message:?} is refused without a word");
            let shows = |c: char| c == '\n' || !c.is_control();
            assert!(answer.chars().all(shows), "the answer to {message:?} has control characters: {answer:?}");
        }
        Said::Text(text) => {
            assert!(!message.trim_start().starts_with('!'), "{message:?} begins as a command and is text");
            assert_eq!(text, message.trim(), "text for the agent is changed");
        }
    }
}

/// An address is refused, or it is one that can be stored, shown, compared and handed to a program (PROJ-3).
pub fn git_remote(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let home = Path::new("/home/ann");
    match Remote::parse(text, home) {
        Ok(remote) => {
            let shown = remote.to_string();
            assert!(!shown.starts_with('-'), "{text:?} is shown as an option: {shown:?}");
            assert!(!shown.chars().any(char::is_control), "{text:?} is shown with control characters: {shown:?}");
            let helper =
                shown.split_once("::").is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric()));
            assert!(!helper, "{text:?} names a helper program: {shown:?}");
            assert_eq!(Remote::parse(&shown, home).ok().as_ref(), Some(&remote), "{text:?} is shown as {shown:?}");
            if let Remote::Web(web) = &remote {
                assert!(!web.host.contains('@') && !web.path.contains(['?', '#']), "{text:?} keeps more than a place");
            }
            if let Remote::Ssh(ssh) = &remote {
                let option = |part: &str| part.starts_with('-');
                assert!(
                    !option(ssh.login()) && !option(&ssh.host) && !option(&ssh.path),
                    "{text:?} passes an option: {ssh:?}"
                );
            }
        }
        Err(refusal) => {
            assert!(!refusal.what.is_empty(), "{text:?} is refused without a word");
            let secret = text.split_once("://").and_then(|(_, rest)| rest.split_once('@')).and_then(|(user, _)| {
                user.split_once(':').map(|(_, secret)| secret).filter(|secret| secret.len() >= 8)
            });
            // A word that every refusal has, such as those of its example, is no secret.
            let in_any = |secret: &str| {
                let others = ["x://", "https://"].map(|other| Remote::parse(other, home).err());
                others.into_iter().flatten().any(|other| other.to_string().contains(secret))
            };
            if let Some(secret) = secret.filter(|secret| !in_any(secret)) {
                assert!(!refusal.to_string().contains(secret), "a refusal repeats a password: {refusal}");
            }
        }
    }
}

/// Whatever a container sends ends the link with a reason or is served; frames of an ssh session decode alike however they are cut.
pub fn link_frames(input: &[u8]) {
    let Some((&cut, wire)) = input.split_first() else { return };
    let whole = decode(wire, wire.len().max(1));
    assert_eq!(whole, decode(wire, usize::from(cut).max(1)), "frames depend on how their bytes are cut");
    if whole.1.is_ok() {
        let mut again = BytesMut::new();
        for frame in &whole.0 {
            frame.encode(&mut again);
        }
        assert_eq!(decode(&again, again.len().max(1)).1, Ok(()), "what was decoded does not encode");
    }
    for side in [Side::Gateway, Side::Sled] {
        talk(side, wire);
    }
}

fn decode(wire: &[u8], piece: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames) = (FrameDecoder::default(), Vec::new());
    for piece in wire.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    let end = decoder.finish();
    (frames, end)
}

/// Says a fitting hello to `side`, then these bytes, then nothing more, and waits for the link's end. Time is the runtime's own and passes at once.
fn talk(side: Side, wire: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be made");
    let closed = runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (mut answers, mut theirs) = tokio::io::split(theirs);
        let peer = async {
            let hello =
                format!("{{\"musher\":{},\"version\":\"0.1.0\",\"role\":\"{}\"}}\n", link::PROTOCOL, side.other());
            let said = async {
                theirs.write_all(hello.as_bytes()).await?;
                theirs.write_all(wire).await?;
                theirs.shutdown().await
            };
            // The link may end before it has heard everything.
            drop(said.await);
        };
        let drain = async {
            let mut heard = vec![0; 4096];
            while matches!(answers.read(&mut heard).await, Ok(1..)) {}
        };
        let run = async {
            match link::open(ours, side, Hello::current(), Router::new(), Limits::default()).await {
                Ok((_link, driver)) => Some(driver.run().await),
                Err(_) => None,
            }
        };
        let all = async { tokio::join!(run, peer, drain).0 };
        tokio::time::timeout(Duration::from_hours(1), all).await.expect("a link whose peer is gone ends")
    });
    assert!(
        matches!(closed, None | Some(Closed::Peer | Closed::Protocol(_) | Closed::Io(_) | Closed::Silent)),
        "{closed:?}"
    );
}
