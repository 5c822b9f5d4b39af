//! A text that is too long for its surface, in parts: cut between blocks, and where a block of code is cut, closed and
//! opened again (MTX-8).
//!
//! Pure, and the same text is always cut in the same way: what was sent of it is known by the numbers of its parts. Whoever
//! changes how it cuts lets a message that was half sent before go on with other parts.

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag};

/// The longest line, in bytes, by which a block of code is closed or opened again.
const SPARE: usize = 256;

/// The first part of a text, of at most `longest` bytes, and what comes after it. A part is at least three eighths of
/// `longest`, but for the last.
pub(super) fn cut(text: String, longest: usize) -> (String, Option<String>) {
    if text.len() <= longest {
        return (text, None);
    }
    let window = &text[..text.floor_char_boundary(longest)];
    let blocks = Blocks::of(window);
    // Kept to close a block of code, and no more than a line of it may take.
    let spare = SPARE.min(longest / 8);
    let room = text.floor_char_boundary(longest - spare);
    let at = blocks.place(&window[..room], longest / 2);
    let (head, tail) = text.split_at(at);
    let fence = blocks.fence_at(at).and_then(|start| Fence::read(window, start, spare));
    let (part, rest) = match fence {
        Some(fence) => fence.split(head, tail),
        None => (head.trim_end().to_owned(), tail.trim_start_matches(['\n', '\r']).to_owned()),
    };
    match (part.trim().is_empty(), rest.trim().is_empty()) {
        (_, true) => (part, None),
        (true, false) => cut(rest, longest),
        (false, false) => (part, Some(rest)),
    }
}

/// Where the beginning of a text may be cut.
#[derive(Default)]
struct Blocks {
    /// Where blocks begin that stand in no other, in order.
    outer: Vec<usize>,
    /// Where the items of lists begin that stand in nothing else.
    items: Vec<usize>,
    /// Blocks of code between fences.
    fenced: Vec<Range<usize>>,
}

impl Blocks {
    fn of(text: &str) -> Self {
        let (mut blocks, mut depth) = (Self::default(), 0);
        for (event, range) in Parser::new(text).into_offset_iter() {
            if depth == 0 && !matches!(event, Event::End(_)) {
                blocks.outer.push(line_start(text, range.start));
            }
            match event {
                Event::Start(tag) => {
                    match tag {
                        Tag::Item if depth == 1 => blocks.items.push(line_start(text, range.start)),
                        Tag::CodeBlock(CodeBlockKind::Fenced(_)) => blocks.fenced.push(range),
                        _ => {}
                    }
                    depth += 1;
                }
                Event::End(_) => depth -= 1,
                _ => {}
            }
        }
        blocks
    }

    /// The best place in `text` that does not come before `earliest`: between blocks, items, lines, words, or else its end.
    fn place(&self, text: &str, earliest: usize) -> usize {
        let fits = |at: &usize| (earliest..=text.len()).contains(at);
        let last = |starts: &[usize]| starts.iter().copied().rfind(fits);
        let after = |separator: char| text.rfind(separator).map(|at| at + separator.len_utf8()).filter(fits);
        last(&self.outer)
            .or_else(|| last(&self.items))
            .or_else(|| after('\n'))
            .or_else(|| after(' '))
            .unwrap_or(text.len())
    }

    /// Where the block of code begins that goes on over this place.
    fn fence_at(&self, at: usize) -> Option<usize> {
        self.fenced.iter().find(|block| block.start < at && at < block.end).map(|block| block.start)
    }
}

/// The lines around a block of code.
struct Fence {
    opening: String,
    closing: String,
}

impl Fence {
    /// The fence of the block that begins at `start`, unless a line of it would be longer than `longest`.
    fn read(text: &str, start: usize, longest: usize) -> Option<Self> {
        let line = text[line_start(text, start)..].lines().next()?;
        let at = line.find(['`', '~'])?;
        // The marker of an item must not begin another item.
        let before: String = line[..at].chars().map(|c| if c == '>' || c == '\t' { c } else { ' ' }).collect();
        let fence: String = line[at..].chars().take_while(|c| line[at..].starts_with(*c)).collect();
        let closing = format!("{before}{fence}");
        let opening = Some(format!("{before}{}", &line[at..])).filter(|opening| opening.len() < longest);
        (closing.len() < longest).then(|| Self { opening: opening.unwrap_or_else(|| closing.clone()), closing })
    }

