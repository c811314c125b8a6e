//! Planted bugs: each entry of `tests/planted/bugs.toml` is put into a copy of the source, which is built, and the
//! tests that must catch it are run. Works in `target/planted` alone: the workspace's own files and builds are only
//! read. First the tests are run on the copy as it is: a test that fails anyhow catches nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::guests::OUT_DIR;
use crate::proof;

mod copy;

const LIST: &str = "tests/planted/bugs.toml";
/// A bug may make its test hang: that is caught, too.
const TEST_SECONDS_MAX: u64 = 600;
/// What `timeout` ends with when the time is over.
const TIMED_OUT: i32 = 124;

/// One entry of the list.
#[derive(Debug)]
struct Bug {
    name: String,
    /// What would happen to users.
    harm: String,
    edits: Vec<Edit>,
    /// In this order, until one fails.
    caught_by: Vec<Check>,
}

/// The text `find`, which is in the file exactly once, becomes `replace`.
#[derive(Debug)]
struct Edit {
    file: String,
    find: String,
    replace: String,
}

/// A test that must fail.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    /// `unit FILTER`: of the libraries.
    Unit { filter: String },
    /// `system FILE [FILTER] [VARIABLE=VALUE ...]`: in `tests/tests/`, with the binary of the copy.
    System { test: String, filter: Option<String>, variables: Vec<(String, String)> },
}

pub fn run(sh: &Shell, only: Option<&str>) -> Result<()> {
    let root = sh.current_dir();
    let mut bugs = read(&root)?;
    if let Some(only) = only {
        let names: Vec<&str> = only.split(',').collect();
        if let Some(unknown) = names.iter().find(|name| !bugs.iter().any(|bug| bug.name == **name)) {
            bail!("{LIST} has no bug {unknown}");
        }
        bugs.retain(|bug| names.contains(&bug.name.as_str()));
    }
    let place = Place::prepare(sh, &root)?;
    let checks: BTreeSet<Check> = bugs.iter().flat_map(|bug| bug.caught_by.iter().cloned()).collect();
    println!("=== {} checks on the source as it is", checks.len());
    place.build(sh)?;
    for check in checks {
        let log = place.folder.join("clean.log");
        let verdict = place.check(&check, &log)?;
        if verdict != Verdict::Passed {
            bail!("`{check}` {verdict} without any bug: it can't show one. See {}", log.display());
        }
    }
    let mut table = Vec::new();
    for bug in &bugs {
        println!("\n=== {}: {}", bug.name, bug.harm);
        let started = Instant::now();
        place.plant(bug)?;
        let caught = place.try_out(sh, bug);
        place.restore(bug)?;
        let caught = caught?;
        let by = caught.clone().unwrap_or_else(|| "NOT caught".into());
        println!("=== {}: {by} ({} s)", bug.name, started.elapsed().as_secs());
        table.push((bug.name.as_str(), by, started.elapsed().as_secs(), caught.is_some()));
    }
    println!();
    for (name, by, seconds, _) in &table {
        println!("{name:32} {seconds:4} s  {by}");
    }
    let missed = table.iter().filter(|(.., caught)| !caught).count();
    println!("{} of {} planted bugs were caught", table.len() - missed, table.len());
    if missed > 0 { bail!("{missed} planted bugs were not caught") } else { Ok(()) }
}

