//! A program for the tests of the power-cut method: it stores numbers and says when each is durable, rightly or with
//! one of the mistakes that the method must find. `power_sample WAY FOLDER`; an acknowledgement is a line on standard
//! output: the number and the time (CLOCK_MONOTONIC, ns).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raftlet_tests::clock::monotonic_ns;

const NUMBERS: u64 = 8;
/// Over a page, so that it can be torn.
const COPIES: usize = 700;

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let way = args.next().and_then(|w| w.into_string().ok()).expect("a way");
    let folder = PathBuf::from(args.next().expect("a folder"));
    fs::create_dir(&folder)?;
    sync_folder(folder.parent().expect("a folder in another one"))?;
    match way.as_str() {
        "append" => append(&folder, true, true),
        "append-acknowledged-early" => append(&folder, true, false),
        "append-without-folder-sync" => append(&folder, false, true),
        "replace" => replace(&folder, true, true),
        "replace-without-file-sync" => replace(&folder, false, true),
        "replace-without-folder-sync" => replace(&folder, true, false),
        other => panic!("there is no way {other:?}"),
    }
}

/// One file that grows.
fn append(folder: &Path, folder_synced: bool, in_time: bool) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(folder.join("numbers"))?;
    if folder_synced {
        sync_folder(folder)?;
    }
    for number in 1..=NUMBERS {
        let value = value(number);
        file.write_all_at(&value, (number - 1) * value.len() as u64)?;
        if in_time {
            file.sync_data()?;
        }
        acknowledge(number);
        if !in_time {
            file.sync_data()?;
        }
    }
    Ok(())
}

/// One file that is replaced by another.
fn replace(folder: &Path, file_synced: bool, folder_synced: bool) -> io::Result<()> {
    for number in 1..=NUMBERS {
        let new = folder.join("number.new");
        let mut file = File::create(&new)?;
        file.write_all(&value(number))?;
        if file_synced {
            file.sync_all()?;
        }
        fs::rename(&new, folder.join("number"))?;
        if folder_synced {
            sync_folder(folder)?;
        }
        acknowledge(number);
    }
    Ok(())
}

fn value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(COPIES)
}

fn acknowledge(number: u64) {
    println!("{number} {}", monotonic_ns());
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
