//! One HTTP/1.1 connection. Whoever waits for an answer drives the socket, so that a request costs no switch between
//! tasks. The only file that knows hyper's connections. Next: `cluster.rs`.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use hyper_util::rt::TokioIo;
use raftlet_machine::limits::REPLIES_BYTES_MAX;
use tokio::net::TcpStream;

use crate::node::Node;

/// Bytes of a response's body: the longest archive of replies, and room for the host's own in it.
const BODY_BYTES_MAX: usize = REPLIES_BYTES_MAX + (64 << 20);

pub(crate) type Request = hyper::Request<Full<Bytes>>;
type Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// A keep-alive connection; requests go one after the other.
pub(crate) struct Wire {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once it has ended.
    driver: Option<Driver>,
    host: HeaderValue,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The exchange failed; the connection is of no use any more.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The server may have the request.
    pub(crate) sent: bool,
    pub(crate) detail: String,
}

impl Wire {
    pub(crate) async fn connect(node: &Node, within: Duration) -> Result<Wire, String> {
        let connecting = async {
            let stream = TcpStream::connect(node.authority()).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())
        };
        let connected = tokio::time::timeout(within, connecting).await;
        let (sender, driver) = connected
            .unwrap_or_else(|_| Err(format!("no connection within {within:?}")))
            .map_err(|error| format!("can't connect to {node}: {error}"))?;
        Ok(Wire { sender, driver: Some(Box::pin(driver)), host: node.host().clone() })
    }

    /// Sends a request and reads the whole answer, without a time limit of its own. If this is dropped half way, the
    /// connection is of no use any more.
    pub(crate) async fn exchange(&mut self, mut request: Request) -> Result<Response, Broken> {
        request.headers_mut().insert(HOST, self.host.clone());
        let Wire { sender, driver, .. } = self;
        let exchange = async {
            let broken = |sent| move |error: hyper::Error| Broken { sent, detail: error.to_string() };
            sender.ready().await.map_err(broken(false))?;
            let response = sender.try_send_request(request).await.map_err(|mut error| {
                // hyper gives the request back if it wrote no byte of it.
                let sent = error.take_message().is_none();
                broken(sent)(error.into_error())
            })?;
            whole(response).await.map_err(|detail| Broken { sent: true, detail })
        };
        let mut exchange = pin!(exchange);
        poll_fn(|cx| drive(driver, exchange.as_mut(), cx)).await
    }

    /// Ends when the server ends the connection, which may only be asked while no exchange is under way.
    pub(crate) async fn closed(&mut self) {
        if let Some(driver) = &mut self.driver {
            // Whether with an error or without: it is of no use any more.
            let _ = driver.as_mut().await;
            self.driver = None;
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }
}

async fn whole(response: hyper::Response<Incoming>) -> Result<Response, String> {
    let (head, mut incoming) = response.into_parts();
    let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut body = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Ok(data) = frame.into_data() else { continue };
        if joined.len() + body.len() + data.len() > BODY_BYTES_MAX {
            return Err(format!("the answer is over {BODY_BYTES_MAX} bytes"));
        }
        // One piece is taken as it is; more are put together.
        if body.is_empty() && joined.is_empty() {
            body = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(length.unwrap_or(0).clamp(body.len() + data.len(), BODY_BYTES_MAX));
            joined.extend_from_slice(&std::mem::take(&mut body));
        }
        joined.extend_from_slice(&data);
    }
    let body = if joined.is_empty() { body } else { joined.freeze() };
    Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
}

/// Polls `exchange`, and the socket until neither gets any further. Each wakes the other through `cx` if it has to be
/// polled again, but asking at once saves the round through the scheduler.
fn drive<T>(
    driver: &mut Option<Driver>,
    mut exchange: Pin<&mut impl Future<Output = T>>,
    cx: &mut Context<'_>,
) -> Poll<T> {
    if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
        return Poll::Ready(done);
    }
    if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(cx).is_ready()) {
        // An error of the socket has reached the exchange by now, or does so by the drop.
        *driver = None;
    }
    exchange.poll(cx)
}
