//! The HTTP upgrade that opens each peer connection, both sides of it: who calls, whom, in which cluster. Everything
//! that must be refused between nodes is refused here, before the first frame. Next: `client.rs`, `server.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::identity::Identity;
use super::super::types::{Member, NodeId};
use super::frame::{FrameReader, FrameWriter};
use super::message::PROTOCOL;

const NODE: &str = "raftlet-node";
const TARGET: &str = "raftlet-target";
const IDENTITY: &str = "raftlet-identity";
const CLUSTER: &str = "raftlet-cluster";

/// For a whole handshake. Far over a local round trip, far below a client's deadline.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// A refusal's text is cut here.
const REASON_BYTES_MAX: usize = 4096;

/// What this node knows of itself and of its peers.
pub struct Peers {
    pub dir: PathBuf,
    pub me: RwLock<Identity>,
    /// `--peers`, this node included.
    pub addresses: BTreeMap<NodeId, String>,
    /// Looks a node up in the membership. Set once Raft runs.
    pub member: OnceLock<Box<dyn Fn(NodeId) -> Option<Member> + Send + Sync>>,
    /// Peers that said they belong to another cluster.
    strangers: Mutex<BTreeMap<NodeId, u64>>,
    /// Set when this node must not go on: its folder belongs to another cluster than its peers.
    pub misplaced: watch::Sender<Option<String>>,
    /// The last complaint about each peer, so that a repeated one is logged once.
    complaints: Mutex<BTreeMap<NodeId, String>>,
}

/// What the other side said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub node: NodeId,
    pub identity: u64,
    pub cluster: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("node {0} did not answer in time")]
    Timeout(NodeId),
    #[error("node {node} at {address}: {error}")]
    Io { node: NodeId, address: String, error: std::io::Error },
    #[error("node {node} at {address} does not speak {PROTOCOL}: {why}")]
    Protocol { node: NodeId, address: String, why: String },
    #[error("node {node} refused: {why}")]
    Refused { node: NodeId, why: String },
}

impl Peers {
    pub fn new(dir: PathBuf, me: Identity, addresses: BTreeMap<NodeId, String>) -> Self {
        Peers {
            dir,
            me: RwLock::new(me),
            addresses,
            member: OnceLock::new(),
            strangers: Mutex::default(),
            misplaced: watch::Sender::new(None),
            complaints: Mutex::default(),
        }
    }

    pub fn identity(&self) -> Identity {
        *self.me.read().expect("no code panics under this lock")
    }

