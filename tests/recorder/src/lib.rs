//! A recorder for power-cut tests: loaded below a process with `LD_PRELOAD`, it stands in for the C functions that
//! change files and writes down, in order, what happens below `RAFTLET_RECORD_ROOT`. The record goes to
//! `RAFTLET_RECORD_OUT`, which must be outside. `raftlet_tests::disk_replay` builds from it what a disk may hold.
//!
//! Each change is written down and done under one lock, so that the record has the order of the effects. A sync is
//! written down when it begins and again when it has returned, with no lock between: only what was written before it
//! began is certain to be durable. `sync_file_range` is not written down: it promises nothing.
//!
//! It does not see system calls that go past the C library (rustix does that): whoever uses a record compares what it
//! leads to with the real folder. This file has the functions; `calls.rs` does the calls, `state.rs` is next.

#![cfg(target_os = "linux")]

mod calls;
mod format;
mod state;

use libc::{c_char, c_int, c_void, iovec, mode_t, off_t, size_t, ssize_t};

use calls as c;

macro_rules! stand_in {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $out:ty { $body:expr })*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the C function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $out {
            // SAFETY: the caller keeps the promises of the C function, and the call below asks for no others.
            unsafe { $body }
        }
    )*};
}

// The C functions with a variable argument get it in the register of a third one on x86-64 and AArch64.
stand_in! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { c::open(libc::AT_FDCWD, path, flags, mode) }
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { c::open(libc::AT_FDCWD, path, flags, mode) }
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int { c::open(dir, path, flags, mode) }
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int { c::open(dir, path, flags, mode) }
    creat(path: *const c_char, mode: mode_t) -> c_int {
        c::open(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
    }
    creat64(path: *const c_char, mode: mode_t) -> c_int {
        c::open(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
    }
    close(fd: c_int) -> c_int { c::close(fd) }
    dup(fd: c_int) -> c_int { c::copied(fd, libc::syscall(libc::SYS_dup, fd)) }
    dup2(from: c_int, to: c_int) -> c_int { c::dup_to(from, to, 0) }
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int { c::dup_to(from, to, flags) }
    fcntl(fd: c_int, command: c_int, argument: usize) -> c_int { c::fcntl(fd, command, argument) }
    fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int { c::fcntl(fd, command, argument) }

    write(fd: c_int, data: *const c_void, bytes: size_t) -> ssize_t { c::write(fd, data, bytes, None) }
    pwrite(fd: c_int, data: *const c_void, bytes: size_t, at: off_t) -> ssize_t { c::write(fd, data, bytes, Some(at)) }
    pwrite64(fd: c_int, data: *const c_void, bytes: size_t, at: off_t) -> ssize_t {
        c::write(fd, data, bytes, Some(at))
    }
    writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t { c::write_pieces(fd, pieces, count, None) }
    pwritev(fd: c_int, pieces: *const iovec, count: c_int, at: off_t) -> ssize_t {
        c::write_pieces(fd, pieces, count, Some(at))
    }
    pwritev64(fd: c_int, pieces: *const iovec, count: c_int, at: off_t) -> ssize_t {
        c::write_pieces(fd, pieces, count, Some(at))
    }
    /// Refused for recorded files: every caller has a way that writes.
    copy_file_range(from: c_int, at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: u32) -> ssize_t {
        c::unless_recorded(to, || libc::syscall(libc::SYS_copy_file_range, from, at, to, to_at, bytes, flags))
    }
    /// As `copy_file_range`.
    sendfile(to: c_int, from: c_int, at: *mut off_t, bytes: size_t) -> ssize_t {
        c::unless_recorded(to, || libc::syscall(libc::SYS_sendfile, to, from, at, bytes))
    }
    /// As `copy_file_range`.
    sendfile64(to: c_int, from: c_int, at: *mut off_t, bytes: size_t) -> ssize_t {
        c::unless_recorded(to, || libc::syscall(libc::SYS_sendfile, to, from, at, bytes))
    }
    /// As `copy_file_range`.
    splice(from: c_int, at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: u32) -> ssize_t {
        c::unless_recorded(to, || libc::syscall(libc::SYS_splice, from, at, to, to_at, bytes, flags))
    }
    mmap(at: *mut c_void, bytes: size_t, access: c_int, flags: c_int, fd: c_int, from: off_t) -> *mut c_void {
        c::mmap(at, bytes, access, flags, fd, from)
    }
    mmap64(at: *mut c_void, bytes: size_t, access: c_int, flags: c_int, fd: c_int, from: off_t) -> *mut c_void {
        c::mmap(at, bytes, access, flags, fd, from)
    }

    ftruncate(fd: c_int, length: off_t) -> c_int { c::set_len(fd, length) }
    ftruncate64(fd: c_int, length: off_t) -> c_int { c::set_len(fd, length) }
    truncate(path: *const c_char, length: off_t) -> c_int { c::set_len_of(path, length) }
    truncate64(path: *const c_char, length: off_t) -> c_int { c::set_len_of(path, length) }
    fallocate(fd: c_int, mode: c_int, from: off_t, bytes: off_t) -> c_int { c::allocate(fd, mode, from, bytes) }
    fallocate64(fd: c_int, mode: c_int, from: off_t, bytes: off_t) -> c_int { c::allocate(fd, mode, from, bytes) }
    posix_fallocate(fd: c_int, from: off_t, bytes: off_t) -> c_int { c::error_of(c::allocate(fd, 0, from, bytes)) }
    posix_fallocate64(fd: c_int, from: off_t, bytes: off_t) -> c_int { c::error_of(c::allocate(fd, 0, from, bytes)) }

    fsync(fd: c_int) -> c_int { c::sync(fd, false) }
    fdatasync(fd: c_int) -> c_int { c::sync(fd, true) }

    rename(from: *const c_char, to: *const c_char) -> c_int {
        c::rename(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0)
    }
    renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int {
        c::rename(from_dir, from, to_dir, to, 0)
    }
    renameat2(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: u32) -> c_int {
        c::rename(from_dir, from, to_dir, to, flags)
    }
    unlink(path: *const c_char) -> c_int { c::unlink(libc::AT_FDCWD, path, 0) }
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int { c::unlink(dir, path, flags) }
    rmdir(path: *const c_char) -> c_int { c::unlink(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
    mkdir(path: *const c_char, mode: mode_t) -> c_int { c::mkdir(libc::AT_FDCWD, path, mode) }
    mkdirat(dir: c_int, path: *const c_char, mode: mode_t) -> c_int { c::mkdir(dir, path, mode) }
    link(from: *const c_char, to: *const c_char) -> c_int { c::link(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
    linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int {
        c::link(from_dir, from, to_dir, to, flags)
    }
    symlink(target: *const c_char, path: *const c_char) -> c_int { c::symlink(target, libc::AT_FDCWD, path) }
    symlinkat(target: *const c_char, dir: c_int, path: *const c_char) -> c_int { c::symlink(target, dir, path) }
}
