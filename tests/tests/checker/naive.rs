//! The same question answered by trying all orders, with rules of its own: what the checker is compared with.

use std::collections::{BTreeMap, HashMap};

use raftlet_tests::history::{Action, Operation, Outcome, When};

type Store = BTreeMap<String, (u64, Option<u64>)>;

/// For a few operations only: it tries every order.
pub fn is_linearizable(history: &[Operation]) -> bool {
    let mut etags: HashMap<u64, u64> = HashMap::new();
    for operation in history {
        let (value, etag) = match (&operation.action, &operation.outcome) {
            (Action::Put { value, .. }, Outcome::Stored { etag, .. }) => (value, etag),
            (Action::Get { .. }, Outcome::Found { value, etag }) => (value, etag),
            _ => continue,
        };
        if *etags.entry(*value).or_insert(*etag) != *etag {
            return false;
        }
    }
    let read = |o: &Operation| matches!(o.action, Action::Get { .. } | Action::List { .. });
    let counts = |o: &&Operation| o.outcome != Outcome::Rejected && !(o.outcome == Outcome::Unknown && read(o));
    let left: Vec<&Operation> = history.iter().filter(counts).collect();
    let known: Vec<u64> = etags.values().copied().collect();
    try_all(&left, &Store::new(), 0, &etags, &known)
}

fn try_all(left: &[&Operation], store: &Store, last: u64, etags: &HashMap<u64, u64>, known: &[u64]) -> bool {
    if left.iter().all(|o| o.outcome == Outcome::Unknown) {
        return true;
    }
    let earliest = left.iter().map(|o| o.returned).min().unwrap_or(u64::MAX);
    left.iter().enumerate().filter(|(_, o)| o.invoked <= earliest).any(|(at, operation)| {
        let mut rest = left.to_vec();
        rest.remove(at);
        let (mut store, mut last) = (store.clone(), last);
        apply(operation, &mut store, &mut last, etags, known) && try_all(&rest, &store, last, etags, known)
    })
}

/// Does it; false if it would have been answered otherwise.
fn apply(o: &Operation, store: &mut Store, last: &mut u64, etags: &HashMap<u64, u64>, known: &[u64]) -> bool {
    let unknown = o.outcome == Outcome::Unknown;
    let current = store.get(o.action.key()).copied();
    let holds = |when: &When| match when {
        When::Always => true,
        When::Absent => current.is_none(),
        When::Present => current.is_some(),
        When::Match(etag) => current.is_some_and(|(_, current)| current == Some(*etag)),
    };
    match &o.action {
        Action::Get { .. } => match (&o.outcome, current) {
            (Outcome::Missing, None) => true,
            (Outcome::Found { value, .. }, Some((current, _))) => *value == current,
            _ => false,
        },
        Action::List { .. } => {
            let Outcome::Listed(listed) = &o.outcome else { return false };
            let same = |(key, etag): &(String, u64)| match store.get(key) {
                Some((_, Some(current))) => current == etag,
                Some((_, None)) => !known.contains(etag),
                None => false,
            };
            listed.len() == store.len() && listed.iter().all(same)
        }
        Action::Put { value, when, key } => {
            if !holds(when) {
                return unknown || o.outcome == Outcome::Failed;
            }
            if !unknown && !matches!(o.outcome, Outcome::Stored { created, .. } if created == current.is_none()) {
                return false;
            }
            let etag = etags.get(value).copied();
            if etag.is_some_and(|etag| etag <= *last) {
                return false;
            }
            *last = etag.unwrap_or(*last);
            store.insert(key.clone(), (*value, etag));
            true
        }
        Action::Delete { when, key } => {
            let does = match current {
                None => Outcome::Missing,
                Some(_) if holds(when) => Outcome::Deleted,
                Some(_) => Outcome::Failed,
            };
            if does == Outcome::Deleted {
                store.remove(key);
            }
            unknown || does == o.outcome
        }
    }
}
