//! Walks the map's tree in both directions. Never changes it.

use super::{Child, Entry, Node, child_at, search};

/// Where a cursor with an open bound begins.
#[derive(Clone, Copy)]
pub(super) enum Edge {
    First,
    Last,
}

/// A position between two entries: for each node on the path how many of its items lie before it (in a branch: before
/// the child that the path goes through).
pub(super) struct Cursor<'a> {
    path: Vec<(&'a [Child], usize)>,
    leaf: &'a [Entry],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Just before the first entry whose key is at or above `bound`.
    pub(super) fn at(root: &'a Node, bound: Option<&[u8]>, open: Edge) -> Self {
        let mut cursor = Cursor { path: Vec::with_capacity(8), leaf: &[], at: 0 };
        cursor.descend(root, |children| match (bound, open) {
            (Some(key), _) => child_at(children, key),
            (None, Edge::First) => 0,
            (None, Edge::Last) => children.len() - 1,
        });
        cursor.at = match (bound, open) {
            (Some(key), _) => search(cursor.leaf, key).unwrap_or_else(|at| at),
            (None, Edge::First) => 0,
            (None, Edge::Last) => cursor.leaf.len(),
        };
        cursor
    }

    fn descend(&mut self, mut node: &'a Node, choose: impl Fn(&[Child]) -> usize) {
        loop {
            match node {
                Node::Leaf(entries) => {
                    self.leaf = entries;
                    return;
                }
                Node::Branch(children) => {
                    let at = choose(children);
                    self.path.push((children, at));
                    node = &children[at].node;
                }
            }
        }
    }

    fn next(&mut self) -> Option<&'a Entry> {
        while self.at == self.leaf.len() {
            let up = self.path.iter().rposition(|(children, at)| at + 1 < children.len())?;
            self.path.truncate(up + 1);
            let (children, at) = &mut self.path[up];
            *at += 1;
            let node = &children[*at].node;
            self.descend(node, |_| 0);
            self.at = 0;
        }
        self.at += 1;
        Some(&self.leaf[self.at - 1])
    }

    fn previous(&mut self) -> Option<&'a Entry> {
        while self.at == 0 {
            let up = self.path.iter().rposition(|(_, at)| *at > 0)?;
            self.path.truncate(up + 1);
            let (children, at) = &mut self.path[up];
            *at -= 1;
            let node = &children[*at].node;
            self.descend(node, |children| children.len() - 1);
            self.at = self.leaf.len();
        }
        self.at -= 1;
        Some(&self.leaf[self.at])
    }
}

/// See [`super::Map::range`].
pub struct Ascending<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) end: Option<&'a [u8]>,
}

impl<'a> Iterator for Ascending<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
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
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        let entry = self.cursor.previous()?;
        self.start.is_none_or(|start| entry.key() >= start).then_some(entry)
    }
}
