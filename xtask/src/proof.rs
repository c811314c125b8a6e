//! `cargo xtask proof NAME`: the long forms of the proofs in `tests/`. This file knows their names, builds what they
//! run and hands them their length by environment; the proofs themselves are tests. The planted bugs have a file of
//! their own: `planted.rs`, next.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::guests::{self, Blessing, OUT_DIR};
use crate::planted;
use crate::toolchain::Choice;

pub const USAGE: &str = "\
cargo xtask proof --list         the proofs, and how long each takes
cargo xtask proof NAME [options] one of them, in its long form
    --minutes N                  of linearizability and soak
    --count N                    of power-cut (cuts), crash-loop (kills) and bit-rot (times each kind of file)
    --seed S                     repeats a run's choices
    --release                    the release build is put to the proof (not for failpoints and planted-bugs)
    --only NAME                  one failpoint, or some planted bugs: NAME,NAME,...";

/// What gives a proof its length.
#[derive(Debug, Clone, Copy)]
enum Length {
    /// Whole minutes, handed on in seconds.
    Minutes(&'static str, u64),
    Count(&'static str, u64),
    /// All there is; the variable says so.
    All(&'static str, u64),
}

struct Proof {
    name: &'static str,
    /// The files in `tests/tests/`.
    tests: &'static [&'static str],
    length: Length,
    about: &'static str,
}

const PROOFS: [Proof; 6] = [
    Proof {
        name: "linearizability",
        tests: &["linearizability"],
        length: Length::Minutes("RAFTLET_LIN_SECONDS", 30),
        about: "histories of concurrent clients under faults of processes and links, checked",
    },
    Proof {
        name: "power-cut",
        tests: &["power_cut"],
        length: Length::Count("RAFTLET_CUTS", 1_000),
        about: "recorded writes cut at any point; a node is started on what a disk may hold then",
    },
    Proof {
        name: "crash-loop",
        tests: &["crash_loop"],
        length: Length::Count("RAFTLET_KILLS", 500),
        about: "SIGKILL of one, two and all nodes under load, with verification after each round",
    },
    Proof {
        name: "failpoints",
        tests: &["failpoints", "failpoints_apart"],
        length: Length::All("RAFTLET_FAILPOINT_ERRORS", 2),
        about: "a crash, and where possible an I/O error, at each named step of the host",
    },
    Proof {
        name: "bit-rot",
        tests: &["bit_rot"],
        length: Length::Count("RAFTLET_ROTS", 10),
        about: "flipped bytes in each kind of file of a stopped follower and leader",
    },
    Proof {
        name: "soak",
        tests: &["soak"],
        length: Length::Minutes("RAFTLET_SOAK_SECONDS", 60),
        about: "full load with a rolling restart; memory, descriptors, disk and latency stay flat",
    },
];
/// It loads `tests/recorder` below its nodes, which no test's build makes.
pub const RECORDED: &str = "power_cut";
const PLANTED: &str = "planted-bugs";
const PLANTED_ABOUT: &str = "each bug of tests/planted/bugs.toml in a copy of the source, and the test that catches it";

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    minutes: Option<u64>,
    count: Option<u64>,
    seed: Option<u64>,
    release: bool,
    only: Option<String>,
}

pub fn run(sh: &Shell, args: &[&str]) -> Result<()> {
    let (name, options) = match args {
        ["--list"] => {
            list();
            return Ok(());
        }
        [name, rest @ ..] if !name.starts_with('-') => (*name, Options::parse(rest)?),
        _ => bail!("which proof?\n\n{USAGE}"),
    };
    if name == PLANTED {
        options.only_these(&["only"])?;
        require_guests(sh)?;
        return planted::run(sh, options.only.as_deref());
    }
    let proof = PROOFS.iter().find(|p| p.name == name);
    let proof = proof.with_context(|| format!("there is no proof {name}; `cargo xtask proof --list` has all"))?;
    let variables = variables(proof, &options)?;
    let started = Instant::now();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let binary = binary(sh, &cargo, options.release)?;
    require_guests(sh)?;
    if proof.tests.contains(&RECORDED) {
        cmd!(sh, "{cargo} build --locked --package raftlet-recorder").run()?;
    }
    println!("{} on {}", proof.name, binary.display());
    let tests = proof.tests.iter().flat_map(|test| ["--test", test]);
    // The whole workspace is named for the features of its dependencies only: else they would be built anew.
    let mut command = cmd!(sh, "{cargo} test --locked --workspace {tests...} -- --nocapture --test-threads 2")
        .env("RAFTLET_BIN", binary)
        .env("RAFTLET_GUESTS", sh.current_dir().join(OUT_DIR));
    for (name, value) in variables {
        println!("{name}={value}");
        command = command.env(name, value);
    }
    command.run().with_context(|| format!("the proof {name} FAILED after {} s", started.elapsed().as_secs()))?;
    println!("{name}: passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn list() {
    for Proof { name, length, about, .. } in &PROOFS {
        let length = match length {
            Length::Minutes(_, default) => format!("--minutes {default}"),
            Length::Count(_, default) => format!("--count {default}"),
            Length::All(..) => String::new(),
        };
        println!("{name:16} {length:14} {about}");
    }
    println!("{PLANTED:16} {:14} {PLANTED_ABOUT}", "");
}

/// The environment of the test.
fn variables(proof: &Proof, options: &Options) -> Result<Vec<(&'static str, String)>> {
    let (allowed, mut variables) = match proof.length {
        Length::Minutes(name, default) => {
            ("minutes", vec![(name, (options.minutes.unwrap_or(default) * 60).to_string())])
        }
        Length::Count(name, default) => ("count", vec![(name, options.count.unwrap_or(default).to_string())]),
        Length::All(name, all) => ("only", vec![(name, all.to_string())]),
    };
    match proof.length {
        Length::All(..) => options.only_these(&["seed", "only"])?,
        _ => options.only_these(&[allowed, "seed", "release"])?,
    }
    variables.extend(options.seed.map(|seed| ("RAFTLET_SEED", seed.to_string())));
    variables.extend(options.only.clone().map(|name| ("RAFTLET_FAILPOINT", name)));
    Ok(variables)
}

/// The binary under test: `RAFTLET_BIN` if it is set, else a fresh build.
fn binary(sh: &Shell, cargo: &str, release: bool) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("RAFTLET_BIN") {
        return Ok(given.into());
    }
    if release {
        cmd!(sh, "{cargo} build --locked --release --package raftlet").run()?;
        return Ok(target(sh).join("release/raftlet"));
    }
    // With a test of some package, so that the features are those of `cargo xtask test`.
    cmd!(sh, "{cargo} build --locked --workspace --bin raftlet --test arrows").run()?;
    Ok(target(sh).join("debug/raftlet"))
}

/// The workspace's target folder.
pub fn target(sh: &Shell) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| sh.current_dir().join("target"), PathBuf::from)
}

