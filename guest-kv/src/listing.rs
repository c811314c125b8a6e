//! `GET /kv`: one page of keys in byte order, as JSON. Keys may be any bytes, so they are given percent-encoded: put
//! one behind `/kv/`, or give `next` as `after`, as it is.

use std::fmt::Write;

use raftlet_machine::guest::{KeyRange, StoreView, percent_encode};
use raftlet_machine::{ArchivedRequest, Reply};

use crate::{KEY_PREFIX, Value};

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// The host hands over values with their keys; a page of large values is cut short here, and `next` goes on.
const PAGE_BYTES_MAX: u32 = 1 << 20;

/// `Err` is the 400 for a parameter that can't be read.
pub fn list(request: &ArchivedRequest, store: &StoreView) -> Result<Reply, Reply> {
    let parameter = |name| request.parameter(name).transpose().map_err(Reply::bad_request);
    let stored = |key: Vec<u8>| [KEY_PREFIX, &key].concat();
    let limit = limit(parameter("limit")?)?;
    let mut range = KeyRange::prefix(&stored(parameter("prefix")?.unwrap_or_default()));
    if let Some(after) = parameter("after")? {
        range = range.after(&stored(after));
    }

    let page = store.scan(&range, limit, PAGE_BYTES_MAX);
    let last = page.last().map(|entry| entry.key.as_slice());
    // A page may be cut by its bytes too, so only a look beyond its last key tells whether there is more.
    let next = last.filter(|last| !store.scan(&range.after(last), 1, 1).is_empty());

    let mut json = String::from("{\"keys\":[");
    for (at, entry) in page.iter().enumerate() {
        let value = Value::of(&entry.value);
        let comma = if at == 0 { "" } else { "," };
        let (key, revision, size) = (shown(&entry.key), value.revision, value.bytes.len());
        // The quotes belong to the entity tag.
        write!(json, "{comma}{{\"key\":\"{key}\",\"etag\":\"\\\"{revision}\\\"\",\"size\":{size}}}")
            .expect("strings grow");
    }
    json.push(']');
    if let Some(next) = next {
        write!(json, ",\"next\":\"{}\"", shown(next)).expect("strings grow");
    }
    json.push_str("}\n");
    Ok(Reply::json(json))
}

fn limit(parameter: Option<Vec<u8>>) -> Result<u32, Reply> {
    let Some(digits) = parameter else { return Ok(LIMIT_DEFAULT) };
    let number = str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
    number
        .filter(|n| (1..=LIMIT_MAX).contains(n))
        .ok_or_else(|| Reply::bad_request(format_args!("limit must be a number from 1 to {LIMIT_MAX}")))
}

fn shown(stored_key: &[u8]) -> String {
    percent_encode(&stored_key[KEY_PREFIX.len()..])
}
