//! Disks that are full, fail or rot, and looking into the log of a stopped node. What was acknowledged stays; who can't
//! write says so and goes on when it can.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use raftlet_tests::cluster::{ELECT_WITHIN, Options, START_WITHIN, STOP_WITHIN};
use raftlet_tests::ports::Reserved;
use raftlet_tests::process::run;
use raftlet_tests::{Client, Cluster, Response, paths, slots, wait};

/// A quarter of a second between two looks at the disk, and a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(20);
const QUOTA: u64 = 64 << 20;

fn with_quota() -> Options {
    Options { args: vec![format!("--disk-quota={QUOTA}").into()], ..Options::default() }
}

/// A file in the node's folder that counts like its own.
fn ballast(cluster: &Cluster, id: u64) -> PathBuf {
    let path = cluster.data(id).join("ballast");
    fs::write(&path, vec![7; QUOTA as usize]).unwrap();
    path
}

#[track_caller]
fn wait_low(cluster: &Cluster, id: u64, low: bool) {
    wait::until(&format!("node {id} says low: {low}"), SEEN_WITHIN, || {
        let status = cluster.client(id).get("/_/status").ok()?.json();
        (status["disk"]["low"] == low).then_some(())
    });
}

fn put(cluster: &Cluster, id: u64, key: &str) -> Response {
    cluster.client(id).put(&format!("/kv/{key}"), key.as_bytes()).unwrap_or_else(|e| panic!("{key} on {id}: {e:?}"))
}

#[track_caller]
fn put_until_done(cluster: &Cluster, id: u64, key: &str) {
    wait::until(&format!("{key} is written on {id}"), ELECT_WITHIN, || {
        put(cluster, id, key).is_success().then_some(())
    });
}

#[track_caller]
fn assert_disk_full(response: &Response) {
    assert_eq!(response.status, 503, "{response}");
    let problem = response.json();
    assert_eq!(problem["type"], "/_/problems/disk-full", "{response}");
    assert_eq!(problem["outcome"], "rejected", "{response}");
}

#[track_caller]
fn assert_reads(cluster: &Cluster, id: u64, key: &str) {
    let response = cluster.client(id).get(&format!("/kv/{key}")).unwrap();
    assert!(response.is_success() && response.body == key.as_bytes(), "{key} on {id}: {response}");
}

#[test]
fn a_node_without_room_refuses_commands_answers_reads_and_goes_on_by_itself() {
    let cluster = Cluster::start_with(1, with_quota());
    put_until_done(&cluster, 1, "before");
    let ballast = ballast(&cluster, 1);
    wait_low(&cluster, 1, true);
    assert_disk_full(&put(&cluster, 1, "refused"));
    assert_reads(&cluster, 1, "before");
    let ready = cluster.client(1).get("/_/ready").unwrap();
    assert!(ready.status == 503 && ready.json()["detail"].as_str().unwrap().contains("--disk-quota"), "{ready}");
    let metrics = String::from_utf8(cluster.client(1).get("/_/metrics").unwrap().body).unwrap();
    assert!(metrics.contains("raftlet_disk_low 1"), "{metrics}");
    let status = cluster.client(1).get("/_/status").unwrap().json();
    assert!(status["disk"]["used_bytes"].as_u64().unwrap() >= QUOTA && status["disk"]["quota_bytes"] == QUOTA);
    fs::remove_file(ballast).unwrap();
    wait_low(&cluster, 1, false);
    put_until_done(&cluster, 1, "after");
    assert_eq!(cluster.client(1).get("/kv/refused").unwrap().status, 404);
}

