//! The one grammar of commands, for chat and command line alike (CMD-1), and the rule that tells a
//! command from what people say to the agent (CHAT-12). Pure: text in, command or text out.
//!
//! [`help()`] explains it; `misuse` is what is answered to a command that cannot be understood.

mod help;
mod misuse;

use std::fmt;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use self::help::help;

use super::git_audit;
use crate::{projects, refusal::Refusal, rooms::Mode, text};

/// A command, as people write it in a room.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(no_binary_name = true, name = "", disable_help_flag = true, disable_help_subcommand = true)]
pub enum Command {
    /// List the commands, or explain one
    Help {
        /// The command to explain; words after it count for nothing
        topic: Vec<String>,
    },
    /// Make something new
    #[command(subcommand)]
    New(New),
    /// List the projects
    Projects,
    /// Tell what runs, on which branch, and what has changed
    Status,
    /// Choose the project that you talk about in this room
    Switch {
        /// The project's name
        project: String,
    },
    /// End the running turn and forget what waits
    Stop,
    /// List what runs and what waits
    Queue,
    /// Take a message out that waits
    Cancel {
        /// Its number, as `queue` tells it
        #[arg(value_parser = waiting)]
        number: u64,
    },
    /// Begin a new agent session; the files stay
    Reset,
    /// Choose what messages do that come while the agent works, or show what holds
    Mode {
        /// What they do; without it, what holds is told
        mode: Option<Mode>,
    },
    /// Allow what the agent asks permission for
    Approve {
        /// The six characters that the question was told with, such as 3fa81c
        #[arg(value_parser = question)]
        question: String,
    },
    /// Deny what the agent asks permission for
    Deny {
        /// The six characters that the question was told with, such as 3fa81c
        #[arg(value_parser = question)]
        question: String,
    },
    /// Tell what the model was used for, and what that cost
    Cost,
    /// Tell how to open a project over SSH
    Ssh {
        /// The project; the chosen one when absent
        project: Option<String>,
    },
    /// Tell who may use a project
    #[command(args_conflicts_with_subcommands = true)]
    Members {
        /// The project; the chosen one when absent
        #[arg(value_parser = project_name)]
        project: Option<String>,
        /// What is to change
        #[command(subcommand)]
        change: Option<Membership>,
    },
    /// Delete something
    #[command(subcommand)]
    Delete(Delete),
    /// Confirm a deletion
    #[command(subcommand)]
    Confirm(Confirm),
    /// Show the latest lines of the log of the project's sled
    Logs {
        /// How many lines
        #[arg(long, default_value_t = 30, value_parser = lines)]
        lines: u32,
    },
    /// Run git in the project: !git log --oneline -5; `git audit` tells what the remote's credential was used for
    Git {
        /// What follows git
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Show what the last turn changed in the files; with paths: !diff <path>…
    Diff {
        /// Paths to look at
        #[arg(trailing_var_arg = true)]
        paths: Vec<String>,
    },
    /// Put back what the last turn changed in the files; once more takes that back
    Undo,
    /// Look at the stacks of languages
    #[command(subcommand)]
    Stacks(StacksVerb),
    /// Check the engine, the images and the state directory
    Doctor,
    /// Tell the version
    Version,
}

/// A question's name: six hexadecimal digits; or its id, by which a reaction that came early names it.
fn question(name: &str) -> Result<String, Refusal> {
    let lower = name.to_ascii_lowercase();
    if lower.len() == 6 && lower.bytes().all(|b| b.is_ascii_hexdigit()) || uuid::Uuid::parse_str(&lower).is_ok() {
        Ok(lower)
    } else {
        Err(Refusal::usage(format!("{} is no question's name", text::code(name)))
            .hint("It has six characters, such as `3fa81c`."))
    }
}

/// The number of a message that waits.
fn waiting(number: &str) -> Result<u64, Refusal> {
    number.parse().map_err(|_| {
        Refusal::usage(format!("{} is no number", text::code(number)))
            .hint(format!("`{}` lists the numbers.", Command::Queue))
    })
}

/// The most lines of a log that are shown.
const LINES_MAX: u32 = 500;

/// How many lines of a log.
fn lines(number: &str) -> Result<u32, Refusal> {
    number.parse().ok().filter(|lines| (1..=LINES_MAX).contains(lines)).ok_or_else(|| {
        Refusal::usage(format!("`--lines` cannot be {}", text::code(number)))
            .hint(format!("It is a number from 1 to {LINES_MAX}: `{}`.", Command::Logs { lines: 50 }))
    })
}

/// How many commits.
fn depth(number: &str) -> Result<u32, Refusal> {
    number.parse().ok().filter(|depth| *depth > 0).ok_or_else(|| {
        Refusal::usage(format!("`--depth` cannot be {}", text::code(number)))
            .hint("It is a number from 1 on, such as `--depth 1`.")
    })
}

/// A number of processors that can be compared with others.
fn cpus(number: &str) -> Result<f64, Refusal> {
    number.parse().ok().filter(|cpus: &f64| cpus.is_finite()).ok_or_else(|| {
        Refusal::usage(format!("`--cpus` cannot be {}", text::code(number)))
            .hint("It is a number, such as `--cpus 1.5`.")
    })
}

/// A person's id on Matrix, in full.
fn person(id: &str) -> Result<String, Refusal> {
    let whole = id.strip_prefix('@').and_then(|rest| rest.split_once(':'));
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    match whole {
        Some((name, server)) if !name.is_empty() && !server.is_empty() && id.len() <= 255 && id.chars().all(plain) => {
            Ok(id.to_owned())
        }
        _ => Err(Refusal::usage(format!("{} is no person's id", text::code(id)))
            .hint("A person is named by the whole id, such as `@ann:example.org`.")),
    }
}

/// A project's name, as far as its form goes.
fn project_name(name: &str) -> Result<String, Refusal> {
    projects::name::check(name).map(|()| name.to_owned())
}

/// What can be made.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum New {
    /// Make a project: a container with its toolchain, an SSH door and an agent
    Project(NewProject),
}