fn read(root: &Path) -> Result<Vec<Bug>> {
    let text = fs::read_to_string(root.join(LIST)).with_context(|| format!("{LIST} can't be read"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{LIST} is no TOML"))?;
    let bugs = table.get("bug").and_then(toml::Value::as_array).with_context(|| format!("{LIST} has no [[bug]]"))?;
    bugs.iter().map(Bug::read).collect()
}

fn text(value: &toml::Value, key: &str) -> Result<String> {
    let found = value.get(key).and_then(toml::Value::as_str);
    Ok(found.with_context(|| format!("`{key}` is missing in {LIST}: {value:?}"))?.to_owned())
}

impl Bug {
    fn read(value: &toml::Value) -> Result<Bug> {
        let name = text(value, "name")?;
        let list = |key: &str| value.get(key).and_then(toml::Value::as_array);
        let checks = list("caught_by").with_context(|| format!("{name}: `caught_by` is missing"))?;
        let checks = checks.iter().map(|check| Check::parse(check.as_str().unwrap_or_default()));
        // One edit may stand in the entry itself.
        let edits = match list("edits") {
            Some(edits) => edits.iter().map(Edit::read).collect::<Result<_>>()?,
            None => vec![Edit::read(value)?],
        };
        let caught_by: Vec<Check> = checks.collect::<Result<_>>().with_context(|| format!("in bug {name}"))?;
        Ok(Bug { harm: text(value, "harm")?, name, edits, caught_by })
    }
}

impl Edit {
    fn read(value: &toml::Value) -> Result<Edit> {
        Ok(Edit { file: text(value, "file")?, find: text(value, "find")?, replace: text(value, "replace")? })
    }

    /// The file's text with the bug.
    fn apply(&self, source: &str) -> Result<String> {
        let found = source.matches(&self.find).count();
        if found != 1 {
            bail!("{} has this text {found} times instead of once; mend {LIST}:\n{}", self.file, self.find);
        }
        Ok(source.replacen(&self.find, &self.replace, 1))
    }
}

impl Check {
    fn parse(line: &str) -> Result<Check> {
        let mut words = line.split_whitespace();
        let check = match (words.next(), words.next()) {
            (Some("unit"), Some(filter)) if words.next().is_none() => Check::Unit { filter: filter.into() },
            (Some("system"), Some(test)) => {
                let (mut filter, mut variables) = (None, Vec::new());
                for word in words {
                    match word.split_once('=') {
                        Some((name, value)) => variables.push((name.into(), value.into())),
                        None => filter = Some(word.into()),
                    }
                }
                Check::System { test: test.into(), filter, variables }
            }
            _ => bail!("a check is `unit FILTER` or `system FILE [FILTER] [VARIABLE=VALUE ...]`, not {line:?}"),
        };
        Ok(check)
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Check::Unit { filter } => write!(f, "unit {filter}"),
            Check::System { test, filter, .. } => {
                write!(f, "system {test}{}", filter.as_ref().map(|filter| format!("::{filter}")).unwrap_or_default())
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    TimedOut,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Passed => "passes",
            Verdict::Failed => "fails",
            Verdict::TimedOut => "hangs",
        })
    }
}

/// Where the bugs are planted.
struct Place {
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
    fn prepare(sh: &Shell, root: &Path) -> Result<Place> {
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

    fn build(&self, sh: &Shell) -> Result<()> {
        let (cargo, target) = (&self.cargo, &self.target);
        let _dir = sh.push_dir(&self.source);
        // The features are those of the whole workspace with its tests, as in `cargo xtask test`.
        cmd!(sh, "{cargo} build --quiet --locked --workspace --bin raftlet --test arrows")
            .env("CARGO_TARGET_DIR", target)
            .run()
            .context("the copy doesn't build")
    }

    fn plant(&self, bug: &Bug) -> Result<()> {
        for edit in &bug.edits {
            let path = self.source.join(&edit.file);
            let source = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
            fs::write(path, edit.apply(&source)?)?;
        }
        Ok(())
    }

    fn restore(&self, bug: &Bug) -> Result<()> {
        bug.edits
            .iter()
            .try_for_each(|edit| copy::copy_if_other(&self.root.join(&edit.file), &self.source.join(&edit.file)))
    }

    /// The first check that catches the bug, and how.
    fn try_out(&self, sh: &Shell, bug: &Bug) -> Result<Option<String>> {
        let log = self.folder.join(&bug.name).with_extension("log");
        let mut built = false;
        for check in &bug.caught_by {
            if !built && matches!(check, Check::System { .. }) {
                self.build(sh).with_context(|| format!("with the bug {}", bug.name))?;
                built = true;
            }
            let verdict = self.check(check, &log)?;
            if verdict != Verdict::Passed {
                return Ok(Some(format!("caught: {check} {verdict}")));
            }
            println!("not caught by {check}; see {}", log.display());
        }
        Ok(None)
    }

    fn check(&self, check: &Check, log: &Path) -> Result<Verdict> {
        let started = Instant::now();
        let output = fs::File::create(log)?;
        let command = |at: &Path, args: &[&str]| {
            let mut command = Command::new("timeout");
            command.args(["--kill-after=10", &TEST_SECONDS_MAX.to_string(), &self.cargo, "test", "--locked"]);
            command.args(["--workspace"]).args(args).current_dir(at).stdin(Stdio::null());
            command.env("RAFTLET_GUESTS", self.root.join(OUT_DIR));
            command
        };
        let mut command = match check {
            Check::Unit { filter } => {
                // Beforehand, so that the time of building isn't the tests'.
                let mut build = Command::new(&self.cargo);
                build.args(["test", "--locked", "--workspace", "--lib", "--no-run", "--quiet"]);
                let built = build.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.target).status()?;
                if !built.success() {
                    bail!("the copy's tests don't build");
                }
                let mut command = command(&self.source, &["--lib", "--", filter]);
                command.env("CARGO_TARGET_DIR", &self.target);
                command
            }
            Check::System { test, filter, variables } => {
                let mut build = Command::new(&self.cargo);
                let built = build.args(["test", "--locked", "--workspace", "--no-run", "--quiet", "--test", test]);
                if !built.current_dir(&self.root).status()?.success() {
                    bail!("the test {test} doesn't build");
                }
                let args: Vec<&str> = ["--test", test, "--"].into_iter().chain(filter.as_deref()).collect();
                let mut command = command(&self.root, &args);
                command.env("RAFTLET_BIN", self.target.join("debug/raftlet"));
                command.envs(variables.iter().map(|(name, value)| (name, value)));
                command
            }
        };
        let status = command.stdout(output.try_clone()?).stderr(output).status().context("`timeout` can't be run")?;
        let said = fs::read_to_string(log)?;
        let ran = said.lines().filter_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<u64>().ok());
        if ran.sum::<u64>() == 0 {
            bail!("`{check}` ran no test; see {}", log.display());
        }
        let verdict = match status.code() {
            Some(0) => Verdict::Passed,
            Some(TIMED_OUT) => Verdict::TimedOut,
            _ => Verdict::Failed,
        };
        println!("{check} {verdict} ({} s)", started.elapsed().as_secs());
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
    }

    /// The list must not rot: whoever changes such a line sees it here.
    #[test]
    fn every_planted_bug_fits_the_source() {
        let bugs = read(&root()).unwrap();
        assert!(bugs.len() >= 12, "{} bugs", bugs.len());
        let names: BTreeSet<&str> = bugs.iter().map(|bug| bug.name.as_str()).collect();
        assert_eq!(names.len(), bugs.len(), "each has a name of its own");
        let mut wrong = Vec::new();
        for (bug, edit) in bugs.iter().flat_map(|bug| bug.edits.iter().map(move |edit| (bug, edit))) {
            let source = fs::read_to_string(root().join(&edit.file)).unwrap_or_default();
            match edit.apply(&source) {
                Ok(planted) if planted == source => wrong.push(format!("{}: it changes nothing", bug.name)),
                Ok(_) => {}
                Err(e) => wrong.push(format!("{}: {e}", bug.name)),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_bug_is_to_be_caught_by_a_test_that_is_there() {
        for bug in read(&root()).unwrap() {
            assert!(!bug.caught_by.is_empty(), "{}", bug.name);
            for check in bug.caught_by {
                if let Check::System { test, .. } = &check {
                    assert!(proof::has_test(&root(), test), "{}: there is no {test} in tests/tests", bug.name);
                }
            }
        }
    }

    #[test]
    fn checks_are_read_and_nonsense_is_refused() {
        let check = Check::parse("system crash_loop killed RAFTLET_KILLS=9").unwrap();
        let variables = vec![("RAFTLET_KILLS".to_string(), "9".to_string())];
        assert_eq!(check, Check::System { test: "crash_loop".into(), filter: Some("killed".into()), variables });
        assert_eq!(Check::parse("unit log::tests").unwrap(), Check::Unit { filter: "log::tests".into() });
        for wrong in ["", "unit", "unit a b", "system", "soak"] {
            assert!(Check::parse(wrong).is_err(), "{wrong}");
        }
    }
}
