//! How connections end: by the server's will, and by the client's.

use super::*;

const PUT: &str = "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_closes_the_rest() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut fresh = rig.client().await;
    let mut idle = rig.client().await;
    idle.send(PUT).await;
    assert_eq!(idle.reply().await.status, 200);
    rig.node.behave(Behaviour::Gate);
    let mut busy = rig.client().await;
    busy.send(PUT).await;
    rig.until_inside(1).await;
    rig.until("accepted", |rig| rig.server.metrics().connections_open.load(SeqCst) == 3).await;

    let Rig { node, server, address } = rig;
    let metrics = server.metrics();
    let shutdown = tokio::spawn(server.shutdown(PATIENCE));
    idle.closed().await;
    fresh.closed().await;
    assert!(!shutdown.is_finished());
    node.gate.add_permits(1);
    let reply = busy.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    busy.closed().await;
    assert_eq!(shutdown.await.unwrap(), 0);
    assert_eq!(metrics.connections_open.load(SeqCst), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn shutdown_cuts_what_does_not_finish() {
    let rig = Rig::new(HttpLimits::default()).await;
    rig.node.behave(Behaviour::Never);
    let mut busy = rig.client().await;
    busy.send(PUT).await;
    let mut half = rig.client().await;
    half.send("PUT / HT").await;
    rig.until_inside(1).await;
    let Rig { node, server, .. } = rig;
    assert!(server.shutdown(Duration::from_millis(50)).await >= 1);
    busy.closed().await;
    half.closed().await;
    assert_eq!(node.inside.load(SeqCst), 0);
}

#[tokio::test]
async fn http_2_streams_in_flight_are_finished() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let rig = Rig::new(HttpLimits::default()).await;
    rig.node.behave(Behaviour::Gate);
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = hyper::Request::put("http://h/").body(Full::new(Bytes::from_static(b"x"))).unwrap();
    let reply = tokio::spawn(sender.send_request(request));
    rig.until_inside(1).await;
    let Rig { node, server, .. } = rig;
    let shutdown = tokio::spawn(server.shutdown(PATIENCE));
    node.gate.add_permits(1);
    let reply = reply.await.unwrap().unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes().as_ref(), b"x");
    assert_eq!(shutdown.await.unwrap(), 0);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_http_2_connection_is_told_to_go() {
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (header_read_timeout, idle_timeout) = (Duration::from_millis(50), Duration::from_millis(600));
    let rig = Rig::new(HttpLimits { header_read_timeout, idle_timeout, ..HttpLimits::default() }).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = hyper::Request::put("http://h/").body(Full::new(Bytes::from_static(b"x"))).unwrap();
    // The settings that the client acknowledged are bytes, but no head.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    timeout(PATIENCE, connection).await.expect("the server ends it").unwrap().unwrap();
    rig.until("the end", |rig| rig.server.metrics().connections_open.load(SeqCst) == 0).await;
    assert_eq!(rig.server.metrics().head_timeouts.load(SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let rig = Rig::new(HttpLimits::default()).await;
    rig.node.behave(Behaviour::Never);
    let mut waiting = rig.client().await;
    waiting.send(PUT).await;
    rig.until_inside(1).await;
    let mut in_head = rig.client().await;
    in_head.send("PUT / HT").await;
    let mut in_body = rig.client().await;
    in_body.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc").await;
    rig.until("in the body", |rig| rig.server.metrics().requests_in_flight.load(SeqCst) == 2).await;
    drop((waiting, in_head, in_body));
    rig.until_inside(0).await;
    rig.until("the end", |rig| rig.server.metrics().connections_open.load(SeqCst) == 0).await;
    assert_eq!(rig.server.metrics().requests_in_flight.load(SeqCst), 0);
}

#[tokio::test]
async fn dropping_the_server_ends_it() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    client.send(PUT).await;
    assert_eq!(client.reply().await.status, 200);
    let address = rig.address;
    drop(rig);
    client.closed().await;
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("the listener is closed");
}
