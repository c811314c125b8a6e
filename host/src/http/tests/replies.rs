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

/// One of each refusal, with its status, outcome and kind. A new one doesn't compile until it stands here.
fn refusals() -> Vec<(Refusal, u16, &'static str, &'static str)> {
    use Refusal::*;
    let (waited_ms, why) = (5, || "because".to_owned());
    let all = [
        Overloaded { queued_bytes: 9, limit_bytes: 8 },
        NoLeader { waited_ms },
        NoModule,
        Founding,
        ShuttingDown,
        Lagging { waited_ms },
        LocalFault(why()),
        DiskFull(why()),
        Quarantined(why()),
        Held(why()),
        Replaced,
        InDoubt,
        Timeout { waited_ms },
    ];
    let expected = |refusal: &Refusal| match refusal {
        Overloaded { .. } => (503, "rejected", "overloaded"),
        NoLeader { .. } => (503, "rejected", "no-leader"),
        NoModule => (503, "rejected", "no-module"),
        Founding => (503, "rejected", "founding"),
        ShuttingDown => (503, "rejected", "shutting-down"),
        Lagging { .. } => (503, "rejected", "lagging"),
        LocalFault(_) => (500, "rejected", "local-fault"),
        DiskFull(_) => (503, "rejected", "disk-full"),
        Quarantined(_) => (503, "rejected", "quarantined"),
        Held(_) => (503, "rejected", "held"),
        // The only two after which it may have happened.
        Replaced => (504, "unknown", "replaced"),
        InDoubt => (504, "unknown", "in-doubt"),
        Timeout { .. } => (504, "unknown", "timeout"),
    };
    let row = |refusal: Refusal| {
        let (status, outcome, kind) = expected(&refusal);
        (refusal, status, outcome, kind)
    };
    all.map(row).into()
}

#[tokio::test]
async fn every_refusal_has_its_status_and_says_the_outcome() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    for (refusal, status, outcome, kind) in refusals() {
        rig.node.behave(Behaviour::Refuse(refusal.clone()));
        client.send(PUT).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (status, outcome), "{refusal:?}");
        assert_eq!(seen.header("retry-after"), (status == 503).then_some("1"), "{refusal:?}");
        let text = String::from_utf8(seen.body).unwrap();
        assert!(text.contains(&format!("/_/problems/{kind}\"")) && text.contains(&refusal_text(&refusal)), "{text}");
        client.send(GET).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (status, "rejected"), "a query changes nothing");
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    serde_json::to_string(&refusal.to_string()).unwrap().trim_matches('"').to_owned()
}

/// One of each failure, with its status and kind.
fn failures() -> Vec<(Failure, u16, &'static str)> {
    use Failure::*;
    let all = [
        Trap("unreachable".into()),
        OutOfFuel,
        OutOfMemory,
        InvalidReply("two replies".into()),
        BatchBudget,
        ReplayBudget,
        QueryTimeout,
        NoModule,
        KeyReused,
        KeysFull,
        Skipped,
    ];
    let expected = |failure: &Failure| match failure {
        Trap(_) => (500, "module-trap"),
        OutOfFuel => (500, "out-of-fuel"),
        OutOfMemory => (500, "out-of-memory"),
        InvalidReply(_) => (500, "invalid-reply"),
        BatchBudget => (503, "batch-budget"),
        ReplayBudget => (504, "replay-budget"),
        QueryTimeout => (503, "query-timeout"),
        NoModule => (503, "no-module"),
        KeyReused => (422, "idempotency-key-reused"),
        KeysFull => (503, "idempotency-keys-full"),
        Skipped => (500, "skipped"),
    };
    let row = |failure: Failure| {
        let (status, kind) = expected(&failure);
        (failure, status, kind)
    };
    all.map(row).into()
}

#[tokio::test]
async fn every_failure_has_its_status_and_says_whether_anything_was_written() {
    let rig = Rig::new(HttpLimits::default()).await;
    for (failure, status, kind) in failures() {
        rig.node.behave(Behaviour::Fail(failure.clone()));
        let seen = rig.ask(PUT).await;
        let outcome = if failure == Failure::ReplayBudget { "unknown" } else { "rejected" };
        assert_eq!((seen.status, seen.outcome().as_str()), (status, outcome), "{failure:?}");
        assert_eq!(seen.header("raftlet-index"), Some("42"));
        assert_eq!(seen.header("retry-after"), (status == 503).then_some("1"));
        assert_eq!(seen.header("idempotent-replayed"), None);
        let text = String::from_utf8(seen.body).unwrap();
        assert!(text.contains(&format!("/_/problems/{kind}\"")), "{text}");
    }
}

#[tokio::test]
async fn a_replayed_reply_is_the_first_one_and_says_so() {
    let rig = Rig::new(HttpLimits::default()).await;
    // A module can't pretend it.
    let first = Reply {
        status: 201,
        content_type: "application/x-own".into(),
        headers: vec![header("etag", "\"9\""), header("Idempotent-Replayed", "false")],
        body: b"\0body".to_vec(),
    };
    let first = CommandReply::split(Replies { replies: vec![first] }.to_bytes().into()).unwrap().remove(0);
    rig.node.behave(Behaviour::Replay(first));
    let seen = rig.ask(PUT).await;
    assert_eq!((seen.status, seen.body.as_slice()), (201, b"\0body".as_slice()));
    assert_eq!((seen.header("etag"), seen.header("content-type")), (Some("\"9\""), Some("application/x-own")));
    assert_eq!(seen.head.to_ascii_lowercase().matches("idempotent-replayed").count(), 1, "{}", seen.head);
    assert_eq!(seen.header("idempotent-replayed"), Some("true"));
    rig.node.behave(Behaviour::Replay(CommandReply::Failed(Failure::OutOfFuel)));
    let seen = rig.ask(PUT).await;
    assert_eq!((seen.status, seen.outcome().as_str()), (500, "rejected"));
    assert_eq!(seen.header("idempotent-replayed"), Some("true"));
}

fn with_key(method: &str, keys: &[&str]) -> String {
    let lines: String = keys.iter().map(|key| format!("Idempotency-Key: {key}\r\n")).collect();
    format!("{method} / HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_commands_key_goes_on_bare_and_a_querys_does_not() {
    let rig = Rig::new(HttpLimits::default()).await;
    for given in ["\"a-b\"", "a-b"] {
        assert_eq!(rig.ask(with_key("POST", &[given])).await.status, 200);
        assert_eq!(rig.node.last_seen().0.headers, [header("idempotency-key", "a-b")], "{given}");
    }
    for given in ["a-b", "not valid", ""] {
        assert_eq!(rig.ask(with_key("GET", &[given])).await.status, 200);
        assert_eq!(rig.node.last_seen().0.headers, [], "{given}");
    }
    let before = rig.node.seen.lock().unwrap().len();
    for refused in [vec!["a b"], vec![""], vec!["a", "a"], vec!["\"a"], vec!["\"a\"; x"]] {
        let seen = rig.ask(with_key("POST", &refused)).await;
        assert_eq!((seen.status, seen.outcome().as_str()), (400, "rejected"), "{refused:?}");
        assert!(String::from_utf8_lossy(&seen.body).contains("/_/problems/bad-idempotency-key"));
    }
    assert_eq!(rig.node.seen.lock().unwrap().len(), before, "what was refused didn't reach the node");
}
