//! `help`: all commands, or one with its options, from the grammar itself. Pure.

use clap::CommandFactory;

use super::Command;
use crate::{refusal::Refusal, text};

/// The help text: all commands, or the one that `topic` begins with. `Err` is what to answer where there is no such command.
pub fn help(topic: &[String]) -> Result<String, String> {
    let mut grammar = Command::command();
    grammar.build();
    let Some(topic) = topic.first() else { return Ok(all(&grammar)) };
    let Some(verb) = grammar.find_subcommand(named(topic)) else {
        return Err(Refusal::usage(format!("there is no command {}", text::code(topic)))
            .hint(format!("Try `{}`.", Command::Help { topic: Vec::new() }))
            .to_markdown());
    };
    let own = stands_alone(verb).then(|| explained(verb, ""));
    let nested = verb.get_subcommands().map(|nested| explained(nested, verb.get_name()));
    let shown: Vec<_> = own.into_iter().chain(nested).collect();
    Ok(text::code_block(&shown.join("\n\n")))
}

/// The verb that a topic names, also as it stands in a sentence or with the sign that it is written with.
pub(super) fn named(topic: &str) -> String {
    topic.trim_start_matches('!').trim_end_matches(['.', '?', '!']).to_ascii_lowercase()
}

/// A line for each command.
fn all(grammar: &clap::Command) -> String {
    let line = |verb: &clap::Command, before: &str| {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        format!("- `{}` — {about}", usage(verb, before))
    };
    let mut lines = vec!["Commands:".to_owned(), String::new()];
    for verb in grammar.get_subcommands() {
        lines.extend(stands_alone(verb).then(|| line(verb, "")));
        lines.extend(verb.get_subcommands().map(|nested| line(nested, verb.get_name())));
    }
    lines.push(String::new());
    lines.push(
        "Everything else goes to the agent of your project, also a command with a mistake in it. With `!` before it, \
         a command is never taken for words, and you are told what is wrong."
            .to_owned(),
    );
    lines.join("\n")
}

/// Whether the verb says something without another one after it.
pub(super) fn stands_alone(verb: &clap::Command) -> bool {
    !verb.has_subcommands() || verb.get_positionals().next().is_some()
}

/// One command with its arguments and options. What is nested in it is explained on its own.
fn explained(verb: &clap::Command, before: &str) -> String {
    let mut usage = usage(verb, before);
    if verb.get_name() == "diff" {
        usage.push_str("\n       !diff <path>…");
    }
    let mut alone = clap::Command::new("").disable_help_flag(true).override_usage(usage);
    alone = alone.args(verb.get_arguments().cloned());
    if let Some(about) = verb.get_about() {
        alone = alone.about(about.clone());
    }
    alone.render_help().to_string().trim().to_owned()
}

/// `verb <needed> [optional]`, options left to `help <verb>`.
pub(super) fn usage(verb: &clap::Command, before: &str) -> String {
    let mut usage = match (verb.get_name(), before) {
        // What is not git's own needs the sign, and so do git's words.
        ("git", _) => "!git".to_owned(),
        // With paths it is taken for words unless it has the sign.
        ("diff", _) => return "diff".to_owned(),
        (name, "") => name.to_owned(),
        (name, before) => format!("{before} {name}"),
    };
    for argument in verb.get_positionals() {
        let name = argument.get_id().as_str();
        let many = argument.get_num_args().is_some_and(|many| many.max_values() > 1);
        let name = if many { name.trim_end_matches('s') } else { name };
        let (open, close) = if argument.is_required_set() { ('<', '>') } else { ('[', ']') };
        usage.extend([" ".to_owned(), format!("{open}{name}{close}")]);
        usage.push_str(if many { "…" } else { "" });
    }
    if verb.get_opts().next().is_some() {
        usage.push_str(" [options]");
    }
    usage
}
