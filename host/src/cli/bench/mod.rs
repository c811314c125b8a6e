//! `raftlet bench`: clients against a cluster, a temporary one unless a URL is given, or against etcd. Begin here, then
//! `workload.rs` (what is sent), `clients.rs` (who sends it), `batched.rs`, `direct.rs` and `etcd.rs` (how), `report.rs`
//! (what came out).

use std::io::IsTerminal as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio::task::LocalSet;

use self::clients::{Client, Retry, Way};
use self::report::{BatchCounts, Failures, Report, Setup, grouped};
use self::tally::Tally;
use self::workload::Workload;
use super::cluster::folder::Folder;
use super::cluster::launcher::{Cluster, Plan, START_TIMEOUT};
use super::cluster::ports;
use super::http::Url;
use super::out::{complain, say};
use super::settings::{FileKeys, Settings, SettingsArgs};
use super::signals::EndSignals;

mod batched;
mod clients;
mod direct;
mod etcd;
mod report;
mod tally;
mod workload;

/// Nodes of the temporary cluster.
const NODES: u64 = 3;
const METRICS_TIMEOUT: Duration = Duration::from_secs(5);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Whom to measure.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Raftlet,
    Etcd,
}

/// How raftlet's clients send.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// All share one client library with a few connections; what waits at the same time is sent together
    Batched,
    /// Each has an HTTP/1.1 connection of its own, and sends one request for each operation
    Direct,
}

/// Measure a cluster: throughput and latency
///
/// Closed-loop clients: each sends its next request when the last one was answered. With --rate an open loop.
///
/// Without --url, a temporary cluster of three nodes is started and removed afterwards; it is put in $TMPDIR, else in
/// /var/tmp, which unlike /tmp is on a disk. The cluster must have the key-value module. Exit code 1 if any operation
/// failed or any value was not as written.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  raftlet bench --verify\n  raftlet bench --url http://127.0.0.1:8080 --url http://127.0.0.1:8081 --clients 200 --read-percent 50\n  raftlet bench --batching off --client direct --json\n  raftlet bench --bulk 1000 --value-bytes 16 --clients 4 --duration 10s\n  raftlet bench --target etcd --url http://127.0.0.1:2379"
)]
pub struct BenchArgs {
    /// Whom to measure; etcd needs --url
    #[arg(long, value_enum, default_value_t = Target::Raftlet)]
    target: Target,
    /// How raftlet's clients send [default: batched]
    #[arg(long, value_enum)]
    client: Option<Mode>,
    /// Connections to each node that the clients share, not with --client direct [default: 4, etcd 2]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: Option<u16>,
    /// A node to use, instead of a temporary cluster; may be given many times
    #[arg(long, value_name = "URL")]
    url: Vec<Url>,
    /// Clients
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Operations of all clients together
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    ops: u64,
    /// As many operations as begin within this time, instead of --ops
    #[arg(long, value_name = "TIME", conflicts_with = "ops")]
    duration: Option<humantime::Duration>,
    /// Writes of each request: a batch that the client makes by itself, in etcd a transaction
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    bulk: u64,
    /// Send so many requests each second, answered or not; what is refused (503), or not sent because 100,000 are on
    /// their way, is counted, not an error
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Write to N keys in turn, so that the state doesn't grow, instead of each write to a new key
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    keys: Option<u64>,
    /// Share of reads; each reads a key that its client has written before
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// Send a request again, to the next node, when nobody took it or its outcome is unknown (503, 504, a broken
    /// connection), for at most a minute. Each write carries an idempotency key, so that it happens once
    #[arg(long)]
    retry: bool,
    /// Read every key back afterwards and compare its value
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Repeats the keys and values of an earlier run [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// For the temporary cluster
    #[command(flatten)]
    settings: SettingsArgs,
}

impl BenchArgs {
    /// What clap can't say: which options don't go together. None of them is left out silently.
    fn check(&self) -> anyhow::Result<()> {
        let is_direct = self.client == Some(Mode::Direct);
        if self.target == Target::Etcd {
            if self.url.is_empty() {
                bail!("--target etcd needs --url of its client ports: only raftlet's own clusters are started here");
            }
            if self.client.is_some() || self.retry {
                bail!(
                    "--client and --retry are raftlet's; etcd is spoken to over gRPC, and a Put of its own can't be repeated safely"
                );
            }
            if self.bulk > etcd::TXN_OPS_MAX {
                bail!("etcd takes {} operations in a transaction by default; lower --bulk", etcd::TXN_OPS_MAX);
            }
        }
        if is_direct && (self.bulk > 1 || self.rate.is_some() || self.connections.is_some()) {
            bail!(
                "--bulk, --rate and --connections are not for --client direct, where each client has one connection and one request"
            );
        }
        if self.read_percent > 0 && (self.bulk > 1 || self.rate.is_some()) {
            bail!("--bulk and --rate are for writes; leave --read-percent out");
        }
        if self.keys.is_some() && (self.read_percent > 0 || self.verify) {
            bail!("with --keys writes replace each other; leave --read-percent and --verify out");
        }
        if self.rate.is_some() && (self.verify || self.retry) {
            bail!("--rate sends what may be refused; leave --verify and --retry out");
        }
        Ok(())
    }

