//! Writers under load, and what each write's client was told. Every key is written once, so that a lost write, or
//! one that was called rejected and happened nevertheless, can't hide behind a later one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::cluster::Cluster;
use crate::http::{Client, Failure, Outcome, Response};
use crate::{payload, wait};

/// Between two writes of one writer, if nothing else is asked for: verification reads all of them from every node.
const PACE: Duration = Duration::from_millis(10);
/// Between two writes where many rounds add up: one ledger has all of them.
const SLOW_PACE: Duration = Duration::from_millis(25);
const READERS_PER_NODE: usize = 8;
/// A writer that was told nothing for so long tries another node.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// What a client may believe about its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Acknowledged,
    Rejected,
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Written {
    pub path: String,
    pub value: Vec<u8>,
    pub fate: Fate,
}

/// All writes of a load.
#[derive(Debug, Default)]
pub struct Ledger {
    pub writes: Vec<Written>,
}

/// Writers that run until they are stopped. Dropping stops them too.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Vec<Written>>>,
}

impl Fate {
    /// # Panics
    /// On a response that is neither success nor a problem document with an outcome.
    pub fn of(result: &Result<Response, Failure>) -> Fate {
        match result {
            Err(Failure::NotSent(_)) => Fate::Rejected,
            Err(Failure::Broken(_)) => Fate::Unknown,
            Ok(response) if response.is_success() => Fate::Acknowledged,
            Ok(response) => match response.refusal() {
                Some(Outcome::Rejected) => Fate::Rejected,
                Some(Outcome::Unknown) => Fate::Unknown,
                None => panic!("neither a success nor a problem with an outcome: {response}"),
            },
        }
    }
}

impl Load {
    /// Writers with keys of their own, spread over the nodes. A writer whose node fails goes to the next.
    pub fn start(cluster: &Cluster, writers: usize, rng: &mut Rng) -> Load {
        Self::start_with(cluster, writers, PACE, payload::value, rng)
    }

    /// The same with smaller values at a slower pace, for runs of many rounds.
    pub fn start_small(cluster: &Cluster, writers: usize, rng: &mut Rng) -> Load {
        Self::start_with(cluster, writers, SLOW_PACE, payload::small_value, rng)
    }

    fn start_with(
        cluster: &Cluster,
        writers: usize,
        pace: Duration,
        value: fn(&mut Rng) -> Vec<u8>,
        rng: &mut Rng,
    ) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let round = rng.u32(..);
        let writers = (0..writers).map(|number| {
            let writer = Writer {
                name: format!("load/{round:08x}/{number}"),
                addresses: cluster.addresses(),
                node: number,
                rng: rng.fork(),
                pace,
                value,
                stop: stop.clone(),
                acknowledged: acknowledged.clone(),
            };
            std::thread::spawn(move || writer.run())
        });
        Load { writers: writers.collect(), stop, acknowledged }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until so many more writes are acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, writes: u64, within: Duration) {
        let goal = self.acknowledged() + writes;
        wait::until(&format!("{writes} more writes are acknowledged"), within, || {
            let dead = self.writers.iter().any(|w| w.is_finished());
            assert!(!dead, "a writer ended before it was told to; its message is above");
            (self.acknowledged() >= goal).then_some(())
        });
    }

    /// Stops the writers after their current write.
    pub fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Release);
        let writers = std::mem::take(&mut self.writers);
        let writes = writers.into_iter().flat_map(|w| w.join().expect("the writer did not panic"));
        Ledger { writes: writes.collect() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for writer in self.writers.drain(..) {
            // The test fails already, or `stop` was called: a second panic would hide the first.
            let _ = writer.join();
        }
    }
}

struct Writer {
    name: String,
    addresses: Vec<SocketAddr>,
    node: usize,
    rng: Rng,
    pace: Duration,
    value: fn(&mut Rng) -> Vec<u8>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self) -> Vec<Written> {
        let mut writes = Vec::new();
        let mut client = self.connect();
        while !self.stop.load(Ordering::Acquire) {
            let began = Instant::now();
            let path = format!("/kv/{}/{}", self.name, writes.len());
            let value = (self.value)(&mut self.rng);
            let fate = Fate::of(&client.put(&path, &value));
            writes.push(Written { path, value, fate });
            if fate == Fate::Acknowledged {
                self.acknowledged.fetch_add(1, Ordering::AcqRel);
            } else {
                self.node += 1;
                client = self.connect();
            }
            std::thread::sleep(self.pace.saturating_sub(began.elapsed()));
        }
        writes
    }

    fn connect(&self) -> Client {
        Client::new(self.addresses[self.node % self.addresses.len()]).answer_within(ANSWER_WITHIN)
    }
}

impl Ledger {
    pub fn count(&self, fate: Fate) -> usize {
        self.writes.iter().filter(|w| w.fate == fate).count()
    }

    /// So many of the writes, chosen by chance, the same one perhaps twice; fewer if there are none.
    pub fn sample(&self, writes: usize, rng: &mut Rng) -> Ledger {
        let chosen = (0..writes).filter_map(|_| rng.choice(&self.writes).cloned());
        Ledger { writes: chosen.collect() }
    }

    /// Adds the writes of another load.
    pub fn extend(&mut self, other: Ledger) {
        self.writes.extend(other.writes);
    }

    /// Reads every key from every node: what was acknowledged is there, what was rejected is not, what is unknown is
    /// there in full or not at all, and the same on all nodes.
    #[track_caller]
    pub fn verify(&self, cluster: &Cluster) {
        self.verify_on(cluster, &cluster.ids().collect::<Vec<_>>());
    }

    /// The same for some nodes.
    #[track_caller]
    pub fn verify_on(&self, cluster: &Cluster, nodes: &[u64]) {
        println!(
            "{} acknowledged, {} rejected, {} unknown",
            self.count(Fate::Acknowledged),
            self.count(Fate::Rejected),
            self.count(Fate::Unknown)
        );
        assert!(self.count(Fate::Acknowledged) > 0, "nothing was acknowledged: the load proves nothing");
        let share = self.writes.len().div_ceil(READERS_PER_NODE).max(1);
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let readers: Vec<_> = nodes
                .iter()
                .flat_map(|&id| self.writes.chunks(share).map(move |writes| (id, writes)))
                .map(|(id, writes)| scope.spawn(move || check(&mut cluster.client(id), id, writes)))
                .collect();
            readers.into_iter().flat_map(|r| r.join().expect("the reader did not panic")).collect()
        });
        assert!(wrong.is_empty(), "{} wrong reads, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    }
}

fn check(client: &mut Client, node: u64, writes: &[Written]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Written { path, value, fate } in writes {
        let response = client.get(path).unwrap_or_else(|e| panic!("GET {path} on node {node}: {e:?}"));
        let there = match response.status {
            200 => response.body == *value,
            404 => false,
            _ => panic!("GET {path} on node {node}: {response}"),
        };
        let right = match (fate, response.status) {
            (Fate::Acknowledged, _) => there,
            (Fate::Rejected, status) => status == 404,
            (Fate::Unknown, status) => status == 404 || there,
        };
        if !right {
            wrong.push(format!("{fate:?} write of {} bytes, node {node}, {path}: {response}", value.len()));
        }
    }
    wrong
}
