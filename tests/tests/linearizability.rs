//! Real nodes behind a network that fails, real clients, and a checker that judges all they were told. Each run prints
//! its seed, its faults and its figures. `RAFTLET_LIN_SECONDS` (60) is shared by the runs; a run of 300 s or more must
//! have had each kind of fault. `RAFTLET_LIN_OUT` is a folder for the histories; a violation is written there, or to
//! the temporary folder, in any case.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use raftlet_tests::checker::{Effort, Verdict, Violation, check};
use raftlet_tests::features;
use raftlet_tests::history::{self, Operation, Outcome};
use raftlet_tests::model::Problem;
use raftlet_tests::nemesis::{BASIC, Fault, Nemesis};
use raftlet_tests::workload::{Plan, Workload, keys, prefix};
use raftlet_tests::{Cluster, cluster, seed};

const CLIENTS: u32 = 8;
/// Fewer, and the run has shown nothing.
const ANSWERED_PER_SECOND_MIN: f64 = 5.0;
const SECONDS_PER_FAULT_MAX: f64 = 20.0;
/// From here on each kind of fault must have been there.
const LONG_RUN: Duration = Duration::from_secs(300);
const FIRST_OPERATIONS: u64 = 50;
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// Small, so that a run of seconds makes several.
const SNAPSHOT_LOG_BYTES: &str = "64KiB";

#[test]
fn three_nodes_under_faults() {
    prove("three_nodes_under_faults", 3, seconds() * 2 / 3, &kinds());
}

#[test]
fn five_nodes_under_faults() {
    prove("five_nodes_under_faults", 5, seconds() / 3, &kinds());
}

/// A leader that hears nothing for a while, and then all that was said to it meanwhile: what was said before it was
/// replaced must not confirm its reads.
#[test]
fn a_leader_that_hears_late() {
    prove("a_leader_that_hears_late", 3, seconds() / 3, &[Fault::HalfIsolateLeader]);
}

fn seconds() -> Duration {
    Duration::from_secs(features::setting("RAFTLET_LIN_SECONDS", 60))
}

fn prove(name: &str, nodes: u64, during: Duration, kinds: &[Fault]) {
    let mut rng = seed::rng(name);
    let mut cluster = start(nodes);
    let plan = Plan { clients: CLIENTS, retries: answers_once(&cluster), stale: false };
    println!("{name}: {plan:?}, {} kinds of faults", kinds.len());
    let load = Workload::start(&cluster, plan, &mut rng);
    load.wait_for_more(FIRST_OPERATIONS, PROGRESS_WITHIN);
    let mut nemesis = Nemesis::new(rng.fork(), kinds);
    let began = Instant::now();
    nemesis.run(&mut cluster, &load, during);
    let lasted = began.elapsed();
    // All is healed: everybody must come back, agree, and serve.
    cluster.restart_all();
    load.wait_for_more(FIRST_OPERATIONS, PROGRESS_WITHIN);
    let answered = load.definite();
    let (history, generations) = load.stop();
    let digest = cluster.wait_converged();
    let report = Report { name, cluster: &cluster, nemesis: &nemesis, history: &history };
    report.print(lasted, generations, &digest);
    let effort = report.judge(generations);
    println!("{name}: linearizable; {effort:?}");

    let per_second = answered as f64 / lasted.as_secs_f64();
    assert!(per_second >= ANSWERED_PER_SECOND_MIN, "{per_second:.1} operations per second show nothing");
    let needed = lasted.as_secs_f64() / SECONDS_PER_FAULT_MAX;
    assert!(f64::from(nemesis.total()) >= needed, "{} faults in {lasted:?} show nothing", nemesis.total());
    if lasted >= LONG_RUN {
        let missing: Vec<_> = kinds.iter().filter(|kind| !nemesis.injected.contains_key(kind)).collect();
        assert!(missing.is_empty(), "no {missing:?} in {lasted:?}");
        let outrun = !kinds.contains(&Fault::Lag) || nemesis.outrun > 0;
        assert!(outrun, "no follower was away for two snapshots, so none had to be installed");
        assert!(nemesis.outrun == 0 || report.installed() > 0, "a follower was outrun and installed no snapshot");
        let breaks = kinds.iter().any(|kind| *kind != Fault::HalfIsolateLeader);
        assert!(!plan.retries || !breaks || report.replayed() > 0, "no write that was sent again had happened before");
    }
}

