//! What a project's image is made of, as a chain of layers: root, base, agent, stack, node.
//!
//! Pure but for reading the sled once: a plan is made from inputs by value and knows its tag before anything is
//! built. The host's uid is in the last layer alone, so that all that is large is shared by everybody on a host.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use stacks::{Stack, Toolchains};

use crate::certificates;
use crate::layers::{Contents, ContextFile, Layer, PlannedLayer};

const BASE: &str = include_str!("../Dockerfile.base");
const AGENT_FETCH: &str = include_str!("../agent/Dockerfile.fetch");
const AGENT: &str = include_str!("../agent/Dockerfile");
const NODE: &str = include_str!("../node/Dockerfile");
const NODE_FILES: [(&str, u32, &str); 4] = [
    ("profile.sh", 0o644, include_str!("../node/profile.sh")),
    ("bashrc.sh", 0o644, include_str!("../node/bashrc.sh")),
    ("sudo", 0o755, include_str!("../node/sudo")),
    ("sshd-environment", 0o755, include_str!("../node/sshd-environment")),
];

/// What an image is to be made of.
#[derive(Debug, Clone)]
pub struct ImageInputs<'a> {
    /// What it stands on.
    pub base: BaseImage,
    /// The language's overlay, if any.
    pub stack: Option<&'a Stack>,
    /// Where the overlay's toolchain comes from.
    pub toolchains: Toolchains,
    /// Whether the agent's command-line program is in it.
    pub with_agent: bool,
    /// The package mirror that the agent is fetched from, as npm takes it; without one, npm's own default.
    pub npm_registry: Option<String>,
    /// The uid of the container's user: the host user's, never 0.
    pub uid: u32,
    /// The gid of the container's user, never 0.
    pub gid: u32,
    /// Certificates to trust beside the system's, as PEM (PROJ-15).
    pub ca_bundle: Option<Vec<u8>>,
    /// The proxies that builds use. They do not get into the image.
    pub proxies: Proxies,
    /// The node's binary.
    pub sled: SledBinary,
}

/// What an image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseImage {
    /// Debian, bootstrapped from this mirror, or from the distribution's own (STK-5).
    Bootstrap {
        /// An http or https URL.
        mirror: Option<String>,
    },
    /// A Debian image of the person's own: `name@sha256:<digest>`, or `sha256:<id>` of one that the engine has.
    Own {
        /// The reference.
        reference: String,
    },
}

/// Proxies without credentials (invariant 7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    variables: Vec<(&'static str, String)>,
}

impl Proxies {
    /// Takes proxies for http and https, and the hosts that need none, in the form of the usual variables: as curl, with
    /// or without `http://` before a proxy, and with blanks among the hosts. What comes of it is what every program reads.
    ///
    /// # Errors
    /// When one carries a user name or a password, or is no URL.
    pub fn new(http: Option<&str>, https: Option<&str>, no_proxy: Option<&str>) -> Result<Self, PlanError> {
        let mut variables = Vec::new();
        for (lower, upper, value) in [("http_proxy", "HTTP_PROXY", http), ("https_proxy", "HTTPS_PROXY", https)] {
            if let Some(value) = value.map(str::trim) {
                let value = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
                check_url(lower, &value)?;
                variables.extend([(lower, value.clone()), (upper, value)]);
            }
        }
        if let Some(value) = no_proxy {
            let hosts = value.split([',', ' ', '\t']).filter(|host| !host.is_empty()).collect::<Vec<_>>().join(",");
            if hosts.bytes().any(|b| !b.is_ascii_graphic()) {
                return Err(PlanError::Hosts { what: "no_proxy" });
            }
            variables.extend([("no_proxy", hosts.clone()), ("NO_PROXY", hosts)]);
        }
        Ok(Self { variables })
    }

    /// The environment variables that programs look for, in both spellings; for builds and for containers.
    pub fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }
}

/// The node's binary, read once: open, with its digest.
#[derive(Debug, Clone)]
pub struct SledBinary {
    file: Arc<File>,
    size: u64,
    sha256: [u8; 32],
}

impl SledBinary {
    /// Opens the binary and reads it through. Blocks for as long as that takes.
    pub fn open(path: &Path) -> Result<Self, PlanError> {
        let unreadable = |source| PlanError::Sled { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk).map_err(unreadable)? {
                0 => break,
                n => {
                    hash.update(&chunk[..n]);
                    size += n as u64;
                }
            }
        }
        Ok(Self { file: Arc::new(file), size, sha256: hash.finalize().into() })
    }
}

/// Inputs that cannot become an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The user would be root.
    #[error("nothing in a container runs as uid 0 or gid 0, found {uid}:{gid}; set [projects] uid and gid")]
    Root {
        /// The uid.
        uid: u32,
        /// The gid.
        gid: u32,
    },
    /// The sled's binary cannot be read.
    #[error("the sled's binary {} cannot be read: {source}", path.display())]
    Sled {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates are no PEM.
    #[error("the extra certificates are no PEM bundle: each needs its BEGIN CERTIFICATE and END CERTIFICATE line")]
    CertificatesNotPem,
    /// The certificates have something else among them.
    #[error("the extra certificates hold a {0}, which has no place in an image; leave certificates alone in the file")]
    CertificatesWithOther(String),
    /// A base image that may change under its name.
    #[error(
        "{0:?} does not say which image: give the base as name@sha256:<digest>, or sha256:<id> of one that the engine has"
    )]
    BaseNotPinned(String),
    /// No URL.
    #[error("{what} is no http or https URL")]
    Url {
        /// Which setting.
        what: &'static str,
    },
    /// No list of hosts.
    #[error("{what} is no list of hosts")]
    Hosts {
        /// Which setting.
        what: &'static str,
    },
    /// A URL with a user name or password.
    #[error("{what} has a user name or password in it, which would be visible in the container; use one without")]
    Credentials {
        /// Which setting.
        what: &'static str,
    },
}

