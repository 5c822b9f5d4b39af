//! Tags follow contents, and bad inputs are refused.

use std::io::Write as _;

use stacks::Stacks;

use super::*;

fn sled(contents: &str) -> SledBinary {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(contents.as_bytes()).expect("a write");
    SledBinary::open(file.path()).expect("a binary")
}

fn inputs(stack: Option<&Stack>) -> ImageInputs<'_> {
    ImageInputs {
        base: BaseImage::Bootstrap { mirror: None },
        stack,
        toolchains: Toolchains::Distro,
        with_agent: true,
        npm_registry: None,
        uid: 1000,
        gid: 1000,
        ca_bundle: None,
        proxies: Proxies::default(),
        sled: sled("one"),
    }
}

fn tags(inputs: &ImageInputs<'_>) -> Vec<String> {
    ImagePlan::new(inputs).expect("a plan").layers().map(|(_, tag)| tag.to_owned()).collect()
}

fn certificate(body: &str) -> Vec<u8> {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n").into_bytes()
}

#[test]
fn the_chain_holds_what_was_asked_for() {
    let stacks = Stacks::builtin();
    let rust = stacks.get(&"rust".parse().expect("a name"));
    let names = |inputs: &ImageInputs<'_>| {
        ImagePlan::new(inputs).expect("a plan").layers().map(|(layer, _)| layer.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&inputs(rust)), ["root", "base", "agent", "stack-rust", "node"]);
    assert_eq!(names(&ImageInputs { with_agent: false, ..inputs(None) }), ["root", "base", "node"]);
    let own = BaseImage::Own { reference: format!("debian@sha256:{}", "0".repeat(64)) };
    assert_eq!(names(&ImageInputs { base: own, with_agent: false, ..inputs(None) }), ["base", "node"]);
    let plan = ImagePlan::new(&inputs(rust)).expect("a plan");
    assert!(plan.tag().starts_with("musher-node:") && plan.tag().len() == "musher-node:".len() + 12);
}

/// STK-3: from the first layer that a change concerns, every tag is another; those before are the same.
#[test]
fn a_tag_changes_if_and_only_if_the_contents_do() {
    let stacks = Stacks::builtin();
    let rust = stacks.get(&"rust".parse().expect("a name"));
    let before = tags(&inputs(rust));
    assert_eq!(before, tags(&inputs(rust)), "the same inputs give the same tags");
    let mirror = BaseImage::Bootstrap { mirror: Some("http://mirror.example/debian".to_owned()) };
    let changes = [
        ("mirror", 0, ImageInputs { base: mirror, ..inputs(rust) }),
        ("certificates", 1, ImageInputs { ca_bundle: Some(certificate("AAAA")), ..inputs(rust) }),
        ("toolchains", 3, ImageInputs { toolchains: Toolchains::Upstream, ..inputs(rust) }),
        ("uid", 4, ImageInputs { uid: 1001, ..inputs(rust) }),
        ("gid", 4, ImageInputs { gid: 1001, ..inputs(rust) }),
        ("sled", 4, ImageInputs { sled: sled("two"), ..inputs(rust) }),
    ];
    for (what, from, changed) in changes {
        let after = tags(&changed);
        for (index, (old, new)) in before.iter().zip(&after).enumerate() {
            assert_eq!(old == new, index < from, "{what}: layer {index}");
        }
    }
    let one = tags(&ImageInputs { ca_bundle: Some(certificate("AAAA")), ..inputs(rust) });
    let other = tags(&ImageInputs { ca_bundle: Some(certificate("BBBB")), ..inputs(rust) });
    assert_ne!(one[1], other[1]);
}

/// Where the same bytes come from is in no tag.
#[test]
fn proxies_and_package_mirrors_are_in_no_tag() {
    let proxies = Proxies::new(Some("http://proxy.example:3128"), None, Some("localhost,.example")).expect("proxies");
    let routed = ImageInputs { proxies, npm_registry: Some("https://npm.example/".to_owned()), ..inputs(None) };
    assert_eq!(tags(&routed), tags(&inputs(None)));
    let plan = ImagePlan::new(&routed).expect("a plan");
    let names: Vec<_> = plan.routes.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "NPM_CONFIG_REGISTRY"]);
}

#[test]
fn a_users_own_stack_counts_with_its_files() {
    let own = tempfile::tempdir().expect("a folder");
    let folder = own.path().join("zig");
    let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).expect("a file");
    std::fs::create_dir(&folder).expect("a folder");
    write("markers", "priority = 1\nbuild.zig\n");
    write("Dockerfile.fragment", "COPY setup /tmp/\n");
    write("Dockerfile.fragment.distro", "COPY setup /tmp/\n");
    write("setup", "one");
    let tag = || {
        let stacks = Stacks::load(Some(own.path())).expect("stacks");
        tags(&inputs(stacks.get(&"zig".parse().expect("a name"))))[3].clone()
    };
    let before = tag();
    write("markers", "priority = 2\nbuild.zig\n");
    assert_eq!(before, tag(), "markers are in no image");
    write("setup", "two");
    assert_ne!(before, tag());
}

