//! Bad input: each is refused in a clear sentence with what to do next, and nothing is left behind.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tests::{
    engine::Holdings,
    gateway::Gateway,
    home::Home,
    process::{self, Output},
    product, wait,
};
use tokio::process::Command;

/// Whatever a refusal must not change.
async fn state(home: &Home) -> Result<(Holdings, BTreeSet<PathBuf>)> {
    Ok((home.holdings().await?, home.tree()?))
}

#[tokio::test]
async fn what_cannot_be_a_project_is_refused_and_leaves_nothing() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    // There is one project, so that the gateway's label on the engine is known, and names can be taken.
    gateway.make("taken", "").await?;
    let root = home.path().join("musher");
    for (folder, file) in [("full", "something.txt"), ("repository/.git", "HEAD")] {
        fs::create_dir_all(root.join(folder))?;
        fs::write(root.join(folder).join(file), "mine")?;
    }
    fs::create_dir(root.join("open"))?;
    fs::set_permissions(root.join("open"), fs::Permissions::from_mode(0o777))?;
    fs::write(root.join("file"), "mine")?;
    std::os::unix::fs::symlink("/etc", root.join("link"))?;
    let at = |place: &str| format!("--path {}", root.join(place).display());
    let outside = home.path().join("outside");
    let inner = home.project("taken").join("inner");

    let cases: Vec<(String, &str)> = vec![
        // Names. `!` makes each a command, whatever it looks like.
        ("Upper".into(), "`Upper`"),
        ("1st".into(), "`1st`"),
        ("-dash".into(), "-d"),
        ("under_score".into(), "`under_score`"),
        ("../up".into(), "`../up`"),
        ("'a b'".into(), "`a b`"),
        ("ümlaut".into(), "`ümlaut`"),
        ("a234567890123456789012345678901x".into(), "31"),
        ("''".into(), "name"),
        ("musher".into(), "reserved"),
        ("localhost".into(), "reserved"),
        // Twice the same.
        ("taken".into(), "taken"),
        // Stacks.
        ("a --stack cobol".into(), "cobol"),
        ("a --stack ../rust".into(), "../rust"),
        // Paths.
        ("a --path /".into(), "`/`"),
        ("a --path ~/".into(), "folder"),
        ("a --path relative/path".into(), "absolute"),
        ("a --path /etc/musher-test".into(), "/etc/musher-test"),
        ("a --path /proc/self".into(), "/proc/"),
        (format!("a --path {}", outside.display()), "roots"),
        (format!("a --path {}/../../etc", root.display()), ".."),
        (format!("a --path {}", home.state().display()), "state directory"),
        (format!("a --path {}", home.state().join("projects/x").display()), "state directory"),
        (format!("a --path {}", inner.display()), "taken"),
        (format!("a {}", at("full")), "full"),
        (format!("a {}", at("repository")), "--adopt"),
        (format!("a {} --adopt", at("full")), "full"),
        (format!("a {} --adopt", at("missing")), "missing"),
        (format!("a {}", at("file")), "file"),
        (format!("a {}", at("link")), "link"),
        (format!("a {}", at("open/inside")), "open"),
        // Addresses.
        ("a --git ext::sh".into(), "address"),
        ("a --git 'ext::sh -c id'".into(), "address"),
        ("a --git=-x".into(), "address"),
        ("a --git=--upload-pack=id".into(), "address"),
        ("a --git file:///etc".into(), "https"),
        ("a --git http://example.org/x.git".into(), "http"),
        ("a --git git://example.org/x.git".into(), "https"),
        ("a --git /etc".into(), "/etc"),
        (format!("a --git {}", outside.display()), "outside"),
        ("a --git https://ann:hunter2@example.org/x.git".into(), "credential"),
        ("a --git https://ghp_hunter2@example.org/x.git".into(), "credential"),
        ("a --git http://127.0.0.1:1/nobody.git".into(), "127.0.0.1"),
        ("a --git ssh://git@127.0.0.1:1/nobody.git".into(), "127.0.0.1"),
        ("a --git ssh://git:hunter2@example.org/x.git".into(), "credential"),
        ("a --git ssh://git@10.1.2.3/x.git".into(), "allow_hosts"),
        ("a --git git@169.254.169.254:x.git".into(), "allow_hosts"),
        ("a --git https://10.1.2.3/x.git".into(), "allow_hosts"),
        ("a --git git@nowhere.invalid:x.git".into(), "nowhere.invalid"),
        ("a --git ssh://-oProxyCommand=id/x".into(), "address"),
        ("a --git git@-oProxyCommand=id:x".into(), "address"),
        ("a --git git@example.org:-x".into(), "address"),
        ("a --git git@example.org:../x".into(), "address"),
        // Limits and options.
        ("a --cpus 0".into(), "cpus"),
        ("a --cpus nan".into(), "cpus"),
        ("a --cpus=-1".into(), "cpus"),
        ("a --memory 1k".into(), "memory"),
        ("a --memory lots".into(), "memory"),
        ("a --depth 0 --git https://example.org/x.git".into(), "depth"),
        ("a --branch main".into(), "--git"),
        ("a --adopt --git https://example.org/x.git".into(), "--adopt"),
        ("a --stak rust".into(), "--stack"),
        ("a b".into(), "b"),
        (String::new(), "name"),
    ];
    let before = state(&home).await?;
    assert_eq!((before.0.containers.len(), before.0.networks.len()), (1, 1), "the one project is seen: {:?}", before.0);
    let mut wrong = String::new();
    for (words, expected) in cases {
        let line = format!("!new project {words}");
        let answer = gateway.ask(&line).await?;
        let after = state(&home).await?;
        let named = answer.to_lowercase().contains(&expected.to_lowercase());
        let refused = answer.contains('⚠') && !answer.contains("is ready");
        if !(named && refused && after == before && !answer.contains("hunter2") && !answer.contains("panicked")) {
            let left: Vec<_> = after.1.difference(&before.1).collect();
            writeln!(wrong, "`{line}` (wanted `{expected}`, left {left:?}, {:?}):\n{answer}", after.0)?;
        }
    }
    assert!(wrong.is_empty(), "not clearly refused, or something was left:\n{wrong}");
    let listed = gateway.ask("projects").await?;
    assert!(listed.contains("taken"), "{listed}");
    let all = gateway.all();
    gateway.finish().await?;
    // A credential that was typed is masked before anything is stored.
    let kept = String::from_utf8_lossy(&fs::read(home.state().join("journal.db"))?).into_owned();
    assert!(!kept.contains("hunter2") && !all.contains("hunter2"), "a typed credential was stored or shown");
    Ok(())
}

