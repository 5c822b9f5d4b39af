//! A few connections for reading, used from the runtime's blocking threads. They are opened
//! read-only: whatever a reader does, it cannot write.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::{ReadError, store};

/// How many reads go on at once; further ones wait in order.
const READERS: u32 = 4;

pub(crate) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        let permits = Arc::new(Semaphore::new(READERS as usize));
        Self { path, permits, idle: Mutex::default() }
    }

    /// Runs `read` with a connection on a blocking thread.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_closed| ReadError::Closed)?;
        let readers = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Held until the connection is put back: closing waits for it.
            let _permit = permit;
            let connection = match readers.idle().pop() {
                Some(connection) => connection,
                None => store::open_reader(&readers.path)?,
            };
            let outcome = read(&connection);
            readers.idle().push(connection);
            outcome
        });
        match reading.await {
            Ok(outcome) => outcome,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_runtime_ended) => Err(ReadError::Closed),
        }
    }

    /// Refuses further reads, waits for those under way, closes the connections.
    pub(crate) async fn close(&self) {
        // Fails when another call has closed them already.
        if let Ok(_all) = self.permits.acquire_many(READERS).await {
            self.permits.close();
            self.close_idle();
        }
    }

    /// Closes the connections that are not in use.
    pub(crate) fn close_idle(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        // A list of connections is whole whatever happened to the thread that held it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
