//! The `raftlet` binary: everything is in the library. Next: `cli/mod.rs`.

/// The system's allocator grows and shrinks a heap for each thread by system calls; a write passes many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    raftlet::failpoint::setup();
    raftlet::cli::main()
}
