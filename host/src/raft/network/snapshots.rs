//! The serving side of snapshots: which one there is, and its bytes piece by piece, as fast as the bandwidth allows.
//! Whoever wants a snapshot asks for each piece, a few ahead, so that neither side holds more than those in memory.
//! Never decides who needs one. The asking side is `fetch.rs`.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::super::Raft;
use super::super::types::{SnapshotFile, SnapshotMeta};
use super::bandwidth::Bandwidth;
use super::message::{Answer, Message};
use crate::state_machine::View;
use crate::state_machine::snapshot::{self, SnapshotError, Snapshots};

/// The largest piece that may be asked for.
pub const PIECE_BYTES_MAX: u32 = 256 << 10;
/// Who asks for a newer snapshot than there is waits this long for it, then asks again.
const BUILD_WITHIN: Duration = Duration::from_secs(8);
/// For this node to apply the entry that must be in it. Whoever needs longer asks another node.
const CATCH_UP: Duration = Duration::from_secs(2);
/// A snapshot that a newer one has replaced can be fetched to its end, unless nobody asks for it for this long.
const HELD: Duration = Duration::from_secs(60);

/// A snapshot that can be fetched. Its name identifies its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub name: String,
    pub bytes: u64,
    pub meta: SnapshotMeta,
}

impl Offer {
    pub fn of(file: &SnapshotFile) -> Offer {
        Offer { name: file_name(file), bytes: file.bytes, meta: file.meta.clone() }
    }

    /// Index of the last entry in it.
    pub fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |l| l.index)
    }
}