#[test]
fn a_leader_without_room_hands_over_and_the_others_go_on() {
    let cluster = Cluster::start_with(3, with_quota());
    let full = cluster.leader();
    put_until_done(&cluster, full, "before");
    let ballast = ballast(&cluster, full);
    wait_low(&cluster, full, true);
    let other = wait::until("another one leads", ELECT_WITHIN, || Some(cluster.leader()).filter(|id| *id != full));
    for (i, id) in cluster.ids().filter(|id| *id != full).enumerate() {
        put_until_done(&cluster, id, &format!("between{i}"));
    }
    assert_disk_full(&put(&cluster, full, "refused"));
    let stale = cluster.client(full).get("/kv/before?consistency=stale").unwrap();
    assert!(stale.is_success(), "{stale}");
    // The full one takes no entry, and its refusals cost little.
    let before = cluster.usage(other).cpu;
    wait::never("the full node has the entry", Duration::from_secs(3), || {
        let status = cluster.status(full)?;
        let leader = cluster.status(other)?;
        (status.last_log_index >= leader.last_log_index).then(|| format!("{status:?}"))
    });
    let busy = cluster.usage(other).cpu - before;
    assert!(busy < Duration::from_millis(1500), "the leader used {busy:?} of processor time in 3 s");
    fs::remove_file(ballast).unwrap();
    wait_low(&cluster, full, false);
    cluster.wait_converged();
    put_until_done(&cluster, full, "after");
    assert_reads(&cluster, full, "between0");
}

#[test]
fn a_majority_without_room_is_told_by_a_leader_that_has_some() {
    let cluster = Cluster::start_with(3, with_quota());
    let leader = cluster.leader();
    put_until_done(&cluster, leader, "before");
    let full: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    let files: Vec<PathBuf> = full.iter().map(|id| ballast(&cluster, *id)).collect();
    full.iter().for_each(|id| wait_low(&cluster, *id, true));
    wait::until("the leader knows", SEEN_WITHIN, || (put(&cluster, leader, "refused").status == 503).then_some(()));
    let refused = put(&cluster, leader, "refused");
    assert_disk_full(&refused);
    assert!(refused.json()["detail"].as_str().unwrap().contains("a majority is needed"), "{refused}");
    assert_eq!(cluster.leader(), leader, "it still leads");
    for file in files {
        fs::remove_file(file).unwrap();
    }
    put_until_done(&cluster, leader, "after");
    cluster.wait_converged();
    assert_reads(&cluster, full[0], "after");
}

/// A node alone, in any folder and with an environment of its own.
struct Single {
    dir: PathBuf,
    stderr: PathBuf,
    listen: Reserved,
    peer: Reserved,
    args: Vec<OsString>,
    child: Option<Child>,
}

impl Single {
    fn new(dir: &Path, args: &[&str]) -> Single {
        let (listen, peer) = (Reserved::any().unwrap(), Reserved::any().unwrap());
        let args = args.iter().map(OsString::from).collect();
        Single { dir: dir.join("node"), stderr: dir.with_extension("err"), listen, peer, args, child: None }
    }

    fn start(&mut self, failpoints: Option<&str>) {
        let mut command = Command::new(paths::raftlet());
        let peers = format!("1={}", self.peer.address());
        command.args(["node", "start", "--id", "1", "--bootstrap", "--peers", &peers, "--dir"]).arg(&self.dir);
        command.args(["--listen", &self.listen.address().to_string()]);
        command.args(["--peer-listen", &self.peer.address().to_string()]).args(&self.args);
        let stderr = fs::File::create(&self.stderr).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        match failpoints {
            Some(list) => command.env("FAILPOINTS", list),
            None => command.env_remove("FAILPOINTS"),
        };
        self.child = Some(command.spawn().unwrap());
    }

