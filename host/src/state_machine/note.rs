//! The note of the entry that is being applied: two words in a mapped file, which outlive a killed process and cost no
//! system call. At the next start it tells which entry the process died of, and that is counted. An entry that was
//! survived is innocent: its count goes with it, so that only deaths in a row are ever counted. Decides nothing: what is
//! held is `gate.rs`'s business.
//!
//! ```text
//! 0  magic    8  reserved (0)   16 the machine's boot   24 note: term   32 note: index + 1, 0: none
//! 40 deaths: term   48 deaths: index + 1, 0: none   56 deaths: count
//! ```
//!
//! All are u64 in the machine's own order: the file never leaves it. A power cut may leave any older page of the note; the
//! boot id in it tells such a note, which proves nothing, from one that a killed process left.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;

use crate::durable::write_durably;

pub const FILE: &str = "applying";
const MAGIC: u64 = u64::from_le_bytes(*b"raftapp1");
const WORDS: usize = 8;
const BYTES: usize = WORDS * 8;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const BOOT: usize = 2;
const NOTE_TERM: usize = 3;
const NOTE_INDEX: usize = 4;
const DEATHS_INDEX: usize = 6;

/// An entry of the log, and how often in a row the process ended while it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deaths {
    pub term: u64,
    pub index: u64,
    pub count: u32,
}

pub struct Note {
    map: MmapMut,
    /// Of this, deaths are counted in the file.
    counted: Option<Deaths>,
}

impl Note {
    /// Reads what the last run left, counts it durably, and begins a run with an empty note.
    pub fn open(dir: &Path) -> io::Result<(Note, Option<Deaths>)> {
        let boot = boot();
        let deaths = left(dir, boot)?;
        crate::failpoint!("note.before-count", io);
        let mut fresh = [0; WORDS];
        fresh[0] = MAGIC;
        fresh[BOOT] = boot;
        if let Some(deaths) = deaths {
            fresh[5..].copy_from_slice(&[deaths.term, deaths.index + 1, u64::from(deaths.count)]);
        }
        let bytes: Vec<u8> = fresh.iter().flat_map(|w| w.to_ne_bytes()).collect();
        // Written anew, so that its blocks are allocated: a full disk can't make a store into the map fail.
        write_durably(dir, FILE, &bytes)?;
        crate::failpoint!("note.after-count", io);
        let file = OpenOptions::new().read(true).write(true).open(dir.join(FILE))?;
        // SAFETY: the file is this process' alone, as the whole folder is (the log holds its lock), and nobody cuts it.
        let map = unsafe { MmapMut::map_mut(&file)? };
        if map.len() != BYTES {
            return Err(io::Error::other(format!("{FILE} changed while it was opened")));
        }
        Ok((Note { map, counted: deaths }, deaths))
    }

    /// From here on a death is this entry's.
    pub fn begin(&self, term: u64, index: u64) {
        self.word(NOTE_TERM).store(term, Ordering::Relaxed);
        // Last: a process that is killed between the two has no note.
        self.word(NOTE_INDEX).store(index + 1, Ordering::Release);
    }

    /// The entry that was begun last was survived.
    pub fn end(&self) {
        if let Some(Deaths { term, index, .. }) = self.counted
            && self.word(NOTE_INDEX).load(Ordering::Relaxed) == index + 1
            && self.word(NOTE_TERM).load(Ordering::Relaxed) == term
        {
            self.word(DEATHS_INDEX).store(0, Ordering::Release);
        }
        self.clear();
    }

    /// The process is about to end in good order: whatever it does just now is not what ends it.
    pub fn clear(&self) {
        self.word(NOTE_INDEX).store(0, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the map is page-aligned and has WORDS words; all accesses after `open` are atomic.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(at) }
    }
}

/// The index of the entry that the next start will hold, as far as the note tells.
pub fn held(dir: &Path) -> io::Result<Option<u64>> {
    Ok(left(dir, boot())?.filter(|deaths| deaths.count > 1).map(|deaths| deaths.index))
}

