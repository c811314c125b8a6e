//! gRPC's unary calls on hyper's HTTP/2, for `bench --target etcd`. Knows no message.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::http::Url;

/// Flow control's windows: an answer never waits for one.
const WINDOW_BYTES: u32 = 4 << 20;

/// One connection, for many calls at a time. Dropped with its last call.
pub struct Channel {
    sender: http2::SendRequest<Full<Bytes>>,
    url: Url,
}

/// The call has no result.
#[derive(Debug)]
pub struct Refused {
    /// gRPC's status code; None: there was no answer.
    pub code: Option<u16>,
    pub detail: String,
}

impl Channel {
    pub async fn connect(url: &Url, within: Duration) -> anyhow::Result<Channel> {
        let connecting = async {
            let stream = TcpStream::connect(url.authority()).await?;
            stream.set_nodelay(true)?;
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
            anyhow::Ok(builder.handshake(TokioIo::new(stream)).await?)
        };
        let connected = tokio::time::timeout(within, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(anyhow!("no connection within {within:?}")));
        let (sender, driver) = connected.with_context(|| format!("can't connect to {url}"))?;
        // Its error reaches the calls.
        tokio::spawn(async { drop(driver.await) });
        Ok(Channel { sender, url: url.clone() })
    }

    /// `method`: `/package.Service/Method`. The answer is the message, without a time limit of its own.
    pub async fn call(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Refused> {
        let broken = |error: &dyn std::fmt::Display| Refused { code: None, detail: error.to_string() };
        let mut body = BytesMut::with_capacity(5 + message.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).map_err(|error| broken(&error))?);
        body.put_slice(message);
        let mut request = hyper::Request::new(Full::new(body.freeze()));
        *request.method_mut() = Method::POST;
        let uri = Uri::builder().scheme("http").authority(self.url.authority()).path_and_query(method).build();
        *request.uri_mut() = uri.map_err(|error| broken(&error))?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if response.status() != StatusCode::OK {
            return Err(broken(&format!("HTTP status {}", response.status())));
        }
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| broken(&error))?;
        // Where there is no message, the trailers may come as the only headers.
        let trailers = body.trailers().unwrap_or(&head.headers);
        match (status(trailers), body.trailers()) {
            (Some(0), _) => {}
            (Some(code), _) => return Err(Refused { code: Some(code), detail: detail(trailers) }),
            (None, _) => return Err(broken(&"the answer ended without a status")),
        }
        unframed(body.to_bytes()).ok_or_else(|| broken(&"the answer is not one whole message"))
    }
}

fn status(trailers: &HeaderMap) -> Option<u16> {
    trailers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn detail(trailers: &HeaderMap) -> String {
    let text = trailers.get("grpc-message").map_or(&b""[..], HeaderValue::as_bytes);
    percent_encoding::percent_decode(text).decode_utf8_lossy().into_owned()
}

/// One message, not compressed: a byte 0, its length, itself.
fn unframed(body: Bytes) -> Option<Bytes> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
    (head[0] == 0 && message.len() == length as usize).then(|| body.slice(5..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_out_of_its_frame() {
        assert_eq!(unframed(Bytes::from_static(b"\0\0\0\0\x02hi")), Some(Bytes::from_static(b"hi")));
        assert_eq!(unframed(Bytes::from_static(b"\0\0\0\0\0")), Some(Bytes::new()));
        for wrong in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x02hi", b"\0\0\0\0\x03hi", b"\0\0\0\0\x01hi"] {
            assert_eq!(unframed(Bytes::from_static(wrong)), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_status_comes_with_its_text() {
        let mut trailers = HeaderMap::new();
        assert_eq!(status(&trailers), None);
        trailers.insert("grpc-status", HeaderValue::from_static("8"));
        trailers.insert("grpc-message", HeaderValue::from_static("too%20many"));
        assert_eq!((status(&trailers), detail(&trailers).as_str()), (Some(8), "too many"));
    }
}
