//! The built-in stacks as they are shipped, and a person's own folder with every fault that is told apart.

use std::fs;
use std::path::Path;

use stacks::{Origin, StackError, StackName, Stacks, Toolchains};

fn name(text: &str) -> StackName {
    text.parse().expect("a stack's name")
}

/// Writes a valid stack and then the given files over it; `None` removes one.
fn write(own: &Path, stack: &str, files: &[(&str, Option<&str>)]) {
    let folder = own.join(stack);
    fs::create_dir_all(&folder).expect("a folder");
    let valid = [
        ("markers", Some("priority = 50\nbuild.zig\n")),
        ("Dockerfile.fragment", Some("RUN true\n")),
        ("Dockerfile.fragment.distro", Some("RUN true\n")),
    ];
    for (file, contents) in valid.iter().chain(files) {
        match contents {
            Some(contents) => fs::write(folder.join(file), contents).expect("a file"),
            None => fs::remove_file(folder.join(file)).expect("a file to remove"),
        }
    }
}

/// The refusal's text, with the temporary folder cut off.
fn refusal(stack: &str, files: &[(&str, Option<&str>)]) -> String {
    let own = tempfile::tempdir().expect("a folder");
    write(own.path(), stack, files);
    let error = Stacks::load(Some(own.path())).expect_err("a refusal");
    error.to_string().replace(&format!("{}/", own.path().display()), "")
}

#[test]
fn the_built_in_stacks_are_read() {
    let stacks = Stacks::builtin();
    let rust = stacks.get(&name("rust")).expect("rust is built in");
    assert_eq!((rust.origin(), rust.priority()), (&Origin::BuiltIn, 10));
    for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
        assert_eq!(rust.server(toolchains), Some("rust-analyzer"));
        assert!(rust.fragment(toolchains).text().contains("rust-analyzer"), "{toolchains:?} brings it");
    }
}

