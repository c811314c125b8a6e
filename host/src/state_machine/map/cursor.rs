//! Walks the map's tree in both directions. Never changes it.

use super::{Branch, Entry, Node, Packed};

/// Where a cursor with an open bound begins.
#[derive(Clone, Copy)]
pub(super) enum Edge {
    First,
    Last,
}

/// A position between two entries: for each node on the path how many of its items lie before it (in a branch: before
/// the child that the path goes through).
pub(super) struct Cursor<'a> {
    path: Vec<(&'a Branch, usize)>,
    leaf: &'a Packed,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Just before the first entry whose key is at or above `bound`.
    pub(super) fn at(root: &'a Node, bound: Option<&[u8]>, open: Edge) -> Self {
        let mut path = Vec::with_capacity(8);
        let leaf = descend(&mut path, root, |branch| match (bound, open) {
            (Some(key), _) => branch.child_at(key),
            (None, Edge::First) => 0,
            (None, Edge::Last) => branch.children.len() - 1,
        });
        let at = match (bound, open) {
            (Some(key), _) => leaf.search(key).unwrap_or_else(|at| at),
            (None, Edge::First) => 0,
            (None, Edge::Last) => leaf.len(),
        };
        Cursor { path, leaf, at }
    }

    fn next(&mut self) -> Option<Entry<'a>> {
        while self.at == self.leaf.len() {
            let up = self.path.iter().rposition(|(branch, at)| at + 1 < branch.children.len())?;
            self.path.truncate(up + 1);
            let (branch, at) = &mut self.path[up];
            *at += 1;
            let node = &branch.children[*at];
            self.leaf = descend(&mut self.path, node, |_| 0);
            self.at = 0;
        }
        self.at += 1;
        Some(self.leaf.get(self.at - 1))
    }

    fn previous(&mut self) -> Option<Entry<'a>> {
        while self.at == 0 {
            let up = self.path.iter().rposition(|(_, at)| *at > 0)?;
            self.path.truncate(up + 1);
            let (branch, at) = &mut self.path[up];
            *at -= 1;
            let node = &branch.children[*at];
            self.leaf = descend(&mut self.path, node, |branch| branch.children.len() - 1);
            self.at = self.leaf.len();
        }
        self.at -= 1;
        Some(self.leaf.get(self.at))
    }
}

/// Down to a leaf; the branches that were passed go into `path`.
fn descend<'a>(
    path: &mut Vec<(&'a Branch, usize)>,
    mut node: &'a Node,
    choose: impl Fn(&Branch) -> usize,
) -> &'a Packed {
    loop {
        match node {
            Node::Leaf(leaf) => return leaf,
            Node::Branch(branch) => {
                let at = choose(branch);
                path.push((branch, at));
                node = &branch.children[at];
            }
        }
    }
}

/// See [`super::Map::range`].
pub struct Ascending<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) end: Option<&'a [u8]>,
}

impl<'a> Iterator for Ascending<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let entry = self.cursor.next()?;
        self.end.is_none_or(|end| entry.key() < end).then_some(entry)
    }
}

/// See [`super::Map::range_descending`].
pub struct Descending<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) start: Option<&'a [u8]>,
}

impl<'a> Iterator for Descending<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let entry = self.cursor.previous()?;
        self.start.is_none_or(|start| entry.key() >= start).then_some(entry)
    }
}
