//! Random histories from a simulated store that is linearizable by construction, and mutations of them.

use std::collections::BTreeMap;

use fastrand::Rng;
use raftlet_tests::checker::{Verdict, check, search};
use raftlet_tests::history::{Action, NEVER, Operation, Outcome, When};
use raftlet_tests::model::Problem;
use raftlet_tests::seed;

use super::naive;

const PREFIX: &str = "p/";

struct Simulation<'r> {
    rng: &'r mut Rng,
    keys: Vec<String>,
    store: BTreeMap<String, (u64, u64)>,
    revision: u64,
    time: u64,
    values: u64,
    etags: Vec<u64>,
    history: Vec<Operation>,
    /// Of each client: its operation, and whether it has taken effect.
    clients: Vec<Option<(usize, bool)>>,
    /// Nobody waits for these any more; they may still happen.
    late: Vec<usize>,
    deletes: bool,
    /// One write in so many is given up before it happens, and as many after.
    patience: u8,
}

/// A history of so many operations by so many clients.
fn simulate(rng: &mut Rng, clients: usize, keys: usize, operations: usize, deletes: bool) -> Vec<Operation> {
    let keys = (0..keys).map(|key| format!("{PREFIX}{}", ["a", "b", "c"][key])).collect();
    let clients = vec![None; clients];
    let mut simulation = Simulation {
        rng,
        keys,
        store: BTreeMap::new(),
        revision: 0,
        time: 0,
        values: 0,
        etags: vec![0],
        history: Vec::new(),
        clients,
        late: Vec::new(),
        deletes,
        // Large histories have far more unknown outcomes than a real run, small ones almost nothing else.
        patience: if operations < 100 { 12 } else { 60 },
    };
    while simulation.history.len() < operations || simulation.clients.iter().any(Option::is_some) {
        simulation.time += 1;
        let client = simulation.rng.usize(0..simulation.clients.len());
        let doing = simulation.clients[client];
        match doing {
            None if simulation.history.len() < operations => simulation.invoke(client),
            None => {}
            Some((at, false)) if simulation.gives_up(at) => {
                simulation.late.push(at);
                simulation.clients[client] = None;
            }
            Some((at, false)) => {
                simulation.history[at].outcome = simulation.apply(at);
                simulation.clients[client] = Some((at, true));
            }
            Some((at, true)) => {
                // Its answer may be lost on the way.
                if simulation.gives_up(at) {
                    simulation.history[at].outcome = Outcome::Unknown;
                } else {
                    simulation.history[at].returned = simulation.time;
                    simulation.learn(at);
                }
                simulation.clients[client] = None;
            }
        }
        if !simulation.late.is_empty() && simulation.rng.u8(0..4) == 0 {
            let at = simulation.rng.usize(0..simulation.late.len());
            let at = simulation.late.swap_remove(at);
            simulation.apply(at);
        }
    }
    simulation.history
}

impl Simulation<'_> {
    fn gives_up(&mut self, at: usize) -> bool {
        self.history[at].action.is_write() && self.rng.u8(0..self.patience) == 0
    }

    fn invoke(&mut self, client: usize) {
        let key = self.rng.choice(&self.keys).expect("there are keys").clone();
        let when = match self.rng.u8(0..6) {
            0 => When::Absent,
            1 => When::Present,
            2 => When::Match(*self.rng.choice(&self.etags).expect("never empty")),
            _ => When::Always,
        };
        self.values += 1;
        let action = match self.rng.u8(0..10) {
            0..4 => Action::Put { key, value: 1_000_000 + self.values, when },
            4..6 if self.deletes => Action::Delete { key, when },
            4..9 => Action::Get { key },
            _ => Action::List { prefix: PREFIX.into() },
        };
        self.clients[client] = Some((self.history.len(), false));
        let client = u32::try_from(client).unwrap();
        let (invoked, outcome) = (self.time, Outcome::Unknown);
        self.history.push(Operation {
            client,
            node: 1,
            action,
            outcome,
            invoked,
            returned: NEVER,
            attempts: 1,
            replayed: false,
        });
    }

    fn learn(&mut self, at: usize) {
        if let Outcome::Stored { etag, .. } | Outcome::Found { etag, .. } = self.history[at].outcome {
            self.etags.push(etag);
        }
    }

    fn apply(&mut self, at: usize) -> Outcome {
        self.revision += self.rng.u64(1..3);
        let action = self.history[at].action.clone();
        let current = self.store.get(action.key()).copied();
        let holds = |when| match when {
            When::Always => true,
            When::Absent => current.is_none(),
            When::Present => current.is_some(),
            When::Match(wanted) => current.is_some_and(|(_, etag)| etag == wanted),
        };
        match action {
            Action::Get { .. } => current.map_or(Outcome::Missing, |(value, etag)| Outcome::Found { value, etag }),
            Action::List { .. } => {
                Outcome::Listed(self.store.iter().map(|(key, (_, etag))| (key.clone(), *etag)).collect())
            }
            Action::Put { when, .. } if !holds(when) => Outcome::Failed,
            Action::Put { key, value, .. } => {
                self.store.insert(key, (value, self.revision));
                Outcome::Stored { etag: self.revision, created: current.is_none() }
            }
            Action::Delete { .. } if current.is_none() => Outcome::Missing,
            Action::Delete { when, .. } if !holds(when) => Outcome::Failed,
            Action::Delete { key, .. } => {
                self.store.remove(&key);
                Outcome::Deleted
            }
        }
    }
}

