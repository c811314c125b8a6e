//! From an HTTP head to a [`Request`]: which method, which consistency, which headers. Pure. Bytes are passed on as
//! they came; nothing is decoded.

use hyper::header::HeaderMap;
use raftlet_machine::limits::IDEMPOTENCY_KEY_BYTES_MAX;
use raftlet_machine::{FORWARDED_HEADERS, Header, IDEMPOTENCY_KEY, Method};

use super::Consistency;

/// The methods a module can be asked with, as an `Allow` header.
pub(super) const MODULE_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
/// The methods the host's own pages can be asked with.
pub(super) const HOST_METHODS: &str = "GET, HEAD";

const CONSISTENCY: &str = "consistency";

/// The query's parameter is not one of the host's words, or there are two.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadConsistency;

pub(super) fn method(method: &hyper::Method) -> Option<Method> {
    Some(match *method {
        hyper::Method::GET => Method::Get,
        hyper::Method::HEAD => Method::Head,
        hyper::Method::POST => Method::Post,
        hyper::Method::PUT => Method::Put,
        hyper::Method::PATCH => Method::Patch,
        hyper::Method::DELETE => Method::Delete,
        _ => return None,
    })
}

/// The headers a module gets to see, without the idempotency key: it is not passed on as it came.
pub(super) fn forwarded(headers: &HeaderMap) -> Vec<Header> {
    let is_wanted = |name: &str| name != IDEMPOTENCY_KEY && FORWARDED_HEADERS.contains(&name);
    let wanted = headers.iter().filter(|(name, _)| is_wanted(name.as_str()));
    wanted.map(|(name, value)| Header { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() }).collect()
}

/// A command's `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), bare. It is a structured field's string
/// (RFC 9651 §3.3.3), so it stands in quotes; most clients send it without, and that is taken too. The error says, for
/// people, what is wrong with it.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<Header>, String> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err("Idempotency-Key is given more than once".into());
    }
    let value = value.as_bytes();
    let key = match value {
        [b'"', ..] => unquoted(value).ok_or("the string in Idempotency-Key doesn't end where its quotes do")?,
        bare if bare.iter().any(|byte| b"\"\\,".contains(byte)) => {
            return Err("an Idempotency-Key with quotes, backslashes or commas must itself stand in quotes".into());
        }
        bare => bare.to_vec(),
    };
    check_key(&key)?;
    Ok(Some(Header { name: IDEMPOTENCY_KEY.to_owned(), value: key }))
}

/// Whether a bare key can be one.
pub(super) fn check_key(key: &[u8]) -> Result<(), String> {
    if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) {
        let len = key.len();
        return Err(format!("the Idempotency-Key has {len} bytes; it must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX}"));
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err("an Idempotency-Key is visible ASCII, without spaces".into());
    }
    Ok(())
}

/// The text of a structured field's string; nothing may follow it.
fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let mut inner = value.strip_prefix(b"\"")?.iter();
    let mut text = Vec::with_capacity(value.len());
    loop {
        match inner.next()? {
            b'"' => break,
            b'\\' => text.push(*inner.next().filter(|byte| b"\"\\".contains(byte))?),
            byte => text.push(*byte),
        }
    }
    inner.as_slice().is_empty().then_some(text)
}

/// Takes the host's parameter out of a query's query string; the rest keeps its bytes and order. The module never
/// sees the parameter, so that no module has to know it. Commands are not looked at: there the name is the module's.
pub(super) fn consistency(query: &str) -> Result<(Consistency, String), BadConsistency> {
    if !query.contains(CONSISTENCY) {
        return Ok((Consistency::Linearizable, query.to_owned()));
    }
    let mut found = None;
    let mut rest = String::with_capacity(query.len());
    let mut first = true;
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name == CONSISTENCY {
            let asked = match value {
                "stale" => Consistency::Stale,
                "linearizable" => Consistency::Linearizable,
                _ => return Err(BadConsistency),
            };
            if found.replace(asked).is_some() {
                return Err(BadConsistency);
            }
            continue;
        }
        if !std::mem::take(&mut first) {
            rest.push('&');
        }
        rest.push_str(parameter);
    }
    Ok((found.unwrap_or(Consistency::Linearizable), rest))
}

