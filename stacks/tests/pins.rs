//! What every built-in fragment keeps (STK-4), also where its makers' hosts cannot be reached to try it: exact
//! versions, a digest for each download that is checked before anything else is done with it, nothing piped into a
//! shell, and package managers only in the form in which they check digests themselves.
//!
//! The shell is read as the fragments write it: one command after another, joined by `;` or `&&`. A fragment that is
//! written in another way fails here, and is to be written in this one.

use stacks::{File, Stack, Stacks, Toolchains};

/// The commands of each RUN, in order, with their words as they stand.
fn runs(text: &str) -> Vec<Vec<String>> {
    let mut instructions = vec![String::new()];
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let last = instructions.last_mut().expect("there is always one");
        if let Some(head) = line.strip_suffix('\\') {
            last.push_str(head);
        } else {
            last.push_str(line);
            instructions.push(String::new());
        }
    }
    let runs = instructions.iter().filter_map(|instruction| instruction.strip_prefix("RUN "));
    runs.map(|run| {
        let commands = run.replace("&&", ";").replace(";;", ";");
        commands.split(';').map(|command| command.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    })
    .collect()
}

/// `ARG NAME=value`, without those that only say where the same bytes come from.
fn arguments(text: &str) -> Vec<(&str, &str)> {
    let arguments = text.lines().filter_map(|line| line.strip_prefix("ARG "));
    arguments
        .filter(|argument| *argument != "NPM_CONFIG_REGISTRY")
        .map(|a| a.split_once('=').unwrap_or((a, "")))
        .collect()
}

fn is_exact(version: &str) -> bool {
    let release = version.split_once('+').map_or(version, |(release, build)| {
        assert!(build.bytes().all(|b| b.is_ascii_digit()), "{version}");
        release
    });
    let numbers: Vec<&str> = release.split('.').collect();
    let dated = release.len() >= 8;
    numbers.iter().all(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        && (numbers.len() >= 3 || dated)
}

fn is_digest(text: &str, bits: usize) -> bool {
    text.len() == bits / 4 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The value that follows `flag`.
fn after<'a>(command: &'a str, flag: &str) -> Option<&'a str> {
    command.split_once(&format!("{flag} "))?.1.split(' ').next()
}

/// The file that this command checks, and whether the digest is one: in its place, or in `digest=` before it.
fn checked<'a>(command: &'a str, before: &[String]) -> Option<&'a str> {
    let (echo, check) = command.split_once(" | ")?;
    let bits = match check {
        "sha256sum --check --strict -" => 256,
        "sha512sum --check --strict -" => 512,
        _ => return None,
    };
    let (digest, file) = echo.strip_prefix("echo \"")?.strip_suffix('"')?.split_once(' ')?;
    let good = if digest == "${digest}" {
        let all: Vec<&str> = before.iter().filter_map(|c| Some(c.split_once("digest=")?.1)).collect();
        !all.is_empty() && all.iter().all(|digest| is_digest(digest.trim(), bits))
    } else {
        is_digest(digest, bits)
    };
    good.then_some(file.trim_start())
}

fn all() -> Vec<Stack> {
    Stacks::builtin().by_preference().cloned().collect()
}

#[test]
fn there_are_the_six_in_their_order() {
    let stacks = all();
    let names: Vec<&str> = stacks.iter().map(|stack| stack.name().as_str()).collect();
    assert_eq!(names, ["rust", "go", "jvm", "python", "ruby", "node"]);
    for stack in &stacks {
        for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
            let says = (stack.server(toolchains), stack.missing(toolchains));
            assert!(matches!(says, (Some(_), None) | (None, Some(_))), "{}: {toolchains:?}: {says:?}", stack.name());
        }
        assert!(stack.server(Toolchains::Upstream).is_some(), "{}", stack.name());
    }
}

#[test]
fn versions_are_exact() {
    for stack in all() {
        let text = stack.fragment(Toolchains::Upstream).text();
        let arguments = arguments(text);
        assert!(!arguments.is_empty(), "{} pins nothing", stack.name());
        for (name, version) in arguments {
            assert!(name.ends_with("_VERSION") && is_exact(version), "{}: {name}={version}", stack.name());
            assert!(text.contains(&format!("${{{name}")), "{}: {name} is not used", stack.name());
        }
        assert_eq!(arguments_of(&stack, Toolchains::Distro), [], "{}: the distribution decides", stack.name());
    }
    for inexact in ["1", "1.2", "latest", "1.2.x", "^1.2.3", "1.2.3-rc1", ""] {
        assert!(!is_exact(inexact), "{inexact}");
    }
}

