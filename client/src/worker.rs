//! One task for each connection. When it is free, it takes what waits and sends it as one request, if it is as much as
//! the largest one on its way, or that one takes long. It decides what is sent again. Next: `client.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Aim, Cluster};
use crate::error::{Error, Refusal};
use crate::exchange::{Exchange, Outcome};
use crate::queue::{BulkLimits, Flight, Item, Kind, Load, Queue};
use crate::reply::Answer;
use crate::wire::Wire;

/// Pauses after a failure: the first, and the longest. Each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// An answer that takes longer makes the worker ask whether the node hangs.
const LOOK_ROUND_AFTER: Duration = Duration::from_secs(1);
/// An answer that takes longer is no reason for others to wait.
const HOLDS_BACK: Duration = Duration::from_millis(2);

/// What all workers of a client share.
pub(crate) struct Shared {
    pub(crate) queue: Arc<Queue>,
    pub(crate) cluster: Cluster,
    pub(crate) limits: BulkLimits,
    /// Loads of one request are sent as plain requests.
    pub(crate) plain: bool,
    /// What was refused, and what may be repeated, is sent again.
    pub(crate) retries: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) answer_timeout: Duration,
    pub(crate) figures: Counters,
}

/// Since the client was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) exchanges: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) again: AtomicU64,
}

/// Which requests a worker takes, and where it sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Commands and linearizable queries, to the leader. Whether queries go first.
    Led { queries_first: bool },
    /// Stale queries, to this node.
    Stale { node: usize },
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    duty: Duty,
    open: Option<Open>,
    items: Vec<Item>,
    results: Vec<(Item, Result<Answer, Error>)>,
    wakers: Vec<Waker>,
    exchange: Exchange,
    /// Of what was sent last, until the line is looked at again.
    flight: Option<Flight>,
    /// Failures in a row.
    failures: u32,
}

struct Open {
    wire: Wire,
    node: usize,
    /// None for a worker whose node never changes.
    aim: Option<Aim>,
}

