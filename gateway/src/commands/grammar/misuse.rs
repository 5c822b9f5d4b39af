//! What a command that cannot be understood is answered with: one sentence of ours, and the way on. Pure.
//!
//! It is made of what the parser found; the parser's own words are the last resort, and as code, as is all that people wrote.

use std::error::Error as _;

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    Command, LINES_MAX,
    help::{stands_alone, usage},
};
use crate::{commands::rights::Concern, projects, refusal::Refusal, text};

/// Verbs whose effect cannot be taken back, or that decide something. One that merely looks alike is not suggested, because
/// whoever follows it loses what they did not mean to give away; only one that is a clear slip is.
pub(super) const IRREVOCABLE: [&str; 8] = ["approve", "cancel", "confirm", "delete", "deny", "reset", "stop", "undo"];

/// Where in the grammar the words went wrong.
struct Place<'w> {
    words: &'w [String],
    grammar: clap::Command,
}

/// What is wrong with these words, of which the parser says `error`.
pub(super) fn refusal(words: &[String], error: &clap::Error) -> Refusal {
    let mut grammar = Command::command();
    grammar.build();
    let place = Place { words, grammar };
    let said = |kind| strings(error.get(kind));
    let first = |kind| said(kind).into_iter().next().unwrap_or_default();
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            place.no_command(&first(ContextKind::InvalidSubcommand), said(ContextKind::SuggestedSubcommand))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => place.wants_more(),
        ErrorKind::MissingRequiredArgument => place.missing(&said(ContextKind::InvalidArg)),
        ErrorKind::UnknownArgument => place.unknown(&first(ContextKind::InvalidArg), said(ContextKind::SuggestedArg)),
        ErrorKind::InvalidValue => place.no_value(
            &first(ContextKind::InvalidArg),
            &first(ContextKind::InvalidValue),
            &said(ContextKind::ValidValue),
        ),
        ErrorKind::ValueValidation => match error.source().and_then(|source| source.downcast_ref::<Refusal>()) {
            // What the value's own rule says.
            Some(Refusal { what, hint, .. }) => {
                let refusal = Refusal::usage(what);
                refusal.hint(hint.clone().unwrap_or_else(|| place.try_help()))
            }
            None => place.refuse(format!(
                "{} cannot be {}",
                named(&first(ContextKind::InvalidArg)),
                text::code(&first(ContextKind::InvalidValue))
            )),
        },
        ErrorKind::ArgumentConflict => match strings(error.get(ContextKind::InvalidSubcommand)).first() {
            Some(word) => place.late(word),
            None => place.conflict(&first(ContextKind::InvalidArg), &first(ContextKind::PriorArg)),
        },
        _ => {
            let rendered = text::plain(&error.render().to_string());
            let line = rendered.lines().next().unwrap_or_default();
            place.refuse(format!("that is no command: {}", text::code(line.trim_start_matches("error: "))))
        }
    }
}

