//! Lines of a byte stream with a bound on their length, for output that nobody vouches for.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// All of it.
    Whole(Vec<u8>),
    /// Its beginning, as long as the bound. It is given at once; the rest is let go when it comes.
    Cut(Vec<u8>),
}

/// Reads lines of at most `max` bytes. What was read so far is kept when [`BoundedLines::next`] is dropped half-way.
pub struct BoundedLines<R> {
    reader: R,
    max: usize,
    line: Vec<u8>,
    /// What comes up to the next line's end belongs to a line that was cut.
    skipping: bool,
}

impl<R: AsyncBufRead + Unpin> BoundedLines<R> {
    /// Reads from `reader`.
    pub fn new(reader: R, max: usize) -> Self {
        Self { reader, max, line: Vec::new(), skipping: false }
    }

    /// The next line; `None` at the end. A last line without an end is a line too.
    pub async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                let line = std::mem::take(&mut self.line);
                return Ok((!line.is_empty()).then_some(Line::Whole(line)));
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let (piece, used) = (&chunk[..end.unwrap_or(chunk.len())], end.map_or(chunk.len(), |end| end + 1));
            let skip = self.skipping;
            let room = self.max - self.line.len();
            let too_long = !skip && piece.len() > room;
            if !skip {
                self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            self.reader.consume(used);
            self.skipping = (skip || too_long) && end.is_none();
            if too_long {
                return Ok(Some(Line::Cut(std::mem::take(&mut self.line))));
            }
            if end.is_some() && !skip {
                return Ok(Some(Line::Whole(std::mem::take(&mut self.line))));
            }
        }
    }
}

/// The last lines of some output, bounded in number and length: what a failure shows.
#[derive(Debug, Default)]
pub struct Tail {
    lines: std::collections::VecDeque<String>,
}

impl Tail {
    /// How many lines are kept.
    pub const LINES: usize = 20;
    /// How many characters of each.
    pub const CHARS: usize = 200;

    /// Takes a line; an empty one is let go.
    pub fn push(&mut self, line: &[u8]) {
        // More than this many bytes cannot all be shown, whatever they are.
        let line =
            crate::text::one_line(&String::from_utf8_lossy(&line[..line.len().min(16 * Self::CHARS)]), Self::CHARS);
        if line.is_empty() {
            return;
        }
        if self.lines.len() == Self::LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// What is kept, oldest first.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8], buffer: usize) -> Vec<Line> {
        let mut lines = BoundedLines::new(tokio::io::BufReader::with_capacity(buffer, input), 4);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            read.push(line);
        }
        read
    }

    #[tokio::test]
    async fn lines_are_bounded_whatever_the_buffer() {
        let whole = |line: &[u8]| Line::Whole(line.to_vec());
        let cut = |line: &[u8]| Line::Cut(line.to_vec());
        for buffer in [1, 2, 3, 7, 100] {
            assert_eq!(all(b"", buffer).await, []);
            assert_eq!(all(b"a\n\nabcd\n", buffer).await, [whole(b"a"), whole(b""), whole(b"abcd")]);
            assert_eq!(all(b"abcdefgh\nx", buffer).await, [cut(b"abcd"), whole(b"x")]);
            assert_eq!(all(b"abcde", buffer).await, [cut(b"abcd")]);
        }
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for n in 0..30 {
            tail.push(format!("line {n}\r").as_bytes());
            tail.push(b"  ");
        }
        tail.push(&[b'x'; 10_000]);
        let lines = tail.into_lines();
        assert_eq!(lines.len(), Tail::LINES);
        assert_eq!(lines[0], "line 11");
        assert_eq!(lines[19].chars().count(), Tail::CHARS + 1);
    }
}
