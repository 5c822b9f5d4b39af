//! Texts of people and agents: stored beside the events that name them, and erasable. The one part
//! of the file that forgets.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use crate::writer::Erasure;
use crate::{AppendError, Journal, ReadError};

/// How many texts one transaction erases at most, so that appends get in between.
const ERASED_AT_ONCE: usize = 256;

impl Journal {
    /// The texts with these ids. One that is missing from the answer was erased or never there.
    ///
    /// # Errors
    /// When the file cannot be read or the journal is closed.
    pub async fn texts(&self, ids: Vec<Uuid>) -> Result<HashMap<Uuid, String>, ReadError> {
        self.run(move |connection| read(connection, ids)).await
    }

    /// Erases the texts with these ids and returns how many were there. The events that name them
    /// stay. An erased text does not come back: its id cannot be used again.
    ///
    /// When this returns no reader finds them any more, also not after `kill -9` or a power cut,
    /// and their bytes in the file are overwritten with zeros. The write-ahead log is emptied in
    /// the same breath unless somebody is just reading from it; then it is emptied after the next
    /// commit that finds nobody doing so, at the latest when the journal is next opened or closed.
    /// What the disk keeps of blocks that it was told to overwrite or to free, and copies made of
    /// the file, backups before a migration among them, are beyond this.
    ///
    /// # Errors
    /// As [`Journal::append`]. Texts before the one that failed may be erased: repeat it.
    pub async fn erase(&self, ids: Vec<Uuid>) -> Result<u64, AppendError> {
        let mut erased = 0;
        for ids in ids.chunks(ERASED_AT_ONCE) {
            erased += self.erase_some(Erasure::Ids(ids.to_vec())).await?;
        }
        Ok(erased)
    }

    /// Erases all texts that were stored before `time`, by the journal's clock, and returns how
    /// many there were; for the rest see [`Journal::erase`]. Works in small transactions, so that
    /// appends are not held up.
    ///
    /// # Errors
    /// As [`Journal::erase`].
    pub async fn erase_before(&self, time: Timestamp) -> Result<u64, AppendError> {
        let mut erased = 0;
        loop {
            let some = self.erase_some(Erasure::Before { time, at_most: ERASED_AT_ONCE }).await?;
            erased += some;
            if some < ERASED_AT_ONCE as u64 {
                return Ok(erased);
            }
        }
    }
}

pub(crate) fn read(
    connection: &Connection,
    ids: impl IntoIterator<Item = Uuid>,
) -> Result<HashMap<Uuid, String>, ReadError> {
    let mut statement = connection.prepare_cached("SELECT body FROM texts WHERE id = ?1 AND body IS NOT NULL")?;
    let mut texts = HashMap::new();
    for id in ids {
        if let Some(body) = statement.query_row((id.as_bytes(),), |row| row.get(0)).optional()? {
            texts.insert(id, body);
        }
    }
    Ok(texts)
}

/// Whether a text has or had this id.
pub(crate) fn exists(connection: &Connection, id: Uuid) -> Result<bool, rusqlite::Error> {
    connection.prepare_cached("SELECT 1 FROM texts WHERE id = ?1")?.exists((id.as_bytes(),))
}

pub(crate) fn insert(connection: &Connection, id: Uuid, time_us: i64, body: &str) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT INTO texts (id, time_us, body) VALUES (?1, ?2, ?3)")?
        .execute((id.as_bytes(), time_us, body))
        .map(drop)
}

/// Empties the rows of texts. Returns how many were not empty.
pub(crate) fn erase(connection: &Connection, which: &Erasure) -> Result<u64, rusqlite::Error> {
    let erased = match which {
        Erasure::Ids(ids) => {
            let mut statement =
                connection.prepare_cached("UPDATE texts SET body = NULL WHERE id = ?1 AND body IS NOT NULL")?;
            let mut erased = 0;
            for id in ids {
                erased += statement.execute((id.as_bytes(),))?;
            }
            erased
        }
        Erasure::Before { time, at_most } => connection
            .prepare_cached(
                "UPDATE texts SET body = NULL WHERE text IN
                 (SELECT text FROM texts WHERE time_us < ?1 AND body IS NOT NULL ORDER BY time_us LIMIT ?2)",
            )?
            .execute((time.as_microsecond(), at_most))?,
    };
    Ok(erased as u64)
}
