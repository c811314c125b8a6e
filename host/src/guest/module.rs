//! A module: bytes, checked and compiled for both engines, and what it says about itself. Runs only `describe`; batches
//! are the business of `apply.rs`, the next file.

use std::fmt;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{Component, ComponentType, Lift, Linker};

use super::attempt::Entrance;
use super::engine::Engine;
use super::fault::{End, LocalFault, judge};
use super::host::{self, Backing, Room};
use super::inspect::{self, Inspection, inspect};
use super::limits::{InvalidLimits, Limits};
use crate::outcome::Failure;

/// Why a module can't be hosted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    #[error("this is not a WebAssembly module: {0}")]
    NotWasm(String),
    #[error(
        "the module imports {name}, which the host does not have; a module may only import raftlet:machine/store, log and types @0.1.0 (no WASI)"
    )]
    ForbiddenImport { name: String },
    #[error("the module lacks these exports of the world raftlet:machine/state-machine@0.1.0: {names}")]
    MissingExports { names: String },
    #[error("the core module can't be made a component: {0}")]
    NoComponent(String),
    #[error("the module can't be compiled: {0}")]
    Invalid(String),
    #[error("the module's functions don't have the types of the world raftlet:machine/state-machine@0.1.0: {0}")]
    Types(String),
    #[error("the module can't describe itself: {0}")]
    Describe(Failure),
    #[error(transparent)]
    Limits(#[from] InvalidLimits),
    #[error(transparent)]
    Local(#[from] LocalFault),
}

/// What a module says about itself.
#[derive(ComponentType, Lift, Debug, Clone, PartialEq, Eq)]
#[component(record)]
pub struct Description {
    pub name: String,
    pub version: String,
    /// Of the stored data.
    pub schema: u32,
    pub routes: Vec<Route>,
}

/// One route, for people to read. The host routes nothing by it.
#[derive(ComponentType, Lift, Debug, Clone, PartialEq, Eq)]
#[component(record)]
pub struct Route {
    pub method: String,
    pub path: String,
    pub summary: String,
}

/// A compiled module. Cloning is cheap.
#[derive(Clone)]
pub struct Module {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    limits: Limits,
    digest: [u8; 32],
    inspection: Inspection,
    description: Description,
    apply: Entrance,
    query: Entrance,
}

impl Module {
    /// Compiles a core module or a component, on all cores, and asks it to describe itself. Takes from 0.1 s to some
    /// seconds.
    pub fn compile(engine: &Engine, bytes: &[u8], limits: Limits) -> Result<Module, ModuleError> {
        limits.validate()?;
        let inspection = inspect(bytes)?;
        let encoded;
        let component = if inspection.is_core {
            check_core_imports(&inspection)?;
            encoded = inspect::encode(bytes)?;
            inspect(&encoded)?.check()?;
            encoded.as_slice()
        } else {
            inspection.check()?;
            bytes
        };
        let apply = entrance(engine.apply(), component, "apply", true)?;
        let query = entrance(engine.query(), component, "query", false)?;
        let description = describe(&apply, limits)?;
        let digest = *blake3::hash(bytes).as_bytes();
        let shared = Shared { engine: engine.clone(), limits, digest, inspection, description, apply, query };
        Ok(Module { shared: Arc::new(shared) })
    }

    /// BLAKE3 of the bytes as they were given.
    pub fn digest(&self) -> &[u8; 32] {
        &self.shared.digest
    }

    pub fn description(&self) -> &Description {
        &self.shared.description
    }

    pub fn inspection(&self) -> &Inspection {
        &self.shared.inspection
    }

    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(super) fn apply_entrance(&self) -> &Entrance {
        &self.shared.apply
    }

    pub(super) fn query_entrance(&self) -> &Entrance {
        &self.shared.query
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Description { name, version, .. } = &self.shared.description;
        write!(f, "Module({name} {version})")
    }
}

/// A core module's exports have other names than the component's; its imports are named before the encoder, whose
/// messages name the world instead.
fn check_core_imports(inspection: &Inspection) -> Result<(), ModuleError> {
    let with_exports = Inspection {
        exports: ["describe", "apply", "query", "migrate"].map(str::to_owned).to_vec(),
        ..inspection.clone()
    };
    with_exports.check()
}

/// Compiles for one engine and links, so that an instance is only a slot of the pool away.
fn entrance(
    engine: &wasmtime::Engine,
    component: &[u8],
    export: &str,
    begin_required: bool,
) -> Result<Entrance, ModuleError> {
    let component =
        Component::from_binary(engine, component).map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
    let types = |error: wasmtime::Error| ModuleError::Types(format!("{error:#}"));
    let mut linker = Linker::new(engine);
    host::link(&mut linker).map_err(|error| LocalFault(format!("{error:#}")))?;
    let pre = linker.instantiate_pre(&component).map_err(types)?;
    let missing = || ModuleError::MissingExports { names: export.into() };
    let export = component.get_export_index(None, export).ok_or_else(missing)?;
    Ok(Entrance { pre, export, begin_required })
}

/// Also checks the types of all exports on a real instance, so that a batch can't meet a wrong one.
fn describe(apply: &Entrance, limits: Limits) -> Result<Description, ModuleError> {
    let mut store = Store::new(apply.pre.engine(), Room::new(Backing::Closed, limits, Vec::new(), 0));
    let failed = |error: wasmtime::Error| match judge(&error) {
        Ok(End::Failure(failure) | End::Nobody(failure)) => ModuleError::Describe(failure),
        Ok(End::Budget | End::Deadline) => ModuleError::Describe(Failure::OutOfFuel),
        Err(fault) => ModuleError::Local(fault),
    };
    let types = |error: wasmtime::Error| ModuleError::Types(format!("{error:#}"));
    host::prepare(&mut store).map_err(failed)?;
    let instance = apply.pre.instantiate(&mut store).map_err(failed)?;
    apply.check_types(&instance, &mut store).map_err(types)?;
    let function = instance.get_typed_func::<(), (Description,)>(&mut store, "describe").map_err(types)?;
    Ok(function.call(&mut store, ()).map_err(failed)?.0)
}
