//! `raftlet cluster`: a local cluster of real processes. Each command has its file; begin with `start.rs`.

use clap::Subcommand;

pub mod folder;
pub mod launcher;
pub mod ports;
pub mod process;
pub mod start;
pub mod status;
pub mod stop;
pub mod watch;

#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    Start(Box<start::StartArgs>),
    Status(status::StatusArgs),
    Stop(stop::StopArgs),
}

impl ClusterCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            ClusterCommand::Start(args) => super::on_this_thread(start::run(*args)),
            ClusterCommand::Status(args) => super::on_this_thread(status::run(args)),
            ClusterCommand::Stop(args) => super::on_this_thread(stop::run(args)),
        }
    }
}
