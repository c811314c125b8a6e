//! Divergence: the leader compares the nodes' digests at indices that they have applied, again and again, and tells each
//! what is right there. Each node judges itself: who has another digest than the majority goes into quarantine, who has
//! the same goes on. Everything here is level-triggered: a message that is lost is sent again by the next round, by this
//! leader or another. What is asked and heard is
//! in `hearing.rs`, what is right is decided in `ballot.rs`; what a closed gate means is in `state_machine/gate.rs`.

use std::collections::BTreeSet;
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
use super::hearing::{Comparison, Report, Round};
use super::identity::random;
use super::network::message::{Answer, Call};
use super::types::{BatchId, Kind, NodeId};
use super::{Leader, Proposals, Raft, quarantine};
use crate::config::ChecksConfig;
use crate::metrics::Metrics;
use crate::state_machine::health::{Doubt, Quarantine, What, Why, hex};
use crate::state_machine::{Gate, Short};

/// Between rounds while nodes are in doubt: they answer nobody meanwhile.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);
/// A voter that has not yet applied an index is asked again so often, with pauses, before its voice is missed there.
const LAGGARD_TRIES: usize = 5;
const LAGGARD_PAUSE: Duration = Duration::from_millis(40);
/// So long without a leader: several elections could have been held.
const LEADERLESS: Duration = Duration::from_secs(5);
/// For a checkpoint to be logged.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(5);

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
        let mut leaderless = Instant::now();
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
            if now_leads.is_some() {
                leaderless = Instant::now();
            }
            self.stand(now_leads, leaderless);
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

    /// A node in quarantine doesn't stand for election, unless nobody else is elected: its log is sound, and may be the
    /// only one that all that was committed is in. It hands over as soon as another voter has that.
    fn stand(&self, leads: Option<Leader>, leaderless: Instant) {
        if self.gate.health().quarantine.is_some() {
            let is_alone = leads.is_none() && leaderless.elapsed() > LEADERLESS;
            let is_leading = leads.is_some_and(|l| l.here);
            self.raft.runtime_config().elect(is_alone || is_leading);
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
        for Comparison { what, index, heard } in round.compared(&indices) {
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
