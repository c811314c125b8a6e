//! Stands in for the C library's `clock_gettime` in a node that a test starts with `LD_PRELOAD`: the time of day is
//! shifted by what the file at `RAFTLET_TEST_CLOCK` says, and changes when the file does. Monotonic clocks are true.
//! Built by `build.rs`; the file is written by `cluster.rs`: nanoseconds, `i64`, in the machine's byte order.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

const CLOCK_REALTIME: c_int = 0;
const CLOCK_REALTIME_COARSE: c_int = 5;
const O_RDONLY: c_int = 0;
const O_CLOEXEC: c_int = 0o2_000_000;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;
const SECOND: i64 = 1_000_000_000;
#[cfg(target_arch = "x86_64")]
const SYS_CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const SYS_CLOCK_GETTIME: c_long = 113;

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn mmap(at: *mut c_void, bytes: usize, protection: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
}

/// What the test writes; null until the first call.
static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(std::ptr::null_mut());
static NONE: AtomicI64 = AtomicI64::new(0);

fn offset() -> i64 {
    let known = OFFSET.load(Ordering::Acquire);
    let known = if known.is_null() { map() } else { known };
    // SAFETY: it is NONE, or a page that is never unmapped, of a file that the test never shortens.
    unsafe { (*known).load(Ordering::Relaxed) }
}

/// Two threads may do it at once: then it is mapped twice, which does no harm.
fn map() -> *mut AtomicI64 {
    let none = (&raw const NONE).cast_mut();
    // SAFETY: C strings, and a mapping of eight bytes that is checked before it is used.
    let found = unsafe {
        let path = getenv(c"RAFTLET_TEST_CLOCK".as_ptr());
        let file = if path.is_null() { -1 } else { open(path, O_RDONLY | O_CLOEXEC) };
        if file < 0 { none } else { mmap(std::ptr::null_mut(), 8, PROT_READ, MAP_SHARED, file, 0).cast() }
    };
    let found = if found.addr() == usize::MAX { none } else { found };
    OFFSET.store(found, Ordering::Release);
    found
}

/// # Safety
/// As for clock_gettime(2): `time` is a timespec that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: the caller's promise. The kernel checks `clock`, and `time` is only read after it wrote it.
    unsafe {
        if syscall(SYS_CLOCK_GETTIME, c_long::from(clock), time) != 0 {
            return -1;
        }
        if clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE {
            let shifted = (*time).seconds * SECOND + (*time).nanoseconds + offset();
            (*time).seconds = shifted.div_euclid(SECOND);
            (*time).nanoseconds = shifted.rem_euclid(SECOND);
        }
    }
    0
}
