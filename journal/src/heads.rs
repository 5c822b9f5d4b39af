//! Where the streams end that were lately appended to: what saves the writer a search of the file
//! for each append. It must not outlive what it was read from: a transaction that is rolled back
//! and a change by another program empty it.

use std::collections::HashMap;

use rusqlite::Connection;

use crate::links::Spine;
use crate::{ReadError, StreamId, store};

/// So many streams are remembered; one more, and all are looked up again. Some hundred bytes each.
pub(crate) const LIMIT: usize = 2048;

/// The end of a stream.
pub(crate) struct Head {
    /// The stream's row.
    pub(crate) row: i64,
    /// What its next event is linked to.
    pub(crate) spine: Spine,
}

#[derive(Default)]
pub(crate) struct Heads {
    known: HashMap<StreamId, usize>,
    ends: Vec<Head>,
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

    /// The end of a stream, if it exists. Whoever appends to the stream in the file also does so here.
    pub(crate) fn of(&mut self, connection: &Connection, stream: &StreamId) -> Result<Option<&mut Head>, ReadError> {
        Ok(self.index(connection, stream)?.map(|index| &mut self.ends[index]))
    }

    /// The end of a stream, which is made if it does not exist.
    pub(crate) fn of_new(&mut self, connection: &Connection, stream: &StreamId) -> Result<&mut Head, ReadError> {
        let index = if let Some(index) = self.index(connection, stream)? {
            index
        } else {
            let row = insert(connection, stream)?;
            self.remember(stream, Head { row, spine: Spine::default() })
        };
        Ok(&mut self.ends[index])
    }

    fn index(&mut self, connection: &Connection, stream: &StreamId) -> Result<Option<usize>, ReadError> {
        if let Some(index) = self.known.get(stream) {
            return Ok(Some(*index));
        }
        let Some(end) = store::end(connection, stream)? else { return Ok(None) };
        let spine = Spine::read(connection, stream, end)?;
        Ok(Some(self.remember(stream, Head { row: end.row, spine })))
    }

    fn remember(&mut self, stream: &StreamId, head: Head) -> usize {
        if self.ends.len() >= LIMIT {
            self.clear();
        }
        let index = self.ends.len();
        self.known.insert(stream.clone(), index);
        self.ends.push(head);
        index
    }

    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.ends.clear();
    }
}

/// Makes a stream that has no events yet. Returns its row.
fn insert(connection: &Connection, stream: &StreamId) -> Result<i64, rusqlite::Error> {
    connection.prepare_cached("INSERT INTO streams (kind, id) VALUES (?1, ?2)")?.insert((&stream.kind, &stream.id))
}
