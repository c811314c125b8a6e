//! One request: whose it is, what is wrong with it, and its reply. Refusals first, then the straight path. The next
//! step of a command is `batcher/`, behind [`Api`].

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{StatusCode, Version};
use raftlet_machine::{Method, Request};

use super::body::{self, BodyError, Charge};
use super::metrics::{Gauge, RequestClass};
use super::problem::Problem;
use super::pulse::Pulse;
use super::reply::{self, Reply};
use super::server::{App, Room};
use super::{Api, Consistency, bulk, request};

/// Paths that begin so are the host's.
pub(super) const HOST_PREFIX: &str = "/_/";

/// What the requests of one connection share.
pub(super) struct Connection<A> {
    pub(super) app: Arc<App<A>>,
    pub(super) pulse: Arc<Pulse>,
}

/// Answers one request. Never fails: what can go wrong is a reply.
pub(super) async fn answer<A: Api>(link: &Connection<A>, request: hyper::Request<Incoming>) -> Reply {
    let metrics = &link.app.room.metrics;
    let _busy = link.pulse.request();
    let _in_flight = Gauge::up(&metrics.requests_in_flight);
    let (mut parts, mut body) = request.into_parts();
    let is_head = parts.method == hyper::Method::HEAD;
    let (class, result) = dispatch(link, &mut parts, &mut body).await;
    if (result.is_err() || class == RequestClass::Host) && !body.is_end_stream() {
        // A body was left unread: hyper will close the connection unless the rest is already here.
        link.pulse.lingers.store(true, Relaxed);
    }
    let reply = result.unwrap_or_else(|problem| {
        parts.headers.clear();
        problem.into_reply(parts.headers, parts.version, is_head)
    });
    metrics.answered(class, reply.status());
    reply
}

/// On success the reply has taken the request's header map, to use it again.
async fn dispatch<A: Api>(
    link: &Connection<A>,
    parts: &mut Parts,
    body: &mut Incoming,
) -> (RequestClass, Result<Reply, Problem>) {
    let method = match check_head(link, parts) {
        Ok(method) => method,
        Err(problem) => return (RequestClass::Host, Err(problem)),
    };
    if parts.uri.path() == bulk::PATH {
        if method != Method::Post {
            let problem = Problem::method_not_allowed(parts.method.as_str(), bulk::METHODS);
            return (RequestClass::Bulk, Err(problem));
        }
        return (RequestClass::Bulk, bulk::answer(link, parts, body).await);
    }
    if parts.uri.path().starts_with(HOST_PREFIX) {
        return (RequestClass::Host, host_page(link, parts, method));
    }
    if method.is_query() {
        (RequestClass::Query, query(link, parts, body, method).await)
    } else {
        (RequestClass::Command, command(link, parts, body, method).await)
    }
}

fn check_head<A: Api>(link: &Connection<A>, parts: &Parts) -> Result<Method, Problem> {
    let limit = link.app.room.limits.headers_max;
    // HTTP/1 has counted them already; HTTP/2 counts only bytes.
    if parts.headers.len() > limit {
        return Err(Problem::too_many_headers(limit));
    }
    let Some(method) = request::method(&parts.method) else {
        let allow = match parts.uri.path() {
            bulk::PATH => bulk::METHODS,
            path if path.starts_with(HOST_PREFIX) => request::HOST_METHODS,
            _ => request::MODULE_METHODS,
        };
        return Err(Problem::method_not_allowed(parts.method.as_str(), allow));
    };
    if !parts.uri.path().starts_with('/') {
        return Err(Problem::bad_request("bad-path", "The path is not valid", "a path begins with /"));
    }
    // RFC 9112 §3.2.
    if parts.version == Version::HTTP_11 && !parts.headers.contains_key(HOST) {
        return Err(Problem::bad_request("no-host", "No Host header", "HTTP/1.1 requests have a Host header"));
    }
    Ok(method)
}

