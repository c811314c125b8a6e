//! What the recorder knows: its settings, which descriptor is which open file, and where the record goes. Owns the
//! lock that gives the record its order. `format.rs` has the bytes.

use std::ffi::CStr;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libc::{c_char, c_int};

use crate::format::{DONE, HEADER_BYTES, Header};

/// A recorded file may not have a higher descriptor.
const DESCRIPTORS: usize = 1 << 16;
/// Of each descriptor: its handle, 0 if it is none of ours. Folders have none: the C library closes them by itself.
static HANDLES: [AtomicU32; DESCRIPTORS] = [const { AtomicU32::new(0) }; DESCRIPTORS];
static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
static RECORD: Mutex<Record> = Mutex::new(Record { out: -1, handles: 0, syncs: 0, buffer: Vec::new() });

struct Settings {
    /// Without a slash at its end.
    root: Vec<u8>,
    out: Vec<u8>,
    /// A child that was forked is not recorded: its descriptors are its own.
    pid: c_int,
}

/// The record, held while a change is made.
pub struct Record {
    out: c_int,
    handles: u32,
    syncs: u64,
    buffer: Vec<u8>,
}

/// The fields of a record that are not empty.
#[derive(Default)]
pub struct Entry<'a> {
    pub kind: u8,
    pub flags: u8,
    pub handle: u32,
    pub a: u64,
    pub b: u64,
    pub path: &'a [u8],
    pub data: &'a [u8],
}

fn settings() -> Option<&'static Settings> {
    let read = || {
        let variable = |name| Some(std::env::var_os(name)?.into_vec());
        let (root, out) = (variable("RAFTLET_RECORD_ROOT")?, variable("RAFTLET_RECORD_OUT")?);
        // SAFETY: no arguments, no failure.
        Some(Settings { root, out, pid: unsafe { libc::getpid() } })
    };
    let settings = SETTINGS.get_or_init(read).as_ref()?;
    // SAFETY: as above.
    (settings.pid == unsafe { libc::getpid() }).then_some(settings)
}

/// The handle of a descriptor, if it is a recorded file.
pub fn handle(fd: c_int) -> Option<u32> {
    let handle = HANDLES.get(usize::try_from(fd).ok()?)?.load(Relaxed);
    (handle != 0 && settings().is_some()).then_some(handle)
}

/// Says what a descriptor is from now on.
pub fn set_handle(fd: c_int, handle: u32) {
    match usize::try_from(fd).ok().and_then(|fd| HANDLES.get(fd)) {
        Some(place) => place.store(handle, Relaxed),
        None => assert!(handle == 0 || fd < 0, "descriptor {fd} is too high to be recorded"),
    }
}

/// The absolute path, without `.` and `..`, if it is the root or below it.
///
/// # Safety
/// `path` is a C string.
pub unsafe fn recorded_path(dir: c_int, path: *const c_char) -> Option<Vec<u8>> {
    let settings = settings()?;
    // SAFETY: the caller's promise.
    let given = unsafe { CStr::from_ptr(path) }.to_bytes();
    let full = match given.first() {
        Some(b'/') => given.to_vec(),
        _ => [&folder(dir)?, given].join(&b'/'),
    };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in full.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let path = [b"/", parts.join(&b'/').as_slice()].concat();
    below(&path, &settings.root).then_some(path)
}

/// The path of a descriptor, if it is the root or below it.
pub fn descriptor_path(fd: c_int) -> Option<Vec<u8>> {
    let settings = settings()?;
    folder(fd).filter(|path| below(path, &settings.root))
}

fn below(path: &[u8], root: &[u8]) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The path of a folder's descriptor, or the working folder.
fn folder(dir: c_int) -> Option<Vec<u8>> {
    let link = match dir {
        libc::AT_FDCWD => "/proc/self/cwd\0".to_owned(),
        fd => format!("/proc/self/fd/{fd}\0"),
    };
    let mut buffer = vec![0u8; 4096];
    // SAFETY: a C string, and a buffer of that many bytes.
    let bytes = unsafe { libc::readlink(link.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(usize::try_from(bytes).ok()?);
    Some(buffer)
}

/// Takes the lock; the first time it opens the file for the record.
pub fn record() -> MutexGuard<'static, Record> {
    let mut record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    if record.out < 0 {
        let mut path = settings().expect("only who has settings records").out.clone();
        path.push(0);
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: a C string. Not through `open`, which is ours.
        let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o644) };
        assert!(fd >= 0, "the record can't be opened");
        record.out = fd as c_int;
    }
    record
}

impl Record {
    pub fn next_handle(&mut self) -> u32 {
        self.handles += 1;
        self.handles
    }

    pub fn next_sync(&mut self) -> u64 {
        self.syncs += 1;
        self.syncs
    }

    /// Says what the change before has led to; returns it.
    pub fn done(&mut self, result: i64) -> i64 {
        // SAFETY: a pointer to this thread's own variable.
        let error = unsafe { *libc::__errno_location() };
        self.add(&Entry { kind: DONE, a: result as u64, ..Entry::default() });
        // SAFETY: as above. Whoever called sees the error of the change.
        unsafe { *libc::__errno_location() = error };
        result
    }

    pub fn add(&mut self, entry: &Entry<'_>) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a pointer to a local variable.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let bytes = HEADER_BYTES + entry.path.len() + entry.data.len();
        let header = Header {
            bytes: bytes.try_into().expect("a write is under 4 GiB"),
            kind: entry.kind,
            flags: entry.flags,
            path_bytes: entry.path.len().try_into().expect("a path is under 64 KiB"),
            time_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
            handle: entry.handle.into(),
            a: entry.a,
            b: entry.b,
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(&header.to_bytes());
        self.buffer.extend_from_slice(entry.path);
        self.buffer.extend_from_slice(entry.data);
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            // SAFETY: the slice's own memory. Not through `write`, which is ours.
            let written = unsafe { libc::syscall(libc::SYS_write, self.out, rest.as_ptr(), rest.len()) };
            match usize::try_from(written) {
                Ok(written) => rest = &rest[written..],
                // SAFETY: a pointer to this thread's own variable.
                Err(_) if unsafe { *libc::__errno_location() } == libc::EINTR => {}
                Err(_) => panic!("the record can't be written"),
            }
        }
    }
}
