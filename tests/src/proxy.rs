//! The network between the nodes of a cluster: a TCP proxy with one listener for each directed link (node i dials node
//! j), so that faults hit one link, and one direction of it, at run time. Knows no protocol: it carries bytes.
//!
//! A cut link sends no reset: bytes stop, new connections are accepted and hang, and what was on its way arrives when
//! the link is whole again, as TCP would retransmit it. `cluster.rs` starts the nodes with the proxy's addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of one direction that wait in the proxy, as in a network's buffers: 4 MiB.
const CHUNKS_MAX: usize = 256;

/// All links among some nodes. Dropping it closes all connections.
#[derive(Debug)]
pub struct Network {
    links: BTreeMap<(u64, u64), Link>,
    _runtime: Runtime,
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    carried: Arc<AtomicU64>,
}

/// What a link does now.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// From the node that dials.
    forward: Flow,
    /// The answers to it.
    backward: Flow,
    /// Connections that were accepted under a smaller number are reset.
    resets: u64,
    /// Connections that were accepted under a smaller number are closed towards the dialler, and what it sent is
    /// delivered this much later.
    late: (u64, Duration),
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flow {
    #[default]
    Open,
    /// Nothing passes.
    Held,
    /// Each chunk of up to 16 KiB takes `latency`, and then its share of the bandwidth.
    Slow { latency: Duration, bytes_per_second: u32 },
}

/// `--peers` for a node. Its own list goes before the addresses in the membership, so each node can have its own way
/// to each other one.
pub fn peer_list(network: Option<&Network>, peers: &[(u64, SocketAddr)], node: u64) -> String {
    let address = |&(to, direct): &(u64, SocketAddr)| match network {
        Some(network) if to != node => network.address(node, to),
        _ => direct,
    };
    let peers: Vec<String> = peers.iter().map(|peer| format!("{}={}", peer.0, address(peer))).collect();
    peers.join(",")
}

type Chunk = (Instant, Vec<u8>);

impl Network {
    /// Links between all pairs; `peers` are the addresses on which the nodes listen for each other.
    pub fn between(peers: &[(u64, SocketAddr)]) -> io::Result<Network> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut links = BTreeMap::new();
        for &(from, _) in peers {
            for &(to, target) in peers.iter().filter(|(to, _)| *to != from) {
                links.insert((from, to), runtime.block_on(Link::open(target))?);
            }
        }
        Ok(Network { links, _runtime: runtime })
    }

    /// Where `from` must dial to reach `to`.
    ///
    /// # Panics
    /// If there is no such link. So do all others.
    #[track_caller]
    pub fn address(&self, from: u64, to: u64) -> SocketAddr {
        self.link(from, to).address
    }

    /// Nothing passes between the two any more, in either direction, whoever dialled.
    pub fn cut(&self, a: u64, b: u64) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// What `from` sends doesn't reach `to`, whoever dialled. The other direction is whole.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.set_one_way(from, to, Flow::Held);
    }

    /// Cuts all links between nodes of different groups.
    pub fn partition(&self, one: &[u64], other: &[u64]) {
        for &a in one {
            other.iter().for_each(|&b| self.cut(a, b));
        }
    }

    /// What `from` sends to `to` goes like this from now on, whoever dialled.
    pub fn set_one_way(&self, from: u64, to: u64, flow: Flow) {
        self.link(from, to).state.send_modify(|state| state.forward = flow);
        self.link(to, from).state.send_modify(|state| state.backward = flow);
    }

    /// Resets all connections that `from` has dialled to `to`. New ones are as good as the link.
    pub fn reset(&self, from: u64, to: u64) {
        self.link(from, to).state.send_modify(|state| state.resets += 1);
    }

    /// Closes all connections that `from` has dialled to `to`, towards `from` only: it can dial again at once. What it
    /// had sent reaches `to` so much later, after what comes over the new connections.
    pub fn reconnect_late(&self, from: u64, to: u64, delay: Duration) {
        self.link(from, to).state.send_modify(|state| state.late = (state.late.0 + 1, delay));
    }

    /// All links are whole, and what was held is delivered.
    pub fn heal(&self) {
        for link in self.links.values() {
            link.state.send_modify(|state| (state.forward, state.backward) = (Flow::Open, Flow::Open));
        }
    }

    /// Bytes that all links have delivered so far.
    pub fn carried(&self) -> u64 {
        self.links.values().map(|link| link.carried.load(Ordering::Relaxed)).sum()
    }

    #[track_caller]
    fn link(&self, from: u64, to: u64) -> &Link {
        self.links.get(&(from, to)).unwrap_or_else(|| panic!("there is no link from {from} to {to}"))
    }
}

