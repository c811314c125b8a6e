//! Reading the log of a stopped node, damaged or not, to say what is in it. Owns the going on after damage, which the
//! start of a node never does. Changes nothing beyond what sled itself does when it is opened, with what only the journal
//! has; repairs nothing.
//! `cli/log.rs` prints what is found here.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sled::Db;

use super::files::{Marker, Paths, try_lock};
use super::open::{self, OpenError};
use super::record::{Damage, KIND_GROUP};
use super::stamp::{self, Stamp, Unreadable};
use super::walk::{Touch, Walk};
use super::{LogOptions, group, keys};
use crate::raft::types::{Entry, LogId, Vote};

/// What the log says of itself as of its newest commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Counts commits since the log was created.
    pub sequence: u64,
    pub purged: Option<LogId>,
    /// Index of the first entry, if there is one.
    pub first: u64,
    pub last: Option<LogId>,
    pub committed: Option<LogId>,
    pub vote: Option<Vote>,
}

/// Where an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Among these many entries in one value.
    Group(u32),
    /// Cut into this many values.
    Chunks(u32),
}

/// One thing in the order of the log.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Found {
    Entry {
        entry: Entry,
        /// Bytes of its record.
        bytes: usize,
        place: Place,
    },
    /// Missing or damaged. The text names the index.
    Damage(Damage),
}

/// What was seen besides.
#[derive(Debug, Default)]
pub struct Report {
    /// None: the newest stamp is damaged or missing.
    pub bounds: Option<Bounds>,
    /// Values of entries that were purged and not deleted yet. They are not read.
    pub purged_values: u64,
    /// Values behind the last entry; a start drops them: they were never acknowledged.
    pub values_beyond: u64,
    /// Of the log's entries that were read.
    pub entries: u64,
    pub bytes: u64,
    pub groups: u64,
    pub chunks: u64,
    /// Why a node would refuse to start with this log, in words; each names a file or an index.
    pub damage: Vec<String>,
}

/// Reads the log in `dir` (the folder `raft-log`) and hands out what lies in the `range` of indices, in order.
///
/// # Errors
/// What makes it impossible to look inside: there is no log, it is in use, its marker can't be read, or sled refuses its
/// file. Anything else is in the report.
pub fn inspect(dir: &Path, range: Range<u64>, mut take: impl FnMut(Found)) -> Result<Report, OpenError> {
    let io = |error| OpenError::Io { dir: dir.to_owned(), error };
    let paths = Paths::new(dir);
    let marker = Marker::read(&paths.marker)
        .map_err(|e| OpenError::Marker { path: paths.marker.clone(), why: e.to_string() })?;
    let marker = match marker {
        Some(marker) => marker,
        None if paths.has_data() => return Err(OpenError::MarkerMissing(paths.dir)),
        None => return Err(OpenError::Absent(paths.dir)),
    };
    let _lock = try_lock(&paths.lock).map_err(io)?.ok_or_else(|| OpenError::Locked(dir.to_owned()))?;
    let mut report = Report::default();
    let watermark = match open::check_files(&paths, &marker) {
        Ok(watermark) => Some(watermark),
        Err(e @ OpenError::DataMissing { .. }) if paths.db.metadata().is_ok_and(|db| db.len() > 0) => {
            report.damage.push(e.to_string());
            None
        }
        Err(e) => return Err(e),
    };
    super::files::delete_unfinished_snapshots(&paths.sled).map_err(io)?;
    open::settle(&paths).map_err(io)?;
    let db = open::open_sled(&paths, LogOptions::default().cache_bytes, &marker)?;
    // A damaged file makes sled panic in places.
    let looked = catch_unwind(AssertUnwindSafe(|| {
        if let Err(e) = open::check_identity(&paths, &marker, &db) {
            report.damage.push(e.to_string());
        }
        match open::replay(&paths, &marker, &db) {
            Ok(Ok(())) => {}
            Ok(Err(Unreadable::Damage(damage))) => report.damage.push(damage.to_string()),
            Ok(Err(Unreadable::Sled(e))) => return Err(e),
            Err(e) => report.damage.push(format!("the journal can't be read: {e}")),
        }
        let durable = watermark.map(|watermark| (watermark.sequence, watermark.next));
        look(&db, durable, range, &mut report, &mut take)
    }));
    open::let_go(db);
    match looked {
        Ok(Ok(())) => {}
        Ok(Err(e)) => report.damage.push(format!("sled can't read on: {e}")),
        Err(_) => report.damage.push(open::panicked(&paths).to_string()),
    }
    Ok(report)
}

