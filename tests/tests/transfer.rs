//! Snapshots on their way, with real nodes: to a node that was down for too long, through broken transfers, to a node
//! whose own snapshots are gone, out of the cluster and into a new one. Small values of `--snapshot-log-bytes` make
//! snapshots and purges frequent, and a bandwidth makes a transfer last long enough to be disturbed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use raftlet_tests::cluster::Options;
use raftlet_tests::process::{Finished, run};
use raftlet_tests::snapshots::{assert_values, flip_a_byte, leave_behind, partial_bytes, purged, whole, write};
use raftlet_tests::{Client, Cluster, Fate, Launcher, Load, seed, slots, wait};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(90);
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// What a transfer asks for at once (`raft/network/snapshots.rs`).
const PIECE_BYTES: u64 = 256 << 10;
/// Bytes a second: some seconds for the states of these tests.
const SLOW: u64 = 512 << 10;

fn start(nodes: u64, more: &[&str]) -> Cluster {
    Cluster::start_with(nodes, options(more))
}

fn options(more: &[&str]) -> Options {
    let always = ["--snapshot-log-bytes", "256KiB", "--admin-listen", "127.0.0.1:0"];
    Options { args: always.iter().chain(more).map(Into::into).collect(), ..Options::default() }
}

fn status(client: &mut Client) -> Value {
    let found = client.get("/_/status").expect("a status");
    serde_json::from_slice(&found.body).expect("JSON")
}

/// Where operators connect.
#[track_caller]
fn admin(cluster: &Cluster, id: u64) -> String {
    let status = status(&mut cluster.client(id));
    status["admin_address"].as_str().expect("an admin listener").to_owned()
}

#[track_caller]
fn done<A: Into<OsString> + Clone>(args: &[A]) -> Finished {
    let finished = run(args, COMMAND_WITHIN);
    assert!(finished.status.success(), "{} {}", finished.status, finished.stderr);
    finished
}

#[track_caller]
fn refused<A: Into<OsString> + Clone>(args: &[A], words: &[&str]) {
    let finished = run(args, COMMAND_WITHIN);
    assert!(finished.status.code().is_some_and(|c| c != 0), "{} {}", finished.status, finished.stdout);
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in: {}", finished.stderr);
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a test's path is text").to_owned()
}

/// The revision of a key: the number of the command that wrote it.
fn put_revision(client: &mut Client, key: &str) -> u64 {
    let found = client.put(&format!("/kv/{key}"), b"x").expect("an answer");
    assert!(found.is_success(), "{found}");
    found.header("etag").and_then(|e| e.trim_matches('"').parse().ok()).expect("a number as ETag")
}

#[test]
fn a_node_that_was_down_for_too_long_gets_the_snapshot() {
    let mut cluster = start(3, &[]);
    write(&cluster, 1, 0..20);
    let down = cluster.follower();
    let up = cluster.leader();
    cluster.kill(down);
    let count = leave_behind(&cluster, down, up, 20);
    // Its clients are served as before, and writes go on while it fetches.
    let load = Load::start(&cluster, 4, &mut seed::rng("a_node_that_was_down_for_too_long_gets_the_snapshot"));
    cluster.restart(down);
    cluster.wait_ready(down);
    load.wait_for_more(50, WITHIN);
    let ledger = load.stop();
    cluster.wait_converged();
    let log = cluster.log(down);
    assert!(log.contains("is here, whole and verified") && log.contains("is installed"), "it got no snapshot");
    assert_values(&mut cluster.client(down), count);
    ledger.verify(&cluster);
    // And it starts from what it got.
    cluster.kill(down);
    cluster.restart_all();
    cluster.wait_converged();
    assert_values(&mut cluster.client(down), count);
}