/// The rig sees what it should see: reads that may be stale, recorded as if they might not, are a violation.
#[test]
fn stale_reads_are_found_out() {
    const WITHIN: Duration = Duration::from_secs(60);
    const ROUND: Duration = Duration::from_secs(3);
    let mut rng = seed::rng("stale_reads_are_found_out");
    let mut cluster = start(3);
    let began = Instant::now();
    while began.elapsed() < WITHIN {
        let plan = Plan { clients: CLIENTS, retries: false, stale: true };
        let load = Workload::start(&cluster, plan, &mut rng);
        let kinds = [Fault::IsolateLeader, Fault::Partition, Fault::Slow];
        let mut nemesis = Nemesis::new(rng.fork(), &kinds);
        nemesis.run(&mut cluster, &load, ROUND);
        let (history, generations) = load.stop();
        if let Some((_, violation)) = (0..generations).find_map(|g| violation(&history, g).err()) {
            println!("found after {:?}: {violation:?}", began.elapsed());
            return;
        }
        // The keys of the next round begin anew.
        clear(&cluster, generations);
    }
    panic!("stale reads under partitions passed as linearizable for {WITHIN:?}: the rig is blind");
}

fn clear(cluster: &Cluster, generations: u64) {
    let mut client = cluster.client(cluster.leader());
    for key in (0..generations).flat_map(keys) {
        let gone = client.delete(&format!("/kv/{key}")).expect("an answer");
        assert!(matches!(gone.status, 204 | 404), "{gone}");
    }
}

fn start(nodes: u64) -> Cluster {
    let mut args = features::frequent_snapshots(SNAPSHOT_LOG_BYTES);
    args.extend(["--request-timeout".into(), "3s".into()]);
    let options = cluster::Options { args, proxied: true, clocks: true, ..Default::default() };
    Cluster::start_with(nodes, options)
}

fn kinds() -> Vec<Fault> {
    let mut kinds = BASIC.to_vec();
    kinds.push(Fault::ClockStep);
    if features::has_flag("--snapshot-log-bytes") {
        kinds.push(Fault::Lag);
    }
    kinds
}

/// Whether the nodes know idempotency keys.
fn answers_once(cluster: &Cluster) -> bool {
    let status = cluster.client(1).get("/_/status").expect("node 1 is ready").json();
    status.get("idempotency").is_some_and(serde_json::Value::is_object)
}

/// The operations on one generation's keys.
fn part(history: &[Operation], generation: u64) -> Vec<Operation> {
    let prefix = prefix(generation);
    history.iter().filter(|o| o.action.key().starts_with(&prefix)).cloned().collect()
}

fn violation(history: &[Operation], generation: u64) -> Result<Effort, (Vec<Operation>, Violation)> {
    let part = part(history, generation);
    match check(&part, &keys(generation)) {
        (Verdict::Linearizable, effort) => Ok(effort),
        (Verdict::Violation(violation), _) => Err((part, violation)),
        (Verdict::Undecided(why), _) => panic!("generation {generation} is undecided, so nothing is shown: {why}"),
    }
}

struct Report<'a> {
    name: &'a str,
    cluster: &'a Cluster,
    nemesis: &'a Nemesis,
    history: &'a [Operation],
}

