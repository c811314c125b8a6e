//! A component: how it is linked and called, and its imports, with the types that it sees. The imports do what `host.rs`
//! says, at its prices. A core module that can be run as it is doesn't come here (`core_module.rs`); the next file is
//! `apply.rs`.

use std::mem;

use wasmtime::component::{
    Component, ComponentExportIndex, ComponentType, InstancePre, Lift, Linker, Lower, WasmList, WasmStr,
};
use wasmtime::{Engine, Store};

use super::apply::Context;
use super::attempt::Job;
use super::fault::LocalFault;
use super::host::{self, Backing, Caller, FUEL_CALL, FUEL_KEY, FUEL_MESSAGE, FUEL_WRITE, LOG, Level, Room, STORE};
use super::module::{Description, ModuleError};
use super::store::{CommandStore, KeyRange, Order};

/// One of the two functions that take a batch, ready to be instantiated.
pub(super) struct ComponentEntrance {
    pre: InstancePre<Room>,
    export: ComponentExportIndex,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
struct WasmContext {
    #[component(name = "log-index")]
    log_index: u64,
    term: u64,
    #[component(name = "time-ms")]
    time_ms: u64,
    #[component(name = "first-command")]
    first_command: u64,
    seed: u64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct ScanRange {
    start: Option<WasmList<u8>>,
    end: Option<WasmList<u8>>,
    order: WasmOrder,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by Lift, out of a discriminant")]
enum WasmOrder {
    #[component(name = "ascending")]
    Ascending,
    #[component(name = "descending")]
    Descending,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct WasmEntry {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl ComponentEntrance {
    /// Compiles and links, so that an instance is only a slot of the pool away.
    pub(super) fn new(engine: &Engine, component: &[u8], export: &str) -> Result<Self, ModuleError> {
        let component =
            Component::from_binary(engine, component).map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
        let mut linker = Linker::new(engine);
        link(&mut linker).map_err(|error| LocalFault::new(format!("{error:#}")))?;
        let types = |error: wasmtime::Error| ModuleError::Types(format!("{error:#}"));
        let pre = linker.instantiate_pre(&component).map_err(types)?;
        let missing = || ModuleError::MissingExports { names: export.into() };
        let export = component.get_export_index(None, export).ok_or_else(missing)?;
        Ok(ComponentEntrance { pre, export })
    }

    pub(super) fn engine(&self) -> &Engine {
        self.pre.engine()
    }

    /// A fresh instance, one call. `run`: empty for all.
    pub(super) fn call(&self, store: &mut Store<Room>, job: &Job<'_>, run: &[u32]) -> wasmtime::Result<Vec<u8>> {
        let instance = self.pre.instantiate(&mut *store)?;
        // The reply is lifted with its one copy: wasmtime calls the guest's post-return, which frees it, before `call`
        // returns, so that it can't be read in place afterwards.
        let function =
            instance.get_typed_func::<(WasmContext, &[u8], &[u32]), (Vec<u8>,)>(&mut *store, &self.export)?;
        let Context { log_index, term, time_ms, first_command, seed } = *job.context;
        let context = WasmContext { log_index, term, time_ms, first_command, seed };
        Ok(function.call(store, (context, job.batch, run))?.0)
    }

    /// Also checks the types of all exports on a real instance, so that a batch can't meet a wrong one. The inner error
    /// is of these types, the outer one of the run.
    pub(super) fn describe(&self, store: &mut Store<Room>) -> wasmtime::Result<Result<Description, ModuleError>> {
        let instance = self.pre.instantiate(&mut *store)?;
        let checked = (|| {
            for export in ["apply", "query"] {
                instance.get_typed_func::<(WasmContext, &[u8], &[u32]), (Vec<u8>,)>(&mut *store, export)?;
            }
            instance.get_typed_func::<(u32,), (Result<(), String>,)>(&mut *store, "migrate")?;
            instance.get_typed_func::<(), (Description,)>(&mut *store, "describe")
        })();
        match checked {
            Ok(function) => Ok(Ok(function.call(store, ())?.0)),
            Err(error) => Ok(Err(ModuleError::Types(format!("{error:#}")))),
        }
    }
}

/// Defines every import there is; anything else a module asks for is refused when it is compiled.
fn link(linker: &mut Linker<Room>) -> wasmtime::Result<()> {
    let mut store = linker.instance(STORE)?;
    store.func_wrap("get", get)?;
    store.func_wrap("set", set)?;
    store.func_wrap("delete", delete)?;
    store.func_wrap("scan", scan)?;
    store.func_wrap("delete-range", delete_range)?;
    store.func_wrap("begin", host::begin)?;
    store.func_wrap("rollback", host::rollback)?;
    linker.instance(LOG)?.func_wrap("write", write_log)?;
    Ok(())
}

fn get(mut caller: Caller<'_>, (key,): (WasmList<u8>,)) -> wasmtime::Result<(Option<Vec<u8>>,)> {
    host::charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, key.len())?;
    let left = caller.get_fuel()?;
    let Some(found) = caller.data().backing.reader()?.get(key.as_le_slice(&caller)) else { return Ok((None,)) };
    // Looked at before the value is copied out of the map, and paid for when the map isn't read any more.
    let price = host::FUEL_BYTE.saturating_mul(found.len() as u64);
    let value = (price <= left).then(|| found.to_vec());
    host::spend(&mut caller, left.saturating_sub(price), value.is_none())?;
    Ok((value,))
}

/// Lends the store out of the room, so that keys and values are read in place in the guest's memory meanwhile.
fn write<R>(
    caller: &mut Caller<'_>,
    work: impl FnOnce(&Caller<'_>, &mut dyn CommandStore) -> R,
) -> wasmtime::Result<R> {
    caller.data().check_write()?;
    let mut lent = mem::replace(&mut caller.data_mut().backing, Backing::Closed);
    let result = lent.writer().map(|store| work(caller, store));
    caller.data_mut().backing = lent;
    Ok(result?)
}

fn set(mut caller: Caller<'_>, (key, value): (WasmList<u8>, WasmList<u8>)) -> wasmtime::Result<(bool,)> {
    host::charge_bytes(&mut caller, FUEL_CALL + FUEL_WRITE, key.len().saturating_add(value.len()))?;
    let limits = caller.data().limits;
    host::check("key", key.len(), limits.key_bytes_max)?;
    host::check("value", value.len(), limits.value_bytes_max)?;
    Ok((write(&mut caller, |memory, store| store.set(key.as_le_slice(memory), value.as_le_slice(memory)))?,))
}

fn delete(mut caller: Caller<'_>, (key,): (WasmList<u8>,)) -> wasmtime::Result<(bool,)> {
    host::charge_bytes(&mut caller, FUEL_CALL + FUEL_WRITE, key.len())?;
    Ok((write(&mut caller, |memory, store| store.delete(key.as_le_slice(memory)))?,))
}

fn scan(
    mut caller: Caller<'_>,
    (range, limit, max_bytes): (ScanRange, u32, u32),
) -> wasmtime::Result<(Vec<WasmEntry>,)> {
    host::charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, range.len())?;
    let mut fuel = caller.get_fuel()?;
    let store = caller.data().backing.reader()?;
    let (entries, starved) = host::visit(store, range.read(&caller), limit, max_bytes, &mut fuel);
    let entry = |(key, value): host::Pair<'_>| WasmEntry { key: key.to_vec(), value: value.to_vec() };
    let entries = entries.into_iter().map(entry).collect();
    host::spend(&mut caller, fuel, starved)?;
    Ok((entries,))
}

fn delete_range(mut caller: Caller<'_>, (range,): (ScanRange,)) -> wasmtime::Result<(u64,)> {
    host::charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, range.len())?;
    caller.data().check_write()?;
    let fuel = caller.get_fuel()?;
    let (left, starved) = host::price_of_deleting(caller.data().backing.reader()?, range.read(&caller), fuel);
    host::spend(&mut caller, left, starved)?;
    Ok((write(&mut caller, |memory, store| store.delete_range(range.read(memory)))?,))
}

fn write_log(mut caller: Caller<'_>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    host::charge(&mut caller, FUEL_CALL + FUEL_MESSAGE)?;
    let message = message.to_str(&caller)?.into_owned();
    host::charge_bytes(&mut caller, 0, message.len())?;
    Ok(host::log(caller.data(), level, &message)?)
}

impl ScanRange {
    fn len(&self) -> usize {
        let len = |bound: &Option<WasmList<u8>>| bound.as_ref().map_or(0, WasmList::len);
        len(&self.start).saturating_add(len(&self.end))
    }

    fn read<'a>(&self, memory: &'a Caller<'_>) -> KeyRange<'a> {
        let order = match self.order {
            WasmOrder::Ascending => Order::Ascending,
            WasmOrder::Descending => Order::Descending,
        };
        let read = |bound: &Option<WasmList<u8>>| bound.as_ref().map(|key| key.as_le_slice(memory));
        KeyRange { start: read(&self.start), end: read(&self.end), order }
    }
}
