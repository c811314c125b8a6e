//! The default module: keys and values of any bytes over HTTP.
//!
//! | request | reply |
//! |---|---|
//! | `PUT /kv/{key}` | 201 (created) or 204 (replaced), `ETag` |
//! | `GET /kv/{key}` | 200 with the value and `ETag`, 304, or 404 |
//! | `DELETE /kv/{key}` | 204 or 404 |
//! | `GET /kv?prefix=&after=&limit=` | 200 with one page of keys in their order (`listing.rs`) |
//!
//! `If-Match` and `If-None-Match` make any of them conditional (`conditions.rs`). The revision in an `ETag` is the
//! number of the command that wrote the value: unique and increasing for ever.
//!
//! This file owns the routes and what a key holds: next is `conditions.rs`.

mod conditions;
mod listing;

use conditions::{Conditions, Verdict};
use raftlet_machine::guest::{Context, Machine, Route, Store, StoreView, percent_decode_into};
use raftlet_machine::{ArchivedRequest, Method, Reply, limits};

/// Every key in the store begins with this byte: other kinds of data can come later without a migration.
const KEY_PREFIX: &[u8] = b"k";
const KEY_BYTES_MAX: usize = limits::KEY_BYTES_MAX - KEY_PREFIX.len();
const REVISION_BYTES: usize = size_of::<u64>();
const ALLOW: &str = "GET, HEAD, PUT, DELETE";

struct KeyValue;

impl Machine for KeyValue {
    const NAME: &'static str = "kv";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn routes() -> &'static [Route] {
        const ROUTES: &[Route] = &[
            Route::new(Method::Put, "/kv/{key}", "store the body under the key"),
            Route::new(Method::Get, "/kv/{key}", "the value"),
            Route::new(Method::Delete, "/kv/{key}", "remove the key"),
            Route::new(Method::Get, "/kv?prefix=&after=&limit=", "one page of keys, in order"),
        ];
        ROUTES
    }

    fn apply(ctx: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply {
        if request.path() == "/kv" {
            return Reply::method_not_allowed("GET, HEAD");
        }
        write(ctx.command_number, request, store).unwrap_or_else(|refusal| refusal)
    }

    fn query(_: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply {
        if request.path() == "/kv" {
            return listing::list(request, store).unwrap_or_else(|refusal| refusal);
        }
        read(request, store).unwrap_or_else(|refusal| refusal)
    }
}

raftlet_machine::export!(KeyValue);

/// PUT and DELETE. `Err` is a refusal: nothing was written. What each command runs is inlined: a call costs a module
/// more than it costs native code, because its fuel is put away before and fetched after.
#[inline(always)]
fn write(revision: u64, request: &ArchivedRequest, store: &mut Store) -> Result<Reply, Reply> {
    let mut key = stored_key(request, REVISION_BYTES + request.body().len())?;
    let conditions = Conditions::of(request)?;
    let current = |key: &[u8], store: &Store| store.get(key).map(|stored| Value::of(&stored).revision);
    match request.method() {
        Method::Put => {
            // What was there isn't fetched for nothing: it is said by `set`.
            if let Some(conditions) = conditions {
                conditions.check_write(current(&key, store))?;
            }
            // One allocation has both.
            let key_bytes = key.len();
            key.extend_from_slice(&revision.to_le_bytes());
            key.extend_from_slice(request.body());
            let (key, value) = key.split_at(key_bytes);
            let replaced = store.set(key, value);
            Ok(Reply::status(if replaced { 204 } else { 201 }).with_header("etag", etag(revision)))
        }
        Method::Delete => {
            // RFC 9110 §13.2.1: without the conditions this would be no success, so they don't count.
            if let Some(conditions) = conditions {
                conditions.check_write(Some(current(&key, store).ok_or_else(Reply::not_found)?))?;
            }
            if store.delete(&key) { Ok(Reply::status(204)) } else { Err(Reply::not_found()) }
        }
        _ => Err(Reply::method_not_allowed(ALLOW)),
    }
}

/// GET and HEAD.
fn read(request: &ArchivedRequest, store: &StoreView) -> Result<Reply, Reply> {
    let stored = store.get(&stored_key(request, 0)?).ok_or_else(Reply::not_found)?;
    let value = Value::of(&stored);
    let verdict = Conditions::of(request)?.map_or(Verdict::Pass, |conditions| conditions.judge(Some(value.revision)));
    let reply = match verdict {
        Verdict::Pass => Reply::ok(value.bytes),
        Verdict::Unchanged => Reply::status(304),
        Verdict::Failed => return Err(conditions::failed()),
    };
    Ok(reply.with_header("etag", etag(value.revision)))
}

/// The store's key for the request's: what follows `/kv/`, percent-decoded. There is room for `more` bytes behind it.
#[inline(always)]
fn stored_key(request: &ArchivedRequest, more: usize) -> Result<Vec<u8>, Reply> {
    let encoded = request.path().strip_prefix("/kv/");
    let encoded = encoded.ok_or_else(|| Reply::text(404, "not found; this module serves /kv"))?.as_bytes();
    let mut stored = Vec::with_capacity(KEY_PREFIX.len() + encoded.len() + more);
    stored.extend_from_slice(KEY_PREFIX);
    percent_decode_into(encoded, &mut stored).map_err(Reply::bad_request)?;
    match stored.len() - KEY_PREFIX.len() {
        0 => Err(Reply::bad_request("the key is empty; a key follows /kv/")),
        1..=KEY_BYTES_MAX => Ok(stored),
        bytes => Err(Reply::text(414, format_args!("the key has {bytes} bytes, {KEY_BYTES_MAX} are allowed"))),
    }
}

/// What the store holds under a key: the revision (8 bytes, little-endian), then the value as it was sent.
struct Value<'a> {
    revision: u64,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    fn of(stored: &'a [u8]) -> Self {
        let (revision, bytes) = stored.split_first_chunk::<REVISION_BYTES>().expect("only `write` writes values");
        Value { revision: u64::from_le_bytes(*revision), bytes }
    }
}

/// By hand: the standard library's formatting would be a seventh of what a PUT costs in Wasm, and pushing one character
/// after the other a tenth.
#[inline(always)]
fn etag(mut revision: u64) -> Vec<u8> {
    // Two quotes and the digits of the largest number, from the end.
    let mut text = [b'"'; 22];
    let mut at = text.len() - 1;
    loop {
        at -= 1;
        text[at] = b'0' + (revision % 10) as u8;
        revision /= 10;
        if revision == 0 {
            break;
        }
    }
    text[at - 1..].to_vec()
}

#[cfg(test)]
mod tests;
