//! Where settings come from: flag, else environment, else the TOML file of `--config`, else the default of
//! `config.rs`. A setting has one name in all of them (`batch-max-ops`: `--batch-max-ops`, `RAFTLET_BATCH_MAX_OPS`,
//! `batch-max-ops = 512`) and one textual form. Holds no default of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use clap::Args;
use humantime::Duration;

use crate::config::{
    Batching, BatchingConfig, ChecksConfig, ConfigError, DiskConfig, HttpLimits, RaftTiming, SnapshotConfig,
};

/// The settings that `node start`, `cluster start` and the temporary cluster of `bench` share. None: not given as
/// flag or in the environment.
#[derive(Args, Debug, Clone, Default)]
pub struct SettingsArgs {
    /// TOML file with settings under the names of the flags, as in: batch-max-ops = 512
    #[arg(long, env = "RAFTLET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Seal many commands in one batch; off: each command is a batch of its own [default: on]
    #[arg(long, env = "RAFTLET_BATCHING", value_name = "on|fixed|off", help_heading = "Batching")]
    pub batching: Option<Batching>,
    /// Commands in a batch at most [default: 1024]
    #[arg(long, env = "RAFTLET_BATCH_MAX_OPS", value_name = "N", help_heading = "Batching")]
    pub batch_max_ops: Option<usize>,
    /// Bytes in a batch at most [default: 1MiB]
    #[arg(long, env = "RAFTLET_BATCH_MAX_BYTES", value_name = "SIZE", help_heading = "Batching")]
    pub batch_max_bytes: Option<ByteSize>,
    /// How long a command waits for others while the pipe is busy [default: 4ms]
    #[arg(long, env = "RAFTLET_BATCH_MAX_DELAY", value_name = "TIME", help_heading = "Batching")]
    pub batch_max_delay: Option<Duration>,

    /// Largest body of a request [default: 1MiB]
    #[arg(long, env = "RAFTLET_BODY_BYTES_MAX", value_name = "SIZE", help_heading = "Limits")]
    pub body_bytes_max: Option<ByteSize>,
    /// Largest batch of requests that a client makes [default: 8MiB]
    #[arg(long, env = "RAFTLET_BULK_BYTES_MAX", value_name = "SIZE", help_heading = "Limits")]
    pub bulk_bytes_max: Option<ByteSize>,
    /// Bytes of all requests that wait or run [default: 64MiB]
    #[arg(long, env = "RAFTLET_QUEUE_BYTES_MAX", value_name = "SIZE", help_heading = "Limits")]
    pub queue_bytes_max: Option<ByteSize>,
    /// Bytes of replies to batches that clients have not read yet [default: 256MiB]
    #[arg(long, env = "RAFTLET_BULK_REPLIES_BYTES_MAX", value_name = "SIZE", help_heading = "Limits")]
    pub bulk_replies_bytes_max: Option<ByteSize>,
    /// Largest head of a request [default: 32KiB]
    #[arg(long, env = "RAFTLET_HEADER_BYTES_MAX", value_name = "SIZE", help_heading = "Limits")]
    pub header_bytes_max: Option<ByteSize>,
    /// Client connections at the same time [default: 10000]
    #[arg(long, env = "RAFTLET_CONNECTIONS_MAX", value_name = "N", help_heading = "Limits")]
    pub connections_max: Option<usize>,
    /// From a complete request to its answer [default: 10s]
    #[arg(long, env = "RAFTLET_REQUEST_TIMEOUT", value_name = "TIME", help_heading = "Limits")]
    pub request_timeout: Option<Duration>,
    /// From a request's first byte to the end of its head [default: 10s]
    #[arg(long, env = "RAFTLET_HEADER_READ_TIMEOUT", value_name = "TIME", help_heading = "Limits")]
    pub header_read_timeout: Option<Duration>,
    /// How long a connection may be without a request [default: 75s]
    #[arg(long, env = "RAFTLET_IDLE_TIMEOUT", value_name = "TIME", help_heading = "Limits")]
    pub idle_timeout: Option<Duration>,

    /// How often the leader says that it is there [default: 200ms]
    #[arg(long, env = "RAFTLET_HEARTBEAT", value_name = "TIME", help_heading = "Raft")]
    pub heartbeat: Option<Duration>,
    /// Shortest silence after which a follower stands for election [default: 600ms]
    #[arg(long, env = "RAFTLET_ELECTION_MIN", value_name = "TIME", help_heading = "Raft")]
    pub election_min: Option<Duration>,
    /// Longest silence after which a follower stands for election [default: 1.2s]
    #[arg(long, env = "RAFTLET_ELECTION_MAX", value_name = "TIME", help_heading = "Raft")]
    pub election_max: Option<Duration>,

