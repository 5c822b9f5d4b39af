//! A command in a running container, with its stdin and stdout as one byte stream.
//!
//! No terminal is made. Closing the stream's writing side closes the command's stdin and leaves its stdout open;
//! dropping the stream closes both.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{ContainerId, Engine, EngineError};

/// One read's worth of output. The engine's frames carry up to 32 kB.
const OUTPUT_CAPACITY: usize = 256 << 10;
/// How much of the end of stderr is kept.
const STDERR_TAIL: usize = 8 << 10;
/// How long after its output has ended a command may be shown as running.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// A command that runs in a container.
#[derive(Debug)]
pub struct ExecSession {
    /// Its stdin (writing) and stdout (reading).
    pub stream: ExecStream,
    /// Its stderr and its end.
    pub process: ExecProcess,
}

/// The bytes of a command: reading gives its stdout, writing feeds its stdin, `shutdown` closes its stdin.
pub struct ExecStream {
    input: Pin<Box<dyn AsyncWrite + Send>>,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, ApiError>> + Send>>,
    unread: Bytes,
    stderr: Arc<Mutex<VecDeque<u8>>>,
}

/// The end of a command.
#[derive(Debug)]
pub struct ExecProcess {
    engine: Engine,
    id: String,
    stderr: Arc<Mutex<VecDeque<u8>>>,
}

impl Engine {
    /// Starts `argv` in a container as the container's user, with `env` added to the container's own.
    ///
    /// # Errors
    /// [`EngineError::ContainerStopped`] when the container does not run, [`EngineError::NotFound`] when there is none.
    pub async fn exec(
        &self,
        container: &ContainerId,
        argv: &[&str],
        env: &[(&str, &str)],
    ) -> Result<ExecSession, EngineError> {
        const WHAT: &str = "start a command in a container";
        let config = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(argv.iter().map(|&word| word.to_owned()).collect()),
            env: Some(env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            ..CreateExecOptions::default()
        };
        let stopped = |error| match error {
            EngineError::Conflict { .. } => EngineError::ContainerStopped { container: container.to_string() },
            other => other,
        };
        let id = self.call(WHAT, self.docker().create_exec(container.as_str(), config)).await.map_err(stopped)?.id;
        let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(OUTPUT_CAPACITY) };
        match self.call(WHAT, self.docker().start_exec(&id, Some(options))).await.map_err(stopped)? {
            StartExecResults::Attached { output, input } => {
                let stderr = Arc::default();
                let stream = ExecStream { input, output, unread: Bytes::new(), stderr: Arc::clone(&stderr) };
                Ok(ExecSession { stream, process: ExecProcess { engine: self.clone(), id, stderr } })
            }
            StartExecResults::Detached => Err(EngineError::Answer { what: WHAT, missing: "stream" }),
        }
    }
}

impl ExecProcess {
    /// The end of what the command wrote to stderr, at most 8 kB. Complete once the stream has ended.
    pub fn stderr_tail(&self) -> String {
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = tail.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    /// The command's exit code; `None` while it still runs. Ask after the stream has ended: the engine is given a
    /// moment to notice.
    pub async fn exit_code(&self) -> Result<Option<i64>, EngineError> {
        const WHAT: &str = "ask how a command ended";
        let deadline = tokio::time::Instant::now() + EXIT_PATIENCE;
        let mut pause = Duration::from_millis(2);
        loop {
            let state = self.engine.call(WHAT, self.engine.docker().inspect_exec(&self.id)).await?;
            if state.running == Some(false) {
                return state.exit_code.map(Some).ok_or(EngineError::Answer { what: WHAT, missing: "exit code" });
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.output.as_mut().poll_next(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(ApiError::IOError { err })) => return Poll::Ready(Err(err)),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(LogOutput::StdErr { message })) => {
                    let mut tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
                    tail.extend(message);
                    let excess = tail.len().saturating_sub(STDERR_TAIL);
                    tail.drain(..excess);
                }
                // A zero-length frame leaves `unread` empty, and the next one is asked for.
                Some(Ok(
                    LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message },
                )) => {
                    self.unread = message;
                }
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}

impl std::fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecStream").finish_non_exhaustive()
    }
}
