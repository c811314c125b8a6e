//! Accepts connections, bounds their number, and ends them. Knows no HTTP; `connection.rs` comes next.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::body::BodyBudget;
use super::connection::{self, LINGER};
use super::{Api, HttpLimits, HttpMetrics};

/// How long accepting rests when the operating system has no descriptor or memory left: the backlog keeps the
/// clients, and a loop without rest would take the CPU that is needed to close connections.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The client listener, accepting until it is shut down or dropped (which cuts all connections).
pub struct Server {
    room: Arc<Room>,
}

/// Where the server is in its life. Only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum Stage {
    Serving = 0,
    /// No new requests; those in flight are finished.
    Draining = 1,
    /// Everything is dropped.
    Cutting = 2,
}

/// What all connections share.
pub(super) struct Room {
    pub(super) limits: HttpLimits,
    pub(super) metrics: Arc<HttpMetrics>,
    pub(super) bodies: BodyBudget,
    stage: AtomicU8,
    /// The connections' tasks. Locked when one begins, ends, or when the stage changes; never for a request.
    tasks: Mutex<HashMap<u64, Waker>>,
    next_task: AtomicU64,
    slots: Arc<Semaphore>,
    stop_accepting: Notify,
}

/// The room and what is behind it.
pub(super) struct App<A> {
    pub(super) room: Arc<Room>,
    pub(super) api: Arc<A>,
}

/// A connection's task in the list; takes itself out.
pub(super) struct Task<'a> {
    room: &'a Room,
    number: u64,
}

impl Server {
    /// Serves clients on `listener` until [`Server::shutdown`]. Must be called on a tokio runtime.
    ///
    /// # Panics
    /// If `limits.header_bytes_max` is under 8192 or `limits.connections_max` is 0 or over 2^32 − 1.
    pub fn start<A: Api>(listener: TcpListener, api: Arc<A>, limits: HttpLimits) -> Server {
        assert!(limits.header_bytes_max >= 8192, "hyper's buffer has at least 8192 bytes");
        assert!((1..=u32::MAX as usize).contains(&limits.connections_max), "connections_max is out of range");
        let room = Arc::new(Room {
            metrics: Arc::new(HttpMetrics::default()),
            bodies: BodyBudget::default(),
            stage: AtomicU8::new(Stage::Serving as u8),
            tasks: Mutex::default(),
            next_task: AtomicU64::new(0),
            slots: Arc::new(Semaphore::new(limits.connections_max)),
            stop_accepting: Notify::new(),
            limits,
        });
        tokio::spawn(accept_all(listener, Arc::new(App { room: room.clone(), api })));
        Server { room }
    }

    pub fn metrics(&self) -> Arc<HttpMetrics> {
        self.room.metrics.clone()
    }

    /// Stops accepting, closes idle connections, and lets the requests in flight finish, for at most `deadline`; then
    /// cuts what is left. Returns how many connections were cut.
    pub async fn shutdown(self, deadline: Duration) -> usize {
        self.room.enter(Stage::Draining);
        if tokio::time::timeout(deadline, self.room.all_ended()).await.is_ok() {
            return 0;
        }
        let left = self.room.tasks().len();
        self.room.enter(Stage::Cutting);
        // A cut task ends as soon as it is polled; only one that already lingers may take this long.
        let _ = tokio::time::timeout(LINGER + Duration::from_secs(1), self.room.all_ended()).await;
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.room.enter(Stage::Cutting);
    }
}

impl Room {
    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(SeqCst) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Cutting,
        }
    }

    fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, SeqCst);
        self.stop_accepting.notify_one();
        // After the store: a task that isn't in the list yet will see the new stage when it has entered itself.
        self.tasks().values().for_each(Waker::wake_by_ref);
    }

    async fn all_ended(&self) {
        let all = self.limits.connections_max as u32;
        // The semaphore is never closed, so this can't fail.
        let _ = self.slots.acquire_many(all).await;
    }

    /// From now on a change of the stage wakes `waker`'s task.
    pub(super) fn enlist(&self, waker: &Waker) -> Task<'_> {
        let number = self.next_task.fetch_add(1, Relaxed);
        self.tasks().insert(number, waker.clone());
        Task { room: self, number }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.room.tasks().remove(&self.number);
    }
}

async fn accept_all<A: Api>(listener: TcpListener, app: Arc<App<A>>) {
    while let Some((socket, slot)) = accept_one(&listener, &app.room).await {
        app.room.metrics.connections_accepted.fetch_add(1, Relaxed);
        let app = app.clone();
        tokio::spawn(async move {
            connection::serve(socket, app).await;
            drop(slot);
        });
    }
}

/// `None` when the server stops.
async fn accept_one(listener: &TcpListener, room: &Room) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let next = async {
        let slot = room.slots.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((socket, _)) => return Some((socket, slot)),
                Err(error) => accept_failed(room, error).await,
            }
        }
    };
    tokio::select! {
        biased;
        () = room.stop_accepting.notified() => None,
        accepted = next => accepted,
    }
}

async fn accept_failed(room: &Room, error: io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // That client gave up; the next one is not concerned.
    if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        return;
    }
    let earlier = room.metrics.accept_errors.fetch_add(1, Relaxed);
    // Ten a second would fill the log.
    if earlier.is_multiple_of(100) {
        tracing::error!(%error, earlier, "can't accept clients; if descriptors ran out, raise the limit (ulimit -n)");
    }
    tokio::time::sleep(ACCEPT_REST).await;
}
