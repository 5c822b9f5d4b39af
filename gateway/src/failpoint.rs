//! Points at which tests kill the gateway: around every append to the journal and every effect on the world.
//!
//! Without the feature `failpoints` there is nothing here. With it, `FAILPOINTS="<point>=return"` in the environment ends the
//! process at that point as `kill -9` does: no destructor runs, nothing is flushed. A point is called
//! `before <what>` or `after <what>`; what is appended is called after the
//! kinds of its events. Which effects have none, and why, is in docs/durability.md.

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

/// Has an effect on the world between the two points that bear its name.
pub fn around<T>(what: &str, effect: impl Future<Output = T>) -> impl Future<Output = T> {
    // What goes out to an engine or a homeserver is large, and its callers' futures would hold it twice.
    let effect = Box::pin(effect);
    async move {
        reach("before", what);
        let done = effect.await;
        reach("after", what);
        done
    }
}

/// Takes from the environment at which points to end.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
}
