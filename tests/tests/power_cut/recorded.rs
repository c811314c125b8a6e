//! A cluster under the recorder: its runs, and where its power may be cut. Next: `cuts.rs`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::clock::monotonic_ns;
use raftlet_tests::cluster::{Options, Status};
use raftlet_tests::disk_replay::{Operation, Recording};
use raftlet_tests::{Client, Cluster, slots};

use crate::journal::{self, Journal, Profile};

const WATCH: Duration = Duration::from_millis(25);
/// Records after a start that count as its opening.
const OPENING: usize = 40;

/// Between a process and its files there is a recorder.
pub struct Recorded {
    pub cluster: Cluster,
    pub journal: Journal,
    /// Of node 1, 2, ...
    pub recordings: Vec<Recording>,
    /// Of each node, while it runs.
    outs: Vec<Option<PathBuf>>,
    /// Leaders seen: when, and their term.
    pub leaders: Vec<(u64, u64)>,
    runs: usize,
    pub records: tempfile::TempDir,
}

impl Recorded {
    /// Starts nodes in folders that were made for them, and waits until they are ready.
    pub fn start(nodes: u64, args: &[&str]) -> Recorded {
        let mut recorded = Self::prepare(nodes, args);
        for id in recorded.cluster.ids() {
            fs::create_dir(recorded.cluster.data(id)).expect("a new folder");
            let recording = &mut recorded.recordings[id as usize - 1];
            *recording = Recording::new(recorded.cluster.folder()).with_folder(&format!("node-{id}"));
        }
        recorded.start_all()
    }

    /// Starts nodes that must make their folders.
    pub fn start_without_folders(nodes: u64) -> Recorded {
        Self::prepare(nodes, &[]).start_all()
    }

    fn prepare(nodes: u64, args: &[&str]) -> Recorded {
        // A lone node need not wait for others, and there are many boots.
        let (heartbeat, min, max) = if nodes == 1 { ("20ms", "60ms", "120ms") } else { ("100ms", "400ms", "800ms") };
        let timing = ["--heartbeat", heartbeat, "--election-min", min, "--election-max", max];
        let args = timing.iter().chain(args).map(Into::into).collect();
        let cluster = Cluster::prepare(nodes, Options { args, ..Options::default() }, Some(slots::take()));
        let recordings = cluster.ids().map(|_| Recording::new(cluster.folder())).collect();
        let outs = cluster.ids().map(|_| None).collect();
        let records = tempfile::Builder::new().prefix("raftlet-power-").tempdir().expect("a temporary folder");
        let (journal, leaders) = (Journal::default(), Vec::new());
        Recorded { cluster, journal, recordings, outs, leaders, runs: 0, records }
    }

    fn start_all(mut self) -> Recorded {
        self.cluster.ids().for_each(|id| self.run(id));
        self.cluster.ids().for_each(|id| self.cluster.wait_ready(id));
        self
    }

    /// Starts a node that does not run.
    pub fn run(&mut self, id: u64) {
        self.runs += 1;
        let out = self.records.path().join(format!("node-{id}-run-{}", self.runs));
        for (name, value) in Recording::environment(self.cluster.folder(), &out) {
            self.cluster.set_variable(id, name, &value);
        }
        self.outs[id as usize - 1] = Some(out);
        self.cluster.restart(id);
    }

    /// SIGKILL.
    pub fn kill(&mut self, id: u64) {
        self.cluster.kill(id);
        self.take_in(id);
    }

    /// SIGTERM.
    pub fn terminate(&mut self, id: u64) {
        self.cluster.terminate(id);
        self.take_in(id);
    }

    /// The node has ended: its record is complete, and must lead to the folder that is there.
    fn take_in(&mut self, id: u64) {
        let out = self.outs[id as usize - 1].take().expect("the node ran");
        let recording = &mut self.recordings[id as usize - 1];
        recording.add_run(&out, &format!("node-{id}")).unwrap_or_else(|why| panic!("node {id}: {why}"));
    }

    pub fn restart(&mut self, id: u64) {
        self.run(id);
        self.cluster.wait_ready(id);
    }

