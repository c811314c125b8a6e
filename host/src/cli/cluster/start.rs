//! `raftlet cluster start`: checks first, then starts, then tells what happens until it is asked to end. How children
//! are kept is `launcher.rs` and `process.rs`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::folder::{Folder, Record};
use super::launcher::{Cluster, Plan, START_TIMEOUT};
use super::ports;
use super::process::DRAIN_TIMEOUT;
use super::watch::Watch;
use crate::cli::http::Url;
use crate::cli::node_status::NodeStatus;
use crate::cli::out::{complain, event, say, table};
use crate::cli::settings::{FileKeys, SettingsArgs};
use crate::cli::signals::EndSignals;
use crate::config::ConfigError;
use crate::restore::Restore;

/// Nodes, if neither flag nor an existing cluster says it: the smallest number that survives a loss.
const NODES: u64 = 3;
/// The first client port, if none is given.
const PORT: u16 = 8080;
/// The directory, if none is given.
pub const DIR: &str = "./raftlet-data";
/// What the module that is built in calls itself.
const BUILT_IN_MODULE: &str = "kv";
/// All nodes of a restored cluster get its state first, however much that is.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Pause between two looks at a calm cluster ...
const CALM_POLL: Duration = Duration::from_secs(1);
/// ... and while something is amiss.
const UNSETTLED_POLL: Duration = Duration::from_millis(200);

/// Start a local cluster of real processes, and keep it running until Ctrl-C
///
/// Client ports count up from --port, peer ports from --port + 1000, admin ports from --port - 1000. Node N keeps its data in DIR/node-N/, its process
/// id in DIR/node-N/pid and its log in DIR/node-N/log. Started again on the same DIR, the cluster goes on where it was.
#[derive(Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  raftlet cluster start\n  raftlet cluster start --nodes 5 --port 7000 --dir /var/lib/raftlet\n  raftlet cluster start --module counter.wasm --batching off"
)]
pub struct StartArgs {
    /// Number of nodes [default: 3, or as DIR was started before]
    #[arg(long, env = "RAFTLET_NODES", value_name = "N")]
    pub nodes: Option<u64>,
    /// Directory for all nodes' data [default: ./raftlet-data]
    #[arg(long, env = "RAFTLET_DIR", value_name = "DIR")]
    pub dir: Option<String>,
    /// Client port of node 1 [default: 8080]
    #[arg(long, env = "RAFTLET_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// Module of a new cluster [default: the key-value module that is built in]
    #[arg(long, env = "RAFTLET_MODULE", value_name = "FILE")]
    pub module: Option<String>,
    /// Begin a new cluster with the state of this snapshot (a file of `snapshot save`)
    #[arg(long, value_name = "FILE", conflicts_with = "module")]
    pub restore: Option<PathBuf>,
    /// Admin port of node 1 [default: 1000 below its client port]
    #[arg(long, env = "RAFTLET_ADMIN_PORT", value_name = "PORT")]
    pub admin_port: Option<u16>,
    /// Leave a dead node dead
    #[arg(long)]
    pub no_restart: bool,
    #[command(flatten)]
    pub settings: SettingsArgs,
}

