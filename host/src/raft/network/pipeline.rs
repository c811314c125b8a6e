//! Appends on their way to one follower. Owns the rule which of its answers openraft is told: openraft takes an answer
//! for one to all requests that end at or before the entry it names, and a leader whose requests are answered is still
//! the leader. That is wrong of a request without entries behind it, which ends at the same entry and may have been sent
//! much later: an answer that was held up in the network would confirm a leader that the follower has left since, and
//! with it a stale read. So such an answer is kept back, and the later one told instead. Knows no connection.
//! Used by `client.rs`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};

use super::super::types::{LogId, TypeConfig};

/// Both ends of the pipeline have one.
#[derive(Clone, Default)]
pub(super) struct Pipeline(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Behind which entry each request begins that has no answer, and with which it ends; the oldest first.
    unanswered: VecDeque<(Option<LogId>, Option<LogId>)>,
    /// openraft has been told an answer and hasn't asked for the next one: what it counts as answered isn't settled, so
    /// no request may be made meanwhile.
    telling: bool,
    /// openraft has dropped the answers: what makes its requests belongs to the next stream by now.
    closed: bool,
    sender: Option<Waker>,
}

/// Ends the requests with the answers. The task that sends may be running when it is aborted, and would take a request
/// out of the stream that comes next: openraft's streams share what makes them, so those entries would never be sent.
pub(super) struct Closing(pub Pipeline);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.lock().closed = true;
    }
}

impl Pipeline {
    /// openraft asks for the next answer: it is done with the last one.
    pub(super) fn asked(&self) {
        let mut state = self.lock();
        state.telling = false;
        if let Some(sender) = state.sender.take() {
            sender.wake();
        }
    }

    /// The oldest request is answered. Whether openraft may be told: else a later answer says the same and more.
    pub(super) fn answered(&self, result: &StreamAppendResult<TypeConfig>) -> bool {
        let mut state = self.lock();
        state.unanswered.pop_front();
        let next = state.unanswered.front();
        let tells = match result {
            Ok(matching) => next.is_none_or(|(prev, end)| prev >= matching && end > matching),
            // It ends the stream, and confirms nobody.
            Err(_) => true,
        };
        state.telling = tells;
        tells
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// openraft's requests, noted as they are made.
pub(super) struct Requests<S> {
    pub input: S,
    pub pipeline: Pipeline,
}

impl<S> Stream for Requests<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = AppendEntriesRequest<TypeConfig>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Requests { input, pipeline } = self.get_mut();
        let mut state = pipeline.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if state.telling {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Under the lock: openraft notes the request, with its time, while it is made.
        let next = input.poll_next_unpin(cx);
        if let Poll::Ready(Some(request)) = &next {
            let end = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
            state.unanswered.push_back((request.prev_log_id, end));
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream;

    use super::*;
    use crate::log::tests::support::entries;
    use crate::raft::codec::log_id;
    use crate::raft::types::Vote;

    /// Of one term: entries behind `prev`, up to `last`.
    fn request(prev: u64, last: u64) -> AppendEntriesRequest<TypeConfig> {
        let vote = Vote::new_committed(1, 1);
        let entries = entries(1, prev + 1..last + 1, 10);
        AppendEntriesRequest { vote, prev_log_id: Some(log_id(1, prev)), entries, leader_commit: None }
    }

    fn requests(
        pipeline: &Pipeline,
        ends: &[(u64, u64)],
    ) -> Requests<impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> {
        let requests: Vec<_> = ends.iter().map(|(prev, last)| request(*prev, *last)).collect();
        Requests { input: stream::iter(requests), pipeline: pipeline.clone() }
    }

    fn matching(index: u64) -> StreamAppendResult<TypeConfig> {
        Ok(Some(log_id(1, index)))
    }

    #[test]
    fn an_answer_never_speaks_for_a_later_request_without_entries() {
        let pipeline = Pipeline::default();
        let mut requests = requests(&pipeline, &[(0, 5), (5, 5), (5, 5), (5, 9), (9, 9)]);
        for _ in 0..5 {
            assert!(requests.next().now_or_never().flatten().is_some());
        }
        assert!(!pipeline.answered(&matching(5)), "two that end at 5 have no answer");
        assert!(!pipeline.answered(&matching(5)));
        assert!(pipeline.answered(&matching(5)), "the last that ends at 5; the next ends at 9");
        pipeline.asked();
        assert!(!pipeline.answered(&matching(9)));
        assert!(pipeline.answered(&matching(9)));
    }

    #[test]
    fn an_answer_that_says_more_than_was_asked_waits_for_what_it_says() {
        for more in [7, 9] {
            let pipeline = Pipeline::default();
            let mut requests = requests(&pipeline, &[(0, 5), (5, 9)]);
            while requests.next().now_or_never().flatten().is_some() {}
            assert!(!pipeline.answered(&matching(more)), "{more}");
            assert!(pipeline.answered(&matching(9)));
        }
    }

    #[test]
    fn a_refusal_is_told_at_once() {
        let pipeline = Pipeline::default();
        let mut requests = requests(&pipeline, &[(0, 5), (5, 5)]);
        for _ in 0..2 {
            assert!(requests.next().now_or_never().flatten().is_some());
        }
        let refusal = openraft::raft::StreamAppendError::HigherVote(Vote::new_committed(2, 2));
        assert!(pipeline.answered(&Err(refusal)));
    }

    #[test]
    fn requests_are_made_under_the_lock_that_ends_them() {
        let pipeline = Pipeline::default();
        let lock = pipeline.clone();
        let input = stream::iter([request(0, 5)]).inspect(move |_| assert!(lock.0.try_lock().is_err()));
        let mut requests = Requests { input, pipeline };
        assert!(requests.next().now_or_never().flatten().is_some());
    }

    #[test]
    fn no_request_is_made_for_answers_that_nobody_reads() {
        let pipeline = Pipeline::default();
        let mut requests = requests(&pipeline, &[(0, 5), (5, 9)]);
        assert!(requests.next().now_or_never().flatten().is_some());
        drop(Closing(pipeline.clone()));
        assert!(matches!(requests.next().now_or_never(), Some(None)), "it would be taken from the next stream");
        assert!(requests.input.next().now_or_never().flatten().is_some(), "it is still there");
    }

    #[tokio::test]
    async fn no_request_is_made_while_openraft_takes_an_answer() {
        let pipeline = Pipeline::default();
        let mut requests = requests(&pipeline, &[(0, 5), (5, 5)]);
        assert!(requests.next().now_or_never().flatten().is_some());
        assert!(pipeline.answered(&matching(5)));
        assert!(requests.next().now_or_never().is_none(), "it would be counted as answered");
        let asked = async { pipeline.asked() };
        let (next, ()) = tokio::join!(requests.next(), asked);
        assert!(next.is_some(), "it is woken");
    }
}