fn arguments_of(stack: &Stack, toolchains: Toolchains) -> Vec<(String, String)> {
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    arguments(stack.fragment(toolchains).text()).into_iter().map(own).collect()
}

/// What is wrong with the downloads of a fragment.
fn download_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut urls = 0;
    for commands in runs(text) {
        for (index, command) in commands.iter().enumerate() {
            if ["curl", "wget", "http:", "https:", "ftp:"].iter().all(|word| !command.contains(word)) {
                continue;
            }
            urls += command.matches("https://").count();
            let form = "curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --output ";
            if !command.starts_with(form) || command.matches("://").count() != 1 || command.contains('|') {
                faults.push(format!("no download of the known form: {command}"));
            }
            if !command.contains("_VERSION}") && !command.contains("${release}") {
                faults.push(format!("no pinned version in the address: {command}"));
            }
            let next = commands.get(index + 1).map(String::as_str).unwrap_or_default();
            let file = after(command, "--output");
            if file.is_none() || file != checked(next, &commands[..index]) {
                faults.push(format!("not checked by digest at once: {command}"));
            }
        }
    }
    if urls != text.matches("https://").count() {
        faults.push("an address outside a download".to_owned());
    }
    faults
}

#[test]
fn every_download_is_checked_by_digest_before_it_is_used() {
    for stack in all() {
        let faults = download_faults(stack.fragment(Toolchains::Upstream).text());
        assert_eq!(faults, Vec::<String>::new(), "{}", stack.name());
    }
    let good = "ARG X_VERSION=1.2.3\nRUN digest=".to_owned()
        + &"0".repeat(64)
        + "; curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --output /tmp/x \\\n \"https://x.example/${X_VERSION}\"; \\\n"
        + "  echo \"${digest}  /tmp/x\" | sha256sum --check --strict -; sh /tmp/x\n";
    assert_eq!(download_faults(&good), Vec::<String>::new());
    for (from, to) in [
        ("0000;", "000;"),
        ("sha256sum --check", "sha512sum --check"),
        ("echo", "sh /tmp/x; echo"),
        ("\" | sha", "2\" | sha"),
        ("--output /tmp/x", "--output /tmp/y"),
        ("--location", "--insecure --location"),
        ("${X_VERSION}", "latest"),
        ("curl", "wget; curl"),
        ("RUN", "ENV A=https://x.example\nRUN"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert_ne!(download_faults(&bad), Vec::<String>::new(), "{from} → {to}");
    }
}

#[test]
fn both_architectures_are_pinned_and_any_other_is_refused_in_words() {
    for stack in all() {
        for commands in runs(stack.fragment(Toolchains::Upstream).text()) {
            let run = commands.join("; ");
            if !run.contains("${target}") {
                continue;
            }
            let arms: Vec<&str> = ["amd64)", "arm64)", "*)"].into_iter().filter(|arm| run.contains(arm)).collect();
            assert_eq!(arms, ["amd64)", "arm64)", "*)"], "{}", stack.name());
            assert!(run.contains("set toolchains = \\\"distro\\\"\" >&2; exit 1"), "{}", stack.name());
            let digests: Vec<&str> = commands.iter().filter_map(|c| Some(c.split_once("digest=")?.1)).collect();
            assert!(digests.len() == 2 && digests[0] != digests[1], "{}: {digests:?}", stack.name());
        }
    }
}

#[test]
fn nothing_is_piped_into_a_shell() {
    for stack in all() {
        for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
            for command in runs(stack.fragment(toolchains).text()).into_iter().flatten() {
                let into = command.split('|').skip(1).map(|rest| rest.split_whitespace().next().unwrap_or_default());
                let harmless = into.into_iter().all(|word| ["sha256sum", "sha512sum"].contains(&word));
                let evaluated = ["eval ", "sh -c", "<(", "source "].iter().any(|word| command.contains(word));
                assert!(harmless && !evaluated, "{}: {command}", stack.name());
            }
        }
    }
}

