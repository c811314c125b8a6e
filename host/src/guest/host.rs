//! What a guest may ask of its host, and what each costs in fuel. Host work is charged before it is done, so that a
//! command without fuel has no cost. Owns what belongs to one instance; how a call comes in is in `component.rs` and in
//! `core_imports.rs`. Never decides what a failure means: that is `fault.rs`; the next file on the way of a batch is
//! `apply.rs`.

use wasmtime::component::{ComponentType, Lift};
use wasmtime::{ResourceLimiter, StoreContextMut, Trap};

use super::core_module::Guest;
use super::fault::Stop;
use super::limits::Limits;
use super::store::{CommandStore, KeyRange, ReadStore};

pub(super) const STORE: &str = "raftlet:machine/store@0.1.0";
pub(super) const LOG: &str = "raftlet:machine/log@0.1.0";
pub(super) const TYPES: &str = "raftlet:machine/types@0.1.0";

/// Prices of host work in fuel. Changing one changes replies: raise `SETTINGS_VERSION` in `engine.rs`.
pub(super) const FUEL_CALL: u64 = 100;
/// For each byte of a key, value or message that crosses, beside the copies that the guest makes itself.
pub(super) const FUEL_BYTE: u64 = 1;
/// For each key visited by a scan.
pub(super) const FUEL_KEY: u64 = 100;
/// For each key set or deleted: a path in the map is copied.
pub(super) const FUEL_WRITE: u64 = 1_000;
/// For each log message: a line in every node's log.
pub(super) const FUEL_MESSAGE: u64 = 10_000;

/// A guest hands over at most this many bytes in one call. Keys and values have their own limits below it.
const CALL_BYTES_MAX: u64 = 1 << 30;
/// Elements that a table may have.
pub(super) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Longer log messages are cut.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

pub(super) const TOO_MUCH: &str = "too much data is being copied between the host and the guest";
const CLOSED: &str = "the store was used in describe";

/// Host data of one instance.
pub(super) struct Room {
    pub backing: Backing,
    pub limits: Limits,
    pub meter: Meter,
    /// On a thread that must not be held up, not even by whoever reads the node's log.
    pub is_light: bool,
    /// Of a core module that is run as it is: what its imports need of it. None while it must not call them.
    pub guest: Option<Guest>,
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

#[derive(ComponentType, Lift, Debug, Clone, Copy, PartialEq, Eq)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Level {
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
        Room { backing, limits, meter, is_light: false, guest: None }
    }

    pub(super) fn check_write(&self) -> Result<(), Stop> {
        let why = match &self.backing {
            // Else the write would belong to no command and survive its failure.
            Backing::Command(_) if self.meter.begun == 0 => "the store was written before begin was called",
            Backing::Command(_) => return Ok(()),
            Backing::Query(_) => "a query tried to write to the store",
            Backing::Closed => CLOSED,
        };
        Err(Stop::Contract(why.into()))
    }

    pub(super) fn writer(&mut self) -> Result<&mut dyn CommandStore, Stop> {
        self.check_write()?;
        self.backing.writer()
    }
}

impl Backing {
    pub(super) fn reader(&self) -> Result<&dyn ReadStore, Stop> {
        match self {
            Backing::Command(store) => Ok(&**store),
            Backing::Query(store) => Ok(&**store),
            Backing::Closed => Err(Stop::Contract(CLOSED.into())),
        }
    }

