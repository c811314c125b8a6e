//! From an answer to an HTTP reply. The module's body is never copied. Knows no error: those are in `problem.rs`.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, Version};

use super::problem::Problem;
use crate::outcome::{Answer, CommandReply, ModuleReply};

pub(super) type Reply = Response<Full<Bytes>>;

pub(super) const RAFTLET_INDEX: HeaderName = HeaderName::from_static("raftlet-index");
pub(super) const RAFTLET_TERM: HeaderName = HeaderName::from_static("raftlet-term");

/// Not in the draft, but what the large services answer a repeated key with.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Headers that a module can't set: those of the connection (RFC 9110 §7.6.1), and those that the host sets itself.
const HOST_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "date",
    "idempotent-replayed",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `headers` must be empty: it is the request's map, used again to save an allocation.
pub(super) fn from_answer(answer: Answer, mut headers: HeaderMap, version: Version, is_head: bool) -> Reply {
    headers.insert(RAFTLET_INDEX, HeaderValue::from(answer.index));
    headers.insert(RAFTLET_TERM, HeaderValue::from(answer.term));
    from_reply(&answer.reply, headers, version, is_head)
}

/// What a single request would have got, without its index and term.
pub(super) fn of_one(reply: &CommandReply, is_head: bool) -> Reply {
    from_reply(reply, HeaderMap::new(), Version::HTTP_11, is_head)
}

/// The same for what the host says.
pub(super) fn of_problem(problem: Problem) -> Reply {
    problem.into_reply(HeaderMap::new(), Version::HTTP_11, false)
}

fn from_reply(reply: &CommandReply, mut headers: HeaderMap, version: Version, is_head: bool) -> Reply {
    match reply {
        CommandReply::Module(reply) => from_module(reply, headers, version, is_head),
        CommandReply::Failed(failure) => Problem::failed(failure).into_reply(headers, version, is_head),
        CommandReply::Replayed(first) => {
            headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            from_reply(first, headers, version, is_head)
        }
    }
}

fn from_module(reply: &ModuleReply, mut headers: HeaderMap, version: Version, is_head: bool) -> Reply {
    let archived = reply.get();
    let status = archived.status.to_native();
    let code = match StatusCode::from_u16(status) {
        Ok(code) if (200..600).contains(&status) => code,
        _ => return Problem::bad_module_status(status).into_reply(headers, version, is_head),
    };
    for header in archived.headers.iter() {
        // A name or value that HTTP can't carry is left out: the command has taken effect, and its reply must not
        // be lost for a header.
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else { continue };
        if is_hosts(name.as_str()) {
            continue;
        }
        if let Ok(value) = HeaderValue::from_bytes(header.value.as_slice()) {
            headers.append(name, value);
        }
    }
    if !archived.content_type.is_empty()
        && let Some(value) = content_type(&archived.content_type)
    {
        headers.insert(CONTENT_TYPE, value);
    }
    build(code, headers, reply.body(), is_head)
}

/// Whether a module can't set this header (in lower case).
pub(super) fn is_hosts(name: &str) -> bool {
    HOST_HEADERS.contains(&name) || name.starts_with("raftlet-")
}

/// Whether a reply with this status has no body.
pub(super) fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 205 | 304)
}

/// The common types without an allocation.
fn content_type(name: &str) -> Option<HeaderValue> {
    Some(match name {
        "application/octet-stream" => HeaderValue::from_static("application/octet-stream"),
        "application/json" => HeaderValue::from_static("application/json"),
        "text/plain" => HeaderValue::from_static("text/plain"),
        "text/plain; charset=utf-8" => HeaderValue::from_static("text/plain; charset=utf-8"),
        other => HeaderValue::from_str(other).ok()?,
    })
}

/// The last step of every reply: leaves out a body that HTTP forbids (RFC 9110 §6.4.1).
pub(super) fn build(status: StatusCode, mut headers: HeaderMap, body: Bytes, is_head: bool) -> Reply {
    let body = if is_bodiless(status.as_u16()) {
        Bytes::new()
    } else if is_head {
        // What GET would have had. Said here, because HTTP/2 would otherwise send the body.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Bytes::new()
    } else {
        body
    };
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    reply
}
