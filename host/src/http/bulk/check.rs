//! Whether HTTP would let each request of a batch through, read in place: what the protocol layer, `route.rs` and
//! `request.rs` refuse in a single request is refused here. Nothing is allocated for a request that is right.

use raftlet_machine::limits::BATCH_COMMANDS_MAX;
use raftlet_machine::{ArchivedBatch, ArchivedMethod, ArchivedRequest, FORWARDED_HEADERS, IDEMPOTENCY_KEY};

use super::super::{HttpLimits, request, route};

/// Bytes of path and query together, with the `?`: what the protocol layer takes.
const TARGET_BYTES_MAX: usize = u16::MAX as usize - 1;
/// Around a header's name and value on the wire: `: ` and the line's end.
const HEADER_FRAME_BYTES: usize = 4;

/// What one request may be.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    body_bytes_max: usize,
    header_bytes_max: usize,
    headers_max: usize,
}

/// What is wrong with a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Position of the request, from 0. None: it is the batch as a whole.
    pub(super) at: Option<usize>,
    /// A limit is exceeded.
    pub(super) too_large: bool,
    pub(super) why: String,
}

/// A batch of requests that are all right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// All are queries; else all are commands.
    pub(super) queries: bool,
    /// Positions of the HEAD requests, ascending: their replies have no body.
    pub(super) heads: Vec<usize>,
}

impl Bounds {
    pub(super) fn of(limits: &HttpLimits) -> Self {
        let HttpLimits { body_bytes_max, header_bytes_max, headers_max, .. } = *limits;
        Bounds { body_bytes_max, header_bytes_max, headers_max }
    }
}

impl Fault {
    pub(super) fn wrong(why: impl Into<String>) -> Self {
        Fault { at: None, too_large: false, why: why.into() }
    }

    fn too_large(why: impl Into<String>) -> Self {
        Fault { too_large: true, ..Fault::wrong(why) }
    }

    pub(super) fn at(self, at: usize) -> Self {
        Fault { at: Some(at), ..self }
    }
}

pub(super) fn check(batch: &ArchivedBatch, bounds: &Bounds) -> Result<Checked, Fault> {
    count(batch.commands.len())?;
    let queries = is_query(batch.commands[0].method);
    let mut heads = Vec::new();
    for (at, request) in batch.commands.iter().enumerate() {
        if is_query(request.method) != queries {
            let (own, first) = if queries { ("a command", "a query") } else { ("a query", "a command") };
            let why = format!("it is {own}, and request 0 is {first}; a batch is all commands or all queries");
            return Err(Fault::wrong(why).at(at));
        }
        one(request, queries, bounds).map_err(|fault| fault.at(at))?;
        if request.method == ArchivedMethod::Head {
            heads.push(at);
        }
    }
    Ok(Checked { queries, heads })
}

/// Whether a batch may have so many requests.
pub(super) fn count(count: usize) -> Result<(), Fault> {
    match count {
        0 => Err(Fault::wrong("there is no request in the batch")),
        1..=BATCH_COMMANDS_MAX => Ok(()),
        more => Err(Fault::too_large(format!("the batch has {more} requests, {BATCH_COMMANDS_MAX} are allowed"))),
    }
}

fn is_query(method: ArchivedMethod) -> bool {
    matches!(method, ArchivedMethod::Get | ArchivedMethod::Head)
}

