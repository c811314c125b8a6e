//! What users and clients do wrong: a clear message, a non-zero exit or the right status, and nothing lost.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::http::{Outcome, encode};
use raftlet_tests::ports::{self, Reserved};
use raftlet_tests::process::{Finished, Signal, run};
use raftlet_tests::{Client, Cluster, Process, Response, slots};

const REFUSED_WITHIN: Duration = Duration::from_secs(30);
const BODY_BYTES_MAX: usize = 1 << 20;

/// Runs a command that must fail, and say these words on stderr.
#[track_caller]
fn refused<A: Into<OsString> + Clone>(args: &[A], words: &[&str]) -> Finished {
    let finished = run(args, REFUSED_WITHIN);
    let code = finished.status.code();
    assert!(code.is_some_and(|c| c != 0), "{} {}", finished.status, finished.stderr);
    let said = finished.stderr.to_lowercase();
    for word in words {
        assert!(said.contains(&word.to_lowercase()), "no {word:?} in: {}", finished.stderr);
    }
    finished
}

/// A node that is only configured, with a module of these bytes.
fn with_module(bytes: &[u8]) -> (Cluster, Vec<OsString>) {
    let cluster = Cluster::prepare(1, Options::default(), None);
    let file = cluster.folder().join("module.wasm");
    fs::write(&file, bytes).expect("the module can be written");
    let args = [cluster.arguments(1, true), vec!["--module".into(), file.into()]].concat();
    (cluster, args)
}

#[test]
fn unknown_words_are_refused() {
    refused(&["--no-such-flag"], &["--no-such-flag"]);
    refused(&["node", "start", "--no-such-flag"], &["--no-such-flag"]);
    refused(&["cluster", "start", "--nodes", "many"], &["many"]);
    refused(&["dance"], &["dance"]);
    let known = run(&["--help"], REFUSED_WITHIN);
    assert!(known.status.success() && known.stdout.contains("cluster"), "{known:?}");
}

#[test]
fn a_missing_module_file_is_named() {
    let cluster = Cluster::prepare(1, Options::default(), None);
    let missing: OsString = "/nowhere/missing.wasm".into();
    let args = [cluster.arguments(1, true), vec!["--module".into(), missing.clone()]].concat();
    refused(&args, &["missing.wasm"]);
    assert!(!cluster.data(1).join("pid").exists());
    let dir = cluster.folder().join("data").into_os_string();
    refused(&["cluster".into(), "start".into(), "--dir".into(), dir, "--module".into(), missing.clone()], &["missing"]);
    refused(&["module".into(), "check".into(), missing], &["missing.wasm"]);
}