/// As docs/stacks.md has people do it who want one more Debian package.
#[test]
fn a_copy_of_a_built_in_stack_with_one_more_package_is_a_stack() {
    let own = tempfile::tempdir().expect("a folder");
    let builtin = Stacks::builtin();
    for stack in builtin.by_preference() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(stack.name().to_string());
        let to = own.path().join(format!("{}-more", stack.name()));
        copy(&from, &to);
        for fragment in ["Dockerfile.fragment", "Dockerfile.fragment.distro"] {
            let text = fs::read_to_string(to.join(fragment)).expect("it is there");
            let more = text.replacen("--no-install-recommends", "--no-install-recommends libpq-dev", 1);
            assert_ne!(more, text, "{fragment} of {} installs packages", stack.name());
            fs::write(to.join(fragment), more).expect("it can be changed");
        }
        let markers = fs::read_to_string(to.join("markers")).expect("it is there");
        let priority = format!("priority = {}", stack.priority());
        assert!(markers.contains(&priority), "{markers}");
        let raised = format!("priority = {}", stack.priority() + 100);
        fs::write(to.join("markers"), markers.replace(&priority, &raised)).expect("it can be changed");
    }
    let all = Stacks::load(Some(own.path())).expect("they are in order");
    for stack in builtin.by_preference() {
        let copy = all.get(&name(&format!("{}-more", stack.name()))).expect("it is there");
        assert_eq!(copy.patterns(), stack.patterns());
        assert_eq!(copy.priority(), stack.priority() + 100);
        for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
            assert!(copy.fragment(toolchains).text().contains("libpq-dev"), "{toolchains:?}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("it is readable") {
        let entry = entry.expect("it is readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

/// `/home` is mounted over at run time; and what is not on PATH by the image's own environment is not on every session's.
#[test]
fn built_in_toolchains_lie_outside_home() {
    let stacks = Stacks::builtin();
    for stack in stacks.by_preference() {
        for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
            let text = stack.fragment(toolchains).text();
            for line in text.lines().filter(|line| line.contains("/home") || line.contains("$HOME")) {
                assert!(line.starts_with("ENV "), "{}: {line}", stack.name());
            }
            assert!(!text.contains("/etc/profile") && !text.contains("bashrc"), "{}", stack.name());
        }
    }
}

#[test]
fn a_persons_own_stack_stands_beside_the_built_in_ones() {
    let own = tempfile::tempdir().expect("a folder");
    write(
        own.path(),
        "zig",
        &[("Dockerfile.fragment", Some("COPY setup.sh /tmp/\n")), ("setup.sh", Some("#!/bin/sh\n"))],
    );
    fs::create_dir(own.path().join(".git")).expect("a folder");
    fs::write(own.path().join("README"), "not a stack").expect("a file");
    let stacks = Stacks::load(Some(own.path())).expect("valid stacks");
    let zig = stacks.get(&name("zig")).expect("the own stack");
    assert_eq!(zig.origin(), &Origin::Own(own.path().join("zig")));
    assert_eq!(zig.files().iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["setup.sh"]);
    assert_eq!(stacks.detect(&["build.zig"]).stack(), Some(&name("zig")));
    assert!(stacks.get(&name("rust")).is_some());
}

#[test]
fn a_missing_folder_holds_no_stacks() {
    let own = tempfile::tempdir().expect("a folder");
    let stacks = Stacks::load(Some(&own.path().join("stacks"))).expect("no folder is no fault");
    assert!(stacks.names().eq(Stacks::builtin().names()));
}

#[test]
fn a_bad_stack_is_refused_by_file_and_line() {
    assert_eq!(
        refusal("zig", &[("Dockerfile.fragment", Some("RUN true\nUSER root\n"))]),
        "zig/Dockerfile.fragment:2: USER is not allowed in a stack; use RUN, ENV, ARG or COPY"
    );
    assert_eq!(
        refusal("zig", &[("Dockerfile.fragment.distro", Some("RUN true\n# c\nINSTAL zig\n"))]),
        "zig/Dockerfile.fragment.distro:3: \"INSTAL\" is no instruction; a stack uses RUN, ENV, ARG and COPY"
    );
    assert_eq!(
        refusal("zig", &[("markers", Some("priority = 1\nsrc/main.zig\n"))]),
        "zig/markers:2: \"src/main.zig\" is no file name: visible ASCII without `/`, with `*` for any run of characters, and not `*` alone"
    );
    assert_eq!(
        refusal("zig", &[("markers", None)]),
        "zig/markers is missing: a stack is a folder with Dockerfile.fragment, Dockerfile.fragment.distro and markers"
    );
    assert_eq!(refusal("rust", &[]), "rust: a stack named rust is built in; rename the folder");
    assert!(refusal("Zig", &[]).starts_with("Zig: \"Zig\" is no stack name"));
}

#[test]
fn a_check_tells_all_that_is_wrong_and_what_is_right() {
    let own = tempfile::tempdir().expect("a folder");
    write(own.path(), "zig", &[("markers", Some("priority = 1\n")), ("Dockerfile.fragment", Some("USER x\n"))]);
    write(own.path(), "heron", &[("markers", Some("priority = 5\nserver = heron-server\nheron.toml\n"))]);
    write(own.path(), "rust", &[]);
    let checked = Stacks::check(own.path()).expect("a folder of stacks");
    let shown: Vec<Vec<String>> = checked
        .iter()
        .map(|checked| match &checked.result {
            Ok(stack) => vec![format!("{} {}", stack.name(), stack.server(Toolchains::Distro).unwrap_or_default())],
            Err(faults) => {
                let cut = |text: String| text.replace(&format!("{}/", own.path().display()), "");
                faults.iter().map(|fault| cut(fault.to_string())).collect()
            }
        })
        .collect();
    assert_eq!(
        shown,
        [
            vec!["heron heron-server".to_owned()],
            vec!["rust: a stack named rust is built in; rename the folder".to_owned()],
            vec![
                "zig/markers:1: no file name is listed".to_owned(),
                "zig/Dockerfile.fragment:1: USER is not allowed in a stack; use RUN, ENV, ARG or COPY".to_owned(),
            ],
        ]
    );
    assert!(Stacks::check(&own.path().join("none")).expect("no folder is no fault").is_empty());
}

#[test]
fn a_link_is_not_followed_out_of_the_folder() {
    let own = tempfile::tempdir().expect("a folder");
    write(own.path(), "zig", &[]);
    std::os::unix::fs::symlink("/etc/passwd", own.path().join("zig/passwd")).expect("a link");
    assert!(matches!(Stacks::load(Some(own.path())), Err(StackError::NotAFile { .. })));
}
