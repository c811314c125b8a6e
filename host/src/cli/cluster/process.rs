//! One node of a local cluster: its child process, started again when it dies, ended when the launcher says so. Knows
//! nothing of HTTP. Whoever wants many of them reads `launcher.rs` next.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::folder::Folder;
use super::ports::Ports;
use crate::cli::settings::{Peers, Settings};

/// How long a node may drain after SIGTERM, before SIGKILL. Longer than the longest request.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause before the first restart; it doubles ...
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// ... up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A node that ran this long before it died starts again with the first pause.
const CALM: Duration = Duration::from_secs(60);

/// What is needed to start a node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub id: u64,
    pub executable: PathBuf,
    pub folder: Folder,
    pub ports: Ports,
    pub peers: Peers,
    pub bootstrap: bool,
    pub module: Option<PathBuf>,
    pub settings: Settings,
    /// Whether a dead child is started again.
    pub restart: bool,
}

/// What the launcher asks of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Run,
    /// SIGTERM, then wait for [`DRAIN_TIMEOUT`].
    Drain,
    /// SIGKILL.
    Kill,
}

/// What became of a node's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The process ended though nobody asked it to. It is started again after the pause, if there is one.
    Died { id: u64, how: String, again_in: Option<Duration> },
    /// The process can't be started (again). It is tried once more after the pause, if there is one.
    NotStarted { id: u64, why: String, again_in: Option<Duration> },
    /// SIGTERM did not end it in time; it got SIGKILL.
    Killed { id: u64 },
}

/// Runs the node until the wish is no longer [`Wish::Run`], or until it died and is not to be restarted.
pub async fn tend(spec: NodeSpec, mut wish: watch::Receiver<Wish>, events: mpsc::UnboundedSender<Event>) {
    let mut pause = BACKOFF_FIRST;
    loop {
        let id = spec.id;
        let again_in = spec.restart.then_some(pause);
        let started_at = Instant::now();
        let event = match spawn(&spec) {
            Ok(mut child) => {
                let status = tokio::select! {
                    status = child.wait() => Some(status),
                    _ = wish.wait_for(|w| *w != Wish::Run) => None,
                };
                let Some(status) = status else { return end(&spec, child, wish, &events).await };
                spec.folder.remove_pid(id);
                let how = status.map_or_else(|e| e.to_string(), describe);
                let calm = started_at.elapsed() >= CALM;
                pause = if calm { BACKOFF_FIRST } else { pause };
                Event::Died { id, how, again_in: spec.restart.then_some(pause) }
            }
            Err(error) => Event::NotStarted { id, why: format!("{error:#}"), again_in },
        };
        // Nobody listens only when the launcher is ending, and then the wish says so.
        drop(events.send(event));
        if !spec.restart {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = longer(pause),
            _ = wish.wait_for(|w| *w != Wish::Run) => return,
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(BACKOFF_MAX)
}

/// Must be called on the process's main thread: the child dies with the *thread* that started it.
fn spawn(spec: &NodeSpec) -> anyhow::Result<Child> {
    let log = spec.folder.open_log(spec.id)?;
    let mut command = Command::new(&spec.executable);
    command.args(arguments(spec));
    // The launcher has read the environment; a RAFTLET_MODULE or the like meant for it is not meant twice.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RAFTLET_") && name != "RAFTLET_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A process group of its own: Ctrl-C reaches the launcher alone, which then ends the nodes in order.
    command.process_group(0).kill_on_drop(true);
    let launcher = getpid();
    // SAFETY: the closure runs between fork and exec; it only makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // If the launcher died before that call, no signal will ever come.
            if getppid() == Some(launcher) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
        });
    }
    let child = command.spawn().with_context(|| format!("can't start {}", spec.executable.display()))?;
    if let Some(pid) = child.id() {
        let written = spec.folder.write_pid(spec.id, pid);
        written.with_context(|| format!("can't write {}", spec.folder.pid_file(spec.id).display()))?;
    }
    Ok(child)
}

fn arguments(spec: &NodeSpec) -> Vec<std::ffi::OsString> {
    let mut all: Vec<std::ffi::OsString> = ["node", "start", "--id"].map(Into::into).into();
    all.push(spec.id.to_string().into());
    all.extend(["--dir".into(), spec.folder.node(spec.id).into()]);
    all.extend(["--listen".into(), format!("127.0.0.1:{}", spec.ports.client).into()]);
    all.extend(["--peer-listen".into(), format!("127.0.0.1:{}", spec.ports.peer).into()]);
    if let Some(admin) = spec.ports.admin {
        all.extend(["--admin-listen".into(), format!("127.0.0.1:{admin}").into()]);
    }
    all.extend(["--peers".into(), spec.peers.to_string().into()]);
    all.extend(spec.settings.to_flags().into_iter().map(Into::into));
    if spec.bootstrap {
        all.push("--bootstrap".into());
    }
    if let Some(module) = &spec.module {
        all.extend(["--module".into(), module.into()]);
    }
    all
}

/// Ends a running child: gently while the wish is to drain, else at once.
async fn end(
    spec: &NodeSpec,
    mut child: Child,
    mut wish: watch::Receiver<Wish>,
    events: &mpsc::UnboundedSender<Event>,
) {
    // The id is there until the child was waited for, so it can't be another process's.
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        // An error means that it has just ended.
        let _ = kill_process(pid, Signal::TERM);
    }
    let in_time = tokio::select! {
        _ = child.wait() => true,
        () = tokio::time::sleep(DRAIN_TIMEOUT) => false,
        _ = wish.wait_for(|w| *w == Wish::Kill) => false,
    };
    if !in_time {
        drop(child.kill().await);
        drop(events.send(Event::Killed { id: spec.id }));
    }
    spec.folder.remove_pid(spec.id);
}