    /// Bytes of log entries after which a snapshot is made (the first one earlier on most nodes), and the log before the
    /// one before it is deleted [default: 128MiB]
    #[arg(long, env = "RAFTLET_SNAPSHOT_LOG_BYTES", value_name = "SIZE", help_heading = "Storage")]
    pub snapshot_log_bytes: Option<ByteSize>,
    /// How often the leader compares the nodes' digests, if something was applied [default: 1s]
    #[arg(long, env = "RAFTLET_AUDIT_INTERVAL", value_name = "TIME", help_heading = "Checks")]
    pub audit_interval: Option<Duration>,
    /// How often all nodes digest their whole content, if something was applied; 0s: never [default: 10min]
    #[arg(long, env = "RAFTLET_CHECKPOINT_INTERVAL", value_name = "TIME", help_heading = "Checks")]
    pub checkpoint_interval: Option<Duration>,
    /// Room that is kept free on the disk: below it commands are refused until there is more [default: 256MiB]
    #[arg(long, env = "RAFTLET_DISK_FREE_MIN", value_name = "SIZE", help_heading = "Disk")]
    pub disk_free_min: Option<ByteSize>,
    /// What each node's directory may take on the disk: beyond it commands are refused; 0: no limit [default: 0]
    #[arg(long, env = "RAFTLET_DISK_QUOTA", value_name = "SIZE", help_heading = "Disk")]
    pub disk_quota: Option<ByteSize>,
    /// Bytes a second of all snapshots that leave a node together; 0: no cap [default: 64MiB]
    #[arg(long, env = "RAFTLET_SNAPSHOT_BANDWIDTH", value_name = "SIZE", help_heading = "Storage")]
    pub snapshot_bandwidth: Option<ByteSize>,

    /// Threads for connections and Raft; 0: as many as the machine has cores, shared among the nodes of a launcher
    /// [default: 0]
    #[arg(long, env = "RAFTLET_WORKER_THREADS", value_name = "N", help_heading = "Process")]
    pub worker_threads: Option<usize>,
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The shared settings, with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    pub batching: BatchingConfig,
    pub limits: HttpLimits,
    pub raft: RaftTiming,
    pub snapshots: SnapshotConfig,
    pub checks: ChecksConfig,
    pub disk: DiskConfig,
    /// 0: automatic.
    pub worker_threads: usize,
}

