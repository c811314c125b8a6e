//! One request to a node and what its answer means: a bulk request, or a plain one. Decides nothing: `worker.rs` does.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use raftlet_machine::{Header, IDEMPOTENCY_KEY, Method as RequestMethod, Replies, Reply, Request};

use crate::encode::Encoder;
use crate::error::{Problem, Refusal};
use crate::queue::{Item, Kind, Load};
use crate::reply::Answer;
use crate::request::archived_bytes;
use crate::wire::{Broken, Response, Wire};

const BATCH: HeaderValue = HeaderValue::from_static("application/vnd.raftlet.batch");
const REPLIES: &str = "application/vnd.raftlet.replies";

/// What became of all requests that were sent together.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Answer),
    /// Nothing happened.
    Refused(Refusal),
    /// The node says that it doesn't know.
    Unknown(Refusal),
    /// There is no answer, and the connection is of no use any more.
    Broken {
        sent: bool,
        refusal: Refusal,
    },
}

/// What is kept from one exchange to the next.
pub(crate) struct Exchange {
    encoder: Encoder,
    plain: bool,
}

impl Exchange {
    pub(crate) fn new(plain: bool) -> Exchange {
        Exchange { encoder: Encoder::default(), plain }
    }

    /// `items` are of one kind. Without a time limit of its own.
    pub(crate) async fn run(&mut self, wire: &mut Wire, kind: Kind, items: &[Item]) -> Outcome {
        match items {
            [Item { load: Load::One(request), .. }] if self.plain => {
                let is_stale = kind == Kind::Stale;
                match wire.exchange(plain(request, is_stale)).await {
                    Ok(response) => read_plain(response),
                    Err(broken) => broken.into(),
                }
            }
            items => {
                let (body, count) = self.archive(items);
                match wire.exchange(bulk(body, kind)).await {
                    Ok(response) => read_bulk(response, count),
                    Err(broken) => broken.into(),
                }
            }
        }
    }

    fn archive(&mut self, items: &[Item]) -> (Bytes, usize) {
        let bytes = items.iter().flat_map(|item| item.load.requests()).map(archived_bytes).sum();
        match items {
            // It travels alone.
            [Item { load: Load::Many(requests), .. }] => (self.encoder.batch(requests.iter(), bytes), requests.len()),
            items => (self.encoder.batch(items.iter().map(|item| &item.load.requests()[0]), bytes), items.len()),
        }
    }
}

impl From<Broken> for Outcome {
    fn from(Broken { sent, detail }: Broken) -> Outcome {
        Outcome::Broken { sent, refusal: Refusal::own("broken", detail) }
    }
}

fn bulk(body: Bytes, kind: Kind) -> hyper::Request<Full<Bytes>> {
    let target = if kind == Kind::Stale { "/_/batch?consistency=stale" } else { "/_/batch" };
    let mut request = hyper::Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(target);
    request.headers_mut().insert(CONTENT_TYPE, BATCH);
    request
}

fn plain(request: &Request, is_stale: bool) -> hyper::Request<Full<Bytes>> {
    let mut target = request.path.clone();
    if !request.query.is_empty() || is_stale {
        let between = if request.query.is_empty() || !is_stale { "" } else { "&" };
        target.extend(["?", &request.query, between, if is_stale { "consistency=stale" } else { "" }]);
    }
    let mut plain = hyper::Request::new(Full::new(Bytes::copy_from_slice(&request.body)));
    *plain.method_mut() = match request.method {
        RequestMethod::Get => Method::GET,
        RequestMethod::Head => Method::HEAD,
        RequestMethod::Post => Method::POST,
        RequestMethod::Put => Method::PUT,
        RequestMethod::Patch => Method::PATCH,
        RequestMethod::Delete => Method::DELETE,
    };
    *plain.uri_mut() = target.parse().expect("the request was checked");
    for Header { name, value } in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("the request was checked");
        let value = if name == IDEMPOTENCY_KEY { quoted(value) } else { HeaderValue::from_bytes(value) };
        plain.headers_mut().append(name, value.expect("the request was checked"));
    }
    plain
}