impl Place<'_> {
    fn verb(&self) -> Option<&clap::Command> {
        self.grammar.find_subcommand(self.words.first()?)
    }

    fn nested(&self) -> Option<&clap::Command> {
        self.verb()?.find_subcommand(self.words.get(1)?)
    }

    /// The command as far as it is understood, as people write it.
    fn name(&self) -> String {
        let names = self.verb().into_iter().chain(self.nested()).map(clap::Command::get_name);
        names.collect::<Vec<_>>().join(" ")
    }

    /// How that is written in full: in one way, or in several.
    fn usages(&self) -> Vec<String> {
        let Some(verb) = self.verb() else { return Vec::new() };
        if let Some(nested) = self.nested() {
            return vec![usage(nested, verb.get_name())];
        }
        let own = stands_alone(verb).then(|| usage(verb, ""));
        own.into_iter().chain(verb.get_subcommands().map(|nested| usage(nested, verb.get_name()))).collect()
    }

    fn try_help(&self) -> String {
        let topic = self.verb().map(|verb| verb.get_name().to_owned()).into_iter().collect();
        format!("Try `{}`.", Command::Help { topic })
    }

    fn refuse(&self, what: impl Into<String>) -> Refusal {
        Refusal::usage(what).hint(self.try_help())
    }

    fn no_command(&self, word: &str, mut near: Vec<String>) -> Refusal {
        if self.verb().is_none() {
            near.retain(|verb| !IRREVOCABLE.contains(&verb.as_str()) || strsim::damerau_levenshtein(word, verb) <= 1);
            return self.refuse(format!("there is no command {}{}", text::code(word), did_you_mean(near)));
        }
        let whole = text::code(&format!("{} {word}", self.name()));
        Refusal::usage(format!("there is no command {whole}{}", did_you_mean(near)))
            .hint(format!("There is {}.", either(&self.usages(), "and")))
    }

    /// Words are missing at the end.
    fn wants_more(&self) -> Refusal {
        let name = text::code(&self.name());
        if self.name() == "git" {
            return Refusal::usage(format!("{name} wants arguments, such as `!git log --oneline -5`"));
        }
        let usages = self.usages();
        let refusal = Refusal::usage(format!("{name} wants more words: {}", either(&usages, "or")));
        if usages.iter().any(|usage| usage.ends_with("[options]")) { refusal.hint(self.try_help()) } else { refusal }
    }

    /// These arguments are missing, as the parser names them.
    fn missing(&self, arguments: &[String]) -> Refusal {
        if arguments.iter().any(|argument| !argument.starts_with("--")) {
            return self.wants_more();
        }
        let options: Vec<_> = arguments.iter().map(|argument| bare(argument).to_owned()).collect();
        self.refuse(format!("an option that you wrote needs {} as well", either(&options, "and")))
    }

    /// A word or an option that nobody expects there.
    fn unknown(&self, word: &str, near: Vec<String>) -> Refusal {
        let Some(verb) = self.nested().or_else(|| self.verb()) else {
            let first = self.words.first().map(String::as_str).unwrap_or_default();
            return self.refuse(format!("there is no command {}", text::code(first)));
        };
        // Its options belong to what is nested in it.
        if verb.is_subcommand_required_set() {
            return self.wants_more();
        }
        let (name, shown) = (text::code(&self.name()), text::code(word));
        if word.starts_with('-') {
            return self.refuse(format!("{name} has no option {shown}{}", did_you_mean(near)));
        }
        if verb.get_positionals().next().is_some() {
            return self.refuse(format!("{shown} is one word too many: {}", either(&self.usages(), "or")));
        }
        if let ("logs", Ok(lines)) = (verb.get_name(), word.parse::<u32>()) {
            let meant = Command::Logs { lines: lines.clamp(1, LINES_MAX) };
            return Refusal::usage(format!("{name} takes no {shown} after it")).hint(format!("Try `{meant}`."));
        }
        let options = if verb.get_opts().next().is_some() { "nothing but options" } else { "nothing" };
        Refusal::usage(format!("{name} takes {options} after it")).hint(self.alone(word))
    }

    /// What to write when a verb takes no word, and has got one.
    fn alone(&self, word: &str) -> String {
        let name = self.name();
        let about_chosen = Command::try_parse_from(&self.words[..1])
            .is_ok_and(|command| matches!(command.concern(), Concern::Use(None)));
        if self.words.len() > 2 {
            return format!("Write `{name}` alone. Without `!`, words like these go to the agent.");
        }
        if !about_chosen {
            return format!("Write `{name}` alone.");
        }
        let project = if projects::name::check(word).is_ok() { word } else { "myapp" };
        let switch = Command::Switch { project: project.to_owned() };
        format!("It is about the project that you have chosen: `{switch}`, then `{name}`.")
    }

    /// A value that is none of those there are, or none at all.
    fn no_value(&self, argument: &str, value: &str, valid: &[String]) -> Refusal {
        if value.is_empty() && argument.starts_with("--") {
            return self.refuse(format!("{} wants a word after it", named(argument)));
        }
        let noun = bare(argument).to_lowercase();
        let ways: Vec<_> = valid.iter().map(|value| format!("{} {value}", self.name())).collect();
        Refusal::usage(format!("{} is no {noun}", text::code(value))).hint(format!("Try {}.", either(&ways, "or")))
    }

    /// A word that would have meant something before the one that it follows.
    fn late(&self, word: &str) -> Refusal {
        let verb = self.verb();
        match verb.and_then(|verb| Some(usage(verb.find_subcommand(word)?, verb.get_name()))) {
            Some(usage) => self.refuse(format!("{} comes first: {}", text::code(word), text::code(&usage))),
            None => self.unknown(word, Vec::new()),
        }
    }

    fn conflict(&self, one: &str, another: &str) -> Refusal {
        if one == another {
            return self.refuse(format!("{} is there twice", named(one)));
        }
        self.refuse(format!("{} and {} do not go together", named(one), named(another)))
    }
}

fn strings(value: Option<&ContextValue>) -> Vec<String> {
    match value {
        Some(ContextValue::String(one)) => vec![one.clone()],
        Some(ContextValue::Strings(all)) => all.clone(),
        _ => Vec::new(),
    }
}

/// An argument without what the parser puts around its name: `--git` of `--git <GIT>`, `MODE` of `[MODE]`.
fn bare(argument: &str) -> &str {
    let first = argument.split_whitespace().next().unwrap_or_default();
    first.trim_matches(['<', '>', '[', ']', '.'])
}

/// An argument as people write it.
fn named(argument: &str) -> String {
    let name = bare(argument);
    if name.starts_with("--") { text::code(name) } else { text::code(&format!("<{}>", name.to_lowercase())) }
}

/// ` Did you mean …?`, the nearest first, or nothing. It ends a sentence before it.
fn did_you_mean(mut near: Vec<String>) -> String {
    near.reverse();
    if near.is_empty() { String::new() } else { format!(". Did you mean {}?", either(&near, "or")) }
}

/// `a`, `b` or `c`.
fn either(all: &[String], or: &str) -> String {
    let shown: Vec<_> = all.iter().map(|one| text::code(one)).collect();
    match shown.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} {or} {last}", others.join(", ")),
        None => String::new(),
    }
}