    fn client(&self) -> Client {
        Client::new(self.listen.address())
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// None: it ended.
    #[track_caller]
    fn ready(&mut self) -> bool {
        wait::until("the node is ready or has ended", START_WITHIN, || {
            if self.exited().is_some() {
                return Some(false);
            }
            self.client().get("/_/ready").is_ok_and(|r| r.status == 200).then_some(true)
        })
    }

    /// Writes values of 50 kB until the node ends; the keys that were acknowledged.
    fn write_until_it_ends(&mut self) -> Vec<String> {
        let mut acknowledged = Vec::new();
        let value = |key: &str| key.repeat(50_000 / key.len());
        for number in 0..10_000 {
            let key = format!("key{number:04}");
            let client = self.client();
            match client.answer_within(Duration::from_secs(15)).put(&format!("/kv/{key}"), value(&key).as_bytes()) {
                Ok(response) if response.is_success() => acknowledged.push(key),
                _ => break,
            }
        }
        let status = wait::until("the node ends", STOP_WITHIN, || self.exited());
        assert_eq!(status.code(), Some(1), "{}", self.said());
        acknowledged
    }

    #[track_caller]
    fn verify(&mut self, keys: &[String]) {
        for key in keys {
            let response = self.client().get(&format!("/kv/{key}")).unwrap();
            assert!(response.is_success() && response.body.starts_with(key.as_bytes()), "{key}: {}", response.status);
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            println!("{}", self.said());
        }
    }
}

#[test]
fn a_failed_sync_ends_the_node_and_loses_nothing_acknowledged() {
    let _slot = slots::take();
    for how in ["log.before-sync=40*off->return(eio)", "log.before-write=40*off->return(enospc)"] {
        let temporary = tempfile::tempdir().unwrap();
        let mut node = Single::new(temporary.path(), &[]);
        node.start(Some(how));
        assert!(node.ready());
        let acknowledged = node.write_until_it_ends();
        let said = node.said();
        assert!(said.contains("the log can't be written any more") && said.contains("os error"), "{how}: {said}");
        node.start(None);
        assert!(node.ready(), "{}", node.said());
        assert!(!acknowledged.is_empty(), "{how}");
        node.verify(&acknowledged);
    }
}

/// A small file system of its own; unmounted when dropped. None where that needs rights that the tests don't have.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Option<Small> {
        fs::create_dir_all(path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=48m", "raftlet-test"];
        let done = Command::new("mount").args(options).arg(path).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success()).then(|| Small(path.to_owned()))
    }

    fn enlarge(&self) {
        let status = Command::new("mount").args(["-o", "remount,size=512m"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_ends_the_node_and_loses_nothing_acknowledged() {
    let _slot = slots::take();
    let temporary = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount(&temporary.path().join("disk")) else {
        println!("not run: this user can't mount a small file system");
        return;
    };
    // Without a reserve, so that sled meets the end of the disk.
    let mut node = Single::new(&disk.0, &["--disk-free-min=0"]);
    node.start(None);
    assert!(node.ready(), "{}", node.said());
    let acknowledged = node.write_until_it_ends();
    assert!(acknowledged.len() > 20, "{} were acknowledged: {}", acknowledged.len(), node.said());
    let said = node.said();
    assert!(said.contains("the log can't be written any more"), "{said}");
    disk.enlarge();
    node.start(None);
    assert!(node.ready(), "{}", node.said());
    node.verify(&acknowledged);
    node.stop();
    let verified = run(&["log", "verify", "--dir", node.dir.to_str().unwrap()], START_WITHIN);
    assert!(verified.status.success(), "{} {}", verified.stdout, verified.stderr);
}

#[test]
fn with_a_reserve_a_small_disk_never_ends_the_node() {
    let _slot = slots::take();
    let temporary = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount(&temporary.path().join("disk")) else {
        println!("not run: this user can't mount a small file system");
        return;
    };
    let mut node = Single::new(&disk.0, &["--disk-free-min=16MiB"]);
    node.start(None);
    assert!(node.ready(), "{}", node.said());
    let mut acknowledged = Vec::new();
    let refused = loop {
        let key = format!("key{:04}", acknowledged.len());
        let response = node.client().put(&format!("/kv/{key}"), key.repeat(7_000).as_bytes()).unwrap();
        if !response.is_success() {
            break response;
        }
        acknowledged.push(key);
        assert!(acknowledged.len() < 2_000, "more was taken than there is room for");
    };
    assert_disk_full(&refused);
    node.verify(&acknowledged);
    disk.enlarge();
    wait::until("it goes on", SEEN_WITHIN, || {
        node.client().put("/kv/after", b"x").is_ok_and(|r| r.is_success()).then_some(())
    });
    assert!(node.exited().is_none());
}

#[test]
fn flipped_bits_in_a_nodes_folder_are_refused_by_name_or_do_no_harm() {
    const FLIPS: usize = 8;
    let _slot = slots::take();
    let mut rng = raftlet_tests::seed::rng("flipped_bits_in_a_nodes_folder");
    let temporary = tempfile::tempdir().unwrap();
    let mut node = Single::new(temporary.path(), &[]);
    node.start(None);
    assert!(node.ready(), "{}", node.said());
    let keys: Vec<String> = (0..40).map(|number| format!("key{number:04}")).collect();
    for key in &keys {
        let value = key.repeat(rng.usize(1..3_000));
        assert!(node.client().put(&format!("/kv/{key}"), value.as_bytes()).unwrap().is_success());
    }
    node.stop();
    let names = ["raft-log/sled/db", "raft-log/watermark", "raft-log/log.json", "identity.json", "raft-log/sled/conf"];
    for flip in 0..FLIPS {
        let file = node.dir.join(names[flip % names.len()]);
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let at = rng.usize(0..written);
        bytes[at] ^= 1 << rng.u32(0..8);
        fs::write(&file, bytes).unwrap();
        node.start(None);
        let what = format!("byte {at} of {}", file.display());
        if node.ready() {
            node.verify(&keys);
            node.stop();
        } else {
            let said = node.said();
            let name = file.file_name().unwrap().to_str().unwrap();
            let named =
                said.contains(name) || said.contains("sled/") || said.contains("raft-log") || said.contains("entry ");
            assert!(named && said.contains("can't start"), "{what}: {said}");
        }
        // sled may have written what it took from it; a fresh copy of everything would hide that.
        fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn the_log_of_a_stopped_node_can_be_looked_into() {
    let mut cluster = Cluster::start(1);
    for key in ["a", "b", "c"] {
        put_until_done(&cluster, 1, key);
    }
    let dir = cluster.data(1);
    let dir = dir.to_str().unwrap();
    let refused = run(&["log", "verify", "--dir", dir], START_WITHIN);
    assert!(refused.status.code() == Some(1) && refused.stderr.contains("in use"), "{}", refused.stderr);
    assert!(cluster.terminate(1).success());
    let verified = run(&["log", "verify", "--dir", dir], START_WITHIN);
    assert!(verified.status.success() && verified.stdout.contains("last "), "{} {}", verified.stdout, verified.stderr);
    let shown = run(&["log", "inspect", "--dir", dir, "--commands"], START_WITHIN);
    assert!(shown.status.success(), "{}", shown.stderr);
    for text in ["batch", "PUT \"/kv/b\"  1 bytes", "activation", "membership", "vote       term"] {
        assert!(shown.stdout.contains(text), "no {text} in {}", shown.stdout);
    }
    let lines = run(&["log", "inspect", "--dir", dir, "--json", "--limit", "2"], START_WITHIN);
    let lines: Vec<serde_json::Value> = lines.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3, "two entries and the summary");
    assert!(lines[1]["index"].is_u64() && lines[2]["damage"].as_array().unwrap().is_empty());

    // The last bytes of what was written are the newest entry's.
    fs::remove_file(cluster.data(1).join("raft-log/watermark")).unwrap();
    let damaged = run(&["log", "verify", "--dir", dir, "--json"], START_WITHIN);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(damaged.stdout.contains("watermark file is missing"), "{}", damaged.stdout);
    let nowhere = run(&["log", "verify", "--dir", "/nowhere"], START_WITHIN);
    assert!(nowhere.status.code() == Some(1) && nowhere.stderr.contains("/nowhere"), "{}", nowhere.stderr);
}
