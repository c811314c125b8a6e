//! A core module run as it is. The canonical ABI says what a module of wit-bindgen exports and imports, so a component
//! around it would only be in the way: three instances for each batch instead of one, and some 36 ns more for each call
//! of the host. Owns which modules are run so, their entrances, and how a batch gets into linear memory and replies out of
//! it. What they import is in `core_imports.rs`, the next file; every other module goes through `component.rs`.

use std::ops::Range;

use wasmtime::{
    AsContext, AsContextMut, Engine, ExternType, Func, FuncType, InstancePre, Linker, Memory, Module, ModuleExport,
    Store, ValRaw, ValType,
};

use super::attempt::Job;
use super::core_imports;
use super::fault::{LocalFault, Stop};
use super::host::{self, LOG, Room, STORE};
use super::module::ModuleError;

/// What a module must export beside its memory: name, parameters, results. `i` is i32, `I` is i64. The context's five
/// fields come flat, lists as pointer and length, and a result of more than one value as a pointer to it (Component Model,
/// canonical ABI, "flattening").
const EXPORTS: [(&str, &str, &str); 5] = [
    ("apply", "IIIIIiiii", "i"),
    ("query", "IIIIIiiii", "i"),
    ("describe", "", "i"),
    ("migrate", "i", "i"),
    (REALLOC, "iiii", "i"),
];
/// What a module may import: the contract's functions, flattened in the same way.
const IMPORTS: [(&str, &str, &str, &str); 8] = [
    (STORE, "get", "iii", ""),
    (STORE, "set", "iiii", "i"),
    (STORE, "delete", "ii", "i"),
    (STORE, "scan", "iiiiiiiiii", ""),
    (STORE, "delete-range", "iiiiiii", "I"),
    (STORE, "begin", "i", ""),
    (STORE, "rollback", "", ""),
    (LOG, "write", "iii", ""),
];
const REALLOC: &str = "cabi_realloc";
const MEMORY: &str = "memory";
/// What a component would call first, or instead of `cabi_realloc`: a module with one of these is run as a component.
const SPECIAL: [&str; 4] = ["_initialize", "cabi_export_realloc", "cabi_import_realloc", "canonical_abi_realloc"];

/// Pointer and length of a list.
const LIST_BYTES: usize = 8;
const LIST_ALIGN: usize = 4;

/// Larger batches, in bytes, run in memory of their own. Of the memory that an instance begins with, what it has written is
/// set back and stays resident, and all that is resident there is set back again after each instance that follows: without
/// this, once a large batch was run, each small one paid for its pages. (After several modules were compiled, a memory may
/// still have such pages of another one's.)
const LARGE_BATCH_BYTES: usize = 32 << 10;

/// One of the two functions that take a batch, ready to be instantiated.
pub(super) struct CoreEntrance {
    usual: Prepared,
    /// For large batches: the same code as another module, because the pool gives a module the memory that it had before,
    /// if nobody else has it.
    large: Prepared,
}

struct Prepared {
    pre: InstancePre<Room>,
    function: ModuleExport,
    memory: ModuleExport,
    realloc: ModuleExport,
}

/// What the host needs of a running guest.
#[derive(Clone, Copy)]
pub(super) struct Guest {
    memory: Memory,
    realloc: Func,
}

impl CoreEntrance {
    /// Compiles and links. None if the module has other functions than the ones above: then it is run as a component.
    pub(super) fn new(engine: &Engine, core: &[u8], export: &str) -> Result<Option<Self>, ModuleError> {
        let module = Module::new(engine, core).map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
        if !has_shape(&module) {
            return Ok(None);
        }
        let local = |error: wasmtime::Error| LocalFault::new(format!("{error:#}"));
        let compiled = module.serialize().map_err(local)?;
        // SAFETY: this engine made these bytes, just now.
        let copy = unsafe { Module::deserialize(engine, compiled) }.map_err(local)?;
        let (usual, large) =
            (Prepared::new(&module, export).map_err(local)?, Prepared::new(&copy, export).map_err(local)?);
        Ok(Some(CoreEntrance { usual, large }))
    }

