//! Crash loops: SIGKILL for one, two or all nodes, again and again, under load, at moments that a seed chooses. After
//! each round the cluster is whole again and everything is compared: what was acknowledged is there, what was
//! rejected is not, the nodes agree, nobody panicked, nobody holds on to file descriptors. Snapshots are made, and logs
//! purged, all the time.
//!
//! `RAFTLET_KILLS`: how many SIGKILLs, 40 by default. `RAFTLET_SEED` repeats a run's choices.

use std::collections::{BTreeSet, HashMap};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use fastrand::Rng;
use raftlet_tests::cluster::{Options, START_WITHIN};
use raftlet_tests::process::{assert_no_panic, tail};
use raftlet_tests::{Cluster, Fate, Ledger, Load, features, sample, seed, wait};

const KILLS_DEFAULT: u64 = 40;
/// Then a new cluster begins: a snapshot is due when the log has grown by as much as the state has, so in a state that
/// grew for ever they would become rare.
const KILLS_PER_CLUSTER: u64 = 50;
/// Overwrites of one large value before the kills of a round, at most: the log grows by them and the state does not.
const OVERWRITES_MAX: usize = 30;
const OVERWRITTEN_BYTES: usize = 60_000;
const OVERWRITE_WITHIN: Duration = Duration::from_secs(2);
const NODES: u64 = 3;
const WRITERS: usize = 12;
/// For writes to be acknowledged again after a fault: an election, and clients whose requests hung.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// A killed node may be killed again this long after its start: before, during and after the opening of its log.
const AFTER_START: Duration = Duration::from_millis(1_500);
/// As long as the longest election timeout.
const ELECTION: Duration = Duration::from_millis(1_200);
/// Older writes that are read again in each round.
const OLD_WRITES: usize = 300;
/// A node at rest has no more descriptors than when it was first seen at rest, but for these: connections between
/// nodes come and go, and each of the clients' takes a moment to be closed.
const DESCRIPTORS_MORE: u64 = 12;

#[test]
fn killed_nodes_lose_nothing_acknowledged() {
    let kills = features::setting("RAFTLET_KILLS", KILLS_DEFAULT);
    let mut rng = seed::rng("crash_loop");
    let began = Instant::now();
    let mut total = Figures::default();
    while total.kills < kills {
        let figures = Run::start().until(KILLS_PER_CLUSTER.min(kills - total.kills), &mut rng);
        total.add(&figures);
        println!("{} s: {total}", began.elapsed().as_secs());
    }
    assert!(total.snapshots >= total.rounds / 4 && total.purges > 0, "snapshots and purges were to be among it");
    assert!(total.held <= 1 + total.kills / 100, "kills from outside hit the same entry twice far too often");
}

/// What there was of it.
#[derive(Debug, Default)]
struct Figures {
    kills: u64,
    rounds: u64,
    /// Over all nodes, as seen between rounds.
    snapshots: u64,
    purges: u64,
    /// Entries that the kills hit twice in a row.
    held: u64,
    acknowledged: usize,
    rejected: usize,
    unknown: usize,
    /// From the start of the dead nodes until all are ready.
    slowest_recovery: Duration,
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        self.kills += other.kills;
        self.rounds += other.rounds;
        self.snapshots += other.snapshots;
        self.purges += other.purges;
        self.held += other.held;
        self.acknowledged += other.acknowledged;
        self.rejected += other.rejected;
        self.unknown += other.unknown;
        self.slowest_recovery = self.slowest_recovery.max(other.slowest_recovery);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills in {} rounds; {} writes acknowledged, {} rejected, {} unknown; {} snapshots, {} purges; \
             {} entries held; slowest recovery {:.1} s",
            self.kills,
            self.rounds,
            self.acknowledged,
            self.rejected,
            self.unknown,
            self.snapshots,
            self.purges,
            self.held,
            self.slowest_recovery.as_secs_f64(),
        )
    }
}

/// What happens to the nodes that were killed before all are started again.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Nothing: they are down for a while.
    Down,
    /// Some other node dies while the rest may be electing a leader.
    InElection,
    /// They are started and killed again, perhaps in the middle of opening their logs.
    AfterStart,
    /// They are started far behind the others and killed again before they have caught up.
    CatchingUp,
}

