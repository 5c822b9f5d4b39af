//! Points at which tests kill the gateway: around every append to the journal and every effect on the world.
//!
//! Without the feature `failpoints` there is nothing here. With it, `FAILPOINTS="<point>=return"` in the environment ends the
//! process at that point as `kill -9` does: no destructor runs, nothing is flushed. A point is called
//! `before <what>` or `after <what>`; what is appended is called after the
//! kinds of its events.

use journal::{Append, AppendError, Appended, Journal};

/// Ends the process here, when a test wants that.
pub fn reach(when: &str, what: &str) {
    #[cfg(feature = "failpoints")]
    {
        let point = format!("{when} {what}");
        fail::fail_point!(&point, |_| std::process::abort());
    }
    // The parameters are for tests.
    let _ = (when, what);
}

/// Takes from the environment at which points to end.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}

/// An append between two points.
pub async fn append(journal: &Journal, append: Append) -> Result<Appended, AppendError> {
    let mut appended = append_all(journal, vec![append]).await?;
    appended.pop().ok_or(AppendError::Closed)
}

/// Appends between the points of all of them.
pub async fn append_all(journal: &Journal, appends: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
    let kinds: Vec<String> = if cfg!(feature = "failpoints") {
        appends.iter().flat_map(|append| &append.events).map(|event| event.kind().to_owned()).collect()
    } else {
        Vec::new()
    };
    for kind in &kinds {
        reach("before", kind);
    }
    let appended = journal.append_all(appends).await?;
    for kind in &kinds {
        reach("after", kind);
    }
    Ok(appended)
}
