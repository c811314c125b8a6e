//! Is a history linearizable? A search for an order of all operations that respects their times and the rules of
//! `model.rs`: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the memoisation of Lowe, "Testing
//! for Linearizability" (2017): a set of done operations with the same state is never searched twice.
//!
//! Each key is checked alone first (linearizability is local: Herlihy and Wing 1990, §3.3), which names the smallest
//! failing key; then all keys of one prefix together as one object, because a list reads several keys at one moment,
//! and because revisions order the writes of all keys. Both searches are exact. Four things keep them small, and none
//! of them loses an answer:
//!
//! - A definite operation that is right now and changes nothing is done now: in any order that does it later it can be
//!   moved here.
//! - Calls with a revision happen in the order of their revisions.
//! - An operation with an unknown outcome that nothing shows is only done on a key where a definite one is wrong now.
//!   In any order it can be moved to just before the next definite operation on its key; if that one is right without
//!   it, it can be left out, or (a read) was done already.
//! - Of such unknown operations with the same effect the oldest is taken.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::history::Operation;
use crate::model::{Call, Impossible, Problem, State, Step};

/// Each is well under a kilobyte.
const STATES_MAX: usize = 2_000_000;
const SEARCH_WITHIN: Duration = Duration::from_secs(60);
/// How many of the operations that can't be placed are shown.
const STUCK_SHOWN: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation(Violation),
    /// The search was too large. A test that gets this must fail: nothing was shown.
    Undecided(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// One key, or all that had to be looked at together.
    pub keys: Vec<String>,
    pub why: String,
    /// Places in the history: those that can't be placed.
    pub operations: Vec<usize>,
}

/// What a check has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effort {
    pub objects: usize,
    pub states: usize,
}

/// Checks keys that share a prefix and the lists of it: each key alone, then all together.
pub fn check(history: &[Operation], keys: &[String]) -> (Verdict, Effort) {
    let mut effort = Effort::default();
    let alone = keys.iter().map(std::slice::from_ref);
    for keys in alone.chain((keys.len() > 1).then_some(keys)) {
        let problem = match Problem::of(history, keys) {
            Ok(problem) => problem,
            Err(Impossible { why, operations }) => {
                let key = operations.first().map(|at| history[*at].action.key().to_owned());
                return (Verdict::Violation(Violation { keys: key.into_iter().collect(), why, operations }), effort);
            }
        };
        let (verdict, states) = search(&problem);
        effort.objects += 1;
        effort.states += states;
        if verdict != Verdict::Linearizable {
            return (verdict, effort);
        }
    }
    (Verdict::Linearizable, effort)
}

/// The verdict about one object, and how many states were looked at.
pub fn search(problem: &Problem) -> (Verdict, usize) {
    let mut search = Search::of(problem);
    let verdict = search.run();
    (verdict, search.seen.len())
}

struct Search<'p> {
    problem: &'p Problem,
    /// Calls that returned, by invocation; all must be placed.
    must: Vec<&'p Call>,
    /// Calls that never returned. Those that aren't optional must be placed too.
    open: Vec<&'p Call>,
    /// For each of `open`, the one before it that has the same effect and no revision: it goes first.
    twin: Vec<Option<usize>>,
    /// Revisions of all that have one, in their order.
    ranks: Vec<u64>,
    done_must: Vec<bool>,
    done_open: Vec<bool>,
    /// All of `must` before it are done.
    first: usize,
    ranked: usize,
    left: usize,
    state: State,
    seen: HashSet<Memo>,
    /// The most that could be placed, and what could not be then.
    deepest: Option<(usize, Vec<usize>)>,
}

#[derive(PartialEq, Eq, Hash)]
struct Memo {
    first: usize,
    beyond: Box<[u32]>,
    open: Box<[u32]>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Must(usize),
    Open(usize),
}

