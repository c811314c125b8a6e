//! Nodes that differ, and entries that kill. A wrong node answers nobody, the others go on, and where it can't be known
//! who is right all stop. The faults are made by failpoints, which debug builds have.

use std::time::Duration;

use raftlet_tests::cluster::{ELECT_WITHIN, Options, START_WITHIN};
use raftlet_tests::http::Outcome;
use raftlet_tests::{Cluster, Response, paths, slots, wait};
use serde_json::Value;

/// For a divergence to be found and dealt with: some audits, and an election if it is the leader.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
/// For a refusal that a node has to give.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);

/// Three nodes, with faults that can be called for on some of them; all ready.
fn cluster(faults: &[(u64, &str)], options: Options) -> Cluster {
    let args = ["--audit-interval", "200ms"].map(Into::into).into_iter().chain(options.args);
    let options = Options { args: args.collect(), ..options };
    let mut cluster = Cluster::prepare(3, options, Some(slots::take()));
    for (id, fault) in faults {
        cluster.set_variable(*id, "FAILPOINTS", fault);
    }
    cluster.restart_all();
    cluster
}

#[track_caller]
fn status(cluster: &Cluster, id: u64) -> Value {
    cluster.client(id).answer_within(REFUSED_WITHIN).get("/_/status").expect("a status").json()
}

#[track_caller]
fn wait_for(cluster: &Cluster, id: u64, what: &str, member: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(&format!("node {id} is {what}"), FOUND_WITHIN, || {
        // A node that is starting doesn't answer yet.
        let status = cluster.client(id).answer_within(REFUSED_WITHIN).get("/_/status").ok()?.json();
        is_so(&status[member]).then(|| status[member].clone())
    })
}

/// Waits until the node is in quarantine; what its status says of it.
#[track_caller]
fn wait_quarantined(cluster: &Cluster, id: u64) -> Value {
    wait_for(cluster, id, "in quarantine", "quarantine", Value::is_object)
}

#[track_caller]
fn wait_held(cluster: &Cluster, id: u64, reason: &str) -> Value {
    wait_for(cluster, id, &format!("held ({reason})"), "hold", |hold| hold["reason"] == reason)
}

#[track_caller]
fn put(cluster: &Cluster, id: u64, path: &str, value: &[u8]) {
    wait::until(&format!("node {id} acknowledges a write of {path}"), ELECT_WITHIN, || {
        cluster.client(id).answer_within(REFUSED_WITHIN).put(path, value).ok().filter(Response::is_success)
    });
}

/// Says the fault's name in a command, without caring for the answer: the node may be refused meanwhile.
fn call_for(cluster: &Cluster, id: u64, fault: &str) {
    let path = format!("/kv/fault/{fault}");
    let _ = cluster.client(id).answer_within(REFUSED_WITHIN).put(&path, format!("failpoint:{fault}").as_bytes());
}

/// Nothing is given out by a node that may be wrong.
#[track_caller]
fn refuses_all(cluster: &Cluster, id: u64, kind: &str) {
    let client = || cluster.client(id).answer_within(REFUSED_WITHIN);
    let refused = [
        client().put("/kv/refused", b"x").expect("an answer"),
        client().get("/kv/before").expect("an answer"),
        client().get("/kv/before?consistency=stale").expect("an answer"),
    ];
    for reply in refused {
        assert_eq!((reply.status, reply.refusal()), (503, Some(Outcome::Rejected)), "{reply}");
        assert_eq!(reply.json()["type"], format!("/_/problems/{kind}"), "{reply}");
    }
    let ready = client().get("/_/ready").expect("an answer");
    assert_eq!(ready.status, 503, "{ready}");
}

