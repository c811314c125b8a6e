//! Applying a batch: through the built-in module, the same logic natively over the same map, and the whole of an
//! entry's apply with digest and sessions. The three take turns in short rounds, so that their ratio holds on a noisy
//! machine: `cargo bench --workspace --bench apply`.
//!
//! `RAFTLET_BENCH_KEYS=10000000` for another size of the state, in keys (default: 10,000 and 1,000,000 in turn);
//! `RAFTLET_BENCH_MS`: how long a case takes, per variant. For a profile: `RAFTLET_BENCH_CASE=1000x100` runs one size of
//! batch and value alone, `RAFTLET_BENCH_ONLY=wasm` one variant (`wasm`, `native`, `whole`).

mod common;

use std::time::{Duration, Instant};

use raftlet::guest::Engine;
use raftlet::raft::types::Kind;
use raftlet::state_machine::Effort;

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands in a batch, and bytes of a value.
const BATCHES: [(u64, usize); 4] = [(1, 100), (50, 100), (1_000, 100), (1_000, 16)];
/// Different batches that are applied in turn, so that no round runs in the caches of the last one.
const DIFFERENT: u64 = 64;
const ROUNDS: u32 = 25;

fn main() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let sizes = number("RAFTLET_BENCH_KEYS").map_or(vec![10_000, 1_000_000], |keys| vec![keys]);
    let time = Duration::from_millis(number("RAFTLET_BENCH_MS").unwrap_or(1_500));
    println!("ns per command, median of {ROUNDS} rounds in turn (range of the ratio: quartiles)");
    println!("      keys  batch  value     wasm   native  ratio            whole apply");
    let (case_only, only) = (std::env::var("RAFTLET_BENCH_CASE").ok(), std::env::var("RAFTLET_BENCH_ONLY").ok());
    for keys in sizes {
        for (commands, value_bytes) in BATCHES {
            if case_only.as_ref().is_none_or(|case| *case == format!("{commands}x{value_bytes}")) {
                case(keys, commands, value_bytes, time / ROUNDS, only.as_deref());
            }
        }
    }
}

fn case(keys: u64, commands: u64, value_bytes: usize, round: Duration, only: Option<&str>) {
    // Each with an engine of its own: memory that another case's instances have written would be dearer to set back.
    let engine = &Engine::new().expect("the engine starts");
    let module = common::module(engine);
    let batches: Vec<_> = (0..DIFFERENT).map(|seed| common::batch(commands, keys, value_bytes, seed)).collect();
    let start = common::map(keys, value_bytes);
    let (mut left, mut right) = (start.clone(), start.clone());
    let mut replica = common::replica(engine, start);
    let (mut wasm, mut native, mut whole, mut ratios) = (vec![], vec![], vec![], vec![]);
    let mut turn = 0;
    let per_command = |name: &str, mut each: Box<dyn FnMut(usize) + '_>, turn: &mut usize| {
        if only.is_some_and(|only| only != name) {
            return f64::NAN;
        }
        let started = Instant::now();
        let mut runs = 0;
        while started.elapsed() < round {
            each(*turn % batches.len());
            *turn += 1;
            runs += 1;
        }
        started.elapsed().as_nanos() as f64 / (runs * commands) as f64
    };
    for _ in 0..ROUNDS {
        let a = per_command(
            "wasm",
            Box::new(|at| left = common::through_wasm(&module, left.clone(), &batches[at], 1).1),
            &mut turn,
        );
        let b =
            per_command("native", Box::new(|at| right = common::natively(right.clone(), &batches[at], 1).1), &mut turn);
        let apply = |at: usize| {
            let entry = common::entry(&replica, Kind::Batch, batches[at].clone());
            drop(replica.apply(&entry, Effort::Whole).expect("this machine is sound"));
        };
        let c = per_command("whole", Box::new(apply), &mut turn);
        wasm.push(a);
        native.push(b);
        whole.push(c);
        ratios.push(a / b);
    }
    for figures in [&mut wasm, &mut native, &mut whole, &mut ratios] {
        figures.sort_by(f64::total_cmp);
    }
    let at = |figures: &[f64], part: f64| figures[(figures.len() as f64 * part) as usize];
    println!(
        "{keys:10} {commands:6} {value_bytes:6} {:8.0} {:8.0}  {:.2} ({:.2}-{:.2}) {:8.0}",
        at(&wasm, 0.5),
        at(&native, 0.5),
        at(&ratios, 0.5),
        at(&ratios, 0.25),
        at(&ratios, 0.75),
        at(&whole, 0.5)
    );
}
