//! git's way to the project's remote: the real git, over the sled's endpoint and `sled git-ssh`, against git's own servers behind a gateway of the test.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use link::{Link, SledClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::git_server::{HOST, program, router};
use crate::harness::{Node, SOON};

/// What does not compress, so that a pack is as large as its content.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    std::iter::repeat_with(&mut step).take(bytes).collect()
}

/// A sled, and a gateway's link to it that the sled knows.
async fn node(router: Router) -> (Node, Link) {
    let node = Node::start().await;
    let link = node.link(router).await;
    SledClient::new(link.clone()).status().await.unwrap();
    (node, link)
}

/// git with nobody's settings but these.
fn git(node: &Node, args: &[&str]) -> Command {
    let sled = env!("CARGO_BIN_EXE_sled");
    let mut command = Command::new("git");
    command
        .args(["-c", &format!("core.sshCommand={sled} git-ssh --git-port {}", node.git_port), "-c", "ssh.variant=ssh"])
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "init.defaultBranch=main"])
        .args(["-c", &format!("http.http://127.0.0.1:{}/.proxy=", node.git_port)])
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("HOME", node.path("home"))
        // The person's proxy is not for the loopback.
        .env("http_proxy", "http://127.0.0.1:9")
        .env("PATH", format!("{}:{}", node.path("bin").display(), std::env::var("PATH").unwrap()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn done(mut command: Command) -> Output {
    tokio::time::timeout(SOON, command.output()).await.expect("git does not end").unwrap()
}

async fn succeeds(command: Command) -> String {
    let output = done(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Some MB in a bare repository of the remote's.
async fn seeded(node: &Node, name: &str) {
    let (work, bare) = (node.path("seed"), node.path("remote").join(name));
    std::fs::create_dir_all(&work).unwrap();
    for args in [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "seed"]] {
        std::fs::write(work.join("big"), noise(1, 4 << 20)).unwrap();
        let mut command = git(node, args);
        command.current_dir(&work);
        succeeds(command).await;
    }
    let (work, bare) = (work.to_str().unwrap(), bare.to_str().unwrap());
    succeeds(git(node, &["clone", "-q", "--bare", work, bare])).await;
    succeeds(git(node, &["-C", bare, "config", "http.receivepack", "true"])).await;
}

/// Clones, pushes some MB, and finds them at the remote.
async fn there_and_back(node: &Node, url: &str, bare: &Path) {
    let work = node.path("workspace/clone");
    succeeds(git(node, &["clone", url, work.to_str().unwrap()])).await;
    assert!(std::fs::read(work.join("big")).unwrap() == noise(1, 4 << 20));
    let pushed = noise(2, 6 << 20);
    std::fs::write(work.join("pushed"), &pushed).unwrap();
    let work = work.to_str().unwrap();
    succeeds(git(node, &["-C", work, "add", "-A"])).await;
    succeeds(git(node, &["-C", work, "commit", "-q", "-m", "pushed"])).await;
    succeeds(git(node, &["-C", work, "push", "origin", "main"])).await;
    let blob = done(git(node, &["-C", bare.to_str().unwrap(), "cat-file", "blob", "main:pushed"])).await;
    assert!(blob.stdout == pushed);
    // A second look finds nothing new, in a protocol of another version.
    succeeds(git(node, &["-C", work, "-c", "protocol.version=0", "fetch", "origin"])).await;
}

#[tokio::test]
async fn a_remote_by_ssh_is_cloned_and_pushed_to() {
    let mut node = Node::start().await;
    let remote = node.path("remote");
    let link = node.link(router(&remote)).await;
    SledClient::new(link).status().await.unwrap();
    // A name that needs git's quoting.
    seeded(&node, "it's here!.git").await;
    let url = format!("ssh://git@{HOST}/it's%20here!.git");
    there_and_back(&node, &url, &remote.join("it's here!.git")).await;
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.ended().await.success());
}

#[tokio::test]
async fn a_remote_by_web_is_cloned_and_pushed_to() {
    let node = Node::start().await;
    let remote = node.path("remote");
    let link = node.link(router(&remote)).await;
    SledClient::new(link).status().await.unwrap();
    seeded(&node, "x.git").await;
    let url = format!("http://127.0.0.1:{}/web/{HOST}/x.git", node.git_port);
    there_and_back(&node, &url, &remote.join("x.git")).await;

    // What the gateway says in plain text is shown to the person.
    let url = format!("http://127.0.0.1:{}/web/elsewhere.test/x.git", node.git_port);
    let output = done(git(&node, &["ls-remote", &url])).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(128) && said.contains("remote: not this project's remote"), "{said}");
}

/// `sled git-ssh` as git calls it.
fn git_ssh(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sled"));
    command
        .args(["git-ssh", "--git-port", &node.git_port.to_string()])
        .args(args)
        .env("PATH", format!("{}:{}", node.path("bin").display(), std::env::var("PATH").unwrap()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[tokio::test]
async fn refusals_are_one_sentence() {
    let (node, _link) = node(router(Path::new("/nonexistent"))).await;
    let told = async |args: &[&str]| {
        let output = done(git_ssh(&node, args)).await;
        assert!(output.stdout.is_empty());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let table: [(&[&str], &str); 3] = [
        (&[HOST, "git-upload-pack '/forbidden'"], "musher: the git server refused the credential\n"),
        (
            &["-p", "0", HOST, "git-upload-pack '/x'"],
            "musher: git asked for ssh in a way that is not known here: \"0\" is no port\n",
        ),
        (&[], "musher: git asked for ssh in a way that is not known here: the host is missing\n"),
    ];
    for (args, said) in table {
        assert_eq!(told(args).await, (128, said.to_owned()), "{args:?}");
    }
    // A missing repository is the server's to say: its words and its code come through.
    let (code, said) = told(&[HOST, "git-upload-pack '/missing'"]).await;
    assert!(code == 128 && said.starts_with("fatal: ") && said.contains("/nonexistent/missing"), "{said}");
}

#[tokio::test]
async fn another_remote_is_reached_by_ssh_itself() {
    let (node, _link) = node(router(Path::new("/nonexistent"))).await;
    let ssh = node.path("bin/ssh");
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\" \"$GIT_PROTOCOL\"\ncat\necho at ssh >&2\nexit 7\n";
    std::fs::write(&ssh, script).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let table: [&[&str]; 4] = [
        &["-o", "SendEnv=GIT_PROTOCOL", "-p", "22", "me@elsewhere.test", "git-upload-pack 'a'\\''b'"],
        // What is neither a fetch nor a push is no matter of the gateway's.
        &[HOST, "git-upload-archive 'a'"],
        &[HOST, "git-lfs-authenticate a download"],
        &["-F", "/tmp/x", HOST, "/opt/git/bin/git-upload-pack 'a'"],
    ];
    for args in table {
        let mut child = git_ssh(&node, args).env("GIT_PROTOCOL", "version=2").stdin(Stdio::piped()).spawn().unwrap();
        // All of the input is there for ssh, what was said before it, too.
        child.stdin.take().unwrap().write_all(b"first words\n").await.unwrap();
        let output = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, format!("{}\nversion=2\nfirst words\n", args.join("\n")));
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(7), &b"at ssh\n"[..]), "{args:?}");
    }
}

/// A session in which the remote runs a shell script.
fn script(script: &'static str) -> Router {
    Router::new().route(
        "/git/ssh/git-upload-pack",
        post(async move |body: Body| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            program(command, body)
        }),
    )
}

fn session(node: &Node) -> Child {
    git_ssh(node, &[HOST, "git-upload-pack '/x'"]).stdin(Stdio::piped()).spawn().unwrap()
}

async fn ends(child: Child) -> Output {
    tokio::time::timeout(SOON, child.wait_with_output()).await.expect("it does not end").unwrap()
}

#[tokio::test]
async fn both_ways_go_at_once_and_each_end_is_passed_on() {
    // The remote answers line by line, and after the end of its input.
    let (node, _link) =
        node(script("while read line; do echo \"<$line>\"; done; echo done; echo bye >&2; exit 3")).await;
    let mut child = session(&node);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for line in ["one", "two"] {
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = vec![0; line.len() + 3];
        tokio::time::timeout(SOON, stdout.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("<{line}>\n"));
    }
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    let output = ends(child).await;
    assert_eq!((rest.as_str(), &output.stderr[..], output.status.code()), ("done\n", &b"bye\n"[..], Some(3)));
}

#[tokio::test]
async fn a_reader_that_waits_does_not_hold_its_own_input_up() {
    // The remote floods first and then reads: whoever writes everything before it reads must not be stuck for ever.
    let flood = 4 << 20;
    let (node, _link) = node(script("head -c 4194304 /dev/zero & cat >/dev/null; wait")).await;
    let mut child = session(&node);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let writes = async {
        stdin.write_all(&vec![b'x'; flood]).await.unwrap();
        drop(stdin);
    };
    tokio::time::timeout(SOON, writes).await.expect("the input is held up");
    let mut read = Vec::new();
    stdout.read_to_end(&mut read).await.unwrap();
    assert_eq!((read.len(), ends(child).await.status.code()), (flood, Some(0)));
}

#[tokio::test]
async fn a_server_that_ends_first_ends_the_client() {
    // Its last words come through although the client has more to say, and although it says nothing.
    let (node, _link) = node(script("echo out; echo 'no leave to push' >&2; exit 1")).await;
    let silent = session(&node);
    let mut busy = session(&node);
    let mut stdin = busy.stdin.take().unwrap();
    // It goes away amid this.
    let writing = tokio::spawn(async move { while stdin.write_all(&[0; 16384]).await.is_ok() {} });
    for child in [busy, silent] {
        let output = ends_with_input(child).await;
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"no leave to push\n"[..]));
        assert_eq!(output.status.code(), Some(1));
    }
    tokio::time::timeout(SOON, writing).await.unwrap().unwrap();
}

