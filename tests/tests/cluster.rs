//! A healthy cluster: what is written is what is read, everywhere, byte by byte and at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use raftlet_tests::http::encode;
use raftlet_tests::payload;
use raftlet_tests::process::Signal;
use raftlet_tests::snapshots::{PROGRESS_WITHIN, metric};
use raftlet_tests::{Client, Cluster, Ledger, Load, seed, wait};

#[test]
fn fifty_clients_read_back_any_bytes_from_every_node() {
    const CLIENTS: u64 = 50;
    let mut rng = seed::rng("fifty_clients");
    let cluster = Cluster::start(3);
    let owners: Vec<Owner> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, rng) = (cluster.client(1 + number % 3), rng.fork());
                scope.spawn(move || Owner::run(number, client, rng))
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("the client did not panic")).collect()
    });

    let mut numbers = BTreeSet::new();
    for number in owners.iter().flat_map(|o| &o.etags) {
        assert!(numbers.insert(number), "two commands answered with ETag {number}");
    }
    cluster.wait_converged();
    std::thread::scope(|scope| {
        for (owner, id) in owners.iter().flat_map(|o| cluster.ids().map(move |id| (o, id))) {
            let (client, rng) = (cluster.client(id), rng.fork());
            scope.spawn(move || owner.verify(id, client, rng));
        }
    });
    cluster.wait_converged();
}

/// A client with keys of its own, so that it knows what they must hold.
struct Owner {
    keys: BTreeMap<Vec<u8>, Option<Stored>>,
    etags: Vec<u64>,
}

struct Stored {
    value: Vec<u8>,
    etag: u64,
}

impl Owner {
    fn run(number: u64, mut client: Client, mut rng: Rng) -> Owner {
        const OPERATIONS: usize = 30;
        let mut own = Owner { keys: BTreeMap::new(), etags: Vec::new() };
        for _ in 0..OPERATIONS {
            let used = rng.choice(own.keys.keys()).cloned().filter(|_| rng.u8(0..3) == 0);
            let key = used.unwrap_or_else(|| payload::key(&mut rng, &format!("c{number}/")));
            let path = payload::another_path(&mut rng, &key);
            if own.keys.get(&key).is_some_and(Option::is_some) && rng.bool() {
                let reply = client.delete(&path).expect("an answer");
                assert!(reply.is_success(), "DELETE {path}: {reply}");
                own.keys.insert(key, None);
            } else {
                let value = payload::value(&mut rng);
                let reply = client.put(&path, &value).expect("an answer");
                assert!(reply.is_success(), "PUT {path}: {reply}");
                let etag = reply.number("etag");
                own.etags.push(etag);
                own.keys.insert(key, Some(Stored { value, etag }));
            }
        }
        own
    }

    fn verify(&self, node: u64, mut client: Client, mut rng: Rng) {
        for (key, stored) in &self.keys {
            let path = payload::another_path(&mut rng, key);
            let reply = client.get(&path).expect("an answer");
            match stored {
                None => assert_eq!(reply.status, 404, "deleted {path} on node {node}: {reply}"),
                Some(stored) => {
                    assert_eq!(reply.status, 200, "{path} on node {node}: {reply}");
                    assert!(reply.body == stored.value, "{path} on node {node}: other bytes than written");
                    assert_eq!(reply.number("etag"), stored.etag, "{path} on node {node}");
                }
            }
        }
    }
}

#[test]
fn followers_forward_writes_and_answer_reads() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    let followers: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    for (writer, reader) in [(followers[0], followers[1]), (followers[1], leader), (leader, followers[0])] {
        let path = format!("/kv/by-{writer}");
        let put = cluster.client(writer).put(&path, b"forwarded").expect("an answer");
        assert!(put.is_success(), "PUT through node {writer}: {put}");
        let got = cluster.client(reader).get(&path).expect("an answer");
        assert_eq!((got.status, got.body.as_slice()), (200, b"forwarded".as_slice()), "GET through node {reader}");
        assert_eq!(got.number("etag"), put.number("etag"));
        assert!(got.number("raftlet-index") >= put.number("raftlet-index"), "{got} before {put}");
        assert!(got.number("raftlet-term") >= put.number("raftlet-term"), "{got} before {put}");
        assert!(put.number("raftlet-term") > 0);
    }
    assert_eq!(cluster.leader(), leader, "forwarding is no reason for an election");
}

