//! What a turn did to the files is shown, and put back, and forth again, on real repositories (SLED-9).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use link::CallError;
use link::requests::{DiffAnswer, NoRecord, Outcome, RefusalKind, TurnRequest, UndoAnswer};
use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::harness::{Node, events, eventually, outcome, script, stop, turn};
use crate::project::{Project, RESULT, Tree, git, wrecking};

/// A repository of two commits, the second of which adds the file `added`.
fn library() -> tempfile::TempDir {
    let library = tempfile::tempdir().unwrap();
    git(library.path(), &["init", "--quiet"]);
    for commit in ["one", "two"] {
        std::fs::write(library.path().join("lib"), commit).unwrap();
        if commit == "two" {
            std::fs::write(library.path().join("added"), commit).unwrap();
        }
        git(library.path(), &["add", "--all"]);
        git(library.path(), &["commit", "--quiet", "-m", commit]);
    }
    library
}

#[tokio::test]
async fn what_an_agent_wrecked_is_put_back() {
    let library = library();
    let project = Project::of(&[
        (".gitignore", "*.log\n/target/\n"),
        ("kept", "kept\n"),
        ("src/deleted", "deleted\n"),
        ("src/moved", "one\ntwo\nthree\nfour\nfive\n"),
        ("run.sh", "#!/bin/sh\n"),
        ("plain", "plain\n"),
        ("folder/a", "a\n"),
        ("folder/b/c", "c\n"),
        ("file", "file\n"),
    ])
    .await;
    std::fs::set_permissions(project.path("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("kept", project.path("link")).unwrap();
    project.git(&["submodule", "--quiet", "add", library.path().to_str().unwrap(), "lib"]);
    project.commit();
    // Neither committed nor ignored, ignored, half staged.
    project.write("notes/idea", "idea\n");
    project.write("target/built", "built\n");
    project.write("local.log", "log\n");
    project.write("plain", "staged\n");
    project.git(&["add", "plain"]);
    project.write("plain", "not staged\n");
    let (one, two) = (git(library.path(), &["rev-parse", "HEAD~"]), git(library.path(), &["rev-parse", "HEAD"]));
    assert_eq!(git(&project.path("lib"), &["rev-parse", "HEAD"]), two);

    let (before, rest) = (project.tree(), project.untouched());
    project
        .turn(&format!(
            "rm src/deleted notes/idea; mv src/moved moved; chmod -x run.sh; chmod +x kept; echo x >> plain
             rm -r folder; echo file > folder; rm file; mkdir -p file/in; echo in > file/in/it
             ln -sf plain link; echo new > new; rm .gitignore; echo more > local.log
             git -C lib checkout --quiet --detach {one}"
        ))
        .await;
    let after = project.tree();
    assert_eq!(project.untouched(), rest);
    let diff = project.diff(&[]).await;
    for said in [
        " delete mode 100644 notes/idea",
        " rename src/moved => moved (100%)",
        " mode change 100755 => 100644 run.sh",
        " mode change 100644 => 100755 kept",
        " create mode 100644 file/in/it",
        "+new",
        &format!("-Subproject commit {}", two.trim()),
    ] {
        assert!(diff.contains(said), "{said}:\n{diff}");
    }
    assert!(
        !diff.contains("target/b") && !diff.contains("local.log"),
        "what was ignored is none of the turn's:\n{diff}"
    );

    let done = project.undo().await;
    assert!(done.head_moved.is_none() && done.left.is_empty() && done.missing.is_empty(), "{done:?}");
    let mut wanted = before;
    let log = |tree: &Tree| tree[b"local.log".as_slice()].clone();
    wanted.insert(b"local.log".to_vec(), log(&after));
    assert_eq!(project.tree(), wanted);
    assert_eq!(git(&project.path("lib"), &["rev-parse", "HEAD"]), two);
    assert_eq!(project.read("target/built"), "built\n");
    assert_eq!(project.untouched(), rest);

    project.undo().await;
    assert_eq!(project.tree(), after);
    assert_eq!(git(&project.path("lib"), &["rev-parse", "HEAD"]), one);
    assert_eq!(project.untouched(), rest);
}

#[tokio::test]
async fn a_repository_without_a_commit_is_put_back_too() {
    let project = Project::empty().await;
    project.write("a", "a\n");
    project.back_and_forth("echo b > b; rm a").await;
    assert_eq!(project.git(&["for-each-ref", "refs/heads"]), "");
}

#[tokio::test]
async fn without_a_repository_turns_run_and_it_is_said() {
    let node = Node::start().await;
    let client = node.client().await;
    let project = Project { node, client };
    project.turn("echo a > a").await;
    assert_eq!(project.no_diff().await, NoRecord::NoRepository);
    assert_eq!(project.client.undo().await.unwrap(), UndoAnswer::None(NoRecord::NoRepository));
    project.git(&["init", "--quiet"]);
    assert_eq!(project.no_diff().await, NoRecord::NoTurn);
    assert_eq!(project.read("a"), "a\n");
}

#[tokio::test]
async fn what_somebody_changed_since_is_not_put_back_and_nothing_else_is() {
    let project = Project::of(&[("a", "a\n"), ("b", "b\n"), ("dir/c", "c\n"), ("d", "d\n")]).await;
    project.turn("echo agent > a; rm b; rm -r dir; echo new > new; rm d; mkdir d; echo x > d/x").await;
    // What the turn did not touch may change.
    project.write("own", "mine\n");
    project.write("a", "mine\n");
    assert_eq!(project.changed_since().await, ["a"]);
    project.write("a", "agent\n");
    project.write("b", "mine\n");
    std::fs::remove_file(project.path("new")).unwrap();
    // Gone is as it shall be; what is there again is somebody's.
    assert_eq!(project.changed_since().await, ["b"]);
    std::fs::remove_file(project.path("b")).unwrap();
    // In the place of a folder, and in a folder in the place of a file.
    project.write("dir", "mine\n");
    assert_eq!(project.changed_since().await, ["dir"]);
    std::fs::remove_file(project.path("dir")).unwrap();
    project.write("d/mine", "mine\n");
    assert_eq!(project.changed_since().await, ["d/mine"]);
    std::fs::remove_file(project.path("d/mine")).unwrap();
    let done = project.undo().await;
    assert_eq!(done.paths, ["a", "b", "d", "d/x", "dir/c", "new"]);
    assert_eq!(
        (project.read("a"), project.read("dir/c"), project.read("d")),
        ("a\n".into(), "c\n".into(), "d\n".into())
    );
    assert_eq!(project.read("own"), "mine\n");
    assert!(!project.path("new").exists());
}

#[tokio::test]
async fn what_is_ignored_is_never_overwritten_or_removed() {
    let project = Project::of(&[(".gitignore", "target/\n.env\n"), ("a", "a\n")]).await;
    project.write("target/old", "old\n");
    project.write(".env", "KEY=1\n");
    project.write("notes", "notes\n");
    // It is ignored from then on, and was recorded before.
    project.turn("rm notes; printf 'target/\\n.env\\nnotes\\n' > .gitignore").await;
    project.write("notes", "mine\n");
    assert_eq!(project.changed_since().await, ["notes"]);
    std::fs::remove_file(project.path("notes")).unwrap();
    project.undo().await;
    assert_eq!((project.read("notes"), project.read(".gitignore")), ("notes\n".into(), "target/\n.env\n".into()));

    // Nothing is ignored any more, and what was is tracked even.
    project
        .turn("rm .gitignore; echo new > target/new; echo KEY=2 > .env; git add --all; git -c user.name=a -c user.email=a@b commit -qm two")
        .await;
    let done = project.undo().await;
    assert_eq!(done.paths, [".gitignore"]);
    let moved = done.head_moved.unwrap();
    assert_eq!((moved.before.branch.as_deref(), moved.after.branch.as_deref()), (Some("main"), Some("main")));
    assert_ne!(moved.before.commit, moved.after.commit);
    assert_eq!(project.read(".env"), "KEY=2\n");
    assert_eq!((project.read("target/old"), project.read("target/new")), ("old\n".into(), "new\n".into()));
}

#[tokio::test]
async fn a_tracked_file_that_is_ignored_is_recorded() {
    let project = Project::of(&[("dist/x", "one\n"), ("a", "a\n")]).await;
    project.write(".gitignore", "dist/\n");
    project.write("dist/own", "ignored\n");
    project.commit();
    project.back_and_forth("echo two > dist/x").await;
    project.turn("rm dist/x; echo other > dist/own").await;
    assert_eq!(project.undo().await.paths, ["dist/x"]);
    assert_eq!((project.read("dist/x"), project.read("dist/own")), ("one\n".into(), "other\n".into()));
}

#[tokio::test]
async fn hostile_names_are_names() {
    let names =
        ["-rf", "--", "new\nline", "t\tab", "über/ß", "C:..", ":(top)x", "*", "a b", "\"q'", "git~1", "aux", "\\"];
    let project = Project::empty().await;
    for name in names {
        project.write(name, name);
    }
    let odd = std::ffi::OsStr::from_bytes(b"not \xff utf8");
    std::fs::write(project.path("").join(odd), "odd").unwrap();
    project.back_and_forth("rm -rf -- * ./-rf ./--; echo new > \"$(printf 'also\\nnew')\"").await;
    project.commit();
    let done = project.back_and_forth("for f in ./*; do test -d \"$f\" || echo changed > \"$f\"; done").await;
    assert_eq!(done.paths.len(), names.len());
    assert!(project.diff(&["C:.."]).await.contains("C:.."));
}

#[tokio::test]
async fn bytes_are_put_back_as_they_were_whatever_git_would_make_of_them() {
    let project =
        Project::of(&[(".gitattributes", "* text=auto\n*.bin filter=broken\n"), ("dos", "a\n"), ("x.bin", "x\n")])
            .await;
    project.git(&["config", "filter.broken.clean", "false"]);
    project.git(&["config", "filter.broken.smudge", "false"]);
    project.git(&["config", "filter.broken.required", "true"]);
    project.git(&["config", "core.autocrlf", "true"]);
    project.git(&["config", "core.fileMode", "false"]);
    std::fs::create_dir_all(project.path(".git/hooks")).unwrap();
    for hook in ["reference-transaction", "post-index-change", "post-checkout", "pre-commit"] {
        let file = project.path(".git/hooks").join(hook);
        std::fs::write(&file, "#!/bin/sh\necho ran >> hooks-ran\n").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    project.write("dos", "a\r\nb\nc\r\n");
    project.write("x.bin", "\0\r\n");
    project.back_and_forth("echo unix > dos; echo y > x.bin; chmod +x dos").await;
    assert_eq!(project.read("dos"), "a\r\nb\nc\r\n");
    assert!(!project.path("hooks-ran").exists() && !project.path(".git/hooks-ran").exists());
}

#[tokio::test]
async fn the_files_before_a_turn_are_recorded_whenever_they_were_changed() {
    // In the same moment and of the same length, over and over: the index must not be believed.
    let project = Project::of(&[("a", "0\n")]).await;
    for round in 1..=9 {
        project.turn(&format!("echo {round} > a")).await;
        assert!(project.diff(&[]).await.contains(&format!("+{round}\n")), "round {round}");
        project.git(&["add", "a"]);
        project.write("a", "0\n");
    }
    project.turn("echo 1 > a").await;
    project.undo().await;
    assert_eq!(project.read("a"), "0\n");
}

#[tokio::test]
async fn a_merge_that_is_not_finished_is_recorded_and_stays_one() {
    let project = Project::of(&[("a", "one\n")]).await;
    project.git(&["checkout", "--quiet", "-b", "other"]);
    project.write("a", "two\n");
    project.commit();
    project.git(&["checkout", "--quiet", "main"]);
    project.write("a", "three\n");
    project.commit();
    assert!(
        !Command::new("git")
            .args(["-c", "user.name=A", "-c", "user.email=a@b", "merge", "other"])
            .current_dir(project.path(""))
            .output()
            .unwrap()
            .status
            .success()
    );
    let half = project.read("a");
    assert!(half.contains("<<<<<<<"));
    project.back_and_forth("echo mine > a; echo b > b").await;
    assert_eq!(project.read("a"), half);
    assert!(project.git(&["status", "--porcelain"]).contains("UU a"));
}

#[tokio::test]
async fn repositories_in_the_tree_are_left_alone() {
    let project = Project::of(&[("a", "a\n")]).await;
    std::fs::create_dir(project.path("mine")).unwrap();
    git(&project.path("mine"), &["init", "--quiet"]);
    project.write("mine/x", "x\n");
    project
        .turn("git init -q made; echo y > made/y; (cd made; git add y; git -c user.name=a -c user.email=a@b commit -qm one); echo z > mine/x; echo b > a")
        .await;
    let diff = project.diff(&[]).await;
    assert!(!diff.contains("mine") && !diff.contains("made"), "{diff}");
    assert_eq!(project.undo().await.paths, ["a"]);
    assert_eq!((project.read("mine/x"), project.read("made/y")), ("z\n".into(), "y\n".into()));

    // One that became a submodule is in the diff, and stays.
    project.turn("git -c advice.addEmbeddedRepo=false add made").await;
    assert!(project.diff(&[]).await.contains("+Subproject commit"));
    let done = project.undo().await;
    assert_eq!(done.left, ["made"]);
    assert_eq!(project.read("made/y"), "y\n");
}

#[tokio::test]
async fn a_submodule_that_is_gone_comes_back_and_one_with_changes_is_not_moved() {
    let library = library();
    let project = Project::of(&[("a", "a\n")]).await;
    project.git(&["submodule", "--quiet", "add", library.path().to_str().unwrap(), "lib"]);
    project.commit();
    let before = project.tree();
    project.turn("rm -rf lib").await;
    let done = project.undo().await;
    assert!(done.missing.is_empty(), "{done:?}");
    assert_eq!(project.tree(), before);

    project.turn("git -C lib checkout --quiet --detach HEAD~; echo b > a").await;
    project.write("lib/lib", "mine\n");
    assert_eq!(project.changed_since().await, ["lib"]);
    assert_eq!(project.read("a"), "b\n");
}

#[tokio::test]
async fn what_lies_where_a_submodule_is_to_be_or_is_ignored_in_it_stays() {
    let library = library();
    let project = Project::of(&[("a", "a\n")]).await;
    project.git(&["submodule", "--quiet", "add", library.path().to_str().unwrap(), "lib"]);
    project.commit();
    project.turn("rm -rf lib").await;
    for mine in ["lib/lib", "lib/deep/er/mine"] {
        project.write(mine, "mine\n");
        assert_eq!(project.changed_since().await, [mine]);
        std::fs::remove_dir_all(project.path("lib")).unwrap();
    }
    project.write("lib", "mine\n");
    assert_eq!(project.changed_since().await, ["lib"]);
    std::fs::remove_file(project.path("lib")).unwrap();
    assert!(project.undo().await.missing.is_empty());

    project.write(".git/modules/lib/info/exclude", "added\n");
    project.turn("git -C lib checkout --quiet --detach HEAD~").await;
    project.write("lib/added", "mine\n");
    assert_eq!(project.changed_since().await, ["lib"]);
    std::fs::remove_file(project.path("lib/added")).unwrap();
    assert!(project.undo().await.missing.is_empty());
    assert_eq!(project.read("lib/added"), "two");
}

#[tokio::test]
async fn files_that_git_was_told_not_to_look_at_are_recorded_as_far_as_they_are_there() {
    let project = Project::of(&[("assumed", "a\n"), ("skipped", "a\n"), ("sparse", "a\n"), ("a", "a\n")]).await;
    project.git(&["config", "core.checkStat", "minimal"]);
    project.git(&["config", "core.trustctime", "false"]);
    project.git(&["update-index", "--assume-unchanged", "assumed"]);
    project.git(&["update-index", "--skip-worktree", "skipped", "sparse"]);
    std::fs::remove_file(project.path("sparse")).unwrap();
    let done = project.back_and_forth("echo b > assumed; echo b > skipped; echo b > a").await;
    assert_eq!(done.paths, ["a", "assumed", "skipped"]);
    // Nor is a change overlooked that a person makes.
    project.turn("echo b > assumed").await;
    let time = project.path("assumed").metadata().unwrap().modified().unwrap();
    project.write("assumed", "c\n");
    std::fs::File::options().write(true).open(project.path("assumed")).unwrap().set_modified(time).unwrap();
    assert_eq!(project.changed_since().await, ["assumed"]);
}

#[tokio::test]
async fn a_turn_that_changed_nothing_leaves_the_one_before_it_the_last() {
    let project = Project::of(&[("a", "a\n")]).await;
    assert_eq!(project.no_diff().await, NoRecord::NoTurn);
    assert_eq!(project.client.undo().await.unwrap(), UndoAnswer::None(NoRecord::NoTurn));
    project.turn("echo b > a").await;
    project.turn("cat a").await;
    assert!(project.diff(&[]).await.contains("+b"));
    project.undo().await;
    assert_eq!(project.read("a"), "a\n");
    // After another turn, `undo` is about that one alone.
    project.turn("echo c > c").await;
    project.undo().await;
    assert_eq!(project.read("a"), "a\n");
    assert!(!project.path("c").exists());
}

#[tokio::test]
async fn undo_is_refused_while_a_turn_runs_and_diff_shows_the_one_before() {
    let project = Project::of(&[("a", "a\n")]).await;
    project.turn("echo b > a").await;
    let id = Uuid::now_v7();
    project.client.put_turn(id, &script("echo c > a; echo $$ > agent.pid; sleep 1000")).await.unwrap();
    project.node.wait_for_pids(1).await;
    match project.client.undo().await {
        Err(CallError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Busy),
        other => panic!("{other:?}"),
    }
    let diff = project.diff(&[]).await;
    assert!(diff.contains("+b") && !diff.contains("+c"), "{diff}");
    // One that was stopped half-way can be put back.
    project.client.stop_turn(id, &stop(1_000)).await.unwrap();
    project.undo().await;
    assert_eq!(project.read("a"), "b\n");
    assert!(!project.path("agent.pid").exists());
}

#[tokio::test]
async fn locks_that_a_killed_git_left_are_none_any_more() {
    // Its repository lies elsewhere: this is a further work tree of it.
    let main = library();
    let node = Node::start().await;
    let client = node.client().await;
    let project = Project { node, client };
    git(main.path(), &["worktree", "add", "--quiet", "--detach", project.path("").to_str().unwrap()]);
    let left = |name: &str| {
        let lock = main.path().join(".git/refs/musher").join(name);
        std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
        std::fs::write(lock, "").unwrap();
    };
    left("latest.lock");
    left("turns/00000001/before.lock");
    project.turn("echo b > lib").await;
    left("turns/00000001/undone.lock");
    project.undo().await;
    assert_eq!(project.read("lib"), "two");
}

#[tokio::test]
async fn an_index_of_ours_that_cannot_be_read_is_made_anew() {
    let project = Project::of(&[("a", "0\n")]).await;
    project.turn("echo 1 > a").await;
    let ours = project.path(".git/musher/index");
    let whole = std::fs::read(&ours).unwrap();
    // As a machine that goes down leaves it, before a turn and while one runs.
    for (round, half) in [&[], &whole[..20]].into_iter().enumerate() {
        std::fs::write(&ours, half).unwrap();
        project.turn(&format!("echo before {round} > a")).await;
        let diff = project.diff(&[]).await;
        assert!(diff.contains(&format!("+before {round}\n")), "{diff}");
        std::fs::write(project.path(".git/half"), half).unwrap();
        project.turn(&format!("echo meanwhile {round} > a; cat .git/half > .git/musher/index")).await;
        let diff = project.diff(&[]).await;
        assert!(diff.contains(&format!("+meanwhile {round}\n")), "{diff}");
        project.undo().await;
        assert_eq!(project.read("a"), format!("before {round}\n"));
    }
}

#[tokio::test]
async fn an_index_of_theirs_that_is_no_file_holds_no_turn_up() {
    let project = Project::of(&[("a", "0\n")]).await;
    project.turn("echo 1 > a").await;
    // Whoever reads from it waits for ever; where there is no index of ours theirs is copied.
    project.turn("ln -sf /dev/ptmx .git/index; rm -f .git/musher/index").await;
    project.turn("echo 2 > a").await;
    std::fs::remove_file(project.path(".git/index")).unwrap();
    project.git(&["reset"]);
    project.turn("echo 3 > a").await;
    let diff = project.diff(&[]).await;
    assert!(diff.contains("+3\n"), "{diff}");
}

#[tokio::test]
async fn a_record_that_was_cut_off_when_it_began_spoils_none_after_it() {
    let project = Project::empty().await;
    project.write(".gitattributes", "* text eol=crlf\n");
    project.write("a", "one\r\n");
    // Long enough ago for git to go by the time alone.
    let time = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
    std::fs::File::options().write(true).open(project.path("a")).unwrap().set_modified(time).unwrap();
    project.commit();
    let fake = project.node.path("bin/git");
    let cut = "#!/bin/sh\ncase \"$*\" in *--force-remove*) exit 5 ;; esac\nPATH=${PATH#*:} exec git \"$@\"\n";
    std::fs::write(&fake, cut).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    project.turn("true").await;
    assert!(matches!(project.no_diff().await, NoRecord::GivenUp { .. }));
    std::fs::remove_file(&fake).unwrap();
    project.turn("printf 'two\\r\\n' > a").await;
    project.undo().await;
    assert_eq!(project.read("a"), "one\r\n");
}

/// What is left when a turn of two attempts is put back, of which the first made `b` before its sled was killed, and the second made `c`.
async fn left_of_two_attempts(meanwhile: impl FnOnce(&Project)) -> Vec<(String, String)> {
    let mut project = Project::of(&[("a", "a\n")]).await;
    let id = Uuid::now_v7();
    let request = script(&format!(
        "if test -e b; then echo 2 > c; {RESULT}; else echo b > b; echo $$ > agent.pid; sleep 1000; fi"
    ));
    project.client.put_turn(id, &request).await.unwrap();
    let pids = project.node.wait_for_pids(1).await;
    project.node.signal(Signal::SIGKILL);
    project.node.ended().await;
    eventually(async || pids.iter().all(|pid| !crate::harness::lives(*pid))).await;
    project.node.start_again().await;
    project.client = project.node.client().await;
    assert!(project.diff(&[]).await.contains("+b"), "what it did until then");
    meanwhile(&project);
    let again = TurnRequest { attempt: 2, ..request };
    project.client.put_turn(id, &again).await.unwrap();
    assert!(matches!(outcome(&events(&project.client, id, 0).await), Outcome::Interrupted));
    let told = events(&project.client, id, 3).await;
    assert!(matches!(outcome(&told), Outcome::Answered { .. }), "{told:?}");
    project.undo().await;
    let files = ["a", "b", "c"].into_iter().filter(|name| project.path(name).exists());
    files.map(|name| (name.to_owned(), project.read(name))).collect()
}

#[tokio::test]
async fn a_turn_whose_sled_was_killed_can_be_put_back_with_its_second_attempt() {
    let left = left_of_two_attempts(|_| ()).await;
    assert_eq!(left, [("a".to_owned(), "a\n".to_owned())]);
}

#[tokio::test]
async fn what_a_person_changed_between_two_attempts_is_not_put_back() {
    let left = left_of_two_attempts(|project| project.write("a", "mine\n")).await;
    assert_eq!(left, [("a", "mine\n"), ("b", "b\n")].map(|(name, content)| (name.to_owned(), content.to_owned())));
}

/// Whether a process has its working directory there.
fn anybody_works_in(folder: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok())
        .any(|cwd| cwd.starts_with(folder))
}

#[tokio::test]
async fn an_undo_that_was_cut_off_can_be_asked_for_again() {
    let files: Vec<(String, String)> = (0..2_000).map(|n| (format!("dir{}/f{n}", n % 20), "x".repeat(500))).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
    let mut project = Project::of(&files).await;
    project.write("type", "file");
    let before = project.tree();
    project
        .turn("for f in dir*/f*; do echo y > $f; done; rm -r dir1 dir2; rm type; mkdir type; echo n > type/n; echo n > zz")
        .await;
    let after = project.tree();
    let mut halves = 0;
    for wanted in [&before, &after, &before, &after] {
        let client = project.client.clone();
        let asked = tokio::spawn(async move { client.undo().await.is_ok() });
        // What it does first, back or forth; then there are two thousand files to go.
        let (first, stands) = (project.path("zz"), project.path("zz").exists());
        let (other, other_stands) = (project.path("dir1/f1"), project.path("dir1/f1").exists());
        let began = tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + crate::harness::SOON;
            while first.exists() == stands && other.exists() == other_stands {
                assert!(std::time::Instant::now() < deadline, "nothing is put back");
            }
        });
        began.await.unwrap();
        project.node.signal(Signal::SIGKILL);
        project.node.ended().await;
        asked.await.unwrap();
        // In a container all others die with the sled.
        eventually(async || !anybody_works_in(&project.path(""))).await;
        let now = project.tree();
        halves += i32::from(now != before && now != after);
        project.node.start_again().await;
        project.client = project.node.client().await;
        project.undo().await;
        assert!(project.tree() == *wanted, "what was begun is not brought to its end");
    }
    assert!(halves > 0, "it was never cut off half-way");
}

