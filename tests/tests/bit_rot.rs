//! Bit rot: bytes are flipped in each kind of file of a stopped node, a follower or the leader, and all nodes are
//! started again. The node either refuses to start, or to serve, and names the file or the log entry, or it has only
//! right data, by itself or from its peers. Never wrong data, never silence, never a panic that nobody explains.
//!
//! `RAFTLET_ROTS`: how often for each kind of file and each of the two nodes, once by default. `RAFTLET_ROT_KIND`: one
//! kind only, as in `identity.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::cluster::Options;
use raftlet_tests::process::tail;
use raftlet_tests::{Cluster, Fate, Ledger, Load, features, poison, rot, seed, slots, wait};

const ROTS_DEFAULT: u64 = 1;
/// sled's file is most of a node's data and has many kinds of places.
const DB: &str = "raft-log/sled/db";
const DB_TIMES: u64 = 4;
/// Other kinds that must be among those that are found.
const KINDS: [&str; 3] = ["identity.json", "applying", "snapshots/*.snapshot"];
const SKIPS: &str = "skip.json";
const QUARANTINE: &str = "quarantine.json";
/// All of a small file that says one thing: it is damaged more often.
const QUARANTINE_TIMES: u64 = 3;
/// A node changes its state where this stands in a command, if it was started with the failpoint of this name.
const CORRUPT: &str = "apply.corrupt-write=return";
const CORRUPTING: &[u8] = b"failpoint:corrupt-write";
const WRITERS: usize = 8;
const WRITES: u64 = 250;
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// A node that neither ends nor serves for so long, and says nothing of the damage, hangs.
const DECIDED_WITHIN: Duration = Duration::from_secs(40);
const ASK_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn flipped_bytes_are_refused_or_repaired_and_never_served() {
    let mut rng = seed::rng("bit_rot");
    let args = features::frequent_snapshots("128KiB");
    let mut cluster = Cluster::prepare(3, Options { args, ..Options::default() }, Some(slots::take()));
    if cfg!(debug_assertions) {
        skip_one(&mut cluster);
    }
    cluster.restart_all();
    let load = Load::start(&cluster, WRITERS, &mut rng);
    load.wait_for_more(WRITES, PROGRESS_WITHIN);
    let leader = cluster.leader();
    let follower = cluster.follower();
    // As a machine that lost power would: the leader has seen no orderly end.
    cluster.kill(leader);
    for id in cluster.ids().filter(|id| *id != leader) {
        assert!(cluster.terminate(id).success(), "node {id} ends in good order");
    }
    let mut bench = Bench { ledger: load.stop(), cluster, served: 0, refused: 0 };
    bench.keep();

    let only = std::env::var("RAFTLET_ROT_KIND").ok();
    let times = features::setting("RAFTLET_ROTS", ROTS_DEFAULT);
    for node in [follower, leader] {
        bench.restore();
        let kinds = rot::kinds(&bench.cluster.data(node));
        let skips = if cfg!(debug_assertions) { &[SKIPS][..] } else { &[] };
        let expected = KINDS.iter().chain(&[DB]).chain(skips);
        assert!(expected.clone().all(|kind| kinds.contains_key(*kind)), "{kinds:?}");
        println!("node {node} has {:?}", kinds.keys().collect::<Vec<_>>());
        for (kind, files) in kinds.into_iter().filter(|(kind, _)| only.as_ref().is_none_or(|o| o == kind)) {
            let times = if kind == DB { times * DB_TIMES } else { times };
            for _ in 0..times {
                let file = rng.choice(&files).expect("a kind has a file");
                bench.try_one(node, &kind, file, &mut rng);
            }
        }
    }
    bench.restore();
    bench.cluster.restart_all();
    if cfg!(debug_assertions) && only.is_none_or(|kind| kind == QUARANTINE) {
        bench.quarantine(follower);
        let file = bench.cluster.data(follower).join(QUARANTINE);
        (0..times * QUARANTINE_TIMES).for_each(|_| bench.try_one(follower, QUARANTINE, &file, &mut rng));
    }
    println!("{} refused, {} served right data", bench.refused, bench.served);
}

/// All nodes have an entry that they skip, and a file that says so.
fn skip_one(cluster: &mut Cluster) {
    let skip = poison::hold_everywhere(cluster);
    for id in cluster.ids() {
        cluster.kill(id);
        poison::start_skipping(cluster, id, &skip, poison::FAILPOINT);
    }
    cluster.ids().for_each(|id| cluster.wait_ready(id));
}

struct Bench {
    cluster: Cluster,
    ledger: Ledger,
    served: usize,
    refused: usize,
}

/// What a node with a damaged file does.
#[derive(Debug, PartialEq, Eq)]
enum Conduct {
    Ended,
    /// It runs, serves nobody, and its log or `/_/ready` names the damage.
    Abstains,
    Serves,
}

impl Bench {
    fn kept(&self, id: u64) -> PathBuf {
        self.cluster.folder().join(format!("kept-{id}"))
    }

    fn keep(&self) {
        for id in self.cluster.ids() {
            rot::copy(&self.cluster.data(id), &self.kept(id)).expect("the folder can be copied");
        }
    }