#[track_caller]
fn metric(cluster: &Cluster, id: u64, name: &str) -> u64 {
    let text = cluster.client(id).get("/_/metrics").expect("metrics").body;
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// What a node in quarantine says everywhere, and that the two digests differ.
#[track_caller]
fn says_why(cluster: &Cluster, id: u64, quarantine: &Value, what: &str) {
    assert_eq!(quarantine["what"], what);
    let digest = |member: &str| quarantine[member].as_str().expect("a digest").to_owned();
    let (ours, theirs) = (digest("ours"), digest("theirs"));
    assert!(ours != theirs && ours.len() == 32 && theirs.len() == 32, "{quarantine}");
    let index = quarantine["index"].as_u64().expect("an index");
    let says = |text: &str| text.contains(&format!("index {index}")) && text.contains(&ours) && text.contains(&theirs);
    let log = cluster.log(id);
    assert!(log.lines().any(|l| l.contains("ERROR") && says(l)), "the log doesn't say why");
    let ready = cluster.client(id).get("/_/ready").expect("an answer");
    assert!(says(&String::from_utf8_lossy(&ready.body)), "{ready}");
    wait::until("the metric shows the quarantine", FOUND_WITHIN, || {
        (metric(cluster, id, "raftlet_quarantined") == 1).then_some(())
    });
}

/// The nodes answer, agree, and none of them is held.
#[track_caller]
fn go_on(cluster: &Cluster, ids: &[u64]) {
    for id in ids {
        put(cluster, *id, &format!("/kv/after/{id}"), b"on");
    }
    wait::until("the sound nodes agree", FOUND_WITHIN, || {
        let all: Vec<Value> = ids.iter().map(|id| status(cluster, *id)).collect();
        let same =
            |s: &Value| s["state_digest"] == all[0]["state_digest"] && s["applied_index"] == all[0]["applied_index"];
        let sound = |s: &Value| s["quarantine"].is_null() && s["hold"].is_null();
        all.iter().all(|s| same(s) && sound(s)).then_some(())
    });
}

/// Makes `id` lead, or not lead. A node that is stopped for it is started with its fault again.
fn let_lead(cluster: &mut Cluster, id: u64, should: bool, faults: &[(u64, &str)]) {
    for _ in 0..10 {
        let leader = cluster.leader();
        if (leader == id) == should {
            return;
        }
        assert!(cluster.terminate(leader).success());
        for (_, fault) in faults.iter().filter(|(id, _)| *id == leader) {
            cluster.set_variable(leader, "FAILPOINTS", fault);
        }
        cluster.restart(leader);
        cluster.wait_ready(leader);
    }
    panic!("the lead doesn't come to a node that should have it");
}

#[test]
fn a_follower_that_differs_is_quarantined_and_stays_so() {
    const FAULT: &str = "apply.corrupt-write=return";
    let mut cluster = cluster(&[(3, FAULT)], Options::default());
    let_lead(&mut cluster, 3, false, &[(3, FAULT)]);
    put(&cluster, 1, "/kv/before", b"here");
    call_for(&cluster, 1, "corrupt-write");
    // With nothing written after it, only the audit can find it.
    let quarantine = wait_quarantined(&cluster, 3);
    says_why(&cluster, 3, &quarantine, "digest chain");
    refuses_all(&cluster, 3, "quarantined");
    go_on(&cluster, &[1, 2]);

    // A restart, now without the fault, must not give it a chance.
    let stands_at = status(&cluster, 3)["applied_index"].clone();
    assert!(cluster.terminate(3).success(), "a node in quarantine stops when it is asked to");
    assert!(cluster.data(3).join("quarantine.json").exists());
    cluster.restart(3);
    wait::until("node 3 follows again", START_WITHIN, || cluster.status(3).filter(|s| s.leader_id.is_some()));
    assert_eq!(status(&cluster, 3)["quarantine"], quarantine);
    refuses_all(&cluster, 3, "quarantined");
    assert!(status(&cluster, 3)["applied_index"] != stands_at, "after a restart nothing is applied");

    // It still counts for the log: with one of the others down, nothing is committed without it.
    let leader = cluster.leader();
    let other = [1, 2].into_iter().find(|id| *id != leader).expect("two are sound");
    cluster.kill(other);
    let before = status(&cluster, 3)["last_log_index"].as_u64();
    put(&cluster, leader, "/kv/with-its-help", b"committed");
    wait::until("its log grows", FOUND_WITHIN, || {
        (status(&cluster, 3)["last_log_index"].as_u64() > before).then_some(())
    });
    cluster.restart(other);
    cluster.wait_ready(other);
    go_on(&cluster, &[1, 2]);
}

#[test]
fn a_follower_that_differs_is_found_by_its_leaders_stamps_under_load() {
    const FAULT: &str = "apply.corrupt-write=return";
    let options = Options { args: ["--audit-interval", "1h"].map(Into::into).into(), ..Options::default() };
    // Audits on suspicion only.
    let mut cluster = Cluster::prepare(3, options, Some(slots::take()));
    cluster.set_variable(3, "FAILPOINTS", FAULT);
    cluster.restart_all();
    let_lead(&mut cluster, 3, false, &[(3, FAULT)]);
    put(&cluster, 1, "/kv/before", b"here");
    call_for(&cluster, 1, "corrupt-write");
    let mut number = 0;
    wait::until("node 3 is in quarantine", FOUND_WITHIN, || {
        number += 1;
        let _ = cluster.client(1 + number % 2).put(&format!("/kv/load/{number}"), b"x");
        status(&cluster, 3)["quarantine"].is_object().then_some(())
    });
    assert!(cluster.log(3).contains("who is right isn't known yet"), "it was the stamp that found it");
    refuses_all(&cluster, 3, "quarantined");
    go_on(&cluster, &[1, 2]);
}

#[test]
fn a_leader_that_differs_hands_over_and_is_quarantined() {
    const FAULT: &str = "apply.corrupt-write=return";
    let mut cluster = cluster(&[(1, FAULT)], Options::default());
    let_lead(&mut cluster, 1, true, &[(1, FAULT)]);
    put(&cluster, 1, "/kv/before", b"here");
    call_for(&cluster, 2, "corrupt-write");
    let quarantine = wait_quarantined(&cluster, 1);
    says_why(&cluster, 1, &quarantine, "digest chain");
    refuses_all(&cluster, 1, "quarantined");
    assert!(cluster.log(1).contains("handing the lead over"));
    go_on(&cluster, &[2, 3]);
    assert_ne!(cluster.leader(), 1);
    // Alone with one sound node it must be that one that leads, even after an election.
    let leader = cluster.leader();
    cluster.kill(leader);
    let survivor = [2, 3].into_iter().find(|id| *id != leader).expect("two are sound");
    assert_eq!(cluster.leader(), survivor);
    go_on(&cluster, &[survivor]);
}

#[test]
fn a_flipped_bit_in_a_value_nobody_reads_is_found_at_a_checkpoint() {
    const FAULT: &str = "apply.corrupt-map=return";
    let options = Options { args: ["--checkpoint-interval", "300ms"].map(Into::into).into(), ..Options::default() };
    let mut cluster = cluster(&[(3, FAULT)], options);
    let_lead(&mut cluster, 3, false, &[(3, FAULT)]);
    put(&cluster, 1, "/kv/before", b"here");
    call_for(&cluster, 1, "corrupt-map");
    let quarantine = wait_quarantined(&cluster, 3);
    says_why(&cluster, 3, &quarantine, "content digest");
    refuses_all(&cluster, 3, "quarantined");
    go_on(&cluster, &[1, 2]);
}

#[test]
fn a_module_that_sees_its_nodes_clock_is_found_on_the_node_that_differs() {
    // No module can see a clock of its node's: here one node's host breaks that rule.
    let hostile = || Options { module: Some(paths::guest("hostile")), ..Options::default() };
    let mut cluster = cluster(&[(3, "apply.own-clock=return")], hostile());
    let_lead(&mut cluster, 3, false, &[(3, "apply.own-clock=return")]);
    let reply = cluster.client(1).request("POST", "/context", &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "{reply}");
    let quarantine = wait_quarantined(&cluster, 3);
    says_why(&cluster, 3, &quarantine, "digest chain");
    let reply = cluster.client(2).put("/put/after", b"on").expect("an answer");
    assert!(reply.is_success(), "{reply}");
}

#[test]
fn a_module_that_sees_every_nodes_clock_stops_all() {
    const FAULT: &str = "apply.own-clock=return";
    let hostile = Options { module: Some(paths::guest("hostile")), ..Options::default() };
    let cluster = cluster(&[(1, FAULT), (2, FAULT), (3, FAULT)], hostile);
    let _ = cluster.client(1).answer_within(REFUSED_WITHIN).request("POST", "/context", &[], b"");
    for id in cluster.ids() {
        wait_held(&cluster, id, "no-majority");
        refuses_all(&cluster, id, "held");
    }
}

#[test]
fn two_that_differ_stop_until_the_third_decides() {
    const FAULT: &str = "apply.corrupt-write=return";
    let mut cluster = cluster(&[(2, FAULT)], Options::default());
    let_lead(&mut cluster, 1, true, &[(2, FAULT)]);
    put(&cluster, 1, "/kv/before", b"here");
    cluster.wait_converged();
    cluster.kill(3);
    call_for(&cluster, 1, "corrupt-write");
    for id in [1, 2] {
        let hold = wait_held(&cluster, id, "no-majority");
        assert!(hold["detail"].as_str().is_some_and(|d| d.contains("no majority agrees")), "{hold}");
        refuses_all(&cluster, id, "held");
        wait::until("the metric shows the hold", FOUND_WITHIN, || {
            (metric(&cluster, id, "raftlet_held") == 1).then_some(())
        });
    }
    cluster.restart(3);
    let quarantine = wait_quarantined(&cluster, 2);
    says_why(&cluster, 2, &quarantine, "digest chain");
    go_on(&cluster, &[1, 3]);
}

#[test]
fn an_entry_that_kills_is_held_and_can_be_skipped() {
    const FAULT: &str = "apply.poison=return";
    let mut cluster = cluster(&[(1, FAULT), (2, FAULT), (3, FAULT)], Options::default());
    put(&cluster, 1, "/kv/before", b"here");
    call_for(&cluster, 1, "poison");
    let skip = wait_all_held(&mut cluster, FAULT);

    // The log and the votes go on.
    let leader = cluster.leader();
    cluster.kill(leader);
    let before = cluster.statuses().iter().filter_map(|s| s.last_log_index).max();
    assert_ne!(cluster.leader(), leader);
    wait::until("the log grows", FOUND_WITHIN, || {
        (cluster.statuses().iter().filter_map(|s| s.last_log_index).min() > before).then_some(())
    });
    let held = cluster.leader();
    let client = || cluster.client(held).answer_within(REFUSED_WITHIN);
    for reply in [client().put("/kv/refused", b"x"), client().get("/kv/before")] {
        let reply = reply.expect("an answer");
        assert_eq!((reply.status, reply.refusal()), (503, Some(Outcome::Rejected)), "{reply}");
        assert!(String::from_utf8_lossy(&reply.body).contains(&format!("--skip-entry {skip}")), "{reply}");
    }
    let stale = client().get("/kv/before?consistency=stale").expect("an answer");
    assert_eq!((stale.status, stale.body.as_slice()), (200, b"here".as_slice()), "what was applied before is right");
    assert_eq!(metric(&cluster, held, "raftlet_held"), 1);

    // A wrong checksum changes nothing.
    let (index, _) = skip.split_once(':').expect("INDEX:CHECKSUM");
    restart_with(&mut cluster, held, FAULT, Some(&format!("{index}:00000000000000ff")));
    let hold = wait_held(&cluster, held, "entry");
    assert!(hold["detail"].as_str().is_some_and(|d| d.contains("names another entry")), "{hold}");
    assert!(cluster.log(held).contains("is refused: the entry at"));

    for id in cluster.ids() {
        restart_with(&mut cluster, id, FAULT, Some(&skip));
    }
    skipped_everywhere(&mut cluster, "one");
    // Remembered: the log is applied anew, the fault is still there, and nobody gives the flag.
    for id in cluster.ids() {
        restart_with(&mut cluster, id, FAULT, None);
    }
    skipped_everywhere(&mut cluster, "two");
}

/// Starts whatever dies again, until no node dies any more; what `--skip-entry` takes.
fn wait_all_held(cluster: &mut Cluster, fault: &str) -> String {
    let mut deaths = [0; 4];
    let skips = wait::until("all nodes hold the entry", Duration::from_secs(120), || {
        for id in cluster.ids() {
            if let Some(status) = cluster.exited(id) {
                assert!(!status.success());
                deaths[id as usize] += 1;
                cluster.wait_exit(id);
                cluster.set_variable(id, "FAILPOINTS", fault);
                cluster.restart(id);
            }
        }
        let holds: Vec<String> = cluster.ids().filter_map(|id| held_entry(cluster, id)).collect();
        (holds.len() == 3).then_some(holds)
    });
    assert_eq!(deaths[1..], [2, 2, 2], "each node gives it two lives");
    assert!(skips.iter().all(|s| *s == skips[0]), "{skips:?}");
    skips[0].clone()
}

fn held_entry(cluster: &Cluster, id: u64) -> Option<String> {
    let status = cluster.client(id).answer_within(Duration::from_secs(2)).get("/_/status").ok()?.json();
    let hold = status["hold"].as_object().filter(|hold| hold["reason"] == "entry")?;
    hold["skip"].as_str().map(Into::into)
}

fn restart_with(cluster: &mut Cluster, id: u64, fault: &str, skip: Option<&str>) {
    if cluster.exited(id).is_none() && cluster.is_running(id) {
        assert!(cluster.terminate(id).success(), "a node that is held stops when it is asked to");
    }
    cluster.set_variable(id, "FAILPOINTS", fault);
    let mut args = cluster.arguments(id, false);
    args.extend(skip.iter().flat_map(|skip| ["--skip-entry".into(), (*skip).into()]));
    cluster.restart_as(id, &args);
}

fn skipped_everywhere(cluster: &mut Cluster, name: &str) {
    for id in cluster.ids() {
        cluster.wait_ready(id);
        put(cluster, id, &format!("/kv/{name}/{id}"), b"on");
        let client = || cluster.client(id).answer_within(REFUSED_WITHIN);
        assert_eq!(client().get("/kv/before").expect("an answer").body, b"here");
        assert_eq!(client().get("/kv/fault/poison").expect("an answer").status, 404, "it has no effect");
    }
    cluster.wait_converged();
}
