//! Steps 4 and 5 of 8: the durable Raft log. Owns sled (nothing else in the project knows it), the vote and the entries.
//! Never looks into a batch, never applies one. Reading order: `store.rs` (openraft's calls) → `view.rs`, `tail.rs` →
//! `queue.rs` → `writer/` → `journal.rs`, `checkpoint.rs`, `pending.rs`, `parts.rs`, `keys.rs`, `stamp.rs`, `record.rs`, `group.rs`, `walk.rs`;
//! `open.rs` and `files.rs` at start.
//!
//! ```text
//! append ──► view (readable at once) ──► queue ──► writer: journal → fdatasync ──► callbacks, then sled
//!                                                    sled: flush → fdatasync, now and then
//! read   ◄── tail, else sled (below the tail, thus durable)
//! ```
//!
//! `space.rs` watches the disk, so that nobody appends where nothing can be written; `inspect.rs` reads a stopped log.
//!
//! Failpoints (`failpoint.rs`), in the order in which a commit meets them; all but the last seven also fail with an error:
//!
//! | name | where |
//! |---|---|
//! | `log.vote` | a vote is taken into a commit |
//! | `log.truncate` | a truncation is |
//! | `log.purge` | a purge is |
//! | `log.before-write` | nothing of the commit is anywhere |
//! | `log.before-sync` | the kernel has it, the disk may not |
//! | `log.before-watermark` | it is durable, nobody knows |
//! | `log.before-flush` | sled is about to be synced; the kernel may not have what it has |
//! | `log.before-checkpoint` | the kernel has it, the disk may not |
//! | `log.purge-values` | some purged values are about to be deleted |
//! | `log.delete-beyond` | the log ends earlier, durably; what lay behind is about to be deleted |
//! | `log.after-sync` | it is durable, nobody was told |
//! | `log.open` | an existing log is about to be opened |
//! | `log.replayed` | sled has what only the journal had, but not durably |
//! | `log.create-begun` | only the unfinished marker of a new log is there |
//! | `log.create-before-sync` | a new log's data is written |
//! | `log.create-before-rename` | all of it is durable but the marker's name |
//! | `log.create-after-rename` | the name is not durable |

mod checkpoint;
mod files;
mod group;
mod inspect;
mod journal;
mod keys;
mod metrics;
mod open;
mod parts;
mod pending;
mod queue;
mod read;
mod record;
mod round_trip;
mod space;
mod stamp;
mod store;
mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod walk;
mod writer;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::{Notify, Semaphore, oneshot, watch};

pub use inspect::{Found, Place, Report, inspect};
pub use metrics::{Commit, CommitObserver, LogMetrics};
pub use open::OpenError;
pub use record::Damage;
#[doc(hidden)]
pub use round_trip::round_trip;
pub use space::{Shortage, Space, SpaceState};

use queue::{Ack, Op, Queued};
use view::View;
use writer::Writer;

use crate::raft::types::Entry;

/// The most values one leaf of sled's tree holds when it is rewritten as one message: it is split above 16, and a
/// sibling with up to 3 may be merged into it first.
const LEAF_VALUES_MAX: usize = 20;
/// What sled adds to a value in a leaf: key, lengths.
const VALUE_OVERHEAD_BYTES: usize = 64;
/// The queue's memory is counted in units of this many bytes.
const QUEUE_UNIT_BYTES: usize = 1024;

