//! A module that misbehaves in the way that the path names, for tests of the engine. Commands and queries take the
//! same paths. `GET /get/{key}` and `PUT /put/{key}` behave, so that a test can see what is left of the others.
//!
//! | path | what it does |
//! |---|---|
//! | `/trap` | writes `trap`, then executes `unreachable` |
//! | `/panic` | writes `panic`, then panics |
//! | `/loop` | writes `loop`, then never returns |
//! | `/recurse` | recurses until the stack ends |
//! | `/alloc` | grows its memory until that fails, then traps |
//! | `/alloc/{n}` | holds n MiB, then replies |
//! | `/static` | replies with a static counter: 1 for the first command of an instance |
//! | `/scan/{n}` | scans the whole store n times; replies with the entries seen |
//! | `/delete-range` | deletes the whole store; replies with how many keys |
//! | `/rollback` | writes `rollback`, then rolls back |
//! | `/put/{key}`, `/get/{key}`, `/delete/{key}` | writes the body, reads, deletes |
//! | `/big-value/{n}`, `/big-key/{n}` | sets a value or a key of n bytes |
//! | `/big-reply/{n}` | replies with n bytes |
//! | `/status/{n}` | replies with that status |
//! | `/bad-header` | replies with a header that HTTP can't carry |
//! | `/float-nan` | replies with the bits of a NaN that arithmetic made |
//! | `/context` | replies with all of the context |
//! | `/log` | logs the body |
//! | `/write` | writes `write`, in a query too |
//! | `/count-wrong` | its batch gets one reply too many |
//! | `/count-short` | its batch gets one reply too few |
//! | `/garbage` | its batch gets bytes that are no archive |
//! | `/begin-wrong` | begins a command that is not in the batch |

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

use raftlet_machine::guest::bindings::raftlet::machine::{store as host_store, types};
use raftlet_machine::guest::{Context, KeyRange, Level, Machine, Store, StoreView, bindings, log};
use raftlet_machine::{ArchivedBatch, ArchivedRequest, Batch, Replies, Reply};

struct Hostile;

impl Machine for Hostile {
    const NAME: &'static str = "hostile";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn apply(ctx: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply {
        let (name, rest) = split(request);
        match name {
            "put" => {
                store.set(rest.as_bytes(), request.body());
                Reply::status(204)
            }
            "delete" => Reply::text(200, store.delete(rest.as_bytes())),
            "delete-range" => Reply::text(200, store.delete_range(&KeyRange::all())),
            "rollback" => {
                store.set(b"rollback", b"x");
                store.rollback();
                Reply::status(204)
            }
            "big-value" => {
                store.set(b"big", &vec![7; number(rest)]);
                Reply::status(204)
            }
            "big-key" => {
                store.set(&vec![b'k'; number(rest)], b"");
                Reply::status(204)
            }
            "trap" | "panic" | "loop" => {
                store.set(name.as_bytes(), b"x");
                read(ctx, request, store)
            }
            _ => read(ctx, request, store),
        }
    }

    fn query(ctx: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply {
        read(ctx, request, store)
    }
}

fn read(ctx: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let (name, rest) = split(request);
    match name {
        "get" => store.get(rest.as_bytes()).map_or_else(Reply::not_found, Reply::ok),
        "trap" => trap(),
        "panic" => panic!("as asked"),
        "loop" => loop {
            black_box(());
        },
        "recurse" => Reply::text(200, recurse(1)),
        "alloc" => Reply::text(200, alloc(if rest.is_empty() { usize::MAX } else { number(rest) })),
        "static" => Reply::text(200, COUNTER.fetch_add(1, Ordering::Relaxed) + 1),
        "scan" => {
            let seen: usize = (0..number(rest)).map(|_| store.scan(&KeyRange::all(), u32::MAX, u32::MAX).len()).sum();
            Reply::text(200, seen)
        }
        "big-reply" => Reply::ok(vec![7; number(rest)]),
        "status" => Reply::status(number(rest) as u16),
        "bad-header" => Reply::status(200).with_header("bad header\r\n", "a\r\nb"),
        "float-nan" => Reply::text(200, format_args!("{:016x}", (black_box(0.0_f64) / black_box(-0.0)).to_bits())),
        "context" => Reply::text(200, format_args!("{ctx:?}")),
        "log" => {
            log(Level::Info, request.body_text().unwrap_or("not UTF-8"));
            Reply::status(204)
        }
        "write" => {
            write_past_the_sdk();
            Reply::status(204)
        }
        // What the export does to the whole batch.
        "count-wrong" | "count-short" | "garbage" | "begin-wrong" => Reply::status(200),
        _ => Reply::not_found(),
    }
}

/// `/name/rest` in two.
fn split(request: &ArchivedRequest) -> (&str, &str) {
    let path = request.path().trim_start_matches('/');
    path.split_once('/').unwrap_or((path, ""))
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or(0)
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    panic!("a trap");
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    if black_box(true) { recurse(depth + 1) + frame[7] } else { depth }
}

/// Holds so many MiB; traps when there is no more.
fn alloc(mib_max: usize) -> usize {
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() < mib_max {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            trap();
        }
        block.resize(1 << 20, 7);
        held.push(black_box(block));
    }
    held.len()
}

/// The SDK gives a query no way to write, so this goes to the import itself.
fn write_past_the_sdk() {
    host_store::set(b"write", b"x");
}

/// The exports, with what no author on the SDK could do.
struct Export;

impl bindings::Guest for Export {
    fn describe() -> types::Description {
        <Hostile as bindings::Guest>::describe()
    }

    fn apply(ctx: types::Context, batch: Vec<u8>, run: Vec<u32>) -> Vec<u8> {
        spoil(&batch, &run, |batch, run| <Hostile as bindings::Guest>::apply(ctx, batch, run))
    }

    fn query(ctx: types::Context, batch: Vec<u8>, run: Vec<u32>) -> Vec<u8> {
        spoil(&batch, &run, |batch, run| <Hostile as bindings::Guest>::query(ctx, batch, run))
    }

    fn migrate(from_schema: u32) -> Result<(), String> {
        <Hostile as bindings::Guest>::migrate(from_schema)
    }
}

/// Runs the batch, then breaks the contract if one of the commands that were run asks for it.
fn spoil(batch: &[u8], run: &[u32], answer: impl FnOnce(Vec<u8>, Vec<u32>) -> Vec<u8>) -> Vec<u8> {
    let archive = Batch::access(batch).expect("the host validates batches");
    let archived = answer(batch.to_vec(), run.to_vec());
    if asked(archive, run, "begin-wrong") {
        host_store::begin(u32::MAX);
    }
    if asked(archive, run, "garbage") {
        return b"|BATCH|\0\xff".to_vec();
    }
    let mut replies = Replies::from_bytes(&archived).expect("the SDK archives replies").replies;
    if asked(archive, run, "count-wrong") {
        replies.push(Reply::status(200));
    }
    if asked(archive, run, "count-short") {
        replies.pop();
    }
    Replies { replies }.to_bytes()
}

fn asked(batch: &ArchivedBatch, run: &[u32], name: &str) -> bool {
    let runs = |position: usize| run.is_empty() || run.contains(&(position as u32));
    batch.commands.iter().enumerate().any(|(at, command)| runs(at) && split(command).0 == name)
}

#[cfg(target_arch = "wasm32")]
raftlet_machine::guest::bindings::export_component!(Export with_types_in raftlet_machine::guest::bindings);
#[cfg(not(target_arch = "wasm32"))]
const _: fn(types::Context, Vec<u8>, Vec<u32>) -> Vec<u8> = <Export as bindings::Guest>::apply;
