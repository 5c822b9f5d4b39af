//! The base alone, stacks of one's own, and the page that says how to make one (STK-2, STK-6).

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result};
use tests::{
    gateway::Gateway,
    home::Home,
    product,
    ssh::{self, Door},
    wait,
};

#[tokio::test]
async fn without_a_stack_there_is_the_base_alone() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("plain", "").await?;
    let tools = "for tool in bash tar gzip xz unzip curl wget ps less ssh rsync perl file ip lsof git; do command -v $tool >/dev/null || echo no $tool; done; command -v cargo node";
    let shown = ssh::run(&home, "ssh", [&Door::Port.host("plain"), tools], "", wait::LONG).await?;
    assert_eq!(shown.text(), "", "the base has what editors need, and no language");
    // What is no program: certificates, terminals, fonts, and what JetBrains' windows are drawn with; and the rest by name.
    let packages = "bash ca-certificates curl file fontconfig fonts-dejavu-core git gzip iproute2 less libfreetype6 libx11-6 libxext6 libxi6 libxrender1 libxtst6 lsof ncurses-term openssh-client openssh-server openssh-sftp-server perl procps rsync tar tini unzip wget xz-utils";
    let missing = format!(
        "for package in {packages}; do [ \"$(dpkg-query --show --showformat='${{db:Status-Status}}' $package 2>&1)\" = installed ] || echo no $package; done"
    );
    let shown = ssh::run(&home, "ssh", [&Door::Port.host("plain"), &missing], "", wait::LONG).await?;
    assert_eq!(shown.text(), "", "the base has the packages that STK-6 wants");
    let rest = "fc-list | grep --quiet DejaVu && infocmp alacritty >/dev/null && printf '#!/bin/sh\necho runs' >/tmp/x && chmod +x /tmp/x && /tmp/x";
    assert_eq!(ssh::command(&home, Door::Port, "plain", rest).await?, "runs\n");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_stack_of_ones_own_is_a_folder_and_a_bad_one_is_refused_by_file_and_line() -> Result<()> {
    let home = Home::practice().await?;
    let stack = home.state().join("stacks/heron");
    fs::create_dir_all(&stack)?;
    fs::write(stack.join("markers"), "priority = 90\nheron.toml\n")?;
    let fragment = |text: &str| {
        let names = ["Dockerfile.fragment", "Dockerfile.fragment.distro"];
        names.into_iter().try_for_each(|name| fs::write(stack.join(name), text))
    };
    fragment("RUN echo grey > /etc/heron\n")?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("bird", "--stack heron").await?;
    assert_eq!(ssh::command(&home, Door::Port, "bird", "cat /etc/heron").await?, "grey\n");
    gateway.finish().await?;

    fragment("RUN true\nFROM elsewhere\n")?;
    let refused = home.run(["up"], "").await?;
    assert_eq!(refused.code, Some(78), "{refused}");
    let place = stack.join("Dockerfile.fragment");
    assert!(refused.stderr.contains(&format!("{}:2", place.display())), "file and line are named: {refused}");
    Ok(())
}

/// The files that docs/stacks.md shows: the blocks whose first comment names a place among a person's own stacks.
fn files_of_the_page() -> Result<Vec<(String, String)>> {
    let page = fs::read_to_string(product::repository()?.join("docs/stacks.md"))?;
    let mut files = Vec::new();
    for block in page.split("\n```").skip(1).step_by(2) {
        let (_, text) = block.split_once('\n').context("a block has lines")?;
        let named = text.lines().find_map(|line| line.strip_prefix("# ~/.musher/stacks/"));
        files.extend(named.map(|path| (path.to_owned(), format!("{text}\n"))));
    }
    Ok(files)
}

#[tokio::test]
async fn the_page_makes_a_stack_in_five_minutes() -> Result<()> {
    let home = Home::practice().await?;
    let files = files_of_the_page()?;
    let names: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        names,
        ["heron/markers", "heron/Dockerfile.fragment.distro", "heron/Dockerfile.fragment", "heron/heron"]
    );
    for (path, text) in &files {
        let path = home.state().join("stacks").join(path);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, text)?;
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let checked = home.run(["stacks", "check", "heron"], "").await?;
    assert_eq!(checked.code, Some(0), "{checked}");
    let listed = home.run(["stacks", "list"], "").await?.success()?;
    assert!(listed.contains("heron") && listed.contains("heron-server"), "{listed}");
    home.run(["images", "build", "heron"], "").await?.success()?;

    let mut gateway = Gateway::console(&home).await?;
    gateway.make("pond", "--stack heron").await?;
    let sum = ssh::run(&home, "ssh", [Door::Port.host("pond").as_str(), "heron"], "6 * 7\n", wait::SHORT).await?;
    assert_eq!(sum.success()?, "42\n");
    let listed = gateway.ask("stacks list").await?;
    assert!(listed.contains("heron") && listed.contains("heron-server"), "{listed}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn a_check_names_every_fault_by_file_and_line_and_the_list_says_what_is_missing() -> Result<()> {
    let home = Home::new("", "[agent]\nruntime = \"echo\"")?;
    let none = home.run(["stacks", "check"], "").await?;
    assert_eq!(none.code, Some(0), "{none}");
    let stacks = home.state().join("stacks");
    for (name, fragment) in [("heron", "RUN true\nFROM elsewhere\n"), ("stork", "RUN true\n")] {
        fs::create_dir_all(stacks.join(name))?;
        fs::write(stacks.join(name).join("markers"), "priority = 90\nx.toml\n")?;
        fs::write(stacks.join(name).join("Dockerfile.fragment"), fragment)?;
        fs::write(stacks.join(name).join("Dockerfile.fragment.distro"), "RUN true\nINSTAL x\n")?;
    }
    let checked = home.run(["stacks", "check"], "").await?;
    assert_eq!(checked.code, Some(78), "{checked}");
    for place in [
        "heron/Dockerfile.fragment:2: FROM",
        "heron/Dockerfile.fragment.distro:2: ",
        "stork/Dockerfile.fragment.distro:2: ",
    ] {
        assert!(checked.text().contains(place), "{place}: {checked}");
    }
    let one = home.run(["stacks", "check", "stork"], "").await?;
    assert!(one.code == Some(78) && !one.text().contains("heron"), "{one}");
    let unknown = home.run(["stacks", "check", "crane"], "").await?;
    assert!(unknown.code == Some(64) && unknown.stderr.contains("crane"), "{unknown}");
    // The built-in ones are listed all the same, with what they lack.
    fs::remove_dir_all(&stacks)?;
    let listed = home.run(["stacks", "list"], "").await?.success()?;
    for needle in ["rust", "rust-analyzer", "built in", "go.mod", "Debian packages none for Java"] {
        assert!(listed.contains(needle), "{needle}: {listed}");
    }
    assert!(!listed.contains("**"), "it is for a terminal: {listed}");
    let doctor = home.run(["doctor"], "").await?;
    assert!(doctor.stdout.contains("it lacks a language server: Debian packages none for Java"), "{doctor}");
    Ok(())
}