    pub(super) fn engine(&self) -> &Engine {
        self.usual.pre.module().engine()
    }

    /// A fresh instance, one call. `run`: empty for all.
    pub(super) fn call(&self, store: &mut Store<Room>, job: &Job<'_>, run: &[u32]) -> wasmtime::Result<Vec<u8>> {
        let is_large = job.batch.len() > LARGE_BATCH_BYTES;
        if is_large { self.large.call(store, job, run) } else { self.usual.call(store, job, run) }
    }
}

impl Prepared {
    /// The module must have passed `has_shape`.
    fn new(module: &Module, export: &str) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(module.engine());
        core_imports::link(&mut linker)?;
        let pre = linker.instantiate_pre(module)?;
        let index = |name| module.get_export_index(name).ok_or_else(|| lost(name));
        Ok(Prepared { pre, function: index(export)?, memory: index(MEMORY)?, realloc: index(REALLOC)? })
    }

    fn call(&self, store: &mut Store<Room>, job: &Job<'_>, run: &[u32]) -> wasmtime::Result<Vec<u8>> {
        let instance = self.pre.instantiate(&mut *store)?;
        let memory = self.settle(store, &instance)?;
        let function = instance.get_module_export(&mut *store, &self.function).and_then(|export| export.into_func());
        let function = function.ok_or_else(|| lost("function"))?;
        let batch = lower(store, 1, job.batch)?;
        // Linear memory is little-endian, whatever the machine is.
        let listed: Vec<u8> = run.iter().flat_map(|position| position.to_le_bytes()).collect();
        let listed = lower(store, 4, &listed)?;
        let context = job.context;
        let values = [
            ValRaw::u64(context.log_index),
            ValRaw::u64(context.term),
            ValRaw::u64(context.time_ms),
            ValRaw::u64(context.first_command),
            ValRaw::u64(context.seed),
            ValRaw::u32(batch),
            ValRaw::u32(job.batch.len() as u32),
            ValRaw::u32(listed),
            ValRaw::u32(run.len() as u32),
        ];
        // SAFETY: `has_shape` has seen that both functions a `CoreEntrance` may be of have these types.
        let at = unsafe { call(&mut *store, function, values)? };
        // The guest's post-return would free what goes with the instance anyway.
        let bytes = memory.data(&*store);
        let at = field(bytes.len(), at, LIST_BYTES, LIST_ALIGN)?;
        Ok(bytes[span(bytes.len(), word(bytes, at), word(bytes, at + 4))?].to_vec())
    }

    /// From now on the guest may call its imports.
    fn settle(&self, store: &mut Store<Room>, instance: &wasmtime::Instance) -> wasmtime::Result<Memory> {
        let memory = instance.get_module_export(&mut *store, &self.memory).and_then(|export| export.into_memory());
        let memory = memory.ok_or_else(|| lost(MEMORY))?;
        let realloc = instance.get_module_export(&mut *store, &self.realloc).and_then(|export| export.into_func());
        let realloc = realloc.ok_or_else(|| lost(REALLOC))?;
        store.data_mut().guest = Some(Guest { memory, realloc });
        Ok(memory)
    }
}

/// An export that `has_shape` has seen. Not a fault of the module's.
fn lost(what: &str) -> wasmtime::Error {
    wasmtime::Error::msg(format!("the export {what} got lost"))
}

fn has_shape(module: &Module) -> bool {
    let is = |ty: Option<ExternType>, parameters: &str, results: &str| match ty {
        Some(ExternType::Func(ty)) => letters(&ty) == (parameters.to_string(), results.to_string()),
        _ => false,
    };
    let exports = EXPORTS.iter().all(|(name, parameters, results)| is(module.get_export(name), parameters, results));
    let imports = module.imports().all(|import| {
        let known = IMPORTS.iter().find(|(from, name, ..)| (*from, *name) == (import.module(), import.name()));
        known.is_some_and(|(_, _, parameters, results)| is(Some(import.ty()), parameters, results))
    });
    let memory = matches!(module.get_export(MEMORY), Some(ExternType::Memory(ty)) if !ty.is_64() && !ty.is_shared());
    exports && imports && memory && SPECIAL.iter().all(|name| module.get_export(name).is_none())
}

