//! The sled's log: to standard error, where the engine keeps it, and the last of it in memory, for `logs`.
//!
//! Memory is bounded; nothing is written to a file.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How many bytes of log are kept in memory.
const KEPT_BYTES: usize = 256 * 1024;

/// The last lines of the log.
#[derive(Clone, Default)]
pub struct RecentLog {
    lines: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl RecentLog {
    /// The last `count` lines, each ended by a line feed, and whether there are older ones that are left out.
    pub fn last(&self, count: usize) -> (String, bool) {
        let kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = kept.lines.len().saturating_sub(count);
        (kept.lines.iter().skip(left_out).map(String::as_str).collect(), left_out > 0)
    }

    fn push(&self, line: &[u8]) {
        let mut kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = String::from_utf8_lossy(line).into_owned();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.bytes > KEPT_BYTES
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.bytes -= oldest.len();
        }
    }
}

/// Starts logging for this process.
pub fn start() -> RecentLog {
    let recent = RecentLog::default();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::INFO)
        .with_ansi(false)
        .with_target(false)
        .with_writer(recent.clone())
        .init();
    recent
}

impl<'a> MakeWriter<'a> for RecentLog {
    type Writer = Tee<'a>;

    fn make_writer(&'a self) -> Tee<'a> {
        Tee { recent: self, line: Vec::new() }
    }
}

/// Gathers one event's line and hands it on when it is complete.
pub struct Tee<'a> {
    recent: &'a RecentLog,
    line: Vec<u8>,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Tee<'_> {
    fn drop(&mut self) {
        self.recent.push(&self.line);
        // A log that nobody takes is no reason to fail: the lines in memory remain.
        drop(std::io::stderr().write_all(&self.line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_within_the_bound() {
        let log = RecentLog::default();
        for n in 0..3 {
            log.push(format!("{n}\n").as_bytes());
        }
        assert_eq!(log.last(2), ("1\n2\n".to_owned(), true));
        assert_eq!(log.last(3), ("0\n1\n2\n".to_owned(), false));
        for _ in 0..300 {
            log.push(&[b'x'; 1024]);
        }
        assert!(log.last(usize::MAX).0.len() <= KEPT_BYTES);
    }
}