    fn split(&self, head: &str, tail: &str) -> (String, String) {
        let Self { opening, closing } = self;
        let end = if head.ends_with('\n') { "" } else { "\n" };
        let part = format!("{head}{end}{closing}");
        let (line, beyond) = tail.split_once('\n').unwrap_or((tail, ""));
        // It ends here in any case.
        if line.trim_end() == closing {
            return (part, beyond.trim_start_matches(['\n', '\r']).to_owned());
        }
        (part, format!("{opening}\n{tail}"))
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::hostile;

    fn parts(text: &str, longest: usize) -> Vec<String> {
        let (mut parts, mut rest) = (Vec::new(), Some(text.to_owned()));
        while let Some(text) = rest {
            let part;
            (part, rest) = cut(text, longest);
            parts.push(part);
        }
        parts
    }

    #[track_caller]
    fn check(text: &str, longest: usize, expected: &[&str]) {
        assert_eq!(parts(text, longest), expected);
    }

    /// Nothing but fences is added, nothing but white space is lost, and there are only as many parts as there must be.
    fn holds(text: &str, longest: usize) {
        let parts = parts(text, longest);
        let mut all = parts.iter().flat_map(|part| part.chars());
        for c in text.chars().filter(|c| !c.is_whitespace()) {
            assert!(all.any(|of| of == c), "{c:?} is lost of {text:?}: {parts:?}");
        }
        for part in &parts {
            assert!(part.len() <= longest, "{} of {longest}: {part:?}", part.len());
            assert!(parts.len() == 1 || !part.trim().is_empty(), "{parts:?}");
        }
        assert!(parts.len() <= 1 + text.len() * 8 / (3 * longest), "{} for {}", parts.len(), text.len());
    }

    #[test]
    fn what_fits_is_one_part_as_it_is() {
        check("", 10, &[""]);
        check(" two\n\nlines \n", 13, &[" two\n\nlines \n"]);
    }

    #[test]
    fn it_is_cut_between_blocks_then_items_then_lines_then_words_then_letters() {
        check("one two three 3\n\nfour\nfive six\n\nseven", 32, &["one two three 3", "four\nfive six\n\nseven"]);
        check("# one\n## two\nthree\n\n---\nfour five six", 32, &["# one\n## two\nthree\n\n---", "four five six"]);
        // A short block before a long one does not stand alone.
        check("a\n\n- one\n  two\n- three\n- four\n- five", 32, &["a\n\n- one\n  two\n- three", "- four\n- five"]);
        check("one two\nthree four\nfive six seven eight", 32, &["one two\nthree four", "five six seven eight"]);
        check("one two three four five six seven", 32, &["one two three four five six", "seven"]);
        check(&"ü".repeat(20), 32, &[&"ü".repeat(14), &"ü".repeat(6)]);
    }

    #[test]
    fn a_block_of_code_is_closed_and_opened_again() {
        let line = "let x = 1;\n";
        let text = format!("One:\n\n```rust\n{}```\n\nAnd so on.", line.repeat(5));
        let first = format!("One:\n\n```rust\n{}```", line.repeat(4));
        check(&text, 72, &[&first, &format!("```rust\n{line}```\n\nAnd so on.")]);
        // One that fits stays whole.
        let code = format!("~~~~\n{}~~~~", line.repeat(3));
        check(&format!("Some words that come before.\n\n{code}"), 56, &["Some words that come before.", &code]);
        // What stands in an item or a quotation stays in it.
        check(
            "1. ```sh\n   one\n   two\n   three\n   four\n   five\n   six\n   seven\n   eight\n   nine\n   ```",
            80,
            &[
                "1. ```sh\n   one\n   two\n   three\n   four\n   five\n   six\n   seven\n   ```",
                "   ```sh\n   eight\n   nine\n   ```",
            ],
        );
        check(
            "> ```\n> one\n> two\n> three\n> four\n> five\n> six\n> ```\n> seven eight",
            48,
            &["> ```\n> one\n> two\n> three\n> four\n> five\n> ```", "> ```\n> six\n> ```\n> seven eight"],
        );
        // No empty block comes of one that ends there.
        check(
            "```\none two three four\nfive six\n```\nseven eight nine",
            40,
            &["```\none two three four\nfive six\n```", "seven eight nine"],
        );
        // A name of a language that is as long as a part is not said again.
        let long = format!("```{}\n{}```", "x".repeat(30), "one\n".repeat(20));
        assert!(parts(&long, 64)[1..].iter().all(|part| part.starts_with("```\none")), "{:?}", parts(&long, 64));
    }

    #[test]
    fn what_is_hostile_is_cut_as_well() {
        for hostile in hostile() {
            for text in [hostile.clone(), format!("```\n{hostile}\n```"), format!("- {hostile}\n\n{hostile}")] {
                holds(&text, 200);
                holds(&text, 20_000);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_text_nothing_is_lost(pieces in prop::collection::vec(
            prop::sample::select(vec!["one ", "two\n", "\n", "```", "```rust\n", "~~~\n", "- ", "   ", "> ", "1. ", "ü", "\t", "# ", "|"]),
            0..200,
        ), longest in 64_usize..200) {
            holds(&pieces.concat(), longest);
        }
    }
}
