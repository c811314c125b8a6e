//! The module as its clients see it, run natively by the SDK's test host.

use raftlet_machine::guest::{TestHost, percent_encode};
use raftlet_machine::{Method, Reply, Request};

use super::{KEY_BYTES_MAX, KeyValue};

struct Client(TestHost<KeyValue>);

impl Client {
    fn new() -> Self {
        Client(TestHost::default())
    }

    fn send(&mut self, method: Method, target: &str) -> Reply {
        self.0.send(Request::new(method, target))
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Reply {
        self.0.send(Request::new(Method::Put, &format!("/kv/{key}")).with_body(value))
    }

    fn get(&mut self, key: &str) -> Reply {
        self.send(Method::Get, &format!("/kv/{key}"))
    }

    fn conditional(&mut self, method: Method, header: &str, value: &str) -> u16 {
        self.0.send(Request::new(method, "/kv/a").with_header(header, value).with_body("new")).status
    }

    fn list(&mut self, query: &str) -> String {
        let reply = self.send(Method::Get, &format!("/kv{query}"));
        assert_eq!((reply.status, reply.content_type.as_str()), (200, "application/json"));
        String::from_utf8(reply.body).unwrap()
    }
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let found = reply.headers.iter().find(|h| h.name == name)?;
    Some(std::str::from_utf8(&found.value).unwrap())
}

#[test]
fn a_value_is_created_replaced_read_and_deleted() {
    let mut client = Client::new();
    assert_eq!(client.get("a").status, 404);
    let created = client.put("a", b"one");
    assert_eq!((created.status, header(&created, "etag")), (201, Some("\"1\"")));
    let replaced = client.put("a", b"|BATCH|\0\xff");
    assert_eq!((replaced.status, header(&replaced, "etag")), (204, Some("\"2\"")));
    let read = client.get("a");
    assert_eq!((read.status, header(&read, "etag")), (200, Some("\"2\"")));
    assert_eq!((read.content_type.as_str(), read.body.as_slice()), ("application/octet-stream", &b"|BATCH|\0\xff"[..]));
    assert_eq!(client.send(Method::Head, "/kv/a"), read);
    assert_eq!(client.send(Method::Delete, "/kv/a").status, 204);
    assert_eq!(client.send(Method::Delete, "/kv/a").status, 404);
    assert_eq!(client.get("a").status, 404);
}

#[test]
fn keys_and_values_are_any_bytes() {
    let mut client = Client::new();
    let all: Vec<u8> = (0..=255).collect();
    client.put(&percent_encode(&all), b"");
    let empty = client.get(&percent_encode(&all));
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    client.put("a/b//c/", b"slashes");
    assert_eq!(client.get("a%2Fb%2f%2Fc%2F").body, b"slashes");
    assert_eq!(client.get("a/b//c").status, 404);
}

#[test]
fn bad_keys_and_unknown_paths_are_refused() {
    let mut client = Client::new();
    for method in [Method::Get, Method::Put, Method::Delete] {
        assert_eq!(client.send(method, "/kv/").status, 400);
        assert_eq!(client.send(method, "/kv/a%4").status, 400);
        assert_eq!(client.send(method, "/elsewhere").status, 404);
        assert_eq!(client.send(method, "/kvx").status, 404);
    }
    assert_eq!(client.put(&"k".repeat(KEY_BYTES_MAX), b"").status, 201);
    assert_eq!(client.put(&"k".repeat(KEY_BYTES_MAX + 1), b"").status, 414);
}

#[test]
fn other_methods_are_told_which_to_use() {
    let mut client = Client::new();
    for method in [Method::Post, Method::Patch] {
        let reply = client.send(method, "/kv/a");
        assert_eq!((reply.status, header(&reply, "allow")), (405, Some("GET, HEAD, PUT, DELETE")));
    }
    let reply = client.send(Method::Put, "/kv");
    assert_eq!((reply.status, header(&reply, "allow")), (405, Some("GET, HEAD")));
}

#[test]
fn two_writes_of_one_batch_have_different_revisions() {
    let mut client = Client::new();
    let put = |value: &str| Request::new(Method::Put, "/kv/a").with_body(value);
    let replies = client.0.apply(vec![put("one"), put("two")]);
    let tags: Vec<_> = replies.iter().map(|r| header(r, "etag").unwrap()).collect();
    assert_eq!(tags, ["\"1\"", "\"2\""]);
    assert_eq!(client.get("a").body, b"two");
}

#[test]
fn conditional_writes_protect_what_the_client_has_seen() {
    let mut client = Client::new();
    assert_eq!(client.conditional(Method::Put, "if-match", "*"), 412);
    assert_eq!(client.conditional(Method::Put, "if-none-match", "*"), 201); // command 2
    assert_eq!(client.conditional(Method::Put, "if-none-match", "*"), 412);
    assert_eq!(client.conditional(Method::Put, "if-match", "\"1\""), 412);
    assert_eq!(client.conditional(Method::Put, "if-match", "W/\"2\""), 412);
    assert_eq!(client.conditional(Method::Put, "if-match", "2"), 400);
    assert_eq!(client.conditional(Method::Put, "if-match", "\"1\", \"2\""), 204); // command 7
    assert_eq!(client.conditional(Method::Delete, "if-match", "\"2\""), 412);
    assert_eq!(client.get("a").body, b"new");
    assert_eq!(client.conditional(Method::Delete, "if-match", "\"7\""), 204);
    // RFC 9110 §13.2.1: not found without the condition, so not found with it.
    assert_eq!(client.conditional(Method::Delete, "if-match", "*"), 404);
    assert_eq!(client.conditional(Method::Post, "if-match", "\"1\""), 405);
}

#[test]
fn conditional_reads_save_the_body() {
    let mut client = Client::new();
    client.put("a", b"value");
    assert_eq!(client.conditional(Method::Get, "if-none-match", "\"2\""), 200);
    assert_eq!(client.conditional(Method::Get, "if-match", "\"2\""), 412);
    let unchanged = client.0.send(Request::new(Method::Get, "/kv/a").with_header("if-none-match", "W/\"1\""));
    assert_eq!((unchanged.status, header(&unchanged, "etag"), unchanged.body.len()), (304, Some("\"1\""), 0));
}

#[test]
fn the_listing_pages_in_key_order() {
    let mut client = Client::new();
    assert_eq!(client.list(""), "{\"keys\":[]}\n");
    for key in ["b", "a%2F2", "a%2F1", "c%FF%22"] {
        client.put(key, key.as_bytes());
    }
    let entry = |key, etag, size| format!(r#"{{"key":"{key}","etag":"\"{etag}\"","size":{size}}}"#);
    let (a1, a2, b, c) = (entry("a%2F1", 3, 5), entry("a%2F2", 2, 5), entry("b", 1, 1), entry("c%FF%22", 4, 7));
    assert_eq!(client.list(""), format!("{{\"keys\":[{a1},{a2},{b},{c}]}}\n"));
    assert_eq!(client.list("?prefix=a/"), format!("{{\"keys\":[{a1},{a2}]}}\n"));
    assert_eq!(client.list("?limit=1&prefix=a"), format!("{{\"keys\":[{a1}],\"next\":\"a%2F1\"}}\n"));
    assert_eq!(client.list("?limit=1&prefix=a&after=a%2F1"), format!("{{\"keys\":[{a2}]}}\n"));
    assert_eq!(client.list("?after=b"), format!("{{\"keys\":[{c}]}}\n"));
    assert_eq!(client.list("?prefix=a&after=b"), "{\"keys\":[]}\n");
}

#[test]
fn a_page_of_large_values_is_cut_by_its_bytes() {
    let mut client = Client::new();
    let value = vec![7; 600 << 10];
    client.put("a", &value);
    client.put("b", &value);
    assert!(client.list("").ends_with("\"next\":\"a\"}\n"));
    let last = client.list("?after=a");
    assert!(last.contains("\"key\":\"b\"") && !last.contains("next"), "{last}");
}

#[test]
fn limits_and_encodings_of_the_listing_are_checked() {
    let mut client = Client::new();
    for query in ["limit=0", "limit=1001", "limit=x", "limit=", "limit=-1", "prefix=%", "after=%zz"] {
        assert_eq!(client.send(Method::Get, &format!("/kv?{query}")).status, 400, "{query}");
    }
    assert_eq!(client.list("?limit=1000&unknown=1"), "{\"keys\":[]}\n");
}
