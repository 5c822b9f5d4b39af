//! `sled verify`: going over the sled's journal, also while a sled writes it.
//!
//! It reads, and writes nothing.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use journal::Journal;

use crate::record::{self, Turn};

/// Prints what the journal in `data` holds and what is wrong with it. Returns whether all is well.
pub fn run(data: &Path) -> anyhow::Result<bool> {
    let path = data.join("journal.db");
    let reader = Journal::open_read_only(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut seen = reader.verify()?;
    seen.problems.extend(reader.verify_fold::<Turn>(record::STREAM)?);
    writeln!(std::io::stdout(), "{seen}")?;
    Ok(seen.problems.is_empty())
}
