//! A small client of language servers: what an editor does first, over whatever command starts the server.
//!
//! It asks and waits; what a server asks is answered with nothing, as editors without settings do. It judges no answer.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{home::Home, process, ssh, wait};

/// Larger messages are not believed, in bytes.
const MESSAGE_MAX: usize = 16 << 20;

/// A language server that was asked to initialize.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    asked: u64,
    /// Notifications that came while something else was waited for.
    notices: VecDeque<Value>,
    /// What it said to `initialize`: its capabilities, and often its name.
    pub introduction: Value,
}

impl Server {
    /// Starts the command in a project over SSH, and asks it to initialize for `/workspace`.
    pub async fn start(home: &Home, door: ssh::Door, project: &str, command: &str) -> Result<Self> {
        let mut ssh = ssh::client(home, "ssh");
        ssh.args([&door.host(project), &format!("cd /workspace && exec {command}")]);
        Self::over(ssh, command, "file:///workspace").await
    }

    /// Starts the server by this command.
    async fn over(mut command: Command, name: &str, root: &str) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start `{}`", process::shown(&command)))?;
        let stdin = child.stdin.take().context("a piped standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("a piped standard output")?);
        let notices = VecDeque::new();
        let mut server =
            Self { name: name.to_owned(), child, stdin, stdout, asked: 0, notices, introduction: Value::Null };
        let capabilities = json!({
            "textDocument": {
                "publishDiagnostics": {},
                "completion": { "completionItem": { "snippetSupport": false } },
                "synchronization": { "didSave": true },
            },
            "workspace": { "configuration": true, "workspaceFolders": true },
        });
        let ask = json!({
            "processId": null, "rootUri": root, "capabilities": capabilities,
            "workspaceFolders": [{ "uri": root, "name": "workspace" }],
        });
        server.introduction = server.ask("initialize", ask).await?;
        server.tell("initialized", json!({})).await?;
        Ok(server)
    }

    /// Opens a document of the workspace with this text.
    pub async fn open(&mut self, path: &str, language: &str, text: &str) -> Result<()> {
        let document = json!({ "uri": uri(path), "languageId": language, "version": 1, "text": text });
        self.tell("textDocument/didOpen", json!({ "textDocument": document })).await
    }

    /// What the server finds wrong in the document, once it finds something.
    pub async fn diagnostics(&mut self, path: &str) -> Result<Vec<Value>> {
        let wanted = uri(path);
        loop {
            let notice = self.notice("textDocument/publishDiagnostics").await?;
            let found = notice["diagnostics"].as_array().cloned().unwrap_or_default();
            if notice["uri"] == wanted.as_str() && !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// The labels of what it proposes at this place, which counts from 0.
    pub async fn completion(&mut self, path: &str, line: u32, character: u32) -> Result<Vec<String>> {
        let place =
            json!({ "textDocument": { "uri": uri(path) }, "position": { "line": line, "character": character } });
        let answer = self.ask("textDocument/completion", place).await?;
        let items = answer["items"].as_array().or_else(|| answer.as_array()).cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|item| Some(item["label"].as_str()?.trim().to_owned())).collect())
    }

    /// Asks it to end, and waits until it has.
    pub async fn end(mut self) -> Result<()> {
        self.ask("shutdown", Value::Null).await?;
        self.tell("exit", Value::Null).await?;
        self.stdin.shutdown().await.ok();
        within(wait::SHORT, &self.name, "its end", async { self.child.wait().await.context("it cannot be waited for") })
            .await
            .map(drop)
    }

    /// Sends a request and gives its result.
    pub async fn ask(&mut self, method: &str, params: Value) -> Result<Value> {
        self.asked += 1;
        let id = self.asked;
        self.send(&message(json!({ "id": id, "method": method }), params)).await?;
        loop {
            let mut answer = self.next(method).await?;
            if answer["id"] != id || answer.get("method").is_some() {
                self.take(answer).await?;
            } else if answer.get("error").is_some_and(|error| !error.is_null()) {
                bail!("{} refused `{method}`: {}", self.name, answer["error"]);
            } else {
                return Ok(answer["result"].take());
            }
        }
    }

