//! A disk under a record: of each file and folder what is durable, and in order the changes since. Owns the meaning of
//! an operation and of a sync; `build.rs`, the next file, decides what of the changes survives.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::record::{Operation, Synced};

/// A file or folder, whatever its names are.
pub type NodeId = usize;
/// The position of a change among all: the two halves of a rename between folders have the same.
pub type Number = u64;

#[derive(Debug)]
pub struct Disk {
    pub(super) root: PathBuf,
    pub(super) nodes: Vec<Node>,
    handles: HashMap<u64, NodeId>,
    syncs: HashMap<u64, (NodeId, Number)>,
    next: Number,
}

#[derive(Debug)]
pub(super) enum Node {
    File(File),
    Folder(Folder),
}

#[derive(Debug, Default)]
pub(super) struct File {
    pub durable: Vec<u8>,
    pub pending: Vec<(Number, Change)>,
    /// With all changes.
    pub length: u64,
    /// Written through memory.
    pub mapped: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    /// Shorter: what was beyond is gone. Longer: zeros.
    SetLen(u64),
}

#[derive(Debug, Default)]
pub(super) struct Folder {
    pub durable: BTreeMap<String, NodeId>,
    pub pending: Vec<(Number, Naming)>,
    /// With all changes.
    pub now: BTreeMap<String, NodeId>,
}

#[derive(Debug, Clone)]
pub(super) enum Naming {
    Add(String, NodeId),
    Remove(String),
    /// A rename within the folder.
    Move {
        from: String,
        to: String,
        node: NodeId,
    },
}

impl Naming {
    pub(super) fn apply(&self, names: &mut BTreeMap<String, NodeId>) {
        match self {
            Naming::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Naming::Remove(name) => drop(names.remove(name)),
            Naming::Move { from, to, node } => {
                // The name may have gone to another file since, if an older change is lost.
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write { offset, data } => {
                let (from, to) = (*offset as usize, *offset as usize + data.len());
                if bytes.len() < to {
                    bytes.resize(to, 0);
                }
                bytes[from..to].copy_from_slice(data);
            }
            Change::SetLen(length) => bytes.resize(*length as usize, 0),
        }
    }
}

const ROOT: NodeId = 0;

impl Disk {
    /// With an empty, durable root.
    pub fn new(root: &Path) -> Disk {
        let nodes = vec![Node::Folder(Folder::default())];
        Disk { root: root.to_owned(), nodes, handles: HashMap::new(), syncs: HashMap::new(), next: 0 }
    }

    /// # Panics
    /// On an operation that can't have succeeded in this order: the record is not whole.
    pub fn apply(&mut self, operation: &Operation) {
        self.next += 1;
        match operation {
            Operation::Start => {
                self.handles.clear();
                self.syncs.clear();
            }
            Operation::Open { handle, path, created, truncated } => {
                if *created {
                    let file = self.add_node(Node::File(File::default()));
                    self.name(path, Naming::Add(last(path), file));
                }
                let node = self.find(path).unwrap_or_else(|| panic!("{} is not in the record", path.display()));
                self.handles.insert(*handle, node);
                if *truncated {
                    self.change(node, Change::SetLen(0));
                }
            }
            Operation::Write { handle, offset, data } => {
                self.change(self.handles[handle], Change::Write { offset: *offset, data: data.clone() });
            }
            Operation::SetLen { handle, length } => self.change(self.handles[handle], Change::SetLen(*length)),
            Operation::Allocate { handle, length } => {
                let node = self.handles[handle];
                if self.file(node).length < *length {
                    self.change(node, Change::SetLen(*length));
                }
            }
            Operation::SyncStart { token, what } => {
                let node = match what {
                    Synced::File(handle) => Some(self.handles[handle]),
                    // A folder that was removed while it was open has no name.
                    Synced::Folder(path) => self.find(path),
                };
                node.map(|node| self.syncs.insert(*token, (node, self.next)));
            }
            Operation::SyncEnd { token, .. } => {
                if let Some((node, before)) = self.syncs.remove(token) {
                    self.settle(node, before);
                }
            }
            Operation::Rename { from, to } => self.rename(from, to),
            Operation::Unlink { path } | Operation::Rmdir { path } => self.name(path, Naming::Remove(last(path))),
            Operation::Mkdir { path } => {
                let folder = self.add_node(Node::Folder(Folder::default()));
                self.name(path, Naming::Add(last(path), folder));
            }
            Operation::Link { from, to } => {
                let node = self.find(from).expect("what is linked is there");
                self.name(to, Naming::Add(last(to), node));
            }
            Operation::Mapped { handle } => self.file_mut(self.handles[handle]).mapped = true,
        }
    }

    fn add_node(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let node = self.find(from).unwrap_or_else(|| panic!("{} is not in the record", from.display()));
        if from.parent() == to.parent() {
            self.name(to, Naming::Move { from: last(from), to: last(to), node });
        } else {
            self.name(to, Naming::Add(last(to), node));
            self.name(from, Naming::Remove(last(from)));
        }
    }

