//! `raftlet cluster start`, whose nodes are its children and not ours.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::cluster::{START_WITHIN, STOP_WITHIN};
use crate::http::Client;
use crate::ports::{self, Reserved};
use crate::process::{self, Process, Signal, assert_no_panic, tail};
use crate::slots::{self, Slot};
use crate::wait;

/// A launcher's folder and ports; runs of the launcher come and go.
#[derive(Debug)]
pub struct Launcher {
    process: Option<Process>,
    nodes: u16,
    port: u16,
    folder: tempfile::TempDir,
    _held: Vec<Reserved>,
    _slot: Slot,
}

impl Launcher {
    pub fn new(nodes: u16) -> Launcher {
        let slot = slots::take();
        let (port, held) = ports::for_launcher(nodes);
        let folder = tempfile::Builder::new().prefix("raftlet-test-").tempdir().expect("a temporary folder");
        Launcher { process: None, nodes, port, folder, _held: held, _slot: slot }
    }

    /// The cluster's folder (`--dir`).
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=u64::from(self.nodes)
    }

    /// The client of node `id`, at the port the specification says.
    pub fn client(&self, id: u64) -> Client {
        let port = self.port + u16::try_from(id - 1).expect("few nodes");
        Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Starts the launcher and waits until all its nodes are ready and it says so.
    #[track_caller]
    pub fn start(&mut self, more: &[&str]) {
        let mut args: Vec<OsString> = ["cluster", "start", "--nodes"].map(Into::into).into();
        args.extend([self.nodes.to_string().into(), "--port".into(), self.port.to_string().into()]);
        args.extend(["--dir".into(), self.dir().into()]);
        args.extend(more.iter().map(Into::into));
        let said = self.stdout().len();
        // SIGTERM, so that the nodes go with it.
        self.process = Some(Process::start("launcher", self.folder.path(), &args, Signal::TERM));
        for id in self.ids() {
            self.wait_ready(id);
        }
        // From here on a lost node is an event; before, it is a failed start.
        wait::until("the launcher shows what to try", START_WITHIN, || {
            self.stdout().get(said..).is_some_and(|text| text.contains("curl ")).then_some(())
        });
    }

    #[track_caller]
    pub fn wait_ready(&mut self, id: u64) {
        wait::until(&format!("node {id} is ready"), START_WITHIN, || {
            if let Some(status) = self.process.as_mut().and_then(Process::exited) {
                panic!("the launcher ended ({status}):\n{}", tail(&self.output(), 40));
            }
            let answer = self.client(id).answer_within(Duration::from_secs(2)).get("/_/ready").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// The pid in `DIR/node-N/pid`, if there is a file.
    pub fn pid(&self, id: u64) -> Option<u32> {
        fs::read_to_string(self.dir().join(format!("node-{id}/pid"))).ok()?.trim().parse().ok()
    }

    /// Those of all nodes; all must be alive.
    #[track_caller]
    pub fn pids(&self) -> BTreeMap<u64, u32> {
        let pids: BTreeMap<u64, u32> = self.ids().filter_map(|id| Some((id, self.pid(id)?))).collect();
        assert_eq!(pids.len(), usize::from(self.nodes), "each node has a pid file");
        for (id, pid) in &pids {
            assert!(process::is_alive(*pid), "node {id} has pid {pid} and is not alive");
        }
        pids
    }

    /// Both outputs of all runs.
    pub fn output(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |p| p.stdout() + &p.stderr())
    }

    pub fn stdout(&self) -> String {
        self.process.as_ref().map_or_else(String::new, Process::stdout)
    }

    /// Does what should end the launcher, waits for its end and checks that its nodes ended with it.
    #[track_caller]
    pub fn end_by(&mut self, act: impl FnOnce(&mut Process)) -> ExitStatus {
        // Before, because a launcher removes the files.
        let pids: Vec<u32> = self.ids().filter_map(|id| self.pid(id)).collect();
        let process = self.process.as_mut().expect("the launcher runs");
        act(process);
        let status = process.wait(STOP_WITHIN);
        for pid in pids {
            assert!(!is_node_of(pid, &self.dir()), "process {pid} outlived its launcher");
        }
        status
    }

    /// What the node wrote, where the launcher puts it.
    fn log(&self, id: u64) -> String {
        String::from_utf8_lossy(&fs::read(self.dir().join(format!("node-{id}/log"))).unwrap_or_default()).into_owned()
    }
}

/// Whether this pid is (still) a node of the cluster in this folder: pids are given again.
fn is_node_of(pid: u32, dir: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    process::is_alive(pid) && String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy())
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let output = self.output();
        if let Some(process) = &mut self.process {
            process.kill();
        }
        for pid in self.ids().filter_map(|id| self.pid(id)) {
            if is_node_of(pid, &self.dir()) {
                // It may end by itself just now.
                let _ = process::send(pid, Signal::KILL);
            }
        }
        let logs: Vec<String> = self.ids().map(|id| self.log(id)).chain([output]).collect();
        for log in logs {
            match std::thread::panicking() {
                true => println!("--- the end of a log of the launcher or its nodes\n{}", tail(&log, 40)),
                false => assert_no_panic("the launcher or a node", &log),
            }
        }
    }
}
