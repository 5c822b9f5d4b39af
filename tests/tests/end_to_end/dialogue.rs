//! The main job's dialogue on the console, with the real agent, as `docs/transcript.md` shows it.
//!
//! With `UPDATE=1` in the environment the page is written anew instead of compared.

use std::{fmt::Write as _, fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{
    gateway::Gateway,
    home::Home,
    model::{Model, Step},
    product,
    ssh::{self, Door},
    transcript,
};

const INTRODUCTION: &str = "\
# What a first session looks like

Recorded by the end-to-end tests from a real gateway, container and agent; only the model is a stand-in. Times, ports and
ids differ from run to run and stand as `…` or `N` here. `UPDATE=1 scripts/test` writes this page anew.

";

#[tokio::test]
async fn the_dialogue_is_as_recorded() -> Result<()> {
    let model = Model::start().await?;
    model.on(
        "what does this project do",
        [
            Step::call("Bash", json!({ "command": "ls -A /workspace", "description": "List the files" })),
            Step::say("Nothing yet: the workspace is empty. Tell me what it is to become."),
        ],
    );
    let program = "fn main() {\n    println!(\"Hello from the workshop.\");\n}\n";
    model.on(
        "write hello.rs",
        [
            Step::call("Write", json!({ "file_path": "/workspace/hello.rs", "content": program })),
            Step::call(
                "Bash",
                json!({ "command": "rustc -o /tmp/hello hello.rs && /tmp/hello", "description": "Build and run it" }),
            ),
            Step::say("`hello.rs` is there, and it runs: **Hello from the workshop.**"),
        ],
    );
    let home = Home::real(&model).await?;
    let mut gateway = Gateway::console(&home).await?;
    let mut page = format!("{INTRODUCTION}```\n$ ./scripts/up\n");
    for line in [
        "new project myapp --stack rust",
        "switch myapp",
        "what does this project do?",
        "write hello.rs and run it",
        "status",
        "stop",
        "projects",
        "ssh",
    ] {
        let answer = gateway.ask(line).await?;
        write!(page, "> {line}\n{answer}")?;
    }
    page.push_str("```\n");

    let hello = home.project("myapp").join("hello.rs");
    assert_eq!(fs::read_to_string(&hello)?, program, "the agent's edit is on the host");
    assert_eq!(fs::metadata(&hello)?.uid(), home.owner(), "and belongs to the host's user");
    ssh::command(&home, Door::Proxy, "myapp", "cargo --version && touch /workspace/x").await?;
    assert_eq!(fs::metadata(home.project("myapp").join("x"))?.uid(), home.owner());
    for question in ["what does this project do", "write hello.rs"] {
        assert_eq!(model.asked(question).len(), 1, "the model is asked `{question}` once");
    }
    gateway.finish().await?;

    let page = transcript::normalised(&page, home.path());
    let file = product::repository()?.join("docs/transcript.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(file.parent().context("docs")?)?;
        fs::write(&file, &page)?;
    }
    let recorded =
        fs::read_to_string(&file).with_context(|| format!("{} is missing: run with UPDATE=1", file.display()))?;
    assert!(
        page == recorded,
        "the dialogue is not as {} has it; if it should be as it is now, run with UPDATE=1:\n{page}",
        file.display()
    );
    Ok(())
}
