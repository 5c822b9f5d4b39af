//! One layer of an image: what it is made from, and the tag that says so.
//!
//! A tag is the hash of the parent's tag, the Dockerfile, the files beside it and the arguments that change the
//! outcome. Nothing else may change an outcome: proxies and mirrors that only say where the same bytes come from
//! are left out.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use stacks::StackName;

/// Which layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// Debian, bootstrapped from a mirror.
    Root,
    /// What every project needs: no language's tools.
    Base,
    /// Where the agent's package is fetched and checked. Nothing of it is kept but the binary.
    AgentFetch,
    /// The agent's binary.
    Agent,
    /// A language's overlay.
    Stack(StackName),
    /// The sled and the user.
    Node,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Base => f.write_str("base"),
            Self::AgentFetch => f.write_str("agent-fetch"),
            Self::Agent => f.write_str("agent"),
            Self::Stack(name) => write!(f, "stack-{name}"),
            Self::Node => f.write_str("node"),
        }
    }
}

/// A layer with everything that is needed to make it.
#[derive(Debug, Clone)]
pub(crate) struct PlannedLayer {
    pub(crate) layer: Layer,
    pub(crate) tag: String,
    pub(crate) recipe: Recipe,
    /// Built just before this one, for this one alone, and removed after.
    pub(crate) source: Option<Box<PlannedLayer>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Recipe {
    /// Debian from a mirror; without one, from the distribution's own.
    Bootstrap { mirror: Option<String> },
    /// A Dockerfile with its context.
    Dockerfile { text: String, context: Vec<ContextFile>, arguments: Vec<(&'static str, String)> },
}

/// A file beside the Dockerfile.
#[derive(Debug, Clone)]
pub(crate) struct ContextFile {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) contents: Contents,
}

#[derive(Debug, Clone)]
pub(crate) enum Contents {
    Bytes(Vec<u8>),
    /// A file of the host that is streamed, with its size in bytes and its digest. The open file is kept, so that a
    /// file that is replaced meanwhile cannot get under the old one's tag.
    Host {
        file: Arc<File>,
        size: u64,
        sha256: [u8; 32],
    },
}

impl ContextFile {
    pub(crate) fn text(path: &str, mode: u32, text: &str) -> Self {
        Self { path: path.to_owned(), mode, contents: Contents::Bytes(text.as_bytes().to_vec()) }
    }
}

impl PlannedLayer {
    /// A layer on `parent`. `body` is the Dockerfile without its first lines, which are the same everywhere.
    pub(crate) fn dockerfile(
        layer: Layer,
        parent: &str,
        body: &str,
        context: Vec<ContextFile>,
        arguments: Vec<(&'static str, String)>,
    ) -> Self {
        let label = crate::LABEL_LAYER;
        let text = format!("FROM {parent}\nLABEL {label}={layer}\nARG DEBIAN_FRONTEND=noninteractive\n{body}");
        let tag = tag(&layer, |hash| {
            hash.part(text.as_bytes());
            for file in &context {
                hash.part(file.path.as_bytes());
                hash.part(&file.mode.to_be_bytes());
                match &file.contents {
                    Contents::Bytes(bytes) => hash.part(&Sha256::digest(bytes)),
                    Contents::Host { sha256, .. } => hash.part(sha256),
                }
            }
            for (name, value) in &arguments {
                hash.part(name.as_bytes());
                hash.part(value.as_bytes());
            }
        });
        Self { layer, tag, recipe: Recipe::Dockerfile { text, context, arguments }, source: None }
    }

    /// Debian from a mirror.
    pub(crate) fn bootstrap(mirror: Option<&str>) -> Self {
        let tag = tag(&Layer::Root, |hash| {
            for word in crate::bootstrap::ARGUMENTS {
                hash.part(word.as_bytes());
            }
            hash.part(mirror.unwrap_or_default().as_bytes());
            hash.part(std::env::consts::ARCH.as_bytes());
        });
        Self { layer: Layer::Root, tag, recipe: Recipe::Bootstrap { mirror: mirror.map(str::to_owned) }, source: None }
    }
}

/// Every part is hashed with its length, so that no two lists of parts look alike.
struct PartHash(Sha256);

impl PartHash {
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }
}

fn tag(layer: &Layer, parts: impl FnOnce(&mut PartHash)) -> String {
    let mut hash = PartHash(Sha256::new());
    parts(&mut hash);
    let digest = hex::encode(hash.0.finalize());
    format!("musher-{layer}:{}", &digest[..12])
}
