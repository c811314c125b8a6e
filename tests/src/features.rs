//! What the binary under test can do, found out by asking it. A test that needs what is missing says so and goes on
//! without it, so that the proofs also run against older binaries.

use std::ffi::OsString;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process;

const HELP_WITHIN: Duration = Duration::from_secs(30);

/// Whether `raftlet node start` knows this flag, as in `--listen`.
pub fn has_flag(flag: &str) -> bool {
    static HELP: OnceLock<String> = OnceLock::new();
    let help = HELP.get_or_init(|| process::run(&["node", "start", "--help"], HELP_WITHIN).stdout);
    let known = help.split_whitespace().any(|word| word == flag);
    if !known {
        println!("this binary has no {flag}: the test goes on without it");
    }
    known
}

/// Arguments that make snapshots and purges frequent, where the binary has them.
pub fn frequent_snapshots(log_bytes: &str) -> Vec<OsString> {
    const FLAG: &str = "--snapshot-log-bytes";
    if has_flag(FLAG) { vec![FLAG.into(), log_bytes.into()] } else { Vec::new() }
}

/// A whole number from the environment; `default` if it is not set.
///
/// # Panics
/// If it is set and is no number.
pub fn setting(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number, not {text:?}")),
        Err(_) => default,
    }
}
