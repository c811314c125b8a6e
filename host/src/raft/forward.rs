//! One connection to the leader for this node's batches and read rounds, opened when needed. A batch that was
//! written to a connection is never written again by this file: what became of it shows when entries are applied.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use std::sync::Mutex as StdMutex;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Leader;
use super::network::Peers;
use super::network::message::Message;
use super::network::{FrameReader, FrameWriter, Outgoing};
use super::proposals::Refused;
use super::room::Rooms;
use super::types::NodeId;

/// Messages that wait for the leader. Beyond, batches wait in the batcher.
const WAITING_MAX: usize = 256;
/// Between attempts to reach a leader that doesn't answer.
const RETRY: Duration = Duration::from_millis(50);

/// The connection is tried this often. Batches are not answered, so being busy proves nothing.
const PING: Duration = Duration::from_secs(1);
/// A leader that says nothing for this long is cut off: a lost link sends no reset.
const SILENCE: Duration = Duration::from_secs(5);

type Rounds = Arc<StdMutex<HashMap<u64, oneshot::Sender<Option<u64>>>>>;

pub struct Forwarder {
    peers: Arc<Peers>,
    refused: Arc<dyn Refused>,
    rooms: Arc<Rooms>,
    connection: Mutex<Option<Connection>>,
    round: AtomicU64,
}

struct Connection {
    to: NodeId,
    /// The newest term that it was used in.
    term: u64,
    out: mpsc::Sender<Message>,
    rounds: Rounds,
    /// Aborted when the connection is replaced.
    _tasks: JoinSet<()>,
}

/// What waits to be written. What is still here when the connection ends was never sent: that is certain.
struct Queue {
    waiting: mpsc::Receiver<Message>,
    rounds: Rounds,
    refused: Arc<dyn Refused>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.waiting.close();
        while let Ok(message) = self.waiting.try_recv() {
            if let Message::Forward(forward) = message {
                self.refused.refused(forward.id.sequence, forward.term);
            }
        }
        // Those who wait for a round learn at once that its answer won't come.
        self.rounds.lock().expect("no code panics under this lock").clear();
    }
}

/// Takes a round off the list, whatever became of it.
struct Round<'a>(&'a Rounds, u64);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.lock().expect("no code panics under this lock").remove(&self.1);
    }
}

impl Forwarder {
    pub fn new(peers: Arc<Peers>, refused: Arc<dyn Refused>, rooms: Arc<Rooms>) -> Self {
        Forwarder { peers, refused, rooms, connection: Mutex::default(), round: AtomicU64::new(0) }
    }

    /// Queues the message for the leader. False: it wasn't queued, because the leader changed while it was tried.
    pub async fn send(&self, to: Leader, message: Message, watch: &mut watch::Receiver<Option<Leader>>) -> bool {
        loop {
            if let Ok((out, _)) = self.connect(to).await
                && let Ok(slot) = out.reserve_owned().await
            {
                slot.send(message);
                return true;
            }
            // Not reached, or the connection broke before the message was taken.
            if tokio::time::timeout(RETRY, watch.changed()).await.is_ok() {
                return false;
            }
        }
    }

    /// One read round. None if the leader changed, can't be reached or can't vouch for being the leader.
    pub async fn read_index(&self, to: Leader, watch: &mut watch::Receiver<Option<Leader>>) -> Option<u64> {
        let (out, rounds) = self.connect(to).await.ok()?;
        let round = self.round.fetch_add(1, Relaxed);
        let (answered, answer) = oneshot::channel();
        rounds.lock().expect("no code panics under this lock").insert(round, answered);
        let _listed = Round(&rounds, round);
        out.send(Message::ReadIndex { round }).await.ok()?;
        tokio::select! {
            index = answer => index.ok().flatten(),
            _ = watch.changed() => None,
            () = out.closed() => None,
        }
    }

    async fn connect(&self, to: Leader) -> Result<(mpsc::Sender<Message>, Rounds), ()> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_mut() {
            if open.term > to.term {
                // Whoever asks has an old leader in mind; the new one's connection is not given up for that.
                return Err(());
            }
            if open.to == to.node && !open.out.is_closed() {
                open.term = to.term;
                return Ok((open.out.clone(), open.rounds.clone()));
            }
        }
        *connection = None;
        let member = self.peers.member.get().and_then(|lookup| lookup(to.node));
        let address = self.peers.addresses.get(&to.node).cloned().or(member.as_ref().map(|m| m.address.clone()));
        let identity = member.map(|m| m.identity);
        let dialled = self.peers.dial(to.node, &address.ok_or(())?, identity).await;
        let (reader, writer, _) = dialled.map_err(|e| tracing::debug!("can't reach the leader: {e}"))?;
        let (out, waiting) = mpsc::channel(WAITING_MAX);
        let rounds = Rounds::default();
        let queue = Queue { waiting, rounds: rounds.clone(), refused: self.refused.clone() };
        let mut tasks = JoinSet::new();
        let told = (self.refused.clone(), self.rooms.clone());
        tasks.spawn(run(reader, writer, queue, rounds.clone(), told));
        let (node, term) = (to.node, to.term);
        *connection = Some(Connection { to: node, term, out: out.clone(), rounds: rounds.clone(), _tasks: tasks });
        Ok((out, rounds))
    }
}

/// Who is told of a refusal.
type Told = (Arc<dyn Refused>, Arc<Rooms>);

async fn run(reader: FrameReader, writer: FrameWriter, queue: Queue, rounds: Rounds, told: Told) {
    let result = tokio::select! {
        r = write_all(writer, queue) => r,
        r = read_all(reader, &rounds, told) => r,
    };
    if let Err(e) = result {
        tracing::debug!("the connection to the leader ended: {e}");
    }
}

async fn write_all(mut writer: FrameWriter, mut queue: Queue) -> io::Result<()> {
    let mut ready = Vec::new();
    let mut pinged = Instant::now();
    loop {
        let mut out = Outgoing::default();
        match tokio::time::timeout_at(pinged + PING, queue.waiting.recv_many(&mut ready, WAITING_MAX)).await {
            Ok(0) => return Ok(()),
            Ok(_) => ready.drain(..).for_each(|message| message.push_to(&mut out)),
            Err(_) => {}
        }
        if pinged.elapsed() >= PING {
            pinged = Instant::now();
            Message::Ping.push_to(&mut out);
        }
        writer.write(&mut out).await?;
    }
}

async fn read_all(mut reader: FrameReader, rounds: &Rounds, (refused, rooms): Told) -> io::Result<()> {
    loop {
        let frame = tokio::time::timeout(SILENCE, reader.next()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        match Message::read(frame)? {
            Message::Pong => {}
            Message::Nack { sequence, term, full } => {
                if full {
                    rooms.leader_refused();
                }
                refused.refused(sequence, term);
            }
            Message::ReadFrom { round, index } => {
                let waiter = rounds.lock().expect("no code panics under this lock").remove(&round);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(index);
                }
            }
            _ => return Err(io::Error::other("the leader sent a message that answers nothing")),
        }
    }
}
