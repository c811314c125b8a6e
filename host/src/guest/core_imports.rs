//! The imports of a core module that is run as it is (`core_module.rs`): the same functions as in `host.rs`, at the same
//! prices, with keys and values as pointers and lengths. Owns what a pointer may be. The next file is `apply.rs`.

use std::mem;
use std::ops::Range;

use wasmtime::{AsContextMut, Linker};

use super::core_module::{allocate, contract, field, memory, span};
use super::fault::Stop;
use super::host::{self, Backing, FUEL_BYTE, FUEL_CALL, FUEL_KEY, FUEL_MESSAGE, FUEL_WRITE, LOG, Level, Room, STORE};
use super::store::{KeyRange, Order};

/// As wasmtime says it of a component.
pub(super) const AWAY: &str = "cannot leave component instance";

/// An `option<list<u8>>`: tag, pointer, length.
const OPTION_BYTES: usize = 12;
/// A list: pointer, length.
const LIST_BYTES: usize = 8;
/// An entry of a scan: two lists.
const ENTRY_BYTES: usize = 16;
const ALIGN: usize = 4;

type Caller<'a> = wasmtime::Caller<'a, Room>;

/// Defines every import there is, with the types that the canonical ABI gives them.
pub(super) fn link(linker: &mut Linker<Room>) -> wasmtime::Result<()> {
    linker.func_wrap(STORE, "get", get)?;
    linker.func_wrap(STORE, "set", set)?;
    linker.func_wrap(STORE, "delete", delete)?;
    linker.func_wrap(STORE, "scan", scan)?;
    linker.func_wrap(STORE, "delete-range", delete_range)?;
    linker.func_wrap(STORE, "begin", begin)?;
    linker.func_wrap(STORE, "rollback", rollback)?;
    linker.func_wrap(LOG, "write", write_log)?;
    Ok(())
}

/// What is looked at in the guest's memory, and the rest of the room.
fn bytes<'a>(caller: &'a mut Caller<'_>) -> Result<(&'a mut [u8], &'a mut Room), Stop> {
    Ok(memory(&*caller)?.data_and_store_mut(caller))
}

fn set(mut caller: Caller<'_>, key: u32, key_bytes: u32, value: u32, value_bytes: u32) -> wasmtime::Result<u32> {
    // Nearly every command calls this, so the guest's memory is looked up once; what isn't paid for isn't done.
    let fuel = caller.get_fuel()?;
    let (guest, room) = bytes(&mut caller)?;
    let (key, value) = (span(guest.len(), key, key_bytes)?, span(guest.len(), value, value_bytes)?);
    let left = fuel.checked_sub(host::price_of_bytes(FUEL_CALL + FUEL_WRITE, key.len() + value.len()));
    let replaced = if left.is_some() { write(room, &guest[key], &guest[value]) } else { Ok(false) };
    host::spend(&mut caller.as_context_mut(), left.unwrap_or(0), left.is_none())?;
    Ok(replaced?.into())
}

fn write(room: &mut Room, key: &[u8], value: &[u8]) -> Result<bool, Stop> {
    host::check("key", key.len(), room.limits.key_bytes_max)?;
    host::check("value", value.len(), room.limits.value_bytes_max)?;
    Ok(room.writer()?.set(key, value))
}

fn delete(mut caller: Caller<'_>, key: u32, key_bytes: u32) -> wasmtime::Result<u32> {
    let key = span(bytes(&mut caller)?.0.len(), key, key_bytes)?;
    host::charge_bytes(&mut caller.as_context_mut(), FUEL_CALL + FUEL_WRITE, key.len())?;
    let (guest, room) = bytes(&mut caller)?;
    Ok(room.writer()?.delete(&guest[key]).into())
}

fn get(mut caller: Caller<'_>, key: u32, key_bytes: u32, out: u32) -> wasmtime::Result<()> {
    let guest_bytes = bytes(&mut caller)?.0.len();
    let (key, out) = (span(guest_bytes, key, key_bytes)?, field(guest_bytes, out, OPTION_BYTES, ALIGN)?);
    host::charge_bytes(&mut caller.as_context_mut(), FUEL_CALL + FUEL_KEY, key.len())?;
    lending(&mut caller, |caller, backing| {
        let left = caller.get_fuel()?;
        let (guest, _) = bytes(caller)?;
        let Some(found) = backing.reader()?.get(&guest[key]) else {
            guest[out] = 0;
            return Ok(());
        };
        let price = FUEL_BYTE.saturating_mul(found.len() as u64);
        host::spend(&mut caller.as_context_mut(), left.saturating_sub(price), price > left)?;
        let at = allocate(&mut *caller, 1, found.len())?;
        let (guest, _) = bytes(caller)?;
        guest[at..][..found.len()].copy_from_slice(found);
        guest[out] = 1;
        put_list(guest, out + 4, at, found.len());
        Ok(())
    })
}

