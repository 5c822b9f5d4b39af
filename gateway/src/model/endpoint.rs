//! Where requests for the model go, with which credential, and how they are sent.

use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
};
use futures_util::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use reqwest::{Certificate, Client, Url, redirect};
use tracing::warn;
use url::Host;

use super::{PREFIX, headers};
use crate::{failpoint, refusal::Refusal};

/// The largest body of a request, in bytes: what the public API takes.
pub(super) const REQUEST_MAX: usize = 32 * 1024 * 1024;
/// How long connecting to the model may take.
const CONNECT: Duration = Duration::from_secs(30);
/// The longest silence within an answer, and until it begins.
const SILENCE: Duration = Duration::from_mins(10);

/// How the key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `x-api-key: …`
    ApiKey,
    /// `authorization: Bearer …`
    Bearer,
    /// Not at all.
    None,
}

/// Where the key is; read anew for each request, so that it can be changed at any time.
#[derive(Clone)]
pub enum Key {
    /// There is none.
    None,
    /// In a file, whose last line break does not count.
    File(PathBuf),
    /// In the gateway's own environment.
    Given(String),
}

impl Key {
    fn read(&self) -> io::Result<Option<String>> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => fs::read_to_string(path).map(|key| Some(key.trim_end_matches(['\n', '\r']).to_owned())),
            Self::Given(key) => Ok(Some(key.clone())),
        }
    }
}

/// Where a model answers, and what is added to requests on the way there.
#[derive(Clone)]
pub struct Endpoint {
    /// What stands before the API's paths.
    pub base: Url,
    /// How the key is sent.
    pub auth: Auth,
    /// The key.
    pub key: Key,
    /// Further headers.
    pub headers: HeaderMap,
}

/// The endpoints of all projects.
pub struct Models {
    general: (Client, Endpoint),
    /// By the names of projects.
    own: HashMap<String, (Client, Endpoint)>,
}

impl Models {
    /// `general` for every project but those that have an endpoint of their own in `own`, by their names; certificates of the authorities in
    /// `extra_pem` are trusted beside the host's own.
    pub fn new(
        general: Endpoint,
        own: impl IntoIterator<Item = (String, Endpoint)>,
        extra_pem: Option<&[u8]>,
    ) -> Result<Self, Refusal> {
        let extra = extra_pem.map(Certificate::from_pem_bundle).transpose().map_err(|error| {
            Refusal::config(format!("the certificates in `[images] extra_ca_certificates` cannot be used: {error}"))
                .hint("Each file that it names has to be certificates in PEM form.")
        })?;
        let extra = extra.unwrap_or_default();
        // Each holds the trusted certificates: one that nobody needs is not made.
        let (mut near, mut far) = (None, None);
        let mut with_client = |endpoint: Endpoint| {
            let loopback = is_loopback(&endpoint.base);
            let made = if loopback { &mut near } else { &mut far };
            let client = match made {
                Some(client) => Client::clone(client),
                None => made.insert(client(loopback, extra.clone())?).clone(),
            };
            Ok::<_, Refusal>((client, endpoint))
        };
        let general = with_client(general)?;
        let own = own.into_iter().map(|(name, endpoint)| Ok((name, with_client(endpoint)?)));
        let own = own.collect::<Result<_, Refusal>>()?;
        Ok(Self { general, own })
    }

    /// Whether projects' names matter.
    pub(super) fn differ(&self) -> bool {
        !self.own.is_empty()
    }

    /// Sends a project's request; what of its body passes is noted in `upload`.
    pub(super) async fn send(
        &self,
        project: Option<&str>,
        request: Request,
        upload: &Arc<Upload>,
    ) -> Result<reqwest::Response, SendError> {
        let (client, endpoint) = project.and_then(|name| self.own.get(name)).unwrap_or(&self.general);
        if request.body().size_hint().lower() > REQUEST_MAX as u64 {
            return Err(SendError::TooLarge);
        }
        let (parts, body) = request.into_parts();
        let mut headers = headers::upward(&parts.headers, &endpoint.headers);
        if let Some((name, value)) = endpoint.credential()? {
            headers.insert(name, value);
        }
        if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, length.clone());
        }
        let noted = Arc::clone(upload);
        let body = Limited::new(body, REQUEST_MAX).into_data_stream().inspect(move |part| match part {
            Ok(part) => drop(noted.passed.fetch_add(part.len() as u64, Ordering::Relaxed)),
            Err(error) => noted.failed(error.is::<LengthLimitError>()),
        });
        let sent = client
            .request(parts.method, endpoint.url(parts.uri.path(), parts.uri.query()))
            .headers(headers)
            .body(reqwest::Body::wrap_stream(body));
        failpoint::around("ask_model", sent.send()).await.map_err(|error| {
            if let Some(fault) = upload.fault() {
                return fault;
            }
            let error = error.without_url();
            warn!(error = &error as &dyn std::error::Error, "the model was not reached");
            if error.is_timeout() { SendError::Silent } else { SendError::Unreachable }
        })
    }
}