fn one(request: &ArchivedRequest, is_query: bool, bounds: &Bounds) -> Result<(), Fault> {
    let (path, query) = (request.path.as_bytes(), request.query.as_bytes());
    if path.first() != Some(&b'/') {
        return Err(Fault::wrong("a path begins with /"));
    }
    if request.path.starts_with(route::HOST_PREFIX) {
        return Err(Fault::wrong("paths under /_/ are the host's"));
    }
    if let Some(byte) = path.iter().find(|byte| !IN_PATH[usize::from(**byte)]) {
        return Err(Fault::wrong(format!("a path can't have the byte 0x{byte:02x} as it is; percent-encode it")));
    }
    if let Some(byte) = query.iter().find(|byte| !IN_QUERY[usize::from(**byte)]) {
        return Err(Fault::wrong(format!("a query can't have the byte 0x{byte:02x} as it is; percent-encode it")));
    }
    if is_query && request::names_consistency(&request.query) {
        return Err(Fault::wrong("consistency is said in the URL of the batch, for all of its queries"));
    }
    if request.body.len() > bounds.body_bytes_max {
        let (bytes, max) = (request.body.len(), bounds.body_bytes_max);
        return Err(Fault::too_large(format!("the body has {bytes} bytes, {max} are allowed")));
    }
    let target_bytes = path.len() + 1 + query.len();
    if target_bytes > TARGET_BYTES_MAX.min(bounds.header_bytes_max) {
        return Err(Fault::too_large(format!("path and query have {target_bytes} bytes, which is too much")));
    }
    headers(request, target_bytes, is_query, bounds)
}

fn headers(request: &ArchivedRequest, target_bytes: usize, is_query: bool, bounds: &Bounds) -> Result<(), Fault> {
    if request.headers.len() > bounds.headers_max {
        let (count, max) = (request.headers.len(), bounds.headers_max);
        return Err(Fault::too_large(format!("it has {count} headers, {max} are allowed")));
    }
    let mut head_bytes = target_bytes;
    let mut has_key = false;
    for header in request.headers.iter() {
        let (name, value) = (header.name.as_str(), header.value.as_slice());
        if !FORWARDED_HEADERS.contains(&name) {
            let name = name.escape_default();
            return Err(Fault::wrong(format!("a module doesn't see the header \"{name}\"; names are in lower case")));
        }
        if name == IDEMPOTENCY_KEY {
            if is_query {
                return Err(Fault::wrong("a query has no idempotency-key"));
            }
            if std::mem::replace(&mut has_key, true) {
                return Err(Fault::wrong("idempotency-key is given more than once"));
            }
            request::check_key(value).map_err(Fault::wrong)?;
        }
        let is_outer_blank = |byte: Option<&u8>| byte.is_some_and(|byte| b" \t".contains(byte));
        let is_text = |byte: &u8| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t';
        if !value.iter().all(is_text) || is_outer_blank(value.first()) || is_outer_blank(value.last()) {
            return Err(Fault::wrong(format!("the value of {name} is none that HTTP carries")));
        }
        head_bytes += name.len() + value.len() + HEADER_FRAME_BYTES;
    }
    if head_bytes > bounds.header_bytes_max {
        let max = bounds.header_bytes_max;
        return Err(Fault::too_large(format!("path, query and headers have {head_bytes} bytes, {max} are allowed")));
    }
    Ok(())
}

/// The bytes that the protocol layer takes in a path and in a query. Above ASCII it wants UTF-8, which strings are.
static IN_PATH: [bool; 256] = bytes(true);
static IN_QUERY: [bool; 256] = bytes(false);

const fn bytes(path: bool) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0x21;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'#' | b'<' | b'>' | 0x7f => false,
            b'?' | b'`' => !path,
            b'"' => path,
            _ => true,
        };
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use hyper::http::uri::PathAndQuery;

    use super::*;

    #[test]
    fn the_tables_are_the_protocol_layers() {
        for character in (0..=0x17f).filter_map(char::from_u32) {
            let all = |table: &[bool; 256]| character.to_string().bytes().all(|byte| table[usize::from(byte)]);
            // Taken, and left where it is.
            let path = PathAndQuery::try_from(format!("/{character}x"));
            let is_taken = path.is_ok_and(|p| p.path() == format!("/{character}x"));
            assert_eq!(all(&IN_PATH), is_taken, "{character:?} in a path");
            let query = PathAndQuery::try_from(format!("/?{character}x"));
            let is_taken = query.is_ok_and(|p| p.query() == Some(&format!("{character}x")));
            assert_eq!(all(&IN_QUERY), is_taken, "{character:?} in a query");
        }
        let long = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        assert!(PathAndQuery::try_from(long(TARGET_BYTES_MAX)).is_ok());
        assert!(PathAndQuery::try_from(long(TARGET_BYTES_MAX + 1)).is_err());
    }
}
