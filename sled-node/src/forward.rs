//! An endpoint on the container's loopback whose requests go to the gateway over the newest link: `/x?y` here is `<prefix>/x?y` there.
//!
//! It holds no credential and no table of what is allowed: the gateway checks method and path. Bodies stream both ways at once; numbers and, where the
//! rules say so, sizes and idle time are bounded. How a refusal looks is the business of each endpoint.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use link::headers::strip_hop_by_hop;
use tokio::net::TcpListener;
use tokio::sync::{RwLock, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lingering::Lingering;
use crate::links::Links;

/// Where an endpoint's requests go, and how much of them there may be.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What stands before the path on the link.
    pub prefix: &'static str,
    /// What its requests are called in a refusal.
    pub of_what: &'static str,
    /// Requests at once, their answers' bodies included.
    pub requests: usize,
    /// Largest body of a request, in bytes.
    pub body_limit: Option<usize>,
    /// How long a request waits for a gateway. It keeps its place meanwhile, and its body stays with its client: also one whose client goes
    /// away before that, where its body is still to be read.
    pub link_patience: Duration,
    /// How long an exchange may go on without a byte from either side. A client that does not take its answer is not of that: it
    /// keeps a place of its own container.
    pub idle: Option<Duration>,
    /// The form of a refusal.
    pub refuse: fn(&Refusal) -> Response,
}

/// Requests pass while nobody holds it for writing.
pub type Gate = Arc<RwLock<()>>;

