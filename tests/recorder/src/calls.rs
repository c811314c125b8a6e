//! What the stood-in functions do: the system call itself, and before and after it the record, if it is about a
//! recorded file. Never goes through the C functions that `lib.rs` replaces. All functions: safe as the C functions are.

#![allow(clippy::missing_safety_doc)]

use libc::{c_char, c_int, c_long, c_void, iovec, mode_t, off_t, size_t, ssize_t, syscall};

use crate::format::*;
use crate::state::{Entry, descriptor_path, handle, record, recorded_path, set_handle};

pub unsafe fn open(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let call = || unsafe { syscall(libc::SYS_openat, dir, path, flags, mode) as c_int };
    let Some(name) = (unsafe { recorded_path(dir, path) }) else {
        let fd = call();
        set_handle(fd, 0);
        return fd;
    };
    let mut record = record();
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        record.add(&Entry { kind: UNSUPPORTED, path: b"a file without a name (O_TMPFILE)", ..Entry::default() });
    }
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let mut entry = Entry { kind: OPEN, path: &name, ..Entry::default() };
    if changes {
        entry.handle = record.next_handle();
        match unsafe { length(dir, path) } {
            None => entry.flags = CREATED,
            Some(bytes) if bytes > 0 && flags & libc::O_TRUNC != 0 => entry.flags = TRUNCATED,
            Some(_) => {}
        }
        record.add(&entry);
    }
    let fd = call();
    if changes {
        record.done(fd.into());
    } else if fd >= 0 && unsafe { is_file(fd) } {
        entry.handle = record.next_handle();
        record.add(&entry);
        record.done(fd.into());
    }
    set_handle(fd, entry.handle);
    fd
}

/// Of a file that is there.
unsafe fn length(dir: c_int, path: *const c_char) -> Option<u64> {
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    let found = unsafe { libc::fstatat(dir, path, &mut stat, 0) } == 0;
    found.then_some(stat.st_size as u64)
}

unsafe fn is_file(fd: c_int) -> bool {
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    (unsafe { libc::fstat(fd, &mut stat) }) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

pub unsafe fn close(fd: c_int) -> c_int {
    // Before: the number may be another thread's right after.
    set_handle(fd, 0);
    unsafe { syscall(libc::SYS_close, fd) as c_int }
}

/// A new descriptor of the same open file.
pub fn copied(from: c_int, to: c_long) -> c_int {
    set_handle(to as c_int, handle(from).unwrap_or(0));
    to as c_int
}

pub unsafe fn dup_to(from: c_int, to: c_int, flags: c_int) -> c_int {
    if from == to {
        return unsafe { syscall(libc::SYS_fcntl, from, libc::F_GETFD) }.min(0) as c_int + to;
    }
    copied(from, unsafe { syscall(libc::SYS_dup3, from, to, flags) })
}

pub unsafe fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let result = unsafe { syscall(libc::SYS_fcntl, fd, command, argument) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => copied(fd, result),
        _ => result as c_int,
    }
}

pub unsafe fn write(fd: c_int, data: *const c_void, bytes: size_t, at: Option<off_t>) -> ssize_t {
    let call = || unsafe {
        match at {
            None => syscall(libc::SYS_write, fd, data, bytes),
            Some(at) => syscall(libc::SYS_pwrite64, fd, data, bytes, at),
        }
    };
    let Some(handle) = handle(fd) else { return call() as ssize_t };
    let mut record = record();
    let offset = at.unwrap_or_else(|| unsafe { position(fd) });
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) };
    record.add(&Entry { kind: WRITE, handle, a: offset as u64, data, ..Entry::default() });
    record.done(call()) as ssize_t
}

pub unsafe fn write_pieces(fd: c_int, pieces: *const iovec, count: c_int, at: Option<off_t>) -> ssize_t {
    if handle(fd).is_none() {
        return unsafe {
            match at {
                None => syscall(libc::SYS_writev, fd, pieces, count) as ssize_t,
                // The offset's upper half is for machines of 32 bits.
                Some(at) => syscall(libc::SYS_pwritev, fd, pieces, count, at, 0) as ssize_t,
            }
        };
    }
    let pieces = unsafe { std::slice::from_raw_parts(pieces, count.max(0) as usize) };
    let slice = |piece: &iovec| unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) };
    let data: Vec<u8> = pieces.iter().filter(|p| p.iov_len > 0).flat_map(slice).copied().collect();
    unsafe { write(fd, data.as_ptr().cast(), data.len(), at) }
}

/// Where the next write goes.
unsafe fn position(fd: c_int) -> off_t {
    let appends = unsafe { syscall(libc::SYS_fcntl, fd, libc::F_GETFL, 0) } as c_int & libc::O_APPEND != 0;
    let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
    match appends && unsafe { libc::fstat(fd, &mut stat) } == 0 {
        true => stat.st_size,
        false => unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) },
    }
}

pub fn unless_recorded(to: c_int, call: impl FnOnce() -> c_long) -> ssize_t {
    if handle(to).is_none() {
        return call() as ssize_t;
    }
    // SAFETY: a pointer to this thread's own variable. The error of a file system that can't do it.
    unsafe { *libc::__errno_location() = libc::EINVAL };
    -1
}

pub unsafe fn mmap(at: *mut c_void, bytes: size_t, access: c_int, flags: c_int, fd: c_int, from: off_t) -> *mut c_void {
    let shared = flags & libc::MAP_TYPE != libc::MAP_PRIVATE;
    if fd >= 0
        && shared
        && access & libc::PROT_WRITE != 0
        && let Some(handle) = handle(fd)
    {
        record().add(&Entry { kind: MAPPED, handle, ..Entry::default() });
    }
    unsafe { syscall(libc::SYS_mmap, at, bytes, access, flags, fd, from) as *mut c_void }
}

