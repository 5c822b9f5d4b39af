//! Hostile strings made safe to show: names, paths, output of commands and agents (SEC-5).
//!
//! Pure functions over text. What is shown as code cannot end its own code span or fence, and no
//! control or direction-changing character gets through.

use std::{fmt::Write as _, time::Duration};

/// Whether a character moves the cursor, changes direction or hides itself.
pub fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c,
            // Soft hyphen, marks and overrides of direction, joiners, other ends of lines, fillers that nobody sees.
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            // Tags, and variation selectors beyond those of emoji: whole texts can be hidden in them.
            | '\u{e0000}'..='\u{e0fff}')
}

/// Whether a character is [`is_unsafe`] in words that people read, where letters and emoji may be joined.
pub fn is_unsafe_in_prose(c: char) -> bool {
    is_unsafe(c) && !matches!(c, '\u{200c}' | '\u{200d}')
}

/// Columns that a line of [`lines`] keeps of its indentation: what stands behind more of them is out of sight on many screens.
const MAX_INDENTATION: usize = 32;

/// The text without characters that a terminal or a chat client would act on, and [`masked`]; lines and tabs stay.
pub fn plain(text: &str) -> String {
    masked(&text.chars().filter(|&c| !is_unsafe(c)).collect::<String>())
}

/// The text with `…` for the user's name, password or token of every URL in it (PROJ-3).
///
/// The name alone in an `ssh://` URL stays. A password that was not encoded as URLs want it may hold a `@`, `?` or `#`: all up to the last `@` is taken for it.
pub fn masked(text: &str) -> String {
    let mut pieces = text.split("://");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| c.is_whitespace() || "/\"`<>".contains(c)).unwrap_or(piece.len());
        // A user's name that is no secret: without it the address would be another one.
        let over_ssh = out.ends_with("ssh");
        out.push_str("://");
        match piece[..end].rfind('@').filter(|at| !over_ssh || piece[..*at].contains(':')) {
            Some(at) => {
                out.push('…');
                out.push_str(&piece[at..]);
            }
            None => out.push_str(piece),
        }
    }
    out
}

/// The text on one line of at most `max` characters, an ellipsis where something was cut.
pub fn one_line(text: &str, max: usize) -> String {
    cut(plain(text).split_whitespace().collect::<Vec<_>>().join(" "), max)
}

