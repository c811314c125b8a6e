//! The figures of a node, for `/_/metrics`. Owned here so that every room can count without knowing who reads.
//! The histograms along a write's path add up to its latency: queue, then commit, which has the log's fsync, here and on
//! a quorum, and the apply in it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Why a batch was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SealReason {
    /// No batch of this node was on its way.
    Idle,
    /// One was, with no more commands.
    Overlap,
    Ops,
    Bytes,
    Delay,
    /// Batching is off.
    Single,
    Shutdown,
    /// A client sent it as one batch.
    Bulk,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sealed {
    reason: SealReason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requests {
    class: &'static str,
    status: &'static str,
}

pub struct Metrics {
    pub registry: Registry,
    requests: Family<Requests, Counter>,
    pub connections_open: Gauge<u64, AtomicU64>,
    sealed: Family<Sealed, Counter>,
    batch_commands: Counter,
    /// Of these, those in batches that clients made.
    bulk_commands: Counter,
    /// Commands of each sealed batch.
    batch_size: Histogram,
    /// From when a batch of this node was sealed until it was applied here: replication, the log's sync, the apply.
    pub commit_seconds: Histogram,
    /// One commit of this node's log: until what was queued is durable.
    pub fsync_seconds: Histogram,
    /// From a command's arrival until its batch was sealed.
    pub queue_seconds: Histogram,
    /// One module run over one batch.
    pub guest_seconds: Histogram,
    /// One group of committed entries, guest included.
    pub apply_seconds: Histogram,
    /// Entries whose effect was known when they were committed.
    pub applied_ahead: Counter,
    pub read_rounds: Counter,
    pub applied_index: Gauge<u64, AtomicU64>,
    pub term: Gauge<u64, AtomicU64>,
    pub is_leader: Gauge<u64, AtomicU64>,
    pub queue_bytes: Gauge<u64, AtomicU64>,
    pub bulk_replies_bytes: Gauge<u64, AtomicU64>,
    pub store_keys: Gauge<u64, AtomicU64>,
    pub store_bytes: Gauge<u64, AtomicU64>,
    pub idempotency_keys: Gauge<u64, AtomicU64>,
    pub idempotency_bytes: Gauge<u64, AtomicU64>,
    /// Commands that were not run because their keys were known.
    pub replays: Counter,
    pub quarantined: Gauge<u64, AtomicU64>,
    pub held: Gauge<u64, AtomicU64>,
    pub audits: Counter,
    pub audited_index: Gauge<u64, AtomicU64>,
    pub disk_free_bytes: Gauge<u64, AtomicU64>,
    pub disk_used_bytes: Gauge<u64, AtomicU64>,
    /// 1 while commands are refused for want of room.
    pub disk_low: Gauge<u64, AtomicU64>,
    pub log: LogFigures,
    pub snapshots: SnapshotFigures,
}

/// Of the snapshots made on this node.
#[derive(Default)]
pub struct SnapshotFigures {
    pub built: Counter,
    pub failed: Counter,
    /// Of the newest one: its file, the time it took, its last entry.
    pub bytes: Gauge<u64, AtomicU64>,
    pub seconds: Gauge<f64, AtomicU64>,
    pub index: Gauge<u64, AtomicU64>,
    /// Entries up to here are not in the log any more.
    pub purged_index: Gauge<u64, AtomicU64>,
}

/// Copied from the log's own counters when somebody asks.
#[derive(Default)]
pub struct LogFigures {
    pub entries: Gauge<u64, AtomicU64>,
    pub bytes: Gauge<u64, AtomicU64>,
    pub fsyncs: Gauge<u64, AtomicU64>,
    pub fsync_seconds: Gauge<f64, AtomicU64>,
    pub tail_bytes: Gauge<u64, AtomicU64>,
}

/// From 10 µs to 10 s.
pub fn latency_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(10e-6, 2.0, 20)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("raftlet");
        let latency = || Histogram::new(latency_buckets());
        let metrics = Metrics {
            requests: Family::default(),
            connections_open: Gauge::default(),
            sealed: Family::default(),
            batch_commands: Counter::default(),
            // Up to 65,536.
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 17)),
            commit_seconds: latency(),
            fsync_seconds: latency(),
            bulk_commands: Counter::default(),
            queue_seconds: latency(),
            guest_seconds: latency(),
            apply_seconds: latency(),
            read_rounds: Counter::default(),
            applied_index: Gauge::default(),
            term: Gauge::default(),
            is_leader: Gauge::default(),
            queue_bytes: Gauge::default(),
            bulk_replies_bytes: Gauge::default(),
            store_keys: Gauge::default(),
            store_bytes: Gauge::default(),
            idempotency_keys: Gauge::default(),
            idempotency_bytes: Gauge::default(),
            replays: Counter::default(),
            applied_ahead: Counter::default(),
            quarantined: Gauge::default(),
            held: Gauge::default(),
            audits: Counter::default(),
            audited_index: Gauge::default(),
            disk_free_bytes: Gauge::default(),
            disk_used_bytes: Gauge::default(),
            disk_low: Gauge::default(),
            log: LogFigures::default(),
            snapshots: SnapshotFigures::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        use SealReason::{Bulk, Bytes, Delay, Idle, Ops, Overlap, Shutdown, Single};
        for reason in [Idle, Overlap, Ops, Bytes, Delay, Single, Shutdown, Bulk] {
            // There from the start, so that a reader can tell nothing from not known.
            let _ = m.sealed.get_or_create(&Sealed { reason });
        }
        registry.register("http_requests", "Requests answered, by class and class of status", m.requests.clone());
        registry.register("http_connections", "Client connections open now", m.connections_open.clone());
        registry.register("batches_sealed", "Batches sealed on this node, by what made it seal", m.sealed.clone());
        registry.register("batch_commands", "Commands in the batches sealed on this node", m.batch_commands.clone());
        registry.register("batch_size", "Commands in each batch sealed on this node", m.batch_size.clone());
        registry.register("bulk_commands", "Of these, those in batches that clients made", m.bulk_commands.clone());
        registry.register(
            "replays",
            "Commands answered as the first one with their idempotency key",
            m.replays.clone(),
        );
        registry.register(
            "applied_ahead",
            "Entries whose effect was known when they were committed, as leader",
            m.applied_ahead.clone(),
        );
        registry.register("read_rounds", "Rounds of queries", m.read_rounds.clone());
        registry.register("audits", "Comparisons of all nodes' digests, as leader", m.audits.clone());
        let histograms = [
            ("queue", "Wait of a command until its batch is sealed", &m.queue_seconds),
            ("commit", "From the seal of a batch of this node until it was applied here", &m.commit_seconds),
            ("fsync", "One commit of the log, until it is durable", &m.fsync_seconds),
            ("guest", "One module run over one batch", &m.guest_seconds),
            ("apply", "One group of committed entries, applied and answered", &m.apply_seconds),
        ];
        for (name, help, histogram) in histograms {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        let gauges = [
            ("applied_index", "Log index of the last applied entry", &m.applied_index),
            ("term", "Raft term", &m.term),
            ("is_leader", "1 on the leader", &m.is_leader),
            ("queue_bytes", "Bytes of commands that are not answered yet", &m.queue_bytes),
            ("bulk_replies_bytes", "Bytes of replies to batches that wait to be read", &m.bulk_replies_bytes),
            ("store_keys", "Keys in the store", &m.store_keys),
            ("store_bytes", "Bytes of keys and values in the store", &m.store_bytes),
            ("idempotency_keys", "Idempotency keys that are kept", &m.idempotency_keys),
            ("idempotency_bytes", "Bytes of these keys and their replies", &m.idempotency_bytes),
            ("quarantined", "1 if this node's state differs from the majority's", &m.quarantined),
            ("held", "1 if this node applies nothing: an entry killed it, or it isn't known who is right", &m.held),
            ("audited_index", "Log index at which a majority was last found to agree, as leader", &m.audited_index),
            ("disk_free_bytes", "Bytes free on the node's file system", &m.disk_free_bytes),
            ("disk_used_bytes", "Bytes of the files in the node's directory", &m.disk_used_bytes),
            ("disk_low", "1 while commands are refused for want of room on the disk", &m.disk_low),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let log = &m.log;
        let gauges = [
            ("log_entries", "Entries made durable since the start", &log.entries),
            ("log_bytes", "Bytes of these entries", &log.bytes),
            ("log_fsyncs", "Syncs of the log since the start", &log.fsyncs),
            ("log_tail_bytes", "Bytes of entries kept in memory", &log.tail_bytes),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "log_fsync_seconds",
            "Time until commits were durable, since the start",
            log.fsync_seconds.clone(),
        );
        metrics.snapshots.register(&mut registry);
        Metrics { registry, ..metrics }
    }
}