/// How a process ended, in words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(9)) => "killed (SIGKILL)".into(),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A "node" that is a shell script: it gets the same arguments.
    fn spec(script: &str, restart: bool) -> (tempfile::TempDir, NodeSpec) {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let executable = temporary.path().join("node.sh");
        std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&executable, std::fs::Permissions::from_mode(0o755)).unwrap();
        let spec = NodeSpec {
            id: 2,
            executable,
            folder: Folder::new(temporary.path()),
            ports: Ports { client: 8081, peer: 9081, admin: Some(7081) },
            peers: "1=127.0.0.1:9080,2=127.0.0.1:9081".parse().unwrap(),
            bootstrap: false,
            module: None,
            settings: Settings::default(),
            restart,
        };
        (temporary, spec)
    }

    /// Waits until the script has printed `line`.
    async fn printed(folder: &Folder, line: &str) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while !std::fs::read_to_string(folder.log_file(2)).unwrap_or_default().contains(line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {line:?} in the log"));
    }

    #[test]
    fn a_child_gets_everything_as_flags() {
        let (_temporary, mut spec) = spec("", false);
        let text = |spec: &NodeSpec| {
            let all: Vec<_> = arguments(spec).into_iter().map(|a| a.into_string().unwrap()).collect();
            all.join(" ")
        };
        let plain = text(&spec);
        assert!(plain.starts_with("node start --id 2 --dir "), "{plain}");
        assert!(plain.contains("--listen 127.0.0.1:8081 --peer-listen 127.0.0.1:9081 --admin-listen 127.0.0.1:7081 --peers 1=127.0.0.1:9080,2="));
        assert!(plain.contains("--batching=on") && !plain.contains("--bootstrap") && !plain.contains("--module"));
        spec.bootstrap = true;
        spec.module = Some("m.wasm".into());
        assert!(text(&spec).ends_with("--bootstrap --module m.wasm"));
    }

    #[tokio::test]
    async fn a_dead_child_is_reported_and_started_again() {
        let (_temporary, spec) = spec("echo run; exit 7", true);
        let folder = spec.folder.clone();
        let (wish, seen) = watch::channel(Wish::Run);
        let (events, mut queue) = mpsc::unbounded_channel();
        let tended = tokio::spawn(tend(spec, seen, events));
        let died = |again_in| Event::Died { id: 2, how: "exited with code 7".into(), again_in: Some(again_in) };
        assert_eq!(queue.recv().await, Some(died(BACKOFF_FIRST)));
        assert_eq!(queue.recv().await, Some(died(BACKOFF_FIRST * 2)));
        assert_eq!(std::fs::read_to_string(folder.log_file(2)).unwrap(), "run\nrun\n");
        wish.send(Wish::Drain).unwrap();
        tended.await.unwrap();
        assert!(!folder.pid_file(2).exists());
    }

    #[tokio::test]
    async fn without_restart_a_death_is_the_end() {
        let (_temporary, spec) = spec("kill -9 $$", false);
        let (_wish, seen) = watch::channel(Wish::Run);
        let (events, mut queue) = mpsc::unbounded_channel();
        tend(spec, seen, events).await;
        assert_eq!(queue.recv().await, Some(Event::Died { id: 2, how: "killed (SIGKILL)".into(), again_in: None }));
        assert_eq!(queue.recv().await, None);
    }

    #[tokio::test]
    async fn draining_waits_for_the_child_and_killing_does_not() {
        let polite = "trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.02; done";
        let stubborn = "trap '' TERM; echo up; while :; do sleep 0.02; done";
        for (script, last_wish, events_expected) in
            [(polite, Wish::Drain, vec![]), (stubborn, Wish::Kill, vec![Event::Killed { id: 2 }])]
        {
            let (_temporary, spec) = spec(script, true);
            let folder = spec.folder.clone();
            let (wish, seen) = watch::channel(Wish::Run);
            let (events, mut queue) = mpsc::unbounded_channel();
            let tended = tokio::spawn(tend(spec, seen, events));
            printed(&folder, "up").await;
            assert!(folder.pid_file(2).exists());
            wish.send(Wish::Drain).unwrap();
            if last_wish == Wish::Kill {
                wish.send(Wish::Kill).unwrap();
            }
            tended.await.unwrap();
            let mut events = Vec::new();
            while let Some(event) = queue.recv().await {
                events.push(event);
            }
            assert_eq!(events, events_expected);
            assert_eq!(script == polite, std::fs::read_to_string(folder.log_file(2)).unwrap().contains("drained"));
            assert!(!folder.pid_file(2).exists());
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!(longer(BACKOFF_FIRST), Duration::from_secs(1));
        assert_eq!(longer(BACKOFF_MAX), BACKOFF_MAX);
    }

    #[tokio::test]
    async fn an_executable_that_is_not_there_is_reported() {
        let (_temporary, mut spec) = spec("", false);
        spec.executable = "/nowhere/raftlet".into();
        let (_wish, seen) = watch::channel(Wish::Run);
        let (events, mut queue) = mpsc::unbounded_channel();
        tend(spec, seen, events).await;
        let Some(Event::NotStarted { id: 2, why, again_in: None }) = queue.recv().await else { panic!("no event") };
        assert!(why.contains("can't start /nowhere/raftlet"), "{why}");
    }
}
