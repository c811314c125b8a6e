//! Faults by chance, with a seed: processes are killed and stopped, links are cut, slowed and reordered, clocks step,
//! one after the other and mixed. After each round all is well again and the cluster must make progress; a node that
//! ended by itself fails the test. Knows nothing of what clients see.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::clocks;
use crate::cluster::{Cluster, Status};
use crate::process::tail;
use crate::proxy::Flow;
use crate::workload::Workload;

/// How long a fault lasts.
const FAULT_MS: std::ops::Range<u64> = 300..3_500;
/// From one round's end to the next one's begin.
const CALM_MS: std::ops::Range<u64> = 100..1_500;
/// All was healed: the clients must be served again. An election, a debug build's start, a machine with other work.
const PROGRESS_WITHIN: Duration = Duration::from_secs(90);
const PROGRESS_OPERATIONS: u64 = 20;
/// A follower is kept away for so long, at most, for its leader to purge what it lacks.
const LAG_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    Kill,
    KillLeader,
    /// All nodes at once.
    Restart,
    /// SIGTERM, which hands the lead over.
    Terminate,
    Pause,
    PauseLeader,
    Cut,
    CutOneWay,
    IsolateLeader,
    /// The leader hears its followers and they don't hear it, or the other way round.
    HalfIsolateLeader,
    /// Into a minority and a majority.
    Partition,
    Slow,
    Reset,
    ReconnectLate,
    ClockStep,
    /// A follower is cut off until the others have a snapshot of what it lacks, and have purged it.
    Lag,
}

/// Faults that need nothing of the binary.
pub const BASIC: [Fault; 14] = [
    Fault::Kill,
    Fault::KillLeader,
    Fault::Restart,
    Fault::Terminate,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::Cut,
    Fault::CutOneWay,
    Fault::IsolateLeader,
    Fault::HalfIsolateLeader,
    Fault::Partition,
    Fault::Slow,
    Fault::Reset,
    Fault::ReconnectLate,
];

/// Faults of one kind, drawn without repetition until each was there once.
#[derive(Debug)]
pub struct Nemesis {
    rng: Rng,
    kinds: Vec<Fault>,
    bag: Vec<Fault>,
    /// How often each was injected.
    pub injected: BTreeMap<Fault, u32>,
    /// How often a follower came back to leaders that had made two snapshots without it.
    pub outrun: u32,
    /// When what was done, for the report.
    pub diary: Vec<(u64, String)>,
}

impl Nemesis {
    pub fn new(rng: Rng, kinds: &[Fault]) -> Nemesis {
        Nemesis { rng, kinds: kinds.to_vec(), bag: Vec::new(), injected: BTreeMap::new(), outrun: 0, diary: Vec::new() }
    }

    /// Rounds of faults until the time is over; all is healed at the end, and nodes that were killed are starting.
    #[track_caller]
    pub fn run(&mut self, cluster: &mut Cluster, load: &Workload, during: Duration) {
        let end = Instant::now() + during;
        while Instant::now() < end {
            self.round(cluster, load);
            self.rest(CALM_MS);
        }
    }

    /// One to three faults, one on top of the other; then all is healed and the clients must be served.
    #[track_caller]
    pub fn round(&mut self, cluster: &mut Cluster, load: &Workload) {
        let faults = [1, 1, 2, 3][self.rng.usize(0..4)];
        for _ in 0..faults {
            let fault = self.draw();
            self.inject(fault, cluster, load);
            self.rest(FAULT_MS);
        }
        self.heal(cluster, load);
        load.wait_for_more(PROGRESS_OPERATIONS, PROGRESS_WITHIN);
        self.check_alive(cluster);
    }

    pub fn total(&self) -> u32 {
        self.injected.values().sum()
    }

    /// Undoes everything that can be undone.
    pub fn heal(&mut self, cluster: &mut Cluster, load: &Workload) {
        cluster.network().heal();
        for id in cluster.ids() {
            if !cluster.is_running(id) {
                cluster.restart(id);
            } else if cluster.is_paused(id) {
                cluster.resume(id);
            }
        }
        self.note(load, "healed".into());
    }

