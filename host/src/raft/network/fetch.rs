//! The asking side of snapshots: fetches one from a peer into a partial file, goes on where a broken connection or a
//! crash left off, and has it verified as a whole. What was fetched is durable, in the folder of snapshots, when
//! this returns it. Never installs it: that is `install.rs`, or the start of the node.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::types::{NodeId, SnapshotFile};
use super::frame::{FrameReader, FrameWriter, Outgoing};
use super::handshake::Peers;
use super::message::{Answer, Call, Message, invalid};
use super::snapshots::{Offer, PIECE_BYTES_MAX};
use crate::state_machine::snapshot::{self, Incoming, SnapshotError, Snapshots};

/// Pieces asked for and not yet here: what a transfer holds in memory, and what is on the wire (1 MiB).
const PIECES_AHEAD: usize = 4;
/// A peer that sends no piece for this long is taken for dead. The slowest bandwidth that can be set, shared by a few,
/// is faster.
const SILENCE: Duration = Duration::from_secs(30);
/// Who offers may have to build a snapshot first.
const OFFER_WITHIN: Duration = Duration::from_secs(15);
/// Between attempts to go on with a broken transfer.
const RETRY: Duration = Duration::from_millis(300);
/// So many attempts in a row that bring nothing end the fetch.
const FRUITLESS_MAX: u32 = 10;
/// Written bytes are synced as often as this, so that the end doesn't keep the disk busy for seconds.
const SYNC_BYTES: u64 = 1 << 20;
/// Between two lines that say how far a long fetch is.
const SAY: Duration = Duration::from_secs(10);

/// A peer to fetch from.
#[derive(Clone)]
pub struct Source {
    pub peers: Arc<Peers>,
    pub node: NodeId,
    pub address: String,
    /// What the membership says, if this node knows it.
    pub identity: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("node {0} has the snapshot no more; a newer one has replaced it")]
    Gone(NodeId),
    #[error("node {0} refuses: {1}")]
    Refused(NodeId, String),
    #[error("the snapshot {name} from node {node} is damaged: {why}")]
    Damaged { node: NodeId, name: String, why: String },
    #[error("node {0} can't be reached: {1}")]
    Broken(NodeId, String),
    #[error("the snapshot can't be stored: {0}")]
    Local(String),
}

/// Bytes that are here.
pub type Progress = watch::Sender<u64>;

