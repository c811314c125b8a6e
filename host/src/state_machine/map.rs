//! The store's data: a persistent (copy-on-write) ordered map of byte strings. Cloning is O(1) and shares everything;
//! a write copies only the nodes on its path that somebody else still holds, so that queries, snapshots and the digest
//! of an old state never stop an apply. Knows no command and no module; the next file is `overlay.rs`.
//!
//! A B+tree of `Arc` nodes. Our own, because of the crates with a permissive licence one looks for a scan's start in
//! linear time (immutable-chunkmap: 1 ms among a million keys, this 0.007 ms) and the other needs 80 bytes more for
//! each key and twice the time for a scan (rpds).

mod cursor;

use std::fmt;
use std::mem;
use std::sync::Arc;

pub use cursor::{Ascending, Descending};
use cursor::{Cursor, Edge};

/// Entries per leaf and children per branch, at most. Small, because a copied leaf touches every entry's reference
/// count.
const NODE_MAX: usize = 24;
/// Below this a node is joined with a neighbour.
const NODE_MIN: usize = NODE_MAX / 4;

/// One key with its value, in one allocation (16 bytes of handle, 16 + 4 of overhead). Cloning is cheap.
#[derive(Clone)]
pub struct Entry(Arc<[u8]>);

/// Where an entry's key begins: behind the key's length.
const KEY_AT: usize = mem::size_of::<u32>();

impl Entry {
    /// # Panics
    /// If `key` has 4 GiB or more: the guest's limits are far below.
    pub fn new(key: &[u8], value: &[u8]) -> Self {
        let key_len = u32::try_from(key.len()).expect("keys are limited to far less than 4 GiB");
        let value_at = KEY_AT + key.len();
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, value_at + value.len()).collect();
        let room = Arc::get_mut(&mut bytes).expect("a new Arc has one owner");
        room[..KEY_AT].copy_from_slice(&key_len.to_le_bytes());
        room[KEY_AT..value_at].copy_from_slice(key);
        room[value_at..].copy_from_slice(value);
        Entry(bytes)
    }

    pub fn key(&self) -> &[u8] {
        &self.0[KEY_AT..self.value_at()]
    }

    pub fn value(&self) -> &[u8] {
        &self.0[self.value_at()..]
    }

    /// Bytes of key and value.
    pub fn size(&self) -> u64 {
        (self.0.len() - KEY_AT) as u64
    }

    fn value_at(&self) -> usize {
        let key_len: [u8; KEY_AT] = self.0[..KEY_AT].try_into().expect("an entry begins with its key's length");
        KEY_AT + u32::from_le_bytes(key_len) as usize
    }
}

/// The map. Cloning is O(1).
#[derive(Clone)]
pub struct Map {
    root: Arc<Node>,
    len: u64,
    bytes: u64,
}

enum Node {
    /// In key order.
    Leaf(Vec<Entry>),
    /// At least two, in key order.
    Branch(Vec<Child>),
}

#[derive(Clone)]
struct Child {
    /// Every key in `node` is at or above this, every key before it below. In a branch's first child
    /// it is the branch's own bound.
    /// A copy, not an `Entry`: it must not keep a deleted value alive.
    lower: Arc<[u8]>,
    node: Arc<Node>,
}

impl Map {
    pub fn new() -> Self {
        Map { root: Arc::new(Node::Leaf(Vec::new())), len: 0, bytes: 0 }
    }

    /// Number of keys.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all keys and values together, without the tree's own overhead.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => return search(entries, key).ok().map(|i| &entries[i]),
                Node::Branch(children) => node = &children[child_at(children, key)].node,
            }
        }
    }

    /// Returns the entry that had this key before.
    pub fn insert(&mut self, entry: Entry) -> Option<Entry> {
        self.bytes += entry.size();
        let (replaced, split) = insert(&mut self.root, entry);
        if let Some(right) = split {
            let left = Child { lower: Arc::from([]), node: Arc::clone(&self.root) };
            self.root = Arc::new(Node::Branch(with_room([left, right])));
        }
        match &replaced {
            Some(old) => self.bytes -= old.size(),
            None => self.len += 1,
        }
        replaced
    }

    /// Returns the entry that was removed.
    pub fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        // A miss must not copy the path.
        self.get(key)?;
        let removed = remove(&mut self.root, key)?;
        if let Node::Branch(children) = &*self.root
            && let [only] = children.as_slice()
        {
            self.root = Arc::clone(&only.node);
        }
        self.len -= 1;
        self.bytes -= removed.size();
        Some(removed)
    }

    /// Entries from `start` (inclusive) to `end` (exclusive), in key order. An absent bound is open.
    pub fn range<'a>(&'a self, start: Option<&[u8]>, end: Option<&'a [u8]>) -> Ascending<'a> {
        Ascending { cursor: Cursor::at(&self.root, start, Edge::First), end }
    }

    /// The same entries in the opposite order.
    pub fn range_descending<'a>(&'a self, start: Option<&'a [u8]>, end: Option<&[u8]>) -> Descending<'a> {
        Descending { cursor: Cursor::at(&self.root, end, Edge::Last), start }
    }

    /// All entries, in key order.
    pub fn iter(&self) -> Ascending<'_> {
        self.range(None, None)
    }
}

