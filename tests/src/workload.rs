//! Clients on few keys that record what they did and were told (`history.rs`). Each has its own connections, asks a
//! random node, and goes on to new keys all the while, so that each key's history stays small enough to be checked.
//! Judges nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;

use crate::cluster::Cluster;
use crate::history::{Action, Clock, NEVER, Operation, Outcome, When};
use crate::http::{self, Client, Failure, Response};
use crate::wait;

/// How long the clients stay with the same keys.
const GENERATION: Duration = Duration::from_secs(5);
pub const KEYS: [&str; 3] = ["a", "b", "c"];
/// Between two operations of one client, at most.
const PAUSE_MS_MAX: u64 = 15;
/// Over `--request-timeout` of the nodes, so that a node answers first if it can.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// An operation under one idempotency key is sent again for so long.
const RETRY_WITHIN: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub clients: u32,
    /// Every second client's writes have an `Idempotency-Key` and are sent again until their outcome is known. The
    /// other clients send theirs once, because a key would hide that a node has applied one batch twice.
    pub retries: bool,
    /// Reads are asked with `?consistency=stale` and recorded as if they weren't: for a test of the tests.
    pub stale: bool,
}

/// Clients that run until they are stopped. Dropping stops them too.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    plan: Plan,
    addresses: Vec<SocketAddr>,
    stop: AtomicBool,
    definite: AtomicU64,
    history: Mutex<Vec<Operation>>,
}

/// The keys of one generation share this prefix.
pub fn prefix(generation: u64) -> String {
    format!("g{generation}.")
}

pub fn keys(generation: u64) -> Vec<String> {
    KEYS.iter().map(|key| prefix(generation) + key).collect()
}

impl Workload {
    pub fn start(cluster: &Cluster, plan: Plan, rng: &mut Rng) -> Workload {
        let shared = Arc::new(Shared {
            clock: Clock::start(),
            plan,
            addresses: cluster.addresses(),
            stop: AtomicBool::new(false),
            definite: AtomicU64::new(0),
            history: Mutex::default(),
        });
        let clients = (0..plan.clients).map(|number| {
            let one = One::new(number, rng.fork(), shared.clone());
            std::thread::spawn(move || one.run())
        });
        Workload { clients: clients.collect(), shared }
    }

    /// Operations whose outcome is known, so far.
    pub fn definite(&self) -> u64 {
        self.shared.definite.load(Ordering::Acquire)
    }

    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// Waits until so many more operations were answered.
    #[track_caller]
    pub fn wait_for_more(&self, operations: u64, within: Duration) {
        let goal = self.definite() + operations;
        wait::until(&format!("{operations} more operations are answered"), within, || {
            let dead = self.clients.iter().any(JoinHandle::is_finished);
            assert!(!dead, "a client ended before it was told to; its message is above");
            (self.definite() >= goal).then_some(())
        });
    }

    /// Stops the clients, reads every key once more from each node, and gives the history and the number of
    /// generations. All nodes must serve.
    pub fn stop(mut self) -> (Vec<Operation>, u64) {
        self.shared.stop.store(true, Ordering::Release);
        for client in std::mem::take(&mut self.clients) {
            client.join().expect("the client did not panic");
        }
        let generations = self.shared.generation() + 1;
        let mut last = One::new(self.shared.plan.clients, Rng::with_seed(0), self.shared.clone());
        for node in 0..self.shared.addresses.len() {
            for key in (0..generations).flat_map(keys) {
                last.node = node;
                let operation = last.perform(Action::Get { key });
                assert!(operation.is_definite(), "the last read of {operation:?}");
                last.record(operation);
            }
        }
        (std::mem::take(&mut *self.shared.history()), generations)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for client in self.clients.drain(..) {
            // The test fails already: a second panic would hide the first.
            let _ = client.join();
        }
    }
}

impl Shared {
    fn generation(&self) -> u64 {
        Duration::from_nanos(self.clock.now()).as_secs() / GENERATION.as_secs()
    }

