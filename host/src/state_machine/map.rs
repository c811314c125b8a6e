//! The store's data: a persistent (copy-on-write) ordered map of byte strings. Cloning is O(1) and shares everything;
//! a write copies only the nodes on its path that somebody else still holds, so that queries, snapshots and the digest
//! of an old state never stop an apply. Knows no command and no module; the next file is `overlay.rs`.
//!
//! A B+tree of `Arc` nodes, each of which holds its keys, and a leaf its small values too, in one buffer
//! (`map/packed.rs`). Our own: see `docs/performance.md` for others beside it.

mod cursor;
mod packed;

use std::fmt;
use std::sync::Arc;

pub use cursor::{Ascending, Descending};
use cursor::{Cursor, Edge};
pub use packed::{Entry, Long, Old};
use packed::{NODE_MAX, Packed, common};

/// Below this a node is joined with a neighbour.
const NODE_MIN: usize = NODE_MAX / 4;

/// The map. Cloning is O(1).
#[derive(Clone)]
pub struct Map {
    root: Arc<Node>,
    len: u64,
    bytes: u64,
}

// A node is either allocation's whole content: boxing one kind would only add a step to each descent.
#[allow(clippy::large_enum_variant)]
#[derive(Clone)]
enum Node {
    Leaf(Packed),
    Branch(Branch),
}

/// Children in key order, at least two, and one separator fewer: every key in the child behind a separator is at or
/// above it, every key before it below. A separator is a key without a value.
#[derive(Clone)]
struct Branch {
    separators: Packed,
    children: Vec<Arc<Node>>,
}

/// The right half of a node that was split, with the separator before it.
type Split = (Vec<u8>, Arc<Node>);

impl Map {
    pub fn new() -> Self {
        Map { root: Arc::new(Node::Leaf(Packed::new())), len: 0, bytes: 0 }
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

    pub fn get(&self, key: &[u8]) -> Option<Entry<'_>> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.search(key).ok().map(|at| leaf.get(at)),
                Node::Branch(branch) => node = &branch.children[branch.child_at(key)],
            }
        }
    }

    /// True if the key was there before.
    pub fn insert(&mut self, entry: Entry<'_>) -> bool {
        self.insert_over(entry, |_| ()).is_some()
    }

    /// Inserts; returns what `keep` makes of the value that the key had before.
    pub fn insert_over<T>(&mut self, entry: Entry<'_>, keep: impl FnOnce(Old<'_>) -> T) -> Option<T> {
        let mut replaced = None;
        let split = insert(&mut self.root, entry, |old| replaced = Some((old.len(), keep(old))));
        if let Some((separator, right)) = split {
            let mut separators = Packed::new();
            separators.push(Entry::new(&separator, b""));
            let mut children = Vec::with_capacity(NODE_MAX + 1);
            children.extend([Arc::clone(&self.root), right]);
            self.root = Arc::new(Node::Branch(Branch { separators, children }));
        }
        self.bytes += entry.size();
        match replaced {
            Some((value_len, kept)) => {
                self.bytes -= (entry.key().len() + value_len) as u64;
                Some(kept)
            }
            None => {
                self.len += 1;
                None
            }
        }
    }

    /// True if the key was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.take(key, |_| ()).is_some()
    }

    /// Removes; returns what `keep` makes of the value that the key had.
    pub fn take<T>(&mut self, key: &[u8], keep: impl FnOnce(Old<'_>) -> T) -> Option<T> {
        // A miss must not copy the path.
        self.get(key)?;
        let (value_len, kept) = remove(&mut self.root, key, |old| (old.len(), keep(old)))?;
        if let Node::Branch(Branch { children, .. }) = &*self.root
            && let [only] = children.as_slice()
        {
            self.root = Arc::clone(only);
        }
        self.len -= 1;
        self.bytes -= (key.len() + value_len) as u64;
        Some(kept)
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

impl<'a> FromIterator<Entry<'a>> for Map {
    fn from_iter<I: IntoIterator<Item = Entry<'a>>>(entries: I) -> Self {
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

impl Node {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.len(),
            Node::Branch(branch) => branch.children.len(),
        }
    }
}

impl Branch {
    /// The child whose range holds `key`.
    fn child_at(&self, key: &[u8]) -> usize {
        self.separators.search(key).map_or_else(|at| at, |at| at + 1)
    }

    /// See [`share`]; `between` is the separator of the two.
    fn share(&mut self, between: &[u8], more: &Branch) -> Option<Split> {
        let (ours, total) = (self.children.len(), self.children.len() + more.children.len());
        let between = Entry::new(between, b"");
        if total <= NODE_MAX {
            self.separators.push(between);
            self.separators.append(&more.separators, 0..more.separators.len());
            self.children.extend(more.children.iter().cloned());
            return None;
        }
        let half = total / 2;
        if ours < half {
            let moved = half - ours;
            self.separators.push(between);
            self.separators.append(&more.separators, 0..moved - 1);
            self.children.extend(more.children[..moved].iter().cloned());
            let separators = more.separators.part(moved..more.separators.len());
            let mut children = Vec::with_capacity(NODE_MAX + 1);
            children.extend(more.children[moved..].iter().cloned());
            let right = Arc::new(Node::Branch(Branch { separators, children }));
            return Some((more.separators.key(moved - 1).to_vec(), right));
        }
        let mut separators = self.separators.split_off(half);
        separators.push(between);
        separators.append(&more.separators, 0..more.separators.len());
        let up = self.separators.key(half - 1).to_vec();
        self.separators.truncate(half - 1);
        let mut children = Vec::with_capacity(NODE_MAX + 1);
        children.extend(self.children.drain(half..));
        children.extend(more.children.iter().cloned());
        Some((up, Arc::new(Node::Branch(Branch { separators, children }))))
    }

    /// The children from `cut` on, and the separator before them.
    fn split_off(&mut self, cut: usize) -> Split {
        let separators = self.separators.split_off(cut);
        let up = self.separators.key(cut - 1).to_vec();
        self.separators.truncate(cut - 1);
        let mut children = Vec::with_capacity(NODE_MAX + 1);
        children.extend(self.children.drain(cut..));
        (up, Arc::new(Node::Branch(Branch { separators, children })))
    }
}

/// Returns the right half if the node had to be split. `keep` sees the value that is replaced, if there is one.
fn insert(node: &mut Arc<Node>, entry: Entry<'_>, keep: impl FnOnce(Old<'_>)) -> Option<Split> {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => match leaf.search(entry.key()) {
            Ok(at) => {
                keep(leaf.old(at));
                leaf.set_value(at, entry);
                None
            }
            Err(at) => {
                leaf.insert(at, entry);
                if leaf.len() <= NODE_MAX {
                    return None;
                }
                // Ascending keys fill their leaves instead of leaving halves behind.
                let cut = if at == NODE_MAX { NODE_MAX } else { leaf.len() / 2 };
                Some(split_leaf(leaf, cut))
            }
        },
        Node::Branch(branch) => {
            let at = branch.child_at(entry.key());
            if let Some((separator, right)) = insert(&mut branch.children[at], entry, keep) {
                branch.separators.insert(at, Entry::new(&separator, b""));
                branch.children.insert(at + 1, right);
            }
            (branch.children.len() > NODE_MAX).then(|| branch.split_off(NODE_MAX / 2))
        }
    }
}