    /// Sends a notification.
    pub async fn tell(&mut self, method: &str, params: Value) -> Result<()> {
        self.send(&message(json!({ "method": method }), params)).await
    }

    async fn notice(&mut self, method: &str) -> Result<Value> {
        loop {
            if let Some(at) = self.notices.iter().position(|notice| notice["method"] == method) {
                let mut notice = self.notices.remove(at).context("it was just seen")?;
                return Ok(notice["params"].take());
            }
            let message = self.next(method).await?;
            self.take(message).await?;
        }
    }

    /// Keeps a notification, and answers a request.
    async fn take(&mut self, message: Value) -> Result<()> {
        let Some(id) = message.get("id").filter(|_| message.get("method").is_some()) else {
            self.notices.push_back(message);
            return Ok(());
        };
        // One answer for each setting that is asked for; nothing for the rest.
        let result = match message["params"]["items"].as_array() {
            Some(items) if message["method"] == "workspace/configuration" => vec![Value::Null; items.len()].into(),
            _ => Value::Null,
        };
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "result": result })).await
    }

    async fn send(&mut self, message: &Value) -> Result<()> {
        let body = message.to_string();
        let framed = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.stdin.write_all(framed.as_bytes()).await?;
        self.stdin.flush().await.with_context(|| format!("{} does not read", self.name))
    }

    async fn next(&mut self, what: &str) -> Result<Value> {
        let Self { name, stdout, .. } = self;
        within(wait::LONG, name, what, async {
            let mut length = None;
            loop {
                let mut line = String::new();
                if stdout.read_line(&mut line).await? == 0 {
                    bail!("it ended");
                }
                match line.trim_end().split_once(": ") {
                    Some((header, value)) if header.eq_ignore_ascii_case("content-length") => {
                        length = Some(value.parse::<usize>()?);
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            let length = length.filter(|length| *length <= MESSAGE_MAX).context("a length")?;
            let mut body = vec![0; length];
            stdout.read_exact(&mut body).await?;
            serde_json::from_slice(&body).context("a message is JSON")
        })
        .await
    }
}

fn uri(path: &str) -> String {
    format!("file:///workspace/{path}")
}

fn message(mut head: Value, params: Value) -> Value {
    head["jsonrpc"] = "2.0".into();
    if !params.is_null() {
        head["params"] = params;
    }
    head
}

async fn within<T>(limit: Duration, name: &str, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .with_context(|| format!("{name}: waited {} s in vain for {what}", limit.as_secs()))?
        .with_context(|| format!("{name}: waiting for {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server of a few lines, which asks before it answers.
    const SERVER: &str = r#"
say() { printf 'Content-Length: %d\r\n\r\n%s' "${#1}" "$1"; }
read_one() { read -r line; n=${line#Content-Length: }; n=${n%?}; read -r _; head -c "$n" >/dev/null; }
read_one
say '{"jsonrpc":"2.0","id":1,"method":"workspace/configuration","params":{"items":[{},{}]}}'
read_one
say '{"jsonrpc":"2.0","method":"textDocument/publishDiagnostics","params":{"uri":"file:///workspace/a","diagnostics":[]}}'
say '{"jsonrpc":"2.0","method":"textDocument/publishDiagnostics","params":{"uri":"file:///workspace/a","diagnostics":[{"message":"wrong"}]}}'
say '{"jsonrpc":"2.0","id":1,"result":{"serverInfo":{"name":"few lines"}}}'
read_one
read_one
say '{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":"no"}}'
"#;

    #[tokio::test]
    async fn asks_waits_and_answers() -> Result<()> {
        let mut command = Command::new("bash");
        command.args(["-c", SERVER]);
        let mut server = Server::over(command, "a server", "file:///workspace").await?;
        assert_eq!(server.introduction["serverInfo"]["name"], "few lines");
        let found = server.diagnostics("a").await?;
        assert_eq!(found, [json!({ "message": "wrong" })]);
        let refused = server.completion("a", 0, 0).await.expect_err("it refuses");
        assert!(refused.to_string().contains("refused"), "{refused:#}");
        let ended = server.end().await.expect_err("it has ended");
        assert!(format!("{ended:#}").contains("it ended") || format!("{ended:#}").contains("pipe"), "{ended:#}");
        Ok(())
    }
}
