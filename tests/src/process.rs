//! Running a program to its end with a deadline, and what came out of it.

use std::{ffi::OsStr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

/// What a program left behind when it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, lossily UTF-8.
    pub stdout: String,
    /// Standard error, lossily UTF-8.
    pub stderr: String,
}

impl Output {
    /// The standard output of a program that must have succeeded.
    pub fn success(self) -> Result<String> {
        ensure!(self.code == Some(0), "{self}");
        Ok(self.stdout)
    }

    /// Standard output and error together.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "`{command}` ended with {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs `command` with `input` on its standard input; kills it when `within` has passed.
pub async fn run(command: &mut Command, input: &[u8], within: Duration) -> Result<Output> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("could not start `{line}`"))?;
    let mut stdin = child.stdin.take().context("a piped standard input")?;
    let feed = async move {
        // A program that ends without reading its input is judged by its exit code, not by the broken pipe.
        let _unread = stdin.write_all(input).await;
    };
    let all = async {
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    let output = tokio::time::timeout(within, all)
        .await
        .with_context(|| format!("`{line}` did not end within {} s", within.as_secs()))?
        .with_context(|| format!("could not wait for `{line}`"))?;
    Ok(Output {
        command: line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The command line as one would type it, for messages.
pub fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    words.collect::<Vec<_>>().join(" ")
}

/// The process id of a child that has not been waited for.
pub fn id(child: &Child) -> Result<nix::unistd::Pid> {
    let id = child.id().context("the process has already ended")?;
    Ok(nix::unistd::Pid::from_raw(i32::try_from(id).context("a process id is positive")?))
}

/// Whether the process has ended, waited for or not.
pub fn is_gone(id: nix::unistd::Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .ok()
        // The name, in brackets, may hold anything; the state follows it.
        .is_none_or(|stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_gone_when_it_is_killed_and_not_before() -> Result<()> {
        let mut sleeper = Command::new("sleep").arg("1000").kill_on_drop(true).spawn()?;
        let id = id(&sleeper)?;
        assert!(!is_gone(id));
        sleeper.kill().await?;
        assert!(is_gone(id));
        Ok(())
    }

    #[tokio::test]
    async fn gives_code_and_both_outputs() -> Result<()> {
        let output =
            run(Command::new("sh").args(["-c", "cat; echo bad >&2; exit 3"]), b"good\n", crate::wait::SHORT).await?;
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (Some(3), "good\n", "bad\n"));
        assert!(output.success().is_err());
        Ok(())
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_an_error() {
        let error =
            run(Command::new("sleep").arg("1000"), b"", Duration::from_millis(100)).await.expect_err("it sleeps");
        assert!(error.to_string().contains("`sleep 1000` did not end"), "{error:#}");
    }
}
