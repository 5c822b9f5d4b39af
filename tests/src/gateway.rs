//! The gateway as a process: `musher up`, with the console on pipes or on Matrix.

use std::{
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    home::Home,
    process,
    secrets::{self, Area},
    wait,
};

/// A running gateway. It is killed by its id when it is dropped; a test fails then to which it has shown a secret.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
    /// Up to where standard output has been looked at.
    read: usize,
    marks: u32,
    /// How many lines of the refusal of a mark follow the one that names it.
    refusal_rest: usize,
}

/// What a pipe has brought so far.
#[derive(Debug)]
struct Capture {
    text: Arc<watch::Sender<String>>,
    reader: JoinHandle<()>,
}

impl Gateway {
    /// Starts `musher up` with further arguments.
    pub fn start(home: &Home, args: &[&str]) -> Result<Self> {
        Self::start_with(home, args, &[])
    }

    /// Starts `musher up` with further arguments and variables.
    pub fn start_with(home: &Home, args: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let mut child = home
            .musher()?
            .arg("up")
            .args(args)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("musher could not be started")?;
        let stdin = child.stdin.take();
        let stdout = Capture::of(child.stdout.take().context("a piped standard output")?);
        let stderr = Capture::of(child.stderr.take().context("a piped standard error")?);
        Ok(Self { child, stdin, stdout, stderr, read: 0, marks: 0, refusal_rest: 0 })
    }

    /// Starts `musher up` with further arguments, and waits until it takes messages.
    pub async fn up(home: &Home, args: &[&str]) -> Result<Self> {
        let mut gateway = Self::start(home, args)?;
        wait::until("the gateway takes messages", wait::SHORT, || {
            let ended = gateway.child.try_wait();
            async {
                ensure!(ended?.is_none(), "the gateway ended");
                Ok(home.health().await?.filter(|(status, _)| *status == 200))
            }
        })
        .await
        .with_context(|| gateway.all())?;
        Ok(gateway)
    }

    /// Starts `musher up` with the console on pipes, for [`Gateway::ask`].
    pub async fn console(home: &Home) -> Result<Self> {
        let mut gateway = Self::up(home, &[]).await?;
        gateway.mark(wait::SHORT).await?;
        gateway.refusal_rest = gateway.mark(wait::SHORT).await?.lines().count();
        Ok(gateway)
    }

    /// Types a line into the console.
    pub async fn write(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the console's input is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes()).await?;
        stdin.flush().await.context("the gateway does not read its input")
    }

    /// Types a line and gives the whole of what the gateway says to it.
    ///
    /// The console takes a line only when the one before has been answered in full; so a command that does
    /// not exist follows, and the refusal that names it ends the answer.
    pub async fn ask(&mut self, line: &str) -> Result<String> {
        self.ask_within(line, wait::LONG).await
    }

    /// [`Gateway::ask`] for what may take longer.
    pub async fn ask_within(&mut self, line: &str, within: Duration) -> Result<String> {
        self.write(line).await?;
        let said = self.mark(within).await.with_context(|| format!("asked `{line}`"))?;
        // The first lines still belong to the refusal of the mark before.
        Ok(said.split_inclusive('\n').skip(self.refusal_rest).collect())
    }

    /// Makes a project and chooses it; `options` follow its name. Fails with the gateway's answer when it is not made.
    pub async fn make(&mut self, project: &str, options: &str) -> Result<String> {
        let answer = self.ask(&format!("new project {project} {options}")).await?;
        ensure!(answer.contains(&format!("{project} is ready")), "{project} was not made:\n{answer}{}", self.all());
        let chosen = self.ask(&format!("switch {project}")).await?;
        ensure!(chosen.contains(project), "{project} was not chosen:\n{chosen}");
        Ok(answer)
    }

    /// Waits until everything typed so far is answered in full, and gives what was said since the last mark.
    async fn mark(&mut self, within: Duration) -> Result<String> {
        self.marks += 1;
        let mark = format!("mark-{}-here", self.marks);
        self.write(&format!("!{mark}")).await?;
        self.expect(&mark, within).await
    }

    /// Waits until `needle` appears on standard output after what has been looked at, and gives the lines before
    /// the one that it is in.
    pub async fn expect(&mut self, needle: &str, within: Duration) -> Result<String> {
        let mut news = self.stdout.text.subscribe();
        let from = self.read;
        let seen = tokio::time::timeout(within, news.wait_for(|text| text[from..].contains(needle)))
            .await
            .with_context(|| format!("waited {} s in vain for `{needle}`{}", within.as_secs(), self.all()))?
            .context("the capture ended")?;
        let text = &seen[from..];
        let at = text.find(needle).context("it was just seen")?;
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let end = text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
        self.read = from + end;
        Ok(text[..line].to_owned())
    }

    /// Closes the console's input, and gives what the gateway printed in all when it has ended with exit code 0.
    pub async fn finish(mut self) -> Result<String> {
        drop(self.stdin.take());
        self.wait_success(wait::LONG).await
    }

    /// Asks it to stop (SIGTERM), and gives what it printed in all when it has ended with exit code 0.
    pub async fn stop(mut self) -> Result<String> {
        kill(process::id(&self.child)?, Signal::SIGTERM)?;
        self.wait_success(wait::SHORT).await
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("the gateway could not be killed")
    }

    async fn wait_success(&mut self, within: Duration) -> Result<String> {
        let status = tokio::time::timeout(within, self.child.wait())
            .await
            .with_context(|| format!("the gateway did not end within {} s{}", within.as_secs(), self.all()))??;
        (&mut self.stdout.reader).await?;
        (&mut self.stderr.reader).await?;
        ensure!(status.code() == Some(0), "the gateway ended with {status}{}", self.all());
        Ok(self.stdout.text.borrow().clone())
    }

    /// How it ended, if it has; nobody asked it to.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("the gateway cannot be asked")
    }

    /// Its process id.
    pub fn pid(&self) -> Result<i32> {
        Ok(process::id(&self.child)?.as_raw())
    }

    /// All that it has said, for messages.
    pub fn all(&self) -> String {
        format!("\n--- stdout\n{}\n--- stderr\n{}", *self.stdout.text.borrow(), *self.stderr.text.borrow())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        secrets::judge(secrets::in_bytes(Area::Elsewhere, "what the gateway printed", self.all().as_bytes()));
    }
}

impl Capture {
    fn of(mut pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let text = Arc::new(watch::Sender::new(String::new()));
        let into = Arc::clone(&text);
        let reader = tokio::spawn(async move {
            let (mut bytes, mut pending) = ([0; 8192], Vec::new());
            // A pipe that breaks ends like one that closes: the process's exit code tells the rest.
            while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
                pending.extend_from_slice(&bytes[..count]);
                let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let lines: Vec<u8> = pending.drain(..whole).collect();
                into.send_modify(|text| text.push_str(&String::from_utf8_lossy(&lines)));
            }
            into.send_modify(|text| text.push_str(&String::from_utf8_lossy(&pending)));
        });
        Self { text, reader }
    }
}
