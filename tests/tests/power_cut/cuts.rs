//! Cuts: builds the folders, boots nodes on them and compares with the journal. Owns what counts as a loss.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::cluster::Status;
use raftlet_tests::disk_replay::{Mode, Replay};
use raftlet_tests::process::{Signal, tail};
use raftlet_tests::{Client, Process, wait};

use crate::recorded::Recorded;

/// Generous: a debug build compiles a module at each start, and other tests use the same cores.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// What a number of cuts led to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub cuts: usize,
    /// Before the first acknowledgement: nodes that refused to start, with a message that names their folder.
    pub refused: usize,
    pub failures: Vec<String>,
}

/// One cut: the same moment on all nodes.
struct Cut {
    time_ns: u64,
    /// In each node's record.
    positions: Vec<usize>,
    mode: Mode,
    seed: u64,
    /// Nodes that are started again; the others are gone with their disks.
    survivors: Vec<u64>,
}

/// What a boot found.
enum Boot {
    Ready(Vec<Process>),
    Refused(String),
    Failed(String),
}

/// Cuts the power so many times. The nodes have ended. The folders of cuts that fail can be kept.
pub fn cut(recorded: &Recorded, count: usize, keep: bool, rng: &mut Rng) -> Outcome {
    let mut outcome = Outcome::default();
    let mut replays: Vec<Replay<'_>> = recorded.recordings.iter().map(|r| r.replay()).collect();
    for cut in choose(recorded, count, rng) {
        for (replay, position) in replays.iter_mut().zip(&cut.positions) {
            replay.advance(*position);
        }
        let folder = tempfile::Builder::new().prefix("raftlet-cut-").tempdir().expect("a temporary folder");
        for id in &cut.survivors {
            let target = folder.path().join(format!("disk-{id}"));
            fs::create_dir(&target).expect("an empty folder");
            let mut seeded = Rng::with_seed(cut.seed.wrapping_add(*id));
            replays[*id as usize - 1].build(cut.mode, &mut seeded, &target).expect("the folder can be written");
        }
        outcome.cuts += 1;
        let problems = try_cut(recorded, &cut, folder.path(), &mut outcome.refused);
        if !problems.is_empty() {
            outcome.failures.push(report(&cut, &problems, folder.path()));
            if keep {
                let _ = folder.keep();
            }
        }
    }
    outcome
}

/// In order of time, so that one replay of each record will do.
fn choose(recorded: &Recorded, count: usize, rng: &mut Rng) -> Vec<Cut> {
    let nodes = recorded.recordings.len() as u64;
    let mut cuts: Vec<Cut> = Vec::new();
    for id in 1..=nodes {
        let share = count / nodes as usize + usize::from((count as u64 % nodes) >= id);
        for position in recorded.positions(id, share, rng) {
            let time_ns = recorded.recordings[id as usize - 1].time_of(position);
            let mut positions: Vec<usize> = recorded.recordings.iter().map(|r| r.position_at(time_ns)).collect();
            positions[id as usize - 1] = position;
            let mode = match rng.u8(..100) {
                0..30 => Mode::Nothing,
                30..75 => Mode::Random,
                75..90 => Mode::Newest,
                _ => Mode::Everything,
            };
            let mut survivors: Vec<u64> = (1..=nodes).collect();
            // A cluster that isn't complete needs all its nodes.
            let complete = recorded.journal.acknowledged_before(time_ns) > 0;
            if nodes > 1 && complete && rng.bool() {
                survivors.remove(rng.usize(..survivors.len()));
            }
            cuts.push(Cut { time_ns, positions, mode, seed: rng.u64(..), survivors });
        }
    }
    cuts.sort_by(|a, b| (a.time_ns, &a.positions).cmp(&(b.time_ns, &b.positions)));
    // Records of the same nanosecond may order two cuts differently on two nodes.
    for at in 1..cuts.len() {
        let (before, after) = cuts.split_at_mut(at);
        let positions = after[0].positions.iter_mut().zip(&before[at - 1].positions);
        positions.for_each(|(mine, earlier)| *mine = (*mine).max(*earlier));
    }
    cuts
}

