//! What waits: requests whose callers wait for an answer, in the order in which they came. Workers take them in bulk
//! and give the answers back, each under one lock. A caller that goes away takes its request with it. Never touches a
//! socket. Next: `worker.rs`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use raftlet_machine::Request;
use slab::Slab;
use tokio::sync::Notify;

use crate::error::{Error, Refusal};
use crate::reply::Answer;
use crate::request::archived_bytes;

/// What is sent together: only requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Command,
    /// A linearizable query.
    Query,
    /// A query that any node answers from its own state.
    Stale,
}

/// What one caller sends.
#[derive(Debug)]
pub(crate) enum Load {
    One(Request),
    /// An explicit batch. It travels alone.
    Many(Vec<Request>),
}

/// A load that was taken, until its caller has its answer or it waits again.
#[derive(Debug)]
pub(crate) struct Item {
    ticket: Ticket,
    pub(crate) load: Load,
    /// Sent without others, because others were refused together with it.
    pub(crate) alone: bool,
    /// It may be sent again although nobody knows what became of it.
    pub(crate) repeatable: bool,
}

/// A place among those who wait. The sequence tells its owner from the next one at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticket {
    place: usize,
    sequence: u64,
}

#[derive(Debug)]
struct Caller {
    sequence: u64,
    bytes: usize,
    kind: Kind,
    waker: Option<Waker>,
    state: State,
    /// It was sent, and may have happened without an answer.
    doubt: bool,
    /// Why it waits again.
    refusal: Option<Refusal>,
}

#[derive(Debug)]
enum State {
    Waiting(Item),
    Taken,
    Done(Result<Answer, Error>),
}

/// What a worker took and has not landed yet. Others hold back meanwhile, so that what waits goes together.
#[derive(Debug)]
pub(crate) struct Flight {
    kind: Kind,
    requests: usize,
}

/// How much may be taken together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BulkLimits {
    pub(crate) requests: usize,
    /// Of the archive. One request alone may have more.
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    bytes_max: usize,
    /// For workers that take commands and queries; for those that take stale queries.
    led: Notify,
    stale: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    callers: Slab<Caller>,
    next_sequence: u64,
    lines: [Line; 3],
    /// For each line how many requests each flight has.
    flying: [Vec<usize>; 3],
    bytes: usize,
}

/// Tickets in their order. Those of callers that went away stay until they are met, or are too many.
#[derive(Debug, Default)]
struct Line {
    tickets: VecDeque<Ticket>,
    gone: usize,
}

impl Load {
    pub(crate) fn requests(&self) -> &[Request] {
        match self {
            Load::One(request) => std::slice::from_ref(request),
            Load::Many(requests) => requests,
        }
    }

    fn bytes(&self) -> usize {
        self.requests().iter().map(archived_bytes).sum()
    }
}

impl Item {
    /// It travels without others.
    fn is_lonely(&self) -> bool {
        self.alone || matches!(self.load, Load::Many(_))
    }
}

impl Line {
    /// Tickets whose callers are there.
    fn waiting(&self) -> usize {
        self.tickets.len() - self.gone
    }
}

impl Queue {
    /// `bytes_max`: of all loads whose callers wait, sent or not.
    pub(crate) fn new(bytes_max: usize) -> Queue {
        Queue { inner: Mutex::default(), bytes_max, led: Notify::new(), stale: Notify::new() }
    }

