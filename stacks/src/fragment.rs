//! A stack's Dockerfile fragment: read line by line and refused by line (STK-2).
//!
//! A fragment may add (`RUN`, `ENV`, `ARG`, `COPY` from its own folder). It may not change who runs, what runs, where
//! the image comes from or what it is labelled with: those belong to the layers below and above. What a `RUN` does
//! is not judged; it is the word of whoever owns the state directory.

use std::collections::BTreeSet;

use crate::FragmentFault;

/// Docker's instructions that a stack may not use, so that their refusal can be told from a typing error.
const FORBIDDEN: [&str; 14] = [
    "ADD",
    "CMD",
    "ENTRYPOINT",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
const DIRECTIVES: [&str; 3] = ["syntax", "escape", "check"];

/// A checked fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment(String);

impl Fragment {
    /// The text to put after a `FROM` line. Ends with a line end.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Checks a fragment. `files` are the paths, relative to the folder, that `COPY` may name.
    /// An error carries the line, counted from 1.
    pub(crate) fn parse(bytes: &[u8], files: &BTreeSet<String>) -> Result<Self, (usize, FragmentFault)> {
        let text = str::from_utf8(bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].split(|&b| b == b'\n').count();
            (line, FragmentFault::NotText)
        })?;
        let mut open: Option<(usize, String)> = None;
        let mut instructions = 0;
        for (index, raw) in text.split('\n').enumerate() {
            let number = index + 1;
            if let Some(bad) = raw.chars().find(|c| !matches!(c, ' '..='~' | '\t')) {
                return Err((number, FragmentFault::Character(bad)));
            }
            let line = raw.trim();
            if let Some(comment) = line.strip_prefix('#') {
                check_comment(comment).map_err(|fault| (number, fault))?;
                continue;
            }
            if line.is_empty() {
                continue;
            }
            let (start, mut whole) = open.take().unwrap_or((number, String::new()));
            if let Some(head) = line.strip_suffix('\\') {
                whole.push_str(head);
                whole.push(' ');
                open = Some((start, whole));
                continue;
            }
            whole.push_str(line);
            check_instruction(&whole, files).map_err(|fault| (start, fault))?;
            instructions += 1;
        }
        if let Some((start, _)) = open {
            return Err((start, FragmentFault::Unfinished));
        }
        if instructions == 0 {
            return Err((1, FragmentFault::NoInstruction));
        }
        let mut text = text.to_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(Self(text))
    }
}

/// A directive counts for Docker only before the first instruction; here nowhere, because a fragment is put after others.
fn check_comment(comment: &str) -> Result<(), FragmentFault> {
    match comment.split_once('=') {
        Some((key, _)) if DIRECTIVES.contains(&key.trim().to_ascii_lowercase().as_str()) => {
            Err(FragmentFault::Directive(format!("#{comment}")))
        }
        _ => Ok(()),
    }
}

fn check_instruction(line: &str, files: &BTreeSet<String>) -> Result<(), FragmentFault> {
    let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let rest = rest.trim();
    let keyword = word.to_ascii_uppercase();
    let keyword = match keyword.as_str() {
        "RUN" => "RUN",
        "ENV" => "ENV",
        "ARG" => "ARG",
        "COPY" => "COPY",
        other if FORBIDDEN.contains(&other) => return Err(FragmentFault::Forbidden(keyword)),
        _ => return Err(FragmentFault::Unknown(word.to_owned())),
    };
    if rest.is_empty() {
        return Err(FragmentFault::Empty(keyword));
    }
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    if words[0].starts_with("--") {
        return Err(FragmentFault::Flag(keyword, words[0].to_owned()));
    }
    let opens_here_document = |word: &&str| {
        let Some((_, after)) = word.split_once("<<") else { return false };
        after.trim_start_matches(['-', '"', '\'']).starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    if matches!(keyword, "RUN" | "COPY") && words.iter().any(opens_here_document) {
        return Err(FragmentFault::HereDocument);
    }
    if keyword == "COPY" { check_copy(&words, files) } else { Ok(()) }
}

fn check_copy(words: &[&str], files: &BTreeSet<String>) -> Result<(), FragmentFault> {
    let Some((_, sources)) =
        words.split_last().filter(|(_, sources)| !sources.is_empty() && !words[0].starts_with('['))
    else {
        return Err(FragmentFault::CopyForm);
    };
    for source in sources {
        let path = source.strip_prefix("./").unwrap_or(source);
        let folder = format!("{}/", path.trim_end_matches('/'));
        if !files.contains(path) && !files.iter().any(|file| file.starts_with(&folder)) {
            return Err(FragmentFault::Source((*source).to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> Option<(usize, FragmentFault)> {
        let files = BTreeSet::from(["settings.xml".to_owned(), "conf/a.toml".to_owned()]);
        Fragment::parse(text.as_bytes(), &files).err()
    }

    #[test]
    fn what_only_adds_is_taken() {
        for text in [
            "RUN true",
            "# a comment\n\nrun apt-get update \\\n  # a comment within\n  && true\nENV A=1 B=2\nARG VERSION=1.2\n",
            "COPY settings.xml /etc/x/\nCOPY ./conf conf/a.toml /etc/y/\nRUN echo $((1 << 2))\n",
        ] {
            assert_eq!(refusal(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_would_change_more_is_refused_by_line() {
        for word in FORBIDDEN {
            assert_eq!(
                refusal(&format!("RUN true\n{} x", word.to_lowercase())),
                Some((2, FragmentFault::Forbidden(word.to_owned())))
            );
        }
        let table = [
            ("", 1, FragmentFault::NoInstruction),
            ("RUN true\nINSTALL x", 2, FragmentFault::Unknown("INSTALL".to_owned())),
            ("RUN true\n\nRUN echo caf\u{e9}", 3, FragmentFault::Character('\u{e9}')),
            ("RUN true\r\n", 1, FragmentFault::Character('\r')),
            (
                "# syntax=docker/dockerfile:1\nRUN true",
                1,
                FragmentFault::Directive("# syntax=docker/dockerfile:1".to_owned()),
            ),
            ("# Escape = `\nRUN true", 1, FragmentFault::Directive("# Escape = `".to_owned())),
            ("RUN", 1, FragmentFault::Empty("RUN")),
            ("RUN --mount=type=bind true", 1, FragmentFault::Flag("RUN", "--mount=type=bind".to_owned())),
            ("COPY --from=alpine /x /y", 1, FragmentFault::Flag("COPY", "--from=alpine".to_owned())),
            ("RUN cat <<EOF\nhello\nEOF", 1, FragmentFault::HereDocument),
            ("COPY /etc/shadow /x", 1, FragmentFault::Source("/etc/shadow".to_owned())),
            ("COPY ../secret /x", 1, FragmentFault::Source("../secret".to_owned())),
            ("COPY conf/../../x /x", 1, FragmentFault::Source("conf/../../x".to_owned())),
            ("COPY settings.xml", 1, FragmentFault::CopyForm),
            ("COPY [\"settings.xml\", \"/x\"]", 1, FragmentFault::CopyForm),
            ("RUN true\nRUN a \\\n  b \\\n", 2, FragmentFault::Unfinished),
        ];
        for (text, line, fault) in table {
            assert_eq!(refusal(text), Some((line, fault)), "{text:?}");
        }
        assert_eq!(Fragment::parse(b"RUN true\nRUN \xff", &BTreeSet::new()), Err((2, FragmentFault::NotText)));
    }
}