pub unsafe fn set_len(fd: c_int, length: off_t) -> c_int {
    let call = || unsafe { syscall(libc::SYS_ftruncate, fd, length) };
    let Some(handle) = handle(fd) else { return call() as c_int };
    let mut record = record();
    record.add(&Entry { kind: SET_LEN, handle, a: length as u64, ..Entry::default() });
    record.done(call()) as c_int
}

pub unsafe fn set_len_of(path: *const c_char, length: off_t) -> c_int {
    let fd = unsafe { open(libc::AT_FDCWD, path, libc::O_WRONLY | libc::O_CLOEXEC, 0) };
    if fd < 0 {
        return fd;
    }
    let result = unsafe { set_len(fd, length) };
    unsafe { close(fd) };
    result
}

pub unsafe fn allocate(fd: c_int, mode: c_int, from: off_t, bytes: off_t) -> c_int {
    let call = || unsafe { syscall(libc::SYS_fallocate, fd, mode, from, bytes) };
    let Some(handle) = handle(fd) else { return call() as c_int };
    let mut record = record();
    match mode {
        0 => record.add(&Entry { kind: ALLOCATE, handle, a: (from + bytes) as u64, ..Entry::default() }),
        // Space alone changes nothing that can be read.
        libc::FALLOC_FL_KEEP_SIZE => return call() as c_int,
        _ => record.add(&Entry { kind: UNSUPPORTED, path: b"fallocate that changes content", ..Entry::default() }),
    }
    record.done(call()) as c_int
}

/// Of `posix_fallocate`, which returns its error.
pub fn error_of(result: c_int) -> c_int {
    // SAFETY: a pointer to this thread's own variable.
    if result < 0 { unsafe { *libc::__errno_location() } } else { 0 }
}

pub unsafe fn sync(fd: c_int, data_only: bool) -> c_int {
    let number = if data_only { libc::SYS_fdatasync } else { libc::SYS_fsync };
    let call = || unsafe { syscall(number, fd) as c_int };
    let (handle, path) = match handle(fd) {
        Some(handle) => (handle, Vec::new()),
        None => match descriptor_path(fd) {
            Some(path) => (0, path),
            None => return call(),
        },
    };
    let flags = if data_only { DATA_ONLY } else { 0 } | if handle == 0 { FOLDER } else { 0 };
    let token = {
        let mut record = record();
        let token = record.next_sync();
        record.add(&Entry { kind: SYNC_START, flags, handle, a: token, path: &path, ..Entry::default() });
        token
    };
    let result = call();
    if result == 0 {
        record().add(&Entry { kind: SYNC_END, flags, handle, a: token, ..Entry::default() });
    }
    result
}

pub unsafe fn rename(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: u32) -> c_int {
    let call = || unsafe { syscall(libc::SYS_renameat2, from_dir, from, to_dir, to, flags) };
    let names = unsafe { (recorded_path(from_dir, from), recorded_path(to_dir, to)) };
    let entry = match &names {
        (None, None) => return call() as c_int,
        (Some(from), Some(to)) if flags & !libc::RENAME_NOREPLACE == 0 => {
            Entry { kind: RENAME, path: from, data: to, ..Entry::default() }
        }
        _ => {
            Entry { kind: UNSUPPORTED, path: b"a rename out of the root, into it, or an exchange", ..Entry::default() }
        }
    };
    let mut record = record();
    record.add(&entry);
    record.done(call()) as c_int
}

pub unsafe fn unlink(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    let kind = if flags & libc::AT_REMOVEDIR != 0 { RMDIR } else { UNLINK };
    unsafe { named(kind, dir, path, || syscall(libc::SYS_unlinkat, dir, path, flags)) }
}

pub unsafe fn mkdir(dir: c_int, path: *const c_char, mode: mode_t) -> c_int {
    unsafe { named(MKDIR, dir, path, || syscall(libc::SYS_mkdirat, dir, path, mode)) }
}

unsafe fn named(kind: u8, dir: c_int, path: *const c_char, call: impl FnOnce() -> c_long) -> c_int {
    let Some(path) = (unsafe { recorded_path(dir, path) }) else { return call() as c_int };
    let mut record = record();
    record.add(&Entry { kind, path: &path, ..Entry::default() });
    record.done(call()) as c_int
}

pub unsafe fn link(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int {
    let call = || unsafe { syscall(libc::SYS_linkat, from_dir, from, to_dir, to, flags) };
    let names = unsafe { (recorded_path(from_dir, from), recorded_path(to_dir, to)) };
    let entry = match &names {
        (None, None) => return call() as c_int,
        (Some(from), Some(to)) => Entry { kind: LINK, path: from, data: to, ..Entry::default() },
        _ => Entry { kind: UNSUPPORTED, path: b"a link out of the root or into it", ..Entry::default() },
    };
    let mut record = record();
    record.add(&entry);
    record.done(call()) as c_int
}

pub unsafe fn symlink(target: *const c_char, dir: c_int, path: *const c_char) -> c_int {
    if unsafe { recorded_path(dir, path) }.is_some() {
        record().add(&Entry { kind: UNSUPPORTED, path: b"a symbolic link", ..Entry::default() });
    }
    unsafe { syscall(libc::SYS_symlinkat, target, dir, path) as c_int }
}
