//! Builds `clock/clock.rs` as a library of its own, so that a test finds it however it was started.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=clock/clock.rs");
    let library = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("libraftlet_clock.so");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    rustc.args([
        "--edition=2024",
        "--crate-type=cdylib",
        "--crate-name=raftlet_clock",
        "-Cpanic=abort",
        "-Copt-level=2",
    ]);
    rustc.arg("--target").arg(env::var_os("TARGET").expect("cargo sets it"));
    rustc.arg("-o").arg(&library).arg("clock/clock.rs");
    let status = rustc.status().expect("rustc runs");
    assert!(status.success(), "clock/clock.rs does not compile: {status}");
    println!("cargo:rustc-env=CLOCK_LIBRARY={}", library.display());
}
