//! Stacks: a language's overlay on the base image, and how a project's stack is found.
//!
//! A stack is a folder with a `Dockerfile.fragment` (toolchain as its makers publish it), a
//! `Dockerfile.fragment.distro` (the distribution's packages alone) and `markers` (which files at a project's root
//! speak for it, its language server, and what it lacks). Those of this repository are embedded; a person adds their
//! own under the state directory's `stacks/`.
//!
//! This crate reads, checks and detects. It never builds an image, and never opens a path inside a project: detection
//! is a pure function over file names.

mod detect;
mod error;
mod fragment;
mod markers;
mod name;
mod registry;

pub use detect::{Detection, Evidence};
pub use error::{FragmentFault, MarkersFault, StackError};
pub use fragment::Fragment;
pub use markers::Pattern;
pub use name::{BadStackName, StackName};
pub use registry::{Checked, File, Origin, Stack, Stacks};

/// Where a stack's toolchain comes from (STK-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Toolchains {
    /// As its makers publish it: pinned, checked by digest. Needs their hosts.
    #[default]
    Upstream,
    /// The distribution's packages alone, for hosts that reach only a Debian mirror.
    Distro,
}