/// Why a request was not forwarded, or its answer is none.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It was sent to another name, as a web page can make a browser do (SEC-7).
    #[error("this endpoint answers to loopback names only")]
    Stranger,
    /// Its body is too long.
    #[error("the request is larger than {} MiB", .0 / (1024 * 1024))]
    TooLarge(usize),
    /// There is no place for it.
    #[error("too many {0} at once in this project")]
    TooMany(&'static str),
    /// No gateway came in time.
    #[error("no gateway is connected to this project: is musher running?")]
    NoGateway,
    /// Its path cannot follow the prefix.
    #[error("the path cannot be forwarded: {0}")]
    Path(#[from] http::uri::InvalidUri),
    /// The link gave no answer.
    #[error("the gateway gave no answer: {0}")]
    NoAnswer(#[from] link::RequestError),
    /// Nothing moved for too long.
    #[error("nothing was sent or answered for {} minutes", .0.as_secs() / 60)]
    Idle(Duration),
}

impl Refusal {
    /// The status that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Stranger => StatusCode::MISDIRECTED_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany(_) | Self::NoGateway => StatusCode::SERVICE_UNAVAILABLE,
            Self::Path(_) => StatusCode::BAD_REQUEST,
            Self::NoAnswer(_) => StatusCode::BAD_GATEWAY,
            Self::Idle(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

#[derive(Clone)]
struct Endpoint {
    links: Links,
    places: Arc<Semaphore>,
    rules: Rules,
    gate: Gate,
}

impl Endpoint {
    fn new(links: Links, rules: Rules, gate: Gate) -> Self {
        Self { links, places: Arc::new(Semaphore::new(rules.requests)), rules, gate }
    }
}

/// Serves an endpoint until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    links: Links,
    rules: Rules,
    gate: Gate,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new().fallback(answer).with_state(Endpoint::new(links, rules, gate));
    let served = axum::serve(Lingering(listener), router).into_future();
    tokio::select! {
        ended = served => ended,
        () = shutdown.cancelled() => Ok(()),
    }
}

async fn answer(State(endpoint): State<Endpoint>, request: Request<Body>) -> Response {
    let refuse = endpoint.rules.refuse;
    forward(endpoint, request).await.unwrap_or_else(|refusal| refuse(&refusal))
}

async fn forward(endpoint: Endpoint, request: Request<Body>) -> Result<Response, Refusal> {
    let rules = endpoint.rules;
    if !is_for_loopback(&request) {
        return Err(Refusal::Stranger);
    }
    if let Some(limit) = rules.body_limit.filter(|limit| request.body().size_hint().lower() > *limit as u64) {
        return Err(Refusal::TooLarge(limit));
    }
    let place = endpoint.places.try_acquire_owned().map_err(|_| Refusal::TooMany(rules.of_what))?;
    drop(endpoint.gate.read().await);
    let link = endpoint.links.newest(rules.link_patience).await.ok_or(Refusal::NoGateway)?;
    let watched = Watched::new(rules);
    let outbound = outbound(request, &watched)?;
    let response = tokio::select! {
        response = link.request(outbound) => response.map_err(|error| match rules.body_limit {
            Some(limit) if watched.over.load(Ordering::Relaxed) => Refusal::TooLarge(limit),
            _ => error.into(),
        })?,
        limit = watched.idle() => return Err(Refusal::Idle(limit)),
    };
    let (mut head, body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    let body = watched.until_idle(body.into_data_stream()).map(move |chunk| {
        let _until_the_end = &place;
        chunk
    });
    Ok(Response::from_parts(head, Body::from_stream(body)))
}

/// The same request as the gateway gets it.
fn outbound(request: Request<Body>, watched: &Watched) -> Result<Request<Body>, http::uri::InvalidUri> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    head.uri = Uri::try_from(format!("{}{path}", watched.rules.prefix))?;
    head.version = http::Version::HTTP_11;
    strip_hop_by_hop(&mut head.headers);
    let moved = watched.clone();
    let body = body.map_frame(move |frame| {
        moved.touch();
        frame
    });
    let body = match watched.rules.body_limit {
        None => Body::new(body),
        Some(limit) => {
            let over = watched.over.clone();
            Body::new(Limited::new(body, limit).map_err(move |error| {
                over.store(error.is::<http_body_util::LengthLimitError>(), Ordering::Relaxed);
                error
            }))
        }
    };
    Ok(Request::from_parts(head, body))
}

/// What is known of one exchange while it goes on.
#[derive(Clone)]
struct Watched {
    rules: Rules,
    /// Whether the request's body was longer than it may be.
    over: Arc<AtomicBool>,
    /// When something last moved.
    moved: Arc<Mutex<Instant>>,
}

impl Watched {
    fn new(rules: Rules) -> Self {
        Self { rules, over: Arc::default(), moved: Arc::new(Mutex::new(Instant::now())) }
    }

    fn touch(&self) {
        if self.rules.idle.is_some() {
            *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Waits until nothing has moved for the rules' time, for ever where they have none.
    async fn idle(&self) -> Duration {
        let Some(limit) = self.rules.idle else { return std::future::pending().await };
        loop {
            let until = *self.moved.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return limit;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// The same body, which fails when nothing moves for too long.
    fn until_idle<S, T, E>(&self, body: S) -> impl Stream<Item = Result<T, axum::BoxError>> + Send + use<S, T, E>
    where
        S: Stream<Item = Result<T, E>> + Send + Unpin + 'static,
        T: Send + 'static,
        E: Into<axum::BoxError> + 'static,
    {
        let watched = self.clone();
        // One timer for the whole body, not one for each chunk.
        let idle: Pin<Box<dyn Future<Output = Duration> + Send>> = Box::pin(async move { watched.idle().await });
        stream::unfold(Some((body, idle, self.clone())), async |going_on| {
            let (mut body, mut idle, watched) = going_on?;
            tokio::select! {
                biased;
                chunk = body.next() => {
                    watched.touch();
                    Some((chunk?.map_err(Into::into), Some((body, idle, watched))))
                }
                limit = &mut idle => Some((Err(Refusal::Idle(limit).into()), None)),
            }
        })
    }
}

/// Against web pages that make a browser ask for them under a name of their own (SEC-7).
fn is_for_loopback(request: &Request<Body>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let one = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    let is_loopback =
        |authority: &http::uri::Authority| matches!(authority.host(), "127.0.0.1" | "localhost" | "[::1]");
    one.and_then(|host| host.parse().ok()).is_some_and(|host| is_loopback(&host))
        && request.uri().authority().is_none_or(is_loopback)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use link::{Hello, Limits, Link, Side};

    use super::*;

    const RULES: Rules = Rules {
        prefix: "/there",
        of_what: "requests",
        requests: 1,
        body_limit: None,
        link_patience: Duration::from_mins(1),
        idle: Some(Duration::from_mins(10)),
        refuse: |refusal| (refusal.status(), refusal.to_string()).into_response(),
    };

    fn request(body: Body) -> Request<Body> {
        Request::builder().method("POST").uri("/x?y").header(header::HOST, "127.0.0.1").body(body).unwrap()
    }

    async fn text(response: Response) -> (StatusCode, String) {
        let status = response.status();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    /// An endpoint with a link to a gateway that serves `router`; the gateway's end lives as long as the link that is given back.
    async fn endpoint(router: Router) -> (Endpoint, Link) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sled.sock");
        let listener = crate::links::listen(&socket).unwrap();
        let links = Links::new();
        let serving = links.clone();
        tokio::spawn(async move { serving.serve(listener, Router::new(), CancellationToken::new()).await });
        let io = tokio::net::UnixStream::connect(&socket).await.unwrap();
        // A clock that jumps over the wait for an answer makes a peer look silent.
        let limits = Limits { ping_every: Duration::from_hours(1000), ..Limits::default() };
        let (link, driver) = link::open(io, Side::Gateway, Hello::current(), router, limits).await.unwrap();
        tokio::spawn(driver.run());
        links.newest(RULES.link_patience).await.unwrap();
        (Endpoint::new(links, RULES, Gate::default()), link)
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_gateway_the_wait_ends_with_a_word() {
        for (rules, patience) in [(crate::model::RULES, 9), (crate::git::RULES, 1)] {
            let began = Instant::now();
            let endpoint = Endpoint::new(Links::new(), rules, Gate::default());
            let (status, said) = text(answer(State(endpoint.clone()), request(Body::empty())).await).await;
            let waited = Duration::from_mins(patience);
            assert_eq!((status, began.elapsed()), (StatusCode::SERVICE_UNAVAILABLE, waited), "{}", rules.of_what);
            assert!(said.contains("no gateway is connected to this project: is musher running?"), "{said}");
            assert_eq!(endpoint.places.available_permits(), rules.requests, "its place is free again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_request_outlives_a_gateway_that_is_away_for_minutes() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sled.sock");
        let listener = crate::links::listen(&socket).unwrap();
        let links = Links::new();
        let serving = links.clone();
        tokio::spawn(async move { serving.serve(listener, Router::new(), CancellationToken::new()).await });
        let endpoint = Endpoint::new(links, crate::model::RULES, Gate::default());
        let asked = tokio::spawn(answer(State(endpoint), request(Body::from("a question"))));
        tokio::time::sleep(Duration::from_mins(8)).await;
        assert!(!asked.is_finished());
        // From here on in real time: a clock that jumps makes a peer look silent.
        tokio::time::resume();
        let echo = Router::new().route("/model/x", axum::routing::post(async |body: Body| body));
        let io = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let (_link, driver) = link::open(io, Side::Gateway, Hello::current(), echo, Limits::default()).await.unwrap();
        tokio::spawn(driver.run());
        assert_eq!(text(asked.await.unwrap()).await, (StatusCode::OK, "a question".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_move_is_given_up_and_its_place_is_free() {
        let idle = RULES.idle.unwrap();
        let silent = Watched::new(RULES);
        let began = Instant::now();
        assert_eq!((silent.idle().await, began.elapsed()), (idle, idle));

        // A byte on its way up keeps the answer waited for.
        let busy = Watched::new(RULES);
        let began = Instant::now();
        let uploads = async {
            for _ in 0..3 {
                tokio::time::sleep(idle / 2).await;
                busy.touch();
            }
        };
        tokio::join!(busy.idle(), uploads);
        assert_eq!(began.elapsed(), idle / 2 * 3 + idle);

        let body = stream::iter([Ok::<_, std::io::Error>("a")]).chain(stream::pending());
        let chunks: Vec<_> = Watched::new(RULES).until_idle(Box::pin(body)).collect().await;
        assert_eq!(chunks.len(), 2);
        assert_eq!(*chunks[0].as_ref().unwrap(), "a");
        assert_eq!(chunks[1].as_ref().unwrap_err().to_string(), "nothing was sent or answered for 10 minutes");
    }

    #[tokio::test]
    async fn both_bodies_stream_at_once_and_the_place_is_kept_to_their_end() {
        let echo = Router::new().route("/there/x", axum::routing::post(async |body: Body| body));
        let (endpoint, _link) = endpoint(echo).await;
        let (send, sent) = tokio::sync::mpsc::channel::<Result<&'static str, std::io::Error>>(1);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(sent));
        let response = answer(State(endpoint.clone()), request(body)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut echoed = response.into_body().into_data_stream();
        for piece in ["one", "two"] {
            send.send(Ok(piece)).await.unwrap();
            assert_eq!(echoed.next().await.unwrap().unwrap(), piece);
        }
        let (status, said) = text(answer(State(endpoint.clone()), request(Body::empty())).await).await;
        assert_eq!(
            (status, said.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "too many requests at once in this project")
        );
        drop(send);
        assert!(echoed.next().await.is_none());
        drop(echoed);
        assert_eq!(answer(State(endpoint), request(Body::empty())).await.status(), StatusCode::OK);
    }

    #[test]
    fn only_loopback_names_are_answered() {
        let table = [
            (&["127.0.0.1:2223"][..], true),
            (&["localhost"], true),
            (&["[::1]:2223"], true),
            (&["evil.example:2223"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["localhost@evil.example"], false),
            (&["127.0.0.1", "evil.example"], false),
            (&[], false),
        ];
        for (hosts, wanted) in table {
            let mut request = Request::new(Body::empty());
            for host in hosts {
                request.headers_mut().append(header::HOST, host.parse().unwrap());
            }
            assert_eq!(is_for_loopback(&request), wanted, "{hosts:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_stays_behind() {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/v1/messages?beta=true".parse().unwrap();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("host", "127.0.0.1:2223"),
            ("anthropic-version", "2023-06-01"),
        ] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let outbound = outbound(request, &Watched::new(RULES)).unwrap();
        assert_eq!(outbound.uri(), "/there/v1/messages?beta=true");
        let names: Vec<_> = outbound.headers().keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["anthropic-version"]);
    }
}