    fn history(&self) -> std::sync::MutexGuard<'_, Vec<Operation>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client.
struct One {
    number: u32,
    rng: Rng,
    shared: Arc<Shared>,
    node: usize,
    connections: Vec<Client>,
    writes: u64,
    /// Key and etag of what it has written or read lately.
    etags: Vec<(String, u64)>,
}

impl One {
    fn new(number: u32, rng: Rng, shared: Arc<Shared>) -> One {
        let connect = |address: &SocketAddr| Client::new(*address).answer_within(ANSWER_WITHIN);
        let connections = shared.addresses.iter().map(connect).collect();
        One { number, rng, shared, node: 0, connections, writes: 0, etags: Vec::new() }
    }

    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            // A few operations on one node, so that a node that is cut off isn't found out at once.
            if self.rng.u8(0..4) == 0 {
                self.node = self.rng.usize(0..self.connections.len());
            }
            let action = self.choose();
            let operation = self.perform(action);
            // Else all clients would soon wait at the node that doesn't serve, and none would be with the others.
            if !operation.is_definite() {
                self.node = self.rng.usize(0..self.connections.len());
            }
            self.record(operation);
            std::thread::sleep(Duration::from_millis(self.rng.u64(0..=PAUSE_MS_MAX)));
        }
    }

    fn choose(&mut self) -> Action {
        let generation = self.shared.generation();
        let prefix = prefix(generation);
        let key = prefix.clone() + KEYS[self.rng.usize(0..KEYS.len())];
        let known = self.etags.iter().rev().find(|(known, _)| *known == key).map(|(_, etag)| *etag);
        match (self.rng.u8(0..100), known) {
            (0..34, _) => Action::Get { key },
            (34..41, _) => Action::List { prefix },
            (41..66, _) => self.put(key, When::Always),
            (66..73, _) => self.put(key, When::Absent),
            (73..76, _) => self.put(key, When::Present),
            (76..90, Some(etag)) => self.put(key, When::Match(etag)),
            (90..93, Some(etag)) => Action::Delete { key, when: When::Match(etag) },
            (93..100, _) => Action::Delete { key, when: When::Always },
            (76..93, None) => Action::Get { key },
            (100.., _) => unreachable!("below 100"),
        }
    }

    fn put(&mut self, key: String, when: When) -> Action {
        self.writes += 1;
        Action::Put { key, value: u64::from(self.number) << 32 | self.writes, when }
    }

    fn perform(&mut self, action: Action) -> Operation {
        let clock = self.shared.clock;
        let invoked = clock.now();
        let retry_until = invoked + u64::try_from(RETRY_WITHIN.as_nanos()).expect("seconds");
        let token = format!("\"{}-{}\"", self.number, invoked);
        let keyed = self.shared.plan.retries && self.number.is_multiple_of(2) && action.is_write();
        let (mut attempts, mut perhaps) = (0, false);
        let (outcome, replayed) = loop {
            attempts += 1;
            let (outcome, replayed) = self.attempt(&action, keyed.then_some(token.as_str()));
            perhaps |= outcome == Outcome::Unknown;
            match outcome {
                // Once it may have happened, a rejection only speaks of the last attempt.
                Outcome::Unknown | Outcome::Rejected if keyed && perhaps => {
                    if clock.now() > retry_until {
                        break (Outcome::Unknown, false);
                    }
                    self.node = self.rng.usize(0..self.connections.len());
                    std::thread::sleep(RETRY_AFTER);
                }
                outcome => break (outcome, replayed),
            }
        };
        let returned = if outcome == Outcome::Unknown { NEVER } else { clock.now() };
        let node = self.node as u64 + 1;
        Operation { client: self.number, node, action, outcome, invoked, returned, attempts, replayed }
    }

    /// The outcome, and whether the answer was one that had been kept.
    fn attempt(&mut self, action: &Action, token: Option<&str>) -> (Outcome, bool) {
        let stale = if self.shared.plan.stale { "consistency=stale" } else { "" };
        let (method, target, when, body) = match action {
            Action::Get { key } => ("GET", format!("/kv/{key}?{stale}"), When::Always, String::new()),
            Action::List { prefix } => ("GET", format!("/kv?prefix={prefix}&{stale}"), When::Always, String::new()),
            Action::Put { key, value, when } => ("PUT", format!("/kv/{key}"), *when, body(*value)),
            Action::Delete { key, when } => ("DELETE", format!("/kv/{key}"), *when, String::new()),
        };
        let target = target.trim_end_matches(['?', '&']);
        let condition = match when {
            When::Always => None,
            When::Absent => Some(("If-None-Match", "*".to_owned())),
            When::Present => Some(("If-Match", "*".to_owned())),
            When::Match(etag) => Some(("If-Match", format!("\"{etag}\""))),
        };
        let mut headers: Vec<(&str, &str)> = condition.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.extend(token.map(|token| ("Idempotency-Key", token)));
        let connection = &mut self.connections[self.node];
        match connection.request(method, target, &headers, body.as_bytes()) {
            Err(Failure::NotSent(_)) => (Outcome::Rejected, false),
            Err(Failure::Broken(_)) => {
                // Whatever comes over it now belongs to this request.
                *connection = Client::new(self.shared.addresses[self.node]).answer_within(ANSWER_WITHIN);
                (Outcome::Unknown, false)
            }
            Ok(response) => (outcome(action, &response), response.header("idempotent-replayed").is_some()),
        }
    }

    fn record(&mut self, operation: Operation) {
        if let Outcome::Found { etag, .. } | Outcome::Stored { etag, .. } = operation.outcome {
            const REMEMBERED: usize = 16;
            self.etags.push((operation.action.key().to_owned(), etag));
            if self.etags.len() > REMEMBERED {
                self.etags.remove(0);
            }
        }
        if operation.is_definite() {
            self.shared.definite.fetch_add(1, Ordering::AcqRel);
        }
        self.shared.history().push(operation);
    }
}