/// Some tests host other modules than the built-in one.
fn require_guests(sh: &Shell) -> Result<()> {
    if sh.path_exists(sh.current_dir().join(OUT_DIR).join("hostile.wasm")) {
        return Ok(());
    }
    guests::build(sh, &guests::Options { blessing: Blessing::Leave, compiler: Choice::Any }).map(drop)
}

impl Options {
    fn parse(mut args: &[&str]) -> Result<Options> {
        let mut options = Options::default();
        while let [flag, rest @ ..] = args {
            args = rest;
            if *flag == "--release" {
                options.release = true;
                continue;
            }
            let value = rest.first().with_context(|| format!("{flag} needs a value\n\n{USAGE}"));
            let number = || -> Result<u64> {
                let text = value.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
                text.parse().with_context(|| format!("{flag} needs a whole number, not {text}"))
            };
            match *flag {
                "--minutes" => options.minutes = Some(number()?),
                "--count" => options.count = Some(number()?),
                "--seed" => options.seed = Some(number()?),
                "--only" => options.only = Some(value?.to_string()),
                other => bail!("unexpected option {other}\n\n{USAGE}"),
            }
            args = &rest[1..];
        }
        Ok(options)
    }

    /// An error if another option than these was given.
    fn only_these(&self, allowed: &[&str]) -> Result<()> {
        let given = [
            ("minutes", self.minutes.is_some()),
            ("count", self.count.is_some()),
            ("seed", self.seed.is_some()),
            ("release", self.release),
            ("only", self.only.is_some()),
        ];
        match given.iter().find(|(name, given)| *given && !allowed.contains(name)) {
            Some((name, _)) => bail!("--{name} means nothing to this proof\n\n{USAGE}"),
            None => Ok(()),
        }
    }
}

/// Whether the system tests have one of this name: a file, or a folder with its `main.rs`.
#[cfg(test)]
pub fn has_test(root: &std::path::Path, name: &str) -> bool {
    let tests = root.join("tests/tests");
    tests.join(name).with_extension("rs").is_file() || tests.join(name).join("main.rs").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn options_are_read_and_nonsense_is_refused() {
        let options = Options::parse(&["--count", "7", "--seed", "9", "--release"]).unwrap();
        assert_eq!(options, Options { count: Some(7), seed: Some(9), release: true, ..Options::default() });
        for wrong in [&["--count"][..], &["--count", "x"], &["--coun", "1"], &["7"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
        let crash_loop = PROOFS.iter().find(|p| p.name == "crash-loop").unwrap();
        let variables = variables(crash_loop, &options).unwrap();
        assert_eq!(variables, [("RAFTLET_KILLS", "7".to_string()), ("RAFTLET_SEED", "9".to_string())]);
        let minutes = Options { minutes: Some(1), ..Options::default() };
        assert!(super::variables(crash_loop, &minutes).is_err(), "minutes mean nothing to it");
    }

    #[test]
    fn every_proof_has_its_test() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for test in PROOFS.iter().flat_map(|proof| proof.tests) {
            assert!(has_test(root, test), "there is no {test} in tests/tests");
        }
    }
}
