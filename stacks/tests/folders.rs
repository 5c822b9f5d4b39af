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
    assert_eq!(rust.origin(), &Origin::BuiltIn);
    for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
        assert!(
            rust.fragment(toolchains).text().contains("rust-analyzer"),
            "{toolchains:?} brings the language server"
        );
    }
}

/// STK-4, as far as a text can show it: every download is checked by digest, and none is piped into a shell.
#[test]
fn built_in_downloads_are_pinned_and_checked() {
    let stacks = Stacks::builtin();
    for stack in stacks.names() {
        let stack = stacks.get(stack).expect("a listed stack");
        let upstream = stack.fragment(Toolchains::Upstream).text();
        let downloads = upstream.matches("curl ").count() + upstream.matches("wget ").count();
        assert_eq!(
            downloads,
            upstream.matches("sha256sum --check --strict").count(),
            "{}: a digest for each download",
            stack.name()
        );
        let distro = stack.fragment(Toolchains::Distro).text();
        assert!(!distro.contains("curl ") && !distro.contains("wget "), "{}: packages alone", stack.name());
        for fragment in [upstream, distro] {
            let shells = fragment.split('|').skip(1).map(str::trim_start);
            assert!(
                shells.into_iter().all(|rest| !rest.starts_with("sh") || rest.starts_with("sha256sum")),
                "{}",
                stack.name()
            );
            assert!(!fragment.contains("| bash"), "{}", stack.name());
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
fn a_link_is_not_followed_out_of_the_folder() {
    let own = tempfile::tempdir().expect("a folder");
    write(own.path(), "zig", &[]);
    std::os::unix::fs::symlink("/etc/passwd", own.path().join("zig/passwd")).expect("a link");
    assert!(matches!(Stacks::load(Some(own.path())), Err(StackError::NotAFile { .. })));
}
