//! Replies to batches that their clients don't read: they are counted until they are gone, and too many of them refuse
//! further batches.

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftlet_machine::Method::{Get, Put};

use super::bulk::{ARCHIVE, archive, post, request};
use super::*;

/// More than the sockets on both sides hold.
const LARGE: usize = 32 << 20;

fn limits() -> HttpLimits {
    HttpLimits { bulk_replies_bytes_max: 1 << 20, ..HttpLimits::default() }
}

fn large() -> Behaviour {
    Behaviour::Reply(Reply { status: 200, content_type: String::new(), headers: vec![], body: vec![0; LARGE] })
}

fn one(method: raftlet_machine::Method) -> Vec<u8> {
    post("", ARCHIVE, &archive(vec![request(method, "/a", b"")]))
}

impl Rig {
    async fn until_unread(&self, at_least: usize) {
        let unread = |rig: &Rig| rig.server.metrics().bulk_replies_bytes.load(SeqCst) as usize;
        let what = format!("{at_least} bytes unread");
        self.until(&what, |rig| if at_least == 0 { unread(rig) == 0 } else { unread(rig) >= at_least }).await;
    }

    async fn takes_batches(&self) {
        self.until_unread(0).await;
        self.node.behave(Behaviour::Echo);
        assert_eq!(self.ask(one(Put)).await.status, 200);
        self.until_unread(0).await;
        self.node.behave(large());
    }
}

#[tokio::test]
async fn too_many_unread_replies_refuse_batches_before_anything_happens() {
    let rig = Rig::new(limits()).await;
    rig.node.behave(large());
    let mut slow = rig.client().await;
    slow.send(one(Put)).await;
    rig.until_unread(LARGE).await;
    for method in [Put, Get] {
        let seen = rig.ask(one(method)).await;
        assert_eq!((seen.status, seen.header("retry-after"), seen.outcome().as_str()), (503, Some("1"), "rejected"));
        let text = String::from_utf8(seen.body).unwrap();
        assert!(text.contains("/_/problems/overloaded") && text.contains("1048576 may"), "{text}");
    }
    assert_eq!(rig.node.batches.lock().unwrap().len(), 1, "the others didn't reach the node");
    let alone = rig.ask("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(alone.status, 200, "what is no batch is taken");
    assert!(slow.reply().await.body.len() > LARGE);
    rig.takes_batches().await;
    slow.send(one(Put)).await;
    rig.until_unread(LARGE).await;
    drop(slow);
    rig.takes_batches().await;
}

#[tokio::test]
async fn http_2_gives_the_bytes_back_with_the_stream_and_with_the_connection() {
    let rig = Rig::new(limits()).await;
    rig.node.behave(large());
    let connect = async || {
        let socket = std::net::TcpStream::connect(rig.address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        (sender, socket)
    };
    let ask = || {
        let body = Bytes::from(archive(vec![request(Put, "/a", b"")]));
        hyper::Request::post("http://h/_/batch").header("content-type", ARCHIVE).body(Full::new(body)).unwrap()
    };
    let (mut sender, socket) = connect().await;
    let unread = sender.send_request(ask()).await.unwrap();
    rig.until_unread(LARGE).await;
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), 503);
    drop(unread);
    rig.takes_batches().await;
    let unread = sender.send_request(ask()).await.unwrap();
    rig.until_unread(LARGE).await;
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    rig.takes_batches().await;
    drop(unread);
}

#[tokio::test]
async fn what_is_under_way_when_replies_become_too_many_is_answered_if_it_was_done() {
    let rig = Rig::new(limits()).await;
    rig.node.behave(Behaviour::Gate);
    let (mut command, mut query, mut slow) = (rig.client().await, rig.client().await, rig.client().await);
    command.send(one(Put)).await;
    query.send(one(Get)).await;
    rig.until_inside(2).await;
    rig.node.behave(large());
    slow.send(one(Put)).await;
    rig.until_unread(LARGE).await;
    rig.node.behave(Behaviour::Echo);
    rig.node.gate.add_permits(2);
    assert_eq!(command.reply().await.status, 200, "a command that was run has its reply");
    let seen = query.reply().await;
    assert_eq!((seen.status, seen.outcome().as_str()), (503, "rejected"));
    drop(slow);
    rig.takes_batches().await;
}