fn letters(ty: &FuncType) -> (String, String) {
    let letter = |ty: ValType| match ty {
        ValType::I32 => 'i',
        ValType::I64 => 'I',
        _ => '?',
    };
    (ty.params().map(letter).collect(), ty.results().map(letter).collect())
}

/// Calls a function that has these parameters and returns an i32. The types are looked at once, when the module is
/// compiled, and not for each batch.
///
/// # Safety
/// They are the function's.
unsafe fn call<const N: usize>(
    mut store: impl AsContextMut<Data = Room>,
    function: Func,
    mut values: [ValRaw; N],
) -> wasmtime::Result<u32> {
    // SAFETY: what the caller promises; there is room for one result where the parameters are.
    unsafe { function.call_unchecked(&mut store, &raw mut values[..])? };
    Ok(values[0].get_u32())
}

pub(super) fn contract(what: &str) -> Stop {
    Stop::Contract(what.into())
}

/// Memory of the guest's, from its own allocator, for what it is given. It can't call the host meanwhile. Of no bytes the
/// place is within the memory too, because something was there before: the batch.
pub(super) fn allocate(mut store: impl AsContextMut<Data = Room>, align: u32, bytes: usize) -> wasmtime::Result<usize> {
    if bytes == 0 {
        return Ok(align as usize);
    }
    let size = u32::try_from(bytes).map_err(|_| contract(host::TOO_MUCH))?;
    let guest = store.as_context_mut().data_mut().guest.take().ok_or_else(|| contract(core_imports::AWAY))?;
    let values = [ValRaw::u32(0), ValRaw::u32(0), ValRaw::u32(align), ValRaw::u32(size)];
    // SAFETY: `has_shape` has seen that it has these types.
    let result = unsafe { call(&mut store, guest.realloc, values) };
    let memory_bytes = guest.memory.data_size(&store);
    store.as_context_mut().data_mut().guest = Some(guest);
    let at = result?;
    if !at.is_multiple_of(align) {
        return Err(contract("realloc return: result not aligned").into());
    }
    if u64::from(at) + u64::from(size) > memory_bytes as u64 {
        return Err(contract("realloc return: beyond end of memory").into());
    }
    Ok(at as usize)
}

/// Copies bytes into the guest's memory; where they are.
fn lower(store: &mut Store<Room>, align: u32, bytes: &[u8]) -> wasmtime::Result<u32> {
    let at = allocate(&mut *store, align, bytes.len())?;
    let memory = memory(&*store)?;
    memory.data_mut(&mut *store)[at..][..bytes.len()].copy_from_slice(bytes);
    Ok(at as u32)
}

/// None while the guest allocates for the host, and before it has begun.
pub(super) fn memory(store: impl AsContext<Data = Room>) -> Result<Memory, Stop> {
    store.as_context().data().guest.as_ref().map(|guest| guest.memory).ok_or_else(|| contract(core_imports::AWAY))
}

/// So many bytes at this address, in a memory of `memory_bytes`.
pub(super) fn span(memory_bytes: usize, at: u32, bytes: u32) -> Result<Range<usize>, Stop> {
    let range = at as usize..at as usize + bytes as usize;
    if range.end <= memory_bytes { Ok(range) } else { Err(contract("list pointer/length out of bounds of memory")) }
}

/// A place where something of this size and alignment is.
pub(super) fn field(memory_bytes: usize, at: u32, bytes: usize, align: usize) -> Result<usize, Stop> {
    let at = at as usize;
    if !at.is_multiple_of(align) {
        return Err(contract("pointer not aligned"));
    }
    if at + bytes > memory_bytes { Err(contract("pointer out of bounds")) } else { Ok(at) }
}

/// What is at `at` was looked at with [`field`].
fn word(memory: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(memory[at..at + 4].try_into().expect("4 bytes"))
}