impl SettingsArgs {
    /// Takes the shared settings' keys out of `file`.
    pub fn resolve(&self, file: &mut FileKeys) -> Result<Settings, ConfigError> {
        let d = Settings::default();
        let batching = BatchingConfig {
            mode: file.pick(self.batching, "batching", d.batching.mode)?,
            max_ops: file.pick(self.batch_max_ops, "batch-max-ops", d.batching.max_ops)?,
            max_bytes: file.pick(self.batch_max_bytes, "batch-max-bytes", ByteSize(d.batching.max_bytes))?.0,
            max_delay: *file.pick(self.batch_max_delay, "batch-max-delay", d.batching.max_delay.into())?,
        };
        let l = d.limits;
        let limits = HttpLimits {
            body_bytes_max: file.pick(self.body_bytes_max, "body-bytes-max", ByteSize(l.body_bytes_max))?.0,
            bulk_bytes_max: file.pick(self.bulk_bytes_max, "bulk-bytes-max", ByteSize(l.bulk_bytes_max))?.0,
            queue_bytes_max: file.pick(self.queue_bytes_max, "queue-bytes-max", ByteSize(l.queue_bytes_max))?.0,
            bulk_replies_bytes_max: file
                .pick(self.bulk_replies_bytes_max, "bulk-replies-bytes-max", ByteSize(l.bulk_replies_bytes_max))?
                .0,
            header_bytes_max: file.pick(self.header_bytes_max, "header-bytes-max", ByteSize(l.header_bytes_max))?.0,
            connections_max: file.pick(self.connections_max, "connections-max", l.connections_max)?,
            request_timeout: *file.pick(self.request_timeout, "request-timeout", l.request_timeout.into())?,
            header_read_timeout: *file.pick(
                self.header_read_timeout,
                "header-read-timeout",
                l.header_read_timeout.into(),
            )?,
            idle_timeout: *file.pick(self.idle_timeout, "idle-timeout", l.idle_timeout.into())?,
        };
        let raft = RaftTiming {
            heartbeat: *file.pick(self.heartbeat, "heartbeat", d.raft.heartbeat.into())?,
            election_min: *file.pick(self.election_min, "election-min", d.raft.election_min.into())?,
            election_max: *file.pick(self.election_max, "election-max", d.raft.election_max.into())?,
        };
        let snapshots = SnapshotConfig {
            log_bytes: file.pick(self.snapshot_log_bytes, "snapshot-log-bytes", ByteSize(d.snapshots.log_bytes))?.0,
            bandwidth: file.pick(self.snapshot_bandwidth, "snapshot-bandwidth", ByteSize(d.snapshots.bandwidth))?.0,
        };
        let c = d.checks;
        let checks = ChecksConfig {
            audit_interval: *file.pick(self.audit_interval, "audit-interval", c.audit_interval.into())?,
            checkpoint_interval: *file.pick(
                self.checkpoint_interval,
                "checkpoint-interval",
                c.checkpoint_interval.into(),
            )?,
        };
        let size = |bytes: u64| ByteSize(usize::try_from(bytes).unwrap_or(usize::MAX));
        let disk = DiskConfig {
            free_min_bytes: file.pick(self.disk_free_min, "disk-free-min", size(d.disk.free_min_bytes))?.0 as u64,
            quota_bytes: file.pick(self.disk_quota, "disk-quota", size(d.disk.quota_bytes))?.0 as u64,
        };
        let worker_threads = file.pick(self.worker_threads, "worker-threads", d.worker_threads)?;
        let settings = Settings { batching, limits, raft, snapshots, checks, disk, worker_threads };
        settings.batching.validate()?;
        settings.limits.validate()?;
        settings.raft.validate()?;
        settings.snapshots.validate()?;
        settings.checks.validate()?;
        settings.disk.validate()?;
        Ok(settings)
    }
}

impl Settings {
    /// The settings of one of `nodes` nodes that share this machine: more threads than cores only take turns.
    pub fn shared_by(self, nodes: usize) -> Settings {
        let worker_threads = match self.worker_threads {
            0 => (cores() / nodes.max(1)).max(1),
            given => given,
        };
        Settings { worker_threads, ..self }
    }

    /// As flags for a child process, which then needs neither our environment nor our file.
    pub fn to_flags(&self) -> Vec<String> {
        let time = |t: std::time::Duration| humantime::format_duration(t).to_string().replace(' ', "");
        let (b, l, r, c) = (&self.batching, &self.limits, &self.raft, &self.checks);
        [
            ("batching", b.mode.to_string()),
            ("batch-max-ops", b.max_ops.to_string()),
            ("batch-max-bytes", b.max_bytes.to_string()),
            ("batch-max-delay", time(b.max_delay)),
            ("body-bytes-max", l.body_bytes_max.to_string()),
            ("bulk-bytes-max", l.bulk_bytes_max.to_string()),
            ("queue-bytes-max", l.queue_bytes_max.to_string()),
            ("bulk-replies-bytes-max", l.bulk_replies_bytes_max.to_string()),
            ("header-bytes-max", l.header_bytes_max.to_string()),
            ("connections-max", l.connections_max.to_string()),
            ("request-timeout", time(l.request_timeout)),
            ("header-read-timeout", time(l.header_read_timeout)),
            ("idle-timeout", time(l.idle_timeout)),
            ("heartbeat", time(r.heartbeat)),
            ("election-min", time(r.election_min)),
            ("election-max", time(r.election_max)),
            ("snapshot-log-bytes", self.snapshots.log_bytes.to_string()),
            ("audit-interval", time(c.audit_interval)),
            ("checkpoint-interval", time(c.checkpoint_interval)),
            ("disk-free-min", self.disk.free_min_bytes.to_string()),
            ("disk-quota", self.disk.quota_bytes.to_string()),
            ("snapshot-bandwidth", self.snapshots.bandwidth.to_string()),
            ("worker-threads", self.worker_threads.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
    }
}

/// The keys of a TOML file, each taken once; what is left at the end is unknown.
#[derive(Debug, Default)]
pub struct FileKeys {
    file: PathBuf,
    keys: toml::Table,
}

impl FileKeys {
    /// Without a file there are no keys.
    pub fn read(file: Option<&Path>) -> anyhow::Result<FileKeys> {
        let Some(file) = file else { return Ok(FileKeys::default()) };
        let text = std::fs::read_to_string(file).with_context(|| format!("can't read the --config file {file:?}"))?;
        Ok(FileKeys::parse(file, &text)?)
    }

    fn parse(file: &Path, text: &str) -> Result<FileKeys, ConfigError> {
        let keys = text.parse().map_err(|e| ConfigError(format!("{}: not valid TOML: {e}", file.display())))?;
        Ok(FileKeys { file: file.into(), keys })
    }

    /// `given` (from flag or environment), else the file's value.
    pub fn pick_optional<T>(&mut self, given: Option<T>, key: &str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        // Taken even where a flag wins: it is known, and a wrong value is worth an error all the same.
        let Some(value) = self.keys.remove(key) else { return Ok(given) };
        let wrong = |why: &dyn fmt::Display| ConfigError(format!("{}: key `{key}`: {why}", self.file.display()));
        let text = as_text(value).map_err(|why| wrong(&why))?;
        let parsed = text.parse().map_err(|why| wrong(&why))?;
        Ok(given.or(Some(parsed)))
    }

    /// `given` (from flag or environment), else the file's value, else `default`.
    pub fn pick<T>(&mut self, given: Option<T>, key: &str, default: T) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        Ok(self.pick_optional(given, key)?.unwrap_or(default))
    }

    /// The same for a setting that must be given somewhere.
    pub fn pick_required<T>(&mut self, given: Option<T>, key: &str) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let variable = key.to_uppercase().replace('-', "_");
        self.pick_optional(given, key)?.ok_or_else(|| {
            ConfigError(format!("{key} is missing: give --{key}, RAFTLET_{variable}, or `{key}` in the --config file"))
        })
    }

