//! The list of failpoints: the named steps of the host at which it can be made to die or fail, and how a test gets a
//! node there. A failpoint of the host that is not in this list, or the other way round, fails `tests/failpoints.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use fastrand::Rng;

use crate::features;
use crate::process::tail;

#[derive(Debug, Clone, Copy)]
pub struct Failpoint {
    /// `room.step`, as in the host's source.
    pub name: &'static str,
    pub reach: Reach,
    /// It may be passed so often before it fires: a seed chooses how often. For steps that come rarely, 0.
    pub passes_max: u32,
    /// What an I/O error there does; None if none can be asked for there.
    pub on_error: Option<OnError>,
}

/// How a node that was started with a failpoint gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By clients' writes, whatever its role.
    Writes,
    /// By clients' writes, as the leader.
    Leads,
    /// By starting with a folder that has data.
    Starts,
    /// By elections.
    Votes,
    /// By having entries that the others overwrite.
    Truncates,
    /// By so many writes that snapshots are made and the log is purged.
    Snapshots,
    /// By being so far behind that it needs a leader's snapshot.
    Fetches,
    /// As the leader of a node that is so far behind.
    Serves,
    /// By founding a cluster.
    Founds,
    /// By joining the cluster that another node founds.
    Joins,
    /// By being told to skip the entry that it holds.
    Skips,
    /// By having another state than the others, as the leader.
    Diverges,
    /// As the leader, when another node has another state.
    Judges,
    /// By `raftlet node rejoin`.
    Marks,
    /// By starting after `raftlet node rejoin`.
    Rejoins,
}

/// What becomes of a node that meets an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It says so and ends.
    Ends,
    /// It says so and goes on.
    GoesOn,
}

/// What is done at a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Crash,
    /// `eio` or `enospc`.
    Error(&'static str, OnError),
}

use OnError::{Ends, GoesOn};
use Reach::{Diverges, Fetches, Founds, Joins, Judges, Leads, Marks, Rejoins, Serves, Skips, Snapshots};
use Reach::{Starts, Truncates, Votes, Writes};

/// All of them, by room, with what has just happened or is about to.
pub const ALL: &[Failpoint] = &[
    // The log is created: nothing is there, all but the marker is there, all is durable but its name, all is done.
    at("log.create-begun", Joins, 0, None),
    at("log.create-before-sync", Founds, 0, None),
    at("log.create-before-rename", Joins, 0, None),
    at("log.create-after-rename", Founds, 0, None),
    // About to open sled. Sled has what only the journal had.
    at("log.open", Starts, 0, None),
    at("log.replayed", Starts, 0, None),
    // Of one commit: it is nowhere; it is in the kernel; it is durable and the watermark is older; it is durable and
    // nobody was told.
    at("log.before-write", Writes, 200, Some(Ends)),
    at("log.before-sync", Writes, 200, Some(Ends)),
    at("log.before-watermark", Writes, 200, Some(Ends)),
    at("log.after-sync", Writes, 200, None),
    // Sled is synced for many commits: it has them in memory; they are in the kernel.
    at("log.before-flush", Snapshots, 1, Some(Ends)),
    at("log.before-checkpoint", Snapshots, 1, Some(Ends)),
    // About to take an operation into a commit; to delete what a truncation left behind the end.
    at("log.vote", Votes, 0, Some(Ends)),
    at("log.truncate", Truncates, 0, Some(Ends)),
    at("log.delete-beyond", Truncates, 0, Some(Ends)),
    at("log.purge", Snapshots, 1, Some(Ends)),
    // About to delete some of what is purged.
    at("log.purge-values", Snapshots, 2, Some(Ends)),
    // An entry and its execution.
    at("apply.before", Writes, 200, None),
    at("apply.after", Writes, 200, None),
    // Before a checkpoint is logged, and before a node digests its content for one.
    at("checkpoint.before-propose", Leads, 1, None),
    at("checkpoint.before-digest", Writes, 2, None),
    // The note of the entry that is being applied is read and written anew.
    at("note.before-count", Starts, 0, Some(Ends)),
    at("note.after-count", Starts, 0, Some(Ends)),
    // Entries to be skipped are remembered.
    at("skip.before-write", Skips, 0, Some(GoesOn)),
    at("skip.after-write", Skips, 0, Some(GoesOn)),
    // A leader has a verdict to tell; a leader that is wrong hands over; a node that is wrong marks itself.
    at("audit.before-verdict", Judges, 0, None),
    at("audit.before-hand-over", Diverges, 0, None),
    at("quarantine.before-marker", Diverges, 0, Some(GoesOn)),
    at("quarantine.after-marker", Diverges, 0, Some(GoesOn)),
    // A snapshot is begun, written, synced, named, put in its place; what is older goes; the log is purged.
    at("snapshot.begin", Snapshots, 1, Some(GoesOn)),
    at("snapshot.block", Snapshots, 3, Some(GoesOn)),
    at("snapshot.before-sync", Snapshots, 1, Some(GoesOn)),
    at("snapshot.before-rename", Snapshots, 1, None),
    at("snapshot.after-rename", Snapshots, 1, None),
    at("snapshot.before-delete", Snapshots, 1, None),
    at("snapshot.before-purge", Snapshots, 1, None),
    // A snapshot from a peer: a piece is asked for, has arrived; all is there, verified, durable, handed over, installed.
    at("transfer.serve", Serves, 0, Some(GoesOn)),
    at("transfer.chunk", Fetches, 0, Some(GoesOn)),
    at("transfer.before-adopt", Fetches, 0, None),
    at("snapshot.adopt", Fetches, 0, Some(GoesOn)),
    at("transfer.after-adopt", Fetches, 0, None),
    at("transfer.before-install", Fetches, 0, None),
    at("snapshot.install", Fetches, 0, Some(Ends)),
    at("snapshot.before-swap", Fetches, 0, None),
    at("transfer.after-install", Fetches, 0, None),
    // A node is marked to be reloaded; it has been, and the mark is about to go.
    at("rejoin.before-mark", Marks, 0, Some(Ends)),
    at("rejoin.before-unmark", Rejoins, 0, None),
];

