//! Soak: full load on all nodes while they are restarted one after the other, every third time by SIGKILL. Each second
//! it notes what each node holds and how long writes took; at the end nothing is lost and nothing has grown.
//!
//! `RAFTLET_SOAK_SECONDS`: 30 by default, and then a restart every 10 seconds; from 300 on a restart every minute,
//! and none in the last third.
//! `RAFTLET_SOAK_OUT`: the folder for `soak.csv` and `summary.txt`, by default `target/tmp/soak`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use raftlet_tests::cluster::Options;
use raftlet_tests::sample::{self, Sample};
use raftlet_tests::steady::{Steady, Trouble};
use raftlet_tests::{Cluster, features, seed};

const SECONDS_DEFAULT: u64 = 30;
const NODES: u64 = 3;
const CLIENTS: usize = 32;
const VALUE_BYTES: usize = 256;
/// From here on it is a long run: a restart each minute, and figures good enough to be judged.
const LONG: Duration = Duration::from_secs(300);
/// Memory, disk and latency are judged in runs of at least this length.
const JUDGED: Duration = Duration::from_secs(600);
/// After a node is ready again its clients' last requests to it, and one election, may still fail.
const GRACE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_secs(1);

/// One second.
struct Row {
    second: u64,
    writes: usize,
    /// Of the acknowledged writes; zero where there were none.
    p50: Duration,
    p99: Duration,
    max: Duration,
    troubles: usize,
    /// A node was being restarted.
    restarting: bool,
    nodes: Vec<Option<Node>>,
}

#[derive(Clone, Copy)]
struct Node {
    sample: Sample,
    disk_bytes: u64,
}

/// What the sampler must know of the cluster that the restarts change.
struct Shared {
    pids: Mutex<Vec<Option<u32>>>,
    folders: Vec<PathBuf>,
    /// Begin and end of each restart; the end is missing while it lasts.
    windows: Mutex<Vec<(Instant, Option<Instant>)>>,
    over: AtomicBool,
}

#[test]
fn restarts_under_full_load_lose_nothing_and_nothing_grows() {
    let length = Duration::from_secs(features::setting("RAFTLET_SOAK_SECONDS", SECONDS_DEFAULT));
    let period = Duration::from_secs(if length < LONG { 10 } else { 60 });
    let mut rng = seed::rng("soak");
    let args = features::frequent_snapshots(if length < LONG { "2MiB" } else { "64MiB" });
    let purges = !args.is_empty();
    let mut cluster = Cluster::start_with(NODES, Options { args, ..Options::default() });
    let shared = Shared {
        pids: Mutex::new(cluster.ids().map(|id| Some(cluster.pid(id))).collect()),
        folders: cluster.ids().map(|id| cluster.data(id)).collect(),
        windows: Mutex::default(),
        over: AtomicBool::new(false),
    };
    let load = Steady::start(&cluster, CLIENTS, VALUE_BYTES, &mut rng);
    let (rows, troubles) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| shared.watch(&load));
        // However this ends, the sampler must: the scope waits for it.
        let over = Over(&shared);
        restarts(&mut cluster, &shared, length, period);
        drop(over);
        sampler.join().expect("the sampler did not panic")
    });
    let expected = load.stop();
    cluster.wait_converged();
    expected.verify(&cluster);
    cluster.wait_converged();

    let summary = report(&rows, &troubles);
    let outside: Vec<&Trouble> = troubles.iter().filter(|t| !shared.allows(t)).collect();
    assert!(
        outside.is_empty(),
        "{} requests failed while no node was being restarted: {:#?}",
        outside.len(),
        &outside[..outside.len().min(10)]
    );
    judge(&rows, length, purges, &summary);
}

struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// A restart of the next node every `period`.
fn restarts(cluster: &mut Cluster, shared: &Shared, length: Duration, period: Duration) {
    let began = Instant::now();
    for turn in 1.. {
        let due = period * turn;
        // The last restart has a whole period of peace after it. A long run has no more of them in its last third: what
        // a process gathers slowly would never show if each lived for minutes only.
        let last = if length < LONG { length.saturating_sub(period) } else { length * 2 / 3 };
        if due > last {
            break;
        }
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        // One further in each round of three, so that the third, which is killed, is another node each time.
        let id = 1 + u64::from(turn - 1 + (turn - 1) / 3) % NODES;
        let killed = turn % 3 == 0;
        let ended = cluster.exited(id);
        assert!(ended.is_none(), "node {id} had ended by itself: {ended:?}");
        lock(&shared.windows).push((Instant::now(), None));
        lock(&shared.pids)[id as usize - 1] = None;
        if killed {
            cluster.kill(id);
        } else {
            let status = cluster.terminate(id);
            assert!(status.success(), "SIGTERM ended node {id} with {status}");
        }
        cluster.restart(id);
        lock(&shared.pids)[id as usize - 1] = Some(cluster.pid(id));
        cluster.wait_ready(id);
        if let Some(window) = lock(&shared.windows).last_mut() {
            window.1 = Some(Instant::now());
        }
    }
    std::thread::sleep(length.saturating_sub(began.elapsed()));
}

impl Shared {
    /// One row each second until the end, and all that went wrong.
    fn watch(&self, load: &Steady) -> (Vec<Row>, Vec<Trouble>) {
        let began = Instant::now();
        let (mut rows, mut troubles) = (Vec::new(), Vec::new());
        while !self.over.load(Ordering::Acquire) {
            let second = rows.len() as u64 + 1;
            std::thread::sleep((TICK * second as u32).saturating_sub(began.elapsed()));
            let mut tally = load.take();
            tally.latencies.sort_unstable();
            let at = |share: f64| {
                let last = tally.latencies.len().saturating_sub(1);
                tally.latencies.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
            };
            let pids = lock(&self.pids).clone();
            let node = |(pid, folder): (Option<u32>, &PathBuf)| {
                Some(Node { sample: sample::process(pid?)?, disk_bytes: sample::disk_bytes(folder) })
            };
            let now = Instant::now();
            rows.push(Row {
                second,
                writes: tally.latencies.len(),
                p50: at(0.5),
                p99: at(0.99),
                max: at(1.0),
                troubles: tally.troubles.len(),
                restarting: self.is_window(now.checked_sub(TICK).unwrap_or(now), now),
                nodes: pids.into_iter().zip(&self.folders).map(node).collect(),
            });
            troubles.append(&mut tally.troubles);
        }
        (rows, troubles)
    }

    /// Something may fail if any part of it falls into a restart or a little after it.
    fn allows(&self, trouble: &Trouble) -> bool {
        self.is_window(trouble.began, trouble.ended)
    }

