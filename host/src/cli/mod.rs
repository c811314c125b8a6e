//! The command line: what can be asked of `raftlet`, and how errors leave it. One file per command. Holds no logic of
//! a node: that begins in `node.rs` of the library.

use std::future::Future;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::config::ConfigError;

pub mod bench;
pub mod cluster;
mod http;
mod http2;
mod log;
mod module;
mod node;
mod node_status;
mod out;
mod settings;
mod signals;
mod snapshot;

/// A host for replicated state machines: your logic as a WebAssembly module, on a cluster that survives
#[derive(Parser, Debug)]
#[command(name = "raftlet", version, arg_required_else_help = true)]
#[command(
    after_help = "Begin with:\n  raftlet cluster start\n  raftlet bench --verify\n\nEvery setting is a flag, an environment variable (RAFTLET_...) and a key of the --config file; the first of these wins."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a local cluster of real processes: start, status, stop
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Run one node, as on a machine of its own
    #[command(subcommand)]
    Node(node::NodeCommand),
    Bench(Box<bench::BenchArgs>),
    /// Look into modules
    #[command(subcommand)]
    Module(module::ModuleCommand),
    /// Look into the log of a stopped node
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Back a running cluster up, and make a new one from a backup
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
}

/// Runs the command of this process's arguments. Exit codes: 0 done, 1 failed, 2 wrong usage or setting.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help and version come this way too. Nobody may be reading: that is no reason to fail.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // All causes: the contexts of `anyhow` don't name theirs, and errors of the library, which do, have no source.
            out::complain(format_args!("error: {error:#}"));
            if error.is::<ConfigError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Cluster(command) => command.run(),
            Command::Node(command) => command.run(),
            Command::Bench(args) => on_this_thread(bench::run(*args)),
            Command::Module(command) => command.run(),
            Command::Log(command) => command.run(),
            Command::Snapshot(command) => command.run(),
        }
    }
}

/// Everything but a node runs on the main thread alone. For launchers this is a must (see `cluster/launcher.rs`), and
/// a measuring client leaves the other cores to the cluster.
fn on_this_thread(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start the runtime")?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_documents_promise_is_understood() {
        let understood = [
            "raftlet cluster start",
            "raftlet cluster start --nodes 3 --dir ./raftlet-data --port 8080 --module m.wasm --no-restart",
            "raftlet cluster start --batching off --batch-max-ops 1 --batch-max-bytes 64KiB --batch-max-delay 0s",
            "raftlet cluster status --url http://127.0.0.1:8081 --json",
            "raftlet cluster stop --dir data",
            "raftlet node start --id 1 --dir d --listen 127.0.0.1:8080 --peer-listen 127.0.0.1:9080 --peers 1=a:1,2=b:2 --bootstrap --module m.wasm --batching on",
            "raftlet bench",
            "raftlet bench --url http://a:1 --url http://b:2 --clients 50 --ops 50000 --value-bytes 100 --read-percent 0 --verify --json",
            "raftlet bench --batching off --client direct",
            "raftlet bench --client batched --connections 4 --duration 10s --bulk 1000 --value-bytes 16",
            "raftlet bench --rate 20000 --duration 30s",
            "raftlet bench --target etcd --url http://127.0.0.1:2379 --clients 50 --read-percent 90 --json",
            "raftlet module check m.wasm",
            "raftlet log inspect --dir d --json --from 5 --to 9 --limit 3 --commands",
            "raftlet log verify --dir d --json",
            "raftlet cluster start --restore monday.snapshot --admin-port 6080 --snapshot-bandwidth 0",
            "raftlet node rejoin --dir data",
            "raftlet snapshot save monday.snapshot --admin 127.0.0.1:7081 --force",
            "raftlet snapshot verify monday.snapshot --json",
            "raftlet snapshot restore monday.snapshot --dir d --id 1 --address 10.0.0.1:9080",
        ];
        for line in understood {
            Cli::try_parse_from(line.split(' ')).map(drop).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        let fails = [
            format!("raftlet snapshot verify {file}/x"),
            format!("raftlet snapshot restore {file}/x --dir {file}/y --id 1 --address a:1"),
            format!("raftlet snapshot restore x --dir {file} --id 1 --address a:1"),
            format!("raftlet node rejoin --dir {file}"),
            format!("raftlet cluster stop --dir {file}"),
            format!("raftlet module check {file}/x"),
        ];
        let mut errors: Vec<_> =
            fails.map(|line| Cli::try_parse_from(line.split(' ')).unwrap().command.run().expect_err(&line)).into();
        std::fs::create_dir(dir.path().join("lock")).unwrap();
        errors.push(crate::log::SledLog::hold(dir.path()).map(drop).expect_err("a folder is no lock").into());
        for error in errors {
            let told = format!("{error:#}");
            assert_eq!(told.matches("(os error").count(), 1, "{told}");
        }
    }

    #[test]
    fn what_is_wrong_is_usage() {
        for line in ["raftlet --nope", "raftlet cluster start --nodes many", "raftlet bench --clients 0", "raftlet x"] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().starts_with("error: "), "{error}");
        }
    }
}
