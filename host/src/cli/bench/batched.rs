//! The client crate: all bench clients share its few connections, and what waits at the same time is sent together.

use std::ops::Range;
use std::time::Duration;

use anyhow::anyhow;
use bytes::BytesMut;
use raftlet_client::{Client, Error, Method, Reply, Request, keyed, request};

use super::clients::{Failed, Retry};
use super::workload::Workload;
use crate::cli::http::Url;

/// Without `--retry`. Longer than a node's own time limit for a request.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Batched {
    client: Client,
    retry: Option<Retry>,
    workload: Workload,
    path: String,
    value: BytesMut,
}

impl Batched {
    pub fn new(urls: &[Url], connections: usize, workload: Workload, retry: Option<Retry>) -> anyhow::Result<Batched> {
        let builder = Client::builder(urls.iter().map(Url::to_string)).connections(connections);
        let deadline = if retry.is_some() { Retry::WITHIN } else { DEADLINE };
        // Also without --retry nothing may be refused here: the cluster's own limit is to be measured.
        let client = builder.retries(retry.is_some()).deadline(deadline).waiting_bytes_max(usize::MAX).build()?;
        Ok(Batched { client, retry, workload, path: String::new(), value: BytesMut::new() })
    }

    /// How often a request was sent again, of all that share this one's connections.
    pub fn retries(&self) -> u64 {
        self.client.figures().again
    }

    /// One operation goes together with what others send meanwhile; more are an explicit batch.
    pub async fn write(&mut self, ops: Range<u64>) -> Result<(), Failed> {
        let workload = self.workload;
        if ops.end - ops.start == 1 {
            let command = self.command(ops.start);
            let done = succeeded(self.client.command(command).await);
            return done.map_err(|failed| failed.of(|| format!("PUT {}", workload.path_of(ops.start))));
        }
        let commands = ops.clone().map(|op| self.command(op)).collect();
        let replies = self.client.command_batch(commands).await?;
        for (op, reply) in ops.zip(replies.iter()) {
            succeeded(reply).map_err(|failed| failed.of(|| format!("PUT {}", workload.path_of(op))))?;
        }
        Ok(())
    }

    pub async fn read(&mut self, op: u64) -> Result<(), Failed> {
        self.workload.path(op, &mut self.path);
        let reply = self.client.get(&self.path).await;
        let reply = reply.map_err(|error| Failed::from(error).of(|| format!("GET {}", self.path)))?;
        if reply.status() != 200 || reply.body() != self.workload.value(op, &mut self.value) {
            return Err(anyhow!("GET {}: status {}, not the value that was written", self.path, reply.status()).into());
        }
        Ok(())
    }

    fn command(&mut self, op: u64) -> Request {
        self.workload.path(op, &mut self.path);
        let value = Vec::from(self.workload.value(op, &mut self.value));
        let command = request(Method::Put, &self.path, value);
        match self.retry {
            Some(retry) => keyed(command, &retry.key(op)),
            None => command,
        }
    }
}

fn succeeded(reply: Result<Reply, Error>) -> Result<(), Failed> {
    let reply = reply?;
    if !reply.is_success() {
        return Err(anyhow!("status {} {}", reply.status(), String::from_utf8_lossy(&reply.body())).into());
    }
    Ok(())
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        match error {
            Error::Rejected(refusal) if refusal.status == Some(503) => Failed::Refused(refusal.to_string()),
            error => Failed::Broken(error.into()),
        }
    }
}
