//! Points at which tests kill the gateway: around every append to the journal and every effect on the world.
//!
//! Without the feature `failpoints` there is nothing here. With it, `FAILPOINTS="<point>=return"` in the environment ends the
//! process at that point as `kill -9` does: no destructor runs, nothing is flushed. A point is called
//! `before <what>` or `after <what>`; what is appended is called after the
//! kinds of its events.

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
