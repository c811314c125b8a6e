//! The signals that ask a process to end: Ctrl-C, SIGTERM, and the terminal's end (SIGHUP).

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Once this exists, these signals don't end the process by themselves any more.
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    pub fn new() -> anyhow::Result<EndSignals> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(EndSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one's name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Waits for one, whichever it is.
    pub async fn another(&mut self) {
        self.next().await;
    }
}
