//! The guests that are built with the SDK: what the text modules show must hold for them too.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// Run as it is, and as a component. Where `cargo xtask guests` puts them, or the folder in `RAFTLET_GUESTS`.
fn guest(file: &str) -> [Module; 2] {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests");
    let folder = std::env::var_os("RAFTLET_GUESTS").map_or(built, PathBuf::from);
    let path = folder.join(file);
    let bytes = fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; build the guests with `cargo xtask guests`", path.display()));
    let component = inspect::encode(&bytes).unwrap();
    [&bytes, &component].map(|bytes| Module::compile(&ENGINE, bytes, LESS).unwrap())
}

/// Enough for every guest, and little enough for an endless loop to end soon in a debug build.
const LESS: Limits = Limits {
    fuel_per_command: 60_000_000,
    fuel_per_batch: 1_000_000_000,
    fuel_frame: 20_000_000,
    memory_bytes_max: 32 << 20,
    key_bytes_max: 16 << 10,
    value_bytes_max: 8 << 20,
    reply_bytes_max: 64 << 20,
};

fn puts(paths: &[&str]) -> Vec<u8> {
    let commands = paths.iter().map(|path| request(Method::Put, path, b"v")).collect();
    Batch { commands }.to_bytes()
}

fn bodies(replies: &BatchReplies) -> Vec<String> {
    let body = |reply: ReplyView| match reply {
        ReplyView::Module(reply) => String::from_utf8_lossy(&reply.body).trim_end().to_owned(),
        ReplyView::Failed(failure) => failure.to_string(),
        ReplyView::Replayed(_) => panic!("the guest room knows no keys"),
    };
    replies.iter().map(body).collect()
}

#[test]
fn the_hostile_commands_fail_alone() {
    for module in guest("hostile.wasm") {
        // A path, and how it ends. Each runs between two that behave.
        let cases = [
            ("/trap", 'T'),
            ("/panic", 'T'),
            ("/loop", 'F'),
            ("/recurse", 'T'),
            ("/alloc", 'M'),
            ("/big-key/16385", 'T'),
            ("/big-key/16384", '.'),
            ("/big-value/8388609", 'T'),
            ("/big-value/4194304", '.'),
            ("/status/199", 'I'),
            ("/status/600", 'I'),
            ("/status/599", '.'),
            ("/bad-header", 'I'),
            ("/count-wrong", 'I'),
            ("/count-short", 'I'),
            ("/garbage", 'I'),
            ("/begin-wrong", 'T'),
            ("/rollback", '.'),
        ];
        for (path, letter) in cases {
            let batch = puts(&["/put/a", path, "/put/b"]);
            let (replies, shelf) = module.apply(&CONTEXT, valid(&batch), &[], Shelf::default()).unwrap();
            assert_eq!(letters(&replies), format!(".{letter}."), "{path}: {:?}", bodies(&replies));
            let own = shelf.now.keys().filter(|key| !matches!(key.as_slice(), b"a" | b"b")).count();
            assert_eq!(own, usize::from(path.starts_with("/big") && letter == '.'), "{path}");
            assert_eq!(shelf.now.get(&b"b"[..]), Some(&b"v".to_vec()), "{path}");
        }
    }
}

#[test]
fn many_hostile_commands_in_one_batch() {
    for module in guest("hostile.wasm") {
        let kinds = ["/put/a", "/trap", "/put/b", "/status/1", "/garbage", "/put/c", "/panic", "/delete/a"];
        let paths: Vec<&str> = kinds.iter().copied().cycle().take(kinds.len() * 4).collect();
        let (replies, shelf) = module.apply(&CONTEXT, valid(&puts(&paths)), &[], Shelf::default()).unwrap();
        assert_eq!(letters(&replies), ".T.II.T.".repeat(4));
        assert_eq!(shelf.now.keys().map(|key| key[0]).collect::<Vec<u8>>(), b"bc");
    }
}

#[test]
fn statics_nans_and_contexts_are_the_same_on_every_instance() {
    for module in guest("hostile.wasm") {
        let batch = puts(&["/static", "/float-nan", "/context"]);
        let run = || bodies(&module.apply(&CONTEXT, valid(&batch), &[], Shelf::default()).unwrap().0);
        let first = run();
        assert_eq!((first[0].as_str(), first[1].as_str()), ("1", "7ff8000000000000"));
        assert_eq!(first, run());
    }
}

/// Large batches have memory of their own, which is as fresh each time.
#[test]
fn large_batches_and_small_ones_in_turn() {
    for module in guest("hostile.wasm") {
        let [small, large] = [1, 100 << 10].map(|bytes| {
            let command = |path| request(Method::Put, path, &vec![7; bytes]);
            Batch { commands: vec![command("/static"), command("/big-key/3")] }
        });
        for batch in [&small, &large, &small, &large] {
            let replies = module.apply(&CONTEXT, valid(&batch.to_bytes()), &[], Shelf::default()).unwrap().0;
            assert_eq!(bodies(&replies), ["1", ""]);
        }
    }
}

#[test]
fn hostile_queries_fail_alone() {
    for module in guest("hostile.wasm") {
        let batch = puts(&["/get/a", "/write", "/trap", "/get/a"]);
        let replies = module.query(&CONTEXT, valid(&batch), &[], Shelf::default(), LONG).unwrap();
        assert_eq!(letters(&replies), ".TT.");
    }
}

#[test]
fn key_values_survive_from_batch_to_batch() {
    for module in guest("kv.wasm") {
        let paths: Vec<String> = (0..50).map(|at| format!("/kv/key{at}")).collect();
        let batch = puts(&paths.iter().map(String::as_str).collect::<Vec<_>>());
        let (replies, shelf) = module.apply(&CONTEXT, valid(&batch), &[], Shelf::default()).unwrap();
        assert_eq!(letters(&replies), ".".repeat(50));
        let gets = Batch { commands: paths.iter().map(|path| request(Method::Get, path, b"")).collect() }.to_bytes();
        let replies = module.query(&CONTEXT, valid(&gets), &[], shelf.clone(), LONG).unwrap();
        assert_eq!(bodies(&replies), vec!["v"; 50]);
        let page = Request { query: "after=key0&limit=2".into(), ..request(Method::Get, "/kv", b"") };
        let page = Batch { commands: vec![page] }.to_bytes();
        let replies = module.query(&CONTEXT, valid(&page), &[], shelf, LONG).unwrap();
        let keys = r#"{"key":"key1","etag":"\"101\"","size":1},{"key":"key10","etag":"\"110\"","size":1}"#;
        assert_eq!(bodies(&replies), [format!(r#"{{"keys":[{keys}],"next":"key10"}}"#)]);
    }
}
