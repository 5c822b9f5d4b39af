//! A body whose small pieces become large ones. git writes a pack in pieces of 8 KiB, and each costs every process between it and the
//! other side a turn.
//!
//! It waits for nothing that is not on its way: what has come is passed on when the tasks that are ready have had their turn, and whoever
//! writes the body has written what he can.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::yield_now;

/// How much is held at most, in bytes: with the size line of its chunk, what fits into one of a link's frames.
pub(crate) const LIMIT: usize = 60 * 1024;

/// See the module.
pub(crate) struct Batched<B: Body> {
    body: B,
    held: Held,
    /// What came after what is held: trailers or an error.
    after: Option<Result<Frame<Bytes>, B::Error>>,
    /// Nothing comes any more.
    over: bool,
    /// That of the other tasks, since something is held.
    turn: Option<Arc<Turn>>,
}

/// A turn of the tasks that are ready. hyper polls a body again and again within one turn of its own, so that only the runtime can tell.
#[derive(Default)]
struct Turn {
    over: AtomicBool,
    waits: AtomicWaker,
}

impl Turn {
    fn begin() -> Arc<Self> {
        let turn = Arc::new(Self::default());
        // The runtime wakes by this waker when it has seen to the others; outside of one that is at once.
        let waker = Waker::from(turn.clone());
        let _pending = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        turn
    }

    /// Whether it is over; wakes when it is.
    fn is_over(&self, cx: &Context<'_>) -> bool {
        self.waits.register(cx.waker());
        self.over.load(Ordering::Acquire)
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.over.store(true, Ordering::Release);
        self.waits.wake();
    }
}

/// What has come and was not passed on.
enum Held {
    /// One piece, as it came.
    One(Bytes),
    Several(BytesMut),
}

impl Held {
    const NOTHING: Self = Self::One(Bytes::new());

    fn len(&self) -> usize {
        match self {
            Self::One(piece) => piece.len(),
            Self::Several(pieces) => pieces.len(),
        }
    }

    fn add(&mut self, more: Bytes) {
        match self {
            Self::One(piece) if piece.is_empty() => *piece = more,
            Self::One(piece) => {
                let mut pieces = BytesMut::with_capacity(LIMIT);
                pieces.extend_from_slice(piece);
                pieces.extend_from_slice(&more);
                *self = Self::Several(pieces);
            }
            Self::Several(pieces) => pieces.extend_from_slice(&more),
        }
    }

    fn take(&mut self) -> Bytes {
        match std::mem::replace(self, Self::NOTHING) {
            Self::One(piece) => piece,
            Self::Several(pieces) => pieces.freeze(),
        }
    }
}

impl<B: Body> Batched<B> {
    pub(crate) fn new(body: B) -> Self {
        Self { body, held: Held::NOTHING, after: None, over: false, turn: None }
    }
}

