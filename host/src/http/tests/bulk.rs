//! Batches in both forms, and their replies.

use raftlet_machine::Method::{self, Delete, Get, Head, Put};

use super::*;

pub(super) const ARCHIVE: &str = "application/vnd.raftlet.batch";
pub(super) const LINES: &str = "application/x-ndjson";

pub(super) fn post(query: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /_/batch{query} HTTP/1.1\r\nHost: h\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub(super) fn request(method: Method, path: &str, body: &[u8]) -> Request {
    Request { method, path: path.into(), query: String::new(), headers: vec![], body: body.to_vec() }
}

pub(super) fn archive(commands: Vec<Request>) -> Vec<u8> {
    Batch { commands }.to_bytes()
}

fn replies(seen: &Seen) -> Vec<Reply> {
    assert_eq!((seen.status, seen.header("content-type")), (200, Some("application/vnd.raftlet.replies")), "{seen:?}");
    assert_eq!((seen.header("raftlet-index"), seen.header("raftlet-term")), (Some("42"), Some("7")));
    Replies::from_bytes(&seen.body).unwrap().replies
}

fn lines(seen: &Seen) -> Vec<serde_json::Value> {
    assert_eq!((seen.status, seen.header("content-type")), (200, Some(LINES)), "{seen:?}");
    assert_eq!((seen.header("raftlet-index"), seen.header("raftlet-term")), (Some("42"), Some("7")));
    let text = std::str::from_utf8(&seen.body).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn an_archive_goes_on_as_it_came_and_the_modules_archive_comes_back_as_it_is() {
    let rig = Rig::new(HttpLimits::default()).await;
    let body = archive(vec![request(Put, "/a", b"one"), request(Delete, "/b%20c", b"\0\xff"), request(Put, "/a", b"")]);
    let seen = rig.ask(post("", ARCHIVE, &body)).await;
    let bodies: Vec<_> = replies(&seen).into_iter().map(|reply| reply.body).collect();
    assert_eq!(bodies, [&b"one"[..], b"\0\xff", b""]);
    let (sent, consistency) = rig.node.batches.lock().unwrap().pop().unwrap();
    assert_eq!((sent.as_ref(), consistency), (body.as_slice(), None));
    let echo =
        |body: &[u8]| Reply { status: 200, content_type: "text/plain".into(), headers: vec![], body: body.into() };
    let made = Replies { replies: vec![echo(b"one"), echo(b"\0\xff"), echo(b"")] }.to_bytes();
    assert_eq!(seen.body, made, "nothing was archived anew");
    assert_eq!(rig.server.metrics().requests(super::super::RequestClass::Bulk, super::super::StatusClass::Success), 1);
}

#[tokio::test]
async fn the_content_type_may_have_parameters_and_capitals() {
    let rig = Rig::new(HttpLimits::default()).await;
    for (given, body) in [
        ("Application/Vnd.Raftlet.Batch; v=1", archive(vec![request(Put, "/a", b"")])),
        ("application/x-ndjson;charset=utf-8", br#"{"method":"PUT","path":"/a"}"#.to_vec()),
    ] {
        assert_eq!(rig.ask(post("", given, &body)).await.status, 200, "{given}");
    }
}

#[tokio::test]
async fn lines_become_the_same_archive() {
    let rig = Rig::new(HttpLimits::default()).await;
    let text = br#"{"method":"PUT","path":"/kv/a?x=1&y=?","headers":{"Content-Type":"text/plain","idempotency-key":"k-1"},"body":"one \u20ac"}
{"method":"PATCH","path":"/kv/b","body_base64":"AP8="}
{"method":"POST","path":"/","headers":{"if-match":"1","if-match":"2"},"body":null}
"#;
    let seen = rig.ask(post("", LINES, text)).await;
    let said = lines(&seen);
    assert_eq!(
        said[0],
        serde_json::json!({"status":200,"headers":{"content-type":"text/plain"},"body":"one \u{20ac}"})
    );
    assert_eq!(said[1]["body_base64"], "AP8=");
    assert_eq!((said[1].get("body"), &said[2]["body"]), (None, &"".into()));
    let mut first = request(Put, "/kv/a", "one \u{20ac}".as_bytes());
    first.query = "x=1&y=?".into();
    first.headers = vec![header("content-type", "text/plain"), header("idempotency-key", "k-1")];
    let mut third = request(Method::Post, "/", b"");
    third.headers = vec![header("if-match", "1"), header("if-match", "2")];
    let commands = vec![first, request(Method::Patch, "/kv/b", b"\0\xff"), third];
    let (sent, _) = rig.node.batches.lock().unwrap().pop().unwrap();
    assert_eq!(sent.as_ref(), archive(commands));
    // Without the last newline, and with the line ends of another system.
    let other = b"{\"method\":\"PUT\",\"path\":\"/a\"}\r\n{\"method\":\"PUT\",\"path\":\"/b\"}";
    assert_eq!(lines(&rig.ask(post("", LINES, other)).await).len(), 2);
}

#[tokio::test]
async fn queries_say_their_consistency_once_for_all() {
    let rig = Rig::new(HttpLimits::default()).await;
    let body = archive(vec![request(Get, "/a", b""), request(Head, "/a", b"")]);
    for (query, consistency) in [
        ("", Consistency::Linearizable),
        ("?consistency=stale", Consistency::Stale),
        ("?a&consistency=linearizable", Consistency::Linearizable),
    ] {
        assert_eq!(rig.ask(post(query, ARCHIVE, &body)).await.status, 200);
        assert_eq!(rig.node.batches.lock().unwrap().pop().unwrap().1, Some(consistency), "{query}");
    }
    let seen = rig.ask(post("?consistency=odd", ARCHIVE, &body)).await;
    assert_eq!((seen.status, seen.outcome().as_str()), (400, "rejected"));
}

#[tokio::test]
async fn a_reply_in_a_batch_is_what_the_single_request_gets() {
    let rig = Rig::new(HttpLimits::default()).await;
    let host = [header("raftlet-x", "module"), header("idempotent-replayed", "module"), header("Date", "module")];
    let forged = |headers: &[Header], status, body: &[u8]| Reply {
        status,
        content_type: "application/x-own".into(),
        headers: [&[header("ETag", "\"9\"")], headers].concat(),
        body: body.to_vec(),
    };
    let good =
        CommandReply::split(Replies { replies: vec![forged(&[], 201, b"x")] }.to_bytes().into()).unwrap().remove(0);
    let cases = [
        Behaviour::Reply(forged(&[], 200, b"x")),
        Behaviour::Reply(forged(&host, 200, b"x")),
        Behaviour::Reply(forged(&[], 204, b"forbidden")),
        Behaviour::Reply(forged(&[header("x-a", "1"), header("x-a", "2")], 304, b"")),
        Behaviour::Fail(Failure::Trap("because".into())),
        Behaviour::Fail(Failure::BatchBudget),
        Behaviour::Fail(Failure::ReplayBudget),
        Behaviour::Fail(Failure::KeyReused),
        Behaviour::Replay(good),
        Behaviour::Replay(CommandReply::Failed(Failure::OutOfFuel)),
    ];
    for (at, case) in cases.into_iter().enumerate() {
        rig.node.behave(case);
        for method in [Put, Head, Get] {
            let verb = format!("{method:?}").to_uppercase();
            let mut client = rig.client().await;
            client.send(format!("{verb} /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")).await;
            let single = match method {
                Head => Seen { head: client.head().await, body: vec![], status: 0 },
                _ => client.reply().await,
            };
            let batch = archive(vec![request(method, "/a", b""), request(method, "/b", b"")]);
            let several = replies(&rig.ask(post("", ARCHIVE, &batch)).await);
            let text = format!("{{\"method\":\"{verb}\",\"path\":\"/a\"}}\n");
            let said = lines(&rig.ask(post("", LINES, text.as_bytes())).await).remove(0);
            assert_eq!(several[0], several[1]);
            let one = &several[0];
            assert_eq!(single.head[9..12], one.status.to_string(), "case {at} {verb}");
            assert_eq!(
                (&one.body, said["status"].as_u64()),
                (&single.body, Some(one.status.into())),
                "case {at} {verb}"
            );
            assert_eq!(said["body"].as_str().map(str::as_bytes), Some(one.body.as_slice()), "case {at} {verb}");
            assert_eq!(single.header("content-type").unwrap_or_default(), one.content_type, "case {at} {verb}");
            let of_connection = ["date", "content-type", "content-length", "raftlet-index", "raftlet-term"];
            let mut left: Vec<_> = (single.head.lines().skip(1).filter_map(|line| line.split_once(": ")))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .filter(|(name, _)| !of_connection.contains(&name.as_str()))
                .collect();
            let mut right: Vec<_> = (one.headers.iter())
                .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8(h.value.clone()).unwrap()))
                .filter(|(name, _)| name != "content-length")
                .collect();
            left.sort();
            right.sort();
            assert_eq!(left, right, "case {at} {verb}");
            for (name, value) in left {
                assert!(said["headers"][&name].as_str().unwrap().contains(&value), "case {at} {verb}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn replies_that_are_too_large_together_say_so_one_by_one() {
    let rig = Rig::new(HttpLimits::default()).await;
    let large = Reply { status: 204, content_type: String::new(), headers: vec![], body: vec![] };
    let body = vec![7; 22 << 20];
    // A header that is not sent, so that it isn't the archive itself that goes back.
    let headers = vec![header("raftlet-x", "")];
    rig.node.behave(Behaviour::Reply(Reply { status: 200, headers, body, ..large }));
    for (method, status, outcome) in [(Put, 500, "unknown"), (Get, 503, "rejected")] {
        let batch = archive(vec![request(method, "/a", b""); 4]);
        let replies = replies(&rig.ask(post("", ARCHIVE, &batch)).await);
        assert_eq!(replies.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 200, status, status]);
        assert_eq!(replies[3].content_type, "application/problem+json");
        assert!(String::from_utf8_lossy(&replies[3].body).contains(outcome));
    }
}

#[tokio::test]
async fn a_batch_that_is_refused_has_one_answer_with_its_outcome() {
    let rig = Rig::new(HttpLimits::default()).await;
    let waited_ms = 5;
    for (refusal, status, outcome) in [
        (Refusal::Overloaded { queued_bytes: 9, limit_bytes: 8 }, 503, "rejected"),
        (Refusal::NoLeader { waited_ms }, 503, "rejected"),
        (Refusal::Replaced, 504, "unknown"),
        (Refusal::Timeout { waited_ms }, 504, "unknown"),
    ] {
        rig.node.behave(Behaviour::Refuse(refusal));
        for (method, outcome) in [(Put, outcome), (Get, "rejected")] {
            let seen = rig.ask(post("", ARCHIVE, &archive(vec![request(method, "/a", b"")]))).await;
            assert_eq!((seen.status, seen.outcome().as_str()), (status, outcome));
            assert_eq!(seen.header("retry-after"), (status == 503).then_some("1"));
        }
    }
}

#[tokio::test]
async fn a_broken_archive_is_an_error_or_another_batch_and_never_a_panic() {
    let seed = std::env::var("RAFTLET_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    println!("seed {seed} (repeat with RAFTLET_SEED={seed})");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut one = request(Put, "/kv/some/longer/path", b"a body that is not inline");
    one.query = "a=long-enough-value&b=2".into();
    one.headers = vec![header("content-type", "text/plain"), header("idempotency-key", "some-key-of-mine")];
    let sound = archive(vec![one.clone(), request(Delete, "/b", b""), one]);
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    let mut taken = 0;
    for turn in 0..4000 {
        let mut bytes = sound.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..bytes.len());
            match rng.u8(0..4) {
                0 => bytes[at] ^= 1 << rng.u8(0..8),
                1 => bytes[at] = rng.u8(..),
                2 => bytes.truncate(at.max(1)),
                _ => drop(bytes.splice(at..at, [rng.u8(..)])),
            }
        }
        client.send(post("", ARCHIVE, &bytes)).await;
        let seen = client.reply().await;
        match seen.status {
            200 => taken += replies(&seen).len().min(1),
            400 | 413 => assert_eq!(seen.outcome(), "rejected", "turn {turn}"),
            other => panic!("turn {turn}: {other} {seen:?}"),
        }
    }
    println!("{taken} were batches still");
    assert!(taken > 0, "a byte of a body may be any");
    assert_eq!(rig.node.batches.lock().unwrap().len(), taken);
}
