//! Where the streams end that were lately appended to: what saves the writer a search of the file
//! for each append. It must not outlive what it was read from: a transaction that is rolled back
//! and a change by another program empty it.

use std::collections::HashMap;

use rusqlite::Connection;

use crate::{StreamId, store};

/// So many streams are remembered; one more, and all are looked up again. Some hundred bytes each.
pub(crate) const LIMIT: usize = 2048;

/// The end of a stream.
#[derive(Clone, Copy, Default)]
pub(crate) struct Head {
    /// The stream's row.
    pub(crate) row: i64,
    /// Version of its last event.
    pub(crate) version: u64,
}

#[derive(Default)]
pub(crate) struct Heads {
    known: HashMap<StreamId, Head>,
    /// `SQLite`'s number for what others did to the file.
    data_version: i64,
}

impl Heads {
    /// Forgets all if another connection has changed the file. To be called once a transaction is
    /// open, which keeps it from happening later.
    pub(crate) fn check(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let found = connection.prepare_cached("PRAGMA data_version")?.query_row((), |row| row.get(0))?;
        if found != self.data_version {
            self.clear();
            self.data_version = found;
        }
        Ok(())
    }

    /// The end of a stream, if it exists.
    pub(crate) fn of(&self, connection: &Connection, stream: &StreamId) -> Result<Option<Head>, rusqlite::Error> {
        match self.known.get(stream) {
            Some(head) => Ok(Some(*head)),
            None => store::head(connection, stream),
        }
    }

    /// Notes that a stream has been appended to and ends here now.
    pub(crate) fn advance(&mut self, stream: StreamId, head: Head) {
        if let Some(known) = self.known.get_mut(&stream) {
            *known = head;
            return;
        }
        if self.known.len() >= LIMIT {
            self.clear();
        }
        self.known.insert(stream, head);
    }

    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }
}