#[test]
fn bad_inputs_are_refused() {
    let refusal = |inputs: ImageInputs<'_>| ImagePlan::new(&inputs).expect_err("a refusal");
    assert!(matches!(refusal(ImageInputs { uid: 0, ..inputs(None) }), PlanError::Root { uid: 0, gid: 1000 }));
    assert!(matches!(refusal(ImageInputs { gid: 0, ..inputs(None) }), PlanError::Root { uid: 1000, gid: 0 }));
    let digest = "0".repeat(64);
    for reference in [
        "debian:trixie",
        "debian",
        "",
        "@sha256:",
        &format!("@sha256:{digest}"),
        &format!("debian@sha256:{}", &digest[1..]),
        &format!("a\nb@sha256:{digest}"),
    ] {
        let base = BaseImage::Own { reference: reference.to_owned() };
        assert!(matches!(refusal(ImageInputs { base, ..inputs(None) }), PlanError::BaseNotPinned(_)), "{reference:?}");
    }
    for mirror in ["mirror.example", "ftp://mirror.example", "http://", "http://a b"] {
        let base = BaseImage::Bootstrap { mirror: Some(mirror.to_owned()) };
        assert!(matches!(refusal(ImageInputs { base, ..inputs(None) }), PlanError::Url { .. }), "{mirror}");
    }
    let registry = Some("https://user:word@npm.example/".to_owned());
    assert!(matches!(refusal(ImageInputs { npm_registry: registry, ..inputs(None) }), PlanError::Credentials { .. }));
    assert!(matches!(SledBinary::open(Path::new("/nowhere/sled")), Err(PlanError::Sled { .. })));
}

/// Invariant 7: what would be visible in `inspect` and in every process's environment carries no credential.
#[test]
fn proxies_with_credentials_are_refused() {
    assert!(matches!(
        Proxies::new(Some("http://user:word@proxy:3128"), None, None),
        Err(PlanError::Credentials { what: "http_proxy" })
    ));
    assert!(matches!(
        Proxies::new(None, Some("http://user@proxy:3128"), None),
        Err(PlanError::Credentials { what: "https_proxy" })
    ));
    assert!(matches!(
        Proxies::new(Some("user:word@proxy:3128"), None, None),
        Err(PlanError::Credentials { what: "http_proxy" })
    ));
    assert!(matches!(Proxies::new(Some("socks5://proxy"), None, None), Err(PlanError::Url { what: "http_proxy" })));
    assert!(Proxies::new(Some("http://proxy:3128/a@b"), None, Some("a,b")).is_ok());
}

#[test]
fn proxies_are_taken_as_people_set_them() {
    let taken = |http: &str, no_proxy: &str| {
        let proxies = Proxies::new(Some(http), None, Some(no_proxy)).expect("curl takes them, too");
        let of = |name| proxies.variables().iter().find(|(known, _)| *known == name).expect("it is set").1.clone();
        assert_eq!((of("HTTP_PROXY"), of("NO_PROXY")), (of("http_proxy"), of("no_proxy")));
        [of("http_proxy"), of("no_proxy")]
    };
    assert_eq!(taken("proxy.corp:3128", "localhost, 127.0.0.1"), ["http://proxy.corp:3128", "localhost,127.0.0.1"]);
    assert_eq!(taken(" https://proxy:3128/ ", " a ,,.b\tc, *"), ["https://proxy:3128/", "a,.b,c,*"]);
    assert!(matches!(Proxies::new(Some(" "), None, None), Err(PlanError::Url { what: "http_proxy" })));
    assert!(matches!(Proxies::new(None, None, Some("a\nb")), Err(PlanError::Hosts { what: "no_proxy" })));
}

/// STK-4: what is fetched is checked before it is unpacked, and nothing is piped into a shell.
#[test]
fn the_agents_download_is_checked_by_digest() {
    let pack = AGENT_FETCH.find("npm pack").expect("a download");
    let check = AGENT_FETCH.find("sha512sum --check --strict").expect("a check");
    let unpack = AGENT_FETCH.find("tar -xzf").expect("an unpacking");
    assert!(pack < check && check < unpack);
    for text in [BASE, AGENT_FETCH, AGENT, NODE] {
        assert!(!text.contains("| sh ") && !text.contains("| bash"), "{text}");
        assert_eq!(
            text.matches("apt-get update").count(),
            text.matches("rm -rf /var/lib/apt/lists/*").count(),
            "{text}"
        );
        assert!(!text.contains("--mount"), "{text}");
    }
}
