//! `POST /_/batch`: many requests of one client as one request (step 1 of 8 for all of them). What they have to obey is
//! the same as for single ones (`bulk/check.rs`). Two forms: the archive that goes into the log as it is, and lines of
//! JSON (`bulk/lines.rs`), archived here once. Replies go back in the form that was asked in (`bulk/replies.rs`), and are
//! counted until they are sent (`bulk/unread.rs`).

mod check;
mod lines;
mod replies;
mod unread;

use std::panic::resume_unwind;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use raftlet_machine::{Batch, IDEMPOTENCY_KEY};

use self::check::{Bounds, Checked, Fault};
use self::unread::Unread;
use super::problem::Problem;
use super::reply::{self, RAFTLET_INDEX, RAFTLET_TERM, Reply};
use super::route::{self, Connection};
use super::{Api, HttpLimits};
use crate::outcome::BatchReplies;

/// Where it is.
pub(super) const PATH: &str = "/_/batch";
/// The methods it can be asked with, as an `Allow` header.
pub(super) const METHODS: &str = "POST";

/// What takes longer than some hundred microseconds is done beside the threads that serve connections and Raft.
const INLINE_BYTES_MAX: usize = 256 << 10;
/// What a reply counts for beside its body.
const REPLY_BYTES: usize = 128;

/// How the requests, and then the replies, are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Archive,
    Lines,
}

/// A batch that may go on.
struct Accepted {
    archive: Bytes,
    count: usize,
    checked: Checked,
}

/// Answers the whole request, or says why none of its requests was looked at any further.
pub(super) async fn answer<A: Api>(
    link: &Connection<A>,
    parts: &mut Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let form = Form::of(&parts.headers)?;
    if parts.headers.contains_key(IDEMPOTENCY_KEY) {
        let why = "a batch as a whole has no Idempotency-Key; give each of its commands its own";
        return Err(Problem::bad_key(why));
    }
    let (consistency, _) = route::consistency(parts)?;
    let room = &link.app.room;
    // Kept to the end: what is read and checked beside counts in no other limit yet.
    let (body, _charge) = route::collect(room, body, room.limits.bulk_bytes_max).await?;
    unread::check(room)?;
    let (heavy, limits) = (body.len() > INLINE_BYTES_MAX, room.limits.clone());
    let accepted = beside(heavy, move || form.accept(body, &limits)).await?;
    let Accepted { archive, count, checked } = accepted;
    let is_query = checked.queries;
    let answer = if is_query {
        link.app.api.query_batch(archive, count, consistency).await.map_err(|r| Problem::query_refused(&r))?
    } else {
        link.app.api.command_batch(archive, count).await.map_err(|r| Problem::command_refused(&r))?
    };
    let mut headers = route::emptied(parts);
    headers.insert(RAFTLET_INDEX, HeaderValue::from(answer.index));
    headers.insert(RAFTLET_TERM, HeaderValue::from(answer.term));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.of_replies()));
    let body = beside(is_heavy(&answer.replies), move || form.write(answer.replies, &checked)).await;
    if is_query {
        // Queries wait for each other, so many may have come in before the replies were too many; nothing is lost.
        unread::check(room)?;
    }
    let body = Unread::body(body, &room.metrics);
    Ok(reply::build(StatusCode::OK, headers, body, false))
}

impl Form {
    const REQUESTS: &str = "application/vnd.raftlet.batch";
    const REPLIES: &str = "application/vnd.raftlet.replies";
    const LINES: &str = "application/x-ndjson";

    fn of(headers: &HeaderMap) -> Result<Form, Problem> {
        let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(Form::REQUESTS) {
            Ok(Form::Archive)
        } else if essence.eq_ignore_ascii_case(Form::LINES) {
            Ok(Form::Lines)
        } else {
            let detail = format!("a batch has the Content-Type {} or {}", Form::REQUESTS, Form::LINES);
            Err(Problem::unsupported_media_type(detail))
        }
    }

    fn of_replies(self) -> &'static str {
        match self {
            Form::Archive => Form::REPLIES,
            Form::Lines => Form::LINES,
        }
    }

    /// Checks all requests. They go on only together.
    fn accept(self, body: Vec<u8>, limits: &HttpLimits) -> Result<Accepted, Problem> {
        let archive = match self {
            Form::Archive => body,
            Form::Lines => lines::read(&body).map_err(|fault| self.problem(fault))?.to_bytes(),
        };
        // A line of JSON may be shorter than the same request in the archive, and that is what is logged.
        if archive.len() > limits.bulk_bytes_max {
            let (bytes, max) = (archive.len(), limits.bulk_bytes_max);
            return Err(Problem::batch_too_large(format!("the archived batch has {bytes} bytes, {max} are allowed")));
        }
        let batch = Batch::access(&archive).map_err(|_| {
            // What the library knows beyond that it says in debug builds only.
            Problem::bad_batch(format!("the body, of {} bytes, is not a valid archive of a batch", archive.len()))
        })?;
        let checked = check::check(batch, &Bounds::of(limits)).map_err(|fault| self.problem(fault))?;
        let count = batch.commands.len();
        Ok(Accepted { archive: archive.into(), count, checked })
    }

    fn problem(self, Fault { at, too_large, why }: Fault) -> Problem {
        let detail = match (at, self) {
            (None, _) => why,
            (Some(at), Form::Archive) => format!("request {at}: {why}"),
            (Some(at), Form::Lines) => format!("request {at} (line {}): {why}", at + 1),
        };
        if too_large { Problem::batch_too_large(detail) } else { Problem::bad_batch(detail) }
    }

    fn write(self, replies: BatchReplies, checked: &Checked) -> Bytes {
        match self {
            Form::Archive => replies::archive(replies, checked),
            Form::Lines => lines::write(&replies::each(replies, checked)).into(),
        }
    }
}

fn is_heavy(replies: &BatchReplies) -> bool {
    use crate::outcome::ReplyView::{Failed, Module, Replayed};
    let bytes = |reply| match reply {
        Module(reply) => REPLY_BYTES + reply.body.len(),
        Failed(_) | Replayed(_) => 4 * REPLY_BYTES,
    };
    replies.iter().map(bytes).sum::<usize>() > INLINE_BYTES_MAX
}

/// Does the work here, or on a thread of its own if it is heavy.
async fn beside<T: Send + 'static>(heavy: bool, work: impl FnOnce() -> T + Send + 'static) -> T {
    if !heavy {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime ends, and this task with it.
        Err(_) => std::future::pending().await,
    }
}
