//! One thread that writes to the terminal, which may stop taking output for as long as it likes: nobody else waits for it on a
//! thread of the runtime.

use std::io;

use tokio::sync::{mpsc, oneshot};

/// How many texts may wait to be written.
const QUEUE: usize = 20;

/// The way to the thread, and its clones. It ends when all are dropped and what waits is written.
#[derive(Clone)]
pub(super) struct Printing(mpsc::Sender<Job>);

struct Job {
    text: String,
    written: oneshot::Sender<io::Result<()>>,
}

impl Printing {
    /// Starts the thread, on which `write` writes one text after another.
    pub(super) fn start(mut write: impl FnMut(String) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new().name("printing".to_owned()).spawn(move || {
            while let Some(Job { text, written }) = waiting.blocking_recv() {
                // Whoever wanted it may have gone.
                drop(written.send(write(text)));
            }
        })?;
        Ok(Self(jobs))
    }

    /// Returns when the text is written. One whose caller stops waiting before may be written all the same.
    pub(super) async fn print(&self, text: String) -> io::Result<()> {
        let ended = || io::Error::other("the thread that prints has ended");
        let (written, outcome) = oneshot::channel();
        self.0.send(Job { text, written }).await.map_err(|_| ended())?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }
}
