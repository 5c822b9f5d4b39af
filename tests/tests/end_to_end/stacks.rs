//! The stacks' own proof (STK-1): a hello-world builds and the language server answers, over SSH.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::{
    gateway::Gateway,
    home::Home,
    ssh::{self, Door},
    wait,
};

#[tokio::test]
async fn a_rust_program_is_built_and_its_language_server_answers() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    let made = gateway.make("hello", "--stack rust").await?;
    assert!(made.contains("rust"), "{made}");
    let build =
        "cd /workspace && cargo init --offline --name hello -q && cargo build --offline -q && ./target/debug/hello";
    assert_eq!(ssh::command(&home, Door::Proxy, "hello", build).await?, "Hello, world!\n");
    ssh::command(&home, Door::Proxy, "hello", "cd /workspace && cargo clippy --offline -q && cargo fmt --check")
        .await?;
    let server = initialize(&home, "hello", "rust-analyzer").await?;
    assert_eq!(server["serverInfo"]["name"], "rust-analyzer");
    assert!(server["capabilities"]["hoverProvider"].as_bool() == Some(true), "{server}");
    gateway.finish().await.map(drop)
}

#[tokio::test]
async fn without_a_stack_there_is_the_base_alone() -> Result<()> {
    let home = Home::practice().await?;
    let mut gateway = Gateway::console(&home).await?;
    gateway.make("plain", "").await?;
    let tools = "for tool in bash tar gzip xz unzip curl wget ps less ssh rsync perl file ip lsof git; do command -v $tool >/dev/null || echo no $tool; done; command -v cargo node";
    let shown = ssh::run(&home, "ssh", [&Door::Port.host("plain"), tools], "", wait::LONG).await?;
    assert_eq!(shown.text(), "", "the base has what editors need, and no language");
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

/// Starts a language server in the project, asks it to initialize and to end, and gives the result of the first.
async fn initialize(home: &Home, project: &str, server: &str) -> Result<Value> {
    let root = json!({ "processId": null, "rootUri": "file:///workspace", "capabilities": {} });
    let messages = [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": root }),
        json!({ "jsonrpc": "2.0", "method": "initialized", "params": {} }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "shutdown" }),
        json!({ "jsonrpc": "2.0", "method": "exit" }),
    ];
    let framed =
        messages.map(|message| message.to_string()).map(|body| format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    let input = framed.concat();
    let host = Door::Proxy.host(project);
    let output = ssh::run(home, "ssh", [&host, server], &input, wait::LONG).await?;
    let mut rest = output.stdout.as_str();
    while let Some((header, after)) = rest.split_once("\r\n\r\n") {
        let length = header.lines().find_map(|line| line.strip_prefix("Content-Length: ")).context("a length")?;
        let (body, next) = after.split_at_checked(length.parse()?).context("a whole message")?;
        let message: Value = serde_json::from_str(body)?;
        if message["id"] == 1 {
            return Ok(message["result"].clone());
        }
        rest = next;
    }
    anyhow::bail!("{server} did not answer: {output}")
}