/// The text in lines, each as [`one_line`] has it but for how far it is indented, of at most `max` characters together; lines
/// with nothing in them go.
pub fn lines(text: &str, max: usize) -> String {
    let text = plain(text);
    let lines = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
        let columns = line.chars().take_while(|char| char.is_whitespace()).count().min(MAX_INDENTATION);
        format!("{}{}", " ".repeat(columns), line.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    cut(lines.collect::<Vec<_>>().join("\n"), max)
}

/// The text, an ellipsis in the place of what are more than `max` characters.
fn cut(text: String, max: usize) -> String {
    if text.chars().count() <= max {
        return text;
    }
    let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The text, of which at most `max` bytes are kept: of one that is longer the beginning and the end, and between them how much
/// is left out.
pub fn middle_left_out(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let beginning = &text[..text.floor_char_boundary(max / 2)];
    let end = &text[text.ceil_char_boundary(text.len() - max / 2)..];
    let left_out = text.len() - beginning.len() - end.len();
    format!("{beginning}\n… ({left_out} bytes were left out here)\n{end}")
}

/// The text as an inline code span that it cannot leave, on one line of at most 120 characters.
pub fn code(text: &str) -> String {
    let line = one_line(text, 120).replace('`', "'");
    if line.is_empty() { "(empty)".to_owned() } else { format!("`{line}`") }
}

/// The text as a fenced block that it cannot leave.
pub fn code_block(text: &str) -> String {
    let text = plain(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}\n{}\n{fence}", text.trim_end_matches('\n'))
}

/// A span of time for people: `0.4 s`, `12 s`, `3 min`, `2 h 5 min`, `3 d 4 h`.
pub fn span(time: Duration) -> String {
    let secs = time.as_secs();
    let mut out = String::new();
    let written = match secs {
        0..10 => write!(out, "{:.1} s", time.as_secs_f64()),
        10..120 => write!(out, "{secs} s"),
        120..7200 => write!(out, "{} min", secs / 60),
        7200..172_800 => write!(out, "{} h {} min", secs / 3600, secs / 60 % 60),
        _ => write!(out, "{} d {} h", secs / 86_400, secs / 3600 % 24),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    out
}

/// `1 message`, `2 messages`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Hostile strings, which the end-to-end tests use as well.
#[cfg(test)]
pub(crate) fn hostile() -> Vec<String> {
    let mut all: Vec<String> =
        serde_json::from_str(include_str!("../../tests/hostile.json")).expect("it is a list of strings");
    all.extend(["a".repeat(100_000), "`".repeat(3000), "<".repeat(3000), "\u{1b}[31m".repeat(3000)]);
    // And all of them at once.
    all.push(all[..all.len() - 4].join(" "));
    all
}

#[cfg(test)]
mod tests {
    use pulldown_cmark::{Event, Parser, Tag};

    use super::*;

    #[test]
    fn what_is_hostile_is_shown_and_does_nothing() {
        for hostile in hostile() {
            let lines = lines(&hostile, 80);
            assert!(lines.chars().count() <= 80 && lines.lines().all(|line| !line.trim().is_empty()), "{lines:?}");
            for shown in [plain(&hostile), one_line(&hostile, 80), lines, code(&hostile), code_block(&hostile)] {
                assert!(!shown.contains(is_unsafe), "{shown:?}");
                assert!(!shown.contains("hunter2"), "{shown:?}");
            }
            assert!(one_line(&hostile, 80).chars().count() <= 80 && !one_line(&hostile, 80).contains(['\n', '\t']));

            // Between words, in emphasis and in a list it stays one span of code, and everything around it what it was.
            let span = code(&hostile);
            let around = format!("- before {span} **after**\n- next");
            let events: Vec<_> = Parser::new(&around).collect();
            let spans = events.iter().filter(|event| matches!(event, Event::Code(_))).count();
            assert_eq!(spans, usize::from(span != "(empty)"), "{span}");
            let items = events.iter().filter(|event| matches!(event, Event::Start(Tag::Item))).count();
            assert!(items == 2 && events.contains(&Event::Text("next".into())), "{events:?}");

            let block = code_block(&hostile);
            let around = format!("before\n{block}\nafter");
            let mut depth = 0;
            let mut outside = Vec::new();
            for event in Parser::new(&around) {
                match event {
                    Event::Start(Tag::CodeBlock(_)) => depth += 1,
                    Event::End(pulldown_cmark::TagEnd::CodeBlock) => depth -= 1,
                    Event::Text(text) if depth == 0 => outside.push(text.into_string()),
                    _ => {}
                }
            }
            assert_eq!(outside, ["before", "after"], "{block}");
        }
    }

    #[test]
    fn lines_stay_apart_and_in_sight() {
        assert_eq!(lines("a  b\n\n  c\x1b\td\n \u{200b}\n", 80), "a b\n  c d");
        assert_eq!(lines(&format!("a\n{}b", " ".repeat(500)), 80), format!("a\n{}b", " ".repeat(MAX_INDENTATION)));
        assert_eq!(lines("ab\ncd", 4), "ab\n…");
    }

    #[test]
    fn joined_letters_and_emoji_are_left_to_prose_alone() {
        let family = "👨\u{200d}👩\u{200d}👧";
        assert!(!family.contains(is_unsafe_in_prose) && family.contains(is_unsafe));
        assert!("\u{202e}\u{1b}".chars().all(is_unsafe_in_prose));
    }

    #[test]
    fn what_is_left_out_of_a_text_is_said_in_its_place() {
        for (text, max, shown) in [
            ("short", 5, "short"),
            ("beginning and end", 6, "beg\n… (11 bytes were left out here)\nend"),
            ("ééééé", 6, "é\n… (6 bytes were left out here)\né"),
            ("any", 0, "\n… (3 bytes were left out here)\n"),
        ] {
            assert_eq!(middle_left_out(text, max), shown);
        }
    }

    #[test]
    fn code_cannot_be_left() {
        assert_eq!(code("a`b\u{202e}c\x1b[31m\nd"), "`a'bc[31m d`");
        assert_eq!(code(""), "(empty)");
        assert_eq!(code_block("a\n```\nb\n"), "````\na\n```\nb\n````");
        assert_eq!(code_block("x"), "```\nx\n```");
    }

    #[test]
    fn credentials_are_masked_wherever_text_is_shown() {
        for (text, shown) in [
            ("see https://ann:tok@h/x.git.", "see https://…@h/x.git."),
            ("'https://tok@h/x'", "'https://…@h/x'"),
            ("HTTPS://ann:p@s#s?w@h:1/x ssh://git@h2", "HTTPS://…@h:1/x ssh://git@h2"),
            ("https://ann:to\u{200b}k@h", "https://…@h"),
            ("https://…@h", "https://…@h"),
            ("ssh://git:tok@h:22/x ssh://git@h:22/x", "ssh://…@h:22/x ssh://git@h:22/x"),
            (
                "https://h/@ann ann@h {\"https://h\",\"a@b\"} :// a@b",
                "https://h/@ann ann@h {\"https://h\",\"a@b\"} :// a@b",
            ),
        ] {
            assert_eq!(plain(text), shown);
        }
        assert_eq!(code("https://ann:tok@h"), "`https://…@h`");
        assert_eq!(one_line("https://a-very-long-name:tok@h/x", 14), "https://…@h/x");
        assert_eq!(code_block("https://ann:tok@h"), "```\nhttps://…@h\n```");
    }

    #[test]
    fn spans_read_well() {
        let said = [0.42, 12.0, 200.0, 7500.0, 273_600.0].map(|s| span(Duration::from_secs_f64(s)));
        assert_eq!(said, ["0.4 s", "12 s", "3 min", "2 h 5 min", "3 d 4 h"]);
    }
}
