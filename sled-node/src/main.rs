//! `sled`: what runs in a project's container. It runs the agent's turns, sshd, and the project's git commands, and speaks with the gateway over the link.
//!
//! It holds no secret and trusts nobody in the container more than anybody else there (DESIGN, invariants 7 and 9). It must not
//! decide what was accepted, approved or spent: the gateway's journal does.

mod agent;
mod api;
mod attempt;
mod connect;
mod environment;
mod forgetting;
mod forward;
mod git;
mod git_ssh;
mod handing;
mod lines;
mod lingering;
mod links;
mod log;
mod model;
mod permissions;
mod porcelain;
mod processes;
mod record;
mod room;
mod running;
mod serve;
mod snapshots;
mod sshd;
mod stored;
mod supervised;
mod supervisor;
mod takeover;
mod text;
mod turns;
mod verify;
mod warm;
mod workspace;

use std::ffi::OsString;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::environment::Environment;
use crate::sshd::Sshd;

/// Where a sled listens in its container.
const SOCKET: &str = "/run/musher/sled.sock";

/// Where a sled keeps its journal in its container.
const DATA: &str = "/var/lib/musher/sled";

/// The sled: what runs in a project's container
#[derive(Debug, Parser)]
#[command(name = "sled", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sled: the container's main process
    Serve(serve::Settings),
    /// Be the link's byte stream: copy standard input and output from and to the sled's socket
    Connect {
        /// The sled's socket
        #[arg(long, default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Go over the sled's journal: its form, and that each turn's events make sense; 1 when something is wrong
    Verify {
        /// The folder of the sled's journal
        #[arg(long, default_value = DATA)]
        data: PathBuf,
    },
    /// Say which version this is
    Version,
    /// Run a program and see to it that nothing of it is left
    #[command(hide = true)]
    Supervise {
        /// The socket on which the sled gives orders
        #[arg(long)]
        control: PathBuf,
        /// Program and arguments
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
    /// Become an sshd on standard input and output, with the container's environment for its sessions
    #[command(hide = true)]
    Sshd {
        /// Serve standard input and output; there is no other way
        #[arg(long, required = true)]
        inetd: bool,
        #[command(flatten)]
        settings: serve::SshdSettings,
    },
    /// Be git's ssh: reach the project's remote through the gateway, and any other by ssh itself
    #[command(hide = true, disable_help_flag = true)]
    GitSsh {
        /// Port of the git endpoint on the container's loopback
        #[arg(long, default_value_t = link::git::PORT)]
        git_port: u16,
        /// What git gives to ssh
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// The practice agent
    #[command(hide = true)]
    EchoAgent {
        /// What its first answer begins with
        #[arg(long)]
        notice: Option<String>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Serve(settings) => {
            let (environment, log) = (Environment::of_this_process(), log::start());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            runtime.block_on(serve::run(settings, environment, log))?;
        }
        Command::Connect { socket } => connect::run(&socket)?,
        Command::Verify { data } => return Ok(if verify::run(&data)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Command::Version => writeln!(std::io::stdout(), "sled {}", env!("CARGO_PKG_VERSION"))?,
        Command::Supervise { control, argv } => return supervisor::run(&control, &argv),
        Command::Sshd { settings, .. } => {
            let sshd = Sshd::from(settings);
            return Err(sshd.become_inetd(&Environment::of_this_process()))
                .with_context(|| format!("cannot run {}", sshd.program.display()));
        }
        Command::GitSsh { git_port, args } => {
            return Ok(git_ssh::run(git_port, &args, &Environment::of_this_process()));
        }
        Command::EchoAgent { notice } => agent::echo::run(notice, BufReader::new(std::io::stdin()), std::io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}
