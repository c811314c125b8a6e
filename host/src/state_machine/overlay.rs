//! The store of one batch: the map as it was, and the batch's writes, which can be undone. Reads and scans see the
//! writes, because they are in a copy of the map (O(1) to take, shares all that is not written); what they replaced is
//! in an undo list. Never touches the map it was made of. Step 8 goes on where `finish` is called.

use std::ops::Range;

use super::map::{Entry, Long, Map, Old};
use crate::guest::{CommandStore, KeyRange, Order, ReadStore};

/// A map with the writes of a batch on top. Dropping it drops the writes.
pub struct Overlay {
    base: Map,
    current: Map,
    writes: Writes,
    /// What was written before the current command.
    earlier: Mark,
    /// For each write of the current command: its key, within `writes.bytes`, and what that had before.
    undo: Vec<(Range<usize>, Before)>,
    /// Old values: one allocation for many.
    old: Vec<u8>,
}

enum Before {
    Nothing,
    /// Within `old`.
    Short(Range<usize>),
    Long(Long),
}

/// What a batch wrote, in that order, as the digest takes it: bytes of the key, key, 1, bytes of the value, value; or
/// bytes of the key, key, 0 for a deletion. Numbers have 8 bytes, little-endian.
#[derive(Default)]
pub struct Writes {
    bytes: Vec<u8>,
    count: u64,
}

#[derive(Default, Clone, Copy)]
struct Mark {
    bytes: usize,
    count: u64,
}

impl Overlay {
    pub fn new(base: Map) -> Self {
        Overlay {
            current: base.clone(),
            base,
            writes: Writes::default(),
            earlier: Mark::default(),
            undo: Vec::new(),
            old: Vec::new(),
        }
    }

    /// The map with all writes in it, and the writes.
    pub fn finish(self) -> (Map, Writes) {
        (self.current, self.writes)
    }

    fn take(&mut self, key: &[u8]) -> bool {
        let old = &mut self.old;
        let Some(before) = self.current.take(key, |value| Before::of(value, old)) else { return false };
        self.undo.push((self.writes.delete(key), before));
        true
    }
}

impl Before {
    fn of(old: Old<'_>, bytes: &mut Vec<u8>) -> Self {
        match old {
            Old::Short(value) => {
                let start = bytes.len();
                bytes.extend_from_slice(value);
                Before::Short(start..bytes.len())
            }
            Old::Long(long) => Before::Long(long.clone()),
        }
    }
}

impl Writes {
    /// Returns where the key is.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Range<usize> {
        let at = self.key(key);
        self.number(1);
        self.number(value.len());
        self.bytes.extend_from_slice(value);
        at
    }

    fn delete(&mut self, key: &[u8]) -> Range<usize> {
        let at = self.key(key);
        self.number(0);
        at
    }

    fn key(&mut self, key: &[u8]) -> Range<usize> {
        self.count += 1;
        self.number(key.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        start..self.bytes.len()
    }

    fn number(&mut self, number: usize) {
        self.bytes.extend_from_slice(&(number as u64).to_le_bytes());
    }

    fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), count: self.count }
    }

    fn back_to(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.count = mark.count;
    }

    /// As described above.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl ReadStore for Map {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        Map::get(self, key).map(|entry| entry.value())
    }

    fn scan<'a>(&'a self, range: KeyRange<'a>) -> Box<dyn Iterator<Item = (&'a [u8], &'a [u8])> + 'a> {
        let pair = |entry: Entry<'a>| (entry.key(), entry.value());
        match range.order {
            Order::Ascending => Box::new(self.range(range.start, range.end).map(pair)),
            Order::Descending => Box::new(self.range_descending(range.start, range.end).map(pair)),
        }
    }
}

impl ReadStore for Overlay {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        ReadStore::get(&self.current, key)
    }

    fn scan<'a>(&'a self, range: KeyRange<'a>) -> Box<dyn Iterator<Item = (&'a [u8], &'a [u8])> + 'a> {
        self.current.scan(range)
    }
}