fn split_leaf(leaf: &mut Packed, cut: usize) -> Split {
    let right = leaf.split_off(cut);
    (separator(leaf.key(cut - 1), right.key(0)), Arc::new(Node::Leaf(right)))
}

/// Joins two neighbours in the first, or, if one node can't hold both, shares their entries evenly and returns the
/// second.
fn share(leaf: &mut Packed, more: &Packed) -> Option<Split> {
    let (ours, total) = (leaf.len(), leaf.len() + more.len());
    if total <= NODE_MAX {
        leaf.append(more, 0..more.len());
        return None;
    }
    let half = total / 2;
    let right = if ours < half {
        leaf.append(more, 0..half - ours);
        more.part(half - ours..more.len())
    } else {
        let mut right = leaf.split_off(half);
        right.append(more, 0..more.len());
        right
    };
    Some((separator(leaf.key(half - 1), right.key(0)), Arc::new(Node::Leaf(right))))
}

/// The shortest prefix of `right` that is above `left`.
fn separator(left: &[u8], right: &[u8]) -> Vec<u8> {
    right[..common(left, right) + 1].to_vec()
}

/// `keep` sees the value that is removed.
fn remove<T>(node: &mut Arc<Node>, key: &[u8], keep: impl FnOnce(Old<'_>) -> T) -> Option<T> {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => leaf.search(key).ok().map(|at| {
            let kept = keep(leaf.old(at));
            leaf.remove(at);
            kept
        }),
        Node::Branch(branch) => {
            let at = branch.child_at(key);
            let removed = remove(&mut branch.children[at], key, keep);
            if branch.children[at].len() < NODE_MIN {
                join_neighbours(branch, at.min(branch.children.len() - 2));
            }
            removed
        }
    }
}

/// Joins the children at `left` and `left + 1`, or shares their content evenly if one node can't hold it.
fn join_neighbours(branch: &mut Branch, left: usize) {
    let right = branch.children.remove(left + 1);
    let between = branch.separators.key(left).to_vec();
    branch.separators.remove(left);
    let split = match (Arc::make_mut(&mut branch.children[left]), &*right) {
        (Node::Leaf(leaf), Node::Leaf(more)) => share(leaf, more),
        (Node::Branch(ours), Node::Branch(more)) => ours.share(&between, more),
        _ => unreachable!("all leaves of a B-tree have the same depth"),
    };
    if let Some((separator, right)) = split {
        branch.separators.insert(left, Entry::new(&separator, b""));
        branch.children.insert(left + 1, right);
    }
}

#[cfg(test)]
mod tests;