/// The child's end while its input, if it is still held, stays open.
async fn ends_with_input(mut child: Child) -> Output {
    let _stdin = child.stdin.take();
    ends(child).await
}

#[tokio::test]
async fn a_large_answer_that_ends_early_is_whole() {
    // Far more than all buffers hold is on its way in each direction when the server ends.
    let (node, _link) = node(script("head -c 8388608 /dev/zero; exit 4")).await;
    let mut child = session(&node);
    let mut stdin = child.stdin.take().unwrap();
    let writing = tokio::spawn(async move { while stdin.write_all(&[0; 16384]).await.is_ok() {} });
    let output = ends(child).await;
    assert_eq!((output.stdout.len(), output.status.code()), (8_388_608, Some(4)));
    tokio::time::timeout(SOON, writing).await.unwrap().unwrap();
}

/// A remote that says these bytes and then ends, or never ends.
fn says(bytes: &'static [u8], ends: bool) -> Router {
    let handler = async move || {
        let first = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        if ends { Body::from_stream(first) } else { Body::from_stream(first.chain(stream::pending())) }
    };
    Router::new().route("/git/ssh/git-upload-pack", post(handler))
}

#[tokio::test]
async fn an_answer_that_is_no_session_is_told() {
    for (bytes, expected) in [
        (&b"\x01\0\0\0\x02ok"[..], "the stream ended before the exit code"),
        (b"\x01\xff\0\0\0", "a frame of 4278190080 bytes is too long"),
        (b"<html>", "a frame is of unknown kind 60"),
    ] {
        let (node, _link) = node(says(bytes, true)).await;
        let output = ends(session(&node)).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(128));
        assert_eq!(said, format!("musher: the git server's answer is cut off or garbled ({expected}), try again\n"));
    }
}

