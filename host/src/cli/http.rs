//! The HTTP client of the command line: one keep-alive HTTP/1.1 connection at a time, on hyper. With
//! `http2.rs` the only file of `cli/` that knows hyper. Opens no connection pool and follows no redirect.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use raftlet_machine::IDEMPOTENCY_KEY;
use tokio::net::TcpStream;

pub use hyper::{Method, StatusCode};

type Wire = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// `http://HOST:PORT`: where a node's client listener is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    authority: String,
}

/// Status and whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: StatusCode,
    pub body: Bytes,
}

/// What comes before a body that is taken in pieces.
#[derive(Debug, Clone)]
pub struct Head {
    pub status: StatusCode,
    /// Of the body, if the server says it.
    pub bytes: Option<u64>,
    /// The beginning of the body, if the status is not 200.
    pub refusal: Vec<u8>,
}

/// A refusal's body is kept up to here.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// A keep-alive connection. Requests go one after the other; the socket is driven by whoever waits for the answer, so
/// that a request costs no switch between tasks.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once it has ended: an exchange learns of it only when the wire is dropped.
    wire: Option<Pin<Box<Wire>>>,
    host: HeaderValue,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Url> {
        let uri: hyper::Uri = text.parse().map_err(|e| anyhow!("{text:?} is no URL ({e}); give http://HOST:PORT"))?;
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            bail!("{text:?}: only http:// is spoken");
        }
        let authority = uri.authority().ok_or_else(|| anyhow!("{text:?} has no host; give http://HOST:PORT"))?;
        if uri.path_and_query().is_some_and(|p| p.as_str() != "/") {
            bail!("{text:?}: give http://HOST:PORT, without a path");
        }
        Ok(Url::new(authority.host(), authority.port_u16().unwrap_or(80)))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl Url {
    pub fn new(host: &str, port: u16) -> Url {
        Url { authority: format!("{host}:{port}") }
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Connects without a time limit of its own.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(&self.authority).await.with_context(|| format!("can't connect to {self}"))?;
        stream.set_nodelay(true)?;
        let (sender, wire) = http1::handshake(TokioIo::new(stream)).await?;
        let host = HeaderValue::from_str(&self.authority)?;
        Ok(Connection { sender, wire: Some(Box::pin(wire)), host })
    }

    /// One GET on a connection of its own, all within `timeout`.
    pub async fn get(&self, path: &str, timeout: Duration) -> anyhow::Result<Response> {
        let answer = tokio::time::timeout(timeout, async {
            let mut connection = self.connect().await?;
            let mut body = BytesMut::new();
            let status = connection.send(Method::GET, path, Bytes::new(), &mut body).await?;
            Ok(Response { status, body: body.freeze() })
        });
        answer.await.unwrap_or_else(|_| Err(anyhow!("{self}{path}: no answer within {timeout:?}")))
    }

    /// One GET whose body is handed to `sink` piece by piece. Its head must come within `answer_within`; the body may
    /// take as long as it takes, but not be silent for longer than `silence`. An error if the body ends too early.
    pub async fn download(
        &self,
        path: &str,
        answer_within: Duration,
        silence: Duration,
        mut sink: impl FnMut(&Head, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Head> {
        let silent = |_| anyhow!("{self}{path}: silent for {silence:?}");
        let stream = tokio::time::timeout(silence, TcpStream::connect(&self.authority)).await.map_err(silent)?;
        let stream = stream.with_context(|| format!("can't connect to {self}"))?;
        let (mut sender, wire) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = hyper::Request::new(Full::<Bytes>::default());
        *request.uri_mut() = path.parse()?;
        request.headers_mut().insert(HOST, HeaderValue::from_str(&self.authority)?);
        let exchange = async {
            let late = |_| anyhow!("{self}{path}: no answer within {answer_within:?}");
            let response = tokio::time::timeout(answer_within, sender.send_request(request)).await.map_err(late)?;
            let mut response = response.with_context(|| format!("{self}{path}"))?;
            let length = response.headers().get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
            let mut head = Head { status: response.status(), bytes: length, refusal: Vec::new() };
            while let Some(frame) = tokio::time::timeout(silence, response.frame()).await.map_err(silent)? {
                let frame = frame.with_context(|| format!("{self}{path} broke off"))?;
                let Some(data) = frame.data_ref() else { continue };
                if head.status != StatusCode::OK {
                    let room = REFUSAL_BYTES_MAX - head.refusal.len();
                    head.refusal.extend_from_slice(&data[..data.len().min(room)]);
                }
                sink(&head, data)?;
            }
            Ok(head)
        };
        let mut wire = pin!(wire);
        let mut exchange = pin!(exchange);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                done = &mut exchange => return done,
                // Its error reaches the exchange, or does so by the drop of what it needs.
                _ = &mut wire, if open => open = false,
            }
        }
    }
}

