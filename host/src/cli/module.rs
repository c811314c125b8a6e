//! `raftlet module check`: whether a module can be hosted, and what it says of itself. Starts no node.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};

use super::out::{say, table};
use crate::guest::{Engine, Limits, Module};

#[derive(Subcommand, Debug)]
pub enum ModuleCommand {
    Check(CheckArgs),
}

/// Compile a module and show its imports, exports, name and version
///
/// Core modules built for wasm32-unknown-unknown are made components. A module that can't be hosted is refused with the
/// reason.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet module check target/wasm32-unknown-unknown/guest/counter.wasm")]
pub struct CheckArgs {
    /// A WebAssembly component or core module
    pub file: PathBuf,
}

impl ModuleCommand {
    pub fn run(self) -> anyhow::Result<()> {
        let ModuleCommand::Check(CheckArgs { file }) = self;
        let name = file.display();
        let bytes = std::fs::read(&file).with_context(|| format!("can't read {name}"))?;
        let engine = Engine::new()?;
        let module = Module::compile(&engine, &bytes, Limits::default())
            .map_err(|refused| anyhow!("{name} can't be hosted: {}", on_one_line(&refused.to_string())))?;
        let (about, inside) = (module.description(), module.inspection());
        let digest: String = module.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        for (what, value) in [
            ("name", about.name.clone()),
            ("version", about.version.clone()),
            ("schema", about.schema.to_string()),
            ("digest", digest),
            ("size", format!("{} bytes", bytes.len())),
            ("kind", if inside.is_core { "core module (the host makes it a component)" } else { "component" }.into()),
            ("imports", inside.imports.join(", ")),
            ("exports", inside.exports.join(", ")),
        ] {
            say(format_args!("{what:8} {value}"));
        }
        if !about.routes.is_empty() {
            let rows = about.routes.iter().map(|r| [r.method.clone(), r.path.clone(), r.summary.clone()]);
            say(table(["method", "path", "what it does"], rows));
        }
        Ok(())
    }
}

/// The parser's texts show bytes on lines of their own.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
