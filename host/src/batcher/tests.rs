//! The sealing rules under paused time, and what becomes of batches that are refused, lost or late. The port to the
//! log is a double here: faults like a leader that refuses twice can't be had on demand from a real one.

mod bulk;
mod handed_over;

use std::sync::Mutex;
use std::time::Duration;

use raftlet_machine::{Method, Replies, Reply};
use tokio::task::JoinHandle;

use super::*;
use crate::outcome::{BatchReplies, CommandReply};
use crate::raft::codec::log_id;

const DEADLINE: Duration = Duration::from_secs(10);

/// Takes batches for the term it is told, and keeps them.
struct Port {
    term: Mutex<Option<u64>>,
    taken: Mutex<Vec<(u64, Bytes)>>,
    changed: Notify,
}

impl Propose for Port {
    async fn propose(&self, sequence: u64, batch: Bytes) -> Option<u64> {
        loop {
            let changed = self.changed.notified();
            let term = *self.term.lock().unwrap();
            if let Some(term) = term {
                self.taken.lock().unwrap().push((sequence, batch));
                return Some(term);
            }
            changed.await;
        }
    }
}

struct Bench {
    batcher: Batcher,
    tickets: Arc<Tickets>,
    port: Arc<Port>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut BatchingConfig)) -> Bench {
        Bench::with_queue(1 << 20, change)
    }

    fn with_queue(queue_bytes_max: usize, change: impl FnOnce(&mut BatchingConfig)) -> Bench {
        let mut config = BatchingConfig {
            mode: Batching::Adaptive,
            max_ops: 10,
            max_bytes: 100_000,
            max_delay: Duration::from_millis(2),
        };
        change(&mut config);
        let tickets = Tickets::new(1, 7);
        let port = Arc::new(Port { term: Mutex::new(Some(1)), taken: Mutex::default(), changed: Notify::new() });
        let metrics = Arc::new(Metrics::default());
        let batcher = Batcher::start(config, queue_bytes_max, DEADLINE, port.clone(), tickets.clone(), metrics.clone());
        Bench { batcher, tickets, port, metrics }
    }

    fn submit(&self, body: &[u8]) -> JoinHandle<Result<Answer, Refusal>> {
        let batcher = self.batcher.clone();
        let request = request(body);
        tokio::spawn(async move { batcher.submit(request).await })
    }

    /// Lets every task run until all wait.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Number of commands in each batch so far.
    fn sizes(&self) -> Vec<usize> {
        let taken = self.port.taken.lock().unwrap();
        taken.iter().map(|(_, b)| Batch::access(b).unwrap().commands.len()).collect()
    }

    fn apply(&self, sequence: u64) {
        let taken = self.port.taken.lock().unwrap();
        let (_, batch) = taken.iter().rev().find(|(s, _)| *s == sequence).expect("it was proposed");
        let commands = &Batch::access(batch).unwrap().commands;
        let replies = commands.iter().map(|c| reply(&c.body)).collect();
        let archive = Replies { replies }.to_bytes().into();
        self.tickets.applied(self.tickets.id(sequence), log_id(1, 5), BatchReplies::whole(archive).unwrap());
    }

    fn sealed_by(&self, reason: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics.registry).unwrap();
        let value = text.split(&format!("reason=\"{reason}\"}} ")).nth(1).expect("every reason is there");
        !value.starts_with("0\n")
    }
}

fn request(body: &[u8]) -> Request {
    Request { method: Method::Put, path: "/k".into(), query: String::new(), headers: vec![], body: body.to_vec() }
}

fn reply(body: &[u8]) -> Reply {
    Reply { status: 200, content_type: String::new(), headers: vec![], body: body.to_vec() }
}