/// The bounds of a scan come flat: each with a tag, pointer and length; then the order.
#[expect(clippy::too_many_arguments, reason = "the canonical ABI has them flat")]
fn scan(
    mut caller: Caller<'_>,
    start: u32,
    start_at: u32,
    start_bytes: u32,
    end: u32,
    end_at: u32,
    end_bytes: u32,
    order: u32,
    limit: u32,
    max_bytes: u32,
    out: u32,
) -> wasmtime::Result<()> {
    let guest_bytes = bytes(&mut caller)?.0.len();
    let out = field(guest_bytes, out, LIST_BYTES, ALIGN)?;
    let range = Bounds::new(guest_bytes, [start, start_at, start_bytes], [end, end_at, end_bytes], order)?;
    host::charge_bytes(&mut caller.as_context_mut(), FUEL_CALL + FUEL_KEY, range.len())?;
    lending(&mut caller, |caller, backing| {
        // Copied, because the guest's memory may move while it allocates.
        let (guest, _) = bytes(caller)?;
        let (start, end) = (range.start.map(|at| guest[at].to_vec()), range.end.map(|at| guest[at].to_vec()));
        let range = KeyRange { start: start.as_deref(), end: end.as_deref(), order: range.order };
        let mut fuel = caller.get_fuel()?;
        let (entries, starved) = host::visit(backing.reader()?, range, limit, max_bytes, &mut fuel);
        host::spend(&mut caller.as_context_mut(), fuel, starved)?;
        let list = allocate(&mut *caller, ALIGN as u32, entries.len() * ENTRY_BYTES)?;
        for (number, (key, value)) in entries.iter().enumerate() {
            let entry = list + number * ENTRY_BYTES;
            for (place, part) in [(entry, key), (entry + LIST_BYTES, value)] {
                let at = allocate(&mut *caller, 1, part.len())?;
                let (guest, _) = bytes(caller)?;
                guest[at..][..part.len()].copy_from_slice(part);
                put_list(guest, place, at, part.len());
            }
        }
        put_list(bytes(caller)?.0, out, list, entries.len());
        Ok(())
    })
}

#[expect(clippy::too_many_arguments, reason = "the canonical ABI has them flat")]
fn delete_range(
    mut caller: Caller<'_>,
    start: u32,
    start_at: u32,
    start_bytes: u32,
    end: u32,
    end_at: u32,
    end_bytes: u32,
    order: u32,
) -> wasmtime::Result<u64> {
    let guest_bytes = bytes(&mut caller)?.0.len();
    let range = Bounds::new(guest_bytes, [start, start_at, start_bytes], [end, end_at, end_bytes], order)?;
    host::charge_bytes(&mut caller.as_context_mut(), FUEL_CALL + FUEL_KEY, range.len())?;
    let fuel = caller.get_fuel()?;
    let (guest, room) = bytes(&mut caller)?;
    let (left, starved) = host::price_of_deleting(room.writer()?, range.read(guest), fuel);
    host::spend(&mut caller.as_context_mut(), left, starved)?;
    let (guest, room) = bytes(&mut caller)?;
    Ok(room.writer()?.delete_range(range.read(guest)))
}

fn begin(mut caller: Caller<'_>, position: u32) -> wasmtime::Result<()> {
    memory(&caller)?;
    host::begin(caller.as_context_mut(), (position,))
}

fn rollback(mut caller: Caller<'_>) -> wasmtime::Result<()> {
    memory(&caller)?;
    host::rollback(caller.as_context_mut(), ())
}

fn write_log(mut caller: Caller<'_>, level: u32, message: u32, message_bytes: u32) -> wasmtime::Result<()> {
    let message = span(bytes(&mut caller)?.0.len(), message, message_bytes)?;
    let level = match level {
        0 => Level::Error,
        1 => Level::Warn,
        2 => Level::Info,
        3 => Level::Debug,
        _ => return Err(contract("unexpected discriminant").into()),
    };
    host::charge_bytes(&mut caller.as_context_mut(), FUEL_CALL + FUEL_MESSAGE, message.len())?;
    let (guest, room) = bytes(&mut caller)?;
    let message = std::str::from_utf8(&guest[message]).map_err(|_| contract("a string is not UTF-8"))?;
    Ok(host::log(room, level, message)?)
}

/// Lends the store out of the room: what is read there is still borrowed while the guest allocates room for it.
fn lending(
    caller: &mut Caller<'_>,
    work: impl FnOnce(&mut Caller<'_>, &Backing) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    let lent = mem::replace(&mut caller.data_mut().backing, Backing::Closed);
    let result = work(caller, &lent);
    caller.data_mut().backing = lent;
    result
}

/// Where it is was looked at with [`field`], or is the guest's allocation.
fn put_list(guest: &mut [u8], place: usize, at: usize, len: usize) {
    guest[place..place + 4].copy_from_slice(&(at as u32).to_le_bytes());
    guest[place + 4..place + 8].copy_from_slice(&(len as u32).to_le_bytes());
}

/// A range whose bounds are in the guest's memory.
struct Bounds {
    start: Option<Range<usize>>,
    end: Option<Range<usize>>,
    order: Order,
}

impl Bounds {
    /// A bound: tag, pointer, length.
    fn new(guest_bytes: usize, start: [u32; 3], end: [u32; 3], order: u32) -> Result<Self, Stop> {
        let bound = |[tag, at, bytes]: [u32; 3]| match tag {
            0 => Ok(None),
            1 => span(guest_bytes, at, bytes).map(Some),
            _ => Err(contract("invalid option discriminant")),
        };
        let order = match order {
            0 => Order::Ascending,
            1 => Order::Descending,
            _ => return Err(contract("unexpected discriminant")),
        };
        Ok(Bounds { start: bound(start)?, end: bound(end)?, order })
    }

    fn len(&self) -> usize {
        self.start.as_ref().map_or(0, Range::len) + self.end.as_ref().map_or(0, Range::len)
    }

    fn read<'a>(&self, guest: &'a [u8]) -> KeyRange<'a> {
        let read = |bound: &Option<Range<usize>>| bound.clone().map(|range| &guest[range]);
        KeyRange { start: read(&self.start), end: read(&self.end), order: self.order }
    }
}
