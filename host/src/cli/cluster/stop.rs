//! `raftlet cluster stop`: asks the launcher of a directory to end, and waits for it. Signals only the process that
//! holds the directory's lock at that moment.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::folder::Folder;
use super::process::DRAIN_TIMEOUT;
use super::start::DIR;
use crate::cli::out::say;

/// Longer than a launcher gives its nodes.
const WAIT: Duration = DRAIN_TIMEOUT.saturating_add(Duration::from_secs(5));
const POLL: Duration = Duration::from_millis(50);

/// Stop the local cluster that runs in a directory
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet cluster stop --dir /var/lib/raftlet")]
pub struct StopArgs {
    /// The directory it was started with
    #[arg(long, env = "RAFTLET_DIR", value_name = "DIR", default_value = DIR)]
    pub dir: PathBuf,
}

pub async fn run(args: StopArgs) -> anyhow::Result<()> {
    let folder = Folder::new(&args.dir);
    let dir = args.dir.display();
    if !signal_launcher(&folder)? {
        bail!("no cluster runs in {dir}; if it is elsewhere, give its --dir");
    }
    let begun = Instant::now();
    while folder.launcher()?.is_some() {
        if begun.elapsed() > WAIT {
            bail!("the cluster in {dir} was asked to end, but still runs after {} s", WAIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    say(format_args!("The cluster in {dir} has ended."));
    Ok(())
}

/// False if nobody holds the lock.
fn signal_launcher(folder: &Folder) -> anyhow::Result<bool> {
    let Some(pid) = folder.launcher()? else { return Ok(false) };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).context("can't reach the launcher's process"),
    };
    // The handle is of one process for ever. If that one holds the lock now, it is the launcher; without this second
    // look, the id could have gone to another process before the handle was opened.
    if folder.launcher()? != Some(pid) {
        return Ok(false);
    }
    match pidfd_send_signal(&handle, Signal::TERM) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("can't signal process {}", pid.as_raw_nonzero())),
    }
}
