use super::*;

fn good() -> NodeConfig {
    NodeConfig {
        id: 1,
        dir: "data".into(),
        listen: "127.0.0.1:8080".parse().unwrap(),
        peer_listen: "127.0.0.1:9080".parse().unwrap(),
        peers: [(1, "127.0.0.1:9080".into()), (2, "db.example:9081".into()), (3, "[::1]:9082".into())].into(),
        bootstrap: false,
        module: None,
        batching: BatchingConfig::default(),
        limits: HttpLimits::default(),
        raft: RaftTiming::default(),
        snapshots: SnapshotConfig::default(),
        checks: ChecksConfig::default(),
        skip: Vec::new(),
        disk: DiskConfig::default(),
        worker_threads: 0,
        admin_listen: None,
    }
}

/// Asserts that the changed configuration is refused with a message that has both texts in it.
fn refused(change: impl FnOnce(&mut NodeConfig), names: &str, advice: &str) {
    let mut config = good();
    change(&mut config);
    let message = config.validate().expect_err(names).to_string();
    assert!(message.contains(names) && message.contains(advice), "{message}");
}

#[test]
fn the_defaults_are_valid() {
    assert_eq!(good().validate(), Ok(()));
}

#[test]
fn identity_and_peers_are_refused_with_advice() {
    refused(|c| c.id = 0, "id: 0", "begin with 1");
    refused(|c| c.id = 4, "node 4", "list this node too");
    refused(|c| c.peers.clear(), "peers:", "1=10.0.0.1:9080");
    refused(|c| drop(c.peers.insert(2, "127.0.0.1:9080".into())), "nodes 1 and 2", "same address");
    for address in ["", "host", "host:", ":9080", "host:0", "host:65536", "host:x"] {
        refused(|c| drop(c.peers.insert(3, address.into())), "node 3", "HOST:PORT");
    }
    refused(|c| c.peer_listen = c.listen, "listen and peer-listen", "a port each");
    refused(|c| c.dir = PathBuf::new(), "dir:", "give the directory");
}

#[test]
fn one_listen_address_twice_is_fine_if_the_ports_are_chosen_by_the_system() {
    let mut config = good();
    config.listen.set_port(0);
    config.peer_listen.set_port(0);
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn an_entry_to_skip_is_an_index_and_sixteen_digits() {
    let skip = SkipEntry { index: 4711, checksum: *b"\x01\x23\x45\x67\x89\xab\xcd\xef" };
    assert_eq!("4711:0123456789abcdef".parse(), Ok(skip));
    for text in
        ["", "4711", "4711:", ":0123456789abcdef", "x:0123456789abcdef", "1:0123456789abcde", "1:+123456789abcdef"]
    {
        let error = text.parse::<SkipEntry>().unwrap_err().0;
        assert!(error.contains("INDEX:CHECKSUM"), "{error}");
    }
}

#[test]
fn each_limit_is_obeyed_and_violated() {
    let mut edge = good();
    edge.batching = BatchingConfig {
        mode: Batching::Adaptive,
        max_ops: 65_536,
        max_bytes: 1024,
        max_delay: Duration::from_secs(1),
    };
    edge.limits.body_bytes_max = 8 * MIB;
    edge.limits.bulk_bytes_max = 16 * MIB;
    edge.limits.queue_bytes_max = 16 * MIB + 32 * KIB;
    edge.limits.bulk_replies_bytes_max = MIB;
    edge.limits.idle_timeout = Duration::from_millis(100);
    edge.snapshots.log_bytes = 64 * KIB;
    edge.checks = ChecksConfig { audit_interval: Duration::from_millis(10), checkpoint_interval: Duration::ZERO };
    edge.disk.quota_bytes = 32 * MIB as u64;
    edge.raft.heartbeat = Duration::from_millis(100);
    edge.snapshots.bandwidth = 64 * KIB;
    edge.raft.election_min = Duration::from_millis(300);
    assert_eq!(edge.validate(), Ok(()));

    refused(|c| c.batching.max_ops = 0, "batch-max-ops: 0", "from 1");
    refused(|c| c.batching.max_ops = 65_537, "batch-max-ops: 65537", "65536");
    refused(|c| c.batching.max_bytes = 1023, "batch-max-bytes: 1023", "1KiB");
    refused(|c| c.batching.max_bytes = 16 * MIB + 1, "batch-max-bytes", "16MiB");
    refused(|c| c.batching.max_delay = Duration::from_millis(1001), "batch-max-delay: 1s 1ms", "1s is the longest");
    refused(|c| c.limits.body_bytes_max = 0, "body-bytes-max: 0", "from 1");
    refused(|c| c.limits.body_bytes_max = 8 * MIB + 1, "body-bytes-max", "8MiB");
    refused(|c| c.limits.bulk_bytes_max = 16 * MIB + 1, "bulk-bytes-max", "16MiB");
    refused(|c| c.limits.bulk_bytes_max = KIB - 1, "bulk-bytes-max: 1023", "1KiB");
    refused(
        |c| c.limits.queue_bytes_max = 8 * MIB,
        "queue-bytes-max: 8388608 can't hold one largest batch",
        "raise it",
    );
    refused(
        |c| (c.limits.bulk_bytes_max, c.limits.queue_bytes_max) = (KIB, MIB),
        "queue-bytes-max: 1048576 can't hold one largest request",
        "raise it",
    );
    refused(|c| c.limits.bulk_replies_bytes_max = MIB - 1, "bulk-replies-bytes-max: 1048575", "1MiB");
    refused(|c| c.limits.header_bytes_max = 100, "header-bytes-max: 100", "8KiB");
    refused(|c| c.limits.connections_max = 0, "connections-max: 0", "at least 1");
    refused(|c| c.limits.request_timeout = Duration::ZERO, "request-timeout: 0s", "100ms");
    refused(|c| c.snapshots.bandwidth = 65_535, "snapshot-bandwidth: 65535", "64KiB");
    refused(|c| c.admin_listen = Some(c.peer_listen), "admin-listen: 127.0.0.1:9080", "a port of their own");
    refused(|c| c.snapshots.log_bytes = 64 * KIB - 1, "snapshot-log-bytes: 65535", "64KiB");
    refused(|c| c.checks.audit_interval = Duration::from_millis(9), "audit-interval: 9ms", "10ms");
    refused(|c| c.checks.checkpoint_interval = Duration::from_millis(99), "checkpoint-interval: 99ms", "0s for none");
    refused(|c| c.disk.quota_bytes = 32 * MIB as u64 - 1, "disk-quota", "at least 32MiB");
    refused(|c| c.raft.heartbeat = Duration::from_millis(9), "heartbeat: 9ms", "10ms");
    refused(|c| c.raft.election_min = Duration::from_millis(599), "election-min: 599ms", "600ms");
    refused(|c| c.raft.election_max = Duration::from_millis(600), "election-max: 600ms", "longer");
}

#[test]
fn a_quota_has_room_for_the_log_between_snapshots() {
    let mut config = good();
    assert_eq!((config.disk.growth_max(), config.disk.growth_due()), (None, u64::MAX));
    config.disk.quota_bytes = 96 * MIB as u64;
    assert_eq!((config.disk.growth_max(), config.disk.growth_due()), (Some(12 * MIB as u64), 6 * MIB as u64));
}
