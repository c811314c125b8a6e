//! `cargo xtask test`: everything that must hold before a change lands, in the order in which it fails fastest.

use std::time::Instant;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::guests::{self, Blessing, OUT_DIR, Options};
use crate::instructions;
use crate::toolchain::Choice;

pub fn test(sh: &Shell) -> Result<()> {
    let started = Instant::now();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let _env = sh.push_env("RAFTLET_GUESTS", sh.current_dir().join(OUT_DIR));
    step("format", || Ok(cmd!(sh, "{cargo} fmt --all --check").run()?))?;
    let options = Options { blessing: Blessing::Check, compiler: Choice::Any };
    step("guests", || guests::build(sh, &options).map(drop))?;
    step("lints", || Ok(cmd!(sh, "{cargo} clippy --locked --workspace --all-targets -- -D warnings").run()?))?;
    // The system tests run the binary. All targets in one go: alone, it would be built with other features of its
    // dependencies, and wasmtime a second time.
    step("build", || Ok(cmd!(sh, "{cargo} build --locked --workspace --all-targets").run()?))?;
    step("tests", || Ok(cmd!(sh, "{cargo} test --locked --workspace").run()?))?;
    step("instructions", || instructions::run(sh, false))?;
    println!("\nall passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n=== {name}");
    let started = Instant::now();
    let result = run();
    println!("=== {name}: {} in {} s", if result.is_ok() { "passed" } else { "FAILED" }, started.elapsed().as_secs());
    result.with_context(|| format!("step `{name}` failed"))
}