    fn name(&mut self, path: &Path, change: Naming) {
        let parent = path.parent().and_then(|p| self.find(p));
        let number = self.next;
        let parent = parent.unwrap_or_else(|| panic!("the folder of {} is not in the record", path.display()));
        let Node::Folder(folder) = &mut self.nodes[parent] else { panic!("{} is in a file", path.display()) };
        change.apply(&mut folder.now);
        folder.pending.push((number, change));
    }

    fn change(&mut self, node: NodeId, change: Change) {
        let number = self.next;
        let file = self.file_mut(node);
        file.length = match &change {
            Change::Write { offset, data } => file.length.max(offset + data.len() as u64),
            Change::SetLen(length) => *length,
        };
        file.pending.push((number, change));
    }

    /// What was done before is durable.
    fn settle(&mut self, node: NodeId, before: Number) {
        match &mut self.nodes[node] {
            Node::File(File { durable, pending, .. }) => {
                let count = pending.partition_point(|(number, _)| *number < before);
                pending.drain(..count).for_each(|(_, change)| change.apply(durable));
            }
            Node::Folder(Folder { durable, pending, .. }) => {
                let count = pending.partition_point(|(number, _)| *number < before);
                let settled: Vec<_> = pending.drain(..count).collect();
                settled.iter().for_each(|(_, change)| change.apply(durable));
                settled.iter().for_each(|(number, _)| self.settle_other_half(*number));
            }
        }
    }

    /// Of a rename between two folders: no file system makes the loss of the old name durable without the new one.
    fn settle_other_half(&mut self, number: Number) {
        for node in &mut self.nodes {
            if let Node::Folder(Folder { durable, pending, .. }) = node
                && let Ok(at) = pending.binary_search_by_key(&number, |(number, _)| *number)
            {
                pending.remove(at).1.apply(durable);
            }
        }
    }

    pub(super) fn find(&self, path: &Path) -> Option<NodeId> {
        let below = path.strip_prefix(&self.root).expect("only what is below the root is recorded");
        let mut at = ROOT;
        for part in below.components() {
            let Component::Normal(name) = part else { panic!("{} is not plain", path.display()) };
            let Node::Folder(folder) = &self.nodes[at] else { return None };
            at = *folder.now.get(name.to_str().expect("the record is in UTF-8"))?;
        }
        Some(at)
    }

    /// The path of an open file, as it is named now.
    pub(super) fn path_of(&self, handle: u64) -> Option<PathBuf> {
        fn search(disk: &Disk, at: NodeId, wanted: NodeId, path: &Path) -> Option<PathBuf> {
            let Node::Folder(folder) = &disk.nodes[at] else { return (at == wanted).then(|| path.to_owned()) };
            folder.now.iter().find_map(|(name, node)| search(disk, *node, wanted, &path.join(name)))
        }
        search(self, ROOT, *self.handles.get(&handle)?, &self.root)
    }

    pub(super) fn file(&self, node: NodeId) -> &File {
        match &self.nodes[node] {
            Node::File(file) => file,
            Node::Folder(_) => panic!("a folder is written like a file"),
        }
    }

    fn file_mut(&mut self, node: NodeId) -> &mut File {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Folder(_) => panic!("a folder is written like a file"),
        }
    }

    /// Compares what all operations lead to with the real folder, below `name`.
    pub fn compare(&self, real: &Path, name: &str) -> Result<(), String> {
        let path = real.join(name);
        match (self.find(&self.root.join(name)), path.exists()) {
            (None, false) => Ok(()),
            (None, true) => Err(format!("the recorder did not see that {} was made", path.display())),
            (Some(node), _) => self.compare_node(node, &path),
        }
    }

    fn compare_node(&self, node: NodeId, real: &Path) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("the recorder did not see all: {}: {what}", real.display()));
        match &self.nodes[node] {
            Node::File(file) if file.mapped => Ok(()),
            Node::File(file) => {
                let mut bytes = file.durable.clone();
                file.pending.iter().for_each(|(_, change)| change.apply(&mut bytes));
                match fs::read(real) {
                    Ok(found) if found == bytes => Ok(()),
                    Ok(found) => {
                        let at = found.iter().zip(&bytes).position(|(a, b)| a != b);
                        let lengths = (found.len(), bytes.len());
                        wrong(&format!("(real, recorded) bytes {lengths:?}, the first that differs: {at:?}"))
                    }
                    Err(e) => wrong(&e.to_string()),
                }
            }
            Node::Folder(folder) => {
                let Ok(entries) = fs::read_dir(real) else { return wrong("no such folder") };
                let mut names: Vec<String> =
                    entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                if !names.iter().eq(folder.now.keys()) {
                    return wrong(&format!("real {names:?}, recorded {:?}", folder.now.keys()));
                }
                folder.now.iter().try_for_each(|(name, node)| self.compare_node(*node, &real.join(name)))
            }
        }
    }
}

fn last(path: &Path) -> String {
    path.file_name().and_then(|n| n.to_str()).expect("a path with a name in UTF-8").to_owned()
}
