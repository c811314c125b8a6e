//! What a program calls. A call checks the request, puts it in line, and waits for its answer or the deadline; all else
//! is done by the workers.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raftlet_machine::limits::BATCH_COMMANDS_MAX;
use raftlet_machine::{Method, Request};
use tokio::task::AbortHandle;

use crate::error::Error;
use crate::options::Builder;
use crate::queue::{Kind, Load};
use crate::reply::{Answer, Replies, Reply};
use crate::request::{check, has_key, keyed, request};
use crate::worker::Shared;

/// Of the requests of an explicit batch: the most that a node can be set to take.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// A client of one cluster. Cheap to clone; clones share connections and requests. Use it from as many tasks as you
/// like: requests that wait at the same time are sent together.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    workers: Vec<AbortHandle>,
    deadline: Duration,
    /// What the idempotency keys of this client begin with, if it gives any.
    keys: Option<String>,
    next_key: AtomicU64,
}

/// What a query may be answered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// A state that has all that was acknowledged before the query was sent.
    #[default]
    Linearizable,
    /// The newest state of any node, which may be old. Needs no leader.
    Stale,
}

/// Since the client was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Requests to nodes, bulk or plain.
    pub exchanges: u64,
    /// Loads that were in them, repetitions counted: commands, queries, explicit batches.
    pub requests: u64,
    /// How often a load waited again after it was refused or not answered.
    pub again: u64,
}

impl Client {
    /// With all defaults. `urls`: `http://HOST:PORT` of nodes of one cluster, best of all of them.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Result<Client, Error> {
        Client::builder(urls).build()
    }

    /// For other options than the defaults.
    pub fn builder<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder::new(urls)
    }

    pub(crate) fn assemble(
        shared: Arc<Shared>,
        workers: Vec<AbortHandle>,
        deadline: Duration,
        keys: Option<String>,
    ) -> Client {
        Client { inner: Arc::new(Inner { shared, workers, deadline, keys, next_key: AtomicU64::new(0) }) }
    }

    /// Sends a command: any request but GET and HEAD. It happens at most once, unless it is sent again by the caller.
    ///
    /// Dropped before it was sent, the command isn't sent; dropped later, it may happen.
    ///
    /// # Errors
    /// [`Error::Rejected`]: nothing happened. [`Error::Unknown`]: it may have happened. [`Error::Invalid`]: it can't be
    /// sent. A status over 399 from the module is no error.
    pub async fn command(&self, command: Request) -> Result<Reply, Error> {
        if command.method.is_query() {
            return Err(Error::Invalid(format!("{:?} is a query, not a command", command.method)));
        }
        let command = self.with_key(command);
        check(&command)?;
        let repeatable = has_key(&command);
        self.submit(Load::One(command), Kind::Command, repeatable).await?.into_reply()
    }

    /// Sends a query: GET or HEAD.
    ///
    /// # Errors
    /// [`Error::Rejected`] or [`Error::Invalid`]; a query changes nothing.
    pub async fn query(&self, query: Request, consistency: Consistency) -> Result<Reply, Error> {
        if !query.method.is_query() {
            return Err(Error::Invalid(format!("{:?} is a command, not a query", query.method)));
        }
        check(&query)?;
        self.submit(Load::One(query), consistency.into(), true).await?.into_reply()
    }

    /// `PUT` on a path and query, percent-encoded: `/kv/key`.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub async fn put(&self, target: &str, body: impl Into<Vec<u8>>) -> Result<Reply, Error> {
        self.command(request(Method::Put, target, body)).await
    }

    /// `DELETE` on a path and query, percent-encoded.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub async fn delete(&self, target: &str) -> Result<Reply, Error> {
        self.command(request(Method::Delete, target, Vec::new())).await
    }

    /// `GET` on a path and query, percent-encoded; linearizable.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub async fn get(&self, target: &str) -> Result<Reply, Error> {
        self.query(request(Method::Get, target, Vec::new()), Consistency::Linearizable).await
    }

    /// Sends 1 to 65,536 commands as one bulk request and one entry of the log. They are run in their order, but each
    /// succeeds or fails by itself: it is no transaction. Sent again as a whole only: if it was refused, or if its
    /// outcome is unknown and each command has an idempotency key.
    ///
    /// # Errors
    /// Of the whole, as [`Client::command`]; those of single commands are in the [`Replies`].
    pub async fn command_batch(&self, commands: Vec<Request>) -> Result<Replies, Error> {
        if commands.iter().any(|command| command.method.is_query()) {
            return Err(Error::Invalid("a batch of commands has a query in it".to_owned()));
        }
        let commands: Vec<Request> = commands.into_iter().map(|command| self.with_key(command)).collect();
        let repeatable = commands.iter().all(has_key);
        self.batch(commands, Kind::Command, repeatable).await
    }

    /// Sends 1 to 65,536 queries as one bulk request.
    ///
    /// # Errors
    /// Of the whole, as [`Client::query`]; those of single queries are in the [`Replies`].
    pub async fn query_batch(&self, queries: Vec<Request>, consistency: Consistency) -> Result<Replies, Error> {
        if queries.iter().any(|query| !query.method.is_query()) {
            return Err(Error::Invalid("a batch of queries has a command in it".to_owned()));
        }
        self.batch(queries, consistency.into(), true).await
    }

    async fn batch(&self, requests: Vec<Request>, kind: Kind, repeatable: bool) -> Result<Replies, Error> {
        if !(1..=BATCH_COMMANDS_MAX).contains(&requests.len()) {
            let count = requests.len();
            return Err(Error::Invalid(format!("a batch has 1 to {BATCH_COMMANDS_MAX} requests, not {count}")));
        }
        requests.iter().try_for_each(check)?;
        let bytes: usize = requests.iter().map(|r| r.path.len() + r.query.len() + r.body.len()).sum();
        if bytes > BATCH_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a batch of {bytes} bytes is over {BATCH_BYTES_MAX}, the most that a node takes"
            )));
        }
        Ok(self.submit(Load::Many(requests), kind, repeatable).await?.into_replies())
    }

    async fn submit(&self, load: Load, kind: Kind, repeatable: bool) -> Result<Answer, Error> {
        let deadline = self.inner.deadline;
        let mut waiting = pin!(Some(self.inner.shared.queue.push(load, kind, repeatable)?));
        let answered = waiting.as_mut().as_pin_mut().expect("it waits");
        match tokio::time::timeout(deadline, answered).await {
            Ok(result) => result,
            Err(_) => waiting.take().expect("it waits").give_up(deadline),
        }
    }

    fn with_key(&self, command: Request) -> Request {
        match &self.inner.keys {
            Some(prefix) if !has_key(&command) => {
                let number = self.inner.next_key.fetch_add(1, Ordering::Relaxed);
                keyed(command, &format!("{prefix}-{number:x}"))
            }
            _ => command,
        }
    }

    /// What was sent so far.
    pub fn figures(&self) -> Figures {
        let counters = &self.inner.shared.figures;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            exchanges: read(&counters.exchanges),
            requests: read(&counters.requests),
            again: read(&counters.again),
        }
    }
}

impl From<Consistency> for Kind {
    fn from(consistency: Consistency) -> Kind {
        match consistency {
            Consistency::Linearizable => Kind::Query,
            Consistency::Stale => Kind::Stale,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("figures", &self.figures()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Nobody waits any more: a call borrows its client.
    fn drop(&mut self) {
        self.workers.iter().for_each(AbortHandle::abort);
    }
}
