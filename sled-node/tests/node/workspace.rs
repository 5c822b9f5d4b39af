//! `status`, `git` and `logs`, on a real repository.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::harness::{Node, eventually, lives, succeeded};

async fn git(node: &Node, args: &[&str]) -> link::requests::CommandOutput {
    node.client().await.git(args.iter().map(|arg| (*arg).to_owned()).collect()).await.unwrap()
}

#[tokio::test]
async fn status_tells_of_the_branch_and_of_what_changed() {
    let node = Node::start().await;
    let client = node.client().await;
    let status = client.status().await.unwrap();
    assert_eq!((status.branch, status.dirty, status.turn), (None, 0, None));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));

    succeeded(git(&node, &["init", "-b", "trunk"]).await);
    std::fs::write(node.path("workspace/a b"), "").unwrap();
    std::fs::create_dir(node.path("workspace/new")).unwrap();
    std::fs::write(node.path("workspace/new/c"), "").unwrap();
    let status = client.status().await.unwrap();
    assert_eq!((status.branch.as_deref(), status.dirty), (Some("trunk"), 2));
    assert_eq!(status.dirty_files, ["a b", "new/c"]);

    succeeded(git(&node, &["add", "."]).await);
    succeeded(git(&node, &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one"]).await);
    succeeded(git(&node, &["checkout", "--detach"]).await);
    let head = succeeded(git(&node, &["rev-parse", "HEAD"]).await);
    let status = client.status().await.unwrap();
    assert_eq!((status.branch.as_deref(), status.dirty), (head.get(..8), 0));
}

#[tokio::test]
async fn git_has_no_shell_no_terminal_and_no_editor() {
    let node = Node::start().await;
    succeeded(git(&node, &["init"]).await);
    let output = git(&node, &["log", "; touch made"]).await;
    assert_eq!(output.code, Some(128), "{}", output.output);
    assert!(!node.path("workspace/made").exists());
    let output = git(&node, &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty"]).await;
    assert_eq!(output.code, Some(1), "{}", output.output);
    // What it says of itself is not styled for a terminal.
    assert!(!output.output.contains('\u{1b}'));
}

#[tokio::test]
async fn of_long_output_the_end_is_shown() {
    let node = Node::start().await;
    succeeded(git(&node, &["init"]).await);
    let output = git(&node, &["-c", "alias.talk=!seq 1 200000", "talk"]).await;
    assert!(output.truncated && output.code == Some(0));
    assert!(output.output.ends_with("\n200000\n") && output.output.len() <= 256 * 1024);
}

#[tokio::test]
async fn a_command_whose_asker_is_gone_is_ended_with_all_its_children() {
    let node = Node::start().await;
    succeeded(git(&node, &["init"]).await);
    let client = node.client().await;
    let hangs = [
        "-c",
        "alias.hang=!echo $$ > a.pid; (setsid sh -c 'trap \"\" TERM; echo $$ > b.pid; sleep 1000' &); sleep 1000",
        "hang",
    ];
    let asked = tokio::spawn(async move { client.git(hangs.map(str::to_owned).into()).await });
    let pids = node.wait_for_pids(2).await;
    asked.abort();
    eventually(async || pids.iter().all(|pid| !lives(*pid))).await;
}

const COMMIT: [&str; 8] = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-a", "-m", "one"];

/// A sled that commits at somebody's request and does not come to an end with it: the process that it waits for, and who asked.
async fn committing() -> (Node, i32, tokio::task::JoinHandle<()>) {
    let node = Node::start().await;
    succeeded(git(&node, &["init"]).await);
    let hook = node.path("workspace/.git/hooks/pre-commit");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho $$ > hook.pid\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(node.path("workspace/a"), "").unwrap();
    succeeded(git(&node, &["add", "a"]).await);
    let client = node.client().await;
    let asked = tokio::spawn(async move { drop(client.git(COMMIT.map(str::to_owned).into()).await) });
    let pid = node.wait_for_pids(1).await[0];
    assert!(node.path("workspace/.git/index.lock").exists());
    std::fs::remove_file(&hook).unwrap();
    (node, pid, asked)
}

#[tokio::test]
async fn a_git_whose_asker_is_gone_leaves_no_lock() {
    let (node, pid, asked) = committing().await;
    asked.abort();
    eventually(async || !lives(pid)).await;
    // What git has to do at its end takes a moment longer.
    eventually(async || !node.path("workspace/.git/index.lock").exists()).await;
    succeeded(git(&node, &COMMIT).await);
}

#[tokio::test]
async fn a_git_whose_sled_is_asked_to_end_leaves_no_lock() {
    let (mut node, pid, _asked) = committing().await;
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(node.ended().await.success());
    assert!(!lives(pid) && !node.path("workspace/.git/index.lock").exists());
}

#[tokio::test]
async fn the_log_can_be_read() {
    let node = Node::start().await;
    let client = node.client().await.patience(Duration::from_secs(10));
    let log = client.logs(1_000).await.unwrap();
    assert!(log.output.contains("sled ") && log.output.contains("link open") && !log.truncated, "{}", log.output);
    let last = client.logs(1).await.unwrap();
    assert!(last.truncated && last.output.lines().count() == 1);
}