/// `new project` (PROJ-1).
#[derive(Debug, Clone, PartialEq, Args)]
pub struct NewProject {
    /// Its name: a lower-case letter, then letters, digits or dashes, 31 at most
    pub name: String,
    /// The stack of languages; found from the files when absent
    #[arg(long)]
    pub stack: Option<String>,
    /// A repository to clone: https, ssh (`git@example.org:team/app.git`), or a local path
    #[arg(long)]
    pub git: Option<String>,
    /// The branch to check out
    #[arg(long, requires = "git")]
    pub branch: Option<String>,
    /// Clone only so many commits
    #[arg(long, requires = "git", value_parser = depth)]
    pub depth: Option<u32>,
    /// The folder on the host
    #[arg(long)]
    pub path: Option<String>,
    /// Take an existing git repository at that folder
    #[arg(long, conflicts_with = "git")]
    pub adopt: bool,
    /// How many processors it may use, such as 1.5
    #[arg(long, value_parser = cpus)]
    pub cpus: Option<f64>,
    /// How much memory it may use, such as 4g
    #[arg(long)]
    pub memory: Option<String>,
}

impl NewProject {
    /// A project of this name, all else as it comes.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            name,
            stack: None,
            git: None,
            branch: None,
            depth: None,
            path: None,
            adopt: false,
            cpus: None,
            memory: None,
        }
    }
}

/// What can be deleted.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Delete {
    /// Delete a project's container and settings; its files on the host stay
    Project {
        /// The project's name
        name: String,
    },
}

/// What can be told of stacks.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum StacksVerb {
    /// List the stacks: their files, their language servers, and what they lack
    List,
    /// Check your own stacks, and tell by file and line what is wrong
    Check {
        /// The stack; all of your own when absent
        name: Option<String>,
    },
}

/// What can change of who may use a project.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Membership {
    /// Let a person use a project; with its first member it is no longer open to everybody
    Add {
        /// The person's id, such as `@ann:example.org`
        #[arg(value_parser = person)]
        person: String,
        /// The project; the chosen one when absent
        #[arg(value_parser = project_name)]
        project: Option<String>,
    },
    /// Take that back
    Remove {
        /// The person's id, such as `@ann:example.org`
        #[arg(value_parser = person)]
        person: String,
        /// The project; the chosen one when absent
        #[arg(value_parser = project_name)]
        project: Option<String>,
    },
}

impl Membership {
    /// The project that is named.
    pub fn project(&self) -> Option<&String> {
        let (Self::Add { project, .. } | Self::Remove { project, .. }) = self;
        project.as_ref()
    }
}

/// What can be confirmed.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Confirm {
    /// Confirm that a project is to be deleted
    Delete {
        /// The project's name
        name: String,
    },
}

/// What a message turned out to be.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// A command.
    Command(Command),
    /// A command that cannot be understood: what to answer.
    Misused(String),
    /// Words for the agent.
    Text(String),
}

