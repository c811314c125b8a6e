//! How a machine reads a request: in place, inside the batch's archive. Also percent-encoding (RFC 3986 §2.1), which
//! turns paths into keys of any bytes and back.

use std::fmt;

use crate::{ArchivedMethod, ArchivedRequest, Method, Request};

/// A `%` that two hexadecimal digits don't follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedEncoding;

impl fmt::Display for MalformedEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed percent-encoding: after % there must be two hexadecimal digits")
    }
}

impl std::error::Error for MalformedEncoding {}

/// What nearly every command asks for is inlined: a call costs a module more than it costs native code, because its fuel
/// is put away before and fetched after.
impl ArchivedRequest {
    #[inline(always)]
    pub fn method(&self) -> Method {
        match self.method {
            ArchivedMethod::Get => Method::Get,
            ArchivedMethod::Head => Method::Head,
            ArchivedMethod::Post => Method::Post,
            ArchivedMethod::Put => Method::Put,
            ArchivedMethod::Patch => Method::Patch,
            ArchivedMethod::Delete => Method::Delete,
        }
    }

    /// As received: begins with `/`, still percent-encoded, without the query.
    #[inline(always)]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What follows `prefix` in the path, percent-decoded: any bytes. `None` if the path begins otherwise.
    pub fn path_after(&self, prefix: &str) -> Option<Result<Vec<u8>, MalformedEncoding>> {
        self.path().strip_prefix(prefix).map(|rest| percent_decode(rest.as_bytes()))
    }

    /// The first parameter of this name in the query (`a=1&b=2`), percent-decoded; `+` is a space there. A name
    /// without `=` has an empty value.
    pub fn parameter(&self, name: &str) -> Option<Result<Vec<u8>, MalformedEncoding>> {
        let decode = |text: &str| percent_decode(text.replace('+', " ").as_bytes());
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| decode(key).as_deref() == Ok(name.as_bytes())).map(|(_, v)| decode(v))
    }

    /// The value of the first header of this name (in lower case), if the host forwards it
    /// ([`crate::FORWARDED_HEADERS`]).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|h| h.name == name).map(|h| h.value.as_slice())
    }

    /// The values of all headers of this name, in order. For headers that are lists, RFC 9110 §5.3 lets a client
    /// spread the list over several.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |h| h.name == name).map(|h| h.value.as_slice())
    }

    #[inline(always)]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, if it is UTF-8.
    pub fn body_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }
}

/// For tests of machines.
impl Request {
    /// `target` is path and query: `/kv?limit=2`.
    pub fn new(method: Method, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request { method, path: path.into(), query: query.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub fn with_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(crate::Header { name: name.into(), value: value.into() });
        self
    }

    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// `a%2Fb` to `a/b`. Any bytes may come out.
pub fn percent_decode(text: &[u8]) -> Result<Vec<u8>, MalformedEncoding> {
    let mut out = Vec::with_capacity(text.len());
    percent_decode_into(text, &mut out).map(|()| out)
}

/// The same, behind what is in `out` already. After an error part of it is there.
#[inline(always)]
pub fn percent_decode_into(text: &[u8], out: &mut Vec<u8>) -> Result<(), MalformedEncoding> {
    if has_percent(text) {
        return decode_into(text, out);
    }
    out.extend_from_slice(text);
    Ok(())
}

fn decode_into(mut text: &[u8], out: &mut Vec<u8>) -> Result<(), MalformedEncoding> {
    while let Some(at) = text.iter().position(|&byte| byte == b'%') {
        out.extend_from_slice(&text[..at]);
        let digit = |at| text.get(at).and_then(|&d| char::from(d).to_digit(16)).ok_or(MalformedEncoding);
        out.push((digit(at + 1)? * 16 + digit(at + 2)?) as u8);
        text = &text[at + 3..];
    }
    out.extend_from_slice(text);
    Ok(())
}

/// Eight bytes at a time: byte by byte, a loop that is metered, this took a module a fifth of what it does for a PUT.
#[inline(always)]
fn has_percent(text: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The highest bit of a byte that is zero becomes one, and none before it does (Warren, Hacker's Delight, 6-1).
    let finds = |word: &[u8; 8]| {
        let zeroed = u64::from_le_bytes(*word) ^ (ONES * b'%' as u64);
        zeroed.wrapping_sub(ONES) & !zeroed & (ONES * 0x80) != 0
    };
    // What is left over is looked at together with some bytes before it.
    let Some(last) = text.last_chunk() else { return text.contains(&b'%') };
    text.as_chunks().0.iter().chain([last]).any(finds)
}

/// Everything but letters, digits and `-._~` becomes `%XX`: safe in a path, in a query and in JSON.
pub fn percent_encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
    out
}

const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;

    fn with_request<T>(request: Request, read: impl FnOnce(&ArchivedRequest) -> T) -> T {
        let bytes = Batch { commands: vec![request] }.to_bytes();
        read(&Batch::access(&bytes).unwrap().commands[0])
    }

    #[test]
    fn every_byte_survives_encoding_and_decoding() {
        let all: Vec<u8> = (0..=255).collect();
        let encoded = percent_encode(&all);
        assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
        assert_eq!(percent_decode(encoded.as_bytes()), Ok(all));
        assert_eq!(percent_encode(b"a/b\xff"), "a%2Fb%FF");
        assert_eq!(percent_decode(b"a%2fb+c"), Ok(b"a/b+c".to_vec()));
    }

    #[test]
    fn a_percent_is_found_anywhere_among_any_bytes() {
        for len in 0..40 {
            for other in [b'a', b'$', b'&', 0, 0x24 + 0x80, 0xa5, 0xff] {
                let mut text = vec![other; len];
                assert!(!has_percent(&text), "{text:?}");
                for at in 0..len {
                    text[at] = b'%';
                    assert!(has_percent(&text), "{text:?}");
                    text[at] = other;
                }
            }
        }
    }

    #[test]
    fn a_cut_or_wrong_encoding_is_malformed() {
        for text in ["%", "a%4", "%zz", "%4g", "%%41", "%+1"] {
            assert_eq!(percent_decode(text.as_bytes()), Err(MalformedEncoding), "{text}");
        }
    }

    #[test]
    fn path_parameters_and_headers_are_found() {
        let request = Request::new(Method::Get, "/kv/a%2Fb/c?x=1&prefix=a+%2B&x=2&bad=%&flag")
            .with_header("if-match", "\"1\"")
            .with_header("accept", "*/*")
            .with_header("if-match", "\"2\"");
        with_request(request, |r| {
            assert_eq!(r.method(), Method::Get);
            assert_eq!(r.path_after("/kv/"), Some(Ok(b"a/b/c".to_vec())));
            assert_eq!(r.path_after("/other/"), None);
            assert_eq!(r.parameter("x"), Some(Ok(b"1".to_vec())));
            assert_eq!(r.parameter("prefix"), Some(Ok(b"a +".to_vec())));
            assert_eq!(r.parameter("flag"), Some(Ok(Vec::new())));
            assert_eq!(r.parameter("bad"), Some(Err(MalformedEncoding)));
            assert_eq!(r.parameter("missing"), None);
            assert_eq!(r.header("if-match"), Some(b"\"1\"".as_slice()));
            assert_eq!(r.headers("if-match").count(), 2);
            assert_eq!(r.header("range"), None);
        });
    }
}