/// The name that identifies a snapshot.
pub fn file_name(file: &SnapshotFile) -> String {
    file.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

type MayServe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What this node gives to others of its snapshots.
pub struct Serving {
    pub snapshots: Arc<Snapshots>,
    view: View,
    bandwidth: Bandwidth,
    /// Whose turn it is to build one.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// `Err` says why nobody may take this node's state.
    may_serve: MayServe,
    /// Set once Raft runs: it is told of new snapshots.
    raft: OnceLock<Raft>,
    held: Mutex<HashMap<String, Held>>,
    /// What a peer called damaged, and was looked at then.
    suspected: Mutex<HashMap<String, Instant>>,
}

struct Held {
    file: SnapshotFile,
    until: Instant,
}

impl Serving {
    /// `bytes_per_second`: for all transfers together; 0: no cap.
    pub fn new(snapshots: Arc<Snapshots>, view: View, bytes_per_second: u64, may_serve: MayServe) -> Arc<Serving> {
        let bandwidth = Bandwidth::new(bytes_per_second);
        Arc::new(Serving {
            snapshots,
            view,
            bandwidth,
            turn: Arc::default(),
            may_serve,
            raft: OnceLock::new(),
            held: Mutex::default(),
            suspected: Mutex::default(),
        })
    }

    pub fn set_raft(&self, raft: Raft) {
        assert!(self.raft.set(raft).is_ok(), "set once, when Raft starts");
    }

    /// Whether anybody may be given this node's state. An error says why not.
    pub fn may_serve(&self) -> Result<(), String> {
        (self.may_serve)()
    }

    /// The newest snapshot, if it covers `index`; else one that is built now, if that takes no longer than `within`. The
    /// text of an error says why there is none yet, or never will be.
    pub async fn at_least(&self, index: u64, within: Duration) -> Result<SnapshotFile, String> {
        (self.may_serve)()?;
        if let Some(file) = self.newest(index) {
            return Ok(file);
        }
        let raft = self.raft.get().ok_or("this node is starting")?;
        let mut view = self.view.clone();
        let applied = view.wait_for(|s| s.applied_index() >= index.max(1));
        let caught_up = timeout(CATCH_UP, applied).await.is_ok_and(|state| state.is_ok());
        if !caught_up {
            let applied = self.view.borrow().applied_index();
            return Err(format!("this node has applied only up to entry {applied}, not {index}"));
        }
        match timeout(within, self.build(index, raft.clone())).await {
            Ok(built) => built,
            Err(_) => Err("a snapshot is being built; ask again".into()),
        }
    }

    /// One at a time; who waits finds what another has built. What was begun is built even when nobody waits any more.
    async fn build(&self, index: u64, raft: Raft) -> Result<SnapshotFile, String> {
        let turn = self.turn.clone().lock_owned().await;
        if let Some(file) = self.newest(index) {
            return Ok(file);
        }
        let (snapshots, state) = (self.snapshots.clone(), self.view.borrow().clone());
        // Waiting for the turn took its time.
        (self.may_serve)()?;
        let building = tokio::spawn(async move {
            let _turn = turn;
            let built = snapshots.build_apart(state).await;
            // An error says that openraft has stopped, and the node with it.
            let _ = raft.trigger().snapshot().await;
            built
        });
        match building.await {
            Ok(Ok(file)) => (self.may_serve)().map(|()| file),
            Ok(Err(e)) => Err(format!("no snapshot can be made: {e}")),
            Err(e) => Err(format!("no snapshot can be made: {e}")),
        }
    }

    fn newest(&self, index: u64) -> Option<SnapshotFile> {
        self.snapshots.kept().into_iter().next().filter(|s| s.meta.last_log_id.is_some_and(|l| l.index >= index))
    }

    /// For [`super::message::Call::OfferSnapshot`].
    pub async fn offer(&self, at_least: u64) -> Answer {
        match self.at_least(at_least, BUILD_WITHIN).await {
            Ok(file) => {
                let offer = Offer::of(&file);
                self.hold(file);
                Answer::SnapshotOffered(Box::new(offer))
            }
            Err(why) => Answer::Refused(why),
        }
    }

    /// Keeps the file open, so that it can be fetched to its end even when newer ones have replaced it.
    pub fn hold(&self, file: SnapshotFile) {
        let mut held = self.held.lock().expect("no code panics under this lock");
        let now = Instant::now();
        held.retain(|_, h| h.until > now);
        held.insert(file_name(&file), Held { file, until: now + HELD });
    }

    fn find(&self, name: &str) -> Option<SnapshotFile> {
        let held = self.held.lock().expect("no code panics under this lock").get(name).map(|h| h.file.clone());
        let file = held.or_else(|| self.snapshots.kept().into_iter().find(|s| file_name(s) == name))?;
        self.hold(file.clone());
        Some(file)
    }

    /// For [`super::message::Call::SnapshotPiece`]: the bytes from `offset`, when the bandwidth allows it.
    pub async fn piece(&self, name: &str, offset: u64, bytes: u32) -> io::Result<Message> {
        let piece = self.try_piece(name, offset, bytes).await;
        piece.inspect_err(|e| tracing::warn!("the snapshot {name} can't be read at {offset}: {e}"))
    }

    async fn try_piece(&self, name: &str, offset: u64, bytes: u32) -> io::Result<Message> {
        crate::failpoint!("transfer.serve", io);
        if let Err(why) = (self.may_serve)() {
            return Ok(Message::Answer(Answer::Refused(why)));
        }
        let Some(file) = self.find(name) else {
            return Ok(Message::Answer(Answer::SnapshotGone));
        };
        let end = offset.checked_add(u64::from(bytes)).filter(|end| *end <= file.bytes);
        if end.is_none() || bytes == 0 || bytes > PIECE_BYTES_MAX {
            let why = format!("{bytes} bytes from {offset} are not in the {} bytes of {name}", file.bytes);
            return Ok(Message::Answer(Answer::Refused(why)));
        }
        self.bandwidth.take(u64::from(bytes)).await;
        let read = read_at(file, offset, bytes as usize).await?;
        Ok(Message::Piece(read))
    }

    /// Waits until so many bytes of a snapshot may leave this node by another way (a backup).
    pub async fn pace(&self, bytes: u64) {
        self.bandwidth.take(bytes).await;
    }

    /// A peer says that what it fetched from here is damaged. If so, it is set aside and a new one is built.
    pub async fn suspect(&self, file: SnapshotFile) {
        {
            let mut suspected = self.suspected.lock().expect("no code panics under this lock");
            suspected.retain(|_, at| at.elapsed() < HELD);
            if suspected.insert(file_name(&file), Instant::now()).is_some() {
                return;
            }
        }
        let path = file.path.clone();
        match tokio::task::spawn_blocking(move || snapshot::verify(&path)).await {
            Ok(Ok(_)) => tracing::warn!("a peer found {} damaged; here it isn't", file.path.display()),
            Ok(Err(e @ SnapshotError::Damaged { .. })) => {
                tracing::error!("a peer found a snapshot damaged, and it is: {e}; building a new one");
                if let Err(why) = self.replace(&file, &e.to_string()).await {
                    tracing::warn!("no new snapshot yet: {why}");
                }
            }
            Ok(Err(e)) => tracing::warn!("a peer found a snapshot damaged, which can't be read now: {e}"),
            Err(e) => tracing::warn!("{} was not verified: {e}", file.path.display()),
        }
    }

    /// Sets a damaged snapshot aside when there is another one in its place: a leader whose log was purged must always
    /// have one to give, or openraft stops it.
    async fn replace(&self, damaged: &SnapshotFile, why: &str) -> Result<(), String> {
        (self.may_serve)()?;
        let raft = self.raft.get().ok_or("this node is starting")?;
        let turn = self.turn.clone().lock_owned().await;
        let (snapshots, state) = (self.snapshots.clone(), self.view.borrow().clone());
        let (damaged, why) = (damaged.clone(), why.to_string());
        let replacing = tokio::spawn(async move {
            let _turn = turn;
            snapshots.build_in_place_of(state, &damaged).await.map_err(|e| e.to_string())?;
            snapshots.set_aside(&damaged, &why).map_err(|e| e.to_string())
        });
        replacing.await.map_err(|e| e.to_string())??;
        let _ = raft.trigger().snapshot().await;
        Ok(())
    }
}

/// A positioned read, on a thread that may block. Fewer bytes than asked for are an error.
pub async fn read_at(file: SnapshotFile, offset: u64, bytes: usize) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; bytes];
        file.file.read_exact_at(&mut buffer, offset)?;
        Ok::<_, io::Error>(Bytes::from(buffer))
    });
    read.await.map_err(io::Error::other)?
}