    /// Opens a connection to `target`. `identity`: what the membership says, if it knows the node.
    pub async fn dial(
        &self,
        target: NodeId,
        address: &str,
        identity: Option<u64>,
    ) -> Result<(FrameReader, FrameWriter, Caller), DialError> {
        let result = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.upgrade(target, address, identity)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout(target)),
        };
        match &result {
            Err(e @ (DialError::Refused { .. } | DialError::Protocol { .. })) => self.complain(target, e.to_string()),
            Err(e) => self.unreached(target, e),
            Ok(_) => self.reached(target),
        }
        result
    }

    async fn upgrade(
        &self,
        target: NodeId,
        address: &str,
        identity: Option<u64>,
    ) -> Result<(FrameReader, FrameWriter, Caller), DialError> {
        let address_owned = || address.to_owned();
        let io = |error| DialError::Io { node: target, address: address_owned(), error };
        let protocol = |why: String| DialError::Protocol { node: target, address: address_owned(), why };
        let stream = TcpStream::connect(address).await.map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| protocol(e.to_string()))?;
        tokio::spawn(connection.with_upgrades());
        let me = self.identity();
        let request = Request::get("/raft")
            .header(HOST, address)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL)
            .header(NODE, me.node)
            .header(TARGET, target)
            .header(IDENTITY, hex(me.identity))
            .header(CLUSTER, me.cluster.map_or("none".into(), hex))
            .body(Empty::<Bytes>::new())
            .map_err(|e| protocol(e.to_string()))?;
        // Only bytes that make no sense tell of another protocol. A connection that breaks tells of the network.
        let unanswered =
            |e: hyper::Error| if e.is_parse() { protocol(e.to_string()) } else { io(std::io::Error::other(e)) };
        let response = send.send_request(request).await.map_err(unanswered)?;
        let caller = read_caller(response.headers());
        if let Some(caller) = caller.filter(|c| c.node == target) {
            self.compare_clusters(caller);
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = Limited::new(response.into_body(), REASON_BYTES_MAX).collect().await;
            let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
            return Err(DialError::Refused { node: target, why: format!("{status}: {text}") });
        }
        let caller = caller.ok_or_else(|| protocol("its answer lacks the raftlet headers".into()))?;
        if caller.node != target {
            let why = format!("there is node {} at {address}; check --peers", caller.node);
            return Err(DialError::Refused { node: target, why });
        }
        if identity.is_some_and(|i| i != caller.identity) {
            return Err(DialError::Refused { node: target, why: replaced(target) });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| protocol(e.to_string()))?;
        let (reader, writer) = split(upgraded).map_err(protocol)?;
        Ok((reader, writer, caller))
    }

    /// The answering side: who calls, or the response that refuses it.
    #[expect(clippy::result_large_err, reason = "once a connection; the response is sent at once")]
    pub fn admit<B>(&self, request: &Request<B>) -> Result<Caller, Response<Full<Bytes>>> {
        let me = self.identity();
        let refuse = |status, why: String| {
            let mut response = Response::new(Full::from(why));
            *response.status_mut() = status;
            describe(&me, response.headers_mut());
            response
        };
        let headers = request.headers();
        let protocol = headers.get(UPGRADE).and_then(|v| v.to_str().ok());
        if protocol != Some(PROTOCOL) {
            let why = format!("this is a raftlet peer port; it speaks {PROTOCOL} only (clients use the other port)");
            return Err(refuse(StatusCode::UPGRADE_REQUIRED, why));
        }
        let (Some(caller), Some(target)) = (read_caller(headers), number(headers, TARGET, 10)) else {
            return Err(refuse(StatusCode::BAD_REQUEST, "the raftlet headers are missing or malformed".into()));
        };
        if target != me.node {
            let why = format!("this is node {}, not node {target}; check --peers", me.node);
            return Err(refuse(StatusCode::MISDIRECTED_REQUEST, why));
        }
        match (me.cluster, caller.cluster) {
            (_, None) => {
                let why = format!("node {} has not joined a cluster", caller.node);
                return Err(refuse(StatusCode::FORBIDDEN, why));
            }
            (Some(mine), Some(theirs)) if mine != theirs => {
                let why = format!("node {} belongs to cluster {mine:016x}, you to {theirs:016x}", me.node);
                return Err(refuse(StatusCode::FORBIDDEN, why));
            }
            _ => {}
        }
        let member = self.member.get().and_then(|lookup| lookup(caller.node));
        if member.is_some_and(|m| m.identity != caller.identity) {
            self.complain(caller.node, replaced(caller.node));
            return Err(refuse(StatusCode::FORBIDDEN, replaced(caller.node)));
        }
        Ok(caller)
    }

    /// The response that goes on to frames.
    pub fn welcome(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        describe(&self.identity(), response.headers_mut());
        response
    }

    /// A node whose folder is of another cluster than a majority of its peers must stop. With fewer, it is the
    /// peer that is misplaced, and that peer sees the majority. Only what was found at the addresses in `--peers`
    /// counts: anybody can call, and claim anything.
    fn compare_clusters(&self, caller: Caller) {
        let (Some(mine), Some(theirs)) = (self.identity().cluster, caller.cluster) else { return };
        let mut strangers = self.strangers.lock().expect("no code panics under this lock");
        if mine == theirs {
            strangers.remove(&caller.node);
            return;
        }
        strangers.insert(caller.node, theirs);
        if strangers.len() > self.addresses.len() / 2 {
            let text = format!(
                "{} belongs to cluster {mine:016x}, but a majority of the peers belong to {theirs:016x}; \
                 give the right --dir or the right --peers",
                self.dir.display()
            );
            self.misplaced.send_replace(Some(text));
        }
    }

    /// Once for each time that the peer is away, however many attempts there are and however they fail.
    fn unreached(&self, node: NodeId, error: &DialError) {
        let mut complaints = self.complaints.lock().expect("no code panics under this lock");
        complaints.entry(node).or_insert_with(|| {
            tracing::warn!(peer = node, "can't be reached: {error}");
            error.to_string()
        });
    }

    fn reached(&self, node: NodeId) {
        if self.complaints.lock().expect("no code panics under this lock").remove(&node).is_some() {
            tracing::info!(peer = node, "is reached again");
        }
    }

    fn complain(&self, node: NodeId, text: String) {
        let mut complaints = self.complaints.lock().expect("no code panics under this lock");
        if complaints.get(&node) != Some(&text) {
            tracing::warn!(peer = node, "{text}");
            complaints.insert(node, text);
        }
    }
}

/// The raw connection under an upgraded HTTP connection, in two halves.
pub fn split(upgraded: hyper::upgrade::Upgraded) -> Result<(FrameReader, FrameWriter), String> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| "not a TCP connection".to_string())?;
    let (read, write) = parts.io.into_inner().into_split();
    Ok((FrameReader::new(read, parts.read_buf), FrameWriter::new(write)))
}

fn replaced(node: NodeId) -> String {
    format!(
        "node {node} came back with another identity: its folder was lost or replaced. It may have forgotten votes \
         and entries, so it can't take its old place; start it on the folder that it had at its end"
    )
}

fn describe(me: &Identity, headers: &mut HeaderMap) {
    let mut put = |name: &'static str, value: String| {
        headers.insert(name, value.parse().expect("digits make a header value"));
    };
    put("connection", "upgrade".into());
    put("upgrade", PROTOCOL.into());
    put(NODE, me.node.to_string());
    put(IDENTITY, hex(me.identity));
    put(CLUSTER, me.cluster.map_or("none".into(), hex));
}

fn read_caller(headers: &HeaderMap) -> Option<Caller> {
    let cluster = match headers.get(CLUSTER)?.to_str().ok()? {
        "none" => None,
        _ => Some(number(headers, CLUSTER, 16)?),
    };
    Some(Caller { node: number(headers, NODE, 10)?, identity: number(headers, IDENTITY, 16)?, cluster })
}

fn number(headers: &HeaderMap, name: &str, radix: u32) -> Option<u64> {
    u64::from_str_radix(headers.get(name)?.to_str().ok()?, radix).ok()
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_breaks_is_not_taken_for_another_protocol() {
        let peers = Peers::new(PathBuf::from("unused"), Identity::founder(1, 7), BTreeMap::new());
        for (answer, other_protocol) in [(&b""[..], false), (b"HTTP/1.1 101 Sw", false), (b"SSH-2.0-x\r\n\r\n", true)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (result, ()) = tokio::join!(peers.dial(2, &address, None), async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer).await.unwrap();
            });
            let error = result.err().expect("nobody answered as a node does");
            assert_eq!(matches!(error, DialError::Protocol { .. }), other_protocol, "{error}");
            assert!(matches!(error, DialError::Protocol { .. } | DialError::Io { .. }), "{error}");
        }
    }
}
