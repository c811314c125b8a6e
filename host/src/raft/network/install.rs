//! The follower's side of a leader's snapshot: fetches it from the leader, beside everything else, and hands it to
//! openraft when it is durable here. One at a time; the leader asks again and again, which joins the fetch that is
//! under way. A newer leader's call ends an older one's. Next: openraft, which lets `state_machine/` load it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::alias::SnapshotOf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::Raft;
use super::super::types::{NodeId, SnapshotFile, TypeConfig, Vote};
use super::fetch::{FetchError, Source, percent};
use super::handshake::{Caller, Peers};
use super::message::Answer;
use super::snapshots::Offer;
use crate::state_machine::snapshot::Snapshots;

/// The leader is told within this time how far it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A snapshot that arrived damaged so often is not fetched again, the leader has to make a new one ...
const DAMAGED_MAX: u32 = 3;
/// ... except after this time: the damage may have been done on the way.
const DAMAGED_FOR: Duration = Duration::from_secs(60);

pub struct Installer {
    inner: Arc<Inner>,
    job: Mutex<Option<Job>>,
    tasks: Mutex<JoinSet<()>>,
}

struct Inner {
    peers: Arc<Peers>,
    raft: Raft,
    snapshots: Arc<Snapshots>,
    /// How often each snapshot arrived damaged, and when it last did.
    damaged: Mutex<HashMap<String, (u32, Instant)>>,
}

/// A fetch and what follows, under way or ended.
struct Job {
    name: String,
    vote: Vote,
    from: NodeId,
    bytes: u64,
    have: watch::Receiver<u64>,
    ended: watch::Receiver<Option<Answer>>,
    /// Ends it while it is being fetched; not while it is being installed.
    cancel: watch::Sender<bool>,
}

impl Installer {
    pub fn new(peers: Arc<Peers>, raft: Raft, snapshots: Arc<Snapshots>) -> Self {
        let inner = Inner { peers, raft, snapshots, damaged: Mutex::default() };
        Installer { inner: Arc::new(inner), job: Mutex::default(), tasks: Mutex::default() }
    }

    /// How far a snapshot is that this node needs, if there is one: its state is far behind then.
    pub fn progress(&self) -> Option<String> {
        let job = self.job.lock().expect("no code panics under this lock");
        let job = job.as_ref().filter(|job| job.ended.borrow().is_none())?;
        let done = percent(*job.have.borrow(), job.bytes);
        Some(format!("this node is far behind and takes a snapshot from node {}: {done} %", job.from))
    }

    /// Answers within [`ANSWER_WITHIN`], also when the snapshot is still on its way.
    pub async fn install(&self, caller: &Caller, vote: Vote, offer: Offer) -> Answer {
        if let Err(answer) = self.inner.check(&vote, &offer).await {
            return answer;
        }
        let (have, mut ended) = match self.join_or_begin(caller, vote, &offer) {
            Some(job) => job,
            // Another one is still ending.
            None => {
                tokio::time::sleep(ANSWER_WITHIN / 10).await;
                return Answer::SnapshotComing { have: 0 };
            }
        };
        let answer = timeout(ANSWER_WITHIN, ended.wait_for(Option::is_some)).await;
        match answer {
            Ok(Ok(answer)) => {
                let answer = (*answer).clone().expect("waited for");
                self.forget(&offer.name);
                answer
            }
            Ok(Err(_)) => {
                self.forget(&offer.name);
                Answer::Refused("the fetch was given up".into())
            }
            Err(_) => Answer::SnapshotComing { have: *have.borrow() },
        }
    }

    /// None: the job of another snapshot must end first.
    fn join_or_begin(
        &self,
        caller: &Caller,
        vote: Vote,
        offer: &Offer,
    ) -> Option<(watch::Receiver<u64>, watch::Receiver<Option<Answer>>)> {
        let mut job = self.job.lock().expect("no code panics under this lock");
        if let Some(job) = &*job
            && job.ended.has_changed().is_ok()
            && job.ended.borrow().is_none()
        {
            if job.name == offer.name && job.vote == vote {
                return Some((job.have.clone(), job.ended.clone()));
            }
            job.cancel.send_replace(true);
            return None;
        }
        if let Some(job) = &*job
            && job.name == offer.name
            && job.vote == vote
            && job.ended.borrow().is_some()
        {
            return Some((job.have.clone(), job.ended.clone()));
        }
        let (progress, have) = watch::channel(0);
        let (end, ended) = watch::channel(None);
        let (cancel, cancelled) = watch::channel(false);
        let work = Work { inner: self.inner.clone(), vote, offer: offer.clone(), source: self.inner.source(caller) };
        let mut tasks = self.tasks.lock().expect("no code panics under this lock");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let answer = work.run(&progress, cancelled).await;
            end.send_replace(Some(answer));
        });
        let (name, from, bytes) = (offer.name.clone(), caller.node, offer.bytes);
        *job = Some(Job { name, vote, from, bytes, have: have.clone(), ended: ended.clone(), cancel });
        Some((have, ended))
    }

    /// Ends what is under way.
    pub fn stop(&self) {
        self.tasks.lock().expect("no code panics under this lock").abort_all();
    }

    fn forget(&self, name: &str) {
        let mut job = self.job.lock().expect("no code panics under this lock");
        // A newer job of the same name may be under way.
        let has_ended = |j: &Job| j.ended.borrow().is_some() || j.ended.has_changed().is_err();
        if job.as_ref().is_some_and(|j| j.name == name && has_ended(j)) {
            *job = None;
        }
    }
}

