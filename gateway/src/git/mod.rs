//! Git remotes of projects: where they are ([`remote`]), which of them may be reached ([`reach`]), whose word counts
//! ([`credentials`], [`known_hosts`]), and the way there, from inside a container ([`proxy`], [`ssh`]) and for the first clone
//! ([`clone_port`]), each use of which is journaled ([`audit`], SEC-2).
//!
//! A container asks over its project's link; whatever it says is the word of that project's code. It reaches the smart-HTTP
//! services, or `git-upload-pack` and `git-receive-pack`, of its project's own remote and nothing else, and no credential travels its way.

pub mod audit;
mod clone_port;
pub mod credentials;
pub mod known_hosts;
mod pace;
mod proxy;
pub mod reach;
pub mod remote;
mod ssh;
mod trouble;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use link::git::paths;
use reqwest::{Certificate, Client, redirect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

pub use audit::Audit;
pub use clone_port::ClonePort;
pub use credentials::Credentials;
pub use known_hosts::KnownHosts;
use pace::Pace;
pub use reach::Reach;
pub use remote::Remote;

use remote::{WebRemote, is_loopback_name};

use crate::{
    refusal::{Kind, Refusal},
    tasks::Tasks,
    text,
};

/// Uses that one project may have under way.
const AT_ONCE: usize = 32;
/// The most that is taken from a container for one use, in bytes.
const BODY_MAX: usize = 8 * 1024 * 1024 * 1024;
/// Clones that the gateway may have under way.
const CLONES_AT_ONCE: usize = 4;
/// How long connecting to a remote may take.
const CONNECT: Duration = Duration::from_secs(30);

/// What settings say of git remotes.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Hosts that may be in private networks, in lower case, IPv6 addresses without brackets.
    pub allow_hosts: Vec<String>,
    /// Files with host keys of SSH servers, in their order.
    pub known_hosts: Vec<PathBuf>,
    /// Hosts of the web proxies that the environment names ([`reach::proxy_host`]).
    pub proxies: Vec<String>,
    /// Certificates of authorities to trust beside the host's own.
    pub extra_pem: Option<Vec<u8>>,
}

/// Tells which remote a project has.
pub type Remotes = Arc<dyn Fn(Uuid) -> Option<Remote> + Send + Sync>;

/// The way to git remotes, for the gateway itself and for containers.
pub struct Git {
    /// Which credential counts where.
    pub credentials: Credentials,
    /// Which SSH servers are known.
    pub known_hosts: KnownHosts,
    /// Which addresses may be reached.
    pub reach: Reach,
    /// Where uses are journaled.
    pub audit: Audit,
    remotes: Remotes,
    client: Client,
    /// For this host's loopback: a proxy would have another, and would read along.
    loopback_client: Client,
    clones: Arc<Semaphore>,
    /// One for each project that ever asked.
    bounds: Mutex<HashMap<Uuid, Arc<Bounds>>>,
    tasks: Tasks,
}

/// One project's way in.
struct Door {
    git: Arc<Git>,
    project: Uuid,
    bounds: Arc<Bounds>,
}

/// What one project may ask, over all the links that it ever has.
struct Bounds {
    places: Arc<Semaphore>,
    pace: Pace,
}

impl Bounds {
    fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), pace: Pace::new() }
    }
}

impl Git {
    /// The way to what `remotes` tells.
    ///
    /// # Errors
    /// When the web client cannot be made of these settings.
    pub fn new(
        settings: Settings,
        credentials: Credentials,
        remotes: Remotes,
        audit: Audit,
        tasks: Tasks,
    ) -> Result<Arc<Self>, Refusal> {
        let reach = Reach::new(settings.allow_hosts.clone(), settings.proxies.clone());
        Self::within(reach, settings, credentials, remotes, audit, tasks)
    }