fn body(result: Result<Answer, Refusal>) -> Vec<u8> {
    match result.unwrap().reply.original() {
        CommandReply::Module(reply) => reply.body().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_pipe_seals_at_once() {
    let b = Bench::new(|_| {});
    let start = Instant::now();
    let one = b.submit(b"|BATCH|\0\xff");
    b.settle().await;
    assert_eq!((b.sizes(), start.elapsed()), (vec![1], Duration::ZERO));
    assert!(!one.is_finished(), "a batch that was handed over is committed by nobody yet");
    b.apply(0);
    assert_eq!(body(one.await.unwrap()), b"|BATCH|\0\xff");
    assert!(b.sealed_by("Idle"));
}

#[tokio::test(start_paused = true)]
async fn a_busy_pipe_gathers_until_it_is_idle_and_each_gets_its_own_reply() {
    let b = Bench::new(|_| {});
    let first = b.submit(b"first");
    b.settle().await;
    let rest: Vec<_> = (0..5).map(|i| b.submit(format!("{i}").as_bytes())).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [1]);
    b.apply(0);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 5]);
    b.apply(1);
    assert_eq!(body(first.await.unwrap()), b"first");
    for (i, task) in rest.into_iter().enumerate() {
        assert_eq!(body(task.await.unwrap()), format!("{i}").as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_were_just_answered_are_waited_for_but_no_longer_than_two_commits_take() {
    let b = Bench::new(|c| c.max_delay = Duration::from_millis(100));
    let _first = b.submit(b"");
    b.settle().await;
    let _three: Vec<_> = (0..3).map(|_| b.submit(b"")).collect();
    b.settle().await;
    b.apply(0);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 3]);
    // The running mean of a commit becomes 1 ms: an eighth of this one.
    tokio::time::advance(Duration::from_millis(8)).await;
    b.apply(1);
    let _back = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [1, 3]);
    tokio::time::advance(Duration::from_millis(1)).await;
    b.settle().await;
    assert_eq!(b.sizes(), [1, 3]);
    tokio::time::advance(Duration::from_millis(1)).await;
    b.settle().await;
    assert_eq!(b.sizes(), [1, 3, 1]);
    b.apply(2);
    // As many as were answered: nobody else is expected.
    let _alone = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [1, 3, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn with_many_clients_the_half_that_waits_overlaps_with_the_half_that_is_on_its_way() {
    let b = Bench::new(|c| {
        c.max_ops = 1_000;
        c.max_delay = Duration::from_secs(1);
    });
    let mut tasks = vec![b.submit(b"")];
    b.settle().await;
    tasks.extend((0..15).map(|_| b.submit(b"")));
    b.settle().await;
    assert_eq!(b.sizes(), [1], "so few are better served by one commit after the other");
    b.apply(0);
    b.settle().await;
    tasks.extend((0..17).map(|_| b.submit(b"")));
    b.settle().await;
    assert_eq!(b.sizes(), [1, 15, 17], "as soon as sixteen and no fewer than on their way wait");
    assert!(b.sealed_by("Overlap"));
    tasks.extend((0..49).map(|_| b.submit(b"")));
    b.settle().await;
    assert_eq!(b.sizes(), [1, 15, 17], "two batches fill the pipe");
    b.apply(1);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 15, 17, 49], "room in the pipe is seen without a new command");
    tasks.extend((0..48).map(|_| b.submit(b"")));
    b.apply(2);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 15, 17, 49], "fewer than on their way");
    b.apply(3);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 15, 17, 49, 48]);
    b.apply(4);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_sealed_while_the_pipe_is_busy() {
    let b = Bench::new(|_| {});
    let _tasks: Vec<_> = (0..1).map(|_| b.submit(b"x")).collect();
    b.settle().await;
    let _more: Vec<_> = (0..25).map(|_| b.submit(b"x")).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [1, 10, 10]);
    assert!(b.sealed_by("Ops"));
}

#[tokio::test(start_paused = true)]
async fn bytes_seal_and_one_large_command_makes_a_batch_alone() {
    let b = Bench::new(|c| c.max_bytes = 1000);
    let _one = b.submit(b"");
    b.settle().await;
    let _large = b.submit(&[0; 5000]);
    b.settle().await;
    let _more: Vec<_> = (0..2).map(|_| b.submit(&[0; 300])).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [1, 1, 2]);
    assert!(b.sealed_by("Bytes"));
}

#[tokio::test(start_paused = true)]
async fn the_delay_seals_and_counts_from_the_oldest_command() {
    let b = Bench::new(|_| {});
    let _first = b.submit(b"");
    b.settle().await;
    let start = Instant::now();
    let _second = b.submit(b"");
    b.settle().await;
    tokio::time::advance(Duration::from_millis(1)).await;
    let _third = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [1]);
    tokio::time::advance(Duration::from_millis(1)).await;
    b.settle().await;
    assert_eq!((b.sizes(), start.elapsed()), (vec![1, 2], Duration::from_millis(2)));
    assert!(b.sealed_by("Delay"));
}

#[tokio::test(start_paused = true)]
async fn without_batching_each_command_goes_alone() {
    let b = Bench::new(|c| c.mode = Batching::Off);
    let _tasks: Vec<_> = (0..4).map(|_| b.submit(b"")).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [1; 4]);
}

