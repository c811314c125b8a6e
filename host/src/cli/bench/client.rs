//! The closed-loop clients: each has one connection, and sends its next request when the last one was answered. All of
//! them share one thread with no lock. What they measured is put together in `report.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::workload::Workload;
use crate::cli::http::{Connection, Method, StatusCode, Url};

/// An answer that takes longer counts as an error. Longer than a node's own time limit for a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause of a client after a failure, so that a dead node isn't hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// Errors that are quoted.
const QUOTED_MAX: usize = 5;
/// The histogram's largest value, microseconds: longer than [`ANSWER_TIMEOUT`].
const LATENCY_US_MAX: u64 = 60_000_000;

/// With `--retry`, for how long an operation is sent again. Longer than a node's own time limit and an election: only a
/// cluster that stays without a majority is given up.
const RETRY_WITHIN: Duration = Duration::from_secs(60);

/// What all clients of a phase count in.
pub struct Tally {
    total: u64,
    next: Cell<u64>,
    done: Cell<u64>,
    errors: Cell<u64>,
    retries: Cell<u64>,
    quoted: RefCell<Vec<String>>,
    latency_us: RefCell<Histogram<u64>>,
}

impl Tally {
    pub fn new(total: u64) -> Rc<Tally> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds");
        Rc::new(Tally {
            total,
            next: Cell::new(0),
            done: Cell::new(0),
            errors: Cell::new(0),
            retries: Cell::new(0),
            quoted: RefCell::default(),
            latency_us: RefCell::new(histogram),
        })
    }

    /// The next operation's number; None when all are taken.
    fn take(&self) -> Option<u64> {
        let op = self.next.get();
        self.next.set(op + 1);
        (op < self.total).then_some(op)
    }

    fn succeeded(&self, took: Duration) {
        self.done.set(self.done.get() + 1);
        self.latency_us.borrow_mut().saturating_record(took.as_micros() as u64);
    }

    fn failed(&self, error: &anyhow::Error) {
        self.done.set(self.done.get() + 1);
        self.errors.set(self.errors.get() + 1);
        let mut quoted = self.quoted.borrow_mut();
        if quoted.len() < QUOTED_MAX {
            quoted.push(format!("{error:#}"));
        }
    }

    /// Answered or failed.
    pub fn done(&self) -> u64 {
        self.done.get()
    }

    pub fn errors(&self) -> u64 {
        self.errors.get()
    }

    /// How often a request was sent again.
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// The first few errors.
    pub fn quoted(&self) -> Vec<String> {
        self.quoted.borrow().clone()
    }

    pub fn latency_us(&self) -> Histogram<u64> {
        self.latency_us.borrow().clone()
    }
}

/// What a client needs to send a request again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Drawn for each run, so that no earlier run's keys are known: a repetition of those would measure nothing.
    pub run: u64,
}

/// One client and what it knows to be written.
pub struct Client {
    /// All nodes, this client's first. The one in front is the one in use.
    urls: VecDeque<Url>,
    retry: Option<Retry>,
    workload: Workload,
    connection: Option<Connection>,
    /// The operations whose writes were acknowledged to this client.
    written: Vec<u64>,
    path: String,
    value: BytesMut,
    answer: BytesMut,
}

