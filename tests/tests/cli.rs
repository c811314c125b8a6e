//! The commands, as a user types them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use raftlet_tests::process::{self, Finished, Signal, is_alive, run};
use raftlet_tests::{Cluster, Launcher, slots, wait};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
/// Of a node after the benchmark.
const RESIDENT_BYTES_MAX: u64 = 250 << 20;
const BENCH_WITHIN: Duration = Duration::from_secs(180);

#[test]
fn cluster_start_runs_heals_stops_and_goes_on() {
    let mut launcher = Launcher::new(3);
    launcher.start(&[]);
    shows_urls_and_commands(&launcher);
    let put = launcher.client(1).put("/kv/a", b"hello").expect("an answer");
    assert!(put.is_success(), "{put}");
    assert_eq!(launcher.client(3).get("/kv/a").expect("an answer").body, b"hello");

    let before = launcher.pids();
    kill_and_wait_for_restart(&mut launcher, 2, before[&2]);
    assert_eq!(launcher.client(2).get("/kv/a").expect("an answer").body, b"hello");
    let status = launcher.end_by(|process| process.signal(Signal::TERM));
    assert_eq!(status.code(), Some(0), "SIGTERM: {status}");

    launcher.start(&[]);
    assert_eq!(launcher.client(2).get("/kv/a").expect("an answer").body, b"hello", "the same folder, the same data");
    shows_status(&launcher);
    let dir = launcher.dir();
    let status = launcher.end_by(|_| {
        let stop = run(&["cluster".into(), "stop".into(), "--dir".into(), dir.into_os_string()], WITHIN);
        assert!(stop.status.success(), "{stop:?}");
    });
    assert_eq!(status.code(), Some(0), "cluster stop: {status}");

    launcher.start(&["--no-restart"]);
    stays_dead(&mut launcher, 3);
    // What Ctrl-C sends.
    let status = launcher.end_by(|process| process.signal(Signal::INT));
    assert_eq!(status.code(), Some(0), "SIGINT: {status}");
}

fn shows_urls_and_commands(launcher: &Launcher) {
    let shown = |stdout: &str| {
        let urls = launcher.ids().all(|id| stdout.contains(&format!(":{}", launcher.port() + id as u16 - 1)));
        urls && stdout.lines().filter(|l| l.trim_start().trim_start_matches("$ ").starts_with("curl ")).count() >= 3
    };
    wait::until("the table and three curl lines are shown", WITHIN, || shown(&launcher.stdout()).then_some(()));
}

fn kill_and_wait_for_restart(launcher: &mut Launcher, id: u64, pid: u32) {
    let said = launcher.stdout().len();
    process::send(pid, Signal::KILL).expect("the node runs");
    wait::until("the node runs again", WITHIN, || launcher.pid(id).filter(|new| *new != pid && is_alive(*new)));
    launcher.wait_ready(id);
    for what in ["it was lost", "it is back"] {
        wait::until(&format!("an event line says that {what}"), WITHIN, || {
            let lines = launcher.stdout()[said..].lines().filter(|l| l.contains(&format!("node {id}"))).count();
            (lines >= if what == "it was lost" { 1 } else { 2 }).then_some(())
        });
    }
}

fn stays_dead(launcher: &mut Launcher, id: u64) {
    const OBSERVED: Duration = Duration::from_secs(3);
    let said = launcher.stdout().len();
    let pid = launcher.pids()[&id];
    process::send(pid, Signal::KILL).expect("the node runs");
    wait::until("an event line says that the node was lost", WITHIN, || {
        launcher.stdout()[said..].contains(&format!("node {id}")).then_some(())
    });
    wait::never("a restart", OBSERVED, || launcher.pid(id).filter(|p| is_alive(*p)).map(|p| format!("pid {p}")));
    let put = launcher.client(1).put("/kv/b", b"two of three").expect("an answer");
    assert!(put.is_success() || put.refusal().is_some(), "{put}");
}

