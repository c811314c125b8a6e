//! The pages under `/_/`.

use super::super::{RequestClass, StatusClass};
use super::*;

async fn get(rig: &Rig, path: &str) -> Seen {
    rig.ask(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await
}

#[tokio::test]
async fn health_ready_and_metrics() {
    let rig = Rig::new(HttpLimits::default()).await;
    assert_eq!(get(&rig, "/_/health").await.body, b"ok\n");
    assert_eq!(get(&rig, "/_/ready").await.status, 200);
    *rig.node.ready.lock().unwrap() = Err("no leader is known".into());
    let reply = get(&rig, "/_/ready").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    assert_eq!(reply.outcome(), "rejected");
    assert!(String::from_utf8_lossy(&reply.body).contains("no leader is known"));
    let metrics = get(&rig, "/_/metrics").await;
    assert_eq!(metrics.body, b"# EOF\n");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert_eq!(rig.server.metrics().requests(RequestClass::Host, StatusClass::Success), 3);
    assert_eq!(rig.server.metrics().requests(RequestClass::Host, StatusClass::ServerError), 1);
}

#[tokio::test]
async fn status_is_json_with_the_agreed_names() {
    let rig = Rig::new(HttpLimits::default()).await;
    let reply = get(&rig, "/_/status?pretty").await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let status: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(status["node_id"], 1);
    assert_eq!(status["role"], "leader");
    assert_eq!(status["leader_id"], 1);
    assert_eq!(status["term"], 7);
    assert_eq!(status["last_log_index"], 42);
    assert_eq!(status["applied_index"], 42);
    assert!(status.as_object().unwrap().contains_key("snapshot_index"));
    assert_eq!(status["module"], serde_json::json!({"name": "kv", "version": "0.1.0", "digest": "ab"}));
    assert_eq!(status["state_digest"], "cd");
    assert_eq!(status["members"][0]["role"], "voter");
    let idempotency =
        serde_json::json!({"window_ms": 600_000, "keys": 2, "keys_max": 9, "bytes": 70, "bytes_max": 900});
    assert_eq!(status["idempotency"], idempotency);
}

#[tokio::test]
async fn other_paths_and_methods_of_the_hosts_are_refused() {
    let rig = Rig::new(HttpLimits::default()).await;
    for path in ["/_/", "/_/nothing", "/_/health/", "/_//health"] {
        let reply = get(&rig, path).await;
        assert_eq!((reply.status, reply.outcome().as_str()), (404, "rejected"), "{path}");
    }
    for method in ["DELETE", "OPTIONS"] {
        let reply = rig.ask(format!("{method} /_/status HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    }
    assert!(rig.node.seen.lock().unwrap().is_empty());
    for path in ["/_", "/__/health", "/%5F/health", "/_x/"] {
        assert_eq!(get(&rig, path).await.status, 200, "{path} is the module's");
        assert_eq!(rig.node.last_seen().0.path, path);
    }
}
