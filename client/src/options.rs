//! How a client is made: every option, its default and its rule. Next: `client.rs`.

use std::sync::Arc;
use std::time::Duration;

use raftlet_machine::limits::BATCH_COMMANDS_MAX;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::node::Node;
use crate::queue::{BulkLimits, Queue};
use crate::worker::{Counters, Duty, Shared, Worker};

/// Options of a [`Client`]; each has a default.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    urls: Vec<String>,
    connections: usize,
    bulk_requests: usize,
    bulk_bytes: usize,
    batching: bool,
    retries: bool,
    idempotency_keys: bool,
    deadline: Duration,
    connect_timeout: Duration,
    answer_timeout: Duration,
    waiting_bytes_max: usize,
}

impl Builder {
    pub(crate) fn new<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder {
            urls: urls.into_iter().map(Into::into).collect(),
            connections: 4,
            bulk_requests: 4096,
            bulk_bytes: 1 << 20,
            batching: true,
            retries: true,
            idempotency_keys: false,
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(12),
            waiting_bytes_max: 64 << 20,
        }
    }

    /// Connections to the leader, and to each node for stale queries; they are opened when there is something to send.
    /// 1 to 1,024, default 4. What waits is sent together, so most programs keep one or two of them busy; explicit
    /// batches travel alone, and keep as many busy as there are. Without batching this is how many requests can be on
    /// their way at a time: raise it.
    pub fn connections(self, connections: usize) -> Builder {
        Builder { connections, ..self }
    }

    /// Whether requests that wait are sent together (default). If not, each is a plain HTTP request.
    pub fn batching(self, batching: bool) -> Builder {
        Builder { batching, ..self }
    }

    /// Requests that are sent together: at most `requests` (1 to 65,536, default 4,096) with at most `bytes` of archive
    /// (default 1 MiB; one larger request goes alone). A node refuses more than its own limit, 8 MiB by default.
    pub fn bulk(self, requests: usize, bytes: usize) -> Builder {
        Builder { bulk_requests: requests, bulk_bytes: bytes, ..self }
    }

    /// Whether a request that was refused (503), a query that was not answered, and a command with an idempotency key
    /// whose outcome is unknown, are sent again until the deadline (default).
    pub fn retries(self, retries: bool) -> Builder {
        Builder { retries, ..self }
    }

    /// Gives each command without an idempotency key a random one, so that it can be sent again whatever happened
    /// (default: no). A cluster keeps a million keys, for ten minutes each, by default.
    pub fn idempotency_keys(self, idempotency_keys: bool) -> Builder {
        Builder { idempotency_keys, ..self }
    }

    /// From a call to its end, repetitions included. Default 10 s, which should not be longer than the window of the
    /// cluster's idempotency keys.
    pub fn deadline(self, deadline: Duration) -> Builder {
        Builder { deadline, ..self }
    }

    /// For a new connection, and for a node's status. Default 2 s.
    pub fn connect_timeout(self, connect_timeout: Duration) -> Builder {
        Builder { connect_timeout, ..self }
    }

    /// From a request to a node to its answer; after that the connection is given up. Default 12 s: a node says within
    /// 10 s that it doesn't know.
    pub fn answer_timeout(self, answer_timeout: Duration) -> Builder {
        Builder { answer_timeout, ..self }
    }

    /// Bytes of requests whose callers wait for an answer, sent or not. What comes when they are used up is refused at
    /// once ([`Error::Rejected`], `client-full`). Default 64 MiB.
    pub fn waiting_bytes_max(self, waiting_bytes_max: usize) -> Builder {
        Builder { waiting_bytes_max, ..self }
    }

    /// The client. It connects when it has something to send, and lives in the Tokio runtime that this is called in.
    ///
    /// # Errors
    /// [`Error::Invalid`]: an option or a URL breaks its rule, or there is no runtime.
    pub fn build(self) -> Result<Client, Error> {
        let invalid = |why: &str| Err(Error::Invalid(why.to_owned()));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return invalid("a client is made inside a Tokio runtime");
        };
        if !(1..=1024).contains(&self.urls.len()) {
            return invalid("give 1 to 1,024 URLs of nodes");
        }
        if !(1..=1024).contains(&self.connections) {
            return invalid("connections must be 1 to 1,024");
        }
        if !(1..=BATCH_COMMANDS_MAX).contains(&self.bulk_requests) || self.bulk_bytes == 0 {
            return invalid("a bulk request has 1 to 65,536 requests and at least 1 byte");
        }
        if self.deadline.is_zero() || self.connect_timeout.is_zero() || self.answer_timeout.is_zero() {
            return invalid("times must be over 0");
        }
        let nodes = self.urls.iter().map(|url| url.parse()).collect::<Result<Vec<Node>, Error>>()?;
        let requests = if self.batching { self.bulk_requests } else { 1 };
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new(self.waiting_bytes_max)),
            cluster: Cluster::new(nodes, self.connect_timeout),
            limits: BulkLimits { requests, bytes: self.bulk_bytes },
            plain: !self.batching,
            retries: self.retries,
            connect_timeout: self.connect_timeout,
            answer_timeout: self.answer_timeout,
            figures: Counters::default(),
        });
        let led = (0..self.connections).map(|worker| Duty::Led { queries_first: worker % 2 == 1 });
        let stale = (0..shared.cluster.len()).map(|node| Duty::Stale { node });
        let stale = stale.flat_map(|duty| std::iter::repeat_n(duty, self.connections));
        let workers =
            led.chain(stale).map(|duty| runtime.spawn(Worker::new(shared.clone(), duty).run()).abort_handle());
        let workers = workers.collect();
        let keys = self.idempotency_keys.then(random_prefix).transpose()?;
        Ok(Client::assemble(shared, workers, self.deadline, keys))
    }
}

/// What no other client's keys begin with.
fn random_prefix() -> Result<String, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Invalid(format!("the system gives no random bytes: {error}")))?;
    Ok(format!("{:032x}", u128::from_le_bytes(random)))
}
