//! Batches that clients made, beside the gathering of single commands.

use super::*;

impl Bench {
    fn submit_batch(&self, bodies: &[&[u8]]) -> JoinHandle<Result<BatchAnswer, Refusal>> {
        let (batcher, count) = (self.batcher.clone(), bodies.len());
        let archive = Batch { commands: bodies.iter().map(|body| request(body)).collect() }.to_bytes();
        tokio::spawn(async move { batcher.submit_batch(archive.into(), count).await })
    }
}

fn bodies(answer: BatchAnswer) -> Vec<Vec<u8>> {
    assert!(matches!(answer.replies, BatchReplies::Whole(_)), "nothing was taken apart");
    let each = answer.replies.into_each().into_iter();
    each.map(|reply| body(Ok(Answer { index: 0, term: 0, reply }))).collect()
}

#[tokio::test(start_paused = true)]
async fn it_goes_at_once_and_as_it_is_whatever_the_settings_are() {
    let b = Bench::new(|c| (c.mode, c.max_ops, c.max_bytes) = (Batching::Off, 1, 1024));
    let _busy = b.submit(b"");
    b.settle().await;
    let archive = Batch { commands: vec![request(&[7; 900]); 30] }.to_bytes();
    let (batcher, sent) = (b.batcher.clone(), Bytes::from(archive));
    let given = sent.clone();
    let task = tokio::spawn(async move { batcher.submit_batch(given, 30).await });
    b.settle().await;
    assert_eq!(b.sizes(), [1, 30]);
    assert_eq!(b.port.taken.lock().unwrap()[1].1.as_ptr(), sent.as_ptr(), "not a byte was copied");
    assert!(b.sealed_by("Bulk"));
    b.apply(1);
    let answer = task.await.unwrap().unwrap();
    assert_eq!((answer.index, answer.term, bodies(answer).len()), (5, 1, 30));
}

#[tokio::test(start_paused = true)]
async fn single_commands_dont_notice_it() {
    let b = Bench::new(|c| c.max_delay = Duration::from_millis(100));
    let _bulk = b.submit_batch(&[b"1", b"2", b"3"]);
    b.settle().await;
    // The pipe is idle for it: nothing that was gathered is on its way.
    let _one = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [3, 1]);
    let _two: Vec<_> = (0..2).map(|_| b.submit(b"")).collect();
    b.settle().await;
    b.apply(1);
    b.settle().await;
    assert_eq!(b.sizes(), [3, 1, 2]);
    tokio::time::advance(Duration::from_millis(8)).await;
    b.apply(2);
    // Two were just answered, and both are waited for, whatever becomes of batches meanwhile.
    b.apply(0);
    let _other = b.submit_batch(&[&b""[..]; 9]);
    let _back = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [3, 1, 2, 9]);
    let _last = b.submit(b"");
    b.settle().await;
    assert_eq!(b.sizes(), [3, 1, 2, 9, 2]);
    // Its many answers were no clients that come back one by one.
    b.apply(4);
    b.apply(3);
    let _pair: Vec<_> = (0..2).map(|_| b.submit(b"")).collect();
    b.settle().await;
    assert_eq!(b.sizes(), [3, 1, 2, 9, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn its_bytes_are_in_the_queues_limit_until_it_is_answered() {
    let b = Bench::with_queue(2000, |_| {});
    let first = b.submit_batch(&[&[0; 1000]]);
    b.settle().await;
    assert!(b.batcher.queue_bytes() > 1000);
    let refused = b.submit_batch(&[&[0; 1000]]).await.unwrap().unwrap_err();
    assert!(matches!(refused, Refusal::Overloaded { limit_bytes: 2000, .. }), "{refused}");
    assert!(matches!(b.submit(&[0; 1000]).await.unwrap(), Err(Refusal::Overloaded { .. })));
    b.apply(0);
    first.await.unwrap().unwrap();
    assert_eq!(b.batcher.queue_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_it() {
    let b = Bench::new(|_| {});
    let task = b.submit_batch(&[b"1"]);
    b.settle().await;
    let batcher = b.batcher.clone();
    let drain = tokio::spawn(async move { batcher.drain(DEADLINE).await });
    b.settle().await;
    assert_eq!(b.submit_batch(&[b"2"]).await.unwrap().unwrap_err(), Refusal::ShuttingDown);
    assert!(!drain.is_finished());
    b.apply(0);
    drain.await.unwrap();
    assert_eq!(bodies(task.await.unwrap().unwrap()), [b"1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_it_decides_whether_it_goes_again() {
    // Lost with its term: it goes again. Refused by the leader: again.
    let b = Bench::new(|_| {});
    let task = b.submit_batch(&[b"x", b"y"]);
    b.settle().await;
    *b.port.term.lock().unwrap() = Some(2);
    b.tickets.term_began(2);
    tokio::time::sleep(2 * REFUSED_PAUSE).await;
    b.tickets.refused(0, 2);
    tokio::time::sleep(2 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [2, 2, 2]);
    b.apply(0);
    assert_eq!(bodies(task.await.unwrap().unwrap()), [b"x", b"y"]);

    // In a snapshot, or applied in doubt: never.
    for (close, refusal) in [
        ((|t: &Tickets, _| t.replaced()) as fn(&Tickets, u64), Refusal::Replaced),
        (|t: &Tickets, sequence| t.withheld(t.id(sequence)), Refusal::InDoubt),
    ] {
        let b = Bench::new(|_| {});
        let task = b.submit_batch(&[b"x"]);
        b.settle().await;
        close(&b.tickets, 0);
        assert_eq!(task.await.unwrap().unwrap_err(), refusal);
        b.tickets.term_began(2);
        b.tickets.refused(0, 1);
        tokio::time::sleep(10 * REFUSED_PAUSE).await;
        assert_eq!(b.sizes(), [1], "{refusal}");
    }

    // Nothing is heard of it.
    let b = Bench::new(|_| {});
    let waited_ms = DEADLINE.as_millis() as u64;
    assert_eq!(b.submit_batch(&[b"x"]).await.unwrap().unwrap_err(), Refusal::Timeout { waited_ms });
    *b.port.term.lock().unwrap() = None;
    assert_eq!(b.submit_batch(&[b"x"]).await.unwrap().unwrap_err(), Refusal::NoLeader { waited_ms });
}

#[tokio::test(start_paused = true)]
async fn replies_that_were_taken_apart_come_together() {
    let b = Bench::new(|_| {});
    let task = b.submit_batch(&[b"x", b"y"]);
    b.settle().await;
    let failed = CommandReply::Failed(crate::outcome::Failure::OutOfFuel);
    b.tickets.applied(b.tickets.id(0), log_id(1, 5), BatchReplies::Each(vec![failed.clone(), failed]));
    assert_eq!(task.await.unwrap().unwrap().replies.len(), 2);
}
