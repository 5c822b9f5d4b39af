//! What begins like a command and is none reaches the agent (CHAT-12).

use anyhow::Result;
use tests::{gateway::Gateway, home::Home};

/// Each of them begins with a command's word.
const PROSE: [&str; 13] = [
    "show me the status",
    "git push fails",
    "git status",
    "stop using unwrap",
    "stop, that is wrong",
    "status of the build?",
    "add tests for the parser",
    "new project ideas for the team please",
    "switch to tabs",
    "reset the counter to 0",
    "help me with this",
    "projects are late",
    "delete project files that nobody uses",
];

#[tokio::test]
async fn prose_reaches_the_agent_and_commands_do_not() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("prose", "").await?;
    for words in PROSE {
        let answer = gateway.ask(words).await?;
        assert!(answer.contains("You said:") && answer.contains(words), "`{words}` did not reach the agent:\n{answer}");
    }
    for (command, answered) in [
        ("!git status", "branch"),
        ("status", "prose"),
        ("!status", "prose"),
        ("stop", ""),
        ("projects", "prose"),
        ("help status", ""),
    ] {
        let answer = gateway.ask(command).await?;
        assert!(!answer.contains("You said:"), "`{command}` reached the agent:\n{answer}");
        assert!(!answer.trim().is_empty() && answer.contains(answered), "`{command}` was not answered:\n{answer}");
    }
    let files = gateway.ask("projects").await?;
    assert!(files.contains("prose"), "nothing was deleted or made:\n{files}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn without_a_project_it_says_how_to_make_one() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    let answer = gateway.ask("what does this project do?").await?;
    assert!(answer.contains("new project"), "{answer}");
    assert!(!answer.contains("You said:") && !answer.contains("write `!` before it"), "{answer}");
    let slip = gateway.ask("new projct myapp").await?;
    assert!(slip.contains("write `!` before it"), "{slip}");
    let told = gateway.ask("!new projct myapp").await?;
    assert!(told.contains("Did you mean `project`?"), "{told}");
    gateway.finish().await.map(drop)
}