/// Whether a query string has the host's parameter.
pub(super) fn names_consistency(query: &str) -> bool {
    let is_it = |parameter: &str| parameter.split('=').next() == Some(CONSISTENCY);
    query.contains(CONSISTENCY) && query.split('&').any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Consistency::{Linearizable, Stale};

    #[test]
    fn consistency_is_taken_out_and_the_rest_stays_as_it_is() {
        let cases = [
            ("", Linearizable, ""),
            ("a=1&b=%00", Linearizable, "a=1&b=%00"),
            ("consistency=stale", Stale, ""),
            ("consistency=linearizable&a=1", Linearizable, "a=1"),
            ("a=1&consistency=stale&&b", Stale, "a=1&&b"),
            ("&a&consistency=stale", Stale, "&a"),
            ("a=1&consistency=stale&b=2", Stale, "a=1&b=2"),
            ("xconsistency=odd&consistency%3Dstale", Linearizable, "xconsistency=odd&consistency%3Dstale"),
        ];
        for (query, asked, rest) in cases {
            assert_eq!(consistency(query), Ok((asked, rest.to_owned())), "{query}");
        }
    }

    fn key(values: &[&str]) -> Result<Option<String>, String> {
        let header = |value: &&str| (IDEMPOTENCY_KEY.parse().unwrap(), value.parse().unwrap());
        let headers: HeaderMap = values.iter().map(header).collect();
        Ok(idempotency_key(&headers)?.map(|header| String::from_utf8(header.value).unwrap()))
    }

    #[test]
    fn a_key_is_taken_quoted_or_bare_and_passed_on_bare() {
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        let longest = "k".repeat(255);
        let cases = [
            (format!("\"{uuid}\""), uuid),
            (uuid.to_owned(), uuid),
            (r#""a\"b\\c,;d""#.to_owned(), r#"a"b\c,;d"#),
            ("a;b=c'(){}".to_owned(), "a;b=c'(){}"),
            ("x".to_owned(), "x"),
            (longest.clone(), &longest),
            (format!("\"{longest}\""), &longest),
        ];
        for (value, bare) in cases {
            assert_eq!(key(&[&value]), Ok(Some(bare.to_owned())), "{value}");
        }
        assert_eq!(key(&[]), Ok(None));
    }

    #[test]
    fn a_key_that_could_be_misread_is_refused() {
        let long = "k".repeat(256);
        let quoted_long = format!("\"{long}\"");
        let cases = [
            ("", "1 to 255"),
            ("\"\"", "1 to 255"),
            (&long, "256 bytes"),
            (&quoted_long, "256 bytes"),
            ("a b", "visible ASCII"),
            ("\"a b\"", "visible ASCII"),
            ("\"a\tb\"", "visible ASCII"),
            ("\"a", "end where"),
            ("\"a\\x\"", "end where"),
            ("\"a\"b", "end where"),
            ("\"a\";p=1", "end where"),
            ("\"a\\\"", "end where"),
            ("a\"b", "in quotes"),
            ("a,b", "in quotes"),
        ];
        for (value, why) in cases {
            let refused = key(&[value]).expect_err(value);
            assert!(refused.contains(why), "{value}: {refused}");
        }
        assert!(key(&["a", "a"]).expect_err("two").contains("more than once"));
    }

    #[test]
    fn an_unknown_or_second_consistency_is_refused() {
        for query in ["consistency=", "consistency", "consistency=STALE", "consistency=stale&consistency=stale"] {
            assert_eq!(consistency(query), Err(BadConsistency), "{query}");
        }
    }
}
