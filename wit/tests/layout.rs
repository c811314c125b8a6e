//! The archived layout of batches and replies is a published format (version 1): logs hold it and modules read it.
//! Golden files pin it byte by byte. `BLESS=1 cargo test -p raftlet-machine` rewrites them: do that only together
//! with a new `FORMAT_VERSION`.

use std::path::PathBuf;

use raftlet_machine::{ArchivedBatch, ArchivedReplies, Batch, FORMAT_VERSION, Header, Method, Replies, Reply, Request};

fn request(method: Method, path: &str, query: &str) -> Request {
    Request { method, path: path.into(), query: query.into(), headers: Vec::new(), body: Vec::new() }
}

fn batch() -> Batch {
    let headers = vec![
        Header { name: "if-match".into(), value: b"\"12\"".to_vec() },
        Header { name: "content-type".into(), value: b"application/octet-stream".to_vec() },
    ];
    let put = Request { headers, body: b"|BATCH|\0\xff".to_vec(), ..request(Method::Put, "/kv/a%2Fb", "") };
    // A text of up to 8 bytes stands inline, a longer one out of line: one of each.
    let long = Request { body: (0..=255).collect(), ..request(Method::Post, "/a/path/longer/than/eight", "x=1&y=%20") };
    let rest = [Method::Get, Method::Head, Method::Patch, Method::Delete].map(|m| request(m, "/", "q"));
    Batch { commands: [put, long].into_iter().chain(rest).collect() }
}

fn replies() -> Replies {
    let headers = vec![Header { name: "etag".into(), value: b"\"7\"".to_vec() }];
    let body = b"hello\0\xff".to_vec();
    let ok = Reply { status: 200, content_type: "application/octet-stream".into(), headers, body };
    let empty = |status| Reply { status, content_type: String::new(), headers: Vec::new(), body: Vec::new() };
    Replies { replies: vec![ok, empty(404), empty(599)] }
}

#[track_caller]
fn assert_golden(name: &str, bytes: &[u8]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{name}-v{FORMAT_VERSION}.bin"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let first = golden.iter().zip(bytes).position(|(a, b)| a != b);
    assert!(
        golden == bytes,
        "{name}: {} bytes, {} in the file, first difference at {first:?}",
        bytes.len(),
        golden.len()
    );
}

#[test]
fn a_batch_has_the_published_bytes() {
    assert_golden("batch", &batch().to_bytes());
    assert_golden("batch-empty", &Batch::default().to_bytes());
}

#[test]
fn replies_have_the_published_bytes() {
    assert_golden("replies", &replies().to_bytes());
    assert_golden("replies-empty", &Replies::default().to_bytes());
}

/// The sizes that a reader of the format computes offsets from.
#[test]
fn the_records_have_the_published_sizes_and_no_alignment() {
    use raftlet_machine::{ArchivedHeader, ArchivedReply, ArchivedRequest};
    assert_eq!((size_of::<ArchivedBatch>(), align_of::<ArchivedBatch>()), (8, 1));
    assert_eq!((size_of::<ArchivedRequest>(), align_of::<ArchivedRequest>()), (33, 1));
    assert_eq!((size_of::<ArchivedHeader>(), align_of::<ArchivedHeader>()), (16, 1));
    assert_eq!((size_of::<ArchivedReplies>(), align_of::<ArchivedReplies>()), (8, 1));
    assert_eq!((size_of::<ArchivedReply>(), align_of::<ArchivedReply>()), (26, 1));
}

#[test]
fn what_was_archived_is_read_back_at_every_alignment() {
    let (batch, replies) = (batch(), replies());
    for shift in 0..8 {
        let at = |bytes: Vec<u8>| [vec![0; shift], bytes].concat();
        let bytes = at(batch.to_bytes());
        let read = Batch::access(&bytes[shift..]).unwrap();
        assert_eq!(read.commands.len(), batch.commands.len());
        for (read, sent) in read.commands.iter().zip(&batch.commands) {
            assert_eq!((read.path.as_str(), read.query.as_str()), (sent.path.as_str(), sent.query.as_str()));
            assert_eq!((read.method as u8, read.body.as_slice()), (sent.method as u8, sent.body.as_slice()));
            let headers = read.headers.iter().map(|h| (h.name.as_str(), h.value.as_slice()));
            assert!(headers.eq(sent.headers.iter().map(|h| (h.name.as_str(), h.value.as_slice()))));
        }
        assert_eq!(Replies::from_bytes(&at(replies.to_bytes())[shift..]).unwrap(), replies);
    }
}
