//! The replies to a batch as an archive. What the module archived is sent as it is, if nothing in it differs from what
//! the same replies would be to single requests. Else each is made as for a single request, and archived anew.

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::header::CONTENT_TYPE;
use raftlet_machine::limits::REPLIES_BYTES_MAX;
use raftlet_machine::{ArchivedReply, Header, Replies, Reply};

use super::super::problem::Problem;
use super::super::reply;
use super::check::Checked;
use crate::outcome::{BatchReplies, CommandReply};

/// What a reply and a header may take in an archive beside their bytes.
const FRAME_BYTES: usize = 64;

pub(super) fn archive(replies: BatchReplies, checked: &Checked) -> Bytes {
    match &replies {
        BatchReplies::Whole(whole) if checked.heads.is_empty() && whole.get().iter().all(is_as_sent) => {
            whole.archive().clone()
        }
        _ => Replies { replies: each(replies, checked) }.to_bytes().into(),
    }
}

/// Whether a client gets just this of the reply: no body where there can't be one, no header that is the host's.
fn is_as_sent(reply: &ArchivedReply) -> bool {
    let is_lower = |name: &str| !name.bytes().any(|byte| byte.is_ascii_uppercase());
    (reply.body.is_empty() || !reply::is_bodiless(reply.status.to_native()))
        && reply.headers.iter().all(|header| is_lower(&header.name) && !reply::is_hosts(&header.name))
}

/// Each as a single request would have got it. Together they are bounded: those beyond are replaced by what says so.
pub(super) fn each(replies: BatchReplies, checked: &Checked) -> Vec<Reply> {
    let mut bytes_left = REPLIES_BYTES_MAX;
    let mut one = |(at, reply): (usize, CommandReply)| {
        let own = taken_apart(reply::of_one(&reply, checked.heads.binary_search(&at).is_ok()));
        let headers: usize = own.headers.iter().map(|h| FRAME_BYTES + h.name.len() + h.value.len()).sum();
        let bytes = FRAME_BYTES + own.content_type.len() + headers + own.body.len();
        match bytes_left.checked_sub(bytes) {
            Some(left) => {
                bytes_left = left;
                own
            }
            None => taken_apart(reply::of_problem(Problem::replies_too_large(checked.queries))),
        }
    };
    replies.into_each().into_iter().enumerate().map(&mut one).collect()
}

fn taken_apart(reply: reply::Reply) -> Reply {
    let (parts, body) = reply.into_parts();
    let body = body.collect().now_or_never().expect("the body is all there").unwrap_or_else(|never| match never {});
    let (mut content_type, mut headers) = (String::new(), Vec::new());
    for (name, value) in &parts.headers {
        if name == CONTENT_TYPE {
            content_type = String::from_utf8_lossy(value.as_bytes()).into_owned();
        } else {
            headers.push(Header { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() });
        }
    }
    Reply { status: parts.status.as_u16(), content_type, headers, body: body.to_bytes().into() }
}
