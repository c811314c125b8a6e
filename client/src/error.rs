//! What can become of a request that was not answered by the module: [`Error`], and why: [`Refusal`]. Knows how a
//! problem document (RFC 9457) of a node reads. Next: `reply.rs`.

use std::fmt;

use serde::Deserialize;

/// The beginning of the `type` of each problem that is a node's own.
const PROBLEMS: &str = "/_/problems/";

/// The content type of problem documents.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Why there is no reply of the module's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing happened, and nothing will: the request may be sent again.
    #[error("rejected, nothing happened: {0}")]
    Rejected(Refusal),
    /// It may have happened, or may yet. Only a command ends so, and only one without an idempotency key, or one whose
    /// deadline came before a repetition was answered.
    #[error("the outcome is unknown: {0}")]
    Unknown(Refusal),
    /// The request can't be sent as it is; it was not.
    #[error("invalid: {0}")]
    Invalid(String),
}

/// Who said no, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status of a node's answer; None: no node answered.
    pub status: Option<u16>,
    /// The end of the problem's `type`, as in the table of `docs/http.md`: `overloaded`, `no-leader`, `module-trap`.
    /// The client's own are `client-full` (too much waits here), `deadline`, `unreachable` and `broken` (a connection
    /// ended before the answer, or the answer can't be read).
    pub kind: String,
    /// For people.
    pub detail: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "{status} ")?;
        }
        write!(f, "{}: {}", self.kind, self.detail)
    }
}

impl Refusal {
    /// Of a refusal without effect: it may pass. 503 comes with `Retry-After`; 504 is what a query gets in too long a
    /// wait.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.status, Some(503 | 504))
    }

    /// One of the client's own.
    pub(crate) fn own(kind: &str, detail: impl Into<String>) -> Refusal {
        Refusal { status: None, kind: kind.to_owned(), detail: detail.into() }
    }
}

/// A problem of a node's, and what may be concluded from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) refusal: Refusal,
    /// It may have happened.
    pub(crate) unknown: bool,
}

impl Problem {
    /// None: this is no problem of the node's, so the module's own reply.
    pub(crate) fn read(status: u16, content_type: &str, body: &[u8]) -> Option<Problem> {
        #[derive(Deserialize)]
        struct Document {
            r#type: String,
            #[serde(default)]
            detail: String,
            outcome: String,
        }
        if status < 400 || content_type != PROBLEM_JSON {
            return None;
        }
        let document: Document = serde_json::from_slice(body).ok()?;
        let kind = document.r#type.strip_prefix(PROBLEMS)?.to_owned();
        let refusal = Refusal { status: Some(status), kind, detail: document.detail };
        // Any word but the one that promises something is a doubt.
        Some(Problem { refusal, unknown: document.outcome != "rejected" })
    }

    /// The same request may be answered when it is sent again, and that can do no harm. `repeatable`: not even if it has
    /// happened.
    pub(crate) fn may_pass(&self, repeatable: bool) -> bool {
        (repeatable || !self.unknown) && self.refusal.may_pass()
    }

    pub(crate) fn into_error(self) -> Error {
        if self.unknown { Error::Unknown(self.refusal) } else { Error::Rejected(self.refusal) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLOADED: &str =
        r#"{"type":"/_/problems/overloaded","title":"t","status":503,"detail":"full","outcome":"rejected"}"#;

    #[test]
    fn a_nodes_problem_says_what_may_be_concluded() {
        let problem = Problem::read(503, PROBLEM_JSON, OVERLOADED.as_bytes()).unwrap();
        assert!(problem.may_pass(false));
        let error = problem.into_error();
        assert_eq!(error.to_string(), "rejected, nothing happened: 503 overloaded: full");
        let timeout = OVERLOADED.replace("rejected", "unknown").replace("overloaded", "timeout");
        let problem = Problem::read(504, PROBLEM_JSON, timeout.as_bytes()).unwrap();
        assert!(problem.may_pass(true), "with a key it happens once");
        assert!(!problem.may_pass(false) && matches!(problem.into_error(), Error::Unknown(_)));
        let trap = OVERLOADED.replace("overloaded", "module-trap");
        assert!(!Problem::read(500, PROBLEM_JSON, trap.as_bytes()).unwrap().may_pass(true));
    }

    #[test]
    fn a_word_that_is_not_known_promises_nothing() {
        let odd = OVERLOADED.replace("rejected", "maybe");
        assert!(Problem::read(503, PROBLEM_JSON, odd.as_bytes()).unwrap().unknown);
    }

    #[test]
    fn a_modules_own_reply_is_no_problem() {
        let own = OVERLOADED.replace("/_/problems/", "https://example.org/");
        for (status, content_type, body) in [
            (503, PROBLEM_JSON, own.as_str()),
            (503, PROBLEM_JSON, "{}"),
            (503, PROBLEM_JSON, "oh"),
            (503, "application/json", OVERLOADED),
            (200, PROBLEM_JSON, OVERLOADED),
        ] {
            assert_eq!(Problem::read(status, content_type, body.as_bytes()), None, "{status} {content_type} {body}");
        }
    }
}
