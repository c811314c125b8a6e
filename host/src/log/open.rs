//! Creating a log and opening one again. Owns the decision whether what is on disk can be trusted: a log that lost
//! anything that may have been acknowledged is refused, never repaired. Writes nothing after that: `writer/` is next.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::LogOptions;
use super::checkpoint;
use super::files::{LAYOUT_VERSION, Marker, Paths, Watermark, delete_unfinished_snapshots, sync_folder, try_lock};
use super::journal::{self, Journal};
use super::keys;
use super::parts::Parts;
use super::record::{self, Damage};
use super::stamp::{self, Stamp, Unreadable};
use super::view::Bounds;
use super::walk::{self, Touch, Walk};
use super::writer::Start;
use crate::failpoint;

/// sled lets go of its files a moment after it is dropped, when its own threads have finished.
const SLED_LOCK_WAIT: Duration = Duration::from_secs(5);

/// Why a log was not opened. Nothing was changed in it, but sled may have got what only the journal had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the log's settings can't be used: {0}")]
    Options(String),
    #[error("the log in {} is in use by another process; stop that one first", .0.display())]
    Locked(PathBuf),
    #[error("there is no log in {}; this node can't start without the log it had", .0.display())]
    Absent(PathBuf),
    #[error("{} has log data but no marker file log.json; put all that it had at its end back, not an older copy", .0.display())]
    MarkerMissing(PathBuf),
    #[error("the log's marker file {} can't be used: {why}", .path.display())]
    Marker { path: PathBuf, why: String },
    #[error(
        "{} is a log's folder but its data is missing or empty ({what}); starting without it could forget \
         acknowledged entries: put all that it had at its end back, not an older copy",
        .dir.display()
    )]
    DataMissing { dir: PathBuf, what: &'static str },
    #[error("the data in {} is of another log than its marker file log.json", .0.display())]
    OtherIdentity(PathBuf),
    #[error(
        "the log in {} went back to an older state (commit {found}, but {durable} was durable); it may have lost \
         acknowledged entries: {}",
        .dir.display(), missing_entries(.lost)
    )]
    RolledBack { dir: PathBuf, found: u64, durable: u64, lost: Range<u64> },
    #[error("the log in {} is damaged: {damage}; it may have been acknowledged, so it can't be dropped", .dir.display())]
    Damaged { dir: PathBuf, damage: Damage },
    #[error("the log in {} can't be opened: its files in sled/ can't be read: {why}", .dir.display())]
    Sled { dir: PathBuf, why: String },
    #[error("the log in {} can't be opened: {error}", .dir.display())]
    Io { dir: PathBuf, error: io::Error },
}

fn missing_entries(lost: &Range<u64>) -> String {
    match lost.end.checked_sub(lost.start) {
        None | Some(0) => "the index of its last entry is not what shows it".into(),
        Some(1) => format!("entry {} is missing", lost.start),
        Some(_) => format!("entries {} to {} are missing", lost.start, lost.end - 1),
    }
}

/// What was found, or created.
pub(super) struct Opened {
    pub start: Start,
    pub chunk_bytes: usize,
    /// Of the entries' records.
    pub bytes: u64,
}

/// Opens the log in `dir`, or creates one if there is none and `options` allow it.
pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<Opened, OpenError> {
    options.check().map_err(OpenError::Options)?;
    let io = |error| OpenError::Io { dir: dir.to_owned(), error };
    let paths = Paths::new(dir);
    if !dir.exists() {
        if !options.create {
            return Err(OpenError::Absent(dir.to_owned()));
        }
        fs::create_dir_all(dir).map_err(io)?;
    }
    let lock_file = try_lock(&paths.lock).map_err(io)?.ok_or_else(|| OpenError::Locked(dir.to_owned()))?;
    let marker = Marker::read(&paths.marker)
        .map_err(|e| OpenError::Marker { path: paths.marker.clone(), why: e.to_string() })?;
    match marker {
        Some(marker) => reopen(&paths, options, &marker, lock_file),
        None if paths.has_data() && !paths.marker_creating.exists() => Err(OpenError::MarkerMissing(paths.dir)),
        None if !options.create => Err(OpenError::Absent(dir.to_owned())),
        None => create(&paths, options, lock_file),
    }
}

