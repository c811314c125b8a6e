//! What a read waits for. The quorum and the state are doubles: a real one can't be held between two steps.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use raftlet_machine::{Method, Replies, Reply};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// A node whose quorum confirms, and whose state reaches, what it is told.
struct Double {
    confirmed: watch::Sender<Option<u64>>,
    applied: watch::Sender<u64>,
    asked: AtomicUsize,
}

impl ReadPort for Double {
    async fn read_index(&self) -> Option<u64> {
        self.asked.fetch_add(1, SeqCst);
        *self.confirmed.subscribe().wait_for(Option::is_some).await.unwrap()
    }

    async fn applied(&self, index: u64) {
        self.applied.subscribe().wait_for(|applied| *applied >= index).await.unwrap();
    }

    async fn run(&self, _: Vec<u8>, count: usize) -> Result<(u64, u64, Vec<CommandReply>), String> {
        let reply = Reply { status: 200, content_type: String::new(), headers: vec![], body: vec![] };
        let archive = Replies { replies: vec![reply; count] }.to_bytes().into();
        Ok((*self.applied.borrow(), 1, CommandReply::split(archive).unwrap()))
    }
}

struct Bench {
    reads: Reads,
    port: Arc<Double>,
}

impl Bench {
    fn new() -> Bench {
        let port = Arc::new(Double {
            confirmed: watch::Sender::new(None),
            applied: watch::Sender::new(3),
            asked: AtomicUsize::new(0),
        });
        Bench { reads: Reads::start(port.clone(), 1 << 20, DEADLINE, Arc::default()), port }
    }

    /// The index of the state that answers.
    fn query(&self, stale: bool) -> JoinHandle<Result<u64, Refusal>> {
        let reads = self.reads.clone();
        let (path, query) = ("/k".into(), String::new());
        let request = Request { method: Method::Get, path, query, headers: vec![], body: vec![] };
        tokio::spawn(async move { reads.query(request, stale).await.map(|answer| answer.index) })
    }
}

/// Lets every task run until all wait.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_the_quorum_and_then_for_the_state() {
    let b = Bench::new();
    let read = b.query(false);
    settle().await;
    assert_eq!((b.port.asked.load(SeqCst), read.is_finished()), (1, false), "no quorum has confirmed it");
    b.port.confirmed.send_replace(Some(7));
    settle().await;
    b.port.applied.send_replace(6);
    settle().await;
    assert!(!read.is_finished(), "the state lacks what was acknowledged");
    b.port.applied.send_replace(7);
    assert_eq!(read.await.unwrap(), Ok(7));
}

#[tokio::test(start_paused = true)]
async fn a_read_joins_no_round_that_began_before_it() {
    let b = Bench::new();
    let first = b.query(false);
    settle().await;
    let (second, third) = (b.query(false), b.query(false));
    settle().await;
    assert_eq!(b.port.asked.load(SeqCst), 2, "one round for the two that came later");
    b.port.confirmed.send_replace(Some(3));
    for read in [first, second, third] {
        assert_eq!(read.await.unwrap(), Ok(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_asks_nobody() {
    let b = Bench::new();
    assert_eq!(b.query(true).await.unwrap(), Ok(3));
    assert_eq!(b.port.asked.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_too_long_is_told_for_what() {
    let b = Bench::new();
    let waited_ms = DEADLINE.as_millis() as u64;
    assert_eq!(b.query(false).await.unwrap(), Err(Refusal::NoLeader { waited_ms }));
    b.port.confirmed.send_replace(Some(4));
    assert_eq!(b.query(false).await.unwrap(), Err(Refusal::Lagging { waited_ms }));
}