/// How a log is opened.
#[derive(Clone)]
pub struct LogOptions {
    /// Create a log if there is none. A node that had one must say `false`: then a missing log is an error.
    pub create: bool,
    /// sled's cache.
    pub cache_bytes: u64,
    /// Durable entries kept in memory for followers and the state machine. Those not yet durable come on top.
    pub tail_bytes_max: usize,
    /// Bytes of entries that may wait for the writer; more make `append` wait.
    pub queue_bytes_max: usize,
    /// Bytes of entries after which the writer takes no further operation into one commit.
    pub batch_bytes_max: usize,
    /// Bytes of entries read at once, but at least one entry.
    pub read_bytes_max: usize,
    /// sled's segment: a power of two, at most 16 MiB. Only for a new log.
    pub segment_bytes: usize,
    /// The largest value in the tree. 20 of them must fit into a quarter of a segment. Only for a new log.
    pub chunk_bytes: usize,
    /// Told of each commit.
    pub on_commit: Option<CommitObserver>,
    /// Runs before each fdatasync; may block, and its error is taken for the fdatasync's.
    #[cfg(test)]
    pub before_sync: Option<Arc<dyn Fn() -> io::Result<()> + Send + Sync>>,
    /// Told of sled's checkpoints; may block.
    #[cfg(test)]
    pub on_checkpoint: Option<checkpoint::Observer>,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            create: true,
            cache_bytes: 64 << 20,
            tail_bytes_max: 16 << 20,
            queue_bytes_max: 32 << 20,
            batch_bytes_max: 8 << 20,
            read_bytes_max: 1 << 20,
            segment_bytes: 8 << 20,
            chunk_bytes: 16 << 10,
            on_commit: None,
            #[cfg(test)]
            before_sync: None,
            #[cfg(test)]
            on_checkpoint: None,
        }
    }
}

impl LogOptions {
    fn check(&self) -> Result<(), String> {
        check_sizes(self.segment_bytes, self.chunk_bytes)?;
        let units = self.queue_bytes_max / QUEUE_UNIT_BYTES;
        if units == 0 || units > Semaphore::MAX_PERMITS.min(u32::MAX as usize) {
            return Err(format!("queue_bytes_max is {}, at least {QUEUE_UNIT_BYTES} are needed", self.queue_bytes_max));
        }
        Ok(())
    }
}

/// A message over a quarter of a segment becomes a file that sled never syncs: no leaf may be that large.
fn check_sizes(segment_bytes: usize, chunk_bytes: usize) -> Result<(), String> {
    if !segment_bytes.is_power_of_two() || segment_bytes > 16 << 20 {
        return Err(format!("segment_bytes is {segment_bytes}, it must be a power of two and at most 16 MiB"));
    }
    if chunk_bytes <= record::CHUNK_HEADER_BYTES {
        return Err(format!("chunk_bytes is {chunk_bytes}, it must be over {}", record::CHUNK_HEADER_BYTES));
    }
    if LEAF_VALUES_MAX * (chunk_bytes + VALUE_OVERHEAD_BYTES) >= segment_bytes / 4 {
        return Err(format!(
            "{LEAF_VALUES_MAX} chunks of {chunk_bytes} bytes don't fit into a quarter of a segment of {segment_bytes}"
        ));
    }
    Ok(())
}

/// What the handles and the writer share.
struct Shared {
    /// Calls that hand something to the writer take turns, so that the view and the queue see the same order.
    calls: Mutex<()>,
    view: Mutex<View>,
    /// Readers and the writer take turns at the tree (sled issue 1412 is a hang of many threads); a flush is outside.
    /// `None` after the log was closed.
    disk: Mutex<Option<sled::Tree>>,
    metrics: Arc<LogMetrics>,
    /// Told of each append.
    appended: Notify,
    failed: watch::Sender<Option<Arc<str>>>,
    options: LogOptions,
    /// Of this log, which may have been created with other options.
    chunk_bytes: usize,
}

/// A handle of the log: openraft's storage and its reader. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct SledLog {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Queued>,
    queue_budget: Arc<Semaphore>,
}

