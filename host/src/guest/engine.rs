//! wasmtime's settings: everything that decides what a module computes, chosen on purpose and named in an identity.
//! Never touches a module or a store. The next file is `module.rs`.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, ModuleVersionStrategy, OperatorCost, OptLevel, PoolingAllocationConfig,
};

use super::host::TABLE_ELEMENTS_MAX;

/// Stack of a running guest, in bytes. The threads that run guests need this and at least 1 MiB more.
pub const STACK_BYTES: usize = 512 << 10;

/// No module may be given more linear memory than this, in bytes: it is the size of a pool's slot.
pub const MEMORY_BYTES_CAP: u64 = 1 << 30;

/// How often a query's deadline is looked at while queries run.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// Applies of a node run one at a time. The others are for `describe` and for tests that share an engine; an unused
/// slot costs only address space.
const APPLY_SLOTS: u32 = 32;
/// Queries that may run at the same time. More wait for a slot, see `Engine::query_slot`.
const QUERY_SLOTS: u32 = 64;
/// Memory that a slot keeps between two instances: what was written there is set back by hand, which is cheaper than
/// giving it to the kernel and faulting it in again. Holds the default 1 MiB stack of a Rust module and its data.
const KEEP_RESIDENT_BYTES: usize = 2 << 20;

/// Raised by hand when this file changes what a module computes: the settings below, the fuel prices of `host.rs`.
const SETTINGS_VERSION: u32 = 3;

/// The engine could not be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the Wasm engine could not be started: {0}")]
pub struct EngineError(String);

/// Two wasmtime engines with separate pools, so that queries never take an apply's slot. Cloning is cheap.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    apply: wasmtime::Engine,
    query: wasmtime::Engine,
    identity: String,
    queries: Arc<Queries>,
}

/// How many queries run. The ticker sleeps while there are none, so that an idle node costs nothing.
struct Queries {
    state: Mutex<QueryState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueryState {
    running: u32,
    closed: bool,
}

impl Engine {
    /// Takes address space for both pools and starts the thread that looks at queries' deadlines.
    pub fn new() -> Result<Self, EngineError> {
        let failed = |error: wasmtime::Error| EngineError(format!("{error:#}"));
        let apply = wasmtime::Engine::new(&config(APPLY_SLOTS, false).map_err(failed)?).map_err(failed)?;
        let query = wasmtime::Engine::new(&config(QUERY_SLOTS, true).map_err(failed)?).map_err(failed)?;
        let queries = Arc::new(Queries { state: Mutex::default(), changed: Condvar::new() });
        let (ticked, seen) = (query.clone(), Arc::clone(&queries));
        thread::Builder::new()
            .name("query-ticker".into())
            .spawn(move || seen.tick(&ticked))
            .map_err(|error| EngineError(format!("its timer thread: {error}")))?;
        let identity = identity(&apply);
        Ok(Engine { shared: Arc::new(Shared { apply, query, identity, queries }) })
    }

    /// Everything that may change what a module computes: wasmtime's version, the target, the compiler's settings.
    /// Replicated with the module, so that a node with another one can say so.
    pub fn identity(&self) -> &str {
        &self.shared.identity
    }

    pub(super) fn apply(&self) -> &wasmtime::Engine {
        &self.shared.apply
    }

    pub(super) fn query(&self) -> &wasmtime::Engine {
        &self.shared.query
    }

