//! Lines that wait: people see so, in one line, where it takes longer than a moment (CHAT-9).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::printing::Printing;
use crate::text;

/// How long a line waits before that is told: what is over sooner is seen soon enough.
const MOMENT: Duration = Duration::from_secs(2);

/// The lines that wait, and whether that was told. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Waits {
    lines: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Waits {
    /// A line waits. It is told after a moment, together with all others that wait then.
    pub(super) fn begin(&self, event_id: &str, printing: &Printing) {
        let begun = self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(event_id.to_owned(), false);
        if begun.is_some() {
            return;
        }
        let (waits, event_id, printing) = (self.clone(), event_id.to_owned(), printing.clone());
        tokio::spawn(async move {
            tokio::time::sleep(MOMENT).await;
            if let Some(sign) = waits.sign(&event_id) {
                // Where the terminal is gone nobody reads it.
                drop(printing.print(sign).await);
            }
        });
    }

    /// A line waits no longer.
    pub(super) fn end(&self, event_id: &str) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(event_id);
    }

    /// What is told when this line has waited for a moment; nothing when it waits no longer, or that was told with another.
    fn sign(&self, event_id: &str) -> Option<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if *lines.get(event_id)? {
            return None;
        }
        let untold: Vec<_> = lines.values_mut().filter(|told| !**told).collect();
        let how_many = untold.len();
        for told in untold {
            *told = true;
        }
        let wait = if how_many == 1 { "waits".to_owned() } else { format!("{} wait", text::count(how_many, "line")) };
        Some(format!("  ({wait}; `queue` shows what is before it)"))
    }
}