struct Run {
    cluster: Cluster,
    ledger: Ledger,
    figures: Figures,
    /// By node: the last entry in each snapshot, and of each purge, that was seen.
    snapshots: BTreeSet<(u64, u64)>,
    purges: BTreeSet<(u64, u64)>,
    /// Descriptors of a process when it was first seen at rest, by pid.
    at_rest: HashMap<u32, u64>,
    /// How much of each node's log was searched for panics.
    log_seen: HashMap<u64, usize>,
}

impl Run {
    fn start() -> Run {
        let args = features::frequent_snapshots("256KiB");
        Run {
            cluster: Cluster::start_with(NODES, Options { args, ..Options::default() }),
            ledger: Ledger::default(),
            figures: Figures::default(),
            snapshots: BTreeSet::new(),
            purges: BTreeSet::new(),
            at_rest: HashMap::new(),
            log_seen: HashMap::new(),
        }
    }

    fn until(mut self, kills: u64, rng: &mut Rng) -> Figures {
        while self.figures.kills < kills {
            self.figures.rounds += 1;
            self.round(rng);
        }
        // All of them once more from one node; equal digests vouch for the others, and samples for the digests.
        let all = self.cluster.ids().collect::<Vec<_>>();
        let whole = rng.choice(&all).copied().expect("there are nodes");
        self.ledger.verify_on(&self.cluster, &[whole]);
        self.ledger.sample(self.ledger.writes.len() / 20 + 1, rng).verify(&self.cluster);
        self.cluster.wait_converged();
        Figures {
            snapshots: self.snapshots.len() as u64,
            purges: self.purges.len() as u64,
            acknowledged: self.ledger.count(Fate::Acknowledged),
            rejected: self.ledger.count(Fate::Rejected),
            unknown: self.ledger.count(Fate::Unknown),
            ..self.figures
        }
    }

    fn round(&mut self, rng: &mut Rng) {
        let moments = [Moment::Down, Moment::InElection, Moment::AfterStart, Moment::CatchingUp];
        let moment = *rng.choice(&moments).expect("there are moments");
        let load = Load::start_small(&self.cluster, WRITERS, rng);
        load.wait_for_more(rng.u64(5..150), PROGRESS_WITHIN);
        self.overwrite(rng);
        let victims = self.victims(rng);
        let Figures { rounds, kills, .. } = self.figures;
        println!("round {rounds}: {moment:?}, victims {victims:?}, {kills} kills so far");
        victims.iter().for_each(|id| self.kill(*id));
        self.meanwhile(moment, &victims, &load, rng);

        let began = Instant::now();
        self.restart_all();
        self.figures.slowest_recovery = self.figures.slowest_recovery.max(began.elapsed());
        load.wait_for_more(rng.u64(5..50), PROGRESS_WITHIN);
        let written = load.stop();
        self.cluster.wait_converged();
        written.verify(&self.cluster);
        if !self.ledger.writes.is_empty() {
            self.ledger.sample(OLD_WRITES, rng).verify(&self.cluster);
        }
        self.ledger.extend(written);
        self.check_processes();
        self.look();
    }

    /// Makes the log grow, so that the kills meet snapshots and purges.
    fn overwrite(&self, rng: &mut Rng) {
        let value = vec![b'x'; OVERWRITTEN_BYTES];
        for _ in 0..rng.usize(0..=OVERWRITES_MAX) {
            let mut client = self.cluster.client(rng.u64(1..=NODES)).answer_within(OVERWRITE_WITHIN);
            // Whatever becomes of it: it isn't compared with anything.
            let _ = client.put("/kv/overwritten", &value);
        }
    }

    /// Which snapshots and purges there are now.
    fn look(&mut self) {
        for id in self.cluster.ids() {
            let snapshot = self.cluster.status(id).and_then(|s| s.snapshot_index);
            self.snapshots.extend(snapshot.map(|index| (id, index)));
            let metrics = self.cluster.client(id).get("/_/metrics").expect("metrics");
            let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
            let purged = metrics.lines().find_map(|line| line.strip_prefix("raftlet_log_purged_index ")?.parse().ok());
            self.purges.extend(purged.filter(|index| *index > 0).map(|index| (id, index)));
        }
    }

