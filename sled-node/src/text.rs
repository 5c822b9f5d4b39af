//! Making hostile text fit to be shown and stored: agents, tools and programs write what they like.
//!
//! It decides nothing from what a text says.

/// Longest error that is told, in characters on one line or in bytes of several.
pub const MAX_ERROR: usize = 2000;

/// An error on one line: errors quote what they are about, however long that is.
pub fn error_line(error: &impl std::fmt::Display) -> String {
    one_line(&error.to_string(), MAX_ERROR)
}

/// Columns that a line keeps of its indentation: what stands behind more of them is out of sight on many screens.
const MAX_INDENTATION: usize = 24;

/// Columns of a tab.
const TAB: usize = 4;

/// `text` on one line of at most `max_chars` characters: white space runs become one space, control and direction-changing characters go.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    let mut length = 0;
    for word in text.split(|c: char| c.is_whitespace()) {
        let mut printable = word.chars().filter(|c| is_harmless(*c)).peekable();
        if printable.peek().is_none() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
            length += 1;
        }
        for c in printable {
            if length >= max_chars {
                line.truncate(line.trim_end().len());
                line.push('…');
                return line;
            }
            line.push(c);
            length += 1;
        }
    }
    line
}

/// `text` in its lines, each as [`one_line`] has it but for how far it is indented; those with nothing in them go. Whatever some program takes for the
/// end of a line ends one: what is carried out must not stand where a comment is read.
pub fn lines(text: &str) -> Vec<String> {
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}'];
    let lines = text.split(ends).map(|line| (indentation(line), one_line(line, usize::MAX)));
    lines.filter(|(_, line)| !line.is_empty()).map(|(columns, line)| format!("{}{line}", " ".repeat(columns))).collect()
}

/// How far a line is indented, in columns.
fn indentation(line: &str) -> usize {
    let blank = line.chars().take_while(|c| c.is_whitespace());
    blank.map(|c| if c == '\t' { TAB } else { 1 }).sum::<usize>().min(MAX_INDENTATION)
}

/// `text` with its lines kept, control characters other than tab and line feed removed, cut to at most `max_bytes` and a visible mark.
pub fn paragraphs(text: &str, max_bytes: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()) {
        if kept.len() + c.len_utf8() > max_bytes {
            kept.push_str("\n… (cut: the text is too long)");
            return kept;
        }
        kept.push(c);
    }
    kept
}

/// Neither a control character nor one that changes the direction in which the rest of the line is read.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_line_is_one_line() {
        let table = [
            ("cargo test", "cargo test"),
            ("  a\n\n\tb  ", "a b"),
            ("a\u{1b}[31mred", "a[31mred"),
            ("gpj.\u{202e}exe", "gpj.exe"),
            ("\u{0} \u{7}", ""),
            ("0123456789ab", "0123456789…"),
            ("012345678 ab", "012345678…"),
        ];
        for (given, wanted) in table {
            assert_eq!(one_line(given, 10), wanted, "{given:?}");
        }
    }

    #[test]
    fn lines_end_wherever_some_program_takes_one_to_end() {
        let table: [(&str, &[&str]); 6] = [
            ("ls -l", &["ls -l"]),
            ("cargo test # all\nrm  -rf src\n", &["cargo test # all", "rm -rf src"]),
            ("if a:\r\n\tb\r\n\r\n  c", &["if a:", "    b", "  c"]),
            ("a\rb\u{b}c\u{c}d\u{85}e\u{2028}f\u{2029}g", &["a", "b", "c", "d", "e", "f", "g"]),
            ("\n \n\u{1b}\n", &[]),
            ("\u{1b}[2Ja\u{202e}\n", &["[2Ja"]),
        ];
        for (given, wanted) in table {
            assert_eq!(lines(given), wanted, "{given:?}");
        }
        let far = format!("{}rm", " ".repeat(2000));
        assert_eq!(lines(&far), [format!("{}rm", " ".repeat(MAX_INDENTATION))]);
    }

    #[test]
    fn paragraphs_keep_lines_and_mark_the_cut() {
        assert_eq!(paragraphs("a\r\n\tb\u{0}", 100), "a\n\tb");
        assert_eq!(paragraphs("ääää", 5), "ää\n… (cut: the text is too long)");
    }

    proptest! {
        #[test]
        fn one_line_is_bounded_and_harmless(text in "\\PC*|(?s:.*)", max in 1_usize..40) {
            let line = one_line(&text, max);
            prop_assert!(line.chars().count() <= max + 1);
            prop_assert!(line.chars().all(is_harmless));
            prop_assert_eq!(one_line(&line, max + 1), line);
        }
    }
}
