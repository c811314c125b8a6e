//! Which compiler builds the guests. Two ways lead to one: rustup's target for the pinned toolchain, and Debian's
//! rustc with its sources of the standard library. Finds them, or installs one; compiles nothing itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

pub const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "wasm-ld-22";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "lld-22"];
const DOWNLOAD_TIME_MAX: Duration = Duration::from_secs(180);

/// What the command line allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Any,
    Rustup,
    Debian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The pinned toolchain with its prebuilt standard library.
    Rustup,
    /// `/usr/bin/rustc`; cargo builds the standard library from source.
    Debian,
}

/// A compiler that can build guests.
pub struct Toolchain {
    kind: Kind,
    /// Says all that the built bytes depend on beside the sources.
    pub identity: String,
    /// Folders that must not appear in the built files.
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Finds one; if there is none and anything may be used, installs one.
    pub fn get(sh: &Shell, choice: Choice) -> Result<Self> {
        if let Some(found) = find(sh, choice)? {
            return Ok(found);
        }
        if choice == Choice::Any {
            println!("no compiler for {TARGET} yet; installing one");
            let rustup = install_with_rustup(sh);
            if let Some(found) = find(sh, choice)? {
                return Ok(found);
            }
            let debian = install_with_apt(sh, &DEBIAN_PACKAGES);
            if let Some(found) = find(sh, choice)? {
                return Ok(found);
            }
            let why = |result: Result<()>| result.err().map_or("it is still missing".into(), |e| format!("{e:#}"));
            eprintln!("rustup: {}\napt-get: {}", why(rustup), why(debian));
        }
        bail!(
            "no compiler for {TARGET}. One of these gives you one:\n  \
             rustup target add {TARGET}\n  \
             apt-get install {}   (Debian, as root)",
            DEBIAN_PACKAGES.join(" ")
        )
    }

    /// Arguments for `cargo build` beside the usual ones.
    pub fn cargo_args(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Rustup => &[],
            Kind::Debian => &["-Zbuild-std=std,panic_abort"],
        }
    }

    /// Environment for `cargo build`.
    pub fn cargo_env(&self) -> &'static [(&'static str, &'static str)] {
        match self.kind {
            Kind::Rustup => &[],
            Kind::Debian => &[
                ("RUSTC", DEBIAN_RUSTC),
                ("RUSTC_BOOTSTRAP", "1"),
                ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER),
            ],
        }
    }

    /// Names the target folder: two compilers sharing one would build everything anew in turn.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Rustup => "rustup",
            Kind::Debian => "debian",
        }
    }
}

fn find(sh: &Shell, choice: Choice) -> Result<Option<Toolchain>> {
    if choice != Choice::Debian {
        let sysroot = sysroot(sh, "rustc")?;
        if sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
            let identity = version(sh, "rustc", "-V")?;
            return Ok(Some(Toolchain { kind: Kind::Rustup, identity, sysroot }));
        }
    }
    let works = |program: &str| cmd!(sh, "{program} --version").quiet().ignore_stdout().ignore_stderr().run().is_ok();
    if choice != Choice::Rustup && works(DEBIAN_RUSTC) && works(DEBIAN_LINKER) {
        let sysroot = sysroot(sh, DEBIAN_RUSTC)?;
        if sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file() {
            let (rustc, linker) = (version(sh, DEBIAN_RUSTC, "-V")?, version(sh, DEBIAN_LINKER, "--version")?);
            let identity = format!("{rustc}; std from source; {linker}");
            return Ok(Some(Toolchain { kind: Kind::Debian, identity, sysroot }));
        }
    }
    Ok(None)
}

fn install_with_rustup(sh: &Shell) -> Result<()> {
    let path = cmd!(sh, "rustup which rustc").quiet().ignore_stderr().read().context("rustup is not installed")?;
    println!("rustup target add {TARGET}   ({path})");
    // Not through the shell library: a download that hangs must be given up.
    let mut child = std::process::Command::new("rustup").args(["target", "add", TARGET]).spawn()?;
    let started = Instant::now();
    while started.elapsed() < DOWNLOAD_TIME_MAX {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { bail!("rustup target add: {status}") };
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill()?;
    child.wait()?;
    bail!("rustup target add: given up after {} s", DOWNLOAD_TIME_MAX.as_secs())
}

/// Finds a program, or installs Debian's package with it.
pub fn need_program(sh: &Shell, program: &str, package: &str) -> Result<()> {
    let works = || cmd!(sh, "{program} --version").quiet().ignore_stdout().ignore_stderr().run().is_ok();
    if works() {
        return Ok(());
    }
    println!("no {program} yet; installing it");
    let installed = install_with_apt(sh, &[package]);
    if works() {
        return Ok(());
    }
    let why = installed.err().map_or("it is still missing".into(), |error| format!("{error:#}"));
    bail!("{program} can't be run ({why}). On Debian, as root: apt-get install {package}")
}

fn install_with_apt(sh: &Shell, packages: &[&str]) -> Result<()> {
    if !sh.path_exists("/etc/debian_version") {
        bail!("this is not Debian");
    }
    if cmd!(sh, "id -u").quiet().read()? != "0" {
        bail!("only root may install packages");
    }
    let _env = sh.push_env("DEBIAN_FRONTEND", "noninteractive");
    cmd!(sh, "apt-get update -q").run()?;
    cmd!(sh, "apt-get install -q -y --no-install-recommends {packages...}").run()?;
    Ok(())
}

fn sysroot(sh: &Shell, rustc: &str) -> Result<PathBuf> {
    let path = cmd!(sh, "{rustc} --print sysroot").quiet().read().with_context(|| format!("{rustc} can't be run"))?;
    Ok(path.into())
}

fn version(sh: &Shell, program: &str, flag: &str) -> Result<String> {
    Ok(cmd!(sh, "{program} {flag}").quiet().read()?.trim().to_string())
}
