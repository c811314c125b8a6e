//! One client's connection from its first byte to its last: finds out the protocol, lets hyper speak it, and ends it
//! when its time is over or the server stops. Knows no paths; `route.rs` comes next.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Api;
use super::metrics::Gauge;
use super::problem::Problem;
use super::pulse::{Expiry, Pulse, Watch};
use super::route::{self, Connection};
use super::server::{App, Room, Stage};
use super::wire::Wire;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read: most first requests fit, so that they cost no second one.
const FIRST_READ_BYTES: usize = 1024;

/// How long, and how many bytes, a client that is still sending is read after our last reply.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 << 20;

/// An HTTP/2 connection that was told to go away may take this long.
const GO_AWAY: Duration = Duration::from_secs(5);
/// HTTP/2: requests at once on one connection, and how far a client may send ahead of us.
const STREAMS_MAX: u32 = 128;
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// HTTP/2: a dead peer is noticed after both.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Something that is driven until it ends by itself.
trait Protocol {
    type Output;
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output>;
    /// Finish what is in flight, take nothing new, then end.
    fn drain(&mut self);
}

/// Why a connection didn't end by itself.
enum Cut {
    Expired(Expiry),
    /// The server stops.
    Stopped,
}

/// Serves one client. Ends when the connection has; the socket is closed then.
pub(super) async fn serve<A: Api>(socket: TcpStream, app: Arc<App<A>>) {
    let room = app.room.clone();
    let _open = Gauge::up(&room.metrics.connections_open);
    // Replies are written whole; waiting to fill a segment would only delay them.
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let _task = poll_fn(|cx| Poll::Ready(room.enlist(cx.waker()))).await;
    let pulse = Arc::new(Pulse::new());
    let timer = pin!(sleep(room.limits.idle_timeout));
    let mut watch = Watch::new(timer);

    let mut first =
        FirstBytes { socket, bytes: BytesMut::with_capacity(FIRST_READ_BYTES), pulse: &pulse, ended: false };
    let begun = drive(&mut first, &room, &pulse, &mut watch).await;
    let FirstBytes { socket, bytes, .. } = first;
    match begun {
        Ok(Some(Preface::Http1)) => serve_http1(socket, bytes.freeze(), app, &pulse, &mut watch).await,
        Ok(Some(Preface::Http2)) => {
            let wire = Wire::new(socket, bytes.freeze(), pulse.clone());
            serve_http2(wire, app, &pulse, &mut watch).await;
        }
        Ok(None) | Err(Cut::Stopped) => {}
        Err(Cut::Expired(expiry)) => expired(socket, &room, &pulse, expiry).await,
    }
}

async fn serve_http1<A: Api>(
    socket: TcpStream,
    prefix: Bytes,
    app: Arc<App<A>>,
    pulse: &Arc<Pulse>,
    watch: &mut Watch<'_>,
) {
    let room = app.room.clone();
    let mut builder = http1::Builder::new();
    // hyper's own header timeout would also end idle connections. Its `pipeline_flush` is not used: it holds a
    // finished reply back as long as any later byte is in the buffer, here for the time of a commit, or for ever if
    // the client waits for that reply.
    builder.header_read_timeout(None).max_header_size(room.limits.header_bytes_max);
    builder.max_buf_size(room.limits.header_bytes_max);
    // The default, 100, needs no allocation.
    if room.limits.headers_max != 100 {
        builder.max_headers(room.limits.headers_max);
    }
    let link = Arc::new(Connection { app, pulse: pulse.clone() });
    let service = service_fn(move |request| {
        let link = link.clone();
        async move { Ok::<_, Infallible>(route::answer(&link, request).await) }
    });
    let wire = Wire::new(socket, prefix, pulse.clone());
    let mut http = builder.serve_connection(wire, service);
    let end = drive(&mut http, &room, pulse, watch).await;
    let socket = http.into_parts().io.into_socket();
    match end {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_parse() => {
            room.metrics.protocol_errors.fetch_add(1, Relaxed);
            pulse.lingers.store(true, Relaxed);
        }
        // The client went away.
        Ok(Err(_)) | Err(Cut::Stopped) => return,
        Err(Cut::Expired(expiry)) => return expired(socket, &room, pulse, expiry).await,
    }
    close(socket, &room, pulse).await;
}

async fn serve_http2<A: Api>(wire: Wire, app: Arc<App<A>>, pulse: &Arc<Pulse>, watch: &mut Watch<'_>) {
    let room = app.room.clone();
    pulse.is_http2();
    let header_bytes_max = u32::try_from(room.limits.header_bytes_max).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(header_bytes_max)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let link = Arc::new(Connection { app, pulse: pulse.clone() });
    let service = service_fn(move |request| {
        let link = link.clone();
        async move { Ok::<_, Infallible>(route::answer(&link, request).await) }
    });
    let mut http = builder.serve_connection(wire, service);
    if let Err(Cut::Expired(Expiry::Write)) = drive(&mut http, &room, pulse, watch).await {
        room.metrics.write_timeouts.fetch_add(1, Relaxed);
    }
}

