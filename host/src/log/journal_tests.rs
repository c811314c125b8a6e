//! What is read back from a journal, whole, torn and damaged.

use super::*;

const ID: &[u8] = b"this log";
const SEGMENT: usize = 2 << 20;

fn one(byte: u8, bytes: usize) -> Write {
    Write { changes: vec![([byte].as_slice().into(), Some(vec![byte; bytes].into())), (b"gone".into(), None)] }
}

struct Case {
    path: std::path::PathBuf,
    journal: Journal,
    _dir: tempfile::TempDir,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    Journal::create(&path, SEGMENT).unwrap();
    Case { journal: Journal::open(&path, ID, 10).unwrap(), path, _dir: dir }
}

impl Case {
    /// Writes commits of 1,000 bytes, which take three sectors.
    fn write(&mut self, sequences: std::ops::Range<u64>) {
        for sequence in sequences {
            let write = one(sequence as u8, 1000);
            assert!(matches!(self.journal.write(sequence, &write).unwrap(), Written::Here { .. }));
        }
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

fn sequences(file: &[u8], have: u64) -> Result<Vec<u64>, String> {
    let records = read(file, ID, have).map_err(|damage| damage.to_string())?;
    for record in &records {
        assert_eq!(record.write, one(record.sequence as u8, 1000));
    }
    Ok(records.iter().map(|record| record.sequence).collect())
}

#[test]
fn what_was_written_is_read_and_what_sled_has_is_left_out() {
    let mut case = case();
    assert_eq!(sequences(&case.file(), 10), Ok(vec![]));
    case.write(11..15);
    assert_eq!(sequences(&case.file(), 10), Ok(vec![11, 12, 13, 14]));
    assert_eq!(sequences(&case.file(), 12), Ok(vec![13, 14]));
    assert_eq!(sequences(&case.file(), 99), Ok(vec![]));
    assert_eq!(read(&case.file(), b"another log", 10), Ok(vec![]));
}

#[test]
fn halves_take_turns_and_say_what_must_be_in_sled_first() {
    let mut case = case();
    // 10 of 1,536 bytes fit into a half.
    case.write(11..21);
    assert_eq!(case.journal.needs(&one(0, 1000)), Some(10), "nothing new is in the other half");
    assert_eq!(case.journal.write(21, &one(21, 1000)).unwrap(), Written::Here { filled: Some(20) });
    case.write(22..31);
    assert_eq!(sequences(&case.file(), 10).unwrap().len(), 20);
    assert_eq!(case.journal.needs(&one(0, 1000)), Some(20));
    case.write(31..33);
    assert_eq!(sequences(&case.file(), 20), Ok((21..33).collect()));
    let missing = sequences(&case.file(), 15).unwrap_err();
    assert!(missing.contains("commit 16"), "{missing}");
}

#[test]
fn commits_that_sled_alone_has_leave_no_gap() {
    let mut case = case();
    case.write(11..13);
    // 13 only goes to sled, unsynced: 14 doesn't rest on it.
    case.write(14..15);
    assert_eq!(sequences(&case.file(), 10), Ok(vec![11, 12, 14]));
    assert_eq!(case.journal.write(15, &one(15, 9000)).unwrap(), Written::Elsewhere);
    case.write(16..17);
    assert_eq!(sequences(&case.file(), 15), Ok(vec![16]));
    let missing = sequences(&case.file(), 14).unwrap_err();
    assert!(missing.contains("commit 15"), "sled was synced for it: {missing}");
}

#[test]
fn only_the_newest_may_be_torn() {
    let mut case = case();
    case.write(11..14);
    let file = case.file();
    for byte in 0..1536 {
        let mut torn = file.clone();
        torn[2 * 1536 + byte] ^= 0x40;
        // The padding is nobody's.
        let left = if byte < 32 + 8 + 1000 + 7 { vec![11, 12] } else { vec![11, 12, 13] };
        assert_eq!(sequences(&torn, 10), Ok(left), "byte {byte}");
    }
    for byte in 0..2 * 1536 {
        let mut rotten = file.clone();
        rotten[byte] ^= 0x40;
        match sequences(&rotten, 10) {
            Ok(all) => assert_eq!(all, [11, 12, 13], "byte {byte} is padding"),
            Err(damage) => assert!(damage.contains("commit"), "{damage}"),
        }
    }
}

/// Two power cuts, each of which tears the first sectors of the newest record from the others.
#[test]
fn a_torn_record_is_none_after_the_next_start() {
    let mut case = case();
    case.write(11..14);
    let torn = |path: &Path, at: u64| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0; 600], at + 512).unwrap();
    };
    torn(&case.path, 2 * 1536);
    assert_eq!(sequences(&case.file(), 10), Ok(vec![11, 12]));
    case.journal = Journal::open(&case.path, ID, 12).unwrap();
    case.write(14..15);
    torn(&case.path, 0);
    assert_eq!(sequences(&case.file(), 12), Ok(vec![]));
}

#[test]
fn a_damaged_record_at_the_end_of_the_older_half_is_missed() {
    let mut case = case();
    case.write(11..23);
    let mut file = case.file();
    file[9 * 1536 + 40] ^= 1;
    let missing = sequences(&file, 10).unwrap_err();
    assert!(missing.contains("commit 20"), "{missing}");
}

#[test]
fn a_half_that_is_written_anew_hides_what_it_had() {
    let mut case = case();
    case.write(11..35);
    assert_eq!(sequences(&case.file(), 20), Ok((21..35).collect()));
    case.journal = Journal::open(&case.path, ID, 34).unwrap();
    case.write(35..36);
    assert_eq!(sequences(&case.file(), 34), Ok(vec![35]));
}
