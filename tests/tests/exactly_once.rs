//! Idempotency keys against real processes: a command that is sent again, to whatever node and after whatever fault,
//! happens once and is answered as the first time.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::http::Outcome;
use raftlet_tests::keyed::{INSIST, KEY, REPLAYED, essence, insist};
use raftlet_tests::process::run;
use raftlet_tests::{Cluster, clocks, paths, seed, wait};

const BENCH_WITHIN: Duration = Duration::from_secs(240);

fn with_module(name: &str) -> Cluster {
    let module: Option<PathBuf> = Some(paths::guest(name));
    Cluster::start_with(3, Options { module, ..Options::default() })
}

#[test]
fn a_repetition_is_answered_as_the_first_time_through_faults_and_on_every_node() {
    let mut cluster = Cluster::start(3);
    let nodes = cluster.addresses();
    let leader = cluster.leader();
    let first = insist(&nodes, 0, "PUT", "/kv/a", "one", b"first");
    assert_eq!((first.status, first.header(REPLAYED)), (201, None), "{first}");
    let missed = insist(&nodes, 1, "DELETE", "/kv/none", "two", b"");
    assert_eq!(missed.status, 404, "{missed}");
    let over = cluster.client(2).put("/kv/a", b"second").expect("an answer");
    assert!(over.is_success(), "{over}");

    let repeat = |when: &str| {
        for node in 0..nodes.len() {
            // Quoted, as the draft has it, or bare: the same key.
            for key in ["one", "\"one\""] {
                let again = insist(&nodes, node, "PUT", "/kv/a", key, b"first");
                assert_eq!(essence(&again), essence(&first), "{when}: {again}");
                assert_eq!(again.header(REPLAYED), Some("true"), "{when}: {again}");
                assert!(again.number("raftlet-index") > first.number("raftlet-index"), "{when}: {again}");
            }
            assert_eq!(essence(&insist(&nodes, node, "DELETE", "/kv/none", "two", b"")), essence(&missed), "{when}");
        }
    };
    repeat("at once");
    cluster.kill(leader);
    repeat("after the leader's end");
    cluster.restart_all();
    repeat("after its return");
    cluster.kill_all();
    cluster.restart_all();
    repeat("after a restart of all");
    cluster.wait_converged();
    for node in cluster.ids() {
        let read = cluster.client(node).get("/kv/a").expect("an answer");
        assert_eq!((read.body.as_slice(), read.header("etag")), (&b"second"[..], over.header("etag")), "node {node}");
        let status = cluster.client(node).get("/_/status").expect("an answer").json();
        let shown = &status["idempotency"];
        assert_eq!((&shown["keys"], &shown["window_ms"]), (&2.into(), &600_000.into()), "{shown}");
        assert!(shown["bytes"].as_u64() > Some(100) && shown["bytes_max"].as_u64() > Some(1 << 20), "{shown}");
        let metrics = cluster.client(node).get("/_/metrics").expect("an answer").body;
        let metrics = String::from_utf8(metrics).expect("text");
        assert!(metrics.contains("raftlet_idempotency_keys 2\n"), "{metrics}");
    }
}

#[test]
fn one_clock_that_is_stepped_ahead_forgets_no_key() {
    const HOUR_MS: i64 = 3_600_000;
    let mut cluster = Cluster::start_with(3, Options { clocks: true, ..Options::default() });
    let nodes = cluster.addresses();
    let first = insist(&nodes, 0, "PUT", "/kv/a", "one", b"first");
    // Keys are kept for ten minutes by the clock of the cluster.
    for turn in 1..=2 {
        let leader = cluster.leader();
        clocks::set(cluster.folder(), leader, turn * HOUR_MS);
        for number in 0..5 {
            let put = cluster.client(leader).put(&format!("/kv/{turn}/{number}"), b"").expect("an answer");
            assert!(put.is_success(), "{put}");
        }
        let again = insist(&nodes, 0, "PUT", "/kv/a", "one", b"first");
        assert_eq!((again.header(REPLAYED), essence(&again)), (Some("true"), essence(&first)), "{again}");
        clocks::set(cluster.folder(), leader, 0);
        cluster.kill(leader);
        cluster.restart(leader);
        cluster.wait_ready(leader);
    }
}

