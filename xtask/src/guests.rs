//! Builds the guests: core modules, which the host runs as they are. The same compiler must give the same bytes in every
//! checkout, because the binary embeds `host/modules/kv.wasm` and CI compares.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use wit_component::ComponentEncoder;
use xshell::{Shell, cmd};

use crate::toolchain::{Choice, TARGET, Toolchain};

/// (package, crate file, module file).
const GUESTS: [(&str, &str, &str); 3] =
    [("guest-kv", "guest_kv", "kv"), ("counter", "counter", "counter"), ("hostile", "hostile", "hostile")];
const EMBEDDED: &str = "host/modules/kv.wasm";
const SIDECAR: &str = "host/modules/kv.toml";
/// Where the modules go, from the workspace's root. `RAFTLET_GUESTS` names it to the tests.
pub const OUT_DIR: &str = "target/guests";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blessing {
    Leave,
    Bless,
    Check,
}

pub struct Options {
    pub blessing: Blessing,
    pub compiler: Choice,
}

/// Builds all guests and returns the folder they are in.
pub fn build(sh: &Shell, options: &Options) -> Result<PathBuf> {
    let toolchain = Toolchain::get(sh, options.compiler)?;
    println!("guests are built by {}", toolchain.identity);
    let cores = compile(sh, &toolchain)?;
    let out = sh.current_dir().join(OUT_DIR);
    sh.create_dir(&out)?;
    for (_, file, name) in GUESTS {
        let core = sh.read_binary_file(cores.join(file).with_extension("wasm"))?;
        check_contract(&core).with_context(|| format!("{name} is not the contract's"))?;
        println!("{OUT_DIR}/{name}.wasm  {} bytes", core.len());
        sh.write_file(out.join(name).with_extension("wasm"), core)?;
    }
    let fresh = sh.read_binary_file(out.join("kv.wasm"))?;
    match options.blessing {
        Blessing::Leave => {}
        Blessing::Bless => bless(sh, &toolchain, &fresh)?,
        Blessing::Check => check(sh, &toolchain, &fresh)?,
    }
    Ok(out)
}

/// Builds the core modules and returns their folder.
fn compile(sh: &Shell, toolchain: &Toolchain) -> Result<PathBuf> {
    let target_dir = sh.current_dir().join("target/guests-build").join(toolchain.name());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let packages = GUESTS.iter().flat_map(|(package, ..)| ["--package", package]);
    let args = toolchain.cargo_args();
    // Own flags only: those of the caller's environment would change the bytes.
    let flags = rustflags(sh, toolchain)?;
    let mut build = cmd!(
        sh,
        "{cargo} build --quiet --locked --lib --profile guest --target {TARGET} --target-dir {target_dir} {packages...} {args...}"
    )
    .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
    .env_remove("RUSTFLAGS")
    .env_remove("CARGO_INCREMENTAL");
    for (name, value) in toolchain.cargo_env() {
        build = build.env(name, value);
    }
    build.run().context("the guests don't build")?;
    Ok(target_dir.join(TARGET).join("guest"))
}

/// An instance's memory is searched for written pages after each batch, its stack too, and the default is 1 MiB.
const STACK_BYTES: usize = 128 << 10;
/// A call costs a metered module more than the compiler reckons with, whose own threshold is about a fifth of this.
const INLINE_THRESHOLD: u32 = 1_200;

/// Stack and inlining as above, and this machine's folders are taken out of the file names that panics carry, so that every
/// checkout builds the same bytes.
fn rustflags(sh: &Shell, toolchain: &Toolchain) -> Result<Vec<String>> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    let mut remaps = vec![
        (sh.current_dir(), "/raftlet"),
        (toolchain.sysroot.clone(), "/sysroot"),
        (library.canonicalize().unwrap_or_else(|_| library.clone()), "/rust"),
        (library, "/rust"),
    ];
    // The folder's name has a hash of the registry's address, which mirrors change.
    let sources = cargo_home.join("registry/src");
    let registries = if sources.is_dir() { sh.read_dir(&sources)? } else { Vec::new() };
    remaps.push((cargo_home, "/cargo"));
    remaps.extend(registries.into_iter().map(|folder| (folder, "/registry")));
    // rustc takes the last one that fits: the longer paths come later.
    remaps.sort_by_key(|(from, _)| from.as_os_str().len());
    let mut flags: Vec<_> =
        remaps.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    flags.push(format!("-Clink-arg=-zstack-size={STACK_BYTES}"));
    flags.push(format!("-Cllvm-args=-inline-threshold={INLINE_THRESHOLD}"));
    Ok(flags)
}

/// As the host does it before it runs one: what can't be made a component isn't what its metadata says.
fn check_contract(core: &[u8]) -> Result<()> {
    ComponentEncoder::default().module(core)?.validate(true).encode().map(drop)
}

/// The sidecar's three facts about the embedded module.
#[derive(PartialEq, Eq)]
struct Facts {
    compiler: String,
    blake3: String,
    bytes: i64,
}

impl Facts {
    fn of(toolchain: &Toolchain, module: &[u8]) -> Self {
        let blake3 = blake3::hash(module).to_hex().to_string();
        Facts { compiler: toolchain.identity.clone(), blake3, bytes: module.len() as i64 }
    }

    fn read(sh: &Shell) -> Result<Self> {
        let table: toml::Table = sh.read_file(SIDECAR)?.parse().with_context(|| format!("{SIDECAR} can't be read"))?;
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str).map(String::from);
        let bytes = table.get("bytes").and_then(toml::Value::as_integer);
        let missing = || format!("{SIDECAR} must have compiler, blake3 and bytes");
        Ok(Facts {
            compiler: text("compiler").with_context(missing)?,
            blake3: text("blake3").with_context(missing)?,
            bytes: bytes.with_context(missing)?,
        })
    }

    fn to_toml(&self) -> String {
        let Facts { compiler, blake3, bytes } = self;
        format!(
            "# About kv.wasm, which the binary embeds. Written by `cargo xtask guests --bless`.\n\
             compiler = \"{compiler}\"\nblake3 = \"{blake3}\"\nbytes = {bytes}\n"
        )
    }
}

fn bless(sh: &Shell, toolchain: &Toolchain, fresh: &[u8]) -> Result<()> {
    sh.create_dir(Path::new(EMBEDDED).parent().expect("a file in a folder"))?;
    sh.write_file(EMBEDDED, fresh)?;
    sh.write_file(SIDECAR, Facts::of(toolchain, fresh).to_toml())?;
    println!("{EMBEDDED} is this build now; commit it with {SIDECAR}");
    Ok(())
}

fn check(sh: &Shell, toolchain: &Toolchain, fresh: &[u8]) -> Result<()> {
    let embedded = sh.read_binary_file(EMBEDDED)?;
    let facts = Facts::read(sh)?;
    let compiler = facts.compiler.clone();
    let digest = blake3::hash(&embedded).to_hex().to_string();
    if facts.blake3 != digest || facts.bytes != embedded.len() as i64 {
        bail!("{EMBEDDED} is not the file that {SIDECAR} describes; `cargo xtask guests --bless` makes both anew");
    }
    if compiler != toolchain.identity {
        println!(
            "{EMBEDDED} was built by another compiler ({compiler}), so its bytes can't be compared with this build; \
             its digest is as recorded"
        );
        return Ok(());
    }
    if embedded != fresh {
        bail!(
            "{EMBEDDED} is out of date: the same compiler builds other bytes from this source. \
             Run `cargo xtask guests --bless` and commit host/modules/"
        );
    }
    println!("{EMBEDDED} is what this source builds");
    Ok(())
}