impl<B> Body for Batched<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        while this.after.is_none() && !this.over {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(more) => {
                        let fits = this.held.len() + more.len() <= LIMIT;
                        if fits {
                            this.held.add(more);
                        } else {
                            let full = this.held.take();
                            this.held.add(more);
                            if !full.is_empty() {
                                return Poll::Ready(Some(Ok(Frame::data(full))));
                            }
                        }
                        if this.held.len() >= LIMIT {
                            break;
                        }
                    }
                    Err(trailers) => this.after = Some(Ok(trailers)),
                },
                Poll::Ready(Some(Err(error))) => this.after = Some(Err(error)),
                Poll::Ready(None) => this.over = true,
                Poll::Pending if this.held.len() == 0 => return Poll::Pending,
                Poll::Pending if this.turn.get_or_insert_with(Turn::begin).is_over(cx) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        this.turn = None;
        if this.held.len() > 0 {
            return Poll::Ready(Some(Ok(Frame::data(this.held.take()))));
        }
        Poll::Ready(this.after.take())
    }

    fn is_end_stream(&self) -> bool {
        self.held.len() == 0 && self.after.is_none() && (self.over || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, held) = (self.body.size_hint(), self.held.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper().and_then(|upper| upper.checked_add(held)) {
            all.set_upper(upper);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;

    use axum::body::Body as AxumBody;
    use futures_util::StreamExt;
    use http::{HeaderMap, Request, Response};
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    /// What a body does when it is polled.
    #[derive(Debug, Clone)]
    enum Step {
        Piece(usize),
        /// Nothing yet, but in the runtime's next round.
        Pending,
        Trailers,
        Error,
    }

    struct Scripted(VecDeque<Step>, u8);

    impl Body for Scripted {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            match self.0.pop_front() {
                Some(Step::Piece(length)) => {
                    self.1 = self.1.wrapping_add(1);
                    Poll::Ready(Some(Ok(Frame::data(vec![self.1; length].into()))))
                }
                Some(Step::Pending) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(Step::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
                Some(Step::Error) => Poll::Ready(Some(Err("broken"))),
                None => Poll::Ready(None),
            }
        }

        fn size_hint(&self) -> SizeHint {
            let pieces = self.0.iter().map(|step| if let Step::Piece(length) = step { *length as u64 } else { 0 });
            SizeHint::with_exact(pieces.sum())
        }
    }

    /// What is passed on of these steps.
    fn passed(steps: Vec<Step>) -> Vec<Result<Frame<Bytes>, &'static str>> {
        let mut body = Batched::new(Scripted(steps.into(), 0));
        let mut passed = Vec::new();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            loop {
                let expected = body.size_hint().exact();
                let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
                let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
                assert_eq!(body.size_hint().exact(), expected.map(|all| all - length), "what is held counts");
                passed.push(frame);
            }
        });
        assert!(body.is_end_stream());
        passed
    }

    #[test]
    fn what_is_there_is_passed_on_together_and_what_is_not_is_not_waited_for() {
        use Step::{Error, Pending, Piece, Trailers};
        let lengths = |steps: Vec<Step>| -> Vec<String> {
            let shown = |frame: Result<Frame<Bytes>, &str>| match frame.map(Frame::into_data) {
                Ok(Ok(piece)) => piece.len().to_string(),
                Ok(Err(_)) => "trailers".to_owned(),
                Err(error) => error.to_owned(),
            };
            passed(steps).into_iter().map(shown).collect()
        };
        assert_eq!(lengths(vec![Piece(1), Piece(2), Pending, Piece(3)]), ["6"]);
        assert_eq!(lengths([vec![Piece(1)], vec![Pending; 500], vec![Piece(2)]].concat()), ["1", "2"]);
        assert_eq!(lengths(vec![Pending, Piece(1)]), ["1"]);
        assert_eq!(lengths(vec![Piece(1), Piece(0), Error]), ["1", "broken"]);
        assert_eq!(lengths(vec![Piece(1), Trailers]), ["1", "trailers"]);
        assert_eq!(lengths(vec![Piece(8192); 10]), ["57344", "24576"]);
        assert_eq!(lengths(vec![Piece(LIMIT), Piece(1)]), [LIMIT.to_string(), "1".to_owned()]);
        assert_eq!(lengths(vec![Piece(1), Piece(LIMIT + 1)]), ["1".to_owned(), (LIMIT + 1).to_string()]);
        assert_eq!(lengths(vec![]), [""; 0]);
    }

    /// How many pieces the other side of a connection has of a body that another task writes in 64 small ones.
    async fn pieces_over_http(batched: bool) -> usize {
        let (here, there) = tokio::io::duplex(1024 * 1024);
        let (write, mut written) = mpsc::channel::<Bytes>(1);
        let writing = async move {
            for _ in 0..64 {
                write.send(Bytes::from_static(&[7; 8192])).await.unwrap();
            }
        };
        let pieces = futures_util::stream::poll_fn(move |cx| written.poll_recv(cx)).map(Ok::<_, Infallible>);
        let body = AxumBody::from_stream(pieces);
        let body = if batched { AxumBody::new(Batched::new(body)) } else { body };
        let count = hyper::service::service_fn(|request: Request<Incoming>| async {
            let (mut body, mut sizes) = (request.into_body(), Vec::new());
            while let Some(frame) = body.frame().await {
                sizes.push(frame.unwrap().into_data().unwrap().len());
            }
            assert_eq!(sizes.iter().sum::<usize>(), 64 * 8192);
            Ok::<_, Infallible>(Response::new(AxumBody::from(sizes.len().to_string())))
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(there), count);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(here)).await.unwrap();
        let counted = async move {
            let answer = sender.send_request(Request::post("/").body(body).unwrap()).await.unwrap();
            drop(sender);
            String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        };
        let serving = tokio::spawn(serving);
        let connection = tokio::spawn(connection);
        tokio::spawn(writing);
        let counted = counted.await.parse().unwrap();
        connection.await.unwrap().unwrap();
        serving.await.unwrap().unwrap();
        counted
    }

    #[tokio::test]
    async fn small_pieces_travel_together() {
        assert!(pieces_over_http(false).await >= 64);
        let batched = pieces_over_http(true).await;
        assert!(batched <= 16, "{batched}");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_passed_on_in_order(steps in prop::collection::vec(
            prop_oneof![(0..20_000_usize).prop_map(Step::Piece), Just(Step::Pending)], 0..40,
        )) {
            let mut expected = Vec::new();
            let lengths = steps.iter().filter_map(|step| if let Step::Piece(length) = step { Some(*length) } else { None });
            for (number, length) in (1_u8..).zip(lengths) {
                expected.extend(std::iter::repeat_n(number, length));
            }
            let pieces = passed(steps).into_iter().map(|frame| frame.unwrap().into_data().unwrap());
            prop_assert_eq!(pieces.collect::<Vec<_>>().concat(), expected);
        }
    }
}
