//! Other modules than the built-in one, good and hostile.

use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::http::Outcome;
use raftlet_tests::process::run;
use raftlet_tests::{Client, Cluster, paths, seed};

const WITHIN: Duration = Duration::from_secs(60);

fn with_module(nodes: u64, name: &str) -> Cluster {
    Cluster::start_with(nodes, Options { module: Some(paths::guest(name)), ..Options::default() })
}

#[test]
fn the_counter_example_is_hosted_and_keeps_its_state() {
    const CLIENTS: u64 = 6;
    const ADDITIONS: u64 = 40;
    let mut rng = seed::rng("the_counter_example");
    let mut cluster = with_module(3, "counter");
    let module = cluster.statuses()[0].module.clone().expect("a module is active");
    assert_eq!(module.name, "counter");
    let steps: Vec<u64> = (0..CLIENTS).map(|_| rng.u64(1..100)).collect();
    std::thread::scope(|scope| {
        for (number, step) in (0..).zip(&steps) {
            let mut client = cluster.client(1 + number % 3);
            scope.spawn(move || {
                for _ in 0..ADDITIONS {
                    let added = client.request("POST", "/counter/shared", &[], step.to_string().as_bytes());
                    let added = added.expect("an answer");
                    assert_eq!(added.status, 200, "{added}");
                }
            });
        }
    });
    let total = (steps.iter().sum::<u64>() * ADDITIONS).to_string();
    cluster.wait_converged();
    for node in cluster.ids() {
        let read = cluster.client(node).get("/counter/shared").expect("an answer");
        assert_eq!(String::from_utf8_lossy(&read.body).trim(), total, "node {node}");
    }
    cluster.kill_all();
    cluster.restart_all();
    let read = cluster.client(2).get("/counter/shared").expect("an answer");
    assert_eq!(String::from_utf8_lossy(&read.body).trim(), total, "after a restart without --module");
    assert_eq!(cluster.status(2).and_then(|s| s.module), Some(module));
}

#[test]
fn another_proposal_does_not_replace_the_active_module() {
    let mut cluster = Cluster::start(3);
    let put = cluster.client(1).put("/kv/a", b"kept").expect("an answer");
    assert!(put.is_success(), "{put}");
    let before = cluster.status(1).and_then(|s| s.module).expect("a module is active");
    for id in cluster.ids() {
        let log_before = cluster.log(id).len();
        assert!(cluster.terminate(id).success());
        let module = vec!["--module".into(), paths::guest("counter").into()];
        let args = [cluster.arguments(id, id == 1), module].concat();
        cluster.restart_as(id, &args);
        cluster.wait_ready(id);
        let log = cluster.log(id)[log_before..].to_lowercase();
        let warned = log.lines().any(|l| l.contains("warn") && l.contains("module"));
        assert!(warned, "node {id} says nothing about the ignored module:\n{log}");
    }
    cluster.wait_converged();
    for id in cluster.ids() {
        assert_eq!(cluster.status(id).and_then(|s| s.module).as_ref(), Some(&before));
        assert_eq!(cluster.client(id).get("/kv/a").expect("an answer").body, b"kept");
    }
}

#[test]
fn module_check_shows_what_a_module_is() {
    for name in ["kv", "counter"] {
        let check = run(&["module".into(), "check".into(), paths::guest(name).into_os_string()], WITHIN);
        assert!(check.status.success(), "{check:?}");
        for word in [name, "store", "apply", "query"] {
            assert!(check.stdout.contains(word), "no {word:?}: {}", check.stdout);
        }
    }
}

/// Commands that trap, burn all fuel, exhaust the stack or the memory, or break the contract for their whole batch.
/// Without `count-short`: in one batch with `count-wrong`, one reply too few and one too many make the right number.
const HOSTILE: [&str; 8] = ["trap", "panic", "loop", "recurse", "alloc", "count-wrong", "garbage", "begin-wrong"];

#[test]
fn hostile_commands_hurt_nobody_but_themselves() {
    const CLIENTS: u64 = 12;
    const ROUNDS: u64 = 12;
    let mut rng = seed::rng("hostile_commands");
    let cluster = with_module(3, "hostile");
    cluster.leader();
    let terms_before: Vec<u64> = cluster.statuses().iter().map(|s| s.term).collect();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (mut client, mut rng) = (cluster.client(1 + number % 3), rng.fork());
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if rng.u8(0..3) == 0 {
                        be_hostile(&mut client, rng.choice(HOSTILE).expect("there are some"));
                    }
                    write_between_the_hostile(&mut client, &format!("{number}-{round}"));
                }
            });
        }
    });
    be_hostile(&mut cluster.client(1), "count-short");
    cluster.wait_converged();
    for (node, number) in cluster.ids().flat_map(|node| (0..CLIENTS).map(move |number| (node, number))) {
        let mut client = cluster.client(node);
        for round in 0..ROUNDS {
            let key = format!("{number}-{round}");
            let read = client.get(&format!("/get/{key}")).expect("an answer");
            assert_eq!(String::from_utf8_lossy(&read.body), key, "node {node}: {read}");
        }
    }
    for undone in ["trap", "panic", "loop"] {
        let read = cluster.client(2).get(&format!("/get/{undone}")).expect("an answer");
        assert_eq!(read.status, 404, "what /{undone} wrote before its end must be dropped: {read}");
    }
    let terms: Vec<u64> = cluster.statuses().iter().map(|s| s.term).collect();
    assert_eq!(terms, terms_before, "hostile commands caused an election");
}

/// A command that must be answered with an error of its own.
fn be_hostile(client: &mut Client, name: &str) {
    let reply = client.request("POST", &format!("/{name}"), &[], b"").expect("an answer");
    assert_eq!(reply.refusal(), Some(Outcome::Rejected), "{name}: {reply}");
    // 503: the batch's fuel was used up by others before it.
    assert!(matches!(reply.status, 500 | 503), "{name}: {reply}");
}

/// Writes in the same batches. Only a batch without fuel is an excuse, and then it may be sent again.
fn write_between_the_hostile(client: &mut Client, key: &str) {
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        let reply = client.put(&format!("/put/{key}"), key.as_bytes()).expect("an answer");
        if reply.is_success() {
            return;
        }
        assert_eq!((reply.status, reply.refusal()), (503, Some(Outcome::Rejected)), "{key}: {reply}");
    }
    panic!("{key} was refused {TRIES} times");
}

#[test]
fn hostile_queries_are_answered_with_errors() {
    let cluster = with_module(3, "hostile");
    cluster.leader();
    let term = cluster.status(1).map(|s| s.term);
    std::thread::scope(|scope| {
        for (node, name) in cluster.ids().flat_map(|node| HOSTILE.into_iter().chain(["write"]).map(move |n| (node, n)))
        {
            let mut client = cluster.client(node);
            scope.spawn(move || {
                let reply = client.get(&format!("/{name}")).expect("an answer");
                assert!(reply.status >= 500 && reply.refusal().is_some(), "{name} on node {node}: {reply}");
            });
        }
    });
    for node in cluster.ids() {
        write_between_the_hostile(&mut cluster.client(node), "after");
        assert_eq!(cluster.client(node).get("/get/after").expect("an answer").body, b"after");
        assert_eq!(cluster.client(node).get("/get/write").expect("an answer").status, 404);
    }
    cluster.wait_converged();
    assert_eq!(cluster.status(1).map(|s| s.term), term, "hostile queries caused an election");
}
