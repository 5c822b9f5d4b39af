//! The one grammar of commands, for chat and command line alike (CMD-1), and the rule that tells a
//! command from what people say to the agent (CHAT-12). Pure: text in, command or text out.

use std::fmt;

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::git_audit;
use crate::{projects, rooms::Mode, text};

/// A command, as people write it in a room.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(no_binary_name = true, name = "", disable_help_flag = true, disable_help_subcommand = true)]
pub enum Command {
    /// List the commands, or explain one
    Help {
        /// The command to explain
        topic: Option<String>,
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
        number: u64,
    },
    /// Begin a new agent session; the files stay
    Reset,
    /// Choose what messages do that come while the agent works, or tell it
    Mode {
        /// What they do; without it, what holds is told
        mode: Option<Mode>,
    },
    /// Allow what the agent asks leave for
    Approve {
        /// The question, as it was told
        #[arg(value_parser = question)]
        question: String,
    },
    /// Deny what the agent asks leave for
    Deny {
        /// The question, as it was told
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
    /// Show the latest lines of the node's log
    Logs {
        /// How many lines
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=500))]
        lines: u32,
    },
    /// Run git in the project: !git log --oneline -5; `git audit` tells what the remote's credential was used for
    Git {
        /// What follows git
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Show what the last turn changed in the files; with paths: !diff <path…>
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
fn question(name: &str) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    if name.len() == 6 && name.bytes().all(|b| b.is_ascii_hexdigit()) || uuid::Uuid::parse_str(&name).is_ok() {
        Ok(name)
    } else {
        Err("a question has a name of six characters, such as `3fa81c`".to_owned())
    }
}

/// A number that can be compared with others.
fn number(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| number.is_finite()).ok_or_else(|| "it is a number, such as 1.5".to_owned())
}

/// A person's id on Matrix, in full.
fn person(id: &str) -> Result<String, String> {
    let whole = id.strip_prefix('@').and_then(|rest| rest.split_once(':'));
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    match whole {
        Some((name, server)) if !name.is_empty() && !server.is_empty() && id.len() <= 255 && id.chars().all(plain) => {
            Ok(id.to_owned())
        }
        _ => Err("a person is named by the whole id, such as `@ann:example.org`".to_owned()),
    }
}

/// A project's name, as far as its form goes.
fn project_name(name: &str) -> Result<String, String> {
    projects::name::check(name).map(|()| name.to_owned()).map_err(|refusal| refusal.what)
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
    #[arg(long, requires = "git", value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: Option<u32>,
    /// The folder on the host
    #[arg(long)]
    pub path: Option<String>,
    /// Take an existing git repository at that folder
    #[arg(long, conflicts_with = "git")]
    pub adopt: bool,
    /// How many processors it may use, such as 1.5
    #[arg(long, value_parser = number)]
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
    let mut words =
        shell_words::split(&typed_dashes(line)).map_err(|_| "⚠ a quotation mark is not closed.".to_owned())?;
    lower_case_verbs(&mut words);
    let Some(first) = words.first() else {
        return Err(format!("⚠ there is no command after `!`.\nTry `{}`.", Command::Help { topic: None }));
    };
    Command::try_parse_from(&words).map_err(|error| {
        let known = Command::command().get_subcommands().any(|verb| verb.get_name() == first);
        let rendered = text::plain(&error.render().to_string()).replace('\t', " ");
        let mut what = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        if what.ends_with(':') {
            let listed: Vec<_> =
                rendered.lines().skip(1).take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
            what = format!("{what} {}", listed.join(", "));
        }
        let tip = rendered.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        let tip = tip.map(|tip| format!(" {tip}.")).unwrap_or_default();
        let topic = known.then(|| first.clone());
        format!("⚠ {what}.{tip}\nTry `{}`.", Command::Help { topic })
    })
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

/// Phones turn `--` into a dash of their own.
fn typed_dashes(line: &str) -> String {
    line.replace(" —", " --").replace(" –", " --")
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
            Self::Help { topic: Some(topic) } => Self::command().find_subcommand(topic).is_some(),
            // The project's name is one word that could be a name; "switch to tabs" does not parse at all.
            Self::Switch { project: name }
            | Self::Ssh { project: Some(name) }
            | Self::Stacks(StacksVerb::Check { name: Some(name) }) => {
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            }
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
            Self::Help { topic: None } => f.write_str("help"),
            Self::Help { topic: Some(topic) } => write!(f, "help {}", word(topic)),
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

/// The help text: all commands, or one with its options. `Err` names the nearest command.
pub fn help(topic: Option<&str>) -> Result<String, String> {
    let mut grammar = Command::command();
    grammar.build();
    let Some(topic) = topic else {
        let mut lines = vec!["Commands:".to_owned(), String::new()];
        for verb in grammar.get_subcommands() {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let nested: Vec<_> = verb.get_subcommands().collect();
            if nested.is_empty() || verb.get_positionals().next().is_some() {
                lines.push(format!("- `{}` — {about}", usage(verb, "")));
            }
            lines.extend(nested.into_iter().map(|nested| {
                let about = nested.get_about().map(ToString::to_string).unwrap_or_default();
                format!("- `{}` — {about}", usage(nested, verb.get_name()))
            }));
        }
        lines.push(String::new());
        lines.push(
            "Everything else that you write goes to the agent of your project. A leading `!` always means a command."
                .to_owned(),
        );
        return Ok(lines.join("\n"));
    };
    match grammar.find_subcommand_mut(topic) {
        Some(verb) => {
            let alone = verb.get_positionals().next().is_some();
            let nested = verb.get_subcommands().next().filter(|_| !alone).cloned();
            let shown = nested.map_or_else(|| verb.render_help(), |mut nested| nested.render_help());
            Ok(text::code_block(shown.to_string().trim()))
        }
        None => Err(format!("⚠ there is no command {}.\nTry `{}`.", text::code(topic), Command::Help { topic: None })),
    }
}

/// `verb <needed> [optional]`, options left to `help <verb>`.
fn usage(verb: &clap::Command, before: &str) -> String {
    let bang = if verb.get_name() == "git" { "!" } else { "" };
    let mut usage = format!("{bang}{before} {}", verb.get_name()).replace("  ", " ").trim().to_owned();
    if !bang.is_empty() {
        usage = usage.replace("! ", "!");
    }
    for argument in verb.get_positionals() {
        let name = argument.get_id().as_str();
        usage.push_str(if argument.is_required_set() { " <" } else { " [" });
        usage.push_str(name);
        usage.push(if argument.is_required_set() { '>' } else { ']' });
    }
    if verb.get_opts().next().is_some() {
        usage.push_str(" [options]");
    }
    usage
}

#[cfg(test)]
mod tests;