/// Package managers check digests when they are asked in the right way; in any other they are not used.
#[test]
fn package_managers_are_used_only_where_they_check_digests() {
    let forms = [
        ("apt-get", "apt-get update"),
        ("apt-get", "apt-get install -y --no-install-recommends "),
        ("npm", "npm ci --ignore-scripts "),
        ("pip", "/opt/language-server/venv/bin/pip install --require-hashes --only-binary :all: --no-deps "),
        ("gem", "gem fetch "),
        ("gem", "gem install --local --ignore-dependencies "),
        ("rustup-init", "RUSTUP_DIST_SERVER=file:///tmp/rust CARGO_HOME=/opt/rust/cargo /tmp/rustup-init -y "),
        ("go", "go install \"golang.org/x/tools/gopls@v${GOPLS_VERSION}\""),
    ];
    for stack in all() {
        for toolchains in [Toolchains::Upstream, Toolchains::Distro] {
            for commands in runs(stack.fragment(toolchains).text()) {
                for (index, command) in commands.iter().enumerate() {
                    let word = command.split(' ').find(|word| !word.contains('=')).unwrap_or_default();
                    let program = word.rsplit('/').next().unwrap_or_default();
                    let known: Vec<_> = forms.iter().filter(|(name, _)| *name == program).collect();
                    let other =
                        ["npx", "pip3", "cargo", "rustup", "bundle", "mvn", "pipx", "uv", "yarn", "pnpm", "corepack"];
                    assert!(!other.contains(&program), "{}: {command}", stack.name());
                    assert!(
                        known.is_empty() || known.iter().any(|(_, form)| command.starts_with(form)),
                        "{}: {command}",
                        stack.name()
                    );
                    if toolchains == Toolchains::Distro {
                        assert!(
                            known.is_empty() || program == "apt-get",
                            "{}: packages alone: {command}",
                            stack.name()
                        );
                    }
                    if command.starts_with("gem fetch") {
                        let next = commands.get(index + 1).map(String::as_str).unwrap_or_default();
                        assert!(
                            checked(next, &[])
                                .is_some_and(|file| file.starts_with(after(command, "fetch").unwrap_or("?"))),
                            "{command}"
                        );
                    }
                    // Go checks modules against its checksum database unless it is told not to.
                    let against = ["GOSUMDB", "GONOSUM", "GOFLAGS", "GOINSECURE", "GOPRIVATE", "GOPROXY"];
                    assert!(against.iter().all(|word| !command.contains(word)), "{}: {command}", stack.name());
                }
            }
        }
        let distro = stack.fragment(Toolchains::Distro).text();
        assert!(["curl", "wget", "://", "COPY"].iter().all(|word| !distro.contains(word)), "{}", stack.name());
    }
}

fn file(stack: &str, path: &str) -> String {
    let stacks = Stacks::builtin();
    let stack = stacks.get(&stack.parse().expect("a name")).expect("it is built in");
    let found: Option<&File> = stack.files().iter().find(|file| file.path == path);
    String::from_utf8(found.unwrap_or_else(|| panic!("there is {path}")).contents.clone()).expect("it is text")
}

#[test]
fn the_lists_of_packages_have_exact_versions_and_digests() {
    let lock = file("node", "language-server/package-lock.json");
    let packages = lock.matches("\"node_modules/").count();
    assert!(packages > 0);
    assert_eq!(lock.matches("\"integrity\": \"sha512-").count(), packages, "each package has a digest");
    assert!(!lock.contains("\"resolved\""), "where a package comes from is npm's setting");
    let wanted = file("node", "language-server/package.json");
    let versions: Vec<&str> = wanted
        .lines()
        .skip_while(|line| !line.contains("\"dependencies\""))
        .skip(1)
        .take_while(|line| !line.contains('}'))
        .filter_map(|line| line.trim().trim_end_matches(',').split_once(": \"")?.1.strip_suffix('"'))
        .collect();
    assert!(!versions.is_empty() && versions.iter().all(|version| is_exact(version)), "{versions:?}");

    let list = file("python", "language-server/requirements.txt");
    let mut packages = 0;
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let line = line.trim_end_matches(" \\");
        if let Some(hash) = line.strip_prefix("    --hash=sha256:") {
            assert!(is_digest(hash, 256), "{line}");
        } else {
            let (name, rest) = line.split_once("==").unwrap_or_else(|| panic!("no exact version: {line}"));
            let version = rest.split(' ').next().unwrap_or_default();
            assert!(!name.contains(' ') && version.bytes().all(|b| b.is_ascii_digit() || b == b'.'), "{line}");
            packages += 1;
        }
    }
    assert!(packages > 5);
    let listed = list.lines().filter(|line| !line.starts_with('#') && line.contains("==")).count();
    assert_eq!(listed, packages, "one line for each");
}
