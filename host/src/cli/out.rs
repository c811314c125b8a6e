//! What commands print. Standard output that nobody reads any more (`raftlet ... | head`) is no reason to panic, nor
//! for a cluster to stop: such lines are dropped.

use std::fmt;
use std::io::Write as _;

/// One line to standard output.
pub fn say(line: impl fmt::Display) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

/// One line to standard error.
pub fn complain(line: impl fmt::Display) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// One event with its time (UTC), to standard output.
pub fn event(line: impl fmt::Display) {
    say(format_args!("{} {line}", humantime::format_rfc3339_seconds(std::time::SystemTime::now())));
}

/// Rows under a header, in columns without lines, so that it can be read and cut.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}
