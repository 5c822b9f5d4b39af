//! Lines out of bytes that anybody may have piped: one that cannot be taken spoils none of the others.

use std::io;

use bytes::BytesMut;
use tokio_util::codec::Decoder;

/// The longest line that is taken, in bytes.
pub(super) const LINE_MAX: usize = 256 * 1024;

/// Why a line cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it has more than {LINE_MAX} bytes")]
    TooLong,
    #[error("it is not UTF-8")]
    NotText,
}

impl Unfit {
    /// What to do about it.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::TooLong => "Put it into a file in the workspace, and name that.",
            Self::NotText => "Convert it, for example with `iconv`.",
        }
    }
}

/// Reads lines without their ends. Of one that is too long no more is kept than its first bytes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// How much of what was read has no end of a line.
    searched: usize,
    /// What was read of this line was too long already.
    overlong: bool,
}

impl Lines {
    fn line(&mut self, bytes: &[u8]) -> Result<String, Unfit> {
        let overlong = std::mem::take(&mut self.overlong) || bytes.len() > LINE_MAX;
        self.searched = 0;
        if overlong {
            return Err(Unfit::TooLong);
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| Unfit::NotText)
    }
}

impl Decoder for Lines {
    type Item = Result<String, Unfit>;
    /// Of the reading itself.
    type Error = io::Error;

    fn decode(&mut self, read: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        if let Some(end) = read[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = read.split_to(self.searched + end + 1);
            return Ok(Some(self.line(&line[..line.len() - 1])));
        }
        if read.len() > LINE_MAX {
            self.overlong = true;
            read.clear();
        }
        self.searched = read.len();
        Ok(None)
    }

    fn decode_eof(&mut self, read: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        if let Some(line) = self.decode(read)? {
            return Ok(Some(line));
        }
        // The last one need not have an end.
        let last = read.split();
        Ok((self.overlong || !last.is_empty()).then(|| self.line(&last)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio_util::codec::FramedRead;

    use super::*;

    async fn check(input: &[u8], expected: &[Result<&str, Unfit>]) {
        let read: Vec<_> =
            FramedRead::new(input, Lines::default()).map(|line| line.expect("it can be read")).collect().await;
        let read: Vec<_> = read.iter().map(|line| line.as_deref().map_err(|unfit| *unfit)).collect();
        assert!(read == expected, "{} lines of {} bytes", read.len(), input.len());
    }

    #[tokio::test]
    async fn a_line_that_is_not_taken_spoils_no_other() {
        check(b"", &[]).await;
        check(b"a\n\nb", &[Ok("a"), Ok(""), Ok("b")]).await;
        check(b"a\n\xff\xfe\nb\r\n\xff", &[Ok("a"), Err(Unfit::NotText), Ok("b\r"), Err(Unfit::NotText)]).await;
        let most = "x".repeat(LINE_MAX);
        check(format!("{most}\nb\n").as_bytes(), &[Ok(&most), Ok("b")]).await;
        for more in [1, 2, LINE_MAX, 3 * LINE_MAX + 17] {
            let long = format!("{most}{}", "x".repeat(more));
            check(
                format!("a\n{long}\nb\n{long}").as_bytes(),
                &[Ok("a"), Err(Unfit::TooLong), Ok("b"), Err(Unfit::TooLong)],
            )
            .await;
        }
    }
}
