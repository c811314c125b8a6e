//! The admin listener: `GET /_/snapshot` streams a backup, `POST /_/snapshot` makes a snapshot. A listener of its own,
//! so that whoever may use the service need not be allowed to copy all of it. A stream takes as long as it takes; a
//! client that takes nothing is cut. Decides nothing about snapshots: that is behind [`Admin`].

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::problem::Problem;
use super::reply::{RAFTLET_INDEX, RAFTLET_TERM};

const SNAPSHOT: &str = "/_/snapshot";
/// At the same time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 16;
/// A connection on which nothing moves for this long is cut: no head, no reader, nothing asked.
const STILL: Duration = Duration::from_secs(30);
/// How exactly that is kept.
const STILL_POLL: Duration = Duration::from_secs(1);
/// Read from the disk, and waiting for the client: so many pieces of so many bytes.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_AHEAD: usize = 2;
const HEADER_BYTES_MAX: usize = 16 << 10;
/// After an accept error (no file descriptors left, most often).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What this listener asks of the node. The text of an error is for operators; the request may be repeated.
pub trait Admin: Send + Sync + 'static {
    /// A snapshot that has all that was acknowledged by any node before the call.
    fn snapshot(&self) -> impl Future<Output = Result<Backup, String>> + Send;
    /// Returns when so many bytes of it may be sent.
    fn pace(&self, bytes: u64) -> impl Future<Output = ()> + Send;
}

/// A whole snapshot that can be streamed.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Identifies its bytes.
    pub name: String,
    /// Of the last entry in it.
    pub index: u64,
    pub term: u64,
    pub bytes: u64,
    pub file: Arc<File>,
}

/// Serves operators until it is dropped, which cuts all connections.
pub struct AdminServer {
    _accepting: JoinSet<()>,
}

impl AdminServer {
    /// Must be called on a tokio runtime.
    pub fn start<A: Admin>(listener: TcpListener, admin: Arc<A>) -> AdminServer {
        let mut accepting = JoinSet::new();
        accepting.spawn(accept_all(listener, admin));
        AdminServer { _accepting: accepting }
    }
}

async fn accept_all<A: Admin>(listener: TcpListener, admin: Arc<A>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((socket, _)) => {
                let admin = admin.clone();
                connections.spawn(async move {
                    connection(socket, admin).await;
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!("can't accept on the admin listener: {e}");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// When something last moved on a connection.
struct Motion {
    epoch: Instant,
    last_ms: AtomicU64,
}

impl Motion {
    fn moved(&self) {
        self.last_ms.store(self.epoch.elapsed().as_millis() as u64, Relaxed);
    }

    /// Returns when nothing has moved for [`STILL`].
    async fn ended(&self) {
        while (self.epoch.elapsed().as_millis() as u64).saturating_sub(self.last_ms.load(Relaxed))
            < STILL.as_millis() as u64
        {
            tokio::time::sleep(STILL_POLL).await;
        }
    }
}

async fn connection<A: Admin>(socket: TcpStream, admin: Arc<A>) {
    let motion = Arc::new(Motion { epoch: Instant::now(), last_ms: AtomicU64::new(0) });
    let moved = motion.clone();
    let service = service_fn(move |request| {
        let (admin, motion) = (admin.clone(), moved.clone());
        async move { Ok::<_, Infallible>(answer(admin, motion, request).await) }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(STILL)
        .keep_alive(false)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        ended = http => if let Err(e) = ended {
            tracing::debug!("an admin connection ended: {e}");
        },
        () = motion.ended() => tracing::warn!("an admin connection on which nothing moved for {STILL:?} was cut"),
    }
}

async fn answer<A: Admin>(admin: Arc<A>, motion: Arc<Motion>, request: Request<Incoming>) -> Response<Content> {
    let problem = |problem: Problem| {
        problem.into_reply(HeaderMap::new(), request.version(), false).map(|mut full| {
            let whole = futures_util::FutureExt::now_or_never(http_body_util::BodyExt::frame(&mut full));
            Content::Whole(whole.flatten().and_then(Result::ok).and_then(|f| f.into_data().ok()))
        })
    };
    if request.uri().path() != SNAPSHOT {
        return problem(Problem::not_found(request.uri().path()));
    }
    if ![Method::GET, Method::POST].contains(request.method()) {
        return problem(Problem::method_not_allowed(request.method().as_str(), "GET, POST"));
    }
    let made = {
        // It takes its time, which is bounded by itself.
        let mut made = std::pin::pin!(admin.snapshot());
        loop {
            match tokio::time::timeout(STILL_POLL, made.as_mut()).await {
                Ok(made) => break made,
                Err(_) => motion.moved(),
            }
        }
    };
    motion.moved();
    match made {
        Err(why) => problem(Problem::not_ready(why)),
        Ok(backup) if request.method() == Method::POST => made_known(&backup),
        Ok(backup) => {
            tracing::info!("streaming the snapshot {} ({} bytes) to an operator", backup.name, backup.bytes);
            stream(admin, motion, backup)
        }
    }
}

/// What a snapshot is called, without its bytes.
#[derive(Serialize)]
struct Known<'a> {
    index: u64,
    term: u64,
    name: &'a str,
    bytes: u64,
}

fn made_known(backup: &Backup) -> Response<Content> {
    let known = Known { index: backup.index, term: backup.term, name: &backup.name, bytes: backup.bytes };
    let json = serde_json::to_vec(&known).expect("strings and numbers can always be written as JSON");
    let mut reply = Response::new(Content::Whole(Some(json.into())));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn stream<A: Admin>(admin: Arc<A>, motion: Arc<Motion>, backup: Backup) -> Response<Content> {
    let (pieces, taken) = mpsc::channel(PIECES_AHEAD);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, backup.bytes.into());
    headers.insert(RAFTLET_INDEX, backup.index.into());
    headers.insert(RAFTLET_TERM, backup.term.into());
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", backup.name)) {
        headers.insert(ETAG, tag);
    }
    let bytes = backup.bytes;
    tokio::spawn(async move {
        let mut at = 0;
        while at < backup.bytes {
            let length = (backup.bytes - at).min(PIECE_BYTES as u64);
            admin.pace(length).await;
            let read = read(backup.file.clone(), at, length as usize).await;
            at += length;
            let failed = read.is_err();
            // The client is gone, or the file can't be read: the client sees a body that is too short.
            if pieces.send(read).await.is_err() || failed {
                return;
            }
            motion.moved();
        }
    });
    let mut reply = Response::new(Content::Pieces { taken, left: bytes });
    *reply.headers_mut() = headers;
    reply
}

async fn read(file: Arc<File>, at: u64, length: usize) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, at)?;
        Ok::<_, io::Error>(Bytes::from(buffer))
    });
    read.await.map_err(io::Error::other)?
}

/// A reply's body.
enum Content {
    Whole(Option<Bytes>),
    Pieces { taken: mpsc::Receiver<io::Result<Bytes>>, left: u64 },
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Pieces { left: 0, .. } => Poll::Ready(None),
            Content::Pieces { taken, left } => Poll::Ready(match ready!(taken.poll_recv(cx)) {
                Some(Ok(piece)) => {
                    *left -= (piece.len() as u64).min(*left);
                    Some(Ok(Frame::data(piece)))
                }
                Some(Err(e)) => Some(Err(e)),
                None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Content::Whole(None) | Content::Pieces { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Content::Whole(bytes) => bytes.as_ref().map_or(0, |b| b.len() as u64),
            Content::Pieces { left, .. } => *left,
        })
    }
}