#[tokio::test(start_paused = true)]
async fn fixed_batches_wait_for_their_size_or_the_delay() {
    let b = Bench::new(|c| (c.mode, c.max_ops) = (Batching::Fixed, 3));
    let _tasks: Vec<_> = (0..5).map(|_| b.submit(b"")).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [3], "two wait although nothing else is to do");
    tokio::time::advance(Duration::from_millis(3)).await;
    b.settle().await;
    assert_eq!(b.sizes(), [3, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_before_the_seal_costs_nothing() {
    let b = Bench::new(|_| {});
    let _first = b.submit(b"");
    b.settle().await;
    let leaver = b.submit(b"never logged");
    let stayer = b.submit(b"stays");
    b.settle().await;
    let before = b.batcher.queue_bytes();
    leaver.abort();
    b.settle().await;
    b.apply(0);
    b.settle().await;
    assert_eq!(b.sizes(), [1, 1]);
    b.apply(1);
    assert_eq!(body(stayer.await.unwrap()), b"stays");
    assert!(b.batcher.queue_bytes() < before);
    assert_eq!(b.batcher.queue_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_beyond_the_queues_limit_are_refused_and_room_comes_back() {
    let b = Bench::with_queue(2000, |_| {});
    let one = b.submit(&[0; 1000]);
    b.settle().await;
    let refused = b.submit(&[0; 1000]).await.unwrap().unwrap_err();
    assert!(matches!(refused, Refusal::Overloaded { limit_bytes: 2000, .. }), "{refused}");
    b.apply(0);
    one.await.unwrap().unwrap();
    let again = b.submit(&[0; 1000]);
    b.settle().await;
    b.apply(1);
    again.await.unwrap().unwrap();
    assert_eq!(b.batcher.queue_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_seals_what_waits_answers_it_and_takes_nothing_new() {
    let b = Bench::new(|_| {});
    let first = b.submit(b"1");
    b.settle().await;
    let second = b.submit(b"2");
    b.settle().await;
    let batcher = b.batcher.clone();
    let drain = tokio::spawn(async move { batcher.drain(DEADLINE).await });
    b.settle().await;
    assert_eq!(b.sizes(), [1, 1]);
    assert_eq!(b.submit(b"3").await.unwrap().unwrap_err(), Refusal::ShuttingDown);
    assert!(!drain.is_finished());
    b.apply(0);
    b.apply(1);
    drain.await.unwrap();
    assert_eq!((body(first.await.unwrap()), body(second.await.unwrap())), (b"1".to_vec(), b"2".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_the_command_is_rejected_at_the_deadline() {
    let b = Bench::new(|_| {});
    *b.port.term.lock().unwrap() = None;
    let refusal = b.submit(b"").await.unwrap().unwrap_err();
    assert_eq!(refusal, Refusal::NoLeader { waited_ms: DEADLINE.as_millis() as u64 });
    assert!(b.tickets.is_pipe_idle());
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_handed_over_and_never_heard_of_is_unknown() {
    let b = Bench::new(|_| {});
    let refusal = b.submit(b"").await.unwrap().unwrap_err();
    assert_eq!(refusal, Refusal::Timeout { waited_ms: DEADLINE.as_millis() as u64 });
    // It is applied after all: nobody waits, nothing breaks.
    b.apply(0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_goes_again_even_to_the_same_leader_but_a_stale_refusal_changes_nothing() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    b.tickets.refused(0, 1);
    tokio::time::sleep(REFUSED_PAUSE).await;
    b.settle().await;
    assert_eq!(b.sizes(), [1, 1]);
    // A refusal of another term is not about this attempt.
    b.tickets.refused(0, 0);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1, 1]);
    b.apply(0);
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_again_once_a_later_term_was_applied_without_it() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    b.tickets.term_began(1);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1], "its own term proves nothing");
    *b.port.term.lock().unwrap() = Some(2);
    b.tickets.term_began(2);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1, 1]);
    b.apply(0);
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn batches_of_others_and_of_earlier_starts_are_not_ours() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    let ours = b.tickets.id(0);
    b.tickets.applied(
        crate::raft::types::BatchId { boot: ours.boot + 1, ..ours },
        log_id(1, 5),
        BatchReplies::Each(vec![]),
    );
    b.tickets.applied(crate::raft::types::BatchId { node: 2, ..ours }, log_id(1, 5), BatchReplies::Each(vec![]));
    b.settle().await;
    assert!(!task.is_finished());
    b.apply(0);
    task.await.unwrap().unwrap();
}
