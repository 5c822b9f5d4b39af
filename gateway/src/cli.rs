//! The command line: what `musher` can be told to do. Parsing alone.

use std::{path::PathBuf, process::ExitCode};

use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{commands::grammar::StacksVerb, refusal::Kind};

/// Run software projects from a chat room.
#[derive(Debug, Parser)]
#[command(name = "musher", version, arg_required_else_help = true)]
pub struct Cli {
    /// The state directory
    #[arg(long, env = "MUSHER_HOME", value_name = "DIR", global = true)]
    pub home: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the gateway, with a prompt on this terminal unless bot.toml names another transport
    Up {
        /// Take piped chat lines at once, without waiting for the answer to the one before
        #[arg(long)]
        no_wait: bool,
    },
    /// Check the engine, the images and the state directory
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at the stacks of languages
    #[command(subcommand)]
    Stacks(StacksVerb),
    /// Make images ahead of the first project
    #[command(subcommand)]
    Images(Images),
    /// Keep secrets that bot.toml names
    #[command(subcommand)]
    Secrets(SecretsVerb),
    /// Look at how git remotes were used
    #[command(subcommand)]
    Git(GitVerb),
    /// Look at the settings
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Look at the journal, also while the gateway runs
    #[command(subcommand)]
    Journal(JournalVerb),
    /// Open a shell in a project, or run a command there
    Ssh {
        /// The project
        project: String,
        /// The command; a shell when absent
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Carry an SSH session over standard input and output; for ssh's `ProxyCommand`
    SshProxy {
        /// The project
        project: String,
    },
    /// Be the process that clones; the gateway starts it
    #[command(hide = true)]
    CloneWorker,
    /// Tell the version
    Version,
}

/// `musher images …`
#[derive(Debug, Subcommand)]
pub enum Images {
    /// Build what is missing of the base image and of these stacks
    Build {
        /// The stacks; the image without a stack when absent
        stacks: Vec<String>,
    },
}

/// `musher secrets …`
#[derive(Debug, Subcommand)]
pub enum SecretsVerb {
    /// Store a secret; its value is read from standard input
    Set {
        /// Its name
        name: String,
    },
    /// List the names
    List,
    /// Forget a secret
    Remove {
        /// Its name
        name: String,
    },
}

/// `musher git …`
#[derive(Debug, Subcommand)]
pub enum GitVerb {
    /// List what the credential of a project's remote was used for, also while the gateway runs
    Audit {
        /// The project
        project: String,
    },
}

/// `musher config …`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check bot.toml
    Check,
    /// Print an example with every setting
    Example,
}

/// `musher journal …`
#[derive(Debug, Subcommand)]
pub enum JournalVerb {
    /// Print the latest events of all streams
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: u64,
        /// Go on with what comes, until it is interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// Print one stream
    Show {
        /// The stream, such as project/0198…, as `tail` shows it
        stream: String,
    },
    /// Check every event, and that every snapshot is what its events make
    Verify,
}

/// Prints what the parser has to say: help and version, or what was wrong with the words. Gives the exit code that goes with it.
pub fn tell(told: &clap::Error) -> ExitCode {
    // Where it cannot be printed, the code tells it all the same.
    drop(without_hidden(told).as_ref().unwrap_or(told).print());
    exit_code(told)
}

/// The same without verbs that are not for people, where the parser suggests such.
fn without_hidden(told: &clap::Error) -> Option<clap::Error> {
    let ContextValue::Strings(suggested) = told.get(ContextKind::SuggestedSubcommand)? else { return None };
    let cli = Cli::command();
    let hidden = |name: &String| cli.find_subcommand(name).is_some_and(clap::Command::is_hide_set);
    if !suggested.iter().any(hidden) {
        return None;
    }
    let rest: Vec<_> = suggested.iter().filter(|name| !hidden(name)).cloned().collect();
    let mut shown = clap::Error::new(told.kind()).with_cmd(&cli);
    for (kind, value) in told.context().filter(|(kind, _)| *kind != ContextKind::SuggestedSubcommand) {
        // Tips that are none would be an empty line.
        if !matches!(value, ContextValue::StyledStrs(tips) if tips.is_empty()) {
            shown.insert(kind, value.clone());
        }
    }
    if !rest.is_empty() {
        shown.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(rest));
    }
    Some(shown)
}

fn exit_code(told: &clap::Error) -> ExitCode {
    if told.use_stderr() { Kind::Usage.exit_code() } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_end_with_64_and_help_with_0() {
        for (args, code) in [
            (&["foo"][..], ExitCode::from(64)),
            (&["up", "--no-wiat"], ExitCode::from(64)),
            (&["ssh"], ExitCode::from(64)),
            (&[], ExitCode::from(64)),
            (&["--help"], ExitCode::SUCCESS),
            (&["secrets", "--help"], ExitCode::SUCCESS),
            (&["--version"], ExitCode::SUCCESS),
        ] {
            let told = Cli::try_parse_from(["musher"].iter().chain(args)).expect_err("it is not carried out");
            assert_eq!(exit_code(&told), code, "{args:?}");
        }
    }

    #[test]
    fn what_is_hidden_is_not_suggested() {
        let told =
            |words: &[&str]| Cli::try_parse_from(["musher"].iter().chain(words)).expect_err("it is not carried out");
        let before = told(&["new"]);
        assert!(before.to_string().contains("clone-worker"), "the parser would: {before}");
        let shown = without_hidden(&before).expect("something was hidden").to_string();
        assert!(!shown.contains("clone-worker") && shown.contains("unrecognized subcommand 'new'"), "{shown}");
        assert!(shown.contains("'new'\n\nUsage: musher"), "{shown}");
        for words in [&["docter"][..], &["up", "--no-wiat"], &["ssh"], &["secrets", "lst"], &["--help"]] {
            assert!(without_hidden(&told(words)).is_none(), "{words:?} is told as ever");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
