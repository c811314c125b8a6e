//! A load without end on a bounded set of keys, for runs of hours: memory stays flat in this process too. Each client
//! is the only writer of its keys and numbers its writes, so it knows what each key must hold: the last acknowledged
//! number. A key whose write has an unknown outcome is put aside, with both values that it may have, and replaced.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::cluster::Cluster;
use crate::http::{Client, Response};
use crate::load::Fate;

/// Keys that one client writes in turn.
const KEYS: usize = 64;
/// One request in so many is a read that must find the client's last write.
const READ_EVERY: usize = 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A client that went to another node tries its own again after so many requests: else all would end up on one.
const AWAY: usize = 200;
/// After a refusal: a node that is down refuses connections as fast as they are tried.
const PAUSE: Duration = Duration::from_millis(20);

/// A request that was not answered as a healthy cluster answers.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub began: Instant,
    pub ended: Instant,
    pub what: String,
}

/// What happened since it was last asked.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of the acknowledged writes.
    pub latencies: Vec<Duration>,
    pub troubles: Vec<Trouble>,
}

/// What one key may hold.
#[derive(Debug, Clone)]
struct Held {
    path: String,
    /// The number of the last acknowledged write. None: nothing may be there.
    acknowledged: Option<u64>,
    /// The number of one later write whose outcome is unknown.
    unknown: Option<u64>,
}

#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    clients: Vec<JoinHandle<Vec<Held>>>,
}

/// What all keys must hold, once the load has stopped.
#[derive(Debug)]
pub struct Expected(Vec<Held>);

struct Worker {
    number: usize,
    value_bytes: usize,
    addresses: Vec<SocketAddr>,
    at: usize,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    put_aside: Vec<Held>,
}

impl Steady {
    /// Closed-loop clients, spread over the nodes.
    pub fn start(cluster: &Cluster, clients: usize, value_bytes: usize, rng: &mut Rng) -> Steady {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let start = |number| {
            let worker = Worker {
                number,
                value_bytes,
                addresses: cluster.addresses(),
                at: number,
                stop: stop.clone(),
                tally: tally.clone(),
                put_aside: Vec::new(),
            };
            let rng = rng.fork();
            std::thread::spawn(move || worker.run(rng))
        };
        let clients = (0..clients).map(start).collect();
        Steady { stop, tally, clients }
    }

