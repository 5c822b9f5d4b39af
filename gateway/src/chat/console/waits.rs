//! Lines that wait: people see so, in one line, where it takes longer than a moment (CHAT-9).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::task::AbortOnDropHandle;

use super::printing::Printing;
use crate::text;

/// How long a line waits before that is told: what is over sooner is seen soon enough.
const MOMENT: Duration = Duration::from_secs(2);

/// The lines that wait.
#[derive(Default)]
pub(super) struct Waits {
    lines: Arc<Mutex<Lines>>,
}

type Lines = BTreeMap<String, Line>;

/// A line that waits.
struct Line {
    /// Whether that was told.
    told: bool,
    /// Tells it after a moment; ends with the line's wait, and with the console.
    _sign: AbortOnDropHandle<()>,
}

impl Waits {
    /// A line waits. It is told after a moment, together with all others that wait then.
    pub(super) fn begin(&self, event_id: &str, printing: &Printing) {
        let mut known = locked(&self.lines);
        if known.contains_key(event_id) {
            return;
        }
        let (lines, id, printing) = (Arc::downgrade(&self.lines), event_id.to_owned(), printing.clone());
        let sign = tokio::spawn(async move {
            tokio::time::sleep(MOMENT).await;
            if let Some(sign) = lines.upgrade().and_then(|lines| sign(&mut locked(&lines), &id)) {
                // Where the terminal is gone nobody reads it.
                drop(printing.print(sign).await);
            }
        });
        known.insert(event_id.to_owned(), Line { told: false, _sign: AbortOnDropHandle::new(sign) });
    }

    /// A line waits no longer.
    pub(super) fn end(&self, event_id: &str) {
        locked(&self.lines).remove(event_id);
    }
}

/// What is told when this line has waited for a moment; nothing when it waits no longer, or that was told with another.
fn sign(lines: &mut Lines, event_id: &str) -> Option<String> {
    if lines.get(event_id)?.told {
        return None;
    }
    let untold: Vec<_> = lines.values_mut().filter(|line| !line.told).collect();
    let how_many = untold.len();
    for line in untold {
        line.told = true;
    }
    let wait = if how_many == 1 { "waits".to_owned() } else { format!("{} wait", text::count(how_many, "line")) };
    Some(format!("  ({wait}; `queue` shows what is before it)"))
}

fn locked(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