#[tokio::test]
async fn commands_about_projects_that_are_not_there_say_so() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    for (line, expected) in [
        ("switch nowhere", "nowhere"),
        ("ssh nowhere", "nowhere"),
        ("delete project nowhere", "`nowhere`.\n`projects` lists them."),
        ("confirm delete nowhere", "`nowhere`.\n`projects` lists them."),
        ("!git status", "new project"),
        ("logs", "new project"),
        ("!stattus", "status"),
        ("!git \"", "quotation"),
        ("!", "help"),
        ("!help nonsense", "nonsense"),
    ] {
        let answer = gateway.ask(line).await?;
        assert!(answer.contains('⚠') && answer.contains(expected), "`{line}` (wanted `{expected}`):\n{answer}");
    }
    let absent = home.run(["ssh", "nowhere", "true"], "").await?;
    assert_refused(&absent, "nowhere", |code| code != 0);
    let absent = home.run(["ssh-proxy", "nowhere"], "").await?;
    assert_refused(&absent, "nowhere", |code| code != 0);
    assert_eq!(home.holdings().await?, Holdings::default());
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_second_gateway_on_the_same_directory_is_refused_by_pid() -> Result<()> {
    let home = Home::practice().await?;
    let gateway = Gateway::console(&home).await?;
    let before = home.tree()?;
    let second = home.run(["up"], "").await?;
    assert_refused(&second, &gateway.pid()?.to_string(), |code| code == 69);
    assert_eq!(home.tree()?, before);
    assert_eq!(home.health().await?.map(|(status, _)| status), Some(200), "the first one goes on");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn without_an_engine_every_command_says_so_and_nothing_is_made() -> Result<()> {
    let nothing = "/nonexistent/docker.sock";
    let home = Home::new("", &format!("[agent]\nruntime = \"echo\"\n\n[engine]\nhost = \"unix://{nothing}\""))?;
    let mut gateway = Gateway::start(&home, &[])?;
    let before_trees = |home: &Home| home.project("a").exists();
    gateway.write("new project a").await?;
    gateway.write("!the-end").await?;
    let answer = gateway.expect("the-end", wait::SHORT).await?;
    assert!(answer.contains('⚠') && answer.contains("engine") && answer.contains(nothing), "{answer}");
    assert!(!before_trees(&home), "no folder is left");
    assert_eq!(fs::read_dir(home.state().join("projects"))?.count(), 0, "nothing is left in the state directory");
    gateway.finish().await?;
    let doctor = home.run(["doctor"], "").await?;
    assert!(doctor.code != Some(0) && doctor.text().contains(nothing), "{doctor}");
    let images = home.run(["images", "build"], "").await?;
    assert_refused(&images, "engine", |code| code == 69);
    Ok(())
}

#[tokio::test]
async fn bad_settings_are_refused_by_file_and_line_with_the_nearest_key() -> Result<()> {
    for (text, line, expected) in [
        ("transprot = \"console\"\n", ":1", "transport"),
        ("[agent]\nruntim = \"echo\"\n", ":2", "runtime"),
        ("[agent]\nruntime = \"ecco\"\n", ":2", "echo"),
        ("max_queue = \"many\"\n", ":1", "max_queue"),
        ("coalesce_window_ms = 9000\ncoalesce_max_ms = 100\n", "", "coalesce_max_ms"),
        ("transport = \"matrix\"\n", "", "homeserver"),
        ("[projects]\nuid = 0\n", ":2", "uid"),
        ("[http]\nlisten = \"0.0.0.0\"\n", ":2", "listen"),
        ("this is not toml\n", ":1", ""),
    ] {
        let home = Home::new("", "")?;
        home.write_config(text)?;
        let before = home.tree()?;
        for args in [&["config", "check"][..], &["up"], &["doctor"]] {
            let refused = home.run(args, "").await?;
            assert_refused(&refused, expected, |code| code == 78);
            let said = refused.text();
            assert!(said.contains(&format!("bot.toml{line}")), "file and line are named: {refused}");
        }
        assert_eq!(home.tree()?, before, "{text}");
    }
    let home = Home::new("", "")?;
    home.run(["config", "check"], "").await?.success()?;
    let example = home.run(["config", "example"], "").await?.success()?;
    home.write_config(&example)?;
    home.run(["config", "check"], "").await?.success()?;
    Ok(())
}

#[tokio::test]
async fn without_a_usable_home_it_says_so() -> Result<()> {
    let home = Home::new("", "")?;
    let file = home.path().join("a-file");
    fs::write(&file, "mine")?;
    let open = home.path().join("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    let before = home.tree()?;
    let below = file.join("below");
    let cases: [(&[(&str, &Path)], &str); 5] = [
        (&[("HOME", home.path()), ("MUSHER_HOME", &below)], "a-file"),
        (&[("HOME", home.path()), ("MUSHER_HOME", Path::new("/proc/nowhere"))], "/proc/nowhere"),
        (&[("HOME", home.path()), ("MUSHER_HOME", &open)], "chmod 700"),
        (&[("HOME", Path::new("/proc/nowhere"))], "/proc/nowhere"),
        (&[], "HOME"),
    ];
    for (environment, expected) in cases {
        let mut musher = Command::new(product::binary("musher")?);
        musher.env_clear().env("PATH", "/usr/bin:/bin").envs(environment.iter().copied()).current_dir("/");
        let refused = process::run(musher.arg("up"), b"", wait::SHORT).await?;
        assert_refused(&refused, expected, |code| code != 0);
    }
    assert_eq!(home.tree()?, before, "nothing is left behind");
    Ok(())
}

#[tokio::test]
async fn the_command_line_refuses_what_it_does_not_know() -> Result<()> {
    let home = Home::new("", "")?;
    let before = home.tree()?;
    for (args, expected, code) in [
        (&["upp"][..], "up", 64),
        (&["up", "--no-wiat"], "--no-wait", 64),
        (&["ssh"], "project", 64),
        (&["secrets", "set"], "NAME", 64),
        (&["secrets", "set", "../x"], "../x", 64),
        (&["ssh", "anything"], "anything", 64),
        (&["ssh-proxy", "anything"], "musher up", 69),
    ] {
        let refused = home.run(args, "value\n").await?;
        assert_refused(&refused, expected, |ended| ended == code);
    }
    for args in [&["--help"][..], &["--version"], &["secrets", "--help"]] {
        home.run(args, "").await?.success()?;
    }
    assert_eq!(home.tree()?, before, "nothing is left behind");
    Ok(())
}

/// A refusal on the command line: on standard error alone, a sentence that names what is meant, no trace of a panic.
fn assert_refused(output: &Output, expected: &str, code: impl Fn(i32) -> bool) {
    let said = &output.stderr;
    assert!(output.code.is_some_and(code), "another exit code was wanted: {output}");
    assert!(said.to_lowercase().contains(&expected.to_lowercase()), "wanted `{expected}`: {output}");
    assert!(!said.contains("panicked") && !said.contains("Os {"), "a sentence for people: {output}");
}