impl Inner {
    /// Refuses, or answers at once, what needs no fetch. openraft panics on a snapshot that contradicts vote or log.
    /// What is asked of Raft itself, in turn with its votes: openraft takes this node's answer for a proof that the other
    /// leads. The metrics may be older than a vote that was given.
    async fn check(&self, vote: &Vote, offer: &Offer) -> Result<(), Answer> {
        let asked = self.raft.with_raft_state(|state| (*state.vote_ref(), state.local_committed().cloned())).await;
        let (mine, committed) = asked.map_err(|e| Answer::Refused(format!("Raft has stopped: {e}")))?;
        if mine > *vote {
            return Err(Answer::SnapshotInstalled { vote: mine });
        }
        let Some(last) = offer.meta.last_log_id else {
            return Err(Answer::Refused("the snapshot is of no entry at all".into()));
        };
        if last.leader_id.term > vote.leader_id.term {
            let why = format!("the snapshot ends in term {}, after the leader's own", last.leader_id.term);
            return Err(Answer::Refused(why));
        }
        match committed {
            Some(committed) if last <= committed => Err(Answer::SnapshotInstalled { vote: mine }),
            Some(committed) if last.index <= committed.index => Err(Answer::Refused(format!(
                "the snapshot's last entry {last} contradicts {committed}, which is committed here"
            ))),
            _ => Ok(()),
        }
    }

    fn source(&self, caller: &Caller) -> Source {
        let known = self.peers.member.get().and_then(|lookup| lookup(caller.node));
        let given = self.peers.addresses.get(&caller.node).cloned();
        let address = given.or_else(|| known.map(|m| m.address)).unwrap_or_default();
        Source { peers: self.peers.clone(), node: caller.node, address, identity: Some(caller.identity) }
    }
}

/// One fetch and installation.
struct Work {
    inner: Arc<Inner>,
    vote: Vote,
    offer: Offer,
    source: Source,
}

impl Work {
    async fn run(self, progress: &watch::Sender<u64>, mut cancelled: watch::Receiver<bool>) -> Answer {
        let name = &self.offer.name;
        if self.inner.is_damaged(name) {
            return Answer::SnapshotDamaged(format!("{name} arrived damaged {DAMAGED_MAX} times; make a new one"));
        }
        let kept = self.inner.snapshots.kept().into_iter().find(|s| s.meta == self.offer.meta);
        let file = match kept {
            // A crash came between its arrival and its installation, or it was built here.
            Some(file) => file,
            None => {
                // Tried again and again by the leader: it is said once, where the shortage is.
                if let Err(why) = self.inner.snapshots.check_room(self.offer.bytes) {
                    return Answer::Refused(format!("there is no room for it: {why}"));
                }
                let fetched = tokio::select! {
                    fetched = self.source.fetch(&self.inner.snapshots, &self.offer, progress) => fetched,
                    _ = cancelled.wait_for(|c| *c) => {
                        tracing::info!("the fetch of {name} is given up: another leader or a newer snapshot came");
                        return Answer::Refused("given up for another".into());
                    }
                };
                match fetched {
                    Ok(file) => file,
                    Err(e) => return self.failed(e),
                }
            }
        };
        match self.hand_over(file).await {
            Ok(vote) => Answer::SnapshotInstalled { vote },
            Err(answer) => answer,
        }
    }

    /// To openraft. It was checked before the fetch, but that took its time.
    async fn hand_over(&self, file: SnapshotFile) -> Result<Vote, Answer> {
        self.inner.check(&self.vote, &self.offer).await?;
        let snapshot = SnapshotOf::<TypeConfig, SnapshotFile> { meta: file.meta.clone(), snapshot: file };
        crate::failpoint!("transfer.before-install");
        let installed = self.inner.raft.install_full_snapshot(self.vote, snapshot).await;
        crate::failpoint!("transfer.after-install");
        let response = installed.map_err(|e| Answer::Refused(format!("Raft has stopped: {e}")))?;
        tracing::info!("the snapshot {} from node {} is installed", self.offer.name, self.source.node);
        Ok(response.vote)
    }

    fn failed(&self, error: FetchError) -> Answer {
        tracing::warn!("{error}");
        match error {
            FetchError::Damaged { .. } => {
                if self.inner.arrived_damaged(&self.offer.name) < DAMAGED_MAX {
                    return Answer::Refused(error.to_string());
                }
                Answer::SnapshotDamaged(error.to_string())
            }
            error => Answer::Refused(error.to_string()),
        }
    }
}

impl Inner {
    fn is_damaged(&self, name: &str) -> bool {
        let mut damaged = self.damaged.lock().expect("no code panics under this lock");
        damaged.retain(|_, (_, last)| last.elapsed() < DAMAGED_FOR);
        damaged.get(name).is_some_and(|(times, _)| *times >= DAMAGED_MAX)
    }

    fn arrived_damaged(&self, name: &str) -> u32 {
        let mut damaged = self.damaged.lock().expect("no code panics under this lock");
        let (times, last) = damaged.entry(name.to_owned()).or_insert((0, Instant::now()));
        *times += 1;
        *last = Instant::now();
        *times
    }
}
