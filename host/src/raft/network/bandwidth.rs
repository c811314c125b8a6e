//! How fast snapshots leave this node: one budget for all transfers together, so that they can't take the network and
//! the disk from heartbeats and commits. Knows no snapshot; `snapshots.rs` asks it before each piece.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Bytes a second, shared by all who ask, in the order in which they asked.
pub struct Bandwidth {
    /// 0: no cap.
    bytes_per_second: u64,
    /// When all that was let through so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// 0 bytes a second: no cap.
    pub fn new(bytes_per_second: u64) -> Self {
        Bandwidth { bytes_per_second, paid: Mutex::new(None) }
    }

    /// Returns when so many bytes may be sent. A call that is dropped half-way has used its share.
    pub async fn take(&self, bytes: u64) {
        if self.bytes_per_second == 0 || bytes == 0 {
            return;
        }
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let from = {
            let mut paid = self.paid.lock().expect("no code panics under this lock");
            let now = Instant::now();
            // Time in which nobody sent is not saved up: after a pause there is no burst.
            let from = paid.map_or(now, |p| p.max(now));
            *paid = Some(from + price);
            from
        };
        sleep_until(from).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_share_one_budget() {
        let cap = Bandwidth::new(1000);
        let begun = Instant::now();
        let one = async {
            for _ in 0..10 {
                cap.take(500).await;
            }
        };
        tokio::join!(one, async {
            for _ in 0..10 {
                cap.take(500).await;
            }
        });
        // 10,000 bytes; the last piece is sent when those before it are paid for.
        assert_eq!(begun.elapsed().as_millis(), 9_500);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_nothing_up_and_no_cap_never_waits() {
        let cap = Bandwidth::new(1000);
        cap.take(1000).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun = Instant::now();
        cap.take(1000).await;
        cap.take(1000).await;
        assert_eq!(begun.elapsed().as_secs(), 1);
        let free = Bandwidth::new(0);
        let begun = Instant::now();
        free.take(u64::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
