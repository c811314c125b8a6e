//! One `raftlet` process: its start, its signals, its end, what it wrote. It never outlives the test process.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, set_parent_process_death_signal};

use crate::{paths, wait};

/// Until a signal has stopped a process, which may be in a sync of the disk.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// A running or ended process whose output goes to files, so that it can be read at any time and no pipe fills up.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What a process that ended by itself left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// Names of what it left in the temporary folder.
    pub left: Vec<String>,
}

impl Process {
    /// Starts `raftlet ARGS`. Output is appended to `FOLDER/NAME.out` and `FOLDER/NAME.err`. `at_parents_death` is
    /// the signal it gets if the test process is killed.
    pub fn start(name: &str, folder: &Path, args: &[OsString], at_parents_death: Signal) -> Process {
        Self::start_in(name, folder, args, &[], at_parents_death)
    }

    /// The same with more variables in its environment.
    pub fn start_in(
        name: &str,
        folder: &Path,
        args: &[OsString],
        environment: &[(String, String)],
        at_parents_death: Signal,
    ) -> Process {
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        let mut command = Command::new(paths::raftlet());
        command.args(args).stdin(Stdio::null()).stdout(appended(&stdout)).stderr(appended(&stderr));
        // What it makes for itself goes with the test's folder.
        command.env("TMPDIR", folder);
        // The harness' own variables, and settings of whoever runs the tests, are none of the node's.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("RAFTLET_") {
                command.env_remove(variable);
            }
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(set_parent_process_death_signal(Some(at_parents_death))?));
        }
        let child = spawn(command).unwrap_or_else(|e| panic!("{name} can't be started: {e}"));
        Process { child, name: name.to_owned(), stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; does nothing if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            send(self.pid(), signal).unwrap_or_else(|e| panic!("signal {signal:?} to {}: {e}", self.name));
        }
    }

    /// SIGSTOP, and waits until no thread runs any more: the signal only asks the first one, and on a busy machine the
    /// others go on for tens of milliseconds.
    #[track_caller]
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        wait::until("all its threads are stopped", STOPPED_WITHIN, || {
            (self.exited().is_some() || are_stopped(self.pid())).then_some(())
        });
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child can be waited for")
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().expect("the child can be waited for")
    }

    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        match wait::poll(within, || self.exited()) {
            Some(status) => status,
            None => panic!("{} did not end within {within:?}; it wrote:\n{}", self.name, tail(&self.stderr(), 30)),
        }
    }

    /// All it wrote so far, also in earlier runs under this name. Bytes that are no UTF-8 are replaced.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `raftlet ARGS` to its end.
#[track_caller]
pub fn run<A: Into<OsString> + Clone>(args: &[A], within: Duration) -> Finished {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let args: Vec<OsString> = args.iter().cloned().map(Into::into).collect();
    // SIGTERM, so that a command that has children of its own can stop them.
    let mut process = Process::start("raftlet", folder.path(), &args, Signal::TERM);
    let status = process.wait(within);
    let names = fs::read_dir(folder.path()).expect("the folder is there").filter_map(Result::ok);
    let left = names.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with("raftlet."));
    let finished = Finished { status, stdout: process.stdout(), stderr: process.stderr(), left: left.collect() };
    assert_no_panic("raftlet", &finished.stderr);
    finished
}

/// Sends a signal to a process that need not be our child.
pub fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// False also for a process that has ended and was not waited for.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Whether no thread of the process runs: all are stopped by SIGSTOP, or gone.
fn are_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
    })
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Of all its threads since its start.
    pub cpu: Duration,
    /// What it holds of the machine's memory now.
    pub resident_bytes: u64,
}

/// Reads a process' usage from Linux' /proc.
#[track_caller]
pub fn usage(pid: u32) -> Usage {
    /// USER_HZ: the unit of the times in /proc, 10 ms on every architecture that Rust's standard library supports.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    // proc(5): utime and stime are fields 14 and 15; the first after the name is field 3.
    let ticks: u32 = rest.split(' ').skip(11).take(2).map(|n| n.parse::<u32>().expect("a number")).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: u64 = resident.and_then(|n| n.parse().ok()).expect("VmRSS in kB");
    Usage { cpu: TICK * ticks, resident_bytes: kib << 10 }
}

/// The last lines of a log.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Nothing a user or a fault does may make raftlet panic. What a module writes through its log import is not raftlet's.
#[track_caller]
pub fn assert_no_panic(name: &str, stderr: &str) {
    let panicked = stderr.lines().any(|l| l.contains("panicked") && !l.contains(" module: "));
    assert!(!panicked, "{name} panicked:\n{}", tail(stderr, 60));
}

fn appended(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts children from one thread that lasts as long as the process: the parent's death signal comes when the
/// *thread* that started the child ends, and tests run in short-lived threads.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                // An asker that is gone needs no answer.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = channel();
    let orders = spawner.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, reply)).expect("the spawner lasts for ever");
    answer.recv().expect("the spawner answers each order")
}
