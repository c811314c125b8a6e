//! Reads a module's bytes without compiling them: core or component, what it imports, what it exports. Refuses by name
//! what this host doesn't have. Runs nothing. The next file is `module.rs`.

use wasmparser::{CanonicalFunction, CanonicalOption, ComponentTypeRef, Encoding, Parser, Payload};
use wit_component::ComponentEncoder;

use super::host::{LOG, STORE, TYPES};
use super::module::ModuleError;

const ALLOWED_IMPORTS: [&str; 3] = [STORE, LOG, TYPES];
const REQUIRED_EXPORTS: [&str; 4] = ["describe", "apply", "query", "migrate"];

/// What a module's bytes say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// A core module. The host makes a component of it to look at its types.
    pub is_core: bool,
    /// In the module's order. For a core module: the interfaces its functions come from, each once.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Reads imports and exports. Says nothing yet about whether the module can be hosted.
///
/// # Errors
/// [`ModuleError::NotWasm`]
pub fn inspect(bytes: &[u8]) -> Result<Inspection, ModuleError> {
    let mut found = Inspection { is_core: true, imports: Vec::new(), exports: Vec::new() };
    // A component contains modules: only the outermost level counts.
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(not_wasm)?;
        match &payload {
            Payload::Version { encoding, .. } => {
                depth += 1;
                if depth == 1 {
                    found.is_core = *encoding == Encoding::Module;
                }
            }
            Payload::End(_) => depth -= 1,
            _ if depth == 1 => found.read(payload)?,
            _ => {}
        }
    }
    if depth != 0 {
        return Err(ModuleError::NotWasm("it ends too early".into()));
    }
    Ok(found)
}

impl Inspection {
    fn read(&mut self, payload: Payload<'_>) -> Result<(), ModuleError> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let interface = import.map_err(not_wasm)?.module;
                    if !self.imports.iter().any(|known| known == interface) {
                        self.imports.push(interface.to_owned());
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    self.exports.push(export.map_err(not_wasm)?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import.map_err(not_wasm)?;
                    // The world's own names for the contract's types: nothing that a host could give.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        self.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    self.exports.push(export.map_err(not_wasm)?.name.name.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Refuses the module if it wants what the host doesn't have, or lacks what the host needs.
    pub(super) fn check(&self) -> Result<(), ModuleError> {
        if let Some(name) = self.imports.iter().find(|name| !ALLOWED_IMPORTS.contains(&name.as_str())) {
            return Err(ModuleError::ForbiddenImport { name: name.clone() });
        }
        let lacks = |name: &&str| !self.exports.iter().any(|export| export == name);
        let missing: Vec<&str> = REQUIRED_EXPORTS.into_iter().filter(lacks).collect();
        if missing.is_empty() { Ok(()) } else { Err(ModuleError::MissingExports { names: missing.join(", ") }) }
    }
}

/// Whether all strings of a component's functions are UTF-8, as the contract's world has them unless its metadata says
/// otherwise.
///
/// # Errors
/// [`ModuleError::NotWasm`]
pub(super) fn is_utf8(component: &[u8]) -> Result<bool, ModuleError> {
    for payload in Parser::new(0).parse_all(component) {
        let Payload::ComponentCanonicalSection(section) = payload.map_err(not_wasm)? else { continue };
        for function in section {
            let (CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. }) =
                function.map_err(not_wasm)?
            else {
                continue;
            };
            if options.iter().any(|option| matches!(option, CanonicalOption::UTF16 | CanonicalOption::CompactUTF16)) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The component that a core module of `wit-bindgen` becomes. The same bytes on every replica.
pub(super) fn encode(core: &[u8]) -> Result<Vec<u8>, ModuleError> {
    ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| ModuleError::NoComponent(format!("{error:#}")))
}

fn not_wasm(error: wasmparser::BinaryReaderError) -> ModuleError {
    // The parser lists bytes on a line each; a message is one line.
    ModuleError::NotWasm(error.message().split_whitespace().collect::<Vec<_>>().join(" "))
}