    /// An error if keys are left that nobody asked for.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some(key) = self.keys.keys().next() else { return Ok(()) };
        let advice = "its keys are the names of this command's flags (see --help)";
        Err(ConfigError(format!("{}: unknown key `{key}`; {advice}", self.file.display())))
    }
}

/// A TOML value in the form that a flag has.
fn as_text(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(on) => Ok(if on { Batching::Adaptive } else { Batching::Off }.to_string()),
        // peers = { 1 = "host:port", 2 = ... }
        toml::Value::Table(pairs) => {
            let pairs: Result<Vec<_>, _> =
                pairs.into_iter().map(|(name, value)| Ok(format!("{name}={}", as_text(value)?))).collect();
            pairs.map(|pairs: Vec<String>| pairs.join(","))
        }
        other => Err(format!("a {} can't be used here; give a text or a whole number", other.type_str())),
    }
}

impl FromStr for Batching {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "on" | "true" => Ok(Batching::Adaptive),
            "fixed" => Ok(Batching::Fixed),
            "off" | "false" => Ok(Batching::Off),
            other => Err(ConfigError(format!("{other:?} is none of on, fixed and off"))),
        }
    }
}

impl fmt::Display for Batching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Batching::Adaptive => "on",
            Batching::Fixed => "fixed",
            Batching::Off => "off",
        })
    }
}

/// A number of bytes: `65536`, `64KiB`, `1MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl FromStr for ByteSize {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        let (number, unit) = units
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number.trim_end(), *unit)))
            .unwrap_or((text, 1));
        let bytes = number.parse::<usize>().ok().and_then(|n| n.checked_mul(unit));
        bytes
            .map(ByteSize)
            .ok_or_else(|| ConfigError(format!("{text:?} is no size; give bytes, KiB or MiB, as in 65536 or 64KiB")))
    }
}

/// `1=10.0.0.1:9080,2=10.0.0.2:9080`: node id to address of its peer listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers(pub BTreeMap<u64, String>);

impl FromStr for Peers {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut peers = BTreeMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let parsed = pair.split_once('=').and_then(|(id, address)| Some((id.trim().parse().ok()?, address.trim())));
            let (id, address): (u64, &str) = parsed
                .ok_or_else(|| ConfigError(format!("{pair:?} is no peer; give ID=HOST:PORT, as in 1=10.0.0.1:9080")))?;
            if peers.insert(id, address.to_string()).is_some() {
                return Err(ConfigError(format!("node {id} is given twice")));
            }
        }
        Ok(Peers(peers))
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|(id, address)| format!("{id}={address}")).collect();
        f.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
