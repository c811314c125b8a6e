//! Who sends: closed-loop clients, each of which sends its next request when the last one was answered, or an open loop
//! that sends at a fixed rate. All of them share one thread with no lock. How a request is sent is in `direct.rs`,
//! `batched.rs` and `etcd.rs`; what was measured is put together in `report.rs`.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::task::JoinSet;

use super::batched::Batched;
use super::direct::{self, Direct};
use super::etcd::Etcd;
use super::tally::{Did, Tally};
use super::workload::Workload;
use crate::cli::http::Url;

/// Pause of a client after a failure, so that a dead node isn't hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// How often the open loop looks at the clock.
const OFFER_INTERVAL: Duration = Duration::from_millis(1);
/// Requests of the open loop that may be on their way.
const OFFERED_MAX: usize = 100_000;

/// What a client needs to send a request again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Drawn for each run, so that no earlier run's keys are known: a repetition of those would measure nothing.
    pub run: u64,
}

impl Retry {
    /// For how long an operation is sent again. Longer than a node's own time limit and an election: only a cluster
    /// that stays without a majority is given up.
    pub const WITHIN: Duration = Duration::from_secs(60);

    /// The idempotency key of an operation.
    pub fn key(self, op: u64) -> String {
        format!("bench-{:016x}-{op}", self.run)
    }
}

/// Why a request was not answered as it should have been.
#[derive(Debug)]
pub enum Failed {
    /// The cluster had too much to do (503), and did nothing of it.
    Refused(String),
    Broken(anyhow::Error),
}

impl Failed {
    /// Says which request it was.
    pub fn of(self, what: impl FnOnce() -> String) -> Failed {
        match self {
            Failed::Refused(why) => Failed::Refused(format!("{}: {why}", what())),
            Failed::Broken(error) => Failed::Broken(error.context(what())),
        }
    }

    fn into_error(self) -> anyhow::Error {
        match self {
            Failed::Refused(why) => anyhow!(why),
            Failed::Broken(error) => error,
        }
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Failed {
        Failed::Broken(error)
    }
}

/// How a request is sent.
enum Sender {
    Direct(Box<Direct>),
    Batched(Box<Batched>),
    Etcd(Box<Etcd>),
}

/// Which kind of sender, and how many connections where clients share them.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Direct,
    Batched { connections: usize },
    Etcd { connections: usize },
}

/// One client and what it knows to be written.
pub struct Client {
    sender: Sender,
    workload: Workload,
    /// The operations whose writes were acknowledged to this client.
    written: Vec<u64>,
}

impl Sender {
    async fn write(&mut self, ops: Range<u64>, tally: &Tally) -> Result<(), Failed> {
        match self {
            // It has no bulk form: the caller gives it one at a time.
            Sender::Direct(direct) => direct.write(ops.start, tally).await,
            Sender::Batched(batched) => batched.write(ops).await,
            Sender::Etcd(etcd) => etcd.write(ops).await,
        }
    }

    async fn read(&mut self, op: u64, tally: &Tally) -> Result<(), Failed> {
        match self {
            Sender::Direct(direct) => direct.read(op, tally).await,
            Sender::Batched(batched) => batched.read(op).await,
            Sender::Etcd(etcd) => etcd.read(op).await,
        }
    }

    /// Another one over the same connections; None if each has its own.
    fn share(&self) -> Option<Sender> {
        match self {
            Sender::Direct(_) => None,
            Sender::Batched(batched) => Some(Sender::Batched(batched.clone())),
            Sender::Etcd(etcd) => Some(Sender::Etcd(etcd.clone())),
        }
    }
}

impl Client {
    /// So many clients, spread over the URLs in turn. Each URL must be one where somebody listens.
    pub async fn connect_all(
        urls: &[Url],
        count: usize,
        way: Way,
        workload: Workload,
        retry: Option<Retry>,
    ) -> anyhow::Result<Vec<Client>> {
        let mut first = Vec::with_capacity(count);
        let mut turned: VecDeque<Url> = urls.iter().cloned().collect();
        let running = |url: &Url| format!("is the cluster running at {url}?");
        match way {
            Way::Direct => {
                for _ in 0..count {
                    let direct = Direct::connect(turned.clone(), workload, retry).await;
                    first.push(Sender::Direct(Box::new(direct.with_context(|| running(&turned[0]))?)));
                    turned.rotate_left(1);
                }
            }
            Way::Batched { connections } => {
                for url in urls {
                    direct::connect(url).await.with_context(|| running(url))?;
                }
                first.push(Sender::Batched(Box::new(Batched::new(urls, connections, workload, retry)?)));
            }
            Way::Etcd { connections } => {
                let all = Etcd::connect_all(urls, connections, workload).await.context("is etcd running there?")?;
                first.extend(all.into_iter().map(|etcd| Sender::Etcd(Box::new(etcd))));
            }
        }
        let shared = first.len();
        for place in shared..count {
            first.push(first[place % shared].share().expect("only these are fewer than clients"));
        }
        first.truncate(count);
        Ok(first.into_iter().map(|sender| Client { sender, workload, written: Vec::new() }).collect())
    }