impl Duty {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Duty::Led { queries_first: false } => &[Kind::Command, Kind::Query],
            Duty::Led { queries_first: true } => &[Kind::Query, Kind::Command],
            Duty::Stale { .. } => &[Kind::Stale],
        }
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, duty: Duty) -> Worker {
        let exchange = Exchange::new(shared.plain);
        let (items, results, wakers) = Default::default();
        Worker { shared, duty, open: None, items, results, wakers, exchange, flight: None, failures: 0 }
    }

    /// Ends only when its task is aborted.
    pub(crate) async fn run(mut self) {
        loop {
            if !self.is_aimed() {
                self.land();
                self.open = None;
                self.wait_for_work().await;
                self.connect().await;
                continue;
            }
            let landed = self.flight.take();
            match self.shared.queue.take(self.duty.kinds(), self.shared.limits, landed, &mut self.items) {
                Some((kind, flight)) => {
                    self.flight = Some(flight);
                    if let Duty::Led { queries_first } = &mut self.duty {
                        // They take turns, so that neither starves.
                        *queries_first = kind == Kind::Command;
                    }
                    self.serve(kind).await;
                }
                None => self.idle().await,
            }
        }
    }

    fn land(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.shared.queue.land(flight, self.duty.kinds());
        }
    }

    /// Whether the connection leads to where requests should go now.
    fn is_aimed(&self) -> bool {
        let Some(open) = &self.open else { return false };
        open.wire.is_open() && (open.aim.is_none() || open.aim == self.shared.cluster.known())
    }

    async fn wait_for_work(&mut self) {
        while !self.shared.queue.has(self.duty.kinds()) {
            self.shared.queue.told(self.duty.kinds()).await;
        }
        // Another worker may have a connection already.
        self.shared.queue.tell(self.duty.kinds());
    }

    /// Waits for work with an open connection, and notices when that ends.
    async fn idle(&mut self) {
        let Some(open) = &mut self.open else { return };
        tokio::select! {
            () = self.shared.queue.told(self.duty.kinds()) => {}
            () = open.wire.closed() => self.open = None,
        }
    }

    async fn connect(&mut self) {
        let shared = self.shared.clone();
        let (node, aim) = match self.duty {
            Duty::Stale { node } => (node, None),
            Duty::Led { .. } => match shared.cluster.aim().await {
                Some(aim) => (aim.node, Some(aim)),
                None => return self.pause().await,
            },
        };
        match Wire::connect(shared.cluster.node(node), shared.connect_timeout).await {
            Ok(wire) => self.open = Some(Open { wire, node, aim }),
            Err(_) => {
                aim.into_iter().for_each(|aim| shared.cluster.lost(aim));
                self.pause().await;
            }
        }
    }

    /// Sends what was taken, and settles it.
    async fn serve(&mut self, kind: Kind) {
        let shared = self.shared.clone();
        let figures = &shared.figures;
        figures.exchanges.fetch_add(1, Ordering::Relaxed);
        figures.requests.fetch_add(self.items.len() as u64, Ordering::Relaxed);
        match self.send(kind).await {
            Outcome::Answered(answer) => self.answered(&answer).await,
            Outcome::Refused(refusal) => self.refused(refusal).await,
            Outcome::Broken { sent, refusal } => {
                // Nothing is known of the connection's end; a request after this one would be mixed up with it.
                if let Some(Open { aim: Some(aim), .. }) = self.open.take() {
                    shared.cluster.lost(aim);
                }
                self.unanswered(kind, sent, &refusal);
                self.pause().await;
            }
            Outcome::Unknown(refusal) => {
                self.unanswered(kind, true, &refusal);
                self.pause().await;
            }
        }
    }

    async fn send(&mut self, kind: Kind) -> Outcome {
        let Some(Open { wire, node, aim }) = &mut self.open else { unreachable!("it was aimed") };
        let cluster = &self.shared.cluster;
        let until = Instant::now() + self.shared.answer_timeout;
        let exchange = self.exchange.run(wire, kind, &self.items);
        tokio::pin!(exchange);
        loop {
            let wait = if self.flight.is_some() { HOLDS_BACK } else { LOOK_ROUND_AFTER };
            let look = (Instant::now() + wait).min(until);
            if let Ok(outcome) = tokio::time::timeout_at(look, &mut exchange).await {
                return outcome;
            }
            if let Some(flight) = self.flight.take() {
                self.shared.queue.land(flight, self.duty.kinds());
                continue;
            }
            let broken = |detail: String| {
                let refusal = Refusal::own("broken", format!("{}: {detail}", cluster.node(*node)));
                Outcome::Broken { sent: true, refusal }
            };
            if look == until {
                return broken(format!("no answer within {:?}", self.shared.answer_timeout));
            }
            // A node that hangs says nothing; the others know when it leads no more.
            if aim.is_some() {
                tokio::select! {
                    biased;
                    outcome = &mut exchange => return outcome,
                    left = cluster.has_left(*node) => if left {
                        return broken("it hangs, and another node leads".to_owned());
                    },
                }
            }
        }
    }

    /// Hands the replies out. Those that a node refused one by one wait again.
    async fn answered(&mut self, answer: &Answer) {
        let mut first = 0;
        // Without and with a doubt: those of the latter may have happened.
        let mut refused: [Option<(Refusal, Vec<Item>)>; 2] = [None, None];
        for item in self.items.drain(..) {
            let count = item.load.requests().len();
            let part = answer.part(first, count);
            first += count;
            if self.shared.retries && matches!(item.load, Load::One(_)) && part.is_refused() {
                let problem = part.problem(0).filter(|problem| problem.may_pass(item.repeatable));
                if let Some(problem) = problem {
                    let alike = &mut refused[usize::from(problem.unknown)];
                    alike.get_or_insert_with(|| (problem.refusal, Vec::new())).1.push(item);
                    continue;
                }
            }
            self.results.push((item, Ok(part)));
        }
        self.shared.queue.finish(self.results.drain(..), &mut self.wakers);
        if let Some(Open { aim: Some(aim), .. }) = &self.open {
            self.shared.cluster.seen(answer.term(), *aim);
        }
        if refused.iter().all(Option::is_none) {
            self.failures = 0;
            // Whoever was answered now may send the next request: let them come before the line is looked at.
            return tokio::task::yield_now().await;
        }
        for (refused, doubt) in refused.into_iter().zip([false, true]) {
            if let Some((refusal, items)) = refused {
                self.wait_again(items, &refusal, doubt);
            }
        }
        self.pause().await;
    }

    /// All that was sent was refused; nothing of it happened.
    async fn refused(&mut self, refusal: Refusal) {
        let may_pass = refusal.may_pass();
        let is_wrong = refusal.status.is_some_and(|status| (400..500).contains(&status));
        if is_wrong && self.items.len() > 1 {
            // One of them is to blame. Sent one by one, it alone is refused.
            self.items.iter_mut().for_each(|item| item.alone = true);
            let items = std::mem::take(&mut self.items);
            return self.wait_again(items, &refusal, false);
        }
        if !(may_pass && self.shared.retries) {
            let refused = |item| (item, Err(Error::Rejected(refusal.clone())));
            return self.shared.queue.finish(self.items.drain(..).map(refused), &mut self.wakers);
        }
        // A leader that has too much to do is still the leader.
        if refusal.kind != "overloaded"
            && let Some(Open { aim: Some(aim), .. }) = &self.open
        {
            self.shared.cluster.lost(*aim);
        }
        let items = std::mem::take(&mut self.items);
        self.wait_again(items, &refusal, false);
        self.pause().await;
    }

    /// What was sent may have happened; what was not, has not.
    fn unanswered(&mut self, kind: Kind, sent: bool, refusal: &Refusal) {
        let retries = self.shared.retries;
        let (again, over): (Vec<_>, Vec<_>) =
            self.items.drain(..).partition(|item| retries && (!sent || item.repeatable));
        let error = if sent && kind == Kind::Command { Error::Unknown } else { Error::Rejected };
        let over = over.into_iter().map(|item| (item, Err(error(refusal.clone()))));
        self.shared.queue.finish(over, &mut self.wakers);
        if !again.is_empty() {
            self.wait_again(again, refusal, sent);
        }
    }

    fn wait_again(&self, items: Vec<Item>, refusal: &Refusal, doubt: bool) {
        self.shared.figures.again.fetch_add(items.len() as u64, Ordering::Relaxed);
        self.shared.queue.again(items.into_iter(), refusal, doubt);
    }

    async fn pause(&mut self) {
        self.land();
        let pause = (PAUSE_MIN * 2u32.pow(self.failures.min(10))).min(PAUSE_MAX);
        self.failures += 1;
        tokio::time::sleep(pause).await;
    }
}
