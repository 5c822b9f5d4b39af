//! The images that the tests' containers run on, made once by the product itself.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::OnceCell;

use crate::{home::Home, process};

/// From nothing: base, toolchains and agent.
const BUILD: Duration = Duration::from_mins(20);

/// Makes the images that the tests use, without a stack and with Rust, unless the engine has them.
///
/// Every test that wants a container waits for this first, so that no two gateways build the same image at once.
pub async fn ready() -> Result<()> {
    static READY: OnceCell<()> = OnceCell::const_new();
    READY.get_or_try_init(build).await.copied()
}

/// The tag of the image that a container without a stack runs on.
pub async fn node() -> Result<String> {
    ready().await?;
    let printed = Home::new("", "")?.run(["images", "build"], "").await?.success()?;
    Ok(printed.trim().to_owned())
}

async fn build() -> Result<()> {
    let home = Home::new("", "")?;
    for stacks in [&[][..], &["rust"]] {
        let mut command = home.musher()?;
        process::run(command.args(["images", "build"]).args(stacks), b"", BUILD)
            .await
            .and_then(process::Output::success)
            .context("the images could not be made")?;
    }
    Ok(())
}
