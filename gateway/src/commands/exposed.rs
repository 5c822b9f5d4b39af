//! What a command must not leave behind: after `--git` people write passwords and tokens, also in forms that no rule for
//! addresses knows (PROJ-3).
//!
//! Pure. What is no address is not searched for what of it may be secret: all from there on is hidden.

use std::{ops::Range, path::Path};

use super::grammar::{self, Command, Said};
use crate::{
    git::Remote,
    outbox::{Address, Post},
    refusal::Refusal,
    text::masked,
};

/// The option that an address follows.
const OPTION: &str = "--git";

/// What people see in the place of a message that was taken out.
const WHY: &str = "it carried a credential";
/// What its sender is told of one that stays.
const STAYS: &str = "Your message has a credential in it, and could not be taken out of this room.\n\
    Delete it yourself, and change the credential: whoever is in the room may have read it.";

/// A message whose `--git` is followed by what is no address.
#[derive(Debug)]
pub struct Exposed {
    /// The message as it may be kept, with `…` for that and all that comes after it.
    pub kept: String,
    /// What its sender is told; nothing of it is in there.
    pub refusal: Refusal,
}

/// Whether a command has an address with a credential in it. What is meant for the agent is its sender's matter.
pub fn has_credential(said: &Said, text: &str) -> bool {
    !matches!(said, Said::Text(_)) && masked(text) != text
}

/// That the message `event_id` is taken out of its room, whose sender `to` mentions.
pub fn taken_out(to: &Address, event_id: &str) -> Post {
    Post::take_back(Address { pending: None, ..to.clone() }, event_id, WHY, STAYS)
}

/// Looks for a `--git` that is not followed by an address, in a command and in one that cannot be understood.
///
/// Without a leading `!`, what cannot be understood is prose (CHAT-12); it counts when it begins with `new project` and what follows
/// `--git` has `://` or `@` in it.
pub fn look(message: &str) -> Option<Exposed> {
    let words = words(message);
    let (cut, value) = values(message, &words).find(|(_, value)| Remote::parse(value, Path::new("/")).is_err())?;
    let meant = match grammar::read(message) {
        Said::Command(Command::New(_)) | Said::Misused(_) => true,
        // Its own words, such as git's or a path.
        Said::Command(_) => false,
        Said::Text(_) => {
            let begins = words.iter().map(|word| &message[word.clone()]).take(2);
            begins.map(str::to_ascii_lowercase).eq(["new", "project"]) && (value.contains("://") || value.contains('@'))
        }
    };
    let refusal = Remote::parse(&value, Path::new("/")).err().filter(|_| meant)?;
    Some(Exposed { kept: format!("{}…", &message[..cut]), refusal })
}

/// What follows each `--git`, with the place from which on it would be hidden.
fn values(message: &str, words: &[Range<usize>]) -> impl Iterator<Item = (usize, String)> {
    let at = |place: usize| words.get(place).map(|word| (word.start, unquoted(&message[word.clone()])));
    words.iter().enumerate().filter_map(move |(place, word)| {
        let option = unquoted(&message[word.clone()]);
        // Phones turn `--` into a dash of their own.
        let option = option.strip_prefix(['—', '–']).map_or(option.clone(), |name| format!("--{name}"));
        let rest = option.get(..OPTION.len()).filter(|name| name.eq_ignore_ascii_case(OPTION))?;
        let (cut, value) = match option[rest.len()..].chars().next() {
            // The next option is no value, but what is spelt like an address is one.
            None => at(place + 1)
                .filter(|(_, next)| !next.starts_with(['-', '—', '–']) || next.contains('@') || next.contains("://"))?,
            Some(sign) if sign == '=' || sign.is_whitespace() => {
                (word.start, option[rest.len() + sign.len_utf8()..].to_owned())
            }
            Some(_) => return None,
        };
        (!value.is_empty()).then_some((cut, value))
    })
}

/// Where the words stand that a shell would see; a quotation that is not closed goes on to the end.
fn words(line: &str) -> Vec<Range<usize>> {
    let (mut words, mut begun, mut quote) = (Vec::new(), None, None);
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t' | '\n') => {
                words.extend(begun.take().map(|from| from..at));
                continue;
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None | Some('"'), '\\') => drop(chars.next()),
            _ => {}
        }
        begun.get_or_insert(at);
    }
    words.extend(begun.map(|from| from..line.len()));
    words
}

/// The word as the program gets it, or as it is written where no shell could read it.
fn unquoted(word: &str) -> String {
    match shell_words::split(word).as_deref() {
        Ok([one]) => one.clone(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_hidden_in_whatever_form_it_carries_a_secret() {
        for value in [
            "git:s3cret@example.org:a/b",
            "https://example.org/a?token=s3cret",
            "https://example.org/a#s3cret",
            "https://ann:p\"s3cret@example.org/a",
            "https://ann:p's3cret@example.org/a",
            "https://ann:p`s3cret@example.org/a",
            "https://ann:p<s3cret>@example.org/a",
            "https://ann:s3c/s3cret@example.org/a",
            "'https://ann:my s3cret@example.org/a'",
            "\"https://ann:my s3cret@example.org/a\"",
            "https://ann:my s3cret@example.org/a",
            "https://ann:my\\ s3cret@example.org/a",
            "https://ann:s3cret@example.org/a",
            "\u{a0}https://ann:s3cret@example.org/a",
            "#s3cret@",
            "-git:s3cret@example.org:a/b",
        ] {
            for message in [
                format!("!new project a --git {value}"),
                format!("!new project a --git={value} --depth 1"),
                format!("!new project --git {value} a"),
                format!("!nwe projct a --GIT {value}"),
                format!("  ! new  project a '--git' {value}"),
                format!("!new project a —git {value}"),
                format!("!new project a --git /srv/a --git {value}"),
                format!("new project a --git {value}"),
            ] {
                let Some(Exposed { kept, refusal }) = look(&message) else { panic!("{message:?} is kept") };
                assert!(!kept.contains("s3c") && kept.ends_with('…'), "{message:?}: {kept:?}");
                assert!(kept.contains("project") || kept.contains("projct"), "{kept:?}");
                assert!(!refusal.to_markdown().contains("s3c"), "{message:?}: {refusal}");
            }
        }
        let exposed = look("!new project a --git git:s3cret@h:b --depth 1").expect("it carries one");
        assert_eq!(exposed.kept, "!new project a --git …");
        assert!(exposed.refusal.what.starts_with("the address carries"), "{}", exposed.refusal);
    }

    #[test]
    fn what_is_an_address_or_none_of_a_commands_stays() {
        for message in [
            "!new project a --git https://example.org/team/a.git",
            "!new project a --git=git@example.org:team/a.git --depth 1",
            "new project a --git ~/src/a",
            "!new project a --git",
            "!new project a --git ''",
            "!new project a --git --depth 1",
            "!new project a --gitter x@y",
            "!git log --git x@y",
            "!diff -- --git x@y",
            "new project with --git isn't what I want",
            "is new project a --git https://ann:s3cret@h/a right?",
            "git:s3cret@example.org:a/b",
            "",
            "!",
        ] {
            assert!(look(message).is_none(), "{message:?}");
        }
    }
}
