//! The map against `BTreeMap`, and the rules of its tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

impl Map {
    /// Every rule of the tree; returns nothing, panics at the first that is broken.
    fn audit(&self) {
        let mut depths = Vec::new();
        audit(&self.root, None, None, 0, &mut depths);
        assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "leaves at different depths");
        let entries: Vec<Entry> = self.iter().collect();
        assert!(entries.windows(2).all(|pair| pair[0].key() < pair[1].key()), "keys out of order");
        assert_eq!(entries.len() as u64, self.len());
        assert_eq!(entries.iter().map(|entry| entry.size()).sum::<u64>(), self.bytes());
    }
}

fn audit(node: &Node, lower: Option<&[u8]>, upper: Option<&[u8]>, depth: usize, depths: &mut Vec<usize>) {
    assert!(node.len() <= NODE_MAX);
    match node {
        Node::Leaf(leaf) => {
            leaf.audit();
            assert!(depth == 0 || leaf.len() > 0, "an empty leaf");
            assert!((0..leaf.len()).all(|at| lower.is_none_or(|lower| leaf.key(at) >= lower)));
            assert!((0..leaf.len()).all(|at| upper.is_none_or(|upper| leaf.key(at) < upper)));
            depths.push(depth);
        }
        Node::Branch(Branch { separators, children }) => {
            separators.audit();
            assert!(children.len() >= 2, "a branch with one child");
            assert_eq!(separators.len() + 1, children.len());
            for (at, child) in children.iter().enumerate() {
                let lower = if at == 0 { lower } else { Some(separators.key(at - 1)) };
                let upper = if at == separators.len() { upper } else { Some(separators.key(at)) };
                audit(child, lower, upper, depth + 1, depths);
            }
        }
    }
}

/// Few different keys, so that they meet; some share prefixes, one is empty.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0_u16..2_000).prop_map(|number| number.to_be_bytes().to_vec()),
        1 => prop::collection::vec(0_u8..3, 0..5),
        // More in common than a head shows, and zeros where other keys end.
        1 => prop::collection::vec(0_u8..2, 0..12).prop_map(|end| [&b"shared-by-many"[..], &end].concat()),
        1 => (0_usize..600).prop_map(|len| vec![7; len]),
    ]
}

fn bound() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::weighted(0.8, key())
}

#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<u8>, u8),
    Remove(Vec<u8>),
    /// Many at once, so that the tree gets deep and shallow again.
    Fill(u16, u16),
    Drain(u16, u16),
    Hold,
    Range(Option<Vec<u8>>, Option<Vec<u8>>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
        6 => key().prop_map(Step::Remove),
        1 => (0_u16..2_000, 0_u16..600).prop_map(|(from, count)| Step::Fill(from, count)),
        1 => (0_u16..2_000, 0_u16..600).prop_map(|(from, count)| Step::Drain(from, count)),
        2 => Just(Step::Hold),
        4 => (bound(), bound()).prop_map(|(start, end)| Step::Range(start, end)),
    ]
}

/// Of values: packed, just packed, too large for it (their keys have two bytes).
const SIZES: [usize; 8] = [0, 1, 7, 8, 100, 254, 255, 700];

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn pairs(entries: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    entries.collect()
}

fn of(entry: Entry) -> (Vec<u8>, Vec<u8>) {
    (entry.key().to_vec(), entry.value().to_vec())
}

fn insert_both(map: &mut Map, model: &mut Model, key: &[u8], value: &[u8]) {
    let replaced = map.insert_over(Entry::new(key, value), |old| old.value().to_vec());
    assert_eq!(replaced, model.insert(key.to_vec(), value.to_vec()));
    assert_eq!(map.get(key).map(|entry| entry.value()), Some(value));
}

fn remove_both(map: &mut Map, model: &mut Model, key: &[u8]) {
    let removed = map.take(key, |old| old.value().to_vec());
    assert_eq!(removed, model.remove(key));
    assert_eq!(map.get(key), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn it_is_a_btree_map_and_its_clones_never_change(steps in prop::collection::vec(step(), 1..120)) {
        let (mut map, mut model) = (Map::new(), Model::new());
        let mut held: Vec<(Map, Model)> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(key, value) => insert_both(&mut map, &mut model, &key, &vec![value; SIZES[value as usize % SIZES.len()]]),
                Step::Remove(key) => remove_both(&mut map, &mut model, &key),
                Step::Fill(from, count) => (from..from + count)
                    .for_each(|number| insert_both(&mut map, &mut model, &number.to_be_bytes(), b"filled")),
                Step::Drain(from, count) => (from..from + count)
                    .for_each(|number| remove_both(&mut map, &mut model, &number.to_be_bytes())),
                Step::Hold => held.push((map.clone(), model.clone())),
                Step::Range(start, end) => {
                    let inside = |key: &[u8]| start.as_deref().is_none_or(|start| key >= start)
                        && end.as_deref().is_none_or(|end| key < end);
                    let mut expected = model.clone();
                    expected.retain(|key, _| inside(key));
                    let expected = pairs(expected.into_iter());
                    let ascending = map.range(start.as_deref(), end.as_deref());
                    prop_assert_eq!(&pairs(ascending.map(of)), &expected);
                    let descending = map.range_descending(start.as_deref(), end.as_deref());
                    let mut backwards = pairs(descending.map(of));
                    backwards.reverse();
                    prop_assert_eq!(backwards, expected);
                }
            }
        }
        map.audit();
        held.push((map, model));
        for (map, model) in held {
            map.audit();
            prop_assert_eq!(pairs(map.iter().map(of)), pairs(model.into_iter()));
        }
    }
}

#[test]
fn an_empty_key_and_an_empty_value_are_kept() {
    let map: Map = [Entry::new(b"", b"x"), Entry::new(b"y", b"")].into_iter().collect();
    assert_eq!(map.get(b"").map(|entry| entry.value()), Some(&b"x"[..]));
    assert_eq!(map.get(b"y").map(|entry| entry.value()), Some(&b""[..]));
    assert_eq!((map.len(), map.bytes()), (2, 2));
}

#[test]
fn a_deleted_value_is_freed() {
    let numbers: Vec<[u8; 4]> = (0..200_u32).map(u32::to_be_bytes).collect();
    let mut map: Map = numbers.iter().map(|number| Entry::new(number, b"")).collect();
    map.insert(Entry::new(b"key", &[1; 1_000]));
    let watch = |old: Old<'_>| match old {
        Old::Long(long) => long.watch(),
        Old::Short(_) => panic!("it is too large to be packed"),
    };
    let first = map.insert_over(Entry::new(b"key", &[2; 1_000]), watch).unwrap();
    assert!(first.upgrade().is_none());
    let held = map.clone();
    let second = map.take(b"key", watch).unwrap();
    assert!(second.upgrade().is_some());
    assert_eq!(held.get(b"key").map(|entry| entry.value()), Some(&[2; 1_000][..]));
    drop(held);
    assert!(second.upgrade().is_none());
}

#[test]
fn what_is_replaced_again_and_again_takes_no_room() {
    let mut map: Map = [Entry::new(b"a", b""), Entry::new(b"b", b"")].into_iter().collect();
    for turn in 0..2_000_usize {
        map.insert(Entry::new(b"a", &[turn as u8; 200][..turn % 201]));
        map.audit();
    }
    assert_eq!((map.len(), map.bytes()), (2, 2 + 1_999 % 201));
}

#[test]
fn it_may_be_read_from_other_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Map>();
}