/// What is wrong after the cut.
fn try_cut(recorded: &Recorded, cut: &Cut, folder: &Path, refused: &mut usize) -> Vec<String> {
    let acknowledged = recorded.journal.acknowledged_before(cut.time_ns);
    // Whoever was told something must not have to found the cluster again.
    let founding = acknowledged == 0;
    match boot(recorded, cut, folder, founding) {
        Boot::Ready(nodes) => {
            let mut problems: Vec<String> = Vec::new();
            for id in &cut.survivors {
                problems.extend(recorded.journal.check(recorded.cluster.address(*id), cut.time_ns));
            }
            let term =
                cut.survivors.iter().filter_map(|id| status(recorded.cluster.address(*id))).map(|s| s.term).max();
            let known = recorded.term_before(cut.time_ns);
            if !founding && term.unwrap_or(0) <= known {
                problems.push(format!("a leader of term {known} was seen, but now the term is {term:?}"));
            }
            drop(nodes);
            problems
        }
        Boot::Refused(_) if founding => {
            *refused += 1;
            Vec::new()
        }
        Boot::Refused(why) | Boot::Failed(why) => {
            vec![format!("{acknowledged} writes were acknowledged, and it does not start: {why}")]
        }
    }
}

fn boot(recorded: &Recorded, cut: &Cut, folder: &Path, founding: bool) -> Boot {
    let start = |id: &u64| {
        let dir = folder.join(format!("disk-{id}/node-{id}"));
        let args = with_dir(recorded.cluster.arguments(*id, founding && *id == 1), &dir);
        Process::start(&format!("node-{id}"), folder, &args, Signal::KILL)
    };
    let mut nodes: Vec<Process> = cut.survivors.iter().map(start).collect();
    let ready = |id: &u64| {
        let mut client = Client::new(recorded.cluster.address(*id)).answer_within(STATUS_WITHIN);
        client.get("/_/ready").is_ok_and(|r| r.status == 200)
    };
    let ended = wait::poll(READY_WITHIN, || {
        if let Some(at) = nodes.iter_mut().position(|node| node.exited().is_some()) {
            return Some(Some(at));
        }
        cut.survivors.iter().all(ready).then_some(None)
    });
    match ended {
        Some(None) => Boot::Ready(nodes),
        Some(Some(at)) => {
            let said = nodes[at].stderr();
            let names_it = said.contains(&*folder.to_string_lossy()) && !said.contains("panicked");
            let why = format!("node {}: {}", cut.survivors[at], tail(&said, 5));
            if names_it { Boot::Refused(why) } else { Boot::Failed(why) }
        }
        None => {
            let said: Vec<String> = nodes.iter().map(|node| tail(&node.stderr(), 5)).collect();
            Boot::Failed(format!("it is not ready after {READY_WITHIN:?}: {}", said.join("\n---\n")))
        }
    }
}

fn with_dir(mut args: Vec<OsString>, dir: &Path) -> Vec<OsString> {
    let at = args.iter().position(|a| a == "--dir").expect("nodes are started with --dir");
    args[at + 1] = dir.into();
    args
}

fn status(address: SocketAddr) -> Option<Status> {
    let response = Client::new(address).answer_within(STATUS_WITHIN).get("/_/status").ok()?;
    serde_json::from_slice(&response.body).ok()
}

fn report(cut: &Cut, problems: &[String], folder: &Path) -> String {
    format!(
        "cut after {:?} records (time {} ns), mode {:?}, seed {}, nodes {:?}; folders in {}: {} problems, the first: {:#?}",
        cut.positions,
        cut.time_ns,
        cut.mode,
        cut.seed,
        cut.survivors,
        folder.display(),
        problems.len(),
        &problems[..problems.len().min(3)]
    )
}
