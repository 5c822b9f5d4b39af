//! Two ends of a link, and small servers and requests for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use link::{Closed, Hello, Limits, Link, Side, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// One end, its driver running.
pub struct End {
    pub link: Link,
    pub driver: AbortOnDropHandle<Closed>,
}

pub async fn end(io: DuplexStream, side: Side, router: Router, limits: Limits) -> End {
    let (link, driver) = open(io, side, Hello::current(), router, limits).await.unwrap();
    End { link, driver: AbortOnDropHandle::new(tokio::spawn(driver.run())) }
}

/// A gateway and a sled that are connected.
pub async fn pair(gateway: Router, sled: Router, limits: Limits) -> (End, End) {
    let (left, right) = tokio::io::duplex(16 * 1024);
    tokio::join!(end(left, Side::Gateway, gateway, limits), end(right, Side::Sled, sled, limits))
}

/// An end and a raw peer that has said a fitting hello and nothing more.
pub async fn against(side: Side, router: Router, limits: Limits) -> (End, DuplexStream) {
    let (ours, mut theirs) = tokio::io::duplex(512);
    let line = format!("{{\"musher\":{},\"version\":\"0.1.0\",\"role\":\"{}\"}}\n", link::PROTOCOL, side.other());
    let greet = async {
        theirs.write_all(line.as_bytes()).await.unwrap();
        while theirs.read_u8().await.unwrap() != b'\n' {}
    };
    let (end, ()) = tokio::join!(end(ours, side, router, limits), greet);
    (end, theirs)
}

pub fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

pub fn post(path: &str, body: Body) -> Request<Body> {
    Request::builder().method("POST").uri(path).body(body).unwrap()
}

pub async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// An endless stream of 4 KiB chunks, and how many bytes were taken of it.
pub fn endless() -> (impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let chunks = stream::repeat_with(move || {
        counter.fetch_add(4096, Ordering::Relaxed);
        Ok(Bytes::from_static(&[7; 4096]))
    });
    (chunks, taken)
}

/// Tells when it is dropped.
pub struct Dropped(Option<oneshot::Sender<()>>);

impl Dropped {
    pub fn new() -> (Self, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        (Self(Some(tell)), told)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            // Whoever waited may have given up.
            let _ = tell.send(());
        }
    }
}

/// One yamux frame.
pub fn frame(kind: u8, flags: u16, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, kind];
    frame.extend_from_slice(&flags.to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Reads one frame: its kind, flags, stream and body.
pub async fn read_frame(io: &mut DuplexStream) -> std::io::Result<(u8, u16, u32, Vec<u8>)> {
    let mut header = [0; 12];
    io.read_exact(&mut header).await?;
    let [_, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let mut body = vec![0; if kind == DATA { length as usize } else { 0 }];
    io.read_exact(&mut body).await?;
    Ok((kind, u16::from_be_bytes([f0, f1]), u32::from_be_bytes([s0, s1, s2, s3]), body))
}

pub const DATA: u8 = 0;
pub const WINDOW_UPDATE: u8 = 1;
pub const PING: u8 = 2;
pub const GO_AWAY: u8 = 3;
pub const SYN: u16 = 1;
pub const FIN: u16 = 4;
pub const RST: u16 = 8;