#[test]
fn a_read_after_an_acknowledged_write_sees_it_on_every_node() {
    const READS_PER_READER: usize = 700;
    const READERS_PER_NODE: usize = 2;
    const WRITERS_PER_NODE: usize = 2;
    const WITHIN: Duration = Duration::from_secs(90);

    /// One key, written by one writer that counts up.
    #[derive(Default)]
    struct Counter {
        begun: AtomicU64,
        acknowledged: AtomicU64,
    }

    let mut rng = seed::rng("read_after_write");
    let cluster = Cluster::start(3);
    let counters: Vec<Counter> = (0..3 * WRITERS_PER_NODE).map(|_| Counter::default()).collect();
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let write = |number: usize, mut client: Client| {
        for value in 1.. {
            if done.load(Ordering::Relaxed) || began.elapsed() > WITHIN {
                return;
            }
            counters[number].begun.store(value, Ordering::SeqCst);
            let put = client.put(&format!("/kv/counter/{number}"), value.to_string().as_bytes()).expect("an answer");
            assert!(put.is_success(), "{put}");
            counters[number].acknowledged.store(value, Ordering::SeqCst);
        }
    };
    let read = |node: u64, mut rng: Rng| {
        let mut client = cluster.client(node);
        for check in 0..READS_PER_READER {
            assert!(began.elapsed() < WITHIN, "only {check} reads on node {node} within {WITHIN:?}");
            let number = rng.usize(..counters.len());
            let floor = counters[number].acknowledged.load(Ordering::SeqCst);
            let got = client.get(&format!("/kv/counter/{number}")).expect("an answer");
            let value: u64 = match got.status {
                404 => 0,
                200 => String::from_utf8_lossy(&got.body).parse().expect("a number"),
                _ => panic!("node {node}: {got}"),
            };
            let ceiling = counters[number].begun.load(Ordering::SeqCst);
            assert!(value >= floor, "node {node} answered {value} when {floor} had been acknowledged");
            assert!(value <= ceiling, "node {node} answered {value} when {ceiling} was the last sent");
        }
    };
    std::thread::scope(|scope| {
        for number in 0..counters.len() {
            let client = cluster.client(1 + number as u64 % 3);
            scope.spawn(move || write(number, client));
        }
        let readers: Vec<_> = (0..READERS_PER_NODE)
            .flat_map(|_| cluster.ids())
            .map(|node| (node, rng.fork()))
            .map(|(node, rng)| scope.spawn(move || read(node, rng)))
            .collect();
        let results: Vec<_> = readers.into_iter().map(|r| r.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok), "a reader failed; its message is above");
    });
    cluster.wait_converged();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    const PAIRS: usize = 20;
    let mut rng = seed::rng("pipelined_requests");
    let cluster = Cluster::start(3);
    for node in cluster.ids() {
        let mut bytes = Vec::new();
        for i in 0..PAIRS {
            bytes.extend(encode("PUT", "/kv/pipelined", &[], format!("{node}-{i}").as_bytes()));
            bytes.extend(encode("GET", "/kv/pipelined", &[], b""));
        }
        let mut client = cluster.client(node);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // Cut anywhere: in the middle of a head, of a body, behind several requests.
            let (piece, after) = rest.split_at(rng.usize(1..=rest.len().min(900)));
            client.send(piece).expect("the node reads on");
            rest = after;
        }
        for i in 0..PAIRS {
            let put = client.receive(false).expect("an answer to each PUT");
            assert!(put.is_success(), "{put}");
            let got = client.receive(false).expect("an answer to each GET");
            assert_eq!(String::from_utf8_lossy(&got.body), format!("{node}-{i}"));
        }
        assert_eq!(client.connections(), 1);
    }
}