const fn at(name: &'static str, reach: Reach, passes_max: u32, on_error: Option<OnError>) -> Failpoint {
    Failpoint { name, reach, passes_max, on_error }
}

impl Failpoint {
    /// A crash, and, where I/O errors can be asked for, one of them. `RAFTLET_FAILPOINT_ERRORS`: how many, up to 2.
    pub fn ways(&self, rng: &mut Rng) -> Vec<How> {
        let mut errors: Vec<How> =
            self.on_error.map(|e| ["eio", "enospc"].map(|name| How::Error(name, e))).into_iter().flatten().collect();
        rng.shuffle(&mut errors);
        let count = features::setting("RAFTLET_FAILPOINT_ERRORS", 1) as usize;
        std::iter::once(How::Crash).chain(errors.into_iter().take(count)).collect()
    }

    /// For `FAILPOINTS`: it fires after so many passes.
    pub fn setting(&self, how: How, passes: u32) -> String {
        let action = match how {
            How::Crash => "return".into(),
            How::Error(error, _) => format!("return({error})"),
        };
        if self.reach == Reach::Fetches && matches!(how, How::Error(_, OnError::GoesOn)) {
            // Once: as long as it can't store the state, it isn't ready.
            return format!("{}=1*{action}", self.name);
        }
        match passes {
            0 => format!("{}={action}", self.name),
            passes => format!("{}={passes}*off->{action}", self.name),
        }
    }
}

impl How {
    /// What the node's log must say.
    pub fn trace(self) -> &'static str {
        match self {
            How::Crash => "failpoint: the process dies here",
            How::Error("eio", _) => "os error 5",
            How::Error(_, _) => "os error 28",
        }
    }

    /// By a signal, or in good order with an error, and in any case with the trace.
    #[track_caller]
    pub fn check_end(self, status: ExitStatus, said: &str) {
        match self {
            How::Crash => assert_eq!(status.signal(), Some(9), "{status}:\n{}", tail(said, 30)),
            How::Error(..) => {
                assert!(status.code().is_some_and(|c| c != 0), "{status}, not an error:\n{}", tail(said, 30))
            }
        }
        assert!(said.contains(self.trace()), "its log tells nothing of it:\n{}", tail(said, 30));
    }
}

/// Those of the list that are reached in these ways and that the source has: one that is only listed fails a test of
/// its own. `RAFTLET_FAILPOINT` chooses one, whatever the source has.
pub fn chosen(reaches: &[Reach]) -> Vec<&'static Failpoint> {
    let only = std::env::var("RAFTLET_FAILPOINT").ok();
    let source = in_source();
    let wanted = |f: &&Failpoint| match &only {
        Some(name) => name == f.name,
        None => source.contains_key(f.name),
    };
    ALL.iter().filter(|f| reaches.contains(&f.reach)).filter(wanted).collect()
}

/// The failpoints in the host's source: name, and whether an I/O error can be asked for.
pub fn in_source() -> BTreeMap<String, bool> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in the workspace");
    let mut files = Vec::new();
    collect(&source.join("host/src"), &mut files);
    assert!(!files.is_empty(), "the host's source is there");
    let texts = files.iter().map(|file| fs::read_to_string(file).expect("the source can be read"));
    texts.flat_map(|text| named(&text)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be read").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("failpoint.rs") {
            files.push(path);
        }
    }
}

/// The names in a source text. Comments don't count.
fn named(text: &str) -> Vec<(String, bool)> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let name = |after: &str| {
        let (name, rest) = after.trim_start().strip_prefix('"')?.split_once('"')?;
        let io = rest.trim_start().strip_prefix(',').is_some_and(|rest| rest.trim_start().starts_with("io"));
        Some((name.to_owned(), io))
    };
    code.split("failpoint!(").skip(1).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failpoints_are_found_in_source_however_they_are_formatted() {
        let text = r#"
            failpoint!("a.one");
            // failpoint!("a.comment");
            crate::failpoint!("a.two", io);
            failpoint!(
                "a.three",
                if condition
            );
        "#;
        let found = named(text);
        assert_eq!(found, [("a.one".into(), false), ("a.two".into(), true), ("a.three".into(), false)]);
    }

    #[test]
    fn no_failpoint_is_listed_twice() {
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
