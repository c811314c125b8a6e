//! Each failpoint of the host once: a node is started with it, is brought to that step, and dies there as by SIGKILL,
//! or meets an I/O error. Then it is started again, and everything acknowledged must be there on all nodes. A
//! failpoint that is not reached fails the test. Debug builds only: a release build has no failpoints. Those that need
//! a cluster for themselves are in `failpoints_apart.rs`.
//!
//! `RAFTLET_FAILPOINT=room.step` runs one of them. `RAFTLET_FAILPOINT_ERRORS`: how many kinds of I/O errors each meets
//! that can, 1 by default, at most 2.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastrand::Rng;
use raftlet_tests::cluster::Options;
use raftlet_tests::failpoints::{self, ALL, Failpoint, How, OnError, Reach};
use raftlet_tests::process::tail;
use raftlet_tests::{Cluster, Fate, Ledger, Load, features, seed, wait};

/// Few: a snapshot is due when the log has grown by as much as the state has.
const WRITERS: usize = 4;
/// Then a new cluster begins, for the same reason.
const CASES_PER_CLUSTER: usize = 8;
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// For a node to come to its failpoint, whatever must happen for it.
const REACHED_WITHIN: Duration = Duration::from_secs(90);
/// Small, so that a handful of large writes makes a snapshot and, with the next ones, a purge.
const SNAPSHOT_LOG_BYTES: &str = "256KiB";
const LARGE_BYTES: usize = 250_000;
/// For two nodes to make three snapshots each.
const PURGED_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

#[test]
fn the_list_has_all_failpoints_of_the_source_and_no_others() {
    let listed: Vec<(String, bool)> = ALL.iter().map(|f| (f.name.to_owned(), f.on_error.is_some())).collect();
    let source = failpoints::in_source();
    let missing: Vec<_> = source.iter().filter(|(n, io)| !listed.contains(&(n.to_string(), **io))).collect();
    let gone: Vec<_> = listed.iter().filter(|(name, io)| source.get(name) != Some(io)).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "tests/src/failpoints.rs is not what the source has (name, whether it takes an I/O error):\n\
         not in the list: {missing:?}\nnot in the source: {gone:?}"
    );
}

#[test]
fn steps_of_writing_and_starting() {
    run("steps_of_writing_and_starting", &[Reach::Writes, Reach::Leads, Reach::Starts]);
}

#[test]
fn steps_of_elections() {
    run("steps_of_elections", &[Reach::Votes, Reach::Truncates]);
}

#[test]
fn steps_of_snapshots_and_their_way() {
    run("steps_of_snapshots_and_their_way", &[Reach::Snapshots, Reach::Fetches, Reach::Serves]);
}

fn run(name: &str, reaches: &[Reach]) {
    let mut rng = seed::rng(name);
    let failpoints = failpoints::chosen(reaches);
    if failpoints.is_empty() {
        println!("this source has no failpoints of this kind");
        return;
    }
    let mut args = features::frequent_snapshots(SNAPSHOT_LOG_BYTES);
    if features::has_flag("--checkpoint-interval") {
        args.extend(["--checkpoint-interval", "500ms"].map(Into::into));
    }
    let mut cases = Vec::new();
    for failpoint in failpoints {
        cases.extend(failpoint.ways(&mut rng).into_iter().map(|how| (failpoint, how)));
    }
    for cases in cases.chunks(CASES_PER_CLUSTER) {
        let mut cluster = Cluster::start_with(3, Options { args: args.clone(), ..Options::default() });
        for (failpoint, how) in cases {
            let began = Instant::now();
            Case::run(&mut cluster, failpoint, *how, &mut rng);
            println!("{} {how:?}: {:.1} s", failpoint.name, began.elapsed().as_secs_f64());
        }
    }
}

/// One node with one failpoint, and the two others.
struct Case<'a> {
    cluster: &'a mut Cluster,
    failpoint: &'static Failpoint,
    how: How,
    armed: u64,
    others: [u64; 2],
    load: Load,
    /// What earlier loads of this case have written.
    ledger: Ledger,
    rng: &'a mut Rng,
    /// Length of the armed node's log when it was started.
    log_from: usize,
    deadline: Instant,
}