impl Endpoint {
    fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let path = path.strip_prefix(PREFIX).unwrap_or_default();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }

    fn credential(&self) -> Result<Option<(HeaderName, HeaderValue)>, SendError> {
        if self.auth == Auth::None {
            return Ok(None);
        }
        let key = self.key.read().map_err(|error| {
            warn!(%error, "the model key cannot be read");
            match error.kind() {
                ErrorKind::NotFound => SendError::KeyGone,
                ErrorKind::PermissionDenied | ErrorKind::InvalidData => SendError::KeyUnusable,
                _ => SendError::KeyUnreadable,
            }
        })?;
        let key = key.filter(|key| !key.is_empty()).ok_or(SendError::NoKey)?;
        let (name, text) = match self.auth {
            Auth::Bearer => (header::AUTHORIZATION, format!("Bearer {key}")),
            Auth::ApiKey | Auth::None => (HeaderName::from_static("x-api-key"), key),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| SendError::KeyUnusable)?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

/// Why there is no answer of the model.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the gateway has no model key for this project")]
    NoKey,
    #[error(
        "the model key that bot.toml names is not there; whoever runs the gateway puts the file back, or stores the secret \
         with `musher secrets set`"
    )]
    KeyGone,
    #[error("the gateway cannot read the model key just now")]
    KeyUnreadable,
    #[error(
        "the model key cannot be used: the gateway may not read it, or it contains characters that a header cannot; \
         whoever runs the gateway mends the file, or stores the secret anew with `musher secrets set`"
    )]
    KeyUnusable,
    #[error("the request is larger than {} MiB", REQUEST_MAX / (1024 * 1024))]
    TooLarge,
    #[error("the request broke off")]
    BrokenOff,
    #[error("the model did not answer in time from the gateway")]
    Silent,
    #[error("the model could not be reached from the gateway")]
    Unreachable,
}

impl SendError {
    /// The status that says so. Agents try again for minutes what is told as a fault of the server.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoKey | Self::KeyGone | Self::KeyUnusable => StatusCode::UNAUTHORIZED,
            Self::KeyUnreadable => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::Silent | Self::Unreachable => StatusCode::BAD_GATEWAY,
        }
    }
}

/// What became of a request's body.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// Bytes that were passed on; none when it broke off, because the model gets no whole request then, and answers none.
    passed: AtomicU64,
    over: AtomicBool,
    broken: AtomicBool,
}

impl Upload {
    /// Bytes of it that the model may have got.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn failed(&self, over: bool) {
        self.passed.store(0, Ordering::Relaxed);
        let what = if over { &self.over } else { &self.broken };
        what.store(true, Ordering::Relaxed);
    }

    fn fault(&self) -> Option<SendError> {
        let over = self.over.load(Ordering::Relaxed).then_some(SendError::TooLarge);
        over.or(self.broken.load(Ordering::Relaxed).then_some(SendError::BrokenOff))
    }
}

fn client(loopback: bool, extra: Vec<Certificate>) -> Result<Client, Refusal> {
    let builder = Client::builder()
        .tls_certs_merge(extra)
        .redirect(redirect::Policy::none())
        // A connection for each request: on one for all of them, whoever does not read an answer would hold up everybody's.
        .http1_only()
        // Answers pass as they are, whatever else in this program wants its client to unpack.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE);
    // A server on this host is not asked through the company's proxy, which would see the key.
    let builder = if loopback { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| Refusal::internal("the client for the model cannot be made", error))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
