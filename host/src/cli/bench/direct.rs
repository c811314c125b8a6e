//! One HTTP/1.1 connection for each bench client, and one request for each operation: what a program without a client
//! library does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use bytes::{Bytes, BytesMut};

use super::clients::{Failed, Retry};
use super::tally::Tally;
use super::workload::Workload;
use crate::cli::http::{Connection, Method, StatusCode, Url};

/// An answer that takes longer counts as an error. Longer than a node's own time limit for a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a request is sent to the next node, so that a dead one isn't hammered.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub struct Direct {
    /// All nodes, this client's first. The one in front is the one in use.
    urls: VecDeque<Url>,
    retry: Option<Retry>,
    workload: Workload,
    connection: Option<Connection>,
    path: String,
    value: BytesMut,
    answer: BytesMut,
}

impl Direct {
    pub async fn connect(urls: VecDeque<Url>, workload: Workload, retry: Option<Retry>) -> anyhow::Result<Direct> {
        let connection = Some(connect(&urls[0]).await?);
        let (path, value, answer) = Default::default();
        Ok(Direct { urls, retry, workload, connection, path, value, answer })
    }

    pub async fn write(&mut self, op: u64, tally: &Tally) -> Result<(), Failed> {
        self.workload.path(op, &mut self.path);
        let value = self.workload.value(op, &mut self.value);
        let key = self.retry.map(|retry| retry.key(op));
        let status = self.insist(Method::PUT, key.as_deref(), value, tally).await?;
        if !status.is_success() {
            return Err(anyhow!("PUT {}{}: {}", self.urls[0], self.path, self.refusal(status)).into());
        }
        Ok(())
    }

    pub async fn read(&mut self, op: u64, tally: &Tally) -> Result<(), Failed> {
        self.workload.path(op, &mut self.path);
        let status = self.insist(Method::GET, None, Bytes::new(), tally).await?;
        if status != StatusCode::OK {
            return Err(anyhow!("GET {}{}: {}", self.urls[0], self.path, self.refusal(status)).into());
        }
        if self.workload.value(op, &mut self.value) != self.answer {
            return Err(anyhow!("GET {}{}: not the value that was written", self.urls[0], self.path).into());
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
        let until = Instant::now() + Retry::WITHIN;
        loop {
            let error = match self.exchange(method.clone(), key, body.clone()).await {
                Ok(status) => return Ok(status),
                Err(error) => error,
            };
            if self.retry.is_none() || Instant::now() >= until {
                return Err(error);
            }
            tally.retried();
            self.connection = None;
            self.urls.rotate_left(1);
            tokio::time::sleep(RETRY_PAUSE).await;
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
            .map_err(|error| error.context(format!("{method} {}{}", self.urls[0], self.path)))?;
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

/// Also asks whether there is anybody at all, for clients that connect later.
pub async fn connect(url: &Url) -> anyhow::Result<Connection> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, url.connect()).await;
    connected.unwrap_or_else(|_| Err(anyhow!("can't connect to {url} within {CONNECT_TIMEOUT:?}")))
}
