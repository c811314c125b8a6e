//! `cargo xtask instructions`: counts what the steps in `host/benches/instructions.rs` execute, under callgrind, and
//! compares with the accepted figures. Counts don't depend on how busy a machine is, so that a few percent can be told
//! from noise, which no clock in CI can do. Says what got worse and how to accept it; measures no time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::toolchain;

/// The accepted figures.
const ACCEPTED: &str = "host/benches/instructions.toml";
const BENCH: &str = "instructions";
/// The functions that are counted have names that begin like this; the rest names the step.
const MEASURED: &str = "measured_";
const STEPS: [&str; 3] = ["apply", "seal", "log_codec"];
/// A step may take so many percent more than what was accepted. Small, because counts repeat to a few per mille.
const WORSE_PERCENT_MAX: u64 = 5;
const OUT_DIR: &str = "target/instructions";

type Counts = BTreeMap<String, u64>;

/// Builds, counts, and compares or accepts.
pub fn run(sh: &Shell, accept: bool) -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("the accepted figures are of x86_64 Linux; nothing is counted here");
        return Ok(());
    }
    toolchain::need_program(sh, "valgrind", "valgrind")?;
    let counts = count(sh, &build(sh)?)?;
    if accept {
        sh.write_file(ACCEPTED, to_toml(&counts))?;
        counts.iter().for_each(|(step, count)| println!("{step:10} {count:>12}"));
        println!("accepted; commit {ACCEPTED} with the change that explains it");
        return Ok(());
    }
    let text = sh.read_file(ACCEPTED).with_context(|| format!("{ACCEPTED} is missing; --accept writes it"))?;
    let accepted = from_toml(&text).with_context(|| format!("{ACCEPTED} can't be read; --accept writes it anew"))?;
    judge(&counts, &accepted)
}

/// The bench binary, of the build that the tests use: wasmtime is not compiled again.
fn build(sh: &Shell) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let messages =
        cmd!(sh, "{cargo} build --locked --workspace --all-targets --message-format=json-render-diagnostics")
            // The figures are of the profile as it stands in `Cargo.toml`.
            .env_remove("CARGO_PROFILE_DEV_OPT_LEVEL")
            .read()?;
    let executable =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|message| {
            let target = &message["target"];
            let ours = target["name"] == BENCH && target["kind"][0] == "bench";
            ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
    executable.with_context(|| format!("cargo built no bench target {BENCH}"))
}

/// Instructions of each step, of all its runs together.
fn count(sh: &Shell, bench: &PathBuf) -> Result<Counts> {
    let out = sh.current_dir().join(OUT_DIR);
    sh.remove_path(&out)?;
    sh.create_dir(&out)?;
    let mut counts = Counts::new();
    for step in STEPS {
        let file = out.join(step).with_extension("callgrind");
        let function = format!("{MEASURED}{step}");
        cmd!(
            sh,
            "valgrind -q --tool=callgrind --callgrind-out-file={file} --collect-atstart=no --toggle-collect={function} {bench}"
        )
        .ignore_stdout()
        .run()
        .context("the steps don't run under callgrind")?;
        let count = sum(&sh.read_file(&file)?).filter(|count| *count > 0);
        counts.insert(step.into(), count.with_context(|| format!("callgrind counted nothing in {function}"))?);
    }
    Ok(counts)
}

/// What callgrind's file says of all that was counted.
fn sum(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

fn judge(counts: &Counts, accepted: &Counts) -> Result<()> {
    let mut worse = Vec::new();
    for (step, count) in counts {
        let Some(before) = accepted.get(step) else {
            worse.push(format!("{step}: {count} instructions; no figure is accepted yet"));
            continue;
        };
        let percent = 100.0 * (*count as f64 / *before as f64 - 1.0);
        println!("{step:10} {count:>12} instructions, {percent:+.1} % of {before}");
        if *count * 100 > *before * (100 + WORSE_PERCENT_MAX) {
            worse.push(format!("{step}: {count} instructions, {percent:.1} % more than the accepted {before}"));
        } else if *count * 100 < *before * (100 - WORSE_PERCENT_MAX) {
            println!("{step:10} is better: `cargo xtask instructions --accept` keeps it so");
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    bail!(
        "{}\nAt most {WORSE_PERCENT_MAX} % more are let through. `callgrind_annotate {OUT_DIR}/STEP.callgrind` shows \
         where they are. If they are worth it, `cargo xtask instructions --accept`, and say why in the commit",
        worse.join("\n")
    )
}

fn to_toml(counts: &Counts) -> String {
    let mut text = String::from(
        "# Instructions of the steps in instructions.rs, of all counted runs together, in the dev profile.\n\
         # Written by `cargo xtask instructions --accept`.\n",
    );
    counts.iter().for_each(|(step, count)| text.push_str(&format!("{step} = {count}\n")));
    text
}

fn from_toml(text: &str) -> Result<Counts> {
    let table: toml::Table = text.parse()?;
    let figure = |(step, value): (String, toml::Value)| {
        let count = value.as_integer().and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0);
        Ok((step.clone(), count.with_context(|| format!("{step} is no number of instructions"))?))
    };
    table.into_iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(apply: u64) -> Counts {
        [("apply".to_owned(), apply)].into()
    }

    #[test]
    fn five_percent_more_pass_and_six_fail_with_the_figure_and_the_way_to_accept() {
        assert!(judge(&counts(1_050), &counts(1_000)).is_ok());
        assert!(judge(&counts(500), &counts(1_000)).is_ok());
        let error = judge(&counts(1_060), &counts(1_000)).unwrap_err().to_string();
        assert!(error.contains("1060 instructions, 6.0 % more than the accepted 1000"), "{error}");
        assert!(error.contains("--accept"), "{error}");
        assert!(judge(&counts(1), &Counts::new()).is_err());
    }

    #[test]
    fn what_is_accepted_can_be_read_and_nonsense_can_not() {
        assert_eq!(from_toml(&to_toml(&counts(7))).unwrap(), counts(7));
        for nonsense in ["apply = -1", "apply = 0", "apply = \"x\"", "apply"] {
            assert!(from_toml(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_count_is_the_sum_of_all_that_was_counted() {
        assert_eq!(sum("version: 1\nevents: Ir\nsummary: 9\n1 2\ntotals: 9\n"), Some(9));
        assert_eq!(sum("version: 1\n"), None);
    }
}