fn keys(count: usize) -> Vec<String> {
    ["a", "b", "c"][..count].iter().map(|key| format!("{PREFIX}{key}")).collect()
}

/// Changes one answer, or one operation's times, into another one of the same kind. It may still be linearizable.
fn mutate(rng: &mut Rng, history: &mut [Operation]) {
    let shown: Vec<(u64, u64)> = history
        .iter()
        .filter_map(|o| match (&o.action, &o.outcome) {
            (Action::Put { value, .. }, Outcome::Stored { etag, .. }) => Some((*value, *etag)),
            (_, Outcome::Found { value, etag }) => Some((*value, *etag)),
            _ => None,
        })
        .collect();
    let at = rng.usize(0..history.len());
    let one = rng.choice(&shown).copied();
    let operation = &mut history[at];
    let other = match (&operation.action, &operation.outcome, one) {
        (_, Outcome::Found { .. }, Some((value, etag))) if rng.bool() => Outcome::Found { value, etag },
        (Action::Get { .. }, Outcome::Found { .. }, _) => Outcome::Missing,
        (Action::Get { .. }, Outcome::Missing, Some((value, etag))) => Outcome::Found { value, etag },
        (_, Outcome::Stored { etag, created }, _) if rng.bool() => Outcome::Stored { etag: *etag, created: !created },
        (_, Outcome::Stored { .. }, _) => {
            if rng.bool() {
                Outcome::Failed
            } else {
                Outcome::Rejected
            }
        }
        (Action::Put { .. }, Outcome::Failed, _) => Outcome::Stored { etag: rng.u64(1..20), created: rng.bool() },
        (Action::Delete { .. }, outcome, _) if *outcome != Outcome::Unknown => {
            [Outcome::Deleted, Outcome::Missing, Outcome::Failed][rng.usize(0..3)].clone()
        }
        (_, Outcome::Listed(listed), _) => {
            let mut listed = listed.clone();
            if !listed.is_empty() {
                let gone = rng.usize(0..listed.len());
                listed.remove(gone);
            }
            Outcome::Listed(listed)
        }
        (_, Outcome::Unknown, _) => Outcome::Rejected,
        (_, outcome, _) => outcome.clone(),
    };
    operation.outcome = other;
    if operation.returned != NEVER && rng.u8(0..4) == 0 {
        let length = operation.returned - operation.invoked;
        operation.invoked = rng.u64(0..operation.returned + 10);
        operation.returned = operation.invoked + length;
    }
}

#[test]
fn small_histories_are_judged_as_by_trying_all_orders() {
    const HISTORIES: usize = 20_000;
    let mut rng = seed::rng("small_histories_are_judged_as_by_trying_all_orders");
    let (mut right, mut wrong) = (0, 0);
    for number in 0..HISTORIES {
        let count = rng.usize(1..=2);
        let clients = rng.usize(1..4);
        let operations = rng.usize(2..8);
        let mut history = simulate(&mut rng, clients, count, operations, true);
        let valid = number % 4 == 0;
        if !valid {
            mutate(&mut rng, &mut history);
        }
        let expected = naive::is_linearizable(&history);
        assert!(expected || !valid, "the simulation is wrong: {history:#?}");
        let (verdict, _) = check(&history, &keys(count));
        assert_eq!(verdict == Verdict::Linearizable, expected, "{verdict:?} {history:#?}");
        if expected { right += 1 } else { wrong += 1 }
    }
    println!("{right} linearizable, {wrong} not");
    assert!(right > HISTORIES / 5 && wrong > HISTORIES / 5, "{right} and {wrong}: too one-sided to show anything");
}