    /// Takes what was counted since the last call.
    ///
    /// # Panics
    /// If a client has ended before it was told to: it read something wrong.
    #[track_caller]
    pub fn take(&self) -> Tally {
        assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client ended early; its message is above");
        std::mem::take(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn stop(mut self) -> Expected {
        self.stop.store(true, Ordering::Release);
        let clients = std::mem::take(&mut self.clients);
        Expected(clients.into_iter().flat_map(|c| c.join().expect("the client did not panic")).collect())
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for client in self.clients.drain(..) {
            // The test fails already, or `stop` was called.
            let _ = client.join();
        }
    }
}

impl Worker {
    fn run(mut self, mut rng: Rng) -> Vec<Held> {
        let mut keys: Vec<Held> = (0..KEYS).map(|slot| self.key(slot, 0)).collect();
        let mut client = self.connect();
        let (mut number, mut away) = (0, 0);
        while !self.stop.load(Ordering::Acquire) {
            let slot = rng.usize(0..KEYS);
            let healthy = if rng.usize(0..READ_EVERY) == 0 {
                self.read(&mut client, &keys[slot])
            } else {
                number += 1;
                let fate = self.write(&mut client, &keys[slot].path, number);
                match fate {
                    Fate::Acknowledged => keys[slot].acknowledged = Some(number),
                    Fate::Rejected => {}
                    Fate::Unknown => {
                        let replaced = std::mem::replace(&mut keys[slot], self.key(slot, number));
                        self.put_aside.push(Held { unknown: Some(number), ..replaced });
                    }
                }
                fate == Fate::Acknowledged
            };
            away += usize::from(self.at != self.number);
            if !healthy {
                self.at += 1;
                std::thread::sleep(PAUSE);
                client = self.connect();
            } else if away > AWAY {
                (self.at, away) = (self.number, 0);
                client = self.connect();
            }
        }
        keys.extend(self.put_aside);
        keys
    }

    fn key(&self, slot: usize, since: u64) -> Held {
        let path = format!("/kv/steady/{}/{slot}/{since}", self.number);
        Held { path, acknowledged: None, unknown: None }
    }

    fn connect(&self) -> Client {
        Client::new(self.addresses[self.at % self.addresses.len()]).answer_within(ANSWER_WITHIN)
    }

    fn write(&self, client: &mut Client, path: &str, number: u64) -> Fate {
        let value = value(path, number, self.value_bytes);
        let began = Instant::now();
        let result = client.put(path, &value);
        let fate = Fate::of(&result);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if fate == Fate::Acknowledged {
            tally.latencies.push(began.elapsed());
        } else {
            let what = format!("{fate:?} PUT {path}: {}", shown(result));
            tally.troubles.push(Trouble { began, ended: Instant::now(), what });
        }
        fate
    }

    /// False: the node gave no answer.
    fn read(&self, client: &mut Client, key: &Held) -> bool {
        let began = Instant::now();
        let result = client.get(&key.path);
        if let Ok(response) = &result
            && matches!(response.status, 200 | 404)
        {
            let wrong = key.wrong(response);
            assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
            return true;
        }
        let what = format!("GET {}: {}", key.path, shown(result));
        let trouble = Trouble { began, ended: Instant::now(), what };
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).troubles.push(trouble);
        false
    }
}

impl Held {
    /// What is wrong with a node's answer to a read of this key.
    fn wrong(&self, response: &Response) -> Option<String> {
        let is = |number| response.status == 200 && response.body == value(&self.path, number, response.body.len());
        let right = match (self.acknowledged, self.unknown) {
            (None, None) => response.status == 404,
            (None, Some(unknown)) => response.status == 404 || is(unknown),
            (Some(acknowledged), None) => is(acknowledged),
            (Some(acknowledged), Some(unknown)) => is(acknowledged) || is(unknown),
        };
        (!right).then(|| format!("{self:?} must be found, but: {response}"))
    }
}

impl Expected {
    /// Reads every key from every node.
    #[track_caller]
    pub fn verify(&self, cluster: &Cluster) {
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let readers: Vec<_> =
                cluster.ids().map(|id| scope.spawn(move || self.wrong_on(cluster.client(id)))).collect();
            readers.into_iter().flat_map(|r| r.join().expect("the reader did not panic")).collect()
        });
        assert!(wrong.is_empty(), "{} wrong reads, the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    }

    fn wrong_on(&self, mut client: Client) -> Vec<String> {
        let read = |held: &Held| match client.get(&held.path) {
            Ok(response) => held.wrong(&response),
            Err(e) => Some(format!("GET {}: {e:?}", held.path)),
        };
        self.0.iter().filter_map(read).collect()
    }
}

fn shown(result: Result<Response, crate::http::Failure>) -> String {
    result.map_or_else(|e| format!("{e:?}"), |r| r.to_string())
}

/// The value that says which write it is of, filled up to `bytes`.
fn value(path: &str, number: u64, bytes: usize) -> Vec<u8> {
    let mut value = format!("{path}={number};").into_bytes();
    value.resize(value.len().max(bytes), b'.');
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(status: u16, body: Vec<u8>) -> Response {
        Response { status, headers: Vec::new(), body }
    }

    #[test]
    fn only_the_last_acknowledged_or_a_later_unknown_write_may_be_found() {
        let held = |acknowledged, unknown| Held { path: "/kv/a".into(), acknowledged, unknown };
        let is = |number| found(200, value("/kv/a", number, 100));
        let none = || found(404, Vec::new());
        assert_eq!(held(Some(3), None).wrong(&is(3)), None);
        assert!(held(Some(3), None).wrong(&is(2)).is_some(), "an older write");
        assert!(held(Some(3), None).wrong(&none()).is_some(), "a lost one");
        assert!(held(None, None).wrong(&is(1)).is_some(), "a rejected one");
        for right in [is(3), is(4)] {
            assert_eq!(held(Some(3), Some(4)).wrong(&right), None);
        }
        assert!(held(Some(3), Some(4)).wrong(&is(2)).is_some());
        assert_eq!(held(None, Some(4)).wrong(&none()), None);
        assert!(held(None, Some(4)).wrong(&is(3)).is_some());
        let mut altered = is(3);
        altered.body[90] = b'!';
        assert!(held(Some(3), None).wrong(&altered).is_some(), "a flipped byte");
    }
}