impl CommandStore for Overlay {
    fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        let old = &mut self.old;
        let before = self.current.insert_over(Entry::new(key, value), |value| Before::of(value, old));
        let replaced = before.is_some();
        self.undo.push((self.writes.set(key, value), before.unwrap_or(Before::Nothing)));
        replaced
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        self.take(key)
    }

    fn delete_range(&mut self, range: KeyRange<'_>) -> u64 {
        let doomed: Vec<Vec<u8>> =
            self.current.range(range.start, range.end).map(|entry| entry.key().to_vec()).collect();
        for key in &doomed {
            self.take(key);
        }
        doomed.len() as u64
    }

    fn begin(&mut self) {
        // The commands before are out of reach now.
        self.undo.clear();
        self.old.clear();
        self.earlier = self.writes.mark();
    }

    fn rollback(&mut self) {
        for (key, before) in self.undo.drain(..).rev() {
            let key = &self.writes.bytes[key];
            match &before {
                Before::Nothing => self.current.remove(key),
                Before::Short(value) => self.current.insert(Entry::new(key, &self.old[value.clone()])),
                Before::Long(long) => self.current.insert(long.get()),
            };
        }
        self.old.clear();
        self.writes.back_to(self.earlier);
    }

    fn discard(&mut self) {
        self.current = self.base.clone();
        self.undo.clear();
        self.old.clear();
        self.earlier = Mark::default();
        self.writes.back_to(self.earlier);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;
    type Range = (Option<Vec<u8>>, Option<Vec<u8>>);

    #[derive(Debug, Clone)]
    enum Step {
        Set(Vec<u8>, Vec<u8>),
        Delete(Vec<u8>),
        Get(Vec<u8>),
        Scan(Range, bool, usize),
        DeleteRange(Range),
        Begin,
        Rollback,
        Discard,
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![(0_u8..60).prop_map(|number| vec![b'k', number]), prop::collection::vec(0_u8..2, 0..3)]
    }

    fn range() -> impl Strategy<Value = Range> {
        (prop::option::weighted(0.8, key()), prop::option::weighted(0.8, key()))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (key(), prop::collection::vec(any::<u8>(), 0..4), prop::sample::select(vec![1_usize, 1, 200]))
                .prop_map(|(key, value, times)| Step::Set(key, value.repeat(times))),
            4 => key().prop_map(Step::Delete),
            2 => key().prop_map(Step::Get),
            4 => (range(), any::<bool>(), 0_usize..80).prop_map(|(range, up, limit)| Step::Scan(range, up, limit)),
            1 => range().prop_map(Step::DeleteRange),
            3 => Just(Step::Begin),
            2 => Just(Step::Rollback),
            1 => Just(Step::Discard),
        ]
    }

    fn key_range<'a>(range: &'a Range, order: Order) -> KeyRange<'a> {
        KeyRange { start: range.0.as_deref(), end: range.1.as_deref(), order }
    }

    fn inside(model: &Model, range: &Range) -> Vec<(Vec<u8>, Vec<u8>)> {
        let fits = |key: &Vec<u8>| {
            range.0.as_ref().is_none_or(|start| key >= start) && range.1.as_ref().is_none_or(|end| key < end)
        };
        model.iter().filter(|(key, _)| fits(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn content(map: &Map) -> Model {
        map.iter().map(|entry| (entry.key().to_vec(), entry.value().to_vec())).collect()
    }

    /// Does the step to both and compares what they say.
    fn both(step: &Step, overlay: &mut Overlay, now: &mut Model, saved: &mut Model, base: &Model) {
        match step {
            Step::Set(key, value) => {
                assert_eq!(overlay.set(key, value), now.insert(key.clone(), value.clone()).is_some());
            }
            Step::Delete(key) => assert_eq!(overlay.delete(key), now.remove(key).is_some()),
            Step::Get(key) => assert_eq!(overlay.get(key), now.get(key).map(Vec::as_slice)),
            Step::Scan(range, up, limit) => {
                let order = if *up { Order::Ascending } else { Order::Descending };
                let scanned: Vec<_> = overlay
                    .scan(key_range(range, order))
                    .take(*limit)
                    .map(|(key, value)| (key.to_vec(), value.to_vec()))
                    .collect();
                let mut expected = inside(now, range);
                if !up {
                    expected.reverse();
                }
                expected.truncate(*limit);
                assert_eq!(scanned, expected);
            }
            Step::DeleteRange(range) => {
                let doomed = inside(now, range);
                assert_eq!(overlay.delete_range(key_range(range, Order::Ascending)), doomed.len() as u64);
                doomed.iter().for_each(|(key, _)| drop(now.remove(key)));
            }
            Step::Begin => {
                overlay.begin();
                *saved = now.clone();
            }
            Step::Rollback => {
                overlay.rollback();
                *now = saved.clone();
            }
            Step::Discard => {
                overlay.discard();
                *now = base.clone();
                *saved = base.clone();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn it_is_a_map_with_savepoints(first in prop::collection::vec(key(), 0..40), steps in prop::collection::vec(step(), 1..100)) {
            let map: Map = first.iter().map(|key| Entry::new(key, b"base")).collect();
            let base = content(&map);
            let (mut now, mut saved) = (base.clone(), base.clone());
            let mut overlay = Overlay::new(map.clone());
            for step in &steps {
                both(step, &mut overlay, &mut now, &mut saved, &base);
            }
            let (after, writes) = overlay.finish();
            prop_assert_eq!(&content(&after), &now);
            prop_assert_eq!(&content(&map), &base);
            prop_assert_eq!(after.len(), now.len() as u64);

            // The writes make the one of the other.
            let mut replayed = base.clone();
            let written = read(&writes);
            prop_assert_eq!(writes.count(), written.len() as u64);
            for (key, value) in written {
                match value {
                    Some(value) => drop(replayed.insert(key, value)),
                    None => drop(replayed.remove(&key)),
                }
            }
            prop_assert_eq!(replayed, now);
        }
    }

    /// By the words of their description.
    fn read(writes: &Writes) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rest = writes.as_bytes();
        let number = |rest: &mut &[u8]| {
            let (number, behind) = rest.split_first_chunk().unwrap();
            *rest = behind;
            u64::from_le_bytes(*number) as usize
        };
        let take = |rest: &mut &[u8], count| {
            let (taken, behind) = rest.split_at(count);
            *rest = behind;
            taken.to_vec()
        };
        let mut written = Vec::new();
        while !rest.is_empty() {
            let count = number(&mut rest);
            let key = take(&mut rest, count);
            let value = match number(&mut rest) {
                0 => None,
                _ => {
                    let count = number(&mut rest);
                    Some(take(&mut rest, count))
                }
            };
            written.push((key, value));
        }
        written
    }

    #[test]
    fn a_key_that_came_and_went_is_two_writes() {
        let mut overlay = Overlay::new(Map::new());
        overlay.set(b"a", b"1");
        overlay.delete(b"a");
        let (map, writes) = overlay.finish();
        assert!(map.is_empty());
        assert_eq!(read(&writes), [(b"a".to_vec(), Some(b"1".to_vec())), (b"a".to_vec(), None)]);
    }
}
