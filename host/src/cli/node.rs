//! `raftlet node start`: settings in, a node out, and the ways it ends. The node itself begins in `host/src/node.rs`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use tracing_subscriber::EnvFilter;

use super::out::say;
use super::settings::{FileKeys, Peers, SettingsArgs, cores};
use super::signals::EndSignals;
use crate::config::{ConfigError, NodeConfig, SkipEntry};
use crate::node::Node;
use crate::state_machine::APPLY_STACK_BYTES;

/// Where clients connect, if nothing is given. Loopback: whoever wants to be reached says so.
const LISTEN: &str = "127.0.0.1:8080";
/// Where peers connect, if nothing is given.
const PEER_LISTEN: &str = "127.0.0.1:9080";

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    Start(Box<StartArgs>),
    Rejoin(RejoinArgs),
}

/// Let a stopped node take its state from a peer at its next start
///
/// For a node whose state is wrong (in quarantine) or whose snapshots are damaged. Its vote and its log stay: what it
/// has promised and acknowledged is in them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet node rejoin --dir /var/lib/raftlet")]
pub struct RejoinArgs {
    /// The folder of a stopped node
    #[arg(long, env = "RAFTLET_DIR", value_name = "DIR")]
    pub dir: PathBuf,
}

/// Start one node and keep it running until Ctrl-C or SIGTERM
///
/// All nodes of a cluster are started with the same --peers. Exactly one of them is started with --bootstrap: it founds
/// the cluster, the others wait until they hear of it. A directory that has data ignores --bootstrap.
#[derive(Args, Debug, Default)]
#[command(
    after_help = "Example, the first of three machines:\n  raftlet node start --id 1 --dir /var/lib/raftlet --listen 0.0.0.0:8080 --peer-listen 10.0.0.1:9080 \\\n      --peers 1=10.0.0.1:9080,2=10.0.0.2:9080,3=10.0.0.3:9080 --bootstrap\n\nRAFTLET_LOG sets what is logged to standard error: error, warn, info (default), debug, trace."
)]
pub struct StartArgs {
    /// This node's id, 1 or more; it belongs to the directory for ever
    #[arg(long, env = "RAFTLET_ID", value_name = "N")]
    pub id: Option<u64>,
    /// Directory for this node's data
    #[arg(long, env = "RAFTLET_DIR", value_name = "DIR")]
    pub dir: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, env = "RAFTLET_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the other nodes connect [default: 127.0.0.1:9080]
    #[arg(long, env = "RAFTLET_PEER_LISTEN", value_name = "IP:PORT")]
    pub peer_listen: Option<SocketAddr>,
    /// Where operators connect, for backups; who can connect can copy the whole state [default: nowhere]
    #[arg(long, env = "RAFTLET_ADMIN_LISTEN", value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// All nodes with the addresses of their peer listeners, this one included
    #[arg(long, env = "RAFTLET_PEERS", value_name = "1=HOST:PORT,2=...")]
    pub peers: Option<Peers>,
    /// Found the cluster, if the directory is empty
    #[arg(long)]
    pub bootstrap: bool,
    /// Module of a new cluster, with --bootstrap [default: the key-value module that is built in]
    #[arg(long, env = "RAFTLET_MODULE", value_name = "FILE")]
    pub module: Option<String>,
    /// Leave this entry out: its commands are answered with an error and have no effect. As the status of a node that it
    /// killed shows it; only if no node has applied it, and then on all nodes. It is remembered, and may be repeated for
    /// more entries
    #[arg(long, value_name = "INDEX:CHECKSUM")]
    pub skip_entry: Vec<SkipEntry>,
    #[command(flatten)]
    pub settings: SettingsArgs,
}

impl NodeCommand {
    pub fn run(self) -> anyhow::Result<()> {
        let args = match self {
            NodeCommand::Start(args) => args,
            NodeCommand::Rejoin(args) => return rejoin(&args),
        };
        let config = configure(*args)?;
        log_to_stderr()?;
        let threads = if config.worker_threads == 0 { cores() } else { config.worker_threads };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_stack_size(APPLY_STACK_BYTES)
            .enable_all()
            .build();
        // Not on the main thread, whose stack is the shell's to set.
        runtime.context("can't start the runtime")?.block_on(async { tokio::spawn(serve(config)).await })?
    }
}

fn rejoin(args: &RejoinArgs) -> anyhow::Result<()> {
    let node = crate::node::mark_for_rejoin(&args.dir)?;
    say(format_args!("node {node} is marked. When it is started the next time, it"));
    for line in [
        "sets its own snapshots aside (damaged-*, for study),",
        "takes the newest snapshot of a peer and verifies it,",
        "leaves quarantine, if it was in it, when that is durable, and",
        "applies its log from there on. Its vote and its log stay as they are.",
    ] {
        say(format_args!("  - {line}"));
    }
    say("Until then it serves nobody; /_/ready says how far it is. At least one peer must run.");
    Ok(())
}

