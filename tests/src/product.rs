//! Where the product's binaries and the repository are, seen from the running test.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The binary `name` (`musher` or `sled`) of the build that this test belongs to.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = build_directory()?.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo build --workspace` or scripts/test", path.display());
    Ok(path)
}

/// A fresh directory whose parents others cannot write, as project directories need.
///
/// It lies in the build's own folder, since the system's temporary folder is everybody's.
pub fn scratch() -> Result<tempfile::TempDir> {
    let base = build_directory()?.join("e2e");
    std::fs::create_dir_all(&base).with_context(|| format!("could not make {}", base.display()))?;
    tempfile::Builder::new()
        .prefix("t")
        .tempdir_in(&base)
        .with_context(|| format!("no fresh directory in {}", base.display()))
}

/// The root of the repository.
pub fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in the workspace")
}

/// `target/debug` or its like: the test executable lies in its `deps`.
fn build_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("the path of the test executable")?;
    let deps = executable.parent().context("the test executable lies in a directory")?;
    Ok(deps.parent().context("cargo puts tests into target/<profile>/deps")?.to_path_buf())
}
