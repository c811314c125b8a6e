//! Step 2 of 8: group commit. Requests wait in one queue; a batch is sealed when no batch of this node is on its way
//! (the pipe is idle), or one with no more commands, else at `max_ops`, `max_bytes` or `max_delay`. So one client waits
//! for nothing but its commit, and with many clients batches grow. A batch that a client made goes on as it is, at
//! once. Step 8 ends in `tickets.rs`. Never looks at a reply, never knows the log. Next: `raft/proposals.rs`.

mod reads;
mod tickets;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use raftlet_machine::{Batch, Request};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::{Batching, BatchingConfig};
use crate::metrics::{Metrics, SealReason};
use crate::outcome::{Answer, BatchAnswer, Refusal};

pub use reads::{ReadPort, Reads};
pub use tickets::{Fate, Tickets};

use tickets::Waiters;

/// What a request weighs in the queue beside its bytes: its headers' and its waiter's memory, roughly.
const REQUEST_OVERHEAD_BYTES: usize = 256;
/// Before a batch that was refused is handed over again: a leader that lost its quorum refuses at once.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// The way to the log. Implemented by `raft/proposals.rs`.
pub trait Propose: Send + Sync + 'static {
    /// Hands an archived batch to the leader, waiting for one as long as it takes. Returns the term it was handed
    /// over for: it is applied as an entry of that term, or never. None: this node is stopping.
    fn propose(&self, sequence: u64, batch: Bytes) -> impl Future<Output = Option<u64>> + Send;

    /// Why it makes no sense to hand over a batch again that was refused; none: it does.
    fn refusal(&self) -> Option<Refusal> {
        None
    }
}

/// Where requests wait. Cloning is cheap.
#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::UnboundedSender<Submitted>,
    room: Arc<Room>,
    tickets: Arc<Tickets>,
}

/// The byte limit on all requests that were taken and not yet answered.
struct Room {
    used: AtomicUsize,
    limit: usize,
    closed: AtomicBool,
    close: Notify,
}

/// Gives its room back when the request was answered or given up.
pub struct Place {
    room: Arc<Room>,
    bytes: usize,
}

/// Whoever waits for one command's answer.
pub struct Waiter {
    answer: oneshot::Sender<Result<Answer, Refusal>>,
    _place: Place,
}

/// Whoever waits for the answers to a batch of its own.
pub(super) struct BatchWaiter {
    answer: oneshot::Sender<Result<BatchAnswer, Refusal>>,
    commands: usize,
    _place: Place,
}

enum Submitted {
    Command(Waiting),
    Batch(WaitingBatch),
}

struct Waiting {
    request: Request,
    waiter: Waiter,
    bytes: usize,
    since: Instant,
}

/// A batch that is one already.
struct WaitingBatch {
    archive: Bytes,
    waiter: BatchWaiter,
    since: Instant,
}

impl Batcher {
    /// Starts the sealing task. `tickets` must be the one that the state machine and Raft tell of what happened.
    pub fn start<P: Propose>(
        config: BatchingConfig,
        queue_bytes_max: usize,
        deadline: Duration,
        port: Arc<P>,
        tickets: Arc<Tickets>,
        metrics: Arc<Metrics>,
    ) -> Batcher {
        let (queue, waiting) = mpsc::unbounded_channel();
        let room = Room::new(queue_bytes_max);
        let sealer = Sealer {
            config,
            deadline,
            port,
            tickets: tickets.clone(),
            metrics,
            room: room.clone(),
            waiting,
            queue: VecDeque::new(),
            bytes: 0,
            gather: None,
        };
        tokio::spawn(sealer.run());
        Batcher { queue, room, tickets }
    }

    /// Takes a command and returns its answer. Dropping the future gives the request up if it isn't sealed yet.
    pub async fn submit(&self, request: Request) -> Result<Answer, Refusal> {
        let bytes = weight(&request);
        let place = self.room.take(bytes)?;
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { answer, _place: place };
        let waiting = Waiting { request, waiter, bytes, since: Instant::now() };
        let since = waiting.since;
        self.queue.send(Submitted::Command(waiting)).map_err(|_| Refusal::ShuttingDown)?;
        // Dropped without an answer: it may have been sealed and logged.
        answered.await.unwrap_or_else(|_| Err(Refusal::Timeout { waited_ms: since.elapsed().as_millis() as u64 }))
    }