    fn way(&self) -> Way {
        let connections = |default| usize::from(self.connections.unwrap_or(default));
        match (self.target, self.client) {
            // One or two do best (docs/performance.md): each carries any number of requests.
            (Target::Etcd, _) => Way::Etcd { connections: connections(2) },
            (Target::Raftlet, Some(Mode::Direct)) => Way::Direct,
            // The library's own default.
            (Target::Raftlet, Some(Mode::Batched) | None) => Way::Batched { connections: connections(4) },
        }
    }

    fn setup(&self) -> Setup {
        let (target, client, connections) = match self.way() {
            Way::Direct => ("raftlet", "direct", None),
            Way::Batched { connections } => ("raftlet", "batched", Some(connections)),
            Way::Etcd { connections } => ("etcd", "grpc", Some(connections)),
        };
        let BenchArgs { clients, value_bytes, read_percent, bulk, rate, keys, .. } = *self;
        Setup { target, client, clients, connections, value_bytes, read_percent, bulk, rate, keys }
    }
}

pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    args.check()?;
    let mut file = FileKeys::read(args.settings.config.as_deref())?;
    let settings = args.settings.resolve(&mut file)?;
    file.finish()?;
    if args.value_bytes > settings.limits.body_bytes_max {
        let limit = settings.limits.body_bytes_max;
        complain(format_args!("note: values of {} bytes are over the default limit of {limit}", args.value_bytes));
    }
    let mut signals = EndSignals::new()?;
    if !args.url.is_empty() {
        return tokio::select! {
            done = measure(&args, &args.url) => done,
            signal = signals.next() => bail!("{signal}: the bench was given up"),
        };
    }
    let home = temporary_home()?;
    let mut cluster = launch(home.path(), settings)?;
    let done = tokio::select! {
        done = start_and_measure(&mut cluster, &args) => done,
        signal = signals.next() => Err(anyhow::anyhow!("{signal}: the bench was given up")),
    };
    cluster.stop(signals.another()).await;
    // Also removed if something above failed; here an error can still be told.
    let path = home.path().to_path_buf();
    home.close().with_context(|| format!("can't remove {}", path.display()))?;
    done
}

async fn start_and_measure(cluster: &mut Cluster, args: &BenchArgs) -> anyhow::Result<()> {
    cluster.wait_until_ready(START_TIMEOUT).await.context("the temporary cluster did not start")?;
    let urls = cluster.nodes().urls.clone();
    tokio::select! {
        done = measure(args, &urls) => done,
        event = cluster.next_event() => bail!("{}", cluster.explain(event.as_ref())),
    }
}

/// On a disk if possible: in memory, an fsync costs nothing and the figures would flatter.
fn temporary_home() -> anyhow::Result<tempfile::TempDir> {
    let new = |parent: &Path| tempfile::Builder::new().prefix("raftlet-bench-").tempdir_in(parent);
    let default = std::env::temp_dir();
    let home = if std::env::var_os("TMPDIR").is_some() { new(&default) } else { new(Path::new("/var/tmp")) };
    home.or_else(|_| new(&default)).with_context(|| format!("can't create a directory in {}", default.display()))
}

fn launch(home: &Path, settings: Settings) -> anyhow::Result<Cluster> {
    Ok(Cluster::launch(Plan {
        executable: std::env::current_exe().context("can't find this program's own file")?,
        folder: Folder::new(home),
        ports: ports::find_free(NODES)?,
        found: true,
        module: None,
        settings,
        restart: false,
    }))
}

