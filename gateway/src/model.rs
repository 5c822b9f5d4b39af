//! The model's endpoint, as sleds reach it: a fixed table of method and path, the credential added on the way out (SEC-3).
//!
//! Requests come over a project's link and are the word of that project's code. The key never travels the other way.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, Limited};
use reqwest::{Certificate, Client, Url, redirect};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::refusal::Refusal;

/// The prefix under which sleds ask for the model.
pub const PREFIX: &str = "/model";
/// The largest body of a request, in bytes: what the public API takes.
const REQUEST_MAX: usize = 32 * 1024 * 1024;
/// Requests that one project may have under way.
const AT_ONCE: usize = 64;
/// How long connecting to the model may take.
const CONNECT: Duration = Duration::from_secs(30);
/// The longest silence within an answer.
const SILENCE: Duration = Duration::from_mins(10);

/// How the key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `x-api-key: …`
    ApiKey,
    /// `authorization: Bearer …`
    Bearer,
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

/// The model's endpoint.
pub struct Model {
    client: Client,
    base: Url,
    auth: Auth,
    key: Key,
    headers: HeaderMap,
}

impl Model {
    /// An endpoint at `base`, to whose requests `headers` are added; certificates of the authorities in `extra_pem`
    /// are trusted beside the host's own.
    pub fn new(base: Url, auth: Auth, key: Key, headers: HeaderMap, extra_pem: Option<&[u8]>) -> Result<Self, Refusal> {
        let extra = extra_pem.map(Certificate::from_pem_bundle).transpose().map_err(|error| {
            Refusal::internal("the certificates in `[images] extra_ca_certificates` cannot be read", error)
        })?;
        let client = Client::builder()
            .tls_certs_merge(extra.unwrap_or_default())
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| Refusal::internal("the client for the model cannot be made", error))?;
        Ok(Self { client, base, auth, key, headers })
    }

    /// What one project's sled may ask; anything else is not found.
    pub fn router(self: &Arc<Self>) -> Router {
        let door = Arc::new(Door { model: Arc::clone(self), places: Arc::new(Semaphore::new(AT_ONCE)) });
        Router::new()
            .route("/model/v1/messages", post(forward))
            .route("/model/v1/messages/count_tokens", post(forward))
            .with_state(door)
    }

    async fn send(&self, request: Request) -> Result<reqwest::Response, Response> {
        let (parts, body) = request.into_parts();
        let mut url = self.base.clone();
        let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url.set_query(parts.uri.query());
        let mut headers = passed_on(&parts.headers);
        headers.extend(self.headers.clone());
        let (name, value) = self.credential().map_err(|(status, message)| refused(status, message))?;
        headers.insert(name, value);
        if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, length.clone());
        }
        let body = reqwest::Body::wrap_stream(Limited::new(body, REQUEST_MAX).into_data_stream());
        self.client.request(parts.method, url).headers(headers).body(body).send().await.map_err(|error| {
            warn!(%error, "the model was not reached");
            let why = if error.is_timeout() { "did not answer in time" } else { "could not be reached" };
            refused(StatusCode::BAD_GATEWAY, &format!("the model {why} from the gateway"))
        })
    }

    fn credential(&self) -> Result<(HeaderName, HeaderValue), (StatusCode, &'static str)> {
        let key = self.key.read().map_err(|error| {
            warn!(%error, "the model key cannot be read");
            (StatusCode::SERVICE_UNAVAILABLE, "the gateway cannot read the model key")
        })?;
        let key =
            key.filter(|key| !key.is_empty()).ok_or((StatusCode::UNAUTHORIZED, "the gateway has no model key"))?;
        let (name, text) = match self.auth {
            Auth::ApiKey => (HeaderName::from_static("x-api-key"), key),
            Auth::Bearer => (header::AUTHORIZATION, format!("Bearer {key}")),
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "the model key contains characters that a header cannot"))?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

struct Door {
    model: Arc<Model>,
    places: Arc<Semaphore>,
}