    /// Takes operations until none is left.
    async fn operate(mut self, tally: Rc<Tally>) -> Client {
        while let Some(ops) = tally.take() {
            let begun = Instant::now();
            let op = ops.start;
            let (did, done) = if self.workload.reads(op) && !self.written.is_empty() {
                let earlier = self.written[self.workload.pick(op, self.written.len())];
                (Did::Read, self.sender.read(earlier, &tally).await)
            } else {
                let done = self.sender.write(ops.clone(), &tally).await;
                if done.is_ok() {
                    self.written.extend(ops.clone());
                }
                (Did::Write, done)
            };
            note(did, done, ops.end - ops.start, begun, &tally).await;
        }
        self
    }

    /// Reads back each of `ops` and compares.
    async fn verify(mut self, ops: Rc<Vec<u64>>, tally: Rc<Tally>) -> Client {
        for op in ops.iter() {
            let begun = Instant::now();
            let done = self.sender.read(*op, &tally).await;
            note(Did::Read, done, 1, begun, &tally).await;
        }
        self
    }
}

async fn note(did: Did, done: Result<(), Failed>, ops: u64, begun: Instant, tally: &Tally) {
    match done {
        Ok(()) => tally.succeeded(did, ops, begun.elapsed()),
        Err(failed) => {
            tally.failed(ops, &failed.into_error());
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
    }
}

/// Lets all clients work until the tally's operations are done. Must run in a `LocalSet`.
pub async fn operate_all(clients: Vec<Client>, tally: &Rc<Tally>) -> anyhow::Result<Vec<Client>> {
    together(clients.into_iter().map(|client| client.operate(tally.clone()))).await
}

/// Sends `rate` requests with writes each second, whether or not earlier ones were answered, until the tally's
/// operations are taken. A latency begins when a request was due. Must run in a `LocalSet`.
pub async fn offer(clients: Vec<Client>, rate: u64, tally: &Rc<Tally>) -> anyhow::Result<Vec<Client>> {
    let begun = Instant::now();
    let mut requests = JoinSet::new();
    let mut offered: u64 = 0;
    let mut over = false;
    while !over {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64 + 1;
        while offered < due && !over {
            let Some(ops) = tally.take() else {
                over = true;
                break;
            };
            let was_due = begun + Duration::from_secs_f64(offered as f64 / rate as f64);
            let place = (offered % clients.len() as u64) as usize;
            offered += 1;
            if requests.len() >= OFFERED_MAX {
                // As a client library would: its memory is bounded.
                tally.refused(ops.end - ops.start);
                continue;
            }
            let mut sender = clients[place].sender.share().context("each request has to share connections")?;
            let tally = tally.clone();
            requests.spawn_local(async move {
                let count = ops.end - ops.start;
                match sender.write(ops, &tally).await {
                    Ok(()) => tally.succeeded(Did::Write, count, was_due.elapsed()),
                    Err(Failed::Refused(_)) => tally.refused(count),
                    Err(Failed::Broken(error)) => tally.failed(count, &error),
                }
            });
        }
        while requests.try_join_next().is_some() {}
        tokio::time::sleep(OFFER_INTERVAL).await;
    }
    while let Some(done) = requests.join_next().await {
        done.context("a request panicked")?;
    }
    Ok(clients)
}

/// How many writes were acknowledged to these clients.
pub fn written(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.written.len() as u64).sum()
}

/// How often requests were sent again by what all clients share. What each does by itself is in the tally.
pub fn shared_retries(clients: &[Client]) -> u64 {
    match clients.first().map(|client| &client.sender) {
        Some(Sender::Batched(batched)) => batched.retries(),
        _ => 0,
    }
}

/// Reads back all that was written. Each client reads what the next one wrote, which with several connections went
/// over another one. Must run in a `LocalSet`.
pub async fn verify_all(mut clients: Vec<Client>, tally: &Rc<Tally>) -> anyhow::Result<()> {
    let mut written: Vec<_> = clients.iter_mut().map(|client| Rc::new(std::mem::take(&mut client.written))).collect();
    written.rotate_left(1);
    together(clients.into_iter().zip(written).map(|(client, ops)| client.verify(ops, tally.clone()))).await?;
    Ok(())
}

async fn together(work: impl Iterator<Item = impl Future<Output = Client> + 'static>) -> anyhow::Result<Vec<Client>> {
    let mut tasks = JoinSet::new();
    for client in work {
        tasks.spawn_local(client);
    }
    let mut clients = Vec::with_capacity(tasks.len());
    while let Some(client) = tasks.join_next().await {
        clients.push(client.context("a client panicked")?);
    }
    Ok(clients)
}
