//! Crash loops: SIGKILL for one, two or all nodes, again and again, under load, at moments that a seed chooses. After
//! each round the cluster is whole again and everything is compared: what was acknowledged is there, what was
//! rejected is not, the nodes agree, nobody panicked, nobody holds on to file descriptors.
//!
//! `RAFTLET_KILLS`: how many SIGKILLs, 40 by default. `RAFTLET_SEED` repeats a run's choices.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use raftlet_tests::cluster::Options;
use raftlet_tests::process::{assert_no_panic, tail};
use raftlet_tests::{Cluster, Fate, Ledger, Load, features, sample, seed, wait};

const KILLS_DEFAULT: u64 = 40;
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
    let args = features::frequent_snapshots("256KiB");
    let mut run = Run {
        cluster: Cluster::start_with(NODES, Options { args, ..Options::default() }),
        ledger: Ledger::default(),
        kills: 0,
        slowest_recovery: Duration::ZERO,
        at_rest: HashMap::new(),
        log_seen: HashMap::new(),
    };
    let (began, mut rounds) = (Instant::now(), 0);
    while run.kills < kills {
        rounds += 1;
        run.round(rounds, &mut rng);
    }
    // All of them once more from one node; equal digests vouch for the others, and samples for the digests.
    let all = run.cluster.ids().collect::<Vec<_>>();
    let whole = rng.choice(&all).copied().expect("there are nodes");
    run.ledger.verify_on(&run.cluster, &[whole]);
    run.ledger.sample(run.ledger.writes.len() / 20 + 1, &mut rng).verify(&run.cluster);
    run.cluster.wait_converged();
    println!(
        "{} kills in {rounds} rounds, {} s; {} writes acknowledged, {} rejected, {} unknown; slowest recovery {:.1} s",
        run.kills,
        began.elapsed().as_secs(),
        run.ledger.count(Fate::Acknowledged),
        run.ledger.count(Fate::Rejected),
        run.ledger.count(Fate::Unknown),
        run.slowest_recovery.as_secs_f64(),
    );
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
    kills: u64,
    /// From the start of the dead nodes until all are ready.
    slowest_recovery: Duration,
    /// Descriptors of a process when it was first seen at rest, by pid.
    at_rest: HashMap<u32, u64>,
    /// How much of each node's log was searched for panics.
    log_seen: HashMap<u64, usize>,
}

impl Run {
    fn round(&mut self, number: u64, rng: &mut Rng) {
        let moments = [Moment::Down, Moment::InElection, Moment::AfterStart, Moment::CatchingUp];
        let moment = *rng.choice(&moments).expect("there are moments");
        let load = Load::start_small(&self.cluster, WRITERS, rng);
        load.wait_for_more(rng.u64(5..150), PROGRESS_WITHIN);
        let victims = self.victims(rng);
        println!("round {number}: {moment:?}, victims {victims:?}, {} kills so far", self.kills);
        victims.iter().for_each(|id| self.kill(*id));
        self.meanwhile(moment, &victims, &load, rng);

        let began = Instant::now();
        self.cluster.restart_all();
        self.slowest_recovery = self.slowest_recovery.max(began.elapsed());
        load.wait_for_more(rng.u64(5..50), PROGRESS_WITHIN);
        let written = load.stop();
        self.cluster.wait_converged();
        written.verify(&self.cluster);
        if !self.ledger.writes.is_empty() {
            self.ledger.sample(OLD_WRITES, rng).verify(&self.cluster);
        }
        self.ledger.extend(written);
        self.check_processes();
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
        self.kills += 1;
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
