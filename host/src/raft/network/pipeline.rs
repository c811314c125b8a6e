//! Appends on their way to one follower. Owns two rules.
//!
//! Which of its answers openraft is told: openraft takes an answer for one to all requests that end at or before the
//! entry it names, and a leader whose requests are answered is still the leader. That is wrong of a request without
//! entries behind it, which ends at the same entry and may have been sent much later: an answer that was held up in the
//! network would confirm a leader that the follower has left since, and with it a stale read. So such an answer is kept
//! back, and the later one told instead.
//!
//! Which requests are sent: one without entries that tells of a commit waits for the next entries, which tell of it too.
//! To send and answer it costs either side as much as entries do, and nobody waits for the follower's state if its node
//! asks nothing of the leader (`interest.rs`). Knows no connection. Used by `client.rs`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use tokio::time::Sleep;

use super::super::types::{LogId, TypeConfig};
use super::interest::Interest;

/// A commit that nobody asks for is told by itself after so long.
const HOLD: Duration = Duration::from_millis(2);
/// Of a follower that always answers later than a majority each answer is kept back for the next one's sake, if entries
/// take the place of every commit: after so many nothing is held until one could be told, or openraft would never know
/// what that follower has.
const KEPT_BACK_MAX: u32 = 8;

/// Both ends of the pipeline have one.
#[derive(Clone, Default)]
pub(super) struct Pipeline(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Behind which entry each request begins that has no answer, and with which it ends; the oldest first. None: it
    /// took the place of one that was never sent, so that no earlier answer may speak for what lies before it.
    unanswered: VecDeque<(Option<LogId>, Option<LogId>)>,
    /// Answers in a row that openraft wasn't told.
    kept_back: u32,
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
        state.kept_back = if tells { 0 } else { state.kept_back + 1 };
        tells
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// openraft's requests, noted as they are made.
pub(super) struct Requests<S> {
    input: S,
    pipeline: Pipeline,
    interest: Arc<Interest>,
    held: Option<Held>,
    ended: bool,
}

/// A request that only tells of a commit. It was made, so openraft counts on an answer to it.
struct Held {
    request: AppendEntriesRequest<TypeConfig>,
    timer: Pin<Box<Sleep>>,
}

impl<S> Requests<S> {
    pub(super) fn new(input: S, pipeline: Pipeline, interest: Arc<Interest>) -> Self {
        Requests { input, pipeline, interest, held: None, ended: false }
    }

    /// Whether the request may wait for entries. Not while one before it isn't committed: the answers to those would be
    /// kept back for as long.
    fn may_wait(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        request.entries.is_empty()
            && request.prev_log_id.is_some()
            && request.leader_commit == request.prev_log_id
            && !self.interest.is_recent()
    }

    fn send_held(&mut self) -> Option<AppendEntriesRequest<TypeConfig>> {
        self.held.take().map(|held| held.request)
    }
}

impl<S> Stream for Requests<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = AppendEntriesRequest<TypeConfig>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let pipeline = this.pipeline.clone();
        let mut state = pipeline.lock();
        if state.closed || this.ended {
            return Poll::Ready(None);
        }
        if state.telling {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Under the lock: openraft notes the request, with its time, while it is made.
        while let Poll::Ready(next) = this.input.poll_next_unpin(cx) {
            let Some(request) = next else {
                this.ended = true;
                return Poll::Ready(this.send_held());
            };
            let end = request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id);
            let mut prev = request.prev_log_id;
            if this.held.take().is_some() {
                state.unanswered.pop_back();
                prev = None;
            }
            state.unanswered.push_back((prev, end));
            if state.kept_back >= KEPT_BACK_MAX || !this.may_wait(&request) {
                return Poll::Ready(Some(request));
            }
            this.held = Some(Held { request, timer: Box::pin(tokio::time::sleep(HOLD)) });
        }
        let Some(held) = &mut this.held else { return Poll::Pending };
        this.interest.register(cx.waker());
        if held.timer.as_mut().poll(cx).is_ready() || this.interest.is_recent() {
            return Poll::Ready(this.send_held());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream;
    use tokio::sync::mpsc::UnboundedSender;

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

    /// Without entries, behind `prev`.
    fn tells_commit(prev: u64, commit: u64) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest { leader_commit: Some(log_id(1, commit)), ..request(prev, prev) }
    }

    fn requests(
        pipeline: &Pipeline,
        ends: &[(u64, u64)],
    ) -> Requests<impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> {
        let requests: Vec<_> = ends.iter().map(|(prev, last)| request(*prev, *last)).collect();
        Requests::new(stream::iter(requests), pipeline.clone(), Arc::default())
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
        let mut requests = Requests::new(input, pipeline, Arc::default());
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

    /// What makes requests, and the requests.
    fn channel(
        pipeline: Pipeline,
        interest: Arc<Interest>,
    ) -> (
        UnboundedSender<AppendEntriesRequest<TypeConfig>>,
        Requests<impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin>,
    ) {
        let (sender, input) = tokio::sync::mpsc::unbounded_channel();
        let input = stream::unfold(input, |mut input| async move { input.recv().await.map(|next| (next, input)) });
        (sender, Requests::new(Box::pin(input), pipeline, interest))
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_goes_with_the_next_entries_and_its_time_is_vouched_for_by_their_answer_alone() {
        let pipeline = Pipeline::default();
        let (sender, mut requests) = channel(pipeline.clone(), Arc::default());
        sender.send(request(0, 5)).unwrap();
        assert!(requests.next().now_or_never().flatten().is_some());
        sender.send(tells_commit(5, 5)).unwrap();
        assert!(requests.next().now_or_never().is_none(), "it waits");
        sender.send(request(5, 9)).unwrap();
        let sent = requests.next().now_or_never().flatten().unwrap();
        assert_eq!(sent.entries.len(), 4, "they are sent in its place");
        assert!(requests.next().now_or_never().is_none());
        assert!(!pipeline.answered(&matching(5)), "openraft would count the one that was never sent as answered");
        assert!(pipeline.answered(&matching(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_without_entries_behind_it_is_told_after_a_while() {
        let pipeline = Pipeline::default();
        let (sender, mut requests) = channel(pipeline.clone(), Arc::default());
        sender.send(request(0, 5)).unwrap();
        assert!(requests.next().now_or_never().flatten().is_some());
        sender.send(tells_commit(5, 5)).unwrap();
        let started = tokio::time::Instant::now();
        assert_eq!(requests.next().await.unwrap().leader_commit, Some(log_id(1, 5)));
        assert!((HOLD..2 * HOLD).contains(&started.elapsed()));
        assert!(!pipeline.answered(&matching(5)), "the commit has an answer to come");
        assert!(pipeline.answered(&matching(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_is_told_at_once_if_somebody_waits_for_it() {
        let pipeline = Pipeline::default();
        let interest = Arc::<Interest>::default();
        let (sender, mut requests) = channel(pipeline, interest.clone());
        sender.send(tells_commit(5, 5)).unwrap();
        assert!(requests.next().now_or_never().is_none(), "nobody does");
        let started = tokio::time::Instant::now();
        let asked = async { interest.asked() };
        let (sent, ()) = tokio::join!(requests.next(), asked);
        assert!(sent.is_some());
        sender.send(tells_commit(5, 5)).unwrap();
        assert!(requests.next().now_or_never().flatten().is_some(), "the node asked just now");
        assert_eq!(started.elapsed(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1)).await;
        sender.send(tells_commit(5, 5)).unwrap();
        assert!(requests.next().now_or_never().is_none(), "that was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_is_told_at_once_while_more_is_to_be_committed_and_at_the_end() {
        let (sender, mut requests) = channel(Pipeline::default(), Arc::default());
        sender.send(request(0, 9)).unwrap();
        assert!(requests.next().now_or_never().flatten().is_some());
        sender.send(tells_commit(9, 5)).unwrap();
        assert!(requests.next().now_or_never().flatten().is_some(), "the answers before it would be kept back");
        sender.send(tells_commit(9, 9)).unwrap();
        drop(sender);
        assert!(requests.next().now_or_never().flatten().is_some(), "no entries will come");
        assert!(matches!(requests.next().now_or_never(), Some(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn openraft_hears_of_a_follower_that_is_always_later_than_the_others() {
        let pipeline = Pipeline::default();
        let (sender, mut requests) = channel(pipeline.clone(), Arc::default());
        let mut unanswered = VecDeque::new();
        let mut told = 0;
        for round in 0..100 {
            sender.send(request(round, round + 1)).unwrap();
            // What others acknowledged is committed before this one has answered.
            sender.send(tells_commit(round + 1, round + 1)).unwrap();
            while let Some(Some(_)) = requests.next().now_or_never() {
                unanswered.push_back(round + 1);
            }
            while unanswered.len() > 1 {
                told += u32::from(pipeline.answered(&matching(unanswered.pop_front().unwrap())));
                pipeline.asked();
            }
        }
        assert!(told >= 100 / (KEPT_BACK_MAX + 2), "{told}");
        assert!(told < 50, "{told}: nothing was held");
    }
}