/// What the last run left, counted.
fn left(dir: &Path, boot: u64) -> io::Result<Option<Deaths>> {
    match fs::read(dir.join(FILE)) {
        Ok(bytes) => Ok(words(&bytes).and_then(|words| count(&words, boot))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Damaged or foreign bytes are no note: it is an aid, not data.
fn words(bytes: &[u8]) -> Option<[u64; WORDS]> {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("chunks of eight"));
    }
    (bytes.len() == BYTES && words[0] == MAGIC).then_some(words)
}

fn count(words: &[u64; WORDS], boot: u64) -> Option<Deaths> {
    let counted = words[DEATHS_INDEX].checked_sub(1).map(|index| Deaths {
        term: words[5],
        index,
        count: u32::try_from(words[7]).unwrap_or(u32::MAX),
    });
    let died_of = words[NOTE_INDEX].checked_sub(1).filter(|_| words[BOOT] == boot);
    match died_of {
        Some(index) => {
            let term = words[NOTE_TERM];
            let before = counted.filter(|d| (d.term, d.index) == (term, index)).map_or(0, |d| d.count);
            Some(Deaths { term, index, count: before.saturating_add(1) })
        }
        // It was not met again: what is held stays held, and of another one nothing new is known.
        None => counted,
    }
}

fn boot() -> u64 {
    let id = fs::read(BOOT_ID).unwrap_or_default();
    u64::from_le_bytes(blake3::hash(&id).as_bytes()[..8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deaths(term: u64, index: u64, count: u32) -> Option<Deaths> {
        Some(Deaths { term, index, count })
    }

    #[test]
    fn deaths_of_the_same_entry_in_a_row_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, None);
        note.begin(3, 7);
        note.end();
        note.begin(3, 8);
        drop(note);
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(3, 8, 1));
        assert_eq!(held(dir.path()).unwrap(), None);
        note.begin(3, 8);
        drop(note);
        assert_eq!(held(dir.path()).unwrap(), Some(8));
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(3, 8, 2));
        drop(note);
        // It is held now: nothing is applied, and a restart must not forget it.
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(3, 8, 2));
        note.begin(3, 9);
        drop(note);
        assert_eq!(Note::open(dir.path()).unwrap().1, deaths(3, 9, 1));
    }

    #[test]
    fn deaths_are_forgotten_when_their_entry_was_survived_and_so_are_another_terms() {
        let dir = tempfile::tempdir().unwrap();
        for count in 1..=3 {
            let (note, _) = Note::open(dir.path()).unwrap();
            note.begin(1, 0);
            drop(note);
            assert_eq!(Note::open(dir.path()).unwrap().1, deaths(1, 0, count));
        }
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(1, 0, 3), "it was not met again");
        // Others that were survived say nothing about it.
        note.begin(2, 0);
        note.end();
        drop(note);
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(1, 0, 3));
        note.begin(1, 0);
        note.end();
        drop(note);
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, None);
        note.begin(1, 0);
        drop(note);
        let (note, found) = Note::open(dir.path()).unwrap();
        assert_eq!(found, deaths(1, 0, 1), "it counts from the beginning");
        note.begin(1, 5);
        drop(note);
        Note::open(dir.path()).unwrap().0.begin(2, 5);
        assert_eq!(Note::open(dir.path()).unwrap().1, deaths(2, 5, 1));
    }

    #[test]
    fn an_orderly_end_in_the_middle_of_an_entry_is_no_death() {
        let dir = tempfile::tempdir().unwrap();
        let (note, _) = Note::open(dir.path()).unwrap();
        note.begin(1, 5);
        note.clear();
        drop(note);
        assert_eq!(Note::open(dir.path()).unwrap().1, None);
        // Nor is it proof that the entry was survived.
        Note::open(dir.path()).unwrap().0.begin(1, 5);
        let (note, _) = Note::open(dir.path()).unwrap();
        note.begin(1, 5);
        note.clear();
        drop(note);
        assert_eq!(Note::open(dir.path()).unwrap().1, deaths(1, 5, 1));
    }

    #[test]
    fn a_note_of_another_boot_or_of_other_bytes_counts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        Note::open(dir.path()).unwrap().0.begin(1, 5);
        let mut bytes = fs::read(dir.path().join(FILE)).unwrap();
        bytes[BOOT * 8] ^= 1;
        fs::write(dir.path().join(FILE), &bytes).unwrap();
        assert_eq!(Note::open(dir.path()).unwrap().1, None);
        for garbage in [&b""[..], b"short", &[0xff; BYTES], &[0; BYTES + 1]] {
            fs::write(dir.path().join(FILE), garbage).unwrap();
            assert_eq!(Note::open(dir.path()).unwrap().1, None);
        }
    }
}