#[test]
fn concurrent_repetitions_through_a_killed_leader_count_once() {
    const COMMANDS: u64 = 60;
    const REPEATERS: usize = 5;
    let mut rng = seed::rng("concurrent_repetitions");
    let mut cluster = with_module("counter");
    let nodes = cluster.addresses();
    let done = AtomicU64::new(0);
    let order: Vec<usize> = (0..REPEATERS).map(|_| rng.usize(0..nodes.len())).collect();
    std::thread::scope(|scope| {
        // All of them send the same commands at about the same time, to different nodes.
        let repeaters: Vec<_> = (order.iter())
            .map(|&start| {
                let (nodes, done) = (&nodes, &done);
                scope.spawn(move || {
                    let one = |number: u64| {
                        let node = start + number as usize;
                        let reply = insist(nodes, node, "POST", "/counter/shared", &format!("add-{number}"), b"1");
                        assert_eq!(reply.status, 200, "{reply}");
                        done.fetch_add(1, Ordering::Relaxed);
                        reply.body
                    };
                    (0..COMMANDS).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        let half = COMMANDS * REPEATERS as u64 / 2;
        wait::until("half of the repetitions are answered", 2 * INSIST, || {
            let dead = repeaters.iter().any(|r| r.is_finished()) && done.load(Ordering::Relaxed) < half;
            assert!(!dead, "a repeater ended before its time; its message is above");
            (done.load(Ordering::Relaxed) >= half).then_some(())
        });
        let leader = cluster.leader();
        cluster.kill(leader);
        cluster.restart(leader);
        let answers: Vec<_> = repeaters.into_iter().map(|r| r.join().expect("a repeater did not panic")).collect();
        for other in &answers[1..] {
            assert_eq!(other, &answers[0], "all who sent a command got the same answer");
        }
    });
    cluster.restart_all();
    cluster.wait_converged();
    for node in cluster.ids() {
        let read = cluster.client(node).get("/counter/shared").expect("an answer");
        assert_eq!(String::from_utf8_lossy(&read.body).trim(), COMMANDS.to_string(), "node {node}");
    }
}

#[test]
fn a_key_is_for_one_request_and_must_be_well_formed() {
    let cluster = Cluster::start(3);
    let mut client = cluster.client(1);
    let mut send = |method: &str, target: &str, keys: &[&str], body: &[u8]| {
        let headers: Vec<_> = keys.iter().map(|key| (KEY, *key)).collect();
        client.request(method, target, &headers, body).expect("an answer")
    };
    assert_eq!(send("PUT", "/kv/a", &["k"], b"1").status, 201);
    for (method, target, body) in
        [("PUT", "/kv/a", &b"2"[..]), ("PUT", "/kv/b", b"1"), ("POST", "/kv/a", b"1"), ("PUT", "/kv/a?x", b"1")]
    {
        let reused = send(method, target, &["k"], body);
        assert_eq!((reused.status, reused.refusal()), (422, Some(Outcome::Rejected)), "{reused}");
        assert_eq!(reused.json()["type"], "/_/problems/idempotency-key-reused");
    }
    let long = "k".repeat(256);
    for keys in [&[""][..], &["a b"], &["\"a"], &["\"\""], &[&long], &["a", "b"], &["a", "a"]] {
        let bad = send("PUT", "/kv/c", keys, b"1");
        assert_eq!((bad.status, bad.refusal()), (400, Some(Outcome::Rejected)), "{keys:?}: {bad}");
        assert_eq!(bad.json()["type"], "/_/problems/bad-idempotency-key");
    }
    assert_eq!(send("GET", "/kv/c", &["a b"], b"").status, 404, "a read needs no key, and none was written");
    assert_eq!(send("GET", "/kv/a", &["k"], b"").body, b"1");
    assert_eq!(send("PUT", "/kv/c", &[&long[1..]], b"1").status, 201);
    cluster.wait_converged();
}

#[test]
fn the_failure_of_a_command_is_its_reply() {
    let cluster = with_module("hostile");
    let nodes = cluster.addresses();
    for name in ["trap", "panic", "loop"] {
        let first = insist(&nodes, 0, "POST", &format!("/{name}"), name, b"");
        assert_eq!((first.status, first.refusal()), (500, Some(Outcome::Rejected)), "{first}");
        assert_eq!(first.header(REPLAYED), None);
        for node in 0..nodes.len() {
            let again = insist(&nodes, node, "POST", &format!("/{name}"), name, b"");
            assert_eq!(essence(&again), essence(&first));
            assert_eq!(again.header(REPLAYED), Some("true"));
        }
    }
    let other = insist(&nodes, 0, "POST", "/put/x", "trap", b"");
    assert_eq!(other.status, 422, "{other}");
    cluster.wait_converged();
}

#[test]
fn bench_with_retry_survives_a_killed_leader() {
    const OPS: &str = "6000";
    let mut cluster = Cluster::start(3);
    let urls = cluster.addresses().into_iter().flat_map(|a| ["--url".to_owned(), format!("http://{a}")]);
    let args = ["bench", "--ops", OPS, "--clients", "20", "--retry", "--verify", "--json"];
    let args: Vec<OsString> = args.into_iter().map(Into::into).chain(urls.map(Into::into)).collect();
    let finished = std::thread::scope(|scope| {
        let bench = scope.spawn(|| run(&args, BENCH_WITHIN));
        wait::until("the bench has written a part", INSIST, || {
            let status = cluster.client(1).get("/_/status").ok()?;
            (status.json()["idempotency"]["keys"].as_u64()? > 500).then_some(())
        });
        assert!(!bench.is_finished(), "the bench ended before the leader was killed; it proves nothing");
        let leader = cluster.leader();
        cluster.kill(leader);
        cluster.restart(leader);
        bench.join().expect("the bench ran")
    });
    assert!(finished.status.success(), "{finished:?}");
    let result: serde_json::Value = serde_json::from_str(&finished.stdout).expect("one JSON object");
    assert_eq!((&result["errors"], &result["verified"]), (&0.into(), &6000.into()), "{result}");
    assert!(result["retries"].as_u64() > Some(0), "a leader died: something was sent again: {result}");
    cluster.restart_all();
    cluster.wait_converged();
}
