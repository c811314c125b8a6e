//! Takes a guest's answer apart and believes nothing: archive, count, status, headers. Says for each reply whether
//! HTTP can carry it. The last stop in this room; the replies go on to `state_machine/`.

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
    if !reply.content_type.bytes().all(is_value) {
        return Some("the content type has bytes that HTTP doesn't allow".into());
    }
    for header in reply.headers.iter() {
        if !is_name(header.name.as_bytes()) {
            return Some("a header's name has bytes that HTTP doesn't allow".into());
        }
        if !header.value.iter().copied().all(is_value) {
            return Some(format!("the value of header {} has bytes that HTTP doesn't allow", header.name));
        }
        if header.name.len() >= HOST_HEADER_BYTES_MIN
            && HOST_HEADERS.iter().any(|name| header.name.eq_ignore_ascii_case(name))
        {
            return Some(format!("header {} is the host's to set", header.name));
        }
    }
    None
}

/// A token (RFC 9110 §5.6.2). By our own words, not those of a library: which replies are valid is part of what the
/// replicas agree on, and a library's types would copy each.
fn is_name(name: &[u8]) -> bool {
    (1..=HEADER_NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(|byte| IS_TOKEN[usize::from(*byte)])
}

/// Each reply's names are looked at, byte by byte.
const IS_TOKEN: [bool; 256] = {
    let (mut is_token, mut byte) = ([false; 256], 0);
    while byte < 256 {
        is_token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let (others, mut at) = (b"!#$%&'*+-.^_`|~", 0);
    while at < others.len() {
        is_token[others[at] as usize] = true;
        at += 1;
    }
    is_token
};

/// May stand in a field's value (RFC 9110 §5.5).
fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What the HTTP library can carry.
const HEADER_NAME_BYTES_MAX: usize = (1 << 16) - 1;

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
const HOST_HEADER_BYTES_MIN: usize = {
    let (mut min, mut at) = (usize::MAX, 0);
    while at < HOST_HEADERS.len() {
        if HOST_HEADERS[at].len() < min {
            min = HOST_HEADERS[at].len();
        }
        at += 1;
    }
    min
};

#[cfg(test)]
mod tests {
    use ::http::{HeaderName, HeaderValue};
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

    /// A reply that passes here is later given to the HTTP library.
    #[test]
    fn the_http_library_takes_what_is_valid() {
        for byte in 0..=255 {
            for bytes in [vec![byte], vec![b'a', byte], vec![byte, b'a']] {
                assert_eq!(is_name(&bytes), HeaderName::from_bytes(&bytes).is_ok(), "{bytes:?}");
                let valid = bytes.iter().copied().all(is_value);
                assert_eq!(valid, HeaderValue::from_bytes(&bytes).is_ok(), "{bytes:?}");
            }
        }
        for len in [0, HEADER_NAME_BYTES_MAX, HEADER_NAME_BYTES_MAX + 1] {
            let name = vec![b'a'; len];
            assert_eq!(is_name(&name), HeaderName::from_bytes(&name).is_ok(), "{len}");
        }
        for text in ["", "text/plain", "a\tb", "é", "a\u{7f}"] {
            let judged = judged(Reply { content_type: text.into(), ..reply(200, "x", b"") });
            assert_eq!(judged.is_none(), HeaderValue::from_str(text).is_ok(), "{text:?}");
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
