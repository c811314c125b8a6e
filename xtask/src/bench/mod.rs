//! `cargo xtask bench`: Raftlet and etcd side by side, in one run on one machine: three nodes of each on loopback, the
//! same client program for both, scenario by scenario in turn, several rounds, medians and ranges. Writes
//! `docs/benchmarks.md` and the charts beside it. Begin here, then `scenarios.rs` (what is measured), `cluster.rs` (what
//! runs), `report.rs` and `charts.rs` (what is written).

mod charts;
mod cluster;
mod report;
mod scenarios;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use self::cluster::{Etcd, Raftlet};
use self::scenarios::{Run, Scenario, Side};

pub const USAGE: &str = "\
cargo xtask bench [options]      Raftlet beside etcd; writes docs/benchmarks.md and docs/benchmarks/*.svg
    --rounds N                   how often everything is measured [default: 3]
    --only NAME,NAME             some scenarios; nothing is written then
    --quick                      a fifth of the time for each, one round; nothing is written
    --list                       the scenarios";

/// How much is measured.
struct Options {
    rounds: usize,
    only: Vec<String>,
    quick: bool,
}

/// One measurement, from `raftlet bench --json`.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Measured {
    pub ops: u64,
    pub errors: u64,
    pub refused: Option<u64>,
    pub ops_per_second: f64,
    pub latency_us: Latency,
    pub read_latency_us: Option<Latency>,
    pub write_latency_us: Option<Latency>,
    pub mean_batch: Option<f64>,
    /// Of the three nodes together, when it was over.
    #[serde(skip)]
    pub memory_bytes: u64,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub(crate) struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// All that was measured: by scenario and the run's number in it, one for each round.