pub async fn run(args: StartArgs) -> anyhow::Result<()> {
    let mut file = FileKeys::read(args.settings.config.as_deref())?;
    let nodes = file.pick_optional(args.nodes, "nodes")?;
    let dir = PathBuf::from(file.pick(args.dir, "dir", DIR.to_string())?);
    let port = file.pick(args.port, "port", PORT)?;
    let module = file.pick_optional(args.module, "module")?.map(PathBuf::from);
    let admin_port = file.pick_optional(args.admin_port, "admin-port")?;
    let settings = args.settings.resolve(&mut file)?;
    file.finish()?;

    // All that can be refused is refused before anything is written or started.
    if let Some(module) = &module {
        check_readable(module)?;
    }
    ports::plan(port, admin_port, nodes.unwrap_or(NODES))?;
    let folder = Folder::new(&dir);
    // Before anything is locked: from here on a signal leads through the orderly end.
    let mut signals = EndSignals::new()?;
    let _held = folder.lock()?;
    let record = folder.record()?;
    let nodes = agree_on_nodes(nodes, record, &dir)?;
    let ports = ports::plan(port, admin_port, nodes)?;
    ports::check_free(&ports)?;
    let found = !record.is_some_and(|r| r.founded);
    if !found && let Some(module) = &module {
        complain(format_args!(
            "note: {} has a cluster with its module already; --module {} is only for a new cluster",
            dir.display(),
            module.display()
        ));
    }
    let restoring = args.restore.is_some();
    if let Some(snapshot) = args.restore {
        if record.is_some() {
            bail!("{} has a cluster already; --restore makes a new one: give another --dir", dir.display());
        }
        let address = format!("127.0.0.1:{}", ports[0].peer);
        let restored = Restore { snapshot, dir: folder.node(1), node: 1, address }.run().await?;
        say(format_args!("Restored {} keys up to entry {}", restored.summary.keys, restored.summary.header.last.index));
    }
    folder.write_record(Record { nodes, founded: !found })?;

    let verb = if found { "Starting" } else { "Continuing" };
    say(format_args!("{verb} {nodes} nodes in {} (logs: {})", dir.display(), dir.join("node-N/log").display()));
    let executable = std::env::current_exe().context("can't find this program's own file")?;
    let restart = !args.no_restart;
    let cluster = Cluster::launch(Plan { executable, folder: folder.clone(), ports, found, module, settings, restart });
    let within = if restoring { RESTORE_TIMEOUT } else { START_TIMEOUT };
    supervise(cluster, &folder, nodes, within, &mut signals).await
}

fn check_readable(module: &Path) -> anyhow::Result<()> {
    let file = File::open(module).with_context(|| format!("can't read the module {}", module.display()))?;
    if !file.metadata()?.is_file() {
        bail!("the module {} is not a file", module.display());
    }
    Ok(())
}

/// How many nodes to start: what was asked for, which must be what the directory has, if it has any.
fn agree_on_nodes(asked: Option<u64>, record: Option<Record>, dir: &Path) -> Result<u64, ConfigError> {
    match (asked, record) {
        (Some(asked), Some(Record { nodes, .. })) if asked != nodes => Err(ConfigError(format!(
            "{} has a cluster of {nodes} nodes, not {asked}; leave --nodes away, or give another --dir",
            dir.display()
        ))),
        (_, Some(record)) => Ok(record.nodes),
        (asked, None) => Ok(asked.unwrap_or(NODES)),
    }
}

/// From the first child to the last.
async fn supervise(
    mut cluster: Cluster,
    folder: &Folder,
    nodes: u64,
    within: Duration,
    signals: &mut EndSignals,
) -> anyhow::Result<()> {
    let started = tokio::select! {
        started = cluster.wait_until_ready(within) => started,
        signal = signals.next() => return stop(cluster, signal, signals).await,
    };
    let seen = match started {
        Ok(seen) => seen,
        Err(error) => {
            cluster.stop(signals.another()).await;
            return Err(error);
        }
    };
    folder.write_record(Record { nodes, founded: true })?;
    welcome(folder, &cluster.nodes().urls, &seen);
    let newest = seen.iter().filter_map(|s| Some((s.term, s.leader_id?))).max();
    let mut watch = Watch::new(nodes, newest.map(|(term, id)| (id, term)));
    let all = cluster.nodes().clone();
    loop {
        let unsettled = watch.unsettled();
        let look = async {
            tokio::time::sleep(if unsettled { UNSETTLED_POLL } else { CALM_POLL }).await;
            let statuses = all.statuses().await;
            // A calm cluster is ready: its status is enough.
            let ready = if unsettled { all.ready().await } else { vec![true; statuses.len()] };
            (statuses, ready)
        };
        // A look is given up when something happens to a child; the next one sees more.
        tokio::select! {
            biased;
            signal = signals.next() => return stop(cluster, signal, signals).await,
            happened = cluster.next_event() => match happened {
                Some(happened) => event(watch.process(&happened, |id| cluster.last_words(id))),
                None => bail!("no node runs any more; see the logs in {}", folder.path().display()),
            },
            (statuses, ready) = look => watch.look(&statuses, &ready).into_iter().for_each(event),
        }
    }
}