impl Case<'_> {
    fn run(cluster: &mut Cluster, failpoint: &'static Failpoint, how: How, rng: &mut Rng) {
        let mut ids: Vec<u64> = cluster.ids().collect();
        rng.shuffle(&mut ids);
        let passes = rng.u32(0..=failpoint.passes_max);
        let setting = failpoint.setting(how, passes);
        let (armed, others) = (ids[0], [ids[1], ids[2]]);
        println!("node {armed}: {setting}");
        let load = Load::start_small(cluster, WRITERS, rng);
        let (ledger, deadline) = (Ledger::default(), Instant::now());
        let mut case = Case { cluster, failpoint, how, armed, others, load, ledger, rng, log_from: 0, deadline };
        case.load.wait_for_more(20, PROGRESS_WITHIN);
        case.cluster.terminate(armed);
        if failpoint.reach == Reach::Fetches {
            case.purge_beyond(armed, others);
        }
        case.log_from = case.cluster.log(armed).len();
        case.cluster.set_variable(armed, "FAILPOINTS", &setting);
        case.cluster.restart(armed);
        case.deadline = Instant::now() + REACHED_WITHIN;
        case.drive();
        case.check();
        case.finish();
    }

    /// All nodes run again, and have what was acknowledged.
    fn finish(self) {
        let Case { cluster, load, mut ledger, .. } = self;
        cluster.restart_all();
        load.wait_for_more(20, PROGRESS_WITHIN);
        ledger.extend(load.stop());
        cluster.wait_converged();
        ledger.verify(cluster);
    }

    /// Writes until both others have made three more snapshots, so that they have purged what `behind` needs. No load
    /// meanwhile: it would make the state grow, and the next snapshot come later. Ends early when the armed node, if
    /// it is one of them, dies: what it was asked for before can reach its failpoint late.
    fn purge_beyond(&mut self, behind: u64, others: [u64; 2]) {
        println!("node {behind} is left behind");
        self.ledger.extend(std::mem::replace(&mut self.load, Load::start_small(self.cluster, 0, self.rng)).stop());
        let (cluster, armed) = (&mut *self.cluster, self.armed);
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        wait::until("the others have purged their logs", PURGED_WITHIN, || {
            // First: a dead node has no status.
            if others.contains(&armed) && cluster.exited(armed).is_some() {
                return Some(());
            }
            for (id, seen) in others.iter().zip(&mut seen) {
                large_write(cluster, *id);
                seen.extend(cluster.status(*id)?.snapshot_index);
            }
            seen.iter().all(|s| s.len() > 3).then_some(())
        });
        self.load = Load::start_small(self.cluster, WRITERS, self.rng);
    }

    fn said(&self) -> String {
        let log = self.cluster.log(self.armed);
        log.get(self.log_from..).unwrap_or(&log).to_owned()
    }

    /// The failpoint has done what it can: the node is dead, or, if it goes on with errors, it has told of one.
    fn reached(&mut self) -> bool {
        let ended = self.cluster.exited(self.armed).is_some();
        ended || matches!(self.how, How::Error(_, OnError::GoesOn)) && self.said().contains(self.how.trace())
    }

    /// Polls until the condition holds or the failpoint is reached. True: it is reached.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&Cluster) -> bool) -> bool {
        loop {
            if self.reached() {
                return true;
            }
            if condition(self.cluster) {
                return false;
            }
            assert!(
                Instant::now() < self.deadline,
                "{}: node {} was not reached; it was waited for: {what}\n{}",
                self.failpoint.name,
                self.armed,
                tail(&self.said(), 20)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Brings the armed node to its failpoint.
    fn drive(&mut self) {
        let armed = self.armed;
        match self.failpoint.reach {
            Reach::Starts | Reach::Fetches | Reach::Writes => drop(self.until("its end", |_| false)),
            Reach::Snapshots => drop(self.until("its end", |cluster| large_write(cluster, armed))),
            Reach::Leads => while !self.lead() && !self.until("its end", |c| !leads(c, armed)) {},
            Reach::Votes => while !self.elect() {},
            Reach::Truncates => while !self.diverge() {},
            Reach::Serves => while !self.serve() {},
            other => unreachable!("{other:?} has clusters of its own"),
        }
    }

    /// Makes the armed node the leader: the third node misses a write and then the leader dies, so that only the armed
    /// one can be elected. True: the failpoint was reached on the way.
    fn lead(&mut self) -> bool {
        let armed = self.armed;
        if self.until("it is ready", |c| ready(c, armed)) {
            return true;
        }
        let Some(leader) = self.other_leader() else { return self.reached() };
        let third = self.others[usize::from(self.others[0] == leader)];
        self.cluster.pause(third);
        let written = self.until("a write that the third node misses", |c| small_write(c, armed));
        if !written {
            self.cluster.kill(leader);
        }
        self.cluster.resume(third);
        if written {
            return true;
        }
        let reached = self.until("a new leader", |c| c.statuses().iter().any(|s| s.role == "leader"));
        self.cluster.restart(leader);
        reached || self.until("the other node is ready", |c| ready(c, leader))
    }

    fn other_leader(&self) -> Option<u64> {
        self.cluster.statuses().iter().find(|s| s.role == "leader" && s.node_id != self.armed).map(|s| s.node_id)
    }

    /// One election: the leader dies, whoever it is of the others, or else the armed one leads already and is paused.
    fn elect(&mut self) -> bool {
        let armed = self.armed;
        if self.until("it is ready", |c| ready(c, armed)) {
            return true;
        }
        match self.other_leader() {
            Some(leader) => {
                self.cluster.kill(leader);
                let reached = self.until("a new leader", |c| c.statuses().iter().any(|s| s.role == "leader"));
                self.cluster.restart(leader);
                reached || self.until("the other node is ready", |c| ready(c, leader))
            }
            None => self.depose(),
        }
    }

    /// The armed node leads: it is paused until another one does.
    fn depose(&mut self) -> bool {
        self.cluster.pause(self.armed);
        let others = self.others;
        let reached = self.until("another leader", |c| {
            c.statuses().iter().any(|s| s.role == "leader" && others.contains(&s.node_id))
        });
        if !reached {
            self.cluster.resume(self.armed);
        }
        reached
    }

    /// The armed node leads, alone takes writes that nobody else gets, and comes back when another one leads.
    fn diverge(&mut self) -> bool {
        let armed = self.armed;
        if self.lead() {
            return true;
        }
        if !leads(self.cluster, armed) {
            return false;
        }
        // Dead and not paused: the kernel would take the entries for a process that is paused.
        self.others.iter().for_each(|id| self.cluster.kill(*id));
        let had = self.cluster.status(armed).and_then(|s| s.last_log_index);
        // Without a quorum it acknowledges nothing; it logs the entry all the same.
        let reached = self.until("it has logged what nobody else has", |c| {
            small_write(c, armed);
            c.status(armed).is_some_and(|s| s.last_log_index > had)
        });
        if reached {
            self.others.iter().for_each(|id| self.cluster.restart(*id));
            return true;
        }
        self.cluster.pause(armed);
        self.others.iter().for_each(|id| self.cluster.restart(*id));
        let others = self.others;
        let reached = self.until("another leader", |c| {
            c.statuses().iter().any(|s| s.role == "leader" && others.contains(&s.node_id))
        });
        self.cluster.resume(armed);
        reached || self.until("it is ready", |c| ready(c, armed))
    }

    /// Another node comes back so far behind that the armed one, which leads, must send it a snapshot.
    fn serve(&mut self) -> bool {
        if self.lead() {
            return true;
        }
        let (armed, behind) = (self.armed, self.others[0]);
        if !leads(self.cluster, armed) {
            return false;
        }
        self.cluster.kill(behind);
        self.purge_beyond(behind, [armed, self.others[1]]);
        self.cluster.restart(behind);
        self.until("the node that was behind is ready", |c| ready(c, behind))
    }

    /// The node ended as it should have, or goes on, and its log says why.
    fn check(&mut self) {
        let said = self.said();
        if matches!(self.how, How::Error(_, OnError::GoesOn)) {
            // Healed, so that the next case begins with a node that has no failpoint.
            wait::until("the node is still ready", PROGRESS_WITHIN, || ready(self.cluster, self.armed).then_some(()));
            assert!(self.cluster.terminate(self.armed).success(), "{}", tail(&self.said(), 30));
            return;
        }
        let status = self.cluster.wait_exit(self.armed);
        self.how.check_end(status, &said);
    }
}

fn ready(cluster: &Cluster, id: u64) -> bool {
    let answer = cluster.client(id).answer_within(ANSWER_WITHIN).get("/_/ready");
    answer.is_ok_and(|a| a.status == 200)
}

fn leads(cluster: &Cluster, id: u64) -> bool {
    cluster.status(id).is_some_and(|s| s.role == "leader")
}

fn small_write(cluster: &Cluster, id: u64) -> bool {
    let write = cluster.client(id).answer_within(ANSWER_WITHIN).put("/kv/failpoints", b"x");
    Fate::of(&write) == Fate::Acknowledged
}

/// Never true: there is always more to be written.
fn large_write(cluster: &Cluster, id: u64) -> bool {
    let value = vec![b'x'; LARGE_BYTES];
    let _ = cluster.client(id).answer_within(ANSWER_WITHIN).put("/kv/failpoints/large", &value);
    false
}