    /// Runs clients to their end, and watches who leads.
    pub fn load(&mut self, profile: Profile, name: &str, rng: &mut Rng) {
        self.load_while(profile, name, rng, |_| {});
    }

    /// Runs clients while something is done to the nodes; if that is over, until they have done their writes.
    pub fn load_while(&mut self, profile: Profile, name: &str, rng: &mut Rng, act: impl FnOnce(&mut Recorded)) {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = self.watch();
        let clients = {
            let (name, addresses, mut rng, stop) =
                (name.to_owned(), self.cluster.addresses(), rng.fork(), stop.clone());
            std::thread::spawn(move || journal::run(profile, &name, &addresses, &mut rng, &stop))
        };
        act(self);
        self.journal.extend(clients.join().expect("the clients did not panic"));
        self.leaders.extend(watch.end());
    }

    fn watch(&self) -> Watch {
        let ended = Arc::new(AtomicBool::new(false));
        let (flag, addresses) = (ended.clone(), self.cluster.addresses());
        let thread = std::thread::spawn(move || {
            let mut leaders = Vec::new();
            let clients: Vec<Client> = addresses.into_iter().map(Client::new).collect();
            let mut clients: Vec<Client> =
                clients.into_iter().map(|c| c.answer_within(Duration::from_secs(2))).collect();
            while !flag.load(Ordering::Acquire) {
                for client in &mut clients {
                    let Ok(response) = client.get("/_/status") else { continue };
                    let Ok(status) = serde_json::from_slice::<Status>(&response.body) else { continue };
                    if status.role == "leader" {
                        leaders.push((monotonic_ns(), status.term));
                    }
                }
                std::thread::sleep(WATCH);
            }
            leaders
        });
        Watch { ended, thread }
    }

    /// Ends all nodes by SIGKILL.
    pub fn end(&mut self) {
        self.cluster.kill_all();
        for id in self.cluster.ids() {
            if self.outs[id as usize - 1].is_some() {
                self.take_in(id);
            }
        }
    }

    /// The highest term of a leader that was seen before a write that was acknowledged before the cut began: a quorum
    /// knows of that term.
    pub fn term_before(&self, time_ns: u64) -> u64 {
        let begun = self.journal.acknowledgements().filter(|(_, at)| *at < time_ns).map(|(begun, _)| begun).max();
        let before = |(at, _): &&(u64, u64)| begun.is_some_and(|begun| *at < begun);
        self.leaders.iter().filter(before).map(|(_, term)| *term).max().unwrap_or(0)
    }

    /// Positions in a node's record, mostly where something may go wrong, in order.
    pub fn positions(&self, id: u64, count: usize, rng: &mut Rng) -> Vec<usize> {
        let recording = &self.recordings[id as usize - 1];
        let records = &recording.records;
        let (mut syncs, mut names, mut opening) = (Vec::new(), Vec::new(), Vec::new());
        for (at, record) in records.iter().enumerate() {
            match record.operation {
                Operation::SyncStart { .. } | Operation::SyncEnd { .. } => syncs.extend([at, at + 1]),
                Operation::Rename { .. }
                | Operation::Unlink { .. }
                | Operation::Rmdir { .. }
                | Operation::Mkdir { .. }
                | Operation::Open { created: true, .. } => names.extend([at, at + 1]),
                Operation::Start => opening.extend(at + 1..(at + OPENING).min(records.len())),
                _ => {}
            }
        }
        // Right after an acknowledgement nothing later can help.
        let answered: Vec<usize> =
            self.journal.acknowledgements().map(|(_, at)| recording.position_at(at + 1)).collect();
        let mut positions: Vec<usize> = std::iter::repeat_with(|| {
            let preferred = match rng.u8(..100) {
                0..30 => &syncs,
                30..40 => &names,
                40..55 => &opening,
                55..85 => &answered,
                _ => &Vec::new(),
            };
            rng.choice(preferred).copied().unwrap_or_else(|| rng.usize(..=records.len()))
        })
        .take(count)
        .collect();
        positions.sort_unstable();
        positions
    }
}

struct Watch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(u64, u64)>>,
}

impl Watch {
    fn end(self) -> Vec<(u64, u64)> {
        self.ended.store(true, Ordering::Release);
        self.thread.join().expect("the watch did not panic")
    }
}