    /// Waits until a slot of the query pool is free and keeps the ticker awake until the guard is dropped.
    pub(super) fn query_slot(&self) -> QuerySlot {
        let queries = Arc::clone(&self.shared.queries);
        let mut state = queries.lock();
        while state.running >= QUERY_SLOTS {
            state = queries.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running += 1;
        drop(state);
        queries.changed.notify_all();
        QuerySlot { queries }
    }
}

pub(super) struct QuerySlot {
    queries: Arc<Queries>,
}

impl Drop for QuerySlot {
    fn drop(&mut self) {
        self.queries.lock().running -= 1;
        self.queries.changed.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queries.lock().closed = true;
        self.queries.changed.notify_all();
    }
}

impl Queries {
    fn lock(&self) -> std::sync::MutexGuard<'_, QueryState> {
        // A counter can't be left half-written: a panic elsewhere doesn't spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self, engine: &wasmtime::Engine) {
        loop {
            let mut state = self.lock();
            while state.running == 0 && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            drop(state);
            thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

fn config(slots: u32, timed: bool) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    // An explicit target takes no feature of this machine's processor: all replicas run the same instructions.
    config.target(target())?;
    config.cranelift_opt_level(OptLevel::Speed);
    config.cranelift_nan_canonicalization(true);
    config.consume_fuel(true);
    config.operator_cost(operator_cost());
    config.epoch_interruption(timed);
    config.max_wasm_stack(STACK_BYTES);
    config.memory_init_cow(true);
    // Traces are of no use for a reply, and cost time on each trap.
    config.wasm_backtrace_max_frames(None);
    config.generate_address_map(false);
    // Its results may differ between processors.
    config.wasm_relaxed_simd(false);
    // A guest has one thread and no second memory: nothing to race with.
    config.wasm_multi_memory(false);
    config.wasm_memory64(false);
    config.wasm_wide_arithmetic(false);
    config.wasm_custom_page_sizes(false);
    config.concurrency_support(false);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(slots)));
    Ok(config)
}

/// The default prices (1 per instruction, 1 per byte or element of a bulk operation), but growing is not free.
fn operator_cost() -> OperatorCost {
    let mut cost = OperatorCost::new();
    // A page costs the kernel's zeroing of 64 KiB; 255 is the most that can be said.
    cost.variable.memory_grow_per_page = u8::MAX;
    cost
}

fn pool(slots: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots);
    // A component of wit-component has up to three helper modules beside the real one; a core module is alone.
    pool.total_core_instances(slots * 8);
    pool.max_core_instances_per_component(8);
    pool.total_memories(slots);
    pool.max_memories_per_component(1);
    pool.total_tables(slots * 4);
    pool.max_tables_per_component(4);
    pool.max_tables_per_module(4);
    pool.table_elements(TABLE_ELEMENTS_MAX);
    pool.max_memory_size(MEMORY_BYTES_CAP as usize);
    pool.linear_memory_keep_resident(KEEP_RESIDENT_BYTES);
    pool.table_keep_resident(KEEP_RESIDENT_BYTES);
    // Only pages that were written are set back, where the kernel can say which (Linux 6.7).
    pool.pagemap_scan(Enabled::Auto);
    pool.max_unused_warm_slots(4);
    pool
}

/// The baseline of this build's processor family.
const fn target() -> &'static str {
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        "x86_64-unknown-linux-gnu"
    } else if cfg!(all(target_arch = "aarch64", target_os = "linux")) {
        "aarch64-unknown-linux-gnu"
    } else if cfg!(all(target_arch = "aarch64", target_os = "macos")) {
        "aarch64-apple-darwin"
    } else {
        "x86_64-apple-darwin"
    }
}

fn identity(engine: &wasmtime::Engine) -> String {
    // A hasher of our own: the standard library's may change between two compilers.
    let mut hasher = Blake(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let mut identity = format!(
        "wasmtime-{} {} settings-{SETTINGS_VERSION} ",
        ModuleVersionStrategy::WasmtimeVersion.as_str(),
        target()
    );
    for byte in &hasher.0.finalize().as_bytes()[..8] {
        write!(identity, "{byte:02x}").expect("writing into a String can't fail");
    }
    identity
}

struct Blake(blake3::Hasher);

impl Hasher for Blake {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let bytes = self.0.finalize();
        u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a BLAKE3 hash has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_engines_have_the_same_identity() {
        let (one, two) = (Engine::new().unwrap(), Engine::new().unwrap());
        assert_eq!(one.identity(), two.identity());
        assert!(one.identity().starts_with("wasmtime-48 "), "{}", one.identity());
    }
}