fn create(paths: &Paths, options: &LogOptions, lock_file: File) -> Result<Opened, OpenError> {
    let io = |error| OpenError::Io { dir: paths.dir.clone(), error };
    // Before anything else, so that a creation that was cut off is known as one: nothing was acknowledged then.
    let marker = Marker::generate(options.segment_bytes, options.chunk_bytes).map_err(io)?;
    marker.write(&paths.marker_creating).map_err(io)?;
    sync_folder(&paths.dir).map_err(io)?;
    failpoint!("log.create-begun");
    if paths.sled.exists() {
        fs::remove_dir_all(&paths.sled).map_err(io)?;
    }
    fs::create_dir(&paths.sled).map_err(io)?;
    let db = open_sled(paths, options.cache_bytes, &marker)?;
    let first = Stamp { sequence: 1, bounds: Bounds::EMPTY, committed: None, vote: None };
    let mut batch = sled::Batch::default();
    batch.insert(keys::IDENTITY, record::seal(keys::IDENTITY, marker.identity.as_bytes()));
    batch.insert(keys::LAST, first.to_meta());
    for filler in keys::FILLERS {
        batch.insert(filler, &[]);
    }
    db.apply_batch(batch).and_then(|()| db.flush()).map_err(|e| sled_error(paths, e))?;
    failpoint!("log.create-before-sync");
    let db_file = File::open(&paths.db).map_err(io)?;
    db_file.sync_all().map_err(io)?;
    let watermark = Watermark::create(&paths.watermark, first.sequence, 0).map_err(io)?;
    Journal::create(&paths.journal, options.segment_bytes).map_err(io)?;
    let journal = Journal::open(&paths.journal, marker.identity.as_bytes(), first.sequence).map_err(io)?;
    sync_all(paths).map_err(io)?;
    failpoint!("log.create-before-rename");
    fs::rename(&paths.marker_creating, &paths.marker).map_err(io)?;
    failpoint!("log.create-after-rename");
    sync_folder(&paths.dir).map_err(io)?;
    let start = Start {
        db,
        db_file,
        checkpoint_file: File::open(&paths.db).map_err(io)?,
        _lock_file: lock_file,
        watermark,
        journal,
        segment_bytes: marker.segment_bytes,
        bounds: first.bounds,
        sequence: first.sequence,
        committed: None,
        vote: None,
        oldest: 0,
        backlog: false,
    };
    Ok(Opened { start, chunk_bytes: marker.chunk_bytes, bytes: 0 })
}

fn reopen(paths: &Paths, options: &LogOptions, marker: &Marker, lock_file: File) -> Result<Opened, OpenError> {
    let io = |error| OpenError::Io { dir: paths.dir.clone(), error };
    let watermark = check_files(paths, marker)?;
    delete_unfinished_snapshots(&paths.sled).map_err(io)?;
    settle(paths).map_err(io)?;
    failpoint!("log.open");
    let db = open_sled(paths, options.cache_bytes, marker)?;
    // A damaged file makes sled panic in places, also long after it was opened.
    let examined = catch_unwind(AssertUnwindSafe(|| examine(paths, marker, &watermark, &db)));
    let examined = examined.unwrap_or_else(|_| Err(panicked(paths)));
    let (stamp, oldest, bytes, db_file) = match examined {
        Ok(examined) => examined,
        Err(e) => {
            let_go(db);
            return Err(e);
        }
    };
    let Stamp { sequence, bounds, committed, vote } = stamp;
    let journal = Journal::open(&paths.journal, marker.identity.as_bytes(), sequence).map_err(io)?;
    let start = Start {
        db,
        db_file,
        checkpoint_file: File::open(&paths.db).map_err(io)?,
        _lock_file: lock_file,
        watermark,
        journal,
        segment_bytes: marker.segment_bytes,
        bounds,
        sequence,
        committed: committed.min(bounds.last),
        vote,
        oldest,
        backlog: oldest < bounds.first,
    };
    Ok(Opened { start, chunk_bytes: marker.chunk_bytes, bytes })
}