async fn forward(State(door): State<Arc<Door>>, request: Request) -> Response {
    let Ok(place) = Arc::clone(&door.places).try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "too many requests of this project are under way");
    };
    match door.model.send(request).await {
        Ok(answer) => {
            let (status, headers) = (answer.status(), passed_on(answer.headers()));
            // The place is given back when the body has been read, or nobody wants it any more.
            let body = futures_util::stream::unfold((answer, place), |(mut answer, place)| async move {
                match answer.chunk().await {
                    Ok(Some(chunk)) => Some((Ok(chunk), (answer, place))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), (answer, place))),
                }
            });
            (status, headers, Body::from_stream(body)).into_response()
        }
        Err(refusal) => refusal,
    }
}

/// The headers that may pass: neither those of one connection (RFC 9110, 7.6.1), nor credentials, nor the target.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    const DROPPED: [HeaderName; 13] = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::HOST,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::CONTENT_LENGTH,
        header::EXPECT,
    ];
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()).collect::<Vec<_>>())
        .collect();
    let passes = |name: &HeaderName| {
        !DROPPED.contains(name)
            && !["keep-alive", "x-api-key", "proxy-connection"].contains(&name.as_str())
            && !named.iter().any(|dropped| dropped == name.as_str())
    };
    headers.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// An error in the form that agents show to people.
fn refused(status: StatusCode, message: &str) -> Response {
    let body = json!({ "type": "error", "error": { "type": "musher_error", "message": format!("musher: {message}") } });
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use tower::ServiceExt;

    use super::*;

    /// A provider that answers with what it was sent, a redirect where the body wants one.
    async fn provider() -> Url {
        async fn echo(request: Request) -> Response {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("it can be read").to_bytes();
            if body == "redirect" {
                return (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response();
            }
            let headers: Vec<_> = parts
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                .collect();
            let answer = format!("{} {}\n{}\n{}", parts.method, parts.uri, headers.join("\n"), body.len());
            ([("set-cookie", "a=b"), ("request-id", "7")], answer).into_response()
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
        Url::parse(&format!("http://{address}/base/")).expect("it is an address")
    }

    async fn ask(
        model: &Arc<Model>,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> (StatusCode, HeaderMap, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "evil")
            .header("authorization", "Bearer inside")
            .header("x-api-key", "inside")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("anthropic-version", "2023-06-01")
            .body(Body::from(body))
            .expect("it is a request");
        let response = model.router().oneshot(request).await.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("it can be read").to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).expect("it is text"))
    }

    fn model(base: Url, key: Key) -> Arc<Model> {
        Arc::new(Model::new(base, Auth::ApiKey, key, HeaderMap::new(), None).expect("a client can be made"))
    }

    #[tokio::test]
    async fn the_credential_is_replaced_and_only_the_table_passes() {
        let model = model(provider().await, Key::Given("outside".into()));
        let (status, headers, seen) = ask(&model, Method::POST, "/model/v1/messages?beta=true", "hello").await;
        assert_eq!(status, StatusCode::OK);
        assert!(seen.starts_with("POST /base/v1/messages?beta=true\n"), "{seen}");
        assert!(
            seen.contains("x-api-key: outside")
                && seen.contains("anthropic-version: 2023-06-01")
                && seen.ends_with("\n5"),
            "{seen}"
        );
        assert!(!seen.contains("inside") && !seen.contains("evil") && !seen.contains("x-hop"), "{seen}");
        assert!(headers.contains_key("request-id") && !headers.contains_key("set-cookie"));

        for (method, path) in [
            (Method::GET, "/model/v1/messages"),
            (Method::POST, "/model/v1/files"),
            (Method::POST, "/model/v1/messages/../files"),
            (Method::POST, "/v1/messages"),
        ] {
            let (status, _, seen) = ask(&model, method, path, "").await;
            assert!(status.is_client_error() && !seen.contains("outside"), "{path}: {status}");
        }
        let (status, headers, _) = ask(&model, Method::POST, "/model/v1/messages", "redirect").await;
        assert_eq!(status, StatusCode::FOUND, "a redirect is not followed");
        assert!(headers.contains_key("location"));
    }

    #[tokio::test]
    async fn without_a_key_nothing_is_sent() {
        let (status, _, seen) =
            ask(&model(provider().await, Key::None), Method::POST, "/model/v1/messages", "hello").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(seen.contains("no model key"), "{seen}");
    }
}