    /// Whether it may be written at all is [`Room::check_write`]'s to say.
    pub(super) fn writer(&mut self) -> Result<&mut dyn CommandStore, Stop> {
        match self {
            Backing::Command(store) => Ok(&mut **store),
            Backing::Query(_) | Backing::Closed => Err(Stop::Contract(CLOSED.into())),
        }
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

/// How many bytes may be copied out of a guest in one call. Our own limits come first; this one only keeps a call's copies
/// below what a node can hold.
pub(super) fn call_bytes(limits: &Limits) -> usize {
    CALL_BYTES_MAX.min(limits.memory_bytes_max.saturating_mul(2)) as usize
}

/// Before anything runs in a store: what is not Wasm's own fuel.
pub(super) fn prepare(store: &mut wasmtime::Store<Room>) -> wasmtime::Result<()> {
    store.limiter(|room| room);
    let limits = store.data().limits;
    store.set_hostcall_fuel(call_bytes(&limits));
    store.set_fuel(limits.fuel_frame)
}

pub(super) type Caller<'a> = StoreContextMut<'a, Room>;

/// Takes fuel, or all that is left.
pub(super) fn charge(caller: &mut Caller<'_>, fuel: u64) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?.checked_sub(fuel);
    spend(caller, left.unwrap_or(0), left.is_none())
}

pub(super) fn charge_bytes(caller: &mut Caller<'_>, base: u64, bytes: usize) -> wasmtime::Result<()> {
    charge(caller, price_of_bytes(base, bytes))
}

pub(super) fn price_of_bytes(base: u64, bytes: usize) -> u64 {
    base.saturating_add(FUEL_BYTE.saturating_mul(bytes as u64))
}

/// Sets the fuel that is left after host work; `starved`: it was not enough.
pub(super) fn spend(caller: &mut Caller<'_>, left: u64, starved: bool) -> wasmtime::Result<()> {
    caller.set_fuel(if starved { 0 } else { left })?;
    if starved { Err(Trap::OutOfFuel.into()) } else { Ok(()) }
}

pub(super) fn check(what: &str, len: usize, max: u32) -> Result<(), Stop> {
    if len > max as usize {
        return Err(Stop::Contract(format!("a {what} has {len} bytes, {max} are allowed")));
    }
    Ok(())
}

/// Key and value.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// The entries of one scan, each paid for when it is met, and whether the fuel ended first.
pub(super) fn visit<'a>(
    store: &'a dyn ReadStore,
    range: KeyRange<'a>,
    limit: u32,
    max_bytes: u32,
    fuel: &mut u64,
) -> (Vec<Pair<'a>>, bool) {
    let mut entries = Vec::new();
    let mut bytes = 0_u64;
    for (key, value) in store.scan(range).take(limit as usize) {
        let size = (key.len() + value.len()) as u64;
        bytes += size;
        if bytes > u64::from(max_bytes) && !entries.is_empty() {
            break;
        }
        match fuel.checked_sub(FUEL_KEY + FUEL_BYTE * size) {
            Some(left) => *fuel = left,
            None => return (entries, true),
        }
        entries.push((key, value));
    }
    (entries, false)
}

/// What is left of the fuel when each key of the range is paid for, and whether it was not enough: then nothing is
/// deleted and hardly anything visited.
pub(super) fn price_of_deleting(store: &dyn ReadStore, range: KeyRange<'_>, fuel: u64) -> (u64, bool) {
    let price = FUEL_KEY + FUEL_WRITE;
    let affordable = fuel / price;
    let wanted = store.scan(range).take(affordable as usize + 1).count() as u64;
    (fuel.saturating_sub(wanted * price), wanted > affordable)
}

pub(super) fn begin(mut caller: Caller<'_>, (position,): (u32,)) -> wasmtime::Result<()> {
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

pub(super) fn rollback(mut caller: Caller<'_>, (): ()) -> wasmtime::Result<()> {
    charge(&mut caller, FUEL_CALL + FUEL_WRITE)?;
    caller.data_mut().writer()?.rollback();
    Ok(())
}

/// Into the node's log.
///
/// # Errors
/// In a light run, which ends here: to write may take any time, and then it would be written twice.
pub(super) fn log(room: &Room, level: Level, message: &str) -> Result<(), Stop> {
    let is_read = match level {
        Level::Error => tracing::enabled!(target: "module", tracing::Level::ERROR),
        Level::Warn => tracing::enabled!(target: "module", tracing::Level::WARN),
        Level::Info => tracing::enabled!(target: "module", tracing::Level::INFO),
        Level::Debug => tracing::enabled!(target: "module", tracing::Level::DEBUG),
    };
    if room.is_light && is_read {
        return Err(Stop::Budget);
    }
    let message = &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
    match level {
        Level::Error => tracing::error!(target: "module", "{message}"),
        Level::Warn => tracing::warn!(target: "module", "{message}"),
        Level::Info => tracing::info!(target: "module", "{message}"),
        Level::Debug => tracing::debug!(target: "module", "{message}"),
    }
    Ok(())
}
