//! Divergence: the leader compares the nodes' digests at indices that they have applied, again and again, and tells each
//! what is right there. Each node judges itself: who has another digest than the majority goes into quarantine, who has
//! the same goes on. Everything here is level-triggered: a message that is lost is sent again by the next round, by this
//! leader or another. What is right is decided in `ballot.rs`; what a closed gate means is in `state_machine/gate.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::ballot::{Decision, decide};
use super::calls::Calls;
use super::clock::now_ms;
use super::hand_over::Lead;
use super::identity::random;
use super::network::message::{Answer, Call};
use super::types::{BatchId, Kind, NodeId};
use super::{Leader, Proposals, Raft, quarantine};
use crate::config::ChecksConfig;
use crate::metrics::Metrics;
use crate::state_machine::health::{Doubt, Quarantine, What, Why, hex};
use crate::state_machine::{Gate, INDICES_MAX, Short};

/// Between rounds while nodes are in doubt: they answer nobody meanwhile.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);
/// A voter that has not yet applied an index is asked again so often, with pauses, before its voice is missed there.
const LAGGARD_TRIES: usize = 5;
const LAGGARD_PAUSE: Duration = Duration::from_millis(40);
/// A node that is further behind doesn't keep the others from being compared at newer indices.
const BEHIND_MAX: u64 = INDICES_MAX as u64 / 2;
/// For a checkpoint to be logged.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// What the majority has at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub what: What,
    pub index: u64,
    pub right: Short,
}

/// Voters differ at this index and no majority agrees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NoMajority {
    pub what: What,
    pub index: u64,
    /// Who has which digest, for people.
    pub digests: String,
}

pub struct Audit {
    me: NodeId,
    dir: PathBuf,
    gate: Arc<Gate>,
    calls: Calls,
    raft: Raft,
    leader: watch::Receiver<Option<Leader>>,
    nudged: Notify,
    lead: Lead,
    metrics: Arc<Metrics>,
    /// This node's quarantine is on disk.
    marked: Mutex<bool>,
}

/// What a round of questions came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All members have the same, and there is no need to ask again before something is applied.
    Settled,
    /// Somebody wasn't heard, or is behind.
    Open,
    /// Somebody answers nobody until it is known who is right.
    Doubtful,
}

/// What a round asked and heard.
struct Round {
    voters: BTreeSet<NodeId>,
    /// All members that could be asked, this node included.
    reports: BTreeMap<NodeId, Report>,
    members: usize,
}

impl Audit {
    pub fn new(me: NodeId, dir: PathBuf, gate: Arc<Gate>, calls: Calls, lead: Lead, metrics: Arc<Metrics>) -> Audit {
        let (raft, leader) = (lead.raft.clone(), lead.leader.clone());
        let quarantined = gate.health().quarantine.is_some();
        raft.runtime_config().elect(!quarantined);
        let nudged = Notify::new();
        Audit { me, dir, gate, calls, raft, leader, nudged, lead, metrics, marked: Mutex::new(quarantined) }
    }

    /// Whether this node may lead.
    pub fn may_lead(&self) -> bool {
        self.gate.may_serve().is_ok()
    }