    /// Starts what is dead and waits until all are ready. Two kills from outside that hit the same entry are taken for
    /// the entry's doing; then this does what the node says is to be done.
    fn restart_all(&mut self) {
        let ids: Vec<u64> = self.cluster.ids().collect();
        for id in &ids {
            if !self.cluster.is_running(*id) {
                self.cluster.restart(*id);
            }
        }
        for id in ids {
            let held = wait::until(&format!("node {id} is ready or holds an entry"), START_WITHIN, || {
                let ended = self.cluster.exited(id);
                assert!(ended.is_none(), "node {id} ended ({ended:?}):\n{}", tail(&self.cluster.log(id), 30));
                let client = || self.cluster.client(id).answer_within(OVERWRITE_WITHIN);
                if client().get("/_/ready").ok()?.status == 200 {
                    return Some(None);
                }
                let status = client().get("/_/status").ok()?.json();
                (status["hold"]["reason"] == "entry").then(|| Some(status["hold"]["detail"].to_string()))
            });
            if let Some(detail) = held {
                println!("node {id}: {detail}");
                self.figures.held += 1;
                self.cluster.terminate(id);
                fs::remove_file(self.cluster.data(id).join("applying")).expect("the file that counts the deaths");
                self.cluster.restart(id);
                self.cluster.wait_ready(id);
            }
        }
    }

    /// One, two or all nodes in a random order.
    fn victims(&self, rng: &mut Rng) -> Vec<u64> {
        let mut ids: Vec<u64> = self.cluster.ids().collect();
        rng.shuffle(&mut ids);
        let count = match rng.u8(0..10) {
            0..5 => 1,
            5..8 => 2,
            _ => NODES as usize,
        };
        // The leader's death is the more interesting one: half of the time it is among the first.
        if rng.bool() {
            let leader = self.cluster.leader();
            ids.sort_by_key(|id| *id != leader);
        }
        ids.truncate(count);
        ids
    }

    fn meanwhile(&mut self, moment: Moment, victims: &[u64], load: &Load, rng: &mut Rng) {
        let majority = victims.len() <= 1;
        match moment {
            Moment::Down if majority => load.wait_for_more(rng.u64(1..100), PROGRESS_WITHIN),
            Moment::Down => sleep(chance(rng, ELECTION)),
            Moment::InElection => {
                sleep(chance(rng, ELECTION));
                let others: Vec<u64> = self.cluster.ids().filter(|id| !victims.contains(id)).collect();
                if let Some(id) = rng.choice(&others) {
                    self.kill(*id);
                    sleep(chance(rng, ELECTION));
                }
            }
            Moment::AfterStart => {
                victims.iter().for_each(|id| self.cluster.restart(*id));
                sleep(chance(rng, AFTER_START));
                victims.iter().for_each(|id| self.kill(*id));
            }
            Moment::CatchingUp => {
                if majority {
                    load.wait_for_more(rng.u64(100..500), PROGRESS_WITHIN);
                }
                victims.iter().for_each(|id| self.cluster.restart(*id));
                let first = victims[0];
                wait::until("the node answers", PROGRESS_WITHIN, || {
                    assert_eq!(
                        self.cluster.exited(first),
                        None,
                        "node {first}: {}",
                        tail(&self.cluster.log(first), 20)
                    );
                    self.cluster.status(first)
                });
                sleep(chance(rng, Duration::from_millis(100)));
                self.kill(first);
            }
        }
    }

    fn kill(&mut self, id: u64) {
        let ended = self.cluster.exited(id);
        assert!(ended.is_none(), "node {id} had ended by itself ({ended:?}):\n{}", tail(&self.cluster.log(id), 30));
        self.cluster.kill(id);
        self.figures.kills += 1;
    }

    fn check_processes(&mut self) {
        for id in self.cluster.ids() {
            let log = self.cluster.log(id);
            let seen = self.log_seen.insert(id, log.len()).unwrap_or(0);
            assert_no_panic(&format!("node {id}"), log.get(seen..).unwrap_or(&log));
            let pid = self.cluster.pid(id);
            let descriptors = || sample::process(pid).expect("the node runs").descriptors;
            let limit = *self.at_rest.entry(pid).or_insert_with(descriptors) + DESCRIPTORS_MORE;
            wait::until(&format!("node {id} is down to {limit} descriptors"), PROGRESS_WITHIN, || {
                (descriptors() <= limit).then_some(())
            });
        }
    }
}

fn chance(rng: &mut Rng, longest: Duration) -> Duration {
    longest.mul_f64(rng.f64())
}