#[cfg(debug_assertions)]
#[test]
fn a_transfer_that_was_cut_off_goes_on_where_it_was() {
    let mut cluster = start(3, &[]);
    let (up, down) = (cluster.leader(), cluster.follower());
    cluster.kill(down);
    let count = leave_behind(&cluster, down, up, 0);
    cluster.set_variable(down, "FAILPOINTS", "transfer.chunk=2*off->return");
    cluster.restart(down);
    cluster.wait_exit(down);
    assert_eq!(partial_bytes(&cluster.data(down)), Some(3 * PIECE_BYTES));
    // Died once more, with all of it here and not yet verified.
    cluster.set_variable(down, "FAILPOINTS", "transfer.before-adopt=return");
    cluster.restart(down);
    cluster.wait_exit(down);
    cluster.restart_all();
    cluster.wait_converged();
    let (log, resumed) = (cluster.log(down), format!("going on at {} of", 3 * PIECE_BYTES));
    assert!(log.contains(&resumed), "it began anew:\n{log}");
    assert_values(&mut cluster.client(down), count);
}

#[cfg(debug_assertions)]
#[test]
fn a_death_around_the_installation_loses_nothing() {
    let mut cluster = start(3, &[]);
    let mut count = 0;
    for step in ["transfer.after-adopt", "transfer.before-install", "transfer.after-install"] {
        let (up, down) = (cluster.leader(), cluster.follower());
        cluster.kill(down);
        count = leave_behind(&cluster, down, up, count);
        cluster.set_variable(down, "FAILPOINTS", &format!("{step}=return"));
        cluster.restart(down);
        cluster.wait_exit(down);
        cluster.restart_all();
        cluster.wait_converged();
        assert_values(&mut cluster.client(down), count);
    }
}

#[test]
fn the_next_leader_goes_on_when_the_first_dies_in_a_transfer() {
    let mut cluster = start(3, &["--snapshot-bandwidth", &SLOW.to_string()]);
    let (first, down) = (cluster.leader(), cluster.follower());
    cluster.kill(down);
    let count = leave_behind(&cluster, down, first, 0);
    cluster.restart(down);
    wait::until("a part of the snapshot is there", WITHIN, || {
        partial_bytes(&cluster.data(down)).filter(|bytes| *bytes >= PIECE_BYTES)
    });
    let ready = cluster.client(down).get("/_/ready").expect("an answer");
    let said = String::from_utf8_lossy(&ready.body).into_owned();
    assert!(ready.status == 503 && said.contains("takes a snapshot from node"), "it is not ready: {ready}");
    cluster.kill(first);
    cluster.wait_ready(down);
    assert_ne!(cluster.leader(), first);
    assert_values(&mut cluster.client(down), count);
    cluster.restart_all();
    cluster.wait_converged();
    for id in cluster.ids() {
        assert_values(&mut cluster.client(id), count);
    }
}

#[test]
fn a_node_whose_snapshots_are_damaged_takes_its_state_from_a_peer() {
    let mut cluster = start(3, &["--snapshot-bandwidth", &SLOW.to_string()]);
    let (up, bad) = (cluster.leader(), cluster.follower());
    let mut count = 0;
    wait::until("the node has purged its log", WITHIN, || {
        write(&cluster, up, count..count + 20);
        count += 20;
        (whole(&cluster.data(bad)).len() == 2 && count >= 120 && purged(&cluster, bad) > 0).then_some(())
    });
    let digest = cluster.wait_converged();
    cluster.kill(bad);
    let damaged = whole(&cluster.data(bad));
    damaged.iter().for_each(|path| flip_a_byte(path));
    cluster.restart(bad);
    // It is alive meanwhile, and says what it does.
    wait::until("it says how far it is", WITHIN, || {
        let answer = cluster.client(bad).get("/_/ready").ok()?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        (answer.status == 503 && body.contains("reloading the state from node") && body.contains(" %")).then_some(())
    });
    assert_eq!(cluster.client(bad).get("/_/health").expect("it is alive").status, 200);
    let refusal = cluster.client(bad).put("/kv/early", b"x");
    assert_eq!(Fate::of(&refusal), Fate::Rejected);
    cluster.wait_ready(bad);
    assert_eq!(cluster.wait_converged(), digest);
    let log = cluster.log(bad);
    assert!(log.contains("taking the state from a peer; vote and log stay"), "{log}");
    for path in damaged {
        let name = format!("damaged-{}", path.file_name().unwrap_or_default().to_string_lossy());
        assert!(log.contains(&name) && path.with_file_name(&name).exists(), "{name} is not kept for study");
    }
    assert_values(&mut cluster.client(bad), count);
}

