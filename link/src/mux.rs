//! The link itself: yamux over a byte stream, HTTP/1.1 on each of its streams, both ways at once.
//!
//! [`Driver`] owns the byte stream and every task that serves the peer; [`Link`] only asks it for streams. It must not
//! know what a request means.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::map_response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::AsyncWriteExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, BufStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::batched::Batched;
use crate::guard::{self, Guard};
use crate::requests::paths;
use crate::{Hello, OpenError, Side, hello};

/// Bounds of one link. The most memory that a peer can make it hold is `(inbound_streams + outbound_streams + 64) × 256 KiB + window_growth` in
/// stream buffers, and two of 128 KiB and one of 60 KiB for each request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests of the peer served at once; a stream past it is reset.
    pub inbound_streams: usize,
    /// Requests of ours under way at once; further ones wait.
    pub outbound_streams: usize,
    /// Bytes by which the receive windows of all streams together may grow past 256 KiB each.
    pub window_growth: usize,
    /// Bytes of a request's or response's head, at least 8192; a longer one is refused.
    pub head_bytes: usize,
    /// Number of headers; more are refused.
    pub headers: usize,
    /// Time for the peer to send a request's whole head.
    pub head_timeout: Duration,
    /// Time for the peer to send its whole hello.
    pub hello_timeout: Duration,
    /// Time between pings. A peer of which nothing at all was heard for two whole intervals is gone.
    pub ping_every: Duration,
}

impl Default for Limits {
    /// Those of a gateway: whatever a project's agents and git ask at once comes in (200 streams of the model and more), and little goes out.
    fn default() -> Self {
        Self {
            inbound_streams: 384,
            outbound_streams: 64,
            window_growth: 16 * 1024 * 1024,
            head_bytes: 32 * 1024,
            headers: 64,
            head_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
        }
    }
}

/// Longest frame that this side sends, header and all, in bytes: what a pipe holds, and two of the engine's own buffers.
const FRAME_MAX: usize = 64 * 1024;

/// Longest body of one.
const DATA_MAX: usize = FRAME_MAX - guard::HEADER;

/// How much of a body is read, and written, at once: a whole frame and more. Bytes of a large transfer pass from task to task in pieces of this
/// size at most, and what costs is the passing.
const BODY_BUFFER: usize = 2 * FRAME_MAX;

/// Streams that yamux may still count although they are dropped, because their reset waits for the byte stream.
const LINGERING_STREAMS: usize = 64;

/// Whole intervals without a word after which the peer is gone.
const MISSED_PINGS: u32 = 2;

/// Why a link is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// This side closed it, or dropped its driver.
    #[error("closed by this side")]
    Local,
    /// The peer closed it, or its process ended.
    #[error("closed by the other side")]
    Peer,
    /// Nothing was heard of the peer for too long.
    #[error("the other side fell silent")]
    Silent,
    /// The peer broke the framing.
    #[error("the other side broke the protocol: {0}")]
    Protocol(&'static str),
    /// The byte stream failed.
    #[error("the byte stream failed: {0}")]
    Io(ErrorKind),
}

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The link is over.
    #[error("the link is closed")]
    Closed(#[from] Closed),
    /// The peer ended this request's stream without a response; the link itself goes on.
    #[error("the other side dropped the request")]
    Dropped,
    /// What came is no HTTP response within the bounds, or the request's own body failed.
    #[error("the exchange is not valid HTTP")]
    Http(#[source] hyper::Error),
}

/// What link, driver and guard know together.
pub(crate) struct Shared {
    peer: Hello,
    limits: Limits,
    reason: OnceLock<Closed>,
    closed: CancellationToken,
    reads: AtomicU64,
}

impl Shared {
    /// Ends the link; the first reason stands.
    pub(crate) fn close(&self, reason: Closed) {
        self.reason.get_or_init(|| reason);
        self.closed.cancel();
    }

    /// Notes that bytes came from the peer.
    pub(crate) fn heard(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the end of the link.
    async fn closed(&self) -> Closed {
        self.closed.cancelled().await;
        self.reason.get().cloned().unwrap_or(Closed::Local)
    }
}

/// Opens a link over `io`: hellos first, within `limits.hello_timeout`, then yamux.
///
/// Nothing moves until the driver runs; `router` serves what the peer asks. `GET /v1/ping` is answered by the link itself.
///
/// # Errors
/// - [`OpenError::Version`] and [`OpenError::Role`]: the peer said who it is, and the two cannot work together.
/// - [`OpenError::Garbage`]: what it said is no hello.
/// - [`OpenError::Silent`], [`OpenError::Timeout`] and [`OpenError::Io`]: no whole hello came, or ours could not be written.
pub async fn open<T>(
    mut io: T,
    side: Side,
    hello: Hello,
    router: Router,
    limits: Limits,
) -> Result<(Link, Driver), OpenError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = hello::exchange(&mut io, side, &hello, limits.hello_timeout).await?;
    // hyper insists on this much.
    let limits = Limits { head_bytes: limits.head_bytes.max(8192), ..limits };
    let shared = Arc::new(Shared {
        peer,
        limits,
        reason: OnceLock::new(),
        closed: CancellationToken::new(),
        reads: AtomicU64::new(0),
    });
    let (ask, asked) = mpsc::channel(limits.outbound_streams.max(1));
    let link = Link { shared: shared.clone(), outbound: Arc::new(Semaphore::new(limits.outbound_streams)), ask };
    // yamux reads and writes a frame's header by itself. Below a link lie a pipe, the engine and one more process, each of which would pass
    // twelve bytes on as a message of their own.
    let buffered: Box<dyn ByteStream> = Box::new(BufStream::with_capacity(FRAME_MAX, FRAME_MAX, io));
    let streams = limits.inbound_streams + limits.outbound_streams + LINGERING_STREAMS;
    let mut config = yamux::Config::default();
    // Streams first: each setter checks that every stream has its 256 KiB.
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(streams);
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize + limits.window_growth));
    config.set_split_send_size(DATA_MAX);
    let mode = match side {
        Side::Gateway => yamux::Mode::Client,
        Side::Sled => yamux::Mode::Server,
    };
    let driver = Driver {
        mux: Mux {
            yamux: yamux::Connection::new(Guard::new(buffered, shared).compat(), config, mode),
            asked,
            waiting: None,
        },
        serving: JoinSet::new(),
        inbound: Arc::new(Semaphore::new(limits.inbound_streams)),
        router: Router::new()
            .route(paths::PING, get(async || StatusCode::NO_CONTENT))
            .fallback_service(router)
            .layer(map_response(async |answer: Response<Body>| answer.map(|body| Body::new(Batched::new(body))))),
        link: link.clone(),
    };
    Ok((link, driver))
}

