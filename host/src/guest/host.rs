//! The imports: what a guest may ask of its host, and what each costs in fuel. Host work is charged before it is done,
//! so that a command without fuel has no cost. Never decides what a failure means: that is `fault.rs`; the next file
//! on the way of a batch is `apply.rs`.

use std::mem;

use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList, WasmStr};
use wasmtime::{ResourceLimiter, StoreContextMut, Trap};

use super::fault::Stop;
use super::limits::Limits;
use super::store::{CommandStore, KeyRange, Order, ReadStore};

pub(super) const STORE: &str = "raftlet:machine/store@0.1.0";
pub(super) const LOG: &str = "raftlet:machine/log@0.1.0";
pub(super) const TYPES: &str = "raftlet:machine/types@0.1.0";

/// Prices of host work in fuel. Changing one changes replies: raise `SETTINGS_VERSION` in `engine.rs`.
const FUEL_CALL: u64 = 100;
/// For each byte of a key, value or message that crosses, beside the copies that the guest makes itself.
const FUEL_BYTE: u64 = 1;
/// For each key visited by a scan.
const FUEL_KEY: u64 = 100;
/// For each key set or deleted: a path in the map is copied.
const FUEL_WRITE: u64 = 1_000;
/// For each log message: a line in every node's log.
const FUEL_MESSAGE: u64 = 10_000;

/// A guest hands over at most this many bytes in one call. Keys and values have their own limits below it.
const CALL_BYTES_MAX: u64 = 1 << 30;
/// Elements that a table may have.
pub(super) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Longer log messages are cut.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Host data of one instance.
pub(super) struct Room {
    pub backing: Backing,
    pub limits: Limits,
    pub meter: Meter,
}

/// What is behind the `store` import.
pub(super) enum Backing {
    Command(Box<dyn CommandStore>),
    Query(Box<dyn ReadStore>),
    /// `describe` has no store.
    Closed,
}

/// Whose turn it is and what it may use.
pub(super) struct Meter {
    /// The positions to be begun, in this order.
    pub run: Vec<u32>,
    /// How many were.
    pub begun: usize,
    /// Fuel of the batch that is left for commands.
    pub budget: u64,
    /// Of the current command, out of the budget.
    allotted: u64,
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

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by Lift, out of a discriminant")]
enum Level {
    #[component(name = "error")]
    Error,
    #[component(name = "warn")]
    Warn,
    #[component(name = "info")]
    Info,
    #[component(name = "debug")]
    Debug,
}

impl Room {
    pub(super) fn new(backing: Backing, limits: Limits, run: Vec<u32>, budget: u64) -> Self {
        let meter = Meter { run, begun: 0, budget, allotted: 0 };
        Room { backing, limits, meter }
    }

    fn reader(&self) -> Result<&dyn ReadStore, Stop> {
        match &self.backing {
            Backing::Command(store) => Ok(&**store),
            Backing::Query(store) => Ok(&**store),
            Backing::Closed => Err(Stop::Contract("the store was used in describe".into())),
        }
    }

    fn check_write(&self) -> Result<(), Stop> {
        let why = match &self.backing {
            // Else the write would belong to no command and survive its failure.
            Backing::Command(_) if self.meter.begun == 0 => "the store was written before begin was called",
            Backing::Command(_) => return Ok(()),
            Backing::Query(_) => "a query tried to write to the store",
            Backing::Closed => "the store was used in describe",
        };
        Err(Stop::Contract(why.into()))
    }
}

/// A growth beyond the limits ends the command; within them it is up to the module (its own maximum) or local.
impl ResourceLimiter for Room {
    fn memory_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired as u64 > self.limits.memory_bytes_max {
            return Err(Stop::Memory.into());
        }
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // The one failure that wasmtime reports here before it asked `memory_growing`: `memory.grow` answers -1.
        if error.to_string().contains("exceeds memory type's limits") {
            return Ok(());
        }
        Err(Stop::Refused(format!("{error:#}")).into())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(Stop::Refused(format!("{error:#}")).into())
    }
}

impl Meter {
    /// True if the current command got less than a whole command's fuel, because the batch had no more.
    pub(super) fn is_tight(&self, limits: &Limits) -> bool {
        self.begun > 0 && self.allotted < limits.fuel_per_command
    }