#[test]
fn large_histories_pass_with_and_without_revisions() {
    let mut rng = seed::rng("large_histories_pass_with_and_without_revisions");
    for _ in 0..20 {
        let history = simulate(&mut rng, 10, 3, 2_000, true);
        let (verdict, effort) = check(&history, &keys(3));
        assert_eq!(verdict, Verdict::Linearizable);
        assert!(effort.states < 500_000, "{effort:?}");
        let small = simulate(&mut rng, 5, 1, 300, true);
        let problem = Problem::of(&small, &keys(1)).unwrap().without_ranks();
        let (verdict, states) = search(&problem);
        assert_eq!(verdict, Verdict::Linearizable, "{states} states");
    }
}

#[test]
fn violations_in_large_histories_are_found() {
    const HISTORIES: usize = 60;
    const LOST_WRITE: usize = 1;
    let mut rng = seed::rng("violations_in_large_histories_are_found");
    let mut planted = [0; 3];
    for number in 0..HISTORIES {
        let kind = number % planted.len();
        let mut history = simulate(&mut rng, 8, 3, 1_500, kind != LOST_WRITE);
        let done = match kind {
            0 => plant_stale_read(&mut rng, &mut history),
            LOST_WRITE => plant_lost_write(&mut rng, &mut history),
            _ => plant_read_from_the_future(&mut rng, &mut history),
        };
        planted[kind] += usize::from(done);
        let (verdict, effort) = check(&history, &keys(3));
        assert_eq!(matches!(verdict, Verdict::Violation(_)), done, "kind {kind}: {verdict:?} {effort:?}");
    }
    println!("planted {planted:?}");
    assert!(planted.iter().all(|count| *count > HISTORIES / 10), "{planted:?}");
}

/// A read that saw a put shows the one before, though that put had returned before the read began.
fn plant_stale_read(rng: &mut Rng, history: &mut [Operation]) -> bool {
    let puts = puts(history);
    let mut reads: Vec<usize> = (0..history.len()).collect();
    rng.shuffle(&mut reads);
    for read in reads {
        let (Outcome::Found { .. }, Action::Get { key }) = (&history[read].outcome, &history[read].action) else {
            continue;
        };
        let before = |p: &&(String, u64, u64, u64, u64)| p.0 == *key && p.4 < history[read].invoked;
        let mut earlier: Vec<_> = puts.iter().filter(before).collect();
        earlier.sort_by_key(|p| p.2);
        if earlier.len() >= 2 {
            let (_, value, etag, ..) = earlier[earlier.len() - 2].clone();
            history[read].outcome = Outcome::Found { value, etag };
            return true;
        }
    }
    false
}

/// A read after a put's return says that there is nothing, in a history without deletes.
fn plant_lost_write(rng: &mut Rng, history: &mut [Operation]) -> bool {
    let puts = puts(history);
    let Some((key, .., returned)) = rng.choice(&puts).cloned() else { return false };
    let later = |o: &&mut Operation| matches!(&o.action, Action::Get { key: k } if *k == key) && o.invoked > returned;
    history.iter_mut().find(later).map(|read| read.outcome = Outcome::Missing).is_some()
}

/// A read is moved to before the put whose value it shows.
fn plant_read_from_the_future(rng: &mut Rng, history: &mut [Operation]) -> bool {
    let mut puts = puts(history);
    rng.shuffle(&mut puts);
    for (_, value, _, put, _) in puts.into_iter().filter(|put| put.3 > 1) {
        let shows = |o: &&mut Operation| matches!(o.outcome, Outcome::Found { value: v, .. } if v == value);
        if let Some(read) = history.iter_mut().find(shows) {
            (read.invoked, read.returned) = (put - 1, put - 1);
            return true;
        }
    }
    false
}

/// Acknowledged puts: key, value, etag, invoked, returned.
fn puts(history: &[Operation]) -> Vec<(String, u64, u64, u64, u64)> {
    let put = |o: &Operation| match (&o.action, &o.outcome) {
        (Action::Put { key, value, .. }, Outcome::Stored { etag, .. }) => {
            Some((key.clone(), *value, *etag, o.invoked, o.returned))
        }
        _ => None,
    };
    history.iter().filter_map(put).collect()
}
