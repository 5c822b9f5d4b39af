//! `diff` and `undo` in a real container, after an agent wrecked the tree (SLED-9).

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{
    gateway::Gateway,
    home::Home,
    model::{Gate, Model, Step},
    ssh::{self, Door},
    wait,
};

/// Every file below a folder but the repository's: its content or where it points, and whether it may be executed.
fn files(root: &Path) -> Result<BTreeMap<String, (Vec<u8>, bool)>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let kind = path.symlink_metadata()?;
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if kind.is_symlink() {
                let to = fs::read_link(&path)?.to_string_lossy().into_owned();
                found.insert(name, (to.into_bytes(), false));
            } else if kind.is_file() {
                found.insert(name, (fs::read(&path)?, kind.permissions().mode() & 0o100 != 0));
            } else if name != ".git" {
                folders.push(path);
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn what_an_agent_wrecked_is_shown_and_put_back_and_forth() -> Result<()> {
    let model = Model::start().await?;
    let wreck = "rm README.md .gitignore; mv src/main.txt main.txt; chmod -x run.sh; echo junk > junk; ln -sf junk link; \
                 echo changed >> notes; echo built >> target/out; git -c user.name=a -c user.email=a@b commit -qam wip; echo wrecked";
    model.on("tidy up", [Step::call("Bash", json!({ "command": wreck })), Step::say("All tidy.")]);
    model.on("what did you do", [Step::say("I tidied up.")]);
    let gate = Gate::closed();
    model.on("take your time", [Step::Wait(gate.clone()), Step::say("Done.")]);
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("wrecked", "").await?;
    let answer = gateway.ask("undo").await?;
    assert!(answer.contains("No turn that is on record"), "{answer}");

    let make = "cd /workspace && mkdir -p src target && echo hello > README.md && echo target/ > .gitignore && seq 9 > src/main.txt && \
                printf '#!/bin/sh\\n' > run.sh && chmod +x run.sh && ln -s README.md link && git add . && \
                git -c user.name=a -c user.email=a@b commit -qm one && echo mine > notes && echo built > target/out";
    ssh::command(&home, Door::Port, "wrecked", make).await?;
    let project = home.project("wrecked");
    let before = files(&project)?;
    gateway.ask("please tidy up").await?;
    let after = files(&project)?;
    assert_ne!(before, after, "{}", gateway.all());

    let diff = gateway.ask("diff").await?;
    for said in [
        "delete mode 100644 README.md",
        "rename src/main.txt => main.txt",
        "mode change 100755 => 100644 run.sh",
        "+junk",
        "+changed",
    ] {
        assert!(diff.contains(said), "{said}:\n{diff}");
    }
    assert!(!diff.contains("target/out"), "{diff}");
    let diff = gateway.ask("!diff notes").await?;
    assert!(diff.contains("+changed") && !diff.contains("README"), "{diff}");

    // A turn that changes nothing is none to be put back.
    gateway.ask("what did you do?").await?;
    let undone = gateway.ask("undo").await?;
    assert!(undone.contains("`README.md`") && undone.contains("takes that back"), "{undone}");
    assert!(undone.contains("Branches and index are not touched"), "the agent has committed:\n{undone}");
    let mut wanted = before;
    wanted.insert("target/out".to_owned(), after["target/out"].clone());
    assert_eq!(files(&project)?, wanted, "what was ignored is left alone");
    let log = gateway.ask("!git log --format=%s").await?;
    assert!(log.contains("wip"), "{log}");

    gateway.ask("Undo").await?;
    assert_eq!(files(&project)?, after);
    // Somebody edits on the host meanwhile.
    fs::write(project.join("notes"), "edited\n").context("the project's folder is ours")?;
    let refused = gateway.ask("undo").await?;
    assert!(refused.contains("changed `notes`; nothing is put back"), "{refused}");
    assert!(!project.join("README.md").exists());
    fs::write(project.join("notes"), &after["notes"].0)?;
    gateway.ask("undo").await?;
    assert_eq!(files(&project)?, wanted);
    gateway.finish().await?;

    let mut gateway = Gateway::up(&home, &["--no-wait"]).await?;
    gateway.write("switch wrecked").await?;
    gateway.write("take your time").await?;
    model.wait_asked("take your time").await?;
    gateway.write("undo").await?;
    gateway.expect("The agent is at work", wait::SHORT).await?;
    gate.open();
    gateway.expect("Done.", wait::LONG).await?;
    gateway.stop().await.map(drop)
}
