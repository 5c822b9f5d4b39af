//! Where the product's binaries and the repository are, seen from the running test.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Names the folder of the binaries to test, where they are not of the build that the test belongs to.
const BINARIES: &str = "MUSHER_TEST_BINARIES";

/// Names the folder in which fresh directories are made, where it is not one of the build's.
pub const SCRATCH: &str = "MUSHER_TEST_SCRATCH";

/// The binary `name` (`musher` or `sled`) of the build that this test belongs to.
pub fn binary(name: &str) -> Result<PathBuf> {
    let given = std::env::var_os(BINARIES).map(PathBuf::from);
    let path = given.map_or_else(build_directory, Ok)?.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo build --workspace` or scripts/test", path.display());
    Ok(path)
}

/// A fresh directory whose parents others cannot write, as project directories need.
///
/// It lies in the build's own folder, since the system's temporary folder is everybody's.
pub fn scratch() -> Result<tempfile::TempDir> {
    let given = std::env::var_os(SCRATCH).map(PathBuf::from);
    let base = given.map_or_else(|| Ok(build_directory()?.join("e2e")), anyhow::Ok)?;
    std::fs::create_dir_all(&base).with_context(|| format!("could not make {}", base.display()))?;
    tempfile::Builder::new()
        .prefix("t")
        .tempdir_in(&base)
        .with_context(|| format!("no fresh directory in {}", base.display()))
}

/// Where a test keeps what a person will want to see when it has failed.
pub fn kept() -> Result<PathBuf> {
    let target = build_directory()?;
    Ok(target.parent().context("a build has a folder in cargo's own")?.join("test-parts"))
}

/// The root of the repository.
pub fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in the workspace")
}

/// `target/debug` or its like: a program lies in it, and a test executable in its `deps`.
fn build_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("the path of the executable")?;
    let folder = executable.parent().context("an executable lies in a directory")?;
    match folder.file_name() {
        Some(name) if name == "deps" => {
            Ok(folder.parent().context("cargo puts tests into target/<profile>/deps")?.to_path_buf())
        }
        _ => Ok(folder.to_path_buf()),
    }
}