    /// Takes a batch that a client made: a valid archive of this many commands, all of them checked. It goes on as it
    /// is, whatever the settings of batching are. Dropping the future gives it up if it isn't on its way yet.
    pub async fn submit_batch(&self, archive: Bytes, commands: usize) -> Result<BatchAnswer, Refusal> {
        let place = self.room.take(REQUEST_OVERHEAD_BYTES + archive.len())?;
        let (answer, answered) = oneshot::channel();
        let waiter = BatchWaiter { answer, commands, _place: place };
        let since = Instant::now();
        let waiting = WaitingBatch { archive, waiter, since };
        self.queue.send(Submitted::Batch(waiting)).map_err(|_| Refusal::ShuttingDown)?;
        answered.await.unwrap_or_else(|_| Err(Refusal::Timeout { waited_ms: since.elapsed().as_millis() as u64 }))
    }

    /// Random, of this start of the node; it stands in the ids of its batches.
    pub fn boot(&self) -> u64 {
        self.tickets.id(0).boot
    }

    /// Bytes of the requests that are not answered yet.
    pub fn queue_bytes(&self) -> usize {
        self.room.used.load(Relaxed)
    }

    /// Takes no more commands, seals those that wait at once, and returns when all were answered or `within` is over.
    pub async fn drain(&self, within: Duration) {
        self.room.closed.store(true, Relaxed);
        self.room.close.notify_one();
        let _ = tokio::time::timeout(within, async {
            self.queue.closed().await;
            self.tickets.all_closed().await;
        })
        .await;
    }
}

impl Room {
    fn new(limit: usize) -> Arc<Room> {
        Arc::new(Room { used: AtomicUsize::new(0), limit, closed: AtomicBool::new(false), close: Notify::new() })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Result<Place, Refusal> {
        if self.closed.load(Relaxed) {
            return Err(Refusal::ShuttingDown);
        }
        let used = self.used.fetch_add(bytes, Relaxed);
        let place = Place { room: self.clone(), bytes };
        if used + bytes > self.limit {
            return Err(Refusal::Overloaded { queued_bytes: used, limit_bytes: self.limit });
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Relaxed);
    }
}

impl Waiter {
    /// The client doesn't wait any more.
    fn gone(&self) -> bool {
        self.answer.is_closed()
    }

    pub fn answer(self, answer: Result<Answer, Refusal>) {
        let _ = self.answer.send(answer);
    }
}

impl BatchWaiter {
    fn answer(self, answer: Result<BatchAnswer, Refusal>) {
        let _ = self.answer.send(answer);
    }
}

fn weight(request: &Request) -> usize {
    let headers: usize = request.headers.iter().map(|h| h.name.len() + h.value.len()).sum();
    REQUEST_OVERHEAD_BYTES + request.path.len() + request.query.len() + headers + request.body.len()
}

struct Sealer<P> {
    config: BatchingConfig,
    /// A command is answered within this, one way or the other.
    deadline: Duration,
    port: Arc<P>,
    tickets: Arc<Tickets>,
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    waiting: mpsc::UnboundedReceiver<Submitted>,
    queue: VecDeque<Waiting>,
    /// Of the requests in `queue`.
    bytes: usize,
    /// The pipe is idle, but those who were just answered are waited for until then.
    gather: Option<Instant>,
}

impl<P: Propose> Sealer<P> {
    async fn run(mut self) {
        loop {
            self.take_ready();
            if self.room.closed.load(Relaxed) {
                self.waiting.close();
                self.take_ready();
                while !self.queue.is_empty() {
                    self.seal(SealReason::Shutdown);
                }
                return;
            }
            if let Some(reason) = self.due() {
                self.seal(reason);
                continue;
            }
            let delay = self.queue.front().map(|w| w.since + self.config.max_delay);
            let alarm = [delay, self.gather].into_iter().flatten().min();
            tokio::select! {
                more = self.waiting.recv() => match more {
                    Some(more) => self.take(more),
                    None => return,
                },
                () = self.tickets.room_in_pipe(self.queue.len()), if self.waits_for_pipe() => {}
                () = tokio::time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
                () = self.room.close.notified() => {}
            }
        }
    }

    /// Room in the pipe would seal what is queued.
    fn waits_for_pipe(&self) -> bool {
        self.config.mode == Batching::Adaptive && !self.queue.is_empty() && self.gather.is_none()
    }

    fn take_ready(&mut self) {
        while let Ok(more) = self.waiting.try_recv() {
            self.take(more);
        }
    }

    fn take(&mut self, submitted: Submitted) {
        match submitted {
            Submitted::Command(waiting) => {
                self.bytes += waiting.bytes;
                self.queue.push_back(waiting);
            }
            // Nothing of it has happened, so a client that is gone is not worth a commit.
            Submitted::Batch(batch) if batch.waiter.answer.is_closed() => {}
            Submitted::Batch(WaitingBatch { archive, waiter, since }) => {
                self.metrics.sealed(SealReason::Bulk, waiter.commands);
                self.send(archive, Waiters::Whole(waiter), since);
            }
        }
    }