    fn is_window(&self, from: Instant, to: Instant) -> bool {
        let overlaps =
            |(begin, end): &(Instant, Option<Instant>)| *begin <= to && end.is_none_or(|e| from <= e + GRACE);
        lock(&self.windows).iter().any(overlaps)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the table and returns the summary, which it also prints.
fn report(rows: &[Row], troubles: &[Trouble]) -> String {
    let folder = std::env::var_os("RAFTLET_SOAK_OUT")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("soak"), PathBuf::from);
    fs::create_dir_all(&folder).expect("the folder can be made");
    let mut csv = String::from("second,writes,p50_us,p99_us,max_us,troubles,restarting");
    for id in 1..=NODES {
        let _ = write!(csv, ",rss_bytes_{id},descriptors_{id},threads_{id},disk_bytes_{id}");
    }
    for row in rows {
        let Row { second, writes, p50, p99, max, troubles, restarting, nodes } = row;
        let (p50, p99, max) = (p50.as_micros(), p99.as_micros(), max.as_micros());
        let _ = write!(csv, "\n{second},{writes},{p50},{p99},{max},{troubles},{}", u8::from(*restarting));
        for node in nodes {
            let _ = match node {
                Some(Node { sample: s, disk_bytes }) => {
                    write!(csv, ",{},{},{},{disk_bytes}", s.resident_bytes, s.descriptors, s.threads)
                }
                None => write!(csv, ",,,,"),
            };
        }
    }
    csv.push('\n');
    let summary = summary(rows, troubles);
    println!("{summary}");
    fs::write(folder.join("soak.csv"), csv).expect("the table can be written");
    fs::write(folder.join("summary.txt"), &summary).expect("the summary can be written");
    println!("{}", folder.display());
    summary
}

fn summary(rows: &[Row], troubles: &[Trouble]) -> String {
    let writes: usize = rows.iter().map(|r| r.writes).sum();
    let mut text = format!(
        "{} s, {writes} writes acknowledged ({} a second), {} requests refused or broken\n",
        rows.len(),
        writes / rows.len().max(1),
        troubles.len()
    );
    let us = |pick: fn(&Row) -> Duration| move |row: &Row| Some(pick(row).as_micros() as u64);
    let mut line = |name: String, (early, late): (u64, u64)| {
        let _ = writeln!(text, "{name}: median {early} in the second quarter, {late} in the last");
    };
    line("p50 of a second, us".into(), quarters(rows, us(|r| r.p50)));
    line("p99 of a second, us".into(), quarters(rows, us(|r| r.p99)));
    for id in 0..NODES as usize {
        for (name, pick) in FIGURES {
            line(format!("node {}: {name}", id + 1), quarters(rows, |row| row.nodes[id].as_ref().map(pick)));
        }
    }
    text
}

type Figure = fn(&Node) -> u64;
const FIGURES: [(&str, Figure); 4] = [
    ("resident bytes", |n| n.sample.resident_bytes),
    ("descriptors", |n| n.sample.descriptors),
    ("threads", |n| n.sample.threads),
    ("disk bytes", |n| n.disk_bytes),
];

/// The medians of the second and of the last quarter, of the seconds in which no node was being restarted.
fn quarters(rows: &[Row], pick: impl Fn(&Row) -> Option<u64>) -> (u64, u64) {
    let quarter = rows.len().div_ceil(4);
    let median = |rows: &[Row]| {
        let mut figures: Vec<u64> = rows.iter().filter(|r| !r.restarting).filter_map(&pick).collect();
        figures.sort_unstable();
        figures.get(figures.len() / 2).copied().unwrap_or(0)
    };
    (
        median(&rows[quarter.min(rows.len())..(2 * quarter).min(rows.len())]),
        median(&rows[(3 * quarter).min(rows.len())..]),
    )
}

fn judge(rows: &[Row], length: Duration, purges: bool, summary: &str) {
    assert!(rows.iter().any(|r| r.writes > 0), "nothing was written");
    let flat = |what: &str, (early, late): (u64, u64), percent: u64, more: u64| {
        assert!(late <= early + early * percent / 100 + more, "{what} grew from {early} to {late}\n{summary}");
    };
    for id in 0..NODES as usize {
        let figure = |at: usize| quarters(rows, |row| row.nodes[id].as_ref().map(FIGURES[at].1));
        flat(&format!("node {}: descriptors", id + 1), figure(1), 10, CLIENTS as u64);
        flat(&format!("node {}: threads", id + 1), figure(2), 10, 8);
        if length >= JUDGED {
            flat(&format!("node {}: memory", id + 1), figure(0), 25, 64 << 20);
            if purges {
                flat(&format!("node {}: disk", id + 1), figure(3), 50, 256 << 20);
            }
        }
    }
    if length >= JUDGED {
        flat("the median latency", quarters(rows, |r| Some(r.p50.as_micros() as u64)), 50, 5_000);
    }
}
