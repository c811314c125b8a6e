//! Batches and replies as lines of JSON, for clients that have no rkyv. A line is an object; nothing in it that isn't
//! known is passed over.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use raftlet_machine::{Batch, Header, Method, Reply, Request};
use serde::de::Error as _;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::check::{self, Fault};

/// Of one request's headers, as many are read.
const HEADERS_READ_MAX: usize = 1_000;

/// One request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    method: String,
    /// With the query.
    path: String,
    #[serde(default)]
    headers: Headers,
    body: Option<String>,
    body_base64: Option<String>,
}

/// In their order. A name may come twice, as in HTTP.
#[derive(Default)]
struct Headers(Vec<Header>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of header names and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    // Each takes many times its bytes; the node's own limit is looked at later.
                    if headers.len() == HEADERS_READ_MAX {
                        return Err(A::Error::custom(format!("over {HEADERS_READ_MAX} headers")));
                    }
                    headers.push(Header { name: name.to_ascii_lowercase(), value: value.into_bytes() });
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// The requests, one for each line. What they ask for is not looked at. The last line may end with a newline.
pub(super) fn read(text: &[u8]) -> Result<Batch, Fault> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(Batch::default());
    }
    check::count(text.iter().filter(|byte| **byte == b'\n').count() + 1)?;
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let commands = lines.map(|(at, line)| request(line).map_err(|why| Fault::wrong(why).at(at)));
    Ok(Batch { commands: commands.collect::<Result<_, _>>()? })
}

fn request(line: &[u8]) -> Result<Request, String> {
    // Without this a list of the members' values would be taken too.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err("a line is one JSON object".into());
    }
    let Line { method, path, headers, body, body_base64 } = serde_json::from_slice(line).map_err(|e| {
        let text = e.to_string();
        // It counts lines too, and there is only this one.
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        format!("{what}, at byte {} of the line", e.column())
    })?;
    let method = match method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        other => {
            return Err(format!(
                "{other:?} is not among the allowed methods: {}",
                super::super::request::MODULE_METHODS
            ));
        }
    };
    let body = match (body, body_base64) {
        (None, None) => Vec::new(),
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|e| format!("body_base64: {e}"))?,
        (Some(_), Some(_)) => return Err("a request has body or body_base64, not both".into()),
    };
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path.to_owned(), query.to_owned()),
        None => (path, String::new()),
    };
    Ok(Request { method, path, query, headers: headers.0, body })
}

/// One reply.
#[derive(Serialize)]
struct Said<'a> {
    status: u16,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// The replies, a line for each.
pub(super) fn write(replies: &[Reply]) -> Vec<u8> {
    let mut text = Vec::with_capacity(replies.iter().map(|reply| 128 + reply.body.len()).sum());
    for reply in replies {
        serde_json::to_writer(&mut text, &said(reply)).expect("text can always be written as JSON");
        text.push(b'\n');
    }
    text
}

fn said(reply: &Reply) -> Said<'_> {
    let mut headers = BTreeMap::<&str, String>::new();
    if !reply.content_type.is_empty() {
        headers.insert("content-type", reply.content_type.clone());
    }
    for Header { name, value } in &reply.headers {
        let value = text(value);
        match headers.entry(name) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(value.into_owned())),
            // RFC 9110 §5.3.
            std::collections::btree_map::Entry::Occupied(mut first) => first.get_mut().extend([", ", &value]),
        }
    }
    let (body, body_base64) = match std::str::from_utf8(&reply.body) {
        Ok(body) => (Some(body), None),
        Err(_) => (None, Some(STANDARD.encode(&reply.body))),
    };
    Said { status: reply.status, headers, body, body_base64 }
}

/// A header's value. What isn't UTF-8 is read as Latin-1, as HTTP once had it.
fn text(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) => text.into(),
        Err(_) => value.iter().map(|byte| char::from(*byte)).collect::<String>().into(),
    }
}
