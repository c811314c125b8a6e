//! Where bugs are planted: a copy of the workspace, its builds, and what the tests say of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use super::{Bug, Check, copy};
use crate::guests::OUT_DIR;
use crate::proof;

/// A bug may make its test hang: that is caught, too.
const UNIT_SECONDS_MAX: u64 = 120;
const SYSTEM_SECONDS_MAX: u64 = 600;
/// What `timeout` ends with when the time is over.
const TIMED_OUT: i32 = 124;
/// The copy is built once for each bug: unoptimised that takes a quarter of the time. Dependencies are optimised all
/// the same: see the profiles in `Cargo.toml`.
const UNOPTIMISED: (&str, &str) = ("CARGO_PROFILE_DEV_OPT_LEVEL", "0");

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// Names the first test that failed.
    Failed(String),
    TimedOut,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Passed => f.write_str("passes"),
            Verdict::Failed(test) => write!(f, "fails: `{test}`"),
            Verdict::TimedOut => f.write_str("hangs"),
        }
    }
}

pub(super) struct Place {
    /// The workspace.
    root: PathBuf,
    folder: PathBuf,
    /// A copy of its source.
    source: PathBuf,
    /// Of the copy.
    target: PathBuf,
    cargo: String,
}

impl Place {
    /// Brings the copy up to date. Compiled crates of the registry are taken over, once: as hard links.
    pub(super) fn prepare(sh: &Shell, root: &Path) -> Result<Place> {
        let folder = proof::target(sh).join("planted");
        let place = Place {
            source: folder.join("source"),
            target: folder.join("target"),
            folder,
            root: root.to_owned(),
            cargo: std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        };
        let listed = cmd!(sh, "git ls-files -z --cached --others --exclude-standard").quiet().read()?;
        let files: BTreeSet<PathBuf> =
            listed.split('\0').filter(|f| !f.is_empty() && root.join(f).is_file()).map(PathBuf::from).collect();
        for file in &files {
            copy::copy_if_other(&root.join(file), &place.source.join(file))?;
        }
        copy::remove_others(&place.source, &place.source, &files)?;
        let ours = proof::target(sh).join("debug");
        if !place.target.exists() && ours.is_dir() {
            println!("taking over the compiled crates of the registry");
            copy::take_over(&ours, &place.target.join("debug"), &copy::packages(root, &files)?)?;
        }
        Ok(place)
    }

    /// The file for what is said while a bug is in.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension("log")
    }

    pub(super) fn plant(&self, bug: &Bug) -> Result<()> {
        for edit in &bug.edits {
            let path = self.source.join(&edit.file);
            let source = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
            fs::write(path, edit.apply(&source)?)?;
        }
        Ok(())
    }

    pub(super) fn restore(&self, bug: &Bug) -> Result<()> {
        bug.edits
            .iter()
            .try_for_each(|edit| copy::copy_if_other(&self.root.join(&edit.file), &self.source.join(&edit.file)))
    }

    /// The first check that catches the bug, and how.
    pub(super) fn try_out(&self, bug: &Bug) -> Result<Option<String>> {
        let log = self.log(&bug.name);
        for check in &bug.caught_by {
            let verdict = self.check(check, &log)?;
            if verdict != Verdict::Passed {
                return Ok(Some(format!("{check} {verdict}")));
            }
            println!("not caught by {check}; see {}", log.display());
        }
        Ok(None)
    }

    /// Builds what the check needs, and runs it.
    pub(super) fn check(&self, check: &Check, log: &Path) -> Result<Verdict> {
        let started = Instant::now();
        let mut command = match check {
            Check::Unit { filter } => {
                self.build_copy(&["test", "--no-run", "--lib"], log)?;
                let mut command = self.tests(&self.source, UNIT_SECONDS_MAX, &["--lib", "--", filter]);
                command.env("CARGO_TARGET_DIR", &self.target).env(UNOPTIMISED.0, UNOPTIMISED.1);
                command
            }
            Check::System { test, filter, variables } => {
                // With a test of some package: the features are those of the whole workspace, as in `cargo xtask test`.
                self.build_copy(&["build", "--bin", "raftlet", "--test", "arrows"], log)?;
                // The tests are the workspace's own: only the binary has the bug.
                let mut build = Command::new(&self.cargo);
                build.args(["test", "--locked", "--workspace", "--quiet", "--no-run", "--test", test]);
                built(build.current_dir(&self.root), log)?;
                if test == proof::RECORDED {
                    let mut build = Command::new(&self.cargo);
                    build.args(["build", "--locked", "--quiet", "--package", "raftlet-recorder"]);
                    built(build.current_dir(&self.root), log)?;
                }
                let args: Vec<&str> = ["--test", test, "--"].into_iter().chain(filter.as_deref()).collect();
                let mut command = self.tests(&self.root, SYSTEM_SECONDS_MAX, &args);
                command.env("RAFTLET_BIN", self.target.join("debug/raftlet"));
                command.envs(variables.iter().map(|(name, value)| (name, value)));
                command
            }
        };
        let build_seconds = started.elapsed().as_secs();
        let output = fs::File::create(log)?;
        let status = command.stdout(output.try_clone()?).stderr(output).status().context("`timeout` can't be run")?;
        let said = fs::read_to_string(log)?;
        let ran = said.lines().filter_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<u64>().ok());
        if ran.sum::<u64>() == 0 {
            bail!("`{check}` ran no test; see {}", log.display());
        }
        let verdict = match status.code() {
            Some(0) => Verdict::Passed,
            Some(TIMED_OUT) => Verdict::TimedOut,
            _ => Verdict::Failed(first_failure(&said).with_context(|| format!("no test failed: {}", log.display()))?),
        };
        println!("{check} {verdict} ({} s, {build_seconds} of them for building)", started.elapsed().as_secs());
        Ok(verdict)
    }

    /// Beforehand, so that the time of building isn't the tests'.
    fn build_copy(&self, args: &[&str], log: &Path) -> Result<()> {
        let mut build = Command::new(&self.cargo);
        build.args(args).args(["--locked", "--workspace", "--quiet"]).current_dir(&self.source);
        built(build.env("CARGO_TARGET_DIR", &self.target).env(UNOPTIMISED.0, UNOPTIMISED.1), log)
    }

    fn tests(&self, at: &Path, seconds_max: u64, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", &seconds_max.to_string(), &self.cargo, "test", "--locked", "--workspace"]);
        command.args(args).current_dir(at).stdin(Stdio::null()).env("RAFTLET_GUESTS", self.root.join(OUT_DIR));
        command
    }
}

/// What the compiler says is of interest only if it is an error: many bugs leave something unused.
fn built(build: &mut Command, log: &Path) -> Result<()> {
    let output = fs::File::create(log)?;
    if !build.stdout(output.try_clone()?).stderr(output).status()?.success() {
        bail!("it doesn't build; see {}", log.display());
    }
    Ok(())
}

/// `test NAME ... FAILED`; the lines of tests that run at the same time don't mix.
fn first_failure(said: &str) -> Option<String> {
    let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    // A test that ends the whole process leaves no such line.
    let aborted = || said.contains("process didn't exit successfully").then(|| "the process of the tests ended".into());
    said.lines().find_map(failed).or_else(aborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_test_that_failed_is_named() {
        let said = "running 2 tests\ntest a::b ... ok\ntest c::d ... FAILED\ntest e ... FAILED\n";
        assert_eq!(first_failure(said).as_deref(), Some("c::d"));
        assert_eq!(first_failure("error: no such test target"), None);
    }
}