/// A choice that may have to be taken back.
struct Choice {
    moves: Vec<Move>,
    next: usize,
    /// What was done since: the chosen move and all reads that were right then.
    done: Vec<Move>,
    before: State,
}

impl<'p> Search<'p> {
    fn of(problem: &'p Problem) -> Self {
        let (must, open): (Vec<&Call>, Vec<&Call>) =
            problem.calls.iter().partition(|call| call.returned != crate::history::NEVER);
        let same = |a: &Call, b: &Call| a.optional && b.optional && a.effect == b.effect;
        let twin = |at: usize| (0..at).rev().find(|&before| same(open[before], open[at]));
        let mut ranks: Vec<u64> = problem.calls.iter().filter_map(|call| call.rank).collect();
        ranks.sort_unstable();
        let left = must.len() + open.iter().filter(|call| !call.optional).count();
        Search {
            twin: (0..open.len()).map(twin).collect(),
            done_must: vec![false; must.len()],
            done_open: vec![false; open.len()],
            first: 0,
            ranked: 0,
            left,
            state: problem.initial(),
            seen: HashSet::new(),
            deepest: None,
            problem,
            must,
            open,
            ranks,
        }
    }

    fn run(&mut self) -> Verdict {
        let deadline = Instant::now() + SEARCH_WITHIN;
        let mut root = Vec::new();
        self.take_reads(&mut root);
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            if self.left == 0 {
                return Verdict::Linearizable;
            }
            if self.seen.insert(self.memo()) {
                if self.seen.len() >= STATES_MAX || Instant::now() >= deadline {
                    return Verdict::Undecided(format!(
                        "{} states in {:?} were not enough for {} calls on {:?}",
                        self.seen.len(),
                        SEARCH_WITHIN,
                        self.problem.calls.len(),
                        self.problem.keys
                    ));
                }
                let moves = self.moves();
                choices.push(Choice { moves, next: 0, done: Vec::new(), before: self.state.clone() });
            }
            if !self.advance(&mut choices) {
                return Verdict::Violation(self.violation());
            }
        }
    }

    /// Takes back what leads nowhere and makes the next choice; false if there is none left.
    fn advance(&mut self, choices: &mut Vec<Choice>) -> bool {
        while let Some(choice) = choices.last_mut() {
            let done = std::mem::take(&mut choice.done);
            done.into_iter().rev().for_each(|made| self.take_back(made));
            self.state.clone_from(&choice.before);
            if let Some(&chosen) = choice.moves.get(choice.next) {
                choice.next += 1;
                let mut done = vec![chosen];
                self.make(chosen);
                self.take_reads(&mut done);
                choice.done = done;
                return true;
            }
            choices.pop();
        }
        false
    }

    fn call(&self, at: Move) -> &'p Call {
        match at {
            Move::Must(at) => self.must[at],
            Move::Open(at) => self.open[at],
        }
    }

    fn step(&self, call: &Call) -> Step {
        let in_turn = call.rank.is_none_or(|rank| self.ranks[self.ranked] == rank);
        if in_turn { call.effect.step(&self.state, call.optional) } else { Step::Wrong }
    }

    fn make(&mut self, made: Move) {
        let call = self.call(made);
        if let Step::Sets(key, slot) = call.effect.step(&self.state, call.optional) {
            self.state[key] = slot;
        }
        self.ranked += usize::from(call.rank.is_some());
        self.left -= usize::from(!call.optional);
        match made {
            Move::Must(at) => self.done_must[at] = true,
            Move::Open(at) => self.done_open[at] = true,
        }
        while self.done_must.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    /// Everything but the state, which the choice has kept.
    fn take_back(&mut self, made: Move) {
        let call = self.call(made);
        self.ranked -= usize::from(call.rank.is_some());
        self.left += usize::from(!call.optional);
        match made {
            Move::Must(at) => {
                self.done_must[at] = false;
                self.first = self.first.min(at);
            }
            Move::Open(at) => self.done_open[at] = false,
        }
    }

    /// Calls of `must` that may be next: no other that is left returned before they were invoked.
    fn candidates(&self) -> (Vec<usize>, u64) {
        let (mut earliest, mut found) = (u64::MAX, Vec::new());
        for at in self.first..self.must.len() {
            if self.must[at].invoked > earliest {
                break;
            }
            if !self.done_must[at] {
                earliest = earliest.min(self.must[at].returned);
                found.push(at);
            }
        }
        found.retain(|at| self.must[*at].invoked <= earliest);
        (found, earliest)
    }

    fn take_reads(&mut self, done: &mut Vec<Move>) {
        loop {
            let (found, _) = self.candidates();
            let right = |at: &usize| self.must[*at].rank.is_none() && self.step(self.must[*at]) == Step::Same;
            let right: Vec<usize> = found.into_iter().filter(right).collect();
            if right.is_empty() {
                return;
            }
            for at in right {
                self.make(Move::Must(at));
                done.push(Move::Must(at));
            }
        }
    }

    /// What may be done next, the most promising first.
    fn moves(&mut self) -> Vec<Move> {
        let (mut found, earliest) = self.candidates();
        found.sort_by_key(|at| self.must[*at].returned);
        let mut moves = Vec::new();
        let mut wrong: HashSet<usize> = HashSet::new();
        let in_turn = |call: &Call| call.rank.is_none_or(|rank| self.ranks[self.ranked] == rank);
        for &at in &found {
            let call = self.must[at];
            match self.step(call) {
                Step::Wrong if in_turn(call) => wrong.extend(call.effect.keys()),
                Step::Wrong => {}
                Step::Same | Step::Sets(..) => moves.push(Move::Must(at)),
            }
        }
        let can = |at: &usize| !self.done_open[*at] && self.open[*at].invoked <= earliest;
        let open: Vec<usize> = (0..self.open.len()).filter(can).collect();
        for &at in open.iter().filter(|at| !self.open[**at].optional) {
            match self.step(self.open[at]) {
                Step::Wrong if in_turn(self.open[at]) => wrong.extend(self.open[at].effect.keys()),
                Step::Wrong => {}
                Step::Same | Step::Sets(..) => moves.push(Move::Open(at)),
            }
        }
        for &at in open.iter().filter(|at| self.open[**at].optional) {
            let twin_is_done = self.twin[at].is_none_or(|twin| self.done_open[twin]);
            if let Step::Sets(key, slot) = self.step(self.open[at])
                && twin_is_done
                && wrong.contains(&key)
                && self.state[key] != slot
            {
                moves.push(Move::Open(at));
            }
        }
        self.remember(&found);
        moves
    }

    fn remember(&mut self, stuck: &[usize]) {
        if self.deepest.as_ref().is_none_or(|(left, _)| self.left < *left) {
            let sources = stuck.iter().map(|at| self.must[*at].source).collect();
            self.deepest = Some((self.left, sources));
        }
    }

    fn memo(&self) -> Memo {
        let number = |at: usize| u32::try_from(at).expect("histories are smaller");
        let (_, earliest) = self.candidates();
        let beyond = (self.first..self.must.len()).take_while(|at| self.must[*at].invoked <= earliest);
        let beyond = beyond.filter(|at| self.done_must[*at]).map(number).collect();
        let open = (0..self.open.len()).filter(|at| self.done_open[*at]).map(number).collect();
        Memo { first: self.first, beyond, open, state: self.state.clone() }
    }

    fn violation(&self) -> Violation {
        let (left, mut operations) = self.deepest.clone().unwrap_or_default();
        operations.truncate(STUCK_SHOWN);
        let placed = self.must.len() + self.open.iter().filter(|call| !call.optional).count() - left;
        let why = format!("no order explains the answers: after {placed} calls none of those that are next is right");
        Violation { keys: self.problem.keys.clone(), why, operations }
    }
}
