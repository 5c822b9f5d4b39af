//! Waiting for a condition, with a deadline and a sentence that says what was waited for.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// For what answers by itself: a command, a login, a request.
pub const SHORT: Duration = Duration::from_secs(30);

/// For what starts a container or runs an agent's turn on a busy machine.
pub const LONG: Duration = Duration::from_mins(3);

/// Asks `probe` again and again until it gives a value, and fails with `what` when `within` has passed.
///
/// An error of the probe ends the waiting at once.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = probe().await.with_context(|| format!("while waiting until {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain until {what}", within.as_secs());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_the_first_value() -> Result<()> {
        let mut asked = 0;
        let got = until("the third question", SHORT, || {
            asked += 1;
            let now = asked;
            async move { Ok((now == 3).then_some(now)) }
        })
        .await?;
        assert_eq!(got, 3);
        Ok(())
    }

    #[tokio::test]
    async fn says_what_it_waited_for() {
        let error = until("pigs fly", Duration::ZERO, || async { Ok(None::<()>) }).await.expect_err("nothing to find");
        assert_eq!(error.to_string(), "waited 0 s in vain until pigs fly");
    }
}