/// What is stored for a value: of up to a kilobyte, so that the log grows.
fn body(value: u64) -> String {
    let bytes = usize::try_from(value % 1_009).expect("small");
    format!("{value:<bytes$}")
}

/// # Panics
/// On an answer that the module's and the host's pages don't allow: that is a finding too.
fn outcome(action: &Action, response: &Response) -> Outcome {
    match response.refusal() {
        Some(http::Outcome::Rejected) => return Outcome::Rejected,
        Some(http::Outcome::Unknown) => return Outcome::Unknown,
        None => {}
    }
    match (action, response.status) {
        (Action::Get { .. }, 200) => {
            let text = String::from_utf8_lossy(&response.body);
            let value = text.trim_end().parse().unwrap_or_else(|_| panic!("nobody wrote this: {response}"));
            assert_eq!(text, body(value), "nobody wrote this");
            Outcome::Found { value, etag: response.number("etag") }
        }
        (Action::Get { .. } | Action::Delete { .. }, 404) => Outcome::Missing,
        (Action::List { .. }, 200) => listed(response),
        (Action::Put { .. }, status @ (201 | 204)) => {
            Outcome::Stored { etag: response.number("etag"), created: status == 201 }
        }
        (Action::Delete { .. }, 204) => Outcome::Deleted,
        (Action::Put { .. } | Action::Delete { .. }, 412) => Outcome::Failed,
        _ => panic!("{action:?} was answered by {response}"),
    }
}

fn listed(response: &Response) -> Outcome {
    let page = response.json();
    assert!(page.get("next").is_none(), "a page is enough for these keys: {response}");
    let entry = |entry: &serde_json::Value| {
        let etag = entry["etag"].as_str()?.trim_matches('"').parse().ok()?;
        Some((entry["key"].as_str()?.to_owned(), etag))
    };
    let keys = page["keys"].as_array().and_then(|keys| keys.iter().map(entry).collect());
    Outcome::Listed(keys.unwrap_or_else(|| panic!("not a page: {response}")))
}