impl Default for Map {
    fn default() -> Self {
        Map::new()
    }
}

impl FromIterator<Entry> for Map {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut map = Map::new();
        for entry in entries {
            map.insert(entry);
        }
        map
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("len", &self.len).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key().escape_ascii(), self.value().escape_ascii())
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Entry {}

impl Node {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Branch(children) => children.len(),
        }
    }
}

impl Clone for Node {
    /// With room for one more than `NODE_MAX`, because a node is cloned in order to be written.
    fn clone(&self) -> Self {
        match self {
            Node::Leaf(entries) => Node::Leaf(with_room(entries.iter().cloned())),
            Node::Branch(children) => Node::Branch(with_room(children.iter().cloned())),
        }
    }
}

fn with_room<T>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut room = Vec::with_capacity(NODE_MAX + 1);
    room.extend(items);
    room
}

fn search(entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|entry| entry.key().cmp(key))
}

/// The child whose range holds `key`.
fn child_at(children: &[Child], key: &[u8]) -> usize {
    children[1..].partition_point(|child| *child.lower <= *key)
}

/// Returns the replaced entry, and the right half if the node had to be split.
fn insert(node: &mut Arc<Node>, entry: Entry) -> (Option<Entry>, Option<Child>) {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => match search(entries, entry.key()) {
            Ok(at) => (Some(mem::replace(&mut entries[at], entry)), None),
            Err(at) => {
                entries.insert(at, entry);
                if entries.len() <= NODE_MAX {
                    return (None, None);
                }
                // Ascending keys fill their leaves instead of leaving halves behind.
                let cut = if at == NODE_MAX { NODE_MAX } else { entries.len() / 2 };
                (None, Some(split_leaf(entries, cut)))
            }
        },
        Node::Branch(children) => {
            let at = child_at(children, entry.key());
            let (replaced, split) = insert(&mut children[at].node, entry);
            if let Some(right) = split {
                children.insert(at + 1, right);
            }
            let split = (children.len() > NODE_MAX).then(|| split_branch(children, NODE_MAX / 2));
            (replaced, split)
        }
    }
}

fn split_leaf(entries: &mut Vec<Entry>, cut: usize) -> Child {
    let right = with_room(entries.drain(cut..));
    Child { lower: separator(entries[cut - 1].key(), right[0].key()), node: Arc::new(Node::Leaf(right)) }
}

fn split_branch(children: &mut Vec<Child>, cut: usize) -> Child {
    let right = with_room(children.drain(cut..));
    Child { lower: Arc::clone(&right[0].lower), node: Arc::new(Node::Branch(right)) }
}

/// The shortest prefix of `right` that is above `left`.
fn separator(left: &[u8], right: &[u8]) -> Arc<[u8]> {
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    Arc::from(&right[..common + 1])
}

fn remove(node: &mut Arc<Node>, key: &[u8]) -> Option<Entry> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => search(entries, key).ok().map(|at| entries.remove(at)),
        Node::Branch(children) => {
            let at = child_at(children, key);
            let removed = remove(&mut children[at].node, key);
            if children[at].node.len() < NODE_MIN {
                join_neighbours(children, at.min(children.len() - 2));
            }
            removed
        }
    }
}

/// Joins the children at `left` and `left + 1`, or shares their content evenly if one node can't hold it.
fn join_neighbours(children: &mut Vec<Child>, left: usize) {
    let right = children.remove(left + 1);
    let target = &mut children[left];
    let split = match (Arc::make_mut(&mut target.node), &*right.node) {
        (Node::Leaf(entries), Node::Leaf(more)) => {
            entries.extend(more.iter().cloned());
            let len = entries.len();
            (len > NODE_MAX).then(|| split_leaf(entries, len / 2))
        }
        (Node::Branch(grandchildren), Node::Branch(more)) => {
            grandchildren.extend(more.iter().cloned());
            let len = grandchildren.len();
            (len > NODE_MAX).then(|| split_branch(grandchildren, len / 2))
        }
        _ => unreachable!("all leaves of a B-tree have the same depth"),
    };
    if let Some(right) = split {
        children.insert(left + 1, right);
    }
}

#[cfg(test)]
mod tests;