impl Source {
    /// The peer's newest snapshot, with at least the entry `at_least` in it.
    pub async fn offer(&self, at_least: u64) -> Result<Offer, FetchError> {
        let exchange = async {
            let (mut reader, mut writer) = self.dial().await?;
            say(&mut writer, Call::OfferSnapshot { at_least }).await?;
            Message::read(reader.next().await?)
        };
        let answer = timeout(OFFER_WITHIN, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match answer {
            Ok(Message::Answer(Answer::SnapshotOffered(offer))) => Ok(*offer),
            Ok(Message::Answer(Answer::Refused(why))) => Err(FetchError::Refused(self.node, why)),
            Ok(_) => Err(FetchError::Broken(self.node, "its answer is another message".into())),
            Err(e) => Err(FetchError::Broken(self.node, e.to_string())),
        }
    }

    /// Fetches what was offered, verifies it and makes it durable.
    pub async fn fetch(
        &self,
        snapshots: &Arc<Snapshots>,
        offer: &Offer,
        progress: &Progress,
    ) -> Result<SnapshotFile, FetchError> {
        let incoming = self.receive(snapshots, offer, progress).await?;
        self.check_cluster(&incoming)?;
        crate::failpoint!("transfer.before-adopt");
        let (snapshots, name) = (snapshots.clone(), offer.name.clone());
        let adopted = tokio::task::spawn_blocking(move || snapshots.adopt(incoming)).await;
        let file = match adopted {
            Ok(Ok(file)) => file,
            Ok(Err(SnapshotError::Io { error, .. })) => return Err(FetchError::Local(error.to_string())),
            Ok(Err(e @ SnapshotError::Obsolete { .. })) => return Err(FetchError::Local(e.to_string())),
            Ok(Err(e)) => return Err(FetchError::Damaged { node: self.node, name, why: e.to_string() }),
            Err(e) => return Err(FetchError::Local(e.to_string())),
        };
        crate::failpoint!("transfer.after-adopt");
        if file.meta != offer.meta {
            let why = format!("it was offered as {:?}, but is {:?}", offer.meta.last_log_id, file.meta.last_log_id);
            return Err(FetchError::Refused(self.node, why));
        }
        tracing::info!("the snapshot {name} from node {} is here, whole and verified", self.node);
        Ok(file)
    }

    /// A whole, undamaged file of another cluster is refused before it has a name here.
    fn check_cluster(&self, incoming: &Incoming) -> Result<(), FetchError> {
        // Damage is found, and reported, when it is adopted.
        let Ok(header) = snapshot::header(&incoming.path) else { return Ok(()) };
        // Before the first activation the state doesn't know its cluster.
        if header.cluster == 0 || Some(header.cluster) == self.peers.identity().cluster {
            return Ok(());
        }
        std::fs::remove_file(&incoming.path).map_err(|e| FetchError::Local(e.to_string()))?;
        Err(FetchError::Refused(self.node, format!("its snapshot is of cluster {:016x}", header.cluster)))
    }

    /// All bytes into the partial file, over as many connections as it takes.
    async fn receive(
        &self,
        snapshots: &Arc<Snapshots>,
        offer: &Offer,
        progress: &Progress,
    ) -> Result<Incoming, FetchError> {
        let local = |e: io::Error| FetchError::Local(e.to_string());
        let incoming = snapshots.incoming(&offer.name).map_err(local)?;
        let file = Arc::new(incoming.file.try_clone().map_err(local)?);
        let mut have = incoming.have;
        if have > offer.bytes {
            // Nothing that was ever received under this name is that long.
            file.set_len(0).map_err(local)?;
            have = 0;
        }
        let (name, node, bytes) = (&offer.name, self.node, offer.bytes);
        snapshots.check_room(bytes - have).map_err(local)?;
        if have == 0 {
            tracing::info!("fetching the snapshot {name} from node {node}: {bytes} bytes");
        } else {
            tracing::info!("fetching the snapshot {name} from node {node}: going on at {have} of {bytes} bytes");
        }
        let mut fruitless = 0;
        while have < offer.bytes {
            let before = have;
            let broken = match self.session(&file, offer, &mut have, progress).await {
                Ok(()) => break,
                Err(FetchError::Broken(_, why)) => why,
                Err(other @ FetchError::Local(_)) => {
                    // The disk is short of room, most likely: what is here must not keep it so.
                    snapshots.discard_incoming(name).map_err(local)?;
                    return Err(other);
                }
                Err(other) => return Err(other),
            };
            fruitless = if have > before { 0 } else { fruitless + 1 };
            if fruitless >= FRUITLESS_MAX {
                return Err(FetchError::Broken(node, broken));
            }
            sleep(RETRY).await;
            if have > before {
                tracing::info!(
                    "fetching the snapshot {name} from node {node} broke ({broken}); going on at {have} of {bytes} bytes"
                );
            }
        }
        Ok(incoming)
    }

    /// One connection: asks for pieces, a few ahead, and writes each where it belongs.
    async fn session(
        &self,
        file: &Arc<File>,
        offer: &Offer,
        have: &mut u64,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        let broken = |e: io::Error| FetchError::Broken(self.node, e.to_string());
        let (mut reader, mut writer) = self.dial().await.map_err(broken)?;
        let mut asked = *have;
        let mut expected = VecDeque::with_capacity(PIECES_AHEAD);
        let (mut synced, mut said) = (*have, Instant::now());
        loop {
            while expected.len() < PIECES_AHEAD && asked < offer.bytes {
                let bytes = (offer.bytes - asked).min(u64::from(PIECE_BYTES_MAX)) as u32;
                let call = Call::SnapshotPiece { name: offer.name.clone(), offset: asked, bytes };
                say(&mut writer, call).await.map_err(broken)?;
                expected.push_back(bytes);
                asked += u64::from(bytes);
            }
            let Some(bytes) = expected.pop_front() else { return Ok(()) };
            let frame = timeout(SILENCE, reader.next()).await;
            let frame = frame.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)?;
            let piece = match Message::read(frame).map_err(broken)? {
                Message::Piece(piece) if piece.len() == bytes as usize => piece,
                Message::Answer(Answer::SnapshotGone) => return Err(FetchError::Gone(self.node)),
                Message::Answer(Answer::Refused(why)) => return Err(FetchError::Refused(self.node, why)),
                _ => return Err(broken(invalid("a piece was answered by another message".into()))),
            };
            let sync = *have + u64::from(bytes) - synced >= SYNC_BYTES;
            write_at(file, *have, piece, sync).await.map_err(|e| FetchError::Local(e.to_string()))?;
            *have += u64::from(bytes);
            if sync {
                synced = *have;
            }
            progress.send_replace(*have);
            if said.elapsed() >= SAY {
                said = Instant::now();
                let percent = percent(*have, offer.bytes);
                tracing::info!("fetching the snapshot {} from node {}: {percent} %", offer.name, self.node);
            }
        }
    }

    async fn dial(&self) -> io::Result<(FrameReader, FrameWriter)> {
        let dialled = self.peers.dial(self.node, &self.address, self.identity).await;
        dialled.map(|(reader, writer, _)| (reader, writer)).map_err(io::Error::other)
    }
}

/// How much of it is here.
pub fn percent(have: u64, bytes: u64) -> u64 {
    have.saturating_mul(100).checked_div(bytes).unwrap_or(100)
}

async fn say(writer: &mut FrameWriter, call: Call) -> io::Result<()> {
    let mut out = Outgoing::default();
    Message::Call(call).push_to(&mut out);
    writer.write(&mut out).await
}

async fn write_at(file: &Arc<File>, offset: u64, piece: Bytes, sync: bool) -> io::Result<()> {
    let file = file.clone();
    let written = tokio::task::spawn_blocking(move || {
        file.write_all_at(&piece, offset)?;
        crate::failpoint!("transfer.chunk", io);
        if sync { file.sync_data() } else { Ok(()) }
    });
    written.await.map_err(io::Error::other)?
}
