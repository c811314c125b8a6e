//! Every limit, obeyed and violated. Time limits are short here, and nothing is asserted about the clock but that
//! the server acts within the test's patience.

use super::super::limits::PROGRESS_BYTES_MIN;
use super::*;

fn short() -> HttpLimits {
    let brief = Duration::from_millis(150);
    let long = PATIENCE * 10;
    HttpLimits {
        header_read_timeout: brief,
        body_read_timeout: brief,
        idle_timeout: long,
        write_timeout: long,
        ..HttpLimits::default()
    }
}

fn put(bytes: usize) -> Vec<u8> {
    let mut request = format!("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
    request.resize(request.len() + bytes, b'x');
    request
}

fn chunked(bytes: usize) -> Vec<u8> {
    let mut request = b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for start in (0..bytes).step_by(1000) {
        let chunk = 1000.min(bytes - start);
        request.extend_from_slice(format!("{chunk:x}\r\n{}\r\n", "x".repeat(chunk)).as_bytes());
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes() {
    let limits = HttpLimits { body_bytes_max: 1 << 20, ..HttpLimits::default() };
    let rig = Rig::new(limits).await;
    for within in [put(1 << 20), chunked(1 << 20)] {
        let seen = rig.ask(within).await;
        assert_eq!((seen.status, seen.body.len()), (200, 1 << 20));
    }
    assert_eq!(rig.node.seen.lock().unwrap().len(), 2);
    for over in [put((1 << 20) + 1), chunked((1 << 20) + 1), put(3 << 20), chunked(3 << 20)] {
        let mut client = rig.client().await;
        // All of it is sent before anything is read: the refusal must survive that.
        client.send(over).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (413, "rejected"));
        assert_eq!(seen.header("connection"), Some("close"));
        client.closed().await;
    }
    assert_eq!(rig.node.seen.lock().unwrap().len(), 2, "none of them reached the node");
}

#[tokio::test]
async fn a_refused_client_may_still_be_sending() {
    let rig = Rig::new(HttpLimits::default()).await;
    let over = put((1 << 20) + 1);
    for early in [0, 100_000] {
        let mut client = rig.client().await;
        let head = over.len() - (1 << 20) - 1;
        client.send(&over[..head + early]).await;
        assert_eq!(client.reply().await.status, 413);
        client.closed().await;
        // A reset would make these fail.
        for piece in over[head + early..].chunks(64 << 10) {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_announced_body_over_the_limit_is_refused_before_it_is_sent() {
    let rig = Rig::new(HttpLimits { body_bytes_max: 10, ..HttpLimits::default() }).await;
    let seen = rig.ask("PUT /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n").await;
    assert_eq!(seen.status, 413);
    let seen = rig.ask("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615\r\n\r\n").await;
    assert!(matches!(seen.status, 400 | 413 | 431), "{seen:?}");
}

#[tokio::test]
async fn all_bodies_together_are_limited() {
    let limits = HttpLimits { bodies_bytes_max: 100 << 10, body_bytes_max: 1 << 20, ..HttpLimits::default() };
    let rig = Rig::new(limits).await;
    assert_eq!(rig.ask(put(100 << 10)).await.status, 200);
    let seen = rig.ask(put(200 << 10)).await;
    assert_eq!((seen.status, seen.header("retry-after"), seen.outcome().as_str()), (503, Some("1"), "rejected"));
    assert_eq!(rig.ask(put(100 << 10)).await.status, 200, "the refused one's share was given back");
}

#[tokio::test]
async fn heads_over_the_limits_are_refused() {
    let rig = Rig::new(HttpLimits { header_bytes_max: 8192, headers_max: 20, ..HttpLimits::default() }).await;
    let sized = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: h\r\nX-Long: {}\r\n\r\n", "x".repeat(bytes));
    assert_eq!(rig.ask(sized(8000)).await.status, 200);
    assert_eq!(rig.ask(sized(9000)).await.status, 431);
    let mut client = rig.client().await;
    client.send(&sized(300_000)[..20_000]).await;
    assert_eq!(client.reply().await.status, 431);
    client.closed().await;
    for _ in 0..10 {
        // A reset would make these fail.
        client.send(vec![b'x'; 10_000]).await;
        tokio::task::yield_now().await;
    }
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X-Many: 1\r\n".repeat(count));
    assert_eq!(rig.ask(many(19)).await.status, 200);
    assert_eq!(rig.ask(many(20)).await.status, 431);
    rig.until("counted", |rig| rig.server.metrics().protocol_errors.load(SeqCst) == 3).await;
}

#[tokio::test]
async fn a_slow_head_is_timed_out() {
    let rig = Rig::new(short()).await;
    for first in ["P", "PRI * HT", "GET / HTTP/1.1\r\nHost:"] {
        let mut client = rig.client().await;
        client.send(first).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (408, "rejected"), "{first}");
        client.closed().await;
    }
    // The second request of a connection as well.
    let mut client = rig.client().await;
    client.send(put(1)).await;
    assert_eq!(client.reply().await.status, 200);
    client.send("GET").await;
    assert_eq!(client.reply().await.status, 408);
    assert_eq!(rig.server.metrics().head_timeouts.load(SeqCst), 4);
}

#[tokio::test]
async fn a_head_that_drips_is_timed_out_as_a_whole() {
    let rig = Rig::new(short()).await;
    let mut client = rig.client().await;
    let mut sent = 0;
    let drip = async {
        while timeout(Duration::from_millis(20), client.socket.readable()).await.is_err() {
            client.socket.try_write(b"x").unwrap();
            sent += 1;
        }
    };
    timeout(PATIENCE, drip).await.expect("the server ends it");
    assert!(sent > 1);
    assert_eq!(client.reply().await.status, 408);
}

#[tokio::test]
async fn a_slow_body_is_timed_out() {
    let rig = Rig::new(short()).await;
    for head in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let mut client = rig.client().await;
        client.send(format!("PUT / HTTP/1.1\r\nHost: h\r\n{head}")).await;
        let seen = client.reply().await;
        assert_eq!((seen.status, seen.outcome().as_str()), (408, "rejected"));
        client.closed().await;
    }
    assert_eq!(rig.server.metrics().body_timeouts.load(SeqCst), 2);
    assert!(rig.node.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_that_makes_progress_may_take_several_periods() {
    let rig = Rig::new(HttpLimits { body_read_timeout: Duration::from_millis(400), ..short() }).await;
    let piece = vec![b'x'; PROGRESS_BYTES_MIN as usize * 2];
    let mut client = rig.client().await;
    client.send(format!("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", piece.len() * 10)).await;
    for _ in 0..10 {
        client.send(&piece).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.reply().await.body.len(), piece.len() * 10);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let rig = Rig::new(HttpLimits { idle_timeout: Duration::from_millis(150), ..short() }).await;
    let mut silent = rig.client().await;
    let mut served = rig.client().await;
    served.send(put(1)).await;
    assert_eq!(served.reply().await.status, 200);
    rig.node.behave(Behaviour::Gate);
    let mut busy = rig.client().await;
    busy.send(put(1)).await;
    silent.closed().await;
    served.closed().await;
    rig.until_inside(1).await;
    rig.node.gate.add_permits(1);
    let reply = busy.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, None), "it was not told to go");
    busy.closed().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let rig = Rig::new(HttpLimits { write_timeout: Duration::from_millis(150), ..short() }).await;
    let body = vec![0; 64 << 20];
    rig.node.behave(Behaviour::Reply(Reply { status: 200, content_type: String::new(), headers: vec![], body }));
    let mut client = rig.client().await;
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    rig.until("the cut", |rig| rig.server.metrics().write_timeouts.load(SeqCst) == 1).await;
    rig.until("the end", |rig| rig.server.metrics().connections_open.load(SeqCst) == 0).await;
    let mut reader = rig.client().await;
    reader.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(reader.reply().await.body.len(), 64 << 20, "one that reads gets all");
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let rig = Rig::new(HttpLimits { connections_max: 2, ..HttpLimits::default() }).await;
    let (mut one, mut two, mut three) = (rig.client().await, rig.client().await, rig.client().await);
    for client in [&mut one, &mut two] {
        client.send(put(1)).await;
        assert_eq!(client.reply().await.status, 200);
    }
    three.send(put(1)).await;
    assert!(timeout(Duration::from_millis(100), three.socket.readable()).await.is_err());
    drop(one);
    assert_eq!(three.reply().await.status, 200);
    assert_eq!(rig.server.metrics().connections_accepted.load(SeqCst), 3);
}
