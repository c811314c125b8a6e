//! Where the binary and the guests are. Says how to build what is missing.

use std::env;
use std::path::{Path, PathBuf};

/// The `raftlet` binary: `RAFTLET_BIN`, else the dev build of this workspace.
pub fn raftlet() -> PathBuf {
    let path = env::var_os("RAFTLET_BIN").map_or_else(|| target().join("debug/raftlet"), PathBuf::from);
    assert!(
        path.is_file(),
        "there is no raftlet binary at {}; build it with `cargo build -p raftlet`, or set RAFTLET_BIN",
        path.display()
    );
    path
}

/// A built guest, `name` without its ending: from `RAFTLET_GUESTS`, else from `target/guests` of this workspace.
pub fn guest(name: &str) -> PathBuf {
    let folder = env::var_os("RAFTLET_GUESTS").map_or_else(|| target().join("guests"), PathBuf::from);
    let path = folder.join(name).with_extension("wasm");
    assert!(
        path.is_file(),
        "there is no guest at {}; build the guests with `cargo xtask guests`, or set RAFTLET_GUESTS",
        path.display()
    );
    path
}

/// The recorder of file operations, to be loaded below a process: `RAFTLET_RECORDER`, else the dev build of this
/// workspace.
pub fn recorder() -> PathBuf {
    let built = || target().join("debug/libraftlet_recorder.so");
    let path = env::var_os("RAFTLET_RECORDER").map_or_else(built, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no recorder at {}; build it with `cargo build -p raftlet-recorder`, or set RAFTLET_RECORDER",
        path.display()
    );
    path
}

/// The workspace's target folder, also when `CARGO_TARGET_DIR` moved it.
fn target() -> PathBuf {
    // A test binary is target/debug/deps/NAME.
    let own = env::current_exe().expect("the test binary has a path");
    let target = own.ancestors().nth(3).map(Path::to_path_buf);
    target.expect("the test binary is in a target folder")
}
