//! The rules: what a store of keys with revisions may answer, as a sequential machine for `checker.rs`. Also what is
//! wrong at first sight, before any search: a value that nobody wrote, one write with two revisions (it was applied
//! twice), one revision for two writes.
//!
//! Revisions make the model sharp. They increase in the order in which the commands are applied, over all keys, so
//! writes whose revision is known can be placed in one order only.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Action, NEVER, Operation, Outcome, When};

/// What a key holds.
pub type Slot = u32;
pub const ABSENT: Slot = 0;
/// Something that a put with an unknown outcome wrote and no read has shown the value of.
pub const UNSEEN: Slot = 1;
/// Slot of put number 0; the others follow.
const FIRST_PUT: Slot = 2;

/// The whole store: a slot for each key.
pub type State = Box<[Slot]>;

/// One operation as the search sees it.
#[derive(Debug, Clone)]
pub struct Call {
    pub invoked: u64,
    pub returned: u64,
    pub effect: Effect,
    /// Its revision. Calls with one happen in the order of their revisions.
    pub rank: Option<u64>,
    /// An unknown outcome that nothing shows: it may also never happen.
    pub optional: bool,
    /// Its place in the history.
    pub source: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// All of these keys were seen at one moment.
    See(Vec<(usize, Sight)>),
    /// `said`: whether it was created or replaced (None: a condition failed); no `said` at all: unknown.
    Put {
        key: usize,
        when: Condition,
        said: Option<Option<bool>>,
        leaves: Slot,
    },
    Delete {
        key: usize,
        when: Condition,
        said: Option<Deletion>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Is(Slot),
    /// A list showed a revision that no reply and no read connects with a value: an unseen put's.
    SomeUnseen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Always,
    Absent,
    Present,
    Is(Slot),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    Done,
    Missing,
    Failed,
}

/// A history made ready for a search.
#[derive(Debug)]
pub struct Problem {
    pub keys: Vec<String>,
    /// In the order of their invocation.
    pub calls: Vec<Call>,
}

/// What needs no search to be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    pub why: String,
    /// Places in the history.
    pub operations: Vec<usize>,
}

/// All that replies and reads say about puts.
struct Puts<'h> {
    by_value: HashMap<u64, (usize, Slot)>,
    by_etag: HashMap<u64, u64>,
    etags: HashMap<u64, (u64, usize)>,
    history: &'h [Operation],
}

impl Problem {
    /// The operations on these keys as one object. Lists count with those of the keys that they cover.
    pub fn of(history: &[Operation], keys: &[String]) -> Result<Problem, Impossible> {
        let puts = Puts::of(history)?;
        let index: BTreeMap<&str, usize> = keys.iter().enumerate().map(|(at, key)| (key.as_str(), at)).collect();
        let calls = history.iter().enumerate().filter_map(|(source, operation)| puts.call(source, operation, &index));
        let mut calls: Vec<Call> = calls.collect();
        calls.sort_by_key(|call| call.invoked);
        Ok(Problem { keys: keys.to_vec(), calls })
    }

    /// Forgets the revisions, so that only times and values count.
    pub fn without_ranks(mut self) -> Problem {
        self.calls.iter_mut().for_each(|call| call.rank = None);
        self
    }

    pub fn initial(&self) -> State {
        vec![ABSENT; self.keys.len()].into()
    }
}

impl<'h> Puts<'h> {
    fn of(history: &'h [Operation]) -> Result<Self, Impossible> {
        let mut puts = Puts { by_value: HashMap::new(), by_etag: HashMap::new(), etags: HashMap::new(), history };
        for (at, operation) in history.iter().enumerate() {
            if let Action::Put { value, .. } = operation.action {
                let slot = FIRST_PUT + Slot::try_from(at).expect("histories are smaller");
                assert!(
                    puts.by_value.insert(value, (at, slot)).is_none(),
                    "two puts of {value}: the workload is wrong"
                );
            }
        }
        for (at, operation) in history.iter().enumerate() {
            match (&operation.action, &operation.outcome) {
                (Action::Put { value, .. }, Outcome::Stored { etag, .. }) => puts.learn(*value, *etag, at)?,
                (Action::Get { key }, Outcome::Found { value, etag }) => {
                    puts.check_written(key, *value, at)?;
                    puts.learn(*value, *etag, at)?;
                }
                _ => {}
            }
        }
        Ok(puts)
    }

    fn check_written(&self, key: &str, value: u64, at: usize) -> Result<(), Impossible> {
        let Some(&(put, _)) = self.by_value.get(&value) else {
            return Err(Impossible { why: format!("nobody wrote {value}"), operations: vec![at] });
        };
        let written = &self.history[put];
        let why = match written.outcome {
            _ if written.action.key() != key => format!("{value} was written to {}", written.action.key()),
            Outcome::Rejected => format!("the put of {value} was rejected and happened"),
            Outcome::Failed => format!("the condition of the put of {value} failed, and it happened"),
            _ => return Ok(()),
        };
        Err(Impossible { why, operations: vec![put, at] })
    }

    fn learn(&mut self, value: u64, etag: u64, at: usize) -> Result<(), Impossible> {
        let other = *self.by_etag.entry(etag).or_insert(value);
        let (known, first) = *self.etags.entry(value).or_insert((etag, at));
        let why = match () {
            () if other != value => format!("{other} and {value} have the same revision {etag}"),
            () if known != etag => format!("{value} has revisions {known} and {etag}: it was applied twice"),
            () => return Ok(()),
        };
        let put = self.by_value.get(&value).map(|(put, _)| *put);
        Err(Impossible { why, operations: put.into_iter().chain([first, at]).collect() })
    }

