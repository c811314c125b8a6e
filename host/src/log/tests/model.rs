//! Random sequences of operations against the simplest model there is.

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use proptest::prelude::*;

use super::support::{append, entries, options, queue, read};
use crate::log::{LogOptions, SledLog};
use crate::raft::codec::log_id;
use crate::raft::types::{Entry, LogId, Vote};

#[derive(Debug, Clone)]
enum Step {
    /// Count, payload bytes, whether a new term starts, whether to wait until durable.
    Append(u64, usize, bool, bool),
    /// Keep this many of the entries, in hundredths.
    Truncate(u64),
    /// Purge this many of the entries, in hundredths; over 100 goes beyond the end.
    Purge(u64),
    Vote(u64, bool),
    Committed(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![3 => 0..300usize, 1 => 300..9_000usize];
    prop_oneof![
        6 => (1..12u64, size, any::<bool>(), any::<bool>()).prop_map(|(n, s, t, w)| Step::Append(n, s, t, w)),
        2 => (0..=100u64).prop_map(Step::Truncate),
        2 => (0..=120u64).prop_map(Step::Purge),
        1 => (1..9u64, any::<bool>()).prop_map(|(n, c)| Step::Vote(n, c)),
        1 => (0..=100u64).prop_map(Step::Committed),
        1 => Just(Step::Reopen),
    ]
}

/// From groups of one small entry to groups of a dozen.
fn chunk_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(200), Just(1_000), Just(1_500)]
}

#[derive(Default)]
struct Model {
    term: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|e| e.log_id).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |id| id.index + 1)
    }

    /// The id after that share of the entries, and how many they are.
    fn cut(&self, percent: u64) -> (Option<LogId>, usize) {
        let count = (self.entries.len() as u64 * percent / 100) as usize;
        (count.checked_sub(1).map(|at| self.entries[at].log_id).or(self.purged), count)
    }
}

async fn run(steps: Vec<Step>, chunk_bytes: usize) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    // Next to no tail, so that reads come from sled.
    let small = LogOptions { tail_bytes_max: 2_000, read_bytes_max: 4_000, chunk_bytes, ..options() };
    let mut log = SledLog::open(dir.path(), small.clone()).unwrap();
    let mut model = Model { term: 1, ..Model::default() };
    for step in steps.into_iter().chain([Step::Reopen]) {
        match step {
            Step::Append(count, bytes, new_term, wait) => {
                model.term += u64::from(new_term);
                let new = entries(model.term, model.next()..model.next() + count, bytes);
                model.entries.extend_from_slice(&new);
                if wait { append(&log, new).await } else { drop(queue(&log, new).await) }
            }
            Step::Truncate(percent) => {
                let (after, count) = model.cut(percent);
                model.entries.truncate(count);
                log.truncate_after(after).await.unwrap();
            }
            Step::Purge(percent) => {
                let (upto, count) = model.cut(percent.min(100));
                let upto = if percent > 100 { Some(log_id(model.term, model.next() + percent)) } else { upto };
                if let Some(upto) = upto {
                    model.entries.drain(..count);
                    model.purged = Some(upto);
                    log.purge(upto).await.unwrap();
                }
            }
            Step::Vote(node, committed) => {
                let mut vote = Vote::new(model.term, node);
                vote.committed = committed;
                model.vote = Some(vote);
                log.save_vote(&vote).await.unwrap();
            }
            Step::Committed(percent) => {
                // As in Raft: it only rises.
                let committed = model.cut(percent).0.max(model.committed).min(model.last());
                if committed > model.committed {
                    model.committed = committed;
                    log.save_committed(committed).await.unwrap();
                }
            }
            Step::Reopen => {
                log.close().await.unwrap();
                log = SledLog::open(dir.path(), small.clone()).unwrap();
            }
        }
        // Raft never truncates what is committed; this model may, and then nothing is promised about it.
        if model.committed > model.last() {
            model.committed = model.last();
            log.save_committed(model.committed).await.unwrap();
        }
        let state = log.get_log_state().await.unwrap();
        prop_assert_eq!(state.last_purged_log_id, model.purged);
        prop_assert_eq!(state.last_log_id, model.last());
        prop_assert_eq!(log.read_vote().await.unwrap(), model.vote);
        prop_assert_eq!(&read(&log, 0..u64::MAX).await, &model.entries);
    }
    prop_assert!(log.read_committed().await.unwrap() <= model.last());
    log.close().await.unwrap();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_like_a_list(steps in prop::collection::vec(step(), 1..40), chunk_bytes in chunk_bytes()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps, chunk_bytes))?;
    }
}
