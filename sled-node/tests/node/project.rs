//! A sled with a repository, whose files are looked at before and after.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use link::SledClient;
use link::requests::{DiffAnswer, NoRecord, Outcome, PutBack, TurnRequest, UndoAnswer};

use crate::harness::{Node, script, turn};

pub const RESULT: &str = r#"echo '{"type":"result","is_error":false,"result":"done"}'"#;

/// Everything below a folder but repositories: kind or permission to execute, and content.
pub type Tree = BTreeMap<Vec<u8>, (String, Vec<u8>)>;

pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            if kind.is_dir() {
                if path.file_name().unwrap() != ".git" {
                    folders.push(path);
                }
            } else if kind.is_symlink() {
                let to = std::fs::read_link(&path).unwrap();
                found.insert(name, ("link".to_owned(), to.as_os_str().as_bytes().to_vec()));
            } else {
                let mode = format!("{:o}", kind.permissions().mode() & 0o111);
                found.insert(name, (mode, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// A sled with a repository.
pub struct Project {
    pub node: Node,
    pub client: SledClient,
}

impl Project {
    /// Nothing is in it but what `git init` makes.
    pub async fn empty() -> Self {
        let node = Node::start().await;
        let client = node.client().await;
        let project = Self { node, client };
        project.git(&["init", "--quiet", "-b", "main"]);
        project
    }

    /// These files are committed.
    pub async fn of(files: &[(&str, &str)]) -> Self {
        let project = Self::empty().await;
        for (name, content) in files {
            project.write(name, content);
        }
        project.commit();
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.node.path("workspace").join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn git(&self, args: &[&str]) -> String {
        git(&self.node.path("workspace"), args)
    }

    pub fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "one"]);
    }

    pub fn tree(&self) -> Tree {
        tree(&self.node.path("workspace"))
    }

    /// What must not change by our doing: index, HEAD, branches, stash and their logs, and the configuration.
    pub fn untouched(&self) -> Vec<Option<Vec<u8>>> {
        let refs = self.git(&["for-each-ref", "refs/heads", "refs/tags", "refs/remotes", "refs/stash"]);
        let files = ["index", "HEAD", "logs/HEAD", "logs/refs/heads/main", "config", "ORIG_HEAD"];
        let files = files.iter().map(|name| std::fs::read(self.path(".git").join(name)).ok());
        files.chain([Some(refs.into_bytes())]).collect()
    }

    /// A turn whose agent runs this.
    pub async fn turn(&self, shell: &str) {
        assert_eq!(self.run(&wrecking(shell)).await, Outcome::Answered { text: "done".to_owned() });
    }

    /// A turn, and what it did on record: whoever asks for it waits for that, and nobody waits for a turn's end because of it.
    pub async fn run(&self, request: &TurnRequest) -> Outcome {
        let outcome = turn(&self.client, request).await.0;
        drop(self.client.diff(Vec::new()).await);
        outcome
    }

    pub async fn diff(&self, paths: &[&str]) -> String {
        match self.client.diff(paths.iter().map(|path| (*path).to_owned()).collect()).await.unwrap() {
            DiffAnswer::Changes(diff) => diff.output,
            DiffAnswer::None(why) => panic!("{why:?}"),
        }
    }

    pub async fn no_diff(&self) -> NoRecord {
        match self.client.diff(Vec::new()).await.unwrap() {
            DiffAnswer::None(why) => why,
            DiffAnswer::Changes(diff) => panic!("{diff:?}"),
        }
    }

    pub async fn undo(&self) -> PutBack {
        match self.client.undo().await.unwrap() {
            UndoAnswer::PutBack(done) => done,
            other => panic!("{other:?}"),
        }
    }

    /// What `undo` is refused because of.
    pub async fn changed_since(&self) -> Vec<String> {
        let before = self.tree();
        let UndoAnswer::ChangedSince { paths, more: 0 } = self.client.undo().await.unwrap() else {
            panic!("it was not refused")
        };
        assert_eq!(self.tree(), before, "what is refused changes nothing");
        paths
    }

    /// A turn that runs this is put back, and forth, and back: the files as they were before and after it.
    pub async fn back_and_forth(&self, shell: &str) -> PutBack {
        let before = self.tree();
        self.turn(shell).await;
        let (after, rest) = (self.tree(), self.untouched());
        assert_ne!(before, after);
        let done = self.undo().await;
        assert!(done.turn.undone);
        assert_eq!(self.tree(), before);
        assert!(!self.undo().await.turn.undone);
        assert_eq!(self.tree(), after);
        assert!(self.undo().await.turn.undone);
        assert_eq!(self.tree(), before);
        assert_eq!(self.untouched(), rest);
        done
    }
}

pub fn git(folder: &Path, args: &[&str]) -> String {
    let settings = [
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@b",
        "-c",
        "protocol.file.allow=always",
        "-c",
        "core.protectNTFS=false",
    ];
    let output = Command::new("git").args(settings).args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn wrecking(shell: &str) -> TurnRequest {
    script(&format!("{{ {shell}\n}} >&2; {RESULT}"))
}