/// The handle by which this side sends requests; cheap to clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    outbound: Arc<Semaphore>,
    ask: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
}

impl Link {
    /// Sends a request on a stream of its own and waits for the response's head; bodies stream both ways, each held back by its reader.
    ///
    /// There is no time limit: a handler may think as long as it likes while its process lives. Dropping this future, or the response's body,
    /// gives the stream up, and the peer's handler is dropped.
    ///
    /// # Errors
    /// - [`RequestError::Closed`]: the link is over, or ended meanwhile.
    /// - [`RequestError::Dropped`]: the peer ended this stream before the response's head: it serves too many, or its handler is gone.
    /// - [`RequestError::Http`]: the head is no HTTP or out of [`Limits`], or the request's own body failed.
    ///
    /// Whether the peer has acted on it is not known then. A response of whatever status is none of them; what goes wrong after its head is
    /// an error of its body.
    pub async fn request(&self, mut request: Request<Body>) -> Result<Response<Body>, RequestError> {
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("link"));
        tokio::select! {
            biased;
            reason = self.shared.closed() => Err(reason.into()),
            response = self.exchange(request) => response,
        }
    }

    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.shared.peer
    }

    /// Waits until the link is over, whoever ended it, and says why.
    pub async fn closed(&self) -> Closed {
        self.shared.closed().await
    }

    /// Ends the link: the driver returns, and what is under way on either side fails.
    pub fn close(&self) {
        self.shared.close(Closed::Local);
    }

    /// Why the link is over, if it is.
    pub(crate) fn close_reason(&self) -> Option<Closed> {
        self.shared.reason.get().cloned()
    }

    async fn exchange(&self, request: Request<Body>) -> Result<Response<Body>, RequestError> {
        // Neither can fail while the link is open: the semaphore is never closed, and the driver marks the link before it goes.
        let permit = self.outbound.clone().acquire_owned().await.map_err(|_| Closed::Local)?;
        let (give, stream) = oneshot::channel();
        self.ask.send(give).await.map_err(|_| Closed::Local)?;
        let stream = stream.await.map_err(|_| Closed::Local)?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_header_size(self.shared.limits.head_bytes)
            .max_buf_size(BODY_BUFFER.max(self.shared.limits.head_bytes))
            .max_headers(self.shared.limits.headers)
            .handshake(TokioIo::new(stream.compat()))
            .await
            .map_err(|error| self.failed(error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a request's stream ended early");
            }
        }));
        let response = sender.send_request(request.map(Batched::new)).await.map_err(|error| self.failed(error))?;
        Ok(response.map(|body| Body::new(ResponseBody { body, _connection: connection })))
    }

    fn failed(&self, error: hyper::Error) -> RequestError {
        match self.close_reason() {
            Some(reason) => reason.into(),
            None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => RequestError::Dropped,
            None => RequestError::Http(error),
        }
    }
}