/// The table of nodes and what to try.
fn welcome(folder: &Folder, urls: &[Url], seen: &[NodeStatus]) {
    let rows = (1..).zip(urls).map(|(id, url)| {
        let status = seen.iter().find(|s| s.node_id == id);
        let leads = status.is_some_and(|s| s.leader_id == Some(id));
        let pid = fs::read_to_string(folder.pid_file(id)).unwrap_or_default().trim().to_string();
        let admin = status.and_then(NodeStatus::admin).unwrap_or("-").to_string();
        [id.to_string(), url.to_string(), pid, admin, if leads { "leader" } else { "" }.to_string()]
    });
    say(table(["node", "URL", "pid", "admin", ""], rows));
    let module = seen.iter().find_map(|s| s.module.as_ref());
    say("The cluster is ready. Try:");
    for line in suggestions(urls, module.is_some_and(|m| m.name == BUILT_IN_MODULE)) {
        say(format_args!("  {line}"));
    }
    say("Ctrl-C ends it. What happens from now on:");
}

/// Three commands to try, on as many nodes as there are.
fn suggestions(urls: &[Url], key_value: bool) -> [String; 3] {
    let url = |n: usize| &urls[n % urls.len()];
    if key_value {
        [
            format!("curl -X PUT --data-binary hello {}/kv/a", url(0)),
            format!("curl {}/kv/a", url(2)),
            format!("curl '{}/kv?limit=10'", url(1)),
        ]
    } else {
        [
            format!("curl {}/_/status", url(0)),
            format!("curl {}/_/metrics", url(1)),
            format!("raftlet cluster status --url {}", url(2)),
        ]
    }
}

/// The orderly end; a second signal makes it a quick one.
async fn stop(cluster: Cluster, signal: &str, signals: &mut EndSignals) -> anyhow::Result<()> {
    event(format_args!("{signal}: ending all nodes (once more: kill them)"));
    let mut forced = false;
    let killed = cluster
        .stop(async {
            signals.next().await;
            forced = true;
        })
        .await;
    if forced {
        bail!("ended by force; the nodes recover from their logs at the next start");
    }
    for id in killed {
        complain(format_args!("warning: node {id} did not end within {DRAIN_TIMEOUT:?} and was killed"));
    }
    event("all nodes have ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_number_of_nodes() {
        let dir = Path::new("data");
        let five = Some(Record { nodes: 5, founded: true });
        assert_eq!(agree_on_nodes(None, None, dir), Ok(3));
        assert_eq!(agree_on_nodes(Some(1), None, dir), Ok(1));
        assert_eq!(agree_on_nodes(None, five, dir), Ok(5));
        assert_eq!(agree_on_nodes(Some(5), five, dir), Ok(5));
        let error = agree_on_nodes(Some(3), five, dir).unwrap_err().0;
        assert!(error.contains("data has a cluster of 5 nodes, not 3") && error.contains("another --dir"), "{error}");
    }

    #[test]
    fn what_to_try_fits_the_module_and_the_nodes() {
        let urls: Vec<_> = (8080..8083).map(|port| Url::new("127.0.0.1", port)).collect();
        let [put, get, list] = suggestions(&urls, true);
        assert_eq!(put, "curl -X PUT --data-binary hello http://127.0.0.1:8080/kv/a");
        assert_eq!(get, "curl http://127.0.0.1:8082/kv/a");
        assert_eq!(list, "curl 'http://127.0.0.1:8081/kv?limit=10'");
        assert!(suggestions(&urls[..1], false)[2].ends_with("status --url http://127.0.0.1:8080"));
    }
}