    /// Takes what the current command used off the budget. `left` is the fuel that remains.
    pub(super) fn settle(&mut self, left: u64) {
        self.budget -= self.allotted.saturating_sub(left);
        self.allotted = 0;
    }

    /// The fuel of the command that starts. `left` is what the one before it left.
    fn begin(&mut self, position: u32, left: u64, limits: &Limits) -> Result<u64, Stop> {
        if self.run.get(self.begun) != Some(&position) {
            return Err(Stop::Begin);
        }
        self.settle(left);
        if self.budget == 0 {
            return Err(Stop::Budget);
        }
        self.begun += 1;
        self.allotted = limits.fuel_per_command.min(self.budget);
        // The last command is followed by the archiving of all replies.
        let frame = if self.begun == self.run.len() { limits.fuel_frame } else { 0 };
        Ok(self.allotted + frame)
    }
}

/// Defines every import there is; anything else a module asks for is refused when it is compiled.
pub(super) fn link(linker: &mut Linker<Room>) -> wasmtime::Result<()> {
    let mut store = linker.instance(STORE)?;
    store.func_wrap("get", get)?;
    store.func_wrap("set", set)?;
    store.func_wrap("delete", delete)?;
    store.func_wrap("scan", scan)?;
    store.func_wrap("delete-range", delete_range)?;
    store.func_wrap("begin", begin)?;
    store.func_wrap("rollback", rollback)?;
    linker.instance(LOG)?.func_wrap("write", write_log)?;
    Ok(())
}

/// Before anything runs in a store: what is not Wasm's own fuel.
pub(super) fn prepare(store: &mut wasmtime::Store<Room>) -> wasmtime::Result<()> {
    store.limiter(|room| room);
    // Our own limits come first; this one only keeps a call's copies below what a node can hold.
    let call_bytes = CALL_BYTES_MAX.min(store.data().limits.memory_bytes_max.saturating_mul(2));
    store.set_hostcall_fuel(call_bytes as usize);
    let frame = store.data().limits.fuel_frame;
    store.set_fuel(frame)
}

type Caller<'a> = StoreContextMut<'a, Room>;

/// Takes fuel, or all that is left.
fn charge(caller: &mut Caller<'_>, fuel: u64) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?.checked_sub(fuel);
    caller.set_fuel(left.unwrap_or(0))?;
    if left.is_none() { Err(Trap::OutOfFuel.into()) } else { Ok(()) }
}

fn charge_bytes(caller: &mut Caller<'_>, base: u64, bytes: usize) -> wasmtime::Result<()> {
    charge(caller, base.saturating_add(FUEL_BYTE.saturating_mul(bytes as u64)))
}

fn check(what: &str, len: usize, max: u32) -> Result<(), Stop> {
    if len > max as usize {
        return Err(Stop::Contract(format!("a {what} has {len} bytes, {max} are allowed")));
    }
    Ok(())
}

fn get(mut caller: Caller<'_>, (key,): (WasmList<u8>,)) -> wasmtime::Result<(Option<Vec<u8>>,)> {
    charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, key.len())?;
    let left = caller.get_fuel()?;
    let Some(found) = caller.data().reader()?.get(key.as_le_slice(&caller)) else { return Ok((None,)) };
    // Looked at before the value is copied out of the map, and paid for when the map isn't read any more.
    let price = FUEL_BYTE.saturating_mul(found.len() as u64);
    let value = (price <= left).then(|| found.to_vec());
    spend(&mut caller, left.saturating_sub(price), value.is_none())?;
    Ok((value,))
}

