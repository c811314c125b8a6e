//! No order of hand over, refusal, apply and snapshot lets a batch be handed over again that may have been logged.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refusal_that_overtakes_the_hand_over_counts_once() {
    let b = Bench::new(|_| {});
    *b.port.term.lock().unwrap() = None;
    let task = b.submit(b"x");
    b.settle().await;
    // The leader's no arrives before this node has noted that the batch is on its way.
    b.tickets.refused(0, 1);
    *b.port.term.lock().unwrap() = Some(1);
    b.port.changed.notify_waiters();
    tokio::time::sleep(2 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1, 1]);
    // It was about the first attempt: the second stands, whatever comes of its term's beginning.
    b.tickets.term_began(1);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1, 1]);
    b.apply(0);
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_apply_that_overtakes_the_hand_over_is_the_answer() {
    let b = Bench::new(|_| {});
    *b.port.term.lock().unwrap() = None;
    let task = b.submit(b"x");
    b.settle().await;
    let replies = BatchReplies::whole(Replies { replies: vec![reply(b"x")] }.to_bytes().into()).unwrap();
    b.tickets.applied(b.tickets.id(0), log_id(1, 5), replies);
    assert_eq!(body(task.await.unwrap()), b"x");
    *b.port.term.lock().unwrap() = Some(1);
    b.port.changed.notify_waiters();
    b.settle().await;
    b.tickets.term_began(2);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1], "what was applied is not handed over again");
}

#[tokio::test(start_paused = true)]
async fn what_a_snapshot_may_hold_is_unknown_and_never_handed_over_again() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    b.tickets.replaced();
    assert_eq!(task.await.unwrap().unwrap_err(), Refusal::Replaced);
    // The snapshot's term is over: for a batch that is seen by nobody this would be the proof that it was not logged.
    b.tickets.term_began(2);
    b.tickets.refused(0, 1);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1]);
    assert!(b.tickets.is_pipe_idle());
    let next = b.submit(b"y");
    b.settle().await;
    b.apply(1);
    assert_eq!(body(next.await.unwrap()), b"y");
}

#[tokio::test(start_paused = true)]
async fn what_a_snapshot_closed_before_it_was_handed_over_again_stays_closed() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    b.tickets.refused(0, 1);
    b.settle().await;
    // In the pause before the next attempt.
    b.tickets.replaced();
    assert_eq!(task.await.unwrap().unwrap_err(), Refusal::Replaced);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1], "nobody waits for it any more");
}

#[tokio::test(start_paused = true)]
async fn what_was_applied_in_doubt_is_unknown_and_never_handed_over_again() {
    let b = Bench::new(|_| {});
    let task = b.submit(b"x");
    b.settle().await;
    b.tickets.withheld(b.tickets.id(0));
    assert_eq!(task.await.unwrap().unwrap_err(), Refusal::InDoubt);
    // The leader that was wrong is gone: for a batch that was applied by nobody this would be the proof of it.
    b.tickets.term_began(2);
    tokio::time::sleep(10 * REFUSED_PAUSE).await;
    assert_eq!(b.sizes(), [1]);
    assert!(b.tickets.is_pipe_idle());
}