    /// Why the next batch must be sealed now, if it must.
    fn due(&mut self) -> Option<SealReason> {
        // A client that is gone is not worth a commit; nothing of its command has happened.
        while let Some(w) = self.queue.pop_front_if(|w| w.waiter.gone()) {
            self.bytes -= w.bytes;
        }
        self.gather = None;
        let oldest = self.queue.front()?.since;
        if self.config.mode == Batching::Off {
            Some(SealReason::Single)
        } else if self.queue.len() >= self.config.max_ops {
            Some(SealReason::Ops)
        } else if self.bytes >= self.config.max_bytes {
            Some(SealReason::Bytes)
        } else if oldest.elapsed() >= self.config.max_delay {
            Some(SealReason::Delay)
        } else if self.config.mode == Batching::Adaptive && self.tickets.is_pipe_idle() {
            self.gather = self.tickets.gather_until(self.queue.len());
            self.gather.is_none().then_some(SealReason::Idle)
        } else if self.config.mode == Batching::Adaptive && self.tickets.may_overlap(self.queue.len()) {
            Some(SealReason::Overlap)
        } else {
            None
        }
    }

    /// Seals one batch: archives it, once, and sends it on its way.
    fn seal(&mut self, reason: SealReason) {
        let max_ops = if self.config.mode == Batching::Off { 1 } else { self.config.max_ops };
        let mut commands = Vec::with_capacity(self.queue.len().min(max_ops));
        let mut waiters = Vec::with_capacity(commands.capacity());
        let mut bytes = 0;
        let now = Instant::now();
        let mut oldest = now;
        while commands.len() < max_ops && bytes < self.config.max_bytes {
            let Some(Waiting { request, waiter, bytes: weight, since }) = self.queue.pop_front() else { break };
            self.bytes -= weight;
            if waiter.gone() {
                continue;
            }
            bytes += weight;
            oldest = oldest.min(since);
            self.metrics.queue_seconds.observe((now - since).as_secs_f64());
            commands.push(request);
            waiters.push(waiter);
        }
        if commands.is_empty() {
            return;
        }
        self.metrics.sealed(reason, commands.len());
        self.send(Batch { commands }.to_bytes().into(), Waiters::Each(waiters), oldest);
    }

    /// Sends a batch on its way. `start`: when its oldest command arrived.
    fn send(&self, archive: Bytes, waiters: Waiters, start: Instant) {
        let sequence = self.tickets.issue(waiters);
        let deadline = start + self.deadline;
        let (port, tickets, metrics) = (self.port.clone(), self.tickets.clone(), self.metrics.clone());
        tokio::spawn(async move {
            let sealed = Instant::now();
            if see_through(port, tickets, sequence, archive, start, deadline).await {
                metrics.commit_seconds.observe(sealed.elapsed().as_secs_f64());
            }
        });
    }
}

/// Follows one batch until it was applied or its time is up. It is handed over again only when it is certain that it
/// was not logged. True: it was applied.
async fn see_through<P: Propose>(
    port: Arc<P>,
    tickets: Arc<Tickets>,
    sequence: u64,
    archive: Bytes,
    start: Instant,
    deadline: Instant,
) -> bool {
    let waited_ms = || start.elapsed().as_millis() as u64;
    let no_leader = || port.refusal().unwrap_or(Refusal::NoLeader { waited_ms: waited_ms() });
    let refuse = |refusal: Refusal| {
        tickets.refuse(sequence, &refusal);
        false
    };
    loop {
        match tokio::time::timeout_at(deadline, port.propose(sequence, archive.clone())).await {
            // Cut off before it was handed over, and what was handed over earlier was certainly not logged.
            Err(_) => return refuse(no_leader()),
            Ok(None) => return refuse(Refusal::ShuttingDown),
            Ok(Some(term)) => tickets.handed_over(sequence, term),
        }
        match tokio::time::timeout_at(deadline, tickets.fate(sequence)).await {
            Ok(Fate::Applied) => return true,
            Ok(Fate::NotLogged) => {
                if Instant::now() + REFUSED_PAUSE >= deadline || port.refusal().is_some() {
                    return refuse(no_leader());
                }
                tokio::time::sleep(REFUSED_PAUSE).await;
                if !tickets.is_open(sequence) {
                    return false;
                }
            }
            Err(_) => return refuse(Refusal::Timeout { waited_ms: waited_ms() }),
        }
    }
}

#[cfg(test)]
mod tests;
