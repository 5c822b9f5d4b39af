//! The container's sshd: its command line with the sessions' environment, and keeping it running.
//!
//! Keys and settings are mounted read-only and are the gateway's business; nothing here reads them.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::BufReader;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::lines::{BoundedLines, Line};
use crate::text;

/// The port behind the project's port door. The configuration's own `Port` is overridden, so that both cannot differ.
const PORT: u16 = 2222;

/// Wait before the first restart; doubled up to [`LONGEST_WAIT`] as long as sshd keeps dying young.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An sshd that has run for so long did not die of its configuration.
const HEALTHY: Duration = Duration::from_mins(1);

/// Longest line of sshd's that is logged, in characters.
const MAX_LINE: usize = 500;

/// Where sshd and its configuration are. sshd wants to be called by an absolute path.
#[derive(Debug, Clone)]
pub struct Sshd {
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
}

impl Sshd {
    /// Runs the daemon behind the port door until `shutdown`, again and again if it dies.
    pub async fn keep_running(&self, environment: &Environment, shutdown: CancellationToken) {
        let mut wait = FIRST_WAIT;
        loop {
            let began = Instant::now();
            let ended = self.run(environment, &shutdown).await;
            if shutdown.is_cancelled() {
                return;
            }
            if began.elapsed() >= HEALTHY {
                wait = FIRST_WAIT;
            }
            let again = wait.as_secs();
            let program = self.program.display();
            match ended {
                Ok(status) => tracing::error!(%status, "sshd ended; it is started again in {again} s"),
                Err(error) => tracing::error!(%error, "cannot start {program}; it is tried again in {again} s"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn run(
        &self,
        environment: &Environment,
        shutdown: &CancellationToken,
    ) -> std::io::Result<std::process::ExitStatus> {
        let mut child = Command::new(&self.program)
            .args(["-D", "-e", "-p", &PORT.to_string()])
            .args(self.settings(environment))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        tracing::info!("sshd started on port {PORT}");
        let stderr = child.stderr.take();
        let log = async {
            if let Some(stderr) = stderr {
                log_lines(BufReader::new(stderr)).await;
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            ended = child.wait() => return ended,
            _ = log => {}
            () = shutdown.cancelled() => {}
        }
        // Its sessions end with the container.
        child.kill().await?;
        child.wait().await
    }

    /// Becomes an `sshd -i` on standard input and output: the door of `ssh-proxy`. Returns only if it cannot.
    pub fn become_inetd(&self, environment: &Environment) -> std::io::Error {
        use std::os::unix::process::CommandExt;
        std::process::Command::new(&self.program).arg("-i").args(self.settings(environment)).exec()
    }

    fn settings(&self, environment: &Environment) -> Vec<OsString> {
        let sessions = environment.for_sessions();
        vec!["-f".into(), self.config.clone().into(), "-o".into(), set_env(&sessions).into()]
    }
}

/// sshd's `SetEnv` for all of `environment` that it can express. sshd takes the first `SetEnv` only, so this is all in one.
fn set_env(environment: &Environment) -> String {
    let mut setting = "SetEnv=".to_owned();
    for (name, value) in environment {
        if !is_name(name) || value.chars().any(char::is_control) {
            continue;
        }
        if !setting.ends_with('=') {
            setting.push(' ');
        }
        setting.push('"');
        setting.push_str(name);
        setting.push('=');
        for c in value.chars() {
            if matches!(c, '"' | '\\') {
                setting.push('\\');
            }
            setting.push(c);
        }
        setting.push('"');
    }
    setting
}

/// A name as shells know it.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

async fn log_lines(stderr: BufReader<tokio::process::ChildStderr>) {
    let mut lines = BoundedLines::new(stderr, 4 * MAX_LINE);
    while let Ok(Some(Line::Whole(line) | Line::Cut(line))) = lines.next().await {
        let line = text::one_line(&String::from_utf8_lossy(&line), MAX_LINE);
        tracing::info!("sshd: {line}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What sshd makes of the part after the keyword: `argv_split` of OpenSSH's misc.c, with comments ended.
    fn argv_split(setting: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut rest = setting.chars().peekable();
        loop {
            while rest.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
            if rest.peek().is_none_or(|c| *c == '#') {
                return arguments;
            }
            let (mut argument, mut quote) = (String::new(), None);
            while let Some(c) = rest.next() {
                match (c, quote) {
                    ('\\', _) => match rest
                        .next_if(|next| matches!(next, '\'' | '"' | '\\') || (quote.is_none() && *next == ' '))
                    {
                        Some(escaped) => argument.push(escaped),
                        None => argument.push('\\'),
                    },
                    (' ' | '\t', None) => break,
                    ('"' | '\'', None) => quote = Some(c),
                    (c, Some(open)) if c == open => quote = None,
                    (c, _) => argument.push(c),
                }
            }
            arguments.push(argument);
        }
    }

    #[test]
    fn values_are_quoted_for_sshd() {
        let environment: Environment = [
            ("PATH", "/opt/my tools/bin:/usr/bin"),
            ("QUOTES", r#"a"b'c\d"#),
            ("HASH", "#x"),
            ("NEWLINE", "a\nb"),
            ("BAD-NAME", "x"),
            ("BASH_FUNC_x%%", "() { :; }"),
            ("EMPTY", ""),
        ]
        .into_iter()
        .collect();
        insta::assert_snapshot!(
            set_env(&environment),
            @r##"SetEnv="EMPTY=" "HASH=#x" "PATH=/opt/my tools/bin:/usr/bin" "QUOTES=a\"b'c\\d""##
        );
    }

    proptest! {
        #[test]
        fn sshd_reads_back_what_was_meant(values in proptest::collection::btree_map("[A-Z_][A-Z0-9_]{0,8}", "\\PC{0,40}", 0..6)) {
            let environment: Environment = values.clone().into_iter().collect();
            let setting = set_env(&environment);
            let read: Vec<String> = argv_split(setting.strip_prefix("SetEnv=").unwrap());
            let wanted: Vec<String> = values.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            prop_assert_eq!(read, wanted);
        }
    }
}