impl Report<'_> {
    fn print(&self, lasted: Duration, generations: u64, digest: &str) {
        let count = |outcome: fn(&Operation) -> bool| self.history.iter().filter(|o| outcome(o)).count();
        println!(
            "{}: {lasted:.1?}, {} operations ({} rejected, {} unknown, {} sent more than once, {} of them \
             answered by what was kept), {generations} generations of keys, {} faults {:?}, {} snapshots installed, \
             {} MB between nodes, digest {digest}",
            self.name,
            self.history.len(),
            count(|o| o.outcome == Outcome::Rejected),
            count(|o| o.outcome == Outcome::Unknown),
            count(|o| o.attempts > 1),
            self.replayed(),
            self.nemesis.total(),
            self.nemesis.injected,
            self.installed(),
            self.cluster.network().carried() / 1_000_000,
        );
    }

    fn replayed(&self) -> usize {
        self.history.iter().filter(|o| o.replayed).count()
    }

    /// Snapshots that a leader made a follower take, as the nodes' logs have it.
    fn installed(&self) -> usize {
        let is = |line: &str| line.contains("the snapshot ") && line.ends_with(" is installed");
        self.cluster.ids().map(|id| self.cluster.log(id).lines().filter(|line| is(line)).count()).sum()
    }

    /// # Panics
    /// On a violation, after all of it was written down.
    fn judge(&self, generations: u64) -> Effort {
        if std::env::var_os("RAFTLET_LIN_OUT").is_some() {
            println!("the history is in {}", self.save(&[]).display());
        }
        if let Err(impossible) = Problem::of(self.history, &[]) {
            let operations = impossible.operations.iter().map(|at| &self.history[*at]);
            let operations: Vec<Operation> = operations.cloned().collect();
            let folder = self.save(&operations);
            panic!("{}: {}\n{operations:#?}\nall is in {}", self.name, impossible.why, folder.display());
        }
        let mut total = Effort::default();
        for generation in 0..generations {
            match violation(self.history, generation) {
                Ok(effort) => {
                    total.objects += effort.objects;
                    total.states += effort.states;
                }
                Err((part, violation)) => self.fail(&part, &violation),
            }
        }
        total
    }

    fn fail(&self, part: &[Operation], violation: &Violation) -> ! {
        let stuck: Vec<&Operation> = violation.operations.iter().map(|at| &part[*at]).collect();
        let covers = |o: &&Operation| violation.keys.iter().any(|key| key.starts_with(o.action.key()));
        let failing: Vec<Operation> = part.iter().filter(covers).cloned().collect();
        let folder = self.save(&failing);
        println!("--- the operations that can't be placed");
        stuck.iter().for_each(|o| println!("{o:?}"));
        let around = stuck.first().map_or(0, |o| o.invoked);
        println!("--- faults before them");
        for (at, what) in self.nemesis.diary.iter().filter(|(at, _)| *at < around).rev().take(8) {
            println!("{:.3} s: {what}", *at as f64 / 1e9);
        }
        panic!(
            "{}: not linearizable, keys {:?}, {} operations on them: {}; all is in {}",
            self.name,
            violation.keys,
            failing.len(),
            violation.why,
            folder.display()
        );
    }

    /// The history, the operations that fail, the faults and the nodes' logs.
    fn save(&self, failing: &[Operation]) -> PathBuf {
        let base = std::env::var_os("RAFTLET_LIN_OUT").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = base.join(format!("raftlet-{}-{}", self.name, std::process::id()));
        let create = |name: &str| BufWriter::new(File::create(folder.join(name)).expect("a file can be made"));
        fs::create_dir_all(&folder).expect("a folder can be made");
        history::write(create("history.jsonl"), self.history).expect("the history can be written");
        if !failing.is_empty() {
            history::write(create("failing.jsonl"), failing).expect("the failing operations can be written");
        }
        let mut faults = create("faults.txt");
        for (at, what) in &self.nemesis.diary {
            writeln!(faults, "{at} {what}").expect("the faults can be written");
        }
        for id in self.cluster.ids() {
            fs::write(folder.join(format!("node-{id}.log")), self.cluster.log(id)).expect("a log can be written");
        }
        folder
    }
}

/// A recorded history is judged again: `RAFTLET_LIN_HISTORY` is its file. Without it, there is nothing to do.
#[test]
fn a_recorded_history() {
    let Some(path) = std::env::var_os("RAFTLET_LIN_HISTORY") else { return };
    let text = fs::read_to_string(path).expect("the history can be read");
    let history = history::read(&text).expect("lines of JSON");
    let mut generations: Vec<u64> =
        history.iter().filter_map(|o| o.action.key().strip_prefix('g')?.split('.').next()?.parse().ok()).collect();
    generations.sort_unstable();
    generations.dedup();
    for generation in generations {
        if let Err((part, violation)) = violation(&history, generation) {
            for at in &violation.operations {
                println!("{:?}", part[*at]);
            }
            panic!("{violation:?}");
        }
    }
}
