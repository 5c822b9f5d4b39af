//! `sled git-ssh`: what git runs in place of ssh. The project's remote is reached through the gateway, which opens the session itself and has the
//! credential (SEC-2); every other one, and whatever is neither a fetch nor a push, by the real ssh with the very same arguments.
//!
//! It holds no credential and makes no judgement: the gateway knows which remote is the project's. Nothing of standard input is read before the gateway
//! has taken the session, so that it is all there for ssh.

mod arguments;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use axum::body::{Body, Bytes};
use futures_util::stream;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Collected, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use link::git::{Frame, FrameDecoder, FrameError, paths};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::arguments::{Call, Unfit};
use crate::environment::Environment;
use crate::text;

/// What git's own programs, too, end with when they cannot go on.
const FATAL: u8 = 128;

/// How much of standard input is read at once, in bytes: what a pipe holds.
const BUFFER: usize = 64 * 1024;

/// Pieces of input, and of output, on their way between two threads.
const PIECES: usize = 4;

/// Longest refusal, in bytes, and how much of it is shown, in characters.
const REFUSAL_LIMIT: usize = 16 * 1024;
const REFUSAL_CHARS: usize = 500;

/// Why there was no session, or no end to it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Neither git nor anybody else calls ssh like this.
    #[error("git asked for ssh in a way that is not known here: {0}")]
    Unfit(#[from] Unfit),
    /// The project's main process does not answer.
    #[error("the project's sled is not there on port {0}: {1}")]
    NoSled(u16, io::Error),
    /// Somebody on the way said no.
    #[error("{0}")]
    Refused(String),
    /// The session broke.
    #[error("the connection to the git server broke off before its end; nothing more is known of it, try again")]
    Broken(#[source] hyper::Error),
    /// What came is no session.
    #[error("the git server's answer is cut off or garbled ({0}), try again")]
    Garbled(#[from] FrameError),
    /// This process's own streams, or its surroundings.
    #[error("{0}: {1}")]
    Here(&'static str, io::Error),
}

/// How a session ended that had begun, or that was not the gateway's.
enum Outcome {
    Ended(u8),
    AnotherRemote,
}

/// Is git's ssh, to its end. `port` is that of the git endpoint.
pub fn run(port: u16, args: &[OsString], environment: &Environment) -> ExitCode {
    let failure = match through_gateway(port, args, environment) {
        Ok(Outcome::Ended(code)) => return ExitCode::from(code),
        Ok(Outcome::AnotherRemote) => {
            Failure::Here("cannot run ssh", std::process::Command::new("ssh").args(args).exec())
        }
        Err(failure) => failure,
    };
    // Whoever does not hear it sees the code.
    let _ = writeln!(io::stderr(), "musher: {}", text::one_line(&failure.to_string(), text::MAX_ERROR));
    ExitCode::from(FATAL)
}

fn through_gateway(port: u16, args: &[OsString], environment: &Environment) -> Result<Outcome, Failure> {
    let call = match arguments::parse(args, environment.get("GIT_PROTOCOL")) {
        Ok(call) => call,
        // Neither a fetch nor a push, so nothing that a credential of the gateway's is for: ssh may know what it is.
        Err(unfit) if unfit.is_for_ssh() => return Ok(Outcome::AnotherRemote),
        Err(unfit) => return Err(unfit.into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Here("cannot start the runtime", error))?;
    let outcome = runtime.block_on(session(port, &call));
    // A thread that still waits for input, or for somebody to take output, keeps nobody.
    runtime.shutdown_background();
    outcome
}

async fn session(port: u16, call: &Call) -> Result<Outcome, Failure> {
    let io = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| Failure::NoSled(port, error))?;
    io.set_nodelay(true).map_err(|error| Failure::NoSled(port, error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(Failure::Broken)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (input, mut pieces) = mpsc::channel(PIECES);
    let request = request(call, Body::from_stream(stream::poll_fn(move |cx| pieces.poll_recv(cx))))?;
    let response = sender.send_request(request).await.map_err(Failure::Broken)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(Outcome::AnotherRemote),
        status => return Err(refusal(status, response.into_body()).await),
    }
    std::thread::spawn(move || read_input(&input));
    write_output(response.into_body()).await.map(Outcome::Ended)
}

fn request(call: &Call, body: Body) -> Result<Request<Body>, Failure> {
    let impossible = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::Here("the place cannot be asked for", io::Error::other(error))
    };
    let path = call.place.path_and_query(call.service).map_err(|error| impossible(error.into()))?;
    let path = path.strip_prefix(paths::PREFIX).unwrap_or(&path);
    Request::post(path).header(header::HOST, "127.0.0.1").body(body).map_err(|error| impossible(error.into()))
}

/// What the sled or the gateway says in place of a session.
async fn refusal(status: StatusCode, body: Incoming) -> Failure {
    let said = Limited::new(body, REFUSAL_LIMIT).collect().await.map_or_else(|_| Bytes::new(), Collected::to_bytes);
    let said = text::one_line(&String::from_utf8_lossy(&said), REFUSAL_CHARS);
    Failure::Refused(if said.is_empty() { format!("the gateway refused without a word ({status})") } else { said })
}

/// Hands standard input over as it comes, until its end or until nobody takes it any more.
fn read_input(input: &mpsc::Sender<io::Result<Bytes>>) {
    let failed = |error| drop(input.blocking_send(Err(error)));
    let mut stdin = match unbuffered(io::stdin().as_fd()) {
        Ok(stdin) => stdin,
        Err(error) => return failed(error),
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if input.blocking_send(Ok(Bytes::copy_from_slice(&buffer[..length]))).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The request breaks off: an end that is none must not look like one.
            Err(error) => return failed(error),
        }
    }
}

/// Writes what the remote program says and gives its exit code. A thread writes: whoever does not read must not hold the input up.
async fn write_output(mut body: Incoming) -> Result<u8, Failure> {
    let here = |error| Failure::Here("cannot write what the git server says", error);
    let (output, mut pieces) = mpsc::channel(PIECES);
    let writing = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let (mut stdout, mut stderr) = (unbuffered(io::stdout().as_fd())?, unbuffered(io::stderr().as_fd())?);
        while let Some(frame) = pieces.blocking_recv() {
            match frame {
                Frame::Stdout(payload) => stdout.write_all(&payload)?,
                Frame::Stderr(payload) => stderr.write_all(&payload)?,
                Frame::Exit(_) => {}
            }
        }
        Ok(())
    });
    let mut decoder = FrameDecoder::default();
    let code = 'session: loop {
        while let Some(frame) = decoder.next_frame()? {
            if let Frame::Exit(code) = frame {
                break 'session code;
            }
            if output.send(frame).await.is_err() {
                // The thread ended with an error, which is told below.
                break 'session FATAL.into();
            }
        }
        match body.frame().await {
            Some(frame) => {
                if let Ok(bytes) = frame.map_err(Failure::Broken)?.into_data() {
                    decoder.feed(&bytes);
                }
            }
            None => decoder.finish()?,
        }
    };
    drop(output);
    writing.await.map_err(|error| here(io::Error::other(error)))?.map_err(here)?;
    // What ssh, too, makes of a code that a process cannot have.
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn unbuffered(stream: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(stream.try_clone_to_owned()?))
}