/// Tells a command from words for the agent (CHAT-12).
///
/// `!word …` is always a command. Without `!`, a message is one only if the whole of it parses as a command
/// that takes no prose.
pub fn read(message: &str) -> Said {
    let message = message.trim();
    if let Some(line) = message.strip_prefix('!') {
        return match parse(line) {
            Ok(command) => Said::Command(command),
            Err(answer) => Said::Misused(answer),
        };
    }
    if !message.contains('\n')
        && let Ok(command) = parse(message)
        && command.stands_alone(message)
    {
        return Said::Command(command);
    }
    Said::Text(message.to_owned())
}

/// Parses the words of a command; an error is what to answer.
pub fn parse(line: &str) -> Result<Command, String> {
    // Whoever is in a hurry to end something writes more than the bare word.
    if line.trim_end_matches(['.', '!', '…', ' ']).trim_start().eq_ignore_ascii_case("stop") {
        return Ok(Command::Stop);
    }
    let mut words = shell_words::split(&typed_dashes(line)).map_err(|_| {
        Refusal::usage("a quotation mark is not closed").hint("Close it, or leave it out.").to_markdown()
    })?;
    lower_case_verbs(&mut words);
    if words.is_empty() {
        let nothing = Refusal::usage("there is no command after `!`");
        return Err(nothing.hint(format!("Try `{}`.", Command::Help { topic: Vec::new() })).to_markdown());
    }
    Command::try_parse_from(&words).map_err(|error| misuse::refusal(&words, &error).to_markdown())
}

/// Whether words for an agent begin as a command does: it may be one with a slip in it.
pub fn begins_like_a_command(words: &str) -> bool {
    let first = words.split_whitespace().next().unwrap_or_default();
    let first = first.trim_end_matches(|c: char| c.is_ascii_punctuation()).to_ascii_lowercase();
    Command::command().get_subcommands().any(|verb| verb.get_name() == first)
}

/// Phones begin what is written with a capital letter.
fn lower_case_verbs(words: &mut [String]) {
    if let Some(verb) = words.first_mut() {
        verb.make_ascii_lowercase();
    }
    if let [verb, what, ..] = words
        && matches!(verb.as_str(), "new" | "delete" | "confirm" | "stacks" | "members")
    {
        what.make_ascii_lowercase();
    }
}

/// Phones turn `--` into a dash of their own. Between quotation marks, and before anything but a letter, it is the person's.
fn typed_dashes(line: &str) -> String {
    let (mut typed, mut quoted, mut before) = (String::with_capacity(line.len()), None, None);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match quoted {
            None if matches!(c, '"' | '\'') => quoted = Some(c),
            Some(mark) if c == mark => quoted = None,
            _ => {}
        }
        let begins_a_word =
            quoted.is_none() && before == Some(' ') && rest.peek().is_some_and(char::is_ascii_alphabetic);
        match c {
            '—' | '–' if begins_a_word => typed.push_str("--"),
            c => typed.push(c),
        }
        before = Some(c);
    }
    typed
}

impl Command {
    /// Whether it may be carried out again when the gateway ended before it was answered: it only looks, or the second
    /// time comes to the same.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Help { .. }
            | Self::Projects
            | Self::Status
            | Self::Switch { .. }
            | Self::Stop
            | Self::Queue
            | Self::Cancel { .. }
            | Self::Reset
            | Self::Mode { .. }
            | Self::Approve { .. }
            | Self::Deny { .. }
            | Self::Cost
            | Self::Ssh { .. }
            | Self::Logs { .. }
            | Self::Diff { .. }
            | Self::Members { .. }
            | Self::Stacks(_)
            | Self::Doctor
            | Self::Version => true,
            Self::Git { args } if git_audit::is_meant(args) => true,
            Self::New(_) | Self::Delete(_) | Self::Confirm(_) | Self::Git { .. } | Self::Undo => false,
        }
    }

    /// Whether messages that follow must find it done: it decides where they go, or what becomes of them.
    pub fn is_in_order(&self) -> bool {
        matches!(
            self,
            Self::Switch { .. }
                | Self::Reset
                | Self::Stop
                | Self::Cancel { .. }
                | Self::Mode { .. }
                | Self::Members { change: Some(_), .. }
        )
    }

    /// Whether it counts without `!`: it takes no prose, and the message says nothing else.
    fn stands_alone(&self, message: &str) -> bool {
        match self {
            // It is none of git's own, and no prose.
            Self::Git { args } => git_audit::is_meant(args),
            Self::Diff { paths } => paths.is_empty(),
            // One word after it is what somebody wants explained, known or not; more than that is prose unless it begins with the
            // two words of a command. "help me" is said to the agent, and so is "help undo the last change".
            Self::Help { topic } => match &topic[..] {
                [] => !message.contains(['?', '!']),
                [topic] => !matches!(topic.as_str(), "me" | "us"),
                [verb, what, ..] => Self::command()
                    .find_subcommand(help::named(verb))
                    .is_some_and(|verb| verb.find_subcommand(help::named(what)).is_some()),
            },
            // The project's name is one word that could be a name; "switch to tabs" does not parse at all.
            Self::Switch { project: name }
            | Self::Ssh { project: Some(name) }
            | Self::Stacks(StacksVerb::Check { name: Some(name) }) => {
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            }
            Self::Stop => true,
            _ => !message.contains(['?', '!']),
        }
    }
}

