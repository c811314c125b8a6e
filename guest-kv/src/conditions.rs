//! Conditional requests (RFC 9110 §13): `If-Match` and `If-None-Match` against a key's revision. Reads headers, knows
//! no store. A header that can't be read is refused: guessing could overwrite what the client meant to protect.

use raftlet_machine::{ArchivedRequest, Reply};

/// A request's conditions, one at least.
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// `If-None-Match` says that the client has this revision: 304 to a read, 412 to a write.
    Unchanged,
    /// `If-Match` names no current revision: 412.
    Failed,
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: whatever there is.
    Any,
    List(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    opaque: Vec<u8>,
}

impl Conditions {
    /// `None` without the headers: then everything passes. `Err` is the 400 for those that aren't lists of entity tags.
    #[inline(always)]
    pub fn of(request: &ArchivedRequest) -> Result<Option<Self>, Reply> {
        if request.headers.is_empty() { Ok(None) } else { Self::of_headers(request) }
    }

    #[inline(never)]
    fn of_headers(request: &ArchivedRequest) -> Result<Option<Self>, Reply> {
        let (if_match, if_none_match) = (tags(request, "if-match")?, tags(request, "if-none-match")?);
        let are_any = if_match.is_some() || if_none_match.is_some();
        Ok(are_any.then_some(Conditions { if_match, if_none_match }))
    }

    /// In the order of RFC 9110 §13.2.2. `current` is the key's revision, `None` if there is no such key.
    pub fn judge(&self, current: Option<u64>) -> Verdict {
        // If-Match compares strongly: a weak tag never matches (§8.8.3.2). If-None-Match compares weakly.
        if self.if_match.as_ref().is_some_and(|tags| !tags.name(current, |tag| !tag.weak)) {
            return Verdict::Failed;
        }
        if self.if_none_match.as_ref().is_some_and(|tags| tags.name(current, |_| true)) {
            return Verdict::Unchanged;
        }
        Verdict::Pass
    }

    /// For commands: `Err` is the 412.
    pub fn check_write(&self, current: Option<u64>) -> Result<(), Reply> {
        if self.judge(current) == Verdict::Pass { Ok(()) } else { Err(failed()) }
    }
}

/// 412.
pub fn failed() -> Reply {
    Reply::text(412, "the condition in If-Match or If-None-Match does not hold")
}

impl Tags {
    fn name(&self, current: Option<u64>, counts: impl Fn(&Tag) -> bool) -> bool {
        let Some(revision) = current else { return false };
        let opaque = revision.to_string().into_bytes();
        match self {
            Tags::Any => true,
            Tags::List(tags) => tags.iter().any(|tag| counts(tag) && tag.opaque == opaque),
        }
    }
}

/// All headers of this name are one list (RFC 9110 §5.3).
fn tags(request: &ArchivedRequest, name: &str) -> Result<Option<Tags>, Reply> {
    let values: Vec<&[u8]> = request.headers(name).collect();
    if values.is_empty() {
        return Ok(None);
    }
    let malformed =
        || Reply::bad_request(format_args!("{name} must be * or a list of entity tags, like \"12\", \"15\""));
    parse(&values.join(&b',')).map(Some).ok_or_else(malformed)
}

fn parse(list: &[u8]) -> Option<Tags> {
    if list.trim_ascii() == b"*" {
        return Some(Tags::Any);
    }
    let mut tags = Vec::new();
    let mut rest = list.trim_ascii_start();
    while !rest.is_empty() {
        // A list may have empty elements (RFC 9110 §5.6.1.2).
        if let Some(after) = rest.strip_prefix(b",") {
            rest = after.trim_ascii_start();
            continue;
        }
        let (weak, quoted) = rest.strip_prefix(b"W/").map_or((false, rest), |quoted| (true, quoted));
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&b| b == b'"')?;
        let (opaque, after) = inner.split_at(end);
        if opaque.iter().any(|&b| b <= b' ' || b == 0x7f) {
            return None;
        }
        tags.push(Tag { weak, opaque: opaque.to_vec() });
        rest = after[1..].trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
    // A list of nothing is no list (`If-Match: ` would otherwise refuse for ever).
    (!tags.is_empty()).then_some(Tags::List(tags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(if_match: Option<&str>, if_none_match: Option<&str>, current: Option<u64>) -> Verdict {
        let tags = |text: &str| parse(text.as_bytes()).unwrap();
        Conditions { if_match: if_match.map(tags), if_none_match: if_none_match.map(tags) }.judge(current)
    }

    #[test]
    fn if_match_compares_strongly() {
        assert_eq!(judge(Some(r#""7""#), None, Some(7)), Verdict::Pass);
        assert_eq!(judge(Some(r#""6", "7""#), None, Some(7)), Verdict::Pass);
        assert_eq!(judge(Some(r#"W/"7""#), None, Some(7)), Verdict::Failed);
        assert_eq!(judge(Some(r#""8""#), None, Some(7)), Verdict::Failed);
        assert_eq!(judge(Some("*"), None, Some(7)), Verdict::Pass);
        assert_eq!(judge(Some("*"), None, None), Verdict::Failed);
        assert_eq!(judge(Some(r#""7""#), None, None), Verdict::Failed);
    }

    #[test]
    fn if_none_match_compares_weakly_and_comes_second() {
        assert_eq!(judge(None, Some(r#"W/"7""#), Some(7)), Verdict::Unchanged);
        assert_eq!(judge(None, Some(r#""8""#), Some(7)), Verdict::Pass);
        assert_eq!(judge(None, Some("*"), Some(7)), Verdict::Unchanged);
        assert_eq!(judge(None, Some("*"), None), Verdict::Pass);
        assert_eq!(judge(Some(r#""8""#), Some(r#""7""#), Some(7)), Verdict::Failed);
        assert_eq!(judge(None, None, None), Verdict::Pass);
    }

    #[test]
    fn lists_are_read_by_the_grammar() {
        let opaque = |text: &[u8]| match parse(text) {
            Some(Tags::List(tags)) => tags.into_iter().map(|t| t.opaque).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(opaque(br#" , "a,b" ,,W/"c","" "#), [b"a,b".to_vec(), b"c".to_vec(), Vec::new()]);
        for bad in ["", ",", "7", "\"7", "\"7\" \"8\"", "w/\"7\"", "*, \"7\"", "\"a b\"", "\"7\"x"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