impl Client {
    /// Connected clients, spread over the URLs in turn.
    pub async fn connect_all(
        urls: &[Url],
        count: usize,
        workload: Workload,
        retry: Option<Retry>,
    ) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        let mut urls: VecDeque<Url> = urls.iter().cloned().collect();
        for _ in 0..count {
            let url = &urls[0];
            let connection = connect(url).await.with_context(|| format!("is the cluster running at {url}?"))?;
            clients.push(Client {
                urls: urls.clone(),
                retry,
                workload,
                connection: Some(connection),
                written: Vec::new(),
                path: String::new(),
                value: BytesMut::new(),
                answer: BytesMut::new(),
            });
            urls.rotate_left(1);
        }
        Ok(clients)
    }

    /// Takes operations until none is left.
    async fn operate(mut self, tally: Rc<Tally>) -> Client {
        while let Some(op) = tally.take() {
            let begun = Instant::now();
            let done = if self.workload.reads(op) && !self.written.is_empty() {
                let earlier = self.written[self.workload.pick(op, self.written.len())];
                self.read(earlier, &tally).await
            } else {
                self.write(op, &tally).await
            };
            self.note(done, begun, &tally).await;
        }
        self
    }

    /// Reads back each of `ops` and compares.
    async fn verify(mut self, ops: Rc<Vec<u64>>, tally: Rc<Tally>) -> Client {
        for op in ops.iter() {
            let begun = Instant::now();
            let done = self.read(*op, &tally).await;
            self.note(done, begun, &tally).await;
        }
        self
    }

    async fn note(&mut self, done: anyhow::Result<()>, begun: Instant, tally: &Tally) {
        match done {
            Ok(()) => tally.succeeded(begun.elapsed()),
            Err(error) => {
                tally.failed(&error);
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }

    async fn write(&mut self, op: u64, tally: &Tally) -> anyhow::Result<()> {
        self.workload.path(op, &mut self.path);
        let value = self.workload.value(op, &mut self.value);
        let key = self.retry.map(|Retry { run }| format!("bench-{run:016x}-{op}"));
        let status = self.insist(Method::PUT, key.as_deref(), value, tally).await?;
        if !status.is_success() {
            bail!("PUT {}{}: {}", self.urls[0], self.path, self.refusal(status));
        }
        self.written.push(op);
        Ok(())
    }

    async fn read(&mut self, op: u64, tally: &Tally) -> anyhow::Result<()> {
        self.workload.path(op, &mut self.path);
        let status = self.insist(Method::GET, None, Bytes::new(), tally).await?;
        if status != StatusCode::OK {
            bail!("GET {}{}: {}", self.urls[0], self.path, self.refusal(status));
        }
        if self.workload.value(op, &mut self.value) != self.answer {
            bail!("GET {}{}: not the value that was written", self.urls[0], self.path);
        }
        Ok(())
    }

    /// With `--retry`: sends the request to the next node as long as nobody took it or nobody knows what became of it,
    /// within the time for that. Safe because a write has the same key each time, and a read has no effect.
    async fn insist(
        &mut self,
        method: Method,
        key: Option<&str>,
        body: Bytes,
        tally: &Tally,
    ) -> anyhow::Result<StatusCode> {
        let until = Instant::now() + RETRY_WITHIN;
        loop {
            let error = match self.exchange(method.clone(), key, body.clone()).await {
                Ok(status) => return Ok(status),
                Err(error) => error,
            };
            if self.retry.is_none() || Instant::now() >= until {
                return Err(error);
            }
            tally.retries.set(tally.retries.get() + 1);
            self.connection = None;
            self.urls.rotate_left(1);
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
    }

    /// One request and its answer; connects again if the last exchange broke the connection. An error: nobody took it,
    /// or nobody knows what became of it.
    async fn exchange(&mut self, method: Method, key: Option<&str>, body: Bytes) -> anyhow::Result<StatusCode> {
        // Taken out, so that an error or a timeout leaves none behind.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.urls[0]).await?,
        };
        let sent = connection.send_keyed(method.clone(), &self.path, key, body, &mut self.answer);
        let status = tokio::time::timeout(ANSWER_TIMEOUT, sent)
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {ANSWER_TIMEOUT:?}")))
            .with_context(|| format!("{method} {}{}", self.urls[0], self.path))?;
        self.connection = Some(connection);
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
            bail!("{method} {}{}: {}", self.urls[0], self.path, self.refusal(status));
        }
        Ok(status)
    }

    fn refusal(&self, status: StatusCode) -> String {
        let text = String::from_utf8_lossy(&self.answer);
        format!("{status} {}", text.chars().take(200).collect::<String>())
    }
}

async fn connect(url: &Url) -> anyhow::Result<Connection> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, url.connect()).await;
    connected.unwrap_or_else(|_| Err(anyhow!("can't connect to {url} within {CONNECT_TIMEOUT:?}")))
}

/// Lets all clients work until the tally's operations are done. Must run in a `LocalSet`.
pub async fn operate_all(clients: Vec<Client>, tally: &Rc<Tally>) -> anyhow::Result<Vec<Client>> {
    together(clients.into_iter().map(|client| client.operate(tally.clone()))).await
}

/// How many writes were acknowledged to these clients.
pub fn written(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.written.len() as u64).sum()
}

/// Reads back all that was written. Each client reads what the next one wrote, which with several URLs went to another
/// node. Must run in a `LocalSet`.
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
