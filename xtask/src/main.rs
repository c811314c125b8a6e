//! `cargo xtask ...`: the commands that developers and CI run. This file reads the command line; `guests.rs` builds
//! the Wasm modules, `toolchain.rs` finds or gets their compiler, `checks.rs` is the whole test run, `instructions.rs`
//! guards the cost of the write path, `proof.rs` and `planted.rs` are the long proofs, `bench/` measures beside etcd.

mod bench;
mod checks;
mod guests;
mod instructions;
mod planted;
mod proof;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use xshell::Shell;

use guests::{Blessing, Options};
use toolchain::Choice;

const USAGE: &str = "\
cargo xtask test                 get a Wasm compiler if there is none, build the guests, check format and lints, run
                                 all tests
cargo xtask guests [options]     build the guests into target/guests/{kv,counter,hostile}.wasm
    --bless                      and make kv.wasm the one that the binary embeds (host/modules/)
    --check                      and fail if the embedded kv.wasm is not what this source builds
    --compiler rustup|debian     use that compiler only, and install nothing
cargo xtask instructions         count the instructions of some steps under callgrind; fail if they are over 5 % more
    --accept                     and take the counts as the accepted ones (host/benches/instructions.toml)";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let sh = Shell::new()?;
    sh.change_dir(workspace());
    match args.as_slice() {
        ["test"] => checks::test(&sh),
        ["proof", args @ ..] => proof::run(&sh, args),
        ["bench", args @ ..] => bench::run(&sh, args),
        ["guests", options @ ..] => guests::build(&sh, &guest_options(options)?).map(drop),
        ["instructions"] => instructions::run(&sh, false),
        ["instructions", "--accept"] => instructions::run(&sh, true),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}\n{}\n{}", proof::USAGE, bench::USAGE);
            Ok(())
        }
        other => bail!("unknown command: {}\n\n{USAGE}\n{}\n{}", other.join(" "), proof::USAGE, bench::USAGE),
    }
}

fn guest_options(mut args: &[&str]) -> Result<Options> {
    let mut options = Options { blessing: Blessing::Leave, compiler: Choice::Any };
    while let [first, rest @ ..] = args {
        args = rest;
        match *first {
            "--bless" if options.blessing == Blessing::Leave => options.blessing = Blessing::Bless,
            "--check" if options.blessing == Blessing::Leave => options.blessing = Blessing::Check,
            "--compiler" => {
                let name = rest.first().context("--compiler needs a value: rustup or debian")?;
                options.compiler = match *name {
                    "rustup" => Choice::Rustup,
                    "debian" => Choice::Debian,
                    other => bail!("unknown compiler {other}: rustup or debian"),
                };
                args = &rest[1..];
            }
            other => bail!("unexpected option {other}\n\n{USAGE}"),
        }
    }
    Ok(options)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_path_buf()
}
