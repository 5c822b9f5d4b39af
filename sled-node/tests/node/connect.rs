//! `sled connect`, which makes an engine's exec a link to the sled.

use std::io::{IoSlice, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use link::{Driver, Hello, Limits, Link, Side, SledClient};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::harness::Node;

const PATIENCE: Duration = Duration::from_secs(20);

fn connect(socket: &std::path::Path) -> Command {
    let mut connecting = Command::new(env!("CARGO_BIN_EXE_sled"));
    connecting.args(["connect", "--socket"]).arg(socket);
    connecting.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    connecting
}

/// A link through a process.
async fn link_over(child: &mut Child) -> (Link, Driver) {
    let io = tokio::io::join(child.stdout.take().unwrap(), child.stdin.take().unwrap());
    link::open(io, Side::Gateway, Hello::current(), Router::new(), Limits::default()).await.unwrap()
}

#[tokio::test]
async fn a_link_runs_over_it_and_ends_with_it() {
    let node = Node::start().await;
    let mut child = connect(&node.socket()).spawn().unwrap();
    let (link, driver) = link_over(&mut child).await;
    let driver = tokio::spawn(driver.run());
    assert_eq!(SledClient::new(link.clone()).status().await.unwrap().turn, None);
    link.close();
    driver.await.unwrap();
    // The end of its input reaches the sled, which closes; then it ends too.
    assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_link_ends_when_its_process_is_killed_and_when_its_sled_is() {
    let mut node = Node::start().await;
    let mut killed = connect(&node.socket()).spawn().unwrap();
    let (_link, driver) = link_over(&mut killed).await;
    killed.start_kill().unwrap();
    timeout(PATIENCE, driver.run()).await.expect("the sled has closed its ends");

    let mut left = connect(&node.socket()).spawn().unwrap();
    let (_link, driver) = link_over(&mut left).await;
    node.signal(nix::sys::signal::Signal::SIGKILL);
    node.ended().await;
    timeout(PATIENCE, driver.run()).await.expect("nobody else holds them");
    assert!(timeout(PATIENCE, left.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn it_waits_for_a_sled_that_does_not_listen_yet_and_says_nothing_itself() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let mut child = connect(&socket).spawn().unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let (mut sled, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    assert_eq!(sled.read_u8().await.unwrap(), 0, "it comes with the pipes");
    drop(sled);
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "");
    assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn who_hands_over_anything_else_is_sent_away_and_the_sled_goes_on() {
    let node = Node::start().await;
    let hand = |both: &[BorrowedFd<'_>]| {
        let socket = UnixStream::connect(node.socket()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(both)));
        sendmsg(&socket, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).unwrap();
        // Who is taken for a link has longer than that for its first word.
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    // What they are the other ends of stays open.
    let ((input, _writer), (_reader, output)) = (pipe().unwrap(), pipe().unwrap());
    let file = std::fs::File::open("/dev/null").unwrap();
    let handed: [&[BorrowedFd<'_>]; 4] = [
        &[input.as_fd()],
        &[output.as_fd(), input.as_fd()],
        &[file.as_fd(), file.as_fd()],
        &[input.as_fd(), output.as_fd(), file.as_fd()],
    ];
    for (number, both) in handed.into_iter().enumerate() {
        let heard = std::io::Read::read(&mut hand(both), &mut [0]).unwrap();
        assert_eq!(heard, 0, "{number}");
    }
    // Whoever says nothing takes a place for a while, and no more.
    let _silent = UnixStream::connect(node.socket()).unwrap();
    assert_eq!(node.client().await.status().await.unwrap().turn, None);
}

#[tokio::test]
async fn what_is_no_pipe_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let refused = connect(&folder.path().join("none.sock")).stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let refused = timeout(PATIENCE, refused).await.unwrap().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains("must be pipes"), "{told}");
}