fn look(
    db: &Db,
    durable: Option<(u64, u64)>,
    range: Range<u64>,
    report: &mut Report,
    take: &mut dyn FnMut(Found),
) -> sled::Result<()> {
    let stamp = match stamp::newest(db) {
        Ok(stamp) => Some(stamp),
        Err(Unreadable::Damage(damage)) => {
            // The journal's reading may have met the same.
            let damage = damage.to_string();
            if !report.damage.contains(&damage) {
                report.damage.push(damage);
            }
            None
        }
        Err(Unreadable::Sled(e)) => return Err(e),
    };
    if let Some(Stamp { sequence, bounds, committed, vote }) = stamp {
        let super::view::Bounds { purged, first, last } = bounds;
        report.bounds = Some(Bounds { sequence, purged, first, last, committed, vote });
        if let Some((durable, next)) = durable.filter(|(durable, _)| *durable > sequence) {
            let lost = format!("commit {durable}, which was durable, is missing: the newest here is {sequence}");
            report.damage.push(format!("{lost}; the next index was {next} and is {}", bounds.next()));
        }
    }
    // Without a stamp everything that is there is looked at.
    let all = stamp.map_or(0..u64::MAX, |stamp| stamp.bounds.first..stamp.bounds.next());
    report.purged_values = count(db, 0, Some(all.start))?;
    report.values_beyond = match stamp {
        Some(_) => count(db, all.end, None)?,
        None => 0,
    };
    let start = all.start.max(range.start);
    let end = all.end.min(range.end);
    let keys = super::walk::range(db, start, end)?;
    let mut next = start;
    if stamp.is_none() && range.start == 0 {
        // Where the log begins is not known: with the first value that is there.
        let first = db.range(keys.clone()).keys().next().transpose()?;
        next = first.and_then(|key| keys::parse_chunk(&key)).map_or(0, |(index, _)| index);
    }
    let mut reader = Reader { next, end, walk: None, damaged: None, report, take };
    let mut touch = Touch::default();
    for item in db.range(keys) {
        let (key, value) = item?;
        reader.value(&key, &value);
        touch.read(db, &key, value.len())?;
    }
    reader.finish(stamp.is_some());
    Ok(())
}

/// Values of [start, end). Not `Iterator::count`: where sled can't read, its iterator says so again and again, for ever.
fn count(db: &Db, start: u64, end: Option<u64>) -> sled::Result<u64> {
    db.range(keys::range(start, end)).keys().try_fold(0, |count, key| key.map(|_| count + 1))
}

/// Goes over the values in order, and on after what is damaged.
struct Reader<'a> {
    /// Index of the entry that comes next.
    next: u64,
    /// What comes from here on is not wanted.
    end: u64,
    /// None at the beginning and after damage, until the next value begins something.
    walk: Option<Walk>,
    /// The index under which the last damage was found.
    damaged: Option<u64>,
    report: &'a mut Report,
    take: &'a mut dyn FnMut(Found),
}

impl Reader<'_> {
    fn value(&mut self, key: &[u8], value: &[u8]) {
        let Some((index, chunk)) = keys::parse_chunk(key) else {
            return self.damage(Damage::Format { index: self.next, why: "a key is no entry's" });
        };
        if let Some(unfinished) = self.walk.as_ref().and_then(Walk::unfinished).filter(|_| index != self.next) {
            self.damage(unfinished);
            self.next += 1;
            self.walk = None;
        }
        if chunk > 0 && self.walk.is_none() && self.damaged == Some(index) {
            // A piece of an entry that is damaged already.
            return;
        }
        if index > self.next {
            self.missing(index);
            self.next = index;
            self.walk = None;
        }
        let walk = self.walk.get_or_insert_with(|| Walk::new(self.next));
        let place = match group::open(key, value, index) {
            Ok(group) if value.get(1) == Some(&KIND_GROUP) => Place::Group(group.count),
            _ => Place::Chunks(chunk + 1),
        };
        match place {
            Place::Group(_) => self.report.groups += 1,
            Place::Chunks(_) => self.report.chunks += 1,
        }
        let mut entries = Vec::new();
        let stepped = walk.step(key, value, |entry, bytes| entries.push((entry, bytes)));
        for (entry, bytes) in entries {
            self.next = entry.log_id.index + 1;
            if entry.log_id.index < self.end {
                self.report.entries += 1;
                self.report.bytes += bytes as u64;
                (self.take)(Found::Entry { entry, bytes, place });
            }
        }
        if let Err(damage) = stepped {
            self.damage(damage);
            self.walk = None;
            self.damaged = Some(index);
            self.next = self.next.max(index.saturating_add(1));
        }
    }

    /// All from the next one to `index` are missing, or were in a group that is damaged.
    fn missing(&mut self, index: u64) {
        let from = self.next;
        (self.take)(Found::Damage(Damage::Missing(from)));
        self.report.damage.push(match index - from {
            1 => Damage::Missing(from).to_string(),
            _ => format!("entries {from} to {} are missing", index - 1),
        });
    }

    fn damage(&mut self, damage: Damage) {
        self.report.damage.push(damage.to_string());
        (self.take)(Found::Damage(damage));
    }

    /// `bounded`: the end is known.
    fn finish(mut self, bounded: bool) {
        if let Some(unfinished) = self.walk.as_ref().and_then(Walk::unfinished) {
            self.damage(unfinished);
            self.next += 1;
        }
        if bounded && self.next < self.end {
            self.missing(self.end);
        }
    }
}
