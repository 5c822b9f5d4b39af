//! Reading `git status --porcelain=v2 --branch -z` (git-status(1)) as it comes. File names are hostile; nothing is kept that is not bounded.

use crate::text;

/// How many names of changed files are kept.
const NAMES: usize = 10;

/// Longest name that is kept, in characters.
const NAME_CHARS: usize = 200;

/// Longest entry that is looked at, in bytes: more than the longest path and what stands before it.
const MAX_ENTRY: usize = 8 * 1024;

/// How many digits of a commit id are shown.
const SHORT_ID: usize = 8;

/// A work tree's branch and what differs from the last commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeState {
    /// The checked-out branch, or a short commit id when detached.
    pub branch: Option<String>,
    /// How many files differ, untracked ones included.
    pub dirty: u64,
    /// The first few of their names, each on one line.
    pub names: Vec<String>,
}

/// Takes the output in pieces.
#[derive(Debug, Default)]
pub struct Parser {
    state: TreeState,
    commit: Option<String>,
    entry: Vec<u8>,
    /// The next entry is the old name of a renamed file.
    old_name_follows: bool,
}

impl Parser {
    /// Takes the next piece.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut pieces = chunk.split(|byte| *byte == 0).peekable();
        while let Some(piece) = pieces.next() {
            let room = MAX_ENTRY - self.entry.len();
            self.entry.extend_from_slice(&piece[..piece.len().min(room)]);
            if pieces.peek().is_some() {
                let entry = std::mem::take(&mut self.entry);
                self.take(&entry);
            }
        }
    }

    /// What was found.
    pub fn finish(self) -> TreeState {
        self.state
    }

    fn take(&mut self, entry: &[u8]) {
        if std::mem::take(&mut self.old_name_follows) {
            return;
        }
        let mut fields = entry.splitn(2, |byte| *byte == b' ');
        let (Some(kind), Some(rest)) = (fields.next(), fields.next()) else { return };
        // How many fields stand before the name.
        let before_name = match kind {
            b"#" => return self.header(rest),
            b"1" => 7,
            b"2" => {
                self.old_name_follows = true;
                8
            }
            b"u" => 9,
            b"?" => 0,
            // Ignored files are not asked for, and later formats not known.
            _ => return,
        };
        self.state.dirty += 1;
        if self.state.names.len() < NAMES
            && let Some(name) = rest.splitn(before_name + 1, |byte| *byte == b' ').nth(before_name)
        {
            self.state.names.push(text::one_line(&String::from_utf8_lossy(name), NAME_CHARS));
        }
    }

    fn header(&mut self, header: &[u8]) {
        let header = String::from_utf8_lossy(header);
        match header.split_once(' ') {
            Some(("branch.oid", id)) => self.commit = Some(id.chars().take(SHORT_ID).collect()),
            Some(("branch.head", "(detached)")) => self.state.branch = self.commit.take(),
            Some(("branch.head", name)) => self.state.branch = Some(text::one_line(name, NAME_CHARS)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(output: &[u8], piece: usize) -> TreeState {
        let mut parser = Parser::default();
        output.chunks(piece).for_each(|chunk| parser.feed(chunk));
        parser.finish()
    }

    #[test]
    fn every_kind_of_entry_counts_once() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let output = format!(
            "# branch.oid {id}\0# branch.head main\0# branch.upstream origin/main\0\
             1 .M N... 100644 100644 100644 {id} {id} src/a file.rs\0\
             2 R. N... 100644 100644 100644 {id} {id} R100 new name\0? old name\0\
             u UU N... 100644 100644 100644 100644 {id} {id} {id} both\nsides\0\
             ? untracked\u{1b}[2J\0! ignored\0"
        );
        for piece in [1, 7, 4096] {
            insta::allow_duplicates! {
                insta::assert_debug_snapshot!(parse(output.as_bytes(), piece), @r#"
                TreeState {
                    branch: Some(
                        "main",
                    ),
                    dirty: 4,
                    names: [
                        "src/a file.rs",
                        "new name",
                        "both sides",
                        "untracked[2J",
                    ],
                }
                "#);
            }
        }
    }

    #[test]
    fn a_detached_head_shows_its_commit_and_a_new_repository_its_branch() {
        let branch = |output: &[u8]| parse(output, 100).branch;
        assert_eq!(branch(b"# branch.oid 0123456789abcdef\0# branch.head (detached)\0").as_deref(), Some("01234567"));
        assert_eq!(branch(b"# branch.oid (initial)\0# branch.head trunk\0").as_deref(), Some("trunk"));
        assert_eq!(branch(b""), None);
    }

    proptest! {
        #[test]
        fn hostile_output_is_bounded(output in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b' '), Just(b'?'), any::<u8>()], 0..2000)) {
            let state = parse(&output, 64);
            prop_assert!(state.names.len() <= NAMES);
            prop_assert!(state.names.iter().all(|name| name.chars().count() <= NAME_CHARS + 1 && !name.contains('\n')));
            prop_assert_eq!(parse(&output, 1), state);
        }
    }
}