/// Lends the store out of the room, so that keys and values are read in place in the guest's memory meanwhile.
fn write<R>(
    caller: &mut Caller<'_>,
    work: impl FnOnce(&Caller<'_>, &mut dyn CommandStore) -> R,
) -> wasmtime::Result<R> {
    caller.data().check_write()?;
    let mut lent = mem::replace(&mut caller.data_mut().backing, Backing::Closed);
    let result = match &mut lent {
        Backing::Command(store) => Some(work(caller, &mut **store)),
        Backing::Query(_) | Backing::Closed => None,
    };
    caller.data_mut().backing = lent;
    Ok(result.expect("check_write lets only commands through"))
}

fn set(mut caller: Caller<'_>, (key, value): (WasmList<u8>, WasmList<u8>)) -> wasmtime::Result<(bool,)> {
    charge_bytes(&mut caller, FUEL_CALL + FUEL_WRITE, key.len().saturating_add(value.len()))?;
    let limits = caller.data().limits;
    check("key", key.len(), limits.key_bytes_max)?;
    check("value", value.len(), limits.value_bytes_max)?;
    Ok((write(&mut caller, |memory, store| store.set(key.as_le_slice(memory), value.as_le_slice(memory)))?,))
}

fn delete(mut caller: Caller<'_>, (key,): (WasmList<u8>,)) -> wasmtime::Result<(bool,)> {
    charge_bytes(&mut caller, FUEL_CALL + FUEL_WRITE, key.len())?;
    Ok((write(&mut caller, |memory, store| store.delete(key.as_le_slice(memory)))?,))
}

fn scan(
    mut caller: Caller<'_>,
    (range, limit, max_bytes): (ScanRange, u32, u32),
) -> wasmtime::Result<(Vec<WasmEntry>,)> {
    charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, range.len())?;
    let mut fuel = caller.get_fuel()?;
    let mut entries = Vec::new();
    let mut bytes = 0_u64;
    let mut starved = false;
    for (key, value) in caller.data().reader()?.scan(range.read(&caller)).take(limit as usize) {
        let size = (key.len() + value.len()) as u64;
        bytes += size;
        if bytes > u64::from(max_bytes) && !entries.is_empty() {
            break;
        }
        match fuel.checked_sub(FUEL_KEY + FUEL_BYTE * size) {
            Some(left) => fuel = left,
            None => {
                starved = true;
                break;
            }
        }
        entries.push(WasmEntry { key: key.to_vec(), value: value.to_vec() });
    }
    spend(&mut caller, fuel, starved)?;
    Ok((entries,))
}

/// Pays for every key first: without the fuel nothing is deleted and hardly anything visited.
fn delete_range(mut caller: Caller<'_>, (range,): (ScanRange,)) -> wasmtime::Result<(u64,)> {
    charge_bytes(&mut caller, FUEL_CALL + FUEL_KEY, range.len())?;
    caller.data().check_write()?;
    let price = FUEL_KEY + FUEL_WRITE;
    let fuel = caller.get_fuel()?;
    let affordable = fuel / price;
    let wanted = caller.data().reader()?.scan(range.read(&caller)).take(affordable as usize + 1).count() as u64;
    spend(&mut caller, fuel.saturating_sub(wanted * price), wanted > affordable)?;
    Ok((write(&mut caller, |memory, store| store.delete_range(range.read(memory)))?,))
}

/// Sets the fuel that is left after host work; `starved`: it was not enough.
fn spend(caller: &mut Caller<'_>, left: u64, starved: bool) -> wasmtime::Result<()> {
    caller.set_fuel(if starved { 0 } else { left })?;
    if starved { Err(Trap::OutOfFuel.into()) } else { Ok(()) }
}

fn begin(mut caller: Caller<'_>, (position,): (u32,)) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?;
    let room = caller.data_mut();
    let fuel = room.meter.begin(position, left, &room.limits)?;
    if let Backing::Command(store) = &mut room.backing {
        store.begin();
    }
    // The call itself is paid out of it.
    let left = fuel.checked_sub(FUEL_CALL);
    spend(&mut caller, left.unwrap_or(0), left.is_none())
}

fn rollback(mut caller: Caller<'_>, (): ()) -> wasmtime::Result<()> {
    charge(&mut caller, FUEL_CALL + FUEL_WRITE)?;
    write(&mut caller, |_, store| store.rollback())
}

fn write_log(mut caller: Caller<'_>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    charge(&mut caller, FUEL_CALL + FUEL_MESSAGE)?;
    let message = message.to_str(&caller)?.into_owned();
    charge_bytes(&mut caller, 0, message.len())?;
    let message = &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
    match level {
        Level::Error => tracing::error!(target: "module", "{message}"),
        Level::Warn => tracing::warn!(target: "module", "{message}"),
        Level::Info => tracing::info!(target: "module", "{message}"),
        Level::Debug => tracing::debug!(target: "module", "{message}"),
    }
    Ok(())
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
