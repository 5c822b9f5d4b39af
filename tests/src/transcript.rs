//! Making the record of a dialogue the same in every run: paths, times, ports and ids.

use std::path::Path;

/// Units of time after a number, as the gateway writes them.
const UNITS: [&str; 5] = ["ms", "s", "min", "h", "d"];

/// What stands before a port.
const BEFORE_PORT: [&str; 3] = ["127.0.0.1:", "port ", "-p "];

/// The text with `home` as `~`, times as `…`, ports as `N`, and ids (UUIDs and long hexadecimal numbers) as `<id>`.
///
/// Lines that say what is waited for (`  … image …`) are left out: how many of them are seen depends on how long it takes.
pub fn normalised(text: &str, home: &Path) -> String {
    let text: String = text.split_inclusive('\n').filter(|line| !line.starts_with("  … ")).collect();
    let text = text.replace(&*home.to_string_lossy(), "~");
    let (mut out, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(first) = rest.chars().next() {
        let inside_word = out.chars().next_back().is_some_and(|before| before.is_ascii_alphanumeric());
        let (taken, replacement) = match first {
            '0'..='9' | 'a'..='f' if !inside_word => number(rest, &out),
            _ => (first.len_utf8(), None),
        };
        out.push_str(replacement.unwrap_or(&rest[..taken]));
        rest = &rest[taken..];
    }
    out
}

/// How long the word at the start of `text` is, and what stands for it if it is a time, a port or an id.
fn number(text: &str, before: &str) -> (usize, Option<&'static str>) {
    let id = text.find(|c: char| !c.is_ascii_hexdigit() && c != '-').unwrap_or(text.len());
    if id >= 12 && text[..id].bytes().any(|byte| byte.is_ascii_digit()) && ends_there(&text[id..]) {
        return (id, Some("<id>"));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..digits].trim_end_matches('.').len();
    let unit = text[number..].strip_prefix(' ');
    if number > 0 && unit.is_some_and(|unit| UNITS.iter().any(|name| unit.strip_prefix(name).is_some_and(ends_there))) {
        return (number, Some("…"));
    }
    if number > 0 && BEFORE_PORT.iter().any(|word| before.ends_with(word)) {
        return (number, Some("N"));
    }
    (number.max(1), None)
}

fn ends_there(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_replaced() {
        for (text, expected) in [
            ("ready (1.2 s): rust", "ready (… s): rust"),
            ("  … image …\n  ✓ image (0.1 s)\n", "  ✓ image (… s)\n"),
            ("for 3 min, 2 h 5 min", "for … min, … h … min"),
            ("12 samples of 3 stacks", "12 samples of 3 stacks"),
            ("at 127.0.0.1:22003.", "at 127.0.0.1:N."),
            ("ssh -p 22003 dev@localhost", "ssh -p N dev@localhost"),
            ("/home/ann/x and /home/ann", "~/x and ~"),
            ("turn 0193b2f4-1c2d-7e3f-8a4b-5c6d7e8f9a0b ended", "turn <id> ended"),
            (
                "face added, deadbeef, 1.95.0 (59807616e 2026-04-14)",
                "face added, deadbeef, 1.95.0 (59807616e 2026-04-14)",
            ),
        ] {
            assert_eq!(normalised(text, Path::new("/home/ann")), expected);
        }
    }
}