    fn restore(&self) {
        for id in self.cluster.ids() {
            rot::copy(&self.kept(id), &self.cluster.data(id)).expect("the folder can be copied");
        }
    }

    /// The node has a file that says that it is in quarantine; all are stopped.
    fn quarantine(&mut self, node: u64) {
        self.cluster.kill(node);
        self.cluster.set_variable(node, "FAILPOINTS", CORRUPT);
        self.cluster.restart(node);
        self.cluster.wait_ready(node);
        let sound = self.cluster.ids().find(|id| *id != node).expect("there are others");
        let _ = self.cluster.client(sound).answer_within(ASK_WITHIN).put("/kv/call", CORRUPTING);
        let file = self.cluster.data(node).join(QUARANTINE);
        wait::until("the node is in quarantine", PROGRESS_WITHIN, || file.exists().then_some(()));
        self.cluster.kill_all();
        self.keep();
    }

    fn try_one(&mut self, node: u64, kind: &str, file: &Path, rng: &mut Rng) {
        self.restore();
        let how = rot::damage(file, rng).expect("the file can be damaged");
        let what = format!("node {node}, {kind}: {how}");
        println!("{what}");
        let others: Vec<u64> = self.cluster.ids().filter(|id| *id != node).collect();
        // Beside one other first, in half of the cases: so it may be elected.
        let first = if rng.bool() { vec![node, others[0]] } else { vec![others[0], others[1]] };
        first.iter().for_each(|id| self.cluster.restart(*id));
        self.cluster.ids().filter(|id| !first.contains(id)).for_each(|id| self.cluster.restart(id));
        others.iter().for_each(|id| self.cluster.wait_ready(*id));
        let conduct = self.conduct(node, file, &what);
        println!("    {conduct:?}");
        if conduct == Conduct::Ended {
            self.cluster.wait_exit(node);
        }
        if conduct == Conduct::Serves {
            assert_ne!(kind, QUARANTINE, "{what}: a wrong state is served");
            self.served += 1;
            self.cluster.wait_converged();
            self.ledger.verify(&self.cluster);
            self.stale_reads(node, &what);
        } else {
            self.refused += 1;
            self.ledger.verify_on(&self.cluster, &others);
        }
        self.cluster.kill_all();
        self.check_panics(node, &what);
    }

    fn conduct(&mut self, node: u64, file: &Path, what: &str) -> Conduct {
        let decided = wait::poll(DECIDED_WITHIN, || {
            if let Some(status) = self.cluster.exited(node) {
                let said = self.cluster.log(node);
                assert!(status.code().is_some_and(|c| c != 0), "{what}: it ended with {status}\n{}", tail(&said, 30));
                assert!(names(&said, file), "{what}: it doesn't name what is damaged\n{}", tail(&said, 30));
                println!("    {}", tail(&said, 1));
                return Some(Conduct::Ended);
            }
            let ready = self.cluster.client(node).answer_within(ASK_WITHIN).get("/_/ready").ok()?;
            (ready.status == 200).then_some(Conduct::Serves)
        });
        decided.unwrap_or_else(|| {
            let said = self.cluster.log(node);
            let ready = self.cluster.client(node).answer_within(ASK_WITHIN).get("/_/ready");
            let ready = ready.map_or_else(|e| format!("no answer: {e:?}"), |r| format!("HTTP {r}"));
            assert!(
                names(&said, file) || names(&ready, file) || ready.contains("in quarantine"),
                "{what}: it neither ends nor serves and doesn't say why: {ready}\n{}",
                tail(&said, 30)
            );
            println!("    {ready}");
            Conduct::Abstains
        })
    }

    /// What the node has by itself, without asking the leader how far it must be.
    fn stale_reads(&self, node: u64, what: &str) {
        let mut client = self.cluster.client(node);
        for write in self.ledger.writes.iter().filter(|w| w.fate == Fate::Acknowledged) {
            let read = client.get(&format!("{}?consistency=stale", write.path)).expect("an answer");
            let right = read.status == 200 && read.body == write.value;
            assert!(right, "{what}: wrong data for {}: {read}", write.path);
        }
    }

    /// The nodes whose files are whole don't panic at all. The other one may where it says at once that a file is
    /// damaged. Then the logs are set aside.
    fn check_panics(&self, node: u64, what: &str) {
        for id in self.cluster.ids() {
            let log = self.cluster.log(id);
            if let Some((_, after)) = log.rsplit_once("panicked") {
                let explained = id == node && after.contains("damaged");
                assert!(explained, "{what}: node {id} panicked\n{}", tail(&log, 40));
            }
            let path = self.cluster.folder().join(format!("node-{id}.err"));
            fs::remove_file(path).expect("the log can be removed");
        }
    }
}

/// A warning or an error names the file, a folder it is in (below the node's), or a log entry.
fn names(text: &str, file: &Path) -> bool {
    let told = |line: &&str| line.contains("rror") || line.contains("WARN") || line.contains("HTTP");
    let below = |path: &&Path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with("node-"));
    let paths: Vec<String> = file.ancestors().take_while(below).map(|path| path.display().to_string()).collect();
    let numbered = |line: &str| line.split("entry ").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    text.lines().filter(told).any(|line| numbered(line) || paths.iter().any(|path| line.contains(path.as_str())))
}