    fn call(&self, source: usize, operation: &Operation, keys: &BTreeMap<&str, usize>) -> Option<Call> {
        let unknown = operation.outcome == Outcome::Unknown;
        if operation.outcome == Outcome::Rejected || (unknown && !operation.action.is_write()) {
            return None;
        }
        let mut call = Call {
            invoked: operation.invoked,
            returned: if unknown { NEVER } else { operation.returned },
            effect: self.effect(operation, keys)?,
            rank: None,
            optional: unknown,
            source,
        };
        if let Action::Put { value, .. } = operation.action {
            call.rank = self.etags.get(&value).map(|(etag, _)| *etag);
            call.optional = unknown && call.rank.is_none();
        }
        Some(call)
    }

    fn effect(&self, operation: &Operation, keys: &BTreeMap<&str, usize>) -> Option<Effect> {
        let key = keys.get(operation.action.key()).copied();
        Some(match &operation.action {
            Action::Get { .. } => {
                let sight = match &operation.outcome {
                    Outcome::Found { value, .. } => Sight::Is(self.by_value[value].1),
                    Outcome::Missing => Sight::Is(ABSENT),
                    other => panic!("a get can't end with {other:?}"),
                };
                Effect::See(vec![(key?, sight)])
            }
            Action::List { prefix } => {
                let Outcome::Listed(listed) = &operation.outcome else { panic!("a list can't end otherwise") };
                let covered = keys.iter().filter(|(key, _)| key.starts_with(prefix.as_str()));
                let seen: Vec<_> = covered.map(|(key, &at)| (at, self.listed(listed, key))).collect();
                if seen.is_empty() {
                    return None;
                }
                Effect::See(seen)
            }
            Action::Put { value, when, .. } => {
                let said = match operation.outcome {
                    Outcome::Stored { created, .. } => Some(Some(created)),
                    Outcome::Failed => Some(None),
                    Outcome::Unknown => None,
                    ref other => panic!("a put can't end with {other:?}"),
                };
                let seen = self.etags.contains_key(value);
                let leaves = if seen { self.by_value[value].1 } else { UNSEEN };
                Effect::Put { key: key?, when: self.condition(*when), said, leaves }
            }
            Action::Delete { when, .. } => {
                let said = match operation.outcome {
                    Outcome::Deleted => Some(Deletion::Done),
                    Outcome::Missing => Some(Deletion::Missing),
                    Outcome::Failed => Some(Deletion::Failed),
                    Outcome::Unknown => None,
                    ref other => panic!("a delete can't end with {other:?}"),
                };
                Effect::Delete { key: key?, when: self.condition(*when), said }
            }
        })
    }

    fn listed(&self, listed: &[(String, u64)], key: &str) -> Sight {
        let Some((_, etag)) = listed.iter().find(|(name, _)| name == key) else { return Sight::Is(ABSENT) };
        self.by_etag.get(etag).map_or(Sight::SomeUnseen, |value| match self.by_value.get(value) {
            Some((_, slot)) => Sight::Is(*slot),
            None => Sight::SomeUnseen,
        })
    }

    fn condition(&self, when: When) -> Condition {
        match when {
            When::Always => Condition::Always,
            When::Absent => Condition::Absent,
            When::Present => Condition::Present,
            // Clients only use etags that a reply or a read of a value gave them: any other is never right.
            When::Match(etag) => {
                let put = self.by_etag.get(&etag).and_then(|value| self.by_value.get(value));
                Condition::Is(put.map_or(Slot::MAX, |(_, slot)| *slot))
            }
        }
    }
}

impl Condition {
    fn holds(self, slot: Slot) -> bool {
        match self {
            Condition::Always => true,
            Condition::Absent => slot == ABSENT,
            Condition::Present => slot != ABSENT,
            Condition::Is(wanted) => slot == wanted,
        }
    }
}

/// What happens if a call takes effect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It would not have been answered so.
    Wrong,
    /// Right, and nothing changes.
    Same,
    /// Right, and this key changes.
    Sets(usize, Slot),
}

impl Effect {
    pub fn step(&self, state: &State, optional: bool) -> Step {
        match self {
            Effect::See(seen) => {
                let right = |(key, sight): &(usize, Sight)| match sight {
                    Sight::Is(slot) => state[*key] == *slot,
                    Sight::SomeUnseen => state[*key] == UNSEEN,
                };
                if seen.iter().all(right) { Step::Same } else { Step::Wrong }
            }
            Effect::Put { key, when, said, leaves } => {
                let slot = state[*key];
                match (when.holds(slot), said) {
                    (true, Some(Some(created))) if *created != (slot == ABSENT) => Step::Wrong,
                    (true, Some(Some(_)) | None) => Step::Sets(*key, *leaves),
                    (false, Some(None)) => Step::Same,
                    // Without an effect an unknown outcome needs no place; if it was seen, it had one.
                    (false, None) if optional => Step::Same,
                    _ => Step::Wrong,
                }
            }
            Effect::Delete { key, when, said } => {
                let slot = state[*key];
                let does = match slot {
                    ABSENT => Deletion::Missing,
                    _ if when.holds(slot) => Deletion::Done,
                    _ => Deletion::Failed,
                };
                match (said.is_none_or(|said| said == does), does) {
                    (false, _) => Step::Wrong,
                    (true, Deletion::Done) => Step::Sets(*key, ABSENT),
                    (true, _) => Step::Same,
                }
            }
        }
    }

    /// The keys it looks at or writes.
    pub fn keys(&self) -> Vec<usize> {
        match self {
            Effect::See(seen) => seen.iter().map(|(key, _)| *key).collect(),
            Effect::Put { key, .. } | Effect::Delete { key, .. } => vec![*key],
        }
    }
}
