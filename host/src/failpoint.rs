//! Named steps at which a test makes the process die or a call fail: `FAILPOINTS="log.before-sync=3*off->return(crash)"`
//! in the environment (the syntax of the crate `fail`). Debug builds only; in a release build nothing is left of them.

/// `failpoint!("room.step")`: the environment may make the process die here (`return` or `return(crash)`), as by
/// SIGKILL. `failpoint!("room.step", io)`: besides, `return(enospc)` and `return(eio)` make the enclosing function
/// return that [`std::io::Error`], converted by `Into`.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        ::fail::fail_point!($name, |_| $crate::failpoint::die());
    };
    ($name:literal, io) => {
        #[cfg(debug_assertions)]
        ::fail::fail_point!($name, |how: Option<String>| Err($crate::failpoint::error(how.as_deref()).into()));
    };
    // With a condition: only where it holds.
    ($name:literal, if $condition:expr) => {
        #[cfg(debug_assertions)]
        ::fail::fail_point!($name, $condition, |_| $crate::failpoint::die());
    };
}

/// `failpoint_hit!("room.step")`: whether the environment asks for the fault that stands behind this name (`return`).
/// For faults that are neither a death nor an I/O error. Debug builds only.
#[cfg(debug_assertions)]
#[macro_export]
macro_rules! failpoint_hit {
    ($name:literal) => {{
        fn hit() -> bool {
            ::fail::fail_point!($name, |_| true);
            false
        }
        hit()
    }};
}

/// Reads `FAILPOINTS`. Called once, when the process starts.
pub fn setup() {
    #[cfg(debug_assertions)]
    {
        // Dropping the scenario would disarm all of them.
        std::mem::forget(fail::FailScenario::setup());
    }
}

/// Ends the process at once: no destructor runs, nothing is flushed.
#[cfg(debug_assertions)]
pub fn die() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    eprintln!("failpoint: the process dies here");
    let _ = kill_process(getpid(), Signal::KILL);
    // The signal is on its way.
    loop {
        std::thread::park();
    }
}

/// The error a failpoint asks for; `crash` is none.
#[cfg(debug_assertions)]
pub fn error(how: Option<&str>) -> std::io::Error {
    match how {
        Some("enospc") => std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        Some("eio") => std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
        _ => die(),
    }
}