/// Makes what a killed process had written durable before sled builds on it: it syncs a snapshot of its own, and a power
/// cut could leave that without what it is of. Then the kernel is asked to forget the file, so that sled reads what the
/// disk has: pages that could not be written are not there any more, and the journal fills what is missing.
pub(super) fn settle(paths: &Paths) -> io::Result<()> {
    let file = File::open(&paths.db)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// What must be there before sled is asked: it would make an empty database of a missing file.
pub(super) fn check_files(paths: &Paths, marker: &Marker) -> Result<Watermark, OpenError> {
    let dir = || paths.dir.clone();
    let io = |error| OpenError::Io { dir: dir(), error };
    let missing = |what| OpenError::DataMissing { dir: dir(), what };
    if marker.format != LAYOUT_VERSION {
        let why = format!("it has format {}, this binary knows {LAYOUT_VERSION}", marker.format);
        return Err(OpenError::Marker { path: paths.marker.clone(), why });
    }
    super::check_sizes(marker.segment_bytes, marker.chunk_bytes)
        .map_err(|why| OpenError::Marker { path: paths.marker.clone(), why })?;
    match fs::metadata(&paths.db) {
        Ok(file) if file.len() > 0 => {}
        Ok(_) => return Err(missing("sled/db is empty")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing("there is no sled/db")),
        Err(e) => return Err(io(e)),
    }
    match fs::metadata(&paths.journal) {
        Ok(file) if file.len() == journal::file_bytes(marker.segment_bytes) as u64 => {}
        Ok(_) => return Err(missing("the journal has another size")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing("there is no journal")),
        Err(e) => return Err(io(e)),
    }
    Watermark::open(&paths.watermark).map_err(io)?.ok_or_else(|| missing("the watermark file is missing or damaged"))
}

/// Whether this is the log that the marker and the watermark are of, and all of it. What it says of itself, where the
/// oldest value lies, the bytes of all records, and the handle for the syncs.
fn examine(
    paths: &Paths,
    marker: &Marker,
    watermark: &Watermark,
    db: &sled::Db,
) -> Result<(Stamp, u64, u64, File), OpenError> {
    let dir = || paths.dir.clone();
    let io = |error| OpenError::Io { dir: dir(), error };
    check_identity(paths, marker, db)?;
    let unreadable = |error| match error {
        Unreadable::Damage(damage) => OpenError::Damaged { dir: dir(), damage },
        Unreadable::Sled(e) => sled_error(paths, e),
    };
    replay(paths, marker, db).map_err(io)?.map_err(unreadable)?;
    let stamp = stamp::newest(db).map_err(unreadable)?;
    if stamp.sequence < watermark.sequence {
        let lost = stamp.bounds.next()..watermark.next;
        return Err(OpenError::RolledBack { dir: dir(), found: stamp.sequence, durable: watermark.sequence, lost });
    }
    let (oldest, bytes) = verify(db, stamp.bounds).map_err(unreadable)?;
    let db_file = File::open(&paths.db).map_err(io)?;
    let parts = Parts::new(marker.segment_bytes, marker.chunk_bytes);
    drop_beyond(db, &db_file, stamp.bounds, &parts).map_err(io)?;
    db.flush().map_err(|e| sled_error(paths, e))?;
    db_file.sync_all().map_err(io)?;
    sync_all(paths).map_err(io)?;
    Ok((stamp, oldest, bytes, db_file))
}

/// Puts what only the journal has into sled, without a sync: the journal still has it. Done again, it is the same.
pub(super) fn replay(paths: &Paths, marker: &Marker, db: &sled::Db) -> io::Result<Result<(), Unreadable>> {
    let file = fs::read(&paths.journal)?;
    Ok((|| {
        let have = stamp::newest(db)?.sequence;
        let records = journal::read(&file, marker.identity.as_bytes(), have)?;
        if let (Some(first), Some(last)) = (records.first(), records.last()) {
            tracing::debug!(first = first.sequence, last = last.sequence, "commits that only the journal had");
        }
        for record in records {
            record.write.apply(db)?;
        }
        failpoint!("log.replayed");
        Ok(())
    })())
}

/// Whether the data is the marker's.
pub(super) fn check_identity(paths: &Paths, marker: &Marker, db: &sled::Db) -> Result<(), OpenError> {
    let Some(identity) = db.get(keys::IDENTITY).map_err(|e| sled_error(paths, e))? else {
        return Err(OpenError::DataMissing { dir: paths.dir.clone(), what: "sled opened as an empty database" });
    };
    let expected = marker.identity.as_bytes();
    if record::unseal(keys::IDENTITY, &identity, expected.len()) != Some(expected) {
        return Err(OpenError::OtherIdentity(paths.dir.clone()));
    }
    Ok(())
}

/// Drops a database that may be damaged: sled writes what it has left then, and panics if it can't.
pub(super) fn let_go(db: sled::Db) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(db))));
}

