//! A module: bytes, checked and compiled for both engines, and what it says about itself. Runs only `describe`; batches
//! are the business of `apply.rs`, the next file.

use std::fmt;
use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::{ComponentType, Lift};

use super::attempt::{Entrance, Way};
use super::component::ComponentEntrance;
use super::core_module::CoreEntrance;
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
        // Also of one that is run as it is: only the component's types say that it is the contract's.
        let apply = ComponentEntrance::new(engine.apply(), component, "apply")?;
        let description = describe(&apply, limits)?;
        let core = if inspection.is_core && inspect::is_utf8(component)? { core_ways(engine, bytes)? } else { None };
        let (apply, query) = match core {
            Some(ways) => ways,
            None => {
                let query = ComponentEntrance::new(engine.query(), component, "query")?;
                (Way::Component(apply), Way::Component(query))
            }
        };
        let apply = Entrance { way: apply, begin_required: true };
        let query = Entrance { way: query, begin_required: false };
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

/// For applies and for queries, if the module can be run as it is.
fn core_ways(engine: &Engine, core: &[u8]) -> Result<Option<(Way, Way)>, ModuleError> {
    let Some(apply) = CoreEntrance::new(engine.apply(), core, "apply")? else { return Ok(None) };
    let Some(query) = CoreEntrance::new(engine.query(), core, "query")? else { return Ok(None) };
    Ok(Some((Way::Core(apply), Way::Core(query))))
}

fn describe(apply: &ComponentEntrance, limits: Limits) -> Result<Description, ModuleError> {
    let mut store = Store::new(apply.engine(), Room::new(Backing::Closed, limits, Vec::new(), 0));
    let failed = |error: wasmtime::Error| match judge(&error) {
        Ok(End::Failure(failure) | End::Nobody(failure)) => ModuleError::Describe(failure),
        Ok(End::Budget | End::Deadline) => ModuleError::Describe(Failure::OutOfFuel),
        Err(fault) => ModuleError::Local(fault),
    };
    host::prepare(&mut store).map_err(failed)?;
    apply.describe(&mut store).map_err(failed)?
}
