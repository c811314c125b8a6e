//! A time of day for each node of a cluster, which can be stepped while it runs: `clock/clock.rs` in the node's process
//! reads the shift from a file that the test writes. Monotonic clocks stay true. Linux with glibc only.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Shifts a node's time of day from the true one, now and at its next starts.
#[track_caller]
pub fn set(folder: &Path, node: u64, milliseconds: i64) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path(folder, node));
    // Never shortened, because the node has it mapped.
    let written = file.and_then(|file| file.write_all_at(&(milliseconds * 1_000_000).to_ne_bytes(), 0));
    written.expect("the clock's file can be written");
}

/// What a node's process must have in its environment.
#[track_caller]
pub fn environment(folder: &Path, node: u64) -> [(String, String); 2] {
    let file = path(folder, node);
    if !file.exists() {
        set(folder, node, 0);
    }
    let file = file.to_string_lossy().into_owned();
    [("LD_PRELOAD".into(), env!("CLOCK_LIBRARY").into()), ("RAFTLET_TEST_CLOCK".into(), file)]
}

fn path(folder: &Path, node: u64) -> PathBuf {
    folder.join(format!("clock-{node}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::SystemTime;

    use super::*;

    const DAY_MS: i64 = 86_400_000;

    /// Seconds since the epoch, as a process with this clock sees them.
    fn seen(folder: &Path) -> i64 {
        let date = Command::new("date").arg("+%s").envs(environment(folder, 1)).output().expect("date runs");
        String::from_utf8(date.stdout).expect("digits").trim().parse().expect("a number")
    }

    #[test]
    fn a_process_sees_the_shifted_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for days in [0, -400, 3] {
            set(folder.path(), 1, days * DAY_MS);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
            let difference = seen(folder.path()) - i64::try_from(now).expect("small") - days * DAY_MS / 1000;
            assert!((0..60).contains(&difference), "{days} days: {difference} s off");
        }
    }
}
