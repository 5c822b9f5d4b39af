//! Looking at a journal from outside: for command-line tools beside the process that owns it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::Connection;
use uuid::Uuid;

use crate::{OpenError, ReadError, Recorded, StreamId, store, texts};

/// A journal's file, open to be read and nothing else, whoever owns it. Each call sees everything
/// that was acknowledged before it, and blocks its thread for as long as the disk takes.
///
/// The events and the log are never written; `SQLite` may make its index of the log (`-shm`) and an
/// empty log beside the file when nobody has it open.
#[derive(Debug)]
pub struct Reader {
    pub(crate) connection: Connection,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        store::open_foreign(path).map(|connection| Self { connection })
    }

    /// Position of the last event; 0 when there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn position(&self) -> Result<u64, ReadError> {
        Ok(store::position(&self.connection)?)
    }

    /// All streams, sorted by kind and id.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn streams(&self) -> Result<Vec<StreamId>, ReadError> {
        Ok(store::streams(&self.connection)?)
    }

    /// The events of a stream after a version, in order; none when the stream does not exist.
    ///
    /// # Errors
    /// When the file, or one of these events, cannot be read.
    pub fn read(&self, stream: &StreamId, after_version: u64) -> Result<Vec<Recorded>, ReadError> {
        let mut events = Vec::new();
        store::visit_stream(&self.connection, stream, after_version, |event| {
            events.push(event);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(events)
    }

    /// The events of all streams after a position, in order, at most `max_events`. To follow the
    /// journal ask again from time to time, from the last position on: an answer without events
    /// costs one look at an index.
    ///
    /// # Errors
    /// When the file, or one of these events, cannot be read.
    pub fn read_all(&self, after_position: u64, max_events: usize) -> Result<Vec<Recorded>, ReadError> {
        let mut events = Vec::new();
        if max_events == 0 {
            return Ok(events);
        }
        store::visit_all(&self.connection, after_position, |event| {
            events.push(event);
            Ok(if events.len() < max_events { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(events)
    }

    /// The texts with these ids, without those that were erased.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn texts(&self, ids: impl IntoIterator<Item = Uuid>) -> Result<HashMap<Uuid, String>, ReadError> {
        texts::read(&self.connection, ids)
    }
}
