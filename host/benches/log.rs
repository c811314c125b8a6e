//! What a commit costs: the log's own, plain writes with fdatasync of the same bytes, and sled alone. They take turns, so
//! that their ratio holds on a noisy machine: `cargo bench --workspace --bench log`. On the disk that `TMPDIR` is on,
//! else `/var/tmp`.
//!
//! | variant | what is done for each commit |
//! |---|---|
//! | grows | the bytes are written at the end of a file that grows; fdatasync |
//! | in place | the same over blocks that were written before, which take turns |
//! | sled | one insert of a value of these bytes; flush; fdatasync of its file: the least that survives a power cut |
//! | sled, flush | the same without the fdatasync: the least that survives a SIGKILL |
//! | log | an append of one entry, until it is acknowledged |
//!
//! `RAFTLET_BENCH_COMMITS`: of each variant in each round (default 200).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use raftlet::log::{LogOptions, SledLog};
use raftlet::raft::codec::log_id;
use raftlet::raft::types::{BatchId, Entry, Envelope, Kind, Proposal, TypeConfig};

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of an entry: one small command, a batch of 50, one that is too large for the journal.
const PAYLOAD_BYTES: [usize; 3] = [200, 7_500, 60_000];
const ROUNDS: usize = 9;
/// Blocks that are written over in turn.
const IN_PLACE_BYTES: u64 = 1 << 20;
const ALIGNMENT: usize = 512;

/// Makes one commit durable; how long one took in each round.
type Variant<'a> = (Box<dyn FnMut() + 'a>, Vec<Duration>);

fn main() {
    let commits = std::env::var("RAFTLET_BENCH_COMMITS").map_or(200, |n| n.parse().expect("a number"));
    let place = std::env::var_os("TMPDIR").map_or(PathBuf::from("/var/tmp"), PathBuf::from);
    let dir = tempfile::tempdir_in(place).expect("a folder");
    println!("us per commit, median of {ROUNDS} rounds in turn of {commits} commits");
    println!("   bytes    grows  in place     sled  sled,flush      log   log / sled  log / in place");
    for bytes in PAYLOAD_BYTES {
        case(&dir.path().join(bytes.to_string()), bytes, commits);
    }
}

fn case(dir: &Path, bytes: usize, commits: u64) {
    std::fs::create_dir(dir).expect("a folder");
    let payload: Vec<u8> = (0..bytes).map(|i| (i * 31) as u8).collect();
    let mut grows = Plain::new(&dir.join("grows"), 0);
    let mut in_place = Plain::new(&dir.join("in-place"), IN_PLACE_BYTES.max(4 * bytes as u64));
    let mut sled = Sled::new(&dir.join("sled"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let mut log = Log { log: SledLog::open(&dir.join("log"), LogOptions::default()).expect("a new log"), next: 0 };
    let payload = Bytes::from(payload);
    let mut variants: [Variant<'_>; 5] = [
        (Box::new(|| grows.commit(&payload)), vec![]),
        (Box::new(|| in_place.commit(&payload)), vec![]),
        (Box::new(|| sled.0.commit(&payload, true)), vec![]),
        (Box::new(|| sled.1.commit(&payload, false)), vec![]),
        (Box::new(|| runtime.block_on(log.commit(payload.clone()))), vec![]),
    ];
    for _ in 0..ROUNDS {
        for (commit, times) in &mut variants {
            let started = Instant::now();
            (0..commits).for_each(|_| commit());
            times.push(started.elapsed() / commits as u32);
        }
    }
    let us = |(_, times): &mut Variant<'_>| {
        times.sort_unstable();
        times[ROUNDS / 2].as_secs_f64() * 1e6
    };
    let [grows, in_place, sled, flush, log] = variants.each_mut().map(us);
    println!(
        "{bytes:8} {grows:8.0} {in_place:9.0} {sled:8.0} {flush:11.0} {log:8.0} {:12.2} {:15.2}",
        log / sled,
        log / in_place
    );
}

/// A file that is written with fdatasync. `len` 0: at its end.
struct Plain {
    file: File,
    len: u64,
    at: u64,
}

impl Plain {
    fn new(path: &Path, len: u64) -> Self {
        let file = OpenOptions::new().write(true).create_new(true).open(path).expect("a new file");
        file.write_all_at(&vec![1; len as usize], 0).expect("its blocks are written");
        file.sync_all().expect("it is synced");
        Plain { file, len, at: 0 }
    }

    fn commit(&mut self, bytes: &[u8]) {
        let size = bytes.len().next_multiple_of(ALIGNMENT) as u64;
        if self.len > 0 && self.at + size > self.len {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at).expect("it is written");
        self.file.sync_data().expect("it is synced");
        self.at += size;
    }
}

struct Tree {
    db: sled::Db,
    file: File,
    next: u64,
}

/// One for each variant: they must not flush for each other.
struct Sled(Tree, Tree);

impl Sled {
    fn new(dir: &Path) -> Self {
        let tree = |name| {
            let dir = dir.join(name);
            let config = sled::Config::new().path(&dir).segment_size(8 << 20).flush_every_ms(None);
            let db = config.use_compression(false).open().expect("sled opens");
            Tree { db, file: File::open(dir.join("db")).expect("sled's file"), next: 0 }
        };
        Sled(tree("synced"), tree("flushed"))
    }
}

impl Tree {
    fn commit(&mut self, bytes: &[u8], sync: bool) {
        self.db.insert(self.next.to_be_bytes(), bytes).expect("it is inserted");
        self.next += 1;
        self.db.flush().expect("it is flushed");
        if sync {
            self.file.sync_data().expect("it is synced");
        }
    }
}

struct Log {
    log: SledLog,
    next: u64,
}

impl Log {
    async fn commit(&mut self, bytes: Bytes) {
        let id = BatchId { node: 1, boot: 1, sequence: self.next };
        let envelope = Envelope { kind: Kind::Batch, id, time_ms: 1, stamp_index: 0, stamp_digest: [0; 16] };
        let entry = Entry::new(log_id(1, self.next), EntryPayload::Normal(Proposal { envelope, bytes }));
        self.next += 1;
        let (done, acknowledged) = TypeConfig::oneshot();
        self.log.append([entry], IOFlushed::<TypeConfig>::signal(done)).await.expect("it is queued");
        acknowledged.await.expect("the writer lives").expect("it is durable");
    }
}