    /// A node asks for a round now.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    pub fn report(&self, at: &[u64]) -> Report {
        let health = self.gate.health();
        Report {
            applied: self.gate.applied(),
            chain: at.iter().map(|index| self.gate.chain(*index)).collect(),
            contents: self.gate.contents(),
            quarantined: health.quarantine.is_some(),
            held: health.poison.is_some(),
            doubt: health.doubt.map(|d| (d.what, d.index)),
        }
    }

    /// Judges this node by what the majority has.
    pub async fn judge(&self, verdict: Verdict) {
        let Verdict { what, index, right } = verdict;
        let ours = match what {
            What::Chain => self.gate.chain(index),
            What::Content => self.gate.contents().iter().find(|(i, _)| *i == index).map(|(_, digest)| *digest),
        };
        let Some(ours) = ours else { return };
        if ours == right {
            return self.gate.cleared(what, index);
        }
        if self.gate.health().quarantine.is_none() {
            if self.leads() {
                self.gate.doubt(Doubt { what, index, why: Why::Outvoted });
                self.hand_over().await;
            }
            let (ours, theirs) = (hex(&ours), hex(&right));
            self.gate.quarantine(Quarantine { what, index, ours, theirs, time_ms: now_ms() });
            self.raft.runtime_config().elect(false);
        }
        self.mark();
    }

    /// Stops until it is known who is right.
    pub fn stop(&self, split: NoMajority) {
        let NoMajority { what, index, digests } = split;
        self.gate.doubt(Doubt { what, index, why: Why::NoMajority { digests } });
    }

    /// Puts the quarantine on disk, unless it is there.
    fn mark(&self) {
        let Some(quarantine) = self.gate.health().quarantine else { return };
        let mut marked = self.marked.lock().expect("no code panics under this lock");
        if !*marked {
            // Once in a node's life: a short block is no harm.
            match quarantine::write(&self.dir, &quarantine) {
                Ok(()) => *marked = true,
                Err(e) => tracing::error!("the quarantine can't be written down ({e}); it is tried again"),
            }
        }
    }

    fn leads(&self) -> bool {
        self.leader.borrow().is_some_and(|l| l.here)
    }

    async fn hand_over(&self) {
        crate::failpoint!("audit.before-hand-over");
        self.lead.hand_over().await;
    }

    /// The task. Ends when it is dropped.
    pub async fn run(self: Arc<Self>, proposals: Proposals, config: ChecksConfig) {
        let mut health = self.gate.watch();
        let mut leader = self.leader.clone();
        let mut last_round = Instant::now();
        let mut last_checkpoint = Instant::now();
        // What the last round that settled all was about.
        let mut settled = None;
        let mut outcome = Outcome::Open;
        loop {
            let in_doubt = self.gate.health().doubt.is_some() || outcome == Outcome::Doubtful;
            let pause = if in_doubt { config.audit_interval.min(DOUBT_INTERVAL) } else { config.audit_interval };
            let nudged = tokio::select! {
                () = tokio::time::sleep_until(last_round + pause) => false,
                () = self.nudged.notified() => true,
                changed = health.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                changed = leader.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
            };
            let now_leads = *leader.borrow_and_update();
            self.gate.follow(now_leads.map(|l| l.term));
            self.mark();
            self.show();
            match now_leads {
                Some(Leader { here: true, .. }) => {
                    let question = (now_leads, self.gate.applied(), self.gate.contents().last().copied());
                    if nudged || settled != Some(question) {
                        outcome = self.round().await;
                        settled = (outcome == Outcome::Settled).then_some(question);
                    }
                    self.checkpoint(&proposals, &config, &mut last_checkpoint).await;
                }
                Some(Leader { node, .. }) => {
                    (outcome, settled) = (Outcome::Open, None);
                    if self.gate.health().doubt.is_some() {
                        let _ = self.calls.call(node, Call::Suspect).await;
                    }
                }
                None => (outcome, settled) = (Outcome::Open, None),
            }
            last_round = Instant::now();
        }
    }

    fn show(&self) {
        let health = self.gate.health();
        self.metrics.quarantined.set(u64::from(health.quarantine.is_some()));
        self.metrics.held.set(u64::from(health.doubt.is_some() || health.poison.is_some()));
    }

    /// Asks all members, until those that are behind by a moment have come.
    async fn gather(&self) -> (Round, Vec<u64>) {
        let first = self.ask(&[], None).await;
        let (indices, reached) = (first.indices(), first.reports.into_keys().collect());
        for _ in 1..LAGGARD_TRIES {
            let round = self.ask(&indices, Some(&reached)).await;
            if !round.is_worth_a_wait(&indices) {
                return (round, indices);
            }
            tokio::time::sleep(LAGGARD_PAUSE).await;
        }
        (self.ask(&indices, Some(&reached)).await, indices)
    }

    /// Compares all members and tells them what is right.
    async fn round(&self) -> Outcome {
        let (round, indices) = self.gather().await;
        self.metrics.audits.inc();
        *self.lead.unfit() = round.unfit();
        let mut is_settled = round.is_complete();
        let mut is_doubtful = round.reports.values().any(|r| r.doubt.is_some());
        for (what, index, heard) in round.compared(&indices) {
            let of_voters: Vec<_> = heard.iter().filter(|(id, _)| round.voters.contains(id)).copied().collect();
            match decide(&of_voters, round.voters.len()) {
                Decision::Right { right, .. } => {
                    self.metrics.audited_index.set(index);
                    is_settled &= heard.iter().all(|(_, digest)| *digest == right);
                    self.tell(&round, Verdict { what, index, right }, &heard).await;
                }
                Decision::Split(held) => {
                    is_doubtful = true;
                    let digests: Vec<String> =
                        held.iter().map(|(digest, nodes)| format!("{} on nodes {nodes:?}", hex(digest))).collect();
                    self.stop_all(&heard, NoMajority { what, index, digests: digests.join(", ") }).await;
                }
                Decision::Unknown => is_settled = false,
            }
        }
        if self.leads() && !self.gate.is_open() && round.reports.len() > 1 {
            // The lead is better with a node that applies.
            is_settled = false;
            if !round.sound_peers(self.me).is_empty() && self.gate.health().doubt.is_none() {
                self.hand_over().await;
            }
        }
        match (is_doubtful, is_settled) {
            (true, _) => Outcome::Doubtful,
            (false, true) => Outcome::Settled,
            (false, false) => Outcome::Open,
        }
    }

    /// The verdict, to whom it concerns: those that are wrong, and those that are in doubt. This node comes last, because
    /// it may have to give up the lead.
    async fn tell(&self, round: &Round, verdict: Verdict, heard: &[(NodeId, Short)]) {
        let concerned = heard.iter().filter(|(id, digest)| {
            *digest != verdict.right || round.reports.get(id).is_some_and(|r| r.doubt.is_some())
        });
        let concerned: BTreeSet<NodeId> = concerned.map(|(id, _)| *id).collect();
        crate::failpoint!("audit.before-verdict", if !concerned.is_empty());
        if concerned.is_empty() {
            return;
        }
        let peers: Vec<NodeId> = concerned.iter().copied().filter(|id| *id != self.me).collect();
        let told = join_all(peers.iter().map(|id| self.calls.call(*id, Call::Verdict(verdict)))).await;
        let told: BTreeSet<NodeId> = peers.into_iter().zip(told).filter_map(|(id, r)| r.ok().map(|_| id)).collect();
        {
            let mut unfit = self.lead.unfit();
            for (id, digest) in heard {
                if *digest != verdict.right {
                    unfit.insert(*id);
                } else if told.contains(id) && round.reports.get(id).is_some_and(|r| !r.held) {
                    // Its doubt was about another node, and that is over.
                    unfit.remove(id);
                }
            }
        }
        if concerned.contains(&self.me) {
            self.judge(verdict).await;
        }
    }

    async fn stop_all(&self, heard: &[(NodeId, Short)], split: NoMajority) {
        let peers = heard.iter().filter(|(id, _)| *id != self.me);
        join_all(peers.map(|(id, _)| self.calls.call(*id, Call::Stop(split.clone())))).await;
        self.stop(split);
    }

    /// `reached`: ask only these; the others have just not answered.
    async fn ask(&self, at: &[u64], reached: Option<&BTreeSet<NodeId>>) -> Round {
        use openraft::async_runtime::watch::WatchReceiver;
        let (voters, members): (BTreeSet<NodeId>, Vec<NodeId>) = {
            let metrics = self.raft.server_metrics();
            let m = metrics.borrow_watched();
            let membership = m.membership_config.membership();
            (membership.voter_ids().collect(), membership.nodes().map(|(id, _)| *id).collect())
        };
        let ask = async |id: NodeId| {
            if id == self.me {
                return Some((id, self.report(at)));
            }
            match self.calls.call(id, Call::Audit { at: at.to_vec() }).await {
                Ok(Answer::Report(report)) => Some((id, report)),
                _ => None,
            }
        };
        let asked = members.iter().filter(|id| reached.is_none_or(|reached| reached.contains(id)));
        let reports = join_all(asked.map(|id| ask(*id))).await.into_iter().flatten().collect();
        Round { voters, reports, members: members.len() }
    }

    /// Logs a checkpoint if it is time and something was applied since the last.
    async fn checkpoint(&self, proposals: &Proposals, config: &ChecksConfig, last: &mut Instant) {
        if config.checkpoint_interval.is_zero() || last.elapsed() < config.checkpoint_interval {
            return;
        }
        *last = Instant::now();
        if !self.gate.is_open() || proposals.is_founding() || self.gate.applied() == self.gate.last_checkpoint() {
            return;
        }
        crate::failpoint!("checkpoint.before-propose");
        let id = BatchId { node: self.me, boot: random(), sequence: 0 };
        let propose = proposals.propose(id, Kind::Checkpoint, Bytes::new());
        // Without a leader in time there is none: the next interval comes.
        let _ = tokio::time::timeout(CHECKPOINT_TIMEOUT, propose).await;
    }
}