/// An image that may or may not be there yet: its layers and their tags.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    pub(crate) layers: Vec<PlannedLayer>,
    /// Build arguments that say where the same bytes come from, and so are in no tag.
    pub(crate) routes: Vec<(&'static str, String)>,
}

impl ImagePlan {
    /// Plans an image.
    pub fn new(inputs: &ImageInputs<'_>) -> Result<Self, PlanError> {
        let &ImageInputs { uid, gid, .. } = inputs;
        if uid == 0 || gid == 0 {
            return Err(PlanError::Root { uid, gid });
        }
        let mut chain = Chain::default();
        match &inputs.base {
            BaseImage::Bootstrap { mirror } => {
                if let Some(mirror) = mirror {
                    check_url("debian_mirror", mirror)?;
                }
                chain.push(PlannedLayer::bootstrap(mirror.as_deref()));
            }
            BaseImage::Own { reference } if is_pinned(reference) => chain.tip.clone_from(reference),
            BaseImage::Own { reference } => return Err(PlanError::BaseNotPinned(reference.clone())),
        }
        chain.push(base(&chain.tip, inputs.ca_bundle.as_deref())?);
        if inputs.with_agent {
            chain.push(agent(&chain.tip));
        }
        if let Some(stack) = inputs.stack {
            chain.push(overlay(&chain.tip, stack, inputs.toolchains));
        }
        chain.push(node(&chain.tip, uid, gid, &inputs.sled));

        let mut routes = inputs.proxies.variables.clone();
        if let Some(registry) = &inputs.npm_registry {
            check_url("the npm registry", registry)?;
            routes.push(("NPM_CONFIG_REGISTRY", registry.clone()));
        }
        Ok(Self { layers: chain.layers, routes })
    }

    /// The image's tag: it names everything that is in it (STK-3).
    pub fn tag(&self) -> &str {
        self.layers.last().map_or("", |layer| &layer.tag)
    }

    /// The layers in the order in which they are built, with their tags.
    pub fn layers(&self) -> impl Iterator<Item = (&Layer, &str)> {
        self.layers.iter().map(|planned| (&planned.layer, planned.tag.as_str()))
    }
}

#[derive(Default)]
struct Chain {
    tip: String,
    layers: Vec<PlannedLayer>,
}

impl Chain {
    fn push(&mut self, layer: PlannedLayer) {
        self.tip.clone_from(&layer.tag);
        self.layers.push(layer);
    }
}

fn base(parent: &str, ca_bundle: Option<&[u8]>) -> Result<PlannedLayer, PlanError> {
    let certificates = ca_bundle.map(certificates::split).transpose()?.unwrap_or_default();
    let mut context = vec![ContextFile::text(
        "certificates/README",
        0o644,
        "Certificates that this image trusts beside the system's.\n",
    )];
    context.extend(certificates.iter().enumerate().map(|(index, certificate)| {
        ContextFile::text(&format!("certificates/musher-{index:04}.crt"), 0o644, certificate)
    }));
    Ok(PlannedLayer::dockerfile(Layer::Base, parent, BASE, context, Vec::new()))
}

fn agent(parent: &str) -> PlannedLayer {
    let version = ("CLAUDE_CODE_VERSION", crate::CLAUDE_CODE_VERSION.to_owned());
    let fetch = PlannedLayer::dockerfile(Layer::AgentFetch, parent, AGENT_FETCH, Vec::new(), vec![version]);
    // A name, not an argument: the classic builder knows none in `--from`.
    let body = AGENT.replace("{agent-fetch}", &fetch.tag);
    let mut layer = PlannedLayer::dockerfile(Layer::Agent, parent, &body, Vec::new(), Vec::new());
    layer.source = Some(Box::new(fetch));
    layer
}

fn overlay(parent: &str, stack: &Stack, toolchains: Toolchains) -> PlannedLayer {
    let context = stack.files().iter().map(|file| ContextFile {
        path: file.path.clone(),
        mode: if file.executable { 0o755 } else { 0o644 },
        contents: Contents::Bytes(file.contents.clone()),
    });
    let body = stack.fragment(toolchains).text();
    PlannedLayer::dockerfile(Layer::Stack(stack.name().clone()), parent, body, context.collect(), Vec::new())
}

fn node(parent: &str, uid: u32, gid: u32, sled: &SledBinary) -> PlannedLayer {
    let mut context: Vec<_> =
        NODE_FILES.iter().map(|&(path, mode, text)| ContextFile::text(path, mode, text)).collect();
    let contents = Contents::Host { file: Arc::clone(&sled.file), size: sled.size, sha256: sled.sha256 };
    context.push(ContextFile { path: "sled".to_owned(), mode: 0o755, contents });
    let arguments = vec![("MUSHER_UID", uid.to_string()), ("MUSHER_GID", gid.to_string())];
    PlannedLayer::dockerfile(Layer::Node, parent, NODE, context, arguments)
}

fn is_pinned(reference: &str) -> bool {
    let digest = reference
        .strip_prefix("sha256:")
        .or_else(|| reference.split_once("@sha256:").filter(|(name, _)| !name.is_empty()).map(|(_, digest)| digest));
    let plain = reference.bytes().all(|b| b.is_ascii_alphanumeric() || b"@:/._-".contains(&b));
    plain
        && digest
            .is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// A URL that may be seen: http or https, one word, no user name and no password.
fn check_url(what: &'static str, url: &str) -> Result<(), PlanError> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).ok_or(PlanError::Url { what })?;
    if rest.is_empty() || rest.starts_with('/') || !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(PlanError::Url { what });
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') { Err(PlanError::Credentials { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