#[tokio::test]
async fn what_is_too_much_is_not_recorded_and_said_and_the_turn_runs() {
    let project = Project::of(&[("a", "a\n")]).await;
    project.turn("echo b > a").await;
    for n in 0..11 {
        std::fs::File::create(project.path(&format!("huge{n}"))).unwrap().set_len(99 * 1024 * 1024).unwrap();
    }
    project.turn("echo c > a").await;
    let NoRecord::GivenUp { reason } = project.no_diff().await else { panic!("it is on record") };
    assert!(reason.contains("1 GiB"), "{reason}");
    assert!(matches!(project.client.undo().await.unwrap(), UndoAnswer::None(NoRecord::GivenUp { .. })));
    assert_eq!(project.read("a"), "c\n");
    for n in 0..11 {
        std::fs::remove_file(project.path(&format!("huge{n}"))).unwrap();
    }
    // One file that is larger than what is recorded is like one that is ignored.
    std::fs::File::create(project.path("huge")).unwrap().set_len(101 * 1024 * 1024).unwrap();
    project.turn("echo d > a; echo d > huge").await;
    assert_eq!(project.undo().await.paths, ["a"]);
    assert_eq!((project.read("a"), project.read("huge")), ("c\n".into(), "d\n".into()));
}

#[tokio::test]
async fn a_git_that_hangs_or_fails_fails_no_turn() {
    let project = Project::of(&[("a", "a\n")]).await;
    let fake = project.node.path("bin/git");
    for (fake_git, reason) in
        [("#!/bin/sh\nexec sleep 1000\n", "longer than"), ("#!/bin/sh\necho no >&2; exit 5\n", "no")]
    {
        std::fs::write(&fake, fake_git).unwrap();
        std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
        let began = std::time::Instant::now();
        assert!(matches!(turn(&project.client, &wrecking("echo b >> a")).await.0, Outcome::Answered { .. }));
        assert!(began.elapsed() < std::time::Duration::from_secs(15), "{:?}", began.elapsed());
        match project.client.undo().await {
            Err(CallError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Internal, "{reason}"),
            other => panic!("{other:?}"),
        }
        std::fs::remove_file(&fake).unwrap();
    }
    project.turn("echo c >> a").await;
    project.undo().await;
    assert_eq!(project.read("a"), "a\nb\nb\n");
}