/// A structured field's string (RFC 9651 §3.3.3): a bare key with a comma or a quote would be refused.
fn quoted(key: &[u8]) -> Result<HeaderValue, hyper::header::InvalidHeaderValue> {
    let mut quoted = Vec::with_capacity(key.len() + 2);
    quoted.push(b'"');
    for byte in key {
        if b"\"\\".contains(byte) {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    HeaderValue::from_bytes(&quoted)
}

fn read_bulk(response: Response, count: usize) -> Outcome {
    if response.status != 200 {
        return refusal(&response);
    }
    if text(&response.headers, CONTENT_TYPE.as_str()) != REPLIES {
        return unreadable("the answer to a batch is no archive of replies".to_owned());
    }
    let (index, term) = place(&response.headers);
    match Answer::read(response.body, count, index, term) {
        Ok(answer) => Outcome::Answered(answer),
        Err(why) => unreadable(why),
    }
}

/// A plain response as an archive of one reply, so that there is one kind of reply.
fn read_plain(response: Response) -> Outcome {
    let content_type = text(&response.headers, CONTENT_TYPE.as_str());
    if let Some(problem) = Problem::read(response.status, content_type, &response.body) {
        return if problem.unknown { Outcome::Unknown(problem.refusal) } else { Outcome::Refused(problem.refusal) };
    }
    // The protocol's layer has no document, and no module was asked: its answers have an index.
    let is_protocols = response.body.is_empty() && !response.headers.contains_key("raftlet-index");
    if matches!(response.status, 400 | 414 | 431) && is_protocols {
        return refusal(&response);
    }
    // Those of the connection are no part of what the module answered.
    let of_the_connection =
        ["connection", "content-length", "content-type", "date", "retry-after", "transfer-encoding"];
    let is_own = |name: &str| !of_the_connection.contains(&name) && !name.starts_with("raftlet-");
    let own = response.headers.iter().filter(|(name, _)| is_own(name.as_str()));
    let headers = own.map(|(name, value)| Header { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() });
    let reply = Reply {
        status: response.status,
        content_type: content_type.to_owned(),
        headers: headers.collect(),
        body: response.body.to_vec(),
    };
    let (index, term) = place(&response.headers);
    match Answer::read(Replies { replies: vec![reply] }.to_bytes().into(), 1, index, term) {
        Ok(answer) => Outcome::Answered(answer),
        Err(why) => unreadable(why),
    }
}

/// A whole response that is no answer of the module's.
fn refusal(response: &Response) -> Outcome {
    let status = response.status;
    if let Some(problem) = Problem::read(status, text(&response.headers, CONTENT_TYPE.as_str()), &response.body) {
        return if problem.unknown { Outcome::Unknown(problem.refusal) } else { Outcome::Refused(problem.refusal) };
    }
    let start = String::from_utf8_lossy(&response.body[..response.body.len().min(200)]).into_owned();
    let refusal = Refusal { status: Some(status), kind: "http".to_owned(), detail: start };
    // For a head that it can't take, a node answers with an empty body and has executed nothing. Of anything else
    // between here and there, nothing is known.
    if matches!(status, 400 | 414 | 431) { Outcome::Refused(refusal) } else { Outcome::Unknown(refusal) }
}

fn unreadable(why: String) -> Outcome {
    Outcome::Broken { sent: true, refusal: Refusal::own("broken", why) }
}

/// `Raftlet-Index` and `Raftlet-Term`; 0 where there is none.
fn place(headers: &HeaderMap) -> (u64, u64) {
    let number = |name| text(headers, name).parse().unwrap_or(0);
    (number("raftlet-index"), number("raftlet-term"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{keyed, request};

    #[test]
    fn a_plain_request_says_the_same() {
        let target =
            |target: &str, is_stale| plain(&request(RequestMethod::Get, target, ""), is_stale).uri().to_string();
        assert_eq!(target("/kv/a", false), "/kv/a");
        assert_eq!(target("/kv/a", true), "/kv/a?consistency=stale");
        assert_eq!(target("/kv?x=1", true), "/kv?x=1&consistency=stale");
        assert_eq!(target("/kv?x=1", false), "/kv?x=1");
        let put = plain(&keyed(request(RequestMethod::Put, "/kv/a", "v"), "a\"\\,b"), false);
        assert_eq!(put.headers()[IDEMPOTENCY_KEY], "\"a\\\"\\\\,b\"");
        assert_eq!(put.method(), Method::PUT);
    }

    fn response(status: u16, content_type: &str, body: &str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        headers.insert("raftlet-index", HeaderValue::from_static("9"));
        headers.insert("raftlet-term", HeaderValue::from_static("2"));
        headers.insert("etag", HeaderValue::from_static("\"7\""));
        Response { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn a_plain_response_becomes_a_reply() {
        let Outcome::Answered(answer) = read_plain(response(201, "text/plain", "hi")) else { panic!("no answer") };
        let reply = answer.into_reply().unwrap();
        assert_eq!((reply.status(), reply.content_type(), reply.body().as_ref()), (201, "text/plain", &b"hi"[..]));
        assert_eq!((reply.index(), reply.term()), (9, 2));
        assert_eq!(reply.headers().collect::<Vec<_>>(), [("etag", &b"\"7\""[..])]);
    }

    #[test]
    fn what_cant_be_read_promises_nothing() {
        let sound = Replies { replies: Vec::new() }.to_bytes();
        let mut wrong_type = response(200, "text/html", "");
        wrong_type.body = sound.into();
        assert!(matches!(read_bulk(wrong_type, 0), Outcome::Broken { sent: true, .. }));
        assert!(matches!(read_bulk(response(200, REPLIES, "oh"), 1), Outcome::Broken { sent: true, .. }));
        assert!(matches!(read_bulk(response(502, "text/html", "proxy"), 1), Outcome::Unknown(_)));
        assert!(matches!(read_bulk(response(431, "text/html", ""), 1), Outcome::Refused(_)));
    }
}