fn configure(args: StartArgs) -> anyhow::Result<NodeConfig> {
    let mut file = FileKeys::read(args.settings.config.as_deref())?;
    let shared = args.settings.resolve(&mut file)?;
    let address = |text: &str| text.parse().expect("a constant address");
    let config = NodeConfig {
        id: file.pick_required(args.id, "id")?,
        dir: PathBuf::from(file.pick_required(args.dir, "dir")?),
        listen: file.pick(args.listen, "listen", address(LISTEN))?,
        peer_listen: file.pick(args.peer_listen, "peer-listen", address(PEER_LISTEN))?,
        peers: file.pick_required(args.peers, "peers")?.0,
        bootstrap: args.bootstrap,
        module: file.pick_optional(args.module, "module")?.map(PathBuf::from),
        batching: shared.batching,
        limits: shared.limits,
        raft: shared.raft,
        snapshots: shared.snapshots,
        checks: shared.checks,
        skip: args.skip_entry,
        disk: shared.disk,
        worker_threads: shared.worker_threads,
        admin_listen: file.pick_optional(args.admin_listen, "admin-listen")?,
    };
    file.finish()?;
    config.validate()?;
    if let Some(module) = config.module.as_deref().filter(|_| config.bootstrap) {
        std::fs::File::open(module).with_context(|| format!("can't read the module {}", module.display()))?;
    }
    Ok(config)
}

fn log_to_stderr() -> Result<(), ConfigError> {
    // openraft tells its inner life at info, and at warn several lines a second for each peer that is down. What matters
    // to an operator this program says itself.
    let filter = std::env::var("RAFTLET_LOG").unwrap_or_else(|_| "info,openraft=error".into());
    let filter: EnvFilter = filter
        .parse()
        .map_err(|e| ConfigError(format!("RAFTLET_LOG={filter:?}: {e}; give for example info or debug")))?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        // It would report a closed standard error on standard error, which panics.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Runs the node until it is asked to end, or fails.
async fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let mut signals = EndSignals::new()?;
    let id = config.id;
    let node = tokio::select! {
        node = Node::start(config) => node.with_context(|| format!("node {id} can't start"))?,
        // Nothing was acknowledged yet: what is on the disk is as after a crash, which every start can handle.
        signal = signals.next() => bail!("{signal} while node {id} was starting"),
    };
    let fault = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "ending");
            None
        }
        fault = node.failed() => Some(fault),
    };
    match fault {
        None => {
            tokio::select! {
                () = node.shutdown() => Ok(()),
                signal = signals.next() => bail!("{signal} once more: ended without draining"),
            }
        }
        // After a fatal fault nothing may be written any more; draining would.
        Some(fault) => Err(anyhow!("node {id} met a fatal fault and stops: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> StartArgs {
        StartArgs {
            id: Some(2),
            dir: Some("data".into()),
            peers: Some("1=a:1,2=b:2".parse().unwrap()),
            ..StartArgs::default()
        }
    }

    #[test]
    fn a_node_has_loopback_listeners_unless_told_otherwise() {
        let config = configure(given()).unwrap();
        assert_eq!(config.listen, LISTEN.parse::<SocketAddr>().unwrap());
        assert_eq!(config.peer_listen, PEER_LISTEN.parse::<SocketAddr>().unwrap());
        assert!(!config.bootstrap && config.module.is_none());
    }

    #[test]
    fn a_file_can_say_everything_but_bootstrap() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("node.toml");
        let text = "id = 2\ndir = \"data\"\nlisten = \"0.0.0.0:80\"\npeer-listen = \"10.0.0.2:9080\"\nbatching = false\n\
                    module = \"m.wasm\"\npeers = { 1 = \"10.0.0.1:9080\", 2 = \"10.0.0.2:9080\" }\nheartbeat = \"50ms\"\n";
        std::fs::write(&file, text).unwrap();
        let settings = SettingsArgs { config: Some(file.clone()), ..SettingsArgs::default() };
        let config = configure(StartArgs { settings: settings.clone(), ..StartArgs::default() }).unwrap();
        assert_eq!((config.id, config.listen.port(), config.peers.len()), (2, 80, 2));
        assert_eq!(config.module, Some(PathBuf::from("m.wasm")));
        assert_eq!(config.batching.mode, crate::config::Batching::Off);
        std::fs::write(&file, format!("{text}bootstrap = true\n")).unwrap();
        let error = configure(StartArgs { settings, ..StartArgs::default() }).unwrap_err();
        assert!(error.is::<ConfigError>() && error.to_string().contains("unknown key `bootstrap`"), "{error}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let refused = |args| configure(args).unwrap_err();
        for (args, name) in [
            (StartArgs { id: None, ..given() }, "id is missing"),
            (StartArgs { dir: None, ..given() }, "dir is missing"),
            (StartArgs { peers: None, ..given() }, "peers is missing"),
            (StartArgs { id: Some(9), ..given() }, "node 9 is not among them"),
        ] {
            let error = refused(args);
            assert!(error.is::<ConfigError>() && error.to_string().contains(name), "{error}");
        }
        let nowhere = StartArgs { bootstrap: true, module: Some("/nowhere/m.wasm".into()), ..given() };
        let error = refused(nowhere).to_string();
        assert!(error.contains("can't read the module /nowhere/m.wasm"), "{error}");
    }
}