impl Link {
    async fn open(target: SocketAddr) -> io::Result<Link> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let link = Link {
            address: listener.local_addr()?,
            state: watch::Sender::new(State::default()),
            carried: Arc::default(),
        };
        let (state, carried) = (link.state.subscribe(), link.carried.clone());
        tokio::spawn(async move {
            // An accept fails if the dialler is gone already; the listener itself lasts.
            loop {
                if let Ok((dialler, _)) = listener.accept().await {
                    tokio::spawn(carry(dialler, target, state.clone(), carried.clone()));
                }
            }
        });
        Ok(link)
    }
}

/// One connection, from its accept to its end.
async fn carry(dialler: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>, carried: Arc<AtomicU64>) {
    let born = *state.borrow_and_update();
    // Also for a reset while it hangs.
    let mut end = state.clone();
    let carrying = async {
        if state.wait_for(|now| now.forward != Flow::Held).await.is_err() {
            return None;
        }
        let server = TcpStream::connect(target).await.ok()?;
        let _ = (dialler.set_nodelay(true), server.set_nodelay(true));
        Some(server)
    };
    let server = tokio::select! {
        server = carrying => server,
        _ = end.wait_for(|now| now.resets != born.resets || now.late.0 != born.late.0) => None,
    };
    let Some(server) = server else { return reset(&[&dialler]) };
    let (sent, requests) = mpsc::channel(CHUNKS_MAX);
    let (answered, answers) = mpsc::channel(CHUNKS_MAX);
    let forward = write(requests, &server, end.clone(), born, |state| state.forward, &carried);
    let backward = write(answers, &dialler, end.clone(), born, |state| state.backward, &carried);
    let mut severed = end.clone();
    let with_dialler = async {
        tokio::select! {
            _ = async { tokio::join!(read(&dialler, sent), read(&server, answered), backward) } => {}
            // `sent` is dropped with its reader: what it has taken is all that will be delivered.
            _ = severed.wait_for(|now| now.late.0 != born.late.0) => {
                // The dialler may have closed it itself.
                let _ = SockRef::from(&dialler).shutdown(Shutdown::Both);
            }
        }
    };
    tokio::select! {
        _ = async { tokio::join!(forward, with_dialler) } => {}
        _ = end.wait_for(|now| now.resets != born.resets) => reset(&[&dialler, &server]),
    }
}

async fn read(from: &TcpStream, to: mpsc::Sender<Chunk>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while from.readable().await.is_ok() {
        match from.try_read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(bytes @ 1..) => {
                if to.send((Instant::now(), buffer[..bytes].to_vec())).await.is_err() {
                    return;
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

/// All of it, as far as the other side takes it; false if it takes no more.
async fn deliver(mut bytes: &[u8], to: &TcpStream, carried: &AtomicU64) -> bool {
    while !bytes.is_empty() {
        if to.writable().await.is_err() {
            return false;
        }
        match to.try_write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(written) => {
                carried.fetch_add(written as u64, Ordering::Relaxed);
                bytes = &bytes[written..];
            }
            Err(_) => return false,
        }
    }
    true
}

/// Delivers chunks as the link allows. When there are no more, it passes on the end.
async fn write(
    mut chunks: mpsc::Receiver<Chunk>,
    to: &TcpStream,
    mut state: watch::Receiver<State>,
    born: State,
    flow: fn(&State) -> Flow,
    carried: &AtomicU64,
) {
    loop {
        let next = chunks.recv().await;
        let passes = |now: &State| flow(now) != Flow::Held || now.late.0 != born.late.0;
        let Ok(now) = state.wait_for(passes).await.map(|now| *now) else { return };
        if now.late.0 != born.late.0 {
            return deliver_late(next, chunks, to, now.late.1, carried).await;
        }
        // The end of a connection is as slow as its bytes.
        let Some((arrived, bytes)) = next else { break };
        if let Flow::Slow { latency, bytes_per_second } = flow(&now) {
            sleep_until(arrived + latency).await;
            sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(bytes_per_second.max(1)))).await;
        }
        if !deliver(&bytes, to, carried).await {
            return;
        }
    }
    // The other side may have closed it meanwhile.
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
}

async fn deliver_late(
    first: Option<Chunk>,
    mut chunks: mpsc::Receiver<Chunk>,
    to: &TcpStream,
    delay: Duration,
    carried: &AtomicU64,
) {
    sleep(delay).await;
    let mut next = first;
    while let Some((_, bytes)) = next {
        if !deliver(&bytes, to, carried).await {
            return;
        }
        next = chunks.recv().await;
    }
}

/// From now on these close with a reset instead of an orderly end.
fn reset(streams: &[&TcpStream]) {
    for stream in streams {
        // One that fails is closed already.
        let _ = SockRef::from(*stream).set_linger(Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests;