async fn command<A: Api>(
    link: &Connection<A>,
    parts: &mut Parts,
    body: &mut Incoming,
    method: Method,
) -> Result<Reply, Problem> {
    let key = request::idempotency_key(&parts.headers).map_err(Problem::bad_key)?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let mut request = to_request(link, parts, body, method, query).await?;
    request.headers.extend(key);
    let answer = link.app.api.command(request).await.map_err(|refusal| Problem::command_refused(&refusal))?;
    Ok(reply::from_answer(answer, emptied(parts), parts.version, false))
}

async fn query<A: Api>(
    link: &Connection<A>,
    parts: &mut Parts,
    body: &mut Incoming,
    method: Method,
) -> Result<Reply, Problem> {
    let (consistency, query) = consistency(parts)?;
    let request = to_request(link, parts, body, method, query).await?;
    let answer = link.app.api.query(request, consistency).await.map_err(|refusal| Problem::query_refused(&refusal))?;
    Ok(reply::from_answer(answer, emptied(parts), parts.version, method == Method::Head))
}

pub(super) fn consistency(parts: &Parts) -> Result<(Consistency, String), Problem> {
    request::consistency(parts.uri.query().unwrap_or_default()).map_err(|request::BadConsistency| {
        let detail = "consistency is stale or linearizable, and is said once";
        Problem::bad_request("bad-consistency", "Unknown consistency", detail)
    })
}

async fn to_request<A: Api>(
    link: &Connection<A>,
    parts: &Parts,
    body: &mut Incoming,
    method: Method,
    query: String,
) -> Result<Request, Problem> {
    let room = &link.app.room;
    // The queue counts it next.
    let (body, _charge) = collect(room, body, room.limits.body_bytes_max).await?;
    let headers = request::forwarded(&parts.headers);
    Ok(Request { method, path: parts.uri.path().to_owned(), query, headers, body })
}

/// The whole body, if it may be had.
pub(super) async fn collect<'a>(
    room: &'a Room,
    body: &mut Incoming,
    bytes_max: usize,
) -> Result<(Vec<u8>, Charge<'a>), Problem> {
    body::collect(body, bytes_max, &room.limits, &room.bodies).await.map_err(|error| match error {
        BodyError::TooLarge => Problem::body_too_large(bytes_max),
        BodyError::NoRoom => Problem::bodies_too_many(),
        BodyError::Broken(error) => Problem::body_broken(&error.to_string()),
        BodyError::TooSlow => {
            room.metrics.body_timeouts.fetch_add(1, Relaxed);
            Problem::body_too_slow()
        }
    })
}

/// The request's header map, to be used for the reply: hyper hands it back to the next request's parser.
pub(super) fn emptied(parts: &mut Parts) -> HeaderMap {
    let mut headers = std::mem::take(&mut parts.headers);
    headers.clear();
    headers
}

fn host_page<A: Api>(link: &Connection<A>, parts: &mut Parts, method: Method) -> Result<Reply, Problem> {
    let api = &link.app.api;
    let is_known = matches!(parts.uri.path(), "/_/health" | "/_/ready" | "/_/status" | "/_/metrics");
    if !is_known {
        return Err(Problem::not_found(parts.uri.path()));
    }
    if !method.is_query() {
        return Err(Problem::method_not_allowed(parts.method.as_str(), request::HOST_METHODS));
    }
    let text = "text/plain; charset=utf-8";
    let (content_type, page) = match parts.uri.path() {
        "/_/health" => (text, Bytes::from_static(b"ok\n")),
        "/_/ready" => {
            api.ready().map_err(Problem::not_ready)?;
            (text, Bytes::from_static(b"ready\n"))
        }
        "/_/status" => {
            let json = serde_json::to_vec(&api.status()).expect("strings and numbers can always be written as JSON");
            ("application/json", json.into())
        }
        _ => ("application/openmetrics-text; version=1.0.0; charset=utf-8", api.metrics().into()),
    };
    let mut headers = emptied(parts);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(reply::build(StatusCode::OK, headers, page, method == Method::Head))
}