/// Polls `protocol` until it ends, its time is over, or the server stops.
async fn drive<P: Protocol>(
    protocol: &mut P,
    room: &Room,
    pulse: &Pulse,
    watch: &mut Watch<'_>,
) -> Result<P::Output, Cut> {
    let mut is_draining = false;
    let mut going = pin!(None);
    poll_fn(|cx| {
        loop {
            match room.stage() {
                Stage::Serving => {}
                Stage::Draining if is_draining => {}
                Stage::Draining => {
                    is_draining = true;
                    protocol.drain();
                }
                Stage::Cutting => return Poll::Ready(Err(Cut::Stopped)),
            }
            if let Poll::Ready(output) = protocol.poll_serve(cx) {
                return Poll::Ready(Ok(output));
            }
            if let Some(going) = going.as_mut().as_pin_mut() {
                let going: Pin<&mut tokio::time::Sleep> = going;
                ready!(going.poll(cx));
                return Poll::Ready(Err(Cut::Expired(Expiry::Idle)));
            }
            match ready!(watch.poll_expired(pulse, &room.limits, cx)) {
                Expiry::Idle => {
                    room.metrics.idle_timeouts.fetch_add(1, Relaxed);
                    is_draining = true;
                    protocol.drain();
                    going.set(Some(sleep(GO_AWAY)));
                }
                expiry => return Poll::Ready(Err(Cut::Expired(expiry))),
            }
        }
    })
    .await
}

/// What becomes of a socket whose client was too slow.
async fn expired(socket: TcpStream, room: &Room, pulse: &Pulse, expiry: Expiry) {
    match expiry {
        Expiry::Idle => {}
        Expiry::Write => {
            room.metrics.write_timeouts.fetch_add(1, Relaxed);
            // Else the operating system would keep the unread bytes for minutes.
            let _ = socket.set_zero_linger();
        }
        Expiry::Head => {
            room.metrics.head_timeouts.fetch_add(1, Relaxed);
            if !pulse.is_write_blocked() {
                // Nothing else is waiting to be sent, so this fits or the client doesn't read.
                let _ = socket.try_write(&head_too_slow());
                pulse.lingers.store(true, Relaxed);
                close(socket, room, pulse).await;
            }
        }
    }
}

/// There is no request yet that hyper could answer, so this reply is written by hand.
fn head_too_slow() -> Vec<u8> {
    let problem = Problem::head_too_slow();
    let body = problem.to_json();
    let mut reply = format!(
        "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n",
        problem.status,
        body.len()
    )
    .into_bytes();
    reply.extend_from_slice(&body);
    reply
}

/// Closes in the order that saves our last reply: stop writing, read what the client still sends, close. Closing a
/// socket with unread bytes resets the connection, and the client may lose the reply (RFC 9112 §9.6).
async fn close(mut socket: TcpStream, room: &Room, pulse: &Pulse) {
    if socket.shutdown().await.is_err() || !pulse.lingers.load(Relaxed) || room.stage() != Stage::Serving {
        return;
    }
    let _ = timeout(LINGER, async {
        let mut scrap = vec![0; 16 << 10];
        let mut left = LINGER_BYTES_MAX;
        while let Ok(bytes @ 1..) = socket.read(&mut scrap).await {
            left = left.saturating_sub(bytes);
            if left == 0 {
                return;
            }
        }
    })
    .await;
}

enum Preface {
    Http1,
    Http2,
}

/// Reads until the first bytes say which protocol it is. `None`: the client went away.
struct FirstBytes<'a> {
    socket: TcpStream,
    bytes: BytesMut,
    pulse: &'a Pulse,
    ended: bool,
}

impl FirstBytes<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [0; FIRST_READ_BYTES];
        let mut buf = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
        self.bytes.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl Protocol for FirstBytes<'_> {
    type Output = Option<Preface>;

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Option<Preface>> {
        while !self.ended {
            match ready!(self.poll_read(cx)) {
                Ok(1..) => self.pulse.received(),
                Ok(0) | Err(_) => return Poll::Ready(None),
            }
            let known = self.bytes.len().min(HTTP2_PREFACE.len());
            if self.bytes[..known] != HTTP2_PREFACE[..known] {
                return Poll::Ready(Some(Preface::Http1));
            }
            if known == HTTP2_PREFACE.len() {
                return Poll::Ready(Some(Preface::Http2));
            }
        }
        Poll::Ready(None)
    }

    fn drain(&mut self) {
        self.ended = true;
    }
}

impl<S> Protocol for http1::Connection<Wire, S>
where
    S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible>,
{
    type Output = hyper::Result<()>;

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(self).poll(cx)
    }

    fn drain(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<S> Protocol for http2::Connection<Wire, S, TokioExecutor>
where
    S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Output = hyper::Result<()>;

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(self).poll(cx)
    }

    fn drain(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}
