//! What a read waits for. The quorum and the state are doubles: a real one can't be held between two steps.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use raftlet_machine::{Method, Replies, Reply};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::outcome::CommandReply;

const DEADLINE: Duration = Duration::from_secs(10);

/// A node whose quorum confirms, and whose state reaches, what it is told.
struct Double {
    confirmed: watch::Sender<Option<u64>>,
    applied: watch::Sender<u64>,
    asked: AtomicUsize,
    /// What was run, with the index it was run at: the later runs of a batch see a newer state.
    runs: Mutex<Vec<(Run, u64)>>,
    reply: Reply,
}

impl ReadPort for Double {
    async fn read_index(&self) -> Option<u64> {
        self.asked.fetch_add(1, SeqCst);
        *self.confirmed.subscribe().wait_for(Option::is_some).await.unwrap()
    }

    async fn applied(&self, index: u64) {
        self.applied.subscribe().wait_for(|applied| *applied >= index).await.unwrap();
    }

    async fn run(&self, _: Bytes, run: Run) -> Result<(u64, u64, BatchReplies), String> {
        let archive = Replies { replies: vec![self.reply.clone(); run.positions.len()] }.to_bytes().into();
        let index = *self.applied.borrow() + u64::from(run.positions.start > 0);
        self.runs.lock().unwrap().push((run, index));
        Ok((index, 1, BatchReplies::whole(archive).unwrap()))
    }
}

struct Bench {
    reads: Reads,
    port: Arc<Double>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_replies(vec![])
    }

    /// Each reply has this body.
    fn with_replies(body: Vec<u8>) -> Bench {
        let port = Arc::new(Double {
            confirmed: watch::Sender::new(None),
            applied: watch::Sender::new(3),
            asked: AtomicUsize::new(0),
            runs: Mutex::default(),
            reply: Reply { status: 200, content_type: String::new(), headers: vec![], body },
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

    fn query_batch(&self, queries: usize, stale: bool) -> JoinHandle<Result<BatchAnswer, Refusal>> {
        let reads = self.reads.clone();
        tokio::spawn(async move { reads.query_batch(Bytes::from_static(b"an archive"), queries, stale).await })
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

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_the_quorum_too_and_is_run_in_parts_of_some_thousand() {
    let b = Bench::new();
    let read = b.query_batch(10_000, false);
    settle().await;
    assert_eq!((b.port.asked.load(SeqCst), b.port.runs.lock().unwrap().len()), (1, 0));
    b.port.confirmed.send_replace(Some(3));
    let answer = read.await.unwrap().unwrap();
    let runs: Vec<_> = b.port.runs.lock().unwrap().iter().map(|(run, index)| (run.positions.clone(), *index)).collect();
    assert_eq!(runs, [(0..4096, 3), (4096..8192, 4), (8192..10_000, 4)]);
    assert_eq!((answer.index, answer.replies.len()), (3, 10_000), "the oldest state that was read");
    // One that is small enough stays an archive, and a stale one asks nobody.
    let answer = b.query_batch(4096, true).await.unwrap().unwrap();
    assert!(matches!(answer.replies, BatchReplies::Whole(_)));
    assert_eq!(b.port.asked.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_too_long_is_refused_as_a_query_is() {
    let b = Bench::new();
    let waited_ms = DEADLINE.as_millis() as u64;
    assert_eq!(b.query_batch(1, false).await.unwrap().unwrap_err(), Refusal::NoLeader { waited_ms });
    b.port.confirmed.send_replace(Some(4));
    assert_eq!(b.query_batch(1, false).await.unwrap().unwrap_err(), Refusal::Lagging { waited_ms });
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_reads_is_bounded() {
    // A run of 4,096 reads 40 MiB.
    let b = Bench::with_replies(vec![7; 10 << 10]);
    let answer = b.query_batch(3 * 4096, true).await.unwrap().unwrap();
    assert_eq!(b.port.runs.lock().unwrap().len(), 2, "the third part isn't run");
    let budget = |reply: &CommandReply| matches!(reply, CommandReply::Failed(crate::outcome::Failure::BatchBudget));
    let replies = answer.replies.into_each();
    assert_eq!((replies.len(), replies.iter().filter(|r| budget(r)).count()), (3 * 4096, 4096));
    assert!(replies[2 * 4096..].iter().all(budget));
}