    #[track_caller]
    fn check_alive(&self, cluster: &mut Cluster) {
        for id in cluster.ids() {
            if let Some(status) = cluster.exited(id) {
                panic!("node {id} ended by itself ({status}):\n{}", tail(&cluster.log(id), 40));
            }
        }
    }

    fn draw(&mut self) -> Fault {
        if self.bag.is_empty() {
            self.bag.clone_from(&self.kinds);
            self.rng.shuffle(&mut self.bag);
        }
        self.bag.pop().expect("it was just filled")
    }

    fn inject(&mut self, fault: Fault, cluster: &mut Cluster, load: &Workload) {
        let running: Vec<u64> = cluster.ids().filter(|id| cluster.is_running(*id) && !cluster.is_paused(*id)).collect();
        let ids: Vec<u64> = cluster.ids().collect();
        let (Some(&one), leader) = (self.rng.choice(&running), leader(cluster)) else { return };
        let leader = leader.unwrap_or(one);
        let other = self.other(&ids, one);
        let what = match fault {
            Fault::Kill => kill(cluster, one),
            Fault::KillLeader => kill(cluster, leader),
            Fault::Restart => {
                cluster.kill_all();
                cluster.network().heal();
                ids.iter().for_each(|id| cluster.restart(*id));
                "all nodes".to_owned()
            }
            Fault::Terminate => {
                cluster.terminate(leader);
                format!("node {leader}")
            }
            Fault::Pause => pause(cluster, one),
            Fault::PauseLeader => pause(cluster, leader),
            Fault::Cut => {
                cluster.network().cut(one, other);
                format!("{one} and {other}")
            }
            Fault::CutOneWay => {
                cluster.network().cut_one_way(one, other);
                format!("{one} to {other}")
            }
            Fault::IsolateLeader => {
                let others: Vec<u64> = ids.into_iter().filter(|id| *id != leader).collect();
                cluster.network().partition(&[leader], &others);
                format!("node {leader}")
            }
            Fault::HalfIsolateLeader => self.half_isolate(cluster, leader, &ids),
            Fault::Partition => self.partition(cluster, ids),
            Fault::Slow => self.slow(cluster, &ids),
            Fault::Reset => {
                cluster.network().reset(one, other);
                cluster.network().reset(other, one);
                format!("{one} and {other}")
            }
            Fault::ReconnectLate => self.reconnect_late(cluster, leader, &ids),
            Fault::ClockStep => self.step_clock(cluster, one),
            Fault::Lag => self.lag(cluster, load, leader, &ids),
        };
        *self.injected.entry(fault).or_default() += 1;
        self.note(load, format!("{fault:?}: {what} (leader {leader})"));
    }

    fn half_isolate(&mut self, cluster: &Cluster, leader: u64, ids: &[u64]) -> String {
        let deaf = self.rng.bool();
        for &id in ids.iter().filter(|id| **id != leader) {
            let (from, to) = if deaf { (id, leader) } else { (leader, id) };
            cluster.network().cut_one_way(from, to);
        }
        format!("node {leader} is {}", if deaf { "deaf" } else { "mute" })
    }

    fn partition(&mut self, cluster: &Cluster, mut ids: Vec<u64>) -> String {
        self.rng.shuffle(&mut ids);
        let minority = self.rng.usize(1..=ids.len().div_ceil(2) - 1);
        let (few, most) = ids.split_at(minority);
        cluster.network().partition(few, most);
        format!("{few:?} from {most:?}")
    }

    fn slow(&mut self, cluster: &Cluster, ids: &[u64]) -> String {
        let latency = Duration::from_millis(self.rng.u64(5..400));
        let bytes_per_second = self.rng.u32(20_000..2_000_000);
        let everywhere = self.rng.bool();
        for &from in ids {
            for &to in ids.iter().filter(|to| **to != from) {
                if everywhere || self.rng.u8(0..3) == 0 {
                    cluster.network().set_one_way(from, to, Flow::Slow { latency, bytes_per_second });
                }
            }
        }
        format!("{latency:?}, {bytes_per_second} bytes/s, {}", if everywhere { "everywhere" } else { "some links" })
    }

