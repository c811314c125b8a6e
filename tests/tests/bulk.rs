//! `POST /_/batch` against real nodes: both forms, through any node, with failures, repetitions, limits and restarts.

use std::time::Duration;

use raftlet_machine::Method::{self, Delete, Get, Head, Put};
use raftlet_machine::{Batch, Header, Replies, Reply, Request};
use raftlet_tests::cluster::Options;
use raftlet_tests::http::Outcome;
use raftlet_tests::{Client, Cluster, Response, paths, seed, wait};
use serde_json::{Value, json};

const ARCHIVE: &str = "application/vnd.raftlet.batch";
const REPLIES: &str = "application/vnd.raftlet.replies";
const LINES: &str = "application/x-ndjson";
/// Through an election.
const INSIST: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn request(method: Method, path: &str, body: &[u8]) -> Request {
    Request { method, path: path.into(), query: String::new(), headers: vec![], body: body.to_vec() }
}

fn put(key: &str, value: &str) -> Request {
    request(Put, &format!("/kv/{key}"), value.as_bytes())
}

fn keyed(key: &str, request: Request) -> Request {
    Request { headers: vec![Header { name: "idempotency-key".into(), value: key.into() }], ..request }
}

fn post(client: &mut Client, query: &str, form: &str, body: &[u8]) -> Response {
    let target = format!("/_/batch{query}");
    client.request("POST", &target, &[("content-type", form)], body).expect("an answer")
}

#[track_caller]
fn taken_apart(response: &Response) -> Vec<Reply> {
    assert_eq!((response.status, response.header("content-type")), (200, Some(REPLIES)), "{response}");
    Replies::from_bytes(&response.body).expect("an archive of replies").replies
}

#[track_caller]
fn ask(client: &mut Client, commands: &[Request]) -> Vec<Reply> {
    taken_apart(&post(client, "", ARCHIVE, &Batch { commands: commands.to_vec() }.to_bytes()))
}

/// To any node in turn until it is answered. All commands must have keys.
#[track_caller]
fn insist(cluster: &Cluster, commands: &[Request]) -> Vec<Reply> {
    let archive = Batch { commands: commands.to_vec() }.to_bytes();
    let mut ids = (1..=3).cycle();
    wait::until("the batch is answered", INSIST, || {
        let mut client = cluster.client(ids.next()?).answer_within(Duration::from_secs(12));
        let response = client.request("POST", "/_/batch", &[("content-type", ARCHIVE)], &archive).ok()?;
        (response.status == 200).then(|| taken_apart(&response))
    })
}

#[track_caller]
fn ask_lines(client: &mut Client, query: &str, lines: &[Value]) -> Vec<Value> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let response = post(client, query, LINES, text.as_bytes());
    assert_eq!((response.status, response.header("content-type")), (200, Some(LINES)), "{response}");
    let text = std::str::from_utf8(&response.body).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn statuses(replies: &[Reply]) -> Vec<u16> {
    replies.iter().map(|reply| reply.status).collect()
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let found = reply.headers.iter().find(|header| header.name == name)?;
    std::str::from_utf8(&found.value).ok()
}

fn problem(reply: &Reply) -> String {
    assert_eq!(reply.content_type, "application/problem+json", "{reply:?}");
    let document: Value = serde_json::from_slice(&reply.body).expect("JSON");
    document["type"].as_str().expect("a type").rsplit('/').next().unwrap_or_default().to_owned()
}