fn shows_status(launcher: &Launcher) {
    let url = format!("http://127.0.0.1:{}", launcher.port() + 1);
    let status = run(&["cluster", "status", "--url", &url, "--json"], WITHIN);
    assert!(status.status.success(), "{status:?}");
    let json: Value = serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e}: {status:?}"));
    assert!(json.is_object() || json.is_array(), "{json}");
    assert!(status.stdout.contains("leader"), "{json}");
    let table = run(&["cluster", "status", "--url", &url], WITHIN);
    assert!(table.status.success() && table.stdout.contains("leader"), "{table:?}");
}

#[test]
fn bench_verifies_every_write_in_a_cluster_of_its_own() {
    // With the batching client several commands are one batch whatever the nodes do.
    for (batching, client) in [("on", "direct"), ("off", "direct"), ("on", "batched")] {
        let _slot = slots::take();
        let args = ["bench", "--ops", "2000", "--clients", "10", "--verify", "--json", "--batching", batching];
        let args = args.into_iter().chain(["--client", client]).collect::<Vec<_>>();
        let finished = run(&args, BENCH_WITHIN);
        let result = bench_result(&finished);
        assert_eq!((&result["client"], &result["target"]), (&client.into(), &"raftlet".into()), "{result}");
        assert_eq!(result["ops"], 2000, "{result}");
        assert_eq!(result["verified"], 2000, "{result}");
        let mean_batch = result["mean_batch"].as_f64().expect("a number");
        match batching {
            "off" => assert!((mean_batch - 1.0).abs() < 1e-9, "a batch each, not {mean_batch}"),
            _ => assert!(mean_batch >= 1.0, "{mean_batch}"),
        }
        assert!(finished.left.is_empty(), "the temporary cluster left {:?}", finished.left);
    }
}

#[test]
fn bench_measures_a_running_cluster() {
    let cluster = Cluster::start(3);
    let urls = cluster.addresses().into_iter().flat_map(|a| ["--url".to_owned(), format!("http://{a}")]);
    let args = ["bench", "--ops", "20000", "--clients", "50", "--value-bytes", "500", "--read-percent", "30", "--json"];
    let args: Vec<OsString> = args.into_iter().map(Into::into).chain(urls.map(Into::into)).collect();
    let finished = run(&args, BENCH_WITHIN);
    assert_eq!(bench_result(&finished)["ops"], 20_000);
    cluster.wait_converged();
    for id in cluster.ids() {
        let resident = cluster.usage(id).resident_bytes;
        println!("node {id} holds {} MiB", resident >> 20);
        assert!(resident < RESIDENT_BYTES_MAX, "node {id} holds {resident} bytes");
    }
    let for_people: Vec<OsString> = args.into_iter().filter(|a| a != "--json").collect();
    let table = run(&for_people, BENCH_WITHIN);
    assert!(table.status.success() && table.stdout.contains("p99"), "{table:?}");
}

/// The one JSON object, with all its members, no error and an order among the quantiles.
#[track_caller]
fn bench_result(finished: &Finished) -> Value {
    assert!(finished.status.success(), "{finished:?}");
    let result: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
    for member in ["ops", "errors", "seconds", "ops_per_second", "latency_us", "mean_batch", "verified"] {
        assert!(result.get(member).is_some(), "no member {member} in {result}");
    }
    assert_eq!(result["errors"], 0, "{result}");
    assert!(result["seconds"].as_f64() > Some(0.0) && result["ops_per_second"].as_f64() > Some(0.0), "{result}");
    let latency: BTreeMap<String, f64> =
        serde_json::from_value(result["latency_us"].clone()).unwrap_or_else(|e| panic!("{e}: {result}"));
    let quantiles = ["p50", "p90", "p99", "p999", "max"].map(|q| latency[q]);
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{latency:?}");
    assert!(latency["mean"] > 0.0 && latency["mean"] <= latency["max"], "{latency:?}");
    result
}