pub(crate) type Results = BTreeMap<(&'static str, usize), Vec<Measured>>;

pub fn run(sh: &Shell, args: &[&str]) -> Result<()> {
    if args == ["--list"] {
        for scenario in scenarios::all() {
            println!("{:12} {}", scenario.name, scenario.about);
        }
        return Ok(());
    }
    let options = Options::parse(args)?;
    let binary = binary(sh)?;
    let etcd = cluster::find_etcd(sh);
    if etcd.is_none() {
        println!("there is no etcd here (Debian's package is etcd-server): Raftlet alone is measured");
    }
    let chosen = |scenario: &Scenario| options.only.is_empty() || options.only.iter().any(|name| name == scenario.name);
    let scenarios: Vec<Scenario> = scenarios::all().into_iter().filter(chosen).collect();
    if scenarios.len() < options.only.len() {
        bail!("an unknown scenario is among {:?}; `cargo xtask bench --list` has all", options.only);
    }
    let mut results = Results::new();
    for round in 1..=options.rounds {
        for scenario in scenarios.iter().filter(|s| round <= s.rounds_max) {
            measure(&binary, etcd.as_deref(), scenario, &options, round, &mut results)
                .with_context(|| format!("round {round}, {}", scenario.name))?;
        }
    }
    let text = report::write(sh, &scenarios, &results, options.rounds, etcd.is_some())?;
    if options.quick || !options.only.is_empty() {
        println!("{text}");
        return Ok(());
    }
    let charts = sh.current_dir().join("docs/benchmarks");
    sh.create_dir(&charts)?;
    charts::draw(&charts, &scenarios, &results)?;
    sh.write_file("docs/benchmarks.md", text)?;
    println!("docs/benchmarks.md and docs/benchmarks/ are written");
    Ok(())
}

/// One scenario, each of its runs once, in turn: backwards in every other round, because what runs first is disturbed by
/// what ran before. Scenarios whose runs build on each other have one round. Clusters are new for each scenario, and those
/// with the same settings are shared by its runs.
fn measure(
    binary: &Path,
    etcd: Option<&Path>,
    scenario: &Scenario,
    options: &Options,
    round: usize,
    results: &mut Results,
) -> Result<()> {
    let home = tempfile::Builder::new().prefix("raftlet-bench-").tempdir_in("/var/tmp")?;
    let mut raftlets: BTreeMap<(u64, Vec<&str>), Raftlet> = BTreeMap::new();
    let mut etcds = None;
    let mut rate_before = 0.0;
    let mut runs: Vec<_> = scenario.runs.iter().enumerate().collect();
    if round.is_multiple_of(2) {
        runs.reverse();
    }
    let windows = |run: &Run| if options.quick { 1 } else { run.windows };
    for (number, run) in runs.into_iter().flat_map(|each| std::iter::repeat_n(each, windows(each.1))) {
        let measured = match run.side {
            Side::Raftlet { nodes, settings } => {
                let key = (nodes, settings.to_vec());
                if !raftlets.contains_key(&key) {
                    // One at a time: an idle cluster costs heartbeats.
                    raftlets.clear();
                    raftlets.insert(key.clone(), Raftlet::start(binary, home.path(), nodes, settings)?);
                }
                let cluster = &raftlets[&key];
                let mut measured = bench(binary, run, &cluster.urls(), rate_before, options)?;
                measured.memory_bytes = cluster.memory_bytes();
                measured
            }
            Side::Etcd => {
                let Some(etcd) = etcd else { continue };
                if etcds.is_none() {
                    etcds = Some(Etcd::start(etcd, home.path())?);
                }
                let cluster = etcds.as_ref().expect("it was just started");
                let mut measured = bench(binary, run, &cluster.urls(), rate_before, options)?;
                measured.memory_bytes = cluster.memory_bytes();
                measured
            }
        };
        println!(
            "{:12} {:32} {:>9.0}/s  p50 {:>7} us  p99 {:>7} us  {} errors",
            scenario.name,
            run.label,
            measured.ops_per_second,
            measured.latency_us.p50,
            measured.latency_us.p99,
            measured.errors
        );
        if run.args.iter().all(|arg| arg != "TWICE") {
            rate_before = measured.ops_per_second;
        }
        results.entry((scenario.name, number)).or_default().push(measured);
    }
    Ok(())
}

/// Runs the client program.
fn bench(binary: &Path, run: &Run, urls: &[String], rate_before: f64, options: &Options) -> Result<Measured> {
    let mut command = std::process::Command::new(binary);
    let twice = format!("{:.0}", 2.0 * rate_before);
    let args = run.args.iter().map(|arg| if arg == "TWICE" { &twice } else { arg });
    command.args(["bench", "--json"]).args(args);
    if run.side == Side::Etcd {
        command.args(["--target", "etcd"]);
    }
    for url in urls {
        command.args(["--url", url]);
    }
    if let Some(seconds) = run.seconds {
        let seconds = if options.quick { (seconds / 5).max(1) } else { seconds };
        command.args(["--duration", &format!("{seconds}s")]);
    }
    let done = command.output().context("the client program can't be run")?;
    let text = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(&text)
        .with_context(|| format!("{command:?}: {}\n{text}{}", done.status, String::from_utf8_lossy(&done.stderr)))
}

/// The release build, or `RAFTLET_BIN`.
fn binary(sh: &Shell) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("RAFTLET_BIN") {
        return Ok(given.into());
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    cmd!(sh, "{cargo} build --locked --release --package raftlet").run()?;
    Ok(crate::proof::target(sh).join("release/raftlet"))
}

impl Options {
    fn parse(mut args: &[&str]) -> Result<Options> {
        let mut options = Options { rounds: 3, only: Vec::new(), quick: false };
        while let [flag, rest @ ..] = args {
            args = rest;
            let mut value = || -> Result<&str> {
                let (value, rest) = args.split_first().with_context(|| format!("{flag} needs a value\n\n{USAGE}"))?;
                args = rest;
                Ok(value)
            };
            match *flag {
                "--rounds" => options.rounds = value()?.parse().context("--rounds is a number")?,
                "--only" => options.only = value()?.split(',').map(String::from).collect(),
                "--quick" => (options.quick, options.rounds) = (true, 1),
                other => bail!("unexpected option {other}\n\n{USAGE}"),
            }
        }
        if options.rounds == 0 {
            bail!("--rounds is at least 1");
        }
        Ok(options)
    }
}
