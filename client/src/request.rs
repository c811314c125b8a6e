//! Requests: how they are made, and what is wrong with one before it is sent. One wrong request would make a node
//! refuse all that were sent with it. Next: `encode.rs`.

use raftlet_machine::limits::{IDEMPOTENCY_KEY_BYTES_MAX, REQUEST_BODY_BYTES_MAX};
use raftlet_machine::{ArchivedHeader, ArchivedRequest, FORWARDED_HEADERS, Header, IDEMPOTENCY_KEY, Method, Request};

use crate::error::Error;

/// Bytes of path and query together. A node reads 32 KiB of head by default.
const TARGET_BYTES_MAX: usize = 16 << 10;
/// Of one request.
const HEADERS_MAX: usize = 64;

/// A request without headers. `target` is a path, and perhaps a query behind `?`, both percent-encoded.
pub fn request(method: Method, target: &str, body: impl Into<Vec<u8>>) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Request { method, path: path.to_owned(), query: query.to_owned(), headers: Vec::new(), body: body.into() }
}

/// The same command with an idempotency key: however often it is sent, it happens once. The key has 1 to 255 bytes of
/// visible ASCII, and no two commands of a cluster may share one.
pub fn keyed(mut command: Request, key: &str) -> Request {
    command.headers.push(Header { name: IDEMPOTENCY_KEY.to_owned(), value: key.as_bytes().to_vec() });
    command
}

pub(crate) fn has_key(request: &Request) -> bool {
    request.headers.iter().any(|header| header.name == IDEMPOTENCY_KEY)
}

/// Bytes that the request takes in an archive, at most; what it takes in memory is about the same.
pub(crate) fn archived_bytes(request: &Request) -> usize {
    let header = |header: &Header| size_of::<ArchivedHeader>() + header.name.len() + header.value.len();
    let headers: usize = request.headers.iter().map(header).sum();
    size_of::<ArchivedRequest>() + request.path.len() + request.query.len() + request.body.len() + headers
}

/// Whether a node would take the request.
pub(crate) fn check(request: &Request) -> Result<(), Error> {
    let invalid = |why: String| Err(Error::Invalid(why));
    let Request { path, query, headers, body, .. } = request;
    if !path.starts_with('/') || path.starts_with("/_/") {
        return invalid(format!("the path {path:?} must begin with /, and not with /_/, which is the node's own"));
    }
    if !path.bytes().all(is_path) || !query.bytes().all(|byte| is_path(byte) || byte == b'?') {
        return invalid(format!("{path:?} {query:?} must be percent-encoded (RFC 3986 §2)"));
    }
    if path.len() + query.len() > TARGET_BYTES_MAX {
        return invalid(format!("path and query are over {TARGET_BYTES_MAX} bytes"));
    }
    if body.len() > REQUEST_BODY_BYTES_MAX {
        return invalid(format!("a body of {} bytes is over {REQUEST_BODY_BYTES_MAX}", body.len()));
    }
    if request.method.is_query() && query.split('&').any(|part| part.split('=').next() == Some("consistency")) {
        return invalid("the consistency of a query is an argument, not a parameter".to_owned());
    }
    if headers.len() > HEADERS_MAX {
        return invalid(format!("over {HEADERS_MAX} headers"));
    }
    let mut keys = 0;
    for Header { name, value } in headers {
        if name == IDEMPOTENCY_KEY {
            keys += 1;
            let fits = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&value.len());
            if keys > 1 || request.method.is_query() || !fits || !value.iter().all(u8::is_ascii_graphic) {
                return invalid(format!(
                    "an idempotency key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes of visible ASCII, one for a command, \
                     none for a query"
                ));
            }
        } else if !FORWARDED_HEADERS.contains(&name.as_str()) {
            return invalid(format!("no module sees the header {name:?}; those are {}", FORWARDED_HEADERS.join(", ")));
        } else if value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return invalid(format!("the value of {name} has a control character"));
        } else if value.first().is_some_and(is_blank) || value.last().is_some_and(is_blank) {
            return invalid(format!("the value of {name} begins or ends with a blank"));
        }
    }
    Ok(())
}

/// RFC 9110 §5.5: no part of a value at its ends.
fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 3986 §3.3: `pchar` and `/`.
fn is_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(target: &str) -> Request {
        request(Method::Put, target, "v")
    }

    fn with(name: &str, value: &[u8]) -> Request {
        let header = Header { name: name.into(), value: value.to_vec() };
        Request { headers: vec![header], ..put("/kv/a") }
    }

    #[test]
    fn what_a_node_takes_is_taken() {
        let longest = format!("/{}", "a".repeat(TARGET_BYTES_MAX - 1));
        for right in [
            put("/kv/a%2Fb?x=1&y=a/b?c"),
            put("/"),
            put(&longest),
            put("/a?consistency=mine"),
            with("if-match", b"\"7\", W/\"8\"\t\xff"),
            keyed(put("/kv/a"), "k"),
            keyed(put("/kv/a"), &"k".repeat(255)),
            Request { body: vec![0; REQUEST_BODY_BYTES_MAX], ..put("/kv/a") },
        ] {
            assert_eq!(check(&right), Ok(()));
        }
    }

    #[test]
    fn what_a_node_refuses_is_not_sent() {
        let too_long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
        for (wrong, why) in [
            (put("kv"), "begin with /"),
            (put(""), "begin with /"),
            (put("/_/status"), "the node's own"),
            (put("/kv/a b"), "percent-encoded"),
            (put("/kv/ä"), "percent-encoded"),
            (put("/kv/a?b#c"), "percent-encoded"),
            (put("/kv/a\r\nb"), "percent-encoded"),
            (put(&too_long), "16384"),
            (request(Method::Get, "/a?b=1&consistency=stale", ""), "argument"),
            (with("x-mine", b""), "no module sees"),
            (with("If-Match", b""), "no module sees"),
            (with("accept", b"a\r\nb"), "control character"),
            (keyed(put("/a"), ""), "idempotency key"),
            (keyed(put("/a"), "a b"), "idempotency key"),
            (keyed(put("/a"), &"k".repeat(256)), "idempotency key"),
            (keyed(keyed(put("/a"), "k"), "k"), "one for a command"),
            (keyed(request(Method::Get, "/a", ""), "k"), "none for a query"),
            (Request { body: vec![0; REQUEST_BODY_BYTES_MAX + 1], ..put("/a") }, "8388609"),
        ] {
            let Err(Error::Invalid(text)) = check(&wrong) else { panic!("{} was taken", wrong.path) };
            assert!(text.contains(why), "{text}");
        }
    }
}