/// A response's body, which keeps its stream alive and gives it up when dropped.
struct ResponseBody {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Carries the link's bytes and serves the peer's requests, for as long as it runs. Dropping it ends everything.
pub struct Driver {
    mux: Mux,
    serving: JoinSet<()>,
    inbound: Arc<Semaphore>,
    router: Router,
    link: Link,
}

/// yamux, and who waits for a stream of it.
struct Mux {
    yamux: yamux::Connection<Compat<Guard<Box<dyn ByteStream>>>>,
    asked: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    waiting: Option<oneshot::Sender<yamux::Stream>>,
}

/// What a poll of the multiplexer brought.
enum Event {
    Inbound(yamux::Stream),
    Opened,
    Over(Option<yamux::ConnectionError>),
}

impl Mux {
    /// Moves bytes, takes streams of the peer, and opens those that the link asks for.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.yamux.poll_next_inbound(cx) {
            Poll::Ready(Some(Ok(stream))) => return Poll::Ready(Event::Inbound(stream)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Over(Some(error))),
            Poll::Ready(None) => return Poll::Ready(Event::Over(None)),
            Poll::Pending => {}
        }
        while self.waiting.as_ref().is_none_or(oneshot::Sender::is_closed) {
            match self.asked.poll_recv(cx) {
                Poll::Ready(Some(give)) => self.waiting = Some(give),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
        match self.yamux.poll_new_outbound(cx) {
            Poll::Ready(Ok(stream)) => {
                // Whoever asked may be gone by now: then the stream is dropped here, unused.
                if let Some(Err(unused)) = self.waiting.take().map(|give| give.send(stream)) {
                    drop(unused);
                }
                Poll::Ready(Event::Opened)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Event::Over(Some(error))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Driver {
    /// Runs the link to its end and says why it ended.
    pub async fn run(mut self) -> Closed {
        let shared = self.link.shared.clone();
        let every = shared.limits.ping_every;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reads, mut missed) = (0, 0);
        loop {
            tokio::select! {
                reason = shared.closed() => return reason,
                event = std::future::poll_fn(|cx| self.mux.poll(cx)) => match event {
                    Event::Inbound(stream) => self.serve(stream),
                    Event::Opened => {}
                    Event::Over(error) => {
                        tracing::debug!(?error, "the multiplexer ended");
                        // The guard has named most reasons by now; this stands for the rest.
                        shared.close(match error {
                            None => Closed::Peer,
                            Some(yamux::ConnectionError::TooManyStreams) => Closed::Protocol("it does not take the ends of streams"),
                            Some(_) => Closed::Protocol("the multiplexer gave up"),
                        });
                    }
                },
                Some(ended) = self.serving.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!("a handler of the link panicked");
                    }
                }
                _ = ticks.tick() => {
                    let now = shared.reads.load(Ordering::Relaxed);
                    missed = if now == reads { missed + 1 } else { 0 };
                    reads = now;
                    if missed == MISSED_PINGS {
                        shared.close(Closed::Silent);
                    } else {
                        self.ping();
                    }
                }
            }
        }
    }

    /// Serves one request of the peer; a stream past the limit is dropped, which resets it.
    fn serve(&mut self, mut stream: yamux::Stream) {
        let Ok(permit) = self.inbound.clone().try_acquire_owned() else {
            tracing::warn!("refused a stream: the peer has too many open");
            return;
        };
        let limits = self.link.shared.limits;
        let router = TowerToHyperService::new(self.router.clone());
        self.serving.spawn(async move {
            let _permit = permit;
            // yamux acknowledges a stream by the first frame on it, and the peer opens no more than 256 that are not acknowledged. A handler
            // may think for long before its first byte: an empty frame now keeps that from holding up the peer's other requests.
            if let Err(error) = stream.write(&[]).await {
                tracing::debug!(%error, "a stream of the peer ended at once");
                return;
            }
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.head_timeout)
                .max_header_size(limits.head_bytes)
                .max_buf_size(BODY_BUFFER.max(limits.head_bytes))
                .max_headers(limits.headers)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream.compat()), router);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a request of the peer ended early");
            }
        });
    }

    /// Makes the peer say something. What counts is that bytes come, not what they are.
    fn ping(&mut self) {
        let link = self.link.clone();
        let limit = link.shared.limits.ping_every;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = http::Uri::from_static(paths::PING);
        self.serving.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(limit, link.request(request)).await {
                tracing::debug!(%error, "a ping was not answered");
            }
        });
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.link.shared.close(Closed::Local);
    }
}
