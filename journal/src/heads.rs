//! Where the streams end that were lately asked for, also those that are not there yet: what saves
//! the writer a search of the file for each append. It must not outlive what it was read from: a
//! transaction that is rolled back and a change by another program empty it.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};

use rusqlite::Connection;

use crate::links::Spine;
use crate::{ReadError, StreamId, store};

/// So many streams are remembered, and those of one request more; then all are looked up again. Some
/// hundred bytes each.
pub(crate) const LIMIT: usize = 2048;

/// The end of a stream, which may have no events yet.
#[derive(Default)]
pub(crate) struct Head {
    /// The stream's row, if the file has one.
    row: Option<i64>,
    /// What its next event is linked to.
    pub(crate) spine: Spine,
}

impl Head {
    /// The stream's row, which is made if there is none.
    pub(crate) fn row(&mut self, connection: &Connection, stream: &StreamId) -> Result<i64, rusqlite::Error> {
        if let Some(row) = self.row {
            return Ok(row);
        }
        let row = insert(connection, stream)?;
        self.row = Some(row);
        Ok(row)
    }
}

/// Indexed by what [`Heads::find`] has found.
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

    /// Makes room for the streams of a request. What was found before is not there any more.
    pub(crate) fn make_room(&mut self) {
        if self.ends.len() >= LIMIT {
            self.clear();
        }
    }

    /// Finds the head of a stream. Whoever appends to the stream in the file also does so there.
    pub(crate) fn find(&mut self, connection: &Connection, stream: &StreamId) -> Result<usize, ReadError> {
        if let Some(index) = self.known.get(stream) {
            return Ok(*index);
        }
        let head = match store::end(connection, stream)? {
            Some(end) => Head { row: Some(end.row), spine: Spine::read(connection, stream, end)? },
            None => Head::default(),
        };
        let index = self.ends.len();
        self.known.insert(stream.clone(), index);
        self.ends.push(head);
        Ok(index)
    }

    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.ends.clear();
    }
}

impl Index<usize> for Heads {
    type Output = Head;

    fn index(&self, found: usize) -> &Head {
        &self.ends[found]
    }
}

impl IndexMut<usize> for Heads {
    fn index_mut(&mut self, found: usize) -> &mut Head {
        &mut self.ends[found]
    }
}

/// Makes a stream that has no events yet. Returns its row.
fn insert(connection: &Connection, stream: &StreamId) -> Result<i64, rusqlite::Error> {
    connection.prepare_cached("INSERT INTO streams (kind, id) VALUES (?1, ?2)")?.insert((&stream.kind, &stream.id))
}
