//! `docs/benchmarks.md`: a table for each scenario, with medians and ranges of the rounds.

use std::fmt::Write as _;

use anyhow::Result;
use xshell::{Shell, cmd};

use super::scenarios::{Run, Scenario};
use super::{Latency, Measured, Results};

/// The whole file.
pub fn write(sh: &Shell, scenarios: &[Scenario], results: &Results, rounds: usize, etcd: bool) -> Result<String> {
    let mut text = String::from(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`. Nothing here is edited by hand, and no figure is from another run.\n\n",
    );
    writeln!(text, "- Machine: {}", machine())?;
    let commit = cmd!(sh, "git describe --always --dirty").quiet().read().unwrap_or_default();
    writeln!(text, "- Raftlet: commit {commit}, release build, default settings unless the table names others")?;
    if etcd {
        let version = cmd!(sh, "etcd --version").quiet().read().unwrap_or_default();
        writeln!(text, "- etcd: {}, default settings but a larger quota", version.lines().next().unwrap_or("unknown"))?;
    }
    writeln!(
        text,
        "- Three nodes of each (one where it says so), their data on the same disk, and the clients, all on this machine. \
         Every acknowledged write is synced on a majority. One program is the client of both: `raftlet bench`, closed \
         loop, for etcd by gRPC.\n\
         - *Raftlet* shares connections between the clients, as etcd's clients do: what they ask at the same time is sent \
         together. *A connection each* is plain HTTP, one request for each command.\n\
         - {rounds} rounds, each measures everything in turn, every other one backwards. Figures are medians, in brackets \
         the range. A machine that others use too is noisy: compare within a table, not between runs."
    )?;
    for scenario in scenarios {
        table(&mut text, scenario, results)?;
    }
    if scenarios.iter().any(|scenario| scenario.name == "writes") {
        text.push_str(
            "\n## Charts\n\n\
             ![Writes a second against clients](benchmarks/writes.svg)\n\n\
             ![Linearizable reads a second against clients](benchmarks/reads.svg)\n\n\
             ![Latency against writes a second](benchmarks/latency.svg)\n\n\
             ![Latency distribution of the writes of 50 clients](benchmarks/distribution.svg)\n\n\
             ![How the server gathers commands](benchmarks/batching.svg)\n",
        );
    }
    Ok(text)
}

fn table(text: &mut String, scenario: &Scenario, results: &Results) -> std::fmt::Result {
    let name = scenario.name;
    write!(text, "\n## {name}: {}\n\n", scenario.about)?;
    text.push_str("| | operations/s | p50 ms | p99 ms | max ms | commands a batch | memory MB | beside etcd |\n");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for (number, run) in scenario.runs.iter().enumerate() {
        let Some(rounds) = results.get(&(name, number)) else { continue };
        let etcd =
            scenario.runs.iter().enumerate().find(|(_, other)| other.line == "etcd" && other.clients == run.clients);
        let etcd = etcd.and_then(|(number, _)| results.get(&(name, number))).filter(|_| run.line != "etcd");
        let ratio = etcd.map_or(String::new(), |etcd| {
            format!("{:.1} ×", median(rounds, |m| m.ops_per_second) / median(etcd, |m| m.ops_per_second))
        });
        let batch = rounds[0]
            .mean_batch
            .map_or(String::new(), |_| format!("{:.0}", median(rounds, |m| m.mean_batch.unwrap_or(0.0))));
        writeln!(
            text,
            "| {}{} | {} | {} | {} | {} | {batch} | {:.0} | {ratio} |",
            run.label,
            notes(run, rounds),
            figure(rounds, |m| m.ops_per_second, 0),
            figure(rounds, |m| m.latency_us.p50 as f64 / 1e3, 2),
            figure(rounds, |m| m.latency_us.p99 as f64 / 1e3, 2),
            figure(rounds, |m| m.latency_us.max as f64 / 1e3, 1),
            median(rounds, |m| m.memory_bytes as f64 / 1e6),
        )?;
    }
    Ok(())
}

const READS: fn(&Measured) -> Option<Latency> = |m| m.read_latency_us;
const WRITES: fn(&Measured) -> Option<Latency> = |m| m.write_latency_us;

/// What else must be known of a run.
fn notes(run: &Run, rounds: &[Measured]) -> String {
    let errors: u64 = rounds.iter().map(|m| m.errors).sum();
    let mut notes = String::new();
    if errors > 0 {
        let ops: u64 = rounds.iter().map(|m| m.ops).sum();
        let _ = write!(notes, "; **{errors} of {ops} failed**");
    }
    if rounds.iter().any(|m| m.refused.is_some()) {
        let refused = median(rounds, |m| m.refused.unwrap_or(0) as f64 / m.ops as f64 * 100.0);
        let _ = write!(notes, "; {refused:.0} % refused");
    }
    // Clients that only read have written what they read: too few to tell.
    let are_mixed = run.args.iter().any(|arg| arg == "90");
    for (name, pick) in [("reads", READS), ("writes", WRITES)] {
        if are_mixed && rounds.iter().all(|m| pick(m).is_some()) {
            let ms = |of: fn(&Latency) -> u64| median(rounds, |m| pick(m).as_ref().map_or(0, of) as f64 / 1e3);
            let _ = write!(notes, "; {name} p50 {:.2}, p99 {:.2} ms", ms(|l| l.p50), ms(|l| l.p99));
        }
    }
    notes
}

/// The median, and the range if there is more than one.
fn figure(rounds: &[Measured], pick: impl Fn(&Measured) -> f64 + Copy, digits: usize) -> String {
    let show = |value: f64| if digits == 0 { grouped(value) } else { format!("{value:.digits$}") };
    let middle = show(median(rounds, pick));
    if rounds.len() == 1 {
        return middle;
    }
    let least = rounds.iter().map(pick).fold(f64::INFINITY, f64::min);
    let most = rounds.iter().map(pick).fold(0.0, f64::max);
    format!("{middle} ({}–{})", show(least), show(most))
}

pub fn median(rounds: &[Measured], pick: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(pick).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    // Of an even number the mean of the two in the middle.
    (values[(values.len() - 1) / 2] + values[middle]) / 2.0
}

/// With three figures that mean something.
fn grouped(value: f64) -> String {
    let unit = 10f64.powf((value.max(1.0).log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (value / unit).round() * unit);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores of {}, {} GiB of memory, Linux {}",
        model.unwrap_or("an unknown processor"),
        kib.unwrap_or(0) >> 20,
        kernel.trim()
    )
}
