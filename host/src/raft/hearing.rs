//! What the members said in one round of the audit, and what follows from it: where they can be compared, who isn't
//! heard yet, who must not lead. Pure; who asks is `audit.rs`, who is right is decided in `ballot.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ballot::{Decision, decide};
use super::types::NodeId;
use crate::state_machine::health::What;
use crate::state_machine::{INDICES_MAX, Short};

/// A node that is further behind doesn't keep the others from being compared at newer indices.
const BEHIND_MAX: u64 = INDICES_MAX as u64 / 2;
/// What a node says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub applied: Option<u64>,
    /// At the indices that were asked for, in their order.
    pub chain: Vec<Option<Short>>,
    pub contents: Vec<(u64, Short)>,
    pub quarantined: bool,
    /// Its apply is held by an entry.
    pub held: bool,
    /// What it is in doubt about, and since which index.
    pub doubt: Option<(What, u64)>,
}

/// One thing to decide: who has which digest at an index.
#[derive(Debug, PartialEq, Eq)]
pub struct Comparison {
    pub what: What,
    pub index: u64,
    pub heard: Vec<(NodeId, Short)>,
}

/// What a round asked and heard.
pub struct Round {
    pub voters: BTreeSet<NodeId>,
    /// All members that could be asked, this node included.
    pub reports: BTreeMap<NodeId, Report>,
    pub members: usize,
}

impl Round {
    /// Voters whose digests count.
    fn witnesses(&self) -> impl Iterator<Item = (&NodeId, &Report)> {
        self.reports.iter().filter(|(id, r)| !r.quarantined && self.voters.contains(id))
    }

    /// Where to compare: at the newest index that a majority of the voters has applied, at the newest that all have that
    /// aren't far behind, and wherever somebody is in doubt.
    pub fn indices(&self) -> Vec<u64> {
        let mut applied: Vec<u64> = self.witnesses().filter_map(|(_, r)| r.applied).collect();
        applied.sort_unstable_by(|a, b| b.cmp(a));
        let Some(newest) = applied.first().copied() else { return Vec::new() };
        let majority = applied.get(self.voters.len() / 2).copied();
        let all = applied.iter().rev().find(|index| **index + BEHIND_MAX >= newest).copied();
        // A learner is compared where it is.
        let learners = self.reports.iter().filter(|(id, r)| !r.quarantined && !self.voters.contains(id));
        let learners = learners.filter_map(|(_, r)| r.applied);
        // A node in doubt stands still: where it stands all others will come.
        let doubtful = self.reports.values().filter(|r| r.doubt.is_some()).filter_map(|r| r.applied);
        let indices: BTreeSet<u64> = majority.into_iter().chain(all).chain(learners).chain(doubtful).collect();
        indices.into_iter().filter(|index| *index > 0 && index + BEHIND_MAX >= newest).collect()
    }

    /// All members were heard, and all that count have applied the same and digested the same checkpoint.
    pub fn is_complete(&self) -> bool {
        let mut seen = self.reports.values().filter(|r| !r.quarantined);
        let at = |r: &Report| (r.applied, r.contents.last().map(|(index, _)| *index));
        let first = seen.next().map(at);
        self.reports.len() == self.members && seen.all(|r| Some(at(r)) == first)
    }

    /// What there is to decide: which digest, at which index, and who has which.
    pub fn compared(&self, indices: &[u64]) -> Vec<Comparison> {
        let chain = indices.iter().enumerate().map(|(at, index)| {
            let heard = self.heard(|r| r.chain.get(at).copied().flatten());
            Comparison { what: What::Chain, index: *index, heard }
        });
        let content = self.checkpoints().into_iter().map(|index| {
            let digest = |r: &Report| r.contents.iter().find(|(i, _)| *i == index).map(|(_, digest)| *digest);
            Comparison { what: What::Content, index, heard: self.heard(digest) }
        });
        chain.chain(content).collect()
    }

    /// Checkpoints that at least two nodes have digested.
    fn checkpoints(&self) -> Vec<u64> {
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, _) in self.reports.values().filter(|r| !r.quarantined).flat_map(|r| &r.contents) {
            *seen.entry(*index).or_default() += 1;
        }
        seen.into_iter().filter(|(_, count)| *count > 1).map(|(index, _)| index).collect()
    }

    /// What those who count, or are audited as learners, have.
    pub fn heard(&self, of: impl Fn(&Report) -> Option<Short>) -> Vec<(NodeId, Short)> {
        let sound = self.reports.iter().filter(|(_, r)| !r.quarantined);
        sound.filter_map(|(id, report)| Some((*id, of(report)?))).collect()
    }

    /// Voters differ somewhere without a majority, and one that was reached will have its voice in a moment.
    pub fn is_worth_a_wait(&self, indices: &[u64]) -> bool {
        indices.iter().enumerate().any(|(at, index)| {
            let said = |r: &Report| r.chain.get(at).copied().flatten();
            let heard: Vec<_> = self.witnesses().filter_map(|(id, r)| Some((*id, said(r)?))).collect();
            let is_coming = self.witnesses().any(|(_, r)| r.doubt.is_none() && !r.held && r.applied < Some(*index));
            is_coming && matches!(decide(&heard, self.voters.len()), Decision::Split(_))
        })
    }

    pub fn unfit(&self) -> BTreeSet<NodeId> {
        let unfit = self.reports.iter().filter(|(_, r)| r.quarantined || r.held || r.doubt.is_some());
        unfit.map(|(id, _)| *id).collect()
    }

    pub fn sound_peers(&self, me: NodeId) -> Vec<NodeId> {
        let unfit = self.unfit();
        self.witnesses().map(|(id, _)| *id).filter(|id| *id != me && !unfit.contains(id)).collect()
    }
}

#[cfg(test)]
#[path = "hearing_tests.rs"]
mod tests;
