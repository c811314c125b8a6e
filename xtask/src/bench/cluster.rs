//! The clusters that are measured: three processes each, on loopback, with data folders on a disk. They end when these
//! values are dropped.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
const END_WITHIN: Duration = Duration::from_secs(15);

/// Where etcd is; gets it from Debian if it can.
pub fn find_etcd(sh: &Shell) -> Option<PathBuf> {
    let find = || cmd!(sh, "which etcd").quiet().ignore_stderr().read().ok().map(PathBuf::from);
    find().or_else(|| {
        cmd!(sh, "apt-get update -q").run().ok()?;
        cmd!(sh, "apt-get install -q -y --no-install-recommends etcd-server").run().ok()?;
        find()
    })
}

/// A process that ends with this value.
struct Process(Child);

impl Process {
    fn start(mut command: Command, log: &Path) -> Result<Process> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    fn memory_bytes(pid: u32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The launcher ends its nodes when it is asked to end.
        let pid = self.0.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        let begun = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if begun.elapsed() > END_WITHIN {
                drop(self.0.kill());
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Ports that are free now, one after the other.
fn free_ports(count: u16) -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = (20_000..30_000).step_by(100).find(|first| (*first..first + count).all(free));
    first.context("no ports are free between 20000 and 30000")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > READY_WITHIN {
            bail!("{what}: not within {READY_WITHIN:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A cluster that `raftlet cluster start` runs.
pub struct Raftlet {
    launcher: Process,
    port: u16,
    nodes: u16,
}

impl Raftlet {
    pub fn start(binary: &Path, home: &Path, nodes: u64, settings: &[&str]) -> Result<Raftlet> {
        let nodes = u16::try_from(nodes)?;
        // The launcher takes the peers' ports a thousand above.
        let port = free_ports(nodes)?;
        let dir = tempfile::Builder::new().prefix("raftlet-").tempdir_in(home)?.keep();
        let mut command = Command::new(binary);
        command.args(["cluster", "start", "--nodes", &nodes.to_string(), "--port", &port.to_string(), "--dir"]);
        command.arg(&dir).args(settings);
        let launcher = Process::start(command, &home.join("raftlet.log"))?;
        let cluster = Raftlet { launcher, port, nodes };
        for url in cluster.urls() {
            let is_ready = || {
                let ready = Command::new("curl").args(["-fsS", "-m", "1", &format!("{url}/_/ready")]).output();
                ready.is_ok_and(|ready| ready.status.success())
            };
            wait_until(&format!("{url} is ready"), is_ready)?;
        }
        Ok(cluster)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.nodes).map(|node| format!("http://127.0.0.1:{}", self.port + node)).collect()
    }

    pub fn memory_bytes(&self) -> u64 {
        let children = format!("/proc/{0}/task/{0}/children", self.launcher.0.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Process::memory_bytes).sum()
    }
}

/// Three nodes of etcd.
pub struct Etcd {
    nodes: Vec<Process>,
    port: u16,
}

impl Etcd {
    const NODES: u16 = 3;

    pub fn start(binary: &Path, home: &Path) -> Result<Etcd> {
        let port = free_ports(2 * Self::NODES)?;
        let peer = |node: u16| format!("http://127.0.0.1:{}", port + Self::NODES + node);
        let client = |node: u16| format!("http://127.0.0.1:{}", port + node);
        let members: Vec<String> = (0..Self::NODES).map(|node| format!("n{node}={}", peer(node))).collect();
        let dir = tempfile::Builder::new().prefix("etcd-").tempdir_in(home)?.keep();
        let mut cluster = Etcd { nodes: Vec::new(), port };
        for node in 0..Self::NODES {
            let mut command = Command::new(binary);
            command.args(["--name", &format!("n{node}"), "--initial-cluster", &members.join(",")]);
            command.args(["--initial-cluster-state", "new", "--log-level", "warn", "--data-dir"]);
            command.arg(dir.join(format!("n{node}")));
            command.args(["--listen-peer-urls", &peer(node), "--initial-advertise-peer-urls", &peer(node)]);
            command.args(["--listen-client-urls", &client(node), "--advertise-client-urls", &client(node)]);
            // Its default is 2 GB; the largest scenario would meet it.
            command.args(["--quota-backend-bytes", "8589934592"]);
            cluster.nodes.push(Process::start(command, &home.join(format!("etcd-{node}.log")))?);
        }
        for url in cluster.urls() {
            let is_ready = || {
                let ready = Command::new("curl").args(["-fsS", "-m", "1", &format!("{url}/health")]).output();
                ready.is_ok_and(|ready| String::from_utf8_lossy(&ready.stdout).contains("true"))
            };
            wait_until(&format!("etcd at {url} is healthy"), is_ready)?;
        }
        Ok(cluster)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..Self::NODES).map(|node| format!("http://127.0.0.1:{}", self.port + node)).collect()
    }

    pub fn memory_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| Process::memory_bytes(node.0.id())).sum()
    }
}
