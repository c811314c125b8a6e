//! Where a node's client listener is.

use std::fmt;
use std::str::FromStr;

use hyper::header::HeaderValue;

use crate::error::Error;

/// A node by its URL, `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    authority: String,
    host: HeaderValue,
}

impl Node {
    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The header `Host`.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.host
    }
}

impl FromStr for Node {
    type Err = Error;

    fn from_str(url: &str) -> Result<Node, Error> {
        let wrong = |why: &str| Error::Invalid(format!("{url:?} {why}; give http://HOST:PORT"));
        let uri: hyper::Uri = url.parse().map_err(|error| wrong(&format!("is no URL ({error})")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("isn't http://, and nothing else is spoken"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(wrong("has a path"));
        }
        if authority.as_str().contains('@') {
            return Err(wrong("has a user"));
        }
        let authority = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let host = HeaderValue::from_str(&authority).map_err(|_| wrong("has a host that can't be sent"))?;
        Ok(Node { authority, host })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_host_and_a_port() {
        let node = |url: &str| url.parse::<Node>().map(|node| node.to_string());
        assert_eq!(node("http://127.0.0.1:8080"), Ok("http://127.0.0.1:8080".into()));
        assert_eq!(node("http://[::1]:8080/"), Ok("http://[::1]:8080".into()));
        assert_eq!(node("http://db.example"), Ok("http://db.example:80".into()));
        for (url, why) in [
            ("https://a:1", "nothing else"),
            ("localhost:8080", "nothing else"),
            ("http://a:1/kv", "has a path"),
            ("http://u@a:1", "has a user"),
            ("/a", "http://"),
            ("", "no URL"),
        ] {
            let Err(Error::Invalid(text)) = node(url) else { panic!("{url} was taken") };
            assert!(text.contains(why), "{text}");
        }
    }
}
