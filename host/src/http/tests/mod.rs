//! The listener over real sockets, with a node behind it that is only a table of answers. Here: that node and a client that
//! writes and reads raw bytes.

mod bulk;
mod bulk_refusals;
mod bulk_unread;
mod hosts_pages;
mod limits;
mod protocols;
mod replies;
mod shutdown;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raftlet_machine::{Batch, Header, Replies, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Api, Consistency, HttpLimits, IdempotencyStatus, Member, MemberRole, ModuleStatus, Server, Status};
use crate::outcome::{Answer, BatchAnswer, BatchReplies, CommandReply, Failure, Refusal};

/// No test waits longer: a hanging server fails instead of hanging the run.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the node does with the next requests.
#[derive(Clone)]
pub(super) enum Behaviour {
    /// 200 with the request's body.
    Echo,
    Reply(Reply),
    Refuse(Refusal),
    Fail(Failure),
    /// As to a repeated idempotency key.
    Replay(CommandReply),
    /// Echoes when the test lets it through the gate.
    Gate,
    Never,
}

pub(super) struct Node {
    pub(super) behaviour: Mutex<Behaviour>,
    pub(super) seen: Mutex<Vec<(Request, Option<Consistency>)>>,
    /// Archives of batches; the consistency is that of queries.
    pub(super) batches: Mutex<Vec<(Bytes, Option<Consistency>)>>,
    pub(super) gate: Semaphore,
    /// Requests inside the node now.
    pub(super) inside: AtomicUsize,
    pub(super) ready: Mutex<Result<(), String>>,
}

struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Node {
    async fn answer(&self, request: Request, consistency: Option<Consistency>) -> Result<Answer, Refusal> {
        self.inside.fetch_add(1, SeqCst);
        let _inside = Inside(&self.inside);
        let behaviour = self.behaviour.lock().unwrap().clone();
        let body = request.body.clone();
        self.seen.lock().unwrap().push((request, consistency));
        let echo = Reply { status: 200, content_type: "text/plain".into(), headers: vec![], body };
        let reply = match behaviour {
            Behaviour::Echo => module(echo),
            Behaviour::Reply(reply) => module(reply),
            Behaviour::Refuse(refusal) => return Err(refusal),
            Behaviour::Fail(failure) => CommandReply::Failed(failure),
            Behaviour::Replay(first) => CommandReply::Replayed(Box::new(first)),
            Behaviour::Gate => {
                self.gate.acquire().await.unwrap().forget();
                module(echo)
            }
            Behaviour::Never => pending().await,
        };
        Ok(Answer { index: 42, term: 7, reply })
    }

    /// To all its requests it behaves alike.
    async fn answer_batch(
        &self,
        archive: Bytes,
        count: usize,
        consistency: Option<Consistency>,
    ) -> Result<BatchAnswer, Refusal> {
        self.inside.fetch_add(1, SeqCst);
        let _inside = Inside(&self.inside);
        if matches!(*self.behaviour.lock().unwrap(), Behaviour::Gate) {
            self.gate.acquire().await.unwrap().forget();
        }
        let batch = Batch::access(&archive).expect("what reaches the node is an archive");
        assert_eq!(batch.commands.len(), count);
        let echo = |body: &[u8]| Reply {
            status: 200,
            content_type: "text/plain".into(),
            headers: vec![],
            body: body.to_vec(),
        };
        let whole = |replies| BatchReplies::whole(Replies { replies }.to_bytes().into()).unwrap();
        let replies = match self.behaviour.lock().unwrap().clone() {
            Behaviour::Reply(reply) => whole(vec![reply; count]),
            Behaviour::Refuse(refusal) => return Err(refusal),
            Behaviour::Fail(failure) => BatchReplies::Each(vec![CommandReply::Failed(failure); count]),
            Behaviour::Replay(first) => BatchReplies::Each(vec![CommandReply::Replayed(Box::new(first)); count]),
            _ => whole(batch.commands.iter().map(|command| echo(&command.body)).collect()),
        };
        self.batches.lock().unwrap().push((archive, consistency));
        Ok(BatchAnswer { index: 42, term: 7, replies })
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub(super) fn last_seen(&self) -> (Request, Option<Consistency>) {
        self.seen.lock().unwrap().last().expect("a request came through").clone()
    }
}

fn module(reply: Reply) -> CommandReply {
    CommandReply::split(Replies { replies: vec![reply] }.to_bytes().into()).unwrap().remove(0)
}

impl Api for Node {
    async fn command(&self, request: Request) -> Result<Answer, Refusal> {
        self.answer(request, None).await
    }

    async fn query(&self, request: Request, consistency: Consistency) -> Result<Answer, Refusal> {
        self.answer(request, Some(consistency)).await
    }

    async fn command_batch(&self, archive: Bytes, commands: usize) -> Result<BatchAnswer, Refusal> {
        self.answer_batch(archive, commands, None).await
    }

    async fn query_batch(&self, archive: Bytes, queries: usize, how: Consistency) -> Result<BatchAnswer, Refusal> {
        self.answer_batch(archive, queries, Some(how)).await
    }

    fn status(&self) -> Status {
        Status {
            node_id: 1,
            role: "leader",
            leader_id: Some(1),
            term: 7,
            last_log_index: Some(42),
            applied_index: Some(42),
            snapshot_index: None,
            module: Some(ModuleStatus { name: "kv".into(), version: "0.1.0".into(), digest: "ab".into() }),
            state_digest: "cd".into(),
            members: vec![Member { id: 1, peer_address: "127.0.0.1:9080".into(), role: MemberRole::Voter }],
            version: "0.1.0",
            cluster_id: "ef".into(),
            boot_id: "b007".into(),
            uptime_seconds: 3,
            queue_bytes: 0,
            idempotency: IdempotencyStatus { window_ms: 600_000, keys: 2, keys_max: 9, bytes: 70, bytes_max: 900 },
            quarantine: None,
            hold: None,
            disk: crate::http::DiskStatus { free_bytes: 9, used_bytes: 8, quota_bytes: None, low: false },
            admin_address: None,
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}

pub(super) struct Rig {
    pub(super) node: Arc<Node>,
    pub(super) server: Server,
    pub(super) address: SocketAddr,
}

impl Rig {
    pub(super) async fn new(limits: HttpLimits) -> Rig {
        let node = Arc::new(Node {
            behaviour: Mutex::new(Behaviour::Echo),
            seen: Mutex::default(),
            batches: Mutex::default(),
            gate: Semaphore::new(0),
            inside: AtomicUsize::new(0),
            ready: Mutex::new(Ok(())),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::start(listener, node.clone(), limits);
        Rig { node, server, address }
    }

    pub(super) async fn client(&self) -> Raw {
        Raw { socket: TcpStream::connect(self.address).await.unwrap(), buffer: Vec::new() }
    }

    /// One request on an own connection.
    pub(super) async fn ask(&self, request: impl AsRef<[u8]>) -> Seen {
        let mut client = self.client().await;
        client.send(request).await;
        client.reply().await
    }

    /// Waits until `condition` holds.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Rig) -> bool) {
        let wait = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
    }

    pub(super) async fn until_inside(&self, count: usize) {
        self.until("requests in the node", |rig| rig.node.inside.load(SeqCst) == count).await;
    }
}

pub(super) struct Raw {
    pub(super) socket: TcpStream,
    buffer: Vec<u8>,
}

/// A reply as it was on the wire.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: u16,
    /// Status line and headers.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The problem document's outcome, after checking its form.
    pub(super) fn outcome(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(document["status"], self.status);
        for member in ["type", "title", "detail"] {
            assert!(!document[member].as_str().unwrap().is_empty(), "{member}");
        }
        document["outcome"].as_str().unwrap().to_owned()
    }
}

impl Raw {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> usize {
        let read = self.socket.read_buf(&mut self.buffer);
        timeout(PATIENCE, read).await.expect("the server says something").unwrap()
    }

    /// The next reply, by its Content-Length.
    pub(super) async fn reply(&mut self) -> Seen {
        let head = self.head().await;
        let mut seen = Seen { status: head[9..12].parse().unwrap(), head, body: Vec::new() };
        let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.buffer.len() < length {
            assert_ne!(self.more().await, 0, "the body ended early");
        }
        seen.body = self.buffer.drain(..length).collect();
        seen
    }

    /// The next reply's head alone.
    pub(super) async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                return String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
            }
            assert_ne!(self.more().await, 0, "the head ended early");
        }
    }

    /// The server closes, and sends nothing before.
    pub(super) async fn closed(&mut self) {
        let read = timeout(PATIENCE, self.socket.read_buf(&mut self.buffer)).await.expect("the server closes");
        assert_eq!(read.unwrap_or(0), 0);
        assert!(self.buffer.is_empty(), "{:?}", String::from_utf8_lossy(&self.buffer));
    }
}

pub(super) fn header(name: &str, value: &str) -> Header {
    Header { name: name.into(), value: value.into() }
}
