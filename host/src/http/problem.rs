//! The one table from error to status. Every refusal of the host's is an `application/problem+json` document
//! (RFC 9457) whose member `outcome` says what the client may conclude. Two kinds of answers are not in this table,
//! because the protocol layer writes them before there is a request: 400, 414 and 431 for a head that can't be parsed or is
//! over the limits (no body; nothing was executed). Read on in `reply.rs`.

use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{StatusCode, Version};
use serde::Serialize;

use super::reply::{self, Reply};
use crate::outcome::{Failure, Outcome, Refusal};

/// A reply of the host's that says no.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    outcome: Outcome,
    /// The request may simply be sent again, after a second.
    retry: bool,
    allow: Option<&'static str>,
    /// The rest of the request won't be read, so the connection can't be used any more.
    close: bool,
}

/// The document's form on the wire.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    outcome: &'a str,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Problem { status, kind, title, detail, outcome: Outcome::Rejected, retry: false, allow: None, close: false }
    }

    fn unavailable(kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem { retry: true, ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, detail) }
    }

    /// A command that was not answered.
    pub(super) fn command_refused(refusal: &Refusal) -> Self {
        let detail = refusal.to_string();
        let problem = match refusal {
            Refusal::Overloaded { .. } => Problem::unavailable("overloaded", "Too much is waiting", detail),
            Refusal::NoLeader { .. } => Problem::unavailable("no-leader", "The cluster has no leader", detail),
            Refusal::Founding => Problem::unavailable("founding", "The cluster isn't complete", detail),
            Refusal::NoModule => Problem::unavailable("no-module", "No module is active", detail),
            Refusal::ShuttingDown => Problem::unavailable("shutting-down", "The node is shutting down", detail),
            Refusal::Lagging { .. } => Problem::unavailable("lagging", "The node has not caught up", detail),
            Refusal::LocalFault(_) => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "local-fault", "The node has a fault", detail)
            }
            Refusal::DiskFull(_) => Problem::unavailable("disk-full", "The disk is nearly full", detail),
            Refusal::Quarantined(_) => Problem::unavailable("quarantined", "The node is in quarantine", detail),
            Refusal::Held(_) => Problem::unavailable("held", "The node doesn't apply entries", detail),
            Refusal::Replaced => {
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "replaced", "The outcome is unknown", detail)
            }
            Refusal::InDoubt => Problem::new(StatusCode::GATEWAY_TIMEOUT, "in-doubt", "The outcome is unknown", detail),
            Refusal::Timeout { .. } => {
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "No answer in time", detail)
            }
        };
        Problem { outcome: refusal.outcome(), ..problem }
    }

    /// A query that was not answered. Queries change nothing, so their outcome is always known.
    pub(super) fn query_refused(refusal: &Refusal) -> Self {
        let problem = Problem { outcome: Outcome::Rejected, ..Problem::command_refused(refusal) };
        match refusal {
            Refusal::Timeout { waited_ms } => {
                Problem { detail: format!("the query was not answered within {waited_ms} ms"), ..problem }
            }
            _ => problem,
        }
    }

    /// A command or query that has no reply of its module's. Its writes were dropped, if it was run.
    pub(super) fn failed(failure: &Failure) -> Self {
        let detail = failure.to_string();
        let error = |kind, title| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, kind, title, detail.clone());
        match failure {
            Failure::Trap(_) => error("module-trap", "The module trapped"),
            Failure::OutOfFuel => error("out-of-fuel", "The command used up its fuel"),
            Failure::OutOfMemory => error("out-of-memory", "The module's memory limit was reached"),
            Failure::InvalidReply(_) => error("invalid-reply", "The module's reply breaks the contract"),
            Failure::QueryTimeout => Problem::unavailable("query-timeout", "The query took too long", detail),
            Failure::NoModule => Problem::unavailable("no-module", "No module was active", detail),
            Failure::KeyReused => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Problem::new(status, "idempotency-key-reused", "The Idempotency-Key was used before", detail)
            }
            Failure::KeysFull => Problem::unavailable("idempotency-keys-full", "Too many idempotency keys", detail),
            Failure::Skipped => error("skipped", "The entry was skipped"),
            Failure::ReplayBudget => {
                // 504 as where the outcome is unknown: who has sent it is to send it again, as it was, with its key.
                let title = "The first reply can't be repeated now";
                let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "replay-budget", title, detail);
                Problem { outcome: Outcome::Unknown, ..problem }
            }
            Failure::BatchBudget => Problem::unavailable("batch-budget", "The batch's fuel was used up", detail),
        }
    }

    /// The module answered with a status that HTTP doesn't allow here. Its writes are kept.
    pub(super) fn bad_module_status(status: u16) -> Self {
        let detail = format!("the module answered with status {status}; 200 to 599 are allowed");
        let title = "The module's reply can't be sent";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Problem { outcome: Outcome::Unknown, ..Problem::new(status, "invalid-status", title, detail) }
    }

    /// The reply can't be part of the answer to its batch. A command has taken effect.
    pub(super) fn replies_too_large(is_query: bool) -> Self {
        if is_query {
            let detail = "the replies to the batch have reached their limit; ask for the rest in another one";
            return Problem::unavailable("batch-budget", "The batch's replies are too large", detail);
        }
        let detail = "the command was run, but the replies to its batch are too large together; with an \
                      idempotency-key it can be sent again, alone, for its reply";
        let (status, title) = (StatusCode::INTERNAL_SERVER_ERROR, "The batch's replies are too large");
        Problem { outcome: Outcome::Unknown, ..Problem::new(status, "replies-too-large", title, detail) }
    }

    /// A batch with a request that can't be read or isn't allowed. None of them was run.
    pub(super) fn bad_batch(detail: impl Into<String>) -> Self {
        Problem::bad_request("bad-batch", "The batch can't be used", detail)
    }

    /// A batch that was received whole and exceeds a limit. None of its requests was run.
    pub(super) fn batch_too_large(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The batch is too large", detail)
    }

    pub(super) fn bad_key(why: impl Into<String>) -> Self {
        Problem::bad_request("bad-idempotency-key", "The Idempotency-Key can't be used", why)
    }

    pub(super) fn unsupported_media_type(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Problem::new(status, "unsupported-media-type", "No form of a batch", detail)
    }

    pub(super) fn body_too_large(limit_bytes: usize) -> Self {
        let detail = format!("the body has more than the {limit_bytes} bytes that are allowed");
        let title = "The request is too large";
        Problem { close: true, ..Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, detail) }
    }

    pub(super) fn bodies_too_many() -> Self {
        let detail = "the bodies being received have reached their limit; try again later";
        Problem { close: true, ..Problem::unavailable("overloaded", "Too much is waiting", detail) }
    }

    /// Of batches. What the client has asked for has not been done.
    pub(super) fn replies_unread(waiting_bytes: u64, limit_bytes: usize) -> Self {
        let detail = format!(
            "replies to batches wait to be read by their clients ({waiting_bytes} bytes wait, {limit_bytes} may); try \
             again later"
        );
        Problem::unavailable("overloaded", "Too much is waiting", detail)
    }

    pub(super) fn body_too_slow() -> Self {
        let detail = "the body came too slowly";
        let status = StatusCode::REQUEST_TIMEOUT;
        Problem { close: true, ..Problem::new(status, "slow-body", "The client is too slow", detail) }
    }

    pub(super) fn head_too_slow() -> Self {
        let detail = "the request's head came too slowly";
        let status = StatusCode::REQUEST_TIMEOUT;
        Problem { close: true, ..Problem::new(status, "slow-head", "The client is too slow", detail) }
    }

    pub(super) fn body_broken(why: &str) -> Self {
        let detail = format!("the body can't be read: {why}");
        Problem { close: true, ..Problem::new(StatusCode::BAD_REQUEST, "bad-body", "The body is broken", detail) }
    }

    pub(super) fn too_many_headers(limit: usize) -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Problem::new(status, "too-many-headers", "Too many headers", format!("{limit} headers are allowed"))
    }

    pub(super) fn bad_request(kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, kind, title, detail)
    }

    pub(super) fn method_not_allowed(method: &str, allow: &'static str) -> Self {
        let detail = format!("{method} is not among the allowed methods: {allow}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Problem { allow: Some(allow), ..Problem::new(status, "method-not-allowed", "Unknown method", detail) }
    }

    pub(super) fn not_found(path: &str) -> Self {
        let detail = format!("paths under /_/ are the host's, and there is no {path}");
        Problem::new(StatusCode::NOT_FOUND, "not-found", "No such page", detail)
    }

    pub(super) fn not_ready(why: String) -> Self {
        Problem::unavailable("not-ready", "The node is not ready", why)
    }

    /// The document itself. `type` is an identifier; nothing is served there.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let outcome = match self.outcome {
            Outcome::Rejected => "rejected",
            Outcome::Unknown => "unknown",
        };
        let document = Document {
            r#type: format!("/_/problems/{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            outcome,
        };
        serde_json::to_vec(&document).expect("strings and a number can always be written as JSON")
    }

    /// `headers` is an empty map to be used, or what the reply has besides.
    pub(super) fn into_reply(self, mut headers: HeaderMap, version: Version, is_head: bool) -> Reply {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        // HTTP/2 has no such header (RFC 9113 §8.2.2); there the stream alone ends.
        if self.close && version <= Version::HTTP_11 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply::build(self.status, headers, self.to_json().into(), is_head)
    }
}