impl SnapshotFigures {
    fn register(&self, registry: &mut Registry) {
        registry.register("snapshots_built", "Snapshots made since the start", self.built.clone());
        registry.register("snapshots_failed", "Snapshots that could not be written", self.failed.clone());
        registry.register("snapshot_bytes", "Bytes of the newest snapshot's file", self.bytes.clone());
        registry.register_with_unit("snapshot", "Time that the last one took", Unit::Seconds, self.seconds.clone());
        registry.register("log_purged_index", "Entries up to here were purged", self.purged_index.clone());
        registry.register("snapshot_index", "Log index of the newest snapshot's last entry", self.index.clone());
    }
}

impl Metrics {
    /// How many requests were answered so far; counted by the client listener.
    pub fn set_requests(&self, class: &'static str, status: &'static str, count: u64) {
        self.requests.get_or_create(&Requests { class, status }).inner().store(count, Relaxed);
    }

    /// A batch was sealed.
    pub fn sealed(&self, reason: SealReason, commands: usize) {
        self.sealed.get_or_create(&Sealed { reason }).inc();
        self.batch_commands.inc_by(commands as u64);
        self.batch_size.observe(commands as f64);
        if reason == SealReason::Bulk {
            self.bulk_commands.inc_by(commands as u64);
        }
    }
}
