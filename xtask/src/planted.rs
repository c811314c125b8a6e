//! Planted bugs: each entry of `tests/planted/bugs.toml` is put into a copy of the source, which is built, and the
//! tests that must catch it are run. Works in `target/planted` alone: the workspace's own files and builds are only
//! read. First the tests are run on the copy as it is: a test that fails anyhow catches nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xshell::Shell;

use self::place::{Place, Verdict};

mod copy;
mod place;

const LIST: &str = "tests/planted/bugs.toml";

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
    let checks: BTreeSet<&Check> = bugs.iter().flat_map(|bug| &bug.caught_by).collect();
    println!("=== {} checks on the source as it is", checks.len());
    for check in checks {
        let log = place.log("clean");
        match place.check(check, &log)? {
            Verdict::Passed => {}
            verdict => bail!("`{check}` {verdict} without any bug: it can't show one. See {}", log.display()),
        }
    }
    let mut table = Vec::new();
    for bug in &bugs {
        println!("\n=== {}: {}", bug.name, bug.harm);
        let started = Instant::now();
        place.plant(bug)?;
        // One that can't be tried out is told of at the end: the others are run all the same.
        let caught = place.try_out(bug).unwrap_or_else(|e| {
            println!("not tried out: {e:#}");
            None
        });
        place.restore(bug)?;
        table.push((&bug.name, caught, started.elapsed().as_secs()));
    }
    println!("\n| bug | caught by | seconds |\n|---|---|---|");
    for (name, caught, seconds) in &table {
        println!("| {name} | {} | {seconds} |", caught.as_deref().unwrap_or("**nothing**"));
    }
    let missed = table.iter().filter(|(_, caught, _)| caught.is_none()).count();
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::proof;

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