async fn measure(args: &BenchArgs, urls: &[Url]) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(random_seed);
    let BenchArgs { value_bytes, read_percent, keys, .. } = *args;
    let workload = Workload { seed, value_bytes, read_percent, keys };
    if !args.json {
        let Setup { target, client, clients, value_bytes, read_percent, .. } = args.setup();
        let work = match args.duration {
            Some(duration) => format!("{duration} of operations"),
            None => format!("{} operations", grouped(args.ops)),
        };
        say(format_args!(
            "{target}: {work} ({read_percent} % reads) of {clients} {client} clients, {value_bytes}-byte values, seed {seed}"
        ));
    }
    LocalSet::new().run_until(run_phases(args, urls, workload)).await
}

async fn run_phases(args: &BenchArgs, urls: &[Url], workload: Workload) -> anyhow::Result<()> {
    let retry = args.retry.then(|| Retry { run: random_seed() });
    let clients = Client::connect_all(urls, args.clients as usize, args.way(), workload, retry).await?;
    let is_raftlet = args.target == Target::Raftlet;
    let before = if is_raftlet { batch_counts(urls).await } else { Vec::new() };

    let total = if args.duration.is_some() { u64::MAX } else { args.ops };
    let tally = Tally::new(total, args.duration.map(Into::into), args.bulk);
    let shown = Progress::show(args, "operations", total, &tally);
    let begun = Instant::now();
    let clients = match args.rate {
        Some(rate) => clients::offer(clients, rate, &tally).await?,
        None => clients::operate_all(clients, &tally).await?,
    };
    let seconds = begun.elapsed().as_secs_f64();
    drop(shown);

    let failures = Failures { errors: tally.errors(), refused: tally.refusals() };
    let mut report = Report::new(args.setup(), tally.done(), failures, seconds, &tally.read_us(), &tally.write_us());
    if is_raftlet {
        report.mean_batch = BatchCounts::mean_batch(&before, &batch_counts(urls).await);
    }
    report.retries = args.retry.then(|| tally.retries() + clients::shared_retries(&clients));
    let mut wrong = 0;
    let mut quoted = tally.quoted();
    if args.verify {
        let keys = clients::written(&clients);
        let tally = Tally::new(keys, None, 1);
        let shown = Progress::show(args, "keys read back", keys, &tally);
        clients::verify_all(clients, &tally).await?;
        drop(shown);
        wrong = tally.errors();
        report.verified = Some(keys - wrong);
        quoted.extend(tally.quoted());
    }
    say(if args.json { serde_json::to_string(&report)? } else { report.to_table() });
    quoted.iter().for_each(|error| complain(format_args!("  {error}")));
    if report.errors > 0 || wrong > 0 {
        bail!("{} of {} operations failed, {wrong} keys were not as written", report.errors, report.ops);
    }
    Ok(())
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

async fn batch_counts(urls: &[Url]) -> Vec<Option<BatchCounts>> {
    let all = urls.iter().map(|url| async move {
        let response = url.get("/_/metrics", METRICS_TIMEOUT).await.ok()?;
        BatchCounts::parse(std::str::from_utf8(&response.body).ok()?)
    });
    join_all(all).await
}

/// A progress bar on the terminal, for as long as this lives. It looks at the tally now and then, so that clients
/// don't have to draw.
struct Progress {
    bar: ProgressBar,
    watcher: tokio::task::JoinHandle<()>,
}

impl Progress {
    fn show(args: &BenchArgs, what: &'static str, total: u64, tally: &Rc<Tally>) -> Option<Progress> {
        if args.json || !std::io::stderr().is_terminal() {
            return None;
        }
        // Without a total there is nothing to draw a bar of.
        let endless = total == u64::MAX;
        let template =
            if endless { "{human_pos} {msg}, {rate}" } else { "{wide_bar} {human_pos}/{human_len} {msg}, {rate}" };
        let style = ProgressStyle::with_template(template);
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{:.0}/s", state.per_sec());
        };
        let style = style.expect("a constant template").with_key("rate", rate);
        let bar = ProgressBar::new(total).with_message(what).with_style(style);
        let (watched, tally) = (bar.clone(), tally.clone());
        let watcher = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(PROGRESS_INTERVAL).await;
                watched.set_position(tally.done());
            }
        });
        Some(Progress { bar, watcher })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.watcher.abort();
        self.bar.finish_and_clear();
    }
}
