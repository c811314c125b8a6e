//! How a machine builds a reply.

use std::fmt::Display;
use std::mem;

use super::vec_with_capacity;
use crate::{Header, Reply};

impl Reply {
    /// An empty body and no content type.
    pub fn status(status: u16) -> Self {
        Reply { status, content_type: String::new(), headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with these bytes, `application/octet-stream`.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Reply::status(200).with_body("application/octet-stream", body)
    }

    /// Text for people and scripts, with a line feed at its end.
    pub fn text(status: u16, text: impl Display) -> Self {
        Reply::status(status).with_body("text/plain; charset=utf-8", format!("{text}\n"))
    }

    /// 200 with a JSON document that is already encoded.
    pub fn json(document: impl Into<Vec<u8>>) -> Self {
        Reply::status(200).with_body("application/json", document)
    }

    /// 404 with a line of text.
    pub fn not_found() -> Self {
        Reply::text(404, "not found")
    }

    /// 400 with the reason as a line of text.
    pub fn bad_request(reason: impl Display) -> Self {
        Reply::text(400, reason)
    }

    /// 405. `allow` is the value of the header that RFC 9110 §15.5.6 asks for: `GET, HEAD, PUT`.
    pub fn method_not_allowed(allow: &str) -> Self {
        Reply::text(405, format_args!("use {allow}")).with_header("allow", allow)
    }

    /// Adds a header; `name` in lower case. See [`crate::limits`] for how many and how long.
    #[inline(always)]
    pub fn with_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        // Few replies have a second one, and room for four costs more than to make room again.
        if self.headers.capacity() == 0 {
            // There is nothing to free.
            mem::forget(mem::replace(&mut self.headers, vec_with_capacity(1)));
        }
        // SAFETY: there are no bytes yet that could be malformed.
        let mut owned = unsafe { String::from_utf8_unchecked(vec_with_capacity(name.len())) };
        owned.push_str(name);
        self.headers.push(Header { name: owned, value: value.into() });
        self
    }

    /// Replaces content type and body.
    pub fn with_body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.content_type = content_type.into();
        self.body = body.into();
        self
    }
}