/// The command as it can be written in a room. [`parse`] reads it back.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A first `--` is the grammar's own: it ends the options.
        let word = |word: &str| {
            let dashes = if word.starts_with('-') { "-- " } else { "" };
            format!("{dashes}{}", shell_words::quote(word))
        };
        match self {
            Self::Help { topic } if topic.is_empty() => f.write_str("help"),
            Self::Help { topic } => {
                let dashes = if topic.iter().any(|word| word.starts_with('-')) { "-- " } else { "" };
                write!(f, "help {dashes}{}", shell_words::join(topic))
            }
            Self::New(New::Project(new)) => write!(f, "new project {new}"),
            Self::Projects => f.write_str("projects"),
            Self::Status => f.write_str("status"),
            Self::Switch { project } => write!(f, "switch {}", word(project)),
            Self::Stop => f.write_str("stop"),
            Self::Queue => f.write_str("queue"),
            Self::Cancel { number } => write!(f, "cancel {number}"),
            Self::Mode { mode: None } => f.write_str("mode"),
            Self::Mode { mode: Some(Mode::Queue) } => f.write_str("mode queue"),
            Self::Mode { mode: Some(Mode::Interrupt) } => f.write_str("mode interrupt"),
            Self::Approve { question } => write!(f, "!approve {question}"),
            Self::Deny { question } => write!(f, "!deny {question}"),
            Self::Cost => f.write_str("cost"),
            Self::Reset => f.write_str("reset"),
            Self::Ssh { project: None } => f.write_str("ssh"),
            Self::Ssh { project: Some(project) } => write!(f, "ssh {}", word(project)),
            Self::Members { project, change } => {
                let project = project.iter().chain(change.iter().filter_map(Membership::project)).next();
                f.write_str("members")?;
                match change {
                    None => {}
                    Some(Membership::Add { person, .. }) => write!(f, " add {}", word(person))?,
                    Some(Membership::Remove { person, .. }) => write!(f, " remove {}", word(person))?,
                }
                project.map_or(Ok(()), |project| write!(f, " {}", word(project)))
            }
            Self::Delete(Delete::Project { name }) => write!(f, "delete project {}", word(name)),
            Self::Confirm(Confirm::Delete { name }) => write!(f, "confirm delete {}", word(name)),
            Self::Logs { lines } => write!(f, "logs --lines {lines}"),
            Self::Git { args } => {
                let dashes = if args.first().is_some_and(|first| first == "--") { "-- " } else { "" };
                write!(f, "!git {dashes}{}", shell_words::join(args))
            }
            Self::Undo => f.write_str("undo"),
            Self::Diff { paths } if paths.is_empty() => f.write_str("diff"),
            Self::Diff { paths } => {
                let dashes = if paths.first().is_some_and(|first| first.starts_with('-')) { "-- " } else { "" };
                write!(f, "!diff {dashes}{}", shell_words::join(paths))
            }
            Self::Stacks(StacksVerb::List) => f.write_str("stacks list"),
            Self::Stacks(StacksVerb::Check { name: None }) => f.write_str("stacks check"),
            Self::Stacks(StacksVerb::Check { name: Some(name) }) => write!(f, "stacks check {}", word(name)),
            Self::Doctor => f.write_str("doctor"),
            Self::Version => f.write_str("version"),
        }
    }
}

impl fmt::Display for NewProject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, stack, git, branch, depth, path, adopt, cpus, memory } = self;
        let last = name.starts_with('-');
        if !last {
            f.write_str(&shell_words::quote(name))?;
        }
        let options = [
            ("stack", stack.clone()),
            ("git", git.clone()),
            ("branch", branch.clone()),
            ("depth", depth.map(|depth| depth.to_string())),
            ("path", path.clone()),
            ("cpus", cpus.map(|cpus| cpus.to_string())),
            ("memory", memory.clone()),
        ];
        for (option, value) in options {
            if let Some(value) = value {
                let sign = if value.starts_with('-') { '=' } else { ' ' };
                write!(f, " --{option}{sign}{}", shell_words::quote(&value))?;
            }
        }
        if *adopt {
            f.write_str(" --adopt")?;
        }
        if last { write!(f, " -- {}", shell_words::quote(name)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