fn metric(cluster: &Cluster, id: u64, name: &str) -> u64 {
    let body = cluster.client(id).get("/_/metrics").expect("an answer").body;
    let text = String::from_utf8(body).expect("text");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn both_forms_through_every_node_are_one_entry_each_and_outlive_restarts() {
    const COMMANDS: usize = 500;
    let mut cluster = Cluster::start(3);
    for id in cluster.ids() {
        let before = cluster.status(id).and_then(|s| s.applied_index).expect("applied");
        let batch: Vec<_> = (0..COMMANDS).map(|n| put(&format!("{id}-{n}"), &format!("value {n}"))).collect();
        let archive = Batch { commands: batch }.to_bytes();
        let response = post(&mut cluster.client(id), "", ARCHIVE, &archive);
        assert_eq!(statuses(&taken_apart(&response)), vec![201; COMMANDS]);
        // Its own, and perhaps one of Raft's.
        assert!(response.number("raftlet-index") <= before + 2, "{before}, {response}");
        assert!(response.number("raftlet-term") >= 1);
        assert_eq!(metric(&cluster, id, "raftlet_batches_sealed_total{reason=\"Bulk\"}"), 1);
        assert_eq!(metric(&cluster, id, "raftlet_bulk_commands_total"), COMMANDS as u64);
    }
    let id = cluster.follower();
    let said = ask_lines(
        &mut cluster.client(id),
        "",
        &[
            json!({"method":"PUT","path":"/kv/line%20one","body":"€"}),
            json!({"method":"PUT","path":"/kv/line2","body_base64":"AP8="}),
            json!({"method":"DELETE","path":"/kv/none"}),
            json!({"method":"PUT","path":"/kv/line2","headers":{"If-None-Match":"*"},"body":"no"}),
        ],
    );
    let of = |said: &[Value]| said.iter().map(|line| line["status"].as_u64()).collect::<Vec<_>>();
    assert_eq!(of(&said), [201, 201, 404, 412].map(Some));
    assert!(said[0]["headers"]["etag"].as_str().is_some_and(|etag| etag.starts_with('"')), "{said:?}");

    let reads = |cluster: &Cluster| {
        for id in cluster.ids() {
            for query in ["", "?consistency=stale"] {
                let said = ask_lines(
                    &mut cluster.client(id),
                    query,
                    &[
                        json!({"method":"GET","path":"/kv/line%20one"}),
                        json!({"method":"GET","path":"/kv/line2"}),
                        json!({"method":"HEAD","path":"/kv/line2"}),
                        json!({"method":"GET","path":"/kv/none"}),
                    ],
                );
                assert_eq!(of(&said), [200, 200, 200, 404].map(Some), "{said:?}");
                assert_eq!((&said[0]["body"], &said[1]["body_base64"]), (&"€".into(), &"AP8=".into()));
                assert_eq!((&said[2]["body"], &said[2]["headers"]["content-length"]), (&"".into(), &"2".into()));
            }
            let gets: Vec<_> = (0..COMMANDS).map(|n| request(Get, &format!("/kv/{id}-{n}"), b"")).collect();
            let replies = ask(&mut cluster.client(id % 3 + 1), &gets);
            for (n, reply) in replies.iter().enumerate() {
                assert_eq!((reply.status, reply.body.as_slice()), (200, format!("value {n}").as_bytes()));
            }
        }
    };
    cluster.wait_converged();
    reads(&cluster);
    cluster.kill_all();
    cluster.restart_all();
    cluster.leader();
    cluster.wait_converged();
    reads(&cluster);
}

#[test]
fn a_bulk_of_queries_sees_what_was_acknowledged_before_it() {
    let cluster = Cluster::start(3);
    let mut rng = seed::rng("a_bulk_of_queries");
    for turn in 0..50 {
        let (writer, reader) = (rng.u64(1..=3), rng.u64(1..=3));
        let value = format!("turn {turn}");
        assert!(ask(&mut cluster.client(writer), &[put("a", &value), put("b", &value)]).iter().all(|r| r.status < 300));
        let archive = Batch { commands: vec![request(Get, "/kv/a", b""), request(Get, "/kv/b", b"")] }.to_bytes();
        let response = post(&mut cluster.client(reader), "", ARCHIVE, &archive);
        for reply in taken_apart(&response) {
            assert_eq!(String::from_utf8_lossy(&reply.body), value, "{writer} wrote, {reader} read");
        }
        assert!(response.number("raftlet-index") > turn);
    }
    // More than are run together; HEAD has no body, and the length that GET would have.
    let many: Vec<_> = (0..9000).map(|n| request(if n % 2 == 0 { Get } else { Head }, "/kv/a", b"")).collect();
    let replies = ask(&mut cluster.client(2), &many);
    assert_eq!(replies.len(), 9000);
    for pair in replies.chunks(2) {
        assert_eq!((pair[0].body.as_slice(), pair[1].body.len()), (&b"turn 49"[..], 0));
        assert_eq!(header(&pair[1], "content-length"), Some("7"));
    }
}

#[test]
fn keys_count_once_inside_and_across_batches_single_requests_and_restarts() {
    let mut cluster = Cluster::start(3);
    let first = [
        keyed("k1", put("a", "one")),
        put("b", "plain"),
        keyed("k1", put("a", "one")),
        keyed("k1", put("a", "other")),
        keyed("k2", request(Delete, "/kv/none", b"")),
    ];
    let follower = cluster.follower();
    let replies = ask(&mut cluster.client(follower), &first);
    assert_eq!(statuses(&replies), [201, 201, 201, 422, 404]);
    let replayed = |replies: &[Reply]| -> Vec<bool> {
        replies.iter().map(|reply| header(reply, "idempotent-replayed") == Some("true")).collect()
    };
    assert_eq!(replayed(&replies), [false, false, true, false, false]);
    assert_eq!(header(&replies[0], "etag"), header(&replies[2], "etag"));
    assert_eq!(problem(&replies[3]), "idempotency-key-reused");

    let again =
        [keyed("k2", request(Delete, "/kv/none", b"")), keyed("k1", put("a", "one")), keyed("k3", put("c", "x"))];
    let replies = ask(&mut cluster.client(cluster.leader()), &again);
    assert_eq!((statuses(&replies), replayed(&replies)), (vec![404, 201, 201], vec![true, true, false]));
    let line = json!({"method":"PUT","path":"/kv/a","headers":{"idempotency-key":"k1"},"body":"one"});
    let said = ask_lines(&mut cluster.client(1), "", &[line]);
    assert_eq!((&said[0]["status"], &said[0]["headers"]["idempotent-replayed"]), (&201.into(), &"true".into()));
    let single = cluster.client(3).request("PUT", "/kv/c", &[("idempotency-key", "k3")], b"x").expect("an answer");
    assert_eq!((single.status, single.header("idempotent-replayed")), (201, Some("true")), "{single}");

    let leader = cluster.leader();
    cluster.kill(leader);
    let all_keyed = [first[0].clone(), first[4].clone(), again[2].clone()];
    let replies = insist(&cluster, &all_keyed);
    assert_eq!((statuses(&replies), replayed(&replies)), (vec![201, 404, 201], vec![true; 3]));
    cluster.kill_all();
    cluster.restart_all();
    let replies = insist(&cluster, &all_keyed);
    assert_eq!((statuses(&replies), replayed(&replies)), (vec![201, 404, 201], vec![true; 3]));
    // All new, all with keys, all run: replies of one archive.
    let fresh: Vec<_> = (0..50).map(|n| keyed(&format!("fresh-{n}"), put(&format!("f{n}"), "v"))).collect();
    assert_eq!(statuses(&insist(&cluster, &fresh)), vec![201; 50]);
    let replies = insist(&cluster, &fresh);
    assert_eq!((statuses(&replies), replayed(&replies)), (vec![201; 50], vec![true; 50]));
    cluster.wait_converged();
}

#[test]
fn one_command_that_fails_harms_no_other() {
    let module = Some(paths::guest("hostile"));
    let cluster = Cluster::start_with(3, Options { module, ..Options::default() });
    let of = |path: &str| request(Put, path, b"v");
    for id in cluster.ids() {
        let own = |key: &str| format!("/put/{id}{key}");
        let batch = [
            of(&own("a")),
            of("/trap"),
            of(&own("b")),
            of("/loop"),
            of("/status/99"),
            of("/big-reply/70000000"),
            of(&own("c")),
        ];
        let replies = ask(&mut cluster.client(id), &batch);
        assert_eq!(statuses(&replies), [204, 500, 204, 500, 500, 500, 204]);
        assert_eq!(problem(&replies[1]), "module-trap");
        assert_eq!(problem(&replies[3]), "out-of-fuel");
        assert_eq!(problem(&replies[4]), "invalid-reply");
        let queries = ["a", "b", "c"].map(|key| request(Get, &format!("/get/{id}{key}"), b""));
        let replies = ask(&mut cluster.client(id % 3 + 1), &[&queries[..], &[request(Get, "/trap", b"")]].concat());
        assert_eq!(statuses(&replies), [200, 200, 200, 500]);
        assert_eq!(problem(&replies[3]), "module-trap");
    }
    // What is read is bounded, and the rest may be asked for again.
    let large = vec![request(Get, "/big-reply/20000000", b""); 8];
    let replies = ask(&mut cluster.client(1), &large);
    let read = replies.iter().filter(|reply| reply.status == 200).count();
    assert!(read <= 3, "{:?}", statuses(&replies));
    let rest: Vec<_> = replies[read..].iter().map(|reply| (reply.status, problem(reply))).collect();
    // On a busy machine the time of a run may be over first.
    let again = |kind: &str| kind == "batch-budget" || kind == "query-timeout";
    assert!(rest.iter().all(|(status, kind)| *status == 503 && again(kind)), "{read}, {rest:?}");
    cluster.wait_converged();
}

#[test]
fn the_largest_batch_is_an_entry_like_any_other() {
    let mut cluster = Cluster::start(3);
    let archive = |bytes: usize| {
        let commands = (0..8).map(|n| request(Put, &format!("/kv/large{n}"), &vec![b'a' + n as u8; bytes])).collect();
        Batch { commands }.to_bytes()
    };
    // Eight of them are as large as the limit, to the byte.
    let frame = archive(MIB).len() - 8 * MIB;
    let (each, rest) = ((8 * MIB - frame) / 8, (8 * MIB - frame) % 8);
    let exact = |more: usize| {
        let value = |n: usize| vec![b'a' + n as u8; each + if n == 0 { rest + more } else { 0 }];
        Batch { commands: (0..8).map(|n| request(Put, &format!("/kv/large{n}"), &value(n))).collect() }.to_bytes()
    };
    assert_eq!((exact(0).len(), exact(1).len()), (8 * MIB, 8 * MIB + 1));
    for id in [cluster.leader(), cluster.follower()] {
        let replies = taken_apart(&post(&mut cluster.client(id), "", ARCHIVE, &exact(0)));
        assert!(replies.iter().all(|reply| reply.status < 300), "{:?}", statuses(&replies));
        let over = post(&mut cluster.client(id), "", ARCHIVE, &exact(1));
        assert_eq!((over.status, over.refusal()), (413, Some(Outcome::Rejected)), "{over}");
    }
    // The most commands that there may be.
    let most = Batch { commands: (0..65_536).map(|n| put(&format!("k{n}"), "v")).collect() }.to_bytes();
    let replies = taken_apart(&post(&mut cluster.client(cluster.follower()), "", ARCHIVE, &most));
    let done = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!((replies.len(), done), (65_536, 65_536));
    cluster.wait_converged();
    cluster.kill_all();
    cluster.restart_all();
    cluster.leader();
    let read = cluster.client(2).get("/kv/large7").expect("an answer");
    assert_eq!((read.status, read.body.len()), (200, each));
    assert_eq!(cluster.client(3).get("/kv/k65535").expect("an answer").body, b"v");
}

#[test]
fn limits_of_the_node_hold_for_batches() {
    let args = [
        "--bulk-bytes-max",
        "64KiB",
        "--queue-bytes-max",
        "100KiB",
        "--body-bytes-max",
        "40KiB",
        "--request-timeout",
        "3s",
    ];
    let options = Options { args: args.map(Into::into).into(), ..Options::default() };
    let mut cluster = Cluster::start_with(3, options);
    let of = |bytes: &[usize]| {
        let commands = bytes.iter().map(|bytes| request(Put, "/kv/a", &vec![0; *bytes])).collect();
        Batch { commands }.to_bytes()
    };
    let leader = cluster.leader();
    let mut client = cluster.client(leader);
    assert_eq!(post(&mut client, "", ARCHIVE, &of(&[30 << 10, 30 << 10])).status, 200);
    assert_eq!(post(&mut client, "", ARCHIVE, &of(&[33 << 10, 33 << 10])).status, 413);
    let body = post(&mut cluster.client(leader), "", ARCHIVE, &of(&[1, (40 << 10) + 1]));
    assert!(body.status == 413 && String::from_utf8_lossy(&body.body).contains("request 1:"), "{body}");
    // Without a quorum they wait, and take the queue's room.
    let others: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    others.iter().for_each(|id| cluster.pause(*id));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| post(&mut cluster.client(leader), "", ARCHIVE, &of(&[30 << 10, 30 << 10])));
        wait::until("the first one waits", INSIST, || {
            (metric(&cluster, leader, "raftlet_queue_bytes") > 60 << 10).then_some(())
        });
        let refused = post(&mut cluster.client(leader), "", ARCHIVE, &of(&[30 << 10, 30 << 10]));
        assert_eq!((refused.status, refused.refusal()), (503, Some(Outcome::Rejected)), "{refused}");
        assert!(String::from_utf8_lossy(&refused.body).contains("overloaded"), "{refused}");
        let late = waiting.join().expect("an answer");
        assert!(matches!(late.status, 503 | 504) && late.refusal().is_some(), "{late}");
    });
    others.iter().for_each(|id| cluster.resume(*id));
    let done = wait::until("batches are taken again", INSIST, || {
        let response = post(&mut cluster.client(leader), "", ARCHIVE, &of(&[30 << 10]));
        (response.status == 200).then_some(response)
    });
    assert!(taken_apart(&done)[0].status < 300);
}
