//! Takes a guest's answer apart and believes nothing: archive, count, status, headers. Says for each reply whether
//! HTTP can carry it. The last stop in this room; the replies go on to `state_machine/`.

use ::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use raftlet_machine::ArchivedReply;

use super::limits::Limits;
use crate::outcome::{Failure, ModuleReplies};

/// The answer as a whole can't be used, so no reply can be told from another.
pub(super) fn check(archive: Vec<u8>, expected: usize, limits: &Limits) -> Result<ModuleReplies, Failure> {
    if archive.len() > limits.reply_bytes_max as usize {
        let (bytes, max) = (archive.len(), limits.reply_bytes_max);
        return Err(Failure::InvalidReply(format!("the replies have {bytes} bytes, {max} are allowed")));
    }
    // Its text comes from a library: a reply must not depend on that library's wording.
    let Ok(replies) = ModuleReplies::new(Bytes::from(archive)) else {
        return Err(Failure::InvalidReply("not an archive of replies".into()));
    };
    let count = replies.get().len();
    if count != expected {
        return Err(Failure::InvalidReply(format!("{count} replies for {expected} commands")));
    }
    Ok(replies)
}

/// Why HTTP can't carry the first reply that it can't carry, with its place among the replies.
pub(super) fn first_invalid(replies: &ModuleReplies) -> Option<(usize, Failure)> {
    let mut replies = replies.get().iter().enumerate();
    replies.find_map(|(at, reply)| invalid(reply).map(|why| (at, Failure::InvalidReply(why))))
}

fn invalid(reply: &ArchivedReply) -> Option<String> {
    let status = reply.status.to_native();
    if !(200..=599).contains(&status) {
        return Some(format!("status {status} is not between 200 and 599"));
    }
    if HeaderValue::from_str(&reply.content_type).is_err() {
        return Some("the content type has bytes that HTTP doesn't allow".into());
    }
    for header in reply.headers.iter() {
        if HeaderName::from_bytes(header.name.as_bytes()).is_err() {
            return Some("a header's name has bytes that HTTP doesn't allow".into());
        }
        if HeaderValue::from_bytes(&header.value).is_err() {
            return Some(format!("the value of header {} has bytes that HTTP doesn't allow", header.name));
        }
        if HOST_HEADERS.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
            return Some(format!("header {} is the host's to set", header.name));
        }
    }
    None
}

/// They frame the message, or speak for the host (RFC 9110 §7.6.1, RFC 9112 §6).
const HOST_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "keep-alive",
    "raftlet-index",
    "raftlet-term",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use raftlet_machine::{Header, Replies, Reply};

    use super::*;

    fn judged(reply: Reply) -> Option<Failure> {
        let archive = Replies { replies: vec![reply] }.to_bytes();
        first_invalid(&check(archive, 1, &Limits::default()).unwrap()).map(|(_, failure)| failure)
    }

    fn reply(status: u16, name: &str, value: &[u8]) -> Reply {
        let headers = vec![Header { name: name.into(), value: value.to_vec() }];
        Reply { status, content_type: String::new(), headers, body: Vec::new() }
    }

    #[test]
    fn http_must_be_able_to_carry_it() {
        assert_eq!(judged(reply(200, "etag", b"\"1\"")), None);
        assert_eq!(judged(reply(599, "x", b"")), None);
        for bad in [
            reply(199, "etag", b""),
            reply(600, "etag", b""),
            reply(200, "a b", b""),
            reply(200, "", b""),
            reply(200, "etag", b"1\r\nset-cookie: x"),
            reply(200, "Content-Length", b"0"),
            Reply { content_type: "a\nb".into(), ..reply(200, "etag", b"") },
        ] {
            assert!(matches!(judged(bad.clone()), Some(Failure::InvalidReply(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_archive_is_checked_as_a_whole() {
        let limits = Limits::default();
        let archive = Replies { replies: vec![reply(200, "etag", b"")] }.to_bytes();
        assert_eq!(check(archive.clone(), 1, &limits).unwrap().get().len(), 1);
        assert!(check(archive.clone(), 2, &limits).is_err());
        assert!(check(archive[..archive.len() - 1].to_vec(), 1, &limits).is_err());
        assert!(check(Vec::new(), 0, &limits).is_err());
        assert!(check(archive.clone(), 1, &Limits { reply_bytes_max: 8, ..limits }).is_err());
        let exact = Limits { reply_bytes_max: archive.len() as u32, ..limits };
        assert!(check(archive, 1, &exact).is_ok());
    }
}
