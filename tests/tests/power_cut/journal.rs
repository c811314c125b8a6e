//! What clients wrote and were told, with times on the recorder's clock, and what of it must be there after a cut.
//! Each key has one writer, which writes version after version of it; so a key's state says how far its writer's
//! writes went. Next: `recorded.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::clock::monotonic_ns;
use raftlet_tests::{Client, Fate};

/// A writer that was told nothing for so long tries another node.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// How the clients write.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub clients: usize,
    /// Of each client.
    pub keys: usize,
    /// Of each client, until it ends by itself.
    pub writes: usize,
    /// Bytes of a value at most; they are spread over the orders of magnitude.
    pub value_bytes_max: usize,
    /// Share of deletes, in percent.
    pub deletes: u8,
}

/// One version of one key: a value, or nothing.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// None: a delete.
    value_bytes: Option<usize>,
    begun_ns: u64,
    /// None: never acknowledged. What was rejected is not a version.
    acknowledged_ns: Option<u64>,
}

/// All versions of a key; the first one has number 1.
#[derive(Debug)]
struct Key {
    path: String,
    versions: Vec<Version>,
}

#[derive(Debug, Default)]
pub struct Journal {
    keys: Vec<Key>,
}

/// Clients of a profile against some nodes. They end after their writes, or when `stop` is set.
pub fn run(profile: Profile, name: &str, addresses: &[SocketAddr], rng: &mut Rng, stop: &Arc<AtomicBool>) -> Journal {
    let writers: Vec<_> = (0..profile.clients)
        .map(|number| {
            let (addresses, stop) = (addresses.to_vec(), stop.clone());
            let writer =
                Writer { profile, name: format!("{name}/{number}"), addresses, node: number, rng: rng.fork(), stop };
            std::thread::spawn(move || writer.run())
        })
        .collect();
    let keys = writers.into_iter().flat_map(|w| w.join().expect("the writer did not panic"));
    Journal { keys: keys.collect() }
}

struct Writer {
    profile: Profile,
    name: String,
    addresses: Vec<SocketAddr>,
    node: usize,
    rng: Rng,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self) -> Vec<Key> {
        let key = |number: usize, name: &str| Key { path: format!("/kv/{name}/{number}"), versions: Vec::new() };
        let mut keys: Vec<Key> = (0..self.profile.keys).map(|number| key(number, &self.name)).collect();
        let mut given_up = Vec::new();
        let mut client = self.connect();
        for _ in 0..self.profile.writes {
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            let place = self.rng.usize(..keys.len());
            let fate = self.write(&mut client, &mut keys[place]);
            if fate != Fate::Acknowledged {
                self.node += 1;
                client = self.connect();
                std::thread::sleep(RETRY);
            }
            // A write of unknown outcome may still happen, after a later one: its key is not written again.
            if fate == Fate::Unknown {
                let fresh = key(self.profile.keys + given_up.len(), &self.name);
                given_up.push(std::mem::replace(&mut keys[place], fresh));
            }
        }
        keys.append(&mut given_up);
        keys
    }

    fn write(&mut self, client: &mut Client, key: &mut Key) -> Fate {
        let delete = self.rng.u8(..100) < self.profile.deletes;
        let bytes = (self.profile.value_bytes_max as f64).powf(self.rng.f64()) as usize;
        let value_bytes = (!delete).then_some(bytes);
        let number = key.versions.len() + 1;
        let begun_ns = monotonic_ns();
        let answer = match value_bytes {
            Some(bytes) => client.put(&key.path, &value(&key.path, number, bytes)),
            None => client.delete(&key.path),
        };
        // A delete of what is not there is done too.
        let fate = match &answer {
            Ok(response) if delete && response.status == 404 && response.refusal().is_none() => Fate::Acknowledged,
            answer => Fate::of(answer),
        };
        let acknowledged_ns = (fate == Fate::Acknowledged).then(monotonic_ns);
        if fate != Fate::Rejected {
            key.versions.push(Version { value_bytes, begun_ns, acknowledged_ns });
        }
        fate
    }

    fn connect(&self) -> Client {
        Client::new(self.addresses[self.node % self.addresses.len()]).answer_within(ANSWER_WITHIN)
    }
}

/// The value of a key's version: names both, and is like no other.
fn value(path: &str, number: usize, bytes: usize) -> Vec<u8> {
    let mut value = format!("{path} {number}:").into_bytes();
    let mut rng = Rng::with_seed(number as u64 ^ ((path.len() as u64) << 32));
    value.extend(std::iter::repeat_with(|| rng.u8(..)).take(bytes));
    value
}

impl Journal {
    pub fn extend(&mut self, other: Journal) {
        self.keys.extend(other.keys);
    }

    /// When each acknowledgement came, with when its write began.
    pub fn acknowledgements(&self) -> impl Iterator<Item = (u64, u64)> {
        self.keys.iter().flat_map(|k| &k.versions).filter_map(|v| Some((v.begun_ns, v.acknowledged_ns?)))
    }

    pub fn acknowledged_before(&self, time_ns: u64) -> usize {
        self.acknowledgements().filter(|(_, at)| *at < time_ns).count()
    }

    /// Reads all keys; what is wrong if the power was cut at this time.
    pub fn check(&self, address: SocketAddr, time_ns: u64) -> Vec<String> {
        const READERS: usize = 4;
        let share = self.keys.len().div_ceil(READERS).max(1);
        std::thread::scope(|scope| {
            let read = |keys: &'_ [Key]| {
                let mut client = Client::new(address).answer_within(ANSWER_WITHIN);
                keys.iter().filter_map(|key| key.check(&mut client, time_ns)).collect::<Vec<_>>()
            };
            let readers: Vec<_> = self.keys.chunks(share).map(|keys| scope.spawn(move || read(keys))).collect();
            readers.into_iter().flat_map(|r| r.join().expect("the reader did not panic")).collect()
        })
    }
}

impl Key {
    fn check(&self, client: &mut Client, time_ns: u64) -> Option<String> {
        let begun = self.versions.partition_point(|v| v.begun_ns < time_ns);
        let acknowledged = self.versions[..begun]
            .iter()
            .rposition(|v| v.acknowledged_ns.is_some_and(|at| at < time_ns))
            .map_or(0, |at| at + 1);
        let body = match client.get(&self.path) {
            Ok(response) if response.status == 200 => Some(response.body),
            Ok(response) if response.status == 404 && response.refusal().is_none() => None,
            other => return Some(format!("GET {}: {other:?}", self.path)),
        };
        let is = |number: usize| match (&body, number.checked_sub(1).and_then(|at| self.versions[at].value_bytes)) {
            (None, None) => true,
            (Some(body), Some(bytes)) => *body == value(&self.path, number, bytes),
            _ => false,
        };
        if (acknowledged..=begun).any(is) {
            return None;
        }
        let start = body.map(|b| String::from_utf8_lossy(&b[..b.len().min(60)]).into_owned());
        Some(format!(
            "{}: version {acknowledged} was acknowledged and {begun} begun before the cut, but found is {}",
            self.path,
            start.map_or("nothing".into(), |s| format!("{s:?}"))
        ))
    }
}