    /// Nothing panics while it holds the lock, but for a broken invariant, which the next one meets again.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, kind: Kind) -> &Notify {
        if kind == Kind::Stale { &self.stale } else { &self.led }
    }

    /// Puts a load in line. The answer, or what is known without one, is what the returned future ends with.
    pub(crate) fn push(self: &Arc<Self>, load: Load, kind: Kind, repeatable: bool) -> Result<Waiting, Error> {
        let bytes = load.bytes();
        let mut inner = self.lock();
        // One load over the limit may go when nothing else waits.
        if inner.bytes > 0 && inner.bytes + bytes > self.bytes_max {
            let detail = format!("{} bytes wait for answers, {} may", inner.bytes, self.bytes_max);
            return Err(Error::Rejected(Refusal::own("client-full", detail)));
        }
        inner.bytes += bytes;
        inner.next_sequence += 1;
        let sequence = inner.next_sequence;
        let place = inner.callers.vacant_key();
        let ticket = Ticket { place, sequence };
        let item = Item { ticket, load, alone: false, repeatable };
        let is_lonely = item.is_lonely();
        let state = State::Waiting(item);
        inner.callers.insert(Caller { sequence, bytes, kind, waker: None, state, doubt: false, refusal: None });
        let line = &mut inner.lines[kind as usize].tickets;
        line.push_back(ticket);
        // A line that was ready before has been told of, and whoever leaves some of it tells the next one.
        let tell = is_lonely || inner.lines[kind as usize].waiting() == inner.enough(kind);
        drop(inner);
        if tell {
            self.notify(kind).notify_one();
        }
        Ok(Waiting { queue: self.clone(), ticket: Some(ticket) })
    }

    /// Takes what may travel together, of the first of `kinds` that has enough. None: nothing waits, or too little beside
    /// what is on its way.
    pub(crate) fn take(
        &self,
        kinds: &[Kind],
        limits: BulkLimits,
        landed: Option<Flight>,
        into: &mut Vec<Item>,
    ) -> Option<(Kind, Flight)> {
        let mut inner = self.lock();
        landed.into_iter().for_each(|flight| inner.land(&flight));
        let kind = *kinds.iter().find(|kind| inner.is_ready(**kind) && inner.take(**kind, limits, into))?;
        // An explicit batch holds nobody back.
        let requests = if into.iter().any(Item::is_lonely) { 0 } else { into.len() };
        inner.flying[kind as usize].push(requests);
        let more = kinds.iter().any(|kind| inner.is_ready(*kind));
        drop(inner);
        if more {
            self.notify(kind).notify_one();
        }
        Some((kind, Flight { kind, requests }))
    }

    /// A flight holds nobody back any more: it has ended, or takes long.
    pub(crate) fn land(&self, flight: Flight, kinds: &[Kind]) {
        let mut inner = self.lock();
        inner.land(&flight);
        let ready = kinds.iter().any(|kind| inner.is_ready(*kind));
        drop(inner);
        if ready {
            self.notify(flight.kind).notify_one();
        }
    }

    /// Whether anything waits in these lines.
    pub(crate) fn has(&self, kinds: &[Kind]) -> bool {
        let mut inner = self.lock();
        kinds.iter().any(|kind| {
            inner.skip_gone(*kind);
            !inner.lines[*kind as usize].tickets.is_empty()
        })
    }

    /// Ends when something may wait in these lines. Only workers of the same lines may wait for it.
    pub(crate) async fn told(&self, kinds: &[Kind]) {
        self.notify(kinds[0]).notified().await;
    }

    /// Wakes another worker of these lines, because this one can't work now.
    pub(crate) fn tell(&self, kinds: &[Kind]) {
        self.notify(kinds[0]).notify_one();
    }

    /// Gives each item's caller what became of it. Callers that went away are passed over.
    pub(crate) fn finish(&self, items: impl Iterator<Item = (Item, Result<Answer, Error>)>, wakers: &mut Vec<Waker>) {
        let mut inner = self.lock();
        for (item, result) in items {
            let Some(caller) = inner.caller(item.ticket) else { continue };
            let doubt = caller.doubt;
            caller.state =
                State::Done(result.map(|answer| answer.in_doubt(doubt)).map_err(|error| in_doubt(error, doubt)));
            wakers.extend(caller.waker.take());
        }
        drop(inner);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Puts items back in front of their line. `doubt`: they may have happened.
    pub(crate) fn again(&self, items: impl DoubleEndedIterator<Item = Item>, refusal: &Refusal, doubt: bool) {
        let mut inner = self.lock();
        let mut kind = None;
        for item in items.rev() {
            let ticket = item.ticket;
            let Some(caller) = inner.caller(ticket) else { continue };
            caller.doubt |= doubt && caller.kind == Kind::Command;
            caller.refusal = Some(refusal.clone());
            caller.state = State::Waiting(item);
            let line = caller.kind;
            inner.lines[line as usize].tickets.push_front(ticket);
            kind = Some(line);
        }
        drop(inner);
        if let Some(kind) = kind {
            self.notify(kind).notify_one();
        }
    }

    /// Callers that have not got their answer yet, and the bytes of their loads.
    #[cfg(test)]
    pub(crate) fn depth(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.callers.len(), inner.bytes)
    }
}

impl Inner {
    fn caller(&mut self, ticket: Ticket) -> Option<&mut Caller> {
        self.callers.get_mut(ticket.place).filter(|caller| caller.sequence == ticket.sequence)
    }

    fn remove(&mut self, ticket: Ticket) -> Caller {
        let caller = self.callers.remove(ticket.place);
        assert_eq!(caller.sequence, ticket.sequence, "a caller leaves its place once");
        self.bytes -= caller.bytes;
        caller
    }

    fn skip_gone(&mut self, kind: Kind) {
        while let Some(ticket) = self.lines[kind as usize].tickets.front().copied() {
            if self.caller(ticket).is_some() {
                break;
            }
            let line = &mut self.lines[kind as usize];
            line.tickets.pop_front();
            line.gone -= 1;
        }
    }