#[test]
fn connections_are_kept_and_closed_as_http_says() {
    let cluster = Cluster::start(1);
    let mut kept = cluster.client(1);
    for i in 0..100 {
        let put = kept.put("/kv/kept", format!("value {i}").as_bytes()).expect("an answer");
        assert!(put.is_success(), "{put}");
    }
    let head = kept.request("HEAD", "/kv/kept", &[], b"").expect("an answer");
    assert_eq!((head.status, head.number("content-length"), head.body.len()), (200, 8, 0));
    assert_eq!(kept.get("/kv/kept").expect("an answer").body, b"value 99", "HEAD's answer has no body");
    assert_eq!(kept.connections(), 1);

    let closed = kept.request("GET", "/kv/kept", &[("Connection", "close")], b"").expect("an answer");
    assert_eq!(closed.header("connection"), Some("close"));

    let mut old = cluster.client(1);
    old.send(b"GET /kv/kept HTTP/1.0\r\n\r\n").expect("sent");
    assert_eq!(old.receive(false).expect("an answer").body, b"value 99");
    assert!(old.is_closed_by_server(), "HTTP/1.0 does not keep connections");

    // What `ab -k` sends.
    let mut old = cluster.client(1);
    for _ in 0..3 {
        old.send(b"GET /kv/kept HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").expect("sent");
        let reply = old.receive(false).expect("an answer");
        assert_eq!(reply.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
    }
    assert_eq!(old.connections(), 1);
}

#[test]
fn http_2_is_spoken_without_tls() {
    const SETTINGS: u8 = 4;
    const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
    let cluster = Cluster::start(1);
    let mut stream = TcpStream::connect(cluster.address(1)).expect("the node listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    // RFC 9113 §3.4: with prior knowledge, both sides begin with their settings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
    stream.write_all(&EMPTY_SETTINGS).expect("sent");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("the node answers");
    assert_eq!((frame[3], &frame[5..]), (SETTINGS, [0; 4].as_slice()), "{frame:?}");
}

#[test]
fn a_cluster_of_one_node_works_and_keeps_its_data() {
    let mut cluster = Cluster::start(1);
    assert_eq!(cluster.leader(), 1);
    let mut rng = seed::rng("a_cluster_of_one_node");
    let load = Load::start(&cluster, 4, &mut rng);
    load.wait_for_more(100, Duration::from_secs(30));
    let ledger = load.stop();
    let before = cluster.wait_converged();
    let status = cluster.terminate(1);
    assert!(status.success(), "SIGTERM ends a node with {status}");
    cluster.restart_all();
    ledger.verify(&cluster);
    let after = cluster.wait_converged();
    // The new term's blank entry changes the index, so the digests may differ; what it covers may not.
    println!("digest before the restart {before}, after it {after}");
}

#[test]
fn five_nodes_work_without_two_of_them() {
    let mut rng = seed::rng("five_nodes");
    let mut cluster = Cluster::start(5);
    let mut ledger = Ledger::default();
    let load = Load::start(&cluster, 5, &mut rng);
    load.wait_for_more(50, Duration::from_secs(30));
    let leader = cluster.leader();
    let other = cluster.ids().find(|id| *id != leader).expect("five nodes");
    cluster.kill(leader);
    cluster.pause(other);
    load.wait_for_more(50, Duration::from_secs(60));
    assert_ne!(cluster.leader(), leader);
    cluster.resume(other);
    cluster.restart_all();
    load.wait_for_more(50, Duration::from_secs(60));
    ledger.extend(load.stop());
    cluster.wait_converged();
    ledger.verify(&cluster);
}

#[test]
fn an_idle_cluster_rests() {
    const OBSERVED: Duration = Duration::from_secs(6);
    /// Three times what a release build may use: this is a dev build. It still catches whoever polls.
    const CORE_PERCENT_MAX: u32 = 9;
    let cluster = Cluster::start(3);
    cluster.wait_converged();
    let used = || cluster.ids().map(|id| cluster.usage(id).cpu).sum::<Duration>();
    let before = used();
    std::thread::sleep(OBSERVED);
    let idle = used() - before;
    println!("{idle:?} of CPU time in {OBSERVED:?}");
    assert!(idle < OBSERVED * CORE_PERCENT_MAX / 100, "an idle cluster used {idle:?} in {OBSERVED:?}");
}

#[test]
fn a_leader_applies_small_writes_ahead_of_their_commit() {
    let cluster = Cluster::start(3);
    let mut number = 0;
    wait::until("a write is applied ahead", PROGRESS_WITHIN, || {
        number += 1;
        let put = cluster.client(2).put(&format!("/kv/{number}"), b"1").expect("an answer");
        assert!(put.status < 300, "{put}");
        (metric(&cluster, cluster.leader(), "raftlet_applied_ahead_total") > 1).then_some(())
    });
    cluster.wait_converged();
}

#[test]
fn status_health_and_metrics_say_what_they_promise() {
    let mut cluster = Cluster::start(3);
    let put = cluster.client(2).put("/kv/a", b"1").expect("an answer");
    cluster.wait_converged();
    let leader = cluster.leader();
    for status in cluster.statuses() {
        let expected = if status.node_id == leader { "leader" } else { "follower" };
        assert_eq!(status.role, expected, "{status:?}");
        assert_eq!(status.leader_id, Some(leader), "{status:?}");
        assert!(status.term > 0 && status.applied_index >= Some(put.number("raftlet-index")), "{status:?}");
        let module = status.module.as_ref().expect("a module is active");
        assert!(!module.name.is_empty() && !module.version.is_empty() && module.digest.len() >= 32, "{module:?}");
        assert!(status.state_digest.as_ref().is_some_and(|d| d.len() >= 32), "{status:?}");
        let members = status.members.as_array().map(Vec::len).or(status.members.as_object().map(|m| m.len()));
        assert_eq!(members, Some(3), "{}", status.members);
    }
    for node in cluster.ids() {
        let mut client = cluster.client(node);
        assert_eq!(client.get("/_/health").expect("an answer").status, 200);
        let metrics = client.get("/_/metrics").expect("an answer");
        assert_eq!(metrics.status, 200, "{metrics}");
        assert!(String::from_utf8_lossy(&metrics.body).contains("# TYPE "), "{metrics}");
        let missing = client.get("/_/no-such-page").expect("an answer");
        assert_eq!(missing.status, 404, "{missing}");
    }
    for id in cluster.ids() {
        let status = cluster.terminate(id);
        assert!(status.success(), "SIGTERM ends node {id} with {status}");
    }
    // SIGINT is what Ctrl-C sends.
    cluster.restart_all();
    cluster.signal(1, Signal::INT);
    assert!(cluster.wait_exit(1).success());
}
