//! From an HTTP head to a [`Request`]: which method, which consistency, which headers. Pure. Bytes are passed on as
//! they came; nothing is decoded.

use hyper::header::HeaderMap;
use raftlet_machine::{FORWARDED_HEADERS, Header, Method};

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

/// The headers a module gets to see.
pub(super) fn forwarded(headers: &HeaderMap) -> Vec<Header> {
    let wanted = headers.iter().filter(|(name, _)| FORWARDED_HEADERS.contains(&name.as_str()));
    wanted.map(|(name, value)| Header { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() }).collect()
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

    #[test]
    fn an_unknown_or_second_consistency_is_refused() {
        for query in ["consistency=", "consistency", "consistency=STALE", "consistency=stale&consistency=stale"] {
            assert_eq!(consistency(query), Err(BadConsistency), "{query}");
        }
    }
}