impl Round {
    /// Voters whose digests count.
    fn witnesses(&self) -> impl Iterator<Item = (&NodeId, &Report)> {
        self.reports.iter().filter(|(id, r)| !r.quarantined && self.voters.contains(id))
    }

    /// Where to compare: at the newest index that a majority of the voters has applied, at the newest that all have that
    /// aren't far behind, and wherever somebody is in doubt.
    fn indices(&self) -> Vec<u64> {
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
    fn is_complete(&self) -> bool {
        let mut seen = self.reports.values().filter(|r| !r.quarantined);
        let at = |r: &Report| (r.applied, r.contents.last().map(|(index, _)| *index));
        let first = seen.next().map(at);
        self.reports.len() == self.members && seen.all(|r| Some(at(r)) == first)
    }

    /// What there is to decide: which digest, at which index, and who has which.
    fn compared(&self, indices: &[u64]) -> Vec<(What, u64, Vec<(NodeId, Short)>)> {
        let chain = indices
            .iter()
            .enumerate()
            .map(|(at, index)| (What::Chain, *index, self.heard(|r| r.chain.get(at).copied().flatten())));
        let content = self.checkpoints().into_iter().map(|index| {
            let digest = |r: &Report| r.contents.iter().find(|(i, _)| *i == index).map(|(_, digest)| *digest);
            (What::Content, index, self.heard(digest))
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
    fn heard(&self, of: impl Fn(&Report) -> Option<Short>) -> Vec<(NodeId, Short)> {
        let sound = self.reports.iter().filter(|(_, r)| !r.quarantined);
        sound.filter_map(|(id, report)| Some((*id, of(report)?))).collect()
    }

    /// Voters differ somewhere without a majority, and one that was reached will have its voice in a moment.
    fn is_worth_a_wait(&self, indices: &[u64]) -> bool {
        indices.iter().enumerate().any(|(at, index)| {
            let said = |r: &Report| r.chain.get(at).copied().flatten();
            let heard: Vec<_> = self.witnesses().filter_map(|(id, r)| Some((*id, said(r)?))).collect();
            let is_coming = self.witnesses().any(|(_, r)| r.doubt.is_none() && !r.held && r.applied < Some(*index));
            is_coming && matches!(decide(&heard, self.voters.len()), Decision::Split(_))
        })
    }

    fn unfit(&self) -> BTreeSet<NodeId> {
        let unfit = self.reports.iter().filter(|(_, r)| r.quarantined || r.held || r.doubt.is_some());
        unfit.map(|(id, _)| *id).collect()
    }

    fn sound_peers(&self, me: NodeId) -> Vec<NodeId> {
        let unfit = self.unfit();
        self.witnesses().map(|(id, _)| *id).filter(|id| *id != me && !unfit.contains(id)).collect()
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
