//! Runs batches of queries on a published state, on threads of their own, beside the applies. Never writes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Published;
use crate::guest::{QueryBounds, STACK_BYTES, ValidBatch};
use crate::outcome::{BatchReplies, CommandReply, Failure, Run};
use crate::raft::codec::log_id;

/// A query may be cut by time, unlike a command: nothing depends on it but its client.
const QUERY_TIME_MAX: Duration = Duration::from_secs(2);
const HOST_STACK_BYTES: usize = 4 << 20;

struct Job {
    state: Arc<Published>,
    batch: Bytes,
    run: Run,
    done: oneshot::Sender<Result<BatchReplies, String>>,
}

/// The query threads. Cloning is cheap; they end when the last clone is dropped.
#[derive(Clone)]
pub struct Queries {
    jobs: mpsc::Sender<Job>,
}

impl Queries {
    pub fn start(threads: usize) -> io::Result<Queries> {
        let (jobs, incoming) = mpsc::channel::<Job>();
        let incoming = Arc::new(Mutex::new(incoming));
        for i in 0..threads {
            let incoming = incoming.clone();
            std::thread::Builder::new().name(format!("query-{i}")).stack_size(STACK_BYTES + HOST_STACK_BYTES).spawn(
                move || {
                    loop {
                        let next = incoming.lock().expect("no code panics under this lock").recv();
                        let Ok(job) = next else { return };
                        let run = || run(&job.state, &job.batch, &job.run);
                        let result = catch_unwind(AssertUnwindSafe(run));
                        let _ = job.done.send(result.unwrap_or_else(|_| Err("a query thread panicked".into())));
                    }
                },
            )?;
        }
        Ok(Queries { jobs })
    }

    /// Runs these queries of an archived batch on `state`. An error is this machine's, not the queries'.
    pub async fn run(&self, state: Arc<Published>, batch: Bytes, run: Run) -> Result<BatchReplies, String> {
        let (done, result) = oneshot::channel();
        let gone = || "the query threads have stopped".to_string();
        self.jobs.send(Job { state, batch, run, done }).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

fn run(state: &Published, batch: &[u8], run: &Run) -> Result<BatchReplies, String> {
    let Some(module) = &state.module else {
        return Ok(BatchReplies::Each(vec![CommandReply::Failed(Failure::NoModule); run.positions.len()]));
    };
    let context = state.context(state.applied.unwrap_or_else(|| log_id(0, 0)));
    let positions: Vec<u32> = run.positions.clone().collect();
    let bounds = QueryBounds { within: QUERY_TIME_MAX, reply_bytes_max: run.reply_bytes_max };
    // It was validated when it came in: if it is broken now, this machine broke it.
    let batch = ValidBatch::new(batch).map_err(|error| format!("a batch of queries is {error}"))?;
    module.query(&context, batch, &positions, state.map.clone(), bounds).map_err(|e| e.to_string())
}