pub(super) fn panicked(paths: &Paths) -> OpenError {
    OpenError::Sled { dir: paths.dir.clone(), why: "sled panicked; its file sled/db is damaged".into() }
}

/// Reads the whole log once. What lies before the first entry is the writer's to purge: returns where it begins, and the
/// bytes of all entries' records.
fn verify(db: &sled::Db, bounds: Bounds) -> Result<(u64, u64), Unreadable> {
    let end = bounds.next();
    let mut walk = Walk::new(bounds.first);
    let (mut last, mut total) = (None, 0);
    let mut touch = Touch::default();
    for item in db.range(walk::range(db, bounds.first, end)?) {
        let (key, value) = item?;
        walk.step(&key, &value, |entry, bytes| {
            last = Some(entry.log_id);
            total += bytes as u64;
        })?;
        touch.read(db, &key, value.len())?;
    }
    walk.finish(end)?;
    // What is purged up to the end has a last log id but no entry.
    if last.is_some() && last != bounds.last {
        return Err(Unreadable::Damage(Damage::Meta("last")));
    }
    let oldest = db.range(keys::range(0, Some(bounds.first))).keys().next().transpose()?;
    Ok((oldest.and_then(|key| keys::parse_chunk(&key)).map_or(bounds.first, |(index, _)| index), total))
}

/// Deletes values behind the last entry: pieces of one of which not all were written, or what was cut off.
fn drop_beyond(db: &sled::Db, db_file: &File, bounds: Bounds, parts: &Parts) -> io::Result<()> {
    let beyond = || db.range(keys::range(bounds.next(), None)).keys();
    let mut count = 0;
    loop {
        let mut batch = sled::Batch::default();
        let before = count;
        for key in beyond().take(parts.deletions_max) {
            batch.remove(key.map_err(super::sled_error)?);
            count += 1;
        }
        if count == before {
            break;
        }
        db.apply_batch(batch).map_err(super::sled_error)?;
        checkpoint::sync(db, db_file)?;
    }
    if count > 0 {
        tracing::warn!(last = ?bounds.last, count, "dropped values beyond the log's last entry: they were never acknowledged");
    }
    Ok(())
}

pub(super) fn open_sled(paths: &Paths, cache_bytes: u64, marker: &Marker) -> Result<sled::Db, OpenError> {
    let config = sled::Config::new()
        .path(&paths.sled)
        .cache_capacity(cache_bytes)
        .segment_size(marker.segment_bytes)
        .flush_every_ms(None)
        .use_compression(false);
    let started = Instant::now();
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| panicked(paths))?;
        match opened {
            Ok(db) => return Ok(db),
            Err(e) if !e.to_string().contains("could not acquire lock") => return Err(sled_error(paths, e)),
            Err(_) if started.elapsed() > SLED_LOCK_WAIT => return Err(OpenError::Locked(paths.dir.clone())),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Everything that sled itself never syncs.
fn sync_all(paths: &Paths) -> io::Result<()> {
    File::open(&paths.conf)?.sync_all()?;
    for folder in [&paths.blobs, &paths.sled, &paths.dir] {
        sync_folder(folder)?;
    }
    match paths.dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

pub(super) fn sled_error(paths: &Paths, error: sled::Error) -> OpenError {
    OpenError::Sled { dir: paths.dir.clone(), why: error.to_string() }
}
