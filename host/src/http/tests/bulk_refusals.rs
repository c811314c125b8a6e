//! What is refused of a batch: all of it, with the position of the request that is wrong.

use raftlet_machine::Method::{Delete, Get, Put};

use super::bulk::{ARCHIVE, LINES, archive, post, request};
use super::*;

/// Few bytes of everything.
fn small() -> HttpLimits {
    let (body_bytes_max, bulk_bytes_max) = (100, 20_000);
    HttpLimits { body_bytes_max, bulk_bytes_max, header_bytes_max: 8192, headers_max: 5, ..HttpLimits::default() }
}

#[track_caller]
fn refused(seen: &Seen, status: u16, words: &[&str]) {
    assert_eq!((seen.status, seen.outcome().as_str()), (status, "rejected"), "{seen:?}");
    let document: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    let detail = document["detail"].as_str().unwrap();
    for word in words {
        assert!(detail.contains(word), "no {word:?} in {detail:?}");
    }
}

fn with(change: impl FnOnce(&mut Request)) -> Request {
    let mut one = request(Put, "/a", b"x");
    change(&mut one);
    one
}

fn headed(headers: &[(&str, &str)]) -> Request {
    with(|r| r.headers = headers.iter().map(|(name, value)| header(name, value)).collect())
}

#[tokio::test]
async fn each_wrong_request_is_named_and_nothing_happens() {
    let rig = Rig::new(small()).await;
    let cases = [
        (400, "a path begins with /", with(|r| r.path = "a".into())),
        (400, "a path begins with /", with(|r| r.path = String::new())),
        (400, "a path begins with /", with(|r| r.path = "*".into())),
        (400, "host's", with(|r| r.path = "/_/status".into())),
        (400, "host's", with(|r| r.path = "/_/batch".into())),
        (400, "0x20", with(|r| r.path = "/a b".into())),
        (400, "0x23", with(|r| r.path = "/a#b".into())),
        (400, "0x3f", with(|r| r.path = "/a?b".into())),
        (400, "0x0a", with(|r| r.path = "/a\nb".into())),
        (400, "0x7f", with(|r| r.path = "/a\x7f".into())),
        (400, "0x00", with(|r| r.query = "a\0".into())),
        (400, "0x23", with(|r| r.query = "a#b".into())),
        (413, "101 bytes, 100", with(|r| r.body = vec![0; 101])),
        (413, "path and query", with(|r| r.path = format!("/{}", "x".repeat(8192)))),
        (
            413,
            "path, query and headers",
            with(|r| {
                r.path = format!("/{}", "x".repeat(8100));
                r.headers = vec![header("accept", &"x".repeat(90))];
            }),
        ),
        (413, "6 headers, 5", headed(&[("accept", "x"); 6])),
        (400, "\"host\"", headed(&[("host", "h")])),
        (400, "\"Accept\"", headed(&[("Accept", "x")])),
        (400, "\"\"", headed(&[("", "x")])),
        (400, "HTTP carries", headed(&[("accept", "a\nb")])),
        (400, "HTTP carries", headed(&[("accept", "a\x7f")])),
        (400, "HTTP carries", headed(&[("accept", " a")])),
        (400, "HTTP carries", headed(&[("accept", "a\t")])),
        (400, "more than once", headed(&[("idempotency-key", "a"), ("idempotency-key", "b")])),
        (400, "has 0 bytes", headed(&[("idempotency-key", "")])),
        (400, "has 256 bytes", headed(&[("idempotency-key", &"k".repeat(256))])),
        (400, "visible ASCII", headed(&[("idempotency-key", "a b")])),
        (400, "it is a query", request(Get, "/a", b"")),
    ];
    let mut client = rig.client().await;
    for (status, word, wrong) in cases {
        client
            .send(post("", ARCHIVE, &archive(vec![request(Put, "/a", b""), request(Delete, "/a", b""), wrong])))
            .await;
        refused(&client.reply().await, status, &["request 2:", word]);
    }
    for (word, wrong) in [
        ("it is a command", request(Put, "/a", b"")),
        ("for all of its queries", Request { query: "a&consistency=stale".into(), ..request(Get, "/a", b"") }),
        ("no idempotency-key", Request { headers: vec![header("idempotency-key", "k")], ..request(Get, "/a", b"") }),
    ] {
        client.send(post("", ARCHIVE, &archive(vec![request(Get, "/a", b""), wrong]))).await;
        refused(&client.reply().await, 400, &["request 1:", word]);
    }
    assert_eq!(rig.node.batches.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn at_each_edge_a_request_is_still_right() {
    let rig = Rig::new(small()).await;
    let right = vec![
        with(|r| r.body = vec![0; 100]),
        with(|r| r.path = format!("/{}", "x".repeat(8190))),
        headed(&[("accept", "x"); 5]),
        headed(&[("idempotency-key", &"k".repeat(255))]),
        headed(&[("idempotency-key", "\"quoted\\")]),
        headed(&[("accept", ""), ("prefer", "a b\t\u{e9}")]),
        with(|r| (r.path, r.query) = ("/_x/%20\u{e9}".into(), "consistency=the-modules".into())),
        with(|r| r.path = "/_".into()),
    ];
    let count = right.len();
    let seen = rig.ask(post("", ARCHIVE, &archive(right))).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(Replies::from_bytes(&seen.body).unwrap().replies.len(), count);
}

#[tokio::test]
async fn each_wrong_line_is_named() {
    let rig = Rig::new(small()).await;
    let mut client = rig.client().await;
    let good = r#"{"method":"PUT","path":"/a"}"#;
    for (status, word, line) in [
        (400, "one JSON object", ""),
        (400, "one JSON object", " \r"),
        (400, "one JSON object", "x"),
        (400, "one JSON object", r#"["PUT","/a",{},null,null]"#),
        (400, "key must be a string", "{x"),
        (400, "missing field `path`", r#"{"method":"PUT"}"#),
        (400, "missing field `method`", r#"{"path":"/"}"#),
        (400, "unknown field `url`", r#"{"method":"PUT","path":"/","url":"/"}"#),
        (400, "duplicate field `path`", r#"{"method":"PUT","path":"/","path":"/b"}"#),
        (400, "\"put\" is not among", r#"{"method":"put","path":"/"}"#),
        (400, "\"OPTIONS\"", r#"{"method":"OPTIONS","path":"/"}"#),
        (400, "not both", r#"{"method":"PUT","path":"/","body":"","body_base64":""}"#),
        (400, "body_base64", r#"{"method":"PUT","path":"/","body_base64":"?"}"#),
        (400, "body_base64", r#"{"method":"PUT","path":"/","body_base64":"AP8"}"#),
        (400, "invalid type", r#"{"method":"PUT","path":"/","body":{}}"#),
        (400, "object of header names", r#"{"method":"PUT","path":"/","headers":[]}"#),
        (400, "\"cookie\"", r#"{"method":"PUT","path":"/","headers":{"Cookie":"a"}}"#),
        (400, "trailing", r#"{"method":"PUT","path":"/"} {}"#),
        (400, "0x23", r##"{"method":"PUT","path":"/a#b"}"##),
        (400, "it is a query", r#"{"method":"GET","path":"/"}"#),
        (413, "101 bytes", &format!(r#"{{"method":"PUT","path":"/","body":"{}"}}"#, "x".repeat(101))),
    ] {
        client.send(post("", LINES, format!("{good}\n{line}\n{good}\n").as_bytes())).await;
        refused(&client.reply().await, status, &["request 1 (line 2):", word]);
    }
    let not_text = [good.as_bytes(), b"\n{\"method\":\"PUT\",\"path\":\"/\xff\"}"].concat();
    client.send(post("", LINES, &not_text)).await;
    refused(&client.reply().await, 400, &["request 1 (line 2):"]);
    assert_eq!(rig.node.batches.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn the_number_of_requests_and_the_bytes_of_all_are_bounded() {
    let rig = Rig::new(HttpLimits { bulk_bytes_max: 4 << 20, ..small() }).await;
    for (form, empty) in [(ARCHIVE, archive(vec![])), (LINES, vec![])] {
        refused(&rig.ask(post("", form, &empty)).await, 400, &["no request"]);
    }
    refused(&rig.ask(post("", ARCHIVE, b"")).await, 400, &["not a valid archive"]);
    let line = b"{\"method\":\"PUT\",\"path\":\"/\"}\n";
    let most = archive(vec![request(Put, "/a", b""); 65_536]);
    assert_eq!(rig.ask(post("", ARCHIVE, &most)).await.status, 200);
    assert_eq!(rig.ask(post("", LINES, &line.repeat(65_536))).await.status, 200);
    let more = archive(vec![request(Put, "/a", b""); 65_537]);
    refused(&rig.ask(post("", ARCHIVE, &more)).await, 413, &["65537 requests, 65536"]);
    refused(&rig.ask(post("", LINES, &line.repeat(65_537))).await, 413, &["65537 requests, 65536"]);

    // To the byte.
    let one = |bytes: usize| archive(vec![request(Put, "/a", &vec![7; bytes])]);
    let max = one(1000).len();
    let rig = Rig::new(HttpLimits { bulk_bytes_max: max, body_bytes_max: 1 << 20, ..small() }).await;
    assert_eq!(rig.ask(post("", ARCHIVE, &one(1000))).await.status, 200);
    let seen = rig.ask(post("", ARCHIVE, &one(1001))).await;
    refused(&seen, 413, &[&max.to_string()]);
    assert_eq!(seen.header("connection"), Some("close"));
    // Few bytes of JSON, and more in the archive.
    let text = b"{\"method\":\"PUT\",\"path\":\"/\"}\n".repeat(max / 30);
    assert!(text.len() <= max);
    refused(&rig.ask(post("", LINES, &text)).await, 413, &["archived batch has"]);
}

#[tokio::test]
async fn other_forms_methods_and_headers_are_refused() {
    let rig = Rig::new(small()).await;
    let body = archive(vec![request(Put, "/a", b"")]);
    for other in ["application/json", "application/vnd.raftlet.batch2", ""] {
        refused(
            &rig.ask(post("", other, &body)).await,
            415,
            &["application/vnd.raftlet.batch", "application/x-ndjson"],
        );
    }
    let bare = "POST /_/batch HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
    refused(&rig.ask(bare).await, 415, &["Content-Type"]);
    for method in ["GET", "PUT", "OPTIONS"] {
        let seen = rig.ask(format!("{method} /_/batch HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")).await;
        refused(&seen, 405, &["POST"]);
        assert_eq!(seen.header("allow"), Some("POST"));
    }
    let keyed = String::from_utf8(post("", LINES, b"{}")).unwrap().replace("Host: h", "Host: h\r\nIdempotency-Key: k");
    refused(&rig.ask(keyed).await, 400, &["each of its commands"]);
    assert_eq!(rig.ask("POST /_/batch/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await.status, 404);
}