#[tokio::test]
async fn the_oldest_turns_go_from_the_record() {
    let project = Project::of(&[("a", "0\n")]).await;
    for round in 1..=23 {
        project.turn(&format!("echo {round} > a")).await;
    }
    let refs = project.git(&["for-each-ref", "--format=%(refname)", "refs/musher/turns"]);
    assert_eq!(refs.lines().filter(|name| name.ends_with("/after")).count(), 21, "{refs}");
    // Garbage collection takes nothing that is still wanted.
    project.git(&["gc", "--quiet", "--prune=now"]);
    project.undo().await;
    assert_eq!(project.read("a"), "22\n");
    project.git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn of_a_long_difference_the_beginning_is_shown_and_binary_files_are_named() {
    let project = Project::of(&[("a", "a\n")]).await;
    project.turn("seq 1 100000 > long; printf '\\0\\1' > binary").await;
    let DiffAnswer::Changes(diff) = project.client.diff(Vec::new()).await.unwrap() else { panic!("no record") };
    assert!(diff.truncated && diff.output.len() <= 256 * 1024 && diff.output.contains("Bin 0 -> 2 bytes"));
    let binary = project.diff(&["binary"]).await;
    assert!(binary.contains("Binary files /dev/null and b/binary differ") && !binary.contains("long"), "{binary}");
}