impl Connection {
    /// Sends a request and reads the whole answer; its body replaces what is in `into`. After an error, or if this is
    /// dropped half way, the connection is of no use any more.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        into: &mut BytesMut,
    ) -> anyhow::Result<StatusCode> {
        self.send_keyed(method, path, None, body, into).await
    }

    /// The same with an idempotency key: however often it is sent, it happens once.
    pub async fn send_keyed(
        &mut self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Bytes,
        into: &mut BytesMut,
    ) -> anyhow::Result<StatusCode> {
        into.clear();
        let mut request = hyper::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        request.headers_mut().insert(HOST, self.host.clone());
        if let Some(key) = key {
            request.headers_mut().insert(IDEMPOTENCY_KEY, HeaderValue::from_str(&format!("\"{key}\""))?);
        }
        let Connection { sender, wire, .. } = self;
        let exchange = async {
            sender.ready().await?;
            let mut response = sender.send_request(request).await?;
            while let Some(frame) = response.frame().await {
                if let Some(data) = frame?.data_ref() {
                    into.extend_from_slice(data);
                }
            }
            Ok(response.status())
        };
        let mut exchange = pin!(exchange);
        poll_fn(|cx| drive(wire, exchange.as_mut(), cx)).await
    }
}

/// Polls `exchange`, and the socket until neither gets any further. Each wakes the other through `cx` if it has to be
/// polled again, but asking at once saves the round through the scheduler.
fn drive<T>(
    wire: &mut Option<Pin<Box<Wire>>>,
    mut exchange: Pin<&mut impl Future<Output = anyhow::Result<T>>>,
    cx: &mut Context<'_>,
) -> Poll<anyhow::Result<T>> {
    if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
        return Poll::Ready(done);
    }
    if wire.as_mut().is_some_and(|wire| wire.as_mut().poll(cx).is_ready()) {
        // An error of the socket has reached the exchange by now, or does so by the drop.
        *wire = None;
    }
    exchange.poll(cx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Accepts one connection and answers what `answers` says, one after the other, then closes.
    async fn server(answers: &'static [&'static str]) -> (Url, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::new("127.0.0.1", listener.local_addr().unwrap().port());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            for answer in answers {
                let before = seen.len();
                while !seen[before..].ends_with(b"\r\n\r\n") && !seen[before..].ends_with(b"!") {
                    assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            String::from_utf8(seen).unwrap()
        });
        (url, served)
    }

    #[test]
    fn urls_are_a_host_and_a_port() {
        let url = |text: &str| text.parse::<Url>().map(|u| u.to_string()).map_err(|e| e.to_string());
        assert_eq!(url("http://127.0.0.1:8080"), Ok("http://127.0.0.1:8080".into()));
        assert_eq!(url("http://[::1]:8080/"), Ok("http://[::1]:8080".into()));
        assert_eq!(url("localhost:8080"), Ok("http://localhost:8080".into()));
        assert_eq!(url("http://db.example"), Ok("http://db.example:80".into()));
        for (text, why) in [("https://a:1", "only http"), ("http://a:1/kv", "without a path"), ("/a", "no host")] {
            let error = url(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn one_connection_carries_many_requests() {
        let (url, served) = server(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ])
        .await;
        let mut connection = url.connect().await.unwrap();
        let mut body = BytesMut::new();
        let status = connection.send(Method::GET, "/kv/a", Bytes::new(), &mut body).await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (200, &b"hi"[..]));
        let sent = Bytes::from_static(b"x!");
        let status = connection.send_keyed(Method::PUT, "/kv/a", Some("k-1"), sent, &mut body).await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (204, &b""[..]));
        let status = connection.send(Method::GET, "/kv/b", Bytes::new(), &mut body).await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (404, &b"abc"[..]));
        let seen = served.await.unwrap();
        assert!(seen.contains("PUT /kv/a HTTP/1.1\r\nhost: 127.0.0.1:"), "{seen}");
        assert!(seen.contains("content-length: 2\r\n") && seen.contains("\r\n\r\nx!"), "{seen}");
        assert_eq!(seen.matches("idempotency-key: \"k-1\"\r\n").count(), 1, "{seen}");
        // The server is gone: an error, not a wait for ever.
        assert!(connection.send(Method::GET, "/kv/c", Bytes::new(), &mut body).await.is_err());
    }

    #[tokio::test]
    async fn a_silent_server_costs_the_time_limit_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::new("127.0.0.1", listener.local_addr().unwrap().port());
        let error = url.get("/_/status", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("no answer within 50ms"), "{error}");
    }
}