    fn within(
        reach: Reach,
        settings: Settings,
        credentials: Credentials,
        remotes: Remotes,
        audit: Audit,
        tasks: Tasks,
    ) -> Result<Arc<Self>, Refusal> {
        let extra = settings.extra_pem.as_deref().map(Certificate::from_pem_bundle).transpose().map_err(|error| {
            Refusal::config(format!("the certificates in `[images] extra_ca_certificates` cannot be used: {error}"))
                .hint("Each file that it names has to be certificates in PEM form.")
        })?;
        let builder = || {
            Client::builder()
                .tls_certs_merge(extra.clone().unwrap_or_default())
                .redirect(redirect::Policy::none())
                .dns_resolver(reach.clone())
                .referer(false)
                // Answers pass as they are, whatever else in this program wants its client to unpack.
                .no_gzip()
                .no_brotli()
                .no_zstd()
                .no_deflate()
                // A connection each: on one that all share, who does not read would hold up everybody.
                .http1_only()
                .connect_timeout(CONNECT)
        };
        let not_made = |error| Refusal::internal("the client for git remotes cannot be made", error);
        let client = builder().build().map_err(not_made)?;
        let loopback_client = builder().no_proxy().build().map_err(not_made)?;
        let clones = Arc::new(Semaphore::new(CLONES_AT_ONCE));
        let known_hosts = KnownHosts::new(settings.known_hosts);
        let bounds = Mutex::default();
        Ok(Arc::new(Self {
            credentials,
            known_hosts,
            reach,
            audit,
            remotes,
            client,
            loopback_client,
            clones,
            bounds,
            tasks,
        }))
    }

    /// A place for one clone, to be given back when it has ended.
    ///
    /// # Errors
    /// When too many are under way.
    pub fn clone_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.clones).try_acquire_owned().map_err(|_| {
            Refusal::unavailable(format!("{CLONES_AT_ONCE} clones are under way, and no more are made at once"))
                .hint("Give the same command again when one of them has ended.")
        })
    }

    /// The client that reaches this remote.
    fn client(&self, remote: &WebRemote) -> &Client {
        if is_loopback_name(remote.bare_host()) { &self.loopback_client } else { &self.client }
    }

    /// What this project's sled may ask; anything else is not found.
    pub fn router(self: &Arc<Self>, project: Uuid) -> Router {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        let bounds = Arc::clone(bounds.entry(project).or_insert_with(|| Arc::new(Bounds::new())));
        let door = Door { git: Arc::clone(self), project, bounds };
        Router::new()
            .route(&format!("{}{{*rest}}", paths::WEB), any(proxy::web))
            .route(paths::SSH_UPLOAD_PACK, post(ssh::upload_pack))
            .route(paths::SSH_RECEIVE_PACK, post(ssh::receive_pack))
            .with_state(Arc::new(door))
    }
}

impl Door {
    fn remote(&self) -> Option<Remote> {
        (self.git.remotes)(self.project)
    }

    /// A place for one use, unless there are too many at once or in a short time: each is two lines in the journal.
    fn place(&self) -> Result<OwnedSemaphorePermit, Said> {
        let place = Arc::clone(&self.bounds.places).try_acquire_owned();
        let place = place
            .map_err(|_| said(StatusCode::TOO_MANY_REQUESTS, "too many git requests of this project are under way"))?;
        if self.bounds.pace.take() {
            Ok(place)
        } else {
            Err(said(StatusCode::TOO_MANY_REQUESTS, "this project asks its git remote too often; wait a little"))
        }
    }
}

/// An answer of one line, which git shows to people.
#[derive(Debug)]
struct Said {
    status: StatusCode,
    line: String,
}

fn said(status: StatusCode, sentence: &str) -> Said {
    Said { status, line: format!("{}\n", text::one_line(sentence, 1000)) }
}

impl IntoResponse for Said {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], self.line).into_response()
    }
}

/// A refusal, with what to do next but without what only the operator should see.
fn refused(refusal: &Refusal) -> Said {
    tracing::warn!(%refusal, "a git request is refused");
    let status = match refusal.kind {
        Kind::Usage | Kind::Config => StatusCode::FORBIDDEN,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::BAD_GATEWAY,
    };
    let hint = refusal.hint.as_deref().filter(|_| refusal.kind != Kind::Internal);
    match hint {
        Some(hint) => said(status, &format!("{}. {hint}", refusal.what)),
        None => said(status, &refusal.what),
    }
}

/// What is said where a use could not be journaled.
fn unjournaled(refusal: &Refusal) -> Said {
    tracing::error!(%refusal, "a use of a git credential is not journaled");
    said(StatusCode::SERVICE_UNAVAILABLE, &refusal.what)
}

/// Returns when neither counter has grown for that long.
async fn stalled(counters: &[&AtomicU64], silence: Duration) {
    let read = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum::<u64>();
    let mut before = read();
    loop {
        tokio::time::sleep(silence).await;
        let now = read();
        if now == before {
            return;
        }
        before = now;
    }
}
