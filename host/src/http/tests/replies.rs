//! From answers, failures and refusals to what the client reads.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n";
const PUT: &str = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";

fn reply(status: u16, headers: Vec<Header>, body: &[u8]) -> Behaviour {
    Behaviour::Reply(Reply { status, content_type: "application/x-own".into(), headers, body: body.to_vec() })
}

#[tokio::test]
async fn the_modules_reply_is_sent_with_index_and_term() {
    let rig = Rig::new(HttpLimits::default()).await;
    rig.node.behave(reply(201, vec![header("etag", "\"9\""), header("X-A", "1"), header("x-a", "2")], b"\0\xffbody"));
    let seen = rig.ask(PUT).await;
    assert_eq!((seen.status, seen.body.as_slice()), (201, b"\0\xffbody".as_slice()));
    assert_eq!(seen.header("content-type"), Some("application/x-own"));
    assert_eq!(seen.header("etag"), Some("\"9\""));
    assert_eq!((seen.header("raftlet-index"), seen.header("raftlet-term")), (Some("42"), Some("7")));
    assert!(seen.head.contains("x-a: 1\r\nx-a: 2\r\n"), "{}", seen.head);
}

#[tokio::test]
async fn a_module_cannot_set_the_hosts_headers() {
    let rig = Rig::new(HttpLimits::default()).await;
    let names = ["Connection", "content-length", "DATE", "transfer-encoding", "Raftlet-Index", "raftlet-x", "upgrade"];
    let mut headers: Vec<_> = names.iter().map(|name| header(name, "module")).collect();
    headers.extend([header("bad name", "module"), header("", "module"), header("x-split", "module\r\nx-evil: 1")]);
    headers.push(header("x-good", "yes"));
    rig.node.behave(reply(200, headers, b"x"));
    let mut client = rig.client().await;
    for _ in 0..2 {
        client.send(GET).await;
        let seen = client.reply().await;
        assert!(!seen.head.contains("module") && !seen.head.contains("evil"), "{}", seen.head);
        assert_eq!((seen.header("x-good"), seen.body.as_slice()), (Some("yes"), b"x".as_slice()));
    }
}

#[tokio::test]
async fn head_has_the_length_but_not_the_body() {
    let rig = Rig::new(HttpLimits::default()).await;
    rig.node.behave(reply(200, vec![], b"12345"));
    let mut client = rig.client().await;
    client.send([HEAD, GET].concat()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 5\r\n"), "{head}");
    assert_eq!(client.reply().await.body, b"12345", "the next reply follows at once");
    assert_eq!(rig.node.seen.lock().unwrap()[0].0.method, raftlet_machine::Method::Head);
}

#[tokio::test]
async fn statuses_without_a_body_have_none() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    for status in [204, 304, 205] {
        rig.node.behave(reply(status, vec![header("etag", "\"1\"")], b"forbidden"));
        client.send(GET).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.body.len()), (status, 0));
        assert_eq!(seen.header("etag"), Some("\"1\""));
        rig.node.behave(Behaviour::Echo);
        client.send(PUT).await;
        assert_eq!(client.reply().await.body, b"x");
    }
}

#[tokio::test]
async fn a_status_that_http_does_not_have_is_an_error() {
    let rig = Rig::new(HttpLimits::default()).await;
    for status in [0, 100, 199, 600, 65_535] {
        rig.node.behave(reply(status, vec![], b"x"));
        assert_eq!(rig.ask(PUT).await.status, 500, "{status}");
    }
}

#[tokio::test]
async fn every_refusal_has_its_status_and_says_the_outcome() {
    let rig = Rig::new(HttpLimits::default()).await;
    let cases = [
        (Refusal::Overloaded { queued_bytes: 9, limit_bytes: 8 }, 503, "rejected", "overloaded"),
        (Refusal::NoLeader { waited_ms: 5 }, 503, "rejected", "no-leader"),
        (Refusal::NoModule, 503, "rejected", "no-module"),
        (Refusal::ShuttingDown, 503, "rejected", "shutting-down"),
        (Refusal::Founding, 503, "rejected", "founding"),
        (Refusal::Lagging { waited_ms: 5 }, 503, "rejected", "lagging"),
        (Refusal::Timeout { waited_ms: 5 }, 504, "unknown", "timeout"),
    ];
    let mut client = rig.client().await;
    for (refusal, status, outcome, kind) in cases {
        rig.node.behave(Behaviour::Refuse(refusal.clone()));
        client.send(PUT).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (status, outcome), "{refusal:?}");
        assert_eq!(seen.header("retry-after"), (status == 503).then_some("1"), "{refusal:?}");
        let text = String::from_utf8(seen.body).unwrap();
        assert!(text.contains(&format!("/_/problems/{kind}")) && text.contains(&refusal.to_string()), "{text}");
        client.send(GET).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (status, "rejected"), "a query changes nothing");
    }
}

#[tokio::test]
async fn every_failure_has_its_status_and_says_that_nothing_was_written() {
    let rig = Rig::new(HttpLimits::default()).await;
    let cases = [
        (Failure::Trap("unreachable".into()), 500),
        (Failure::OutOfFuel, 500),
        (Failure::OutOfMemory, 500),
        (Failure::InvalidReply("two replies".into()), 500),
        (Failure::BatchBudget, 503),
    ];
    for (failure, status) in cases {
        rig.node.behave(Behaviour::Fail(failure.clone()));
        let seen = rig.ask(PUT).await;
        assert_eq!((seen.status, seen.outcome().as_str()), (status, "rejected"), "{failure:?}");
        assert_eq!(seen.header("raftlet-index"), Some("42"));
        assert_eq!(seen.header("retry-after"), (status == 503).then_some("1"));
    }
}
