//! What survives a power cut, and the folder made of it. Owns the modes; knows nothing of whose files they are.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fastrand::Rng;

use super::disk::{Change, Disk, File, Folder, Node, NodeId, Number};

/// What a disk writes whole.
pub const SECTOR_BYTES: usize = 512;
/// Zeros of this length at a time are left out of a file.
const HOLE_BYTES: usize = 64 << 10;

/// What survives of the changes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nothing,
    Everything,
    /// Any of them: by sectors, by whole writes, or up to one that is torn.
    Random,
    /// The newest, without the older ones.
    Newest,
}

pub const MODES: [Mode; 4] = [Mode::Nothing, Mode::Everything, Mode::Random, Mode::Newest];

pub(super) fn build(disk: &Disk, mode: Mode, rng: &mut Rng, target: &Path) -> io::Result<()> {
    let survivors = surviving_names(disk, mode, rng);
    write_folder(disk, 0, &survivors, mode, rng, target)
}

/// Whether each pending change of a folder survives, for all folders at once: the halves of a rename between two
/// folders share their number, and so their fate.
fn surviving_names(disk: &Disk, mode: Mode, rng: &mut Rng) -> HashSet<Number> {
    let mut survivors = HashSet::new();
    // A journal keeps the order, another file system may not.
    let in_order = rng.bool();
    for node in &disk.nodes {
        let Node::Folder(Folder { pending, .. }) = node else { continue };
        let split = rng.usize(..=pending.len());
        for (at, (number, _)) in pending.iter().enumerate() {
            let survives = match mode {
                Mode::Nothing => false,
                Mode::Everything => true,
                Mode::Random if in_order => at < split,
                Mode::Random => rng.bool(),
                Mode::Newest => at >= split,
            };
            if survives {
                survivors.insert(*number);
            }
        }
    }
    survivors
}

fn write_folder(
    disk: &Disk,
    at: NodeId,
    survivors: &HashSet<Number>,
    mode: Mode,
    rng: &mut Rng,
    target: &Path,
) -> io::Result<()> {
    let Node::Folder(folder) = &disk.nodes[at] else { unreachable!("only folders are walked") };
    let mut names = folder.durable.clone();
    for (_, change) in folder.pending.iter().filter(|(number, _)| survivors.contains(number)) {
        change.apply(&mut names);
    }
    for (name, node) in names {
        let path = target.join(name);
        match &disk.nodes[node] {
            Node::Folder(_) => {
                fs::create_dir(&path)?;
                write_folder(disk, node, survivors, mode, rng, &path)?;
            }
            Node::File(file) => write_file(&content(file, mode, rng), &path)?,
        }
    }
    Ok(())
}

fn write_file(bytes: &[u8], path: &Path) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (piece, at) in bytes.chunks(HOLE_BYTES).zip((0u64..).step_by(HOLE_BYTES)) {
        if piece.iter().any(|b| *b != 0) {
            file.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

/// What the disk has of a file.
fn content(file: &File, mode: Mode, rng: &mut Rng) -> Vec<u8> {
    if file.mapped && matches!(mode, Mode::Random | Mode::Newest) {
        return (0..file.length).map(|_| rng.u8(..)).collect();
    }
    let pending: Vec<&Change> = file.pending.iter().map(|(_, change)| change).collect();
    match mode {
        Mode::Nothing => return file.durable.clone(),
        Mode::Everything => {
            let mut bytes = file.durable.clone();
            pending.iter().for_each(|change| change.apply(&mut bytes));
            return bytes;
        }
        Mode::Random | Mode::Newest if pending.is_empty() => return file.durable.clone(),
        Mode::Random | Mode::Newest => {}
    }
    let touched = touched_sectors(file.durable.len(), &pending);
    let newest = newest_survivors(&touched, pending.len(), mode, rng);
    let mut bytes = sectors_with(file, &pending, &newest);
    bytes.resize(surviving_length(file, &pending, mode, rng), 0);
    bytes
}

/// Of each pending change the sectors that it changes.
fn touched_sectors(durable: usize, pending: &[&Change]) -> Vec<std::ops::Range<usize>> {
    let mut length = durable;
    let touch = |change: &&Change| {
        let (from, to) = match change {
            Change::Write { offset, data } => (*offset as usize, *offset as usize + data.len()),
            Change::SetLen(new) => (*new as usize, length.max(*new as usize)),
        };
        length = match change {
            Change::Write { .. } => length.max(to),
            Change::SetLen(new) => *new as usize,
        };
        from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES)
    };
    pending.iter().map(touch).collect()
}

/// Of each touched sector that is not as it was: the newest change that it has. A page is written with all that was
/// done to it until then, so a sector with a change has the older ones too.
fn newest_survivors(
    touched: &[std::ops::Range<usize>],
    changes: usize,
    mode: Mode,
    rng: &mut Rng,
) -> BTreeMap<usize, usize> {
    let scheme = if mode == Mode::Newest { 3 } else { rng.u8(0..3) };
    let share = [0.1, 0.5, 0.9][rng.usize(0..3)];
    // Mostly near the end: long ago is rarely unsynced.
    let split = changes - rng.usize(..=changes.min(8)).min(rng.usize(..=changes));
    let mut newest = BTreeMap::new();
    for (change, sectors) in touched.iter().enumerate() {
        let whole = rng.f64() < share;
        for sector in sectors.clone() {
            let survives = match scheme {
                0 => rng.f64() < share,
                1 => whole,
                2 => change < split || (change == split && rng.bool()),
                _ => change >= split,
            };
            if survives {
                newest.insert(sector, change);
            }
        }
    }
    newest
}

/// The durable content, with each sector of `newest` as it was after that change.
fn sectors_with(file: &File, pending: &[&Change], newest: &BTreeMap<usize, usize>) -> Vec<u8> {
    let mut now = file.durable.clone();
    let mut kept = file.durable.clone();
    let mut of_change: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (sector, change) in newest {
        of_change.entry(*change).or_default().push(*sector);
    }
    for (number, change) in pending.iter().enumerate() {
        change.apply(&mut now);
        for sector in of_change.get(&number).into_iter().flatten() {
            let from = sector * SECTOR_BYTES;
            let to = from + SECTOR_BYTES;
            kept.resize(kept.len().max(to), 0);
            let there = now.len().clamp(from, to);
            kept[from..to].fill(0);
            kept[from..there].copy_from_slice(&now[from.min(now.len())..there.min(now.len())]);
        }
    }
    kept
}

/// One of the lengths that the file had since the last sync.
fn surviving_length(file: &File, pending: &[&Change], mode: Mode, rng: &mut Rng) -> usize {
    let mut lengths = vec![file.durable.len()];
    for change in pending {
        let last = lengths[lengths.len() - 1];
        let next = match change {
            Change::Write { offset, data } => last.max(*offset as usize + data.len()),
            Change::SetLen(length) => *length as usize,
        };
        if next != last {
            lengths.push(next);
        }
    }
    match mode {
        Mode::Newest => lengths[lengths.len() - 1],
        _ => lengths[rng.usize(..lengths.len())],
    }
}
