//! Bytes from peers, clients, disks and guests that are no archive: always an error, never a panic, and never a
//! reference to anything outside the bytes.

use proptest::prelude::*;
use raftlet_machine::{Batch, Header, Method, Replies, Reply, Request};

fn batch() -> Vec<u8> {
    let headers = vec![Header { name: "content-type".into(), value: b"text/plain".to_vec() }];
    let (path, query) = ("/a/path/longer/than/eight".into(), "prefix=abcdefgh".into());
    let request = Request { method: Method::Put, path, query, headers, body: b"a body".to_vec() };
    Batch { commands: vec![request.clone(), request] }.to_bytes()
}

fn replies() -> Vec<u8> {
    let headers = vec![Header { name: "raftlet-revision".into(), value: b"\"7\"".to_vec() }];
    let content_type = "application/octet-stream".into();
    let reply = Reply { status: 200, content_type, headers, body: b"a body".to_vec() };
    Replies { replies: vec![reply.clone(), reply] }.to_bytes()
}

/// Validates, and if the bytes are valid touches all that they lead to.
fn read_all(bytes: &[u8]) -> (bool, bool) {
    let inside = |part: &[u8]| part.is_empty() || bytes.as_ptr_range().contains(&part.as_ptr());
    let batch = Batch::access(bytes).map(|batch| {
        for c in batch.commands.iter() {
            assert!(inside(c.path.as_bytes()) && inside(c.query.as_bytes()) && inside(&c.body));
            assert!(c.headers.iter().all(|h| inside(h.name.as_bytes()) && inside(&h.value)));
        }
    });
    let replies = Replies::access(bytes).map(|replies| {
        for r in replies.replies.iter() {
            assert!(inside(r.content_type.as_bytes()) && inside(&r.body) && u16::from(r.status) as usize <= 65_535);
            assert!(r.headers.iter().all(|h| inside(h.name.as_bytes()) && inside(&h.value)));
        }
    });
    assert_eq!(replies.is_ok(), Replies::from_bytes(bytes).is_ok());
    (batch.is_ok(), replies.is_ok())
}

#[test]
fn every_truncation_is_refused() {
    // The root stands at the end, so what is cut off the end, or off the start, leaves pointers that lead nowhere.
    for cut in 0..batch().len() {
        assert!(Batch::access(&batch()[..cut]).is_err(), "first {cut} bytes");
    }
    for cut in 0..replies().len() {
        assert!(Replies::access(&replies()[..cut]).is_err(), "first {cut} bytes");
    }
    for cut in 1..batch().len() {
        assert!(Batch::access(&batch()[cut..]).is_err(), "all but {cut} bytes");
    }
}

#[test]
fn lengths_and_pointers_out_of_range_are_refused() {
    for good in [batch(), replies()] {
        // The root: a relative pointer (i32) and a length (u32), both at the end.
        let (pointer, length) = (good.len() - 8, good.len() - 4);
        for wrong in [1_i32, i32::MAX, i32::MIN, -(good.len() as i32)] {
            let mut bytes = good.clone();
            bytes[pointer..pointer + 4].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(read_all(&bytes), (false, false), "pointer {wrong}");
        }
        for wrong in [3_u32, 1 << 20, u32::MAX] {
            let mut bytes = good.clone();
            bytes[length..].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(read_all(&bytes), (false, false), "length {wrong}");
        }
    }
}

#[test]
fn an_unknown_method_and_a_path_that_is_not_utf8_are_refused() {
    let good = batch();
    let path = good.windows(25).position(|w| w == b"/a/path/longer/than/eight").unwrap();
    let mut bytes = good.clone();
    bytes[path] = 0xff;
    assert!(Batch::access(&bytes).is_err());
    // A request begins with its method; the array of requests ends where the root begins.
    let mut bytes = good.clone();
    let method = good.len() - 8 - 33;
    assert_eq!(bytes[method], Method::Put as u8);
    bytes[method] = 6;
    assert!(Batch::access(&bytes).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
    }

    #[test]
    fn damaged_archives_never_panic(damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        for mut bytes in [batch(), replies()] {
            for &(at, value) in &damage {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            read_all(&bytes);
        }
    }

    #[test]
    fn a_path_of_any_length_survives(path in "\\PC{0,40}", body in proptest::collection::vec(any::<u8>(), 0..40)) {
        let query = String::new();
        let request = Request { method: Method::Put, path, query, headers: Vec::new(), body };
        let bytes = Batch { commands: vec![request.clone()] }.to_bytes();
        let read = &Batch::access(&bytes).unwrap().commands[0];
        prop_assert_eq!((read.path.as_str(), read.body.as_slice()), (request.path.as_str(), request.body.as_slice()));
    }
}