#[test]
fn a_module_that_cannot_be_hosted_is_refused_with_the_reason() {
    let core = wat::parse_str(r#"(module (import "env" "launch_missiles" (func)) (memory (export "memory") 1))"#)
        .expect("valid text");
    let whole = wat::parse_str(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).expect("valid text");
    let empty = wat::parse_str("(component)").expect("valid text");
    let cases: [(&str, &[u8], &[&str]); 5] = [
        ("random bytes", b"this is not WebAssembly at all", &[]),
        ("a cut file", &whole[..whole.len() - 7], &[]),
        ("a core module with a foreign import", &core, &["imports", "env"]),
        ("a component with a foreign import", &whole, &["wasi:cli/environment"]),
        ("a component without the exports", &empty, &[]),
    ];
    for (what, bytes, words) in cases {
        println!("{what}");
        let (cluster, args) = with_module(bytes);
        refused(&args, words);
        let file = cluster.folder().join("module.wasm").into_os_string();
        refused(&["module".into(), "check".into(), file], words);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::prepare(1, Options::default(), None);
    let taken = TcpListener::bind(cluster.address(1)).expect("the port is ours");
    let port = cluster.address(1).port().to_string();
    refused(&cluster.arguments(1, true), &[&port]);
    drop(taken);

    let (base, _held) = ports::for_launcher(3);
    let _taken = TcpListener::bind(("127.0.0.1", base + 1)).expect("the port is ours");
    let dir = cluster.folder().join("data").into_os_string();
    let start = ["cluster".into(), "start".into(), "--dir".into(), dir, "--port".into(), base.to_string().into()];
    refused(&start, &[&(base + 1).to_string()]);
}

#[test]
fn a_folder_of_another_node_is_refused_and_stays_as_it_is() {
    let mut cluster = Cluster::start(3);
    let put = cluster.client(1).put("/kv/kept", b"here").expect("an answer");
    assert!(put.is_success(), "{put}");
    assert!(cluster.terminate(2).success() && cluster.terminate(3).success());
    let swapped: Vec<OsString> = cluster.arguments(3, false).iter().map(|a| replace(a, &cluster, 3, 2)).collect();
    refused(&swapped, &["node"]);
    cluster.restart_all();
    cluster.wait_converged();
    assert_eq!(cluster.client(2).get("/kv/kept").expect("an answer").body, b"here");
}

fn replace(arg: &OsString, cluster: &Cluster, folder_of: u64, by: u64) -> OsString {
    if Path::new(arg) == cluster.data(folder_of) { cluster.data(by).into() } else { arg.clone() }
}

#[test]
fn a_folder_in_use_is_refused() {
    let cluster = Cluster::start(1);
    let mut args = cluster.arguments(1, false);
    // Other ports, so that the folder is the only reason.
    let (listen, peer) = (Reserved::any().expect("a port"), Reserved::any().expect("a port"));
    for (flag, address) in [("--listen", listen.address()), ("--peer-listen", peer.address())] {
        let at = args.iter().position(|a| a == flag).expect("the flag is given");
        args[at + 1] = address.to_string().into();
    }
    refused(&args, &["node-1"]);
    assert!(cluster.client(1).put("/kv/a", b"1").expect("an answer").is_success());
}

#[test]
fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_stored() {
    let cluster = Cluster::start(3);
    let full: Vec<u8> = (0..BODY_BYTES_MAX).map(|i| (i * 31 % 251) as u8).collect();
    let over = [full.as_slice(), b"!"].concat();
    for node in cluster.ids() {
        let mut client = cluster.client(node);
        let put = client.put("/kv/full", &full).expect("an answer");
        assert!(put.is_success(), "{put}");
        too_large(client.put("/kv/over", &over).expect("an answer"));

        // RFC 9110 §10.1.1: the final status comes before the body is sent.
        let mut client = cluster.client(node);
        let head = format!(
            "PUT /kv/over HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            over.len()
        );
        client.send(head.as_bytes()).expect("sent");
        too_large(client.receive(false).expect("an answer"));

        // Nobody knows the length of a chunked body before its end.
        let mut client = cluster.client(node);
        let head =
            format!("PUT /kv/over HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", over.len());
        // The node may close before it has read all.
        let _ = client.send(&[head.as_bytes(), &over, b"\r\n0\r\n\r\n"].concat());
        too_large(client.receive(false).expect("an answer"));
    }
    for node in cluster.ids() {
        let mut client = cluster.client(node);
        assert!(client.get("/kv/full").expect("an answer").body == full, "node {node} has other bytes");
        assert_eq!(client.get("/kv/over").expect("an answer").status, 404);
    }
    cluster.wait_converged();
}

#[track_caller]
fn too_large(reply: Response) {
    assert_eq!((reply.status, reply.refusal()), (413, Some(Outcome::Rejected)), "{reply}");
}

#[test]
fn bytes_that_are_no_good_request_get_a_client_error() {
    let cluster = Cluster::start(1);
    let long = "x".repeat(200_000);
    let cases = [
        encode("GET", "/kv/a", &[("X-Long", &long)], b""),
        encode("GET", &format!("/kv/{long}"), &[], b""),
        encode("PUT", "/kv/%zz", &[], b"1"),
        encode("BREW", "/kv/a", &[], b""),
        encode("PUT", "/kv/a", &[("Content-Length", "1"), ("Content-Length", "2")], b"12"),
        encode("GET", "/kv?limit=none", &[], b""),
        b"\x16\x03\x01 this is TLS, not HTTP\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
    ];
    for bytes in cases {
        let mut client = cluster.client(1);
        // The node may answer and close before it has read all.
        let _ = client.send(&bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let reply = client.receive(false).unwrap_or_else(|e| panic!("{shown:?}: {e:?}"));
        assert!((400..500).contains(&reply.status), "{shown:?}: {reply}");
    }
    assert_eq!(cluster.client(1).get("/kv/a").expect("an answer").status, 404, "nothing was stored");
}

#[test]
fn a_client_that_sends_its_head_too_slowly_is_cut_off() {
    let options = Options { args: vec!["--header-read-timeout=1s".into()], ..Options::default() };
    let cluster = Cluster::start_with(1, options);
    let mut slow: Vec<Client> = (0..20).map(|_| cluster.client(1).answer_within(REFUSED_WITHIN)).collect();
    for client in &mut slow {
        client.send(b"GET /kv/a HTTP/1.1\r\nHos").expect("sent");
    }
    for client in &mut slow {
        if let Some(reply) = client.receive_or_close() {
            assert_eq!(reply.status, 408, "{reply}");
        }
        assert!(client.is_closed_by_server());
    }
}

#[test]
fn a_cluster_in_use_is_refused_and_a_missing_one_is_named() {
    let _slot = slots::take();
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data").into_os_string();
    let status = refused(&["cluster", "status", "--url", &format!("http://{}", unused())], &["127.0.0.1"]);
    assert!(status.stdout.is_empty(), "{status:?}");
    let stop = run(&["cluster".into(), "stop".into(), "--dir".into(), dir.clone()], REFUSED_WITHIN);
    println!("stop without a cluster: {stop:?}");

    let (base, _held) = ports::for_launcher(1);
    let start = |port: u16| -> Vec<OsString> {
        let args = ["cluster", "start", "--nodes", "1", "--port"].map(Into::into);
        [args.as_slice(), &[port.to_string().into(), "--dir".into(), dir.clone()]].concat()
    };
    let mut first = Process::start("first", folder.path(), &start(base), Signal::TERM);
    let mut client = Client::new(([127, 0, 0, 1], base).into());
    raftlet_tests::wait::until("the cluster is ready", REFUSED_WITHIN * 2, || {
        client.get("/_/ready").ok().filter(|r| r.status == 200)
    });
    let (other, _also) = ports::for_launcher(1);
    refused(&start(other), &["data"]);
    first.signal(Signal::TERM);
    assert!(first.wait(REFUSED_WITHIN).success());
}

fn unused() -> String {
    Reserved::any().expect("a port").address().to_string()
}