    /// What the leader, or a follower, has on the way arrives after what it sends over its next connections.
    fn reconnect_late(&mut self, cluster: &Cluster, leader: u64, ids: &[u64]) -> String {
        let other = self.other(ids, leader);
        let (from, to) = if self.rng.bool() { (leader, other) } else { (other, leader) };
        let (held, late) = (self.rng.u64(50..800), self.rng.u64(50..2_000));
        cluster.network().cut_one_way(from, to);
        std::thread::sleep(Duration::from_millis(held));
        cluster.network().reconnect_late(from, to, Duration::from_millis(late));
        cluster.network().set_one_way(from, to, Flow::Open);
        format!("{from} to {to}, held {held} ms, late by {late} ms")
    }

    fn step_clock(&mut self, cluster: &Cluster, id: u64) -> String {
        // A year back, minutes on: or close to each other. When two of three are ahead the cluster's clock is too, and
        // idempotency keys are forgotten ten minutes later by that clock: a write must not be sent again after that.
        let milliseconds = match self.rng.u8(0..4) {
            0 => self.rng.i64(-31_536_000_000..0),
            1 => self.rng.i64(0..540_000),
            _ => self.rng.i64(-2_000..2_000),
        };
        clocks::set(cluster.folder(), id, milliseconds);
        format!("node {id}, {milliseconds} ms from the true time")
    }

    fn lag(&mut self, cluster: &mut Cluster, load: &Workload, leader: u64, ids: &[u64]) -> String {
        // The others must be a majority that goes on.
        self.heal(cluster, load);
        let follower = self.other(ids, leader);
        let others: Vec<u64> = ids.iter().copied().filter(|id| *id != follower).collect();
        let has = cluster.status(follower).and_then(|status| status.last_log_index).unwrap_or(0);
        cluster.network().partition(&[follower], &others);
        // Two snapshots on, because a log is kept to the older of two.
        let began = Instant::now();
        let (mut newest, mut snapshots) = (has, 0);
        while snapshots < 2 && began.elapsed() < LAG_WITHIN {
            std::thread::sleep(Duration::from_millis(100));
            let snapshot =
                cluster.statuses().iter().filter(|s| s.node_id != follower).filter_map(|s| s.snapshot_index).max();
            if snapshot > Some(newest) {
                newest = snapshot.unwrap_or(newest);
                snapshots += 1;
            }
        }
        self.outrun += u32::from(snapshots >= 2);
        self.note(load, format!("node {follower} has {has}, the others' newest snapshot {newest}"));
        format!("node {follower} for {:?}, {snapshots} snapshots", began.elapsed())
    }

    fn other(&mut self, ids: &[u64], one: u64) -> u64 {
        let others: Vec<u64> = ids.iter().copied().filter(|id| *id != one).collect();
        *self.rng.choice(&others).expect("a cluster has several nodes")
    }

    fn rest(&mut self, milliseconds: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.rng.u64(milliseconds)));
    }

    fn note(&mut self, load: &Workload, what: String) {
        self.diary.push((load.clock().now(), what));
    }
}

fn kill(cluster: &mut Cluster, id: u64) -> String {
    if cluster.is_running(id) {
        cluster.kill(id);
    }
    format!("node {id}")
}

fn pause(cluster: &mut Cluster, id: u64) -> String {
    cluster.pause(id);
    format!("node {id}")
}

/// Who leads in the newest term, if anybody says so.
fn leader(cluster: &Cluster) -> Option<u64> {
    let leads = |status: &Status| status.role == "leader";
    cluster.statuses().into_iter().filter(leads).max_by_key(|status| status.term).map(|status| status.node_id)
}