    fn land(&mut self, flight: &Flight) {
        let flying = &mut self.flying[flight.kind as usize];
        let at = flying.iter().position(|requests| *requests == flight.requests).expect("it lands once");
        flying.swap_remove(at);
    }

    /// How many requests must wait for a worker to take them: as many as the largest flight has. With fewer, one flight
    /// after the other would be small, and each costs the cluster a round.
    fn enough(&self, kind: Kind) -> usize {
        self.flying[kind as usize].iter().max().map_or(1, |largest| 1.max(*largest))
    }

    fn is_ready(&mut self, kind: Kind) -> bool {
        self.skip_gone(kind);
        let line = &self.lines[kind as usize];
        let Some(first) = line.tickets.front().copied() else { return false };
        if line.waiting() >= self.enough(kind) {
            return true;
        }
        let caller = self.caller(first).expect("the one in front is there");
        matches!(&caller.state, State::Waiting(item) if item.is_lonely())
    }

    fn take(&mut self, kind: Kind, limits: BulkLimits, into: &mut Vec<Item>) -> bool {
        let (mut requests, mut bytes) = (0, 0);
        while requests < limits.requests {
            self.skip_gone(kind);
            let Some(ticket) = self.lines[kind as usize].tickets.front().copied() else { break };
            let caller = self.caller(ticket).expect("the one in front is there");
            let State::Waiting(item) = &caller.state else { unreachable!("who is in line waits") };
            let lonely = item.is_lonely();
            if requests > 0 && (lonely || bytes + caller.bytes > limits.bytes) {
                break;
            }
            (requests, bytes) = (requests + 1, bytes + caller.bytes);
            let State::Waiting(item) = std::mem::replace(&mut caller.state, State::Taken) else { unreachable!() };
            into.push(item);
            self.lines[kind as usize].tickets.pop_front();
            if lonely {
                break;
            }
        }
        requests > 0
    }

    /// A caller that waits in line went away; its ticket stays there.
    fn note_gone(&mut self, kind: Kind) {
        const SPARED: usize = 64;
        let line = &mut self.lines[kind as usize];
        line.gone += 1;
        if line.gone > SPARED && line.gone > line.tickets.len() / 2 {
            let callers = &self.callers;
            let is_here = |t: &Ticket| callers.get(t.place).is_some_and(|caller| caller.sequence == t.sequence);
            line.tickets.retain(is_here);
            line.gone = 0;
        }
    }
}

/// What an earlier attempt left in doubt isn't settled by a later one that was refused.
fn in_doubt(error: Error, doubt: bool) -> Error {
    match error {
        Error::Rejected(refusal) if doubt => Error::Unknown(refusal),
        error => error,
    }
}

/// A caller's wait for its answer. Dropped, it takes back what has not been sent.
#[derive(Debug)]
pub(crate) struct Waiting {
    queue: Arc<Queue>,
    /// None once the answer was taken.
    ticket: Option<Ticket>,
}

impl Waiting {
    /// The time is over: what is known now.
    pub(crate) fn give_up(mut self, waited: Duration) -> Result<Answer, Error> {
        let Some(caller) = self.leave() else { unreachable!("the answer is taken once") };
        let in_flight = match caller.state {
            State::Done(result) => return result,
            State::Waiting(_) => false,
            State::Taken => true,
        };
        let last = caller.refusal.map_or_else(String::new, |refusal| format!("; the last answer: {refusal}"));
        let refusal = Refusal::own("deadline", format!("no answer within {waited:?}{last}"));
        let doubt = caller.doubt || (in_flight && caller.kind == Kind::Command);
        Err(if doubt { Error::Unknown(refusal) } else { Error::Rejected(refusal) })
    }

    fn leave(&mut self) -> Option<Caller> {
        let ticket = self.ticket.take()?;
        let mut inner = self.queue.lock();
        let caller = inner.remove(ticket);
        if matches!(caller.state, State::Waiting(_)) {
            inner.note_gone(caller.kind);
            // It may have stood before an explicit batch, which waits for nobody.
            if inner.is_ready(caller.kind) {
                self.queue.notify(caller.kind).notify_one();
            }
        }
        Some(caller)
    }
}

impl Future for Waiting {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = self.ticket.expect("polled after its end");
        let mut inner = self.queue.lock();
        let caller = inner.caller(ticket).expect("a caller that waits is there");
        if !matches!(caller.state, State::Done(_)) {
            match &mut caller.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let State::Done(result) = inner.remove(ticket).state else { unreachable!("it was done") };
        drop(inner);
        self.ticket = None;
        Poll::Ready(result)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