#[tokio::test]
async fn a_link_that_is_cut_ends_git_with_a_sentence() {
    let broken =
        "musher: the connection to the git server broke off before its end; nothing more is known of it, try again\n";
    // On standard error comes out that the session has begun.
    let (node, link) = node(says(b"\x02\0\0\0\x04hey\n\x01\0\0\0\x0c001e# servic", false)).await;
    let url = format!("ssh://{HOST}/x");
    let mut children = Vec::new();
    for mut command in [git(&node, &["ls-remote", &url]), git_ssh(&node, &[HOST, "git-upload-pack '/x'"])] {
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut begun = [0; 4];
        let stderr = child.stderr.as_mut().unwrap();
        tokio::time::timeout(SOON, stderr.read_exact(&mut begun)).await.unwrap().unwrap();
        children.push(child);
    }
    link.close();
    for child in children {
        // Its input is never closed.
        let output = ends_with_input(child).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(128));
        assert!(said.starts_with(broken), "{said}");
    }
}

#[tokio::test]
async fn without_a_sled_git_says_so() {
    let (mut node, _link) = node(Router::new()).await;
    node.signal(nix::sys::signal::Signal::SIGTERM);
    node.ended().await;
    let output = ends(session(&node)).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("musher: the project's sled is not there on port "), "{said}");
    assert_eq!(output.status.code(), Some(128));
}

#[tokio::test]
async fn sessions_at_once_are_bounded() {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let handler = async move || {
        arrived.send(()).unwrap();
        std::future::pending::<StatusCode>().await
    };
    let (node, _link) = node(Router::new().route("/git/ssh/git-upload-pack", post(handler))).await;
    let mut sessions = Vec::new();
    for _ in 0..64 {
        sessions.push(session(&node));
        tokio::time::timeout(SOON, arrivals.recv()).await.unwrap().unwrap();
    }
    let output = ends(session(&node)).await;
    assert_eq!(output.stderr, b"musher: too many git requests at once in this project\n");
}