impl SledLog {
    /// Opens the log in the folder `dir` and reads all of it once to verify it. Blocks: seconds for a large log.
    pub fn open(dir: &Path, options: LogOptions) -> Result<SledLog, OpenError> {
        let opened = open::open(dir, &options)?;
        let metrics = LogMetrics {
            bytes_at_open: opened.bytes.into(),
            total_at_snapshot: opened.bytes.into(),
            ..LogMetrics::default()
        };
        let start = opened.start;
        let view = View::new(start.bounds, start.vote, start.committed, options.tail_bytes_max);
        let (queue, receiver) = mpsc::channel();
        let queue_budget = Arc::new(Semaphore::new(options.queue_bytes_max / QUEUE_UNIT_BYTES));
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            view: Mutex::new(view),
            disk: Mutex::new(Some((*start.db).clone())),
            metrics: Arc::new(metrics),
            appended: Notify::new(),
            failed: watch::Sender::new(None),
            options,
            chunk_bytes: opened.chunk_bytes,
        });
        let failed = |error| OpenError::Io { dir: dir.to_owned(), error };
        let writer = Writer::new(shared.clone(), receiver, start).map_err(failed)?;
        std::thread::Builder::new().name("log-writer".into()).spawn(move || writer.run()).map_err(failed)?;
        Ok(SledLog { shared, queue, queue_budget })
    }

    /// Holds a stopped node's log, so that the node can't start, until the file is dropped. Changes nothing.
    pub fn hold(dir: &Path) -> Result<std::fs::File, OpenError> {
        let paths = files::Paths::new(dir);
        if !paths.dir.is_dir() {
            return Err(OpenError::Absent(paths.dir));
        }
        let lock = files::try_lock(&paths.lock).map_err(|error| OpenError::Io { dir: dir.to_owned(), error })?;
        lock.ok_or(OpenError::Locked(paths.dir))
    }

    /// Makes everything queued durable, stops the writer and releases the folder. Later calls on any handle fail.
    pub async fn close(&self) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        {
            let call = lock(&self.shared.calls);
            let mut view = lock(&self.shared.view);
            if view.closed {
                return Ok(());
            }
            view.closed = true;
            self.send(call, view, Op::Close, Ack::Done(tx))?;
        }
        rx.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Counters; they go on counting while this is held.
    pub fn metrics(&self) -> Arc<LogMetrics> {
        self.shared.metrics.clone()
    }

    /// Resolves when entries were appended since the last call. For one caller at a time.
    pub async fn appended(&self) {
        self.shared.appended.notified().await;
    }

    /// The entry, if it is in memory, as the newest ones are.
    pub fn in_memory(&self, index: u64) -> Option<Entry> {
        lock(&self.shared.view).tail.get(index)
    }

    /// Resolves when a write or a sync failed, with the reason: the node must stop. Otherwise never.
    pub async fn failed(&self) -> Arc<str> {
        let mut failed = self.shared.failed.subscribe();
        loop {
            if let Some(failure) = failed.borrow_and_update().clone() {
                return failure;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Hands an operation to the writer. The view's lock is given back before that: the writer is woken and needs it
    /// at once, on the same processor perhaps, in place of whoever holds it.
    fn send(&self, call: MutexGuard<'_, ()>, mut view: MutexGuard<'_, View>, op: Op, ack: Ack) -> io::Result<()> {
        view.ticket += 1;
        view.writer_sleeps = false;
        let ticket = view.ticket;
        drop(view);
        let sent = self.queue.send(Queued { ticket, op, ack });
        drop(call);
        sent.map_err(|mpsc::SendError(queued)| {
            queued.ack.answer(Err(self.gone()));
            self.gone()
        })
    }

    /// Refuses when nothing can be written any more.
    fn check_writable(&self, view: &View) -> io::Result<()> {
        if view.closed || view.failure.is_some() { Err(self.gone_with(view)) } else { Ok(()) }
    }

    fn gone(&self) -> io::Error {
        let view = lock(&self.shared.view);
        self.gone_with(&view)
    }

    fn gone_with(&self, view: &View) -> io::Error {
        match &view.failure {
            Some(failure) => failed_error(failure),
            None => io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed"),
        }
    }
}

impl fmt::Debug for SledLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = lock(&self.shared.view).bounds;
        f.debug_struct("SledLog").field("purged", &bounds.purged).field("last", &bounds.last).finish()
    }
}

fn failed_error(failure: &str) -> io::Error {
    io::Error::other(format!("the log can't be written any more: {failure}"))
}

fn sled_error(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other),
    }
}

/// A panic while a lock is held leaves nothing half done in what these locks guard: checks come before changes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
