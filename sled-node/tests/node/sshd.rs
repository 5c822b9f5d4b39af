//! How the sled keeps its sshd. The real one is tried in the project's end-to-end tests; here a stand-in shows how it is called.

use std::os::unix::fs::PermissionsExt;

use crate::harness::{Node, eventually};

#[tokio::test]
async fn an_sshd_that_dies_is_started_again_and_the_log_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (program, calls) = (folder.path().join("sshd"), folder.path().join("calls"));
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >> {0}\necho -- >> {0}\necho bad configuration >&2\nexit 255\n",
        calls.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();

    let node = Node::start_with(&["--sshd-program", program.to_str().unwrap(), "--sshd-config", "/etc/c"]).await;
    let client = node.client().await;
    eventually(async || std::fs::read_to_string(&calls).unwrap_or_default().matches("--\n").count() >= 2).await;
    let calls = std::fs::read_to_string(&calls).unwrap();
    let words: Vec<&str> = calls.lines().take_while(|line| *line != "--").collect();
    assert_eq!(words[..7], ["-D", "-e", "-p", "2222", "-f", "/etc/c", "-o"]);
    assert!(
        words[7].starts_with("SetEnv=\"") && words[7].contains("\"MUSHER_PATH=") && !words[7].contains("\"HOME="),
        "{}",
        words[7]
    );

    eventually(async || {
        let log = client.logs(1_000).await.unwrap().output;
        log.contains("sshd: bad configuration")
            && log.contains("started again in 1 s")
            && log.contains("exit status: 255")
    })
    .await;
}