#[test]
fn a_node_that_rejoins_has_a_peers_state_and_its_own_vote_and_log() {
    let mut cluster = start(3, &[]);
    let (up, node) = (cluster.leader(), cluster.follower());
    write(&cluster, up, 0..60);
    let dir = text(&cluster.data(node));
    refused(&["node", "rejoin", "--dir", &dir], &["in use"]);
    let digest = cluster.wait_converged();
    assert!(cluster.terminate(node).success());
    let quarantine = cluster.data(node).join("quarantine.json");
    let value = r#"{"index":7,"ours":"aa","theirs":"bb","time_ms":1,"what":"chain"}"#;
    let text = format!(r#"{{"crc32":2738162045,"value":{value}}}"#);
    fs::write(&quarantine, text).expect("a file");
    let told = done(&["node", "rejoin", "--dir", &dir]).stdout;
    assert!(told.contains(&format!("node {node} is marked")) && told.contains("At least one peer must run"), "{told}");
    // The mark and the quarantine stay until the state is durable here.
    if cfg!(debug_assertions) {
        cluster.set_variable(node, "FAILPOINTS", "transfer.after-adopt=return");
        cluster.restart(node);
        cluster.wait_exit(node);
        assert!(quarantine.exists() && cluster.data(node).join("rejoin").exists());
    }
    cluster.restart(node);
    cluster.wait_ready(node);
    assert_eq!(cluster.wait_converged(), digest);
    assert!(!quarantine.exists() && !cluster.data(node).join("rejoin").exists());
    assert!(cluster.log(node).contains("the state up to entry"), "it took nothing from a peer");
    assert_values(&mut cluster.client(node), 60);
    // A second start is an ordinary one.
    let reloads = |cluster: &Cluster| cluster.log(node).matches("taking the state from a peer").count();
    let before = reloads(&cluster);
    cluster.kill(node);
    cluster.restart(node);
    cluster.wait_ready(node);
    assert_eq!(reloads(&cluster), before);
}

#[test]
fn a_backup_of_a_working_cluster_becomes_a_new_one() {
    let mut rng = seed::rng("a_backup_of_a_working_cluster_becomes_a_new_one");
    let cluster = start(3, &[]);
    let before = Load::start(&cluster, 6, &mut rng);
    before.wait_for_more(200, WITHIN);
    let acknowledged = before.stop();
    let during = Load::start(&cluster, 6, &mut rng);
    during.wait_for_more(50, WITHIN);
    let revision = put_revision(&mut cluster.client(1), "last");
    let file = cluster.folder().join("backup.snapshot");
    // From a follower, which must have all that any node has acknowledged.
    let saved = done(&["snapshot", "save", &text(&file), "--admin", &admin(&cluster, cluster.follower())]);
    during.wait_for_more(50, WITHIN);
    drop(during);
    assert!(saved.stdout.contains("saved "), "{}", saved.stdout);
    let shown = done(&["snapshot", "verify", &text(&file), "--json"]).stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert!(shown["keys"].as_u64().expect("keys") > 250, "{shown}");
    assert!(shown["first_command"].as_u64().expect("a number") > revision, "{shown}");

    let mut new = Cluster::prepare(3, options(&[]), None);
    let arguments = new.arguments(1, false);
    let peers = arguments.iter().position(|a| a == "--peers").expect("--peers");
    let peers = arguments[peers + 1].to_str().expect("text").to_owned();
    let own = peers.split(',').next().and_then(|p| p.strip_prefix("1=")).expect("the first node").to_owned();
    let dir = text(&new.data(1));
    done(&["snapshot", "restore", &text(&file), "--dir", &dir, "--id", "1", "--address", &own]);
    new.restart_all();
    new.wait_converged();
    acknowledged.verify(&new);
    assert!(put_revision(&mut new.client(2), "next") > revision, "command numbers go on");
    let (old, own) = (status(&mut cluster.client(1)), status(&mut new.client(3)));
    assert_ne!(old["cluster_id"], own["cluster_id"], "it is a cluster of its own");
    assert_eq!(own["members"].as_array().map(Vec::len), Some(3));
    // All of it survives the end of all its processes.
    new.kill_all();
    new.restart_all();
    acknowledged.verify(&new);
}

#[test]
fn the_launcher_restores_a_whole_cluster() {
    let cluster = start(1, &[]);
    write(&cluster, 1, 0..20);
    let folder = tempfile::tempdir().expect("a folder");
    let file = text(&folder.path().join("one.snapshot"));
    done(&["snapshot", "save", &file, "--admin", &admin(&cluster, 1)]);
    // It has the slot that the launcher takes.
    drop(cluster);
    let mut launcher = Launcher::new(3);
    launcher.start(&["--restore", &file]);
    for id in launcher.ids() {
        assert_values(&mut launcher.client(id), 20);
    }
    let admin = status(&mut launcher.client(1))["admin_address"].as_str().unwrap_or_default().to_owned();
    assert!(launcher.stdout().contains(&admin) && admin.starts_with("127.0.0.1:"), "{}", launcher.stdout());
    launcher.end_by(|process| process.signal(raftlet_tests::process::Signal::TERM));
    let dir = text(&launcher.dir());
    let port = launcher.port().to_string();
    refused(&["cluster", "start", "--dir", &dir, "--port", &port, "--restore", &file], &["has a cluster already"]);
    let absent = text(&folder.path().join("absent"));
    let bad = ["cluster", "start", "--dir", &absent, "--port", &port, "--restore", "/nowhere/x.snapshot"];
    refused(&bad, &["/nowhere/x.snapshot"]);
    refused(&["cluster", "start", "--restore", &file, "--module", "m.wasm"], &["--module"]);
}

#[test]
fn what_leaves_a_node_keeps_to_the_bandwidth() {
    let cluster = start(1, &["--snapshot-bandwidth", &SLOW.to_string()]);
    write(&cluster, 1, 0..100);
    let mut operator = Client::new(admin(&cluster, 1).parse().expect("an address"));
    let made = operator.request("POST", "/_/snapshot", &[], b"").expect("an answer");
    let made: Value = serde_json::from_slice(&made.body).expect("JSON");
    let bytes = made["bytes"].as_u64().expect("a number");
    assert!(bytes > 3 * SLOW, "the state is large enough to tell: {bytes}");
    let file = cluster.folder().join("slow.snapshot");
    let began = Instant::now();
    done(&["snapshot", "save", &text(&file), "--admin", &admin(&cluster, 1)]);
    // All but the last piece is paid for.
    let least = Duration::from_secs_f64((bytes - PIECE_BYTES) as f64 / SLOW as f64);
    assert!(began.elapsed() >= least, "{bytes} bytes in {:?}", began.elapsed());
    // Commits don't wait for it.
    let began = Instant::now();
    write(&cluster, 1, 100..110);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn operators_have_a_listener_of_their_own() {
    let cluster = start(1, &[]);
    let mut operator = Client::new(admin(&cluster, 1).parse().expect("an address"));
    for path in ["/", "/kv/a", "/_/status", "/_/snapshot/1", "/_/metrics"] {
        let found = operator.get(path).expect("an answer");
        assert_eq!((found.status, found.refusal().is_some()), (404, true), "{path}: {found}");
    }
    let found = operator.put("/_/snapshot", b"").expect("an answer");
    assert_eq!(found.status, 405, "{found}");
    let found = cluster.client(1).get("/_/snapshot").expect("an answer");
    assert_eq!(found.status, 404, "clients can't copy the state: {found}");
    let made = operator.request("POST", "/_/snapshot", &[], b"").expect("an answer");
    let made: Value = serde_json::from_slice(&made.body).expect("JSON");
    let found = operator.get("/_/snapshot").expect("an answer");
    assert_eq!(found.header("etag").map(|e| e.trim_matches('"').to_owned()).as_deref(), made["name"].as_str());
    assert_eq!(found.header("content-length").and_then(|l| l.parse().ok()), made["bytes"].as_u64());
    assert_eq!(found.body.len() as u64, made["bytes"].as_u64().expect("a number"));
}

#[test]
fn what_is_no_snapshot_is_refused_by_name() {
    let _slot = slots::take();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| text(&folder.path().join(name));
    refused(&["snapshot", "verify", &path("absent")], &["absent"]);
    fs::write(path("text"), "this is no snapshot, but it is long enough to be read as the beginning of one").expect("");
    refused(&["snapshot", "verify", &path("text")], &["text", "damaged"]);
    let bad = ["snapshot", "restore", &path("text"), "--dir", &path("new"), "--id", "1"];
    refused(&bad, &["text", "damaged"]);
    assert!(!Path::new(&path("new")).exists(), "nothing is left of a refused restore");
    refused(&["snapshot", "restore", &path("text"), "--dir", &path("new"), "--id", "0"], &["begin with 1"]);
    refused(
        &["snapshot", "restore", &path("text"), "--dir", &path("new"), "--id", "1", "--address", "x"],
        &["HOST:PORT"],
    );
    refused(
        &["snapshot", "restore", &path("text"), "--dir", folder.path().to_str().expect(""), "--id", "1"],
        &["not empty"],
    );
    refused(&["snapshot", "save", &path("text")], &["--force"]);
    refused(&["snapshot", "save", folder.path().to_str().expect("")], &["directory"]);
    refused(&["snapshot", "save", &path("new"), "--admin", "127.0.0.1:1"], &["can't connect"]);
    assert!(!Path::new(&path("new")).exists() && !Path::new(&path("new.partial")).exists());
    refused(&["snapshot", "save", &path("new"), "--admin", "127.0.0.1"], &["127.0.0.1"]);
    refused(&["node", "rejoin", "--dir", &path("absent")], &["identity.json"]);
    refused(&["node", "rejoin"], &["--dir"]);
}

#[test]
fn a_damaged_backup_is_refused_and_the_cluster_is_not_the_place_to_save_from_a_client_port() {
    let cluster = start(1, &[]);
    write(&cluster, 1, 0..10);
    let file = cluster.folder().join("good.snapshot");
    done(&["snapshot", "save", &text(&file), "--admin", &admin(&cluster, 1)]);
    let saved = fs::read(&file).expect("the file");
    refused(&["snapshot", "save", &text(&file), "--admin", &admin(&cluster, 1)], &["--force"]);
    let client = cluster.address(1).to_string();
    refused(&["snapshot", "save", &text(&file), "--force", "--admin", &client], &["admin listener"]);
    assert_eq!(fs::read(&file).expect("the file"), saved, "a failed save leaves the old file");
    done(&["snapshot", "save", &text(&file), "--force", "--admin", &admin(&cluster, 1)]);
    let (cut, bad) = (cluster.folder().join("cut.snapshot"), cluster.folder().join("bad.snapshot"));
    fs::write(&cut, &saved[..saved.len() - 1]).expect("a file");
    fs::write(&bad, &saved).expect("a file");
    flip_a_byte(&bad);
    let dir = text(&cluster.folder().join("new"));
    for file in [&cut, &bad] {
        refused(&["snapshot", "verify", &text(file)], &[&text(file), "damaged"]);
        refused(&["snapshot", "restore", &text(file), "--dir", &dir, "--id", "1"], &[&text(file), "damaged"]);
        assert!(!Path::new(&dir).exists());
    }
}
