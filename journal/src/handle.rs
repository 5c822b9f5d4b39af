//! The handle that the rest of the program holds: appends go to the writer's thread, reads to the
//! readers.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::{fmt, thread};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use crate::append::Prepared;
use crate::readers::Readers;
use crate::snapshot::Encoded;
use crate::writer::{Erasure, Message, Reply, Request, Writer};
use crate::{
    Append, AppendError, Appended, Clock, Fold, Loaded, OpenError, ReadError, Reader, Recorded, StreamId, store,
};

/// So many requests may wait for the writer, beside those that it has at hand; the next ones wait to wait.
const QUEUE: usize = 1024;

/// A journal's file, open. Clones are handles of the same journal; with the last one, which may be
/// a subscription, it closes, after everything that waits was written.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` only while it is being dropped.
    writer: Option<mpsc::Sender<Message>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Position of the last event that is on the disk. Ends when the writer has closed the file.
    position: watch::Receiver<u64>,
    readers: Arc<Readers>,
}

impl Journal {
    /// Opens the journal at `path`, which is made, with mode 0600, when there is none. Events get
    /// their times from `clock`.
    ///
    /// Blocks its thread for as long as the disk takes. The other methods want a Tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::Newer`] when a newer version of this program has written the file,
    /// [`OpenError::NotAJournal`] when it is something else, [`OpenError::NoWriteAheadLog`] where its
    /// file system cannot hold one, [`OpenError::Backup`] when it is older and could not be backed
    /// up; otherwise when it cannot be made, opened or brought up to date. What was in it is
    /// unchanged.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let connection = store::open_writer(path)?;
        let position = store::position(&connection)
            .map_err(|source| OpenError::Storage { path: path.to_owned(), source: source.into() })?;
        let (committed, position) = watch::channel(position);
        let (writer, messages) = mpsc::channel(QUEUE);
        let thread = Writer::new(connection, clock, committed)
            .spawn(messages)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        let readers = Arc::new(Readers::new(path.to_owned()));
        let inner = Inner { writer: Some(writer), thread: Some(thread), position, readers };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Appends events to one stream. They are on the disk when this returns.
    ///
    /// A caller that stops waiting does not take the append back: it may have happened.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the stream has another version than expected,
    /// [`AppendError::KeyReused`] when the key stands for other events. Nothing was appended then,
    /// nor after any other error but for what [`AppendError::Storage`] and
    /// [`AppendError::Closed`] say.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let outcomes = self.append_all(vec![append]).await?;
        outcomes.into_iter().next().ok_or(AppendError::Closed)
    }

    /// Appends to several streams in one transaction, all or nothing, in the order given: two
    /// appends to one stream follow each other. The outcomes are in that order too.
    ///
    /// # Errors
    /// As [`Journal::append`]; the first append that cannot take place fails all.
    pub async fn append_all(&self, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        if appends.is_empty() {
            return Ok(Vec::new());
        }
        let appends = appends.into_iter().map(Prepared::new).collect::<Result<_, _>>()?;
        let appends = self.ask(|reply| Request::Append { appends, reply }).await?;
        Ok(appends.into_iter().map(Prepared::outcome).collect())
    }

    /// The events of a stream after a version, in order; none when the stream does not exist.
    ///
    /// # Errors
    /// When the file, or one of these events, cannot be read, or the journal is closed.
    pub async fn read(&self, stream: &StreamId, after_version: u64) -> Result<Vec<Recorded>, ReadError> {
        let stream = stream.clone();
        self.run(move |connection| {
            let mut events = Vec::new();
            store::visit_stream(connection, &stream, after_version, |event| {
                events.push(event);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(events)
        })
        .await
    }

    /// The state that a stream's events make, and its version; the default state at version 0 when
    /// the stream does not exist.
    ///
    /// # Errors
    /// As [`Journal::read`]; and [`ReadError::Decode`], [`ReadError::UnknownKind`] or
    /// [`ReadError::Apply`] when an event cannot be folded.
    pub async fn load<F: Fold>(&self, stream: &StreamId) -> Result<Loaded<F>, ReadError> {
        let stream = stream.clone();
        self.run(move |connection| {
            let mut loaded = Loaded::default();
            store::visit_stream(connection, &stream, 0, |event| {
                loaded.advance(&event)?;
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(loaded)
        })
        .await
    }

    /// The states of all streams of a kind, as of one moment, sorted by the streams' ids: what a
    /// program does at its start.
    ///
    /// # Errors
    /// As [`Journal::load`], for any of the streams.
    pub async fn load_all<F: Fold>(&self, kind: &str) -> Result<Vec<(StreamId, Loaded<F>)>, ReadError> {
        let kind = kind.to_owned();
        self.run(move |connection| {
            let _moment = connection.unchecked_transaction()?;
            let mut all = Vec::new();
            for (stream, end) in store::ends_of(connection, &kind)? {
                let mut loaded = Loaded::default();
                store::visit_until(connection, &stream, end, 0, |event| {
                    loaded.advance(&event)?;
                    Ok(ControlFlow::Continue(()))
                })?;
                all.push((stream, loaded));
            }
            Ok(all)
        })
        .await
    }

    /// The last event of each stream of a kind, sorted by the streams' ids. Costs the same however
    /// long the streams are.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub async fn last_events(&self, kind: &str) -> Result<Vec<Recorded>, ReadError> {
        let kind = kind.to_owned();
        self.run(move |connection| store::last_events(connection, &kind)).await
    }

    /// The last event of each stream of a kind that has one after a position, by their positions.
    /// Costs as much as was appended since, to whatever streams, and the same however many there are.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub async fn last_events_after(&self, kind: &str, after_position: u64) -> Result<Vec<Recorded>, ReadError> {
        let kind = kind.to_owned();
        self.run(move |connection| store::last_events_after(connection, &kind, after_position)).await
    }

    /// The events of the transaction in which a key was used ([`Append::key`]); none when it was not.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub async fn events_of_key(&self, key: &str) -> Result<Vec<Recorded>, ReadError> {
        let key = key.to_owned();
        self.run(move |connection| Ok(store::events_of_key(connection, &key)?.unwrap_or_default())).await
    }

    /// Opens a journal that may belong to another process which is running: to look at it, never
    /// to change it.
    ///
    /// # Errors
    /// [`OpenError::Newer`] or [`OpenError::Older`] when the file is of another schema version,
    /// [`OpenError::NotAJournal`] when it is something else; otherwise when there is none or it
    /// cannot be opened.
    pub fn open_read_only(path: &Path) -> Result<Reader, OpenError> {
        Reader::open(path)
    }

    /// Closes the journal for all handles: what already waits is still written, later appends and
    /// reads are refused, subscriptions end with [`ReadError::Closed`]. Returns when the file is
    /// closed.
    pub async fn close(&self) {
        // The writer's connection is the last to close: it alone can empty the log into the file.
        self.inner.readers.close().await;
        if let Some(writer) = &self.inner.writer {
            // Fails when the writer has gone already.
            drop(writer.send(Message::Close).await);
        }
        let mut position = self.position();
        while position.changed().await.is_ok() {}
    }

    /// Reads from the file.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        self.inner.readers.run(read).await
    }

    /// Has some texts erased; returns how many.
    pub(crate) async fn erase_some(&self, which: Erasure) -> Result<u64, AppendError> {
        self.ask(|reply| Request::Erase { which, reply }).await
    }

    /// Has a snapshot stored.
    pub(crate) async fn keep(&self, snapshot: Encoded) -> Result<(), AppendError> {
        self.ask(|reply| Request::Keep { snapshot, reply }).await
    }

    /// Gives the writer something to do and waits until it is on the disk.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, AppendError> {
        let writer = self.inner.writer.as_ref().ok_or(AppendError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        writer.send(Message::Request(request(reply))).await.map_err(|_| AppendError::Closed)?;
        outcome.await.map_err(|_| AppendError::Closed)?
    }

    /// To be woken by each commit.
    pub(crate) fn position(&self) -> watch::Receiver<u64> {
        self.inner.position.clone()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = *self.inner.position.borrow();
        f.debug_struct("Journal").field("position", &position).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.readers.close_idle();
        // The writer ends when it has written what waits and no sender is left.
        self.writer = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's writer had panicked");
        }
    }
}
